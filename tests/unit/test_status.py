"""How runs and sweeps stand, by what their folders hold; on any storage, and while they change."""

import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from uadray import files
from uadray.config import experiment, to_json
from uadray.errors import ConfigError, RunError
from uadray.jobs.status import Status, main
from uadray.lock import Holder, hold
from uadray.status import state as states
from uadray.status.follow import exit_code, follow
from uadray.status.state import RunState, SweepState, read_state
from uadray.status.view import line, view

ROOT = Path(__file__).parents[2]


def write_run(
    url: str,
    *,
    name: str = "3D-None",
    losses: tuple[float, ...] = (),
    fit_epochs: int = 10,
    **summary: Any,
) -> str:
    """A run folder of which some epochs have ended."""
    settings = to_json(experiment(name))
    settings["fit"]["epochs"] = fit_epochs
    config = {
        "name": name,
        "experiment": settings,
        "fingerprint": "f",
        "cohort": {"name": "healthy", "url": "c", "fingerprint": "c", "shape": [8, 8, 8]},
    }
    files.write_json(files.join(url, "config.json"), config)
    records = [
        {"epoch": k, "train/reconstruction": 2 * v, "validation/reconstruction": v, "seconds": 2.0}
        for k, v in enumerate(losses, start=1)
    ]
    text = "".join(json.dumps(record) + "\n" for record in records)
    files.write_bytes(files.join(url, "metrics.jsonl"), text.encode())
    if summary:
        files.write_json(files.join(url, "summary.json"), summary)
    return url


def write_sweep(
    url: str, *, total: int | None = None, has_ended: bool = False, uses_labels: bool = False
) -> str:
    """A sweep's plan of four trials of one setting."""
    trials = [
        {"run": f"runs/t{k}", "name": "3D-None", "epochs": 10, "settings": {"fit.seed": k}}
        for k in range(4)
    ]
    objective = {"head": "healthy L1", "sign": 1, "uses_labels": False}
    if uses_labels:
        objective = {"head": "Dice_D (uses labels)", "sign": -1, "uses_labels": True}
    plan = {
        "total": len(trials) if total is None else total,
        "has_ended": has_ended,
        "varied": ["fit.seed"],
        "objective": objective,
        "trials": trials,
    }
    files.write_json(files.join(url, "plan.json"), plan)
    return url


def text_of(state: Any, width: int = 140) -> str:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False).print(view(state), soft_wrap=True)
    return out.getvalue()


def run_state(url: str) -> RunState:
    state = read_state(url)
    assert isinstance(state, RunState)
    return state


def sweep_state(url: str) -> SweepState:
    state = read_state(url)
    assert isinstance(state, SweepState)
    return state


