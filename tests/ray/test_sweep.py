"""A sweep through Ray Tune: more trials than CPUs, one that fails, one that is killed."""

import io
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import load_file
from tiny_cohorts import write_healthy, write_lesioned

from uadray.config import FitConfig
from uadray.errors import ConfigError
from uadray.evaluation.job import evaluate
from uadray.runs.folder import Run
from uadray.status.state import SweepState, read_state
from uadray.store import Cohort
from uadray.train.settings import TrackConfig
from uadray.tune.space import Space
from uadray.tune.sweep import Outcome, SweepConfig, sweep

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

FIT = FitConfig(epochs=3, batch_size=18, precision="float32")
SPACE = Space(
    experiments=("3D-None", "3D-Cube-n"), latent_size=(4, 8), seeds=(0, 1), baselines=False, fit=FIT
)
SMALL = SweepConfig(cpus_per_trial=1.0, max_failures=0)


KNOBS = Space(
    experiments=("3D-None",), learning_rate=(1e-5, 3e-3), latent_size=(4,), baselines=False, fit=FIT
)
POPULATION = SweepConfig(scheduler="pbt", population=4, interval=1, max_failures=0)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return write_healthy(tmp_path_factory.mktemp("cohort"))


def figures(outcomes: list[Outcome]) -> dict[str, float]:
    runs = {o.url.rsplit("/", 1)[-1]: Run.open(o.url).summary or {} for o in outcomes}
    return {name: summary["validation/reconstruction"] for name, summary in runs.items()}


def state_of(folder: Path) -> SweepState:
    """As `uadray status` reads it."""
    state = read_state(str(folder))
    assert isinstance(state, SweepState)
    return state


