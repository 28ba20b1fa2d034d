"""Brain and lesion masks: labels or probabilities in a file become a share on the scan's grid."""

import numpy as np
import scipy.ndimage as ndi

from uadray.errors import ScanError
from uadray.preparation.geometry import voxel_ml, voxel_sizes
from uadray.preparation.nifti import RawImage, corner_distance, read_image
from uadray.preparation.settings import DOUBT

GRID_TOLERANCE_MM = 0.05
"""Largest distance between a mask's corners and its scan's that is not worth a note."""

MIN_INSIDE, DOUBT_INSIDE = 0.5, 0.98
"""Least share of a mask that lies in its scan's box, at all and without a doubt."""

LABEL_TOLERANCE = 1e-3
"""A mask whose values are all so near whole numbers holds labels (files with a scaled type, such as
those of ATLAS R1, miss them by 1e-7)."""

SHARE_OVERSHOOT = 0.25
"""By how much interpolation may have driven a share below 0 or above 1."""

MAX_LEVELS = 64
"""A mask of bytes with more values than that, not all from 0 up, holds a picture and no labels."""


def read_share(
    path: str,
    scan: RawImage,
    scan_path: str,
    labels: tuple[int, ...] = (),
    *,
    least: float = 0.0,
) -> tuple[np.ndarray, list[str]]:
    """Read a mask as the share of each voxel of the scan that it covers.

    Whole numbers are labels, and each but 0 counts; fractions up to 1 are shares or probabilities
    and stay so, until one threshold decides at the end. A mask on another grid is brought to the
    scan's by the affines of both, averaged over the scan's voxels where its own are finer.

    Args:
        path: Of the mask.
        scan: Whose grid to take.
        scan_path: For messages.
        labels: Those that count, if not all.
        least: Share from which a voxel will count; a mask that reaches it nowhere is refused.

    Returns:
        float32 (X, Y, Z) in [0, 1], all 0 for an empty mask, and notes.

    Raises:
        ScanError: the file holds no mask, or the mask lies elsewhere.
    """
    mask = read_image(path)
    share, notes = _to_share(path, mask.voxels, labels)
    if not share.any():
        return np.zeros(scan.voxels.shape, np.float32), notes
    if (high := float(share.max())) < least:
        raise ScanError(
            f"{path}: expected a mask with values of {least:g} and more, but its largest is "
            f"{high:.3g}: {_small_values(high)}"
        )
    return _to_grid(path, mask, share, scan, scan_path, notes)


def _to_share(
    path: str, voxels: np.ndarray, labels: tuple[int, ...]
) -> tuple[np.ndarray, list[str]]:
    notes = []
    finite = np.isfinite(voxels)
    if not finite.all():
        voxels = np.where(finite, voxels, np.float32(0))
        notes.append(f"{(~finite).sum()} voxels of {_name(path)} are not finite, taken as outside")
    whole = np.rint(voxels)
    # What is above 0 nowhere by a whole number is no label, however small it is.
    if np.abs(voxels - whole).max() <= LABEL_TOLERANCE and (whole.any() or voxels.max() <= 0):
        notes += _check_labels(path, whole)
        counted = np.isin(whole, labels) if labels else whole > 0
        return counted.astype(np.float32), notes
    low, high = float(voxels.min()), float(voxels.max())
    if labels or low < -SHARE_OVERSHOOT or high > 1 + SHARE_OVERSHOOT:
        expected = f"labels {labels}" if labels else "labels, or shares from 0 to 1"
        raise ScanError(
            f"{path}: expected a mask of {expected}, but its values run from {low:g} to {high:g} "
            "with fractions; give a mask"
        )
    notes.append(f"{_name(path)} holds shares or probabilities, not labels")
    return voxels.clip(0.0, 1.0), notes


def _small_values(high: float) -> str:
    """What to do about a mask whose largest value is below the threshold."""
    for scale in (255, 32767, 65535):
        if abs(high * scale - 1) < 0.02:
            return f"it seems to have been divided by {scale}; save it again with 0 and 1"
    return (
        "if it is a mask of 0 and 1 that was scaled, divide it by its largest value; if it holds "
        "probabilities, choose the threshold yourself and save 0 and 1 (for a cohort's lesions "
        "--mask-threshold does so)"
    )