class TestRun:
    def test_one_that_a_job_is_writing(self, tmp_path: Path) -> None:
        url = write_run(str(tmp_path / "run"), losses=(0.5, 0.3, 0.4))
        with hold(url):
            state = run_state(url)
        assert state.status == "running"
        assert (state.epoch, state.epochs, state.best) == (3, 10, (2, 0.3))
        assert (state.seconds_per_epoch, state.seconds_left) == (2.0, 14.0)
        assert state.job is not None
        assert state.job.holder.pid == os.getpid()
        assert not state.quiet
        assert state.age is not None
        assert state.age < 60
        text = text_of(state)
        assert "3D-None on healthy: running, epoch 3 of 10" in text
        assert "train L1 0.8000, validation L1 0.4000" in text
        assert "about 0:14 left" in text
        assert exit_code(state) == 0
        expected = (
            "3D-None on healthy: running, epoch 3 of 10; train L1 0.8000, validation L1 0.4000; "
            "about 0:14 left"
        )
        assert line(state) == expected

    def test_one_that_nobody_writes(self, tmp_path: Path) -> None:
        state = run_state(write_run(str(tmp_path / "run"), losses=(0.5,)))
        assert state.status == "unfinished"
        assert state.quiet == "no job is writing it: the same command again goes on"

    def test_one_whose_job_was_killed(self, tmp_path: Path) -> None:
        url = write_run(str(tmp_path / "run"), losses=(0.5,))
        dead = subprocess.Popen(["true"])
        dead.wait()
        holder = replace(Holder.here(), pid=dead.pid, mark="another")
        (tmp_path / "run" / ".lock").write_bytes(holder.encode())
        state = run_state(url)
        assert state.status == "unfinished"
        assert f"its process, {dead.pid} on {holder.host}, has ended" in state.quiet

    def test_one_that_writes_nothing_any_more(self, tmp_path: Path) -> None:
        """It is said what is seen, not that it is dead."""
        url = write_run(str(tmp_path / "run"), losses=(0.5,))
        past = time.time() - 12 * 60
        with hold(url):
            for name in ("config.json", "metrics.jsonl"):
                os.utime(tmp_path / "run" / name, (past, past))
            state = run_state(url)
        assert state.quiet == "nothing written for 12 min"
        assert "nothing written for 12 min" in line(state)

    def test_a_long_epoch_is_no_silence(self, tmp_path: Path) -> None:
        url = write_run(str(tmp_path / "run"))
        record = {"epoch": 1, "train/loss": 1.0, "seconds": 3600.0}
        (tmp_path / "run" / "metrics.jsonl").write_text(json.dumps(record))
        past = time.time() - 2 * 3600
        with hold(url):
            for name in ("config.json", "metrics.jsonl"):
                os.utime(tmp_path / "run" / name, (past, past))
            assert run_state(url).quiet == ""

    def test_one_of_another_machine_that_no_longer_answers(self, tmp_path: Path) -> None:
        url = write_run(str(tmp_path / "run"), losses=(0.5,))
        holder = replace(Holder.here(), machine="another", host="node7", mark="another")
        lock = tmp_path / "run" / ".lock"
        lock.write_bytes(holder.encode())
        assert run_state(url).status == "running"
        past = time.time() - 185
        os.utime(lock, (past, past))
        assert run_state(url).quiet == "its job has not said for 3 min that it lives"

    def test_one_that_has_ended(self, tmp_path: Path) -> None:
        url = write_run(
            str(tmp_path / "run"), losses=(0.5, 0.3), status="finished", warnings=["collapsed"]
        )
        figures = {"metrics": {"dice_d": 0.4567, "auprc": None}}
        files.write_json(f"{url}/evaluation/stroke.json", figures)
        files.write_json(f"{url}/evaluation/stroke-threshold.json", {})
        (tmp_path / "run" / "evaluation" / "torn.json").write_text("{")
        state = run_state(url)
        assert (state.status, state.quiet, state.seconds_left) == ("finished", "", None)
        text = text_of(state)
        assert "stroke: Dice_D 0.457" in text
        assert "torn: no figures" in text
        assert "collapsed" in text
        assert exit_code(state) == 0

    def test_one_that_has_failed(self, tmp_path: Path) -> None:
        url = write_run(
            str(tmp_path / "run"), status="failed", error="NotFiniteError: s3://me:hunter2@b no"
        )
        state = run_state(url)
        assert exit_code(state) == 1
        assert "NotFiniteError" in text_of(state)
        assert "hunter2" not in text_of(state)

    def test_one_that_learns_without_epochs(self, tmp_path: Path) -> None:
        url = write_run(str(tmp_path / "run"), name="PCA-4")
        assert run_state(url).epochs is None
        write_run(url, name="PCA-4", status="finished", epochs=0)
        assert "finished" in text_of(run_state(url))

    def test_games_have_losses_of_their_own(self, tmp_path: Path) -> None:
        url = write_run(str(tmp_path / "run"))
        record = {"epoch": 1, "train/critic/loss": 1.5, "train/coder/loss": 0.25, "seconds": 1.0}
        (tmp_path / "run" / "metrics.jsonl").write_text(json.dumps(record))
        assert "critic 1.5000, coder 0.2500" in text_of(run_state(url))

    def test_on_a_remote_storage(self) -> None:
        url = write_run("memory://status/run", losses=(0.5,), status="finished")
        state = run_state(f"{url}/")
        assert (state.status, state.epoch) == ("finished", 1)
        assert state.age is not None


