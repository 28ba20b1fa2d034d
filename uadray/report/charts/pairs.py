"""The objective over pairs of settings."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from uadray.report.charts.vega_lite import (
    COLOUR,
    MAX_DISCRETE,
    Chart,
    colour,
    lite,
    nominal_axis,
    scatter,
    setting_axis,
    shown_objective,
)
from uadray.report.trials import Objective, Trial
from uadray.runs.settings import Setting, settings_of

MAX_PAIRED = 5
"""Settings that are crossed in pairs at most."""

_KEYS = ("first", "second")


def pair_charts(
    trials: Sequence[Trial], settings: Sequence[Setting], objective: Objective
) -> list[tuple[str, Chart]]:
    """The objective over each pair of the first `MAX_PAIRED` settings, with its name.

    Pairs of few values are a grid with the mean of each cell; others have a mark for each trial.
    """
    ranked = [t for t in trials if t.rank is not None]
    limits: Any = np.quantile([t.objective for t in ranked], (0.2, 0.4, 0.6, 0.8)) if ranked else []
    charts = []
    for pair in combinations(settings[:MAX_PAIRED], 2):
        known = [(trial, settings_of(trial.run.config)) for trial in ranked]
        held = [(t, [own[s.path] for s in pair]) for t, own in known if _has(own, pair)]
        if any(len({own[k] for _, own in held}) < 2 for k in (0, 1)):
            continue
        is_long = any(one.is_numeric and len(one.values) > MAX_DISCRETE for one in pair)
        chart = _marks(pair, held, objective) if is_long else _grid(pair, held, objective, limits)
        charts.append((f"{pair[0].label} and {pair[1].label}", chart))
    return charts


def _has(own: dict[str, Any], pair: Sequence[Setting]) -> bool:
    return {one.path for one in pair} <= own.keys()


def _texts(pair: Sequence[Setting], own: Sequence[Any]) -> Chart:
    return {key: one.text(v) for key, one, v in zip(_KEYS, pair, own, strict=True)}


def _tooltip(pair: Sequence[Setting], objective: Objective) -> list[Chart]:
    named = zip(_KEYS, pair, strict=True)
    return [
        *({"field": key, "title": one.label, "type": "nominal"} for key, one in named),
        shown_objective("value", objective),
    ]


def _marks(
    pair: Sequence[Setting], held: Sequence[tuple[Trial, list[Any]]], objective: Objective
) -> Chart:
    values = []
    for trial, own in held:
        texts = _texts(pair, own)
        x, y = (
            value if one.is_numeric else text
            for one, value, text in zip(pair, own, texts.values(), strict=True)
        )
        values.append(
            {"x": x, "y": y, "value": trial.objective, "trial": trial.number, **texts}
            | {"colour": colour(trial)}
        )
    return scatter(
        f"{objective.head} over {pair[0].label} and {pair[1].label}",
        values,
        setting_axis(pair[0], "x"),
        setting_axis(pair[1], "y"),
        _tooltip(pair, objective),
    )


def _grid(
    pair: Sequence[Setting],
    held: Sequence[tuple[Trial, list[Any]]],
    objective: Objective,
    limits: Any,
) -> Chart:
    cells: dict[tuple[Any, ...], list[float]] = {}
    for trial, own in held:
        assert trial.objective is not None
        cells.setdefault(tuple(own), []).append(trial.objective)
    values = []
    for place, inside in cells.items():
        mean = float(np.mean(inside))
        fifth = int(np.searchsorted(limits, mean))
        fifth = 4 - fifth if objective.low_is_best else fifth
        values.append(
            {"value": mean, "trials": len(inside), "colour": f"var(--fifth-{fifth})"}
            | _texts(pair, place)
        )
    x, y = (
        nominal_axis(one, key, order, labelLimit=120, grid=False)
        for key, one, order in zip(_KEYS, pair, (1, -1), strict=True)
    )
    tooltip = [*_tooltip(pair, objective), {"field": "trials", "title": "trials"}]
    text = {"field": "value", "format": f".{objective.digits}f"}
    return lite(
        f"Mean {objective.head} over {pair[0].label} and {pair[1].label}",
        values,
        layer=[
            {
                "mark": {"type": "rect", "stroke": "var(--page)", "strokeWidth": 2},
                "encoding": {"x": x, "y": y, "color": COLOUR, "tooltip": tooltip},
            },
            {
                "mark": {"type": "text", "color": "var(--page)", "fontSize": 11},
                "encoding": {"x": x, "y": y, "text": text},
            },
        ],
    )
