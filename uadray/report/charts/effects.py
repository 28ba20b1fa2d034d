"""Figures over one setting at a time, and the importance of all of them."""

from collections.abc import Mapping, Sequence
from typing import Any

from uadray.metrics.table import OWN
from uadray.report.charts.vega_lite import (
    PASSING,
    PICKED,
    Chart,
    field,
    is_wide,
    lite,
    setting_axis,
)
from uadray.report.compare import Estimate
from uadray.report.effects import HEALTHY, Effect, healthy_error
from uadray.report.importance import Importance
from uadray.report.over_cohorts import MeanEffect
from uadray.report.trials import finite
from uadray.runs.settings import Setting

HEADS = {one.key: one.head for one in OWN if one.in_sweeps} | {HEALTHY: "healthy L1"}
"""Titles of the axes of figures."""

MARKS = {
    "circle": "\N{BLACK CIRCLE}",
    "square": "\N{BLACK SQUARE}",
    "triangle-up": "\N{BLACK UP-POINTING TRIANGLE}",
    "cross": "\N{HEAVY GREEK CROSS}",
    "diamond": "\N{BLACK DIAMOND}",
    "triangle-right": "\N{BLACK RIGHT-POINTING TRIANGLE}",
}
"""Marks of the lines of an effect, in the order of their colours, and how a legend has them."""

_NUDGE = 0.03
"""Between two lines, as a share of the axis."""

_BOUNDS = (("low", "2.5 %"), ("high", "97.5 %"))


def importance_chart(made: Importance) -> Chart:
    """Importance of each setting with its range over the draws."""
    values = [
        {"setting": w.setting.label, "value": w.value, "low": w.low, "high": w.high}
        for w in made.weights
    ]
    y: Chart = {"field": "setting", "type": "nominal", "sort": None, "title": None}
    y |= {"axis": {"labelLimit": 150, "grid": False, "ticks": False, "domain": False}}
    tooltip = [
        {"field": "setting", "title": "setting"},
        {"field": "value", "title": "importance", "format": ".2f"},
        *({"field": key, "title": title, "format": ".2f"} for key, title in _BOUNDS),
    ]
    rule = {"type": "rule", "color": "var(--accent)", "strokeWidth": 2}
    point = {"type": "point", "color": "var(--accent)", "filled": True, "size": 90, "opacity": 1}
    low = {"x": field("low", title="importance"), "x2": {"field": "high"}}
    return lite(
        f"Importance of {len(values)} settings for {made.head}",
        values,
        height={"step": 30},
        layer=[
            {"mark": {"type": "rule", "color": "var(--muted)"}, "encoding": {"x": {"datum": 0}}},
            {"mark": rule, "encoding": low | {"y": y, "tooltip": tooltip}},
            {"mark": point, "encoding": {"x": field("value"), "y": y, "tooltip": tooltip}},
        ],
    )


_Drawn = Sequence[tuple[str, Sequence[tuple[Any, Sequence[tuple[int, float]], Estimate | None]]]]
"""Label of each line, and value, single fits with their trial, and mean of each of its points."""


def effect_chart(
    effect: Effect, metric: str, numbers: Mapping[str, int], names: Sequence[str]
) -> Chart | None:
    """A figure over one setting: means with their 95 % intervals, and a small mark for each fit.

    Args:
        effect: The setting's.
        metric: One of `HEADS`.
        numbers: Of the trials, by the URL of their run.
        names: Labels of all lines of the setting, which decide their colours.

    Returns:
        None where no line has two values of it.
    """

    def fits(point: Any) -> list[tuple[int, float]]:
        made = []
        for row in point.series.rows:
            error = metric == HEALTHY
            value = healthy_error(row.run) if error else row.evaluation.metric(metric)
            if (known := finite(value)) is not None:
                made.append((numbers[row.run.url], known))
        return made

    lines = [
        (line.label, [(p.value, fits(p), p.figure(metric)) for p in line.points])
        for line in effect.lines
    ]
    where = "" if metric == HEALTHY else f" on {effect.group.name}"
    return _over(effect.setting, lines, names, HEADS[metric], f"{HEADS[metric]}{where}")


