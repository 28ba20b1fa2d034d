"""Jobs that `ray job submit` brings to a cluster with token authentication."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from tiny_cohorts import write_healthy, write_lesioned

from uadray.report import load_runs

pytestmark = pytest.mark.ray

REPOSITORY = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@dataclass(frozen=True, kw_only=True)
class Head:
    """A cluster of one node, apart from any other Ray on this machine."""

    url: str
    environment: dict[str, str]

    def submit(self, *command: object) -> subprocess.CompletedProcess[str]:
        """Run a job from the repository to its end."""
        options = ["--address", self.url, "--working-dir", str(REPOSITORY), "--"]
        return subprocess.run(
            [str(BIN / "ray"), "job", "submit", *options, *map(str, command)],
            cwd="/",
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    def jobs(self) -> list[dict[str, Any]]:
        """What the cluster knows of its jobs, oldest first."""
        token = self.environment["RAY_AUTH_TOKEN"]
        headers = {"Authorization": f"Bearer {token}"}
        request = urllib.request.Request(f"{self.url}/api/jobs/", headers=headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return sorted(json.load(answer), key=lambda job: job["start_time"])


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    # Sockets lie in it, whose paths must be short.
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    gcs, dashboard, agent, client = free_ports(4)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    options = {
        "port": gcs,
        "dashboard-port": dashboard,
        "dashboard-agent-listen-port": agent,
        "ray-client-server-port": client,
        "num-cpus": 3,
        "object-store-memory": 300_000_000,
        "temp-dir": folder,
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    log = folder / "head.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [str(BIN / "ray"), "start", "--head", "--block", *flags],
            env=environment,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    try:
        found = Head(url=f"http://127.0.0.1:{dashboard}", environment=environment)
        wait_for(found, process, log)
        yield found
    finally:
        stop(process)
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(head: Head, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError):
            head.jobs()
            return
        time.sleep(0.5)
    pytest.fail(f"the cluster does not answer at {head.url}:\n{log.read_text()}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End this cluster alone; `ray stop` would end every Ray on the machine."""
    parent = psutil.Process(process.pid)
    tree = [*parent.children(recursive=True), parent]
    parent.terminate()
    _, alive = psutil.wait_procs(tree, timeout=10)
    for each in alive:
        each.kill()
    process.wait()
    psutil.wait_procs(alive, timeout=10)


def test_train_and_evaluate(head: Head, tmp_path: Path) -> None:
    healthy, lesioned = write_healthy(tmp_path), write_lesioned(tmp_path)
    run = tmp_path / "runs" / "3D-None"
    fit = ("--fit.epochs", 2, "--fit.batch-size", 12, "--fit.precision", "float32")
    train = head.submit(
        *("python", "jobs/train.py", "3D-None", "--cohort", healthy.url, "--out", run), *fit
    )
    assert train.returncode == 0, train.stdout
    assert f"3D-None: run folder {run}" in train.stdout
    assert json.loads((run / "summary.json").read_text())["epochs"] == 2
    evaluate = head.submit(
        *("python", "jobs/evaluate.py", run, "--cohort", lesioned.url, "--num-resamples", 20)
    )
    assert evaluate.returncode == 0, evaluate.stdout
    assert "12 of 12 volumes" in evaluate.stdout
    (record,) = load_runs([str(run)])
    assert record.evaluations[0].metric("auprc") is not None
    # A job that had started a Ray of its own would have no driver in this cluster.
    assert [job["status"] for job in head.jobs()] == ["SUCCEEDED"] * 2
    assert all(job["driver_info"] for job in head.jobs())


def test_a_failure_is_an_exit_code(head: Head, tmp_path: Path) -> None:
    absent = tmp_path / "absent.zarr"
    done = head.submit("python", "jobs/train.py", "PCA-4", "--cohort", absent, "--out", "/nowhere")
    assert done.returncode == 1
    assert f"error: {absent}" in done.stdout
    assert "Traceback" not in done.stdout.split("error: ")[1].splitlines()[0]
    assert head.jobs()[-1]["status"] == "FAILED"


def test_without_the_token_nothing_is_run(head: Head) -> None:
    before = len(head.jobs())
    stranger = {k: v for k, v in head.environment.items() if k != "RAY_AUTH_TOKEN"}
    stranger["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    done = Head(url=head.url, environment=stranger).submit("python", "-c", "print('in')")
    assert done.returncode == 1
    assert len(head.jobs()) == before
