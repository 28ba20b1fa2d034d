"""What an ensemble gains over its members, on the same people.

A gain is the ensemble's figure less the mean of its members', each at its own frozen threshold. Its
interval is over people and thresholds, of these very fits: an ensemble is one, whatever the number
of its members, and what others of other fits would gain is not in it. So there is no verdict.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from uadray.metrics.inference import Difference, Fits, difference
from uadray.metrics.metric import Appearance
from uadray.report.columns import Column, ascending, brackets, first_order, number, signed
from uadray.report.compare import Series
from uadray.report.rows import CohortRows, Row, group_by_cohort, metrics_of
from uadray.runs.records import RunRecord

NO_VERDICT = (
    "Intervals are over people and thresholds, of these fits: other fits may gain more or less, so "
    "there is no verdict."
)
"""What must be said beside every gain."""


@dataclass(frozen=True, kw_only=True)
class Gain:
    """An ensemble beside its members, evaluated on one cohort."""

    row: Row
    """The ensemble."""
    members: Series
    """All of its members."""
    differences: Mapping[str, Difference]
    """Ensemble less mean member, by name of the metric; what is undefined or was not kept of one of
    them is missing."""

    @property
    def is_plain(self) -> bool:
        """Whether it is a plain baseline."""
        return self.row.is_plain

    @property
    def lines(self) -> list[str]:
        """Its figures beside its members', a line a metric."""
        count = f"{len(self.members.rows)} member{'' if len(self.members.rows) == 1 else 's'}"
        lines = [f"{self.row.run.label} against the mean of its {count}:"]
        for metric in metrics_of(self.members.rows):
            gain, each = self.differences.get(metric.key), self.members.each(metric.key)
            if gain is None or not metric.brief or not np.isfinite(gain.value):
                continue
            interval = brackets(gain.bounds, signed) or "(no interval: too few people)"
            lines.append(
                f"  {metric.head} {number(self.row.evaluation.metric(metric.key))}, members "
                f"{number(self.members.mean(metric.key))} ({number(min(each))} to "
                f"{number(max(each))}): gain {signed(gain.value)} {interval}"
            )
        return lines


def gains_of(group: CohortRows) -> list[Gain]:
    """The ensembles of a cohort whose members were all evaluated on it in the same way."""
    found = (_gain(row, group.rows) for row in group.rows)
    return [one for one in found if one is not None]


def gains_on(runs: Sequence[RunRecord], cohort: str) -> list[str]:
    """Lines on each ensemble of a cohort, and what must be said beside them; empty for none."""
    groups = (group for group in group_by_cohort(runs) if group.name == cohort)
    lines = [line for group in groups for gain in gains_of(group) for line in gain.lines]
    return [*lines, NO_VERDICT] if lines else []


def _gain(row: Row, rows: Sequence[Row]) -> Gain | None:
    keys = [(one.get("weights"), one.get("method")) for one in row.run.members]
    known = {_key(other): other for other in rows}
    members = [known.get(_text(*key)) for key in keys]
    here = tuple(one for one in members if one is not None)
    if not here or len(here) < len(keys):
        return None
    # Under other settings figures would differ for that reason.
    if any(_settings(one) != _settings(row) for one in here):
        return None
    own = Series(label=row.run.label, name=str(row.run.config["name"]), rows=(row,))
    theirs = Series(label=f"members of {own.label}", name=own.name, rows=here)
    if not own.by_person or not theirs.by_person:
        return None
    if not own.by_person[0].pairs_with(theirs.by_person[0]):
        return None
    differences = {}
    for metric in (one.key for one in metrics_of((row, *here)) if one.compared):
        ours, each = own.fits(metric), theirs.fits(metric)
        if ours is not None and each is not None:
            differences[metric] = difference(ours, _mean(each))
    return Gain(row=row, members=theirs, differences=differences)


def _mean(fits: Fits) -> Fits:
    """The mean over fits as one figure: these fits are given, not drawn."""
    refits = fits.refits
    return Fits(
        values=fits.values.mean(axis=0, keepdims=True),
        refits=None if refits is None else refits.mean(axis=0, keepdims=True),
        effective=fits.effective,
        limits=fits.limits,
    )


def _key(row: Row) -> str:
    return _text(row.evaluation.values.get("weights"), row.run.config["experiment"]["method"])


def _text(weights: object, method: object) -> str:
    return repr((weights, sorted(method.items()) if isinstance(method, dict) else method))


def _settings(row: Row) -> object:
    return row.evaluation.values.get("settings")


def gain_columns(gains: Sequence[Gain]) -> tuple[Column[Gain], ...]:
    """The columns of the table of ensembles and their members."""
    rows = [row for gain in gains for row in (gain.row, *gain.members.rows)]
    compared = [one for one in metrics_of(rows) if one.compared]
    return (
        ascending("method", "Ensemble", lambda gain: gain.row.run.label),
        Column(
            key="members",
            head="Members",
            value=lambda gain: len(gain.members.rows),
            text=lambda gain: str(len(gain.members.rows)),
        ),
        *(
            column
            for metric in compared
            for column in (_members(metric), _own(metric), _difference(metric))
        ),
    )


def _members(metric: Appearance) -> Column[Gain]:
    def ends(gain: Gain) -> str:
        each = gain.members.each(metric.key)
        return f"{number(min(each))} to {number(max(each))}" if each else ""

    return Column(
        key=f"{metric.key}_members",
        head=f"{metric.head} of members",
        note="mean, range",
        value=lambda gain: gain.members.mean(metric.key),
        text=lambda gain: number(gain.members.mean(metric.key)),
        detail=ends,
        first=first_order(metric),
    )


def _own(metric: Appearance) -> Column[Gain]:
    return Column(
        key=metric.key,
        head="together",
        value=lambda gain: gain.row.evaluation.metric(metric.key),
        text=lambda gain: number(gain.row.evaluation.metric(metric.key)),
        first=first_order(metric),
    )


def _difference(metric: Appearance) -> Column[Gain]:
    def bounds(gain: Gain) -> tuple[float, float] | None:
        one = gain.differences.get(metric.key)
        return None if one is None else one.bounds

    def value(gain: Gain) -> float | None:
        one = gain.differences.get(metric.key)
        return None if one is None or np.isnan(one.value) else one.value

    return Column(
        key=f"{metric.key}_gain",
        head="gain",
        note="[95 %]",
        value=value,
        text=lambda gain: signed(value(gain)),
        detail=lambda gain: brackets(bounds(gain), signed),
        bounds=bounds,
        first=first_order(metric),
    )
