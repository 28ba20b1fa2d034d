"""How a sweep is run: its scheduler, its search, its objective, its budget, and what a trial takes.

All of it decides which trials there are and when they end; none of it decides what one trial gives.
"""

from dataclasses import dataclass
from typing import Literal

from uadray.data.settings import READ_CPUS
from uadray.device import Device, gpus_each
from uadray.errors import ConfigError
from uadray.methods.settings import check_finite

RECONSTRUCTION = "validation/reconstruction"
"""The record of an epoch that healthy reconstruction is under."""

ObjectiveName = Literal["reconstruction", "dice", "auprc"]
"""What trials are compared by."""

_METRICS = {"dice": "dice_d", "auprc": "auprc"}
"""Keys of the metrics behind them."""

USES_LABELS = "uses labels"
"""Stands wherever trials were compared by lesion masks."""


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """How trials are scheduled, and what each takes of the cluster."""

    scheduler: Literal["all", "asha", "pbt"] = "all"
    """`all` fits every trial to its last epoch; `asha` stops those early whose objective is behind
    at the same epoch (Li et al. 2020); `pbt` fits populations whose last members take over the
    state of the first and change its settings (Jaderberg et al. 2017)."""
    search: Literal["grid", "random", "optuna"] = "grid"
    """`grid` takes every combination; the others draw `max_trials` of them, `optuna` by what
    earlier ones gave (`pip install -e '.[optuna]'`)."""
    objective: ObjectiveName = "reconstruction"
    """`reconstruction` of healthy validation volumes, which needs no label (Bengs 2021, section
    2.3). `dice` and `auprc` are of the threshold part of `labelled`, and use its lesion masks."""
    labelled: str = ""
    """A sealed cohort with lesions, for an objective that uses labels. Its test part is never
    read."""
    max_trials: int = 0
    """Maximum number of trials, baselines apart; 0 takes all."""
    max_hours: float = 0
    """Hours after which no trial goes on; the same command continues. 0 sets no limit."""
    cpus_per_trial: float = 1.0
    """Logical CPUs of a trial, its reading included, and with them its threads."""
    device: Device = "auto"
    """`cuda` fits on a GPU for each worker of a trial, `cpu` on none; `auto` as `gpus_per_trial`
    says."""
    gpus_per_trial: float = 0.0
    """GPUs of a trial; a fraction shares one. Of a trial by several workers, one for each."""
    workers_per_trial: int = 1
    """More than one fits each trial by DDP under Ray Train, `cpus_per_trial` for each worker."""
    max_failures: int = 1
    """How often a failing trial is tried again before it is recorded as failed."""
    grace_epochs: int = 5
    """Epochs before ASHA may stop a trial."""
    reduction: float = 3
    """ASHA lets about one trial in this many go on at each rung."""
    population: int = 8
    """Members of a population."""
    interval: int = 10
    """Epochs between two looks at a population."""
    quantile: float = 0.25
    """Share of a population that is replaced at each look, and share that it is replaced from."""
    allow_mismatch: bool = False
    """Take lesioned cohorts of another modality or preparation than the healthy one, or with people
    that, by their ids, were learned from; every table says so."""
    seed: int = 0
    """Of random and Optuna search, and of what a population draws."""

    def __post_init__(self) -> None:
        check_finite(self, "sweep.")
        if self.gpus_per_trial < 0 or self.seed < 0:
            raise ConfigError(
                "sweep: gpus_per_trial and seed must be >= 0, were "
                f"{self.gpus_per_trial:g} and {self.seed}"
            )
        if self.cpus_per_trial < 2 * READ_CPUS:
            raise ConfigError(
                f"sweep.cpus_per_trial must be >= {2 * READ_CPUS}, was {self.cpus_per_trial}"
            )
        if self.workers_per_trial < 1 or self.max_failures < 0 or self.max_trials < 0:
            raise ConfigError(
                "sweep: workers_per_trial must be >= 1, max_failures and max_trials >= 0"
            )
        self._check_gpus()
        if self.grace_epochs < 1 or self.reduction <= 1 or self.max_hours < 0:
            raise ConfigError("sweep: grace_epochs must be >= 1, reduction > 1 and max_hours >= 0")
        if self.search != "grid" and not self.max_trials:
            raise ConfigError(f"sweep.search {self.search!r} needs --sweep.max-trials")
        self._check_population()
        if self.uses_labels != bool(self.labelled):
            raise ConfigError(
                f"sweep.objective {self.objective!r} "
                + (
                    "needs --sweep.labelled, a cohort with lesions"
                    if self.uses_labels
                    else "uses no label: drop --sweep.labelled, or choose dice or auprc"
                )
            )

    def _check_gpus(self) -> None:
        workers, gpus = self.workers_per_trial, self.gpus_per_trial
        if workers > 1 and gpus not in (0, workers):
            raise ConfigError(
                f"sweep: {workers} workers of a trial take a GPU each: gpus_per_trial must be "
                f"{workers}, or 0 for none, was {gpus:g}"
            )
        gpus_each(self.device, gpus / workers, "sweep.gpus_per_trial")

    @property
    def gpus(self) -> float:
        """GPUs of a trial, over all of its workers."""
        return self.gpus_per_trial or self.workers_per_trial * float(self.device == "cuda")

    @property
    def place(self) -> Device:
        """Where trials compute, and where those that finished are scored."""
        return "cuda" if self.gpus else "cpu"

    def _check_population(self) -> None:
        if self.scheduler == "pbt" and (self.search != "grid" or self.max_trials):
            raise ConfigError(
                "sweep.scheduler pbt draws its own settings: choose their number by "
                "--sweep.population, and leave --sweep.search and --sweep.max-trials out"
            )
        if self.population < 2 or self.interval < 1 or not 0 < self.quantile <= 0.5:
            raise ConfigError(
                "sweep: population must be >= 2, interval >= 1 and quantile in (0, 0.5]"
            )

    @property
    def uses_labels(self) -> bool:
        """Whether lesion masks decide which trials go on, or which is best."""
        return self.objective != "reconstruction"

    @property
    def head(self) -> str:
        """The objective as tables name it."""
        if not self.uses_labels:
            return "healthy L1"
        return f"{self._metric()} ({USES_LABELS})"

    @property
    def sign(self) -> int:
        """What the objective is multiplied with so that less is better."""
        return -1 if self.uses_labels else 1

    def describe(self) -> str:
        """In words, how trials are compared."""
        if not self.uses_labels:
            return "trials are compared by the reconstruction of healthy volumes, without a label"
        cohort = self.labelled.rstrip("/").rsplit("/", 1)[-1].removesuffix(".zarr")
        return (
            f"trials are compared by {self._metric()} on the threshold part of {cohort}: this "
            f"{USES_LABELS}"
        )

    def _metric(self) -> str:
        """The metric of an objective that uses labels, as tables name it."""
        # Here, since the table computes, and settings are imported for help texts.
        from uadray.metrics.table import METRICS

        return METRICS[_METRICS[self.objective]].head
