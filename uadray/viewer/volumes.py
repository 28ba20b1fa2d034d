"""Volumes for the viewer's page: turned, cropped and quantised until they are small enough.

All volumes of a case share one grid: that of the scan, with the axes flipped and permuted so that
they point as nearly as can be to the right, the front and the top (nothing is interpolated), cut
to the box around the brain. Intensities keep 256 levels between 0 and their 99.9th percentile;
scores keep 255, laid so that the frozen threshold falls between two of them: what the page shows
above that threshold is what the scores themselves have above it. Proposal and truth share one
volume of labels and are exact.
"""

import base64
import gzip
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib
import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from uadray import files
from uadray.errors import ConfigError

Source = str | os.PathLike[str] | nib.spatialimages.SpatialImage
"""A volume: an image of nibabel, or the local path or fsspec URL of a NIfTI file."""

MARGIN_MM = 6.0
"""Kept around the brain on each side."""

MAX_VOXELS = 12_000_000
"""Of one volume on the page; finer grids are shown at a half, a third, ... of their resolution.
A head at 1 mm has about four million voxels in the box around its brain."""

PROPOSAL, TRUTH = 1, 2
"""Bits of the labels."""

THUMBNAIL_PIXELS = 192
"""Longer side of a thumbnail."""

_ORANGE, _BLUE = (255, 140, 0), (86, 180, 233)


@dataclass(frozen=True, kw_only=True)
class Levels:
    """How 8-bit levels stand for values: `low + slope * level`."""

    low: float
    """Value of level 0."""
    slope: float
    """Value of one level."""

    def of(self, values: NDArray[np.floating]) -> NDArray[np.uint8]:
        """The nearest level of each value; NaN is level 0."""
        scaled = np.nan_to_num((values - self.low) / self.slope, nan=0.0, posinf=255, neginf=0)
        return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


@dataclass(frozen=True, kw_only=True)
class CaseVolumes:
    """What the page holds of one case; arrays are (X, Y, Z), RAS+ as nearly as can be."""

    scan: NDArray[np.uint8]
    """Intensities as levels."""
    scan_levels: Levels
    """Of the scan."""
    reconstruction: NDArray[np.uint8] | None
    """Intensities as levels; None where the method has none."""
    reconstruction_levels: Levels | None
    """Of the reconstruction."""
    spread: NDArray[np.uint8] | None
    """Spread over members as levels, 0 outside the brain; None where there is none."""
    spread_levels: Levels | None
    """Of the spread."""
    anomaly: NDArray[np.uint8]
    """Scores as levels; 0 outside the brain."""
    anomaly_levels: Levels
    """Of the scores."""
    labels: NDArray[np.uint8] | None
    """`PROPOSAL` and `TRUTH` as bits; None where neither is there."""
    has_truth: bool
    """Whether a truth was given."""
    has_proposal: bool
    """Whether a proposal was given."""
    affine: NDArray[np.float64]
    """(4, 4), from a voxel's index to the scanner's mm."""
    slice_scores: NDArray[np.float64]
    """(Z,) highest score of each axial slice, unrounded."""
    peak: tuple[int, int, int]
    """Voxel of the highest score."""
    file_slices: tuple[int, int, int]
    """Axis of the scan's file that runs upward or downward (0 to 2), the index along it of the
    first slice here, and the step (negative where the file runs downward)."""
    factor: int
    """1, or how many voxels of the scan along each axis make one here."""


def load_volumes(
    *,
    scan: Source,
    anomaly: Source,
    proposal: Source | None = None,
    reconstruction: Source | None = None,
    spread: Source | None = None,
    truth: Source | None = None,
    brain: Source | None = None,
    threshold: float | None = None,
) -> CaseVolumes:
    """Read and prepare the volumes of one case.

    Args:
        scan: The scan, (X, Y, Z) in any orientation.
        anomaly: Scores on the scan's grid, higher means more anomalous; 0 outside the brain.
        proposal: Mask on the scan's grid.
        reconstruction: Intensities on the scan's grid.
        spread: Standard deviation of the scores over members, on the scan's grid.
        truth: Mask on the scan's grid.
        brain: Mask on the scan's grid; where None, the voxels that have a score.
        threshold: Frozen threshold of the scores, if any.

    Raises:
        ConfigError: a volume lies on another grid than the scan, or is not three-dimensional.
    """
    images = {
        name: _canonical(source, name)
        for name, source in {
            "scan": scan,
            "anomaly": anomaly,
            "proposal": proposal,
            "reconstruction": reconstruction,
            "spread": spread,
            "truth": truth,
            "brain": brain,
        }.items()
        if source is not None
    }
    head: Any = images["scan"][0]
    arrays: dict[str, NDArray[Any]] = {}
    for name, (image, _) in images.items():
        if image.shape != head.shape or not np.allclose(image.affine, head.affine, atol=1e-2):
            raise ConfigError(
                f"{name} lies on another grid than the scan ({image.shape} voxels, the scan has "
                f"{head.shape}): bring it to the scan's grid first"
            )
        arrays[name] = np.asanyarray(image.dataobj, dtype=np.float32)
    inside = arrays["brain"] > 0.5 if "brain" in arrays else arrays["anomaly"] != 0
    arrays["brain"] = inside
    box = _box(inside if inside.any() else arrays["scan"] > 0, head.affine)
    cut = {name: array[box] for name, array in arrays.items()}
    affine = head.affine @ _shift([side.start for side in box])
    factor = 1
    while cut["scan"].size / factor**3 > MAX_VOXELS:
        factor += 1
    if factor > 1:
        cut = {
            name: _shrink(array, factor, mean=name in ("scan", "reconstruction"))
            for name, array in cut.items()
        }
        affine = affine @ _grow(factor)
    axis, first, step = images["scan"][1]
    start = box[2].start
    return _quantised(
        cut,
        affine,
        threshold,
        file_slices=(axis, first + step * start, step),
        factor=factor,
    )


