"""The one table of metrics: what each is called, which way is better, and how it is computed.

A new one is one entry; records, intervals, reports, model cards and the papers read it here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uadray.errors import EvaluationError
from uadray.metrics import measures
from uadray.metrics.counts import TestPart, Threshold
from uadray.metrics.histograms import Histograms
from uadray.metrics.inference import Fits, effective_number
from uadray.metrics.postprocess import MAX_LEVEL, dequantise
from uadray.metrics.thresholds import best_linear_level
from uadray.metrics.weighted import weighted_curves

Values = NDArray[np.float64]

ByMetric = dict[str, Values]
"""Figures by the key of their metric."""


class Tested:
    """A test part at a frozen threshold, from which metrics are computed.

    Args:
        part: Of a test part, perhaps after a component filter.
        threshold: Frozen.
        searched: The same before that filter, where the best of 100 thresholds is searched; the
            part itself by default.

    Raises:
        TypeError: `part` is not a test part.
        EvaluationError: the threshold belongs to another score range, or was fitted on the part.
    """

    def __init__(
        self, part: TestPart, threshold: Threshold, searched: TestPart | None = None
    ) -> None:
        _check(part, threshold)
        self.part, self.threshold, self._searched = part, threshold, searched or part

    @cached_property
    def volume(self) -> Histograms:
        """All voxels of the grid, the background included, over all subjects."""
        return self.part.merged("volume")

    @cached_property
    def best_of_100(self) -> float:
        """Dice_D at the best of 100 thresholds, which is searched before any filter."""
        level = best_linear_level(self._searched.merged("volume"))
        return float(measures.dice_d(self.part, level))

    @cached_property
    def dice_s(self) -> Values:
        """(N,) of each subject, NaN without lesion."""
        return measures.dice_s(self.part, self.threshold.level)


class Weighted(Tested):
    """The same in R weightings of its subjects, such as all but one person.

    Args:
        part: N test subjects.
        threshold: Frozen.
        weights: (R, N), how often each subject counts in each.
    """

    def __init__(self, part: TestPart, threshold: Threshold, weights: NDArray[np.int64]) -> None:
        super().__init__(part, threshold)
        self.weights = weights

    @cached_property
    def curves(self) -> dict[str, Values]:
        """Areas and best Dice over the voxels of the grid, (R,) each."""
        return weighted_curves(self.part.histograms(), self.weights)

    @cached_property
    def slice_curves(self) -> dict[str, Values]:
        """The same over axial slices."""
        return weighted_curves(self.part.slice_histograms(), self.weights)


def _check(test: TestPart, threshold: Threshold) -> None:
    """Refuse a part that is none to report on, and a threshold that does not belong to it.

    Raises:
        TypeError: `test` is not a test part.
        EvaluationError: see `Tested`.
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


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One figure of a method on a test part."""

    key: str
    """Name in records, CSV files and protocols."""
    head: str
    """Name in tables; Dice_D and Dice_S have real subscripts on pages."""
    value: Callable[[Tested], float]
    """The figure; NaN where it is undefined."""
    weighted: Callable[[Weighted], Values] | None = None
    """(R,) figures of weightings, for its interval; None where none is given."""
    people: Callable[[Tested], Values] | None = None
    """(N,) how much each subject weighs in it; None where they count alike."""
    at_threshold: bool = False
    """Whether it moves with the frozen threshold."""
    limits: tuple[float, float] = (0.0, 1.0)
    """Ends of its range."""
    note: str = ""
    """What is said below its name."""
    higher_is_better: bool = True
    """Which way is better."""
    deviation: str = ""
    """Key of the metric that stands after it with ±."""
    shown: bool = True
    """Whether it has a column in the main table, and in model cards."""
    shows_interval: bool = True
    """Whether tables show its interval."""
    printed: bool = True
    """Whether it has a column on a printed page, which holds fewer."""
    brief: str = ""
    """Its head where there is little room: on the terminal, and over seeds; empty for not there."""
    compared: bool = False
    """Whether differences between methods are shown in it."""
    of_a_prediction: bool = False
    """Whether it is of voxels above the threshold, which a component filter is meant to change;
    the others are of the scores."""


def _lesion_voxels(one: Tested) -> Values:
    return one.part.num_lesion.astype(np.float64)


METRICS: tuple[Metric, ...] = (
    Metric(
        key="dice_d",
        head="Dice_D",
        value=lambda one: float(measures.dice_d(one.part, one.threshold.level)),
        weighted=lambda one: measures.dice_d(one.part, one.threshold.level, one.weights),
        people=lambda one: np.sum(one.part.positives(one.threshold.level), 0) + one.part.num_lesion,
        at_threshold=True,
        of_a_prediction=True,
        brief="Dice_D\n[95 %]",
        compared=True,
    ),
    Metric(
        key="dice_s_mean",
        head="Dice_S",
        value=lambda one: float(measures.mean_dice_s(one.dice_s)),
        weighted=lambda one: measures.mean_dice_s(one.dice_s, one.weights),
        at_threshold=True,
        of_a_prediction=True,
        note="mean ± std over subjects",
        deviation="dice_s_std",
        shows_interval=False,
        brief="Dice_S\n± std",
        compared=True,
    ),
    Metric(
        key="dice_s_std",
        head="Dice_S deviation",
        value=lambda one: _deviation(_defined(one.dice_s)),
        higher_is_better=False,
        of_a_prediction=True,
        shown=False,
    ),
    Metric(
        key="auprc",
        head="AUPRC",
        value=lambda one: float(measures.auprc(one.volume)),
        weighted=lambda one: one.curves["auprc"],
        people=_lesion_voxels,
        brief="AUPRC\n[95 %]",
        compared=True,
    ),
    Metric(
        key="auprc_trapezoid",
        head="AUPRC (trapezoid)",
        value=lambda one: float(measures.auprc_trapezoid(one.volume)),
        shown=False,
    ),
    Metric(
        key="auroc",
        head="AUROC",
        value=lambda one: float(measures.auroc(one.volume)),
        weighted=lambda one: one.curves["auroc"],
        people=_lesion_voxels,
        shows_interval=False,
        printed=False,
    ),
    Metric(
        key="auroc_brain",
        head="AUROC in the brain",
        value=lambda one: float(measures.auroc(one.part.merged("brain"))),
        shown=False,
    ),
    Metric(
        key="slice_auprc",
        head="AUPRC by slice",
        value=lambda one: float(measures.slice_auprc(one.part)),
        weighted=lambda one: one.slice_curves["auprc"],
        note="axial slices",
        shows_interval=False,
    ),
    Metric(
        key="upper_bound_dice",
        head="Upper-bound Dice",
        value=lambda one: float(measures.upper_bound_dice(one.volume)),
        weighted=lambda one: one.curves["upper_bound_dice"],
        people=_lesion_voxels,
        of_a_prediction=True,
        note="upper bound: threshold chosen on the test part",
        shows_interval=False,
        brief="Upper\nbound",
    ),
    Metric(
        key="dice_best_of_100",
        head="Dice, best of 100",
        value=lambda one: one.best_of_100,
        of_a_prediction=True,
        note="threshold chosen on the test part before the filter, components dropped once after",
        shown=False,
    ),
)
"""In the order of records and tables."""

BY_KEY = {metric.key: metric for metric in METRICS}


def compute_metrics(
    part: TestPart, threshold: Threshold, searched: TestPart | None = None
) -> dict[str, Any]:
    """Everything that is reported of one method on one test part, as JSON values.

    Args:
        part: Counts of the test subjects.
        threshold: Fitted on a threshold part with the same score range.
        searched: Counts before a component filter, see `Tested`.

    Returns:
        Each metric by its key (None where it is undefined), the threshold, and what was counted.

    Raises:
        TypeError: `part` is not a test part.
        EvaluationError: the threshold belongs to another score range, or was fitted on the part.
    """
    tested = Tested(part, threshold, searched)
    values = {metric.key: metric.value(tested) for metric in METRICS}
    return {key: None if np.isnan(value) else value for key, value in values.items()} | {
        "threshold": threshold.value,
        "threshold_rule": threshold.rule,
        "threshold_fitted_on": threshold.fitted_on,
        "num_subjects": len(part.subjects),
        "num_subjects_with_lesion": len(_defined(tested.dice_s)),
        "num_lesion": int(part.num_lesion.sum()),
        "num_lesion_eroded": int(part.num_lesion_eroded.sum()),
    }


def fits_by_person(
    part: TestPart,
    threshold: Threshold,
    weights: NDArray[np.int64],
    refits: ByMetric | None = None,
) -> dict[str, Fits]:
    """Each metric that has an interval, with everyone and without each person.

    Args:
        part: N test subjects.
        threshold: Frozen.
        weights: (1 + P, N), from `inference.leaving_out`.
        refits: From `at_thresholds`; none by default.

    Returns:
        One fit by the metric's key.
    """
    weighted = Weighted(part, threshold, weights)
    fits = {}
    for metric in METRICS:
        if metric.weighted is None:
            continue
        again = (refits or {}).get(metric.key)
        effective = None
        if metric.people is not None:
            effective = effective_number(metric.people(weighted) @ (1 - weights[1:]).T)
        fits[metric.key] = Fits(
            values=metric.weighted(weighted)[None],
            refits=None if again is None else again[None],
            effective=effective,
            limits=metric.limits,
        )
    return fits


def at_thresholds(part: TestPart, thresholds: Sequence[Threshold]) -> ByMetric:
    """Each metric that moves with the threshold, at each of B others: (B,) by its key."""
    tested = {one.level: Tested(part, one) for one in thresholds}
    values = {
        metric.key: {level: metric.value(one) for level, one in tested.items()}
        for metric in METRICS
        if metric.at_threshold
    }
    return {
        key: np.array([by_level[one.level] for one in thresholds], np.float64)
        for key, by_level in values.items()
    }


def _defined(values: Values) -> Values:
    return values[~np.isnan(values)]


def _deviation(values: Values) -> float:
    return float(values.std()) if len(values) else np.nan
