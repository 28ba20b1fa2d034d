"""Histogram equalisation on real FLAIR against scikit-image and scikit-learn (Meissen 2021).

Two patients of MSLUB at 1 mm, neither smoothed nor clipped, pooled over all voxels of the grid.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.exposure import equalize_hist
from sklearn.metrics import average_precision_score, roc_auc_score

from uadray.config import experiment
from uadray.evaluation.scoring import score_volumes
from uadray.methods import build
from uadray.metrics.components import open_components
from uadray.metrics.counts import CohortCounts, count_subject
from uadray.metrics.measures import auprc, auroc, dice_d
from uadray.metrics.postprocess import MAX_LEVEL, postprocess
from uadray.metrics.settings import PostprocessConfig
from uadray.preparation.identity import look_at
from uadray.preparation.layouts import mslub
from uadray.preparation.plan import subject_of
from uadray.preparation.settings import PrepareConfig, SplitConfig
from uadray.preparation.splits import split_scans
from uadray.preparation.steps import prepare_scan
from uadray.store import Cohort, CohortWriter

pytestmark = [pytest.mark.real, pytest.mark.slow]

SHAPE = (163, 191, 158)
MAX_SIZE = 20
UNFILTERED = PostprocessConfig(erosion_iterations=0, median_size=1)
THRESHOLDS = np.linspace(0, MAX_LEVEL, 100)
"""Meissen's 100 thresholds, as positions on the level axis."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    average_precision: float
    auroc: float
    dice: np.ndarray
    """(100,) at each threshold."""
    filtered: np.ndarray
    """(100,) at each threshold, without components of at most 20 voxels."""
    at_threshold: np.ndarray
    """(100, 4) true and false positives, unfiltered and filtered."""

    def distance(self, other: "Figures") -> tuple[float, float, float, float]:
        """Of average precision, AUROC, and both Dice at the threshold where it is largest."""
        return (
            abs(self.average_precision - other.average_precision),
            abs(self.auroc - other.auroc),
            float(np.abs(self.dice - other.dice).max()),
            float(np.abs(self.filtered - other.filtered).max()),
        )


