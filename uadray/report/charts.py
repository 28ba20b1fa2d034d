"""The charts of a sweep's page as Vega-Lite, and its parallel coordinates as Vega.

Colours are the page's style variables, so that dark mode and paper need no second drawing. Trials
are referred to by number: the page's script sets the parameters `picked` and `passing` of every
chart when rows are selected or axes brushed. No text of a run stands in an expression.
"""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from uadray.metrics.table import BY_KEY
from uadray.report.columns import number
from uadray.report.compare import Estimate
from uadray.report.effects import HEALTHY, Effect, healthy_error
from uadray.report.figures import curve_of, has_curves
from uadray.report.importance import Importance
from uadray.report.over_cohorts import MeanEffect
from uadray.report.trials import Objective, Trial, finite, memory, minutes
from uadray.report.words import Compared
from uadray.runs.settings import Setting, settings_of

Chart = dict[str, Any]
"""A Vega-Lite chart, or a Vega one."""

MAX_COHORTS = 3
"""Cohorts with an axis of their own at most."""

MAX_PAIRED = 5
"""Settings that are crossed in pairs at most."""

MAX_DISCRETE = 8
"""Distinct numbers up to which a setting's values are columns or rows; more are an axis."""

HEADS = {key: BY_KEY[key].head for key in ("dice_d", "auprc")} | {HEALTHY: "healthy L1"}
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

_VEGA, _LITE = (
    f"https://vega.github.io/schema/{name}.json" for name in ("vega/v6", "vega-lite/v6")
)
_PICKED = "indexof(picked, datum.trial) >= 0"
_PASSING = "(!passing || indexof(passing, datum.trial) >= 0)"
_PARAMS = [{"name": "picked", "value": []}, {"name": "passing", "value": None}]
_WIDTH, _HEIGHT = 300, 190
_NUDGE = 0.016
"""Between two lines, as a share of the axis."""

_WIDE = 8.0
"""Ratio of the largest to the smallest value from which an axis is logarithmic."""


def colour(trial: Trial) -> str:
    """Of a trial: its fifth by the objective."""
    if trial.fifth is not None:
        return f"var(--fifth-{trial.fifth})"
    return "var(--plain)" if trial.is_plain else "var(--muted)"


