"""The viewer's volumes and pages, without a browser."""

import base64
import gzip
import json
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_cases import MARKUP, SPOT_MM, THRESHOLD, tiny_case, write_tiny_case

from uadray.errors import ConfigError
from uadray.viewer import page as viewer
from uadray.viewer import volumes as viewer_volumes
from uadray.viewer.page import open_case, write_case, write_index
from uadray.viewer.volumes import load_volumes, score_levels


def embedded(page: str, name: str) -> Any:
    """A volume of a page, read by nibabel."""
    match = re.search(rf'id="volume-{name}">([^<]*)<', page)
    assert match is not None
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(match[1])))


def case_of(page: str) -> dict[str, Any]:
    match = re.search(r'id="case">(.*?)</script>', page, re.S)
    assert match is not None
    values: dict[str, Any] = json.loads(match[1])
    return values


def nearest(image: Any, mm: np.ndarray) -> tuple[int, ...]:
    place = np.linalg.inv(image.affine) @ [*mm, 1.0]
    return tuple(np.rint(place[:3]).astype(int))


@pytest.mark.parametrize("axes", ["RAS", "LAS", "LPI", "PIR", "SAL"])
def test_each_voxel_stays_where_it_is_in_the_scanner(axes: str, tmp_path: Path) -> None:
    given_images = tiny_case(axes)
    made = write_tiny_case(tmp_path / "page.html", axes=axes)
    page = Path(made.url).read_text()
    rng = np.random.default_rng(1)
    brain = np.argwhere(np.asarray(given_images["brain"].dataobj) > 0)
    slope = {name: case_of(page)[name]["slope"] for name in ("scan", "anomaly", "reconstruction")}
    for name in ("scan", "anomaly", "reconstruction"):
        stored = embedded(page, name)
        assert nib.aff2axcodes(stored.affine) == ("R", "A", "S")
        values = stored.get_fdata()
        for voxel in rng.choice(brain, 40):
            mm = (given_images[name].affine @ [*voxel, 1])[:3]
            expected = float(given_images[name].dataobj[tuple(voxel)])
            # The 99.9th percentile is the brightest level.
            limit = values.max()
            assert values[nearest(stored, mm)] == pytest.approx(
                min(expected, limit), abs=slope[name]
            )
    labels = embedded(page, "labels")
    for bit, name in ((1, "proposal"), (2, "truth")):
        mask = np.asarray(given_images[name].dataobj) > 0
        held = (np.asarray(labels.dataobj).astype(int) & bit) > 0
        assert held.sum() == mask.sum()
        middle = (given_images[name].affine @ [*np.argwhere(mask).mean(0), 1])[:3]
        assert (labels.affine @ [*np.argwhere(held).mean(0), 1])[:3] == pytest.approx(middle)


@pytest.mark.parametrize("axes", ["RAS", "LPI", "SAL"])
def test_slices_are_named_by_their_index_in_the_file(axes: str) -> None:
    images = tiny_case(axes)
    volumes = load_volumes(**images, threshold=THRESHOLD)
    axis, first, step = volumes.file_slices
    assert nib.aff2axcodes(images["scan"].affine)[axis] in "SI"
    anomaly = np.asarray(images["anomaly"].dataobj)
    for z, score in enumerate(volumes.slice_scores):
        assert score == pytest.approx(anomaly.take(first + step * z, axis).max())
    x, y, z = volumes.peak
    assert volumes.slice_scores[z] == pytest.approx(anomaly.max())
    assert np.linalg.norm((volumes.affine @ [x, y, z, 1])[:3] - SPOT_MM) < 5


@given(
    scores=st.lists(st.floats(-1, 4, width=32), min_size=1, max_size=60),
    threshold=st.floats(0.01, 3),
)
def test_the_threshold_falls_between_two_levels(scores: list[float], threshold: float) -> None:
    values = np.array([*scores, 4.0], np.float32)
    levels = score_levels(values, threshold)
    place = (threshold - levels.low) / levels.slope
    assert place - np.floor(place) == pytest.approx(0.5, abs=1e-6)
    clear = np.abs(values - threshold) > 1e-5
    above = levels.of(values) > place
    assert (above == (values > threshold))[clear].all()


def test_a_threshold_above_all_scores_shows_nothing() -> None:
    levels = score_levels(np.array([0.0, 0.3]), 0.9)
    assert levels.of(np.array([0.3])) <= (0.9 - levels.low) / levels.slope


def test_the_page_is_cut_to_the_brain(tmp_path: Path) -> None:
    volumes = load_volumes(**tiny_case())
    brain = np.asarray(tiny_case("RAS")["brain"].dataobj) > 0
    sides = [np.flatnonzero(brain.any(tuple({0, 1, 2} - {k}))) for k in range(3)]
    assert volumes.scan.shape == tuple(
        min(n, s[-1] + 4) - max(0, s[0] - 3) for s, n in zip(sides, brain.shape, strict=True)
    )


