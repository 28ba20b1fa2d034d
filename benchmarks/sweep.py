"""What a sweep costs beside its fits, and what its report costs.

python -m benchmarks.sweep            about 8 minutes on 2 cores
python -m benchmarks.sweep --quick    small, to see that it runs; keeps nothing

A trial's end is when its summary was written, so that the time between two ends on one actor is a
whole trial: what its epochs took is fitting, the rest is overhead.
"""

import contextlib
import logging
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import ray
import ray.tune
from rich.console import Console

from benchmarks.harness import Row, main, timed
from benchmarks.made_sweep import made_cohort, write_sweep
from uadray import cluster
from uadray.config import FitConfig
from uadray.runs.folder import Run
from uadray.store import Cohort
from uadray.tune.space import Space
from uadray.tune.sweep import Outcome, SweepConfig, sweep

REPOSITORY = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is run."""

    short_trials: int = 10
    """Trials of one epoch, one after another, on reused actors."""
    fresh_trials: int = 5
    """The same with an actor each."""
    nested_trials: int = 4
    """The same with a group of two workers each."""
    trial_seconds: float = 60.0
    """Of the longer trials."""
    volumes: int = 72
    """Healthy, 8 of them to validate: the longer trials' epochs take about two seconds."""
    waves: int = 2
    """Longer trials on each slot."""
    report_trials: tuple[int, ...] = (20, 200)
    """Sizes of the reported sweeps."""
    num_resamples: int = 1000
    """Bootstrap resamples for the intervals of the reported sweeps."""


QUICK = Sizes(
    short_trials=3,
    fresh_trials=2,
    nested_trials=2,
    trial_seconds=3.0,
    volumes=24,
    waves=1,
    report_trials=(20,),
    num_resamples=50,
)


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A sweep and when its trials began and ended, in the order of their ends."""

    began: tuple[float, ...]
    ended: tuple[float, ...]
    fitting: tuple[float, ...]
    """Seconds of a trial's epochs."""
    epoch: float
    """Seconds of an epoch after the first, the median."""
    call: float
    """Seconds of the whole call."""

    @property
    def overheads(self) -> list[float]:
        """Of trials that follow another one on a single slot."""
        pairs = zip(self.ended, self.ended[1:], self.fitting[1:], strict=False)
        return [end - before - fitting for before, end, fitting in pairs]

    def share(self, slots: int) -> float:
        """Part of the slots' time, from the first trial's beginning to the last one's end."""
        return sum(self.fitting) / (slots * (max(self.ended) - min(self.began)))


def times_of(cohort: Cohort, folder: str, *, seeds: int, epochs: int, config: SweepConfig) -> Timed:
    """Run a sweep of `seeds` trials and read their times from the run folders."""
    space = Space(
        experiments=("3D-None",),
        latent_size=(32,),
        seeds=tuple(range(seeds)),
        baselines=False,
        fit=FitConfig(epochs=epochs, batch_size=8, precision="float32"),
    )
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        console = Console(file=nowhere)
        outcomes, call = timed(lambda: sweep(space, cohort, folder, config=config, console=console))
    if bad := [o for o in outcomes if o.status != "finished"]:
        raise SystemExit(f"{bad[0].url}: {bad[0].status}: {bad[0].error}")
    spans = sorted(map(_times, outcomes), key=lambda times: times[1])
    began, ended, seconds = zip(*spans, strict=True)
    return Timed(
        began=began,
        ended=ended,
        fitting=tuple(map(sum, seconds)),
        epoch=statistics.median(second for each in seconds for second in each[1:] or each),
        call=call,
    )


def _times(outcome: Outcome) -> tuple[float, float, list[float]]:
    folder = Path(outcome.url)
    seconds = [record["seconds"] for record in Run.open(outcome.url).metrics()]
    return _stamp(folder / "config.json"), _stamp(folder / "summary.json"), seconds


def _stamp(path: Path) -> float:
    return path.stat().st_mtime


@contextlib.contextmanager
def fresh_actors() -> Iterator[None]:
    """Let Tune start an actor for each trial."""
    config = ray.tune.TuneConfig

    def without_reuse(**settings: Any) -> Any:
        return config(**settings | {"reuse_actors": False})

    with mock.patch.object(ray.tune, "TuneConfig", without_reuse):
        yield


