"""What one setting does, the others held or averaged over, and said which.

Each line is one experiment along the values of one setting. Where few combinations of the other
settings were fitted, each is a line of its own (held); where there are many, a line is the mean
over those combinations of an experiment that were fitted at every value (averaged), so that no
value is judged in better company than another.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from uadray.html import ABSENT
from uadray.metrics.metric import Appearance
from uadray.report.columns import Column, ascending, brackets, first_order, number
from uadray.report.compare import Comparison, Estimate, Series, compare
from uadray.report.rows import CohortRows, Row, metrics_of
from uadray.runs.records import RunRecord
from uadray.runs.settings import EXPERIMENT, Setting, settings_of

MAX_LINES = 6
"""Lines of one plot at most; more combinations are averaged over, more experiments left out."""

HEALTHY = "healthy_l1"
"""Key of the reconstruction error on healthy validation volumes, beside those of the metrics."""

_HEALTHY = Appearance(
    key=HEALTHY, head="Healthy L1", higher_is_better=False, has_interval=False, note="no labels"
)


@dataclass(frozen=True, kw_only=True)
class Point:
    """One value of the setting."""

    line: str
    """Label of the line that it is on."""
    setting: Setting
    """What is varied."""
    value: Any
    """Of the setting."""
    series: Series
    """The fits that it is made of: seeds, and combinations that are averaged over."""

    @property
    def is_plain(self) -> bool:
        """Whether the method is a plain baseline."""
        return self.series.is_plain

    def each(self, metric: str) -> list[float]:
        """The figure of each fit that has one."""
        if metric != HEALTHY:
            return self.series.each(metric)
        return [v for v in map(healthy_error, (r.run for r in self.series.rows)) if v is not None]

    def figure(self, metric: str) -> Estimate | None:
        """Mean over the fits with its interval over test subjects; healthy errors have none."""
        if metric != HEALTHY:
            return self.series.figure(metric)
        each = self.each(metric)
        return Estimate(value=float(np.mean(each)), bounds=None) if each else None


@dataclass(frozen=True, kw_only=True)
class Line:
    """One experiment along the values of a setting."""

    label: str
    """The experiment, with the other settings where they are held."""
    points: tuple[Point, ...]
    """By value, ascending; two or more."""

    def span(self) -> Comparison | None:
        """The last value against the first, on the same subjects; None where they do not pair."""
        return compare(self.points[-1].series, self.points[0].series)


@dataclass(frozen=True, kw_only=True)
class Effect:
    """One setting on one cohort."""

    setting: Setting
    """What is varied."""
    group: CohortRows
    """The evaluations."""
    lines: tuple[Line, ...]
    """In the order of the experiments, at most `MAX_LINES`."""
    others: tuple[Setting, ...]
    """Further settings that vary within a line's experiment."""
    is_held: bool
    """Whether each line holds the others; else it is a mean over them."""
    is_balanced: bool
    """Whether every value of a line is a mean over the same combinations."""
    num_left_out: int
    """Experiments with several values that are not shown."""

    @property
    def points(self) -> list[Point]:
        """All points, line by line."""
        return [point for line in self.lines for point in line.points]

    @property
    def method(self) -> str:
        """What was done with the other settings, in words."""
        names = " and ".join(other.label for other in self.others)
        if not self.others:
            return "Nothing else varies within a line but the seed."
        if self.is_held:
            return f"Each line holds {names}."
        if self.is_balanced:
            return f"Each line is a mean over {names}: the combinations fitted at every value."
        return (
            f"Each line is a mean over {names}, over other combinations at each value: no "
            "combination was fitted at all of them, so read it with care."
        )


def healthy_error(run: RunRecord) -> float | None:
    """Reconstruction error on the healthy validation volumes of a run's own cohort, or None."""
    value = run.summary.get("validation/reconstruction")
    return None if value is None or not np.isfinite(value) else float(value)


def effects(group: CohortRows, settings: Sequence[Setting]) -> list[Effect]:
    """The effect of each setting on one cohort; those without two values in a line are left out.

    Args:
        group: The evaluations on the cohort.
        settings: What varies, from `settings.varied`.
    """
    varied = [one for one in settings if one.path != EXPERIMENT]
    all_effects = [_effect(group, one, [o for o in varied if o is not one]) for one in varied]
    return [effect for effect in all_effects if effect.lines]


_Key = tuple[Any, ...]


