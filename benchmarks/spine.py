"""Seconds and memory of each stage of the demo, and what fitting through Ray costs.

python -m benchmarks.spine            the demo's own size: about 10 minutes on 2 cores
python -m benchmarks.spine --quick    small, to see that it runs; keeps nothing
"""

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness import PeakMemory, Row, publish
from jobs import demo
from uadray import cluster
from uadray.batch import Batch
from uadray.config import Experiment, experiment, with_fit
from uadray.detectors import GradientDetector, build
from uadray.order import epoch_groups
from uadray.store import Cohort, open_cohort
from uadray.train.checkpoint import CheckpointStore
from uadray.train.distributed import ScaleConfig, fit
from uadray.train.loop import fit_gradient


def stages(job: demo.Demo) -> list[Row]:
    """The demo, stage by stage."""
    rows, total, highest = [], 0.0, 0.0

    def measure(name: str, work: Callable[[], object]) -> object:
        nonlocal total, highest
        start = time.perf_counter()
        with PeakMemory() as memory:
            result = work()
        seconds = time.perf_counter() - start
        total, highest = total + seconds, max(highest, memory.gib)
        rows.append(Row(measure=name, value=seconds, unit="s"))
        rows.append(Row(measure=f"{name}, peak memory", value=memory.gib, unit="GiB"))
        return result

    measure("start Ray", cluster.connect)
    cohorts = measure("cohorts", lambda: demo.make_cohorts(job))
    assert isinstance(cohorts, dict)
    runs = [
        measure(f"fit {name}", lambda n=name: demo.fit_one(job, n, cohorts["healthy"]))
        for name in job.names
    ]
    measure("evaluate", lambda: demo.evaluate_all(job, runs, cohorts))
    measure("report", lambda: demo.report(job, runs))
    rows.append(Row(measure="whole demo", value=total, unit="s", goal="<= 480"))
    rows.append(
        Row(measure="whole demo, peak memory", value=highest, unit="GiB", goal="<= 6", detail="PSS")
    )
    again = time.perf_counter()
    for name in job.names:
        demo.fit_one(job, name, demo.make_cohorts(job)["healthy"])
    demo.evaluate_all(job, runs, cohorts)
    rows.append(
        Row(measure="second call, before the report", value=time.perf_counter() - again, unit="s")
    )
    return rows


def ray_against_bare(cohort: Cohort, folder: Path, epochs: int, rounds: int) -> list[Row]:
    """The same 3D fit through Ray and as a bare loop, in turn; medians of whole epochs."""
    base = with_fit(experiment("3D-Cube-n"), epochs=epochs, batch_size=4)
    sides: dict[str, Callable[[Path, list[float]], object]] = {
        "bare": lambda out, ticks: bare(base, cohort, out, ticks),
        "in memory": lambda out, ticks: fit(
            with_fit(base, residency="device"), cohort, str(out), report=lambda m: tick(ticks)
        ),
        "streamed": lambda out, ticks: fit(
            with_fit(base, residency="stream"), cohort, str(out), report=lambda m: tick(ticks)
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    start_up: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            ticks = [time.perf_counter()]
            side(folder / "fit", ticks)
            shutil.rmtree(folder / "fit")
            gaps = np.diff(ticks)
            seconds[name] += gaps[1:].tolist()
            start_up[name].append(float(gaps[0]))
    ours = {name: statistics.median(values) for name, values in seconds.items()}
    rows = [
        Row(
            measure=f"epochs through Ray, {name}",
            value=ours["bare"] / ours[name],
            unit="ratio",
            against="bare loop on the same batches, with checkpoints",
            goal=">= 0.97" if name == "in memory" else "",
            detail=f"{ours[name]:.3f} s against {ours['bare']:.3f} s an epoch, medians",
        )
        for name in ("in memory", "streamed")
    ]
    first = {name: statistics.median(v) for name, v in start_up.items()}
    rows += [
        Row(measure=f"first epoch, {name}", value=first[name], unit="s", detail="start included")
        for name in sides
    ]
    ticks = [time.perf_counter()]
    run = fit(
        with_fit(base, epochs=epochs),
        cohort,
        str(folder / "group"),
        scale=ScaleConfig(num_workers=2, cpus_per_worker=0.75),
    )
    whole = time.perf_counter() - ticks[0]
    steady = statistics.median(r["seconds"] for r in run.metrics()[1:])
    rows.append(
        Row(
            measure="epochs under Ray Train, 2 workers of 1 thread",
            value=ours["bare"] / steady,
            unit="ratio",
            against=f"bare loop of {torch.get_num_threads()} threads",
            detail=f"{steady:.3f} s an epoch; whole fit with start and end {whole:.1f} s",
        )
    )
    return rows


def tick(ticks: list[float]) -> None:
    """Note the time."""
    ticks.append(time.perf_counter())


def bare(base: Experiment, cohort: Cohort, out: Path, ticks: list[float]) -> None:
    """The fit loop alone on arrays in memory."""
    images = {s: torch.from_numpy(_images(cohort, cohort.rows(s))) for s in ("train", "validation")}
    rows = {s: cohort.rows(s) for s in ("train", "validation")}
    size = base.fit.batch_size

    def train(epoch: int) -> Iterator[Batch]:
        groups = epoch_groups(rows["train"], cohort.shard, seed=base.fit.seed, epoch=epoch)
        order = np.concatenate(groups)
        for start in range(0, len(order), size):
            ids = order[start : start + size]
            place = np.searchsorted(rows["train"], ids)
            yield Batch(ids=torch.from_numpy(ids), images=images["train"][place])

    validation = [Batch(ids=torch.from_numpy(rows["validation"]), images=images["validation"])]
    torch.manual_seed(base.fit.seed)
    detector = build(base.method, cohort.shape)
    assert isinstance(detector, GradientDetector)
    fit_gradient(
        detector,
        base,
        train=train,
        validation=validation,
        checkpoints=CheckpointStore(str(out), "bare"),
        report=lambda m: tick(ticks),
        past=[],
        device=torch.device("cpu"),
    )


def _images(cohort: Cohort, rows: np.ndarray) -> np.ndarray:
    return np.concatenate([cohort.read("image", int(r), int(r) + 1) for r in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small, to see that it runs")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory() as folder:
        job = demo.Demo(out=str(Path(folder) / "demo"))
        if quick:
            job = replace(job, healthy=24, lesioned=10, epochs=2, names=("3D-None", "ZScore"))
        rows = stages(job)
        cohort = open_cohort(f"{job.out}/healthy.zarr")
        rows += ray_against_bare(cohort, Path(folder), 4 if quick else 6, 1 if quick else 2)
    publish("spine", rows, keep=not quick)


if __name__ == "__main__":
    main()
