"""How sure figures are: intervals over people, differences over people and fits.

The person is the unit: voxels of one brain, and scans of one person, are not independent. A figure
is computed with everyone, and again without each person and all their scans (the jackknife); how
far it moves gives its variance. That costs one more pass a person, holds for a ratio of sums as
for an area under a curve, and two methods evaluated on the same people pair person by person.

Three sources of chance add up:

- people: the jackknife. Its degrees of freedom follow how unevenly people weigh: where a few large
  lesions decide a figure, a hundred people tell no more about it than those few.
- fits: the variance of the fits that differ in the seed alone, where there are several, on degrees
  of freedom of its own (Satterthwaite). One fit of a method says nothing of the next seed.
- the threshold: the variance of the figure over thresholds refitted on resamples of the people that
  it was fitted on, added to that over people.

`python -m benchmarks.coverage` measures what the intervals cover and how often the tests are wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy.stats
from numpy.typing import NDArray
from scipy.special import expit

Values = NDArray[np.float64]

CONFIDENCE = 0.95
"""Share of cohorts in which an interval is meant to cover the figure of the population."""

LEVEL = 1 - CONFIDENCE
"""Two methods differ where the corrected p is below."""

MIN_PEOPLE = 5
"""Fewer people that bear on a figure give it no interval: what they cover was not measured."""

MIN_GROUP = 10
"""People of a group without whom nothing is said of how it differs from others: with 8 against 100,
groups that are alike differed in 7 % of cohorts."""

POWER = 0.8
"""Share of tables in which a difference is to be shown, by which needed numbers are reckoned."""

_END = 1e-9  # a figure as near to the end of its range stands on it

_EXACT = 13
"""Most people whose 2^(n - 1) exchanges are all tried; of more, `_DRAWN` are drawn."""

_DRAWN = 10_000


def leaving_out(people: Sequence[str]) -> NDArray[np.int64]:
    """Weights of scans: everyone, then everyone but one person.

    Args:
        people: (N,) the person of each scan.

    Returns:
        (1 + P, N) of 0 and 1; people in the order in which they first come.
    """
    names, place = np.unique(np.asarray(people, np.str_), return_inverse=True)
    first = np.array([np.flatnonzero(place == n)[0] for n in range(len(names))])
    order = np.argsort(first)
    without = np.stack([place != n for n in order]).astype(np.int64)
    return np.concatenate([np.ones((1, len(people)), np.int64), without])


def effective_number(weights: Values) -> float:
    """How many people of equal weight (P,) weights are worth: (sum w)^2 / sum w^2 (Kish 1965)."""
    total = float(np.square(weights).sum())
    return float(weights.sum()) ** 2 / total if total > 0 else 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Fits:
    """One figure of one method, of one or several fits, evaluated on the same P people."""

    values: Values
    """(S, 1 + P): of each fit with everyone, then without each person; NaN where undefined."""
    refits: Values | None = None
    """(S, B) with refitted thresholds; None where the figure needs none, or they were not kept."""
    effective: float | None = None
    """People of equal weight that the P are worth; None where each counts alike."""
    limits: tuple[float, float] = (-np.inf, np.inf)
    """Ends of the figure's range: (0, 1), (0, inf), or none."""

    @property
    def mean(self) -> Values:
        """(1 + P,) over the fits."""
        means: Values = self.values.mean(axis=0)
        return means


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A variance, and the degrees of freedom that it is known with."""

    variance: float
    df: float

    def widened(self, variance: float) -> "Spread":
        """With a further variance over people; degrees of freedom stay, or it could be narrower."""
        return Spread(variance=self.variance + variance, df=self.df)

    @property
    def half_width(self) -> float:
        """Of the 95 % interval."""
        return float(scipy.stats.t.ppf(0.5 + CONFIDENCE / 2, self.df) * np.sqrt(self.variance))


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One method minus another, on the same people."""

    value: float
    """Of the means over fits."""
    bounds: tuple[float, float] | None
    """95 % interval over people, thresholds and, where there are several, fits; None where too few
    people bear on it."""
    p: float
    """Two-sided, that two methods alike on average differ by as much; NaN without an interval."""
    over_people: float
    """Variance by the choice of people (and by thresholds)."""
    over_fits: float
    """Variance by the choice of fits; 0 where it is not known."""