def parallel(
    trials: Sequence[Trial],
    settings: Sequence[Setting],
    objective: Objective,
    cohorts: Sequence[Compared],
) -> Chart | None:
    """Parallel coordinates whose every axis can be brushed; None where there is nothing to draw.

    Signals `brush0`, `brush1` and so on are None or two heights in [0, 1]; a trial passes that lies
    between them on each brushed axis. On a setting's axis the trials of one value are spread a
    little, the better ones higher; on a figure's axis better is higher.
    """
    axes = [_setting_axis(one, trials) for one in settings]
    judged: list[tuple[str, str, int, bool, Callable[[Trial], float | None]]] = []
    if objective.uses_labels:
        judged.append((objective.head, objective.source, 3, False, lambda t: t.objective))
    judged.append(("healthy L1", "no labels", 4, True, lambda t: finite(healthy_error(t.run))))
    for n, cohort in enumerate(cohorts[:MAX_COHORTS]):
        judged.append((f"Dice_D {cohort.group.name}", "uses labels", 3, False, dice_of(n)))
    figures = [_figure_axis(*one, trials) for one in judged]
    axes += [one for one in figures if one is not None]
    if len(axes) < 2 or not settings or len(trials) < 2:
        return None
    for n, axis in enumerate(axes):
        axis["axis"] = n
    values = [
        {
            "trial": trial.number,
            "label": trial.run.label,
            "colour": colour(trial),
            "ranked": trial.rank is not None,
            "y": [axis["places"][trial.number] for axis in axes],
            "tooltip": {"title": trial.run.label}
            | {axis["name"]: axis["texts"][trial.number] for axis in axes}
            | {"status": trial.status},
        }
        # The best is drawn last, on top.
        for trial in sorted(trials, key=lambda t: -(t.rank or len(trials) + 1))
    ]
    ticks = [
        {"axis": a["axis"], "figure": not a["is_setting"], **t} for a in axes for t in a["ticks"]
    ]
    heads = [
        {"axis": a["axis"], "head": textwrap.wrap(a["name"], 13)[-3:], "note": a["note"]}
        for a in axes
    ]
    brushes = [f"brush{n}" for n in range(len(axes))]
    passes = " && ".join(
        f"(!{b} || (isValid(datum.y[{n}]) && datum.y[{n}] >= min({b}[0], {b}[1])"
        f" && datum.y[{n}] <= max({b}[0], {b}[1])))"
        for n, b in enumerate(brushes)
    )
    spec: Chart = {
        "$schema": _VEGA,
        "description": (
            f"Parallel coordinates of {len(trials)} trials over "
            f"{', '.join(a['name'] for a in axes)}; the leaderboard holds the figures"
        ),
        "width": 120 * (len(axes) - 1),
        "height": 300,
        "autosize": "none",
        "padding": {"left": 120, "right": 62, "top": 66, "bottom": 12},
        "signals": [
            {"name": "picked", "value": []},
            {"name": "passing", "value": None},
            {
                "name": "hover",
                "value": None,
                "on": [
                    {"events": "@near:pointerover", "update": "datum.trial"},
                    {"events": "@near:pointerout", "update": "null"},
                ],
            },
            {"name": "reach", "update": f"width / {len(axes) - 1} - 14"},
            *(_brush(n) for n in range(len(axes))),
        ],
        "data": [
            {
                "name": "trials",
                "values": values,
                "transform": [{"type": "formula", "as": "passes", "expr": passes}],
            },
            {"name": "heads", "values": heads},
            {"name": "ticks", "values": ticks},
        ],
        "scales": [
            {"name": "x", "type": "point", "domain": list(range(len(axes))), "range": "width"},
            {"name": "y", "type": "linear", "domain": [0, 1], "range": "height"},
        ],
        "marks": [
            {
                "type": "rule",
                "from": {"data": "heads"},
                "interactive": False,
                "encode": {
                    "update": {
                        "x": {"scale": "x", "field": "axis"},
                        "y": {"value": -4},
                        "y2": {"signal": "height + 4"},
                        "stroke": {"value": "var(--muted)"},
                    }
                },
            },
            _line("line", len(axes)),
            _line("near", len(axes)),
            *(mark for n in range(len(axes)) for mark in _brush_marks(n)),
            _text("ticks", "text", figure=False),
            _text("ticks", "text", figure=True),
            _head("head", -26, "bold"),
            _head("note", -12, "normal"),
        ],
    }
    controls = [
        {"name": a["name"], "ticks": a["ticks"], "domain": a["domain"], "digits": a["digits"]}
        for a in axes
    ]
    return {"spec": spec, "axes": controls}


def _brush(n: int) -> Chart:
    at = "clamp(invert('y', y()), 0, 1)"
    name = f"brush{n}"
    return {
        "name": name,
        "value": None,
        "on": [
            {"events": f"@hit{n}:pointerdown", "update": f"[{at}, {at}]"},
            {
                "events": f"[@hit{n}:pointerdown, window:pointerup] > window:pointermove!",
                "update": f"[{name}[0], {at}]",
            },
            # A click, and a drag that goes nowhere, clears the axis.
            {
                "events": "window:pointerup",
                "update": f"{name} && abs({name}[0] - {name}[1]) < 0.01 ? null : {name}",
            },
        ],
    }


def _brush_marks(n: int) -> list[Chart]:
    x = {"scale": "x", "value": n}
    name = f"brush{n}"
    return [
        {
            "type": "rect",
            "name": f"hit{n}",
            "encode": {
                "update": {
                    "x": {**x, "offset": -13},
                    "width": {"value": 26},
                    "y": {"value": -6},
                    "height": {"signal": "height + 12"},
                    "fill": {"value": "transparent"},
                    "cursor": {"value": "ns-resize"},
                }
            },
        },
        {
            "type": "rect",
            "name": f"brushed{n}",
            "interactive": False,
            "encode": {
                "update": {
                    "x": {**x, "offset": -8},
                    "width": {"value": 16},
                    "y": {"signal": f"{name} ? scale('y', max({name}[0], {name}[1])) : 0"},
                    "y2": {"signal": f"{name} ? scale('y', min({name}[0], {name}[1])) : 0"},
                    "fill": {"value": "var(--accent)"},
                    "fillOpacity": {"signal": f"{name} ? 0.25 : 0"},
                    "stroke": {"value": "var(--accent)"},
                    "strokeOpacity": {"signal": f"{name} ? 1 : 0"},
                }
            },
        },
    ]


