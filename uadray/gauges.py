"""What a running job measures, as gauges for Prometheus; every node of a cluster exports its own.

Ray puts `ray_` before each name and serves them on the node's metrics port. It drops what was not
set for two of its reports (20 s by default), so that a thread sets all of them again as long as
what they are of goes on: an epoch may last hours. What has ended soon leaves the export.

A gauge takes a new value after an epoch, when a trial starts or ends, and within an epoch at most
once a second: a step costs a clock reading. Where no Ray runs in this process, nothing happens.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")

EVERY_S = 1.0
"""Seconds between two new values of a gauge within an epoch, at least."""

REFRESH_S = 5.0
"""Seconds after which a value is set again; less than the time between two of Ray's reports."""


@dataclass(frozen=True)
class Gauge:
    """One of them."""

    help: str
    """Unit and meaning."""
    tags: tuple[str, ...]
    """What tells its values apart."""


_FIT = ("run", "trial", "experiment", "cohort")

GAUGES: Mapping[str, Gauge] = {
    "uadray_epoch": Gauge("Epochs that a fit has done", _FIT),
    "uadray_epochs": Gauge("Maximum number of epochs of a fit", _FIT),
    "uadray_loss": Gauge("Losses of the last epoch, as metrics.jsonl names them", (*_FIT, "loss")),
    "uadray_epoch_seconds": Gauge("Seconds of the last epoch, its validation included", _FIT),
    "uadray_samples_per_second": Gauge(
        "Volumes, or slices of 2D methods, that a worker fits a second",
        (*_FIT, "worker"),
    ),
    "uadray_data_wait_share": Gauge(
        "Share of an epoch's time that a worker has waited for data, 0 to 1", (*_FIT, "worker")
    ),
    "uadray_volumes_scored": Gauge("Volumes that an evaluation has scored", ("cohort",)),
    "uadray_volumes_to_score": Gauge("Volumes that an evaluation scores in all", ("cohort",)),
    "uadray_trials": Gauge(
        "Trials of a sweep that are running, ended, failed or waiting", ("sweep", "state")
    ),
}
"""By name, without Ray's prefix."""


@cache
def _gauge(name: str, session: str) -> Any:
    """Ray's own, once for each Ray that this process joins."""
    from ray.util.metrics import Gauge as Exported

    return Exported(name, GAUGES[name].help, tag_keys=GAUGES[name].tags)


def set_gauge(name: str, value: float, tags: Mapping[str, str]) -> None:
    """Let Ray export a value; nothing where this process has joined no Ray.

    Args:
        name: One of `GAUGES`.
        value: Finite.
        tags: A value for each of its tags.
    """
    if "ray" not in sys.modules:
        return
    import ray

    if not ray.is_initialized():
        return
    # Ray takes no other letters, and a name of a folder ends no fit.
    texts = {k: tag.encode("ascii", "backslashreplace").decode() for k, tag in tags.items()}
    _gauge(name, ray.get_runtime_context().get_job_id()).set(value, tags=texts)


class Exported:
    """Gauges that are exported as long as the block lasts."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._refresh, name="uadray-gauges", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def set(self, name: str, value: float, **tags: str) -> None:
        """Set a gauge.

        Args:
            name: One of `GAUGES`.
            value: Finite.
            tags: A value for each of its tags.
        """
        with self._lock:
            self._values[name, tuple(tags.items())] = value
        set_gauge(name, value, tags)

    def _refresh(self) -> None:
        while not self._ended.wait(REFRESH_S):
            with self._lock:
                values = list(self._values.items())
            for (name, tags), value in values:
                set_gauge(name, value, dict(tags))


@dataclass(frozen=True, kw_only=True)
class FitGauges:
    """Those of one worker of a fit."""

    exported: Exported
    """Where they are set."""
    tags: Mapping[str, str]
    """Run, trial, experiment and cohort."""
    rank: int
    """Of the worker; the first one sets what is of all of them."""

    def start(self, epochs: int) -> None:
        """Say how many epochs there are."""
        if self.rank == 0:
            self.exported.set("uadray_epochs", epochs, **self.tags)

    def counted(
        self, train: Callable[[int], Iterable[T]], size: Callable[[T], int]
    ) -> Callable[[int], Iterator[T]]:
        """The same batches of each epoch; samples and waits are measured as they pass.

        Args:
            train: Batches of an epoch.
            size: Samples in a batch.
        """

        def epoch(number: int) -> Iterator[T]:
            batches = iter(train(number))
            start = shown = asked = time.perf_counter()
            waited, samples = 0.0, 0
            for batch in batches:
                waited += time.perf_counter() - asked
                yield batch
                samples += size(batch)
                asked = time.perf_counter()
                if asked - shown >= EVERY_S:
                    shown = asked
                    self._rates(samples, waited, asked - start)
            self._rates(samples, waited, time.perf_counter() - start)

        return epoch

    def record(self, record: Mapping[str, Any]) -> None:
        """Take the record of an epoch."""
        self.exported.set("uadray_epoch", record["epoch"], **self.tags)
        self.exported.set("uadray_epoch_seconds", record["seconds"], **self.tags)
        for name, value in record.items():
            if name.startswith(("train/", "validation/")) and value is not None:
                self.exported.set("uadray_loss", float(value), **self.tags, loss=name)

    def _rates(self, samples: int, waited: float, seconds: float) -> None:
        if seconds > 0:
            tags = {**self.tags, "worker": str(self.rank)}
            self.exported.set("uadray_samples_per_second", samples / seconds, **tags)
            self.exported.set("uadray_data_wait_share", waited / seconds, **tags)


@contextmanager
def fit_gauges(run: str, *, experiment: str, cohort: str, rank: int) -> Iterator[FitGauges]:
    """Gauges of a worker while its fit lasts.

    Args:
        run: URL of the run folder.
        experiment: Name.
        cohort: Name.
        rank: Of the worker.
    """
    trial = run.rstrip("/").rpartition("/")[2]
    tags = {"run": run, "trial": trial, "experiment": experiment, "cohort": cohort}
    with Exported() as exported:
        yield FitGauges(exported=exported, tags=tags, rank=rank)


@contextmanager
def scoring_gauges(
    report: Callable[[int], None], cohort: str, total: int
) -> Iterator[Callable[[int], None]]:
    """The same report of scored volumes, which sets the gauges of a cohort on the way.

    Args:
        report: Called with numbers of volumes that have just been scored.
        cohort: Name.
        total: Volumes to score.
    """
    done = 0

    def scored(count: int) -> None:
        nonlocal done
        done += count
        exported.set("uadray_volumes_to_score", total, cohort=cohort)
        exported.set("uadray_volumes_scored", done, cohort=cohort)
        report(count)

    with Exported() as exported:
        yield scored


def set_trials(exported: Exported, sweep: str, **counts: int) -> None:
    """Say how the trials of a sweep stand.

    Args:
        exported: As long as the sweep lasts.
        sweep: Name of its folder.
        counts: By state.
    """
    for state, count in counts.items():
        exported.set("uadray_trials", count, sweep=sweep, state=state)
