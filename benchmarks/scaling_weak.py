"""Weak scaling of prepare and evaluate over 1, 2 and 4 nodes, with stand-in compute and real I/O.

Part of `python -m benchmarks.scaling`. Nodes are network namespaces of this machine, each with a
raylet that may use a small share of a CPU, so that more of them are more computers than one, also
where there are two cores; the head runs no tasks, as in the recipes. Scans are tiny, the pipeline
is the real one, and all is read from and written to a real S3 server in a namespace of its own.
The jobs are those of jobs/. It takes Linux, root and a writable CPU controller.
"""

import contextlib
import csv
import io
import re
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import nibabel as nib
import numpy as np
import psutil

from benchmarks.harness import Row, timed
from tests import nodes
from tests.nodes import BUCKET, S3_HOST, S3_PORT, Network
from tests.waiting import wait_until

CGROUP = Path("/sys/fs/cgroup/cpu")
"""Of version 1 of the controllers."""


@dataclass(frozen=True, kw_only=True)
class Weak:
    """How large the simulation is."""

    nodes: tuple[int, ...] = (1, 2, 4)
    """Numbers of nodes that work."""
    scans: int = 160
    """Scans that each node prepares."""
    volumes: int = 160
    """Volumes that each node evaluates."""
    share: float = 0.3
    """CPUs that a node may use."""


def why_not() -> str:
    """Empty where it can run, else what is missing."""
    if missing := nodes.why_not():
        return missing
    probe = CGROUP / f"uadray-{uuid.uuid4().hex}"
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        return f"no CPU controller at {CGROUP}: {error}"
    return ""


def rows(size: Weak) -> list[Row]:
    """Prepare and evaluate a cohort that grows with the nodes."""
    rates: dict[tuple[str, int], float] = {}
    details: dict[tuple[str, int], str] = {}
    for count in size.nodes:
        with _limited(count, size.share) as groups, nodes.network(count + 1, s3=True) as net:
            _start(net, groups)
            for job, rate, detail in (_prepare(net, count, size), *_evaluate(net, count, size)):
                rates[job, count], details[job, count] = rate, detail
    measured = []
    for job in ("prepare", SCORED, COMPARED):
        one = rates[job, size.nodes[0]]
        for count in size.nodes:
            measured.append(
                Row(f"{job} on {count} nodes", rates[job, count], "volumes/s",
                    detail=details[job, count]),
            )  # fmt: skip
        most = size.nodes[-1]
        measured.append(
            Row(f"weak scaling of {job}", rates[job, most] / one / most,
                "of ideal", against=f"{size.nodes[0]} node", goal=">= 0.8",
                detail=f"{most} nodes of {size.share:g} CPUs each"),
        )  # fmt: skip
    return measured


@contextmanager
def _limited(count: int, share: float) -> Iterator[list[Path]]:
    """A control group for each node, with this share of a CPU."""
    name = uuid.uuid4().hex[:8]
    groups = [CGROUP / f"uadray-{name}-{k}" for k in range(count)]
    try:
        for group in groups:
            group.mkdir()
            period = int((group / "cpu.cfs_period_us").read_text())
            (group / "cpu.cfs_quota_us").write_text(str(int(share * period)))
        yield groups
    finally:
        for group in groups:
            _remove(group)


def _remove(group: Path) -> None:
    """Its processes have ended, or are about to."""
    for _ in range(100):
        try:
            group.rmdir()
            return
        except OSError:
            time.sleep(0.1)


def _start(net: Network, groups: Sequence[Path]) -> None:
    """A head without work, and a node of one logical CPU in each group."""
    net.head(0)
    wait_until(lambda: "yes" in _asked(net, 0), 120, "the head of the cluster")
    for k, group in enumerate(groups, 1):
        join = net.join(k, 1)
        wait_until(lambda n=k: "yes" in _asked(net, n), 120, f"node {k}")  # type: ignore[misc]
        # Not before: Ray gives a node 30 s to start. What the raylet starts later is limited too.
        for process in (top := psutil.Process(join.process.pid)).children(recursive=True):
            with contextlib.suppress(OSError):  # it has ended
                (group / "cgroup.procs").write_text(str(process.pid))
        assert any("raylet" in child.name() for child in top.children(recursive=True))


def _asked(net: Network, cpus: int) -> str:
    code = (
        "import ray; ray.init(logging_level='ERROR');"
        f"print('yes' if ray.cluster_resources().get('CPU', 0) == {cpus} else 'no')"
    )
    started = net.start("python", "-c", code, **net.joined)
    started.process.wait(120)
    return started.log.read_text()


def _prepare(net: Network, count: int, size: Weak) -> tuple[str, float, str]:
    """`jobs/prepare.py csv` on tiny scans in the bucket."""
    num = size.scans * count
    net.must("python", "-c", _UPLOAD, str(num), node=0)
    seconds, load = _job(
        *(net, "prepare", "csv", f"s3://{BUCKET}/scans.csv", "--out", f"s3://{BUCKET}/made.zarr"),
        *("--min-brain-ml", 0.1, "--shape", 13, 14, 12),
        *("--left-right", 24, "--posterior-anterior", 28),
        *("--inferior-superior", 26),
    )
    kept = r"PUT /data/made\.zarr/rows/\d+-[0-9a-f]*-[0-9a-f]*\.npz 200"
    rate, how = _rate(net, kept, count, load)
    return "prepare", rate, f"{how}; {num} in {seconds:.0f} s, start and end included"


