"""Whom methods fail: their figures by groups of people, as evaluations recorded them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from uadray.metrics.inference import LEVEL, MIN_GROUP
from uadray.metrics.table import METRICS
from uadray.report.columns import Column, brackets, number, signed
from uadray.report.figures import MAX_METHODS, Palette, axes_of, inline
from uadray.report.rows import CohortRows, Row, spread_rows
from uadray.strata import By

SHOWN = ("dice_d", "auprc")
"""Figures that the page shows by groups; the first that is defined. The CSV holds all."""


@dataclass(frozen=True, kw_only=True)
class Strata:
    """What one cohort's people were grouped by, with the figures of each method."""

    by: str
    """Such as `age:40:60`."""
    of_controls: bool = False
    """Whether they are healthy controls, not patients."""
    key: str
    """The metric that is shown."""
    groups: tuple[str, ...]
    """In order."""
    num_people: tuple[int, ...]
    """Of each group."""
    rows: tuple[Row, ...]
    """Evaluations that have them, in the order of the cohort's."""

    @property
    def column(self) -> str:
        """What people are grouped by, in words."""
        return By.parse(self.by).column.replace("_", " ")

    @property
    def head(self) -> str:
        """The metric's name."""
        return FALSE_VOLUME if self.of_controls else METRICS[self.key].head

    @property
    def small(self) -> tuple[str, ...]:
        """Groups with too few people to be compared."""
        pairs = zip(self.groups, self.num_people, strict=True)
        return tuple(name for name, num in pairs if num < MIN_GROUP)

    def entry(self, row: Row, group: str) -> Mapping[str, Any]:
        """What is recorded of one group."""
        found: Mapping[str, Any] = next(
            one for one in _recorded(row, self.of_controls)[self.by] if one["group"] == group
        )
        return found

    def columns(self) -> tuple[Column[Row], ...]:
        """A column for each group, and the method's name before them."""
        name = Column[Row](
            key="method",
            head="Method",
            value=lambda row: row.run.label,
            text=lambda row: row.run.label,
            first="ascending",
        )
        each = (
            Column[Row](
                key=f"{self.key}:{group}",
                head=group,
                note=f"{num} people" + (", few" if num < MIN_GROUP else ""),
                value=partial(self._value, group=group),
                text=partial(self._text, group=group),
                detail=partial(self._detail, group=group),
            )
            for group, num in zip(self.groups, self.num_people, strict=True)
        )
        return (name, *each)

    def sentences(self) -> list[str]:
        """Which groups differ from all others after correction, a sentence each."""
        found = []
        for row in self.rows:
            for group in self.groups:
                gap = self._gap(row, group)
                if gap and gap["p"] is not None and gap["p"] < LEVEL:
                    side = "below" if gap["value"] < 0 else "above"
                    bounds = brackets((gap["interval"][0], gap["interval"][1]), signed)
                    found.append(
                        f"{row.run.label}: {self.head} in {group} is {side} that of all other "
                        f"people, by {signed(gap['value'])} {bounds}, p {gap['p']:.2g}."
                    )
        return found

    def plot(self) -> Markup:
        """The figure of each group with its interval, a colour a method."""
        rows = spread_rows(self.rows, MAX_METHODS)
        apart = 0.72 / max(1, len(rows))

        def draw(palette: Palette) -> Figure:
            height = 0.9 + len(self.groups) * (0.2 + 0.15 * len(rows))
            figure, axes = axes_of((6.4, height), palette)
            axes.grid(axis="x", color=palette.muted, alpha=0.25, linewidth=0.6)
            for n, row in enumerate(rows):
                style: Any = {
                    "color": palette.lines[n % len(palette.lines)],
                    "marker": "D" if row.run.is_plain else "o",
                    "markersize": 5,
                    "linewidth": 1.6,
                }
                axes.plot([], [], **style, label=row.run.label)
                for place, group in enumerate(self.groups):
                    one = self.entry(row, group)
                    value, bounds = one["metrics"].get(self.key), one["intervals"].get(self.key)
                    at = place + (n - (len(rows) - 1) / 2) * apart
                    if bounds is not None:
                        axes.plot(bounds, [at, at], color=style["color"], linewidth=1.6)
                    if value is not None:
                        axes.plot([value], [at], **style)
            names = [f"{g} ({n})" for g, n in zip(self.groups, self.num_people, strict=True)]
            axes.set_yticks(range(len(names)), names, parse_math=False)
            axes.set_ylim(len(names) - 0.5, -0.5)
            axes.xaxis.set_major_locator(MaxNLocator(6))
            axes.set_xlabel(f"{self.head.replace('Dice_D', 'Dice$_D$')}, 95 % interval over people")
            axes.tick_params(axis="y", length=0)
            legend = axes.legend(
                loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=8
            )
            for text in legend.get_texts():
                text.set_color(palette.ink)
            return figure

        spoken = f"{self.head} of {len(rows)} methods by {self.column}; the table holds the figures"
        return inline(draw, spoken)

    def _value(self, row: Row, group: str) -> float | None:
        value = self.entry(row, group)["metrics"].get(self.key)
        return None if value is None else float(value)

    def _text(self, row: Row, group: str) -> str:
        gap = self._gap(row, group)
        mark = ""
        if gap and gap["p"] is not None and gap["p"] < LEVEL:
            mark = " ▼" if gap["value"] < 0 else " ▲"
        return number(self._value(row, group)) + mark

    def _detail(self, row: Row, group: str) -> str:
        bounds = self.entry(row, group)["intervals"].get(self.key)
        return "" if bounds is None else brackets((bounds[0], bounds[1]))

    def _gap(self, row: Row, group: str) -> Mapping[str, Any] | None:
        return self.entry(row, group)["gaps"].get(self.key)


