"""What the interval of a person's percentile among healthy people of similar age covers.

python -m benchmarks.normative            about 4 minutes on 2 cores
python -m benchmarks.normative --quick    small, to see that it runs; keeps nothing

Healthy people of 18 to 90 years are drawn from populations whose scores rise with age: normal,
skewed, with heavy tails, with a spread that grows, along a bent curve. One more person of the same
population, of an age within theirs, is placed as `predict` does it
(`uadray.metrics.normative.at_age`), and the percentile that is true at this age is looked up.
The shares are over the persons who get a percentile, as in use. A line beside them has what a
normal distribution with a linear trend, the usual norm of single cases (Crawford and Howell 2006,
here with the interval of Crawford and Garthwaite 2007), and all people without their ages cover.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import scipy.stats

from benchmarks.coverage import _each
from benchmarks.harness import Row, arguments, measure
from uadray.metrics.normative import SIMILAR_YEARS, among, at_age

YOUNGEST, OLDEST = 18.0, 90.0

NUMBERS = (13, 30, 100, 300)
"""Healthy people of a reference."""

Quantile = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Score of an age at a share of the population."""


def _life(age: np.ndarray) -> np.ndarray:
    return (age - YOUNGEST) / (OLDEST - YOUNGEST)


def _normal(age: np.ndarray, share: np.ndarray) -> np.ndarray:
    return 1 + _life(age) + 0.3 * scipy.stats.norm.ppf(share)


def _skewed(age: np.ndarray, share: np.ndarray) -> np.ndarray:
    return np.exp(0.8 * _life(age) + 0.6 * scipy.stats.norm.ppf(share))


def _heavy(age: np.ndarray, share: np.ndarray) -> np.ndarray:
    return 1 + _life(age) + 0.3 * scipy.stats.t.ppf(share, 3)


def _fanning(age: np.ndarray, share: np.ndarray) -> np.ndarray:
    return 1 + _life(age) + (0.15 + 0.6 * _life(age)) * scipy.stats.norm.ppf(share)


def _bent(age: np.ndarray, share: np.ndarray) -> np.ndarray:
    return 1 + 2 * _life(age) ** 3 + 0.3 * scipy.stats.norm.ppf(share)


POPULATIONS: dict[str, Quantile] = {
    "normal": _normal,
    "skewed": _skewed,
    "heavy tails": _heavy,
    "spread grows with age": _fanning,
    "bent over age": _bent,
}


def normal_interval(
    value: float, age: float, values: np.ndarray, ages: np.ndarray, random: np.random.Generator
) -> tuple[float, float]:
    """The interval of the percentile with a linear trend and normal scores around it."""
    design = np.stack([np.ones(len(ages)), ages - age], -1)
    inverse = np.linalg.inv(design.T @ design)
    fitted = inverse @ design.T @ values
    rest, df = values - design @ fitted, len(values) - 2
    spread = np.sqrt(rest @ rest / random.chisquare(df, 2000))
    level = fitted[0] + spread * np.sqrt(inverse[0, 0]) * random.standard_normal(2000)
    low, high = np.quantile(scipy.stats.norm.cdf((value - level) / spread), (0.025, 0.975))
    return 100 * float(low), 100 * float(high)


def placed(name: str, num: int, seed: int) -> list[float]:
    """Of one reference: covered and width of ours, in the upper tenth, by all, by the normal."""
    population = POPULATIONS[name]
    random = np.random.default_rng([num, seed])
    ages = random.uniform(YOUNGEST, OLDEST, num)
    values = population(ages, random.uniform(size=num))
    age, share = random.uniform(ages.min(), ages.max()), random.uniform()
    value = float(population(np.array(age), np.array(share)))
    found = at_age(value, age, values, ages)
    every = among(value, values)
    assert every is not None
    usual = normal_interval(value, age, values, ages, random)
    true = 100 * share

    def covers(pair: tuple[float, float]) -> float:
        return float(pair[0] <= true <= pair[1])

    ours = np.nan if found is None else covers(found.interval)
    width = np.nan if found is None else found.interval[1] - found.interval[0]
    high = ours if share > 0.9 else np.nan
    return [ours, width, high, covers(every.interval), covers(usual), usual[1] - usual[0]]


def rows(quick: bool, _: Path) -> list[Row]:
    """All rows."""
    made, references = [], 50 if quick else 2_000
    for num in NUMBERS[1:2] if quick else NUMBERS:
        for name in POPULATIONS:
            found = np.array(_each(partial(placed, name, num), references))
            ours, width, high, every, usual, narrow = np.nanmean(found, axis=0)
            known = np.isfinite(found[:, 0]).mean()
            made.append(
                Row(
                    f"95 % intervals of the percentile that cover: {name}, {num} people",
                    100 * float(ours),
                    "%",
                    goal=">= 94",
                    detail=f"{references} references; {100 * known:.0f} % of persons have enough "
                    f"people within {SIMILAR_YEARS:g} years, with intervals {width:.0f} points "
                    f"wide; of persons in the upper tenth {100 * high:.1f} % are covered. All "
                    f"people without their ages: {100 * every:.0f} %; a normal distribution along "
                    f"a line: {100 * usual:.0f} %, {narrow:.0f} points wide",
                )
            )
    return made


if __name__ == "__main__":
    measure("normative", rows, arguments().parse_args().quick)
