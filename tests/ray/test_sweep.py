"""A sweep through Ray Tune: more trials than CPUs, one that fails, one that is killed."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import load_file
from tiny_cohorts import write_healthy

from uadray.config import FitConfig
from uadray.errors import ConfigError
from uadray.store import Cohort
from uadray.train.run import Run
from uadray.tune.space import Space
from uadray.tune.sweep import Outcome, SweepConfig, sweep

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

FIT = FitConfig(epochs=3, batch_size=18, precision="float32")
SPACE = Space(
    experiments=("3D-None", "3D-Cube-n"), latent_size=(4, 8), seeds=(0, 1), baselines=False, fit=FIT
)
SMALL = SweepConfig(cpus_per_trial=1.0, max_failures=0)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return write_healthy(tmp_path_factory.mktemp("cohort"))


def figures(outcomes: list[Outcome]) -> dict[str, float]:
    runs = {o.url.rsplit("/", 1)[-1]: Run.open(o.url).summary or {} for o in outcomes}
    return {name: summary["validation/reconstruction"] for name, summary in runs.items()}


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
        told = io.StringIO()
        console = Console(file=told, force_terminal=False, width=200)
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
        lines = told.getvalue().splitlines()
        assert any(line.startswith("8 of 8 trials: ") for line in lines)
        assert sum("FAILED" in line and "NotFiniteError" in line for line in lines) == 2
        record = json.loads((tmp_path / "sweep.json").read_text())
        assert [t["status"] for t in record["trials"]] == [o.status for o in outcomes]
        assert record["varied"] == ["experiment", "fit.learning_rate", "fit.seed"]

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

    def test_random_search_is_a_seeded_part_of_the_grid(
        self, cohort: Cohort, tmp_path: Path
    ) -> None:
        config = SweepConfig(search="random", max_trials=3, seed=5, max_failures=0)
        outcomes = sweep(SPACE, cohort, str(tmp_path), config=config)
        assert len(outcomes) == 3
        assert {o.experiment for o in outcomes} < set(SPACE.trials())
        assert {o.status for o in outcomes} == {"finished"}

    def test_what_does_not_fit_the_cluster_is_refused(self, cohort: Cohort, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="64 CPUs"):
            sweep(SPACE, cohort, str(tmp_path), config=SweepConfig(cpus_per_trial=64))


SCRIPT = """
import sys
from uadray.store import open_cohort
from uadray.tune.sweep import sweep
sys.path.insert(0, {tests!r})
from test_sweep import SMALL, SPACE
sweep(SPACE, open_cohort(sys.argv[1]), sys.argv[2], config=SMALL)
"""


@pytest.mark.slow
def test_a_killed_sweep_goes_on_and_ends_the_same(cohort: Cohort, tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    environment = {
        **os.environ,
        "PYTHONPATH": f"{Path(__file__).parents[1]}:{Path(__file__).parents[2]}",
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("RAY_ADDRESS", None)

    def start(out: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, str(script), cohort.url, str(out)],
            env=environment,
            start_new_session=True,
        )

    undisturbed = start(tmp_path / "whole")
    assert undisturbed.wait(240) == 0
    killed = start(tmp_path / "cut")
    runs = tmp_path / "cut" / "runs"
    deadline = time.monotonic() + 200
    while len(list(runs.glob("*/summary.json"))) < 2:
        assert time.monotonic() < deadline
        assert killed.poll() is None, "it ended before it could be killed"
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    done = {p: p.stat().st_mtime_ns for p in runs.glob("*/summary.json")}
    assert 0 < len(done) < 8
    assert start(tmp_path / "cut").wait(240) == 0
    for path, written in done.items():
        assert path.stat().st_mtime_ns == written, f"{path} was finished and was fitted again"
    names = sorted(p.name for p in runs.iterdir())
    assert names == sorted(p.name for p in (tmp_path / "whole" / "runs").iterdir())
    for name in names:
        first, second = (tmp_path / which / "runs" / name for which in ("whole", "cut"))
        weights = [
            load_file(next((r / "checkpoint").glob("epoch-00003/model.safetensors")))
            for r in (first, second)
        ]
        assert all((weights[0][key] == weights[1][key]).all() for key in weights[0])
