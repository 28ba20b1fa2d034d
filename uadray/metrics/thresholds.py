"""Rules that turn a threshold part's counts into one level: lesion where level >= threshold.

Every rule is a lookup. Rules that use the truth need lesion voxels; `healthy_fpr` and `percentile`
also work on a part of healthy subjects. Level 0 means no anomaly and is never chosen.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from uadray.errors import ConfigError, EvaluationError
from uadray.metrics.counts import NUM_LEVELS, Threshold, ThresholdPart
from uadray.metrics.histograms import Histograms
from uadray.metrics.measures import dice_at_every_threshold
from uadray.metrics.postprocess import MAX_LEVEL, dequantise


def fit_threshold(part: ThresholdPart, rule: str = "bengs_bisection") -> Threshold:
    """Fit a threshold by the name of its rule, one of `RULES`; Bengs' search by default."""
    if rule not in RULES:
        raise ConfigError(f"threshold rule must be one of {sorted(RULES)}, was {rule!r}")
    return RULES[rule](part)


def refit_thresholds(
    part: ThresholdPart, rule: str, people: Sequence[str], num: int, seed: int = 0
) -> list[Threshold]:
    """Fit the threshold again on resamples of its people, to see how far its own fit moves it.

    Args:
        part: N scans to fit on.
        rule: See `fit_threshold`.
        people: (N,) the person of each scan: a resample draws people, with all their scans.
        num: Resamples. The same people, number and seed give the same draws for every method.
        seed: Of the draws.

    Returns:
        One a resample; those of which no threshold can be fitted, such as one without a lesion,
        are left out.
    """
    names, place = np.unique(np.asarray(people, np.str_), return_inverse=True)
    random = np.random.default_rng(seed)
    drawn = random.multinomial(len(names), np.full(len(names), 1 / len(names)), size=num)
    refitted = []
    for times in drawn:
        try:
            refitted.append(fit_threshold(part.weighted(times[place]), rule))
        except EvaluationError:
            continue
    return refitted


def bengs_bisection(part: ThresholdPart, iterations: int = 10) -> Threshold:
    """Search greedily as Bengs 2021, section 2.3.

    The interval starts as the whole score range (the paper: "0 to 1"). Dice is taken at the lower
    and the upper quartile of the interval, the half around the better one is kept, and so on; the
    threshold with the best Dice of all that were tried wins, the first of equals. The paper does
    not say what a tie keeps: we keep the lower half, since two equal values are most often two
    zeros above all scores.

    The steps are wide and greedy: a peak between the first thresholds can be missed altogether,
    even where the curve has no other. `best_dice` costs no more and is exact.

    Args:
        part: Subjects to fit on.
        iterations: Halvings of the interval; each tries two thresholds.
    """
    merged = _check(part, needs_lesion=True)
    low, high = 0.0, float(MAX_LEVEL)
    best_level, best = 1, -1.0
    for _ in range(iterations):
        quarter = (high - low) / 4
        levels = np.array([_level(low + quarter), _level(high - quarter)])
        tried = _dice_at(merged, levels)
        if tried.max() > best:
            best_level, best = int(levels[tried.argmax()]), float(tried.max())
        if tried[0] >= tried[1]:
            high -= 2 * quarter
        else:
            low += 2 * quarter
    return _threshold(part, best_level, "bengs_bisection")


def best_dice(part: ThresholdPart) -> Threshold:
    """Take the level with the best Dice of all: exact; the highest of equals."""
    merged = _check(part, needs_lesion=True)
    levels = merged.levels[merged.levels > 0]
    if len(levels) == 0:
        return _threshold(part, 1, "best_dice")
    tried = dice_at_every_threshold(merged)[-len(levels) :]
    return _threshold(part, int(levels[::-1][tried[::-1].argmax()]), "best_dice")


def meissen_linear(part: ThresholdPart, num: int = 100) -> Threshold:
    """Take the best of `num` evenly spaced thresholds (Meissen 2021, section 3.5).

    They span the score range; the paper searches on the test data, here it is the threshold part.
    The highest of equals wins.
    """
    merged = _check(part, needs_lesion=True)
    levels = np.array([_level(level) for level in np.linspace(0, MAX_LEVEL, num)])
    tried = _dice_at(merged, levels)
    return _threshold(part, int(levels[::-1][tried[::-1].argmax()]), "meissen_linear")