def _line(name: str, num_axes: int) -> Chart:
    """The line of a trial, or the wider one around it that the pointer meets."""
    chosen = f"({_PICKED} || hover === datum.trial)"
    points = " + ".join(
        f"(isValid(datum.y[{n}]) ? 'L' + scale('x', {n}) + ',' + scale('y', datum.y[{n}]) : '')"
        for n in range(num_axes)
    )
    update: Chart = {
        "path": {"signal": f"'M' + slice({points}, 1)"},
        "strokeJoin": {"value": "round"},
    }
    if name == "near":
        update |= {
            "stroke": {"value": "transparent"},
            "strokeWidth": {"value": 9},
            "cursor": {"value": "pointer"},
            "tooltip": {"signal": "datum.passes ? datum.tooltip : null"},
        }
    else:
        update |= {
            "stroke": {"field": "colour"},
            "strokeWidth": {"signal": f"{chosen} ? 3.4 : 1.5"},
            "strokeDash": {"signal": "datum.ranked ? [1, 0] : [4, 3]"},
            "strokeOpacity": {
                "signal": f"{chosen} ? 1 : !datum.passes ? 0.06 : length(picked) ? 0.25 : 0.8"
            },
            # What the pointer meets stays in its order, and so under the pointer.
            "zindex": {"signal": f"{chosen} ? 1 : 0"},
        }
    return {
        "type": "path",
        "name": name,
        "aria": False,
        "interactive": name == "near",
        "from": {"data": "trials"},
        "encode": {"update": update},
    }


def _text(data: str, field: str, *, figure: bool) -> Chart:
    """Values at the axes: of settings on the left, of figures on the right."""
    return {
        "type": "text",
        "from": {"data": data},
        "interactive": False,
        "aria": False,
        "encode": {
            "update": {
                "x": {"scale": "x", "field": "axis", "offset": 8 if figure else -8},
                "y": {"scale": "y", "field": "y"},
                "text": {"signal": f"datum.figure === {str(figure).lower()} ? datum.{field} : ''"},
                "align": {"value": "left" if figure else "right"},
                "baseline": {"value": "middle"},
                "fontSize": {"value": 11},
                "limit": {"signal": "datum.axis === 0 ? 108 : reach"},
                "fill": {"value": "var(--ink)"},
            }
        },
    }


def _head(field: str, y: float, weight: str) -> Chart:
    """Names of the axes, one line or several, above them."""
    lines = f"isArray(datum.{field}) ? length(datum.{field}) - 1 : 0"
    return {
        "type": "text",
        "from": {"data": "heads"},
        "interactive": False,
        "aria": False,
        "encode": {
            "update": {
                "x": {"scale": "x", "field": "axis"},
                "y": {"signal": f"{y} - 13 * ({lines})"},
                "text": {"field": field},
                "align": {"value": "center"},
                "fontSize": {"value": 12 if weight == "bold" else 10},
                "fontWeight": {"value": weight},
                "lineHeight": {"value": 13},
                "fill": {"value": "var(--ink)" if weight == "bold" else "var(--muted)"},
            }
        },
    }


def dice_of(place: int) -> Callable[[Trial], float | None]:
    """Dice_D on one of the cohorts, as a function of the trial."""

    def value(trial: Trial) -> float | None:
        row = trial.rows[place]
        return None if row is None else finite(row.evaluation.metric("dice_d"))

    return value


_SPREAD = 0.3
"""Of the distance of two values, how far the trials of one are spread to either side."""


