"""Scans a minute by step, against plain scripts with MONAI and TorchIO; a cohort's memory and size.

python -m benchmarks.prepare            needs ds002748; about 5 minutes on 2 cores
python -m benchmarks.prepare --quick    few scans, to see that it runs; keeps nothing

The scans are those of OpenNeuro ds002748 in the folder that UADRAY_REAL_DATA names, or in
../shared/data; the other sides need `pip install -e '.[bench]'`.
"""

import os
import statistics
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from threadpoolctl import threadpool_limits

from benchmarks.harness import PeakMemory, Row, find_scans, main, on_each_in_turns, timed
from uadray import cluster
from uadray.errors import ConfigError
from uadray.preparation.geometry import Volume, resample, to_canonical
from uadray.preparation.ingest import prepare_cohort
from uadray.preparation.intensity import correct_bias, curvature_flow
from uadray.preparation.layouts import Scan
from uadray.preparation.read import load_volume
from uadray.preparation.register import register
from uadray.preparation.settings import PrepareConfig, SplitConfig
from uadray.preparation.skull import strip
from uadray.preparation.steps import PreparedVolume, pipeline, prepare_scan

Side = Callable[[Scan], object]


def in_turn(scans: list[Scan], sides: dict[str, Side]) -> dict[str, float]:
    """Median seconds of each side on a scan; the first scan only warms up."""
    seconds = on_each_in_turns(sides, [scans[0], *scans])
    return {name: statistics.median(values) for name, values in seconds.items()}


def by_step(scans: list[Scan], config: PrepareConfig) -> list[Row]:
    """The default pipeline, step by step, and the steps that are off by default."""
    seconds: dict[str, list[float]] = defaultdict(list)

    def stepped(name: str, step: Callable[[], Volume]) -> Volume:
        volume, took = timed(step)
        seconds[name].append(took)
        return volume

    for number, scan in enumerate([scans[0], *scans]):
        if number == 1:
            seconds.clear()
        volume = stepped("read", lambda scan=scan: load_volume(scan))
        for step in pipeline(config):
            volume = stepped(step.name, lambda step=step, v=volume: step.apply(v))
    whole = sum(statistics.median(values) for values in seconds.values())
    limits = {"min_ml": 0.0, "max_ml": 2500.0}
    box = {"spacing_mm": 1.0, "extent": config.extent, "grow": False, "max_cut": 0.0}
    optional: dict[str, Callable[[Volume], Volume]] = {
        "register (off by default)": lambda v: register(v, **box),
        "correct_bias (off by default)": lambda v: correct_bias(v, shrink=4),
        "strip by deepbet": lambda v: strip(v, method="deepbet", **limits),
    }
    for scan in scans[:2]:
        native = to_canonical(load_volume(scan))
        fine = resample(native, spacing_mm=1.0)
        for name, step in optional.items():
            try:
                stepped(name, lambda s=step, v=native if "register" in name else fine: s(v))
            except ConfigError as error:
                print(error)
    rows = [
        Row(
            f"step: {name}",
            60 / statistics.median(values),
            "scans/min/core",
            detail=f"{statistics.median(values):.3f} s, median of {len(values)} scans",
        )
        for name, values in seconds.items()
    ]
    rows.append(Row("whole pipeline", 60 / whole, "scans/min/core", detail=f"{whole:.2f} s"))
    return rows


def against_plain(scans: list[Scan], config: PrepareConfig) -> list[Row]:
    """Resampling and the whole pipeline beside the plain scripts, scan by scan in turn."""
    from benchmarks import plain_prepare

    loaded = {scan.id: to_canonical(load_volume(scan)) for scan in scans}
    sides: dict[str, Side] = {"ours": lambda scan: resample(loaded[scan.id], spacing_mm=1.0)}
    for name, side in plain_prepare.RESAMPLE.items():
        sides[name] = lambda scan, side=side: side(loaded[scan.id])
    rows = _ratios("resample image and mask to 1 mm", in_turn(scans, sides), ">= 3")
    made: dict[str, list[np.ndarray]] = defaultdict(list)

    def ours(scan: Scan) -> None:
        volume: PreparedVolume = prepare_scan(scan, config)
        made["ours"].append(volume.image)

    whole: dict[str, Side] = {"ours": ours}
    for name, script in plain_prepare.WHOLE.items():
        whole[name] = lambda scan, name=name, script=script: made[name].append(
            script(scan.image, config)
        )
    rows += _ratios("whole pipeline, file to volume", in_turn(scans, whole), ">= 1.5")
    for name in plain_prepare.WHOLE:
        pairs = zip(made["ours"], made[name], strict=True)
        rows.append(
            Row(
                "mean absolute difference of the volumes",
                float(np.mean([abs(a - b)[a > 0].mean() for a, b in pairs])),
                "of [0, 1]",
                against=name,
                detail="inside the brain; the same steps, other filters and rounding",
            )
        )
    return rows


