"""The sweep on Ray Tune: each trial an experiment, each experiment a run folder.

The run folders are the sweep's only state. The same command again finds finished trials in theirs
and goes on with the others from their newest checkpoint, whatever Tune itself remembers.
"""

import logging
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import ray
import torch
from ray import tune
from rich.console import Console

from uadray import cluster, files
from uadray.config import VAE, Experiment, from_json, to_json
from uadray.errors import ConfigError, UadrayError
from uadray.store import Cohort
from uadray.stream import READ_CPUS
from uadray.train.distributed import ScaleConfig, conclude_facts, fit
from uadray.train.run import Run
from uadray.tune.space import Space, flat, trial_name
from uadray.tune.watch import Watch

OBJECTIVE = "validation/reconstruction"
"""What trials are compared by: healthy reconstruction, as the paper chooses (section 2.3)."""


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """How trials are scheduled, and what each takes of the cluster."""

    scheduler: Literal["all", "asha"] = "all"
    """`all` fits every trial to its last epoch; `asha` stops those early whose healthy
    reconstruction is behind at the same epoch (Li et al. 2020)."""
    search: Literal["grid", "random", "optuna"] = "grid"
    """`grid` takes every combination; the others draw `max_trials` of them, `optuna` by what
    earlier ones gave (`pip install -e '.[optuna]'`)."""
    max_trials: int = 0
    """Most trials, baselines apart; 0 takes all."""
    max_hours: float = 0
    """Hours after which no trial goes on; the same command continues. 0 sets no limit."""
    cpus_per_trial: float = 1.0
    """Logical CPUs of a trial, its reading included, and with them its threads."""
    gpus_per_trial: float = 0.0
    """GPUs of a trial; a fraction shares one."""
    workers_per_trial: int = 1
    """More than one fits each trial by DDP under Ray Train, `cpus_per_trial` for each worker."""
    max_failures: int = 1
    """How often a failing trial is tried again before it is recorded as failed."""
    grace_epochs: int = 5
    """Epochs before ASHA may stop a trial."""
    reduction: float = 3
    """ASHA lets about one trial of so many go on at each rung."""
    seed: int = 0
    """Of random and Optuna search."""

    def __post_init__(self) -> None:
        if self.cpus_per_trial < 2 * READ_CPUS:
            raise ConfigError(
                f"sweep.cpus_per_trial must be >= {2 * READ_CPUS}, was {self.cpus_per_trial}"
            )
        if self.workers_per_trial < 1 or self.max_failures < 0 or self.max_trials < 0:
            raise ConfigError(
                "sweep: workers_per_trial must be >= 1, max_failures and max_trials >= 0"
            )
        if self.grace_epochs < 1 or self.reduction <= 1 or self.max_hours < 0:
            raise ConfigError("sweep: grace_epochs must be >= 1, reduction > 1 and max_hours >= 0")
        if self.search != "grid" and not self.max_trials:
            raise ConfigError(f"sweep.search {self.search!r} needs --sweep.max-trials")


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


def sweep(
    space: Space,
    cohort: Cohort,
    url: str,
    *,
    config: SweepConfig | None = None,
    console: Console | None = None,
) -> list[Outcome]:
    """Fit every trial of a space on a healthy cohort.

    A trial that fails is tried again, then recorded, and never ends the sweep. Called again with
    the same space, it repeats no finished trial and continues the others.

    Args:
        space: What is compared.
        cohort: All trials are fitted on it.
        url: Folder of the sweep, local or any fsspec URL; run folders lie in its `runs/`.
        config: Scheduling.
        console: Where the state is shown; standard error by default.

    Returns:
        Every trial, in the order of the space.

    Raises:
        ConfigError: the space is empty or does not fit the cluster.
    """
    config = config or SweepConfig()
    drawn = None if config.search != "optuna" else space
    trials = fixed_trials(space, config)
    return fit_trials(
        trials, cohort, url, config=config, varied=space.varied, drawn=drawn, console=console
    )


