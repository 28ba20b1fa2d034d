"""Volumes in scanner space and the steps that move them; millimetres and affines live here.

Arrays are (X, Y, Z) as NIfTI has them until they are stored, and after `to_canonical` the axes
point to the right, the front and the top (RAS+). Each step returns a new volume whose affines
still take a voxel's index to the same point in the scanner, so that nothing drifts on the way to
the store's grid, and `to_scanner` brings a map back.

Sampling on a grid along the same axes is a matrix for each axis, so that `resample` and
`downsample` are three matrix products; NumPy's BLAS makes them several times as fast as an
interpolator that visits each voxel, and they compute the same.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import nibabel as nib
import numpy as np
import scipy.ndimage as ndi
from nibabel import orientations
from threadpoolctl import ThreadpoolController

from uadray.errors import ScanError
from uadray.preparation.settings import MAX_EXTENT_MM, Extent

AXES = ("left_right", "posterior_anterior", "inferior_superior")
"""Names of the axes of a canonical volume, X, Y and Z."""

BRAIN_THRESHOLD = 0.5
"""A voxel is brain where at least this share of it is."""


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
    """float64 (4, 4), from a voxel's index (x, y, z) to the millimetres that the steps work in:
    the scanner's, or after `register` those of the template."""
    world_to_scanner: np.ndarray = field(default_factory=lambda: np.eye(4))
    """float64 (4, 4), from those millimetres to the scanner's."""
    notes: tuple[str, ...] = ()
    """What was assumed or changed when it was read; those that begin with `DOUBT` want a look."""
    image_digest: str = ""
    """Of the image's voxels as they were read, see `identity.image_digest`."""
    placing: Mapping[str, Any] = field(default_factory=dict)
    """Of the file that it was read from, see `nifti.RawImage`."""

    @property
    def scanner_affine(self) -> np.ndarray:
        """float64 (4, 4), from a voxel's index (x, y, z) to the scanner's millimetres."""
        return np.asarray(self.world_to_scanner @ self.affine)

    @property
    def spacing(self) -> np.ndarray:
        """Edge lengths of a voxel in mm, (3,)."""
        return voxel_sizes(self.affine)


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
        grid = zip(old, new, step, offset, strict=True)
        return along_axes(
            array, [_spline(int(n), o + s * np.arange(m), order) for n, m, s, o in grid]
        )

    return replace(
        volume,
        image=sample(volume.image, 3).clip(volume.image.min(), volume.image.max()),
        brain=sample(volume.brain, 1) >= BRAIN_THRESHOLD,
        lesion=None if volume.lesion is None else sample(volume.lesion, 1),
        affine=_regrid(volume.affine, step, offset),
    )


def brain_box(brain: np.ndarray, margin: int = 0) -> tuple[slice, slice, slice]:
    """The smallest box that holds a brain mask, and a margin where the array has one.

    Args:
        brain: bool (X, Y, Z).
        margin: In voxels.

    Raises:
        ScanError: the mask is empty.
    """
    slices = []
    for axis in range(3):
        other = tuple(k for k in range(3) if k != axis)
        where = np.flatnonzero(brain.any(axis=other))
        if len(where) == 0:
            raise ScanError("the brain mask is empty on the grid of the steps: look at the mask")
        slices.append(slice(max(0, int(where[0]) - margin), int(where[-1]) + 1 + margin))
    x, y, z = slices
    return x, y, z


def crop_to_brain(volume: Volume) -> Volume:
    """Cut to the smallest box that holds the brain mask (Bengs 2021, section 2.1)."""
    box = brain_box(volume.brain)
    affine = _regrid(volume.affine, np.ones(3), np.array([s.start for s in box], float))
    return replace(_map(volume, lambda a: a[box]), affine=affine)


