"""How sure the numbers are: bootstrap intervals over subjects, paired tests between methods.

Subjects are the unit that is drawn; voxels of one brain are not independent. A resample is a row
of integer weights, and its counts are the weighted sum of the subjects' counts, so a thousand
resamples are one sweep over the levels and not a thousand passes over voxels.

The intervals speak of the test subjects alone: the trained model and the frozen threshold are
taken as given, and the spread over training seeds is not in them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from uadray import npz
from uadray.errors import ConfigError, EvaluationError
from uadray.evaluate import metrics
from uadray.evaluate.counts import TestPart
from uadray.evaluate.resampling import resampled_curves
from uadray.evaluate.thresholds import Threshold


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with a percentile bootstrap interval over subjects."""

    estimate: float
    """The value on the test part as it is."""

    low: float
    """Lower end; NaN where fewer than two resamples define the value."""

    high: float
    """Upper end."""

    confidence: float
    """Share of the resamples between the ends, in (0, 1)."""

    num_resamples: int
    """Resamples that define the value; one that drew no lesion does not."""

    resamples: NDArray[np.float64] = field(repr=False, compare=False)
    """(R,) the value in each resample, NaN where undefined. The same seed draws the same subjects,
    so the difference of two methods is that of their resamples: see `difference`."""


@dataclass(frozen=True, kw_only=True)
class PairedComparison:
    """Method A against method B on the same subjects; differences are A - B."""

    dice_d: Interval
    """Difference of Dice_D, each at its own frozen threshold."""

    dice_s_mean: Interval
    """Difference of the mean subject-wise Dice."""

    auprc: Interval
    """Difference of the average precision."""

    wilcoxon_p: float
    """Two-sided p of Wilcoxon's signed-rank test on the subject-wise Dice; 1 where all are equal,
    NaN without subjects that have lesion. Not corrected: see `holm`."""

    num_subjects: int
    """Subjects in the comparison."""


def bootstrap(
    test: TestPart,
    threshold: Threshold,
    num_resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, Interval]:
    """Bound the reported metrics by resampling subjects with replacement.

    Args:
        test: Counts of N test subjects.
        threshold: Frozen threshold for the Dice at one threshold.
        num_resamples: Resamples.
        seed: Seed of the draw; the same seed draws the same subjects for every method.
        confidence: Share between the ends.

    Returns:
        Intervals for dice_d, dice_s_mean, auprc, auroc, upper_bound_dice and slice_auprc; AUPRC
        and AUROC over the whole grid, as in `compute_metrics`.

    Raises:
        TypeError: `test` is not a test part.
        EvaluationError: The threshold does not belong to it.
    """
    metrics.check_test(test, threshold)
    _check_confidence(confidence)
    weights = _with_everyone(resampling_weights(len(test.subjects), num_resamples, seed))
    curves = resampled_curves(test.histograms(), weights)
    slices = resampled_curves(test.slice_histograms(), weights)
    values = _dice_metrics(test, threshold, weights) | curves | {"slice_auprc": slices["auprc"]}
    num = len(test.subjects)
    return {
        name: interval(row[0], row[1:], confidence, num_subjects=num)
        for name, row in values.items()
    }


