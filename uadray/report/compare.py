"""Methods compared on the same people, and fits that differ in seed or fold alone.

A difference is that of the means over fits. Its interval and its p are over people and over fits
together (`uadray.metrics.inference`); what may be said of it is its verdict.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from uadray.html import ABSENT
from uadray.metrics.inference import (
    LEVEL,
    Difference,
    Fits,
    can_reject,
    difference,
    holm,
    interval,
    needed,
)
from uadray.metrics.metric import Appearance
from uadray.report.columns import Column, ascending, brackets, first_order, number, signed
from uadray.report.rows import CohortRows, Row, metrics_of, row_rank
from uadray.runs.evaluations import ByPerson, is_number
from uadray.runs.records import RunRecord

REFERENCE = "3D-None"
"""Stands, beside the best plain baseline, against every other method unless others are named."""

HIGHER, LOWER = "higher", "lower"
SAME = "no difference shown"
ONE_FIT = "one fit: no verdict"
TOO_FEW = "too few people to tell"
VERDICTS = (HIGHER, LOWER, SAME, ONE_FIT, TOO_FEW)
"""What may be said of a difference in Dice_D."""

GAP = 0.05
"""Difference in Dice_D for which the needed numbers of people and fits are reckoned."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    """The figure."""
    bounds: tuple[float, float] | None
    """Ends of the interval; None where it has none."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """Fits of one experiment, evaluated on one cohort, that differ in seed or fold alone."""

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
        """`3 seeds` or `5 folds`, or `3 fits` where two of them share a seed."""
        if len({row.run.fold for row in self.rows}) == len(self.rows) > 1:
            return f"{len(self.rows)} folds"
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

    @property
    def by_person(self) -> list[ByPerson] | None:
        """Figures by person of each fit; None where a fit kept none that pair with the others."""
        kept = [row.evaluation.by_person for row in self.rows]
        first = kept[0]
        if first is None or not all(one is not None and one.pairs_with(first) for one in kept):
            return None
        return [one for one in kept if one is not None]

    def fits(self, metric: str) -> Fits | None:
        """One metric of all fits, without each person; None where it was not kept of one."""
        each = [one.fits.get(metric) for one in self.by_person or ()]
        kept = [one for one in each if one is not None]
        if not kept or len(kept) < len(each):
            return None
        refits = [one.refits for one in kept if one.refits is not None]
        num = min((again.shape[1] for again in refits), default=0)
        effective = [one.effective for one in kept if one.effective is not None]
        return Fits(
            values=np.concatenate([one.values for one in kept]),
            refits=np.concatenate([again[:, :num] for again in refits])
            if num and len(refits) == len(kept)
            else None,
            effective=float(np.mean(effective)) if effective else None,
            limits=kept[0].limits,
        )

    def figure(self, metric: str) -> Estimate | None:
        """Mean over the fits, with the interval over people and fits of that mean."""
        value = self.mean(metric)
        if value is None:
            return None
        if len(self.rows) == 1:
            return Estimate(value=value, bounds=self.rows[0].evaluation.interval(metric))
        fits = self.fits(metric)
        return Estimate(value=value, bounds=None if fits is None else interval(fits))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One series against another on the same people; differences are series - reference."""

    series: Series
    """The one that is judged."""
    reference: Series
    """What it is compared with."""
    differences: Mapping[str, Difference]
    """By name of the metric; one that is undefined or was not kept is missing."""
    p_holm: float
    """p of the Dice_D difference, corrected for all comparisons of the table (Holm 1979)."""
    num_people: int
    """People that both were evaluated on."""
    num_comparisons: int
    """Of the table."""

    @property
    def p(self) -> float:
        """Two-sided, of the Dice_D difference; NaN where it has no interval."""
        return self.differences["dice_d"].p

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
        """What may be said: one of `VERDICTS`."""
        if any(not one.is_plain and len(one.rows) == 1 for one in (self.series, self.reference)):
            return ONE_FIT
        if np.isnan(self.p) or not can_reject(self.num_people, self.num_comparisons):
            return TOO_FEW
        if self.p_holm >= LEVEL:
            return SAME
        return HIGHER if self.differences["dice_d"].value > 0 else LOWER


@dataclass(frozen=True, kw_only=True)
class Comparisons:
    """All series of a cohort against one reference."""

    reference: Series
    """What all are compared with."""
    comparisons: tuple[Comparison, ...]
    """The highest Dice_D difference first."""
    left_out: tuple[str, ...]
    """Labels of series that do not pair: other test subjects, or no figures by person."""

    @property
    def power(self) -> str:
        """How many people and fits a verdict on a difference of `GAP` needs, in words."""
        return power_in_words(self.comparisons)


