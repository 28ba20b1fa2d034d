"""What the folder of a run or a sweep says of how it stands."""

import statistics
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from uadray import files
from uadray.errors import RunError
from uadray.lock import LEASE_S, Holder, holder_of
from uadray.runs.reading import (
    CONFIG,
    EPOCHS,
    PLAN,
    POPULATION,
    SUMMARY,
    SWEEP,
    TRIALS,
    evaluated_on,
    place,
    read_config,
    read_epochs,
    read_object,
    read_summary,
)

VALIDATION = "validation/reconstruction"
"""What epochs and trials are compared by, where no label is used."""

QUIET_S = 120.0
"""A run that writes nothing for so long, and for several of its epochs, is said to be quiet."""

QUIET_FIRST_S = 600.0
"""The same before its first epoch has ended, whose length is not known."""

QUIET_EPOCHS = 4
"""How many of its epochs a run may be silent for."""

_RECENT = 5
"""Epochs whose median says how long the next one takes."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """The job that writes a folder, by its lock."""

    holder: Holder
    """Its process and machine."""
    has_ended: bool
    """Whether that process is seen to be gone."""
    age: float | None
    """Seconds since it has said that it lives."""


@dataclass(frozen=True, kw_only=True)
class RunState:
    """One run."""

    url: str
    """Its folder."""
    name: str
    """Of the experiment, with the settings that tell it from others of a sweep."""
    status: str
    """`finished`, `failed` and `stopped`, as its summary has it; `running` where a job holds it,
    else `unfinished`; `waiting` for a trial that has not been started, `damaged` for one that
    cannot be read."""
    error: str = ""
    """Why it failed, or cannot be read."""
    cohort: str = ""
    """Name of the cohort that it is fitted on."""
    epochs: int | None = None
    """Maximum number; None for what learns without epochs."""
    records: tuple[Mapping[str, Any], ...] = ()
    """Of each epoch so far."""
    summary: Mapping[str, Any] = field(default_factory=dict)
    """What its end has left; empty before."""
    age: float | None = None
    """Seconds since it was last written, by the clocks of its storage and of this machine."""
    job: Job | None = None
    """What writes it, or did until it was killed."""
    evaluations: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    """Names of the cohorts that it was evaluated on, with the metrics."""

    @property
    def has_ended(self) -> bool:
        """Whether nothing goes on with it by itself."""
        return self.status in ("finished", "failed", "stopped", "damaged")

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return int(self.records[-1]["epoch"]) if self.records else 0

    @property
    def seconds_per_epoch(self) -> float | None:
        """Of the last few epochs, their median; None before the first one has ended."""
        seconds = [r["seconds"] for r in self.records[-_RECENT:] if "seconds" in r]
        return statistics.median(seconds) if seconds else None

    @property
    def seconds_left(self) -> float | None:
        """Until the last epoch; None where that cannot be said."""
        if self.has_ended or self.epochs is None or (each := self.seconds_per_epoch) is None:
            return None
        return each * max(0, self.epochs - self.epoch)

    @property
    def best(self) -> tuple[int, float] | None:
        """Epoch and value of the lowest validation error so far; None where there is none."""
        values = [(r[VALIDATION], r["epoch"]) for r in self.records if VALIDATION in r]
        if not values:
            value = self.summary.get(VALIDATION)
            return None if value is None else (int(self.summary.get("best_epoch") or 0), value)
        value, epoch = min(values)
        return int(epoch), float(value)

    @property
    def quiet(self) -> str:
        """What is odd about the job that writes it, in words; empty for nothing."""
        if self.has_ended or self.status == "waiting":
            return ""
        if odd := _about(self.job):
            return odd
        each = self.seconds_per_epoch
        limit = QUIET_FIRST_S if each is None else max(QUIET_S, QUIET_EPOCHS * each)
        if self.age is not None and self.age > limit:
            return f"nothing written for {lasting(self.age)}"
        return ""


@dataclass(frozen=True, kw_only=True)
class SweepState:
    """One sweep."""

    url: str
    """Its folder."""
    trials: tuple[RunState, ...]
    """All that are known."""
    total: int | None
    """Number of trials, those included that a search is still to draw; None where an earlier
    version has not recorded it."""
    head: str
    """What trials are compared by, as tables name it."""
    sign: int
    """What that is multiplied with so that less is better."""
    uses_labels: bool
    """Whether it is of lesion masks."""
    has_ended: bool
    """Whether its job has ended by itself."""
    job: Job | None = None
    """What writes it, or did until it was killed."""

    def having(self, *statuses: str) -> list[RunState]:
        """Trials of some status."""
        return [trial for trial in self.trials if trial.status in statuses]

    @property
    def waiting(self) -> int:
        """Trials that were not started, or are still to be drawn."""
        started = len(self.trials) - len(self.having("waiting"))
        return max(0, (self.total or 0) - started)

    def objective(self, trial: RunState) -> float | None:
        """What a trial is compared by, as far as it has come."""
        if self.uses_labels:
            value = (trial.summary.get("objective") or {}).get("value")
            return None if value is None else float(value)
        return trial.best[1] if trial.best else None

    @property
    def best(self) -> RunState | None:
        """The best trial so far, of those that learn in epochs where there are any."""
        values = [
            (trial.epochs is None, self.sign * value, number)
            for number, trial in enumerate(self.trials)
            if (value := self.objective(trial)) is not None and trial.status != "failed"
        ]
        return self.trials[min(values)[2]] if values else None

    @property
    def seconds_left(self) -> float | None:
        """Until the last trial, were all to go to their last epoch; None where nobody can say."""
        known = [s for trial in self.trials if (s := trial.seconds_per_epoch) is not None]
        running = self.having("running")
        if self.has_ended or not known or not running:
            return None
        typical = statistics.median(known)
        by_name: dict[str, list[float]] = {}
        for trial in self.trials:
            if (each := trial.seconds_per_epoch) is not None:
                by_name.setdefault(trial.name.split(" ")[0], []).append(each)

        def left(trial: RunState) -> float:
            if trial.seconds_left is not None:
                return trial.seconds_left
            alike = by_name.get(trial.name.split(" ")[0])
            each = statistics.median(alike) if alike else typical
            return each * ((trial.epochs or 0) - trial.epoch)

        lasting = [left(t) for t in self.trials if not t.has_ended]
        epochs = [t.epochs for t in self.trials if t.epochs]
        drawn = max(0, (self.total or 0) - len(self.trials))
        to_draw = drawn * typical * (statistics.mean(epochs) if epochs else 0)
        return max((sum(lasting) + to_draw) / len(running), max(map(left, running)))

    @property
    def quiet(self) -> str:
        """What is odd about its job, in words; empty for nothing."""
        return "" if self.has_ended else _about(self.job)


def _about(job: Job | None) -> str:
    """What is odd about the job that writes a folder, in words; empty for nothing."""
    if job is None:
        return "no job is writing it: the same command again goes on"
    if job.has_ended:
        holder = job.holder
        return (
            f"its process, {holder.pid} on {holder.host}, has ended: the same command again goes on"
        )
    if job.age is not None and job.age > LEASE_S:
        return f"its job has not said for {lasting(job.age)} that it lives"
    return ""


def _job_at(url: str, times: Mapping[str, float]) -> Job | None:
    if (holder := holder_of(url)) is None:
        return None
    renewed = times.get(files.LOCK)
    age = None if renewed is None else max(0.0, time.time() - renewed)
    return Job(holder=holder, has_ended=bool(holder.ended()), age=age)


State = RunState | SweepState

Known = dict[str, RunState]
"""Trials that have ended, by folder: they are read once, however often a sweep is looked at."""


def read_state(url: str, known: Known | None = None) -> State:
    """How the run or the sweep at `url` stands.

    Args:
        url: A local path or any fsspec URL.
        known: Ended trials of earlier looks; takes those of this one.

    Raises:
        RunError: there is neither, or the run is damaged.
    """
    url = files.normalise(url)
    try:
        fs, path = files.located(url)
        if fs.isfile(path):
            raise RunError(f"{url} is a file: give the folder that it lies in")
        names = files.list_names(url)
    except OSError as error:
        raise RunError(f"{url} cannot be listed ({error.strerror or error})") from None
    if CONFIG in names:
        return read_run(url)
    if PLAN in names or SWEEP in names or TRIALS in names:
        return _read_sweep(url, names, {} if known is None else known)
    what = "is neither a run nor a sweep" if names else "does not exist, or is empty"
    raise RunError(
        f"{url} {what}: expected a folder with {CONFIG}, as jobs/train.py leaves it, or with "
        f"{PLAN}, as jobs/tune.py does; give the --out of one of them"
    )


def read_run(url: str, label: str = "") -> RunState:
    """How the run at `url` stands.

    Args:
        url: Its folder.
        label: What it is called; the experiment's name by default.

    Raises:
        RunError: a file of it is damaged or cannot be read.
    """
    config = read_config(url)
    summary = read_summary(url) or {}
    records = tuple(read_epochs(url))
    times = files.modified_times(url)
    job = _job_at(url, times)
    written = [when for name, when in times.items() if not files.is_transient(name)]
    status = str(summary.get("status", ""))
    if not status:
        status = "running" if job is not None and not job.has_ended else "unfinished"
    return RunState(
        url=url,
        name=label or str(config["name"]),
        status=status,
        error=str(summary.get("error", "")),
        cohort=str(config["cohort"].get("name", "")),
        epochs=_epochs_of(config, summary, records),
        records=records,
        summary=summary,
        age=max(0.0, time.time() - max(written)) if written else None,
        job=job,
        evaluations=tuple(_evaluations(url)),
    )


def _epochs_of(
    config: Mapping[str, Any], summary: Mapping[str, Any], records: tuple[Any, ...]
) -> int | None:
    """Maximum number of epochs; None for what learns without."""
    if not records and summary.get("epochs") == 0 and summary.get("status") == "finished":
        return None
    if not records:
        # Here, since it loads NumPy, and only who has no epoch yet has to be asked.
        from uadray.config import Experiment, from_json, learns

        with suppress(Exception):  # of another version: as if it had epochs
            if not learns(from_json(Experiment, config["experiment"])):
                return None
    fit = config["experiment"].get("fit")
    epochs = fit.get("epochs") if isinstance(fit, dict) else None
    return epochs if isinstance(epochs, int) else None


def _evaluations(url: str) -> list[tuple[str, Mapping[str, Any]]]:
    evaluations: list[tuple[str, Mapping[str, Any]]] = []
    with suppress(OSError):
        for cohort in evaluated_on(url):
            metrics: Any = {}
            with suppress(RunError):  # the report names what is damaged
                metrics = (read_object(place(url, cohort)) or {}).get("metrics")
            evaluations.append((cohort, metrics if isinstance(metrics, dict) else {}))
    return evaluations


def _read_sweep(url: str, names: list[str], known: Known) -> SweepState:
    plan = (read_object(files.join(url, PLAN)) if PLAN in names else None) or {}
    record = (read_object(files.join(url, SWEEP)) if SWEEP in names else None) or {}
    objective = plan.get("objective") or record.get("objective") or {}
    uses_labels = bool(objective.get("uses_labels"))
    varied = [str(path) for path in plan.get("varied") or record.get("varied") or ()]
    planned = {str(trial["run"]): trial for trial in plan.get("trials", ())}
    # A member of a population is where its newest generation is.
    where = _members(url) if POPULATION in names else {}
    where |= {folder: folder for folder in _folders(url, TRIALS)}
    trials = []
    for relative in dict.fromkeys([*planned, *where]):
        trial = planned.get(relative, {})
        if relative not in where:
            trials.append(_waiting(files.join(url, relative), trial))
            continue
        state = _read_trial(files.join(url, where[relative]), trial, varied, known)
        if where[relative] != relative and state.status in ("finished", "stopped"):
            # Another generation follows.
            state = replace(state, status="running", summary={})
        trials.append(state)
    return SweepState(
        url=url,
        trials=tuple(trials),
        total=plan.get("total", len(record["trials"]) if "trials" in record else None),
        head=str(objective.get("head") or objective.get("name") or "healthy L1"),
        sign=int(objective.get("sign", -1 if uses_labels else 1)),
        uses_labels=uses_labels,
        has_ended=bool(plan["has_ended"]) if "has_ended" in plan else bool(record),
        job=_job_at(url, files.modified_times(url)),
    )


def _folders(url: str, *within: str) -> list[str]:
    """Folders in one of a sweep's, by their path from the sweep's own."""
    try:
        names = files.list_names(files.join(url, *within))
    except OSError as error:
        raise RunError(f"{url} cannot be listed ({error.strerror or error})") from None
    return ["/".join([*within, name]) for name in names if not name.startswith(".")]


def _members(url: str) -> dict[str, str]:
    """Newest generation of each member of the populations, by where its last one will be."""
    newest = {}
    for population in _folders(url, POPULATION):
        name = population.rpartition("/")[2]
        for folder in sorted(_folders(url, POPULATION, name)):
            newest[f"{TRIALS}/{name}-{folder.rpartition('-')[2]}"] = folder
    return newest


def _waiting(url: str, trial: Mapping[str, Any]) -> RunState:
    name = _label(str(trial.get("name", "")), trial.get("settings") or {})
    return RunState(url=url, name=name, status="waiting", epochs=trial.get("epochs"))


def _read_trial(url: str, trial: Mapping[str, Any], varied: list[str], known: Known) -> RunState:
    if url in known:
        return known[url]
    settings = trial.get("settings")
    try:
        if settings is None:
            config = read_config(url)
            settings = {path: _at(config["experiment"], path) for path in varied}
            trial = {"name": config["name"]}
        label = _label(str(trial.get("name", "")), settings)
        state = read_run(url, label)
        # A generation of a population has fewer than the trial.
        state = replace(state, epochs=trial.get("epochs", state.epochs))
    except RunError as error:
        name = url.rpartition("/")[2]
        if not {CONFIG, SUMMARY, EPOCHS} & set(files.list_names(url)):
            # Its folder is just being made.
            return _waiting(url, {"name": name} | dict(trial))
        return RunState(url=url, name=name, status="damaged", error=str(error))
    if state.status in ("finished", "stopped"):
        known[url] = state
    return state


def _at(values: Any, path: str) -> Any:
    for part in path.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def _label(name: str, settings: Mapping[str, Any]) -> str:
    parts = [f"{p.rpartition('.')[2]}={v}" for p, v in settings.items() if v is not None]
    return " ".join([name, *parts])


def lasting(seconds: float) -> str:
    """How long something has lasted, in the unit that suits it."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.0f} h"
    return f"{seconds / 86400:.0f} days"
