"""Protocols without a fitting part, through Ray: all subjects are tested, thresholds or none."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import average_precision_score
from tiny_cohorts import AFFINE, SHAPE, write_cohort, write_healthy, write_lesioned

from uadray.config import experiment
from uadray.errors import ConfigError, EvaluationError
from uadray.evaluation.job import evaluate
from uadray.evaluation.protocols import EvaluateConfig
from uadray.metrics.settings import ComponentConfig, PostprocessConfig
from uadray.prediction import model
from uadray.report import write_report
from uadray.runs.folder import Run
from uadray.runs.scores import ScoreStore
from uadray.store import Cohort
from uadray.train.job import fit

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("ray_session"),
    pytest.mark.timeout(300),
]

CONFIG = EvaluateConfig(
    postprocess=PostprocessConfig(erosion_iterations=0, median_size=1),
    components=ComponentConfig(max_size=4, fit_after=False),
    threshold_rule="none",
    num_resamples=50,
)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """Twelve subjects, all in the test part."""
    there = write_lesioned(tmp_path_factory.mktemp("split"), name="split")
    volumes = [
        tuple(there.read(n, k, k + 1)[0] for n in ("image", "brain", "lesion")) for k in range(12)
    ]
    url = str(tmp_path_factory.mktemp("whole") / "whole.zarr")
    return write_cohort(url, ["test"] * 12, lambda row: volumes[row])


@pytest.fixture(scope="module")
def run(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Of a method that learns nothing, laid out by the test cohort alone."""
    return fit(experiment("HistEq"), cohort, str(tmp_path_factory.mktemp("runs") / "HistEq"))


@pytest.fixture(scope="module")
def record(run: Run, cohort: Cohort) -> dict[str, Any]:
    return evaluate([run], cohort, config=CONFIG)[0]


def levels_of(run: Run, cohort: Cohort) -> np.ndarray:
    store = ScoreStore(url=f"{run.url}/scores/{cohort.name}.zarr", score_range=(0.0, 1.0))
    return np.stack([store.levels(row) for row in range(12)])


def dice(predicted: np.ndarray, truth: np.ndarray) -> float:
    return float(2 * (predicted & truth).sum() / (predicted.sum() + truth.sum()))


def without_small(masks: np.ndarray) -> np.ndarray:
    out = []
    for mask in masks:
        labels, count = ndimage.label(mask, np.ones((3, 3, 3)))
        sizes = np.bincount(labels.ravel(), minlength=count + 1)
        out.append((labels > 0) & (sizes > 4)[labels])
    return np.stack(out)


def test_without_a_threshold_only_what_needs_none_is_reported(record, run, cohort) -> None:
    levels, truth = levels_of(run, cohort), cohort.read("lesion", 0, 12)
    metrics = record["metrics"]
    assert record["num_test"] == 12
    assert record["num_threshold"] == 0
    assert record["threshold"] == {
        "level": None, "value": None, "rule": "none", "fitted_on": "nothing", "fingerprint": "",
    }  # fmt: skip
    for key in ("dice_d", "dice_s_mean", "dice_s_std", "lesion_detection_rate", "hd95_mm_mean"):
        assert metrics[key] is None, key
        assert record["intervals"].get(key) is None
    assert {s["dice"] for s in record["subjects"]} == {None}
    assert {s["lesions"] for s in record["subjects"]} == {1}
    average = average_precision_score(truth.ravel(), levels.ravel())
    assert metrics["auprc"] == pytest.approx(average)
    tried = [max(1, int(np.ceil(t))) for t in np.linspace(0, levels.max(), 100)]
    before = [dice(levels >= t, truth) for t in tried]
    best = tried[99 - int(np.argmax(before[::-1]))]
    figures = record["unfiltered"]["metrics"], record["filtered"]["metrics"]
    assert figures[0]["dice_best_of_100"] == pytest.approx(max(before))
    after = dice(without_small(levels >= best), truth)
    assert metrics["dice_best_of_100"] == figures[1]["dice_best_of_100"] == pytest.approx(after)
    # The best filtered Dice of all is another figure.
    assert metrics["upper_bound_dice"] >= after
    bound = max(dice(without_small(levels >= t), truth) for t in tried)
    assert metrics["upper_bound_dice"] >= bound - 1e-9


def test_slices_by_sum_or_by_mean(record, run, cohort) -> None:
    levels, truth = levels_of(run, cohort), cohort.read("lesion", 0, 12)
    brain = cohort.read("brain", 0, 12)
    counted = brain.any((2, 3))
    sums, label = levels.sum((2, 3))[counted], truth.any((2, 3))[counted]
    means = sums / brain.sum((2, 3))[counted]
    assert record["slice_score"] == "sum"
    assert record["metrics"]["slice_auprc"] == pytest.approx(average_precision_score(label, sums))
    reported: list[int] = []
    config = replace(CONFIG, slice_score="mean")
    (again,) = evaluate([run], cohort, config=config, report=reported.append)
    assert again["metrics"]["slice_auprc"] == pytest.approx(average_precision_score(label, means))
    assert reported == [12]  # nothing was scored again
    assert again["metrics"]["auprc"] == record["metrics"]["auprc"]
    evaluate([run], cohort, config=CONFIG)


def test_pages_and_models_take_such_a_record(record, run, cohort, tmp_path: Path) -> None:
    other = fit(experiment("Intensity"), cohort, str(tmp_path / "Intensity"))
    evaluate([other], cohort, config=CONFIG)
    page = write_report([run.url, other.url], str(tmp_path / "report.html"))
    text = Path(page).read_text()
    assert "no threshold is fitted" in text
    json.dumps(record, allow_nan=False)
    assert model._thresholds(run, (0.0, 1.0)) == ([], [], [])


def test_a_rule_that_needs_the_part_says_what_to_do(run, cohort, tmp_path: Path) -> None:
    for rule in ("bengs_bisection", "percentile_98"):
        with pytest.raises(EvaluationError, match=r"no threshold part.*--healthy.*rule none"):
            evaluate([run], cohort, config=replace(CONFIG, threshold_rule=rule))
    healthy = write_healthy(tmp_path)
    with pytest.raises(ConfigError, match="fits no threshold on healthy volumes"):
        evaluate([run], cohort, healthy=healthy, config=CONFIG)
    config = replace(CONFIG, threshold_rule="percentile_98")
    (record,) = evaluate([run], cohort, healthy=healthy, config=config)
    assert record["threshold"]["fitted_on"] == "healthy/validation: 4 subjects"
    assert record["num_test"] == 12
    assert record["metrics"]["dice_s_mean"] is not None


def test_the_prior_hides_what_is_dark(run, cohort) -> None:
    post = replace(CONFIG.postprocess, prior_quantile=0.9)
    evaluate([run], cohort, config=replace(CONFIG, postprocess=post))
    hidden = levels_of(run, cohort)
    evaluate([run], cohort, config=CONFIG)
    levels, image = levels_of(run, cohort), cohort.read("image", 0, 12)
    limit = np.quantile(image.astype(float), 0.9, axis=(1, 2, 3), keepdims=True)
    np.testing.assert_array_equal(hidden, np.where(image < limit, 0, levels))
    assert AFFINE
    assert levels.shape[1:] == SHAPE
