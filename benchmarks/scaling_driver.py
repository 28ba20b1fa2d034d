"""What a cohort of a million scans takes of the driver: seconds and memory, without any voxel.

Part of `python -m benchmarks.scaling`. Plan and shard records are written as a preparation leaves
them; then each step runs in a process of its own, whose highest memory is what counts.
"""

import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Row, alone
from uadray import files
from uadray.config import FitConfig
from uadray.data.sampling import epoch_groups, fit_rows
from uadray.preparation.layouts import Scan
from uadray.preparation.plan import make_plan, planned_scans
from uadray.preparation.settings import PrepareConfig, SplitConfig
from uadray.preparation.splits import split_scans
from uadray.store import CohortWriter, open_cohort
from uadray.store.layout import part_url, read_attributes, shard_url

NUM_SCANNERS = 22
"""As many as UK Biobank's imaging would have with all sites' machines, and as Bengs' phantoms."""


def rows(folder: Path, counts: tuple[int, ...]) -> list[Row]:
    """Seal and open cohorts of `counts` scans, the largest last."""
    measured, peaks = [], {}
    for count in counts:
        url = str(folder / f"of-{count}.zarr")
        lay_out(url, count)
        for step, what in STEPS.items():
            took = alone(_work, what, url)
            peaks[step, count] = mib = took.before_mib + took.mib
            measured.append(
                Row(f"{_name(what)}, {count} scans", took.seconds, "s",
                    detail=f"{mib:.0f} MiB at most, of which {took.before_mib:.0f} are imports"),
            )  # fmt: skip
        files.remove(url)
    few, many = counts[0], counts[-1]
    for step, what in STEPS.items():
        measured.append(
            Row(f"driver's memory: {_name(what)}", peaks[step, many], "MiB",
                against=f"{few} scans: {peaks[step, few]:.0f}", goal="<= 2048",
                detail=f"{many} scans"),
        )  # fmt: skip
    return measured


def lay_out(url: str, count: int) -> None:
    """Plan and shard records of a cohort whose voxels were never written."""
    scans = [
        Scan(
            id=f"sub-{k:07d}",
            subject=f"sub-{k:07d}",
            image=f"/data/bids/sub-{k:07d}/anat/sub-{k:07d}_T1w.nii.gz",
            modality="T1w",
            scanner=f"scanner-{k % NUM_SCANNERS:02d}",
        )
        for k in range(count)
    ]
    config, split = PrepareConfig(), SplitConfig()
    planned = split_scans(scans, split, seed=0)
    writer = CohortWriter.create(
        url,
        num_rows=count,
        shape=config.shape,
        has_lesion=False,
        plan=make_plan(planned, config, split, seed=0),
        scans=planned_scans(planned),
    )
    affine = np.diag([2.47, 2.98, 2.55, 1]).tolist()
    for shard in range(writer.num_shards):
        lines = [_line(row, *planned[row], affine) for row in writer.rows_of(shard)]
        digests = [f"{row:064x}" for row in writer.rows_of(shard)]
        part = {"digests": digests, "subjects": lines, "failures": []}
        files.write_json(part_url(url, shard), part, compact=True)
        for name in ("image", "brain"):
            files.write_bytes(shard_url(url, name, shard), b"no voxels")


def _line(row: int, scan: Scan, split: str, affine: list[list[float]]) -> dict[str, Any]:
    """A line of the table of subjects as a shard's record holds it."""
    return {
        "row": row,
        "id": scan.id,
        "subject": scan.subject,
        "scanner": scan.scanner,
        "split": split,
        "modality": scan.modality,
        "affine": affine,
        "source": scan.image,
        "source_bytes": 2_000_000,
        "brain_ml": 1234.5,
        "lesion_ml": 0.0,
        "notes": "",
    }


def seal(url: str) -> None:
    """Seal."""
    known = read_attributes(url)
    CohortWriter(
        url=url,
        num_rows=known["num_rows"],
        shape=tuple(known["shape"]),
        shard=known["shard_volumes"],
        has_lesion=False,
    ).seal()


def reopen(url: str) -> None:
    """Open."""
    open_cohort(url)


def begin_fit(url: str) -> None:
    """Open, choose the training rows, order an epoch."""
    cohort = open_cohort(url)
    rows = fit_rows(cohort, FitConfig()).train
    cohort.rows("validation")
    groups = epoch_groups(rows, cohort.shard, seed=0, epoch=0)
    assert sum(map(len, groups)) == len(rows)


def begin_fit_on_half(url: str) -> None:
    """Open, choose half of the subjects of each scanner."""
    cohort = open_cohort(url)
    assert len(fit_rows(cohort, FitConfig(data_share=0.5)).train) > 0


def ship(url: str) -> None:
    """Open, pack for a task."""
    packed = pickle.dumps(open_cohort(url))
    assert len(packed) < 100_000, "a task must not carry what grows with the cohort"


STEPS: dict[str, Callable[[str], None]] = {
    function.__name__: function for function in (seal, reopen, begin_fit, begin_fit_on_half, ship)
}
"""In this order: what is not sealed cannot be opened."""


def _name(step: Callable[[str], None]) -> str:
    return (step.__doc__ or "").rstrip(".")


def _work(step: Callable[[str], None], url: str) -> tuple[Callable[[], None]]:
    return (partial(step, url),)