def paired_difference(
    test_a: TestPart,
    threshold_a: Threshold,
    test_b: TestPart,
    threshold_b: Threshold,
    num_resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> PairedComparison:
    """Compare two methods on the same subjects: every resample draws the same ones for both.

    Args:
        test_a: Counts of method A.
        threshold_a: Its frozen threshold.
        test_b: Counts of method B on the same subjects, in any order.
        threshold_b: Its frozen threshold.
        num_resamples: Resamples.
        seed: Seed of the draw.
        confidence: Share between the ends.

    Raises:
        TypeError: A part is not a test part.
        EvaluationError: Subjects or their lesions differ, or a threshold does not belong.
    """
    metrics.check_test(test_a, threshold_a)
    metrics.check_test(test_b, threshold_b)
    _check_confidence(confidence)
    test_b = _aligned(test_a, test_b)
    weights = _with_everyone(resampling_weights(len(test_a.subjects), num_resamples, seed))
    sides = [
        _dice_metrics(test, threshold, weights)
        | {"auprc": resampled_curves(test.histograms(), weights)["auprc"]}
        for test, threshold in ((test_a, threshold_a), (test_b, threshold_b))
    ]
    return PairedComparison(
        **{
            name: interval(
                a[0] - sides[1][name][0],
                a[1:] - sides[1][name][1:],
                confidence,
                num_subjects=len(test_a.subjects),
            )
            for name, a in sides[0].items()
        },
        wilcoxon_p=wilcoxon_p(
            metrics.dice_s(test_a, threshold_a.level), metrics.dice_s(test_b, threshold_b.level)
        ),
        num_subjects=len(test_a.subjects),
    )


def interval(
    estimate: float,
    resamples: NDArray[np.float64],
    confidence: float = 0.95,
    *,
    num_subjects: int = 2,
) -> Interval:
    """Bound an estimate by the percentiles of its (R,) resamples; NaN among them are left out.

    Of fewer than two subjects every resample is the same, so that there is no interval: NaN.
    """
    defined = resamples[~np.isnan(resamples)]
    tail, low, high = 50 * (1 - confidence), np.nan, np.nan
    if len(defined) > 1 and num_subjects > 1:
        low, high = np.percentile(defined, [tail, 100 - tail])
    return Interval(
        estimate=float(estimate),
        low=float(low),
        high=float(high),
        confidence=confidence,
        num_resamples=len(defined),
        resamples=resamples,
    )


def difference(a: Interval, b: Interval) -> Interval:
    """Return A - B of two methods whose resamples drew the same subjects, in the same order.

    Raises:
        EvaluationError: They do not hold equally many resamples.
    """
    if len(a.resamples) != len(b.resamples):
        raise EvaluationError(
            f"expected resamples of the same draws, came {len(a.resamples)} and "
            f"{len(b.resamples)}: evaluate both runs with the same number of resamples"
        )
    return interval(a.estimate - b.estimate, a.resamples - b.resamples, a.confidence)


def pack_resamples(subjects: Sequence[str], resamples: Mapping[str, NDArray[np.float64]]) -> bytes:
    """Return an npz file of resamples, by which two runs can be compared without their counts.

    Args:
        subjects: (N,) ids in the order that the draws refer to.
        resamples: (R,) values by the metric's name, of draws with seed 0.
    """
    return npz.pack(subjects=np.array(subjects, np.str_), seed=np.array(0), **resamples)


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


def _with_everyone(drawn: NDArray[np.int64]) -> NDArray[np.int64]:
    """Put a row first that counts every subject once: the estimate goes the resamples' way."""
    return np.concatenate([np.ones((1, drawn.shape[1]), drawn.dtype), drawn])


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence must lie in (0, 1), was {confidence}")


def _dice_metrics(
    test: TestPart, threshold: Threshold, weights: NDArray
) -> dict[str, NDArray[np.float64]]:
    per_subject = metrics.dice_s(test, threshold.level)
    return {
        "dice_d": metrics.dice_d(test, threshold.level, weights),
        "dice_s_mean": metrics.mean_dice_s(per_subject, weights),
    }


def _aligned(test_a: TestPart, test_b: TestPart) -> TestPart:
    """Return B's counts in the order of A's subjects, or say why they do not pair."""
    only = sorted(set(test_a.subjects) ^ set(test_b.subjects))
    if only:
        raise EvaluationError(
            f"{test_a.name!r} and {test_b.name!r} do not hold the same subjects: {only[:5]} stand "
            "in one only; score both methods on one test part"
        )
    test_b = test_b.select(test_a.subjects)
    other = np.flatnonzero(test_a.num_lesion != test_b.num_lesion)
    if len(other):
        raise EvaluationError(
            f"subject {test_a.subjects[other[0]]!r} has {test_a.num_lesion[other[0]]} lesion "
            f"voxels in {test_a.name!r}, {test_b.num_lesion[other[0]]} in {test_b.name!r}; "
            "expected the same truth: score both methods on one cohort"
        )
    return test_b
