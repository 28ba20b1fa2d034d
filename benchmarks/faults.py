"""What is broken on purpose, and what becomes of it: every stage under every fault.

    python -m benchmarks.faults                      what is not measured yet; about 50 minutes
    python -m benchmarks.faults --only fit:worker    one cell; --again measures it again
    python -m benchmarks.faults --minutes 12         start no cell after so long
    python -m benchmarks.faults --page               only write docs/reliability.md from the results

Two Ray nodes of one CPU each and an S3 server, in namespaces of their own (`tests.nodes`);
every cell is a job in a process of its own. It takes Linux and root. Each cell is kept as soon as
it is measured; the same command goes on with the others.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks import fault_page
from benchmarks.fault_stages import STAGES, Stage
from benchmarks.harness import RESULTS, circumstances, write_page
from tests.nodes import BUCKET, REPOSITORY, Network, S3Faults, Started, network, why_not
from tests.waiting import wait_until

CACHE = REPOSITORY / "runs" / "faults"
FILE = RESULTS / "faults.json"

UNDISTURBED = ("none", "none-disk")
FAULTS = ("driver", "worker", "cut", "raylet", "drain", "s3", "disk", "head")
"""`none-disk` is what `disk` is timed against."""

CELLS = [f"{stage}:{fault}" for fault in ("none", *FAULTS, "none-disk") for stage in STAGES]
"""In the order in which they are measured."""

CUT_S, FULL_S, NEW_NODE_S = 20.0, 20.0, 5.0
"""Seconds that a node is cut off, that the disk is full, and until a lost node is replaced."""

DRAIN_S = 30.0
"""Seconds between the announcement that a node will leave and its end; clouds give 30 to 120."""

SLOW_S = 1.0
"""Seconds that every other hit request takes."""

GIVE_UP_S = 150.0
"""Seconds after which a job that writes nothing is killed, as an operator would."""


@dataclass(kw_only=True)
class Bench:
    """The network with its cluster, between cells."""

    net: Network
    agent: "subprocess.Popen[str]"
    cache: Path
    """Where inputs are kept from one network to the next."""
    has_cluster: bool = False

    def ask(self, method: str, *arguments: object) -> Any:
        """Have the agent do something inside."""
        assert self.agent.stdin is not None
        assert self.agent.stdout is not None
        self.agent.stdin.write(json.dumps([method, *map(str, arguments)]) + "\n")
        self.agent.stdin.flush()
        answer = self.agent.stdout.readline()
        assert answer, f"the agent has died in {method}: see {self.net.folder}/agent.log"
        return json.loads(answer)

    def ensure_cluster(self) -> None:
        """Two idle nodes, as if nothing had ever happened to them."""
        if self.has_cluster:
            try:
                wait_until(lambda: self.net.cpus() == (2.0, 2.0), 30, "an idle cluster")
                return
            except TimeoutError:
                self.stop_cluster()
        self.net.cluster([1, 1])
        self.has_cluster = True

    def stop_cluster(self) -> None:
        """End it without warning."""
        self.net.stop_cluster()
        self.has_cluster = False


@contextmanager
def bench(num_nodes: int = 2, cache: Path = CACHE) -> Iterator[Bench]:
    """A network with its inputs laid out and no cluster yet."""
    with network(num_nodes, s3=True, disk_mib=512) as net:
        log = (net.folder / "agent.log").open("w")
        agent = subprocess.Popen(
            net.enter(sys.executable, "-m", "benchmarks.fault_stages"),
            cwd=REPOSITORY,
            env=net.variables({}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        made = Bench(net=net, agent=agent, cache=cache)
        try:
            made.ask("inputs", cache)
            yield made
        except Exception:
            print((net.folder / "agent.log").read_text()[-3000:], file=sys.stderr)
            raise


@dataclass(kw_only=True)
class Attempt:
    """One cell while it is measured."""

    bench: Bench
    stage: Stage
    out: str
    job: Started | None = None
    since_line: int = 0
    """Requests of earlier cells."""
    seen: set[str] = field(default_factory=set)
    """Paths that were on the disk at some time."""
    timers: list[tuple[float, Callable[[], object]]] = field(default_factory=list)
    """When to do what, on the monotonic clock."""
    at_end: list[Callable[[], object]] = field(default_factory=list)
    """What is mended once a command has ended."""
    ended: float = 0.0
    """When the newest command did."""
    codes: list[int | str] = field(default_factory=list)
    """Exit codes of the commands; `hung` for one that was killed here."""
    logs: list[str] = field(default_factory=list)
    false_whole: list[str] = field(default_factory=list)
    """Parts that said that they were whole and were not."""
    notes: list[str] = field(default_factory=list)

    @property
    def net(self) -> Network:
        """Where it runs."""
        return self.bench.net

    def written(self) -> list[str]:
        """Paths that the job has written below its output, each as often as it is known."""
        if "://" not in self.out:
            # Names come and go while they are listed.
            for folder, _, names in os.walk(self.net.disk_from_outside):
                self.seen |= {f"{folder}/{name}" for name in names}
            return list(self.seen)
        prefix = self.out.removeprefix("s3:/")
        lines = (line.split() for line in self.net.requests()[self.since_line :])
        return [
            path
            for _, _, method, path, status, *_ in lines
            if method == "PUT" and status.startswith("2") and path.startswith(prefix)
        ]

    def progress(self) -> int:
        """How far the job is."""
        return self.stage.progress(self.written())

    def start(self) -> None:
        """Start the job, always by the same command."""
        command = (sys.executable, *self.stage.command(self.out))
        self.job = self.net.start(*command, **self.net.joined)

    def wait(self, until: Callable[[], object], seconds: float) -> bool:
        """Wait for a condition or the job's end, keeping the timers; False where time is up."""
        assert self.job is not None
        deadline = time.monotonic() + seconds
        while self.job.process.poll() is None and not until():
            now = time.monotonic()
            for timer in [t for t in self.timers if t[0] <= now]:
                self.timers.remove(timer)
                timer[1]()
            if now > deadline:
                return False
            time.sleep(0.1)
        return True

    def after(self, seconds: float, do: Callable[[], object]) -> None:
        """Do something later."""
        self.timers.append((time.monotonic() + seconds, do))

    def end(self) -> None:
        """Wait for the job's end, note how it was, and let the fault pass before going on."""
        assert self.job is not None
        before, num_written = -1, len(self.written())
        while self.job.process.poll() is None and before < num_written:
            before = num_written
            self.wait(lambda: False, GIVE_UP_S)
            num_written = len(self.written())
        if self.job.process.poll() is None:
            self.notes.append(f"killed after it had written nothing for {GIVE_UP_S:.0f} s")
            self.job.kill()
            self.codes.append("hung")
        else:
            self.codes.append(self.job.process.returncode)
        self.ended = time.monotonic()
        self.logs.append(self.job.log.read_text())
        while self.timers:
            due, do = self.timers.pop(0)
            time.sleep(max(0.0, due - time.monotonic()))
            do()
        for do in self.at_end:
            do()
        self.at_end = []

    # The faults.

    def worker(self) -> None:
        """SIGKILL one process that computes."""

        def workers() -> list[psutil.Process]:
            return [p for p in self.net.processes("ray::") if _matches(p, self.stage.worker)]

        if not self.wait(workers, 30) or not workers():
            names = [" ".join(p.cmdline()) for p in self.net.processes("ray::")]
            raise RuntimeError(f"no worker of {self.stage.name} among {names}")
        victim = workers()[0]
        self.notes.append(" ".join(victim.cmdline()).strip())
        victim.kill()

    def raylet(self) -> None:
        """SIGKILL the raylet of node 1; another one comes, as a supervisor would see to."""
        self.net.kill_raylet(1)
        self.after(NEW_NODE_S, lambda: self.net.join(1, 1))

    def drain(self) -> None:
        """Announce that node 1 will leave, kill it then, and start another one in its place."""
        self.net.drain(1, DRAIN_S)
        self.after(DRAIN_S, lambda: self.net.take_away(1))
        self.after(DRAIN_S + NEW_NODE_S, lambda: self.net.join(1, 1))

    def driver(self) -> None:
        """SIGKILL the job itself."""
        assert self.job is not None
        self.job.kill()

    def head(self) -> None:
        """SIGKILL the GCS; once the job has ended, a new cluster is started."""
        for process in self.net.processes("gcs_server"):
            process.kill()
        self.at_end.append(self.bench.stop_cluster)
        self.at_end.append(self.bench.ensure_cluster)

    def disk(self) -> None:
        """Leave no room on the disk that the job writes to."""
        self.net.fill_disk()
        self.after(FULL_S, self.net.empty_disk)

    def cut(self) -> None:
        """Pull the cable of node 1."""
        self.net.cut(1)
        self.after(CUT_S, self._put_back)

    def _put_back(self) -> None:
        self.net.mend(1)
        self.after(NEW_NODE_S, self._replace_lost)

    def _replace_lost(self) -> None:
        if self.net.raylet(1) is None:
            self.notes.append("the cluster had given the node up; it was started again")
            self.net.join(1, 1)