class TestSweep:
    def test_one_that_is_running(self, tmp_path: Path) -> None:
        url = write_sweep(str(tmp_path / "latent"), total=6)
        write_run(f"{url}/runs/t0", losses=(0.5, 0.2), status="finished")
        write_run(f"{url}/runs/t1", losses=(0.5,), status="failed", error="NotFiniteError: NaN")
        write_run(f"{url}/runs/t2", losses=(0.4, 0.3))
        write_run(f"{url}/runs/drawn", losses=(0.9,))
        with hold(url), hold(f"{url}/runs/t2"), hold(f"{url}/runs/drawn"):
            state = sweep_state(url)
        assert len(state.trials) == 5
        assert state.waiting == 2
        assert not state.quiet
        assert state.best is not None
        assert state.best.url.endswith("t0")
        # 8 and 9 epochs of those that run, 10 of one that waits and of one to draw, by two.
        assert state.seconds_left == 2 * (8 + 9 + 10 + 10) / 2
        text = text_of(state)
        assert "latent: 6 trials: 1 finished, 1 failed, 2 running, 2 waiting" in text
        assert "best healthy L1 0.2000: 3D-None seed=0" in text
        assert "failed: 3D-None seed=1: NotFiniteError: NaN" in text
        assert re.search(r"3D-None seed=2 .* 2/10 .* 0\.3000", text)
        assert exit_code(state) == 0
        assert "about 0:37 left at most" in line(state)

    def test_one_that_has_ended_well(self, tmp_path: Path) -> None:
        url = write_sweep(str(tmp_path / "s"), has_ended=True)
        for k, status in enumerate(("finished", "stopped", "finished", "stopped")):
            write_run(f"{url}/runs/t{k}", losses=(0.5,), status=status)
        state = sweep_state(url)
        assert (exit_code(state), state.quiet, state.seconds_left) == (0, "", None)
        assert "s, ended: 4 trials: 2 finished, 2 stopped" in text_of(state)

    @pytest.mark.parametrize("last", ["failed", "unfinished", "waiting", "damaged"])
    def test_one_that_has_ended_incomplete(self, tmp_path: Path, last: str) -> None:
        url = write_sweep(str(tmp_path / "s"), has_ended=True)
        for k in range(3):
            write_run(f"{url}/runs/t{k}", losses=(0.5,), status="finished")
        if last != "waiting":
            write_run(f"{url}/runs/t3", **({"status": "failed"} if last == "failed" else {}))
        if last == "damaged":
            Path(f"{url}/runs/t3/config.json").write_text("{")
        state = sweep_state(url)
        assert exit_code(state) == 3
        assert ("not started" if last == "waiting" else last) in text_of(state)

    def test_a_folder_that_is_just_being_made_is_no_damage(self, tmp_path: Path) -> None:
        url = write_sweep(str(tmp_path / "s"))
        for name in ("t0", "t9"):
            with hold(f"{url}/runs/{name}"):
                state = sweep_state(url)
            assert {trial.status for trial in state.trials} == {"waiting"}
        write_run(f"{url}/runs/t1", losses=(0.5,), status="finished")
        Path(f"{url}/runs/t1/config.json").unlink()
        assert [trial.status for trial in sweep_state(url).trials][1] == "damaged"

    def test_a_baseline_is_best_only_among_its_like(self, tmp_path: Path) -> None:
        url = write_sweep(str(tmp_path / "s"))
        summary = {"epochs": 0, "validation/reconstruction": 0.01}
        write_run(f"{url}/runs/PCA", name="PCA-4", status="finished", **summary)
        best = sweep_state(url).best
        assert best is not None
        assert best.name == "PCA-4 seed=0"
        write_run(f"{url}/runs/t0", losses=(0.5,))
        best = sweep_state(url).best
        assert best is not None
        assert best.url.endswith("t0")

    def test_labels_decide_where_they_are_asked_for(self, tmp_path: Path) -> None:
        url = write_sweep(str(tmp_path / "s"), uses_labels=True)
        for k, dice in enumerate((0.3, 0.6)):
            objective = {"value": dice}
            write_run(f"{url}/runs/t{k}", losses=(0.1,), status="finished", objective=objective)
        state = sweep_state(url)
        assert state.best is not None
        assert state.best.url.endswith("t1")
        assert "best Dice_D (uses labels) 0.6000" in text_of(state)

    def test_members_of_a_population_are_where_their_generation_is(self, tmp_path: Path) -> None:
        url = write_sweep(str(tmp_path / "s"))
        trials = [
            {"run": f"runs/P-m0{k}", "name": "3D-None", "epochs": 30, "settings": {}}
            for k in range(3)
        ]
        plan = json.loads((tmp_path / "s" / "plan.json").read_text())
        files.write_json(f"{url}/plan.json", plan | {"trials": trials, "total": 3})
        for k in range(3):
            write_run(
                f"{url}/population/P/g00-m0{k}",
                losses=(0.5,) * 10,
                status="finished",
                fit_epochs=10,
            )
        write_run(f"{url}/population/P/g01-m01", losses=(0.5,) * 15, fit_epochs=20)
        write_run(f"{url}/runs/P-m02", losses=(0.4,) * 30, fit_epochs=30, status="finished")
        state = sweep_state(url)
        found = {Path(t.url).name: (t.status, t.epoch, t.epochs) for t in state.trials}
        assert found == {
            "g00-m00": ("running", 10, 30),
            "g01-m01": ("unfinished", 15, 30),
            "P-m02": ("finished", 30, 30),
        }

    def test_one_of_an_earlier_version(self, tmp_path: Path) -> None:
        """It has no plan; the record of its end, or nothing but runs."""
        url = str(tmp_path / "old")
        write_run(f"{url}/runs/a", losses=(0.5,), status="finished")
        state = sweep_state(url)
        assert (state.total, state.has_ended) == (None, False)
        record = {
            "varied": ["fit.seed"],
            "objective": {"name": "reconstruction", "uses_labels": False},
            "trials": [{"run": f"{url}/runs/a"}],
        }
        files.write_json(f"{url}/sweep.json", record)
        state = sweep_state(url)
        assert (state.total, state.has_ended, exit_code(state)) == (1, True, 0)
        assert "seed=0" in text_of(state)

    def test_ended_trials_are_read_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        url = write_sweep(str(tmp_path / "s"))
        for k in range(4):
            done = {"status": "finished"} if k else {}
            write_run(f"{url}/runs/t{k}", losses=(0.5,), **done)
        known: states.Known = {}
        read_state(url, known)
        reads, real = list[str](), states.read_run
        monkeypatch.setattr(
            states, "read_run", lambda url, label: reads.append(url) or real(url, label)
        )
        read_state(url, known)
        assert [Path(read).name for read in reads] == ["t0"]