def overheads(cohort: Cohort, folder: str, sizes: Sizes) -> list[Row]:
    """Seconds of a trial beside its epochs: reused actors, fresh ones, groups of workers."""
    cpus = int(ray.cluster_resources()["CPU"])
    alone = SweepConfig(cpus_per_trial=float(cpus))
    nested = SweepConfig(cpus_per_trial=cpus / 2, workers_per_trial=2)
    made = {}

    def run(side: str, seeds: int, config: SweepConfig) -> None:
        made[side] = times_of(cohort, f"{folder}/{side}", seeds=seeds, epochs=1, config=config)

    run("reused", sizes.short_trials, alone)
    with fresh_actors():
        run("fresh", sizes.fresh_trials, alone)
    run("nested", sizes.nested_trials, nested)
    middle = {name: statistics.median(times.overheads) for name, times in made.items()}

    def overhead(what: str, side: str, goal: str = "") -> Row:
        count = len(made[side].overheads)
        detail = f"median over {count} trials after the first, one at a time"
        return Row(f"overhead of a {what}", middle[side], "s", goal=goal, detail=detail)

    def over(what: str, side: str, against: str) -> Row:
        value = middle[side] / middle["reused"]
        return Row(f"overhead of a {what}", value, "ratio", against=against)

    return [
        overhead("trial after the first", "reused", "<= 1"),
        Row("the same, the slowest", max(made["reused"].overheads), "s"),
        overhead("trial on an actor of its own", "fresh"),
        over("fresh actor over a reused one", "fresh", "reused actors"),
        overhead("trial of two workers under Ray Train", "nested"),
        over("nested trial over one in the actor", "nested", "one worker in the trial's actor"),
    ]


def shares(cohort: Cohort, folder: str, sizes: Sizes) -> list[Row]:
    """How much of the slots' time goes into epochs, with trials in parallel."""
    slots = int(ray.cluster_resources()["CPU"])
    config = SweepConfig(cpus_per_trial=1.0)
    probe = times_of(cohort, f"{folder}/probe", seeds=slots, epochs=4, config=config)
    epoch = probe.epoch
    epochs = max(2, round(sizes.trial_seconds / epoch))
    times = times_of(
        cohort, f"{folder}/long", seeds=slots * sizes.waves, epochs=epochs, config=config
    )
    took = statistics.mean(times.fitting)
    detail = f"{len(times.fitting)} trials of {took:.0f} s, {epochs} epochs, {slots} at a time"
    whole = sum(times.fitting) / (slots * times.call)
    return [
        Row(
            "share of the time in which workers fit",
            times.share(slots),
            "ratio",
            goal=">= 0.9",
            detail=detail,
        ),
        Row("the same, of the whole call of the sweep", whole, "ratio"),
    ]


def reports(folder: str, sizes: Sizes) -> list[Row]:
    """Seconds and size of a report, as `jobs/report.py` makes it in a process of its own."""
    rows = []
    for number in sizes.report_trials:
        runs = write_sweep(f"{folder}/made-{number}", number, num_resamples=sizes.num_resamples)
        out = Path(folder) / f"report-{number}.html"
        command = [sys.executable, "jobs/report.py", runs, "--out", str(out)]
        _, seconds = timed(partial(_run_quietly, command))
        largest = number == 200
        rows += [
            Row(
                f"report of {number} trials",
                seconds,
                "s",
                goal="<= 20" if largest else "",
                detail="the job from start to end, two cohorts",
            ),
            Row(
                f"report of {number} trials, size",
                out.stat().st_size / 1e6,
                "MB",
                goal="<= 15" if largest else "",
            ),
        ]
    return rows


def _run_quietly(command: list[str]) -> None:
    subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)


def rows(quick: bool, place: Path) -> list[Row]:
    """All rows."""
    sizes, folder = QUICK if quick else Sizes(), str(place)
    logging.getLogger("ray").setLevel(logging.WARNING)
    measured = reports(folder, sizes)
    # As for a sweep whose trials have several workers: the nested ones here need it.
    cluster.connect(dashboard=True)
    cohort = made_cohort(f"{folder}/healthy.zarr", sizes.volumes)
    # The first trial of all starts workers and reads libraries.
    times_of(cohort, f"{folder}/first", seeds=1, epochs=1, config=SweepConfig())
    return overheads(cohort, folder, sizes) + shares(cohort, folder, sizes) + measured


if __name__ == "__main__":
    main("sweep", rows)