def fit_trials(
    trials: Sequence[Experiment],
    cohort: Cohort,
    url: str,
    *,
    config: SweepConfig | None = None,
    varied: Sequence[str] = (),
    drawn: Space | None = None,
    console: Console | None = None,
) -> list[Outcome]:
    """Fit given trials, and others that Optuna draws from a space; otherwise as `sweep`.

    Args:
        trials: What is fitted in any case.
        cohort: All trials are fitted on it.
        url: Folder of the sweep; run folders lie in its `runs/`.
        config: Scheduling.
        varied: Settings that tell the trials apart, as paths into the experiment.
        drawn: Where Optuna draws `config.max_trials` more from.
        console: Where the state is shown; standard error by default.
    """
    config, url = config or SweepConfig(), files.normalise(url)
    cluster.connect(dashboard=config.workers_per_trial > 1)
    job = _Job(cohort=cohort, url=url, config=config, varied=tuple(varied), console=console)
    left = [t for t in trials if _status(run_url(url, t)) not in _ENDED]
    if left and config.scheduler == "asha":
        # It judges by all trials that have epochs; those that have ended only tell it again.
        learned = [t for t in trials if isinstance(t.method, VAE)]
        job.fit(learned)
        left = [t for t in left if t not in learned]
    if left:
        replace(job, config=replace(config, scheduler="all")).fit(left)
    if drawn:
        trials = list(dict.fromkeys([*job.draw(drawn), *trials]))
    outcomes = [_outcome(run_url(url, trial), trial) for trial in trials]
    record = {
        "varied": list(varied),
        "config": to_json(config),
        "cohort": {"url": cohort.url, "name": cohort.name, "fingerprint": cohort.fingerprint},
        "trials": [
            {"run": o.url, "settings": flat(o.experiment), "status": o.status, "error": o.error}
            for o in outcomes
        ],
    }
    files.write_json(files.join(url, "sweep.json"), record)
    return outcomes


def fixed_trials(space: Space, config: SweepConfig) -> list[Experiment]:
    """The trials that are known beforehand: all of them but those that Optuna draws.

    `max_trials` counts trials that learn by gradient; the plain baselines come beside them.

    Raises:
        ConfigError: the space is empty.
    """
    trials = space.trials()
    if not trials:
        raise ConfigError("the space holds no trial: give it experiments and seeds")
    plain = [t for t in trials if not isinstance(t.method, VAE)]
    learned = [t for t in trials if isinstance(t.method, VAE)]
    if config.search == "optuna":
        learned = []
    elif config.search == "random":
        order = np.random.default_rng(config.seed).permutation(len(learned))
        learned = [learned[i] for i in order]
    if config.max_trials:
        learned = learned[: config.max_trials]
    return learned + plain


