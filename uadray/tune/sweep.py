"""The sweep on Ray Tune: each trial an experiment, each experiment a run folder.

The run folders are the sweep's only state. The same command again finds finished trials in theirs
and goes on with the others from their newest checkpoint, whatever Tune itself remembers.
"""

import logging
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from ray import tune
from rich.console import Console

from uadray import cluster, files
from uadray.config import Experiment, learns
from uadray.data.settings import READ_CPUS
from uadray.errors import CheckpointError, ConfigError, RunError
from uadray.evaluation.inputs import refuse
from uadray.lock import hold
from uadray.results import refuse_inside
from uadray.runs.folder import Run
from uadray.runs.learned import compare_cohorts
from uadray.runs.reading import SWEEP
from uadray.store import Cohort, open_cohort
from uadray.train.kept_group import free
from uadray.train.settings import TrackConfig
from uadray.train.summary import summarise
from uadray.train.track import prepared
from uadray.tune import population as pbt
from uadray.tune.asha import asha
from uadray.tune.live_table import Watch
from uadray.tune.optuna_search import OptunaDraws
from uadray.tune.settings import RECONSTRUCTION, SweepConfig
from uadray.tune.space import Space
from uadray.tune.trial import OBJECTIVE, read_task, run_trial
from uadray.tune.trials import (
    ENDED,
    Outcome,
    Task,
    check_cohort,
    fixed_trials,
    objective_of,
    outcome,
    reached,
    run_url,
    settled,
    status,
    write_plan,
    write_record,
)

__all__ = ["Outcome", "SweepConfig", "fit_trials", "fixed_trials", "run_url", "sweep"]


def sweep(
    space: Space,
    cohort: Cohort,
    url: str,
    *,
    config: SweepConfig | None = None,
    track: TrackConfig | None = None,
    console: Console | None = None,
    begin: Callable[[], None] = lambda: None,
) -> list[Outcome]:
    """Fit every trial of a space on a healthy cohort.

    A trial that fails is tried again, then recorded, and never ends the sweep. Called again with
    the same space, it repeats no finished trial and continues the others.

    Args:
        space: What is compared.
        cohort: All trials are fitted on it.
        url: Folder of the sweep, local or any fsspec URL; run folders lie in its `runs/`.
        config: Scheduling, objective, budget.
        track: Where else the epochs of trials are shown.
        console: Where the state is shown; standard error by default.
        begin: Called before the first trial, once the folder is ours.

    Returns:
        Every trial, in the order of the space; of a population its members, as they ended.

    Raises:
        ConfigError: the space is empty or does not fit the cluster or the scheduler.
        CheckpointError: the folder holds trials that were fitted on another cohort.
    """
    config = config or SweepConfig()
    trials = fixed_trials(space, config)
    searched = space if config.search == "optuna" or config.scheduler == "pbt" else None
    return fit_trials(
        trials,
        cohort,
        url,
        config=config,
        varied=space.varied,
        searched=searched,
        track=track,
        console=console,
        begin=begin,
    )


def fit_trials(
    trials: Sequence[Experiment],
    cohort: Cohort,
    url: str,
    *,
    config: SweepConfig | None = None,
    varied: Sequence[str] = (),
    searched: Space | None = None,
    track: TrackConfig | None = None,
    console: Console | None = None,
    begin: Callable[[], None] = lambda: None,
) -> list[Outcome]:
    """Fit given trials, and others that Optuna or a population finds; otherwise as `sweep`.

    Args:
        trials: What is fitted in any case.
        cohort: All trials are fitted on it.
        url: Folder of the sweep; run folders lie in its `runs/`.
        config: Scheduling, objective, budget.
        varied: Settings that tell the trials apart, as paths into the experiment.
        searched: Where Optuna draws `config.max_trials` from, or what populations search.
        track: Where else epochs are shown.
        console: Where the state is shown; standard error by default.
        begin: Called before the first trial, once the folder is ours.
    """
    config, url = config or SweepConfig(), files.normalise(url)
    groups: list[pbt.Population] = []
    if searched and config.scheduler == "pbt":
        groups = pbt.populations(searched, config)
        pbt.check_phases(groups, cohort.shape)
    job = _Job(
        cohort=cohort,
        url=url,
        config=config,
        varied=tuple(varied),
        labelled=_open_labelled(config, cohort),
        track=prepared(track or TrackConfig()),
        console=console,
    )
    if not files.exists(files.join(url, SWEEP)):
        refuse_inside(url, RunError)
    with hold(url):
        return _fit_held(job, trials, searched, groups, begin)


