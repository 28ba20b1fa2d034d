"""The quality page: its figures, its flags, its pictures, and what it does with any text."""

import base64
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.path import Path as Polygon
from PIL import Image
from tiny_qc import DOUBT_NOTE, MARKUP, NAMES, QUARANTINED, UPSIDE_DOWN, egg, write_cohort

from uadray import files
from uadray.errors import ConfigError
from uadray.quality.figures import GREYS, MAX_SIDE, grey_png, outline, picture, planes_through
from uadray.quality.measures import (
    BINS,
    MAX_Z,
    MEASURES,
    MIN_SCANS,
    ScanMeasures,
    find_limits,
    mean_histogram,
    measure_scan,
    own_doubts,
    same_voxels,
)
from uadray.quality.page import quality_url, write_quality_page
from uadray.store import Cohort

SPACING = (2.0, 3.0, 4.0)


def measured(seed: int = 0) -> tuple[np.ndarray, np.ndarray, ScanMeasures]:
    image, brain = egg(np.random.default_rng(seed))
    return image, brain, measure_scan(image, brain, None, spacing_mm=SPACING)


class TestMeasures:
    def test_against_plain_loops(self) -> None:
        image, brain, measures = measured()
        voxels = [tuple(v) for v in np.argwhere(brain)]
        values = sorted(float(image[v]) for v in voxels)
        assert measures.brain_ml == pytest.approx(len(voxels) * 24 / 1000)
        assert measures.grid_share == pytest.approx(len(voxels) / image.size)
        assert measures.mean == pytest.approx(sum(values) / len(values))
        assert measures.low == pytest.approx(np.quantile(values, 0.05))
        assert measures.high == pytest.approx(np.quantile(values, 0.95))
        counts = [0] * BINS
        for value in values:
            counts[min(int(value * BINS), BINS - 1)] += 1
        np.testing.assert_allclose(measures.histogram, np.array(counts) / len(values))
        apart = 0.0
        inside = set(voxels)
        for axis in range(3):
            places = [v[axis] for v in voxels]
            first, last = min(places), max(places)
            centre = sum(places) / len(places)
            mirrored = sum(
                tuple(first + last - n if k == axis else n for k, n in enumerate(v)) in inside
                for v in voxels
            )
            assert measures.mirrors[axis] == pytest.approx(mirrored / len(voxels))
            offset = (centre - (first + last) / 2) / (last + 1 - first)
            assert measures.offsets[axis] == pytest.approx(offset)
            apart += ((centre - (image.shape[axis] - 1) / 2) * SPACING[axis]) ** 2
        assert measures.position_mm == pytest.approx(apart**0.5)

    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_turned_round_an_offset_changes_its_sign_alone(self, axis: int) -> None:
        image, brain, measures = measured()
        turned = measure_scan(np.flip(image, axis), np.flip(brain, axis), None, spacing_mm=SPACING)
        signs = np.where(np.arange(3) == axis, -1, 1)
        np.testing.assert_allclose(turned.offsets, signs * np.array(measures.offsets), atol=1e-12)
        np.testing.assert_allclose(turned.mirrors, measures.mirrors)
        assert turned.brain_ml == measures.brain_ml
        assert turned.digest != measures.digest

    def test_mixed_up_axes_are_doubted(self) -> None:
        image, brain, measures = measured()
        assert own_doubts(measures) == []
        for order, words in (((0, 2, 1), "front on back"), ((2, 1, 0), "top on bottom")):
            mixed = measure_scan(
                image.transpose(order), brain.transpose(order), None, spacing_mm=SPACING
            )
            [doubt] = own_doubts(mixed)
            assert words in doubt

    def test_an_empty_mask_is_doubted_and_held_against_nobody(self) -> None:
        image, brain, _ = measured()
        empty = measure_scan(image, np.zeros_like(brain), None, spacing_mm=SPACING)
        assert own_doubts(empty) == ["the brain mask is empty"]
        scans = [measured(k)[2] for k in range(MIN_SCANS)] + [empty]
        for limit in find_limits(scans):
            assert np.isfinite(limit.median)
            assert limit.measure.key == "brain_ml" or not limit.is_outlier[-1]
        assert mean_histogram(scans).sum() == pytest.approx(1)

    def test_same_voxels(self) -> None:
        scans = [measured(k)[2] for k in (1, 2, 1, 3, 1)]
        assert same_voxels(scans) == [[2, 4], [], [0, 4], [], [0, 2]]


def cohort_of(values: list[float], key: str = "brain_ml") -> list[ScanMeasures]:
    one = measured()[2]
    return [replace(one, **{key: value}) for value in values]


