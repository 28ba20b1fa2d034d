"""The one place that starts Ray or joins it: `connect`.

A job joins the cluster that `RAY_ADDRESS` names (`ray job submit` sets it) and else starts one of
its own on this machine, for as long as the process lives.
"""

import errno
import hashlib
import logging
import math
import os
import re
import secrets
import signal
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from uadray import device, files
from uadray.errors import ConfigError, StartError, UadrayError
from uadray.memory import ONE_ARENA

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray Data draws bars for each operator; the jobs print one line of their own instead.
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # An interrupt ends a sweep as it ends every job; Tune would swallow it and advise on its own.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # The coming behaviour: a task that asked for no GPU keeps CUDA_VISIBLE_DEVICES as it is.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

KEEP_WORKERS = {"RAY_idle_worker_killing_time_threshold_ms": "60000"}
"""Environment of each node of a cluster.

A node with more worker processes than CPUs, as where tasks that read stand beside actors that
compute, ends those that have had nothing to do for a second. The next volumes then wait for a new
one, which takes some five CPU seconds to start.
"""

_CHATTY = (
    "ray._private.authentication.authentication_token_setup",
    "ray.data._internal.progress",
)
"""Loggers whose warnings say at every start what is meant to be so."""


def connect(*, dashboard: bool = False) -> None:
    """Join the cluster at `RAY_ADDRESS`, or start Ray on this machine; nothing if already in one.

    Args:
        dashboard: Start the dashboard with a Ray of our own. Tune needs it: the worker groups of
            stopped trials are freed through its State API.

    Raises:
        StartError: no cluster answers at `RAY_ADDRESS`, or Ray could not start here.
    """
    # A Ray that is started here inherits them, and so do its workers.
    for name, value in (_QUIET | ONE_ARENA | KEEP_WORKERS | device.ENVIRONMENT).items():
        os.environ.setdefault(name, value)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    # Never "auto": that searches the machine's processes and may find another one's Ray.
    address = os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        _bring_token()
    # Ray reads these variables when it is imported.
    import ray
    from ray.data import DataContext

    if not ray.is_initialized():
        if address == "local":
            _start(dashboard)
        else:
            _join(address)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Ray's own wrapping of an error in a map keeps its text alone, not the error.
    context.raise_original_map_exception = True
    logging.getLogger("ray.data").setLevel(logging.WARNING)


def _bring_token() -> None:
    """Give a Ray of our own a token of its own, unless the user has one.

    Ray would leave the one that it makes in the home folder, and that switches authentication on
    for each later `ray start`, but not for the `ray job submit` that is to talk to it; and a home
    that cannot be written to would end the job.
    """
    given = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if not given and not Path("~/.ray/auth_token").expanduser().exists():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep this process's handler of SIGTERM while Ray starts.

    Ray puts two in its place, of which the inner one aborts the process three seconds later.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _start(dashboard: bool) -> None:
    import ray

    before = set(psutil.Process().children())
    for attempt in range(2):
        try:
            with _own_signals():
                ray.init(
                    address="local", logging_level=logging.WARNING, include_dashboard=dashboard
                )
            return
        except Exception as error:
            if attempt > 0 or _LATE not in str(error):
                raise StartError(f"Ray did not start on this machine: {_why_not(error)}") from error
        # What came too late would go on beside the next, and take its CPU.
        children = psutil.Process().children()
        late = [one for one in children if one not in before and _is_of_ray(one)]
        for child in late:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(late, timeout=_ANSWERING_S)