def _matches(process: psutil.Process, pattern: str) -> bool:
    try:
        return bool(re.search(pattern, " ".join(process.cmdline())))
    except psutil.Error:
        return False


def measure(made: Bench, stage: Stage, fault: str, undisturbed: dict[str, Any]) -> dict[str, Any]:
    """Measure one cell."""
    made.ensure_cluster()
    net = made.net
    on_disk = fault in ("disk", "none-disk")
    out = f"{net.disk}/{stage.name}" if on_disk else f"s3://{BUCKET}/{stage.name}-{fault}"
    made.ask("lay_out", stage.name, made.cache, out)
    cell = Attempt(bench=made, stage=stage, out=out, since_line=len(net.requests()))
    faults = S3Faults(every=10, slow_s=SLOW_S) if fault == "s3" else S3Faults()
    net.fail_s3(faults)
    started, checking = time.monotonic(), 0.0
    cell.start()
    struck: float | None = None
    back: float | None = None
    reached = 0
    if fault not in (*UNDISTURBED, "s3"):
        struck, reached = strike(cell, fault)
        if fault != "driver" and cell.wait(lambda: cell.progress() > reached, GIVE_UP_S):
            back = time.monotonic() - struck
    cell.end()
    while cell.codes[-1] != 0 and len(cell.codes) < 4 and fault not in UNDISTURBED:
        before = time.monotonic()
        net.fail_s3(S3Faults())
        cell.false_whole += _false_whole(made.ask("whole", stage.name, out), undisturbed)
        net.fail_s3(faults)
        checking += time.monotonic() - before
        left = cell.progress()
        cell.start()
        if struck is not None:
            cell.wait(lambda left=left: cell.progress() > left, GIVE_UP_S)
            back = time.monotonic() - struck - checking
        cell.end()
    lines = net.requests()[cell.since_line :]
    net.fail_s3(S3Faults())
    whole = made.ask("whole", stage.name, out)
    made.ask("remove", out)
    return {
        "stage": stage.name,
        "fault": fault,
        "codes": cell.codes,
        "seconds": round(cell.ended - started - checking, 1),
        "struck_after_s": None if struck is None else round(struck - started, 1),
        "struck_at": f"{reached} {stage.unit}" if struck else None,
        "back_s": None if back is None else round(back, 1),
        "requests_hit": sum(x.endswith((" 500", " slow")) for x in lines),
        "whole": whole,
        "false_whole": cell.false_whole,
        "notes": cell.notes,
        # Without the folder of this network, which is of no machine but this one.
        "said": [
            _last_words(log).replace(str(cell.bench.net.folder), "")
            for log, code in zip(cell.logs, cell.codes, strict=True)
            if code
        ],
    }


