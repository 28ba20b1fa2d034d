"""Lesions found against false components, and by their size, as evaluations recorded them."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from uadray.metrics.froc import RATES
from uadray.report.columns import METHOD, Column, brackets, number
from uadray.report.figures import MAX_METHODS, Palette, axes_of, inline
from uadray.report.rows import Row, spread_rows

_NOTHING: Mapping[str, Any] = {"value": None, "interval": None}
"""Of an evaluation that did not record it."""

_SHORT = {0.125: "1/8", 0.25: "1/4", 0.5: "1/2"}


def with_finds(rows: Sequence[Row]) -> list[Row]:
    """The rows whose evaluation has them."""
    return [row for row in rows if _froc(row)]


def froc_columns() -> tuple[Column[Row], ...]:
    """The share of lesions that are found at each number of false components a scan."""
    rates = (
        _column(
            f"sensitivity_{rate:g}",
            f"at {_SHORT.get(rate, f'{rate:g}')}",
            "false a scan",
            partial(_at_rate, place=place),
        )
        for place, rate in enumerate(RATES)
    )
    mean = _column(
        "froc", "FROC score", "their mean [95 %]", lambda row: _froc(row).get("mean", _NOTHING)
    )
    return (METHOD, mean, *rates)


def size_columns(rows: Sequence[Row]) -> tuple[Column[Row], ...]:
    """The share of lesions that are found, by their size."""
    ranges = _froc(rows[0])["by_size_ml"] if rows else []
    return (
        METHOD,
        *(
            _column(
                f"found_from_{one['from']:g}_ml",
                f"from {one['from']:g} mL" + (f" to {one['to']:g}" if one["to"] else ""),
                f"{one['lesions']} lesions",
                partial(_of_size, place=place),
            )
            for place, one in enumerate(ranges)
        ),
    )


def froc_plot(rows: Sequence[Row]) -> Markup:
    """Share of lesions found over false components a scan, on a logarithmic axis."""
    rows = spread_rows(rows, MAX_METHODS) if rows else []
    if not rows:
        return Markup("")

    def draw(palette: Palette) -> Figure:
        figure, axes = axes_of((6.4, 3.2), palette)
        axes.grid(color=palette.muted, alpha=0.25, linewidth=0.6)
        for n, row in enumerate(rows):
            false, found = _froc(row)["curve"]
            axes.plot(
                [max(x, RATES[0] / 2) for x in false],
                found,
                color=palette.lines[n % len(palette.lines)],
                linestyle="--" if row.run.is_plain else "-",
                linewidth=1.6,
                label=row.run.label,
            )
        axes.set_xscale("log", base=2)
        axes.set_xlim(RATES[0] / 2, None)
        axes.set_xticks(RATES, [_SHORT.get(rate, f"{rate:g}") for rate in RATES])
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("false components a scan")
        axes.set_ylabel("share of lesions found")
        legend = axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
        for text in legend.get_texts():
            text.set_color(palette.ink)
        return figure

    return inline(draw, f"FROC curves of {len(rows)} methods; the table holds the figures")


def _column(key: str, head: str, note: str, figure: Any) -> Column[Row]:
    """A column of what `figure` gives of a row: `value` and `interval`."""

    def value(row: Row) -> float | None:
        found: float | None = figure(row)["value"]
        return found

    def bounds(row: Row) -> tuple[float, float] | None:
        pair = figure(row)["interval"]
        return None if pair is None else (float(pair[0]), float(pair[1]))

    return Column(
        key=key,
        head=head,
        note=note,
        value=value,
        text=lambda row: number(value(row)),
        detail=lambda row: brackets(bounds(row)),
        bounds=bounds,
    )


def _at_rate(row: Row, place: int) -> Mapping[str, Any]:
    return _figure(_froc(row).get("sensitivity"), place)


def _of_size(row: Row, place: int) -> Mapping[str, Any]:
    return _figure(_froc(row).get("by_size_ml"), place)


def _figure(figures: Sequence[Mapping[str, Any]] | None, place: int) -> Mapping[str, Any]:
    return figures[place] if figures else _NOTHING


def _froc(row: Row) -> Mapping[str, Any]:
    return row.evaluation.values.get("froc") or {}
