"""Clusters of several nodes on one machine, for tests and benchmarks: `network`.

    with network(4, s3=True) as net:
        net.cluster([1, 1, 1, 1])
        net.start("python", "jobs/train.py", ..., **net.joined).must(300)

Each node is a network namespace with a raylet in it; a bridge in a namespace of its own joins them,
so that nothing listens to the outside, Ray's search for other instances finds none, and a cable can
be pulled. Beside the nodes stands a real S3 server that can be made to fail, and a small disk that
all nodes see, as they would see NFS. It takes Linux and root; `why_not` says what is missing.
"""

import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests import s3_server
from tests.s3_server import S3Faults
from tests.waiting import wait_until
from uadray.cluster import KEEP_WORKERS

REPOSITORY = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
INTERFACE = "rnet0"
"""The same name on every node: gloo takes one."""

HEAD, S3_HOST, S3_PORT = "10.77.0.1", "10.77.0.100", 9000
BUCKET = "data"
"""It is there from the start."""

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray Train looks after its workers so often that a group starts and ends seconds sooner.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "GLOO_SOCKET_IFNAME": INTERFACE,
    **KEEP_WORKERS,
}

QUICK_TO_GIVE_UP = {
    # A node that has gone silent is given up sooner than in half a minute.
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "2",
}


def why_not() -> str:
    """Empty where networks can be made, else what is missing."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces take Linux and root"
    needed = ("unshare", "nsenter", "ip", "setpriv", "mount")
    if missing := [name for name in needed if not shutil.which(name)]:
        return f"{', '.join(missing)} is not installed"
    tried = subprocess.run(
        [*_UNSHARE, "sh", "-c", "ip link add br0 type bridge"], capture_output=True, check=False
    )
    return "" if tried.returncode == 0 else f"unshare: {tried.stderr.decode().strip()}"


_UNSHARE = ("unshare", "--net", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc")


@dataclass(frozen=True, kw_only=True)
class Started:
    """A command that runs in a network."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def command(self) -> psutil.Process:
        """The process of the command itself: what was started is nsenter, and more of it."""
        process = psutil.Process(self.process.pid)
        while process.name() in ("nsenter", "ip") and process.children():
            (process,) = process.children()
        return process

    def kill(self, signal_number: int = signal.SIGKILL) -> None:
        """End the command itself, without warning by default, and nothing else."""
        self.command.send_signal(signal_number)
        self.process.wait(60)

    def must(self, seconds: float) -> str:
        """Wait for its end, which must be good, and return what it printed."""
        code = self.process.wait(seconds)
        assert code == 0, f"exit code {code}\n{self.log.read_text()}"
        return self.log.read_text()


