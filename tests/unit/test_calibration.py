from dataclasses import replace

import numpy as np
import pytest
import scipy.ndimage as ndi
from tiny_cohorts import write_healthy, write_lesioned
from tiny_scans import ellipsoid

from uadray import files
from uadray.errors import EvaluationError
from uadray.evaluation.calibration import (
    SOLVED,
    Calibration,
    Standing,
    calibrate,
    calibrate_cohort,
    write_calibration,
)
from uadray.evaluation.protocols import EvaluateConfig
from uadray.evaluation.scoring import Example
from uadray.metrics.settings import PostprocessConfig
from uadray.store import verify

SHAPE = (14, 16, 16)
BRAIN = ellipsoid(SHAPE, (6, 7, 7))
RAW = EvaluateConfig(postprocess=PostprocessConfig(erosion_iterations=0, median_size=1))


def healthy(seed: int) -> np.ndarray:
    """Bright and dark tissue at the same places in everyone, and some noise."""
    tissue = np.random.default_rng(99).random(SHAPE)
    tissue = 0.25 + 0.5 * (ndi.gaussian_filter(tissue, 1.0) > 0.5)
    noise = np.random.default_rng(seed).normal(0, 0.02, SHAPE)
    return np.where(BRAIN, (tissue + noise).clip(0.05, 0.95), 0).astype(np.float32)


def lesioned(seed: int, become: float | None, by: float = 1.0) -> Example:
    """A lesion that is filled with an intensity, or changed by a factor."""
    centre = np.random.default_rng(seed).uniform(5, 9, 3)
    lesion = ellipsoid(SHAPE, (3, 3, 3), centre) & BRAIN
    image = healthy(seed)
    image[lesion] = image[lesion] * by if become is None else become
    return Example(id=f"s{seed}", image=image, brain=BRAIN, lesion=lesion)


def calibration(become: float | None, by: float = 1.0, num_healthy: int = 12) -> Calibration:
    return calibrate(
        [lesioned(k, become, by) for k in (100, 101, 102)],
        [lesioned(k, become, by) for k in (103, 104, 105)],
        [healthy(k) for k in range(num_healthy)],
        config=RAW,
    )


def test_a_cohort_that_darkness_solves_is_warned_about():
    result = calibration(become=0.06)
    standing = {s.method: s for s in result.standings}
    assert list(standing) == ["x", "1 - x", "mean image", "z-score", "PCA-12"]
    assert standing["1 - x"].dice_d > 0.95
    assert standing["1 - x"].auprc > 0.95
    assert standing["x"].upper_bound_dice < 0.3
    assert "1 - x has Dice_D" in result.warning
    assert f"at least {SOLVED}" in result.warning
    assert result.warning in str(result)
    assert result.to_dict()["warning"] == result.warning


def test_a_cohort_that_needs_to_know_the_healthy_is_not():
    """Tissue of both kinds takes on the mean intensity: nothing is extreme, all is misplaced."""
    result = calibration(become=0.5)
    standing = {s.method: s for s in result.standings}
    assert standing["z-score"].dice_d > 0.9
    assert max(standing["x"].dice_d, standing["1 - x"].dice_d) < 0.5
    assert not result.warning
    assert "warning" not in str(result)
    assert (result.num_threshold, result.num_test, result.num_healthy) == (3, 3, 12)


def test_without_healthy_subjects_only_intensity_stands_and_it_says_so():
    result = calibration(become=0.06, num_healthy=0)
    assert [s.method for s in result.standings] == ["x", "1 - x"]
    assert "pass --healthy COHORT" in str(result)
    assert result.warning


def standing(method: str, dice_d: float) -> Standing:
    learns = method not in ("x", "1 - x")
    return Standing(method=method, learns=learns, dice_d=dice_d, upper_bound_dice=1.0, auprc=0.5)


@pytest.mark.parametrize(
    ("values", "warning"),
    [
        ({"x": 0.1, "1 - x": 0.6, "z-score": 0.9}, "at least 0.6"),
        ({"x": 0.7, "1 - x": 0.1, "z-score": 0.9}, "x has Dice_D 0.700"),
        ({"x": 0.1, "1 - x": 0.4, "z-score": 0.3, "PCA-16": 0.39}, "best 0.390"),
        ({"x": 0.1, "1 - x": 0.4, "z-score": 0.3, "PCA-16": 0.4}, ""),
        ({"x": 0.1, "1 - x": 0.4}, ""),
        ({"x": 0.15, "1 - x": 0.03, "z-score": 0.12}, ""),
        ({"x": 0.06, "1 - x": 0.03, "z-score": 0.03}, "no plain method finds these lesions"),
        ({"x": 0.06, "1 - x": 0.03}, ""),
    ],
)
def test_the_rule(values, warning):
    standings = tuple(standing(name, value) for name, value in values.items())
    result = Calibration(standings=standings, num_threshold=1, num_test=1, num_healthy=0)
    assert (warning in result.warning) if warning else not result.warning


def test_the_figures_are_those_of_straight_counting():
    """Dice of x >= t over all voxels at the best t, by brute force."""
    test = [lesioned(k, None, 1.3) for k in (103, 104)]
    result = calibrate([lesioned(100, None, 1.3)], test, config=RAW)
    x = np.concatenate([one.image[one.brain] for one in test]).astype(np.float64)
    truth = np.concatenate([one.lesion[one.brain] for one in test])
    dice = [2 * (truth & (x >= t)).sum() / ((x >= t).sum() + truth.sum()) for t in np.unique(x)]
    assert result.standings[0].upper_bound_dice == pytest.approx(max(dice), abs=2e-3)
    order = np.argsort(-x)
    hits = np.cumsum(truth[order]) / np.arange(1, len(x) + 1)
    assert result.standings[0].auprc == pytest.approx(hits[truth[order]].mean(), abs=2e-3)


def test_parts_and_grids_are_checked():
    one = lesioned(1, 0.06)
    with pytest.raises(EvaluationError, match=r"'s1'.* are in both parts"):
        calibrate([one], [one], config=RAW)
    with pytest.raises(EvaluationError, match="no subject"):
        calibrate([one], [], config=RAW)
    other = [healthy(0)[:10], healthy(1)[:10]]
    with pytest.raises(EvaluationError, match=r"shape \(10, 16, 16\), lesioned ones"):
        calibrate([one], [replace(one, id="s2")], other, config=RAW)


def test_a_store_is_calibrated_by_its_parts_and_keeps_the_figures(tmp_path):
    normal, ill = write_healthy(tmp_path), write_lesioned(tmp_path, bright=False)
    result = calibrate_cohort(ill, normal)
    assert result.num_threshold == len(ill.rows("threshold"))
    assert result.num_test == len(ill.rows("test"))
    assert result.num_healthy == len(normal.rows("train"))
    assert write_calibration(ill, normal) == result
    kept = files.read_json(files.join(ill.url, "calibration.json"))
    assert (kept["cohort"], kept["healthy"]) == (ill.fingerprint, normal.fingerprint)
    assert kept["standings"][1]["method"] == "1 - x"
    assert kept["standings"][1]["dice_d"] == result.standings[1].dice_d
    # Apart from the seal.
    assert verify(ill.url) == []
    alone = write_calibration(ill)
    assert alone is not None
    assert alone.standings == result.standings[:2]
    assert write_calibration(normal) is None
