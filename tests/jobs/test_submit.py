"""Jobs that `ray job submit` brings to a cluster with token authentication."""

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import fsspec
import psutil
import pytest
from moto.server import ThreadedMotoServer
from tiny_cohorts import write_healthy, write_lesioned
from tiny_scans import brain_image, write

from tests.waiting import wait_until
from uadray import files
from uadray.progress import PLAIN_EVERY_S
from uadray.runs.folder import Run
from uadray.store import open_cohort

pytestmark = pytest.mark.ray

REPOSITORY = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
PLANTED = "planted-7f3a91c4"
"""In every secret of the cluster's environment, so that it is found wherever it leaks to."""


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

    def submit(
        self, *command: object, options: tuple[str, ...] = (), folder: Path | str = "/"
    ) -> subprocess.CompletedProcess[str]:
        """Run a job to its end; from the repository's files unless `options` say otherwise."""
        given = options or ("--working-dir", str(REPOSITORY))
        return self.ray("job", "submit", *given, "--", *command, folder=folder)

    def ray(self, *words: object, folder: Path | str = "/") -> subprocess.CompletedProcess[str]:
        """Run a command of Ray to its end."""
        kind, verb, *rest = map(str, words)
        return subprocess.run(
            [str(BIN / "ray"), kind, verb, "--address", self.url, *rest],
            cwd=folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    def ask(self, path: str, **headers: str) -> Any:
        """What the cluster's Jobs API answers."""
        request = urllib.request.Request(f"{self.url}/api/{path}", headers=headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def jobs(self) -> list[dict[str, Any]]:
        """What the cluster knows of its jobs, oldest first."""
        token = self.environment["RAY_AUTH_TOKEN"]
        jobs = self.ask("jobs/", Authorization=f"Bearer {token}")
        return sorted(jobs, key=lambda job: job["start_time"])

    def wait(self, name: str, seconds: float = 120) -> str:
        """Wait until a job has ended; return its status."""

        def job() -> dict[str, Any]:
            return next(job for job in self.jobs() if job["submission_id"] == name)

        wait_until(lambda: job()["status"] not in ("PENDING", "RUNNING"), seconds, name)
        return str(job()["status"])


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    # Sockets lie in it, whose paths must be short.
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    gcs, dashboard, agent, client, storage = free_ports(5)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": PLANTED + secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{storage}",
        "AWS_ACCESS_KEY_ID": f"{PLANTED}-id",
        "AWS_SECRET_ACCESS_KEY": f"{PLANTED}-key",
        "AWS_DEFAULT_REGION": "us-east-1",
        "HF_TOKEN": f"{PLANTED}-other",
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
        started = Head(url=f"http://127.0.0.1:{dashboard}", environment=environment)
        wait_for(started, process, log)
        yield started
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


FIT = ("--fit.epochs", 2, "--fit.batch-size", 12, "--fit.precision", "float32")


def printed_lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What the job itself printed, without Ray's own lines around it."""
    _, _, text = done.stdout.partition("Tailing logs until the job exits")
    ours = [line for line in text.splitlines()[1:] if line.strip()]
    return [line for line in ours if not re.match(r"-{3,}|\x1b|Job '|.*\bINFO\b|.*\(.*pid=", line)]


def check_log(done: subprocess.CompletedProcess[str], seconds: float, ends: int = 25) -> None:
    """A log is short (a bar drawn over itself is a line a time), plain, and holds no secret."""
    lines = printed_lines(done)
    assert len(lines) <= ends + seconds / PLAIN_EVERY_S, done.stdout
    # Ray colours its own lines; ours are plain.
    assert not [line for line in lines if re.search(r"\d+ of \d+ ", line) and "\x1b" in line]
    assert PLANTED not in done.stdout


def leaks(folder: Path) -> list[Path]:
    """Files in which a planted secret stands."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in paths if PLANTED.encode() in path.read_bytes()]


def test_train(head: Head, tmp_path: Path) -> None:
    healthy = write_healthy(tmp_path)
    run = tmp_path / "runs" / "3D-None"
    started = time.monotonic()
    done = head.submit(
        *("python", "jobs/train.py", "3D-None", "--cohort", healthy.url, "--out", run), *FIT
    )
    assert done.returncode == 0, done.stdout
    assert f"3D-None: run folder {run}" in done.stdout
    assert json.loads((run / "summary.json").read_text())["epochs"] == 2
    # A job that had started a Ray of its own would have no driver in this cluster.
    (job,) = head.jobs()
    assert job["status"] == "SUCCEEDED"
    assert job["driver_info"]
    check_log(done, time.monotonic() - started)
    assert leaks(tmp_path) == []


def test_a_failure_is_an_exit_code(head: Head, tmp_path: Path) -> None:
    absent = tmp_path / "absent.zarr"
    done = head.submit("python", "jobs/train.py", "PCA-4", "--cohort", absent, "--out", "/nowhere")
    assert done.returncode == 1
    assert f"error: {absent}" in done.stdout
    assert "Traceback" not in done.stdout.split("error: ")[1].splitlines()[0]
    assert head.jobs()[-1]["status"] == "FAILED"


@pytest.mark.parametrize("token", ["", secrets.token_hex(32)], ids=["none", "another"])
def test_without_the_token_nothing_is_answered(head: Head, token: str) -> None:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with pytest.raises(urllib.error.HTTPError) as caught:
        head.ask("jobs/", **headers)
    assert caught.value.code == (403 if token else 401)


@pytest.mark.slow
class TestOtherWays:
    """Each job, and other ways to send it."""

    @pytest.fixture(scope="class")
    def bucket(self, head: Head) -> Iterator[str]:
        """Storage that all nodes share, at the address that the cluster was started with."""
        port = int(head.environment["AWS_ENDPOINT_URL"].rsplit(":", 1)[1])
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
        server.start()
        with pytest.MonkeyPatch.context() as patch:
            for name, value in head.environment.items():
                if name.startswith("AWS_"):
                    patch.setenv(name, value)
            fsspec.get_filesystem_class("s3").clear_instance_cache()
            boto3.client("s3").create_bucket(Bucket="data")
            yield "s3://data"
            fsspec.get_filesystem_class("s3").clear_instance_cache()
        server.stop()

    def test_a_stranger_sends_no_job(self, head: Head) -> None:
        before = len(head.jobs())
        stranger = head.environment | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
        done = Head(url=head.url, environment=stranger).submit("python", "-c", "print('in')")
        assert done.returncode == 1
        assert len(head.jobs()) == before

    def test_what_is_sent_along(self, head: Head, tmp_path: Path) -> None:
        """Code alone: what is fitted, measured, tested or documented stays where it is."""
        out = tmp_path / "sent.json"
        code = (
            "import json, os, sys; "
            "found = [os.path.join(at, name) for at, _, names in os.walk('.') for name in names]; "
            "json.dump([n for n in found if '__pycache__' not in n], open(sys.argv[1], 'w'))"
        )
        for options in ((), ("--runtime-env", str(REPOSITORY / "cluster/runtime_env.yaml"))):
            done = head.submit("python", "-c", code, out, options=options, folder=REPOSITORY)
            assert done.returncode == 0, done.stdout
            sent = [Path(name) for name in json.loads(out.read_text())]
            assert Path("jobs/train.py") in sent
            assert Path("uadray/cluster.py") in sent
            tops = {path.parts[0] for path in sent}
            assert not tops & {"runs", "docs", "tests", ".git"}
            size = sum((REPOSITORY / path).stat().st_size for path in sent)
            assert size < 8_000_000, sorted(sent)

    def test_every_job_on_shared_storage(self, head: Head, bucket: str) -> None:
        def job(name: str, *args: object, code: int = 0) -> str:
            started = time.monotonic()
            done = head.submit("python", f"jobs/{name}.py", *args)
            assert done.returncode == (1 if code else 0), done.stdout
            if code:
                assert f"exit code {code}" in head.jobs()[-1]["message"]
            check_log(done, time.monotonic() - started, ends=60)
            return done.stdout

        healthy, stroke, runs = f"{bucket}/h.zarr", f"{bucket}/s.zarr", f"{bucket}/runs"
        table = "image,id\nmissing.nii.gz,bad\n" + "\n".join(
            f"phantom://healthy/{k},sub-{k}" for k in range(8)
        )
        files.write_bytes(f"{bucket}/scans.csv", table.encode())
        size = ("--size", 32)
        output = job("prepare", "csv", f"{bucket}/scans.csv", "--out", healthy, *size, code=3)
        assert "1 of 9 scans could not be used" in output
        assert len(open_cohort(healthy).subjects) == 8
        job("prepare", "phantom", "stroke", "--count", 5, "--out", stroke, *size)
        job("prepare", "--verify", stroke)
        fit = ("--cohort", healthy, "--out")
        job("train", "3D-Cube-n", *fit, f"{runs}/3D", "--fit.epochs", 2, "--fit.batch-size", 4)
        job("train", "PCA-4", *fit, f"{runs}/PCA-4")
        job("evaluate", runs, "--cohort", stroke, "--num-resamples", 20, "--allow-mismatch")
        assert 0 < files.read_json(f"{runs}/PCA-4/evaluation/s.json")["metrics"]["auprc"] <= 1
        job("report", runs, "--out", f"{bucket}/report.html")
        job("preview", healthy, "--out", f"{bucket}/erasing.html", "--epochs", 1)
        job("export", f"{runs}/3D", "--out", f"{bucket}/model")
        with tempfile.NamedTemporaryFile(suffix=".nii.gz") as scan:
            write(Path(scan.name), brain_image((116, 136, 116)))
            files.write_bytes(f"{bucket}/one.nii.gz", Path(scan.name).read_bytes())
        predicted = ("--out", f"{bucket}/predicted", "--no-viewer")
        job("predict", f"{bucket}/model", f"{bucket}/one.nii.gz", *predicted)
        plan = ("--table", 1, "--scale", "smoke", "--dry-run")
        job("reproduce", "bengs2021", *plan, "--out", f"{bucket}/bengs")
        job("tune", "smoke", *fit, f"{bucket}/sweep", "--space.fit.epochs", 1, "--dry-run")
        for name in ("report.html", "erasing.html"):
            page = files.read_bytes(f"{bucket}/{name}")
            assert page.startswith(b"<!DOCTYPE html>") or page.startswith(b"<!doctype html>")
        fs = fsspec.filesystem("s3")
        every = fs.find("data")
        assert len(every) > 50
        assert [name for name in every if PLANTED.encode() in fs.cat_file(name)] == []

    def test_without_waiting(self, head: Head, tmp_path: Path) -> None:
        healthy = write_healthy(tmp_path)
        options = ("--working-dir", str(REPOSITORY), "--no-wait", "--submission-id", "later")
        command = ("python", "jobs/train.py", "PCA-4", "--cohort", healthy.url)
        done = head.submit(*command, "--out", tmp_path / "run", options=options)
        assert done.returncode == 0, done.stdout
        assert head.wait("later") == "SUCCEEDED"
        assert Run.open(str(tmp_path / "run")).finished
        assert "PCA-4: run folder" in head.ray("job", "logs", "later").stdout

    def test_a_stopped_job_goes_on(self, head: Head, tmp_path: Path) -> None:
        """`ray job stop` in the middle of a fit, then the same command to its end."""
        healthy = write_healthy(tmp_path)
        run = tmp_path / "run"
        command = ("python", "jobs/train.py", "3D-None", "--cohort", healthy.url, "--out", run)
        fit = (*FIT[2:], "--fit.epochs", 60)
        options = ("--working-dir", str(REPOSITORY), "--no-wait", "--submission-id", "stopped")
        assert head.submit(*command, *fit, options=options).returncode == 0
        metrics = run / "metrics.jsonl"
        wait_until(
            lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 2, 90, "fit"
        )
        assert head.ray("job", "stop", "stopped").returncode == 0
        assert head.wait("stopped") == "STOPPED"
        assert "run the same command again to go on" in head.ray("job", "logs", "stopped").stdout
        before = [record["epoch"] for record in Run.open(str(run)).metrics()]
        assert 2 < len(before) < 60
        assert not (run / "summary.json").exists()
        done = head.submit(*command, *fit)
        assert done.returncode == 0, done.stdout
        records = Run.open(str(run)).metrics()
        assert [record["epoch"] for record in records] == list(range(1, 61))
        again = [record for record in records if record["epoch"] > before[-1]]
        assert len(again) == 60 - len(before)

    def test_leaving_the_terminal_leaves_the_job(self, head: Head, tmp_path: Path) -> None:
        """Ctrl-C ends the tail of the log; the job goes on."""
        healthy = write_healthy(tmp_path)
        options = ("--working-dir", str(REPOSITORY), "--submission-id", "left")
        command = ("python", "jobs/train.py", "PCA-4", "--cohort", healthy.url)
        line = [BIN / "ray", "job", "submit", "--address", head.url, *options, "--", *command]
        process = subprocess.Popen(
            [*map(str, line), "--out", str(tmp_path / "run")],
            cwd="/",
            env=head.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(lambda: any(j["submission_id"] == "left" for j in head.jobs()), 60, "the job")
        process.send_signal(signal.SIGINT)
        process.wait(30)
        assert head.wait("left") == "SUCCEEDED"
        assert Run.open(str(tmp_path / "run")).finished

    def test_train_and_evaluate(self, head: Head, tmp_path: Path) -> None:
        healthy, lesioned = write_healthy(tmp_path), write_lesioned(tmp_path)
        run = tmp_path / "run"
        out = ("--cohort", healthy.url, "--out", run)
        assert head.submit("python", "jobs/train.py", "HistEq", *out).returncode == 0
        evaluate = head.submit(
            *("python", "jobs/evaluate.py", run, "--cohort", lesioned.url, "--num-resamples", 20)
        )
        assert evaluate.returncode == 0, evaluate.stdout
        assert "12 of 12 volumes" in evaluate.stdout

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["3D-ae:ExampleAE", "3D-ExampleAE"])
    def test_a_method_that_comes_with_the_working_directory(
        self, head: Head, tmp_path: Path, name: str
    ) -> None:
        """As a file, named by its place, or as a package; two workers find it, too."""
        healthy, lesioned = write_healthy(tmp_path), write_lesioned(tmp_path)
        work, run, plugin = tmp_path / "work", tmp_path / "run", REPOSITORY / "examples/plugin"
        shutil.copytree(REPOSITORY / "jobs", work / "jobs")
        if ":" in name:
            shutil.copy(plugin / "uadray_example/ae.py", work)
        else:
            shutil.copytree(plugin, tmp_path / "plugin")
            words = ["install", "--no-deps", "--no-build-isolation", "--target"]
            command = [sys.executable, "-m", "pip", *words, str(work), str(tmp_path / "plugin")]
            subprocess.run(command, check=True, capture_output=True)
        options = ("--working-dir", str(work))
        fit = ("--cohort", healthy.url, "--out", run, *FIT, "--scale.num-workers", 2)
        done = head.submit("python", "jobs/train.py", name, *fit, options=options)
        assert done.returncode == 0, done.stdout
        score = ("--cohort", lesioned.url, "--num-resamples", 20)
        done = head.submit("python", "jobs/evaluate.py", run, *score, options=options)
        assert done.returncode == 0, done.stdout
        package = json.loads((run / "config.json").read_text())["experiment"]["method"]["package"]
        assert package["distribution"] == ("" if ":" in name else "uadray-example")
        elsewhere = head.submit("python", "jobs/evaluate.py", run, *score)
        assert elsewhere.returncode == 1
        assert "ExampleAE is a method of" in elsewhere.stdout
        assert "not installed here" in elsewhere.stdout