class TestFollow:
    def steps(self, *changes: Callable[[], object]) -> Callable[[float], None]:
        """What happens while it waits; it may wait no more often."""
        left = list(changes)
        return lambda seconds: left.pop(0)() and None

    def console(self, *, terminal: bool = False) -> tuple[Console, io.StringIO]:
        out = io.StringIO()
        console = Console(file=out, width=160, force_terminal=terminal, highlight=False)
        return console, out

    def test_a_log_has_a_line_for_each_change(self, tmp_path: Path) -> None:
        url = str(tmp_path / "run")
        write_run(url, losses=(0.5,))
        sleep = self.steps(
            lambda: None,
            lambda: write_run(url, losses=(0.5, 0.4)),
            lambda: None,
            lambda: write_run(url, losses=(0.5, 0.4, 0.3), status="finished"),
        )
        console, out = self.console()
        with hold(url):
            assert follow(url, 1, console=console, sleep=sleep) == 0
        lines = out.getvalue().splitlines()
        assert [re.findall(r"(\w+), epoch (\d)", text)[0] for text in lines] == [
            ("running", "1"),
            ("running", "2"),
            ("finished", "3"),
        ]

    def test_a_fit_that_fails_ends_it_with_another_code(self, tmp_path: Path) -> None:
        url = write_run(str(tmp_path / "run"))
        sleep = self.steps(lambda: write_run(url, status="failed", error="no"))
        console, out = self.console(terminal=True)
        assert follow(url, 1, console=console, sleep=sleep) == 1
        assert "failed" in out.getvalue()

    def test_a_sweep_is_followed_to_its_end(self, tmp_path: Path) -> None:
        url = write_sweep(str(tmp_path / "s"))

        def end() -> None:
            write_run(f"{url}/runs/t3", losses=(0.2,), status="failed", error="no")
            write_sweep(url, has_ended=True)

        for k in range(3):
            write_run(f"{url}/runs/t{k}", losses=(0.5,), status="finished")
        sleep = self.steps(lambda: None, lambda: write_run(f"{url}/runs/t3"), lambda: None, end)
        console, out = self.console()
        assert follow(url, 1, console=console, sleep=sleep) == 3
        lines = out.getvalue().splitlines()
        assert len(lines) == 3
        assert "s, ended: 4 trials: 3 finished, 1 failed" in lines[-1]

    def test_a_store_that_is_away_for_a_moment_does_not_end_it(self, tmp_path: Path) -> None:
        url = str(tmp_path / "run")
        write_run(url, losses=(0.5,))

        def away() -> None:
            Path(url).rename(tmp_path / "elsewhere")

        def back() -> None:
            (tmp_path / "elsewhere").rename(url)
            write_run(url, losses=(0.5,), status="finished")

        for terminal in (False, True):
            console, out = self.console(terminal=terminal)
            (tmp_path / "run" / "summary.json").unlink(missing_ok=True)
            sleep = self.steps(away, lambda: None, back)
            assert follow(url, 1, console=console, sleep=sleep) == 0
            assert "cannot be read at the moment" in out.getvalue()