def pad_to_extent(volume: Volume, *, extent: Extent, grow: bool, max_cut: float) -> Volume:
    """Pad with zeros, the brain's box in the middle (Bengs 2021, section 2.1).

    Args:
        volume: Cropped to its brain.
        extent: The box.
        grow: See `fit_extent`.
        max_cut: Likewise.

    Raises:
        ScanError: see `fit_extent`.
    """
    spacing = float(volume.spacing.mean())
    size = np.array(volume.image.shape)
    target = np.array(extent.voxels(spacing))
    start = np.maximum(0, (size - target) // 2)
    middle = tuple(slice(a, a + n) for a, n in zip(start, np.minimum(size, target), strict=True))
    lost = 1.0 - float(volume.brain[middle].sum()) / float(volume.brain.sum())
    fitted, notes = fit_extent(extent, size, lost, spacing, grow=grow, max_cut=max_cut)
    if fitted == extent:
        affine = _regrid(volume.affine, np.ones(3), start.astype(float))
        volume = replace(_map(volume, lambda a: a[middle]), affine=affine)
        size = np.minimum(size, target)
    target = np.array(fitted.voxels(spacing))
    before = (target - size) // 2
    widths = list(zip(before, target - size - before, strict=True))
    affine = _regrid(volume.affine, np.ones(3), -before.astype(float))
    padded = _map(volume, lambda a: np.pad(a, widths))
    return replace(padded, affine=affine, notes=(*volume.notes, *notes))


def fit_extent(
    extent: Extent,
    needed: np.ndarray,
    lost: float,
    spacing: float,
    *,
    grow: bool,
    max_cut: float,
) -> tuple[Extent, tuple[str, ...]]:
    """The extent for one brain.

    Args:
        extent: The box that was asked for.
        needed: Voxels that it has to hold along X, Y and Z, (3,).
        lost: Share of the brain outside of it.
        spacing: Edge length of a voxel in mm.
        grow: Whether a larger brain gets a larger box of the same proportions, so that it keeps
            its shape on the store's grid and is only drawn smaller.
        max_cut: Largest share of the brain that may be cut off instead.

    Returns:
        The box, and a note where it grew or cuts.

    Raises:
        ScanError: the brain is larger, and neither is allowed; or larger than any head.
    """
    over = needed > np.array(extent.voxels(spacing))
    if not over.any():
        return extent, ()
    needed_mm = needed * spacing
    if grow:
        x, y, z = (extent.mm * (needed_mm / extent.mm).max()).tolist()
        if max(x, y, z) > MAX_EXTENT_MM:
            raise ScanError(
                f"the extent would have to grow to {x:.0f} x {y:.0f} x {z:.0f} mm to hold this "
                f"brain, the limit is {MAX_EXTENT_MM:g}: see whether its voxel sizes and its mask "
                "are right"
            )
        grown = Extent(left_right=x, posterior_anterior=y, inferior_superior=z)
        return grown, (f"extent grown to {x:.0f} x {y:.0f} x {z:.0f} mm",)
    if lost <= max_cut:
        return extent, (f"{lost:.2%} of the brain lie outside the extent and are cut off",)
    too_large = ", ".join(
        f"{name} {need:.0f} mm (limit {limit:.0f})"
        for name, need, limit, is_over in zip(AXES, needed_mm, extent.mm, over, strict=True)
        if is_over
    )
    flags = " ".join(
        f"--{name.replace('_', '-')} {np.ceil(need):.0f}"
        for name, need, is_over in zip(AXES, needed_mm, over, strict=True)
        if is_over
    )
    raise ScanError(
        f"the brain's box is larger than the extent: {too_large}, {lost:.2%} of the brain lie "
        "outside; if the scan still has its skull, give a brain mask or choose a --skull-strip; "
        f"else pass {flags} for the whole cohort, or for such scans alone --grow-extent or "
        "--max-cut"
    )


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
    matrices = [_area(n, m) for n, m in zip(volume.image.shape, target, strict=True)]
    return replace(
        volume,
        image=along_axes(volume.image, matrices),
        brain=along_axes(volume.brain, matrices) >= BRAIN_THRESHOLD,
        lesion=None if volume.lesion is None else along_axes(volume.lesion, matrices),
        affine=_regrid(volume.affine, factor, (factor - 1) / 2),
    )


def resize_nearest(volume: Volume, *, shape: tuple[int, int, int]) -> Volume:
    """Take of each new voxel the old one that holds its centre (Meissen 2021, by its code).

    The code takes the voxel at each new one's lower edge, which moves all by up to half a voxel.

    Args:
        volume: On the grid of the extent.
        shape: (Z, Y, X) of the result; at its own shape nothing happens.

    Returns:
        The volume. A lesion that lies between all voxels that are taken keeps its best one, at the
        new voxel that holds it.
    """
    target = shape[::-1]
    old = np.array(volume.image.shape)
    if target == volume.image.shape:
        return volume
    factor = old / target
    places = [((np.arange(m) + 0.5) * f).astype(int) for m, f in zip(target, factor, strict=True)]
    taken = _map(volume, lambda a: a[np.ix_(*places)])
    lesion, kept = volume.lesion, taken.lesion
    if lesion is not None and kept is not None and not kept[taken.brain].any():
        best = brain_best(lesion, volume.brain)
        kept[tuple((np.array(best) / factor).astype(int))] = lesion[best]
    return replace(taken, affine=_regrid(volume.affine, factor, (factor - 1) / 2))


def brain_best(share: np.ndarray, brain: np.ndarray) -> tuple[int, ...]:
    """The voxel of a brain, (X, Y, Z), that holds most of a lesion; the first of equals."""
    inside = np.where(brain, share, np.float32(0))
    return tuple(int(k) for k in np.unravel_index(inside.argmax(), share.shape))


def along_axes(array: np.ndarray, matrices: Sequence[np.ndarray]) -> np.ndarray:
    """Multiply each axis of an array by a matrix of its own.

    Args:
        array: (X, Y, Z), of any real type.
        matrices: float32 (X', X), (Y', Y) and (Z', Z).

    Returns:
        float32 (X', Y', Z'). The same input gives the same bits on the same kind of CPU, for BLAS
        gets one thread: with more, the order of its sums would follow their number.
    """
    x, y, z = matrices
    array = np.asarray(array, np.float32)
    with _blas().limit(limits=1, user_api="blas"):
        array = (x @ array.reshape(len(array), -1)).reshape(len(x), *array.shape[1:])
        return np.asarray(np.matmul(y, array) @ z.T)


@lru_cache(maxsize=1)
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


def _spline(num: int, at: np.ndarray, order: int) -> np.ndarray:
    """The matrix that evaluates a line of `num` samples at the indices `at`, (len(at), num).

    The spline is linear or cubic, and beyond its ends the line is mirrored at its outer samples,
    as `scipy.ndimage` does in the mode mirror.
    """
    left = np.floor(at).astype(int)
    t = at - left
    if order == 1:
        taps = {0: 1 - t, 1: t}
    else:
        taps = {
            -1: (1 - t) ** 3 / 6,
            0: 2 / 3 - t**2 * (2 - t) / 2,
            1: 2 / 3 - (1 - t) ** 2 * (1 + t) / 2,
            2: t**3 / 6,
        }
    matrix = np.zeros((len(at), num))
    for shift, weight in taps.items():
        folded = np.abs(left + shift) % (2 * num - 2)
        np.add.at(matrix, (np.arange(len(at)), np.minimum(folded, 2 * num - 2 - folded)), weight)
    if order == 3:
        # From samples to the coefficients of the B-splines that pass through them.
        matrix = matrix @ ndi.spline_filter1d(np.eye(num), 3, axis=0, mode="mirror")
    return matrix.astype(np.float32)


def _area(num: int, new: int) -> np.ndarray:
    """The matrix that averages a line of `num` samples over `new` equal intervals, (new, num)."""
    edges = np.arange(new + 1) * (num / new)
    cells = np.arange(num)
    covered = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
    return (np.maximum(covered, 0.0) * (new / num)).astype(np.float32)


def to_scanner(
    map_zyx: np.ndarray,
    affine: np.ndarray,
    like_affine: np.ndarray,
    like_shape: tuple[int, int, int],
    order: int = 1,
) -> np.ndarray:
    """Sample a map of the store's grid on a scanner's grid; 0 outside the store's grid.

    Args:
        map_zyx: (Z, Y, X) scores or a mask.
        affine: (4, 4) of the store's subject, from a voxel's index (x, y, z) to scanner mm.
        like_affine: (4, 4) of the scan that the map is to lie on, in any orientation.
        like_shape: (X, Y, Z) of that scan, in the order of its file.
        order: Of the spline: 0 for labels, 1 for scores.

    Returns:
        float32 in the axis order of the scan's file, to be saved with `like_affine`.
    """
    grid = np.linalg.inv(affine) @ like_affine
    array = map_zyx.T.astype(np.float32)
    axes = _axes_of(grid, like_shape) if order <= 1 else None
    if axes is None:
        return np.asarray(
            ndi.affine_transform(
                array, grid[:3, :3], grid[:3, 3], like_shape, order=order, mode="grid-constant"
            )
        )
    # Grids along the same axes, as most are: ten times as fast.
    matrices = [
        _constant_beyond(n, grid[i, j] * np.arange(like_shape[j]) + grid[i, 3], order)
        for i, (j, n) in enumerate(zip(axes, array.shape, strict=True))
    ]
    return np.ascontiguousarray(along_axes(array, matrices).transpose(np.argsort(axes)))


def _axes_of(grid: np.ndarray, shape: tuple[int, int, int]) -> list[int] | None:
    """For each axis of one grid the axis of another that runs along it; None where some slant.

    Args:
        grid: (4, 4), from the other's indices to the one's.
        shape: Of the other.
    """
    reach = np.abs(grid[:3, :3]) * shape
    axes = reach.argmax(axis=1)
    reach[np.arange(3), axes] = 0
    if len(set(axes.tolist())) < 3 or reach.max() > 1e-3:
        return None
    return [int(axis) for axis in axes]


def _constant_beyond(num: int, at: np.ndarray, order: int) -> np.ndarray:
    """The matrix that samples a line of `num` samples, 0 beyond its ends, at `at`."""
    left = np.floor(at if order else at + 0.5).astype(int)
    taps = [(left, 1 - (at - left)), (left + 1, at - left)] if order else [(left, np.ones(len(at)))]
    matrix = np.zeros((len(at), num), np.float32)
    for place, weight in taps:
        inside = (place >= 0) & (place < num)
        matrix[np.flatnonzero(inside), place[inside]] += weight[inside]
    return matrix


def to_nifti(array: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    """A (Z, Y, X) array of the store as a NIfTI image in scanner space; bool becomes uint8."""
    array = array.astype(np.uint8) if array.dtype == bool else array.astype(np.float32)
    return nib.Nifti1Image(np.ascontiguousarray(array.T), affine)