def strike(cell: Attempt, fault: str) -> tuple[float, int]:
    """Wait for the middle of the job and break something; return when, and how far the job was."""
    assert cell.job is not None
    cell.wait(lambda: cell.progress() >= cell.stage.middle, 240)
    reached = cell.progress()
    if cell.job.process.poll() is not None or reached < cell.stage.middle:
        raise RuntimeError(f"{cell.stage.name} was not to be hit: {cell.job.log.read_text()}")
    struck = time.monotonic()
    getattr(cell, fault)()
    return struck, reached


def _false_whole(whole: dict[str, Any], undisturbed: dict[str, Any]) -> list[str]:
    """Parts that say that they are whole though they are not those of an undisturbed job."""
    return [name for name, part in whole.items() if part != undisturbed.get(name)]


def _last_words(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:")]
    return (errors or lines or [""])[-1][:300]


def read() -> dict[str, dict[str, Any]]:
    """The cells that are measured, by `stage:fault`."""
    if not FILE.exists():
        return {}
    return {f"{c['stage']}:{c['fault']}": c for c in json.loads(FILE.read_text())["cells"]}


def keep(cells: dict[str, dict[str, Any]]) -> None:
    """Write what is measured so far."""
    content = circumstances("faults") | {"cells": [cells[k] for k in CELLS if k in cells]}
    content["rows"] = fault_page.rows(content["cells"])
    aside = FILE.with_suffix(".new")
    aside.write_text(json.dumps(content, indent=2) + "\n")
    aside.replace(FILE)


def main() -> None:
    # So that what was started is taken down.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[], help="cells, such as fit:worker")
    parser.add_argument("--again", action="store_true", help="measure what is already measured")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no cell after so long")
    parser.add_argument("--page", action="store_true", help="only write the page")
    args = parser.parse_args()
    if not args.page:
        if reason := why_not():
            sys.exit(f"faults cannot be measured here: {reason}")
        run(args.only, args.again, args.minutes)
    write_page(fault_page.PAGE, fault_page.text(list(read().values())))


def run(only: list[str], again: bool, minutes: float) -> None:
    """Measure what is asked for, and first what it is compared with."""
    started, cells = time.monotonic(), read()
    wanted = CELLS
    if only:
        needed = {f"{cell.split(':')[0]}:none" for cell in only} - cells.keys()
        wanted = [cell for cell in wanted if cell in only or cell in needed]
    wanted = [cell for cell in wanted if again or cell not in cells]
    if not wanted:
        return
    with bench() as made:
        for name in wanted:
            if time.monotonic() - started > minutes * 60:
                print("time is up; the same command goes on", flush=True)
                return
            stage, _, fault = name.partition(":")
            undisturbed = cells.get(f"{stage}:none", {}).get("whole", {})
            print(f"{name} ...", flush=True)
            try:
                cell = measure(made, STAGES[stage], fault, undisturbed)
            except (RuntimeError, TimeoutError, AssertionError) as error:
                # A cell that could not be measured is not kept; the others go on.
                print(f"{name} could not be measured: {error}", flush=True)
                made.net.fail_s3(S3Faults())
                made.net.empty_disk()
                made.net.mend(1)
                made.stop_cluster()
                continue
            cell["load"] = round(psutil.getloadavg()[1], 1)
            cell["commit"] = circumstances("faults")["commit"]
            cells[name] = cell
            keep(cells)
            print(json.dumps({k: v for k, v in cell.items() if k != "whole"}), flush=True)


if __name__ == "__main__":
    main()
