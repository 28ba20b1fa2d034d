"""The protocols of Meissen 2021 on real FLAIR against numpy, scipy, scikit-image and scikit-learn.

Two patients of MSLUB, whose voxels are pooled. The computation on the other side starts from the
public files and takes nothing of ours.
"""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import tyro
from skimage.exposure import equalize_hist
from skimage.measure import label
from skimage.transform import resize
from sklearn.metrics import average_precision_score, roc_auc_score

from uadray.config import experiment
from uadray.evaluation.protocols import PROTOCOLS, EvaluateConfig
from uadray.evaluation.scoring import Example, count_levels, count_volumes
from uadray.methods import build
from uadray.metrics.components import drop_components
from uadray.metrics.counts import SubjectCounts, TestPart
from uadray.metrics.table import compute_metrics
from uadray.metrics.thresholds import no_threshold
from uadray.preparation.layouts import mslub
from uadray.preparation.settings import Extent, PrepareConfig
from uadray.preparation.steps import prepare_scan

pytestmark = pytest.mark.real

Figures = dict[str, float]
Volume = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Intensities, brain and lesion."""


def patients(real_data: Path) -> Iterator[Volume]:
    """As the files hold them, (X, Y, Z) to the right, front and top; intensities are integers."""
    for folder in sorted((real_data / "mslub").iterdir()):
        image, brain, lesion = (
            np.asarray(
                nib.as_closest_canonical(nib.load(folder / f"{folder.name}_{what}.nii.gz")).dataobj
            )
            for what in ("FLAIR", "brainmask", "consensus_gt")
        )
        yield np.rint(image).astype(np.int64), brain > 0, (lesion > 0) & (brain > 0)


def reference(volumes: Sequence[Volume], kept: slice = slice(None)) -> Figures:
    """Equalise inside each brain, pool, search 100 thresholds, drop small components once."""
    scores = [np.where(b, equalize_hist(i, mask=b), 0.0)[..., kept] for i, b, _ in volumes]
    truth = [lesion[..., kept] for _, _, lesion in volumes]
    flat, labels = (np.concatenate([one.ravel() for one in held]) for held in (scores, truth))
    num = np.count_nonzero(labels)

    def dice(predicted: Sequence[np.ndarray]) -> float:
        both = sum(np.count_nonzero(p & t) for p, t in zip(predicted, truth, strict=True))
        return 2 * both / (sum(np.count_nonzero(p) for p in predicted) + num)

    def at(threshold: float) -> list[np.ndarray]:
        return [(one >= threshold) & (one > 0) for one in scores]

    tried = np.linspace(0, flat.max(), 100)
    before = [dice(at(t)) for t in tried]
    filtered = []
    for mask in at(tried[int(np.argmax(before))]):
        components = label(mask, connectivity=3)
        filtered.append(mask & (np.bincount(components.ravel()) > 20)[components])
    return {
        "auprc": float(average_precision_score(labels, flat)),
        "auroc": float(roc_auc_score(labels, flat)),
        "before": max(before),
        "after": dice(filtered),
    }


def ours(
    real_data: Path, prepare: PrepareConfig, config: EvaluateConfig, patient: str = ""
) -> Figures:
    """What an evaluation reports of the same patients, or of one."""
    detector = build(experiment("HistEq").method, prepare.shape).eval()
    plain: list[tuple[str, SubjectCounts]] = []
    filtered: list[tuple[str, SubjectCounts]] = []
    scans = mslub(str(real_data / "mslub"), "FLAIR")
    for scan in [one for one in scans if patient in one.id]:
        made = prepare_scan(scan, prepare)
        assert made.lesion is not None
        image = made.image.astype(np.float16)
        one = Example(id=scan.id, image=image, brain=made.brain, lesion=made.lesion)
        ((levels, counts),) = count_volumes(detector, {0: one}, config, torch.device("cpu"))
        plain.append((scan.id, counts))
        filtered.append(
            (scan.id, count_levels(drop_components(levels, config.components), one, config))
        )
    parts = [
        TestPart.from_subjects(counted, name="test", score_range=(0.0, 1.0))
        for counted in (plain, filtered)
    ]
    before = compute_metrics(parts[0], no_threshold((0.0, 1.0)))
    after = compute_metrics(parts[1], no_threshold((0.0, 1.0)), parts[0])
    assert after["upper_bound_dice"] >= after["dice_best_of_100"]
    return {
        "auprc": before["auprc"],
        "auroc": before["auroc"],
        "before": before["dice_best_of_100"],
        "after": after["dice_best_of_100"],
    }


def check(figures: Figures, expected: Figures) -> None:
    for key, value in expected.items():
        assert figures[key] == pytest.approx(
            value, abs=5e-3 if key in ("before", "after") else 1e-3
        )


def prepared(protocol: str, *changes: str) -> PrepareConfig:
    """The protocol's preparation; the files lie in MNI152 and hold no skull."""
    flags = [*shlex.split(PROTOCOLS[protocol].prepare), *changes]  # type: ignore[index]
    return tyro.cli(PrepareConfig, args=flags, config=(tyro.conf.OmitArgPrefixes,))


