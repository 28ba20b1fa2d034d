"""Folds and ensembles end to end: fitted, combined, evaluated, reported, predicted."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from tiny_cohorts import tiny_vae, write_cohort
from tiny_models import healthy_cohort, write_head

import uadray
from uadray import files
from uadray.errors import EvaluationError, UadrayWarning
from uadray.evaluation import job
from uadray.evaluation.job import evaluate_all
from uadray.evaluation.protocols import EvaluateConfig
from uadray.metrics.inference import difference
from uadray.metrics.members import combine_levels
from uadray.report import write_report
from uadray.report.compare import merge_folds
from uadray.report.ensembles import gains_of, gains_on
from uadray.report.rows import group_by_cohort
from uadray.report.terminal import terminal_table
from uadray.runs.folder import Run
from uadray.runs.records import load_runs
from uadray.runs.scores import ScoreStore
from uadray.store import Cohort, Split

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("ray_session"),
    pytest.mark.timeout(600),
]

EXPERIMENT = tiny_vae(3, epochs=3)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("folds")


@pytest.fixture(scope="module")
def healthy(place: Path) -> Cohort:
    return healthy_cohort(place, 12)


@pytest.fixture(scope="module")
def stroke(place: Path, healthy: Cohort) -> Cohort:
    """The same heads with a bright ball each, on the same grid."""
    rng = np.random.default_rng(3)

    def volume(row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        image, brain = (healthy.read(n, row % 12, row % 12 + 1)[0] for n in ("image", "brain"))
        image = np.array(image)
        inner = np.argwhere(ndimage.binary_erosion(brain, iterations=3))
        middle = inner[rng.integers(len(inner))]
        far = np.linalg.norm(np.argwhere(np.ones(brain.shape)) - middle, axis=1)
        lesion = (far < rng.uniform(2.4, 3.5)).reshape(brain.shape) & brain.astype(bool)
        image[lesion] = rng.uniform(0.0, 0.1) if row % 2 else 1.0
        return image, brain.astype(bool), lesion

    volumes = [volume(row) for row in range(16)]
    affine = tuple(map(tuple, healthy.subjects["affine"][0]))
    splits: list[Split] = ["threshold"] * 6 + ["test"] * 10
    return write_cohort(str(place / "stroke.zarr"), splits, volumes.__getitem__, affine=affine)


@pytest.fixture(scope="module")
def folds(place: Path, healthy: Cohort) -> list[Run]:
    return uadray.fit_folds(EXPERIMENT, healthy, place / "folds", 3)


@pytest.fixture(scope="module")
def run(place: Path, folds: list[Run]) -> Run:
    return uadray.ensemble(folds, place / "folds/ensemble")


@pytest.fixture(scope="module")
def record(run: Run, stroke: Cohort) -> dict[str, Any]:
    """Of the ensemble, which brings its members' with it."""
    (made,) = uadray.evaluate(run, stroke, num_resamples=20)
    return made


def store(run: Run, cohort: Cohort) -> ScoreStore:
    return ScoreStore.of(run.url, cohort.name, (0.0, 1.0))


def test_folds_are_fits_of_their_own(healthy: Cohort, folds: list[Run]) -> None:
    assert [(one.experiment.fit.fold, one.experiment.fit.folds) for one in folds] == [
        (1, 3), (2, 3), (3, 3)
    ]  # fmt: skip
    held_back = [(one.summary or {})["num_validation_volumes"] for one in folds]
    learned = [(one.summary or {})["num_train_volumes"] for one in folds]
    assert sum(held_back) == len(healthy.subjects)
    assert {a + b for a, b in zip(held_back, learned, strict=True)} == {len(healthy.subjects)}
    again = uadray.fit_folds(EXPERIMENT, healthy, files.join(folds[0].url, ".."), 3)
    assert [one.summary for one in again] == [one.summary for one in folds]


