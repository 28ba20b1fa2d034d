"""Volumes in scanner space and the steps that move them; millimetres and affines live here.

Until `to_store` arrays are (X, Y, Z) as NIfTI has them, and after `to_canonical` the axes point
to the right, the front and the top (RAS+). Each step returns a new volume whose affine still
takes a voxel's index to the same point in the scanner, so that nothing drifts on the way to the
store's grid and back.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import nibabel as nib
import numpy as np
import scipy.ndimage as ndi
from nibabel import orientations
from skimage.transform import resize_local_mean

from uadray.errors import ScanError

AXES = ("left_right", "posterior_anterior", "inferior_superior")
"""Names of the axes of a canonical volume, X, Y and Z."""

BRAIN_THRESHOLD = 0.5
"""A voxel is brain where at least this share of it is."""

DOUBT = "doubt: "
"""How a note begins that somebody should look at, on the quality page for instance."""


@dataclass(frozen=True, kw_only=True)
class Volume:
    """One scan with its masks on one grid."""

    image: np.ndarray
    """float32 (X, Y, Z)."""
    brain: np.ndarray
    """bool (X, Y, Z)."""
    lesion: np.ndarray | None
    """float32 (X, Y, Z): the share of each voxel that is lesion, in [0, 1]. It stays a share until
    the one threshold at the end; None where the scan has no mask."""
    affine: np.ndarray
    """float64 (4, 4), from a voxel's index (x, y, z) to the scanner's millimetres."""
    notes: tuple[str, ...] = ()
    """What was assumed or changed when it was read; those that begin with `DOUBT` want a look."""

    @property
    def spacing(self) -> np.ndarray:
        """Edge lengths of a voxel in mm, (3,)."""
        return voxel_sizes(self.affine)


@dataclass(frozen=True, kw_only=True)
class Extent:
    """The box that every brain is padded to, in mm (Bengs 2021, section 2.1).

    The paper gives 191 x 158 x 163 without naming the axes; only this order of them fits a brain.
    """

    left_right: float = 158.0
    """mm."""
    posterior_anterior: float = 191.0
    """mm."""
    inferior_superior: float = 163.0
    """mm."""

    @property
    def mm(self) -> np.ndarray:
        """In the order of the axes X, Y and Z."""
        return np.array([self.left_right, self.posterior_anterior, self.inferior_superior])

    def voxels(self, spacing: float) -> tuple[int, int, int]:
        """Voxels of that edge length along X, Y and Z."""
        x, y, z = np.maximum(1, np.rint(self.mm / spacing)).astype(int).tolist()
        return x, y, z


def voxel_sizes(affine: np.ndarray) -> np.ndarray:
    """Edge lengths of a voxel in mm, (3,)."""
    return np.asarray(np.linalg.norm(affine[:3, :3], axis=0))


def voxel_ml(affine: np.ndarray) -> float:
    """Volume of a voxel in mL."""
    return float(abs(np.linalg.det(affine[:3, :3]))) / 1000.0


def _map(volume: Volume, function: Callable[[np.ndarray], np.ndarray]) -> Volume:
    lesion = None if volume.lesion is None else function(volume.lesion)
    return replace(
        volume, image=function(volume.image), brain=function(volume.brain), lesion=lesion
    )


def _regrid(affine: np.ndarray, step: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """The affine of a grid whose index i lies at `offset + step * i` of the old one."""
    grid = np.diag([*step, 1.0])
    grid[:3, 3] = offset
    return affine @ grid


def to_canonical(volume: Volume) -> Volume:
    """Flip and permute the axes so that they point as nearly as can be to RAS+; nothing is mixed.

    Args:
        volume: In any orientation, oblique and left-handed ones included.

    Returns:
        The same voxels; an oblique volume stays oblique, and its affine says so.
    """
    orientation = orientations.io_orientation(volume.affine)
    inverse = orientations.inv_ornt_aff(orientation, volume.image.shape)
    moved = _map(
        volume,
        lambda a: np.ascontiguousarray(orientations.apply_orientation(a, orientation)),
    )
    return replace(moved, affine=volume.affine @ inverse)


def resample(volume: Volume, *, spacing_mm: float) -> Volume:
    """Sample on an isotropic grid: the image cubic, the masks linear (Bengs 2021, section 2.1).

    The new grid shares the old one's centre and covers all of it. Cubic splines overshoot at
    edges, so that the image is clamped to the range that it had.

    Args:
        volume: Of any spacing.
        spacing_mm: Edge length of the new voxels.

    Returns:
        The resampled volume; the same one if it has that spacing already.
    """
    step = spacing_mm / volume.spacing
    if np.allclose(step, 1.0, atol=1e-3):
        return volume
    old = np.array(volume.image.shape)
    new = np.maximum(1, np.ceil(old / step - 1e-6)).astype(int)
    offset = ((old - 1) - (new - 1) * step) / 2

    def sample(array: np.ndarray, order: int) -> np.ndarray:
        return np.asarray(
            ndi.affine_transform(
                array.astype(np.float32), step, offset, tuple(new), order=order, mode="mirror"
            )
        )

    image = sample(volume.image, 3).clip(volume.image.min(), volume.image.max())
    return replace(
        volume,
        image=image,
        brain=sample(volume.brain, 1) >= BRAIN_THRESHOLD,
        lesion=None if volume.lesion is None else sample(volume.lesion, 1),
        affine=_regrid(volume.affine, step, offset),
    )


def crop_to_brain(volume: Volume) -> Volume:
    """Cut to the smallest box that holds the brain mask (Bengs 2021, section 2.1)."""
    box = ndi.find_objects(volume.brain.astype(np.int8))
    if not box:
        raise ScanError("the brain mask is empty once it is resampled: look at the mask")
    start = np.array([s.start for s in box[0]], float)
    affine = _regrid(volume.affine, np.ones(3), start)
    return replace(_map(volume, lambda a: a[box[0]]), affine=affine)


def pad_to_extent(volume: Volume, *, extent: Extent) -> Volume:
    """Pad with zeros, the brain's box in the middle (Bengs 2021, section 2.1).

    Raises:
        ScanError: the box is larger than the extent.
    """
    spacing = volume.spacing
    size = np.array(volume.image.shape)
    target = np.array(extent.voxels(float(spacing.mean())))
    if (size > target).any():
        too_large = ", ".join(
            f"{name} {n * s:.0f} mm (limit {limit:.0f})"
            for name, n, s, limit, over in zip(
                AXES, size, spacing, extent.mm, size > target, strict=True
            )
            if over
        )
        raise ScanError(
            f"the brain's box is larger than the extent: {too_large}; if the scan still has its "
            "skull, give a brain mask, else raise the extent for the whole cohort"
        )
    before = (target - size) // 2
    widths = list(zip(before, target - size - before, strict=True))
    affine = _regrid(volume.affine, np.ones(3), -before.astype(float))
    return replace(_map(volume, lambda a: np.pad(a, widths)), affine=affine)


def downsample(volume: Volume, *, shape: tuple[int, int, int]) -> Volume:
    """Average over the area that each new voxel covers.

    The paper names no filter. Interpolation without one aliases at a factor of 3 (it differs from
    the average by 4 to 5 % of the range), and an area average neither rings nor leaves [0, 1].

    Args:
        volume: On the grid of the extent.
        shape: (Z, Y, X) of the result; at its own shape nothing happens.

    Returns:
        The volume, its brain mask cut at `BRAIN_THRESHOLD`, its lesion mask still a share.
    """
    target = shape[::-1]
    if target == volume.image.shape:
        return volume
    factor = np.array(volume.image.shape) / target

    def average(array: np.ndarray) -> np.ndarray:
        scaled = resize_local_mean(array.astype(np.float32), target, preserve_range=True)
        return np.asarray(scaled, np.float32)

    return replace(
        volume,
        image=average(volume.image),
        brain=average(volume.brain) >= BRAIN_THRESHOLD,
        lesion=None if volume.lesion is None else average(volume.lesion),
        affine=_regrid(volume.affine, factor, (factor - 1) / 2),
    )


def to_nifti(array: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    """A (Z, Y, X) array of the store as a NIfTI image in scanner space; bool becomes uint8."""
    array = array.astype(np.uint8) if array.dtype == bool else array.astype(np.float32)
    return nib.Nifti1Image(np.ascontiguousarray(array.T), affine)
