"""The run folder: resumed by its own experiment and cohort, refused by any other."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_cohorts import SHAPE, tiny_vae, write_healthy

from uadray.config import Experiment as ExperimentClass
from uadray.config import experiment, from_json, with_fit
from uadray.errors import CheckpointError, RunError, UadrayError
from uadray.runs.folder import Run
from uadray.store import Cohort

EXPERIMENT = tiny_vae(3, strategy="cube")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return write_healthy(tmp_path_factory.mktemp("cohort"))


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_run_says_what_it_is_of(cohort: Cohort, tmp_path: Path) -> None:
    run = Run.create(str(tmp_path / "run"), EXPERIMENT, cohort)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["name"] == "3D-Cube-n"
    assert from_json(ExperimentClass, config["experiment"]) == EXPERIMENT
    assert config["fingerprint"] == EXPERIMENT.fingerprint
    origin = config["cohort"].pop("origin")
    assert origin == {"modality": ["T1w"], "steps": None, "voxel_mm": [4.0, 4.0, 4.0]}
    assert config["cohort"] == {
        "name": "healthy",
        "url": cohort.url,
        "fingerprint": cohort.fingerprint,
        "shape": list(SHAPE),
    }
    assert config["network"] == {
        "kernel_size": 5,
        "group_norm_groups": 8,
        "output_range": [0.0, 1.0],
    }
    assert {"uadray", "torch", "numpy", "zarr", "python"} <= set(config["versions"])
    assert set(config["hardware"]) == {"cpus", "machine", "device"}
    assert run == Run.open(str(tmp_path / "run"))
    assert run.shape == SHAPE
    assert (run.summary, run.metrics()) == (None, [])


def test_the_same_run_is_taken_up_and_not_touched(cohort: Cohort, tmp_path: Path) -> None:
    first = Run.create(str(tmp_path), EXPERIMENT, cohort)
    first.write_metrics([{"epoch": 1, "train/loss": 0.5}])
    before = content(tmp_path)
    second = Run.create(str(tmp_path), EXPERIMENT, cohort)
    assert second == first
    assert content(tmp_path) == before
    assert second.metrics() == [{"epoch": 1, "train/loss": 0.5}]


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (with_fit(EXPERIMENT, seed=3), ["fit.seed: 0 there, 3 here"]),
        (
            with_fit(EXPERIMENT, epochs=9, learning_rate=0.1),
            ["fit.epochs: 4 there, 9 here", "fit.learning_rate: 0.001 there, 0.1 here"],
        ),
        (tiny_vae(3, strategy="multi-cube"), ["erasing.strategy: cube there, multi-cube here"]),
        (tiny_vae(2, strategy="cube"), ["method.ndim: 3 there, 2 here"]),
        (experiment("HistEq"), ["method.type: VAE there, HistEq here", "polarity: None there"]),
    ],
)
def test_another_experiment_is_refused_and_told_apart(
    cohort: Cohort, tmp_path: Path, other: ExperimentClass, expected: list[str]
) -> None:
    Run.create(str(tmp_path), EXPERIMENT, cohort)
    before = content(tmp_path)
    with pytest.raises(CheckpointError, match=r"run of 3D-Cube-n .* choose another --out") as got:
        Run.create(str(tmp_path), other, cohort)
    for words in expected:
        assert words in str(got.value)
    for field in ("fit.patience", "fit.residency", "erasing.fill"):  # the same in all of them
        assert f"{field}:" not in str(got.value)
    assert content(tmp_path) == before


def test_another_cohort_is_refused(cohort: Cohort, tmp_path: Path) -> None:
    Run.create(str(tmp_path / "run"), EXPERIMENT, cohort)
    other = write_healthy(tmp_path, name="others", seed=7)
    expected = rf"{cohort.fingerprint}.*not on {other.fingerprint}.*choose another --out"
    with pytest.raises(CheckpointError, match=expected):
        Run.create(str(tmp_path / "run"), EXPERIMENT, other)
    assert Run.create(str(tmp_path / "run"), EXPERIMENT, cohort).cohort_url == cohort.url


def test_a_cohort_that_moved_is_still_the_same(cohort: Cohort, tmp_path: Path) -> None:
    Run.create(str(tmp_path), EXPERIMENT, cohort)
    Run.create(str(tmp_path), EXPERIMENT, replace(cohort, url="/elsewhere/healthy.zarr"))


def test_a_folder_of_something_else_is_refused(cohort: Cohort, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match="not empty and holds no run: choose another --out"):
        Run.create(str(tmp_path), EXPERIMENT, cohort)
    assert content(tmp_path) == {"thesis.tex": b"years of work"}


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no run there; fit one with jobs/train\.py"):
        Run.open(str(tmp_path / "absent"))
    assert issubclass(RunError, UadrayError)


def test_records_are_replaced_whole_and_a_summary_ends_the_run(
    cohort: Cohort, tmp_path: Path
) -> None:
    run = Run.create(str(tmp_path), EXPERIMENT, cohort)
    records = [{"epoch": k, "train/loss": 1 / k} for k in (1, 2, 3)]
    run.write_metrics(records)
    run.write_metrics(records[:2])
    assert run.metrics() == records[:2]
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 2
    run.finish({"status": "finished", "epochs": 2})
    assert run.summary == {"status": "finished", "epochs": 2}
    assert [p for p in tmp_path.rglob(".*")] == []  # nothing is left of what was written aside


def test_json_holds_no_nan(cohort: Cohort, tmp_path: Path) -> None:
    run = Run.create(str(tmp_path), EXPERIMENT, cohort)
    run.write_metrics([{"epoch": 1, "train/loss": 0.5}])
    before = content(tmp_path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        run.finish({"status": "finished", "fit_seconds": math.nan})
    with pytest.raises(ValueError, match="not JSON compliant"):
        run.write_metrics([{"epoch": 1, "train/loss": math.inf}])
    assert run.summary is None
    assert content(tmp_path) == before


def test_a_damaged_config_is_named(cohort: Cohort, tmp_path: Path) -> None:
    run = Run.create(str(tmp_path / "run"), EXPERIMENT, cohort)
    path = tmp_path / "run" / "config.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(RunError, match=r"config\.json is damaged"):
        Run.open(run.url)