def test_kept_scores_of_members_are_combined(
    folds: list[Run], run: Run, stroke: Cohort, record: dict[str, Any], place: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    rows = stroke.subjects["row"].tolist()
    assert record["num_test"] > 0
    for row in rows:
        each = [store(one, stroke).levels(row) for one in folds]
        assert np.array_equal(store(run, stroke).levels(row), combine_levels(each, "mean"))
    # By itself, where its members are gone, and on another number of actors, it has the same bits.
    alone = place / "alone"
    shutil.copytree(run.url, alone, ignore=shutil.ignore_patterns("scores", "evaluation", "*lock"))
    monkeypatch.setattr("uadray.runs.ensembles._find", lambda *_: None)
    monkeypatch.setattr(job, "actors_for", lambda nodes: (1, job.ACTOR_CPUS))
    with pytest.warns(UadrayWarning, match="is not there with these weights"):
        (again,) = uadray.evaluate(alone, stroke, num_resamples=20)
    for row in rows:
        levels = store(Run.open(str(alone)), stroke).levels(row)
        assert np.array_equal(levels, store(run, stroke).levels(row))
    assert again["metrics"] == record["metrics"]
    assert again["threshold"]["level"] == record["threshold"]["level"]


def test_report_says_what_it_gains(
    place: Path, folds: list[Run], run: Run, stroke: Cohort, record: dict[str, Any]
) -> None:
    records = load_runs([str(place / "folds")])
    (group,) = group_by_cohort(records)
    (gain,) = gains_of(group)
    dice = {one.url: json.loads(Path(one.url, "evaluation/stroke.json").read_text()) for one in
            (*folds, run)}  # fmt: skip
    mean = np.mean([dice[one.url]["metrics"]["dice_d"] for one in folds])
    expected = dice[run.url]["metrics"]["dice_d"] - mean
    assert gain.differences["dice_d"].value == pytest.approx(expected)
    # Of these fits: the spread over members widens nothing.
    fits = gain.members.fits("dice_d")
    own = next(row for row in group.rows if row.run.url == run.url).evaluation.by_person
    assert fits is not None
    assert own is not None
    wide = difference(own.fits["dice_d"], fits).bounds
    bounds = gain.differences["dice_d"].bounds
    if bounds is not None and wide is not None:
        assert bounds[1] - bounds[0] <= wide[1] - wide[0]
    lines = gains_on(records, "stroke")
    assert lines[0] == "3D-None (ensemble of 3 folds) against the mean of its 3 members:"
    assert "no verdict" in lines[-1]
    labels = [row.run.label for row in merge_folds(group).rows]
    assert sorted(labels) == ["3D-None (ensemble of 3 folds)", "3D-None · mean of 3 folds"]
    assert terminal_table(records, "stroke").row_count == 2
    page = Path(write_report([str(place / "folds")], str(place / "report.html"))).read_text()
    assert "Ensembles and their members" in page
    assert "Over seeds and folds" in page
    table = (place / "report-ensembles.csv").read_text().splitlines()
    assert len(table) == 2
    assert table[0].startswith("cohort,cohort_fingerprint,method,members")


def test_another_members_figures_are_not_taken(
    place: Path, run: Run, record: dict[str, Any]
) -> None:
    """With one member's evaluation gone, or under other settings, nothing is said of a gain."""
    records = load_runs([str(place / "folds")])
    (group,) = group_by_cohort(records)
    without = replace(group, rows=group.rows[:-1])
    assert not gains_of(without)
    values = {**group.rows[-1].evaluation.values, "settings": {"protocol": "other"}}
    other = replace(group.rows[-1], evaluation=replace(group.rows[-1].evaluation, values=values))
    assert not gains_of(replace(group, rows=(*group.rows[:-1], other)))


def test_thresholds_on_people_that_were_learned_from(
    run: Run, healthy: Cohort, stroke: Cohort
) -> None:
    rule = EvaluateConfig.of("bengs2021", threshold_rule="healthy_fpr_5")
    with pytest.raises(EvaluationError, match="3 folds of"):
        evaluate_all([run], [stroke], healthy=healthy, config=rule)


def test_prediction_has_a_map_of_the_spread(place: Path, run: Run, record: dict[str, Any]) -> None:
    scan = write_head(place / "p1_T1w.nii.gz", 40, lesion=True)
    made = uadray.predict(run, scan, out=place / "out", viewer=True)
    assert made.spread is not None
    assert made.spread.max() > 0
    written = nib.load(place / "out/p1_T1w/spread.nii.gz")
    assert written.shape == made.anomaly.shape
    assert 'name="spread"' in (place / "out/p1_T1w/viewer.html").read_text()