def _setting_axis(setting: Setting, trials: Sequence[Trial]) -> Chart:
    """Values at equal distances; many numbers to scale, by their logarithm over a wide range."""
    if setting.is_numeric and len(setting.values) > MAX_DISCRETE:
        place, ticks = _continuous(setting)
    else:
        values = setting.values if setting.is_numeric else _by_skill(setting, trials)
        place = {v: (k + 0.5) / len(values) for k, v in enumerate(values)}
        ticks = [{"y": y, "text": setting.text(v)} for v, y in place.items()]
    spread = _SPREAD / len(setting.values) if len(ticks) == len(setting.values) else 0.0
    num = max(sum(trial.rank is not None for trial in trials) - 1, 1)
    places: dict[int, float | None] = {}
    texts: dict[int, str] = {}
    for trial in trials:
        held = settings_of(trial.run.config)
        own = held.get(setting.path)
        if setting.path not in held:
            places[trial.number], texts[trial.number] = None, "\N{EN DASH}"
            continue
        skill = -1.0 if trial.rank is None else 1 - 2 * (trial.rank - 1) / num
        places[trial.number] = round(place[own] + spread * skill, 4)
        texts[trial.number] = setting.text(own)
    return {
        "name": setting.label,
        "note": "",
        "ticks": ticks,
        "is_setting": True,
        "places": places,
        "texts": texts,
        "domain": None,
        "digits": 0,
    }


def _by_skill(setting: Setting, trials: Sequence[Trial]) -> list[Any]:
    """Values that are no numbers, the one of the best trial last, and so on top."""
    order = [settings_of(trial.run.config).get(setting.path) for trial in trials]
    return [value for value in dict.fromkeys(order) if value in setting.values][::-1]


def _is_wide(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) >= _WIDE


def _continuous(setting: Setting) -> tuple[dict[Any, float], list[Chart]]:
    wide = _is_wide(setting.values)
    at = np.log10(setting.values) if wide else np.array(setting.values, float)
    low, high = float(at.min()), float(at.max())
    place = {v: float((x - low) / (high - low)) for v, x in zip(setting.values, at, strict=True)}
    inner = np.linspace(low, high, 5)
    ticks = [
        {
            "y": float((x - low) / (high - low)),
            "text": setting.text(float(f"{10**x if wide else x:.3g}")),
        }
        for x in inner
    ]
    return place, ticks


def _figure_axis(
    head: str,
    note: str,
    digits: int,
    low_is_best: bool,
    of: Callable[[Trial], float | None],
    trials: Sequence[Trial],
) -> Chart | None:
    values = {trial.number: of(trial) for trial in trials}
    known = [value for value in values.values() if value is not None]
    if not known:
        return None
    low, high = min(known), max(known)
    if low == high:
        low, high = low - 0.5 * abs(low) - 1e-6, high + 0.5 * abs(high) + 1e-6
    worst, best = (high, low) if low_is_best else (low, high)

    def place(value: float) -> float:
        return round((value - worst) / (best - worst), 4)

    inside = [float(v) for v in MaxNLocator(5).tick_values(low, high) if low <= v <= high]
    return {
        "name": head,
        "note": f"{note}, low is up" if low_is_best else note,
        "ticks": [{"y": place(v), "text": f"{v:.4g}"} for v in inside],
        "is_setting": False,
        "places": {n: None if v is None else place(v) for n, v in values.items()},
        "texts": {n: number(v, digits) for n, v in values.items()},
        "domain": [worst, best],
        "digits": digits,
    }


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
        *({"field": key, "format": ".2f", "title": title} for key, title in _RANGE),
    ]
    mark = {"color": "var(--accent)"}
    return _lite(
        f"Importance of {len(values)} settings for {made.head}",
        values,
        height={"step": 30},
        layer=[
            {
                "mark": {"type": "rule", "color": "var(--muted)"},
                "encoding": {"x": {"datum": 0}},
            },
            {
                "mark": {"type": "rule", "strokeWidth": 2, **mark},
                "encoding": {
                    "x": {"field": "low", "type": "quantitative", "title": "importance"},
                    "x2": {"field": "high"},
                    "y": y,
                    "tooltip": tooltip,
                },
            },
            {
                "mark": {"type": "point", "filled": True, "size": 90, "opacity": 1, **mark},
                "encoding": {"x": {"field": "value", "type": "quantitative"}, "y": y}
                | {"tooltip": tooltip},
            },
        ],
    )


_RANGE = (("value", "importance"), ("low", "2.5 %"), ("high", "97.5 %"))