def strata_of(rows_of_cohort: Sequence[Row], *, of_controls: bool = False) -> list[Strata]:
    """What people were grouped by; nothing where no evaluation was asked to.

    Args:
        rows_of_cohort: Evaluations on one cohort.
        of_controls: Groups of its healthy controls, not of its patients.
    """
    recorded = {id(row): _recorded(row, of_controls) for row in rows_of_cohort}
    texts = dict.fromkeys(text for groups in recorded.values() for text in groups)
    found = []
    shown = ("false_ml_mean",) if of_controls else SHOWN
    for by in texts:
        rows = [row for row in rows_of_cohort if by in recorded[id(row)]]
        # Covariates may have been completed between two evaluations: groups as the first has them.
        entries = recorded[id(rows[0])][by]
        rows = [row for row in rows if _people(recorded[id(row)][by]) == _people(entries)]
        defined = (k for k in shown for e in entries if e["metrics"].get(k) is not None)
        found.append(
            Strata(
                by=by,
                of_controls=of_controls,
                key=next(defined, shown[0]),
                groups=tuple(e["group"] for e in entries),
                num_people=tuple(int(e["num_people"]) for e in entries),
                rows=tuple(rows),
            )
        )
    return found


FALSE_VOLUME = "False volume, mL a person"
"""What is shown of groups of healthy controls."""

HEAD = (
    "cohort",
    "cohort_fingerprint",
    "method",
    "seed",
    "run",
    "people",
    "by",
    "group",
    "num_people",
    "num_scans",
    "metric",
    "value",
    "low",
    "high",
    "gap",
    "gap_low",
    "gap_high",
    "p_holm",
)
"""Of the CSV: the gap is the group's figure less that of all other people."""


def lines_of(groups: Sequence[CohortRows]) -> list[list[object]]:
    """Every figure of every group, unrounded."""
    return [
        [
            group.name,
            group.fingerprint,
            row.run.label,
            row.run.seed,
            row.run.url,
            "controls" if of_controls else "patients",
            by,
            entry["group"],
            entry["num_people"],
            entry["num_scans"],
            metric,
            value,
            *(entry["intervals"].get(metric) or (None, None)),
            *_of_gap(entry["gaps"].get(metric)),
        ]
        for group in groups
        for row in group.rows
        for of_controls in (False, True)
        for by, entries in _recorded(row, of_controls).items()
        for entry in entries
        for metric, value in entry["metrics"].items()
    ]


def _of_gap(gap: Mapping[str, Any] | None) -> tuple[object, ...]:
    if gap is None:
        return None, None, None, None
    return (gap["value"], *(gap["interval"] or (None, None)), gap["p"])


def _recorded(row: Row, of_controls: bool) -> dict[str, list[dict[str, Any]]]:
    values = row.evaluation.controls or {} if of_controls else row.evaluation.values
    return values.get("strata") or {}


def _people(entries: Sequence[Mapping[str, Any]]) -> list[tuple[str, int]]:
    return [(e["group"], e["num_people"]) for e in entries]
