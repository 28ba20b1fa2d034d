"""Which axial slices hold a lesion, per cohort and pooled over cohorts (Bengs 2021, figure 6)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uadray.metrics.inference import Fits, interval, leaving_out
from uadray.metrics.measures import auprc
from uadray.metrics.slicewise import Slices, histograms
from uadray.report.columns import brackets, number
from uadray.report.compare import Estimate, Series
from uadray.report.words import Compared
from uadray.runs.evaluations import Evaluation

MAX_METHODS = 6
"""Methods in one plot at most: the highest by slice-wise AUPRC, always with the best plain one."""

_MOST_POINTS = 200

_AT_ONCE = 64  # people left out at once: counts over all slices stay below 100 MB


@dataclass(frozen=True, kw_only=True)
class SliceCurve:
    """One method's precision and recall over slices."""

    series: Series
    """Its fits."""
    lines: tuple[tuple[NDArray[np.float64], NDArray[np.float64]], ...]
    """Recall and precision of each fit, from the highest threshold on."""
    figure: Estimate
    """AUPRC over slices: mean over the fits, interval over subjects."""

    @property
    def text(self) -> str:
        """`0.712 [0.650, 0.770]`."""
        return f"{number(self.figure.value)} {brackets(self.figure.bounds)}".rstrip()


@dataclass(frozen=True, kw_only=True)
class SlicePlot:
    """The curves of one cohort, or of several pooled."""

    names: tuple[str, ...]
    """Cohorts."""
    notes: tuple[str, ...]
    """Distinct notes of the cohorts, such as `semi-synthetic`."""
    curves: tuple[SliceCurve, ...]
    """The highest AUPRC first."""
    chance: float
    """Share of slices with lesion."""
    num_slices: int
    """Slices that count."""
    num_left_out: int
    """Methods that are not shown."""


def slice_plots(cohorts: Sequence[Compared]) -> list[SlicePlot]:
    """One plot a cohort whose runs kept their slices, and one of all of them together."""
    plots = [plot for cohort in cohorts if (plot := _of_one(cohort)) is not None]
    pooled = _pooled([cohort for cohort in cohorts if _kept(cohort)])
    return ([pooled] if pooled else []) + plots


def _kept(cohort: Compared) -> list[Series]:
    return [one for one in cohort.series if all(row.evaluation.slices for row in one.rows)]


def _of_one(cohort: Compared) -> SlicePlot | None:
    made = []
    for series in _kept(cohort):
        figure = series.figure("slice_auprc")
        if figure is not None:
            parts = [[_slices(row.evaluation)] for row in series.rows]
            made.append((series, parts, figure))
    chosen = _choose(made)
    if not chosen:
        return None
    return _plot([cohort], chosen, len(made))


def _pooled(cohorts: Sequence[Compared]) -> SlicePlot | None:
    """Runs that every cohort has; the score of a run is on one scale on all of them."""
    if len(cohorts) < 2:
        return None
    places = [
        {row.run.url: row.evaluation for row in cohort.group.rows if row.evaluation.slices}
        for cohort in cohorts
    ]
    made = []
    for series in _kept(cohorts[0]):
        urls = [row.run.url for row in series.rows]
        if not all(url in place for place in places for url in urls):
            continue
        parts = [[_slices(place[url]) for place in places] for url in urls]
        made.append((series, parts, Estimate(value=_mean_auprc(parts), bounds=None)))
    # Intervals take long, so only those that are drawn get one.
    chosen = []
    for series, parts, figure in _choose(made):
        first = [place[series.rows[0].run.url].by_person for place in places]
        people = [one.people for one in first if one is not None]
        if len(people) == len(first):
            figure = _bounded(parts, people)
        chosen.append((series, parts, figure))
    if not chosen:
        return None
    return _plot(cohorts, chosen, len(made))


_Made = tuple[Series, list[list[Slices]], Estimate]
"""A method, the slices of its fits by cohort, and its AUPRC."""


def _choose(made: Sequence[_Made]) -> list[_Made]:
    ordered = sorted(made, key=lambda one: -one[2].value)
    chosen = ordered[:MAX_METHODS]
    if chosen and not any(one[0].is_plain for one in chosen):
        chosen[-1:] = [next((one for one in ordered if one[0].is_plain), chosen[-1])]
    return chosen


def _plot(cohorts: Sequence[Compared], chosen: Sequence[_Made], num: int) -> SlicePlot:
    curves = [
        SliceCurve(series=series, lines=tuple(_curve(fit) for fit in parts), figure=figure)
        for series, parts, figure in chosen
    ]
    _, lesion, _ = _joined(chosen[0][1][0])
    return SlicePlot(
        names=tuple(cohort.group.name for cohort in cohorts),
        notes=tuple(dict.fromkeys(n for cohort in cohorts for n in cohort.group.notes)),
        curves=tuple(curves),
        chance=float(lesion.mean()),
        num_slices=len(lesion),
        num_left_out=num - len(chosen),
    )


def _slices(evaluation: Evaluation) -> Slices:
    assert evaluation.slices is not None
    return evaluation.slices


def _joined(
    parts: Sequence[Slices], weights: Sequence[NDArray[np.int64]] | None = None
) -> tuple[NDArray, NDArray, NDArray]:
    flat = [part.flat(None if weights is None else weights[n]) for n, part in enumerate(parts)]
    scores, lesion, counts = zip(*flat, strict=True)
    return np.concatenate(scores), np.concatenate(lesion), np.concatenate(counts, axis=1)


def _mean_auprc(fits: Sequence[Sequence[Slices]]) -> float:
    return float(np.mean([auprc(histograms(*_joined(parts)))[0] for parts in fits]))


def pooled(parts: Sequence[Slices], people: Sequence[Sequence[str]]) -> Estimate:
    """AUPRC of one fit over the slices of several cohorts together, with its interval.

    Args:
        parts: Of each cohort.
        people: The person of each of its scans.
    """
    return _bounded([parts], people)


def _bounded(fits: Sequence[Sequence[Slices]], people: Sequence[Sequence[str]]) -> Estimate:
    """Mean over the fits, with its interval over the people of all cohorts, and fits."""
    weights = leaving_out([f"{n} {one}" for n, part in enumerate(people) for one in part])
    ends = np.cumsum([len(part) for part in people])[:-1]
    values = [
        np.concatenate(
            [
                auprc(histograms(*_joined(parts, np.split(some, ends, axis=1))))
                for some in np.array_split(weights, -(-len(weights) // _AT_ONCE))
            ]
        )
        for parts in fits
    ]
    of_people = Fits(values=np.stack(values), limits=(0.0, 1.0))
    return Estimate(value=float(of_people.mean[0]), bounds=interval(of_people))


def _curve(parts: Sequence[Slices]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    held = histograms(*_joined(parts))
    above, false = held.true_positives[0][::-1], held.false_positives[0][::-1]
    recall = above / max(float(held.num_lesion[0]), 1.0)
    precision = above / np.maximum(above + false, 1)
    if len(recall) > _MOST_POINTS:
        kept = np.unique(np.linspace(0, len(recall) - 1, _MOST_POINTS).round().astype(int))
        recall, precision = recall[kept], precision[kept]
    return np.concatenate([[0.0], recall]), np.concatenate([precision[:1], precision])
