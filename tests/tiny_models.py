"""Small finished runs on cohorts that were prepared from real NIfTI files, without Ray."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from uadray import files
from uadray.config import Experiment, experiment, to_json
from uadray.evaluation.protocols import EvaluateConfig
from uadray.methods import StreamDetector
from uadray.preparation.identity import digest_of, look_at
from uadray.preparation.layouts import Scan
from uadray.preparation.plan import make_plan, planned_scans, subject_of
from uadray.preparation.settings import Extent, PrepareConfig, SplitConfig
from uadray.preparation.steps import prepare_scan
from uadray.runs.checkpoint import CheckpointStore, weights_digest
from uadray.runs.detector import build_detector
from uadray.runs.evaluations import INTERVAL_METHOD
from uadray.runs.folder import Run
from uadray.store import Cohort, CohortWriter, Split
from uadray.strata import SCANNER

SMALL = PrepareConfig(
    shape=(16, 16, 16),
    extent=Extent(left_right=26, posterior_anterior=30, inferior_superior=28),
    min_brain_ml=0.1,
    denoise=False,
)
"""Heads of a few centimetres: milliseconds each."""

RADII = np.array([10.0, 12.0, 11.0])
"""Of the brains, in mm, along left-right, posterior-anterior and inferior-superior."""

LESION, LESION_MM = np.array([2.0, -2.0, 1.0]), 6.0
"""Where the bright ball of a lesioned head lies, and its radius, in the scanner's mm."""


def grid(
    order: Sequence[int] = (0, 1, 2),
    signs: Sequence[int] = (1, 1, 1),
    sizes: Sequence[float] = (1.0, 1.0, 1.0),
    degrees: float = 0.0,
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Affine and shape of a file's grid around the head, in any orientation.

    Args:
        order: Axis of the world that each axis of the file runs along.
        signs: And whether it runs along or against it.
        sizes: Voxel sizes along the file's axes, mm.
        degrees: The grid is turned by that about the inferior-superior axis.
    """
    span = 2 * RADII.max() + 6
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (world, sign, size) in enumerate(zip(order, signs, sizes, strict=True)):
        affine[world, axis] = sign * size
    angle = np.deg2rad(degrees)
    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    affine[:3, :3] = turn @ affine[:3, :3]
    shape = tuple(int(np.ceil(span / size)) for size in sizes)
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) - 1) / 2
    x, y, z = shape
    return affine, (x, y, z)


def head(
    affine: np.ndarray, shape: tuple[int, int, int], seed: int = 0, *, lesion: bool = False
) -> np.ndarray:
    """A stripped head, sampled where a grid's voxels lie: the same one on every grid."""
    index = np.indices(shape).reshape(3, -1)
    world = (affine[:3, :3] @ index + affine[:3, 3:]).T
    rng = np.random.default_rng(seed)
    radii = RADII * rng.uniform(0.96, 1.04, 3)
    inside = ((world / radii) ** 2).sum(1) <= 1
    waves = rng.normal(0, 0.35, (4, 3))
    values = 100 + 2 * world[:, 1] + sum(8 * np.cos(world @ wave) for wave in waves)
    if lesion:
        values = np.where(np.linalg.norm(world - LESION, axis=1) <= LESION_MM, 250.0, values)
    return np.where(inside, values.clip(20), 0).reshape(shape).astype(np.float32)


def write_head(path: Path, seed: int = 0, *, lesion: bool = False, **where: Any) -> str:
    """A head in a NIfTI file; `where` as for `grid`."""
    affine, shape = grid(**where)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(head(affine, shape, seed, lesion=lesion), affine), path)
    return str(path)


def scan_of(path: str) -> Scan:
    name = path.rsplit("/", 1)[-1].removesuffix(".nii.gz")
    return Scan(id=name, subject=name, image=path, modality="T1w")


