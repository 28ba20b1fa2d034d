"""Methods held against each other on the same subjects, and fits that differ in the seed alone.

Differences are paired: every bootstrap resample drew the same subjects for all runs of a cohort,
so that the difference of two figures is taken resample by resample. Several seeds of an experiment
are averaged in each resample; the interval is then one of the mean over *these* fits, and the
spread over the fits stands beside it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uadray.html import ABSENT
from uadray.metrics.statistics import holm, interval, wilcoxon_p
from uadray.metrics.table import METRICS
from uadray.report.columns import Column, ascending, brackets, number, signed
from uadray.report.rows import CohortRows, Row
from uadray.runs.records import RunRecord

COMPARED = tuple(metric.key for metric in METRICS if metric.compared)
"""Figures whose differences are shown."""

REFERENCE = "3D-None"
"""Stands, beside the best plain baseline, against every other method unless others are named."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure or a difference with its 95 % interval over subjects."""

    value: float
    """The figure."""
    bounds: tuple[float, float] | None
    """Ends of the interval; None where it is not defined."""

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside the interval."""
        return self.bounds is not None and not self.bounds[0] <= 0 <= self.bounds[1]


@dataclass(frozen=True, kw_only=True)
class Series:
    """Fits of one experiment, evaluated on one cohort, that differ in nothing but the seed."""

    label: str
    """Name of the experiment, lengthened where another one shares it."""
    name: str
    """Name of the experiment."""
    rows: tuple[Row, ...]
    """One a fit."""

    @property
    def is_plain(self) -> bool:
        """Whether the method is a plain baseline."""
        return self.rows[0].run.is_plain

    @property
    def count(self) -> str:
        """`3 seeds`, or `3 fits` where two of them share a seed."""
        seeds = {row.run.seed for row in self.rows}
        return f"{len(self.rows)} {'seeds' if len(seeds) == len(self.rows) else 'fits'}"

    def each(self, metric: str) -> list[float]:
        """The figure of each fit that has one."""
        values = [row.evaluation.metric(metric) for row in self.rows]
        return [value for value in values if value is not None]

    def mean(self, metric: str) -> float | None:
        """Mean over the fits; None where one of them has no such figure."""
        values = self.each(metric)
        return float(np.mean(values)) if len(values) == len(self.rows) else None

    def deviation(self, metric: str) -> float | None:
        """Standard deviation over the fits (division by n - 1); None below two."""
        values = self.each(metric)
        return float(np.std(values, ddof=1)) if len(values) > 1 else None

    def resamples(self, metric: str) -> NDArray[np.float64] | None:
        """(R,) mean over the fits in each resample; None where a fit kept none that pair."""
        first = self.rows[0].evaluation.resamples
        held = [row.evaluation.resamples for row in self.rows]
        if first is None or not all(r and r.pairs_with(first) and metric in r.values for r in held):
            return None
        values = [r.values[metric] for r in held if r is not None]
        return np.mean(values, axis=0) if len({len(v) for v in values}) == 1 else None

    def figure(self, metric: str) -> Figure | None:
        """Mean over the fits, with the interval over subjects of that mean."""
        value = self.mean(metric)
        if value is None:
            return None
        if len(self.rows) == 1:
            return Figure(value=value, bounds=self.rows[0].evaluation.interval(metric))
        resamples = self.resamples(metric)
        if resamples is None:
            return Figure(value=value, bounds=None)
        return _figure(value, resamples, len(self.rows[0].evaluation.values["subjects"]))

    def dice(self) -> dict[str, float]:
        """Dice of each subject that has one with every fit, averaged over the fits."""
        each = [
            {str(s["id"]): s["dice"] for s in row.evaluation.values["subjects"]}
            for row in self.rows
        ]
        shared = set.intersection(*(set(one) for one in each))
        return {
            subject: float(np.mean([one[subject] for one in each]))
            for subject in sorted(shared)
            if all(one[subject] is not None for one in each)
        }


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One series against another on the same subjects; differences are series - reference."""

    series: Series
    """The one that is judged."""
    reference: Series
    """What it is held against."""
    differences: Mapping[str, Figure]
    """By name of the metric; one that is undefined or was not kept is missing."""
    p: float
    """Two-sided, of Wilcoxon's signed-rank test on the subject-wise Dice; NaN without pairs."""
    p_holm: float
    """The same, corrected for all comparisons with this reference on this cohort (Holm 1979)."""
    num_subjects: int
    """Subjects that both were evaluated on."""

    @property
    def is_plain(self) -> bool:
        """Whether the method that is judged is a plain baseline."""
        return self.series.is_plain

    @property
    def over_seeds(self) -> tuple[float, float] | None:
        """Lowest and highest Dice_D difference of one fit from the reference's mean."""
        values, mean = self.series.each("dice_d"), self.reference.mean("dice_d")
        if len(values) < 2 or mean is None:
            return None
        return min(values) - mean, max(values) - mean

    @property
    def verdict(self) -> str:
        """What the interval of the Dice_D difference allows to say."""
        difference = self.differences.get("dice_d")
        if difference is None or difference.bounds is None:
            return "not compared"
        if not difference.excludes_zero:
            return "not distinguishable"
        return "higher" if difference.value > 0 else "lower"


