"""Quality of anomaly maps, computed from counts alone.

Two families. Dice at *one* threshold comes from each subject's true and false positives; curves
over *all* thresholds come from `Histograms`, whose leading axes (resamples, or none) pass through.
Both are exact on the 65 536 levels. A ratio without lesion voxels is undefined and NaN, never 0
or 1: a subject without lesion says nothing about overlap.

"Predicted" is: level >= threshold, threshold >= 1. Level 0 means no anomaly and is never predicted.
"""

import math
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from uadray.errors import EvaluationError
from uadray.metrics.counts import CohortCounts, TestPart, Threshold
from uadray.metrics.histograms import Histograms
from uadray.metrics.postprocess import MAX_LEVEL, dequantise

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

    A slice's score is the mean level over its un-eroded brain; slices of all subjects are pooled
    ("for each data set", Bengs 2021, section 2.3, which leaves open whether slices or subjects
    are averaged). NaN where no slice holds lesion.
    """
    return auprc(counts.slice_histograms().merged())


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """What is reported of one method on one test part. NaN where undefined."""

    dice_d: float
    """Dice over all voxels of the part, at the frozen threshold; in [0, 1]."""

    dice_s_mean: float
    """Mean of the subject-wise Dice, over subjects with lesion; in [0, 1]."""

    dice_s_std: float
    """Its standard deviation (division by n)."""

    auprc: float
    """Average precision over all voxels of the grid; in [0, 1]."""

    auprc_trapezoid: float
    """Area under the linearly joined curve, for comparison with Meissen 2021; in [0, 1]."""

    auroc: float
    """Area under the ROC curve over all voxels of the grid, background included; in [0, 1]."""

    auroc_brain: float
    """The same over the brain mask (and lesion) alone; in [0, 1]."""

    upper_bound_dice: float
    """Best Dice over all thresholds *on the test part itself*: an upper bound, not a result."""

    slice_auprc: float
    """Average precision over axial slices; in [0, 1]."""

    threshold: float
    """The frozen threshold, as a score of the method."""

    threshold_rule: str
    """How it was found."""

    threshold_fitted_on: str
    """Where it was found."""

    num_subjects: int
    """Subjects in the part."""

    num_subjects_with_lesion: int
    """Those that `dice_s_mean` averages."""

    num_lesion: int
    """Lesion voxels of the part; all of them count, eroded or not."""

    num_lesion_eroded: int
    """Lesion voxels in the brain that the erosion of the mask took away."""

    def to_dict(self) -> dict[str, float | int | str | None]:
        """Return plain values for JSON; what is undefined becomes `None`."""
        return {
            key: None if isinstance(value, float) and math.isnan(value) else value
            for key, value in asdict(self).items()
        }


def compute_metrics(test: TestPart, threshold: Threshold) -> Metrics:
    """Compute everything that is reported of one method on one test part.

    Args:
        test: Counts of the test subjects.
        threshold: Fitted on a threshold part with the same score range.

    Raises:
        TypeError: `test` is not a test part.
        EvaluationError: The threshold belongs to another score range, or was fitted on the test
            part.
    """
    check_test(test, threshold)
    per_subject = dice_s(test, threshold.level)
    defined = per_subject[~np.isnan(per_subject)]
    volume = test.merged("volume")
    return Metrics(
        dice_d=float(dice_d(test, threshold.level)),
        dice_s_mean=float(mean_dice_s(per_subject)),
        dice_s_std=float(defined.std()) if len(defined) else math.nan,
        auprc=float(auprc(volume)),
        auprc_trapezoid=float(auprc_trapezoid(volume)),
        auroc=float(auroc(volume)),
        auroc_brain=float(auroc(test.merged("brain"))),
        upper_bound_dice=float(upper_bound_dice(volume)),
        slice_auprc=float(slice_auprc(test)),
        threshold=threshold.value,
        threshold_rule=threshold.rule,
        threshold_fitted_on=threshold.fitted_on,
        num_subjects=len(test.subjects),
        num_subjects_with_lesion=len(defined),
        num_lesion=int(test.num_lesion.sum()),
        num_lesion_eroded=int(test.num_lesion_eroded.sum()),
    )


def check_test(test: TestPart, threshold: Threshold) -> None:
    """Refuse a part that is none to report on, and a threshold that does not belong to it.

    Raises:
        TypeError: `test` is not a test part.
        EvaluationError: See `compute_metrics`.
    """
    if not isinstance(test, TestPart):
        raise TypeError(f"expected a TestPart to report on, came {type(test).__name__}")
    if threshold.fitted_on == test.name:
        raise EvaluationError(
            f"threshold {threshold.rule!r} was fitted on {test.name!r} itself; expected one from "
            "a threshold part: the best Dice on the test part is reported as `upper_bound_dice`"
        )
    expected = float(dequantise(threshold.level, test.score_range))
    level_width = (test.score_range[1] - test.score_range[0]) / MAX_LEVEL
    if abs(expected - threshold.value) > level_width / 2:
        raise EvaluationError(
            f"threshold level {threshold.level} stands for score {threshold.value}, but for "
            f"{expected} in the range {test.score_range} of {test.name!r}; fit it on counts of "
            "the same method and score range"
        )