@pytest.mark.usefixtures("ray_session")
class TestSweep:
    def test_more_trials_than_cpus_and_one_that_cannot_work(
        self, cohort: Cohort, tmp_path: Path
    ) -> None:
        space = Space(
            experiments=("3D-None", "PCA-4", "Intensity"),
            learning_rate=(1e-3, 1e-4, 1e30),
            seeds=(0, 1),
            baselines=False,
            fit=FIT,
        )
        stream = io.StringIO()
        console = Console(file=stream, force_terminal=False, width=200)
        outcomes = sweep(space, cohort, str(tmp_path), config=SMALL, console=console)
        status = {(o.experiment.name, o.experiment.fit.learning_rate): o for o in outcomes}
        assert len(outcomes) == 3 * 2 + 2
        assert [o.experiment for o in outcomes] == space.trials()
        failed = [o for o in outcomes if o.status == "failed"]
        assert {o.experiment.fit.learning_rate for o in failed} == {1e30}
        assert len(failed) == 2
        assert all("NotFiniteError" in o.error for o in failed)
        assert all(o.status == "finished" for o in outcomes if o not in failed)
        assert status["Intensity", 1e-3].status == "finished"
        for outcome in outcomes:
            if outcome not in failed and outcome.experiment.name == "3D-None":
                assert len(Run.open(outcome.url).metrics()) == 3
        lines = stream.getvalue().splitlines()
        assert any(line.startswith("8 of 8 trials: ") for line in lines)
        assert sum("FAILED" in line and "NotFiniteError" in line for line in lines) == 2
        record = json.loads((tmp_path / "sweep.json").read_text())
        assert [t["status"] for t in record["trials"]] == [o.status for o in outcomes]
        assert record["varied"] == ["experiment", "fit.learning_rate", "fit.seed"]
        stands = state_of(tmp_path)
        assert (stands.total, stands.has_ended, stands.waiting) == (8, True, 0)
        assert [t.status for t in stands.trials] == [o.status for o in outcomes]
        learned = [o for o in outcomes if o.experiment.name == "3D-None"]
        best = min(o.objective for o in learned if o.objective is not None)
        assert stands.best is not None
        assert stands.objective(stands.best) == pytest.approx(best)

    @pytest.mark.slow
    def test_asha_stops_some_and_says_so(self, cohort: Cohort, tmp_path: Path) -> None:
        space = Space(
            experiments=("3D-None",),
            learning_rate=(3e-3, 1e-3, 1e-5, 1e-6),
            baselines=False,
            fit=FitConfig(epochs=6, batch_size=18, precision="float32"),
        )
        config = SweepConfig(
            scheduler="asha", grace_epochs=1, reduction=2, cpus_per_trial=4, max_failures=0
        )
        outcomes = sweep(space, cohort, str(tmp_path), config=config)
        assert {o.status for o in outcomes} == {"finished", "stopped"}
        for outcome in outcomes:
            epochs = len(Run.open(outcome.url).metrics())
            assert (epochs == 6) == (outcome.status == "finished")
            assert (Run.open(outcome.url).summary or {})["epochs"] == epochs
        before = {o.url: o.status for o in outcomes}
        again = sweep(space, cohort, str(tmp_path), config=config)
        assert {o.url: o.status for o in again} == before

    @pytest.mark.slow
    def test_random_search_is_a_seeded_part_of_the_grid(
        self, cohort: Cohort, tmp_path: Path
    ) -> None:
        config = SweepConfig(search="random", max_trials=3, seed=5, max_failures=0)
        outcomes = sweep(SPACE, cohort, str(tmp_path), config=config)
        assert len(outcomes) == 3
        assert {o.experiment for o in outcomes} < set(SPACE.trials())
        assert {o.status for o in outcomes} == {"finished"}

    @pytest.mark.slow
    def test_trials_side_by_side_are_told_to_mlflow_and_tensorboard(
        self, cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        mlflow = pytest.importorskip("mlflow")
        pytest.importorskip("sqlalchemy")
        monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        monkeypatch.chdir(tmp_path)
        track = TrackConfig(tensorboard=True, mlflow="sqlite:///mlflow.db", mlflow_experiment="e")
        space = Space(experiments=("3D-None",), seeds=(0, 1), baselines=True, fit=FIT)
        outcomes = sweep(space, cohort, str(tmp_path / "out"), config=SMALL, track=track)
        assert {o.status for o in outcomes} == {"finished"}
        learned = [o for o in outcomes if o.experiment.name == "3D-None"]
        assert len(outcomes) > len(learned) == 2
        client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
        runs = client.search_runs([client.get_experiment_by_name("e").experiment_id])
        assert sorted(r.data.params["fit.seed"] for r in runs) == ["0", "1"]
        for run in runs:
            history = client.get_metric_history(run.info.run_id, "validation/reconstruction")
            assert [point.step for point in history] == [1, 2, 3]
            assert run.info.status == "FINISHED"
        assert all(list(Path(o.url, "tensorboard").iterdir()) for o in learned)

    def test_what_does_not_fit_the_cluster_is_refused(self, cohort: Cohort, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="64 CPUs"):
            sweep(SPACE, cohort, str(tmp_path), config=SweepConfig(cpus_per_trial=64))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("ray_session")
class TestSearches:
    def test_optuna_draws_new_points_and_goes_on_where_it_was(
        self, cohort: Cohort, tmp_path: Path
    ) -> None:
        space = Space(
            experiments=("3D-None", "3D-Cube-n"),
            latent_size=(4, 8, 16),
            learning_rate=(1e-4, 1e-3, 1e-2),
            baselines=False,
            fit=FIT,
        )
        first = SweepConfig(search="optuna", max_trials=3, max_failures=0)
        outcomes = sweep(space, cohort, str(tmp_path), config=first)
        assert len({o.experiment for o in outcomes}) == len(outcomes) == 3
        assert {o.status for o in outcomes} == {"finished"}
        assert {o.experiment for o in outcomes} < set(space.trials())
        kept = {p: p.stat().st_mtime_ns for p in tmp_path.glob("runs/*/summary.json")}
        # One of them was cut short.
        cut = Path(outcomes[1].url)
        (cut / "summary.json").unlink()
        kept.pop(cut / "summary.json")
        more = SweepConfig(search="optuna", max_trials=5, max_failures=0)
        again = sweep(space, cohort, str(tmp_path), config=more)
        assert [o.experiment for o in again][:3] == [o.experiment for o in outcomes]
        assert len({o.experiment for o in again}) == len(again) == 5
        assert {o.status for o in again} == {"finished"}
        assert all(p.stat().st_mtime_ns == written for p, written in kept.items())

    def test_optuna_ends_where_a_space_has_no_more(self, cohort: Cohort, tmp_path: Path) -> None:
        space = Space(experiments=("3D-None",), latent_size=(4, 8), baselines=False, fit=FIT)
        config = SweepConfig(search="optuna", max_trials=9, max_failures=0)
        outcomes = sweep(space, cohort, str(tmp_path), config=config)
        assert {o.experiment for o in outcomes} == set(space.trials())
        stands = state_of(tmp_path)
        assert (stands.total, stands.waiting, len(stands.having("finished"))) == (2, 0, 2)

    def test_labels_choose_only_when_asked_and_are_named(
        self, cohort: Cohort, tmp_path: Path
    ) -> None:
        lesioned = write_lesioned(tmp_path)
        stream = io.StringIO()
        console = Console(file=stream, force_terminal=False, width=200)
        config = SweepConfig(
            objective="auprc",
            labelled=lesioned.url,
            scheduler="asha",
            grace_epochs=1,
            max_failures=0,
        )
        space = Space(
            experiments=("3D-None", "Intensity"), latent_size=(4, 8), baselines=False, fit=FIT
        )
        out = str(tmp_path / "sweep")
        outcomes = sweep(space, cohort, out, config=config, console=console)
        assert all(o.objective is not None for o in outcomes)
        record = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
        assert record["objective"]["uses_labels"] is True
        assert "AUPRC on the threshold part of stroke" in record["objective"]["in_words"]
        ended = [o for o in outcomes if o.status == "finished"]
        assert "Intensity" in {o.experiment.name for o in ended}
        for outcome in ended:
            summary = Run.open(outcome.url).summary or {}
            assert summary["objective"]["uses_labels"]
            assert summary["objective"]["value"] == outcome.objective
            assert any("uses labels" in warning for warning in summary["warnings"])
        assert "AUPRC (uses labels)" in stream.getvalue()
        # It is what the evaluation finds on that part, and the evaluation is apart from it.
        for outcome in ended:
            assert not (Path(outcome.url) / "evaluation").exists()
        before = {o.url: o.objective for o in outcomes}
        again = sweep(space, cohort, out, config=config)
        assert {o.url: o.objective for o in again} == before

    def test_a_budget_of_hours_ends_a_sweep_that_then_goes_on(
        self, cohort: Cohort, tmp_path: Path
    ) -> None:
        # More epochs than any budget here has time for, and time for actors that start slowly.
        fit = FitConfig(epochs=20_000, batch_size=18, precision="float32", checkpoint_every=1)
        space = Space(
            experiments=("3D-None",), latent_size=(4,), seeds=(0, 1, 2), baselines=False, fit=fit
        )
        short = SweepConfig(max_hours=45 / 3600, max_failures=0)

        def fitted() -> dict[str, int]:
            outcomes = sweep(space, cohort, str(tmp_path), config=short)
            assert {o.status for o in outcomes} == {"unfinished"}
            opened = [Run.open(o.url) for o in outcomes if Path(o.url).exists()]
            epochs = {run.url: [record["epoch"] for record in run.metrics()] for run in opened}
            assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in epochs.values())
            return {url: len(numbers) for url, numbers in epochs.items()}

        before = fitted()
        assert max(before.values()) > 0
        again = fitted()
        # They went on from where they were, and repeated nothing.
        assert all(again[url] >= num for url, num in before.items())
        assert sum(again.values()) > sum(before.values())

    def test_epochs_go_to_tensorboard(self, cohort: Cohort, tmp_path: Path) -> None:
        space = Space(experiments=("3D-None", "PCA-4"), baselines=False, fit=FIT)
        track = TrackConfig(tensorboard=True)
        outcomes = sweep(space, cohort, str(tmp_path), config=SMALL, track=track)
        assert {o.status for o in outcomes} == {"finished"}
        learned = next(o for o in outcomes if o.experiment.name == "3D-None")
        assert list(Path(learned.url).glob("tensorboard/events.*"))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("ray_session")
