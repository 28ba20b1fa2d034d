"""Small sealed cohorts of random brains, with and without lesions, written as the store does."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from uadray import files
from uadray.config import ErasingConfig, Experiment, FitConfig
from uadray.methods.vae import VAE
from uadray.store import Cohort, CohortWriter, Split, Subject

SHAPE = (16, 16, 16)
"""(Z, Y, X) of every volume."""

NUM_TRAIN, NUM_VALIDATION = 36, 4
NUM_THRESHOLD, NUM_TEST = 5, 7

Affine = tuple[tuple[float, ...], ...]
Volume = tuple[np.ndarray, np.ndarray, np.ndarray | None]

AFFINE: Affine = tuple(tuple(row) for row in np.diag([4.0, 4.0, 4.0, 1.0]).tolist())
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
    url = files.join(str(folder), f"{name}.zarr")
    return write_cohort(url, splits, lambda row: (*volumes[row], None), seed=seed)


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
    url = files.join(str(folder), f"{name}.zarr")
    return write_cohort(url, splits, lambda row: (*volumes[row], lesions[row]), seed=seed)


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


def write_cohort(
    url: str,
    splits: Sequence[Split],
    volume: Callable[[int], Volume],
    *,
    seed: int = 0,
    affine: Affine = AFFINE,
) -> Cohort:
    """Write and seal a cohort, with one shard's volumes in memory at a time.

    Args:
        url: Where to.
        splits: Of each row.
        volume: Image, brain and lesion of a row, (Z, Y, X); no lesion for healthy ones.
        seed: Only a part of the cohort's plan.
        affine: Of every volume.
    """
    stem = url.rsplit("/", 1)[-1].removesuffix(".zarr")
    image, _, lesion = volume(0)
    writer = CohortWriter.create(
        url,
        num_rows=len(splits),
        shape=image.shape,
        has_lesion=lesion is not None,
        plan={"seed": seed, "splits": list(splits), "name": f"{stem}.zarr"},
    )
    for shard in range(writer.num_shards):
        rows = writer.rows_of(shard)
        images, brains, lesions = zip(*map(volume, rows), strict=True)
        writer.write_shard(
            shard,
            image=np.stack(images),
            brain=np.stack(brains),
            lesion=None if lesion is None else np.stack(lesions),
            subjects=[
                subject_of(f"{stem}-{row:03d}", row, splits[row], brain, mask, affine)
                for row, brain, mask in zip(rows, brains, lesions, strict=True)
            ],
            failures=[],
        )
    return writer.seal()


def subject_of(
    name: str,
    row: int,
    split: Split,
    brain: np.ndarray,
    lesion: np.ndarray | None = None,
    affine: Affine = AFFINE,
) -> Subject:
    """A line of the table of subjects."""
    voxel_ml = abs(np.linalg.det(np.array(affine)[:3, :3])) / 1000
    return Subject(
        row=row,
        id=name,
        subject=name,
        scanner="one" if row % 2 else "two",
        split=split,
        modality="T1w",
        affine=affine,
        source=f"{name}.nii.gz",
        brain_ml=float(brain.sum() * voxel_ml),
        lesion_ml=float(lesion.sum() * voxel_ml) if lesion is not None else 0.0,
        notes=f"semi-synthetic lesion from case {row}" if lesion is not None else "",
    )
