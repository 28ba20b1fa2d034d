"""Plots as inline SVG that follows the page's colours, and montage tiles as small PNG images."""

import html
import io
import itertools
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from uadray.html import data_uri
from uadray.report.compare import Comparisons
from uadray.report.rows import CohortRows, Row
from uadray.runs.evaluations import Cases
from uadray.runs.records import RunRecord

MIN_FIT_SUBJECTS = 12
"""Fewest subjects for the cubic fit of Dice over lesion volume, three for each of its four terms;
below, the marks stand alone."""

MAX_LINES = 40
"""Methods in one plot of intervals at most: the first ones; the table beside it holds all."""

MAX_METHODS = 6
"""Methods in a picture that tells them by colour, as many as there are colours that differ."""

_LARGEST_SVG = 150_000
_SMALL = (3.1, 2.1)
_MARGINS = {"left": 0.165, "right": 0.975, "bottom": 0.225, "top": 0.965}
_serial = itertools.count()


@dataclass(frozen=True, kw_only=True)
class Palette:
    """Colours of a plot; in SVG they are keys that the page's style sheet fills."""

    ink: str
    """Text."""
    muted: str
    """Axes, ticks and what stands in the background."""
    accent: str
    """Methods that learn."""
    plain: str
    """Plain baselines."""
    lines: tuple[str, ...]
    """Six that tell lines of one plot apart; marks and dashes do so too."""


_KEYS = Palette(
    ink="#0a0b01",
    muted="#0a0b02",
    accent="#0a0b03",
    plain="#0a0b04",
    lines=tuple(f"#0a0b1{n}" for n in range(6)),
)
_LIGHT = Palette(
    ink="#1b1f24",
    muted="#6b7280",
    accent="#0b5cad",
    plain="#a04800",
    lines=("#0b5cad", "#b34700", "#00795a", "#9a3b84", "#7a6400", "#3d4650"),
)
_VARIABLES = {
    _KEYS.ink: "var(--ink)",
    _KEYS.muted: "var(--muted)",
    _KEYS.accent: "var(--accent)",
    _KEYS.plain: "var(--plain)",
} | {key: f"var(--line-{n})" for n, key in enumerate(_KEYS.lines, start=1)}
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "path.simplify": True,
}


def inline(draw: Callable[[Palette], Figure], description: str) -> Markup:
    """A plot as markup for the page.

    Args:
        draw: Makes the figure in the colours given.
        description: The same in plain text, for readers who cannot see it.

    Returns:
        An `<svg>` that follows the page's light or dark colours, or, where that would be large, an
        `<img>` with a PNG as data URI if it is the smaller of the two.
    """
    svg = _svg(draw(_KEYS), description)
    if len(svg) <= _LARGEST_SVG:
        return Markup(svg)
    png = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        draw(_LIGHT).savefig(png, format="png", dpi=160, facecolor="white")
    image = Markup('<img class="plot" alt="{}" src="{}">').format(
        description, data_uri(png.getvalue())
    )
    return image if len(image) < len(svg) else Markup(svg)


def _svg(figure: Figure, description: str) -> str:
    buffer = io.StringIO()
    # Identifiers must differ between the plots of one page, and not between two makings of it.
    style = {**_STYLE, "svg.hashsalt": f"plot-{next(_serial)}"}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", text, flags=re.S)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    for key, variable in _VARIABLES.items():
        text = text.replace(key, variable)
    view = re.search(r'viewBox="[^"]*"', text)
    assert view is not None
    head = f'<svg class="plot" role="img" aria-label="{html.escape(description)}" {view[0]}>'
    body = re.sub(r"\s*\n\s*", "\n", text[text.index(">") + 1 :])
    return head + body.replace("xlink:href", "href")


def axes_of(size: tuple[float, float], palette: Palette) -> tuple[Figure, Axes]:
    """A figure of (width, height) in inches and its axes, in the colours given."""
    with matplotlib.rc_context(_STYLE):
        # fitting the margins to the labels takes as long as drawing, so small plots share theirs
        figure = Figure(figsize=size, layout=None if size == _SMALL else "constrained")
        axes = figure.add_subplot()
        if size == _SMALL:
            figure.subplots_adjust(**_MARGINS)
    for spine in axes.spines.values():
        spine.set_color(palette.muted)
    axes.tick_params(color=palette.muted, labelcolor=palette.ink)
    axes.xaxis.label.set_color(palette.ink)
    axes.yaxis.label.set_color(palette.ink)
    return figure, axes


def interval_plot(group: CohortRows) -> Markup:
    """Dice_D with its 95 % interval, one line a run, the highest on top; empty without any."""
    lines = [
        _Interval(row.run.label, row.is_plain, value, row.evaluation.interval("dice_d"))
        for row in group.rows
        if (value := row.evaluation.metric("dice_d")) is not None
    ]
    spoken = f"Dice_D and interval of {len(lines)} runs; the table holds the figures"
    return _intervals(lines, r"Dice$_\mathrm{D}$", spoken) if lines else Markup("")


