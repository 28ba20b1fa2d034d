"""A map from outside on the grid of its scan in a cohort: where it lies, and its scores there."""

from typing import Any

import numpy as np
from nibabel import orientations
from numpy.typing import NDArray

from uadray.errors import ScanError
from uadray.evaluation.maps_settings import MapsConfig
from uadray.preparation.geometry import to_scanner, voxel_sizes
from uadray.preparation.layouts import PHANTOM_SCHEME
from uadray.preparation.masks import DOUBT_INSIDE, GRID_TOLERANCE_MM, MIN_INSIDE, average_on
from uadray.preparation.nifti import RawImage, corner_distance, read_image


def on_grid(
    raw: RawImage,
    path: str,
    affine: NDArray[np.float64],
    brain: NDArray[np.bool_],
    source: str,
    config: MapsConfig,
) -> tuple[NDArray[np.float32], list[str]]:
    """A map on the grid of its scan in the cohort.

    One that lies on that grid is taken as it is. Any other is averaged over the cohort's voxels,
    as masks are, or sampled at their centres, at the place that the affines of both give; a map
    with as many voxels as its scan or as the cohort's grid has to lie where these do.

    Args:
        raw: The map as its file has it.
        path: For messages.
        affine: (4, 4) of the scan in the cohort, from a voxel's index (x, y, z) to scanner mm.
        brain: (Z, Y, X) mask in the cohort.
        source: The file of the scan; compared where it is still there.
        config: How maps are read.

    Returns:
        (Z, Y, X) scores, finite, and notes.

    Raises:
        ScanError: it lies elsewhere, or has no score in the brain.
    """
    raw, notes = _placed(raw, path, affine, brain.shape[::-1], source, config)
    target: tuple[int, int, int] = brain.T.shape

    def bring(array: NDArray[np.float32]) -> NDArray[np.float32]:
        if config.resample == "linear":
            return to_scanner(array.T, raw.affine, affine, target)
        return average_on(array, raw.affine, affine, target)

    finite = np.isfinite(raw.voxels)
    if not finite.any():
        raise ScanError(f"{path}: expected scores, but no voxel is finite; write it again")
    lowest = raw.voxels[finite].min()
    share: NDArray[Any] = np.ones(target, np.float32)
    if _is_on(raw, affine, target):
        values = np.where(finite, raw.voxels, lowest)
        share = finite.astype(np.float32)
        outside = np.zeros(target, bool)
    else:
        # Beyond its outer voxels the sampled map is 0, so that the lowest score has to be.
        with np.errstate(over="ignore"):  # refused where it is in the brain
            above = np.where(finite, raw.voxels - lowest, np.float32(0))
        values = bring(above)
        if not finite.all():
            share = bring(finite.astype(np.float32))
            values = values / np.maximum(share, np.float32(1e-6))
        values = values + lowest
        outside = ~_within(raw, affine, target)
    num = int(brain.sum())
    off = int((outside.T & brain).sum())
    if off > (1 - MIN_INSIDE) * num:
        raise ScanError(
            f"{path}: by its affine {off / num:.0%} of the brain lie outside of the map; write it "
            "with the affine of its scan"
        )
    if off > (1 - DOUBT_INSIDE) * num:
        notes.append(f"{off / num:.0%} of the brain lie outside of the map: no anomaly there")
    bad = int(((share < 0.5) & ~outside & brain.T).sum())
    if bad:
        raise ScanError(
            f"{path}: {bad} of {num} voxels of the brain are NaN or infinite; write scores there, "
            "the lowest where there is nothing to say"
        )
    if not finite.all():
        notes.append(f"{(~finite).sum()} voxels are NaN or infinite, no voxel of the brain is")
    return np.ascontiguousarray(values.T, np.float32), notes


