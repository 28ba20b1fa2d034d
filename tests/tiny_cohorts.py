"""Small sealed cohorts of random brains, with and without lesions, written as the store does."""

from pathlib import Path

import numpy as np
from scipy import ndimage

from uadray import files
from uadray.config import ErasingConfig, Experiment, FitConfig
from uadray.methods import VAE
from uadray.store import Cohort, CohortWriter, Split, Subject

SHAPE = (16, 16, 16)
"""(Z, Y, X) of every volume."""

NUM_TRAIN, NUM_VALIDATION = 36, 4
NUM_THRESHOLD, NUM_TEST = 5, 7

AFFINE = tuple(tuple(row) for row in np.diag([4.0, 4.0, 4.0, 1.0]).tolist())
"""Voxels of 4 mm: 0.064 mL each."""


def write_healthy(
    folder: Path | str,
    *,
    name: str = "healthy",
    seed: int = 0,
    shape: tuple[int, int, int] = SHAPE,
) -> Cohort:
    """Forty healthy brains in five shards; the split is spread over all of them."""
    rng = np.random.default_rng(seed)
    num = NUM_TRAIN + NUM_VALIDATION
    validation = set(rng.choice(num, NUM_VALIDATION, replace=False).tolist())
    splits: list[Split] = ["validation" if k in validation else "train" for k in range(num)]
    volumes = [_brain(rng, shape) for _ in range(num)]
    return _write(files.join(str(folder), f"{name}.zarr"), splits, volumes, lesions=None, seed=seed)


def write_lesioned(
    folder: Path | str,
    *,
    name: str = "stroke",
    bright: bool = True,
    seed: int = 1,
    shape: tuple[int, int, int] = SHAPE,
    num_test: int = NUM_TEST,
) -> Cohort:
    """Twelve brains with one blob each, bright or dark: five to fit thresholds, seven to test."""
    rng = np.random.default_rng(seed)
    num = NUM_THRESHOLD + num_test
    to_fit = set(rng.choice(num, NUM_THRESHOLD, replace=False).tolist())
    splits: list[Split] = ["threshold" if k in to_fit else "test" for k in range(num)]
    volumes, lesions = [], []
    for _ in splits:
        image, brain = _brain(rng, shape)
        lesion = _blob(rng, brain)
        image[lesion] = rng.uniform(0.8, 1.0) if bright else rng.uniform(0.02, 0.1)
        volumes.append((image, brain))
        lesions.append(lesion)
    return _write(
        files.join(str(folder), f"{name}.zarr"), splits, volumes, lesions=lesions, seed=seed
    )


def tiny_vae(
    ndim: int,
    *,
    strategy: str = "none",
    fill: str = "noise",
    latent_size: int = 8,
    **fit: object,
) -> Experiment:
    """An experiment that fits the tiny cohorts in well under a second an epoch, in float32."""
    settings = {"epochs": 4, "batch_size": 8, "precision": "float32"} | fit
    return Experiment(
        method=VAE.Settings(ndim=ndim, widths=(8, 16), bottleneck=4, latent_size=latent_size),  # type: ignore[arg-type]
        erasing=ErasingConfig(strategy=strategy, fill=fill),  # type: ignore[arg-type]
        fit=FitConfig(**settings),  # type: ignore[arg-type]
    )


def _brain(rng: np.random.Generator, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A textured ellipsoid of random size: intensities in [0.2, 0.7], and its mask."""
    radii = rng.uniform(0.28, 0.46, 3) * shape
    z, y, x = ((np.arange(n) - (n - 1) / 2) / r for n, r in zip(shape, radii, strict=True))
    brain = z[:, None, None] ** 2 + y[:, None] ** 2 + x**2 < 1
    texture = ndimage.gaussian_filter(rng.standard_normal(shape), 1.5)
    image = np.clip(0.45 + 0.5 * texture, 0.2, 0.7) * brain
    return image.astype(np.float16), brain


def _blob(rng: np.random.Generator, brain: np.ndarray) -> np.ndarray:
    """A ball of 2.4 to 3.5 voxels within the brain."""
    inner = np.argwhere(ndimage.binary_erosion(brain, iterations=2))
    centre = inner[rng.integers(len(inner))]
    distance = np.linalg.norm(np.argwhere(np.ones(brain.shape)) - centre, axis=1)
    ball: np.ndarray = (distance < rng.uniform(2.4, 3.5)).reshape(brain.shape) & brain
    return ball


def _write(
    url: str,
    splits: list[Split],
    volumes: list[tuple[np.ndarray, np.ndarray]],
    *,
    lesions: list[np.ndarray] | None,
    seed: int,
) -> Cohort:
    shape = volumes[0][0].shape
    stem = url.rsplit("/", 1)[-1].removesuffix(".zarr")
    writer = CohortWriter.create(
        url,
        num_rows=len(splits),
        shape=shape,
        has_lesion=lesions is not None,
        plan={"seed": seed, "splits": splits, "name": f"{stem}.zarr"},
    )
    voxel_ml = abs(np.linalg.det(np.array(AFFINE)[:3, :3])) / 1000
    for shard in range(writer.num_shards):
        rows = writer.rows_of(shard)
        subjects = [
            Subject(
                row=row,
                id=f"{stem}-{row:03d}",
                subject=f"{stem}-{row:03d}",
                scanner="one" if row % 2 else "two",
                split=splits[row],
                modality="T1w",
                affine=AFFINE,
                source=f"{stem}-{row:03d}.nii.gz",
                brain_ml=float(volumes[row][1].sum() * voxel_ml),
                lesion_ml=float(lesions[row].sum() * voxel_ml) if lesions else 0.0,
                notes=f"semi-synthetic lesion from case {row}" if lesions else "",
            )
            for row in rows
        ]
        writer.write_shard(
            shard,
            image=np.stack([volumes[row][0] for row in rows]),
            brain=np.stack([volumes[row][1] for row in rows]),
            lesion=np.stack([lesions[row] for row in rows]) if lesions else None,
            subjects=subjects,
            failures=[],
        )
    return writer.seal()