def test_a_population_takes_over_and_says_so(cohort: Cohort, tmp_path: Path) -> None:
    outcomes = sweep(KNOBS, cohort, str(tmp_path), config=POPULATION)
    assert [o.status for o in outcomes] == ["finished"] * 4
    assert len({o.url for o in outcomes}) == 4
    record = json.loads((tmp_path / "sweep.json").read_text())
    lineages = [trial["lineage"] for trial in record["trials"]]
    assert all([span["epochs"] for span in line] == [[1, 1], [2, 2], [3, 3]] for line in lineages)
    taken = [
        span for line in lineages for span in line[1:] if span["from_member"] != span["member"]
    ]
    assert taken
    for outcome, line in zip(outcomes, lineages, strict=True):
        run = Run.open(outcome.url)
        assert [r["epoch"] for r in run.metrics()] == [1, 2, 3]
        assert run.experiment.fit.learning_rate == line[-1]["settings"]["fit.learning_rate"]
        assert json.loads((Path(run.url) / "config.json").read_text())["name"] == "3D-None-PBT"
        # What one went through after another's state, that one's record holds too.
        for before, span in itertools.pairwise(line):
            assert before["member"] == span["from_member"]
    written = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/**/summary.json")}
    assert len(written) == 4 * 3
    stands = state_of(tmp_path)
    assert [(t.url, t.status, t.epochs) for t in stands.trials] == [
        (o.url, "finished", 3) for o in outcomes
    ]
    again = sweep(KNOBS, cohort, str(tmp_path), config=POPULATION)
    assert again == outcomes
    assert {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/**/summary.json")} == written


NESTED = """
import sys
import time
import ray
from uadray.store import open_cohort
from uadray.tune.sweep import sweep
sys.path.insert(0, {tests!r})
from test_sweep import nested
space, config = nested()
outcomes = sweep(space, open_cohort(sys.argv[1]), sys.argv[2], config=config)
print("STATUS", sorted(o.status for o in outcomes))
held = [len(one["bundles"]) for one in ray.util.placement_group_table().values()]
print("GROUPS", held.count(2))
total = ray.cluster_resources()["CPU"]
deadline = time.monotonic() + 30
while ray.available_resources().get("CPU", 0) < total and time.monotonic() < deadline:
    time.sleep(0.5)
print("FREE", ray.available_resources().get("CPU", 0) == total)
"""


def nested() -> tuple[Space, SweepConfig]:
    """More trials of two workers than fit at a time, and ASHA that stops some."""
    fit = FitConfig(epochs=4, batch_size=12, precision="float32")
    space = Space(
        experiments=("3D-None",), learning_rate=(3e-3, 1e-3, 1e-6), baselines=False, fit=fit
    )
    config = SweepConfig(
        scheduler="asha",
        grace_epochs=1,
        reduction=2,
        workers_per_trial=2,
        cpus_per_trial=0.5,
        max_failures=0,
    )
    return space, config


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_session")
def test_trials_of_several_workers_stop_and_leave_no_cpu_held(
    cohort: Cohort, tmp_path: Path
) -> None:
    """Beside the session's Ray, so that two of them are on this machine."""
    done = start(NESTED, cohort, tmp_path / "out", tmp_path)
    out, _ = done.communicate(timeout=500)
    assert done.returncode == 0, out
    assert "FREE True" in out
    # The one that waited takes the group of another.
    assert f"GROUPS {min(3, os.cpu_count() or 1)}" in out
    ends = [Run.open(str(p)) for p in (tmp_path / "out" / "runs").iterdir()]
    assert len(ends) == 3
    assert {(run.summary or {})["status"] for run in ends} <= {"finished", "stopped"}
    for run in ends:
        summary = run.summary or {}
        assert summary["epochs"] == len(run.metrics()) >= 1
        assert (summary["epochs"] == 4) >= (summary["status"] == "finished")


SCRIPT = """
import sys
from uadray.store import open_cohort
from uadray.tune.sweep import sweep
sys.path.insert(0, {tests!r})
from test_sweep import KNOBS, POPULATION, SMALL, SPACE
space, config = (KNOBS, POPULATION) if {population} else (SPACE, SMALL)
sweep(space, open_cohort(sys.argv[1]), sys.argv[2], config=config)
"""


def start(script: str, cohort: Cohort, out: Path, folder: Path) -> subprocess.Popen[str]:
    """A sweep in a process of its own, with a Ray of its own."""
    path = folder / f"run-{out.name}.py"
    path.write_text(script.replace("{tests!r}", repr(str(Path(__file__).parent))))
    environment = {
        **os.environ,
        "PYTHONPATH": f"{Path(__file__).parents[1]}:{Path(__file__).parents[2]}",
        "OMP_NUM_THREADS": "1",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    }
    environment.pop("RAY_ADDRESS", None)
    return subprocess.Popen(
        [sys.executable, str(path), cohort.url, str(out)],
        env=environment,
        start_new_session=True,
        stdout=subprocess.PIPE,
        text=True,
    )


def ended(out: Path) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in out.glob("*/**/summary.json")}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("kind", ["grid", "population"])
def test_a_killed_sweep_goes_on_and_ends_the_same(
    cohort: Cohort, tmp_path: Path, kind: str
) -> None:
    script = SCRIPT.replace("{population}", str(kind == "population"))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert start(script, cohort, whole, tmp_path).wait(900) == 0
    total, moments = len(ended(whole)), random.Random()
    for _ in range(2):
        before = ended(cut)
        killed = start(script, cohort, cut, tmp_path)
        # After a finished trial, at whatever moment of the next ones.
        deadline = time.monotonic() + 600
        while len(ended(cut)) <= len(before):
            assert time.monotonic() < deadline
            assert killed.poll() is None, "it ended before it could be killed"
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 1))
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        done = ended(cut)
        assert all(done[path] == written for path, written in before.items())
    assert 0 < len(done) < total
    assert start(script, cohort, cut, tmp_path).wait(900) == 0
    after = ended(cut)
    for path, written in done.items():
        assert after[path] == written, f"{path} was finished and was fitted again"
    names = sorted(p.name for p in (whole / "runs").iterdir())
    assert names == sorted(p.name for p in (cut / "runs").iterdir())
    lesioned = write_lesioned(tmp_path)
    for name in names:
        runs = [Run.open(str(out / "runs" / name)) for out in (whole, cut)]
        weights = [
            load_file(next(Path(r.url).glob("checkpoint/epoch-00003/model.safetensors")))
            for r in runs
        ]
        assert all((weights[0][key] == weights[1][key]).all() for key in weights[0])
        figures = [evaluate([run], lesioned)[0]["metrics"] for run in runs]
        assert figures[0] == figures[1]