def difference_plot(table: Comparisons) -> Markup:
    """Paired differences of Dice_D from one reference with their intervals, a line a method."""
    lines = [
        _Interval(one.series.label, one.is_plain, gap.value, gap.bounds)
        for one in table.comparisons
        for gap in (one.differences["dice_d"],)
    ]
    what = f"Paired Dice_D differences of {len(lines)} methods from {table.reference.label}"
    head = r"difference of Dice$_\mathrm{D}$"
    return _intervals(lines, head, f"{what}; the table holds them", at=0)


class _Interval(NamedTuple):
    label: str
    is_plain: bool
    value: float
    bounds: tuple[float, float] | None


def _intervals(
    lines: Sequence[_Interval], head: str, spoken: str, *, at: float | None = None
) -> Markup:
    """Figures with their intervals, the first `MAX_LINES`, and a line at one value if any."""
    lines = lines[:MAX_LINES]

    def draw(palette: Palette) -> Figure:
        figure, axes = axes_of((6.4, 0.75 + 0.27 * len(lines)), palette)
        axes.grid(axis="x", color=palette.muted, alpha=0.25, linewidth=0.6)
        if at is not None:
            axes.axvline(at, color=palette.ink, linewidth=1)
        for place, one in enumerate(lines):
            colour = palette.plain if one.is_plain else palette.accent
            if one.bounds is not None:
                axes.plot(one.bounds, [place, place], color=colour, linewidth=1.6)
            marker = "D" if one.is_plain else "o"
            axes.plot(one.value, place, marker, color=colour, markersize=5)
        axes.set_yticks(range(len(lines)), [one.label for one in lines], parse_math=False)
        axes.set_ylim(len(lines) - 0.5, -0.5)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.set_xlabel(f"{head}, 95 % interval over people")
        axes.tick_params(axis="y", length=0)
        return figure

    return inline(draw, spoken)


def has_curves(run: RunRecord) -> bool:
    """Whether the run wrote a reconstruction error by epoch."""
    return len(run.epochs) > 1 and any(curve_of(run, key)[1].size > 1 for key in _CURVES)


_CURVES = ("train/reconstruction", "validation/reconstruction")


