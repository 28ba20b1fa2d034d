"""The papers' figures that are no curve over settings: drawn from evaluated runs, as SVG files."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from uadray.metrics.counts import TestPart
from uadray.papers.reproduce import Reproduction
from uadray.report.figures import MIN_FIT_SUBJECTS
from uadray.runs.scores import ScoreStore

PANELS = (
    ("2D-None", "2D-Patch-n"),
    ("3D-None", "3D-Cube-n"),
    ("2D-Patch-n", "3D-Cube-n"),
)
"""Rows of figure 4 of Bengs 2021: without and with erasing in 2D and in 3D, 2D and 3D with it."""

_COLOURS = ("#b34700", "#0b5cad")
"""Of the first and the second method of a panel, and of anomalous and normal voxels."""
_NUM_BINS = 100


def draw(one: Reproduction) -> bytes | None:
    """A figure as SVG; None where it is a table, or nothing of it is evaluated yet."""
    maker = _MAKERS.get((one.paper.key, one.study.key))
    made = None if maker is None else maker(one)
    if made is None:
        return None
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": one.study.key, "svg.fonttype": "none"}):
        made.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def dice_by_lesion(
    records: Sequence[Mapping[str, Any]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Voxels of each subject's lesion and its Dice_S, the mean over the fits of a method.

    Args:
        records: Evaluations of one method on one cohort, one a fit.
    """
    values: dict[str, list[float]] = {}
    voxels: dict[str, int] = {}
    for record in records:
        for subject in record["subjects"]:
            if subject["dice"] is not None and subject.get("lesion_voxels"):
                values.setdefault(subject["id"], []).append(subject["dice"])
                voxels[subject["id"]] = subject["lesion_voxels"]
    whole = [name for name, each in values.items() if len(each) == len(records)]
    return (
        np.array([voxels[name] for name in whole], float),
        np.array([np.mean(values[name]) for name in whole], float),
    )


def _figure_4(one: Reproduction) -> Figure | None:
    """Dice_S over the number of annotated voxels, two methods a panel (Bengs 2021, figure 4)."""
    roles = [need.role for need in one.study.cohorts if need.role in one.roles]
    points = {
        (name, role): evaluations
        for role in roles
        for name in dict.fromkeys(name for pair in PANELS for name in pair)
        if (evaluations := one.evaluations(name, role))
    }
    if not points:
        return None
    figure = Figure(figsize=(3.4 * len(roles), 7.5), layout="constrained")
    grid = figure.subplots(len(PANELS), len(roles), squeeze=False, sharex="col", sharey=True)
    for pair, line in zip(PANELS, grid, strict=True):
        for role, axes in zip(roles, line, strict=True):
            for name, colour in zip(pair, _COLOURS, strict=True):
                if (name, role) in points:
                    _dots(axes, name, colour, *dice_by_lesion(points[name, role]))
            axes.set_title(f"{role}: {' and '.join(pair)}", fontsize=8)
            axes.set_xscale("log")
            axes.set_ylim(-0.03, 1)
            axes.legend(frameon=False, fontsize=7)
    for axes in grid[-1]:
        axes.set_xlabel("annotated voxels of the lesion")
    for axes in grid[:, 0]:
        axes.set_ylabel(r"Dice$_\mathrm{S}$")
    return figure


def _dots(
    axes: Axes, name: str, colour: str, voxels: NDArray[np.float64], dice: NDArray[np.float64]
) -> None:
    axes.plot(voxels, dice, "o", color=colour, alpha=0.3, markersize=4, mew=0, label=name)
    place = np.log10(voxels)
    if len(dice) >= MIN_FIT_SUBJECTS and len(np.unique(place)) >= 4:
        fit = np.polynomial.Polynomial.fit(place, dice, 3)
        along = np.linspace(place.min(), place.max(), 100)
        axes.plot(10**along, fit(along), color=colour, linewidth=2)


def _residuals(one: Reproduction) -> Figure | None:
    """Histograms of the residuals of normal and anomalous voxels (Baur 2018, figure 6)."""
    (entry,) = one.study.entries
    evaluations = one.evaluations(entry.label, entry.role)
    if entry.role not in one.roles or not evaluations:
        return None
    record = evaluations[0]
    cohort = one.cohorts[entry.role]
    tested = {subject["id"] for subject in record["subjects"]}
    table = cohort.subjects[cohort.subjects["id"].isin(tested)]
    low, high = (float(bound) for bound in record["score_range"])
    scores = ScoreStore.of(record["run"], cohort.name, (low, high))
    pairs = list(zip(table["row"].astype(int), table["id"], strict=True))
    counts = scores.counts(pairs, f"{cohort.name}/test", TestPart)
    edges, normal, anomalous = residual_histograms(counts)
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.subplots()
    for name, density, colour in (
        ("normal", normal, _COLOURS[1]),
        ("anomalous", anomalous, _COLOURS[0]),
    ):
        axes.stairs(density, edges, color=colour, fill=True, alpha=0.5, label=name)
    axes.set_yscale("log")
    axes.set_xlabel("filtered residual inside the brain")
    axes.set_ylabel("density of the voxels of each kind")
    axes.set_title(f"{entry.label} on {cohort.name}, {len(table)} subjects", fontsize=9)
    axes.legend(frameon=False)
    return figure


def residual_histograms(
    counts: TestPart,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Densities of the scores of normal and of anomalous voxels inside the brain.

    Returns:
        Edges of the bins, (bins + 1,), over the scores that occur; and both densities, each of
        integral 1, (bins,).
    """
    merged = counts.merged("brain")
    low, high = counts.score_range
    scores = low + merged.levels / 65535 * (high - low)
    edges = np.linspace(low, max(float(scores[-1]), low + (high - low) / 65535), _NUM_BINS + 1)

    def density(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        counts, _ = np.histogram(scores, edges, weights=weights)
        return counts / max(float(counts.sum()), 1.0) / np.diff(edges)

    return edges, density(merged.healthy), density(merged.lesion)


_MAKERS: dict[tuple[str, str], Callable[[Reproduction], Figure | None]] = {
    ("bengs2021", "figure-4"): _figure_4,
    ("baur2018", "figure-6"): _residuals,
}