class TestLimits:
    def test_the_rule(self) -> None:
        values = [1200.0, 1260, 1300, 1310, 1350, 1400, 1440, 1500, 2400]
        [limit] = [x for x in find_limits(cohort_of(values)) if x.measure.key == "brain_ml"]
        median = sorted(values)[4]
        mad = sorted(abs(v - median) for v in values)[4]
        z = [abs(v - median) / (1.4826 * mad) for v in values]
        assert limit.is_outlier.tolist() == [x > MAX_Z for x in z]
        assert limit.is_outlier.tolist() == [False] * 8 + [True]
        high = median + 3.5 * 1.4826 * mad
        assert limit.reason(8) == f"Brain (mL) 2,400, above {high:,.0f} (robust z {z[8]:,.1f})"

    def test_few_scans_are_not_held_against_each_other(self) -> None:
        values = [1300.0] * (MIN_SCANS - 2) + [9000.0]
        assert not any(x.is_outlier.any() for x in find_limits(cohort_of(values)))
        assert any(x.is_outlier.any() for x in find_limits(cohort_of([*values, 1300.0])))

    def test_scans_that_are_nearly_alike_do_not_stand_out(self) -> None:
        values = [1300.0] * 20 + [1305.0]
        assert not any(x.is_outlier.any() for x in find_limits(cohort_of(values)))

    @pytest.mark.parametrize(("low", "flagged"), [(True, True), (False, False)])
    def test_a_measure_with_one_side(self, low: bool, flagged: bool) -> None:
        values = [0.9] * 12 + [0.5 if low else 1.3]
        mirrors = [(0.5, 0.5, v) for v in values]
        one = measured()[2]
        scans = [replace(one, mirrors=m) for m in mirrors]
        [limit] = [x for x in find_limits(scans) if x.measure.key == "mirror"]
        assert limit.is_outlier[-1] == flagged

    @settings(max_examples=30, deadline=None)
    @given(st.lists(st.floats(100, 3000), min_size=MIN_SCANS, max_size=30), st.randoms())
    def test_the_order_does_not_matter(self, values: list[float], random: object) -> None:
        order = list(range(len(values)))
        random.shuffle(order)  # type: ignore[attr-defined]
        before = find_limits(cohort_of(values))[0].is_outlier
        after = find_limits(cohort_of([values[k] for k in order]))[0].is_outlier
        assert after.tolist() == before[order].tolist()


def inside(path: str, shape: tuple[int, int]) -> np.ndarray:
    """Voxels whose centres an SVG path encloses (even-odd), first row at the bottom as stored."""
    height, width = shape
    centres = [(2 * x + 1, 2 * y + 1) for y in range(height) for x in range(width)]
    filled = np.zeros(len(centres), bool)
    for part in filter(None, path.split("M")):
        start, steps = part.rstrip("z").split("l")
        moves = np.array(re.findall(r"-?\d+", steps), int).reshape(-1, 2)
        corners = np.cumsum([[int(n) for n in start.split()], *moves], axis=0)
        filled ^= Polygon(corners).contains_points(centres)
    return filled.reshape(shape)[::-1]


class TestPictures:
    @settings(max_examples=60, deadline=None)
    @given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
    def test_an_outline_encloses_its_mask(self, mask: np.ndarray) -> None:
        np.testing.assert_array_equal(inside(outline(mask), mask.shape), mask)

    def test_an_outline_of_a_real_shape(self) -> None:
        _, brain = egg(np.random.default_rng(0), shape=(30, 40, 34))
        for axis in range(3):
            mask = brain.take(15, axis)
            np.testing.assert_array_equal(inside(outline(mask), mask.shape), mask)
        assert outline(np.zeros((4, 4), bool)) == ""

    @pytest.mark.parametrize("shape", [(12, 16), (100, 160)])
    def test_a_png_shows_the_plane_upright(self, shape: tuple[int, int]) -> None:
        plane = np.linspace(0, 1, shape[0])[:, None] * np.ones(shape[1])
        scale = min(1, MAX_SIDE / max(shape))
        data = base64.b64decode(grey_png(plane, scale).removeprefix("data:image/png;base64,"))
        pixels = np.asarray(Image.open(io.BytesIO(data)))
        assert pixels.shape == (min(shape[0], 50), min(shape[1], MAX_SIDE))
        assert len(np.unique(pixels)) <= GREYS
        expected = np.linspace(255, 0, pixels.shape[0])[:, None]
        assert np.abs(pixels - expected).max() <= 255 / GREYS / 2 + 3

    def test_planes_go_through_the_lesion(self) -> None:
        _, brain = egg(np.random.default_rng(0))
        lesion = np.zeros_like(brain)
        lesion[3, 4:7, 5] = lesion[2, 4, 5] = True
        assert planes_through(brain, lesion) == (3, 4, 5)
        middle = tuple(round(float(n)) for n in np.argwhere(brain).mean(0))
        assert planes_through(brain, None) == middle
        assert planes_through(brain, np.zeros_like(brain)) == middle
        empty = np.zeros((4, 6, 8), bool)
        assert planes_through(empty, None) == (2, 3, 4)

    def test_millimetres_and_boxes(self) -> None:
        image, brain = egg(np.random.default_rng(0), shape=(10, 12, 14))
        planes = picture(image, brain, None, spacing_mm=SPACING)
        assert [p["size"] for p in planes] == [[56.0, 36.0], [56.0, 20.0], [36.0, 20.0]]
        assert [p["box"] for p in planes] == [[28, 24], [28, 20], [24, 20]]
        assert all(p["brain"] and not p["lesion"] for p in planes)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return write_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def page(cohort: Cohort) -> str:
    made = write_quality_page(cohort)
    assert made.url == cohort.url.removesuffix(".zarr") + "-qc.html"
    assert made.num_scans == len(NAMES)
    return Path(made.url).read_text()


