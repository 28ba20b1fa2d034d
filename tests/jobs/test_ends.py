"""How jobs end that are asked to, by what supervisors and `ray job stop` send."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from shell import JOBS
from tiny_cohorts import write_healthy

from tests.waiting import wait_until

pytestmark = pytest.mark.ray


@pytest.fixture
def cohort(tmp_path: Path) -> str:
    return write_healthy(tmp_path).url


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a job in a process group of its own, as a scheduler does."""
    started: list[subprocess.Popen[str]] = []

    def one(*args: str) -> subprocess.Popen[str]:
        environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        job, *rest = args
        process = subprocess.Popen(
            [sys.executable, str(JOBS / f"{job}.py"), *rest],
            cwd=tmp_path,
            env=environment | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield one
    for process in started:
        process.kill()
        process.wait()


def end(
    process: subprocess.Popen[str],
    number: signal.Signals = signal.SIGTERM,
    *,
    while_ray_starts: bool = False,
) -> str:
    process.send_signal(number)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 128 + number, output
    assert "interrupted; run the same command again to go on" in output
    assert while_ray_starts or "SIGTERM received" not in output, "crash frames of Ray"
    assert "Traceback" not in output
    return output


def test_a_fit_in_process(start, cohort: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(
        *("train", "3D-None", "--cohort", cohort, "--out", str(run), "--fit.epochs", "100000")
    )
    wait_until(lambda: (run / "metrics.jsonl").exists() or process.poll() is not None)
    end(process)
    assert not (run / "summary.json").exists()
    assert not (run / ".lock").exists()


@pytest.mark.slow
def test_a_fit_in_a_group(start, cohort: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(
        *("train", "3D-None", "--cohort", cohort, "--out", str(run)),
        *("--fit.epochs", "100000", "--scale.num-workers", "2"),
    )
    wait_until(lambda: (run / "metrics.jsonl").exists() or process.poll() is not None)
    end(process)
    assert not (run / ".lock").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_sweep(start, cohort: str, tmp_path: Path, number: signal.Signals) -> None:
    """Tune has a handler of its own for interrupts, and advice of its own on how to go on."""
    sweep = tmp_path / "sweep"
    process = start(
        *("tune", "smoke", "--cohort", cohort, "--out", str(sweep)),
        *("--space.experiments", "3D-None", "--space.fit.epochs", "100000"),
    )
    wait_until(lambda: any(sweep.glob("runs/*/metrics.jsonl")) or process.poll() is not None)
    assert "Tuner.restore" not in end(process, number)
    assert not (sweep / ".lock").exists()


def test_before_it_has_begun(start, cohort: str, tmp_path: Path) -> None:
    """While Ray starts, which has a handler of its own for the time."""
    run = tmp_path / "run"
    process = start("train", "3D-None", "--cohort", cohort, "--out", str(run))
    wait_until(lambda: (run / "config.json").exists() or process.poll() is not None)
    end(process, while_ray_starts=True)