@dataclass(kw_only=True)
class Network:
    """Nodes, numbered from 0, whose processes all end with it."""

    holder: int
    """The process that keeps its namespaces."""
    folder: Path
    """Logs, Ray's temporary files and the small disk."""
    num_nodes: int
    environment: Mapping[str, str]
    """Of every command."""
    disk_mib: int
    """Size of the small disk."""
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def joined(self) -> dict[str, str]:
        """What makes a job join the cluster."""
        return {"RAY_ADDRESS": f"{HEAD}:6379"}

    def address(self, node: int) -> str:
        """Of one node."""
        return f"10.77.0.{node + 1}"

    def enter(self, *command: object, node: int | str | None = 0) -> list[str]:
        """The command line that runs `command` on a node; None stands for the switch."""
        inside = ["nsenter", "-t", str(self.holder), "-n", "-p", "-m", "-w"]
        if node is not None:
            # Not `ip netns exec`: a node is to see what is mounted later.
            name = f"n{node}" if isinstance(node, int) else node
            inside += ["nsenter", f"--net=/run/netns/{name}"]
        return [*inside, *map(str, command)]

    def must(self, *command: object, node: int | str | None = 0, **more: str) -> str:
        """Run a short command to its end and return what it printed."""
        done = subprocess.run(
            self.enter(*command, node=node),
            cwd=REPOSITORY,
            env=self.variables(more),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def start(self, *command: object, node: int | str | None = 0, **more: str) -> Started:
        """Start a command in the background; its output goes to a file."""
        log = self.folder / f"{len(self.started):03d}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                self.enter(*command, node=node),
                cwd=REPOSITORY,
                env=self.variables(more),
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        self.started.append(process)
        return Started(process=process, log=log)

    def variables(self, more: Mapping[str, str]) -> dict[str, str]:
        """The whole environment of a command."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "AWS_"))}
        return kept | {"PATH": f"{BIN}:{os.environ['PATH']}", **self.environment, **more}

    def cluster(self, cpus: Sequence[float]) -> None:
        """Start a Ray node on the first nodes of the network, with this many logical CPUs each."""
        self.head(cpus[0])
        wait_until(lambda: self.cpus()[0] == cpus[0], 120, "the head of the cluster")
        for node in range(1, len(cpus)):
            self.join(node, cpus[node])
            # One after another: Ray gives a node 30 s to start, and few cores start them all.
            so_far = sum(cpus[: node + 1])
            wait_until(lambda n=so_far: self.cpus()[0] == n, 120, f"node {node} of the cluster")  # type: ignore[misc]

    def head(self, num_cpus: float) -> Started:
        """Start a cluster's head on node 0."""
        return self.start(
            *(BIN / "ray", "start", "--head", "--block", "--port=6379"),
            *(f"--node-ip-address={HEAD}", f"--num-cpus={num_cpus:g}"),
            *("--object-store-memory=100000000", f"--temp-dir={self.folder}/ray"),
            *("--include-dashboard=true", "--dashboard-port=8265"),
        )

    def join(self, node: int, num_cpus: float) -> Started:
        """Start a Ray node that joins the head."""
        return self.start(
            *(BIN / "ray", "start", "--block", f"--address={HEAD}:6379"),
            *(f"--node-ip-address={self.address(node)}", f"--num-cpus={num_cpus:g}"),
            "--object-store-memory=100000000",
            node=node,
        )

    def raylet(self, node: int) -> psutil.Process | None:
        """The raylet of a node, if one runs there."""
        pattern = re.compile(rf"node_ip_address={re.escape(self.address(node))}(\s|$)")
        for process in self.processes("raylet/raylet"):
            if pattern.search(_line(process)):
                return process
        return None

    def kill_raylet(self, node: int) -> None:
        """End a Ray node without warning; its `ray start` then ends what is left there."""
        raylet = self.raylet(node)
        assert raylet is not None, f"no raylet runs on node {node}"
        raylet.kill()
        wait_until(lambda: not _line(raylet), 10, "the end of the raylet")

    def drain(self, node: int, seconds: float) -> None:
        """Announce to the cluster that a node will be taken away after so long."""
        node_id = self.must(
            *(sys.executable, "-c", _NODE_ID, self.address(node)), **self.joined
        ).split()[-1]
        self.must(
            *(BIN / "ray", "drain-node", f"--address={HEAD}:6379", f"--node-id={node_id}"),
            *("--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot"),
            f"--deadline-remaining-seconds={seconds:.0f}",
        )

    def take_away(self, node: int) -> None:
        """End a Ray node that was to leave, unless it has by itself, having had nothing to do."""
        if self.raylet(node) is not None:
            self.kill_raylet(node)

    def stop_cluster(self) -> None:
        """End all of Ray on all nodes without warning, jobs being over."""
        processes = [p for p in self.processes() if _OF_RAY.search(_line(p))]
        for process in processes:
            try:
                process.kill()
            except psutil.Error:
                continue
        # What nobody waits for stays as a zombie, without a command line.
        wait_until(lambda: not any(map(_line, processes)), 20, "the end of all of Ray")

    def cpus(self) -> tuple[float, float]:
        """Logical CPUs of the cluster, all and free; zeros while it does not answer."""
        code = (
            # What workers of other jobs print is not to stand between the figures.
            "import ray; ray.init(logging_level='ERROR', log_to_driver=False);"
            "print(ray.cluster_resources().get('CPU', 0), ray.available_resources().get('CPU', 0))"
        )
        try:
            done = subprocess.run(
                self.enter(sys.executable, "-c", code),
                env=self.variables(self.joined),
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return 0.0, 0.0
        if done.returncode:
            return 0.0, 0.0
        total, free = done.stdout.split()[-2:]
        return float(total), float(free)

    def processes(self, *words: str) -> list[psutil.Process]:
        """Processes inside whose command line holds all the words."""
        matches = []
        for process in psutil.Process(self.holder).children(recursive=True) + [
            child for started in self.started for child in _tree(started.pid)
        ]:
            line = _line(process)
            if line and all(word in line for word in words) and process not in matches:
                matches.append(process)
        return matches

    def cut(self, node: int) -> None:
        """Pull a node's cable: it reaches nobody, and nothing tells either side."""
        self.must("ip", "link", "set", f"p{node}", "down", node=None)

    def mend(self, node: int) -> None:
        """Put it back."""
        self.must("ip", "link", "set", f"p{node}", "up", node=None)

    @property
    def s3_folder(self) -> Path:
        """Of the S3 server: its log of requests, and how it fails."""
        return self.folder / "s3"

    def fail_s3(self, faults: S3Faults) -> None:
        """Say how the S3 server fails from now on."""
        faults.write(self.s3_folder)

    def requests(self) -> list[str]:
        """Lines of the S3 server: seconds since 1970, address, method, path, status."""
        log = self.s3_folder / "requests.log"
        return log.read_text().splitlines() if log.exists() else []

    @property
    def disk(self) -> str:
        """A small disk that all nodes share, by the path that commands inside know it by."""
        return str(self.folder / "disk")

    @property
    def disk_from_outside(self) -> Path:
        """The same by a path of this process."""
        return Path(f"/proc/{self.holder}/root{self.disk}")

    def fill_disk(self) -> None:
        """Leave no room on the small disk, whatever is on it."""
        for _ in range(20):
            used = self.must("df", "--block-size=1K", "--output=used", self.disk).split()[-1]
            try:
                # Not under 4 kB, which would mean no limit.
                self._resize(f"{max(4, int(used))}k")
                return
            except AssertionError:
                continue  # It has been written to in between.
        raise TimeoutError(f"{self.disk} is written to too fast to fill it")

    def empty_disk(self) -> None:
        """Take back what `fill_disk` did."""
        self._resize(f"{self.disk_mib}m")

    def _resize(self, size: str) -> None:
        self.must("mount", "-o", f"remount,size={size}", self.disk)


_OF_RAY = re.compile(r"^ray::|/bin/ray start|/site-packages/ray/")


_NODE_ID = """
import sys, ray
ray.init(logging_level="ERROR", log_to_driver=False)
nodes = (n for n in ray.nodes() if n["Alive"] and n["NodeManagerAddress"] == sys.argv[1])
print(next(nodes)["NodeID"])
"""
"""Prints the identifier of the Ray node at an address."""


def _line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _tree(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


@contextmanager
def network(
    num_nodes: int,
    *,
    s3: bool = False,
    disk_mib: int = 64,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Network]:
    """Nodes that see each other and nothing else; whatever runs on them ends with the context.

    Args:
        num_nodes: From 1 to 90.
        s3: Run an S3 server, with the bucket `BUCKET`, and point all commands to it.
        disk_mib: Size of the small disk.
        environment: More of it for all commands, over `ENVIRONMENT`.
    """
    # Sockets lie in it, whose paths must be short.
    folder = Path(tempfile.mkdtemp(prefix="ns-"))
    # It ends with this process, however that ends.
    keeper = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *_UNSHARE, "sleep", "infinity"], cwd=REPOSITORY
    )
    known: dict[str, Any] = {**ENVIRONMENT, "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    if s3:
        known |= s3_server.ENVIRONMENT | {"AWS_ENDPOINT_URL": f"http://{S3_HOST}:{S3_PORT}"}
    try:
        wait_until(lambda: _is_ready(keeper.pid), 10, "a process in the namespace")
        made = Network(
            holder=psutil.Process(keeper.pid).children()[0].pid,
            folder=folder,
            num_nodes=num_nodes,
            environment=known | dict(environment or {}),
            disk_mib=disk_mib,
        )
        made.must("sh", "-ec", _layout(made), node=None)
        if s3:
            _serve(made)
        yield made
    finally:
        # The first process of a namespace takes all others with it.
        keeper.kill()
        keeper.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _is_ready(keeper: int) -> bool:
    """Whether the namespaces are made: its child is what was to run in them."""
    children = psutil.Process(keeper).children()
    return bool(children) and children[0].name() == "sleep"


def _layout(made: Network) -> str:
    """The commands that lay out bridge, cables, nodes and disk."""
    lines = [
        "mount -t tmpfs tmpfs /run",
        "ip link set lo up",
        "ip link add br0 type bridge",
        "ip link set br0 up",
        f"mkdir {made.disk}",
        f"mount -t tmpfs -o size={made.disk_mib}m tmpfs {made.disk}",
    ]
    places = {f"n{k}": (f"p{k}", made.address(k)) for k in range(made.num_nodes)}
    for name, (port, address) in (places | {"s3": ("ps3", S3_HOST)}).items():
        lines += [
            f"ip netns add {name}",
            f"ip link add {port} type veth peer name {INTERFACE} netns {name}",
            f"ip link set {port} master br0 up",
            f"ip -n {name} addr add {address}/24 dev {INTERFACE}",
            f"ip -n {name} link set {INTERFACE} up",
            f"ip -n {name} link set lo up",
        ]
    return "\n".join(lines)


def _serve(made: Network) -> None:
    made.s3_folder.mkdir()
    command = (sys.executable, "-m", "tests.s3_server", S3_HOST, S3_PORT, made.s3_folder)
    started = made.start(*command, node="s3")
    wait_until(
        lambda: (made.s3_folder / "ready").exists() or started.process.poll() is not None,
        60,
        "the S3 server",
    )
    assert started.process.poll() is None, started.log.read_text()
    made.must(sys.executable, "-c", _MAKE_BUCKET, f"http://{S3_HOST}:{S3_PORT}/{BUCKET}")


_MAKE_BUCKET = """
import sys, urllib.request
urllib.request.urlopen(urllib.request.Request(sys.argv[1], method="PUT"))
"""
