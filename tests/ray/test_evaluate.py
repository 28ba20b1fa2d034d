"""Scoring through Ray: each subject once, figures as computed from voxels, no look at the test."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score
from tiny_cohorts import (
    NUM_TEST,
    NUM_THRESHOLD,
    SHAPE,
    tiny_vae,
    write_cohort,
    write_healthy,
    write_lesioned,
)

from uadray import files
from uadray.config import experiment
from uadray.errors import EvaluationError
from uadray.evaluation import job, pair
from uadray.evaluation.job import evaluate, num_volumes
from uadray.evaluation.protocols import EvaluateConfig
from uadray.evaluation.regroup import regroup
from uadray.metrics.counts import ThresholdPart
from uadray.metrics.inference import interval
from uadray.metrics.settings import ComponentConfig, PostprocessConfig
from uadray.report import write_report
from uadray.runs.checkpoint import CheckpointStore
from uadray.runs.detector import load_detector
from uadray.runs.evaluations import load_evaluation, unpack_slices
from uadray.runs.folder import Run
from uadray.runs.records import load_runs
from uadray.runs.scores import ScoreStore
from uadray.store import Cohort, Split
from uadray.train.job import fit

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("ray_session"),
    pytest.mark.timeout(300),
]

NUM = NUM_THRESHOLD + NUM_TEST
CONFIG = EvaluateConfig(
    postprocess=PostprocessConfig(erosion_iterations=1, median_size=3), num_resamples=200
)
METHODS = ("ZScore", "HistEq", "3D-None")


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return write_healthy(tmp_path_factory.mktemp("healthy"))


@pytest.fixture(scope="module")
def stroke(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return write_lesioned(tmp_path_factory.mktemp("lesioned"))


@pytest.fixture(scope="module")
def runs(healthy: Cohort, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("runs")
    what = {name: experiment(name) for name in METHODS[:2]} | {METHODS[2]: tiny_vae(3, epochs=6)}
    return {name: fit(e, healthy, str(folder / name)) for name, e in what.items()}


Evaluated = tuple[dict[str, dict[str, Any]], list[int]]


@pytest.fixture(scope="module")
def evaluated(runs: dict[str, Run], stroke: Cohort) -> Evaluated:
    """The records of all runs, and what was reported on the way."""
    reported: list[int] = []
    records = evaluate(list(runs.values()), stroke, config=CONFIG, report=reported.append)
    return dict(zip(runs, records, strict=True)), reported


def scores_folder(run: Run) -> Path:
    return Path(run.url) / "scores" / "stroke.zarr"


def times(folder: Path) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def subject(cohort: Cohort, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    image, brain, lesion = (
        cohort.read(name, row, row + 1)[0]  # type: ignore[arg-type]
        for name in ("image", "brain", "lesion")
    )
    return image.astype(np.float32), brain, lesion


def eroded(brain: np.ndarray) -> np.ndarray:
    cross = ndimage.generate_binary_structure(2, 1)
    return np.stack([ndimage.binary_erosion(plane, cross) for plane in brain])


def reference_levels(run: Run, image: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """A subject's post-processed scores as 16-bit levels, straight from the detector."""
    detector = load_detector(run)
    with torch.no_grad():
        scores = detector.anomaly_map(
            torch.from_numpy(image)[None, None], torch.from_numpy(brain)[None]
        )[0].double()
    low, high = detector.score_range
    share = ((scores.numpy() - low) * (65535 / (high - low))).clip(0, 65535)
    levels = np.rint(share) * eroded(brain)
    return ndimage.median_filter(levels, size=3, mode="reflect") * brain


def overlap(levels: list[np.ndarray], lesions: list[np.ndarray], threshold: float) -> float:
    a, t = np.stack(levels) >= threshold, np.stack(lesions)
    return float(2 * (a & t).sum() / (a.sum() + t.sum()))