def _ratios(what: str, seconds: dict[str, float], goal: str) -> list[Row]:
    return [
        Row(
            what,
            theirs / seconds["ours"],
            "ratio",
            against=name,
            goal=goal,
            detail=f"{seconds['ours']:.3f} s against {theirs:.3f} s a scan, one thread, medians",
        )
        for name, theirs in seconds.items()
        if name != "ours"
    ]


def flow_against_itk(scans: list[Scan]) -> list[Row]:
    """The curvature flow of one brain's box, ours and ITK's."""
    from benchmarks import plain_prepare

    volumes = {s.id: resample(to_canonical(load_volume(s)), spacing_mm=1.0) for s in scans}
    made: dict[str, np.ndarray] = {}

    def ours(scan: Scan) -> None:
        image = volumes[scan.id].image
        made["ours"] = curvature_flow(image, np.ones(3), time_step=0.125, iterations=3)

    def itk(scan: Scan) -> None:
        made["ITK"] = plain_prepare.curvature_flow(volumes[scan.id].image)

    seconds = in_turn(scans, {"ours": ours, "SimpleITK": itk})
    difference = float(abs(made["ours"] - made["ITK"]).max() / made["ITK"].max())
    (row,) = _ratios("curvature flow", seconds, "")
    return [replace(row, detail=f"{row.detail}; differs by {difference:.1e} of the range at most")]


def at_scale(scans: list[Scan], config: PrepareConfig, folder: Path, times: int) -> list[Row]:
    """The real job: 1 and 2 workers, memory over ten times the scans, size of the store."""
    cluster.connect()
    rows, seconds = [], {}
    for workers in (1, 2):
        url = folder / f"w{workers}.zarr"
        seconds[workers], gib = _prepare(scans, url, config, workers)
        rows.append(
            Row(
                f"the job with {workers} worker{'s' * (workers > 1)}",
                60 * len(scans) / seconds[workers],
                "scans/min",
                detail=f"{len(scans)} scans in {seconds[workers]:.0f} s, {gib:.2f} GiB with Ray",
            )
        )
    rows.append(
        Row(
            "2 workers over 1",
            seconds[1] / seconds[2],
            "ratio",
            detail="with the start of the tasks and the seal",
        )
    )
    inputs = sum(os.path.getsize(scan.image) for scan in scans)
    rows.append(
        Row(
            "store over NIfTI input",
            _bytes(folder / "w2.zarr") / inputs,
            "ratio",
            detail=f"{_bytes(folder / 'w2.zarr') / 1e6:.1f} MB against {inputs / 1e6:.1f} MB "
            f"of 8-bit .nii.gz, {len(scans)} scans at {' x '.join(map(str, config.shape))}",
        )
    )
    # Without the denoising, for the time of it: memory is the other steps'.
    lean = replace(config, denoise=False)
    many = [
        replace(scan, id=f"{scan.id}_run-{k}", subject=f"{scan.subject}-{k}")
        for k in range(times)
        for scan in scans
    ]
    few_s, few = _prepare(scans, folder / "few.zarr", lean, 2)
    many_s, most = _prepare(many, folder / "many.zarr", lean, 2)
    rows.append(
        Row(
            f"peak memory at {len(many)} scans over that at {len(scans)}",
            most / few,
            "ratio",
            goal="<= 1.15",
            detail=f"{most:.2f} against {few:.2f} GiB (PSS with Ray, 2 workers, no denoising); "
            f"{many_s:.0f} against {few_s:.0f} s",
        )
    )
    return rows


def _prepare(
    scans: list[Scan], url: Path, config: PrepareConfig, workers: int
) -> tuple[float, float]:
    """Seconds and peak memory in GiB of one call."""
    split = SplitConfig()
    with PeakMemory() as memory:
        _, seconds = timed(
            lambda: prepare_cohort(scans, str(url), config=config, split=split, workers=workers)
        )
    return seconds, memory.gib


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def rows(quick: bool, folder: Path) -> list[Row]:
    """All rows."""
    scans, config = find_scans(), PrepareConfig()
    few = scans[:1] if quick else scans[:6]
    torch.set_num_threads(1)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    with threadpool_limits(1):
        measured = by_step(few, config)
        if find_spec("monai") and find_spec("torchio"):
            measured += against_plain(few, config) + flow_against_itk(few)
        else:
            print("the plain scripts are left out: pip install -e '.[bench]'")
    return measured + at_scale(scans[:4] if quick else scans, config, folder, 2 if quick else 10)


if __name__ == "__main__":
    main("prepare", rows)
