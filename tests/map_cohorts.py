"""A small lesioned cohort that was prepared from NIfTI files, and anomaly maps of its scans."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from tiny_models import LESION, LESION_MM, RADII, SMALL, grid, head

from uadray.preparation.identity import digest_of, look_at
from uadray.preparation.layouts import Scan
from uadray.preparation.plan import make_plan, planned_scans, subject_of
from uadray.preparation.settings import PrepareConfig, SplitConfig
from uadray.preparation.steps import prepare_scan
from uadray.store import Cohort, CohortWriter, Split

IDS = tuple(f"sub-{k:02d}" for k in range(1, 9))
"""Of the scans; the first three are the threshold part."""

SPLITS: tuple[Split, ...] = ("threshold",) * 3 + ("test",) * 5


def write_lesioned(
    folder: Path, ids: Sequence[str] = IDS, config: PrepareConfig = SMALL, **where: Any
) -> Cohort:
    """Heads with a bright ball in each, in files, and their cohort; `where` as for `grid`."""
    (folder / "scans").mkdir(parents=True)
    rows: list[tuple[Scan, Split]] = []
    affine, shape = grid(**where)
    for k, (name, split) in enumerate(zip(ids, SPLITS, strict=True)):
        image, mask = (folder / f"scans/{name}_{kind}.nii.gz" for kind in ("T1w", "lesion"))
        nib.save(nib.Nifti1Image(head(affine, shape, k, lesion=True), affine), image)
        nib.save(nib.Nifti1Image(ball(affine, shape).astype(np.uint8), affine), mask)
        scan = Scan(id=name, subject=name, image=str(image), lesion=str(mask), modality="T1w")
        rows.append((scan, split))
    writer = CohortWriter.create(
        str(folder / "stroke.zarr"),
        num_rows=len(rows),
        shape=config.shape,
        has_lesion=True,
        plan=make_plan(rows, config, SplitConfig(), seed=0),
        scans=planned_scans(rows),
    )
    for shard in range(writer.num_shards):
        mine = list(writer.rows_of(shard))
        volumes = [prepare_scan(rows[row][0], config) for row in mine]
        writer.write_shard(
            shard,
            image=np.stack([v.image for v in volumes]).astype(np.float16),
            brain=np.stack([v.brain for v in volumes]),
            lesion=np.stack([v.lesion for v in volumes]),
            subjects=[
                subject_of(row, *rows[row], volume, look_at(rows[row][0]), digest_of(rows[row][0]))
                for row, volume in zip(mine, volumes, strict=True)
            ],
            failures=[],
        )
    return writer.seal()


def ball(affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Where the lesion is, on a grid."""
    return np.linalg.norm(world_of(affine, shape) - LESION, axis=-1) <= LESION_MM


def world_of(affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Place of each voxel in the scanner's mm, (X, Y, Z, 3)."""
    index = np.moveaxis(np.indices(shape), 0, -1)
    return index @ affine[:3, :3].T + affine[:3, 3]


def score(affine: np.ndarray, shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """A smooth anomaly map of one head: high around the lesion, not symmetric, 0 outside."""
    world = world_of(affine, shape)
    wave = np.random.default_rng(seed).normal(0, 0.1, 3)
    near = np.exp(-((np.linalg.norm(world - LESION, axis=-1) / LESION_MM) ** 2))
    values = near + 0.2 * (1 + np.sin(world @ wave)) + 0.004 * (world[..., 0] + 20)
    return np.where(((world / (1.1 * RADII)) ** 2).sum(-1) <= 1, values, 0).astype(np.float32)


def write_maps(
    folder: Path,
    ids: Sequence[str] = IDS,
    change: Callable[[nib.Nifti1Image], nib.Nifti1Image] = lambda image: image,
    ending: str = "_anomaly.nii.gz",
    **where: Any,
) -> Path:
    """A map of each scan, on the scans' own grid by default; `where` as for `grid`."""
    folder.mkdir(parents=True, exist_ok=True)
    affine, shape = grid(**where)
    for k, name in enumerate(ids):
        image = nib.Nifti1Image(score(affine, shape, k), affine)
        nib.save(change(image), folder / f"{name}{ending}")
    return folder
