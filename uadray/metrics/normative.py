"""Where one person's score stands among those of healthy people, of all or of similar age.

No shape of their scores is assumed: healthy people whose score is lower are counted. Among people
of similar age the trend over age is taken out first: a straight line through the people within
twice as many years, so that what bends over a life bends here, too. The interval is the exact one
of a share (Clopper and Pearson 1934), wide where there are few people.

A normal distribution along a line gives intervals of half the width, which cover too little where
scores are skewed, spread more with age or bend; quantile regression has no outer percentiles for a
dozen people. `python -m benchmarks.normative` measures what the intervals cover.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uadray.metrics.inference import CONFIDENCE, MIN_PEOPLE

Values = NDArray[np.float64]

SIMILAR_YEARS = 10.0
"""People of similar age are at most this many years older or younger."""

MIN_TREND = 10
"""Fewest people within twice as many years that a trend over age is taken from; of fewer it is
taken from all people."""

MIN_BAND = 10
"""Fewest people of similar age for whom the 10th and 90th percentile are drawn."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One score among those of some healthy people."""

    num_people: int
    """Healthy people that it is compared with."""
    num_lower: float
    """Those of them with a lower score; the same score counts half."""
    percentile: float
    """The share that it is above, in percent."""
    interval: tuple[float, float]
    """95 % interval of the percentile in the population that they are drawn from."""


def among(value: float, values: Values) -> Standing | None:
    """Where a score stands among all people.

    Args:
        value: Of the person.
        values: (N,) of healthy people; NaN are left out.

    Returns:
        None where fewer than `MIN_PEOPLE` are left, or the score is not finite.
    """
    values = values[np.isfinite(values)]
    return _standing(value - values) if np.isfinite(value) else None


def at_age(value: float, age: float, values: Values, ages: Values) -> Standing | None:
    """Where a score stands among people of similar age.

    Args:
        value: Of the person.
        age: In years.
        values: (N,) of healthy people.
        ages: (N,) in years; NaN where it is not known, and these are left out.

    Returns:
        None where fewer than `MIN_PEOPLE` are within `SIMILAR_YEARS`, where the person is older or
        younger than all of them, so that their trend would have to go on, or where the score is
        not finite.
    """
    values, ages = _known(values, ages)
    near = is_similar(age, ages)
    if not near.any() or not ages.min() <= age <= ages.max() or not np.isfinite(value):
        return None
    return _standing(value - _moved_to(age, values, ages)[near])


def is_similar(age: float, ages: Values) -> NDArray[np.bool_]:
    """Which people (N,) are of similar age; nobody whose age is not known."""
    return np.abs(ages - age) <= SIMILAR_YEARS


def percentile_curves(
    at: Values, values: Values, ages: Values, percentiles: tuple[float, ...]
) -> Values:
    """Percentiles of healthy people over age, as `at_age` has them.

    Args:
        at: (G,) ages.
        values: (N,) of healthy people.
        ages: (N,) in years; NaN where it is not known.
        percentiles: (K,) in percent.

    Returns:
        (G, K); NaN where too few people are of similar age: `MIN_PEOPLE` for the median,
        `MIN_BAND` for others; or where all are younger or older.
    """
    values, ages = _known(values, ages)
    curves = np.full((len(at), len(percentiles)), np.nan)
    for row, age in zip(curves, at.tolist(), strict=True):
        near = is_similar(age, ages)
        if near.sum() < MIN_PEOPLE or not ages.min() <= age <= ages.max():
            continue
        moved = _moved_to(age, values, ages)[near]
        for place, percentile in enumerate(percentiles):
            if percentile == 50 or near.sum() >= MIN_BAND:
                row[place] = np.percentile(moved, percentile, method="median_unbiased")
    return curves


def _known(values: Values, ages: Values) -> tuple[Values, Values]:
    known = np.isfinite(values) & np.isfinite(ages)
    return values[known], ages[known]


def _moved_to(age: float, values: Values, ages: Values) -> Values:
    """What people (N,) would score at an age, along the line through those around it."""
    wide = np.abs(ages - age) <= 2 * SIMILAR_YEARS
    if wide.sum() < MIN_TREND:
        wide = np.ones(len(ages), bool)
    if np.ptp(ages[wide]) == 0:
        return values
    slope = np.polyfit(ages[wide] - age, values[wide], 1)[0]
    return np.asarray(values - slope * (ages - age), np.float64)


def _standing(above: Values) -> Standing | None:
    """From how far a score is above that of each of (N,) people."""
    from scipy.stats import binomtest

    num = len(above)
    if num < MIN_PEOPLE:
        return None
    lower, equal = int((above > 0).sum()), int((above == 0).sum())
    # A person with the same score may be on either side.
    low = binomtest(lower, num).proportion_ci(CONFIDENCE, "exact").low
    high = binomtest(lower + equal, num).proportion_ci(CONFIDENCE, "exact").high
    return Standing(
        num_people=num,
        num_lower=lower + equal / 2,
        percentile=100 * (lower + equal / 2) / num,
        interval=(100 * float(low), 100 * float(high)),
    )
