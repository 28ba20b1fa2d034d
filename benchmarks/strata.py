"""How often groups of people that a method serves alike are said to differ.

python -m benchmarks.strata            about 4 minutes on 2 cores
python -m benchmarks.strata --quick    small, to see that it runs; keeps nothing

The people are those of `benchmarks.coverage`: lesions of log-normal size, seen better or worse. A
group and all others, drawn alike, are set against each other as an evaluation does it
(`uadray.metrics.inference.gap`), before any correction for several groups.
"""

from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.coverage import FIGURES, HEADS, MODERATE, _each, truth_of
from benchmarks.harness import Row, arguments, measure
from uadray.metrics.counts import Threshold
from uadray.metrics.inference import gap, leaving_out
from uadray.metrics.table import fits_by_person

GROUPS = ((10, 40), (10, 190), (14, 14), (30, 100))
"""People of the group, and of all others."""


def p_values(threshold: Threshold, sizes: tuple[int, int], shift: float, seed: int) -> list[float]:
    """P of each figure for one cohort, whose group's lesions are seen worse by `shift`."""
    random = np.random.default_rng([*sizes, seed])
    fits = []
    for num, worse in zip(sizes, (shift, 0.0), strict=True):
        people = MODERATE.people(num, random)
        people["shared"][0] -= worse
        part = MODERATE.part(people, random)
        weights = leaving_out([str(n) for n in range(num)])
        fits.append(fits_by_person(part, threshold, weights))  # type: ignore[arg-type]
    return [gap(fits[0][key], fits[1][key]).p for key in FIGURES]


def rows(quick: bool, _: Path) -> list[Row]:
    """All rows."""
    threshold, _truth = truth_of(MODERATE, 2_000 if quick else 40_000)
    cohorts, made = 20 if quick else 1_000, []
    for sizes in GROUPS[:1] if quick else GROUPS:
        where = f"{sizes[0]} people against {sizes[1]}"
        equal = np.array(_each(partial(p_values, threshold, sizes, 0.0), cohorts))
        worse = np.array(_each(partial(p_values, threshold, sizes, 1.5), cohorts // 2))
        for key, column, shown in zip(FIGURES, equal.T, worse.T, strict=True):
            made.append(
                Row(
                    f"equal groups, p < .05: {HEADS[key]}, {where}",
                    100 * float((column < 0.05).mean()),
                    "%",
                    goal="<= 5",
                    detail=f"{cohorts} cohorts; of groups whose lesions are seen worse by 1.5 "
                    f"deviations of people {100 * (shown < 0.05).mean():.0f} % are found",
                )
            )
    return made


if __name__ == "__main__":
    measure("strata", rows, arguments().parse_args().quick)