def bisection(levels: list[np.ndarray], lesions: list[np.ndarray]) -> int:
    """Bengs 2021, section 2.3: ten halvings, the better quartile's half is kept."""
    low, high, tried = 0.0, 65535.0, {}
    for _ in range(10):
        quartiles = [low + (high - low) / 4, high - (high - low) / 4]
        values = [overlap(levels, lesions, q) for q in quartiles]
        for q, value in zip(quartiles, values, strict=True):
            tried.setdefault(int(np.ceil(q)), value)
        middle = (low + high) / 2
        low, high = (low, middle) if values[0] >= values[1] else (middle, high)
    return max(tried, key=lambda level: tried[level])


@pytest.mark.parametrize("name", METHODS)
def test_figures_are_those_computed_from_voxels(
    runs: dict[str, Run], stroke: Cohort, evaluated: Evaluated, name: str
) -> None:
    run, record = runs[name], evaluated[0][name]
    kept = ScoreStore(url=str(scores_folder(run)), score_range=load_detector(run).score_range)
    parts: dict[str, list[tuple[np.ndarray, ...]]] = {"threshold": [], "test": []}
    for row, split in zip(stroke.subjects["row"], stroke.subjects["split"], strict=True):
        image, brain, lesion = subject(stroke, row)
        levels = reference_levels(run, image, brain)
        difference = np.abs(kept.levels(row) - levels).max()
        # Sums in a convolution depend on how many volumes are scored at once.
        assert difference <= (1 if name == "3D-None" else 0)
        levels = kept.levels(row).astype(np.int64)
        parts[split].append((levels, brain, lesion))
    to_fit, _, truth_to_fit = map(list, zip(*parts["threshold"], strict=True))
    level = record["threshold"]["level"]
    assert level == bisection(to_fit, truth_to_fit)
    low, high = record["score_range"]
    assert record["threshold"]["value"] == pytest.approx(low + level * (high - low) / 65535)
    assert record["threshold"]["fitted_on"] == f"stroke/threshold: {NUM_THRESHOLD} subjects"

    levels, brains, lesions = map(list, zip(*parts["test"], strict=True))
    flat, truth = np.stack(levels).ravel(), np.stack(lesions).ravel()
    dice_s = np.array([overlap([a], [t], level) for a, t in zip(levels, lesions, strict=True)])
    slices = [
        (a[z].sum() / 65535, bool(t[z].any()))
        for a, b, t in zip(levels, brains, lesions, strict=True)
        for z in range(SHAPE[0])
        if b[z].any() or t[z].any()
    ]
    expected = {
        "dice_d": overlap(levels, lesions, level),
        "dice_s_mean": dice_s.mean(),
        "dice_s_std": dice_s.std(),
        "auprc": average_precision_score(truth, flat),
        "auroc": roc_auc_score(truth, flat),
        "upper_bound_dice": max(overlap(levels, lesions, v) for v in np.unique(flat)[1::7]),
        "slice_auprc": average_precision_score(*zip(*[(t, s) for s, t in slices], strict=True)),
    }
    metrics = record["metrics"]
    best = expected.pop("upper_bound_dice")
    assert best <= metrics["upper_bound_dice"] + 1e-9
    assert metrics["upper_bound_dice"] < best + 0.01
    for key, value in expected.items():
        assert metrics[key] == pytest.approx(value, abs=1e-9), key
    test = stroke.subjects[stroke.subjects["split"] == "test"]
    assert [s["id"] for s in record["subjects"]] == list(test["id"])
    assert [s["lesion_ml"] for s in record["subjects"]] == list(test["lesion_ml"])
    assert [s["dice"] for s in record["subjects"]] == pytest.approx(list(dice_s), abs=1e-9)
    assert record["lesion_voxels"] == truth.sum()
    lost = sum(int((t & b & ~eroded(b)).sum()) for b, t in zip(brains, lesions, strict=True))
    assert record["lesion_voxels_eroded"] == lost > 0
    for ends in record["intervals"].values():
        assert ends is None or ends[0] < ends[1]
    assert record["num_people"] == NUM_TEST


