"""Charts with a line or a mark for each trial: learning curves, time and memory."""

from collections.abc import Sequence

import numpy as np

from uadray.report.charts.vega_lite import (
    COLOUR,
    PASSING,
    PICKED,
    Chart,
    best_last,
    colour,
    field,
    is_wide,
    lite,
    scatter,
    shown_objective,
)
from uadray.report.figures import curve_of, has_curves
from uadray.report.trials import Objective, Trial, memory, minutes


def learning_curves(trials: Sequence[Trial]) -> Chart | None:
    """Validation error of all trials by epoch, crosses where one was stopped early or failed."""
    values = []
    for trial in best_last(trials):
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
    opacity = {
        "condition": [
            {"test": PICKED, "value": 1},
            {"test": f"!{PASSING}", "value": 0.06},
            {"test": "length(picked)", "value": 0.2},
            {"test": "datum.best", "value": 1},
        ],
        "value": 0.65,
    }
    shared = {
        "x": field("epoch", title="epoch", axis={"tickMinStep": 1}, scale={"nice": False}),
        "y": field(
            "error",
            title="healthy L1, validation",
            scale={"type": "log", "nice": False},
            axis={"format": "~g", "tickCount": 6},
        ),
        "opacity": opacity,
        "tooltip": [
            {"field": "label", "title": "trial", "type": "nominal"},
            {"field": "status", "title": "status", "type": "nominal"},
        ],
    }
    width = {"condition": {"test": f"datum.best || {PICKED}", "value": 3}, "value": 1.3}
    lines = {
        "transform": [{"flatten": ["epoch", "error"]}],
        "mark": {"type": "line", "cursor": "pointer"},
        "encoding": shared | {"color": COLOUR, "detail": {"field": "trial"}, "strokeWidth": width},
    }
    ended = {
        "transform": [
            {"filter": "datum.status !== 'finished'"},
            {"calculate": "peek(datum.epoch)", "as": "epoch"},
            {"calculate": "peek(datum.error)", "as": "error"},
        ],
        "mark": {"type": "point", "shape": "cross", "size": 70, "angle": 45, "filled": True},
        "encoding": shared | {"color": {"value": "var(--plain)"}},
    }
    return lite(
        f"Validation error of {len(values)} trials by epoch",
        values,
        width="container",
        height=300,
        autosize={"type": "fit", "contains": "padding"},
        layer=[lines, *([ended] if any(v["status"] != "finished" for v in values) else [])],
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
        wide = is_wide([float(str(value["x"])) for value in values])
        scale: Chart = {"padding": 12} | ({"type": "log"} if wide else {"zero": False})
        axis = {"format": "~g", "tickCount": 5, "labelOverlap": "greedy"}
        chart = scatter(
            f"{objective.head} of {len(values)} trials over the {head}",
            values,
            field("x", title=head, scale=scale, axis=axis),
            field("y", title=objective.head, scale={"zero": False, "padding": 12}),
            [
                {"field": "label", "title": "trial", "type": "nominal"},
                {"field": "x", "title": head, "format": ".2f"},
                shown_objective("y", objective),
            ],
        )
        charts.append((name, chart))
    return charts
