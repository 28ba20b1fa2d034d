"""Objectives by labels: the threshold part alone, kept apart, and measured once an epoch."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from tiny_cohorts import write_healthy, write_lesioned

from uadray.config import experiment
from uadray.evaluation.protocols import EvaluateConfig
from uadray.metrics.counts import ThresholdPart
from uadray.metrics.measures import dice_at_every_threshold
from uadray.metrics.settings import PostprocessConfig
from uadray.runs.detector import build_detector
from uadray.runs.folder import Run
from uadray.store import Cohort
from uadray.tune.labelled import count_threshold_part, measure, measure_run, measured_at

PLAIN = EvaluateConfig(postprocess=PostprocessConfig(erosion_iterations=0, median_size=1))


@pytest.fixture(scope="module")
def lesioned(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return write_lesioned(tmp_path_factory.mktemp("cohort"))


class Only:
    """A cohort that hands out some rows and refuses the others."""

    def __init__(self, cohort: Cohort, rows: set[int]) -> None:
        self._cohort, self._rows = cohort, rows
        self.seen: set[int] = set()

    def __getattr__(self, name: str) -> object:
        return getattr(self._cohort, name)

    def read(self, array: str, start: int, stop: int) -> np.ndarray:
        asked = set(range(start, stop))
        assert asked <= self._rows, f"rows {sorted(asked - self._rows)} are not of this part"
        self.seen |= asked
        return self._cohort.read(array, start, stop)  # type: ignore[arg-type]


def test_the_test_part_is_never_read(lesioned: Cohort) -> None:
    detector = build_detector(experiment("Intensity"), lesioned.shape).eval()
    rows = set(lesioned.rows("threshold").tolist())
    only = Only(lesioned, rows)
    part = count_threshold_part(detector, only)  # type: ignore[arg-type]
    assert isinstance(part, ThresholdPart)
    assert only.seen == rows
    named = lesioned.subjects.set_index("row")["id"]
    assert set(part.subjects) == {named[row] for row in rows}


def test_the_figures_are_those_of_the_voxels(lesioned: Cohort) -> None:
    detector = build_detector(experiment("Intensity"), lesioned.shape).eval()
    part = count_threshold_part(detector, lesioned, PLAIN)
    rows = lesioned.rows("threshold")
    images = np.concatenate([lesioned.read("image", r, r + 1) for r in rows]).astype(np.float32)
    truth = np.concatenate([lesioned.read("lesion", r, r + 1) for r in rows]).astype(bool)
    figures = measure(part, "best_dice")
    expected = average_precision_score(truth.ravel(), np.round(images.ravel() * 65535))
    assert figures["auprc"] == pytest.approx(expected, abs=1e-6)
    assert figures["dice"] == pytest.approx(dice_at_every_threshold(part.merged()).max())
    predicted = images >= figures["threshold"] - 1e-6
    overlap = 2 * (predicted & truth).sum() / (predicted.sum() + truth.sum())
    assert figures["dice"] == pytest.approx(overlap, abs=1e-3)


def test_a_run_keeps_what_was_measured(
    lesioned: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    healthy = write_healthy(tmp_path)
    run = Run.create(str(tmp_path / "run"), experiment("Intensity"), healthy)
    first = measure_run(run, lesioned, None)
    record = json.loads((tmp_path / "run" / "objective.json").read_text())
    assert "uses labels" in record["note"]
    assert record["measured"] == [first]
    monkeypatch.setattr("uadray.tune.labelled.count_threshold_part", None)
    assert measure_run(run, lesioned, None) == first
    record["measured"] += [{"epoch": 2, "dice": 0.2}, {"epoch": 5, "dice": 0.5}]
    (tmp_path / "run" / "objective.json").write_text(json.dumps(record))
    assert measured_at(run, lesioned, 1) is None
    assert measured_at(run, lesioned, 4) == {"epoch": 2, "dice": 0.2}
    assert measured_at(run, lesioned, 9) == {"epoch": 5, "dice": 0.5}
    other = write_lesioned(tmp_path, name="other", seed=9)
    assert measured_at(run, other, 9) is None