def _lite(description: str, values: list[Chart], **rest: Any) -> Chart:
    base = {"width": _WIDTH, "height": _HEIGHT, "params": _PARAMS}
    data = {"data": {"values": values}}
    return {"$schema": _LITE, "description": description, **data, **base, **rest}


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
    x = _axis_of(setting, "x") | {"title": setting.label}
    y = {"field": "y", "type": "quantitative", "scale": {"zero": False}, "title": head}
    place = [n % len(MARKS) for n in range(len(names))]
    line: Chart = {"field": "line", "type": "nominal", "legend": None}
    shape = line | {"scale": {"domain": names, "range": [list(MARKS)[n] for n in place]}}
    line |= {"scale": {"domain": names, "range": [f"var(--line-{n + 1})" for n in place]}}
    tooltip = [
        {"field": "line", "title": "line"},
        {"field": "value", "title": setting.label},
        {"field": "y", "title": head, "format": ".4f"},
    ]
    bounds = [
        {"field": key, "title": title, "format": ".3f"} for key, title in _RANGE if key != "value"
    ]
    listed = ", ".join(label for label, _ in drawn)
    bounded = [mean for mean in means if None not in (mean["low"], mean["high"])]
    rule = {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": line}
    intervals = [
        {
            "data": {"values": bounded},
            "mark": {"type": "rule", "strokeWidth": 1.4, "opacity": 0.7},
            "encoding": rule,
        }
    ]
    return _lite(
        f"{spoken} over {setting.label}: {listed}; the table below holds the figures",
        means,
        layer=[
            *(intervals if bounded else ()),
            {
                "mark": {"type": "line", "strokeWidth": 1.8},
                "encoding": {"x": x, "y": y, "color": line},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1},
                "encoding": {"x": x, "y": y, "color": line, "shape": shape}
                | {"tooltip": [*tooltip, *bounds]},
            },
            {
                "data": {"values": each},
                "mark": {"type": "point", "filled": True, "cursor": "pointer"},
                "encoding": {
                    "x": x,
                    "y": y,
                    "color": line,
                    "shape": shape,
                    "size": {"condition": {"test": _PICKED, "value": 150}, "value": 20},
                    "opacity": {
                        "condition": [
                            {"test": _PICKED, "value": 1},
                            {"test": f"!{_PASSING}", "value": 0.1},
                        ],
                        "value": 0.6,
                    },
                    "tooltip": tooltip,
                },
            },
        ],
    )


def _nudged(setting: Setting, value: Any, steps: float) -> Any:
    """Place of a value on its axis, moved so that the marks of several lines stand apart."""
    if not setting.is_numeric:
        return setting.text(value)
    low, high = min(setting.values), max(setting.values)
    if _is_wide(setting.values):
        return float(value * (high / low) ** (_NUDGE * steps))
    return float(value + _NUDGE * steps * (high - low))


def _axis_of(setting: Setting, field: str) -> Chart:
    """A setting as an axis: numbers to scale, by their logarithm over a wide range."""
    if not setting.is_numeric:
        values = [setting.text(value) for value in setting.values]
        return {"field": field, "type": "nominal", "sort": values, "axis": {"labelAngle": 0}}
    values = list(setting.values)
    if len(values) > MAX_DISCRETE:
        values = [values[k] for k in np.linspace(0, len(values) - 1, 6).round().astype(int)]
    percent = setting.path.endswith("share")
    label = "format(100 * datum.value, '~g') + ' %'" if percent else "format(datum.value, '~g')"
    scale: Chart = {"nice": False, "padding": 14}
    scale |= {"type": "log"} if _is_wide(setting.values) else {"zero": False}
    axis = {"values": values, "labelExpr": label, "labelOverlap": True}
    return {"field": field, "type": "quantitative", "scale": scale, "axis": axis}


def pair_charts(
    trials: Sequence[Trial], settings: Sequence[Setting], objective: Objective
) -> list[tuple[str, Chart]]:
    """The objective over each pair of the first `MAX_PAIRED` settings, with its name.

    Pairs of few values are a grid with the mean of each cell; others have a mark for each trial.
    """
    ranked = [t for t in trials if t.rank is not None]
    limits: Any = np.quantile([t.objective for t in ranked], (0.2, 0.4, 0.6, 0.8)) if ranked else []
    charts = []
    for first, second in combinations(settings[:MAX_PAIRED], 2):
        held = [
            (trial, settings_of(trial.run.config))
            for trial in ranked
            if {first.path, second.path} <= settings_of(trial.run.config).keys()
        ]
        pairs = {(own[first.path], own[second.path]) for _, own in held}
        if any(len({pair[k] for pair in pairs}) < 2 for k in (0, 1)):
            continue
        name = f"{first.label} and {second.label}"
        charts.append((name, _pair(first, second, held, objective, limits)))
    return charts