def curve_of(run: RunRecord, key: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Epochs and the figure of each that has it, such as `validation/reconstruction`."""
    pairs = [(e["epoch"], e[key]) for e in run.epochs if e.get(key) is not None]
    return np.array([p[0] for p in pairs], float), np.array([p[1] for p in pairs], float)


def learning_curve(run: RunRecord, limits: tuple[float, float]) -> Markup:
    """Reconstruction error on training and validation volumes by epoch, the best one marked.

    Args:
        run: One for which `has_curves`.
        limits: Of the error axis, shared by all runs.
    """
    best = run.summary.get("best_epoch")

    def draw(palette: Palette) -> Figure:
        figure, axes = axes_of(_SMALL, palette)
        axes.grid(axis="y", color=palette.muted, alpha=0.2, linewidth=0.6)
        styles = ((palette.muted, (0, (4, 2)), "train"), (palette.accent, "-", "validation"))
        for key, (colour, dashes, label) in zip(_CURVES, styles, strict=True):
            epochs, errors = curve_of(run, key)
            axes.plot(epochs, errors, color=colour, linestyle=dashes, linewidth=1.5, label=label)
            marked = epochs == best
            if key.startswith("validation") and marked.any():
                axes.plot(epochs[marked], errors[marked], "o", color=colour, markersize=6)
        axes.set_yscale("log")
        axes.set_ylim(*limits)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 3, 5, 7)))
        axes.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
        axes.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        axes.set_xlabel("epoch")
        axes.set_ylabel("L1")
        axes.legend(frameon=False, labelcolor=palette.ink, fontsize=8)
        return figure

    epochs, errors = curve_of(run, _CURVES[1])
    marked = errors[epochs == best]
    lowest = f", lowest validation error {marked[0]:.4g} at epoch {best}" if marked.size else ""
    return inline(draw, f"Reconstruction error of {run.label} by epoch{lowest}")


def curve_limits(runs: Sequence[RunRecord]) -> tuple[float, float]:
    """Limits of a log axis that holds every curve of `runs`."""
    values = np.concatenate([curve_of(run, key)[1] for run in runs for key in _CURVES])
    values = values[np.isfinite(values) & (values > 0)]
    if not values.size:
        return 0.001, 1.0
    return float(values.min()) * 0.9, float(values.max()) * 1.1


def _volumes(row: Row) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """log10 of the lesion volumes in mL and Dice_S, of the subjects that have both."""
    pairs = [
        (s["lesion_ml"], s["dice"])
        for s in row.evaluation.values["subjects"]
        if s["dice"] is not None and s["lesion_ml"] is not None and s["lesion_ml"] > 0
    ]
    return np.log10([p[0] for p in pairs]), np.array([p[1] for p in pairs], float)


def cubic_fit(row: Row) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Cubic regression of Dice_S over log10 of the lesion volume (Bengs 2021, figure 4).

    Returns:
        Volumes in mL and fitted Dice_S over the range of the data, or None below
        `MIN_FIT_SUBJECTS` subjects or four distinct volumes.
    """
    volumes, dice = _volumes(row)
    if len(dice) < MIN_FIT_SUBJECTS or len(np.unique(volumes)) < 4:
        return None
    fit = np.polynomial.Polynomial.fit(volumes, dice, 3)
    x = np.linspace(volumes.min(), volumes.max(), 60)
    return 10**x, fit(x)


_Curve = tuple[NDArray[np.float64], NDArray[np.float64]]


def volume_plots(rows: Sequence[Row]) -> list[Markup]:
    """Dice_S over lesion volume, one plot a run, with the fits of the other runs behind it."""
    fits = [cubic_fit(row) for row in rows]
    return [
        _volume_plot(row, fit, [other for other in fits if other is not None and other is not fit])
        for row, fit in zip(rows, fits, strict=True)
    ]


def _volume_plot(row: Row, fit: _Curve | None, others: Sequence[_Curve]) -> Markup:
    volumes, dice = _volumes(row)

    def draw(palette: Palette) -> Figure:
        figure, axes = axes_of(_SMALL, palette)
        colour = palette.plain if row.run.is_plain else palette.accent
        for other in others:
            axes.plot(*other, color=palette.muted, alpha=0.35, linewidth=0.8)
        marker = "D" if row.run.is_plain else "o"
        alpha = 0.9 if fit is None else 0.45
        axes.plot(10**volumes, dice, marker, color=colour, alpha=alpha, markersize=4.5, mew=0)
        if fit is not None:
            axes.plot(*fit, color=colour, linewidth=2)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
        if dice.size and np.ptp(volumes) < 1:
            axes.xaxis.set_minor_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
            axes.xaxis.set_minor_locator(matplotlib.ticker.LogLocator(subs=(2, 5)))
            axes.tick_params(which="minor", color=palette.muted, labelcolor=palette.ink)
        axes.set_ylim(-0.03, 1)
        axes.set_xlabel("lesion volume, mL")
        axes.set_ylabel(r"Dice$_\mathrm{S}$")
        return figure

    kind = "with a cubic fit" if fit is not None else "without a fit"
    return inline(draw, f"Dice_S of {row.run.label} over the volume of {len(dice)} lesions, {kind}")


# Tiles are 8-bit palette images: one byte a voxel before compression, whatever the colours.
_GREYS = 250
_BLUE, _ORANGE = 250, 251
_GREY_PALETTE = [round(i * 255 / (_GREYS - 1)) for i in range(_GREYS) for _ in range(3)]
_GREY_PALETTE += [86, 180, 233, 255, 140, 0]
_HEAT_PALETTE = [round(255 * v) for i in range(256) for v in matplotlib.colormaps["inferno"](i)[:3]]


def grey_tile(image: NDArray[np.float32]) -> str:
    """One slice (Y, X) in [0, 1] as a grey image, anterior up and left on the left."""
    return _png(_grey(image), _GREY_PALETTE)


def heat_tile(scores: NDArray[np.float32], low: float, high: float) -> str:
    """One slice (Y, X) of scores as a heat map, black at `low`, brightest at `high`."""
    span = high - low if high > low else 1.0
    return _png(np.rint(np.clip((scores - low) / span, 0, 1) * 255).astype(np.uint8), _HEAT_PALETTE)


def outline_tile(
    image: NDArray[np.float32], lesion: NDArray[np.bool_], prediction: NDArray[np.bool_] | None
) -> str:
    """One slice (Y, X) with the outline of the truth in blue and of the prediction in orange."""
    factor = max(1, round(256 / max(image.shape)))
    grey = _enlarge(_grey(image), factor)
    # The truth's line is the wider one, so that both show where they coincide.
    for mask, colour, width in ((lesion, _BLUE, 4), (prediction, _ORANGE, 2)):
        if mask is not None:
            large = _enlarge(mask, factor)
            inner = ndimage.binary_erosion(large, np.ones((3, 3)), iterations=width)
            grey[large & ~inner] = colour
    return _png(grey, _GREY_PALETTE)


def heat_limits(cases: Sequence[Cases], low: float) -> tuple[float, float]:
    """The score range's lower end, and the 99.5th percentile of all cases' scores in the brain.

    Args:
        cases: Of the runs that share a scale.
        low: Lower end of their score range.
    """
    inside = np.concatenate([one.scores[one.brain] for one in cases])
    return low, float(np.percentile(inside, 99.5)) if inside.size else low


def _grey(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.rint(np.clip(np.nan_to_num(image), 0, 1) * (_GREYS - 1)).astype(np.uint8)


def _enlarge(image: NDArray, factor: int) -> NDArray:
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def _png(levels: NDArray[np.uint8], palette: list[int]) -> str:
    # Rows run from posterior to anterior and an image's first row is on top.
    picture = Image.fromarray(np.ascontiguousarray(levels[::-1]))
    picture.putpalette(palette)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return data_uri(buffer.getvalue())
