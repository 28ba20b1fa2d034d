"""Seconds from a scan's file to its maps, against preparation alone; a folder with two workers.

python -m benchmarks.predict            needs ds002748; about 4 minutes on 2 cores
python -m benchmarks.predict --quick    few scans, to see that it runs; keeps nothing

The model is 3D-None at 64^3 with the weights that it begins with: how long it takes does not depend
on what it has learned. The scans are those of OpenNeuro ds002748 in the folder that
UADRAY_REAL_DATA names, or in ../shared/data.
"""

import statistics
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import SimpleITK as sitk
import torch

from benchmarks.harness import PeakMemory, Row, find_scans, main, on_each_in_turns, timed
from uadray import cluster
from uadray.config import experiment
from uadray.prediction import outputs
from uadray.prediction.inputs import find_items
from uadray.prediction.job import PredictJob
from uadray.prediction.model_folder import open_model
from uadray.prediction.scan import predict_scan
from uadray.prediction.settings import PredictConfig
from uadray.preparation.ingest import prepare_cohort
from uadray.preparation.layouts import Scan
from uadray.preparation.settings import PrepareConfig, SplitConfig
from uadray.preparation.steps import prepare_scan
from uadray.runs.checkpoint import CheckpointStore
from uadray.runs.detector import build_detector
from uadray.runs.folder import Run

THRESHOLD = 0.2
"""Of residuals; the model is not fitted, so that none is frozen."""

MAPS = PredictConfig(threshold=THRESHOLD)


def make_run(folder: Path, scans: list[Scan]) -> Run:
    """A finished run of 3D-None on a cohort of a few scans."""
    cohort = prepare_cohort(
        scans, str(folder / "healthy.zarr"), config=PrepareConfig(), split=SplitConfig()
    )
    chosen = experiment("3D-None")
    run = Run.create(str(folder / "run"), chosen, cohort)
    CheckpointStore.of(run).save(1, build_detector(chosen, cohort.shape), None, 1.0)
    run.finish({"status": "finished", "epochs": 1, "best_epoch": 1})
    return run


def one_by_one(run: Run, scans: list[Scan], folder: Path, rounds: int) -> list[Row]:
    """Preparation alone, prediction, and prediction with its files and page, one thread."""
    torch.set_num_threads(1)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    _, first = timed(lambda: open_model(run.url))
    model, again = timed(lambda: open_model(run.url))
    items = find_items([scan.image for scan in scans], "T1w").items
    spent: dict[str, list[float]] = defaultdict(list)
    steps: dict[str, list[float]] = defaultdict(list)

    def written(viewer: bool) -> Callable[[int], object]:
        def side(k: int) -> object:
            summary = outputs.write(
                str(folder / f"one-{viewer}"),
                items[k],
                predict_scan(model, items[k].scan, MAPS),
                viewer=viewer,
            )
            if not viewer:
                for name, seconds in summary["seconds"].items():
                    steps[name].append(seconds)
            return summary

        return side

    sides: dict[str, Callable[[int], object]] = {
        "prepare": lambda k: prepare_scan(items[k].scan, PrepareConfig()),
        "predict": lambda k: predict_scan(model, items[k].scan, MAPS),
        "predict and write": written(False),
        "predict, write and page": written(True),
    }
    for k in range(len(items)):
        for name, seconds in on_each_in_turns(sides, [k] * (rounds + 1)).items():
            spent[name] += seconds
    median = {name: statistics.median(values) for name, values in spent.items()}
    count = f"median of {len(items)} scans, one thread, 64^3, stripped input"
    rows = [Row(f"{name}, a scan", value, "s", detail=count) for name, value in median.items()]
    rows.append(
        Row(
            "predict and write, over preparation",
            median["predict and write"] / median["prepare"],
            "ratio",
            against="prepare alone",
            detail=count,
        )
    )
    rows += [Row(f"step: {name}", statistics.median(values), "s") for name, values in steps.items()]
    rows.append(Row("open a run, its cohort measured", first, "s"))
    rows.append(Row("open a run again", again, "s"))
    return rows + _sizes(folder / "one-True", len(items))


def _sizes(folder: Path, count: int) -> list[Row]:
    """What one scan leaves on the disk."""
    sizes: dict[str, int] = defaultdict(int)
    for path in folder.rglob("*"):
        if path.is_file():
            kind = "page" if path.suffix in (".html", ".png") else "maps"
            sizes[kind] += path.stat().st_size
    return [
        Row(f"{kind} of a scan", size / count / 1e6, "MB", detail="mean")
        for kind, size in sorted(sizes.items())
    ]


def a_folder(run: Run, scans: list[Scan], folder: Path, workers: int) -> list[Row]:
    """All scans on Ray, with the start of the workers and all pages; then the same call again."""
    job = PredictJob(
        model=run.url,
        scans=tuple(scan.image for scan in scans),
        out=str(folder / "many"),
        workers=workers,
        config=MAPS,
    )
    with PeakMemory() as memory:
        done, seconds = timed(job.run)
    assert len(done.summaries) == len(scans), done.failures
    kept, again = timed(job.run)
    assert kept.num_kept == len(scans)
    what = f"{len(scans)} scans, {workers} workers, with pages"
    return [
        Row("a folder", seconds, "s", detail=what),
        Row("a folder, a scan", seconds / len(scans), "s", detail=what),
        Row("a folder, peak memory", memory.gib, "GiB", detail="PSS, with Ray"),
        Row("the same folder again", again, "s", detail="nothing to do"),
    ]


def rows(quick: bool, folder: Path) -> list[Row]:
    """All rows."""
    scans = find_scans()
    few, many, rounds = (scans[:2], scans[:4], 1) if quick else (scans[:8], scans, 2)
    cluster.connect()
    run = make_run(folder, scans[:4] if quick else scans[:12])
    return [*one_by_one(run, few, folder, rounds), *a_folder(run, many, folder, workers=2)]


if __name__ == "__main__":
    main("predict", rows)