def series_of(group: CohortRows) -> tuple[Series, ...]:
    """The rows of a cohort gathered by experiment, the highest mean Dice_D first."""
    gathered: dict[str, list[Row]] = {}
    for row in group.rows:
        gathered.setdefault(_without_seed(row.run), []).append(row)
    series = [
        Series(
            label=rows[0].run.label if len(rows) == 1 else _shared_label(rows[0].run),
            name=str(rows[0].run.config["name"]),
            rows=tuple(
                sorted(rows, key=lambda row: (row.run.seed or 0, row.run.fold, row.run.label))
            ),
        )
        for rows in gathered.values()
    ]
    labels = [one.label for one in series]
    series = [
        replace(one, label=f"{one.label} · {str(one.rows[0].run.config['fingerprint'])[:8]} ff.")
        if labels.count(one.label) > 1
        else one
        for one in series
    ]
    return tuple(sorted(series, key=_rank))


def merge_folds(group: CohortRows) -> CohortRows:
    """A cohort with one row for the fits of all folds of an experiment: their mean.

    Its intervals are over people and fits; it has no threshold, as each fold has its own.
    """
    several = [one for one in series_of(group) if one.rows[0].run.fold and len(one.rows) > 1]
    merged = {id(row) for one in several for row in one.rows}
    rows = [row for row in group.rows if id(row) not in merged] + list(map(_as_one, several))
    return replace(group, rows=tuple(sorted(rows, key=row_rank)))


