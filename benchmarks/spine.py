"""Seconds and memory of each stage of the demo.

python -m benchmarks.spine            the demo's own size: about 7 minutes on 2 cores
python -m benchmarks.spine --quick    small, to see that it runs; keeps nothing
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from benchmarks.harness import PeakMemory, Row, main, timed
from jobs import demo
from uadray import cluster


def stages(job: demo.Demo) -> list[Row]:
    """The demo, stage by stage."""
    rows, total, highest = [], 0.0, 0.0

    def measure(name: str, work: Callable[[], object]) -> object:
        nonlocal total, highest
        with PeakMemory() as memory:
            result, seconds = timed(work)
        total, highest = total + seconds, max(highest, memory.gib)
        rows.append(Row(name, seconds, "s"))
        rows.append(Row(f"{name}, peak memory", memory.gib, "GiB"))
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
    rows.append(Row("whole demo", total, "s", goal="<= 480"))
    rows.append(Row("whole demo, peak memory", highest, "GiB", goal="<= 6", detail="PSS"))
    again = time.perf_counter()
    for name in job.names:
        demo.fit_one(job, name, demo.make_cohorts(job)["healthy"])
    demo.evaluate_all(job, runs, cohorts)
    rows.append(Row("second call, before the report", time.perf_counter() - again, "s"))
    return rows


def rows(quick: bool, folder: Path) -> list[Row]:
    """All rows."""
    job = demo.Demo(out=str(folder / "demo"))
    if quick:
        job = replace(job, healthy=24, lesioned=10, epochs=2, names=("3D-None", "ZScore"))
    return stages(job)


if __name__ == "__main__":
    main("spine", rows)
