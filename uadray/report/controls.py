"""Healthy controls: what methods find in them, and patients against them by a score a person."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from uadray.metrics.patients import SCORES
from uadray.report.columns import METHOD, Column, brackets, number
from uadray.report.figures import MAX_METHODS, Palette, axes_of, inline
from uadray.report.rows import CohortRows, Row, spread_rows
from uadray.report.strata import Strata, strata_of

PLOTTED = "top_mean"
"""The score whose curve is drawn: it is defined for all methods, and coarse for none."""


@dataclass(frozen=True, kw_only=True)
class Controls:
    """What the page says of one cohort's controls."""

    name: str
    """Of the healthy cohort."""
    num_people: int
    num_patients: int
    rows: tuple[Row, ...]
    """Evaluations with these controls."""

    def columns(self) -> tuple[Column[Row], ...]:
        """How well each score of a person detects patients."""
        each = (
            Column[Row](
                key=f"{name}_{key}",
                head="AUROC" if key == "auroc" else "AUPRC",
                note=SCORES[name],
                value=partial(_value, name=name, key=key),
                text=partial(_text, name=name, key=key),
                detail=partial(_detail, name=name, key=key),
                bounds=partial(_bounds, name=name, key=key),
            )
            for name in SCORES
            for key in ("auroc", "auprc")
            if any(_told(row, name) for row in self.rows)
        )
        return (METHOD, *each)

    @property
    def strata(self) -> list[Strata]:
        """Their groups, where they were grouped."""
        return strata_of(self.rows, of_controls=True)

    def plot(self) -> Markup:
        """Receiver operating characteristic of some methods, by the score `PLOTTED`."""
        rows = [row for row in spread_rows(self.rows, MAX_METHODS) if "roc" in _told(row, PLOTTED)]
        if not rows:
            return Markup("")

        def draw(palette: Palette) -> Figure:
            figure, axes = axes_of((6.0, 3.6), palette)
            axes.grid(color=palette.muted, alpha=0.25, linewidth=0.6)
            axes.plot([0, 1], [0, 1], color=palette.muted, linewidth=0.8)
            for n, row in enumerate(rows):
                false, true = _told(row, PLOTTED)["roc"]
                axes.plot(
                    false,
                    true,
                    color=palette.lines[n % len(palette.lines)],
                    linestyle="--" if row.run.is_plain else "-",
                    linewidth=1.6,
                    label=row.run.label,
                )
            axes.set_aspect("equal")
            axes.set_anchor("W")  # else its label would be left of the figure
            axes.set_xlim(-0.01, 1.01)
            axes.set_ylim(-0.01, 1.01)
            axes.set_xlabel("share of healthy controls")
            axes.set_ylabel("share of patients")
            legend = figure.legend(loc="outside right center", frameon=False)
            for text in legend.get_texts():
                text.set_color(palette.ink)
            return figure

        return inline(draw, f"ROC curves of {len(rows)} methods; the table holds the areas")


def controls_of(group: CohortRows) -> list[Controls]:
    """The controls of a cohort's evaluations, by the healthy cohort that they are of."""
    found: dict[str, list[Row]] = {}
    for row in group.rows:
        if row.evaluation.controls:
            cohort = row.evaluation.controls["cohort"]
            found.setdefault(f"{cohort['name']} {cohort['fingerprint']}", []).append(row)
    made = []
    for rows in found.values():
        values: Mapping[str, Any] = rows[0].evaluation.controls or {}
        told: Mapping[str, Any] = next(iter(values["detection"].values()), {})
        made.append(
            Controls(
                name=str(values["cohort"]["name"]),
                num_people=int(values["num_people"]),
                num_patients=int(told.get("num_patients", 0)),
                rows=tuple(rows),
            )
        )
    return made


def _told(row: Row, name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = ((row.evaluation.controls or {}).get("detection") or {}).get(
        name, {}
    )
    return found


def _value(row: Row, name: str, key: str) -> float | None:
    value = _told(row, name).get("metrics", {}).get(key)
    return None if value is None else float(value)


def _bounds(row: Row, name: str, key: str) -> tuple[float, float] | None:
    pair: Sequence[float] | None = _told(row, name).get("intervals", {}).get(key)
    return None if pair is None else (pair[0], pair[1])


def _text(row: Row, name: str, key: str) -> str:
    return number(_value(row, name, key))


def _detail(row: Row, name: str, key: str) -> str:
    return brackets(_bounds(row, name, key))
