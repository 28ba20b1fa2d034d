"""Whatever was computed from a run's weights is known by them: never taken for other ones."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_cohorts import tiny_vae, write_healthy, write_lesioned
from tiny_models import finished_run, freeze_threshold, healthy_cohort

from uadray import files
from uadray.config import experiment
from uadray.errors import CheckpointError
from uadray.evaluation.protocols import EvaluateConfig
from uadray.metrics.counts import count_subject
from uadray.prediction.model import UNKNOWN_WEIGHTS
from uadray.prediction.model_folder import open_model
from uadray.runs.checkpoint import NO_WEIGHTS, CheckpointStore, weights_digest
from uadray.runs.detector import load_detector
from uadray.runs.folder import Run
from uadray.runs.scores import ScoreStore
from uadray.store import Cohort
from uadray.tune import labelled

CONFIG = EvaluateConfig()


def fit_on(run: Run) -> None:
    """Leave a better epoch, as a fit that goes on does."""
    detector = load_detector(run)
    with torch.no_grad():
        for tensor in detector.state_dict().values():
            if tensor.dtype.is_floating_point:
                tensor.mul_(0.5)
    CheckpointStore.of(run).save(2, detector, None, 0.05)


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    return write_lesioned(tmp_path)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return finished_run(tmp_path / "run", write_healthy(tmp_path), tiny_vae(3))


class TestDigest:
    def test_is_of_the_best_epoch(self, run: Run) -> None:
        first = weights_digest(run)
        store = CheckpointStore.of(run)
        store.save(2, load_detector(run), None, 9.0)  # the newest, and not the best
        assert weights_digest(run) == first
        fit_on(run)
        assert weights_digest(run) != first

    def test_follows_the_content_alone(self, run: Run, tmp_path: Path) -> None:
        other = finished_run(tmp_path / "other", write_healthy(tmp_path / "b"), tiny_vae(3))
        assert weights_digest(other) == weights_digest(run)

    def test_calibration_changes_it(self, run: Run) -> None:
        first = weights_digest(run)
        detector = load_detector(run)
        with torch.no_grad():
            next(detector.parameters()).add_(1)
        CheckpointStore.of(run).save_calibrated(detector)
        assert weights_digest(run) != first

    def test_a_method_without_weights_has_none(self, tmp_path: Path) -> None:
        run = Run.create(str(tmp_path / "run"), experiment("Intensity"), write_healthy(tmp_path))
        assert weights_digest(run) == NO_WEIGHTS

    def test_a_state_without_digests_is_named(self, run: Run) -> None:
        place = files.join(run.url, "checkpoint", "state.json")
        files.write_json(place, files.read_json(place) | {"digests": {}})
        with pytest.raises(CheckpointError, match=r"state\.json is damaged \(no digest of"):
            weights_digest(run)


class TestScores:
    def store(self, run: Run, cohort: Cohort) -> ScoreStore:
        return ScoreStore.create(run, cohort, (0.0, 1.0), CONFIG.scoring(cohort.shape))

    def write(self, store: ScoreStore, cohort: Cohort) -> None:
        brain, lesion = (cohort.read(n, 0, 1)[0] for n in ("brain", "lesion"))
        levels = brain.astype(np.uint16)
        store.write(0, levels, count_subject(levels, brain, lesion, brain))

    def test_of_other_weights_are_made_again(self, run: Run, cohort: Cohort) -> None:
        self.write(self.store(run, cohort), cohort)
        assert self.store(run, cohort).done() == {0}
        fit_on(run)
        assert self.store(run, cohort).done() == set()

    def test_that_do_not_say_of_which_weights_are_made_again(
        self, run: Run, cohort: Cohort
    ) -> None:
        store = self.store(run, cohort)
        self.write(store, cohort)
        document = files.read_json(f"{store.url}/zarr.json")
        del document["attributes"]["uadray"]["weights"]
        files.write_json(f"{store.url}/zarr.json", document)
        assert self.store(run, cohort).done() == set()


class TestThresholds:
    @pytest.fixture
    def run(self, tmp_path: Path) -> Run:
        run = finished_run(tmp_path / "run", healthy_cohort(tmp_path, 8), "MeanImage")
        freeze_threshold(run, 0.2)
        return run

    def record(self, run: Run, **change: object) -> None:
        place = Path(run.url, "evaluation", "stroke.json")
        place.write_text(json.dumps(json.loads(place.read_text()) | change))

    def test_of_these_weights_are_taken(self, run: Run) -> None:
        self.record(run, weights=weights_digest(run))
        model = open_model(run.url)
        assert [t.name for t in model.thresholds] == ["stroke"]
        assert UNKNOWN_WEIGHTS not in model.thresholds[0].notes
        assert model.notes == ()

    def test_of_other_weights_are_left_out_and_named(self, run: Run) -> None:
        self.record(run, weights=weights_digest(run))
        fit_on(run)
        model = open_model(run.url)
        assert model.thresholds == ()
        assert any("stroke is of other weights" in note for note in model.notes)

    def test_that_do_not_say_of_which_weights_are_marked(self, run: Run) -> None:
        place = Path(run.url, "evaluation", "stroke.json")
        record = json.loads(place.read_text())
        record.pop("weights", None)
        place.write_text(json.dumps(record))
        assert UNKNOWN_WEIGHTS in open_model(run.url).thresholds[0].notes

    def test_healthy_ranges_are_measured_again(self, run: Run) -> None:
        first = open_model(run.url).healthy
        assert open_model(run.url).healthy == first
        fit_on(run)
        assert open_model(run.url).healthy.mean_score != first.mean_score


def test_objectives_are_measured_again(run: Run, cohort: Cohort) -> None:
    first = labelled.measure_run(run, cohort, 1)
    assert labelled.measure_run(run, cohort, 1) == first
    detector = load_detector(run)
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter.mul_(0.5)
    CheckpointStore.of(run).save(1, detector, None, 0.1)
    again = labelled.measure_run(run, cohort, 1)
    assert again["weights"] != first["weights"]
    assert len(files.read_json(f"{run.url}/{labelled.FILE}")["measured"]) == 1
