"""One setting's effect as a mean over cohorts: the form of figure 5 of Bengs 2021.

Cohorts share no person, so that the variances over their people add up; the fits are the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from uadray.metrics.inference import interval
from uadray.report.compare import Estimate
from uadray.report.effects import Effect, Point
from uadray.runs.settings import Setting


@dataclass(frozen=True, kw_only=True)
class MeanPoint:
    """One value of a setting, over several cohorts."""

    value: Any
    """Of the setting."""
    parts: tuple[Point, ...]
    """The same fits, one a cohort."""

    def figure(self, metric: str) -> Estimate | None:
        """Mean over cohorts and fits; the interval is over the people of all cohorts, and fits."""
        values = [part.series.mean(metric) for part in self.parts]
        if any(value is None for value in values):
            return None
        mean = float(np.mean([value for value in values if value is not None]))
        fits = [part.series.fits(metric) for part in self.parts]
        kept = [one for one in fits if one is not None]
        alike = len({len(one.values) for one in kept}) == 1
        bounds = interval(*kept) if alike and len(kept) == len(fits) else None
        return Estimate(value=mean, bounds=bounds)

    def each(self, metric: str) -> list[float]:
        """The mean over cohorts of each fit that has a figure on all of them."""
        by_run: dict[str, list[float]] = {}
        for part in self.parts:
            for row in part.series.rows:
                value = row.evaluation.metric(metric)
                if value is not None:
                    by_run.setdefault(row.run.url, []).append(value)
        return [float(np.mean(v)) for v in by_run.values() if len(v) == len(self.parts)]


@dataclass(frozen=True, kw_only=True)
class MeanEffect:
    """A setting's effect over several cohorts."""

    setting: Setting
    """What is varied."""
    cohorts: tuple[str, ...]
    """Names of the cohorts that the mean is over."""
    lines: tuple[tuple[str, tuple[MeanPoint, ...]], ...]
    """Label and points of each line that every cohort has."""


def mean_effect(effects: Sequence[Effect]) -> MeanEffect | None:
    """The mean of one setting's effects, or None where fewer than two cohorts share a line.

    Args:
        effects: Effects of the same setting, one a cohort.
    """
    if len(effects) < 2:
        return None
    lines = []
    for line in effects[0].lines:
        same = [[o for o in other.lines if o.label == line.label] for other in effects]
        if not all(same):
            continue
        places = [{point.value: point for point in one[0].points} for one in same]
        shared = [p.value for p in line.points if all(p.value in place for place in places)]
        if len(shared) > 1:
            points = [
                MeanPoint(value=value, parts=tuple(place[value] for place in places))
                for value in shared
            ]
            lines.append((line.label, tuple(points)))
    if not lines:
        return None
    return MeanEffect(
        setting=effects[0].setting,
        cohorts=tuple(effect.group.name for effect in effects),
        lines=tuple(lines),
    )
