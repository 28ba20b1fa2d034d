"""Clusters of several nodes on one machine, apart from any other Ray on it.

A namespace has network interfaces, processes and mounts of its own, so that nothing in it listens
to the outside, and Ray's search for other instances finds none. It takes root.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
HEAD, INTERFACE = "10.77.0.1", "rnet0"

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # A node that has gone silent is given up sooner than in half a minute.
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "2",
    "GLOO_SOCKET_IFNAME": INTERFACE,
}


def can_unshare() -> str:
    """Empty where namespaces can be made, else why not."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces take Linux and root"
    if missing := [name for name in ("unshare", "nsenter", "ip") if not shutil.which(name)]:
        return f"{', '.join(missing)} is not installed"
    tried = subprocess.run(
        ["unshare", "--net", "--pid", "--mount", "--fork", "--mount-proc", "true"],
        capture_output=True,
        check=False,
    )
    return "" if tried.returncode == 0 else f"unshare: {tried.stderr.decode().strip()}"


def wait_until(holds: Callable[[], object], seconds: float, what: str) -> None:
    """Wait for a condition, or fail the test."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.02)


@dataclass(kw_only=True)
class Namespace:
    """A place for processes; all of them end with it."""

    holder: int
    folder: Path
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def enter(self, *command: object, node: str = "") -> list[str]:
        """The command line that runs `command` inside, on the network of another node if named."""
        inside = ["nsenter", "-t", str(self.holder), "-n", "-p", "-m"]
        return [*inside, *(("ip", "netns", "exec", node) if node else ()), *map(str, command)]

    def must(self, *command: object) -> None:
        """Run a command to its end."""
        subprocess.run(self.enter(*command), check=True, capture_output=True)

    def start(self, *command: object, node: str = "", **environment: str) -> "Started":
        """Start a command in the background; its output goes to a file."""
        log = self.folder / f"{len(self.started)}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                self.enter(*command, node=node),
                cwd=REPOSITORY,
                env={k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
                | {"PATH": f"{BIN}:{os.environ['PATH']}", **ENVIRONMENT, **environment},
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        self.started.append(process)
        return Started(process=process, log=log)

    def head(self, num_cpus: int) -> "Started":
        """Start the first node of a cluster."""
        return self.start(
            *(BIN / "ray", "start", "--head", "--block", "--port=6379"),
            *(f"--node-ip-address={HEAD}", f"--num-cpus={num_cpus}"),
            *("--object-store-memory=100000000", f"--temp-dir={self.folder}/head"),
            *("--include-dashboard=true", "--dashboard-port=8265"),
        )

    def second(self, num_cpus: int) -> "Started":
        """Start another node, on a network of its own."""
        return self.start(
            *(BIN / "ray", "start", "--block", f"--address={HEAD}:6379"),
            *("--node-ip-address=10.77.0.2", f"--num-cpus={num_cpus}"),
            "--object-store-memory=100000000",
            node="second",
        )

    def cpus(self) -> tuple[float, float]:
        """Logical CPUs of the cluster, all and free; zeros while it does not answer."""
        code = (
            "import ray; ray.init(logging_level='ERROR');"
            "print(ray.cluster_resources().get('CPU', 0), ray.available_resources().get('CPU', 0))"
        )
        done = subprocess.run(
            self.enter(sys.executable, "-c", code),
            env=os.environ | ENVIRONMENT | {"RAY_ADDRESS": f"{HEAD}:6379"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            return 0.0, 0.0
        total, free = done.stdout.split()[-2:]
        return float(total), float(free)

    def processes(self, *words: str) -> list[psutil.Process]:
        """Processes inside whose command line holds all the words."""
        found = []
        for process in psutil.Process(self.holder).children(recursive=True) + [
            child for started in self.started for child in _tree(started.pid)
        ]:
            try:
                line = " ".join(process.cmdline())
            except psutil.Error:
                continue
            if all(word in line for word in words) and process not in found:
                found.append(process)
        return found


def _tree(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


@dataclass(frozen=True, kw_only=True)
class Started:
    """A command that runs in a namespace."""

    process: subprocess.Popen[bytes]
    log: Path

    def kill(self) -> None:
        """End the command itself without warning, and nothing else."""
        # The process that was started is nsenter; the command is the innermost below it.
        found = psutil.Process(self.process.pid)
        while found.name() in ("nsenter", "ip") and found.children():
            (found,) = found.children()
        found.send_signal(signal.SIGKILL)
        self.process.wait(30)

    def must(self, seconds: float) -> str:
        """Wait for its end and return what it printed."""
        code = self.process.wait(seconds)
        assert code == 0, self.log.read_text()
        return self.log.read_text()


@contextmanager
def namespace() -> Iterator[Namespace]:
    """A namespace whose first network has the address `HEAD`, and a second one beside it."""
    # Sockets lie in it, whose paths must be short.
    folder = Path(tempfile.mkdtemp(prefix="ns-"))
    unshared = ["--net", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"]
    keeper = subprocess.Popen(["unshare", *unshared, "sleep", "infinity"])
    try:
        wait_until(lambda: psutil.Process(keeper.pid).children(), 10, "a process in the namespace")
        time.sleep(0.2)
        made = Namespace(holder=psutil.Process(keeper.pid).children()[0].pid, folder=folder)
        second = ("ip", "-n", "second")
        for command in (
            ("mount", "-t", "tmpfs", "tmpfs", "/run"),
            ("ip", "link", "set", "lo", "up"),
            ("ip", "netns", "add", "second"),
            ("ip", "link", "add", INTERFACE, "type", "veth", "peer", INTERFACE, "netns", "second"),
            ("ip", "addr", "add", f"{HEAD}/24", "dev", INTERFACE),
            ("ip", "link", "set", INTERFACE, "up"),
            (*second, "addr", "add", "10.77.0.2/24", "dev", INTERFACE),
            (*second, "link", "set", INTERFACE, "up"),
            (*second, "link", "set", "lo", "up"),
        ):
            made.must(*command)
        yield made
    finally:
        # The first process of a namespace takes all others with it.
        keeper.kill()
        keeper.wait()
        shutil.rmtree(folder, ignore_errors=True)
