"""Parallel coordinates of all trials, with an axis for each setting and figure."""

import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from uadray.html import ABSENT
from uadray.report.charts.vega_lite import (
    MAX_DISCRETE,
    PICKED,
    Chart,
    best_last,
    colour,
    is_wide,
)
from uadray.report.columns import number
from uadray.report.effects import healthy_error
from uadray.report.trials import Objective, Trial, finite
from uadray.report.words import Compared
from uadray.runs.settings import Setting, settings_of

MAX_COHORTS = 3
"""Cohorts with an axis of their own at most."""

_SPREAD = 0.3
"""Of the distance of two values, how far the trials of one are spread to either side."""


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
        judged.append((f"Dice_D {cohort.group.name}", "uses labels", 3, False, _dice(n)))
    figures = [_figure_axis(*one, trials) for one in judged]
    axes += [one for one in figures if one is not None]
    if len(axes) < 2 or not settings or len(trials) < 2:
        return None
    controls = [{key: axis[key] for key in ("name", "ticks", "domain", "digits")} for axis in axes]
    return {"spec": _spec(trials, axes), "axes": controls}


def _spec(trials: Sequence[Trial], axes: Sequence[Chart]) -> Chart:
    values = [
        {
            "trial": trial.number,
            "colour": colour(trial),
            "ranked": trial.rank is not None,
            "y": [axis["places"][trial.number] for axis in axes],
            "tooltip": {"title": trial.run.label}
            | {axis["name"]: axis["texts"][trial.number] for axis in axes}
            | {"status": trial.status},
        }
        for trial in best_last(trials)
    ]
    ticks = [
        {"axis": n, "figure": axis["domain"] is not None, **tick}
        for n, axis in enumerate(axes)
        for tick in axis["ticks"]
    ]
    heads = [
        {"axis": n, "head": textwrap.wrap(axis["name"], 13)[-3:], "note": axis["note"]}
        for n, axis in enumerate(axes)
    ]
    passes = " && ".join(
        f"(!brush{n} || isValid(datum.y[{n}]) && inrange(datum.y[{n}], brush{n}))"
        for n in range(len(axes))
    )
    hover = [
        {"events": "@near:pointerover", "update": "datum.trial"},
        {"events": "@near:pointerout", "update": "null"},
    ]
    return {
        "$schema": "https://vega.github.io/schema/vega/v6.json",
        "description": (
            f"Parallel coordinates of {len(trials)} trials over "
            f"{', '.join(axis['name'] for axis in axes)}; the leaderboard holds the figures"
        ),
        "width": 120 * (len(axes) - 1),
        "height": 340,
        "autosize": "none",
        "padding": {"left": 120, "right": 62, "top": 66, "bottom": 12},
        "signals": [
            {"name": "picked", "value": []},
            {"name": "passing", "value": None},
            {"name": "hover", "value": None, "on": hover},
            # Width of the strip along an axis that brushes it; wider for fingers.
            {"name": "grip", "value": 26},
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
            _still(
                "rule",
                "heads",
                y={"value": -4},
                y2={"signal": "height + 4"},
                stroke={"value": "var(--muted)"},
            ),
            _line("line", len(axes)),
            _line("near", len(axes)),
            *(mark for n in range(len(axes)) for mark in _brush_marks(n)),
            _ticks(),
            _head("head", -26, 12, "bold", "var(--ink)"),
            _head("note", -12, 10, "normal", "var(--muted)"),
        ],
    }


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
                "events": "window:pointerup, window:pointercancel",
                "update": f"{name} && abs({name}[0] - {name}[1]) < 0.01 ? null : {name}",
            },
        ],
    }


def _brush_marks(n: int) -> list[Chart]:
    """The strip along an axis that is dragged, and what of it is brushed."""
    name = f"brush{n}"
    ends = {
        key: {"signal": f"{name} ? scale('y', {end}({name}[0], {name}[1])) : 0"}
        for key, end in (("y", "max"), ("y2", "min"))
    }
    strip = {
        "x": {"scale": "x", "value": n, "offset": {"signal": "-grip / 2"}},
        "width": {"signal": "grip"},
        "y": {"value": -6},
        "height": {"signal": "height + 12"},
        "fill": {"value": "transparent"},
        "cursor": {"value": "ns-resize"},
    }
    brushed = {
        "x": {"scale": "x", "value": n, "offset": -8},
        "width": {"value": 16},
        **ends,
        "fill": {"value": "var(--accent)"},
        "fillOpacity": {"signal": f"{name} ? 0.25 : 0"},
        "stroke": {"value": "var(--accent)"},
        "strokeOpacity": {"signal": f"{name} ? 1 : 0"},
    }
    return [
        {"type": "rect", "name": f"hit{n}", "encode": {"update": strip}},
        {"type": "rect", "interactive": False, "encode": {"update": brushed}},
    ]


def _line(name: str, num_axes: int) -> Chart:
    """The line of a trial, or the wider one around it that the pointer meets."""
    chosen = f"({PICKED} || hover === datum.trial)"
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


def _still(kind: str, data: str, *, offset: Chart | int = 0, **update: Chart) -> Chart:
    """Marks at the axes that the pointer passes through."""
    x = {"scale": "x", "field": "axis", "offset": offset}
    return {
        "type": kind,
        "from": {"data": data},
        "interactive": False,
        "aria": False,
        "encode": {"update": {"x": x, **update}},
    }


def _ticks() -> Chart:
    """Values at the axes: of settings on the left, of figures on the right."""
    return _still(
        "text",
        "ticks",
        offset={"signal": "datum.figure ? 8 : -8"},
        y={"scale": "y", "field": "y"},
        text={"field": "text"},
        align={"signal": "datum.figure ? 'left' : 'right'"},
        baseline={"value": "middle"},
        fontSize={"value": 11},
        limit={"signal": "datum.axis === 0 ? 108 : reach"},
        fill={"value": "var(--ink)"},
    )


def _head(field: str, y: float, size: int, weight: str, fill: str) -> Chart:
    """Names of the axes, one line or several, above them."""
    lines = f"isArray(datum.{field}) ? length(datum.{field}) - 1 : 0"
    return _still(
        "text",
        "heads",
        y={"signal": f"{y} - 13 * ({lines})"},
        text={"field": field},
        align={"value": "center"},
        fontSize={"value": size},
        fontWeight={"value": weight},
        lineHeight={"value": 13},
        fill={"value": fill},
    )


def _dice(place: int) -> Callable[[Trial], float | None]:
    return lambda trial: trial.figure("dice_d", place)


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
            places[trial.number], texts[trial.number] = None, ABSENT
            continue
        skill = -1.0 if trial.rank is None else 1 - 2 * (trial.rank - 1) / num
        places[trial.number] = round(place[own] + spread * skill, 4)
        texts[trial.number] = setting.text(own)
    return {
        "name": setting.label,
        "note": "",
        "ticks": ticks,
        "places": places,
        "texts": texts,
        "domain": None,
        "digits": 0,
    }


def _by_skill(setting: Setting, trials: Sequence[Trial]) -> list[Any]:
    """Values that are no numbers, the one of the best trial last, and so on top."""
    order = [settings_of(trial.run.config).get(setting.path) for trial in trials]
    return [value for value in dict.fromkeys(order) if value in setting.values][::-1]


def _continuous(setting: Setting) -> tuple[dict[Any, float], list[Chart]]:
    wide = is_wide(setting.values)
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
        "places": {n: None if v is None else place(v) for n, v in values.items()},
        "texts": {n: number(v, digits) for n, v in values.items()},
        "domain": [worst, best],
        "digits": digits,
    }