_WIDEST = float(np.log(1e3))
"""Half of the widest interval on the log scale; a wider one says nothing."""


def interval(*cohorts: Fits) -> tuple[float, float] | None:
    """The 95 % interval of a figure, or of its mean over cohorts that share no person.

    A bounded figure is taken on the logit or the log scale, so that its interval stays inside.

    Args:
        cohorts: The same fits on each.

    Returns:
        Its ends; None where fewer than `MIN_PEOPLE` people bear on it, where one alone defines it,
        at an end of its range, where nothing varies, or where it would span a factor of a million.
    """
    first, num = cohorts[0], len(cohorts)
    value = float(np.mean([one.mean[0] for one in cohorts]))
    low, high = first.limits
    if not np.isfinite(value) or not low + _END < value < high - _END:
        return None
    change, back, slope = _scale(first.limits, value)
    moved = [change(value + (one.mean[1:] - one.mean[0]) / num) for one in cohorts]
    effective = [one.effective for one in cohorts if one.effective is not None]
    people = _over_people(change(value), moved, sum(effective) if effective else None)
    if people is None:
        return None
    # What the jackknife says of the bias: a ratio of few sums is a little low or high.
    bias = sum((len(one) - 1) * (one.mean() - change(value)) for one in moved)
    each = np.mean([one.values[:, 0] for one in cohorts], axis=0)
    refits = sum(_over_refits(one.refits) for one in cohorts) * (slope / num) ** 2
    parts = [people.widened(refits), _over_fits(each * slope)]
    half, centre = _sum(parts).half_width, change(value) - bias
    if np.isinf(high) and np.isfinite(low) and half > _WIDEST:
        return None
    return float(back(centre - half)), float(back(centre + half))


def difference(
    ours: Fits, theirs: Fits, counts: tuple[NDArray, NDArray] | None = None
) -> Difference:
    """Compare two methods on the same people, over people and fits.

    p is the larger of two tests'. A t test on the difference, whose variance is that over people,
    over the fits of either side (Welch) and over refitted thresholds, knows of seeds; the exchange
    of the two methods' predictions within people is exact whatever lesions weigh (Fisher 1935),
    and knows of people alone.

    Args:
        ours: One method.
        theirs: The other, on the same people in the same order.
        counts: (3, P) true positives, false positives and lesion voxels of either method at its
            threshold, averaged over its fits: for the exchange, where the figure is Dice_D. For
            other figures None: what is exchanged is how far each person moves the difference.
    """
    gap = ours.mean - theirs.mean
    people = _over_people(gap[0], [gap[1:]])
    nothing = Difference(
        value=float(gap[0]), bounds=None, p=np.nan, over_people=np.nan, over_fits=np.nan
    )
    if people is None or not np.isfinite(gap[0]):
        return nothing
    fits = [_over_fits(ours.values[:, 0]), _over_fits(theirs.values[:, 0])]
    paired = ours.refits is not None and theirs.refits is not None
    paired = paired and ours.refits.shape[1] == theirs.refits.shape[1]  # type: ignore[union-attr]
    if paired:
        means = [np.mean(one.refits, axis=0) for one in (ours, theirs)]  # type: ignore[arg-type]
        refits = _over_refits((means[0] - means[1])[None])
    else:
        refits = _over_refits(ours.refits) + _over_refits(theirs.refits)
    people = people.widened(refits)
    total = _sum([people, *fits])
    exchanged = _exchange(*counts) if counts is not None else _exchange_moves(gap)
    t = gap[0] / np.sqrt(total.variance)
    return Difference(
        value=float(gap[0]),
        bounds=(float(gap[0] - total.half_width), float(gap[0] + total.half_width)),
        p=max(2 * float(scipy.stats.t.sf(abs(t), total.df)), exchanged),
        over_people=people.variance,
        over_fits=sum(one.variance for one in fits),
    )