def _pair(
    first: Setting,
    second: Setting,
    held: Sequence[tuple[Trial, dict[str, Any]]],
    objective: Objective,
    limits: Any,
) -> Chart:
    spoken = f"{objective.head} over {first.label} and {second.label}"
    names = [
        {"field": "first", "title": first.label, "type": "nominal"},
        {"field": "second", "title": second.label, "type": "nominal"},
        {"field": "value", "title": objective.head, "format": f".{objective.digits}f"},
    ]
    colour_of = {"field": "colour", "type": "nominal", "scale": None, "legend": None}
    if any(one.is_numeric and len(one.values) > MAX_DISCRETE for one in (first, second)):
        values = [
            {
                "x": own[first.path] if first.is_numeric else first.text(own[first.path]),
                "y": own[second.path] if second.is_numeric else second.text(own[second.path]),
                "first": first.text(own[first.path]),
                "second": second.text(own[second.path]),
                "value": trial.objective,
                "colour": colour(trial),
                "trial": trial.number,
            }
            for trial, own in held
        ]
        return _lite(
            spoken,
            values,
            mark={"type": "circle", "cursor": "pointer", "opacity": 0.9},
            encoding={
                "x": _axis_of(first, "x") | {"title": first.label},
                "y": _axis_of(second, "y") | {"title": second.label},
                "color": colour_of,
                "size": {"condition": {"test": _PICKED, "value": 260}, "value": 80},
                "opacity": {"condition": {"test": _PASSING, "value": 0.9}, "value": 0.1},
                "tooltip": names,
            },
        )
    cells: dict[tuple[Any, Any], list[float]] = {}
    for trial, own in held:
        assert trial.objective is not None
        cells.setdefault((own[first.path], own[second.path]), []).append(trial.objective)
    values = []
    for (a, b), inside in cells.items():
        mean = float(np.mean(inside))
        fifth = int(np.searchsorted(limits, mean))
        fifth = 4 - fifth if objective.low_is_best else fifth
        values.append(
            {
                "first": first.text(a),
                "second": second.text(b),
                "value": mean,
                "trials": len(inside),
                "colour": f"var(--fifth-{fifth})",
            }
        )
    x, y = (
        {
            "field": key,
            "type": "nominal",
            "sort": [
                one.text(value) for value in (one.values if key == "first" else one.values[::-1])
            ],
            "title": one.label,
            "axis": {"labelAngle": 0, "labelLimit": 120, "grid": False},
        }
        for key, one in (("first", first), ("second", second))
    )
    return _lite(
        f"Mean {spoken}",
        values,
        layer=[
            {
                "mark": {"type": "rect", "stroke": "var(--page)", "strokeWidth": 2},
                "encoding": {
                    "x": x,
                    "y": y,
                    "color": colour_of,
                    "tooltip": [*names, {"field": "trials", "title": "trials"}],
                },
            },
            {
                "mark": {"type": "text", "color": "var(--page)", "fontSize": 11},
                "encoding": {
                    "x": x,
                    "y": y,
                    "text": {"field": "value", "format": f".{objective.digits}f"},
                },
            },
        ],
    )


