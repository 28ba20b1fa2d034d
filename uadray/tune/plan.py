"""What a sweep prints: its trials beforehand with an estimate, and how they ended."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from rich.table import Table

from uadray.config import Experiment, learns
from uadray.device import Device, gpu_facts
from uadray.errors import RunError
from uadray.progress import clock
from uadray.runs.folder import Run
from uadray.store import Cohort
from uadray.tune.estimate import estimate
from uadray.tune.population import begin, experiment_of, populations
from uadray.tune.settings import SweepConfig
from uadray.tune.space import Space
from uadray.tune.trials import Outcome, fixed_trials
from uadray.tune.vary import settings_of

MIN_NAME = 12
"""Characters that the names of trials get at least, in however narrow a terminal."""


def planned_trials(space: Space, config: SweepConfig) -> list[Experiment]:
    """The trials that are known before a sweep, to its last epoch.

    Of a search the first ones of its space stand for those that it draws; of a population its
    members with the knobs that they begin with.
    """
    trials = fixed_trials(space, config)
    if config.search == "optuna":
        drawn = [t for t in space.trials() if learns(t)][: config.max_trials]
        return [*drawn, *trials]
    if config.scheduler == "pbt":
        for population in populations(space, config):
            epochs = population.base.fit.epochs
            for member in begin(population):
                first = experiment_of(population, member)
                trials.append(replace(first, fit=replace(first.fit, epochs=epochs)))
    return trials


def plan_table(space: Space, config: SweepConfig, cohort: Cohort) -> Table:
    """What would be fitted, and about how long that takes."""
    threads = max(1, int(config.cpus_per_trial))
    # A head without a GPU has nothing better to time than its CPU.
    device: Device = "auto" if config.gpus else "cpu"
    estimates = estimate(planned_trials(space, config), cohort, threads=threads, device=device)
    total = sum(e.seconds for e in estimates)
    caption = "Timed on a few steps on this machine; reading, validation and baselines not in it"
    if config.gpus:
        caption += f". On {'this GPU' if gpu_facts() else 'its CPU: GPUs take far less'}"
    if config.search == "optuna":
        caption += ". The points are drawn; these stand for them"
    if config.scheduler == "pbt":
        caption += ". Members change their settings on the way"
    table = Table(
        title=f"{len(estimates)} trials, {clock(total)} one after another at {threads} threads; "
        + config.describe(),
        caption=caption,
    )
    paths = [path for path in space.varied if path != "experiment"]
    for head in ("trial", *map(_head, paths), "samples", "epochs", "about"):
        is_name = head == "trial"
        table.add_column(
            head, justify="left" if is_name else "right", min_width=MIN_NAME if is_name else None
        )
    for line in estimates:
        settings = settings_of(line.experiment)
        values = [str(settings.get(path, "")) for path in paths]
        epochs = str(line.experiment.fit.epochs) if line.seconds else "1"
        about = clock(line.seconds) if line.seconds else ""
        table.add_row(line.experiment.name, *values, str(line.samples), epochs, about)
    return table


def outcome_table(space: Space, config: SweepConfig, outcomes: Sequence[Outcome]) -> Table:
    """How the trials ended, the best first."""
    ended = [o.status for o in outcomes]
    counts = ", ".join(f"{ended.count(s)} {s}" for s in dict.fromkeys(ended))
    table = Table(
        title=f"{len(outcomes)} trials: {counts}", caption=f"best first; {config.describe()}"
    )
    paths = [path for path in space.varied if path != "experiment"]
    heads = dict.fromkeys(("healthy L1", config.head))
    for head in ("trial", *map(_head, paths), *heads, "best epoch", "status"):
        table.add_column(
            head,
            justify="left" if head in ("trial", "status") else "right",
            min_width=MIN_NAME if head == "trial" else None,
        )
    lines = []
    for o in outcomes:
        summary: Mapping[str, Any] = {}
        with suppress(RunError):  # it says so in its status
            summary = (Run.open(o.url).summary if Run.is_begun(o.url) else None) or {}
        settings = settings_of(o.experiment)
        values = [summary.get("validation/reconstruction"), o.objective][: len(heads)]
        status = f"{o.status}: {o.error.splitlines()[0][:80]}" if o.error else o.status
        cells = [
            o.experiment.name,
            *(str(settings.get(path, "")) for path in paths),
            *("" if value is None else f"{value:.4f}" for value in values),
            str(summary.get("best_epoch") or ""),
            status,
        ]
        order = math.inf if o.objective is None else config.sign * o.objective
        lines.append((order, cells))
    for _, cells in sorted(lines, key=lambda line: line[0]):
        table.add_row(*cells)
    return table


def _head(path: str) -> str:
    """`latent size` for `method.latent_size`."""
    return path.partition(".")[2].replace(".", " ").replace("_", " ")