def _check_labels(path: str, whole: np.ndarray) -> list[str]:
    """Refuse what is no mask of labels; a note where it has too many labels for one."""
    low, high = float(whole.min()), float(whole.max())
    if low < 0:
        raise ScanError(f"{path}: expected a mask, but it has values below 0, to {low:g}")
    if high <= MAX_LEVELS:
        return []
    num_levels = len(np.unique(whole))
    # Lesions that are numbered one by one leave no gaps; atlases have gaps, and more than a byte.
    if num_levels > MAX_LEVELS and num_levels < high + 1 and high <= 255:
        raise ScanError(
            f"{path}: expected a mask of labels, or of shares from 0 to 1, but it has "
            f"{num_levels} values up to {high:g}, as a picture has; divide it by its largest "
            "value if it holds probabilities"
        )
    if num_levels > MAX_LEVELS:
        return [
            f"{DOUBT}{_name(path)} has {num_levels} labels, and each but 0 counts: are they "
            "percent, or a picture?"
        ]
    return []


def _to_grid(
    path: str,
    mask: RawImage,
    share: np.ndarray,
    scan: RawImage,
    scan_path: str,
    notes: list[str],
) -> tuple[np.ndarray, list[str]]:
    shape = scan.voxels.shape
    same_shape = share.shape == shape
    if not (mask.oriented and scan.oriented):
        if same_shape:
            return share, notes
        raise ScanError(
            f"{path}: the mask has {share.shape} voxels, its scan {scan_path} has {shape}, and "
            "one of both files records no orientation, so that they cannot be brought together; "
            "resample the mask to the scan's grid"
        )
    distance = corner_distance(mask.affine, scan.affine, shape) if same_shape else np.inf
    if distance <= GRID_TOLERANCE_MM:
        return share, notes
    name = _name(path)
    if distance <= float(voxel_sizes(scan.affine).min()) / 2:
        return share, [*notes, f"{name} lies {distance:.2f} mm off its scan, taken as on its grid"]
    moved = average_on(share, mask.affine, scan.affine, shape)
    inside = float(moved.sum(dtype=np.float64)) * voxel_ml(scan.affine)
    inside /= float(share.sum(dtype=np.float64)) * voxel_ml(mask.affine)
    if inside < MIN_INSIDE:
        raise ScanError(
            f"{path}: by its affine {max(0.0, 1 - inside):.0%} of the mask lies outside of its "
            f"scan {scan_path}; give the scan's own mask, or mend one of the affines"
        )
    doubt = DOUBT if same_shape or inside < DOUBT_INSIDE else ""
    how = (
        f"as many voxels, but up to {distance:.1f} mm apart"
        if same_shape
        else f"{share.shape} voxels"
    )
    note = f"{doubt}{name} lies on another grid ({how}), brought to the scan's by its affine"
    if inside < DOUBT_INSIDE:
        note += f"; {1 - inside:.0%} of it lies outside"
    return moved, [*notes, note]


def average_on(
    share: np.ndarray, affine: np.ndarray, grid: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """Sample linearly at as many points in each voxel of the grid as the mask has voxels there.

    Args:
        share: (X, Y, Z) values; beyond its outer voxels they are 0.
        affine: Of them.
        grid: The affine of the grid that they are brought to.
        shape: Of that grid.
    """
    to_mask = np.linalg.inv(affine) @ grid
    steps = np.maximum(1, np.ceil(voxel_sizes(to_mask) - 0.01)).astype(int)
    total = np.zeros(shape, np.float32)
    for place in np.ndindex(*steps):
        within = (np.array(place) + 0.5) / steps - 0.5
        offset = to_mask[:3, 3] + to_mask[:3, :3] @ within
        total += ndi.affine_transform(
            share, to_mask[:3, :3], offset, shape, order=1, mode="constant", output=np.float32
        )
    return total / np.float32(steps.prod())


def _name(path: str) -> str:
    return path.rsplit("/", 1)[-1]