def curves(trials: Sequence[Trial]) -> Chart | None:
    """Validation error of all trials by epoch, crosses where one was stopped early or failed."""
    values = []
    for trial in sorted(trials, key=lambda t: -(t.rank or len(trials) + 1)):
        if not has_curves(trial.run):
            continue
        epochs, errors = curve_of(trial.run, "validation/reconstruction")
        kept = np.isfinite(errors) & (errors > 0)
        if kept.any():
            values.append(
                {
                    "trial": trial.number,
                    "label": trial.run.label,
                    "status": trial.status,
                    "colour": colour(trial),
                    "best": trial.rank == 1,
                    "epoch": [int(epoch) for epoch in epochs[kept]],
                    "error": [float(f"{error:.5g}") for error in errors[kept]],
                }
            )
    if not values:
        return None
    x: Chart = {"field": "epoch", "type": "quantitative", "title": "epoch"}
    x |= {"axis": {"tickMinStep": 1}, "scale": {"nice": False}}
    y: Chart = {"field": "error", "type": "quantitative", "title": "healthy L1, validation"}
    y |= {"scale": {"type": "log", "nice": False}}
    y |= {"axis": {"format": "~g", "tickCount": 6}}
    colour_of = {"field": "colour", "type": "nominal", "scale": None, "legend": None}
    tooltip = [
        {"field": "label", "title": "trial", "type": "nominal"},
        {"field": "status", "title": "status", "type": "nominal"},
    ]
    flat = [{"flatten": ["epoch", "error"]}]
    last = [
        {"filter": "datum.status !== 'finished'"},
        {"calculate": "peek(datum.epoch)", "as": "epoch"},
        {"calculate": "peek(datum.error)", "as": "error"},
    ]
    opacity = {
        "condition": [
            {"test": _PICKED, "value": 1},
            {"test": f"!{_PASSING}", "value": 0.06},
            {"test": "length(picked)", "value": 0.2},
            {"test": "datum.best", "value": 1},
        ],
        "value": 0.65,
    }
    ended = [
        {
            "transform": last,
            "mark": {"type": "point", "shape": "cross", "size": 70, "angle": 45, "filled": True},
            "encoding": {"x": x, "y": y, "color": {"value": "var(--plain)"}}
            | {"opacity": opacity, "tooltip": tooltip},
        },
    ]
    return _lite(
        f"Validation error of {len(values)} trials by epoch",
        values,
        width="container",
        height=300,
        autosize={"type": "fit", "contains": "padding"},
        layer=[
            {
                "transform": flat,
                "mark": {"type": "line", "cursor": "pointer"},
                "encoding": {
                    "x": x,
                    "y": y,
                    "color": colour_of,
                    "detail": {"field": "trial"},
                    "opacity": opacity,
                    "strokeWidth": {
                        "condition": {"test": f"datum.best || {_PICKED}", "value": 3},
                        "value": 1.3,
                    },
                    "tooltip": tooltip,
                },
            },
            *(ended if any(one["status"] != "finished" for one in values) else ()),
        ],
    )


def cost_charts(trials: Sequence[Trial], objective: Objective) -> list[tuple[str, Chart]]:
    """The objective over time and over memory, where they were recorded, with their names."""
    charts = []
    for name, head, of in (
        ("Time", "minutes of the fit", minutes),
        ("Memory", "GiB at peak", memory),
    ):
        values = [
            {
                "x": cost,
                "y": trial.objective,
                "trial": trial.number,
                "label": trial.run.label,
                "colour": colour(trial),
            }
            for trial in trials
            if trial.rank is not None and (cost := of(trial)) is not None and cost > 0
        ]
        if len(values) < 2:
            continue
        wide = _is_wide([float(str(value["x"])) for value in values])
        axis = {"format": "~g", "tickCount": 5, "labelOverlap": "greedy"}
        scale: Chart = {"padding": 12} | ({"type": "log"} if wide else {"zero": False})
        y = {"field": "y", "type": "quantitative", "title": objective.head}
        chart = _lite(
            f"{objective.head} of {len(values)} trials over the {head}",
            values,
            width=360,
            height=220,
            mark={"type": "circle", "cursor": "pointer"},
            encoding={
                "x": {"field": "x", "type": "quantitative", "title": head, "scale": scale}
                | {"axis": axis},
                "y": y | {"scale": {"zero": False, "padding": 12}},
                "color": {"field": "colour", "type": "nominal", "scale": None, "legend": None},
                "size": {"condition": {"test": _PICKED, "value": 260}, "value": 80},
                "opacity": {"condition": {"test": _PASSING, "value": 0.9}, "value": 0.1},
                "tooltip": [
                    {"field": "label", "title": "trial", "type": "nominal"},
                    {"field": "x", "title": head, "format": ".2f"},
                    {"field": "y", "title": objective.head, "format": f".{objective.digits}f"},
                ],
            },
        )
        charts.append((name, chart))
    return charts
