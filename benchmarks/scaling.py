"""What large cohorts and many GPUs take: measured costs, weak scaling, and docs/scaling.md.

python -m benchmarks.scaling            about 12 minutes on 2 cores; the nodes take Linux and root
python -m benchmarks.scaling --quick    small, to see that it runs; keeps nothing
python -m benchmarks.scaling --paper    docs/scaling.md anew from what is measured
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
    parser.add_argument(
        "--paper", action="store_true", help="write docs/scaling.md, measure nothing"
    )
    given = parser.parse_args()
    if not given.paper:
        _measure(quick=given.quick)
    if not given.quick:
        scaling_paper.write(PAGE)


def _measure(*, quick: bool) -> None:
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        rows += scaling_costs.rows(Path(folder), quick=quick)
    with tempfile.TemporaryDirectory() as folder:
        rows += scaling_driver.rows(Path(folder), (200, 2_000) if quick else (10_000, 1_000_000))
    rows += scaling_jobs.rows(rounds=1 if quick else 3)
    # Kept before the nodes are simulated, the longest part and the one that may fail.
    publish("scaling", rows, keep=not quick)
    missing = scaling_weak.why_not()
    if missing:
        print(f"weak scaling is left out: {missing}")
        return
    small = scaling_weak.Weak(nodes=(1, 2), scans=12, volumes=12)
    rows += scaling_weak.rows(small if quick else scaling_weak.Weak())
    publish("scaling", rows, keep=not quick)


if __name__ == "__main__":
    main()
