"""The evaluation job as a whole: volumes a second with 1 and 2 workers, memory at 10 times.

Part of `python -m benchmarks.evaluate`. The method, 1 - x, costs next to nothing, so that what is
measured is reading, post-processing, counting, keeping, thresholds, metrics and intervals. Each
side runs in a process of its own with a Ray of its own.
"""

from pathlib import Path

from benchmarks.harness import PeakMemory, Row, apart, timed
from benchmarks.scored import store
from uadray import cluster
from uadray.config import experiment
from uadray.evaluation.job import evaluate
from uadray.runs.folder import Run
from uadray.store import open_cohort
from uadray.train.job import fit


def rows(folder: Path, num: int, size: int) -> list[Row]:
    """Evaluate `num` and 10 `num` volumes.

    Args:
        folder: For cohorts and runs; removed by the caller.
        num: Volumes of the small cohort.
        size: Edge of a volume.
    """
    healthy = store(folder / "healthy.zarr", 8, size, lesioned=False)
    small, large = (
        store(folder / f"made-{count}.zarr", count, size, lesioned=True)
        for count in (num, 10 * num)
    )
    sides = [(cohort, workers) for workers in (2, 1) for cohort in (small, large)]
    measured = {
        (cohort, workers): apart(_evaluate, str(folder / f"run-{n}"), healthy, cohort, workers)
        for n, (cohort, workers) in enumerate(sides)
    }
    results: list[Row] = []
    rates: dict[int, float | None] = {}
    for workers in (1, 2):
        scoring, whole, _ = measured[large, workers]
        # The small cohort takes as long to start, so the difference is of volumes alone.
        rates[workers] = rate(9 * num, whole, measured[small, workers][1])
        who = f"{workers} worker{'s' * (workers > 1)}"
        results.append(
            Row(f"whole evaluation, {who}",
                rates[workers], "volumes/s",
                detail=f"{10 * num} volumes in {whole:.1f} s, {num} in "
                f"{measured[small, workers][1]:.1f} s, the workers' start included; "
                f"{scoring * 1e3:.0f} ms of a worker a volume{unmeasured(rates[workers])}"),
        )  # fmt: skip
        share = None if rates[workers] is None else rates[workers] * scoring / workers
        results.append(
            Row(f"share of the workers' own speed, {who}",
                share, "ratio", against="scoring, cleaning, counting and keeping alone",
                goal=">= 0.7", detail="after the start"),
        )  # fmt: skip
    results.append(
        Row("2 workers against 1", quotient(rates[2], rates[1]), "ratio",
            against="1 worker", detail="after the start"),
    )  # fmt: skip
    few, many = measured[small, 2][2], measured[large, 2][2]
    results.append(
        Row("peak memory at 10 times the volumes", many / few, "ratio",
            against=f"{num} volumes", goal="<= 1.3",
            detail=f"{many:.2f} against {few:.2f} GiB, Ray and its workers included"),
    )  # fmt: skip
    return results


MIN_SHARE = 0.2
"""Least share of the larger time that a difference of two times must have to be one: starts of
processes vary by tenths."""


def rate(num: int, whole: float, part: float) -> float | None:
    """Volumes a second from the times of two cohorts; None where they hardly differ."""
    return num / (whole - part) if whole - part >= MIN_SHARE * whole else None


def quotient(one: float | None, other: float | None) -> float | None:
    """One over another, where both were measured."""
    return None if one is None or other is None else one / other


def unmeasured(value: float | None) -> str:
    """What the detail of a figure says where there is none."""
    return "" if value is not None else "; too little of it is volumes: take more of them"


def _evaluate(out: str, healthy: str, cohort: str, workers: int) -> tuple[float, float, float]:
    """Seconds of a worker a volume, seconds of the whole, peak memory in GiB."""
    import ray

    fit(experiment("Intensity-dark"), open_cohort(healthy), out)
    # Logical CPUs for this many scoring actors and one reader, whatever the machine has.
    ray.init(address="local", num_cpus=workers, logging_level="warning")
    cluster.connect()
    with PeakMemory(every_s=2) as memory:  # reading it takes time of its own
        (record,), seconds = timed(lambda: evaluate([Run.open(out)], open_cohort(cohort)))
    ray.shutdown()
    return float(record["seconds_per_volume"]), seconds, memory.gib
