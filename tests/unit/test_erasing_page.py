import base64
import html
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_cohorts import SHAPE, tiny_vae, write_healthy, write_lesioned

from uadray.config import BENGS_TABLE_1, Experiment, experiment, with_fit
from uadray.data.erasing import erase, erased_mask, sample_erasing
from uadray.errors import ConfigError
from uadray.report.erasing_page import (
    TALLY_EPOCHS,
    draw,
    erased_epochs,
    erasing_figure,
    tally,
    write_erasing_page,
)
from uadray.store import Cohort

ROW, PLANE = 5, 7


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return write_healthy(tmp_path_factory.mktemp("healthy"))


@pytest.fixture(scope="module")
def volume(cohort: Cohort) -> np.ndarray:
    return cohort.read("image", ROW, ROW + 1)[0]


def pixels(uri: str) -> np.ndarray:
    """Colours of a tile, the first row at the bottom as in the array, one pixel a voxel."""
    data = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    picture = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))[::-1].astype(int)
    factor = len(picture) // SHAPE[0]
    return picture[factor // 2 :: factor, factor // 2 :: factor]


def given(one: Experiment, volume: np.ndarray, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """The sample that training gets, and what is erased of it, without the page's code."""
    is_3d = one.method.ndim == 3  # type: ignore[union-attr]
    x = torch.from_numpy(volume if is_3d else volume[PLANE])[None]
    ids = torch.tensor([ROW if is_3d else ROW * SHAPE[0] + PLANE])
    seed, spatial = one.fit.seed, tuple(x.shape[1:])
    where = sample_erasing(one.erasing, ids, seed=seed, epoch=epoch, spatial=spatial)
    out = erase(x, where, one.erasing, ids, seed=seed, epoch=epoch)
    return out[0].numpy(), erased_mask(x, where)[0]


@pytest.mark.parametrize("seed", [0, 4])
@pytest.mark.parametrize("name", [n for n in BENGS_TABLE_1 if "None" not in n])
def test_a_draw_is_what_training_gets(volume: np.ndarray, name: str, seed: int) -> None:
    one = with_fit(experiment(name), seed=seed)
    ndim = int(name[0])
    sample = ROW if ndim == 3 else ROW * SHAPE[0] + PLANE
    epochs = erased_epochs(one, sample, spatial=SHAPE[:ndim], count=3)
    for epoch in epochs:
        drawn = draw(one, volume, row=ROW, plane=PLANE, epoch=epoch)
        image, mask = given(one, volume, epoch)
        assert (drawn.seed, drawn.epoch, drawn.sample) == (seed, epoch, sample)
        assert mask.any()
        assert drawn.share_of_input == pytest.approx(mask.mean())
        brain = (volume if ndim == 3 else volume[PLANE]) > 0
        assert drawn.share_of_brain == pytest.approx(mask[brain].mean())
        assert [s.plane for s in drawn.sections] == ["axial", "coronal", "sagittal"][: 3 * ndim - 5]
        for axis, section in enumerate(drawn.sections):
            cut = (lambda a, s=section, k=axis: a.take(s.index, k)) if ndim == 3 else np.asarray
            assert cut(mask).any(), "the plane goes through what is erased"
            colours, grey = pixels(section.image), np.rint(cut(image).astype(float) * 249)
            orange = (colours == (255, 140, 0)).all(-1)
            assert not (orange & ~cut(mask)).any()
            assert (abs(colours[~orange] - grey[~orange][:, None] * 255 / 249) <= 1).all()


def test_epochs_shown_are_those_that_erase(volume: np.ndarray) -> None:
    one = experiment("3D-Cube-n")
    epochs = erased_epochs(one, ROW, spatial=SHAPE, count=12)
    every = [e for e in range(epochs[-1] + 1) if given(one, volume, e)[1].any()]
    assert epochs == every
    assert epochs != list(range(12)), "some epochs give the sample whole"
    never = replace(one, erasing=replace(one.erasing, probability=0.0))
    assert erased_epochs(never, ROW, spatial=SHAPE, count=2) == []
    assert tally(never, volume, row=ROW, plane=PLANE) is None


def test_the_tally_counts_what_is_erased(volume: np.ndarray) -> None:
    one = experiment("2D-Multi-Patch-0")
    counted = tally(one, volume, row=ROW, plane=PLANE)
    shares = [given(one, volume, epoch)[1].mean() for epoch in range(TALLY_EPOCHS)]
    shares = [share for share in shares if share]
    assert counted is not None
    assert (counted.epochs, counted.erased) == (TALLY_EPOCHS, len(shares))
    got = (counted.low, counted.median, counted.high)
    assert got == pytest.approx((min(shares), np.median(shares), max(shares)))


def test_nothing_erased_is_shown_once_through_the_brain(volume: np.ndarray) -> None:
    drawn = draw(experiment("3D-None"), volume, row=ROW, plane=PLANE, epoch=0)
    assert drawn.share_of_input == drawn.share_of_brain == 0
    centre = [round(float(axis.mean())) for axis in np.nonzero(volume)]
    assert [section.index for section in drawn.sections] == centre
    figure = erasing_figure([experiment("3D-None")], volume, row=ROW)
    assert figure.count("<img") == 3
    assert "nothing erased" in figure


def test_the_page_holds_all_fourteen_and_nothing_from_outside(
    cohort: Cohort, tmp_path: Path
) -> None:
    experiments = [experiment(name) for name in BENGS_TABLE_1]
    out = write_erasing_page(cohort, str(tmp_path / "p.html"), experiments, num_draws=2)
    text = Path(out).read_text()
    for name in BENGS_TABLE_1:
        assert f"<b>{name}</b>" in text
    assert text.count("<img") == (1 + 6 * 2) + (1 + 6 * 2) * 3
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    assert "<script" not in text
    row = int(cohort.subjects["row"].iloc[0])
    brains = (cohort.read("image", row, row + 1)[0] > 0).sum((1, 2))
    assert f"axial slice {brains.argmax()}" in text
    captions = re.findall(r"seed (\d+), epoch (\d+), id (\d+)", text)
    assert len(captions) == 2 * (1 + 6 * 2)
    assert {int(sample) for *_, sample in captions} == {row, row * SHAPE[0] + int(brains.argmax())}


def test_strings_are_escaped(tmp_path: Path) -> None:
    nasty = "<b onload=x>&"
    cohort = write_lesioned(tmp_path, name=nasty)
    table = cohort.subjects
    table.loc[0, ["id", "notes"]] = nasty  # the table is cached, so that this is what is read
    out = write_erasing_page(cohort, str(tmp_path / "p.html"), [tiny_vae(3, strategy="cube")])
    text = Path(out).read_text()
    assert nasty not in text
    assert text.count(html.escape(nasty)) >= 4


def test_what_cannot_be_shown_is_refused(cohort: Cohort, tmp_path: Path) -> None:
    one, out = experiment("3D-Cube-n"), str(tmp_path / "p.html")
    cases = [
        ("a page must end in .html, was", {"out": str(tmp_path / "p.txt")}),
        ("has no scan 'nobody'; it has 40, such as healthy-000", {"subject": "nobody"}),
        ("plane must be in 0 to 15, was 16", {"plane": 16}),
        ("epochs must be >= 1, was 0", {"num_draws": 0}),
        ("PCA-16 learns nothing by gradient", {"experiments": [experiment("PCA-16")]}),
    ]
    for message, change in cases:
        with pytest.raises(ConfigError, match=re.escape(message)):
            write_erasing_page(cohort, **({"out": out, "experiments": [one]} | change))  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_given_subject_is_shown(cohort: Cohort, tmp_path: Path) -> None:
    one = experiment("3D-Cube-n")
    out = write_erasing_page(
        cohort, str(tmp_path / "p.html"), [one], subject="healthy-011", num_draws=1
    )
    epoch = erased_epochs(one, 11, spatial=SHAPE, count=1)[0]
    assert f"seed 0, epoch {epoch}, id 11<" in Path(out).read_text()
