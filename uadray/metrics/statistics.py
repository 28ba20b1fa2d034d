"""How sure the numbers are: bootstrap intervals over subjects, paired tests between methods.

Subjects are the unit that is drawn; voxels of one brain are not independent. A resample is a row
of integer weights, and its counts are the weighted sum of the subjects' counts, so a thousand
resamples are one sweep over the levels and not a thousand passes over voxels.

The intervals speak of the test subjects alone: the trained model and the frozen threshold are
taken as given, and the spread over training seeds is not in them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from uadray.errors import ConfigError
from uadray.metrics.counts import TestPart, Threshold
from uadray.metrics.table import METRICS, Resampled

CONFIDENCE = 0.95
"""Share of the resamples between the ends of an interval."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with a percentile bootstrap interval over subjects."""

    estimate: float
    """The value on the test part as it is."""

    low: float
    """Lower end; NaN where fewer than two resamples define the value."""

    high: float
    """Upper end."""

    resamples: NDArray[np.float64] = field(repr=False, compare=False)
    """(R,) the value in each resample, NaN where undefined. The same seed draws the same subjects,
    so the difference of two methods is that of their resamples."""


def bootstrap(
    test: TestPart, threshold: Threshold, num_resamples: int = 1000, seed: int = 0
) -> dict[str, Interval]:
    """Bound the reported metrics by resampling subjects with replacement.

    Args:
        test: Counts of N test subjects.
        threshold: Frozen threshold for the Dice at one threshold.
        num_resamples: Resamples.
        seed: Seed of the draw; the same seed draws the same subjects for every method.

    Returns:
        Intervals by the key of each metric that has one.

    Raises:
        TypeError: `test` is not a test part.
        EvaluationError: The threshold does not belong to it.
    """
    num = len(test.subjects)
    # The first row counts every subject once: the estimate is computed as the resamples are.
    weights = np.concatenate(
        [np.ones((1, num), np.int64), resampling_weights(num, num_resamples, seed)]
    )
    drawn = Resampled(test, threshold, weights)
    values = {metric.key: metric.resampled(drawn) for metric in METRICS if metric.resampled}
    return {key: interval(row[0], row[1:], num_subjects=num) for key, row in values.items()}


def interval(estimate: float, resamples: NDArray[np.float64], *, num_subjects: int = 2) -> Interval:
    """Bound an estimate by the percentiles of its (R,) resamples; NaN among them are left out.

    Of fewer than two subjects every resample is the same, so that there is no interval: NaN.
    """
    defined = resamples[~np.isnan(resamples)]
    tail, low, high = 50 * (1 - CONFIDENCE), np.nan, np.nan
    if len(defined) > 1 and num_subjects > 1:
        low, high = np.percentile(defined, [tail, 100 - tail])
    return Interval(estimate=float(estimate), low=float(low), high=float(high), resamples=resamples)


def wilcoxon_p(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return the two-sided p of Wilcoxon's signed-rank test on paired values.

    Args:
        a: (N,) of one method, NaN where undefined; such pairs are left out.
        b: (N,) of the other, on the same subjects in the same order.

    Returns:
        p, exact for up to 50 pairs without ties (scipy's rule); 1 where all pairs are equal, NaN
        where there is none.
    """
    differences = (a - b)[~np.isnan(a) & ~np.isnan(b)]
    if len(differences) == 0:
        return float("nan")
    if not differences.any():
        return 1.0
    return float(scipy.stats.wilcoxon(differences).pvalue)


def resampling_weights(num_subjects: int, num_resamples: int, seed: int) -> NDArray[np.int64]:
    """Draw how often each subject stands in each resample: (R, N), every row sums to N."""
    if num_resamples < 1:
        raise ConfigError(f"num_resamples must be >= 1, was {num_resamples}")
    generator = np.random.default_rng(seed)
    return generator.multinomial(
        num_subjects, np.full(num_subjects, 1 / num_subjects), size=num_resamples
    )


def holm(p_values: Sequence[float]) -> NDArray[np.float64]:
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