@dataclass(frozen=True, kw_only=True)
class Comparisons:
    """All series of a cohort against one reference."""

    reference: Series
    """What all are held against."""
    comparisons: tuple[Comparison, ...]
    """The highest Dice_D difference first."""
    left_out: tuple[str, ...]
    """Labels of series that do not pair: other test subjects, or no resamples kept."""


def series_of(group: CohortRows) -> tuple[Series, ...]:
    """The rows of a cohort gathered by experiment, the highest mean Dice_D first."""
    gathered: dict[str, list[Row]] = {}
    for row in group.rows:
        gathered.setdefault(_without_seed(row.run), []).append(row)
    found = [
        Series(
            label=rows[0].run.label if len(rows) == 1 else _shared_label(rows[0].run),
            name=str(rows[0].run.config["name"]),
            rows=tuple(sorted(rows, key=lambda row: (row.run.seed or 0, row.run.label))),
        )
        for rows in gathered.values()
    ]
    labels = [series.label for series in found]
    found = [
        replace(one, label=f"{one.label} · {str(one.rows[0].run.config['fingerprint'])[:8]} ff.")
        if labels.count(one.label) > 1
        else one
        for one in found
    ]
    return tuple(sorted(found, key=_rank))


def _shared_label(run: RunRecord) -> str:
    return " · ".join(part for part in (str(run.config["name"]), run.variant) if part)


def _rank(series: Series) -> tuple[float, str]:
    value = series.mean("dice_d")
    return (float("inf") if value is None else -value, series.label)


def _without_seed(run: RunRecord) -> str:
    experiment = dict(run.config["experiment"])
    experiment["fit"] = {k: v for k, v in experiment.get("fit", {}).items() if k != "seed"}
    cohort = (run.config["cohort"] or {}).get("fingerprint")
    return json.dumps([run.config["name"], experiment, cohort], sort_keys=True)


def references(series: Sequence[Series], wanted: Sequence[str] = ()) -> list[Series]:
    """What all series of a cohort are held against.

    Args:
        series: Of the cohort, the highest Dice_D first.
        wanted: Names or labels; those that the cohort does not hold are passed over. None named:
            the best plain baseline and `REFERENCE`, where they are there.
    """
    defined = [one for one in series if one.mean("dice_d") is not None]
    if wanted:
        return [one for name in wanted for one in defined if name in (one.label, one.name)]
    plain = [one for one in defined if one.is_plain][:1]
    return plain + [one for one in defined if one.name == REFERENCE][:1]


def compare_all(series: Sequence[Series], reference: Series) -> Comparisons:
    """Hold every other series of a cohort against one, and correct the tests together."""
    others = [one for one in series if one is not reference]
    compared = {one.label: compare(one, reference) for one in others}
    made = [found for found in compared.values() if found is not None]
    corrected = holm([found.p for found in made])
    made = [replace(found, p_holm=float(p)) for found, p in zip(made, corrected, strict=True)]
    return Comparisons(
        reference=reference,
        comparisons=tuple(sorted(made, key=lambda c: -c.differences["dice_d"].value)),
        left_out=tuple(label for label, found in compared.items() if found is None),
    )


