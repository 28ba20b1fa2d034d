"""What the page of a sweep holds: its best trial, its leaderboard, and charts with their data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from markupsafe import Markup

from uadray.report import figures, slice_figures
from uadray.report.charts.effects import MARKS, effect_chart, importance_chart, mean_chart
from uadray.report.charts.pairs import MAX_PAIRED, pair_charts
from uadray.report.charts.parallel import MAX_COHORTS, parallel
from uadray.report.charts.trials import cost_charts, learning_curves
from uadray.report.charts.vega_lite import Chart, colour
from uadray.report.columns import Column, number
from uadray.report.effects import HEALTHY, Effect, effect_columns
from uadray.report.importance import METHOD, Importance, importance
from uadray.report.montage import Montage, Viewers, montage
from uadray.report.over_cohorts import mean_effect
from uadray.report.slices import SlicePlot, slice_plots
from uadray.report.sweep import Sweep, describe_span
from uadray.report.trials import (
    Leaderboard,
    Objective,
    Trial,
    best_trial,
    leaderboard,
    objective_of,
    repeat,
    sweep_metrics,
    trials_of,
)
from uadray.report.words import Compared
from uadray.runs.records import RunRecord
from uadray.runs.settings import EXPERIMENT, settings_of

MAX_STRIPS = 2
"""Cohorts of which the best trial's card has an example at most."""

DATA_SHARE = "fit.data_share"
"""The setting whose effect is also shown as a mean over cohorts (Bengs 2021, figure 5)."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A chart with what stands around it."""

    caption: str
    """Its head."""
    chart: str
    """Id of the element that it is drawn into; empty where there is a `reason` for none."""
    notes: tuple[str, ...] = ()
    """Badges of the cohort."""
    reason: str = ""
    """Why nothing is drawn."""


@dataclass(frozen=True, kw_only=True)
class EffectSection:
    """One setting, on all cohorts."""

    label: str
    """The setting."""
    figures: tuple[Figure, ...]
    """Healthy error first, since it needs no label; then Dice_D on each cohort."""
    legend: tuple[tuple[str, str], ...]
    """Mark and label of each line."""
    tables: tuple[Effect, ...]
    """The figures behind the charts, one a cohort."""
    spans: tuple[str, ...]
    """Its last value against its first, in words, one a cohort."""
    method: str
    """What was done with the other settings."""
    num_left_out: int
    """Experiments that are not shown."""


@dataclass(frozen=True, kw_only=True)
class Best:
    """The card of the best trial."""

    trial: Trial
    """The trial."""
    settings: tuple[tuple[str, str], ...]
    """Name and value of each setting that varies."""
    objective: str
    """What it was chosen by, as shown."""
    heads: tuple[str, ...]
    """Names of the metrics."""
    figures: tuple[tuple[str, tuple[Column[Trial], ...]], ...]
    """Name of each cohort that it was evaluated on, and the columns of its figures."""
    montages: tuple[tuple[str, Montage], ...]
    """Name of each cohort and the trial's examples on it."""
    command: str | None
    """What fits it again."""
    line: str
    """How far its figures can be trusted, given that it was chosen."""


class _Charts:
    """The charts of a page by the ids of their elements."""

    def __init__(self) -> None:
        self.made: dict[str, Chart] = {}

    def add(self, chart: Chart) -> str:
        """Keep a chart; its id."""
        name = f"chart-{len(self.made) + 1}"
        self.made[name] = chart
        return name

    def figure(
        self, caption: str, chart: Chart | None, notes: tuple[str, ...] = ()
    ) -> list[Figure]:
        """A figure of a chart, or none where there is none."""
        if chart is None:
            return []
        return [Figure(caption=caption, chart=self.add(chart), notes=notes)]


def sweep_context(
    sweep: Sweep | None, cohorts: Sequence[Compared], viewers: Viewers | None = None
) -> dict[str, Any] | None:
    """What the template needs of a sweep, or None where the runs are none."""
    if sweep is None:
        return None
    objective = objective_of(sweep.runs)
    trials = trials_of(sweep.runs, cohorts, objective)
    numbers = {trial.run.url: trial.number for trial in trials}
    board = leaderboard(trials, sweep.settings, objective, cohorts)
    plot = parallel(trials, sweep.settings, objective, cohorts)
    kept = _Charts()
    paths = list(dict.fromkeys(effect.setting.path for effect in sweep.effects))
    by_path = [[one for one in sweep.effects if one.setting.path == path] for path in paths]
    weighed = _importances(sweep, trials, objective.head, cohorts)
    context = {
        "sentences": sweep.sentences,
        "choices": sweep.choices,
        "objective": objective,
        "best": _best(sweep, trials, board, objective, cohorts, viewers),
        "trials": trials,
        "board": board,
        "axes": plot["axes"] if plot else [],
        "importances": [
            Figure(
                caption=_weighed(one),
                chart=kept.add(importance_chart(one)) if one.weights else "",
                reason=one.reason,
            )
            for one in weighed
        ],
        "importance_method": METHOD,
        "effects": [_effect(one, numbers, kept) for one in by_path],
        "pairs": [
            figure
            for name, chart in pair_charts(trials, sweep.settings, objective)
            for figure in kept.figure(name, chart)
        ],
        "max_paired": MAX_PAIRED,
        "num_settings": len(sweep.settings),
        "curves": kept.figure("", learning_curves(trials)),
        "costs": [
            figure
            for name, chart in cost_charts(trials, objective)
            for figure in kept.figure(name, chart)
        ],
        "columns": effect_columns([point for one in sweep.effects for point in one.points]),
        "colour": colour,
    }
    context["data"] = {"parallel": plot and plot["spec"], "axes": context["axes"]}
    context["data"]["charts"] = kept.made
    return context