@pytest.fixture(scope="module")
def cohort(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    config = PrepareConfig(shape=SHAPE, denoise=False, percentiles=(0.0, 100.0))
    rows = split_scans(mslub(str(real_data / "mslub"), "FLAIR"), SplitConfig(), seed=0)
    url = str(tmp_path_factory.mktemp("real") / "mslub.zarr")
    writer = CohortWriter.create(url, num_rows=2, shape=SHAPE, has_lesion=True, plan={})
    volumes = [prepare_scan(scan, config) for scan, _ in rows]
    subjects = [
        subject_of(row, scan, split, volume, look_at(scan), digest="")
        for row, ((scan, split), volume) in enumerate(zip(rows, volumes, strict=True))
    ]
    writer.write_shard(
        0,
        image=np.stack([volume.image for volume in volumes]),
        brain=np.stack([volume.brain for volume in volumes]),
        lesion=np.stack([volume.lesion for volume in volumes]),
        subjects=subjects,
        failures=[],
    )
    return writer.seal()


@pytest.fixture(scope="module")
def truth(cohort: Cohort) -> np.ndarray:
    return cohort.read("lesion", 0, 2)


@pytest.fixture(scope="module")
def levels(cohort: Cohort) -> np.ndarray:
    """Kept scores of the detector."""
    detector = build(experiment("HistEq").method, SHAPE)
    image, brain = (cohort.read(name, 0, 2) for name in ("image", "brain"))
    scores = score_volumes(
        detector, torch.from_numpy(image.astype(np.float32)), brain, torch.device("cpu")
    )
    pairs = zip(scores, brain, strict=True)
    return np.stack([postprocess(s, b, detector.score_range, UNFILTERED) for s, b in pairs])


@pytest.fixture(scope="module")
def ours(cohort: Cohort, levels: np.ndarray, truth: np.ndarray) -> Figures:
    def count(held: Iterable[np.ndarray]) -> Iterator:
        for row, (one, brain) in enumerate(zip(held, cohort.read("brain", 0, 2), strict=True)):
            yield str(row), count_subject(one, brain, truth[row], brain)

    counts = [
        CohortCounts.from_subjects(count(held), name="mslub", score_range=(0.0, 1.0))
        for held in (levels, [open_components(one, MAX_SIZE, 26) for one in levels])
    ]
    pooled = counts[0].merged("volume")
    at = [max(1, int(np.ceil(t))) for t in THRESHOLDS]
    dice, filtered = ([float(dice_d(part, level)) for level in at] for part in counts)
    positives = [[p.sum() for part in counts for p in part.positives(level)] for level in at]
    return Figures(
        average_precision=float(auprc(pooled)),
        auroc=float(auroc(pooled)),
        dice=np.array(dice),
        filtered=np.array(filtered),
        at_threshold=np.array(positives),
    )


def brute_force(
    scores: Sequence[np.ndarray],
    truth: Sequence[np.ndarray],
    thresholds: np.ndarray,
    num_voxels: int = 0,
) -> Figures:
    """The same figures from voxels; what scores 0 is never predicted.

    Args:
        scores: Two volumes (Z, Y, X).
        truth: The same.
        thresholds: On the scores.
        num_voxels: Of all grids; what the volumes lack of it scores 0.
    """
    positives = np.zeros((len(thresholds), 4))
    for volume, lesion in zip(scores, truth, strict=True):
        brain = tuple(slice(places.min(), places.max() + 1) for places in np.nonzero(volume))
        inside, ill = volume[brain], lesion[brain]
        for place, threshold in enumerate(thresholds):
            predicted = (inside >= threshold) & (inside > 0)
            labels, count = ndimage.label(predicted, np.ones((3, 3, 3)))
            large = np.bincount(labels.ravel(), minlength=count + 1) > MAX_SIZE
            for column, kept in ((0, predicted), (2, predicted & large[labels])):
                both = np.count_nonzero(kept & ill)
                positives[place, column] += both
                positives[place, column + 1] += np.count_nonzero(kept) - both
    labels, flat = (np.concatenate([v.ravel() for v in held]) for held in (truth, scores))
    if num_voxels:
        # The native grid holds more of what is around the brain.
        around = np.flatnonzero(flat == 0)
        excess = len(flat) - num_voxels
        labels, flat = (np.delete(v, around[:excess]) for v in (labels, flat))
    num = np.count_nonzero(labels)
    dice = [2 * positives[:, k] / (positives[:, k] + positives[:, k + 1] + num) for k in (0, 2)]
    return Figures(
        average_precision=float(average_precision_score(labels, flat)),
        auroc=float(roc_auc_score(labels, flat)),
        dice=dice[0],
        filtered=dice[1],
        at_threshold=positives,
    )


def equalise(codes: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Histogram-equalised integers inside the brain, 0 outside: one bin for each value."""
    return np.where(brain, equalize_hist(codes, mask=brain), 0.0)


@pytest.fixture(scope="module")
def reference(cohort: Cohort, truth: np.ndarray) -> Figures:
    """From the store's float16 images, in float64."""
    # The bits of float16 numbers that are not negative are ordered as the numbers are.
    codes = cohort.read("image", 0, 2).view(np.uint16).astype(np.int64)
    brain = cohort.read("brain", 0, 2)
    scores = np.stack([equalise(c, b) for c, b in zip(codes, brain, strict=True)])
    return brute_force(scores, truth, THRESHOLDS / MAX_LEVEL)


def test_as_the_reference(ours: Figures, reference: Figures) -> None:
    # Measured: 4.1e-5, 1.8e-7, 3.9e-5, and 8.6e-6 after the component filter.
    assert max(ours.distance(reference)) < 1e-4


def test_exactly_as_the_reference_on_kept_scores(
    ours: Figures, levels: np.ndarray, truth: np.ndarray
) -> None:
    expected = brute_force(levels, truth, THRESHOLDS)
    assert max(ours.distance(expected)) < 1e-9
    np.testing.assert_array_equal(ours.at_threshold, expected.at_threshold)
    assert (ours.filtered != ours.dice).sum() > 50


def test_near_the_original_integers(ours: Figures, real_data: Path) -> None:
    scores, truth = [], []
    for folder in sorted((real_data / "mslub").iterdir()):
        image, brain, lesion = (
            np.asarray(nib.load(folder / f"{folder.name}_{what}.nii.gz").dataobj)
            for what in ("FLAIR", "brainmask", "consensus_gt")
        )
        inside = brain > 0
        scores.append(equalise(image.astype(np.int64), inside))
        truth.append((lesion > 0) & inside)
    raw = brute_force(scores, truth, THRESHOLDS / MAX_LEVEL, 2 * int(np.prod(SHAPE)))
    precision, area, dice, _ = ours.distance(raw)
    # Measured: 5.2e-5, 3.4e-6 and 1.2e-3. float16 keeps 2700 of the 3300 integers of a scan
    # apart, fewest among the bright ones; a threshold between two that merged shows in Dice.
    assert precision < 2e-4
    assert area < 2e-5
    assert dice < 3e-3
    assert abs(ours.dice.max() - raw.dice.max()) < 1e-3