SCORED, COMPARED = "evaluate, scoring", "evaluate, comparing scores with the lesions"
"""The two passes of an evaluation."""


def _evaluate(net: Network, count: int, size: Weak) -> list[tuple[str, float, str]]:
    """`jobs/evaluate.py` with a method that costs next to nothing."""
    num = size.volumes * count
    net.must("python", "-c", _STORE, str(num), node=0)
    run = f"s3://{BUCKET}/run"
    _job(net, "train", "Intensity", "--cohort", f"s3://{BUCKET}/healthy.zarr", "--out", run)
    seconds, load = _job(
        *(net, "evaluate", run, "--cohort", f"s3://{BUCKET}/stroke.zarr", "--num-resamples", 20)
    )
    measured = []
    for job, method in ((SCORED, "PUT"), (COMPARED, "GET")):
        pattern = rf"{method} /data/run/scores/stroke\.zarr/scores/c/\S+ 200"
        rate, how = _rate(net, pattern, count, load)
        measured.append(
            (job, rate, f"{how}; {num} in {seconds:.0f} s for both passes and the start")
        )
    return measured


def _job(net: Network, name: str, *args: object) -> tuple[float, "_Load"]:
    with _Load(net) as load:
        started = net.start("python", f"jobs/{name}.py", *args, **net.joined)
        _, seconds = timed(lambda: started.must(1200))
    return seconds, load


def _rate(net: Network, pattern: str, count: int, load: "_Load") -> tuple[float, str]:
    """Volumes a second that nodes put into the store, or ask of it, while all of them work.

    Before, the processes of some nodes are still starting; afterwards the last ones finish alone.
    Beside it in words, how busy in between was what the nodes share.
    """
    times: dict[str, list[float]] = {}
    for line in net.requests():
        if re.search(pattern, line):
            when, address = line.split()[:2]
            # The driver, on the head, looks at some volumes too.
            if address != net.address(0):
                times.setdefault(address, []).append(float(when))
    assert len(times) == count, f"{count} nodes were to put {pattern}, {sorted(times)} did"
    begin, end = max(map(min, times.values())), min(map(max, times.values()))
    done = sum(begin < when <= end for one in times.values() for when in one)
    assert done, "the nodes did not work at the same time"
    how = f"{done} in {end - begin:.0f} s while all nodes work, {load.between(begin, end)}"
    return done / (end - begin), how


class _Load:
    """How busy are this machine's cores, and the S3 server's one, while a job runs."""

    def __init__(self, net: Network) -> None:
        servers = net.processes("tests.s3_server")
        self._server = max(servers, key=lambda process: sum(process.cpu_times()[:2]))
        self._samples: list[tuple[float, float, float]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.25):
            cores = psutil.cpu_times()
            busy = cores.user + cores.system + cores.softirq + cores.irq + cores.nice + cores.steal
            self._samples.append((time.time(), busy, sum(self._server.cpu_times()[:2])))

    def between(self, begin: float, end: float) -> str:
        """In words, between two times in seconds since 1970."""
        at, *used = np.array(self._samples).T
        cores, server = (
            (np.interp(end, at, one) - np.interp(begin, at, one)) / (end - begin) for one in used
        )
        count = psutil.cpu_count()
        return f"with {cores:.2f} of {count} cores busy, {server:.2f} by the S3 server"


_UPLOAD = f"""
import sys
from benchmarks.scaling_weak import upload
upload(int(sys.argv[1]), "http://{S3_HOST}:{S3_PORT}")
"""


def upload(num: int, endpoint: str) -> None:
    """Put tiny scans and their table into the bucket."""
    import boto3

    client = boto3.client("s3", endpoint_url=endpoint)
    inside = np.indices((22, 26, 24)).transpose(1, 2, 3, 0) - np.array([10.5, 12.5, 11.5])
    brain = ((inside / np.array([9.2, 10.9, 10.1])) ** 2).sum(-1) <= 1
    table = io.StringIO()
    lines = csv.writer(table)
    lines.writerow(["image", "id"])
    for k in range(num):
        noise = np.random.default_rng(k).normal(100, 20, brain.shape)
        image = nib.Nifti1Image((np.maximum(1, noise) * brain).astype(np.float32), np.eye(4))
        client.put_object(Bucket=BUCKET, Key=f"scans/{k}.nii", Body=image.to_bytes())
        lines.writerow([f"scans/{k}.nii", f"sub-{k:05d}"])
    client.put_object(Bucket=BUCKET, Key="scans.csv", Body=table.getvalue().encode())


_STORE = f"""
import sys
from benchmarks.scored import store
store("s3://{BUCKET}/healthy.zarr", 8, 32, lesioned=False)
store("s3://{BUCKET}/stroke.zarr", int(sys.argv[1]), 32, lesioned=True)
"""