@pytest.mark.parametrize("name", METHODS)
def test_intervals_are_of_figures_by_person(
    runs: dict[str, Run], evaluated: Evaluated, name: str
) -> None:
    record = evaluated[0][name]
    kept = load_runs([runs[name].url])[0].evaluations[0].by_person
    assert list(kept.scans) == [s["id"] for s in record["subjects"]]
    assert len(set(kept.people)) == record["num_people"] == kept.counts.shape[1]
    assert set(kept.fits) == set(record["intervals"])
    for key, ends in record["intervals"].items():
        fits = kept.fits[key]
        assert fits.values[0, 0] == pytest.approx(record["metrics"][key], nan_ok=True)
        assert interval(fits) == (None if ends is None else pytest.approx(tuple(ends)))
    assert kept.fits["dice_d"].refits.shape == (1, record["num_refits"])
    assert kept.fits["auprc"].refits is None


@pytest.mark.parametrize("name", METHODS)
def test_slices_of_their_auprc_are_kept(
    runs: dict[str, Run], evaluated: Evaluated, name: str
) -> None:
    record = evaluated[0][name]
    kept = unpack_slices(files.read_bytes(f"{runs[name].url}/evaluation/stroke-slices.npz"))
    assert list(kept.subjects) == [subject["id"] for subject in record["subjects"]]
    recomputed = average_precision_score(kept.lesion[kept.counted], kept.score[kept.counted])
    assert recomputed == pytest.approx(record["metrics"]["slice_auprc"])


def test_each_subject_is_scored_once(
    runs: dict[str, Run], stroke: Cohort, evaluated: Evaluated
) -> None:
    records, reported = evaluated
    assert reported[0] == 0  # nothing was there
    assert sum(reported) == NUM
    for name, run in runs.items():
        kept = scores_folder(run)
        rows = sorted(int(p.stem) for p in (kept / "counts").iterdir())
        assert rows == list(range(NUM))
        chunks = sorted(int(p.name) for p in (kept / "scores" / "c").iterdir())
        assert chunks == rows
        record = records[name]
        assert files.read_json(f"{run.url}/evaluation/stroke.json") == record
        assert record["run_fingerprint"] == run.experiment.fingerprint
        assert record["cohort"]["fingerprint"] == stroke.fingerprint
        assert record["cohort"]["notes"] == ["semi-synthetic lesion"]
        assert (record["num_threshold"], record["num_test"]) == (NUM_THRESHOLD, NUM_TEST)
        assert record["seconds_per_volume"] > 0
    assert records["ZScore"]["metrics"]["auroc"] > 0.8  # bright blobs are found


def test_evaluating_again_scores_nothing(
    runs: dict[str, Run], stroke: Cohort, evaluated: Evaluated
) -> None:
    before = {name: times(Path(run.url)) for name, run in runs.items()}
    reported: list[int] = []
    again = evaluate(list(runs.values()), stroke, config=CONFIG, report=reported.append)
    assert reported == [NUM]
    assert again == list(evaluated[0].values())
    assert {name: times(Path(run.url)) for name, run in runs.items()} == before


def test_only_what_is_missing_is_scored(
    runs: dict[str, Run], stroke: Cohort, evaluated: Evaluated
) -> None:
    counts = scores_folder(runs["ZScore"]) / "counts"
    before = times(scores_folder(runs["ZScore"])) | times(scores_folder(runs["HistEq"]))
    lost = [counts / f"{row:07d}.npz" for row in (0, 6, 11)]
    for path in lost:
        path.unlink()
    reported: list[int] = []
    records = evaluate(
        [runs["ZScore"], runs["HistEq"]], stroke, config=CONFIG, report=reported.append
    )
    assert (reported[0], sum(reported)) == (NUM - 3, NUM)
    after = times(scores_folder(runs["ZScore"])) | times(scores_folder(runs["HistEq"]))
    made = {path for path in after if after[path] != before[path]}
    chunks = {counts.parent / "scores" / "c" / str(row) / "0" / "0" / "0" for row in (0, 6, 11)}
    assert made == set(lost) | chunks
    seconds = {"seconds_per_volume": None, "seconds_per_slice": None}
    for name, record in zip(("ZScore", "HistEq"), records, strict=True):
        assert record | seconds == evaluated[0][name] | seconds


