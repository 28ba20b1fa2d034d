"""Plots of sweeps: what a setting does, learning curves of many trials, curves over slices."""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter, NullLocator

from uadray.metrics.table import BY_KEY
from uadray.report.compare import Estimate
from uadray.report.effects import HEALTHY, Effect
from uadray.report.figures import Palette, axes_of, curve_of, inline
from uadray.report.over_cohorts import MeanEffect
from uadray.report.slices import SliceCurve
from uadray.runs.records import RunRecord
from uadray.runs.settings import Setting

HEADS = {
    "dice_d": r"Dice$_\mathrm{D}$",
    "auprc": "AUPRC",
    HEALTHY: "healthy L1",
}
"""Axis labels of the figures that are shown over a setting."""

MAX_LABEL = 44
"""Maximum number of characters of a label in a legend; captions and tables hold it whole."""

_SPOKEN = {
    **{key: BY_KEY[key].head for key in ("dice_d", "auprc")},
    HEALTHY: "healthy reconstruction error",
}
_MARKERS = ("o", "s", "^", "D", "v", "P")
_DASHES: tuple[Any, ...] = (
    "-",
    (0, (5, 2)),
    (0, (1.5, 1.5)),
    (0, (6, 2, 1.5, 2)),
    "-",
    (0, (3, 1)),
)
_SIZE = (4.4, 3.3)

_Drawn = tuple[str, list[tuple[Any, list[float], Estimate | None]]]
"""Label of a line, and value, single fits and mean of each of its points."""


def effect_plot(effect: Effect, metric: str) -> Markup | None:
    """A figure over one setting: mean and 95 % interval, and a small mark for each fit.

    Args:
        effect: The setting's.
        metric: One of `HEADS`.

    Returns:
        None where no line has two values of it.
    """
    lines: list[_Drawn] = [
        (line.label, [(p.value, p.each(metric), p.figure(metric)) for p in line.points])
        for line in effect.lines
    ]
    where = "" if metric == HEALTHY else f" on {effect.group.name}"
    return _over(effect.setting, lines, HEADS[metric], f"{_SPOKEN[metric]}{where}")


def mean_plot(effect: MeanEffect, metric: str = "auprc") -> Markup | None:
    """The same as a mean over cohorts, as in figure 5 of Bengs 2021."""
    lines: list[_Drawn] = [
        (label, [(p.value, p.each(metric), p.figure(metric)) for p in points])
        for label, points in effect.lines
    ]
    spoken = f"{_SPOKEN[metric]}, mean of {' and '.join(effect.cohorts)}"
    return _over(effect.setting, lines, f"{HEADS[metric]}, mean of cohorts", spoken)


def _over(setting: Setting, lines: list[_Drawn], head: str, spoken: str) -> Markup | None:
    series = [
        (label, [(v, each, f) for v, each, f in points if f is not None]) for label, points in lines
    ]
    series = [(label, points) for label, points in series if len(points) > 1]
    if not series:
        return None
    place = _places(setting)

    def draw(palette: Palette) -> Figure:
        figure, axes = axes_of((_SIZE[0], _height_for([label for label, _ in series])), palette)
        axes.grid(axis="y", color=palette.muted, alpha=0.2, linewidth=0.6)
        span = max(place.values()) - min(place.values())
        for n, (label, points) in enumerate(series):
            colour = palette.lines[n % len(palette.lines)]
            nudge = (n - (len(series) - 1) / 2) * 0.014 * span
            x = np.array([place[value] for value, _, _ in points]) + nudge
            for at, (_, each, one) in zip(x, points, strict=True):
                axes.plot(
                    [at] * len(each),
                    each,
                    _MARKERS[n % 6],
                    color=colour,
                    markersize=3.2,
                    alpha=0.55,
                    mew=0,
                )
                if one is not None and one.bounds is not None:
                    axes.plot([at, at], one.bounds, color=colour, linewidth=1.1)
            means = [one.value for _, _, one in points if one is not None]
            axes.plot(
                x,
                means,
                color=colour,
                linestyle=_DASHES[n % 6],
                marker=_MARKERS[n % 6],
                markersize=5.5,
                linewidth=1.6,
                label=_short(label),
            )
        _ticks(axes, setting, place)
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.set_xlabel(setting.label)
        axes.set_ylabel(head)
        _legend(figure, axes, palette)
        return figure

    names = ", ".join(label for label, _ in series)
    return inline(
        draw, f"{spoken} over {setting.label}: {names}; the table below holds the figures"
    )


def _places(setting: Setting) -> dict[Any, float]:
    """Where each value stands: by size, by its logarithm over a wide range, or in order."""
    values = setting.values
    if not setting.is_numeric:
        return {value: float(n) for n, value in enumerate(values)}
    if min(values) > 0 and max(values) / min(values) >= 8:
        return {value: float(np.log10(value)) for value in values}
    return {value: float(value) for value in values}