def gap(here: Fits, there: Fits) -> Difference:
    """Compare one method's figure on two groups of people that share nobody.

    A t test whose variance is that over the people of either group, over refitted thresholds, which
    both share, and over fits. Its degrees of freedom are those of the group that tells less: with
    Welch's, which lie between, equal groups differed too often (`python -m benchmarks.strata`).

    Args:
        here: On one group.
        there: Of the same fits, on the other.

    Returns:
        Without an interval and p where one of the groups has fewer than `MIN_GROUP` people.
    """
    value = float(here.mean[0] - there.mean[0])
    people = [
        _over_people(one.mean[0], [one.mean[1:]], one.effective)
        for one in (here, there)
        if one.values.shape[1] > MIN_GROUP
    ]
    known = [one for one in people if one is not None]
    if len(known) < 2 or not np.isfinite(value):
        return Difference(value=value, bounds=None, p=np.nan, over_people=np.nan, over_fits=np.nan)
    refits = 0.0
    if here.refits is not None and there.refits is not None:
        refits = _over_refits(here.refits - there.refits)
    fits = _over_fits(here.values[:, 0] - there.values[:, 0])
    over_people = sum(one.variance for one in known) + refits
    least = Spread(variance=over_people, df=min(one.df for one in known))
    total = _sum([least, fits])
    half = total.half_width
    return Difference(
        value=value,
        bounds=(value - half, value + half),
        p=2 * float(scipy.stats.t.sf(abs(value) / np.sqrt(total.variance), total.df)),
        over_people=over_people,
        over_fits=fits.variance,
    )


def least_p(num_people: int) -> float:
    """The smallest p that `difference` can give on that many people."""
    return 2.0 ** (1 - num_people) if num_people <= _EXACT else 1 / (1 + _DRAWN)


def can_reject(num_people: int, num_comparisons: int) -> bool:
    """Whether one of these comparisons could be significant at all, after Holm's correction."""
    return num_people >= MIN_PEOPLE and least_p(num_people) * num_comparisons < LEVEL


@dataclass(frozen=True, kw_only=True)
class Needed:
    """How many people and fits would show a difference in most tables."""

    people: int
    fits: int
    """Of each method that depends on a seed; 0 where neither does."""


def needed(
    gap: float, *, over_people: float, num_people: int, over_fits: float, num_fits: int, tests: int
) -> Needed:
    """How many people and fits would show a difference of `gap` with a power of `POWER`.

    By normal quantiles at the level of a first step of Holm: a first guess, on the low side where
    fits are few. Half of the variance is left to each source where both matter.

    Args:
        gap: Of the figure.
        over_people: Variance of the difference over people, as measured on `num_people`.
        num_people: See there.
        over_fits: The same over fits, measured with `num_fits` fits a method; 0 for none.
        num_fits: See there.
        tests: Comparisons of the table.
    """
    quantiles = scipy.stats.norm.isf(LEVEL / 2 / tests) + scipy.stats.norm.isf(1 - POWER)
    allowed = (gap / quantiles) ** 2
    if over_fits <= 0:
        return Needed(people=int(np.ceil(over_people * num_people / allowed)), fits=0)
    return Needed(
        people=int(np.ceil(2 * over_people * num_people / allowed)),
        fits=max(num_fits, int(np.ceil(2 * over_fits * num_fits / allowed))),
    )


def holm(p_values: Sequence[float]) -> Values:
    """Correct p values of several comparisons (Holm 1979): family-wise, step-down, in order.

    NaN stands for a comparison that was not made: it stays NaN and does not count.
    """
    p = np.asarray(p_values, dtype=np.float64)
    made = np.flatnonzero(~np.isnan(p))
    order = made[np.argsort(p[made], kind="stable")]
    corrected = np.full(p.shape, np.nan)
    corrected[order] = np.minimum(
        np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1.0
    )
    return corrected


