"""Filters, healthy thresholds, several cohorts and killed jobs, through Ray."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import average_precision_score
from tiny_cohorts import NUM_TEST, NUM_THRESHOLD, NUM_VALIDATION, write_healthy, write_lesioned

from uadray import files
from uadray.config import experiment
from uadray.errors import ConfigError, EvaluationError, StoreError
from uadray.evaluation import pair
from uadray.evaluation.job import evaluate, evaluate_all, num_volumes
from uadray.evaluation.protocols import EvaluateConfig
from uadray.metrics.settings import ComponentConfig, PostprocessConfig
from uadray.runs.folder import Run
from uadray.runs.scores import ScoreStore
from uadray.store import Cohort
from uadray.train.job import fit

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("ray_session"),
    pytest.mark.timeout(300),
]

MAX_SIZE = 4
CONFIG = EvaluateConfig(
    postprocess=PostprocessConfig(erosion_iterations=0, median_size=1),
    components=ComponentConfig(max_size=MAX_SIZE),
    threshold_rule="best_dice",
    num_resamples=100,
)
NUM = NUM_THRESHOLD + NUM_TEST
JOB = Path(__file__).resolve().parents[2] / "jobs" / "evaluate.py"


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return write_healthy(tmp_path_factory.mktemp("healthy"))


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory: pytest.TempPathFactory) -> list[Cohort]:
    folder = tmp_path_factory.mktemp("lesioned")
    return [write_lesioned(folder, name="stroke"), write_lesioned(folder, name="tumour", seed=5)]


@pytest.fixture(scope="module")
def runs(healthy: Cohort, tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """Of methods that need no fit."""
    folder = tmp_path_factory.mktemp("runs")
    return [fit(experiment(n), healthy, str(folder / n)) for n in ("Intensity", "HistEq")]


@pytest.fixture(scope="module")
def records(runs: list[Run], cohorts: list[Cohort]) -> tuple[list[list[dict[str, Any]]], list[int]]:
    """Both runs on both cohorts in one call, and what was reported on the way."""
    reported: list[int] = []
    evaluated = evaluate_all(runs, cohorts, config=CONFIG, report=reported.append)
    return evaluated, reported


def kept(run: Run, cohort: Cohort, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Kept levels and truth of a split, (n, Z, Y, X)."""
    store = ScoreStore(url=f"{run.url}/scores/{cohort.name}.zarr", score_range=(0.0, 1.0))
    rows = cohort.rows(split)  # type: ignore[arg-type]
    truth = [cohort.read("lesion", row, row + 1)[0] for row in rows]
    return np.stack([store.levels(row) for row in rows]), np.stack(truth)


def without_small(masks: np.ndarray) -> np.ndarray:
    out = []
    for mask in masks:
        labels, count = ndimage.label(mask, np.ones((3, 3, 3)))
        sizes = np.bincount(labels.ravel(), minlength=count + 1)
        out.append((labels > 0) & (sizes > MAX_SIZE)[labels])
    return np.stack(out)


def dice(predicted: np.ndarray, truth: np.ndarray) -> float:
    return float(2 * (predicted & truth).sum() / (predicted.sum() + truth.sum()))


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("number", [0, 1])
def test_figures_after_the_filter_are_those_of_voxels(
    runs: list[Run], cohorts: list[Cohort], records, place: int, number: int
) -> None:
    run, cohort, record = runs[number], cohorts[place], records[0][place][number]
    assert record["cohort"]["name"] == cohort.name
    levels, truth = kept(run, cohort, "threshold")
    level = record["threshold"]["level"]
    best = max(dice(without_small(levels >= t), truth) for t in np.unique(levels)[1:])
    assert dice(without_small(levels >= level), truth) == pytest.approx(best)

    levels, truth = kept(run, cohort, "test")
    final, plain = without_small(levels >= level), levels >= level
    metrics, before, after = record["metrics"], record["unfiltered"], record["filtered"]
    before, after = before["metrics"], after["metrics"]
    assert metrics["dice_d"] == after["dice_d"] == pytest.approx(dice(final, truth))
    assert before["dice_d"] == pytest.approx(dice(plain, truth))
    each = [dice(p, t) for p, t in zip(final, truth, strict=True)]
    assert metrics["dice_s_mean"] == pytest.approx(np.mean(each))
    for key, expected in (
        ("dice", each),
        ("true_positives", (final & truth).sum((1, 2, 3))),
        ("false_positives", (final & ~truth).sum((1, 2, 3))),
    ):
        assert [s[key] for s in record["subjects"]] == pytest.approx(list(expected))
    average = average_precision_score(truth.ravel(), levels.ravel())
    assert metrics["auprc"] == before["auprc"] == pytest.approx(average)
    bound = max(dice(without_small(levels >= t), truth) for t in np.unique(levels)[1::5])
    assert bound - 1e-9 <= metrics["upper_bound_dice"] == after["upper_bound_dice"] < bound + 0.02


