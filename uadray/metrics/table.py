"""The one table of metrics: what each is called, which way is better, and how it is computed.

A new one is one entry; records, intervals, reports, model cards and the papers read it here. Other
packages add theirs by entry points of the group `uadray.metrics`, see `uadray.metrics.outside`.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uadray.metrics import measures
from uadray.metrics.counts import TestPart, Threshold
from uadray.metrics.inference import Fits, effective_number
from uadray.metrics.metric import Appearance, Metric, check_metric
from uadray.metrics.tested import LeftOut, Tested, Values, Weighted, leave_out
from uadray.plugins import Registry

__all__ = ["METRICS", "OWN", "Appearance", "LeftOut", "Metric", "Tested", "Values", "Weighted"]

ByMetric = dict[str, Values]
"""Figures by the key of their metric."""


def _lesion_voxels(one: Tested) -> Values:
    return one.part.num_lesion.astype(np.float64)


OWN: tuple[Metric, ...] = (
    Metric(
        key="dice_d",
        head="Dice_D",
        value=lambda one: float(measures.dice_d(one.part, one.threshold.level)),
        weighted=lambda one: measures.dice_d(one.part, one.threshold.level, one.weights),
        people=lambda one: np.sum(one.part.positives(one.threshold.level), 0) + one.part.num_lesion,
        at_threshold=True,
        brief="Dice_D\n[95 %]",
        compared=True,
        in_sweeps=True,
    ),
    Metric(
        key="dice_s_mean",
        head="Dice_S",
        value=lambda one: float(measures.mean_dice_s(one.dice_s)),
        weighted=lambda one: measures.mean_dice_s(one.dice_s, one.weights),
        at_threshold=True,
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
        at_threshold=True,
        has_interval=False,
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
        in_sweeps=True,
    ),
    Metric(
        key="auprc_trapezoid",
        head="AUPRC (trapezoid)",
        value=lambda one: float(measures.auprc_trapezoid(one.volume)),
        has_interval=False,
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
        has_interval=False,
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
        searches_threshold=True,
        note="upper bound: threshold chosen on the test part",
        shows_interval=False,
        brief="Upper\nbound",
    ),
    Metric(
        key="dice_best_of_100",
        head="Dice, best of 100",
        value=lambda one: one.best_of_100,
        searches_threshold=True,
        note="threshold chosen on the test part before the filter, components dropped once after",
        has_interval=False,
        shown=False,
    ),
)
"""Ours, in the order of records and tables."""

METRICS: Registry[Metric] = Registry("uadray.metrics", "metric", check_metric)
"""Every metric by its key: ours, then those of other packages."""

METRICS.update({metric.key: metric for metric in OWN})


def compute_metrics(
    part: TestPart,
    threshold: Threshold,
    searched: TestPart | None = None,
    metrics: Iterable[Metric] = OWN,
) -> dict[str, Any]:
    """Everything that is reported of one method on one test part, as JSON values.

    Args:
        part: Counts of the test subjects.
        threshold: Fitted on a threshold part with the same score range.
        searched: Counts before a component filter, see `Tested`.
        metrics: What is computed.

    Returns:
        Each metric by its key (None where it is undefined), the threshold, and what was counted.

    Raises:
        TypeError: `part` is not a test part.
        EvaluationError: the threshold belongs to another score range, or was fitted on the part.
    """
    tested = Tested(part, threshold, searched)
    values = {metric.key: metric.value(tested) for metric in metrics}
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
    searched: TestPart | None = None,
    metrics: Iterable[Metric] = OWN,
) -> dict[str, Fits]:
    """Each metric that has an interval, with everyone and without each person.

    Args:
        part: N test subjects.
        threshold: Frozen.
        weights: (1 + P, N), from `inference.leaving_out`.
        refits: From `at_thresholds`; none by default.
        searched: Counts before a component filter, see `Tested`.
        metrics: What is computed.

    Returns:
        One fit by the metric's key.
    """
    weighted = Weighted(part, threshold, weights, searched)
    fits = {}
    for metric in metrics:
        if not metric.has_interval:
            continue
        values = metric.weighted(weighted) if metric.weighted else leave_out(metric.value, weighted)
        again = (refits or {}).get(metric.key)
        effective = None
        if metric.people is not None:
            effective = effective_number(metric.people(weighted) @ (1 - weights[1:]).T)
        fits[metric.key] = Fits(
            values=values[None],
            refits=None if again is None else again[None],
            effective=effective,
            limits=metric.limits,
        )
    return fits


def at_thresholds(
    part: TestPart, thresholds: Sequence[Threshold], metrics: Iterable[Metric] = OWN
) -> ByMetric:
    """Each metric that moves with the threshold, at each of B others: (B,) by its key."""
    tested = {one.level: Tested(part, one) for one in thresholds}
    values = {
        metric.key: {level: metric.value(one) for level, one in tested.items()}
        for metric in metrics
        if metric.at_threshold and metric.has_interval
    }
    return {
        key: np.array([by_level[one.level] for one in thresholds], np.float64)
        for key, by_level in values.items()
    }


def _defined(values: Values) -> Values:
    return values[~np.isnan(values)]


def _deviation(values: Values) -> float:
    return float(values.std()) if len(values) else np.nan