def _fit_held(
    job: "_Job",
    trials: Sequence[Experiment],
    searched: Space | None,
    groups: list[pbt.Population],
    begin: Callable[[], None],
) -> list[Outcome]:
    url, config, cohort = job.url, job.config, job.cohort
    check_cohort(url, cohort)
    files.remove_drafts(url, recursive=False)
    cluster.connect(dashboard=config.workers_per_trial > 1)
    cluster.check_readable(cohort.seal_url)
    cluster.check_shared(url)
    begin()
    tasks = [Task(experiment=t, url=run_url(url, t)) for t in trials]
    planned = [*tasks, *(m for group in groups for m in pbt.members_at_end(url, group))]
    to_draw = config.max_trials if searched and config.search == "optuna" else 0
    job.plan(planned, len(planned) + to_draw)
    left = [t for t in tasks if not settled(t.url, config)]
    if left and config.scheduler == "asha":
        # It judges by all trials that have epochs; those that have ended only tell it again.
        learned = [t for t in tasks if learns(t.experiment)]
        job.fit(learned, stops=True)
        left = [t for t in left if t not in learned]
    if left:
        job.fit(left)
    if searched and config.search == "optuna":
        drawn = job.draw(searched)
        tasks = list(dict.fromkeys([*drawn, *tasks]))
    outcomes = job.evolve(groups) if groups else []
    outcomes += [outcome(task.url, task.experiment, config) for task in tasks]
    write_record(url, outcomes, cohort, config, job.varied)
    job.plan(planned, len(outcomes), has_ended=True)
    return outcomes


def _drawn(place: str) -> list[dict[str, Any]]:
    """Points that were drawn before; none where there is no such file.

    Raises:
        RunError: it is damaged.
    """
    try:
        points = files.read_json(place)
        if not isinstance(points, list) or not all(isinstance(p, dict) for p in points):
            raise ValueError("no list of points")
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise RunError(f"{place} is damaged ({error}): restore it, or choose another --out") from (
            None
        )
    # JSON has no tuples, which lists of numbers are in a space.
    return [{k: tuple(v) if isinstance(v, list) else v for k, v in p.items()} for p in points]