def _is_of_ray(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return any("/ray/" in word for word in process.cmdline())
    return False


_LATE = "timed out during startup"
"""What Ray says where it was not ready within 30 s, which no one can set."""


def _why_not(error: Exception) -> str:
    """Why Ray did not start, and what to do."""
    text = str(error)
    if _LATE in text:
        return (
            "twice it was not ready within its 30 s, as on a machine busy with other work. Run "
            "the same command again, it goes on where it stopped; or start Ray apart "
            "(`ray start --head`) and set RAY_ADDRESS"
        )
    if "AF_UNIX path length" in text:
        folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
        return (
            f"the path of its temporary folder, {folder}, is too long for the sockets that it "
            "keeps there. Set RAY_TMPDIR to a short one of this machine, such as RAY_TMPDIR=/tmp"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"no space is left for {error.filename or 'its temporary folder'}. Free some, or set "
            "RAY_TMPDIR to a folder with more, and run the same command again"
        )
    if isinstance(error, OSError) and error.filename:
        return (
            f"{error.filename} cannot be written ({error.strerror}). Set RAY_TMPDIR, for Ray's "
            "sessions, or HOME to a folder that can be"
        )
    return f"{type(error).__name__}: {text}"


_ANSWERING_S = 5.0
"""How long a cluster may take to accept a connection."""


def _join(address: str) -> None:
    import ray

    if address.startswith(("http://", "https://")):
        raise StartError(f"RAY_ADDRESS={address} is the address of a dashboard. {_JOINING}")
    if "://" not in address:
        _check_answers(address)
    try:
        with _own_signals():
            # A cluster that is joined has its own dashboard.
            ray.init(address=address, logging_level=logging.WARNING)
    except Exception as error:
        raise StartError(
            f"the cluster at RAY_ADDRESS={address} cannot be joined ({_first_line(error)}). "
            f"{_JOINING}"
        ) from error


_JOINING = (
    "RAY_ADDRESS is what `ray start --head` prints, such as 10.0.0.1:6379, not the dashboard's "
    "http:// address, and this machine must be a node of that cluster: from any other, send the "
    "job with `ray job submit`. Unset RAY_ADDRESS to start Ray on this machine"
)


def _check_answers(address: str) -> None:
    """Refuse an address where no Ray answers: joining would try for two minutes and more."""
    from ray._private.services import canonicalize_bootstrap_address
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.exceptions import RayError

    try:
        # Of "auto", that of the Ray that was last started on this machine.
        bootstrap = canonicalize_bootstrap_address(address) or ""
        host, _, port = bootstrap.rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWERING_S).close()
        GcsClient(address=bootstrap)
    except (OSError, OverflowError, ValueError, RayError) as error:
        if "InvalidAuthToken" in str(error):
            raise StartError(
                f"the cluster at RAY_ADDRESS={address} has token authentication on and refuses "
                "this process: export RAY_AUTH_MODE=token, with that cluster's token in "
                "~/.ray/auth_token or RAY_AUTH_TOKEN; or unset RAY_ADDRESS to start Ray on this "
                "machine"
            ) from error
        raise StartError(
            f"no Ray cluster answers at RAY_ADDRESS={address} ({_first_line(error)}): it has "
            f"ended, or another service listens there. {_JOINING}"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")


def check_shared(*folders: str) -> None:
    """Refuse local folders for results that other nodes of the cluster do not see.

    A file with a name of its own is left in each for as long as a task looks for it on every node
    that can do work; a URL such as `s3://` is seen by all.

    Raises:
        ConfigError: a node does not see one.
    """
    local = [folder for folder in folders if not files.is_remote(folder)]
    others = _other_nodes() if local else []
    if not others:
        return
    # Names under which the drafts of killed writers are removed, too.
    probes = [files.join(folder, f".shared.{uuid.uuid4().hex}") for folder in local]
    try:
        for probe in probes:
            files.write_bytes(probe, b"shared")
        _refuse_blind(others, probes, " and ".join(local), "does not see it")
    finally:
        for probe in probes:
            files.remove(probe)


def check_readable(*paths: str) -> None:
    """Refuse local files to read that other nodes of the cluster lack, or have in another version.

    Copies of the same content on each node are as good as a shared folder. A file that this node
    lacks is left to its reader.

    Raises:
        ConfigError: a node lacks one.
    """
    local = [path for path in paths if not files.is_remote(path) and _mark(path)]
    others = _other_nodes() if local else []
    if others:
        _refuse_blind(others, local, " and ".join(local), "lacks it, or has another version")


def room() -> tuple[list[float], list[float]]:
    """Logical CPUs and GPUs of each node."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus, gpus = ([float(node.get(kind, 0)) for node in nodes] for kind in ("CPU", "GPU"))
    return cpus, gpus


def num_fitting(
    nodes: Iterable[tuple[float, float]], cpus: float, gpus: float = 0.0, *, left: float = 0.0
) -> int:
    """How many workers find room on nodes.

    Args:
        nodes: Logical CPUs and GPUs of each node.
        cpus: Logical CPUs of a worker.
        gpus: Its GPUs; several share one whose parts are large enough, none has parts of two.
        left: Logical CPUs that each node keeps for other work.
    """
    total = 0
    for node_cpus, node_gpus in nodes:
        fit = math.floor((node_cpus - left) / cpus + _ROUNDING)
        if gpus:
            parts = math.floor(1 / gpus + _ROUNDING)
            fit = min(fit, math.floor(node_gpus) * parts if parts else int(node_gpus // gpus))
        total += max(0, fit)
    return total


def without_gpus(nodes: Iterable[tuple[float, float]], gpus: float) -> str:
    """What to say where no worker that takes so many GPUs finds room on nodes."""
    there = ", ".join(f"{cpus:g} CPUs and {count:g} GPUs" for cpus, count in nodes)
    return (
        f"a worker takes {gpus:g} GPUs, and no node has them beside CPUs for it (nodes of {there}; "
        "Ray counts no GPU whose driver it does not find): compute on CPUs, or start a node with "
        "GPUs first"
    )


_ROUNDING = 1e-9
"""Three times a third is one."""


def places_gpus() -> bool:
    """Whether Ray is to decide which GPU a driver's work takes: in a cluster that it has joined.

    `ray job submit --entrypoint-num-gpus` has decided before the driver began.
    """
    has_joined = os.environ.get("RAY_ADDRESS", "local") not in ("", "local")
    return has_joined and device.assigned_gpus() is None and not device.is_given_a_gpu()


MAX_CHECKED_NODES = 16
"""More are not asked: folders are missing on one node, or on all but one."""

_ANSWER_S = 60.0
"""A node that does not answer within this many seconds does not count against the folder."""


def _other_nodes() -> list[dict[str, Any]]:
    """Nodes that can do work, without the one of this process."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    able = [
        node
        for node in ray.nodes()
        if node["Alive"] and (node["Resources"].get("CPU") or node["Resources"].get("GPU"))
    ]
    return [node for node in able if node["NodeID"] != here][:MAX_CHECKED_NODES]