def compare(series: Series, reference: Series) -> Comparison | None:
    """Hold one series against another; None where the two do not pair.

    They pair if both kept resamples of the same draws of the same test subjects, and both have a
    Dice_D.
    """
    ours, theirs = (one.rows[0].evaluation.resamples for one in (series, reference))
    if ours is None or theirs is None or not ours.pairs_with(theirs):
        return None
    differences: dict[str, Figure] = {}
    for metric in COMPARED:
        values = series.mean(metric), reference.mean(metric)
        drawn = series.resamples(metric), reference.resamples(metric)
        if values[0] is None or values[1] is None or drawn[0] is None or drawn[1] is None:
            continue
        if drawn[0].shape == drawn[1].shape:
            differences[metric] = _figure(
                values[0] - values[1], drawn[0] - drawn[1], len(ours.subjects)
            )
    if "dice_d" not in differences:
        return None
    each = series.dice(), reference.dice()
    shared = sorted(set(each[0]) & set(each[1]))
    p = wilcoxon_p(*(np.array([one[subject] for subject in shared]) for one in each))
    return Comparison(
        series=series,
        reference=reference,
        differences=differences,
        p=p,
        p_holm=p,
        num_subjects=len(ours.subjects),
    )


def _figure(value: float, resamples: NDArray[np.float64], num_subjects: int) -> Figure:
    bounds = interval(value, resamples, num_subjects=num_subjects)
    defined = not np.isnan(bounds.low)
    return Figure(value=value, bounds=(bounds.low, bounds.high) if defined else None)


def probability(p: float) -> str:
    """A p value as it is printed; never rounded to 0."""
    if np.isnan(p):
        return ABSENT
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _difference(metric: str, head: str) -> Column[Comparison]:
    def get(comparison: Comparison) -> Figure | None:
        return comparison.differences.get(metric)

    def read(comparison: Comparison, attribute: str) -> Any:
        figure = get(comparison)
        return None if figure is None else getattr(figure, attribute)

    return Column(
        key=f"{metric}_difference",
        head=f"{head} difference",
        note="[95 %]",
        value=lambda c: read(c, "value"),
        text=lambda c: signed(read(c, "value")),
        detail=lambda c: brackets(read(c, "bounds"), signed),
        bounds=lambda c: read(c, "bounds"),
    )


def _seeds(comparison: Comparison) -> str:
    spread = comparison.over_seeds
    return "" if spread is None else f"{signed(spread[0])} to {signed(spread[1])}"


COMPARISON_COLUMNS: tuple[Column[Comparison], ...] = (
    ascending("method", "Method", lambda c: c.series.label),
    *(_difference(metric.key, metric.head) for metric in METRICS if metric.compared),
    Column(
        key="wilcoxon_p",
        head="p of Dice_S",
        note="Wilcoxon; Holm in brackets",
        value=lambda c: None if np.isnan(c.p) else c.p,
        text=lambda c: probability(c.p),
        detail=lambda c: f"[{probability(c.p_holm)}]",
        first="ascending",
    ),
    Column(
        key="fits",
        head="Fits",
        note="and their Dice_D differences",
        value=lambda c: len(c.series.rows),
        text=lambda c: str(len(c.series.rows)),
        detail=_seeds,
    ),
    ascending("verdict", "Dice_D is", lambda c: c.verdict),
)
"""The columns of a table of paired comparisons."""


def _over_seeds(metric: str, head: str) -> Column[Series]:
    def spread(series: Series) -> str:
        values = series.each(metric)
        return f"{number(min(values))} to {number(max(values))}" if len(values) > 1 else ""

    def text(series: Series) -> str:
        deviation = series.deviation(metric)
        after = "" if deviation is None else f" ± {deviation:.3f}"
        return number(series.mean(metric)) + after

    return Column(
        key=metric,
        head=head,
        note="mean ± std over fits, range",
        value=lambda series: series.mean(metric),
        text=text,
        detail=spread,
    )


SEED_COLUMNS: tuple[Column[Series], ...] = (
    ascending("method", "Method", lambda series: series.label),
    Column(
        key="fits",
        head="Fits",
        note="that differ in the seed alone",
        value=lambda series: len(series.rows),
        text=lambda series: str(len(series.rows)),
    ),
    *(_over_seeds(metric.key, metric.head) for metric in METRICS if metric.brief),
)
"""The columns of the table of experiments with several seeds."""
