"""Quality of anomaly maps, computed from counts alone.

Two families. Dice at *one* threshold comes from each subject's true and false positives; curves
over *all* thresholds come from `Histograms`, whose leading axes (resamples, or none) pass through.
Both are exact on the 65 536 levels. A ratio without lesion voxels is undefined and NaN, never 0
or 1: a subject without lesion says nothing about overlap.

"Predicted" is: level >= threshold, threshold >= 1. Level 0 means no anomaly and is never predicted.
"""

import numpy as np
from numpy.typing import NDArray

from uadray.metrics.counts import CohortCounts
from uadray.metrics.histograms import Histograms

Values = NDArray[np.float64]


def _ratio(part: Values, whole: Values) -> Values:
    """Divide; 0 / 0 is NaN without a warning."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.true_divide(part, whole)


def dice(true_positives: Values, false_positives: Values, num_lesion: Values) -> Values:
    """Return 2 |X and Y| / (|X| + |Y|) (Bengs 2021, section 2.3).

    NaN where there is no lesion voxel, whatever is predicted: with an empty truth the coefficient
    only says whether one voxel was flagged (0) or none (0 / 0). An empty prediction where there
    is a lesion is 0.
    """
    value = 2 * true_positives / np.maximum(true_positives + false_positives + num_lesion, 1)
    return np.where(np.asarray(num_lesion) > 0, value, np.nan)


def dice_d(counts: CohortCounts, level: int, weights: NDArray | None = None) -> Values:
    """Return Dice_D: one count over the data set (Bengs 2021, section 2.3).

    Args:
        counts: N subjects.
        level: Threshold, 1 to 65536.
        weights: (..., N), how often each subject counts; once each by default.

    Returns:
        (...,) in [0, 1]; NaN without lesion voxels.
    """
    if weights is None:
        weights = np.ones(len(counts.subjects))
    true_positives, false_positives = counts.positives(level)
    return dice(weights @ true_positives, weights @ false_positives, weights @ counts.num_lesion)


def dice_s(counts: CohortCounts, level: int) -> Values:
    """Return Dice_S of each subject (Bengs 2021, section 2.3): (N,) in [0, 1].

    NaN for a subject without lesion voxels, which mean and deviation leave out; 0 for a lesion of
    which nothing is predicted.
    """
    true_positives, false_positives = counts.positives(level)
    return dice(true_positives, false_positives, counts.num_lesion.astype(np.float64))


def mean_dice_s(values: Values, weights: NDArray | None = None) -> Values:
    """Average (N,) subject-wise Dice over the subjects that have one.

    Args:
        values: (N,) from `dice_s`, NaN where undefined.
        weights: (..., N), how often each subject counts; once each by default.

    Returns:
        (...,) mean; NaN where no subject with lesion counts.
    """
    if weights is None:
        weights = np.ones(len(values))
    defined = ~np.isnan(values)
    return _ratio(weights[..., defined] @ values[defined], weights[..., defined].sum(axis=-1))


def dice_at_every_threshold(histograms: Histograms) -> Values:
    """Return the pooled Dice at each level taken as the threshold: (..., L), NaN without lesion.

    Between two used levels it is constant, so the curve is complete. The value at level 0, where
    it is among the levels, is that of predicting everything; no rule may choose it.
    """
    num_lesion = np.asarray(histograms.num_lesion)[..., None]
    return dice(histograms.true_positives, histograms.false_positives, num_lesion)


def upper_bound_dice(histograms: Histograms) -> Values:
    """Return the best pooled Dice over all thresholds from 1 up: (...,) in [0, 1].

    On the test part it is an upper bound, not a result: the threshold saw the truth. Meissen 2021
    writes it with ceiling brackets, searched over 100 thresholds; here every level is tried.
    """
    from_one = int(np.searchsorted(histograms.levels, 0, side="right"))
    curve = dice_at_every_threshold(histograms)[..., from_one:]
    if curve.shape[-1] == 0:
        return np.where(np.asarray(histograms.num_lesion) > 0, 0.0, np.nan)
    return curve.max(axis=-1)


def auprc(histograms: Histograms) -> Values:
    """Return the area under the precision-recall curve as average precision: (...,).

    The curve is that of the pooled voxels of a data set (Bengs 2021, section 2.3; Baur 2018,
    section 3; Meissen 2021, section 3.5). The area is the sum over levels of recall gained times
    precision there, ties taken together, as scikit-learn's `average_precision_score`. NaN without
    lesion voxels.
    """
    predicted = histograms.true_positives + histograms.false_positives
    # where nothing is predicted yet no lesion is gained either, so the quotient does not matter
    np.maximum(predicted, 1, out=predicted)
    gained = histograms.lesion * histograms.true_positives / predicted
    return _ratio(gained.sum(axis=-1), histograms.num_lesion)


def auprc_trapezoid(histograms: Histograms) -> Values:
    """Return the area under the linearly joined precision-recall curve: (...,).

    Meissen 2021's code integrates so. Joining points of a precision-recall curve by straight
    lines is optimistic; `auprc` is what we compare by. The curve starts at recall 0, precision 1.
    NaN without lesion voxels.
    """
    above = histograms.true_positives[..., ::-1]
    predicted = above + histograms.false_positives[..., ::-1]
    precision = np.where(predicted > 0, above / np.maximum(predicted, 1), 1.0)
    before = np.concatenate([np.ones_like(precision[..., :1]), precision[..., :-1]], axis=-1)
    gained = histograms.lesion[..., ::-1] * (precision + before) / 2
    return _ratio(gained.sum(axis=-1), histograms.num_lesion)


def auroc(histograms: Histograms) -> Values:
    """Return the area under the receiver operating characteristic: (...,), ties by midrank.

    The probability that a lesion voxel scores above a healthy one, ties counting half (Meissen
    2021, section 3.5). Which
    healthy voxels count decides much: over the whole grid (`region="volume"`, what reference code
    pools) easy background lifts it; `region="brain"` is the harder question. NaN without lesion or
    without healthy voxels.
    """
    num_healthy = np.asarray(histograms.num_healthy)
    beaten = num_healthy[..., None] - histograms.false_positives + histograms.healthy / 2
    return _ratio((histograms.lesion * beaten).sum(axis=-1), histograms.num_lesion * num_healthy)


def slice_auprc(counts: CohortCounts) -> Values:
    """Return the average precision of separating axial slices with lesion from those without.

    A slice's score is `slice_score` of the counts; slices of all subjects are pooled ("for each
    data set", Bengs 2021, section 2.3, which leaves open whether slices or subjects are averaged).
    NaN where no slice holds lesion.
    """
    return auprc(counts.slice_histograms().merged())