def mean_chart(effect: MeanEffect, names: Sequence[str], metric: str = "auprc") -> Chart | None:
    """The same as a mean over cohorts, as in figure 5 of Bengs 2021.

    Args:
        effect: The mean.
        names: Labels of all lines of the setting, which decide their colours.
        metric: One of `HEADS`.
    """
    lines = [
        (label, [(p.value, [(-1, v) for v in p.each(metric)], p.figure(metric)) for p in points])
        for label, points in effect.lines
    ]
    head = f"{HEADS[metric]}, mean of cohorts"
    return _over(effect.setting, lines, names, head, head)


def _over(
    setting: Setting, lines: _Drawn, names: Sequence[str], head: str, spoken: str
) -> Chart | None:
    drawn = [
        (label, [p for p in points if p[2] is not None and finite(p[2].value) is not None])
        for label, points in lines
    ]
    drawn = [(label, points) for label, points in drawn if len(points) > 1]
    if not drawn:
        return None
    means, each = [], []
    for n, (label, points) in enumerate(drawn):
        for value, fits, mean in points:
            at = _nudged(setting, value, n - (len(drawn) - 1) / 2)
            own = {"x": at, "line": label, "value": setting.text(value)}
            assert mean is not None
            low, high = map(finite, mean.bounds or (None, None))
            means.append(own | {"y": mean.value, "low": low, "high": high})
            each += [own | {"y": fit, "trial": trial} for trial, fit in fits]
    x = setting_axis(setting, "x")
    y = field("y", scale={"zero": False}, title=head)
    line: Chart = {"field": "line", "type": "nominal", "legend": None}
    marks = [list(MARKS)[n % len(MARKS)] for n in range(len(names))]
    shape = line | {"scale": {"domain": names, "range": marks}}
    colours = [f"var(--line-{n % len(MARKS) + 1})" for n in range(len(names))]
    line |= {"scale": {"domain": names, "range": colours}}
    tooltip = [
        {"field": "line", "title": "line"},
        {"field": "value", "title": setting.label},
        {"field": "y", "title": head, "format": ".4f"},
    ]
    bounds = [{"field": key, "title": title, "format": ".3f"} for key, title in _BOUNDS]
    bounded = [mean for mean in means if None not in (mean["low"], mean["high"])]
    intervals = {
        "data": {"values": bounded},
        "mark": {"type": "rule", "strokeWidth": 1.4, "opacity": 0.7},
        "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": line},
    }
    place = {"x": x, "y": y, "color": line}
    faint = [{"test": PICKED, "value": 1}, {"test": f"!{PASSING}", "value": 0.1}]
    fits_drawn = place | {
        "shape": shape,
        "size": {"condition": {"test": PICKED, "value": 150}, "value": 20},
        "opacity": {"condition": faint, "value": 0.6},
        "tooltip": tooltip,
    }
    listed = ", ".join(label for label, _ in drawn)
    return lite(
        f"{spoken} over {setting.label}: {listed}; the table below holds the figures",
        means,
        layer=[
            *([intervals] if bounded else []),
            {"mark": {"type": "line", "strokeWidth": 1.8}, "encoding": place},
            {
                "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1},
                "encoding": place | {"shape": shape, "tooltip": [*tooltip, *bounds]},
            },
            {
                "data": {"values": each},
                "mark": {"type": "point", "filled": True, "cursor": "pointer"},
                "encoding": fits_drawn,
            },
        ],
    )


def _nudged(setting: Setting, value: Any, steps: float) -> Any:
    """Place of a value on its axis, moved so that the marks of several lines stand apart."""
    if not setting.is_numeric:
        return setting.text(value)
    low, high = min(setting.values), max(setting.values)
    if is_wide(setting.values):
        return float(value * (high / low) ** (_NUDGE * steps))
    return float(value + _NUDGE * steps * (high - low))