def write_cohort(
    url: Path,
    scans: Sequence[Scan],
    splits: Sequence[Split],
    config: PrepareConfig = SMALL,
    stratify_by: tuple[str, ...] = (SCANNER,),
) -> Cohort:
    """Prepare scans into a sealed cohort, as the job does, one after the other."""
    rows = list(zip(scans, splits, strict=True))
    writer = CohortWriter.create(
        str(url),
        num_rows=len(rows),
        shape=config.shape,
        has_lesion=False,
        plan=make_plan(rows, config, SplitConfig(stratify_by=stratify_by), seed=0),
        scans=planned_scans(rows),
    )
    for shard in range(writer.num_shards):
        mine = list(writer.rows_of(shard))
        volumes = [prepare_scan(rows[row][0], config) for row in mine]
        writer.write_shard(
            shard,
            image=np.stack([v.image for v in volumes]).astype(np.float16),
            brain=np.stack([v.brain for v in volumes]),
            lesion=None,
            subjects=[
                subject_of(row, *rows[row], volume, look_at(rows[row][0]), digest_of(rows[row][0]))
                for row, volume in zip(mine, volumes, strict=True)
            ],
            failures=[],
        )
    return writer.seal()


def healthy_cohort(
    folder: Path, count: int = 12, stratify_by: tuple[str, ...] = (SCANNER,)
) -> Cohort:
    """Healthy heads in files, and their cohort: the last quarter is held back."""
    scans = [scan_of(write_head(folder / f"scans/h{k:02d}_T1w.nii.gz", k)) for k in range(count)]
    splits: list[Split] = [
        "train" if k < count - count // 4 else "validation" for k in range(count)
    ]
    return write_cohort(folder / "healthy.zarr", scans, splits, stratify_by=stratify_by)


def finished_run(url: Path, cohort: Cohort, method: str | Experiment = "MeanImage") -> Run:
    """A run as a fit leaves it, without Ray; networks keep the weights that they begin with."""
    chosen = experiment(method) if isinstance(method, str) else method
    run = Run.create(str(url), chosen, cohort)
    detector = build_detector(chosen, cohort.shape)
    if isinstance(detector, StreamDetector):
        images = [cohort.read("image", r, r + 1) for r in cohort.rows("train").tolist()]
        detector.update(torch.from_numpy(np.concatenate(images).astype(np.float32)))
        detector.finish()
    CheckpointStore.of(run).save(1, detector, None, 0.1)
    run.finish(
        {"status": "finished", "epochs": 0, "best_epoch": None, "fit_seconds": 1.0, "warnings": []}
        | {"validation/reconstruction": 0.1}
    )
    return run


def freeze_threshold(
    run: Run, value: float, *, cohort: str = "stroke", config: EvaluateConfig | None = None
) -> None:
    """Leave an evaluation with that threshold, as the evaluation job does."""
    config = config or EvaluateConfig()
    metrics = dict.fromkeys(
        ("dice_d", "dice_s_mean", "dice_s_std", "auprc", "auroc", "upper_bound_dice"), 0.5
    )
    record = {
        "cohort": {
            "name": cohort,
            "url": f"/somewhere/{cohort}.zarr",
            "fingerprint": "0" * 16,
            "notes": ["semi-synthetic lesion"],
        },
        "run_fingerprint": run.experiment.fingerprint,
        "weights": weights_digest(run),
        "metrics": metrics,
        "intervals": {"dice_d": [0.4, 0.6]},
        "interval_method": INTERVAL_METHOD,
        "threshold": {
            "level": round(value * 65535),
            "value": value,
            "rule": config.threshold_rule,
            "fitted_on": f"{cohort}/threshold: 5 subjects",
            "fingerprint": "f" * 16,
        },
        "num_threshold": 5,
        "num_test": 8,
        "lesion_voxels": 10,
        "lesion_voxels_eroded": 9,
        "subjects": [{"id": one, "dice": 0.5, "lesion_ml": 1.0} for one in "abcdefgh"],
        "settings": {
            **{k: v for k, v in to_json(config).items() if not k.startswith(("batch", "gpus"))},
            "cohort": "0" * 16,
            "healthy": None,
        },
    }
    files.write_json(files.join(run.url, "evaluation", f"{cohort}.json"), record)