def row_of(page: str, row: int) -> str:
    [html_row] = re.findall(rf'<tr data-row="{row}" .*?</tr>', page, flags=re.S)
    return str(html_row)


class TestPage:
    def test_the_same_store_gives_the_same_bytes(
        self, cohort: Cohort, page: str, tmp_path: Path
    ) -> None:
        again = write_quality_page(cohort, str(tmp_path / "again.html"))
        assert Path(again.url).read_text() == page

    def test_every_scan_is_there_with_its_pictures(self, cohort: Cohort, page: str) -> None:
        rows = cohort.subjects["row"].tolist()
        held = re.findall(
            r'<script type="application/json" id="picture-(\d+)">(.*?)</script>', page
        )
        assert sorted(int(row) for row, _ in held) == rows
        for row, text in held:
            values = json.loads(text)
            assert values["row"] == int(row)
            assert len(values["planes"]) == 3
            assert len(values["shares"]) == BINS
            assert sum(values["shares"]) == pytest.approx(1000, abs=BINS / 2)
            assert row_of(page, int(row))

    def test_flags(self, cohort: Cohort, page: str) -> None:
        by_id = dict(zip(cohort.subjects["id"], cohort.subjects["row"], strict=True))
        upside_down = row_of(page, by_id[UPSIDE_DOWN])
        assert "⚑ Up (of height)" in upside_down
        doubted = row_of(page, by_id[NAMES[2]])
        assert f"⚑ {DOUBT_NOTE}" in doubted
        assert 'class="note">brain mask by deepbet' in doubted
        assert 'data-doubts="1"' in doubted
        same = row_of(page, by_id[NAMES[4]])
        assert f"holds the same voxels as {NAMES[5]}" in same
        plain = row_of(page, by_id[NAMES[7]])
        assert 'data-flags="0"' in plain
        assert "⚑" not in plain

    def test_scans_with_most_flags_stand_on_top(self, page: str) -> None:
        flags = [int(n) for n in re.findall(r'data-flags="(\d+)"', page)]
        assert flags == sorted(flags, reverse=True)
        assert flags[0] > 0
        assert flags[-1] == 0

    def test_the_quarantine_is_listed(self, page: str) -> None:
        section = page[page.index('<h2 id="quarantine">') :]
        assert QUARANTINED in section
        assert "ends after 12 bytes" in section

    def test_no_text_of_the_store_becomes_markup(self, page: str) -> None:
        assert MARKUP not in page
        assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 3
        assert len(re.findall(r"<script(?! type=.application/json)", page)) == 1

    def test_it_asks_for_nothing_outside(self, page: str) -> None:
        assert re.findall(r'(?:src|href)\s*=\s*"(?!#|data:)[^"]*"', page) == []
        assert "default-src 'none'" in page

    def test_figures_are_the_table_s(self, cohort: Cohort, page: str) -> None:
        for row, ml in zip(cohort.subjects["row"], cohort.subjects["brain_ml"], strict=True):
            [value] = re.findall(r'data-key="brain_ml" data-value="([^"]*)"', row_of(page, row))
            assert float(value) == pytest.approx(ml, rel=1e-4)
        assert all(f'data-key="{m.key}"' in page for m in MEASURES)


class TestPlace:
    @pytest.mark.parametrize(
        ("store", "page"),
        [
            ("/data/a.zarr", "/data/a-qc.html"),
            ("/data/a", "/data/a-qc.html"),
            ("s3://bucket/x/a.zarr/", "s3://bucket/x/a-qc.html"),
        ],
    )
    def test_beside_the_store(self, store: str, page: str) -> None:
        assert quality_url(store) == page

    def test_a_whole_bucket_has_nothing_beside_it(self) -> None:
        with pytest.raises(ConfigError, match="whole bucket"):
            quality_url("s3://bucket")
        assert quality_url("s3://bucket", "s3://other/p.html") == "s3://other/p.html"

    def test_the_ending_is_checked(self, cohort: Cohort) -> None:
        with pytest.raises(ConfigError, match=r"must end in \.html"):
            write_quality_page(cohort, "page.htm")

    @pytest.mark.parametrize("remote", [False, True])
    def test_a_file_is_replaced_whole_or_not_at_all(self, tmp_path: Path, remote: bool) -> None:
        url = "memory://qc/page.html" if remote else str(tmp_path / "page.html")
        for content in (b"old", b"new"):
            with files.replacing(url) as file:
                file.write(content)
        with pytest.raises(RuntimeError), files.replacing(url) as file:  # noqa: PT012
            file.write(b"half")
            raise RuntimeError
        assert files.read_bytes(url) == b"new"
        assert remote or files.list_names(str(tmp_path)) == ["page.html"]
