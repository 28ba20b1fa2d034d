"""What large cohorts and many GPUs take: measured costs, weak scaling, and docs/scaling.md.

python -m benchmarks.scaling            about 8 minutes on 2 cores
python -m benchmarks.scaling --nodes    weak scaling alone: about 10 minutes, Linux and root
python -m benchmarks.scaling --quick    both, small, to see that they run; keeps nothing
python -m benchmarks.scaling --paper    docs/scaling.md again from what is measured
"""

import argparse
import tempfile
from pathlib import Path

from benchmarks import scaling_costs, scaling_driver, scaling_jobs, scaling_paper, scaling_weak
from benchmarks.harness import Row, publish

PAGE = Path(__file__).resolve().parents[1] / "docs" / "scaling.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small, to see that it runs")
    parser.add_argument("--nodes", action="store_true", help="weak scaling alone")
    parser.add_argument(
        "--paper", action="store_true", help="write docs/scaling.md, measure nothing"
    )
    given = parser.parse_args()
    if given.quick or not (given.paper or given.nodes):
        publish("scaling", _costs(quick=given.quick), keep=not given.quick)
    if given.quick or given.nodes:
        missing = scaling_weak.why_not()
        if missing:
            raise SystemExit(f"weak scaling cannot be measured: {missing}")
        small = scaling_weak.Weak(nodes=(1, 2), scans=24, volumes=24)
        found = scaling_weak.rows(small if given.quick else scaling_weak.Weak())
        publish("scaling-nodes", found, keep=not given.quick)
    if not given.quick:
        scaling_paper.write(PAGE)


def _costs(*, quick: bool) -> list[Row]:
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        rows += scaling_costs.rows(Path(folder), quick=quick)
    with tempfile.TemporaryDirectory() as folder:
        rows += scaling_driver.rows(Path(folder), (200, 2_000) if quick else (10_000, 1_000_000))
    return rows + scaling_jobs.rows(rounds=1 if quick else 3)


if __name__ == "__main__":
    main()
