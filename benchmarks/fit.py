"""How fast a fit is, against what one would write without us and against the hardware.

python -m benchmarks.fit            about 22 minutes on 2 quiet cores
python -m benchmarks.fit --workers  two workers against one, apart: about 4 minutes
python -m benchmarks.fit --quick    small, to see that it runs; keeps nothing

Without Ray (on a bare GPU machine) the rows about Ray are absent; without a GPU those about it.
"""

import importlib.util
from pathlib import Path

from benchmarks import erasing, step
from benchmarks.harness import Row, arguments, measure


def rows(quick: bool, folder: Path) -> list[Row]:
    """All rows."""
    measured = step.rows(quick)
    if importlib.util.find_spec("ray"):
        from benchmarks import through_ray

        measured += through_ray.rows(quick, str(folder))
    # Few rounds: `python -m benchmarks.erasing` measures it in full.
    return measured + [row for row in erasing.rows(quick=True) if "3D" in row.measure]


def two_workers(quick: bool, folder: Path) -> list[Row]:
    """Two workers against one."""
    from benchmarks import through_ray

    return through_ray.two_workers(quick, str(folder))


if __name__ == "__main__":
    parser = arguments()
    parser.add_argument("--workers", action="store_true", help="only two workers against one")
    given = parser.parse_args()
    if given.workers:
        measure("fit-workers", two_workers, given.quick)
    else:
        measure("fit", rows, given.quick)
