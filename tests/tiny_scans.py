"""Tiny brains in NIfTI files, and settings that prepare one in milliseconds."""

from pathlib import Path

import nibabel as nib
import numpy as np

from uadray.preparation.settings import Extent, PrepareConfig

TINY = PrepareConfig(
    shape=(13, 14, 12),
    extent=Extent(left_right=24, posterior_anterior=28, inferior_superior=26),
    min_brain_ml=0.1,
)


def ellipsoid(shape: tuple[int, ...], radii: tuple[float, ...], centre=None) -> np.ndarray:
    centre = (np.array(shape) - 1) / 2 if centre is None else np.array(centre)
    grid = np.indices(shape).transpose(1, 2, 3, 0) - centre
    return ((grid / np.array(radii)) ** 2).sum(-1) <= 1


def brain_image(shape: tuple[int, ...] = (22, 26, 24), seed: int = 0) -> np.ndarray:
    """A textured ellipsoid on a background of 0, brighter towards the front."""
    inside = ellipsoid(shape, tuple(n * 0.42 for n in shape))
    noise = np.random.default_rng(seed).normal(0, 5, shape)
    ramp = np.linspace(50, 150, shape[1])[None, :, None]
    return np.where(inside, np.maximum(1, ramp + noise), 0).astype(np.float32)


def write(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = array.astype(np.uint8) if array.dtype == bool else array
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return str(path)


def write_bids(root: Path, subjects: int, *, lesion: bool = False) -> Path:
    for k in range(1, subjects + 1):
        image = brain_image(seed=k)
        write(root / f"sub-{k:02d}/anat/sub-{k:02d}_T1w.nii.gz", image)
        if lesion:
            mask = ellipsoid(image.shape, (4, 4, 4), (9, 12, 12)) & (image > 0)
            write(root / f"derivatives/sub-{k:02d}_lesion_mask.nii.gz", mask)
    return root
