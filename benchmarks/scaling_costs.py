"""What one volume costs: bytes, requests, decoding, multiplications. Inputs of docs/scaling.md.

Part of `python -m benchmarks.scaling`. Every figure comes from the package itself: stores are
written and read, a real S3 server counts requests, a network is counted on torch's `meta` device.
"""

from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import Row, timed
from benchmarks.step import phantoms
from tests.s3_server import serve_bucket
from tests.tiny_cohorts import subject_of, write_cohort
from uadray import files
from uadray.config import experiment
from uadray.data.volumes import read_rows
from uadray.evaluation.protocols import EvaluateConfig
from uadray.methods import GradientDetector, num_parameters
from uadray.metrics.counts import CohortCounts, count_subject
from uadray.runs.detector import build_detector
from uadray.runs.folder import Run
from uadray.runs.scores import ScoreStore
from uadray.store import CHUNK_VOLUMES, Cohort, CohortWriter, kept_name, open_cohort

NAME = "3D-Cube-n"
"""The network that is counted."""

FINE = 160
"""Edge of the cube whose store stands for 1 mm; the network wants multiples of 8."""


def rows(folder: Path, *, quick: bool = False) -> list[Row]:
    """All of it."""
    fine = 32 if quick else FINE
    measured = [*_store(folder, 16 if quick else 64, 64), *_store(folder, 8, fine)]
    return [*measured, *_requests(), *_network(64), *_network(fine)]


def _store(folder: Path, count: int, size: int) -> list[Row]:
    """Bytes on disk of a volume of phantoms, and volumes that one thread decodes a second."""
    url = str(folder / f"store-{size}.zarr")
    images = phantoms(count, size, originals=1 if size > 64 else 4).numpy()
    cohort = write_cohort(url, ["train"] * count, lambda row: (images[row], images[row] > 0, None))
    stored = sum(p.stat().st_size for p in Path(url).rglob("*") if p.is_file())
    seconds = [timed(lambda: read_rows(cohort, "image", np.arange(count)))[1] for _ in range(4)]
    voxels = size**3
    return [
        Row(f"stored bytes of a voxel, {size}^3", stored / count / voxels,
            "bytes", detail=f"{count} phantoms, image and brain mask, {cohort.shard} a shard"),
        Row(f"decoding, {size}^3", count / min(seconds[1:]), "volumes/s",
            detail="one thread, from the page cache, least of 3"),
    ]  # fmt: skip


def _requests() -> list[Row]:
    """Requests that a preparation and an epoch make, for each volume and each shard."""
    num, images = 128, np.zeros((128, 8, 8, 8), np.float16)
    images[:, 2:6, 2:6, 2:6] = 0.5
    subjects = [subject_of(f"sub-{row}", row, "train", images[row] > 0) for row in range(num)]
    kinds: dict[str, tuple[Counter[str], int]] = {}
    with serve_bucket("data") as server:
        counted = server.methods

        def since(name: str, per: int) -> None:
            kinds[name] = Counter(counted), per
            counted.clear()

        writer = CohortWriter.create(
            "s3://data/c.zarr", num_rows=num, shape=(8, 8, 8), has_lesion=False, plan={}
        )
        counted.clear()
        for row in range(num):
            writer.begin_row(row)
            writer.put_row(subjects[row], {"image": images[row], "brain": images[row] > 0})
            writer.end_row(row)
        since("a volume prepared and kept", num)
        for shard in range(writer.num_shards):
            names = [kept_name(subjects[row]) for row in writer.rows_of(shard)]
            writer.write_kept(shard, names, [])
        since("a volume moved into its shard", num)
        writer.seal()
        since("a shard sealed", writer.num_shards)
        cohort = open_cohort("s3://data/c.zarr")
        cohort.read("image", 0, 1)
        counted.clear()
        for shard in range(writer.num_shards):
            cohort.read("image", *(writer.rows_of(shard).start, writer.rows_of(shard).stop))
        since("a shard streamed in an epoch", writer.num_shards)
        _evaluate(cohort, images)
        since("a volume evaluated", num)
        files.remove("s3://data/c.zarr")
        files.remove("s3://data/run")
    measured = []
    for name, (methods, per) in kinds.items():
        listed = ", ".join(f"{n / per:.2g} {m}" for m, n in sorted(methods.items()))
        writes = sum(methods[m] for m in ("PUT", "POST")) / per
        reads = sum(methods[m] for m in ("GET", "HEAD")) / per
        measured += [
            Row(f"writing requests: {name}", writes, "requests", detail=listed),
            Row(f"reading requests: {name}", reads, "requests", detail=listed),
        ]
    return measured


def _evaluate(cohort: Cohort, images: np.ndarray) -> None:
    """What both passes of an evaluation ask of the store, by chunks of volumes."""
    run = Run.create("s3://data/run", experiment(NAME), cohort)
    scoring = EvaluateConfig().scoring(cohort.shape)
    store = ScoreStore.create(run, cohort, (0.0, 1.0), scoring)
    subjects = [(row, f"sub-{row}") for row in range(len(images))]
    for start in range(0, len(images), CHUNK_VOLUMES):
        for name in ("image", "brain"):
            cohort.read(name, start, start + CHUNK_VOLUMES)  # type: ignore[arg-type]
        for row, _ in subjects[start : start + CHUNK_VOLUMES]:
            brain = images[row] > 0
            levels = brain.astype(np.uint16)
            store.write(row, levels, count_subject(levels, brain, np.zeros_like(brain), brain))
    for start in range(0, len(images), CHUNK_VOLUMES):
        # The true lesions, one array.
        cohort.read("brain", start, start + CHUNK_VOLUMES)
        for row, subject in subjects[start : start + CHUNK_VOLUMES]:
            store.checked_levels(row, subject)
    store.counts(subjects, "all", CohortCounts)


def _network(size: int) -> list[Row]:
    """Parameters and operations of a training step, by volume, without computing any."""
    with torch.device("meta"):
        detector = build_detector(experiment(NAME), (size, size, size))
        assert isinstance(detector, GradientDetector)
        x = torch.empty(2, 1, size, size, size)
        noise = torch.empty(2, detector.num_noise)
    with FlopCounterMode(display=False) as counter:
        detector(x, x, noise)["loss"].backward()
    return [
        Row(f"operations of a training step, {size}^3",
            counter.get_total_flops() / 2 / 1e9, "GFLOP/volume",
            detail=f"{NAME}, forward and backward"),
        Row(f"parameters, {size}^3", num_parameters(detector) / 1e6, "million",
            detail=NAME),
    ]  # fmt: skip