@pytest.mark.parametrize("number", [0, 1])
def test_lesions_are_those_of_the_filtered_prediction(
    runs: list[Run], cohorts: list[Cohort], records, number: int
) -> None:
    record = records[0][0][number]
    levels, truth = kept(runs[number], cohorts[0], "test")
    final = without_small(levels >= record["threshold"]["level"])
    labelled = [ndimage.label(t, np.ones((3, 3, 3))) for t in truth]
    num = sum(count for _, count in labelled)
    hit = sum(
        len(np.unique(labels[f & (labels > 0)]))
        for (labels, _), f in zip(labelled, final, strict=True)
    )
    metrics = record["metrics"]
    assert metrics["lesion_detection_rate"] == pytest.approx(hit / num)
    assert (metrics["num_lesions"], metrics["num_lesions_detected"]) == (num, hit)
    for name, ends in record["intervals"].items():
        if ends is not None and metrics[name] is not None:
            assert ends[0] <= metrics[name] + 1e-12
            assert metrics[name] <= ends[1] + 1e-12
    lesions = record["lesions"]
    assert lesions["num_subjects"] == NUM
    assert sum(s["voxels"] for s in lesions["subjects"]) * 0.064 == pytest.approx(
        cohorts[0].subjects["lesion_ml"].sum()
    )


def test_several_cohorts_are_scored_once_each(runs: list[Run], cohorts, records) -> None:
    assert sum(records[1]) == num_volumes(cohorts) == 2 * NUM
    for run in runs:
        for cohort in cohorts:
            for counts in ("counts", f"counts-{MAX_SIZE}-26"):
                folder = Path(run.url, "scores", f"{cohort.name}.zarr", counts)
                assert len(list(folder.iterdir())) == NUM
    again: list[int] = []
    assert evaluate_all(runs, cohorts, config=CONFIG, report=again.append) == records[0]
    assert again == [NUM, NUM]


def test_the_protocol_and_its_changes_are_recorded(records) -> None:
    record = records[0][0][0]
    assert record["protocol"]["name"] == "bengs2021"
    assert set(record["protocol"]["changes"]) == {"postprocess", "components", "threshold_rule"}
    assert record["components"] == {"max_size": MAX_SIZE, "connectivity": 26, "fit_after": True}
    assert (record["residual"], record["slices"]) == ("absolute", None)
    assert record["healthy_cohort"] is None


def test_a_frozen_threshold_is_taken_and_never_fitted_again(
    runs: list[Run], cohorts: list[Cohort], records, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, cohort, record = runs[0], cohorts[0], records[0][0][0]
    folder = Path(run.url, "evaluation")
    frozen = json.loads((folder / "stroke-threshold.json").read_text())["frozen"]
    (entry,) = [e for e in frozen if e["fingerprint"] == record["threshold"]["fingerprint"]]
    assert (entry["level"], entry["rule"]) == (record["threshold"]["level"], "best_dice")

    def refuse(*args: object) -> None:
        raise AssertionError("fitted again")

    monkeypatch.setattr(pair, "fit_threshold", refuse)
    (folder / "stroke.json").unlink()
    (again,) = evaluate([run], cohort, config=CONFIG)
    # Nothing was scored, and what it took is forgotten.
    untimed = {"seconds_per_volume": None, "seconds_per_slice": None}
    assert again == record | untimed
    # More resamples do not concern the threshold either; another rule does.
    evaluate([run], cohort, config=replace(CONFIG, num_resamples=50))
    with pytest.raises(AssertionError, match="fitted again"):
        evaluate([run], cohort, config=replace(CONFIG, threshold_rule="meissen_linear"))
    monkeypatch.undo()
    assert evaluate([run], cohort, config=CONFIG) == [record | untimed]


def test_the_filter_can_come_after_the_fit(runs: list[Run], cohorts: list[Cohort], records) -> None:
    run, cohort = runs[0], cohorts[0]
    unfiltered_fit = replace(CONFIG, components=ComponentConfig(max_size=MAX_SIZE, fit_after=False))
    chunks = Path(run.url, "scores", "stroke.zarr", "scores", "c")
    before = {p: p.stat().st_mtime_ns for p in chunks.rglob("0")}
    (record,) = evaluate([run], cohort, config=unfiltered_fit)
    levels, truth = kept(run, cohort, "threshold")
    best = max(dice(levels >= t, truth) for t in np.unique(levels)[1:])
    level = record["threshold"]["level"]
    assert dice(levels >= level, truth) == pytest.approx(best)
    assert {p: p.stat().st_mtime_ns for p in chunks.rglob("0")} == before
    (again,) = evaluate([run], cohort, config=CONFIG)
    assert again["metrics"] == records[0][0][0]["metrics"]


def test_healthy_volumes_can_set_the_threshold(
    runs: list[Run], cohorts: list[Cohort], healthy: Cohort
) -> None:
    run, cohort = runs[0], cohorts[1]
    config = replace(CONFIG, threshold_rule="healthy_fpr_5", components=ComponentConfig())
    reported: list[int] = []
    (record,) = evaluate([run], cohort, healthy=healthy, config=config, report=reported.append)
    assert sum(reported) == num_volumes([cohort], healthy) == NUM + NUM_VALIDATION
    rows = healthy.rows("validation")
    counts = Path(run.url, "scores", "healthy.zarr", "counts")
    assert sorted(int(p.stem) for p in counts.iterdir()) == rows.tolist()
    store = ScoreStore(url=f"{run.url}/scores/healthy.zarr", score_range=(0.0, 1.0))
    inside = np.concatenate(
        [store.levels(row)[healthy.read("brain", row, row + 1)[0]] for row in rows]
    ).astype(int)
    level = record["threshold"]["level"]
    assert (inside >= level).mean() <= 0.05 < (inside >= level - 1).mean()
    assert record["threshold"]["fitted_on"] == f"healthy/validation: {NUM_VALIDATION} subjects"
    assert record["healthy_cohort"]["fingerprint"] == healthy.fingerprint
    (own,) = evaluate([run], cohort, config=config)
    assert own["threshold"]["fitted_on"] == f"tumour/threshold: {NUM_THRESHOLD} subjects"
    assert own["threshold"]["level"] != level


def test_what_does_not_fit_together_is_named(
    runs: list[Run], cohorts: list[Cohort], healthy: Cohort, tmp_path: Path
) -> None:
    twin = write_lesioned(tmp_path, name="stroke", seed=8)
    on = replace(CONFIG, threshold_rule="percentile_98")
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (EvaluationError, r"\['stroke'\] are named twice", {"cohorts": [cohorts[0], twin]}),
        (EvaluationError, "at least one run", {"runs": []}),
        (EvaluationError, "at least one run and one cohort", {"cohorts": []}),
        (EvaluationError, "healthy.zarr has no lesion masks", {"cohorts": [healthy]}),
        (ConfigError, "'best_dice' needs lesions", {"healthy": healthy}),
        (StoreError, "no subject in split 'validation'", {"healthy": twin, "config": on,
                                                         "cohorts": cohorts[1:]}),
        (EvaluationError, r"\(16, 16, 16\); protocol 'baur2018'.*--shape 20 256 256",
         {"config": EvaluateConfig.of("baur2018")}),
    ]  # fmt: skip
    for kind, message, changes in cases:
        given: dict[str, Any] = {"runs": runs, "cohorts": cohorts, "config": CONFIG} | changes
        with pytest.raises(kind, match=message):
            evaluate_all(given.pop("runs"), given.pop("cohorts"), **given)


