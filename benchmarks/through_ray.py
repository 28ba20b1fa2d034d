"""What Ray costs a fit and what it gives: overhead, stream, two workers.

Part of `python -m benchmarks.fit`. Each fit runs in a process of its own, which starts its own Ray
or none, so that no side bears what another one left running.
"""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from benchmarks.harness import Row, apart
from benchmarks.step import DEVICE, make, phantoms
from tests.tiny_cohorts import Volume, write_cohort
from uadray import cluster
from uadray.config import Experiment, experiment, with_fit
from uadray.data.batch import Batch
from uadray.data.sampling import epoch_groups
from uadray.data.stream import TrainingStream, read_rows
from uadray.memory import keep_freed_memory
from uadray.runs.checkpoint import CheckpointStore
from uadray.runs.folder import Run
from uadray.store import Cohort, Split, open_cohort
from uadray.train.fit import Fit
from uadray.train.group import fit_group
from uadray.train.job import fit
from uadray.train.settings import ScaleConfig

VALIDATION = 4
"""Validation volumes of a benchmark's cohort."""


def cube(
    epochs: int, batch_size: int, residency: Literal["device", "stream"] = "device"
) -> Experiment:
    """3D-Cube-n for a few epochs, kept once at their end."""
    return with_fit(
        experiment("3D-Cube-n"),
        epochs=epochs,
        batch_size=batch_size,
        checkpoint_every=epochs,
        residency=residency,
    )


def store(url: str, count: int, base: torch.Tensor) -> str:
    """A sealed cohort of `count` volumes like those of `base`, `VALIDATION` of them to validate."""

    def made(row: int) -> Volume:
        image = base[row % len(base)].numpy()
        return image, image > 0, None

    splits: list[Split] = ["validation"] * VALIDATION + ["train"] * (count - VALIDATION)
    return write_cohort(url, splits, made).url


def bare(wanted: Experiment, url: str, out: str, threads: int) -> None:
    """The fit loop on volumes in memory, with the same files written, without Ray."""
    torch.set_num_threads(threads)
    cohort = open_cohort(url)
    run = Run.create(out, wanted, cohort)
    rows = {split: cohort.rows(split) for split in ("train", "validation")}  # type: ignore[arg-type]
    images = {split: torch.from_numpy(read_rows(cohort, "image", r)) for split, r in rows.items()}
    size = wanted.fit.batch_size

    def train(epoch: int) -> Iterator[Batch]:
        groups = epoch_groups(rows["train"], cohort.shard, seed=wanted.fit.seed, epoch=epoch)
        order = np.concatenate(groups)
        for start in range(0, len(order), size):
            ids = order[start : start + size]
            place = np.searchsorted(rows["train"], ids)
            yield Batch(ids=torch.from_numpy(ids), images=images["train"][place])

    Fit(
        detector=make(wanted, cohort.shape[0]),
        experiment=wanted,
        train=train,
        validation=[
            Batch(ids=torch.from_numpy(rows["validation"].copy()), images=images["validation"])
        ],
        checkpoints=CheckpointStore(out, "bare"),
        device=DEVICE,
        log=run.write_metrics,
    ).run()


def in_process(wanted: Experiment, url: str, out: str, threads: int) -> None:
    """What `jobs/train.py` does with one worker."""
    torch.set_num_threads(threads)
    fit(wanted, open_cohort(url), out)


def group(wanted: Experiment, url: str, out: str, threads: int, workers: int = 1) -> None:
    """A DDP group under Ray Train, of one worker too."""
    import ray

    # Logical CPUs for the workers' threads and a read task, whatever the machine has.
    ray.init(address="local", num_cpus=workers * threads + 1, logging_level="warning")
    cluster.connect()
    cohort = open_cohort(url)
    run = Run.create(out, wanted, cohort)
    scale = ScaleConfig(
        num_workers=workers, cpus_per_worker=threads, use_gpu=torch.cuda.is_available()
    )
    fit_group(run, cohort, scale)


def epochs_of(side: Callable[..., None], *args: Any, **options: Any) -> tuple[float, list[float]]:
    """Run a fit in a process of its own.

    Returns:
        Seconds until its first epoch was recorded, and from each record to the next.
    """
    metrics = Path(args[2]) / "metrics.jsonl"
    ticks: list[float] = []
    done = threading.Event()

    def watch() -> None:
        # The file is replaced after each epoch; its time is exact, however late it is seen.
        while not done.wait(0.02):
            seen = metrics.stat().st_mtime if metrics.exists() else 0.0
            if seen and seen not in ticks:
                ticks.append(seen)

    watcher = threading.Thread(target=watch)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        pool.submit(time.time).result()
        start = time.time()
        watcher.start()
        try:
            pool.submit(side, *args, **options).result()
        finally:
            done.set()
            watcher.join()
    return ticks[0] - start, np.diff(ticks).tolist()