def _as_one(series: Series) -> Row:
    first, values = series.rows[0], series.rows[0].evaluation.values
    figures = {key: series.figure(key) for key in values["intervals"]}
    seconds = [row.run.summary.get("fit_seconds") for row in series.rows]
    healthy = [row.evaluation.values.get("healthy_reconstruction") for row in series.rows]
    summary = {"status": "finished", "fit_seconds": _mean(seconds)}
    evaluation = first.evaluation.showing(
        {
            "metrics": {
                key: series.mean(key) if is_number(value) else value
                for key, value in values["metrics"].items()
            },
            "intervals": {
                key: None if one is None or one.bounds is None else list(one.bounds)
                for key, one in figures.items()
            },
            "threshold": {**values["threshold"], "value": None},
            "healthy_reconstruction": _mean(healthy),
        }
    )
    label = f"{_shared_label(first.run)} · mean of {series.count}"
    return replace(
        first, run=replace(first.run, label=label, summary=summary), evaluation=evaluation
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _shared_label(run: RunRecord) -> str:
    return " · ".join(part for part in (str(run.config["name"]), run.variant) if part)


def _rank(series: Series) -> tuple[float, str]:
    value = series.mean("dice_d")
    return (float("inf") if value is None else -value, series.label)


def _without_seed(run: RunRecord) -> str:
    experiment = dict(run.config["experiment"])
    fit = experiment.get("fit", {})
    experiment["fit"] = {k: v for k, v in fit.items() if k not in ("seed", "fold")}
    cohort = (run.config["cohort"] or {}).get("fingerprint")
    return json.dumps([run.config["name"], experiment, cohort], sort_keys=True)


def references(series: Sequence[Series], wanted: Sequence[str] = ()) -> list[Series]:
    """What all series of a cohort are compared with.

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
    """Compare every other series of a cohort with one, and correct the tests together."""
    others = [one for one in series if one is not reference]
    compared = {one.label: compare(one, reference) for one in others}
    made = correct([one for one in compared.values() if one is not None])
    return Comparisons(
        reference=reference,
        comparisons=tuple(sorted(made, key=lambda c: -c.differences["dice_d"].value)),
        left_out=tuple(label for label, one in compared.items() if one is None),
    )


def correct(made: Sequence[Comparison]) -> list[Comparison]:
    """Correct the p values of comparisons that are read together (Holm 1979)."""
    corrected = holm([one.p for one in made])
    return [
        replace(one, p_holm=float(p), num_comparisons=len(made))
        for one, p in zip(made, corrected, strict=True)
    ]


def compare(series: Series, reference: Series) -> Comparison | None:
    """Compare one series with another; None where the two do not pair.

    They pair if both were evaluated on the same scans of the same people, with figures by person,
    and both have a Dice_D.
    """
    ours, theirs = series.by_person, reference.by_person
    if not ours or not theirs or not ours[0].pairs_with(theirs[0]):
        return None
    differences: dict[str, Difference] = {}
    for metric in (one.key for one in metrics_of((*series.rows, *reference.rows)) if one.compared):
        fits = series.fits(metric), reference.fits(metric)
        if fits[0] is None or fits[1] is None:
            continue
        counts = None
        if metric == "dice_d":
            sides = [np.mean([one.counts for one in side], axis=0) for side in (ours, theirs)]
            counts = (sides[0], sides[1])
        differences[metric] = difference(fits[0], fits[1], counts)
    if "dice_d" not in differences:
        return None
    return Comparison(
        series=series,
        reference=reference,
        differences=differences,
        p_holm=differences["dice_d"].p,
        num_people=ours[0].counts.shape[1],
        num_comparisons=1,
    )


def count_verdicts(made: Sequence[Comparison]) -> str:
    """`2 higher, 1 lower, 3 with no difference shown`, in words; empty for none."""
    counts = Counter(one.verdict for one in made)
    words = {
        SAME: f"with {SAME}",
        ONE_FIT: "with one fit and so no verdict",
        TOO_FEW: f"with {TOO_FEW}",
    }
    return ", ".join(f"{counts[one]} {words.get(one, one)}" for one in VERDICTS if counts[one])


def _fits(num: int) -> str:
    return f"{num} fit{'' if num == 1 else 's'}"


def power_in_words(made: Sequence[Comparison]) -> str:
    """How many people and fits would show a difference of `GAP`; empty where nothing is known.

    Of the comparison whose difference varies as the median of them does.
    """
    known = sorted(
        (one for one in made if np.isfinite(one.differences["dice_d"].over_people)),
        key=lambda one: one.differences["dice_d"].over_people,
    )
    if not known:
        return ""
    one = known[len(known) // 2]
    varies = one.differences["dice_d"]
    sides = [len(side.rows) for side in (one.series, one.reference) if not side.is_plain]
    fits = min(sides, default=0)
    need = needed(
        GAP,
        over_people=varies.over_people,
        num_people=one.num_people,
        over_fits=varies.over_fits,
        num_fits=fits,
        tests=len(made),
    )
    if fits and varies.over_fits <= 0:
        beside = ", beside several fits a method, whose spread one fit does not show"
    else:
        beside = f" and {_fits(need.fits)} a method" if fits else ""
    here = f"{one.num_people} people" + (f" and {_fits(fits)}" if fits else "")
    return (
        f"Of {len(made)} comparison{'' if len(made) == 1 else 's'}, a true difference of {GAP:g} "
        f"would be shown in 8 of 10 such studies with about {need.people} people{beside}; "
        f"here are {here}."
    )


def probability(p: float) -> str:
    """A p value as it is printed; never rounded to 0."""
    if np.isnan(p):
        return ABSENT
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _difference(metric: Appearance) -> Column[Comparison]:
    def get(comparison: Comparison) -> Difference | None:
        return comparison.differences.get(metric.key)

    def read(comparison: Comparison, attribute: str) -> Any:
        figure = get(comparison)
        return None if figure is None or np.isnan(figure.value) else getattr(figure, attribute)

    return Column(
        key=f"{metric.key}_difference",
        head=f"{metric.head} difference",
        note="[95 %]",
        value=lambda c: read(c, "value"),
        text=lambda c: signed(read(c, "value")),
        detail=lambda c: brackets(read(c, "bounds"), signed),
        bounds=lambda c: read(c, "bounds"),
        first=first_order(metric),
    )


def _seeds(comparison: Comparison) -> str:
    spread = comparison.over_seeds
    return "" if spread is None else f"{signed(spread[0])} to {signed(spread[1])}"


_VERDICT: tuple[Column[Comparison], ...] = (
    Column(
        key="p",
        head="p of Dice_D",
        note="Holm in brackets",
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


def comparison_columns(made: Sequence[Comparison]) -> tuple[Column[Comparison], ...]:
    """The columns of a table of paired comparisons."""
    rows = [row for one in made for side in (one.series, one.reference) for row in side.rows]
    return (
        ascending("method", "Method", lambda c: c.series.label),
        *(_difference(one) for one in metrics_of(rows) if one.compared),
        *_VERDICT,
    )


def _over_seeds(metric: Appearance) -> Column[Series]:
    def spread(series: Series) -> str:
        values = series.each(metric.key)
        return f"{number(min(values))} to {number(max(values))}" if len(values) > 1 else ""

    def text(series: Series) -> str:
        deviation = series.deviation(metric.key)
        after = "" if deviation is None else f" ± {deviation:.3f}"
        return number(series.mean(metric.key)) + after

    return Column(
        key=metric.key,
        head=metric.head,
        note="mean ± std over fits, range",
        value=lambda series: series.mean(metric.key),
        text=text,
        detail=spread,
        first=first_order(metric),
    )


def seed_columns(several: Sequence[Series]) -> tuple[Column[Series], ...]:
    """The columns of the table of experiments with several seeds."""
    metrics = metrics_of(row for series in several for row in series.rows)
    return (
        ascending("method", "Method", lambda series: series.label),
        Column(
            key="fits",
            head="Fits",
            note="that differ in seed or fold alone",
            value=lambda series: len(series.rows),
            text=lambda series: str(len(series.rows)),
        ),
        *(_over_seeds(metric) for metric in metrics if metric.brief),
    )
