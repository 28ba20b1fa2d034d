"""How fast a fit is, against what one would write without us and against the hardware.

python -m benchmarks.fit            about 22 minutes on 2 quiet cores
python -m benchmarks.fit --workers  two workers against one, apart: about 4 minutes
python -m benchmarks.fit --quick    small, to see that it runs; keeps nothing

Without Ray (on a bare GPU machine) the rows about Ray are absent; without a GPU those about it.
"""

import argparse
import importlib.util
import tempfile

from benchmarks import erasing, step
from benchmarks.harness import Row, publish


def rows(quick: bool) -> list[Row]:
    """All rows."""
    found = step.rows(quick)
    if importlib.util.find_spec("ray"):
        from benchmarks import through_ray

        with tempfile.TemporaryDirectory() as folder:
            found += through_ray.rows(quick, folder)
    # Few rounds: `python -m benchmarks.erasing` measures it in full.
    found += [row for row in erasing.rows(quick=True) if "3D" in row.measure]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small, to see that it runs")
    parser.add_argument("--workers", action="store_true", help="only two workers against one")
    given = parser.parse_args()
    if given.workers:
        from benchmarks import through_ray

        with tempfile.TemporaryDirectory() as folder:
            found = through_ray.two_workers(given.quick, folder)
        publish("fit-workers", found, keep=not given.quick)
        return
    publish("fit", rows(given.quick), keep=not given.quick)


if __name__ == "__main__":
    main()