def test_without_masks_or_threshold(tmp_path: Path) -> None:
    images = {name: tiny_case()[name] for name in ("scan", "anomaly")}
    page = write_case(str(tmp_path / "sub-1.html"), **images)
    text = Path(page.url).read_text()
    assert page.name == "sub-1"
    assert case_of(text)["threshold"] is None
    assert "volume-labels" not in text.split("<script>")[0]
    assert "Proposal <kbd>" not in text
    assert set(page.summary) == {"score"}


def test_files_are_read_as_images_are(tmp_path: Path) -> None:
    paths = {}
    for name, image in tiny_case().items():
        paths[name] = str(tmp_path / f"{name}.nii.gz")
        nib.save(image, paths[name])
    from_files = load_volumes(**paths, threshold=THRESHOLD)
    from_images = load_volumes(**tiny_case(), threshold=THRESHOLD)
    np.testing.assert_array_equal(from_files.anomaly, from_images.anomaly)
    np.testing.assert_array_equal(from_files.scan, from_images.scan)


def test_figures_follow_from_the_masks(tmp_path: Path) -> None:
    images = tiny_case()
    page = write_tiny_case(tmp_path / "page.html")
    proposal, truth = (np.asarray(images[n].dataobj) > 0 for n in ("proposal", "truth"))
    assert page.summary["volume_ml"] == pytest.approx(proposal.sum() * 0.008)
    dice = 2 * (proposal & truth).sum() / (proposal.sum() + truth.sum())
    assert page.summary["dice"] == pytest.approx(dice)
    given_figures = {"threshold": THRESHOLD, "volume_ml": 7.0}
    assert write_tiny_case(tmp_path / "b.html", summary=given_figures).summary["volume_ml"] == 7.0


def test_markup_is_escaped(tmp_path: Path) -> None:
    page = Path(write_tiny_case(tmp_path / "page.html").url).read_text()
    assert MARKUP not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 3
    index = write_index(str(tmp_path / "index.html"), [write_tiny_case(tmp_path / "page.html")])
    assert MARKUP not in Path(index).read_text()


def test_a_finer_grid_is_shown_coarser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load_volumes(**tiny_case(), threshold=THRESHOLD)
    monkeypatch.setattr(viewer_volumes, "MAX_VOXELS", whole.scan.size // 3)
    half = load_volumes(**tiny_case(), threshold=THRESHOLD)
    assert half.factor == 2
    assert half.slice_scores.max() == pytest.approx(whole.slice_scores.max())
    spots = [
        (v.affine @ [*np.argwhere(v.labels == 3).mean(0), 1])[:3]
        for v in (whole, half)
        if v.labels is not None
    ]
    assert np.linalg.norm(spots[0] - spots[1]) < 2
    page = write_tiny_case(tmp_path / "page.html")
    assert "at 1/2 of its resolution" in Path(page.url).read_text()
    assert "dice" not in page.summary


def test_what_cannot_be_shown_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = tiny_case()
    other = nib.Nifti1Image(np.zeros((3, 3, 3), np.uint8), np.eye(4))
    with pytest.raises(ConfigError, match="truth lies on another grid than the scan"):
        write_tiny_case(tmp_path / "page.html", truth=other)
    frames = nib.Nifti1Image(np.zeros((3, 3, 3, 2), np.uint8), np.eye(4))
    with pytest.raises(ConfigError, match="three dimensions"):
        write_tiny_case(tmp_path / "page.html", scan=frames)
    with pytest.raises(ConfigError, match=r"must end in \.html"):
        write_case(str(tmp_path / "page.htm"), scan=images["scan"], anomaly=images["anomaly"])
    monkeypatch.setattr(viewer, "MAX_PAGE_BYTES", 100_000)
    with pytest.raises(ConfigError, match="leave out the reconstruction"):
        write_tiny_case(tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_an_index_sorts_and_links(tmp_path: Path) -> None:
    summaries = {"low": {"score": 0.1}, "high": {"score": 0.9}, "nan": {}}
    pages = [
        write_tiny_case(tmp_path / f"a b {name}" / "page.html", name=name, summary=summary)
        for name, summary in summaries.items()
    ]
    again = [open_case(page.url, page.summary, page.name) for page in pages]
    assert [page.num_bytes for page in again] == [page.num_bytes for page in pages]
    texts = []
    for number, cases in enumerate((pages, again)):
        text = Path(write_index(str(tmp_path / f"{number}.html"), cases)).read_text()
        names = re.findall(r'data-name="(\w+)"', text)
        assert [name for name in names if name != "nan"] == ["high", "low"]
        assert 'href="a%20b%20high/page.html"' in text
        texts.append(re.sub(r"<time.*?</time>", "", text))
    assert texts[0] == texts[1]


def test_the_vendored_viewer_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    digest, packed = viewer._niivue()
    assert len(packed) < 1_200_000
    assert len(base64.b64decode(digest)) == 32
    monkeypatch.setattr(viewer, "NIIVUE_SHA256", "0" * 64)
    viewer._niivue.cache_clear()
    with pytest.raises(ConfigError, match="damaged"):
        viewer._niivue()
    viewer._niivue.cache_clear()
