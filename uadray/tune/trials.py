"""Which trials a sweep has, and how each stands: all read from run folders, its only state."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from uadray import files
from uadray.config import Experiment, from_json, learns, to_json
from uadray.errors import CheckpointError, ConfigError, RunError
from uadray.runs.folder import Run
from uadray.runs.reading import (
    PLAN,
    POPULATION,
    SWEEP,
    TRIALS,
    read_config,
    read_object,
)
from uadray.store import Cohort
from uadray.tune.settings import RECONSTRUCTION, USES_LABELS, SweepConfig
from uadray.tune.space import Space, trial_name
from uadray.tune.vary import settings_of

ENDED = ("finished", "stopped")
"""States of a run that no sweep goes on with."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One fit: an experiment and its run folder."""

    experiment: Experiment
    url: str

    def to_json(self) -> dict[str, Any]:
        """As a trial of Ray Tune receives it."""
        return {"experiment": to_json(self.experiment), "run": self.url}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Task":
        """The inverse of `to_json`."""
        return cls(experiment=from_json(Experiment, value["experiment"]), url=value["run"])


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One trial of a sweep."""

    experiment: Experiment
    url: str
    """Its run folder."""
    status: str
    """`finished`, `stopped` by the scheduler, `failed`, or `unfinished`: the budget ended."""
    error: str = ""
    """Why it failed."""
    objective: float | None = None
    """What it was compared by, of the epoch that is kept; None where there is nothing yet."""


def fixed_trials(space: Space, config: SweepConfig) -> list[Experiment]:
    """The trials that are known beforehand: all of them but those that Optuna draws.

    `max_trials` counts trials that learn by gradient; the plain baselines come beside them.

    Raises:
        ConfigError: the space is empty.
    """
    trials = space.trials()
    if not trials:
        raise ConfigError("the space holds no trial: give it experiments and seeds")
    plain = [t for t in trials if not learns(t)]
    learned = [t for t in trials if learns(t)]
    if config.search == "optuna" or config.scheduler == "pbt":
        learned = []
    elif config.search == "random":
        order = np.random.default_rng(config.seed).permutation(len(learned))
        learned = [learned[i] for i in order]
    if config.max_trials:
        learned = learned[: config.max_trials]
    return learned + plain


def run_url(url: str, trial: Experiment) -> str:
    """The run folder of a trial in the sweep at `url`."""
    return files.join(url, TRIALS, trial_name(trial))


def check_cohort(url: str, cohort: Cohort) -> None:
    """Refuse a sweep whose trials were fitted on another cohort: no ranking holds both.

    Raises:
        CheckpointError: one was.
    """
    folders = [files.join(url, TRIALS, name) for name in files.list_names(files.join(url, TRIALS))]
    for population in files.list_names(files.join(url, POPULATION)):
        inside = files.join(url, POPULATION, population)
        folders += [files.join(inside, name) for name in files.list_names(inside)]
    for folder in folders:
        try:
            run = Run.open(folder)
        except RunError:
            continue  # Damaged, or no run: named where it is read as a trial.
        if run.cohort_fingerprint != cohort.fingerprint:
            raise CheckpointError(
                f"{folder} was fitted on cohort {run.cohort_fingerprint} ({run.cohort_url}), not "
                f"on {cohort.fingerprint} ({cohort.url}): trials of two cohorts are in no one "
                "ranking; choose another --out"
            )


def status(folder: str) -> str:
    """How a run stands: `finished`, `stopped`, `failed` (or damaged) or `unfinished`."""
    if not Run.is_begun(folder):
        return "unfinished"
    try:
        return str((Run.open(folder).summary or {}).get("status", "unfinished"))
    except RunError:
        return "failed"


def settled(folder: str, config: SweepConfig) -> bool:
    """Whether a trial has ended and been measured: nothing is left to do for it."""
    ended = status(folder)
    if ended == "finished" and config.uses_labels:
        return objective_of(Run.open(folder).summary or {}, config) is not None
    return ended in ENDED


def objective_of(summary: dict[str, Any], config: SweepConfig) -> float | None:
    """What a run is compared by, from its summary; None where it has none."""
    if not config.uses_labels:
        value = summary.get("validation/reconstruction")
    else:
        objective = summary.get("objective") or {}
        value = objective.get("value") if objective.get("name") == config.objective else None
    return None if value is None else float(value)


def outcome(folder: str, experiment: Experiment, config: SweepConfig) -> Outcome:
    """How a trial stands."""
    if not Run.is_begun(folder):
        return Outcome(experiment=experiment, url=folder, status="unfinished")
    try:
        summary = Run.open(folder).summary or {}
    except RunError as error:
        return Outcome(experiment=experiment, url=folder, status="failed", error=str(error))
    return Outcome(
        experiment=experiment,
        url=folder,
        status=summary.get("status", "unfinished"),
        error=summary.get("error", ""),
        objective=_objective(folder, summary, config),
    )


def _objective(folder: str, summary: dict[str, Any], config: SweepConfig) -> float | None:
    """Its objective; of a run that was stopped before it could conclude, the last measured."""
    value = objective_of(summary, config)
    if value is not None or not config.uses_labels:
        return value
    with suppress(RunError, KeyError, TypeError, ValueError):  # damaged: as if not measured
        measured = (read_object(files.join(folder, "objective.json")) or {}).get("measured")
        return float(measured[-1][config.objective]) if measured else None
    return None


def reached(folder: str, config: SweepConfig) -> float | None:
    """What a trial has reached, less is better: concluded, or measured so far; None for nothing.

    It is the same of a trial that has just ended and of one that is read after a restart.
    """
    try:
        run = Run.open(folder)
        value = _objective(folder, run.summary or {}, config)
        if value is None and not config.uses_labels:
            values = [r[RECONSTRUCTION] for r in run.metrics() if RECONSTRUCTION in r]
            value = min(values, default=None)
    except RunError:
        return None
    return None if value is None else config.sign * value


def write_plan(
    url: str,
    tasks: Sequence[Task],
    config: SweepConfig,
    varied: Sequence[str],
    *,
    total: int,
    has_ended: bool,
) -> None:
    """Leave `plan.json`: how many trials there are, which are known, and whether all is over.

    Whoever looks at a sweep while it runs reads it; the sweep itself never does.

    Args:
        url: Folder of the sweep.
        tasks: Trials that are known beforehand, members of populations among them; a search draws
            others.
        config: What trials are compared by, and how many at a time.
        varied: Settings that tell the trials apart.
        total: Number of trials.
        has_ended: Whether nothing goes on.
    """
    plan = {
        "total": total,
        "has_ended": has_ended,
        "varied": list(varied),
        "objective": {
            "head": config.head,
            "sign": config.sign,
            "uses_labels": config.uses_labels,
        },
        "trials": [
            {
                "run": task.url.removeprefix(f"{url}/"),
                "name": task.experiment.name,
                "epochs": task.experiment.fit.epochs if learns(task.experiment) else None,
                "settings": {
                    path: value
                    for path, value in settings_of(task.experiment).items()
                    if path in varied and path != "experiment"
                },
            }
            for task in tasks
        ],
    }
    files.write_json(files.join(url, PLAN), plan)


def write_record(
    url: str,
    outcomes: Sequence[Outcome],
    cohort: Cohort,
    config: SweepConfig,
    varied: Sequence[str],
) -> None:
    """Leave `sweep.json`: what was compared, by what, and how each trial ended."""
    record = {
        "varied": list(varied),
        "config": to_json(config),
        "objective": {
            "name": config.objective,
            "uses_labels": config.uses_labels,
            "labelled": config.labelled or None,
            "in_words": config.describe(),
        },
        "cohort": {"url": cohort.url, "name": cohort.name, "fingerprint": cohort.fingerprint},
        "trials": [
            {
                "run": o.url,
                "settings": settings_of(o.experiment),
                "status": o.status,
                "error": o.error,
                "objective": o.objective,
                "lineage": lineage(o.url),
            }
            for o in outcomes
        ],
    }
    files.write_json(files.join(url, SWEEP), record)


def lineage(folder: str) -> list[dict[str, Any]]:
    """What a population's member went through, oldest first; empty for every other run."""
    try:
        return list(read_config(folder).get("lineage", []))
    except RunError:
        return []


def label_note(config: SweepConfig) -> str:
    """What stands in the summary of each run whose sweep compares by labels."""
    return f"{USES_LABELS}: in this sweep {config.describe()}"
