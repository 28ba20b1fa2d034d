"""What the page shows of a sweep, of slices and of many learning curves: plots with their data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from uadray.report import figures, sweep_figures
from uadray.report.columns import number
from uadray.report.effects import EFFECT_COLUMNS, HEALTHY, Effect
from uadray.report.over_cohorts import mean_effect
from uadray.report.parallel import TOP, parallel
from uadray.report.slices import SlicePlot, slice_plots
from uadray.report.sweep import Sweep
from uadray.report.words import Compared
from uadray.runs.records import RunRecord

MAX_CURVES = 12
"""Maximum number of learning curves with a plot each; more are gathered by experiment."""

DATA_SHARE = "fit.data_share"
"""The setting whose effect is also shown as a mean over cohorts (Bengs 2021, figure 5)."""


@dataclass(frozen=True, kw_only=True)
class EffectSection:
    """One setting, on all cohorts."""

    label: str
    """The setting."""
    plots: tuple[tuple[str, tuple[str, ...], Markup], ...]
    """Caption, notes of the cohorts, and plot."""
    tables: tuple[Effect, ...]
    """The figures behind the plots, one a cohort."""
    method: str
    """What was done with the other settings."""
    num_left_out: int
    """Experiments that are not shown."""


def sweep_context(sweep: Sweep | None, cohorts: Sequence[Compared]) -> dict[str, Any] | None:
    """What the template needs of a sweep, or None where the runs are none."""
    if sweep is None:
        return None
    paths = list(dict.fromkeys(effect.setting.path for effect in sweep.effects))
    return {
        "sentences": sweep.sentences,
        "plot": parallel(sweep.runs, sweep.settings, cohorts),
        "top": TOP,
        "effects": [
            _effect([one for one in sweep.effects if one.setting.path == path]) for path in paths
        ],
        "columns": EFFECT_COLUMNS,
    }


def _effect(effects: Sequence[Effect]) -> EffectSection:
    """Healthy error first, since it needs no label; then Dice_D on each cohort."""
    plots: list[tuple[str, tuple[str, ...], Markup | None]] = [
        ("Reconstruction error on healthy volumes, no labels", (), _healthy(effects))
    ]
    for effect in effects:
        if effect.group.name:
            caption = f"Dice_D on {effect.group.name}"
            plot = sweep_figures.effect_plot(effect, "dice_d")
            plots.append((caption, effect.group.notes, plot))
    if effects[0].setting.path == DATA_SHARE:
        mean = mean_effect(effects)
        if mean is not None:
            caption = f"AUPRC, mean of {' and '.join(mean.cohorts)} (figure 5 of Bengs 2021)"
            notes = dict.fromkeys(note for effect in effects for note in effect.group.notes)
            plots.append((caption, tuple(notes), sweep_figures.mean_plot(mean)))
    return EffectSection(
        label=effects[0].setting.label,
        plots=tuple((c, notes, plot) for c, notes, plot in plots if plot is not None),
        tables=tuple(effects),
        method=effects[0].method,
        num_left_out=effects[0].num_left_out,
    )


def _healthy(effects: Sequence[Effect]) -> Markup | None:
    """Of the cohort with most fits: the error is that of the run, whatever it is evaluated on."""

    def size(effect: Effect) -> int:
        return sum(len(point.series.rows) for point in effect.points)

    return sweep_figures.effect_plot(max(effects, key=size), HEALTHY)


def slice_context(cohorts: Sequence[Compared]) -> list[tuple[SlicePlot, Markup]]:
    """Slice-wise curves with their plots; empty where no run kept its slices."""
    return [
        (plot, sweep_figures.slice_plot(plot.curves, plot.chance, " and ".join(plot.names)))
        for plot in slice_plots(cohorts)
    ]


def curve_context(runs: Sequence[RunRecord]) -> dict[str, Any]:
    """Learning curves: one plot a run, or one an experiment where there are many.

    Args:
        runs: In the order of the tables.
    """
    held = [run for run in runs if figures.has_curves(run)]
    if not held:
        return {"plots": [], "is_bundled": False}
    limits = figures.curve_limits(held)
    if len(held) <= MAX_CURVES:
        plots = [(run.label, figures.learning_curve(run, limits)) for run in held]
        return {"plots": plots, "is_bundled": False}
    names: dict[str, list[RunRecord]] = {}
    for run in held:
        names.setdefault(str(run.config["name"]), []).append(run)
    plots = [
        (f"{name}, {len(same)} trial{'' if len(same) == 1 else 's'}", bundled)
        for name, same in names.items()
        for bundled in [sweep_figures.bundle(name, same, limits)]
    ]
    return {"plots": plots, "is_bundled": True}


def ended_early(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """Runs that did not finish, or were not evaluated, the failed ones first."""
    order = {"failed": 0, "unfinished": 1, "stopped": 2}
    early = [r for r in runs if r.summary["status"] != "finished" or not r.evaluations]
    return sorted(early, key=lambda run: order.get(str(run.summary["status"]), 3))


def reason(run: RunRecord) -> str:
    """Why a run ended before its last epoch, from what it left itself."""
    message = run.summary.get("error") or run.summary.get("reason")
    if message:
        return str(message)
    if run.summary["status"] == "stopped":
        value = run.summary.get("validation/reconstruction")
        lowest = "" if value is None else f", healthy L1 {number(float(value), 4)} at best"
        return f"the sweep's scheduler stopped it after epoch {_epochs(run)}{lowest}"
    return ""


def _epochs(run: RunRecord) -> str:
    held: Mapping[str, Any] = run.summary
    return str(held.get("epochs") or (run.epochs[-1]["epoch"] if run.epochs else 0))