def _best(
    sweep: Sweep,
    trials: Sequence[Trial],
    board: Leaderboard,
    objective: Objective,
    cohorts: Sequence[Compared],
    viewers: Viewers | None,
) -> Best | None:
    trial = best_trial(trials)
    if trial is None:
        return None
    held = settings_of(trial.run.config)
    made = []
    rows = []
    for n, (cohort, row) in enumerate(zip(cohorts, trial.rows, strict=True)):
        if row is not None:
            rows.append((cohort.group.name, board.figures[n]))
        shown = row and montage(replace(cohort.group, rows=(row,)), viewers)
        if shown:
            made.append((cohort.group.name, shown))
    num = sum(one.rank is not None for one in trials)
    return Best(
        trial=trial,
        settings=tuple(
            (one.label, one.text(held[one.path]))
            for one in sweep.settings
            if one.path in held and one.path != EXPERIMENT
        ),
        objective=number(trial.objective, objective.digits),
        heads=tuple(metric.head for metric in sweep_metrics(cohorts)),
        figures=tuple(rows),
        montages=tuple(made[:MAX_STRIPS]),
        command=repeat(trial.run),
        line=f"The best of {num} by {objective.head}: that figure is optimistic.",
    )


def _importances(
    sweep: Sweep, trials: Sequence[Trial], head: str, cohorts: Sequence[Compared]
) -> list[Importance]:
    """Of the objective, and of Dice_D on each cohort."""
    values = [(head, [trial.objective for trial in trials])]
    for n, cohort in enumerate(cohorts[:MAX_COHORTS]):
        dice = [trial.figure("dice_d", n) for trial in trials]
        values.append((f"Dice_D on {cohort.group.name}", dice))
    return [importance(name, trials, each, sweep.settings) for name, each in values]


def _weighed(one: Importance) -> str:
    if one.explained is None or one.explained <= 0:
        return one.head
    share = f"{100 * one.explained:.0f} % of its variance explained"
    return f"{one.head}: {share}, {one.num_trials} trials"


def _effect(effects: Sequence[Effect], numbers: Mapping[str, int], kept: _Charts) -> EffectSection:
    def size(effect: Effect) -> int:
        return sum(len(point.series.rows) for point in effect.points)

    names = list(dict.fromkeys(line.label for effect in effects for line in effect.lines))
    # Of the cohort with most fits: the error is that of the run, whatever it is evaluated on.
    made = kept.figure(
        "Healthy L1, no labels",
        effect_chart(max(effects, key=size), HEALTHY, numbers, names),
    )
    for effect in effects:
        if effect.group.name:
            chart = effect_chart(effect, "dice_d", numbers, names)
            made += kept.figure(f"Dice_D on {effect.group.name}", chart, effect.group.notes)
    mean = mean_effect(effects) if effects[0].setting.path == DATA_SHARE else None
    if mean is not None:
        caption = f"AUPRC, mean of {' and '.join(mean.cohorts)} (figure 5 of Bengs 2021)"
        notes = dict.fromkeys(note for effect in effects for note in effect.group.notes)
        made += kept.figure(caption, mean_chart(mean, names), tuple(notes))
    return EffectSection(
        label=effects[0].setting.label,
        figures=tuple(made),
        legend=tuple(
            (list(MARKS.values())[n % len(MARKS)], label) for n, label in enumerate(names)
        ),
        tables=tuple(effects),
        spans=tuple(text for effect in effects if (text := describe_span(effect))),
        method=effects[0].method,
        num_left_out=effects[0].num_left_out,
    )


def slice_context(cohorts: Sequence[Compared]) -> list[tuple[SlicePlot, Markup]]:
    """Slice-wise curves with their plots; empty where no run kept its slices."""
    return [
        (plot, slice_figures.slice_plot(plot.curves, plot.chance, " and ".join(plot.names)))
        for plot in slice_plots(cohorts)
    ]


def curve_context(runs: Sequence[RunRecord]) -> list[tuple[str, Markup]]:
    """Learning curves, one plot a run, in the order of the tables."""
    held = [run for run in runs if figures.has_curves(run)]
    if not held:
        return []
    limits = figures.curve_limits(held)
    return [(run.label, figures.learning_curve(run, limits)) for run in held]


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