def test_another_rule_reads_counts_and_another_postprocessing_scores(
    healthy: Cohort, stroke: Cohort, tmp_path: Path
) -> None:
    run = fit(experiment("Intensity"), healthy, str(tmp_path / "run"))
    figures = []
    for config, scored in (
        (CONFIG, True),
        (replace(CONFIG, threshold_rule="best_dice"), False),
        (replace(CONFIG, postprocess=PostprocessConfig(median_size=1)), True),
    ):
        reported: list[int] = []
        (record,) = evaluate([run], stroke, config=config, report=reported.append)
        assert reported[0] == (0 if scored else NUM)
        assert sum(reported) == NUM
        figures.append(record)
    first, rule, post = figures
    assert rule["threshold"]["rule"] == "best_dice"
    assert rule["metrics"]["auprc"] == first["metrics"]["auprc"]
    assert post["postprocess"] == {"erosion_iterations": 0, "median_size": 1}
    assert post["metrics"]["auprc"] != first["metrics"]["auprc"]


def test_the_threshold_never_sees_the_test_part(
    runs: dict[str, Run], stroke: Cohort, evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[ThresholdPart] = []
    whole = pair.fit_threshold

    def spy(part: ThresholdPart, rule: str) -> Any:
        seen.append(part)
        return whole(part, rule)

    monkeypatch.setattr(pair, "fit_threshold", spy)
    for name in ("stroke.json", "stroke-threshold.json"):
        Path(runs["HistEq"].url, "evaluation", name).unlink()
    (record,) = evaluate([runs["HistEq"]], stroke, config=CONFIG)
    (part,) = seen
    table = stroke.subjects
    assert set(part.subjects) == set(table.loc[table["split"] == "threshold", "id"])
    assert not set(part.subjects) & {s["id"] for s in record["subjects"]}
    assert record["metrics"] == evaluated[0]["HistEq"]["metrics"]


@pytest.mark.parametrize("name", METHODS)
def test_cases_show_test_subjects_as_they_were_scored(
    runs: dict[str, Run], stroke: Cohort, evaluated: Evaluated, name: str
) -> None:
    run, record = runs[name], evaluated[0][name]
    content = files.read_bytes(f"{run.url}/evaluation/stroke-cases.npz")
    with np.load(io.BytesIO(content), allow_pickle=False) as loaded:
        cases = dict(loaded)
    images = {"input", "scores"} | ({"reconstruction"} if name == "3D-None" else set())
    masks = {"brain", "lesion", "prediction"}
    assert set(cases) == {"ids", "slice"} | images | masks
    assert cases["ids"].shape == cases["slice"].shape == (3,)
    assert all(cases[key].shape == (3, *SHAPE[1:]) for key in images | masks)
    assert all(cases[key].dtype == np.float32 for key in images)
    assert all(cases[key].dtype == bool for key in masks)
    table = stroke.subjects.set_index("id")
    chosen = table.loc[cases["ids"]]
    assert (chosen["split"] == "test").all()
    assert list(chosen["lesion_ml"]) == sorted(chosen["lesion_ml"], reverse=True)
    low, high = record["score_range"]
    for k, (row, z) in enumerate(zip(chosen["row"], cases["slice"], strict=True)):
        image, brain, lesion = subject(stroke, row)
        assert lesion[z].sum() == lesion.sum((1, 2)).max()
        assert np.array_equal(cases["input"][k], image[z])
        assert np.array_equal(cases["brain"][k], brain[z])
        assert np.array_equal(cases["lesion"][k], lesion[z])
        levels = reference_levels(run, image, brain)[z]
        assert np.abs(cases["scores"][k] - low - levels * (high - low) / 65535).max() < 1e-4
        clear = np.abs(levels - record["threshold"]["level"]) > 1
        expected = levels >= record["threshold"]["level"]
        assert np.array_equal(cases["prediction"][k][clear], expected[clear])
    if "reconstruction" in cases:
        residual = np.abs(cases["input"] - cases["reconstruction"])[cases["brain"]]
        assert 0 < residual.mean() < 0.4


def test_what_cannot_be_evaluated_is_named(
    healthy: Cohort, stroke: Cohort, runs: dict[str, Run], tmp_path: Path
) -> None:
    run = runs["ZScore"]
    unfinished = Run.create(str(tmp_path / "unfinished"), tiny_vae(3), healthy)
    wide = write_lesioned(tmp_path, name="wide", shape=(16, 16, 24))
    other = write_lesioned(tmp_path / "other", name="stroke", seed=9)
    cases: list[tuple[Run, Cohort, str]] = [
        (run, healthy, "has no lesion masks.*give a cohort prepared with lesions"),
        (run, wide, r"\(16, 16, 16\).*\(16, 16, 24\): prepare the cohort with the same --size"),
        (unfinished, stroke, r"unfinished is not finished: run the same jobs/train\.py again"),
        (run, other, "scores of another cohort named 'stroke'"),
    ]
    before = times(Path(run.url))
    for one, cohort, message in cases:
        with pytest.raises(EvaluationError, match=message):
            evaluate([one], cohort, config=CONFIG)
    assert times(Path(run.url)) == before


def spoil_scores(run: Run, healthy: Cohort) -> None:
    detector = load_detector(run)
    detector.state_dict()["deviation"][8, 8, 8] = torch.nan
    identity = f"{run.experiment.fingerprint}-{healthy.fingerprint}"
    CheckpointStore(run.url, identity).save(1, detector, None, 0.0)


def test_scores_that_are_not_finite_are_named_through_ray(
    healthy: Cohort, stroke: Cohort, tmp_path: Path
) -> None:
    run = fit(experiment("ZScore"), healthy, str(tmp_path / "run"))
    spoil_scores(run, healthy)
    with pytest.raises(
        EvaluationError, match=r"scores of subject 'stroke-\d{3}'.*1 of 4096 are NaN"
    ):
        evaluate([run], stroke, config=CONFIG)
    assert not (Path(run.url) / "evaluation" / "stroke.json").exists()


def test_one_bad_run_does_not_end_the_others(
    healthy: Cohort, stroke: Cohort, tmp_path: Path
) -> None:
    names = ("whole", "not finite", "cut short", "no checkpoint")
    made = {name: fit(experiment("ZScore"), healthy, str(tmp_path / name)) for name in names}
    spoil_scores(made["not finite"], healthy)
    (tmp_path / "cut short" / "summary.json").write_bytes(b'{"status": "fin')
    (tmp_path / "no checkpoint" / "checkpoint" / "state.json").unlink()
    messages: dict[str, str] = {}
    ((record,),) = job.evaluate_all(
        list(made.values()),
        [stroke],
        config=CONFIG,
        failed=lambda run, error: messages.update({run.url.rsplit("/", 1)[-1]: str(error)}),
    )
    assert set(messages) == set(names[1:])
    assert "are NaN" in messages["not finite"]
    assert "summary.json is damaged" in messages["cut short"]
    assert "no checkpoint" in messages["no checkpoint"]
    assert files.read_json(f"{made['whole'].url}/evaluation/stroke.json") == record
    with pytest.raises(EvaluationError, match="are NaN"):
        job.evaluate_all(
            [made["not finite"]], [stroke], config=CONFIG, failed=lambda run, error: None
        )


def test_a_damaged_count_is_named(
    runs: dict[str, Run], stroke: Cohort, evaluated: Evaluated
) -> None:
    row = stroke.rows("test")[0]
    damaged = scores_folder(runs["HistEq"]) / "counts" / f"{row:07d}.npz"
    record = Path(runs["HistEq"].url, "evaluation", "stroke.json")
    whole, figures = damaged.read_bytes(), record.read_bytes()
    record.unlink()
    damaged.write_bytes(whole[:-30])
    message = rf"cut short or damaged .*{row:07d}\.npz.*run the same jobs/evaluate\.py again"
    with pytest.raises(EvaluationError, match=message):
        evaluate([runs["HistEq"]], stroke, config=CONFIG)
    assert not record.exists()
    damaged.write_bytes(whole)
    record.write_bytes(figures)


def test_groups_of_people_are_figures_beside_those_of_all(
    runs: dict[str, Run], stroke: Cohort, evaluated: Evaluated, tmp_path: Path
) -> None:
    run, before = runs["HistEq"], evaluated[0]["HistEq"]
    config = replace(CONFIG, by=("age:40", "scanner"))
    with pytest.raises(EvaluationError, match=r"knows nobody's age; it knows scanner"):
        evaluate([run], stroke, config=config)
    number = len(stroke.subjects)
    stroke.add_covariates({"age": [30.0 + 20 * (n % 2) for n in range(number)]})
    scored = times(scores_folder(run))
    (record,) = evaluate([run], stroke, config=config)
    assert times(scores_folder(run)) == scored
    # What was kept without groups gives the same ones.
    plain = replace(load_evaluation(run.url, "stroke", run.config), values=before)
    assert regroup(run.url, plain, config.by).values["strata"] == record["strata"]
    for part in ("metrics", "intervals", "threshold", "subjects"):
        assert record[part] == before[part]
    ages = record["strata"]["age:40"]
    assert [one["group"] for one in ages] == ["age below 40", "age from 40"]
    assert sum(one["num_people"] for one in ages) == record["num_people"]
    place = Path(run.url, "evaluation", "stroke.json")
    written = place.stat().st_mtime_ns
    assert evaluate([run], stroke, config=config) == [record]
    assert place.stat().st_mtime_ns == written
    # Who is in which group is no part of a cohort's fingerprint, and yet noticed.
    stroke.add_covariates({"age": [30.0] * number})
    (again,) = evaluate([run], stroke, config=config)
    assert [one["group"] for one in again["strata"]["age:40"]] == ["age below 40"]
    page = Path(write_report([run.url], str(tmp_path / "groups.html"))).read_text()
    assert "Whom does it fail? Dice<sub>D</sub> by age" in page
    table = pd.read_csv(tmp_path / "groups-groups.csv")
    shown = table.query("by == 'age:40' and metric == 'dice_d'")["value"].item()
    assert shown == again["metrics"]["dice_d"]


@pytest.mark.parametrize("components", [ComponentConfig(), ComponentConfig(max_size=4)])
def test_healthy_controls_show_false_alarms_and_tell_patients(
    runs: dict[str, Run], stroke: Cohort, tmp_path: Path, components: ComponentConfig
) -> None:
    donor = write_healthy(tmp_path, name="donor", seed=5)
    volumes = donor.read("image", 0, 24), donor.read("brain", 0, 24)
    splits: list[Split] = ["train", "validation", *["test"] * 22]
    controls = write_cohort(
        str(tmp_path / "controls.zarr"), splits, lambda n: (volumes[0][n], volumes[1][n], None)
    )
    ages = [30.0 + n for n in range(23)]
    controls.add_covariates({"sex": ["M", "F"] * 12, "age": [*ages, None]})
    run = runs["HistEq"]
    config = replace(CONFIG, components=components, by=("lesion_ml:10", "scanner"))
    reported: list[int] = []
    (record,) = evaluate([run], stroke, controls=controls, config=config, report=reported.append)
    assert sum(reported) == num_volumes([stroke], None, controls) == NUM + 22
    # Models read the settings of evaluations.
    assert EvaluateConfig.from_record(record["settings"]) == replace(config, by=())
    kept = record["controls"]
    assert kept["cohort"]["fingerprint"] == controls.fingerprint
    assert (kept["num_people"], kept["num_scans"]) == (22, 22)
    level = record["threshold"]["level"]
    structure = np.ones((3, 3, 3))
    false, number, total, highest = [], [], 0, []
    for row in controls.rows("test"):
        image, brain = volumes[0][row].astype(np.float32), volumes[1][row]
        levels = reference_levels(run, image, brain)
        labels, _ = ndimage.label(levels >= level, structure)
        sizes = np.bincount(labels.ravel())[1:]
        sizes = sizes[sizes > components.max_size]
        false.append(0.064 * sizes.sum())
        number.append(len(sizes))
        total += brain.sum()
        highest.append(levels[brain].max())
    assert [one["false_ml"] for one in kept["subjects"]] == pytest.approx(false)
    assert [one["false_components"] for one in kept["subjects"]] == number
    assert kept["metrics"]["false_ml_mean"] == pytest.approx(np.mean(false))
    assert kept["metrics"]["false_ml_median"] == pytest.approx(np.median(false))
    assert kept["metrics"]["specificity"] == pytest.approx(1 - sum(false) / 0.064 / total)
    low, high = kept["intervals"]["false_ml_mean"]
    assert low < kept["metrics"]["false_ml_mean"] < high
    # Lesions are no property of healthy people.
    assert list(kept["strata"]) == ["scanner"]
    assert [one["num_people"] for one in kept["strata"]["scanner"]] == [11, 11]
    sick = []
    for row in stroke.rows("test"):
        image, brain, _ = subject(stroke, row)
        sick.append(reference_levels(run, image, brain)[brain].max())
    truth = [1] * len(sick) + [0] * len(highest)
    told = kept["detection"]["maximum"]
    assert told["metrics"]["auroc"] == roc_auc_score(truth, [*sick, *highest])
    assert set(kept["detection"]) == {"volume", "maximum", "percentile", "top_mean"}
    assert (told["num_patients"], told["num_healthy"]) == (len(sick), 22)
    # Without names, in an order that says nothing, with what a model compares a person with.
    people = kept["people"]
    by_age = {one["age"]: one for one in people}
    assert len(people) == 22
    assert set(by_age) == {*ages[2:], None}
    assert [by_age[age]["sex"] for age in ages[2:4]] == ["M", "F"]
    for n, age in enumerate([*ages[2:], None]):
        assert by_age[age]["scores"]["volume"] == pytest.approx(false[n])
        assert by_age[age]["scores"]["maximum"] == pytest.approx(highest[n] / 65535)
    assert {key for one in people for key in one} == {"scores", "age", "sex"}
    # Groups that nobody asked for, from what is kept; lesions mean nothing in healthy people.
    loaded = load_evaluation(run.url, "stroke", run.config)
    by = ("sex", "lesion_ml:10", "scanner")
    with pytest.raises(EvaluationError, match=r"knows nobody's sex; .* --controls .* --by sex"):
        regroup(run.url, loaded, by)
    again = regroup(run.url, loaded, by[1:]).values
    assert again["strata"] == record["strata"]
    assert again["controls"] == kept
    # Ages that are known by now, and records of earlier versions, are noticed.
    scored = times(scores_folder(run))
    controls.add_covariates({"age": [40.0] * 24})
    (renewed,) = evaluate([run], stroke, controls=controls, config=config)
    assert {one["age"] for one in renewed["controls"]["people"]} == {40.0}
    place = Path(run.url, "evaluation", "stroke.json")
    del renewed["controls"]["people"]
    files.write_json(str(place), renewed)
    (renewed,) = evaluate([run], stroke, controls=controls, config=config)
    assert len(renewed["controls"]["people"]) == 22
    assert times(scores_folder(run)) == scored
    # All else is as without them.
    (plain,) = evaluate([run], stroke, config=config)
    assert "controls" not in plain
    assert plain["metrics"] == record["metrics"]


def test_people_that_are_learned_from_are_no_controls(
    runs: dict[str, Run], stroke: Cohort, healthy: Cohort, tmp_path: Path
) -> None:
    with pytest.raises(EvaluationError, match=r"has no test part, .* --test-count N"):
        evaluate([runs["HistEq"]], stroke, controls=healthy, config=CONFIG)
    # Counting volumes, as jobs do before, leaves it to say so.
    assert num_volumes([stroke], controls=healthy) == len(stroke.subjects)
    with pytest.raises(EvaluationError, match="has lesions: controls are healthy people"):
        evaluate([runs["HistEq"]], stroke, controls=stroke, config=CONFIG)
    # A cohort whose one part was learned from has controls in the other.
    splits: list[Split] = ["train"] * 20 + ["validation"] * 2 + ["test"] * 6
    whole = write_healthy(tmp_path, name="whole", seed=8)
    volumes = whole.read("image", 0, 28), whole.read("brain", 0, 28)
    both = write_cohort(
        str(tmp_path / "both.zarr"), splits, lambda n: (volumes[0][n], volumes[1][n], None)
    )
    fitted = fit(experiment("ZScore"), both, str(tmp_path / "fitted"))
    (record,) = evaluate([fitted], stroke, controls=both, config=CONFIG)
    assert record["controls"]["num_people"] == 6
    other = write_lesioned(tmp_path, name="other")
    with pytest.raises(EvaluationError, match="has lesions: controls are healthy"):
        evaluate([runs["HistEq"]], other, controls=stroke, config=CONFIG)
