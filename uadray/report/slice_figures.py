"""Precision over recall of telling axial slices with lesion, as in figure 6 of Bengs 2021."""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from uadray.report.figures import Palette, axes_of, inline
from uadray.report.slices import SliceCurve

MAX_LABEL = 44
"""Maximum number of characters of a label in a legend; captions and tables hold it whole."""

_DASHES: tuple[Any, ...] = (
    "-",
    (0, (5, 2)),
    (0, (1.5, 1.5)),
    (0, (6, 2, 1.5, 2)),
    "-",
    (0, (3, 1)),
)
_SIZE = (4.4, 3.3)


def slice_plot(curves: Sequence[SliceCurve], chance: float, spoken: str) -> Markup:
    """Precision over recall of telling slices with lesion, one colour a method, a line a fit.

    Args:
        curves: The methods.
        chance: Share of slices with lesion: the precision of guessing.
        spoken: What the slices are of.
    """

    def draw(palette: Palette) -> Figure:
        figure, axes = axes_of((_SIZE[0], _SIZE[1] + 0.17 * max(0, len(curves) - 2)), palette)
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
        figure.legend(
            loc="outside upper left",
            frameon=False,
            labelcolor=palette.ink,
            fontsize=8,
            handlelength=2.6,
            borderaxespad=0.1,
        )
        return figure

    listed = "; ".join(f"{curve.series.label} {curve.text}" for curve in curves)
    return inline(draw, f"Precision over recall of axial slices of {spoken}: AUPRC of {listed}")


def _short(label: str) -> str:
    """A label that fits a legend, without mathematics in it."""
    label = label if len(label) <= MAX_LABEL else f"{label[: MAX_LABEL - 1]}\N{HORIZONTAL ELLIPSIS}"
    return label.replace("$", r"\$")