def _placed(
    raw: RawImage,
    path: str,
    affine: NDArray[np.float64],
    target: tuple[int, ...],
    source: str,
    config: MapsConfig,
) -> tuple[RawImage, list[str]]:
    """The map with its axes along the scanner's, at its place.

    Raises:
        ScanError: it has as many voxels as its scan, or as the cohort's grid, and lies elsewhere,
            or it records no place and that of its scan is not known to be its own.
    """
    shape = raw.voxels.shape
    grid = RawImage(voxels=np.empty(target), affine=affine, oriented=True, notes=())
    scan = None if raw.oriented and _is_on(raw, affine, target) else _scan_of(source)
    places = [("the cohort's grid", _turned(grid))]
    if scan is not None:
        # Where both have as many voxels the scan is meant: that is what other software sees.
        places.insert(0, (f"its scan {source}", _turned(scan)))
    if not raw.oriented:
        # A map of a scan in a file has that file's axes: on the cohort's grid, of as many voxels by
        # chance, left and right could be exchanged.
        what, one = ("its scan", scan) if _is_file(source) else ("the cohort's grid", grid)
        if one is not None and one.voxels.shape == shape:
            moved = _with(raw, one.affine)
            return _turned(moved), [f"the file records no orientation, taken as on {what}"]
        why = (
            f"its scan {source} is gone or records none either"
            if one is None
            else f"its {shape} voxels are not those of {what} ({one.voxels.shape})"
        )
        raise ScanError(
            f"{path}: records no orientation, and {why}, so that its place is unknown; write it "
            "with the affine of its scan"
        )
    turned = _turned(raw)
    alike = [(what, one) for what, one in places if one.voxels.shape == turned.voxels.shape]
    distances = [corner_distance(turned.affine, one.affine, one.voxels.shape) for _, one in alike]
    if not alike or config.by_affine:
        return turned, [] if config.by_affine else [f"{shape} voxels, placed by its affine"]
    nearest = int(np.argmin(distances))
    what, one = alike[nearest]
    if distances[nearest] <= GRID_TOLERANCE_MM:
        return _with(turned, one.affine), []
    if distances[nearest] <= float(voxel_sizes(one.affine).min()) / 2:
        return _with(turned, one.affine), [
            f"lies {distances[nearest]:.2f} mm off {what}, taken as on it"
        ]
    raise ScanError(
        f"{path}: has as many voxels as {alike[0][0]}, but lies up to {distances[0]:.1f} mm "
        "elsewhere by its affine; write it with the affine of its scan, or pass --by-affine if it "
        "is right"
    )


def _is_file(source: str) -> bool:
    """Whether the cohort records which file a scan was read from."""
    return bool(source) and not source.startswith(PHANTOM_SCHEME)


def _scan_of(source: str) -> RawImage | None:
    """The scan of the cohort in its file; None where it is gone or records no place."""
    if not _is_file(source):
        return None
    try:
        scan = read_image(source)
    except (ScanError, OSError):
        return None
    return scan if scan.oriented else None


def _with(raw: RawImage, affine: NDArray[np.float64]) -> RawImage:
    return RawImage(voxels=raw.voxels, affine=affine, oriented=True, notes=raw.notes)


def _turned(raw: RawImage) -> RawImage:
    """With axes that point as nearly as can be to the right, the front and the top."""
    turn = orientations.io_orientation(raw.affine)
    inverse = orientations.inv_ornt_aff(turn, raw.voxels.shape)
    voxels = orientations.apply_orientation(raw.voxels, turn)
    return RawImage(
        voxels=voxels, affine=raw.affine @ inverse, oriented=raw.oriented, notes=raw.notes
    )


def _is_on(raw: RawImage, affine: NDArray[np.float64], target: tuple[int, ...]) -> bool:
    same = raw.voxels.shape == target
    return same and corner_distance(raw.affine, affine, target) <= GRID_TOLERANCE_MM


def _within(
    raw: RawImage, affine: NDArray[np.float64], target: tuple[int, int, int]
) -> NDArray[np.bool_]:
    """(X, Y, Z) which of the cohort's voxels have their centre inside the map's box."""
    to_map = np.linalg.inv(raw.affine) @ affine
    index = np.indices(target, np.float32).reshape(3, -1)
    at = to_map[:3, :3] @ index + to_map[:3, 3:]
    size = np.array(raw.voxels.shape)[:, None]
    return np.asarray(((at >= -0.5) & (at <= size - 0.5)).all(0).reshape(target))