Way = Callable[[Experiment, str, str, int], None]


@dataclass(frozen=True)
class Epochs:
    """Seconds of one way to fit."""

    first: list[float]
    """Until the first epoch of each round was recorded, the process' start included."""
    later: list[list[float]]
    """Of each later epoch of each round."""

    @property
    def steady(self) -> float:
        """Seconds of an epoch after the first."""
        return median(chain.from_iterable(self.later))

    def slower_than(self, other: "Epochs") -> str:
        """In words."""
        rounds = ", ".join(
            f"{median(theirs) / median(ours):.3f}"
            for ours, theirs in zip(self.later, other.later, strict=True)
        )
        return (
            f"{self.steady:.2f} against {other.steady:.2f} s, medians of "
            f"{sum(map(len, self.later))} epochs after the first; of each round {rounds}"
        )


def fits_in_turn(
    sides: Mapping[str, Way], folder: str, url: str, *, epochs: int, rounds: int, threads: int
) -> dict[str, Epochs]:
    """Fit in each way in turn, round after round, with this many threads."""
    wanted = cube(epochs, 8)
    by_side = {name: Epochs([], []) for name in sides}
    for number in range(rounds):
        for name, side in sides.items():
            out = os.path.join(folder, f"{name}-{threads}-{number}".replace(" ", "-"))
            until, gaps = epochs_of(side, wanted, url, out, threads)
            by_side[name].first.append(until)
            by_side[name].later.append(gaps)
    return by_side


def overhead(folder: str, url: str, epochs: int, rounds: int) -> list[Row]:
    """Fits through Ray against the bare loop, in turn, on all cores and on all but one."""
    threads, size = torch.get_num_threads(), {"epochs": epochs, "rounds": rounds}
    sides: dict[str, Way] = {"bare loop": bare, "in process": in_process, "under Ray Train": group}
    on_all = fits_in_turn(sides, folder, url, threads=threads, **size)
    rows = [_against_bare(name, on_all, "") for name in ("in process", "under Ray Train")]
    if threads > 1:
        # Ray's processes wake up hundreds of times a second, and a thread that makes room for one
        # of them holds up those that compute with it: unless a core is free.
        two = {name: sides[name] for name in ("bare loop", "under Ray Train")}
        spare = fits_in_turn(two, folder, url, threads=threads - 1, **size)
        rows.append(_against_bare("under Ray Train", spare, ", a core left to Ray"))
    return rows + [
        Row(
            f"{name}, start-up",
            median(one.first) - one.steady,
            "s",
            detail="until the first epoch is recorded, less a later epoch",
        )
        for name, one in on_all.items()
    ]


def _against_bare(name: str, by_side: Mapping[str, Epochs], how: str) -> Row:
    ours, theirs = by_side[name], by_side["bare loop"]
    return Row(
        f"one worker {name}, epochs{how}",
        theirs.steady / ours.steady,
        "ratio",
        against="bare loop in a process without Ray",
        goal=">= 0.97",
        detail=ours.slower_than(theirs),
    )


def scaling(folder: str, url: str, epochs: int, batch_size: int) -> list[Row]:
    """The same global batch on one and on two workers of one thread each.

    Beside it what the hardware gives: two bare loops that know nothing of each other, on half the
    volumes and half the batch each, against one of them alone.
    """
    wanted = cube(epochs, batch_size)
    steady = {}
    for workers in (1, 2):
        out = os.path.join(folder, f"workers-{workers}")
        steady[workers] = median(epochs_of(group, wanted, url, out, 1, workers=workers)[1])
    half = with_fit(wanted, batch_size=batch_size // 2)

    def bare_loop(name: str) -> float:
        return median(epochs_of(bare, half, url, os.path.join(folder, name), 1)[1])

    alone = bare_loop("alone")
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(bare_loop, ("first-of-two", "second-of-two")))
    shape = open_cohort(url).shape
    return [
        Row(
            "two workers of one thread, efficiency",
            steady[1] / (2 * steady[2]),
            "ratio",
            against="one worker of one thread, the same global batch",
            goal=">= 0.9",
            detail=f"{steady[2]:.2f} against {steady[1]:.2f} s an epoch; batch {batch_size}, "
            f"{shape[0]}^3",
        ),
        Row(
            "two unrelated processes of one thread, efficiency",
            alone / max(both),
            "ratio",
            against="one of them alone",
            detail=f"{alone:.2f} against {both[0]:.2f} and {both[1]:.2f} s an epoch; what the "
            "cores give without any exchange",
        ),
    ]


