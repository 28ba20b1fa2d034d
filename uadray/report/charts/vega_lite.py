"""What the charts share: colours, the reaction to selection and brushes, axes of settings."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from uadray.report.trials import Objective, Trial
from uadray.runs.settings import Setting

Chart = dict[str, Any]
"""A Vega-Lite chart, or a Vega one."""

MAX_DISCRETE = 8
"""Distinct numbers up to which a setting's values are columns or rows; more are an axis."""

PICKED = "indexof(picked, datum.trial) >= 0"
PASSING = "(!passing || indexof(passing, datum.trial) >= 0)"
COLOUR = {"field": "colour", "type": "nominal", "scale": None, "legend": None}
"""The encoding of data that hold a colour each."""

_WIDE = 8.0
"""Ratio of the largest to the smallest value from which an axis is logarithmic."""


def lite(description: str, values: list[Chart], **rest: Any) -> Chart:
    """A Vega-Lite chart of some data, described for readers who cannot see it."""
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "description": description,
        "data": {"values": values},
        "width": 300,
        "height": 190,
        "params": [{"name": "picked", "value": []}, {"name": "passing", "value": None}],
        **rest,
    }


def scatter(
    description: str, values: list[Chart], x: Chart, y: Chart, tooltip: list[Chart], **rest: Any
) -> Chart:
    """A chart with one mark for each trial, which selects it."""
    encoding = {
        "x": x,
        "y": y,
        "color": COLOUR,
        "size": {"condition": {"test": PICKED, "value": 260}, "value": 80},
        "opacity": {"condition": {"test": PASSING, "value": 0.9}, "value": 0.1},
        "tooltip": tooltip,
    }
    return lite(
        description, values, mark={"type": "circle", "cursor": "pointer"}, encoding=encoding, **rest
    )


def field(name: str, **rest: Any) -> Chart:
    """An encoding by numbers."""
    return {"field": name, "type": "quantitative", **rest}


def shown_objective(name: str, objective: Objective) -> Chart:
    """The objective in a tooltip."""
    return {"field": name, "title": objective.head, "format": f".{objective.digits}f"}


def colour(trial: Trial) -> str:
    """Of a trial: its fifth by the objective."""
    if trial.fifth is not None:
        return f"var(--fifth-{trial.fifth})"
    return "var(--plain)" if trial.is_plain else "var(--muted)"


def best_last(trials: Sequence[Trial]) -> list[Trial]:
    """In the order of drawing: the best on top."""
    return sorted(trials, key=lambda trial: -(trial.rank or len(trials) + 1))


def is_wide(values: Sequence[float]) -> bool:
    """Whether an axis of these values is logarithmic."""
    return min(values) > 0 and max(values) / min(values) >= _WIDE


def nominal_axis(setting: Setting, name: str, order: int = 1, **axis: Any) -> Chart:
    """A setting as columns or rows, one a value, from the last one on where `order` is -1."""
    return {
        "field": name,
        "type": "nominal",
        "sort": [setting.text(value) for value in setting.values][::order],
        "axis": {"labelAngle": 0, **axis},
        "title": setting.label,
    }


def setting_axis(setting: Setting, name: str) -> Chart:
    """A setting as an axis: numbers to scale, by their logarithm over a wide range."""
    if not setting.is_numeric:
        return nominal_axis(setting, name)
    values = list(setting.values)
    if len(values) > MAX_DISCRETE:
        values = [values[k] for k in np.linspace(0, len(values) - 1, 6).round().astype(int)]
    percent = setting.path.endswith("share")
    label = "format(100 * datum.value, '~g') + ' %'" if percent else "format(datum.value, '~g')"
    scale: Chart = {"nice": False, "padding": 14}
    scale |= {"type": "log"} if is_wide(setting.values) else {"zero": False}
    axis = {"values": values, "labelExpr": label, "labelOverlap": True}
    return field(name, scale=scale, axis=axis, title=setting.label)