def _effect(group: CohortRows, setting: Setting, others: Sequence[Setting]) -> Effect:
    contexts: dict[tuple[str, _Key], dict[Any, list[Row]]] = {}
    for row in group.rows:
        held = settings_of(row.run.config)
        if setting.path in held:
            key = (held[EXPERIMENT], tuple(held.get(other.path) for other in others))
            contexts.setdefault(key, {}).setdefault(held[setting.path], []).append(row)

    def order(context: tuple[str, _Key]) -> tuple[Any, ...]:
        name, key = context
        pairs = zip(others, key, strict=True)
        return (name, *(o.values.index(v) if v in o.values else -1 for o, v in pairs))

    ordered = sorted((key for key, values in contexts.items() if len(values) > 1), key=order)
    contexts = {key: contexts[key] for key in ordered}
    names = list(dict.fromkeys(name for name, _ in contexts))
    several = [o for n, o in enumerate(others) if _differs(contexts, n)]
    if len(contexts) <= MAX_LINES:
        made = {
            (name, key): _line(_held_label(name, key, others, several), setting, values)
            for (name, key), values in contexts.items()
        }
        balanced, left_out, lines = True, 0, list(made.values())
    else:
        pooled = {name: _pool([v for (n, _), v in contexts.items() if n == name]) for name in names}
        balanced = all(whole for _, whole in pooled.values())
        averaged = [_line(name, setting, values) for name, (values, _) in pooled.items()]
        averaged.sort(key=lambda line: -_height(line))
        left_out, lines = max(0, len(averaged) - MAX_LINES), averaged[:MAX_LINES]
    return Effect(
        setting=setting,
        group=group,
        lines=tuple(lines),
        others=tuple(several),
        is_held=len(contexts) <= MAX_LINES,
        is_balanced=balanced,
        num_left_out=left_out,
    )


def _differs(contexts: Iterable[tuple[str, _Key]], place: int) -> bool:
    """Whether one experiment has lines that differ in the setting at that place of the key."""
    values: dict[str, set[Any]] = {}
    for name, key in contexts:
        values.setdefault(name, set()).add(key[place])
    return any(len(contents) > 1 for contents in values.values())


def _pool(contexts: Sequence[Mapping[Any, list[Row]]]) -> tuple[dict[Any, list[Row]], bool]:
    """Rows by value over the contexts that have every value; over all where there is none."""
    values = set().union(*contexts)
    whole = [context for context in contexts if set(context) == values]
    pooled: dict[Any, list[Row]] = {}
    for context in whole or contexts:
        for value, rows in context.items():
            pooled.setdefault(value, []).extend(rows)
    return pooled, bool(whole)


def _height(line: Line) -> float:
    return max(point.series.mean("dice_d") or 0.0 for point in line.points)


def _held_label(name: str, key: _Key, others: Sequence[Setting], several: Sequence[Setting]) -> str:
    held = [
        f"{other.label} {other.text(value)}"
        for other, value in zip(others, key, strict=True)
        if value is not None and other in several
    ]
    return " · ".join([name, ", ".join(held)]) if held else name


def _line(label: str, setting: Setting, values: Mapping[Any, list[Row]]) -> Line:
    order = {value: place for place, value in enumerate(setting.values)}
    points = [
        Point(
            line=label,
            setting=setting,
            value=value,
            series=Series(
                label=f"{label} at {setting.label} {setting.text(value)}",
                name=str(rows[0].run.config["name"]),
                rows=tuple(sorted(rows, key=lambda row: (row.run.seed or 0, row.run.label))),
            ),
        )
        for value, rows in sorted(values.items(), key=lambda item: order[item[0]])
    ]
    return Line(label=label, points=tuple(points))


def _figure_column(metric: Appearance, digits: int = 3) -> Column[Point]:
    def value(point: Point) -> float | None:
        figure = point.figure(metric.key)
        return None if figure is None else figure.value

    def bounds(point: Point) -> tuple[float, float] | None:
        figure = point.figure(metric.key)
        return None if figure is None else figure.bounds

    def detail(point: Point) -> str:
        each = point.each(metric.key)
        if len(each) < 2:
            return brackets(bounds(point))
        spread = f"{number(min(each), digits)} to {number(max(each), digits)}"
        return f"{brackets(bounds(point))} {spread}".strip()

    measure = f"{'[95 %], ' if metric.has_interval else ''}range over fits"

    return Column(
        key=metric.key,
        head=metric.head,
        note="; ".join(part for part in (measure, metric.note) if part),
        value=value,
        text=lambda point: number(value(point), digits),
        detail=detail,
        bounds=bounds if metric.has_interval else None,
        first=first_order(metric),
    )


_POINT: tuple[Column[Point], ...] = (
    ascending("line", "Line", lambda point: point.line),
    Column(
        key="value",
        head="Value",
        value=lambda p: p.value if p.setting.is_numeric else p.setting.text(p.value),
        text=lambda point: point.setting.text(point.value),
        first="ascending",
    ),
    Column(
        key="fits",
        head="Fits",
        value=lambda point: len(point.series.rows),
        text=lambda point: str(len(point.series.rows)) if point.series.rows else ABSENT,
    ),
)


def effect_columns(points: Sequence[Point]) -> tuple[Column[Point], ...]:
    """The columns of the table of a plotted effect."""
    metrics = metrics_of(row for point in points for row in point.series.rows)
    figures = (_figure_column(metric) for metric in metrics if metric.in_sweeps)
    return (*_POINT, *figures, _figure_column(_HEALTHY, 4))