class TestCommand:
    @pytest.mark.parametrize("make", [False, True])
    def test_a_folder_that_is_neither_is_named(self, tmp_path: Path, make: bool) -> None:
        folder = tmp_path / "else"
        if make:
            folder.mkdir()
            (folder / "notes.txt").write_text("x")
        with pytest.raises(RunError, match=r"else .*expected a folder with config\.json"):
            read_state(str(folder))

    def test_a_file_is_named(self, tmp_path: Path) -> None:
        run = write_run(str(tmp_path / "run"))
        with pytest.raises(RunError, match="is a file"):
            read_state(f"{run}/config.json")

    def test_every_is_bounded(self) -> None:
        for every in (0.0, -1.0, float("nan"), float("inf")):
            with pytest.raises(ConfigError, match="--every"):
                Status(path="x", every=every)

    def test_it_prints_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        url = write_run(str(tmp_path / "run"), losses=(0.5,), status="failed", error="no [room]")
        monkeypatch.setattr(sys, "argv", ["status.py", url])
        assert main() == 1
        assert "no [room]" in capsys.readouterr().out

    @pytest.mark.parametrize("command", [["-m", "uadray", "status"], ["jobs/status.py"]])
    def test_it_loads_nothing_heavy(self, tmp_path: Path, command: list[str]) -> None:
        url = write_sweep(str(tmp_path / "s"))
        write_run(f"{url}/runs/t0", losses=(0.5,))
        done = subprocess.run(
            [sys.executable, "-X", "importtime", *command, url],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert "4 trials: 1 unfinished, 3 waiting" in done.stdout
        loaded = {text.split("|")[-1].strip().split(".")[0] for text in done.stderr.splitlines()}
        assert "uadray" in loaded
        assert not loaded & {"ray", "torch", "pandas", "zarr", "numpy", "scipy", "pyarrow"}

    def test_the_console_names_its_verb(self) -> None:
        def call(*args: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "uadray", *args]
            return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

        assert call("--help").returncode == 0
        assert "status" in call("--help").stdout
        assert call().returncode == 2
        assert "uadray status" in call("status", "--help").stdout
        done = call("status", "no-such-folder")
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