def _quantised(
    cut: Mapping[str, NDArray[Any]],
    affine: NDArray[np.float64],
    threshold: float | None,
    *,
    file_slices: tuple[int, int, int],
    factor: int,
) -> CaseVolumes:
    scores = np.where(cut["brain"], np.nan_to_num(cut["anomaly"]), 0.0)
    scan_levels = _intensity_levels(cut["scan"])
    again = cut.get("reconstruction")
    again_levels = None if again is None else _intensity_levels(again)
    spread, spread_levels = None, None
    if "spread" in cut:
        values = np.where(cut["brain"], np.nan_to_num(cut["spread"]), 0.0)
        spread_levels = score_levels(values, None)
        spread = spread_levels.of(values)
    labels = None
    for name, bit in (("proposal", PROPOSAL), ("truth", TRUTH)):
        if name in cut:
            mask = np.where(cut[name] > 0.5, bit, 0).astype(np.uint8)
            labels = mask if labels is None else labels | mask
    levels = score_levels(scores, threshold)
    inside = cut["brain"]
    held = np.where(inside, levels.of(scores), 0).astype(np.uint8)
    has_any = inside.any()
    masked = np.where(inside, scores, -np.inf) if has_any else scores
    peaks = masked.max((0, 1))
    x, y, z = (int(k) for k in np.unravel_index(int(masked.argmax()), masked.shape))
    return CaseVolumes(
        scan=scan_levels.of(cut["scan"]),
        scan_levels=scan_levels,
        reconstruction=None if again_levels is None else again_levels.of(again),  # type: ignore[arg-type]
        reconstruction_levels=again_levels,
        spread=spread,
        spread_levels=spread_levels,
        anomaly=held,
        anomaly_levels=levels,
        labels=labels,
        has_truth="truth" in cut,
        has_proposal="proposal" in cut,
        affine=affine,
        slice_scores=np.where(np.isfinite(peaks), peaks, 0.0).astype(np.float64),
        peak=(x, y, z),
        file_slices=file_slices,
        factor=factor,
    )


def score_levels(scores: NDArray[np.floating], threshold: float | None) -> Levels:
    """Levels from the lowest score (at most 0) to the highest, with the threshold between two."""
    low = min(0.0, float(scores.min()))
    high = float(scores.max())
    slope = (high - low) / 255 if high > low else 1.0
    if threshold is None or not low < threshold:
        return Levels(low=low, slope=slope)
    # Halfway between two levels, and never so that the highest score would not fit.
    place = max(0, int(np.floor((threshold - low) / slope - 0.5))) + 0.5
    return Levels(low=low, slope=(threshold - low) / place if place < 255 else slope)


def _intensity_levels(values: NDArray[np.floating]) -> Levels:
    finite = values[np.isfinite(values) & (values != 0)]
    if not finite.size:
        return Levels(low=0.0, slope=1.0)
    low = min(0.0, float(np.percentile(finite, 0.1)))
    high = float(np.percentile(finite, 99.9))
    return Levels(low=low, slope=(high - low) / 255 if high > low else 1.0)


def encode(
    array: NDArray[np.uint8], affine: NDArray[np.float64], levels: Levels | None = None
) -> str:
    """A volume as the base64 of a `.nii.gz` file; any NIfTI reader scales its levels back."""
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.header.set_slope_inter(*((levels.slope, levels.low) if levels else (1.0, 0.0)))
    return base64.b64encode(gzip.compress(image.to_bytes(), 9, mtime=0)).decode()