def _refuse_blind(
    nodes: Sequence[Mapping[str, Any]], paths: Sequence[str], what: str, problem: str
) -> None:
    """Ask nodes for local files; refuse where one has not the content that they have here."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = [_mark(path) for path in paths]
    look = ray.remote(num_cpus=0, max_retries=0)(_marks)
    asked = {
        look.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(list(paths)): node["NodeManagerAddress"]
        for node in nodes
    }
    done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_S)
    blind = []
    for answer in done:
        try:
            there = ray.get(answer)
        except ray.exceptions.RayError:
            continue  # a node that has just died sees nothing, and is not asked again
        if there != here:
            blind.append(asked[answer])
    if blind:
        raise ConfigError(
            f"{what}: node {', '.join(sorted(blind)[:3])} of the cluster {problem}. Tasks run on "
            "all nodes: give a folder that they share, such as one on NFS at the same path, or a "
            "URL such as s3://BUCKET/FOLDER"
        )


def _marks(paths: Sequence[str]) -> list[str]:
    return [_mark(path) for path in paths]


def _mark(path: str) -> str:
    """Size and both ends of a local file, in short; empty where it cannot be read."""
    try:
        with open(path.removeprefix("file://"), "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            ends = file.read(_END_BYTES)
            file.seek(max(0, size - _END_BYTES))
            ends += file.read(_END_BYTES)
    except OSError:
        return ""
    return f"{size}-{hashlib.sha256(ends).hexdigest()}"


_END_BYTES = 65_536
"""The seal of a cohort stands at the end of its attributes, whose beginning may be many scans."""


def wait_for_room(
    bundles: Sequence[Mapping[str, float]], fits: Callable[[], bool], minutes: float
) -> bool:
    """Ask an autoscaler for room and wait until it is there.

    Args:
        bundles: Resources of each worker.
        fits: Whether there is room by now.
        minutes: How long to wait; 0 asks for nothing.

    Returns:
        Whether there is room.
    """
    if minutes <= 0 or fits():
        return fits()
    from ray.autoscaler.sdk import request_resources

    deadline = time.monotonic() + 60 * minutes
    request_resources(bundles=[dict(bundle) for bundle in bundles])
    try:
        while not fits() and time.monotonic() < deadline:
            time.sleep(1)
    finally:
        # Those who wanted the nodes take them now; a standing request would keep them for ever.
        request_resources(bundles=[])
    return fits()


_ADVICE = re.compile(r"\nFailed to [^\n]+ after \d+/\d+ attempts")
"""Where Ray Data's lines on retries begin, which it appends to an error's message."""


def _without_advice(error: UadrayError) -> UadrayError:
    if error.args and isinstance(error.args[0], str):
        error.args = (_ADVICE.split(error.args[0])[0], *error.args[1:])
    return error


@contextmanager
def plain_errors() -> Iterator[None]:
    """Raise a named error of ours from inside Ray's wrapping of failed tasks and actors."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UadrayError) and not hasattr(error, "as_instanceof_cause"):
            raise
        # Ray's error of a task is also of the type that the task raised, with a traceback as text.
        cause: BaseException | None = error
        while cause is not None:
            inner = getattr(cause, "cause", None)
            for each in (inner, cause):
                if isinstance(each, UadrayError):
                    raise _without_advice(each) from None
            cause = inner if isinstance(inner, BaseException) else cause.__cause__
        raise
