"""The figures of some test subjects: all of them, or a group.

From counts and examined lesions; no score is read again.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uadray.metrics.counts import TestPart, Threshold
from uadray.metrics.froc import Finds
from uadray.metrics.inference import Fits, interval, leaving_out
from uadray.metrics.lesionwise import (
    LESION_LIMITS,
    SubjectLesions,
    lesion_metrics,
)
from uadray.metrics.table import (
    ByMetric,
    Metric,
    at_thresholds,
    compute_metrics,
    fits_by_person,
)
from uadray.metrics.thresholds import NONE


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the figures of one run on one cohort are computed from."""

    scores: TestPart
    """Counts of the test subjects, as scored."""

    filtered: TestPart | None
    """The same after the component filter; None where there is none."""

    people: Sequence[str]
    """The person of each test subject: all scans of one are left out together."""

    threshold: Threshold
    """Frozen before the test part was opened."""

    refits: Sequence[Threshold]
    """The same on resamples of the people that it was fitted on; none where they were not kept."""

    fingerprint: str
    """Of the settings that it was frozen under."""

    num_threshold: int
    """Subjects that it was fitted on."""

    lesions: Sequence[SubjectLesions]
    """The final prediction against the truth, in the order of the test subjects."""

    finds: Sequence[Finds] = ()
    """What it finds, component by component; empty where that is not asked for."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What is reported, as JSON values, and what its intervals are made from."""

    metrics: dict[str, Any]
    """Dice after the component filter, curves before it, lesions at the end."""
    intervals: dict[str, list[float] | None]
    """Of those that have one."""
    by_person: dict[str, Fits]
    """The same with everyone and without each person."""
    plain: dict[str, Any]
    """Metrics and intervals before the filter."""
    filtered: dict[str, Any] | None
    """And after it; None where there is none."""


def figures_of(measured: Measured, metrics: Sequence[Metric]) -> Figures:
    """Each metric with its interval.

    Args:
        measured: What they are computed from.
        metrics: Ours and others, but for those of lesions as objects.
    """
    scores = measured.scores
    weights = leaving_out(measured.people)
    refits = at_thresholds(scores, measured.refits, metrics) if measured.refits else {}
    plain, by_person = _figures(scores, measured, weights, refits, metrics)
    chosen, filtered = plain, None
    if measured.filtered is not None:
        # Another threshold would need another filter: what refitting changes is that of the
        # scores before it.
        filtered, filtered_by_person = _figures(
            measured.filtered, measured, weights, refits, metrics
        )
        chosen = {k: _mixed(plain[k], filtered[k], metrics) for k in plain}
        by_person = _mixed(by_person, filtered_by_person, metrics)
    lesions, lesions_by_person = _lesion_figures(measured.lesions, weights)
    if measured.threshold.rule == NONE:
        lesions, lesions_by_person = _undefined(lesions, lesions_by_person)
    return Figures(
        metrics=chosen["metrics"] | lesions["metrics"],
        intervals=chosen["intervals"] | lesions["intervals"],
        by_person=by_person | lesions_by_person,
        plain=plain,
        filtered=filtered,
    )


_Figures = tuple[dict[str, Any], dict[str, Fits]]
"""Metrics and intervals by name, and what the intervals are made from."""


def _figures(
    test: TestPart,
    measured: Measured,
    weights: NDArray[np.int64],
    refits: ByMetric,
    metrics: Sequence[Metric],
) -> _Figures:
    threshold, scores = measured.threshold, measured.scores
    by_person = fits_by_person(test, threshold, weights, refits, scores, metrics)
    figures = {
        "metrics": compute_metrics(test, threshold, scores, metrics),
        "intervals": _intervals(by_person),
    }
    if threshold.rule == NONE:
        return _undefined(figures, by_person, [one.key for one in metrics if one.at_threshold])
    return figures, by_person


def _undefined(
    figures: dict[str, Any], by_person: dict[str, Fits], keys: Iterable[str] = ()
) -> _Figures:
    """The same without the values of some metrics, or of all: they need a threshold."""
    metrics, intervals = figures["metrics"], figures["intervals"]
    left_out = set(keys or metrics) - {"num_lesions"}
    without = {
        key: replace(fits, values=np.full_like(fits.values, np.nan), refits=None)
        for key, fits in by_person.items()
        if key in left_out
    }
    return {
        "metrics": {k: None if k in left_out else v for k, v in metrics.items()},
        "intervals": {k: None if k in left_out else v for k, v in intervals.items()},
    }, by_person | without


def _mixed(
    plain: dict[str, Any], filtered: dict[str, Any], metrics: Sequence[Metric]
) -> dict[str, Any]:
    """Dice after the filter, curves before it: what the protocols that filter report."""
    after = {metric.key for metric in metrics if metric.is_filtered}
    return {key: (filtered if key in after else plain)[key] for key in plain}


def _lesion_figures(lesions: Sequence[SubjectLesions], weights: NDArray[np.int64]) -> _Figures:
    values = lesion_metrics(lesions)
    by_person = {
        name: Fits(values=values[None], limits=LESION_LIMITS[name])
        for name, values in lesion_metrics(lesions, weights).items()
    }
    counts = {
        "num_lesions": sum(s.num_lesions for s in lesions),
        "num_lesions_detected": sum(s.num_detected for s in lesions),
        "num_with_surface": sum(not math.isnan(s.hd95_mm) for s in lesions),
    }
    figures = {
        "metrics": {name: defined(value) for name, value in values.items()} | counts,
        "intervals": _intervals(by_person),
    }
    return figures, by_person


def _intervals(by_person: dict[str, Fits]) -> dict[str, list[float] | None]:
    bounds = {name: interval(fits) for name, fits in by_person.items()}
    return {name: None if pair is None else list(pair) for name, pair in bounds.items()}


def defined(value: Any) -> float | None:
    """A value as JSON has it; None for NaN."""
    return None if np.isnan(value) else float(value)