def thumbnail(volumes: CaseVolumes, threshold: float | None) -> bytes:
    """A PNG of the axial slice with the highest score: scan, scores, outlines; anterior is up.

    Args:
        volumes: The case.
        threshold: Scores above it are coloured; where None, the highest hundredth.
    """
    z = volumes.peak[2]
    # Rows from posterior to anterior, columns from left to right; an image's first row is on top.
    scan, levels = (volume[:, :, z].T[::-1] for volume in (volumes.scan, volumes.anomaly))
    spacing = np.linalg.norm(volumes.affine[:3, :3], axis=0)[:2]
    size = np.array(scan.shape[::-1]) * spacing
    wide, high = np.maximum(1, np.rint(size * THUMBNAIL_PIXELS / size.max())).astype(int).tolist()
    scores = volumes.anomaly_levels
    if threshold is None:
        inside = volumes.anomaly[volumes.anomaly > 0]
        least = float(np.percentile(inside, 99)) if inside.size else 255.0
    else:
        least = (threshold - scores.low) / scores.slope
    grey = np.asarray(Image.fromarray(scan).resize((wide, high), Image.Resampling.BICUBIC))
    heat = np.asarray(Image.fromarray(levels).resize((wide, high), Image.Resampling.NEAREST))
    picture = np.repeat(grey[..., None], 3, axis=2)
    warm = (matplotlib.colormaps["inferno"](heat)[..., :3] * 255).astype(np.uint8)
    above = (heat > least)[..., None]
    picture = np.where(above, (0.45 * picture + 0.55 * warm).astype(np.uint8), picture)
    if volumes.labels is not None:
        plane = Image.fromarray(volumes.labels[:, :, z].T[::-1])
        large = np.asarray(plane.resize((wide, high), Image.Resampling.NEAREST))
        for bit, colour in ((TRUTH, _BLUE), (PROPOSAL, _ORANGE)):
            mask = (large & bit) > 0
            picture[mask & ~ndimage.binary_erosion(mask)] = colour
    buffer = io.BytesIO()
    # Few voxels have a colour: the usual way to choose a palette would leave them out.
    palette = Image.fromarray(picture).quantize(192, method=Image.Quantize.MAXCOVERAGE)
    palette.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _canonical(source: Source, name: str) -> tuple[Any, tuple[int, int, int]]:
    """The image along RAS+, and the axis, first index and step of the file's axial slices."""
    image = source if isinstance(source, nib.spatialimages.SpatialImage) else _read(source)
    if len(image.shape) == 4 and image.shape[3] == 1:
        image = image.slicer[..., 0]
    if len(image.shape) != 3:
        raise ConfigError(f"{name} must have three dimensions, has shape {image.shape}")
    orientation = nib.io_orientation(image.affine)
    axis = int(np.flatnonzero(orientation[:, 0] == 2)[0])
    up = orientation[axis, 1] > 0
    along = (axis, 0 if up else image.shape[axis] - 1, 1 if up else -1)
    return nib.as_closest_canonical(image), along


def _read(source: str | os.PathLike[str]) -> Any:
    url = files.normalise(source)
    if not files.is_remote(url):
        return nib.load(url)
    content = files.read_bytes(url)
    if content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    return nib.Nifti1Image.from_bytes(content)


def _box(mask: NDArray[np.bool_], affine: NDArray[np.float64]) -> tuple[slice, slice, slice]:
    margins = np.ceil(MARGIN_MM / np.linalg.norm(affine[:3, :3], axis=0)).astype(int)
    sides = []
    for axis, margin in enumerate(margins.tolist()):
        others = tuple(k for k in range(3) if k != axis)
        indices = np.flatnonzero(mask.any(others))
        length = mask.shape[axis]
        first, last = (int(indices[0]), int(indices[-1])) if indices.size else (0, length - 1)
        sides.append(slice(max(0, first - margin), min(length, last + 1 + margin)))
    return sides[0], sides[1], sides[2]


def _shift(voxels: list[int]) -> NDArray[np.float64]:
    shifted = np.eye(4)
    shifted[:3, 3] = voxels
    return shifted


def _grow(factor: int) -> NDArray[np.float64]:
    """Indices of blocks to indices of voxels; a block's middle lies between its voxels."""
    grown = np.diag([factor, factor, factor, 1.0])
    grown[:3, 3] = (factor - 1) / 2
    return grown


def _shrink(array: NDArray[Any], factor: int, *, mean: bool) -> NDArray[Any]:
    """Means of blocks for intensities; the largest of a block for scores and masks."""
    pad = [(0, -n % factor) for n in array.shape]
    x, y, z = (n // factor for n in np.add(array.shape, [p[1] for p in pad]))
    blocks = np.pad(array, pad, mode="edge").reshape(x, factor, y, factor, z, factor)
    return np.asarray(blocks.mean((1, 3, 5)) if mean else blocks.max((1, 3, 5)))