class ShardDataset(IterableDataset):
    """What one would write with torch alone: each worker reads whole shards and permutes them."""

    def __init__(self, cohort: Cohort, batch_size: int) -> None:
        self._cohort, self._batch_size = cohort, batch_size
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __iter__(self) -> Iterator[torch.Tensor]:
        info = get_worker_info()
        assert info is not None
        rows = self._cohort.rows("train")
        groups = epoch_groups(rows, self._cohort.shard, seed=0, epoch=int(self.epoch))
        for group_rows in groups[info.id :: info.num_workers]:
            images = read_rows(self._cohort, "image", group_rows)
            for start in range(0, len(images), self._batch_size):
                yield torch.from_numpy(images[start : start + self._batch_size])


def streaming(url: str, epochs: int) -> list[Row]:
    """Volumes a second of our stream and of a DataLoader of two workers, in turn."""
    speeds = apart(_stream_speeds, url, epochs)
    middle = {name: median(values) for name, values in speeds.items()}
    ratios = [a / b for a, b in zip(speeds["stream"], speeds["loader"], strict=True)]
    return [
        Row(
            "stream",
            middle["stream"] / middle["loader"],
            "ratio",
            against="DataLoader of two workers on the same shards",
            goal=">= 1.0",
            detail=f"{middle['stream']:.0f} against {middle['loader']:.0f} volumes a second, "
            f"float16, medians of {len(ratios)} whole epochs in turn, of which the ratios are "
            f"{min(ratios):.2f} to {max(ratios):.2f}",
        )
    ]


def _stream_speeds(url: str, epochs: int) -> dict[str, list[float]]:
    cohort = open_cohort(url)
    dataset = ShardDataset(cohort, 32)
    # Its workers are forked, which must be before Ray has threads.
    loader = DataLoader(dataset, batch_size=None, num_workers=2, persistent_workers=True)
    num = sum(len(batch) for batch in loader)
    cluster.connect()
    # As the fit loop does on a CPU, which is what the stream feeds.
    keep_freed_memory()
    stream = TrainingStream(
        cohort, cohort.rows("train"), ndim=3, batch_size=32, seed=0, resident=False
    )
    speeds: dict[str, list[float]] = {"stream": [], "loader": []}
    for epoch in range(epochs + 1):
        start = time.perf_counter()
        seen = sum(len(batch.ids) for batch in stream.epoch(epoch))
        middle = time.perf_counter()
        dataset.epoch.fill_(epoch)
        assert seen == sum(len(batch) for batch in loader) == num
        if epoch:
            speeds["stream"].append(num / (middle - start))
            speeds["loader"].append(num / (time.perf_counter() - middle))
    return speeds


def streamed_fit(folder: str, url: str, epochs: int) -> list[Row]:
    """Volumes a second of a fit that streams each epoch from the store: for a GPU."""
    wanted = cube(epochs, 32, "stream")
    out = os.path.join(folder, "streamed")
    epochs_of(in_process, wanted, url, out, torch.get_num_threads())
    speed = median(r["samples_per_second"] for r in Run.open(out).metrics()[1:])
    return [Row("volumes streamed into a fit", speed, "volumes/s")]


def rows(quick: bool, folder: str) -> list[Row]:
    """All rows of this module."""
    size = 32 if quick else 64
    base = phantoms(64 if quick else 384, size, 8)
    few = store(os.path.join(folder, "few.zarr"), (32 if quick else 96) + VALIDATION, base)
    many = store(os.path.join(folder, "many.zarr"), 256 if quick else 1792, base)
    measured = overhead(folder, few, 3 if quick else 5, 1 if quick else 3)
    measured += streaming(many, 1 if quick else 9)
    if torch.cuda.is_available():
        measured += streamed_fit(folder, many, 2 if quick else 4)
    return measured


def two_workers(quick: bool, folder: str) -> list[Row]:
    """Rows of two workers against one; they need two GPUs, or none."""
    size = 32 if quick else 64
    url = store(os.path.join(folder, "few.zarr"), 64 + VALIDATION, phantoms(64, size, 8))
    return scaling(folder, url, 3 if quick else 5, 16 if quick else 32)