def _open_labelled(config: SweepConfig, cohort: Cohort) -> Cohort | None:
    if not config.uses_labels:
        return None
    labelled = open_cohort(config.labelled)
    if not labelled.has_lesion or labelled.shape != cohort.shape:
        raise ConfigError(
            f"sweep.labelled {labelled.url} must hold lesions, on a grid of {cohort.shape}; it "
            f"has {'lesions' if labelled.has_lesion else 'none'} on {labelled.shape}"
        )
    labelled.rows("threshold")
    match = compare_cohorts(cohort, labelled)
    refuse(match, cohort.url, labelled.url, insist=config.allow_mismatch)
    return labelled


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One sweep on one cluster."""

    cohort: Cohort
    url: str
    config: SweepConfig
    varied: tuple[str, ...]
    labelled: Cohort | None
    track: TrackConfig
    console: Console | None
    started: float = field(default_factory=time.monotonic)

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.url.rpartition("/")[2]

    def plan(self, tasks: Sequence[Task], total: int, *, has_ended: bool = False) -> None:
        """Leave word of the trials, for `uadray status`."""
        write_plan(self.url, tasks, self.config, self.varied, total=total, has_ended=has_ended)

    @property
    def seconds_left(self) -> float | None:
        """Of the budget; None where there is none."""
        if not self.config.max_hours:
            return None
        return self.config.max_hours * 3600 - (time.monotonic() - self.started)

    @property
    def out_of_time(self) -> bool:
        """Whether no trial may go on."""
        left = self.seconds_left
        return left is not None and left <= 0

    def fit(self, tasks: Sequence[Task], *, stops: bool = False, what: str = "trials") -> None:
        """Fit tasks in parallel."""
        if self.out_of_time:
            return
        space = {"task": tune.grid_search([t.to_json() for t in tasks])}
        watch = Watch(
            total=len(tasks), varied=self.varied, config=self.config, what=what,
            sweep=self.name, console=self.console,
        )  # fmt: skip
        most = max(t.experiment.fit.epochs for t in tasks)
        scheduler = asha(self.config, most) if stops else None
        self._run(watch, None, param_space=space, scheduler=scheduler)

    def draw(self, space: Space) -> list[Task]:
        """Let Optuna draw trials; those that it drew before come first."""
        place = files.join(self.url, "drawn.json")
        points = _drawn(place)[: self.config.max_trials]
        tasks = [read_task(point, self.url, space) for point in points]
        if left := [t for t in tasks if not settled(t.url, self.config)]:
            self.fit(left)
        past = []
        for point, task in zip(points, tasks, strict=True):
            past.append((point, reached(task.url, self.config)))
        num = self.config.max_trials
        if len(past) >= num or self.out_of_time:
            return tasks

        def keep(point: dict[str, Any]) -> None:
            if point not in points:
                points.append(point)
                files.write_json(place, points)

        watch = Watch(
            total=num - len(past), varied=self.varied, config=self.config,
            sweep=self.name, console=self.console,
        )  # fmt: skip
        watch.on_point = keep
        search = OptunaDraws(
            space,
            metric=OBJECTIVE,
            seed=self.config.seed,
            past=past,
            num=num,
            value_of=lambda result: reached(str(result.get("run", "")), self.config),
        )
        scheduler = None
        if self.config.scheduler == "asha":
            most = max(t.fit.epochs for t in space.trials())
            scheduler = asha(self.config, most)
        self._run(watch, space, search=search, num_samples=num - len(past), scheduler=scheduler)
        return [*tasks, *(t for t in watch.tasks if t not in tasks)]

    def evolve(self, populations: Sequence[pbt.Population]) -> list[Outcome]:
        """Take all populations through their generations in parallel."""
        members = {p.name: pbt.begin(p) for p in populations}
        alive = list(populations)
        for generation in range(max(p.num_generations for p in populations)):
            alive = [p for p in alive if generation < p.num_generations]
            if generation:
                alive = [p for p in alive if self._advance(p, members)]
            tasks = [
                Task(
                    experiment=pbt.experiment_of(p, member),
                    url=pbt.lay(self.url, p, member, self.cohort),
                )
                for p in alive
                for member in members[p.name]
            ]
            for p in alive if generation else ():
                pbt.forget(self.url, p, generation - 1)
            failed = [t for t in tasks if status(t.url) == "failed"]
            if left := [t for t in tasks if t not in failed and not settled(t.url, self.config)]:
                number = f"{generation + 1} of {max(p.num_generations for p in populations)}"
                self.fit(left, what=f"members of generation {number}")
            if self.out_of_time or any(status(t.url) == "unfinished" for t in tasks):
                break
        return [
            self._end(p, number) for p in populations for number in range(self.config.population)
        ]

    def _advance(self, population: pbt.Population, members: dict[str, list[pbt.Member]]) -> bool:
        """Put the next generation in the place of the last; whether there is one."""
        losses: list[float | None] = []
        for m in members[population.name]:
            folder = pbt.folder_of(self.url, population, m.generation, m.number)
            try:
                run = Run.open(folder)
                summary, records = run.summary or {}, run.metrics()
            except RunError:
                losses.append(None)
                continue
            value = objective_of(summary, self.config)
            if records and not self.config.uses_labels:
                # As it stands, not as it once stood.
                value = records[-1].get(RECONSTRUCTION)
            failed = summary.get("status") not in ENDED or value is None
            losses.append(None if failed or value is None else self.config.sign * value)
        if all(loss is None for loss in losses):
            return False
        members[population.name] = pbt.advance(population, members[population.name], losses)
        return True

    def _end(self, population: pbt.Population, number: int) -> Outcome:
        """How a member stands: it has ended where its last generation has."""
        last = population.num_generations - 1
        folders = [pbt.folder_of(self.url, population, g, number) for g in range(last + 1)]
        started = [folder for folder in folders if Run.is_begun(folder)]
        experiment = population.base
        if started:
            with suppress(RunError):  # named in its outcome
                experiment = Run.open(started[-1]).experiment
        newest = outcome((started or folders)[-1], experiment, self.config)
        if newest.url != folders[-1] and newest.status in ENDED:
            return replace(newest, status="unfinished")
        return newest

    def _run(
        self,
        watch: Watch,
        space: Space | None,
        *,
        param_space: dict[str, Any] | None = None,
        search: Any = None,
        num_samples: int = 1,
        scheduler: Any = None,
    ) -> None:
        config, left = self.config, self.seconds_left
        is_group = config.workers_per_trial > 1
        held, concurrent = _room(config)
        trainable = tune.with_parameters(
            run_trial,
            cohort=self.cohort,
            url=self.url,
            settings=config,
            space=space,
            labelled=self.labelled,
            track=self.track,
            # Tune kills what has run out of time; groups of workers are asked to stop instead.
            deadline=time.time() + left if is_group and left is not None else None,
        )
        _quiet()
        watch.reads(lambda point: read_task(point, self.url, space))
        # Tune's own records; the run folders hold all that counts, on storage that nodes share.
        with tempfile.TemporaryDirectory(prefix="uadray-tune-") as folder, watch:
            tuner = tune.Tuner(
                tune.with_resources(trainable, held),
                param_space=param_space,
                tune_config=tune.TuneConfig(
                    scheduler=scheduler,
                    search_alg=search,
                    num_samples=num_samples,
                    max_concurrent_trials=concurrent,
                    reuse_actors=True,
                    time_budget_s=None if is_group else left,
                    trial_dirname_creator=lambda trial: trial.trial_id,
                ),
                run_config=tune.RunConfig(
                    name="sweep",
                    storage_path=folder,
                    verbose=0,
                    callbacks=[watch],
                    failure_config=tune.FailureConfig(max_failures=config.max_failures),
                ),
            )
            try:
                tuner.fit()
            finally:
                free(watch.reserved.values())
        _record_ends(watch, stopped=scheduler is not None and not self.out_of_time)


def _room(config: SweepConfig) -> tuple[dict[str, float], int]:
    """What a trial's actor holds, and how many run at a time.

    An actor holds less than its trial's share: the rest reads. Trials that held all CPUs would
    wait for their own read tasks for ever.
    """
    concurrent = at_a_time(list(zip(*cluster.room(), strict=True)), config)
    if config.workers_per_trial > 1:
        return {"CPU": 0.01}, concurrent
    return {"CPU": config.cpus_per_trial - READ_CPUS, "GPU": config.gpus}, concurrent


def at_a_time(nodes: Sequence[tuple[float, float]], config: SweepConfig) -> int:
    """How many trials run at a time.

    Args:
        nodes: Logical CPUs and GPUs of each node.
        config: What a trial takes.

    Raises:
        ConfigError: There is no room for one.
    """
    cpus, gpus = (sum(kind) for kind in zip(*nodes, strict=True))
    workers = config.workers_per_trial
    each = config.cpus_per_trial * workers
    concurrent = int(cpus // each)
    if config.gpus:
        # A worker has its CPUs beside its GPU, on one node.
        gpus_each = config.gpus / workers
        room = cluster.num_fitting(nodes, config.cpus_per_trial, gpus_each) // workers
        concurrent = min(concurrent, room)
    if concurrent < 1:
        raise ConfigError(
            f"a trial takes {each:g} CPUs and {config.gpus:g} GPUs, on nodes that have both where "
            f"it takes both; the cluster has {cpus:g} and {gpus:g}: lower --sweep.cpus-per-trial, "
            "--sweep.gpus-per-trial or --sweep.workers-per-trial"
        )
    return concurrent


def _quiet() -> None:
    """Leave telling to `Watch`."""
    for name in ("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "TUNE_DISABLE_STRICT_METRIC_CHECKING"):
        # The second: a trial that has no epochs, or failed, tells no reconstruction.
        os.environ.setdefault(name, "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # It misses Tune's own result files, which nothing here reads.
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)


def _record_ends(watch: Watch, *, stopped: bool) -> None:
    """Leave a summary where a trial could not: it was stopped, or its process died for good."""
    for task, error in watch.ended.items():
        if status(task.url) != "unfinished" or not Run.is_begun(task.url):
            continue
        # A damaged one is named in its outcome.
        with suppress(RunError, CheckpointError):
            run = Run.open(task.url)
            if error:
                run.finish({"status": "failed", "error": error, **summarise(run)})
            elif stopped:
                run.finish({"status": "stopped", **summarise(run)})