def _over_people(
    value: float, moved: Sequence[Values], effective: float | None = None
) -> Spread | None:
    """Jackknife over the people of one or several cohorts, from the figure without each of them.

    The degrees of freedom are those of a sum of squares of which some terms are much larger than
    others: twice the number of people over the kurtosis of how far each moves the figure, at most
    n - 1. Where lesions weigh by their size the sample's own largest ones say too little of those
    that it lacks: half of the effective number of people is the limit then. Both were chosen by
    what the intervals cover (`benchmarks.coverage`), not derived.
    """
    if not all(np.isfinite(one).all() for one in moved):
        return None
    deviations = [one.mean() - one for one in moved]
    squares = sum(float((d**2).sum()) for d in deviations)
    moves = np.abs(np.concatenate(moved) - value)
    bearing = np.count_nonzero(moves > 1e-3 * moves.max())
    if squares == 0 or bearing < MIN_PEOPLE:
        return None
    variance = sum((len(d) - 1) / len(d) * float((d**2).sum()) for d in deviations)
    even = 2 * squares**2 / sum(float((d**4).sum()) for d in deviations)
    df = min(even, sum(len(d) - 1 for d in deviations))
    if effective is not None:
        df = min(even - 1, effective / 2)
    return Spread(variance=variance, df=max(df, 1.0))


def _over_fits(values: Values) -> Spread:
    """Of the mean over (S,) fits; nothing where there is one."""
    if len(values) < 2:
        return Spread(variance=0.0, df=1.0)
    return Spread(variance=float(values.var(ddof=1)) / len(values), df=len(values) - 1.0)


def _over_refits(values: Values | None) -> float:
    """Variance of the mean over fits, with (S, B) refitted thresholds; NaN are left out."""
    means = np.empty(0) if values is None else values.mean(axis=0)
    means = means[np.isfinite(means)]
    return float(means.var(ddof=1)) if len(means) > 1 else 0.0


def _sum(parts: Sequence[Spread]) -> Spread:
    """Independent variances together, with Satterthwaite's degrees of freedom."""
    total = sum(one.variance for one in parts)
    squares = sum(one.variance**2 / one.df for one in parts)
    return Spread(variance=total, df=total**2 / squares)


def _scale(limits: tuple[float, float], value: float):  # type: ignore[no-untyped-def]
    """A scale without ends, its inverse, and its slope at a value inside of the limits."""
    low, high = limits
    if np.isinf(low):
        return (lambda x: x), (lambda x: x), 1.0
    # Without one person a figure may come to an end of its range: kept off it by a hundredth.
    floor = value - 0.99 * (value - low)
    if np.isinf(high):
        return (
            (lambda x: np.log(np.maximum(x, floor) - low)),
            (lambda y: low + np.exp(y)),
            (1 / (value - low)),
        )
    ceiling = value + 0.99 * (high - value)

    def logit(x):  # type: ignore[no-untyped-def]
        x = np.clip(x, floor, ceiling)
        return np.log((x - low) / (high - x))

    slope = (high - low) / ((value - low) * (high - value))
    return logit, (lambda y: low + (high - low) * expit(y)), slope


@lru_cache(maxsize=4)
def _signs(num: int) -> Values:
    """Who is exchanged, +1 or -1: all ways but for the overall sign, or some that are drawn."""
    if num <= _EXACT:
        ways = np.arange(2 ** (num - 1))[:, None] >> np.arange(num)
        return np.where(ways & 1, -1.0, 1.0)
    drawn = np.random.default_rng(0).integers(0, 2, (_DRAWN + 1, num)) * 2.0 - 1
    drawn[0] = 1
    return np.asarray(drawn, np.float64)


def _exchange(ours: NDArray, theirs: NDArray) -> float:
    """Share of the exchanges within people after which Dice_D differs at least as much."""
    signs = _signs(ours.shape[1])
    sums, gaps = ours.sum(axis=1) + theirs.sum(axis=1), signs @ (ours - theirs)[:2].T
    lesion = ours[2].sum()

    def dice(sign: int) -> Values:
        positives = (sums[:2] + sign * gaps) / 2
        values: Values = 2 * positives[:, 0] / np.maximum(positives.sum(axis=1) + lesion, 1)
        return values

    return _share(np.abs(dice(1) - dice(-1)))


def _exchange_moves(gap: Values) -> float:
    """The same for any figure, of how far each person moves the difference (pseudo-values)."""
    num = len(gap) - 1
    return _share(np.abs(_signs(num) @ (num * gap[0] - (num - 1) * gap[1:])))


def _share(differences: Values) -> float:
    """Share that is at least the first, which exchanges nobody; rounding apart."""
    return float((differences >= differences[0] * (1 - 1e-9)).mean())
