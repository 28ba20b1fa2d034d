"""Seconds until a job works: sent to a cluster that stands, or with a Ray of its own.

Part of `python -m benchmarks.scaling`. The cluster is a node in a namespace of its own.
"""

import time
from statistics import median

from benchmarks.harness import Row
from tests import nodes
from tests.nodes import HEAD, Network

_CONNECT = "from uadray import cluster; cluster.connect(); import ray; ray.get(ray.put(1))"
_TASK = f"{_CONNECT}; ray.get(ray.remote(lambda: 1).remote())"


def rows(*, rounds: int = 3) -> list[Row]:
    """Medians of a few."""
    if missing := nodes.why_not():
        print(f"the start of jobs is left out: {missing}")
        return []
    with nodes.network(1) as net:
        net.cluster([2])
        submit = ("ray", "job", "submit", "--address", f"http://{HEAD}:8265", "--working-dir", ".")
        sides = {
            "sent: python -c pass": (*submit, "--", "python", "-c", "pass"),
            "sent: joined, first task done": (*submit, "--", "python", "-c", _TASK),
            "sent: jobs/train.py --help": (*submit, "--", "python", "jobs/train.py", "--help"),
            "not sent: joined, first task done": ("python", "-c", _TASK),
        }
        found = [
            Row(measure=f"a job's start, {name}", value=_seconds(net, command, rounds), unit="s",
                detail=f"median of {rounds}, after one that warms up")
            for name, command in sides.items()
        ]  # fmt: skip
    with nodes.network(1) as net:
        alone = ("python", "-c", _TASK)
        start = _seconds(net, alone, rounds, joined=False)
    return [
        *found,
        Row(measure="a job's start, Ray of its own, first task done", value=start, unit="s",
            detail=f"median of {rounds}, after one that warms up"),
    ]  # fmt: skip


def _seconds(net: Network, command: tuple[str, ...], rounds: int, *, joined: bool = True) -> float:
    taken = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        net.start(*command, **(net.joined if joined else {})).must(120)
        taken.append(time.perf_counter() - start)
    return median(taken[1:])