def test_scores_cut_short_are_named_through_ray(
    runs: list[Run], cohorts: list[Cohort], records
) -> None:
    row = int(cohorts[0].rows("test")[2])
    name = cohorts[0].subjects.set_index("row").loc[row, "id"]
    record = Path(runs[1].url, "evaluation", "stroke.json")
    chunk = Path(runs[1].url, "scores", "stroke.zarr", "scores", "c", str(row), "0", "0", "0")
    figures, whole = record.read_bytes(), chunk.read_bytes()
    record.unlink()
    chunk.unlink()
    with pytest.raises(EvaluationError, match=f"kept scores of subject '{name}'.* are cut short"):
        evaluate([runs[1]], cohorts[0], config=CONFIG)
    assert not record.exists()
    chunk.write_bytes(whole)
    record.write_bytes(figures)


def counted(run: Run) -> dict[str, int]:
    folder = Path(run.url, "scores", "many.zarr", "counts")
    return {p.name: p.stat().st_mtime_ns for p in folder.glob("*.npz")}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_job_goes_on_where_it_was(healthy: Cohort, tmp_path: Path) -> None:
    """SIGKILL while subjects are being scored; the same command scores only what is missing."""
    cohort = write_lesioned(tmp_path, name="many", num_test=155)
    run = fit(experiment("Intensity"), healthy, str(tmp_path / "run"))
    command = [sys.executable, str(JOB), run.url, "--cohort", cohort.url, "--batch-size", "1"]
    command += ["--num-resamples", "10"]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as job:
        until = time.monotonic() + 300
        while not counted(run) and job.poll() is None and time.monotonic() < until:
            time.sleep(0.002)
        job.send_signal(signal.SIGKILL)
    # Workers outlive their driver for a moment.
    before: dict[str, int] = {}
    while before != (before := counted(run)):
        time.sleep(1)
    assert 0 < len(before) < len(cohort.subjects)
    # What has begun is locked, and nothing there passes for a result.
    names = [path.name for path in Path(run.url, "evaluation").iterdir()]
    assert [name for name in names if not name.startswith(files.LOCK)] == []

    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    after = counted(run)
    assert len(after) == len(cohort.subjects) == 160
    assert {name: after[name] for name in before} == before
    record = json.loads(Path(run.url, "evaluation", "many.json").read_text())
    other = fit(experiment("Intensity"), healthy, str(tmp_path / "undisturbed"))
    config = EvaluateConfig(num_resamples=10)
    (expected,) = evaluate([other], cohort, config=config)
    different = {"seconds_per_volume": None, "seconds_per_slice": None}
    assert record | different == expected | different