def best_linear_level(merged: Histograms, num: int = 100) -> int:
    """The level of the best of `num` thresholds, evenly spaced from 0 to the largest score.

    As the code of Meissen 2021 (section 3.5) searches, on the test data; the highest of equals.
    """
    levels = np.array([_level(level) for level in np.linspace(0, merged.levels[-1], num)])
    tried = _dice_at(merged, levels)
    return int(levels[::-1][tried[::-1].argmax()])


def no_threshold(score_range: tuple[float, float]) -> Threshold:
    """Stands where none is fitted: nothing is predicted, and what needs one is not reported."""
    value = float(dequantise(NUM_LEVELS, score_range))
    return Threshold(level=NUM_LEVELS, value=value, rule=NONE, fitted_on="nothing")


def healthy_fpr(part: ThresholdPart, rate: float) -> Threshold:
    """Take the lowest level at which at most `rate` of the healthy brain voxels are predicted.

    The brain is the un-eroded mask; background does not count (You 2019 counts voxels > 0).

    Args:
        part: Subjects to fit on; they may all be healthy.
        rate: False positive rate in (0, 1), usually 0.01, 0.05 or 0.1.
    """
    if not 0 < rate < 1:
        raise ConfigError(f"rate must lie in (0, 1), was {rate}")
    merged = _check(part)
    too_many = merged.levels[merged.false_positives > rate * merged.num_healthy]
    level = int(too_many[-1]) + 1 if len(too_many) else 1
    return _threshold(part, max(1, level), f"healthy_fpr_{100 * rate:g}")


def percentile(part: ThresholdPart, q: float = 98) -> Threshold:
    """Take the `q`-th percentile of the scores of all brain voxels, whatever their label.

    Baur 2018 takes the 98th. The brain is the un-eroded mask, so eroded voxels count with level
    0; between two ranks the higher one is taken (numpy's `higher`).

    Args:
        part: Subjects to fit on; they may all be healthy.
        q: Percentile in [0, 100].
    """
    if not 0 <= q <= 100:
        raise ConfigError(f"q must lie in [0, 100], was {q}")
    merged = _check(part)
    up_to = np.cumsum(merged.healthy + merged.lesion)
    rank = math.ceil(q / 100 * (up_to[-1] - 1))
    level = int(merged.levels[np.searchsorted(up_to, rank, side="right")])
    return _threshold(part, max(1, level), f"percentile_{q:g}")


NONE = "none"
"""Stands for a rule where no threshold is fitted."""

RULES: dict[str, Callable[[ThresholdPart], Threshold]] = {
    "bengs_bisection": bengs_bisection,
    "best_dice": best_dice,
    "meissen_linear": meissen_linear,
    "healthy_fpr_1": partial(healthy_fpr, rate=0.01),
    "healthy_fpr_5": partial(healthy_fpr, rate=0.05),
    "healthy_fpr_10": partial(healthy_fpr, rate=0.1),
    "percentile_98": percentile,
}
"""Rules by the name that their thresholds bear."""

WITHOUT_LESIONS = frozenset({"healthy_fpr_1", "healthy_fpr_5", "healthy_fpr_10", "percentile_98"})
"""Rules that healthy volumes are enough for."""


def _check(part: ThresholdPart, *, needs_lesion: bool = False) -> Histograms:
    """Return the part's pooled brain voxels, or refuse to fit on it."""
    if not isinstance(part, ThresholdPart):
        raise TypeError(
            f"expected a ThresholdPart to fit on, came {type(part).__name__}: thresholds are "
            "frozen before the test part is touched"
        )
    merged = part.merged("brain")
    if needs_lesion and merged.num_lesion == 0:
        raise EvaluationError(
            f"counts {part.name!r} hold no lesion voxel in {len(part.subjects)} subjects; expected "
            "some to fit a threshold by Dice: check the lesion masks, or use healthy_fpr_5"
        )
    if merged.num_healthy == 0:
        raise EvaluationError(
            f"counts {part.name!r} hold no healthy brain voxel; check the brain masks"
        )
    return merged


def _level(position: float) -> int:
    """Return the level at or above a real position on the level axis, never 0."""
    return max(1, math.ceil(position))


def _dice_at(merged: Histograms, levels: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return Dice at any levels: that of the next used level upwards, 0 above the last."""
    curve = np.append(dice_at_every_threshold(merged), 0.0)
    return curve[np.searchsorted(merged.levels, levels, side="left")]


def _threshold(part: ThresholdPart, level: int, rule: str) -> Threshold:
    value = float(dequantise(level, part.score_range))
    return Threshold(level=level, value=value, rule=rule, fitted_on=part.name)