def _ticks(axes: Axes, setting: Setting, place: dict[Any, float]) -> None:
    ticks = list(place.items())
    if len(ticks) > 8:
        ticks = [ticks[k] for k in np.linspace(0, len(ticks) - 1, 8).round().astype(int)]
    axes.xaxis.set_major_locator(FixedLocator([at for _, at in ticks]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([setting.text(value) for value, _ in ticks], parse_math=False)
    low, high = min(place.values()), max(place.values())
    axes.set_xlim(low - 0.07 * (high - low), high + 0.07 * (high - low))


def _short(label: str) -> str:
    """A label that fits a legend, without mathematics in it."""
    label = label if len(label) <= MAX_LABEL else f"{label[: MAX_LABEL - 1]}\N{HORIZONTAL ELLIPSIS}"
    return label.replace("$", r"\$")


def _legend_columns(labels: Sequence[str]) -> int:
    return 2 if len(labels) > 3 and max(map(len, labels)) <= 22 else 1


def _height_for(labels: Sequence[str]) -> float:
    """Height in inches of a plot with a legend above it."""
    return _SIZE[1] + 0.17 * max(0, len(labels) / _legend_columns(labels) - 2)


def _legend(figure: Figure, axes: Axes, palette: Palette) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside upper left",
        frameon=False,
        labelcolor=palette.ink,
        fontsize=8,
        ncols=_legend_columns(labels),
        handlelength=2.6,
        borderaxespad=0.1,
    )


def bundle(label: str, runs: Sequence[RunRecord], limits: tuple[float, float]) -> Markup:
    """Validation error of many trials by epoch: faint lines, the best trial in front.

    Args:
        label: What the trials share, such as the experiment's name.
        runs: Those with learning curves; the best has the lowest validation error.
        limits: Of the error axis.
    """
    curves = [curve_of(run, "validation/reconstruction") for run in runs]
    lowest = [float(np.nanmin(errors)) if errors.size else np.inf for _, errors in curves]
    best = int(np.argmin(lowest))

    def draw(palette: Palette) -> Figure:
        figure, axes = axes_of((3.1, 2.1), palette)
        axes.grid(axis="y", color=palette.muted, alpha=0.2, linewidth=0.6)
        for n, (epochs, errors) in enumerate(curves):
            if n == best:
                continue
            stopped = runs[n].summary["status"] != "finished"
            axes.plot(epochs, errors, color=palette.muted, alpha=0.45, linewidth=0.8)
            if stopped and epochs.size:
                axes.plot(epochs[-1], errors[-1], "x", color=palette.plain, markersize=4)
        epochs, errors = curves[best]
        axes.plot(epochs, errors, color=palette.accent, linewidth=1.8)
        kept = int(np.nanargmin(errors)) if errors.size else None
        if kept is not None:
            axes.plot(epochs[kept], errors[kept], "o", color=palette.accent, markersize=5)
        error_axis(axes, limits)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.set_xlabel("epoch")
        axes.set_ylabel("healthy L1")
        return figure

    return inline(
        draw,
        f"Validation error of {len(runs)} trials of {label} by epoch; the lowest is "
        f"{lowest[best]:.4g}, of {runs[best].label}",
    )


def error_axis(axes: Axes, limits: tuple[float, float]) -> None:
    """A logarithmic error axis with plain numbers."""
    axes.set_yscale("log")
    axes.set_ylim(*limits)
    axes.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def slice_plot(curves: Sequence[SliceCurve], chance: float, spoken: str) -> Markup:
    """Precision over recall of telling slices with lesion, one colour a method, a line a fit.

    Args:
        curves: The methods.
        chance: Share of slices with lesion: the precision of guessing.
        spoken: What the slices are of.
    """

    def draw(palette: Palette) -> Figure:
        figure, axes = axes_of((_SIZE[0], _height_for(["long" * 9] * len(curves))), palette)
        axes.grid(color=palette.muted, alpha=0.2, linewidth=0.6)
        axes.axhline(chance, color=palette.muted, linewidth=1, linestyle=(0, (1, 2)))
        for n, curve in enumerate(curves):
            for k, (recall, precision) in enumerate(curve.lines):
                axes.plot(
                    recall,
                    precision,
                    drawstyle="steps-post",
                    color=palette.lines[n % len(palette.lines)],
                    linestyle=_DASHES[n % 6],
                    linewidth=1.5 if k == 0 else 0.9,
                    alpha=1 if k == 0 else 0.6,
                    label=f"{_short(curve.series.label)} {curve.text}" if k == 0 else None,
                )
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("recall of slices with lesion")
        axes.set_ylabel("precision")
        _legend(figure, axes, palette)
        return figure

    listed = "; ".join(f"{curve.series.label} {curve.text}" for curve in curves)
    return inline(draw, f"Precision over recall of axial slices of {spoken}: AUPRC of {listed}")