def run_url(url: str, trial: Experiment) -> str:
    """The run folder of a trial in the sweep at `url`."""
    return files.join(url, "runs", trial_name(trial))


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One sweep on one cluster."""

    cohort: Cohort
    url: str
    config: SweepConfig
    varied: tuple[str, ...]
    console: Console | None

    def fit(self, trials: Sequence[Experiment]) -> None:
        """Fit trials side by side."""
        space = {"trial": tune.grid_search([to_json(t) for t in trials])}
        most = max(t.fit.epochs for t in trials)
        self._run(len(trials), most, None, param_space=space)

    def draw(self, space: Space) -> list[Experiment]:
        """Let Optuna draw trials; those that it drew before are in their folders, at no cost."""
        try:
            import optuna
            from ray.tune.search.optuna import OptunaSearch
        except ImportError:
            raise ConfigError("sweep.search optuna needs: pip install -e '.[optuna]'") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        choices: dict[str, optuna.distributions.BaseDistribution] = {
            path: optuna.distributions.CategoricalDistribution(values)
            for path, values in space.axes().items()
        }
        search = OptunaSearch(choices, metric=OBJECTIVE, mode="min", seed=self.config.seed)
        number, most = self.config.max_trials, max(t.fit.epochs for t in space.trials())
        return self._run(number, most, space, search=search, num_samples=number).experiments

    def _run(
        self,
        total: int,
        most_epochs: int,
        space: Space | None,
        *,
        param_space: dict[str, Any] | None = None,
        search: Any = None,
        num_samples: int = 1,
    ) -> Watch:
        config = self.config
        held, concurrent = _room(config)
        trainable = tune.with_parameters(
            _trial, cohort=self.cohort, url=self.url, settings=config, space=space
        )
        _quiet()
        watch = Watch(total=total, varied=self.varied, console=self.console)
        watch.reads(lambda point: _experiment(point, space))
        started = time.monotonic()
        # Tune's own records; the run folders hold all that counts, on storage that nodes share.
        with tempfile.TemporaryDirectory(prefix="uadray-tune-") as folder, watch:
            tune.Tuner(
                tune.with_resources(trainable, held),
                param_space=param_space,
                tune_config=tune.TuneConfig(
                    scheduler=_asha(config, most_epochs) if config.scheduler == "asha" else None,
                    search_alg=search,
                    num_samples=num_samples,
                    max_concurrent_trials=concurrent,
                    reuse_actors=config.workers_per_trial == 1,
                    time_budget_s=config.max_hours * 3600 or None,
                    trial_dirname_creator=lambda trial: trial.trial_id,
                ),
                run_config=tune.RunConfig(
                    name="sweep",
                    storage_path=folder,
                    verbose=0,
                    callbacks=[watch],
                    failure_config=tune.FailureConfig(max_failures=config.max_failures),
                ),
            ).fit()
        took = time.monotonic() - started
        out_of_time = bool(config.max_hours) and took >= config.max_hours * 3600
        _record_ends(watch, self.url, stopped=config.scheduler == "asha" and not out_of_time)
        return watch


def _room(config: SweepConfig) -> tuple[dict[str, float], int]:
    """What a trial's actor holds, and how many run at a time.

    An actor holds less than its trial's share: the rest reads. Trials that held all CPUs would
    wait for their own read tasks for ever.
    """
    resources = ray.cluster_resources()
    cpus, gpus = resources.get("CPU", 0), resources.get("GPU", 0)
    each = config.cpus_per_trial * config.workers_per_trial
    if each > cpus or config.gpus_per_trial > gpus:
        raise ConfigError(
            f"a trial takes {each:g} CPUs and {config.gpus_per_trial:g} GPUs, the cluster has "
            f"{cpus:g} and {gpus:g}: lower --sweep.cpus-per-trial or --sweep.workers-per-trial"
        )
    concurrent = int(cpus // each)
    if config.gpus_per_trial:
        concurrent = min(concurrent, int(gpus // config.gpus_per_trial))
    if config.workers_per_trial > 1:
        return {"CPU": 0.01}, concurrent
    return {"CPU": config.cpus_per_trial - READ_CPUS, "GPU": config.gpus_per_trial}, concurrent


def _asha(config: SweepConfig, most_epochs: int) -> tune.schedulers.ASHAScheduler:
    return tune.schedulers.ASHAScheduler(
        # The epoch, not the number of reports: a trial that is taken up again reports anew.
        time_attr="epoch",
        # One more than there are: at the last epoch the trial itself ends, as finished.
        max_t=most_epochs + 1,
        grace_period=config.grace_epochs,
        reduction_factor=config.reduction,
        metric=OBJECTIVE,
        mode="min",
    )


def _quiet() -> None:
    """Leave telling to `Watch`."""
    for name in ("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "TUNE_DISABLE_STRICT_METRIC_CHECKING"):
        # The second: a trial that has no epochs, or failed, tells no reconstruction.
        os.environ.setdefault(name, "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # It misses Tune's own result files, which nothing here reads.
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)


def _trial(
    config: dict[str, Any], *, cohort: Cohort, url: str, settings: SweepConfig, space: Space | None
) -> None:
    """What an actor does for one trial."""
    experiment = _experiment(config, space)
    folder = run_url(url, experiment)
    if settings.workers_per_trial == 1:
        torch.set_num_threads(max(1, int(settings.cpus_per_trial)))
    ended = _status(folder) in _ENDED
    # A trial that was begun before tells the scheduler again how it went.
    for record in Run.open(folder).metrics() if files.exists(folder + "/config.json") else ():
        tune.report(_told(record, folder))
    if ended:
        return
    scale = ScaleConfig(
        num_workers=settings.workers_per_trial,
        cpus_per_worker=settings.cpus_per_trial - READ_CPUS,
        use_gpu=settings.gpus_per_trial > 0,
    )
    told = {"run": folder}
    try:
        fit(experiment, cohort, folder, scale=scale, report=lambda r: tune.report(_told(r, folder)))
    except UadrayError as error:
        # It would come again each time; its run folder has recorded it.
        told["error"] = f"{type(error).__name__}: {error}"
    if told.keys() > {"run"} or not Run.open(folder).metrics():
        tune.report(told)


def _experiment(config: dict[str, Any], space: Space | None) -> Experiment:
    if space is None:
        return from_json(Experiment, config["trial"])
    return space.build(config)


def _told(record: dict[str, Any], folder: str) -> dict[str, Any]:
    return {"epoch": record["epoch"], OBJECTIVE: record[OBJECTIVE], "run": folder}


_ENDED = ("finished", "stopped")
"""States of a run that no sweep goes on with."""


def _status(folder: str) -> str:
    if not files.exists(files.join(folder, "config.json")):
        return "unfinished"
    return (Run.open(folder).summary or {}).get("status", "unfinished")


def _record_ends(watch: Watch, url: str, *, stopped: bool) -> None:
    """Leave a summary where a trial could not: it was stopped, or its process died for good."""
    for experiment, error in watch.ended.items():
        folder = run_url(url, experiment)
        if _status(folder) != "unfinished" or not files.exists(folder + "/config.json"):
            continue
        run = Run.open(folder)
        if error:
            run.finish({"status": "failed", "error": error, **conclude_facts(run)})
        elif stopped:
            run.finish({"status": "stopped", **conclude_facts(run)})


def _outcome(folder: str, experiment: Experiment) -> Outcome:
    if not files.exists(files.join(folder, "config.json")):
        return Outcome(experiment=experiment, url=folder, status="unfinished")
    summary = Run.open(folder).summary or {}
    return Outcome(
        experiment=experiment,
        url=folder,
        status=summary.get("status", "unfinished"),
        error=summary.get("error", ""),
    )