def test_on_the_grid_of_the_files(real_data: Path) -> None:
    volumes = list(patients(real_data))
    x, y, z = volumes[0][0].shape
    extent = Extent(left_right=x, posterior_anterior=y, inferior_superior=z)
    whole = replace(prepared("meissen2021-I", "--register", "none"), shape=(z, y, x), extent=extent)
    fixed = PROTOCOLS["meissen2021-I"]
    config = EvaluateConfig(
        residual=fixed.residual,
        postprocess=fixed.postprocess,
        components=fixed.components,
        threshold_rule="none",
    )
    check(ours(real_data, whole, config), reference(volumes))


@pytest.mark.parametrize(
    ("protocol", "plane", "kept"),
    [("meissen2021-I", 128, slice(15, 125)), ("meissen2021-II", 224, slice(84, 88))],
)
def test_on_the_grid_of_the_protocol(
    real_data: Path, protocol: str, plane: int, kept: slice
) -> None:
    volumes = []
    for held in patients(real_data):
        boxed = in_a_box(held, (240, 240, 155))
        shape = (plane, plane, 155)
        image, brain, lesion = (
            resize(one.astype(np.float64), shape, order=0, anti_aliasing=False) for one in boxed
        )
        volumes.append((np.rint(image).astype(np.int64), brain > 0.5, lesion > 0.9))
    figures = ours(
        real_data,
        prepared(protocol, "--register", "none"),
        EvaluateConfig.of(protocol),  # type: ignore[arg-type]
    )
    check(figures, reference(volumes, kept))


def in_a_box(volume: Volume, shape: tuple[int, int, int]) -> Volume:
    """The brain's box in the middle of one of the grid's size; no brain is larger here."""
    inside = np.nonzero(volume[1])
    box = tuple(slice(p.min(), p.max() + 1) for p in inside)
    size = np.array([s.stop - s.start for s in box])
    before = (np.array(shape) - size) // 2
    widths = list(zip(before, np.array(shape) - size - before, strict=True))
    image, brain, lesion = (np.pad(one[box], widths) for one in volume)
    return image, brain, lesion


def test_clipping_and_averaging_are_other_protocols(real_data: Path) -> None:
    """What the flags are for, on the patient with small lesions: each moves the figures."""
    config = EvaluateConfig.of("meissen2021-I")

    def of(*changes: str) -> Figures:
        prepare = prepared("meissen2021-I", "--register", "none", *changes)
        return ours(real_data, prepare, config, "07")

    own, clipped, averaged = of(), of("--percentiles", "1", "99"), of("--resize", "average")
    assert clipped["auprc"] < 0.7 * own["auprc"]
    assert abs(averaged["auprc"] - own["auprc"]) > 0.01
