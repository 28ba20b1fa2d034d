"""What large cohorts and many GPUs take: measured costs, weak scaling, and docs/scaling.md.

python -m benchmarks.scaling            about 8 minutes on 2 cores
python -m benchmarks.scaling --nodes    weak scaling alone: about 10 minutes, Linux and root
python -m benchmarks.scaling --quick    both, small, to see that they run; keeps nothing
python -m benchmarks.scaling --paper    docs/scaling.md again from what is measured
"""

from pathlib import Path
from statistics import median

from benchmarks import scaling_costs, scaling_driver, scaling_paper, scaling_weak
from benchmarks.harness import Row, arguments, measure, publish, timed
from tests import nodes
from tests.nodes import HEAD, Network

_CONNECT = "from uadray import cluster; cluster.connect(); import ray; ray.get(ray.put(1))"
_TASK = f"{_CONNECT}; ray.get(ray.remote(lambda: 1).remote())"


def job_starts(rounds: int) -> list[Row]:
    """Seconds until a job works, medians: sent to a cluster that stands, or with a Ray of its own.

    The cluster is a node in a namespace of its own.
    """
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
        starts = [
            Row(f"a job's start, {name}", _seconds(net, command, rounds), "s",
                detail=f"median of {rounds}, after one that warms up")
            for name, command in sides.items()
        ]  # fmt: skip
    with nodes.network(1) as net:
        alone = ("python", "-c", _TASK)
        start = _seconds(net, alone, rounds, joined=False)
    return [
        *starts,
        Row("a job's start, Ray of its own, first task done", start, "s",
            detail=f"median of {rounds}, after one that warms up"),
    ]  # fmt: skip


def _seconds(net: Network, command: tuple[str, ...], rounds: int, *, joined: bool = True) -> float:
    with_ray = net.joined if joined else {}
    seconds = [
        timed(lambda: net.start(*command, **with_ray).must(120))[1] for _ in range(rounds + 1)
    ]
    return median(seconds[1:])


def costs(quick: bool, folder: Path) -> list[Row]:
    """All but weak scaling."""
    counts = (200, 2_000) if quick else (10_000, 1_000_000)
    rows = scaling_costs.rows(folder, quick=quick) + scaling_driver.rows(folder, counts)
    return rows + job_starts(1 if quick else 3)


def main() -> None:
    parser = arguments()
    parser.add_argument("--nodes", action="store_true", help="weak scaling alone")
    parser.add_argument("--paper", action="store_true", help="write the page, measure nothing")
    given = parser.parse_args()
    if given.quick or not (given.paper or given.nodes):
        measure("scaling", costs, given.quick)
    if given.quick or given.nodes:
        if missing := scaling_weak.why_not():
            raise SystemExit(f"weak scaling cannot be measured: {missing}")
        small = scaling_weak.Weak(nodes=(1, 2), scans=24, volumes=24)
        measured = scaling_weak.rows(small if given.quick else scaling_weak.Weak())
        publish("scaling-nodes", measured, keep=not given.quick)
    if not given.quick:
        scaling_paper.write()


if __name__ == "__main__":
    main()
