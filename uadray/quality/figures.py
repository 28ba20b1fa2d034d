"""Pictures of the quality page: three planes of a scan as small PNGs, and outlines as paths."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage.measure import approximate_polygon, find_contours

from uadray.html import data_uri

MAX_SIDE = 80
"""Pixels along the longest side of a plane; larger scans are reduced to it."""

GREYS = 64
"""Grey levels of a picture: no eye tells more apart here, and more would cost bytes."""

TOLERANCE = 0.35
"""How far a line may be from the mask's border, in voxels; less than half a voxel."""


def planes_through(
    brain: NDArray[np.bool_], lesion: NDArray[np.bool_] | None
) -> tuple[int, int, int]:
    """The axial, coronal and sagittal plane to show of a scan.

    Those with most lesion voxels, of several the first; without a lesion those through the brain's
    centre of mass; the grid's middle where the mask is empty too.
    """
    mask = brain if lesion is None or not lesion.any() else lesion
    counts = [mask.sum(axis=others) for others in ((1, 2), (0, 2), (0, 1))]
    if not mask.any():
        z, y, x = (n // 2 for n in mask.shape)
    elif mask is lesion:
        z, y, x = (int(count.argmax()) for count in counts)
    else:
        z, y, x = (round(float(count @ np.arange(len(count)) / count.sum())) for count in counts)
    return z, y, x


def picture(
    image: NDArray[np.floating],
    brain: NDArray[np.bool_],
    lesion: NDArray[np.bool_] | None,
    *,
    spacing_mm: Sequence[float],
) -> list[dict[str, Any]]:
    """Three planes of a scan, as values that the page's script draws.

    Args:
        image: (Z, Y, X) in [0, 1].
        brain: Mask of the same shape.
        lesion: Mask of the same shape, or None.
        spacing_mm: Voxel sizes (Z, Y, X).

    Returns:
        Axial, coronal and sagittal plane, each with its `index`, its `size` in millimetres (width,
        height), the `box` of its paths' coordinates (half voxels), a `png` and the outlines `brain`
        and `lesion`. The upper edge is anterior in the axial plane, superior in the others; columns
        run from left to right, in the sagittal plane from posterior to anterior.
    """
    scale = min(1.0, MAX_SIDE / max(image.shape))
    drawn = []
    for axis, index in enumerate(planes_through(brain, lesion)):
        height, width = (n for k, n in enumerate(image.shape) if k != axis)
        tall, wide = (mm for k, mm in enumerate(spacing_mm) if k != axis)
        drawn.append(
            {
                "index": index,
                "size": [round(width * wide, 1), round(height * tall, 1)],
                "box": [2 * width, 2 * height],
                "png": grey_png(np.moveaxis(image, axis, 0)[index], scale),
                "brain": outline(np.moveaxis(brain, axis, 0)[index]),
                "lesion": "" if lesion is None else outline(np.moveaxis(lesion, axis, 0)[index]),
            }
        )
    return drawn


def grey_png(plane: NDArray[np.floating], scale: float) -> str:
    """One plane in [0, 1] as a data URI, its last row on top, reduced by `scale` in (0, 1]."""
    levels = np.clip(np.nan_to_num(plane.astype(np.float32)), 0, 1)[::-1]
    grey = Image.fromarray(np.rint(levels * 255).astype(np.uint8))
    if scale < 1:
        width, height = (max(1, round(n * scale)) for n in grey.size)
        grey = grey.resize((width, height), Image.Resampling.BOX)
    step = 255 / (GREYS - 1)
    few = np.rint(np.rint(np.asarray(grey) / step) * step).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(few).save(buffer, format="PNG", optimize=True)
    return data_uri(buffer.getvalue())


def outline(mask: NDArray[np.bool_]) -> str:
    """The border of a mask as an SVG path in half voxels, its last row on top; "" if empty."""
    height = mask.shape[0]
    parts = []
    for line in find_contours(np.pad(mask, 1).astype(np.uint8), 0.5):
        # Borders lie halfway between voxel centres, so that twice a coordinate is whole.
        points = np.rint(2 * approximate_polygon(line, TOLERANCE)).astype(int)[:-1]
        x, y = points[:, 1] - 1, 2 * height + 1 - points[:, 0]
        steps = zip(np.diff(x).tolist(), np.diff(y).tolist(), strict=True)
        numbers = "".join(f"{n}" if n < 0 else f" {n}" for step in steps for n in step)
        parts.append(f"M{x[0]} {y[0]}l{numbers.strip()}z")
    return "".join(parts)
