"""From fields to voxels: the points of the output inside the brain, and averages over voxels."""

from dataclasses import dataclass

import numpy as np
import scipy.ndimage as ndi

from uadray.phantom.anatomy import (
    BOX_MM,
    BRAIN,
    DEPTH,
    FIELD_SHAPE,
    Fields,
    Template,
    Tissues,
    axis_centres,
    field_points,
    sample,
    sigmoid,
)

SUPERSAMPLE_UP_TO = 96
"""Largest size that is drawn at twice its resolution and averaged."""


@dataclass(frozen=True, kw_only=True)
class Points:
    """The fine points inside the brain, and what was interpolated there."""

    voxel: np.ndarray
    """int64 (N,): flat index of the output voxel that holds each point."""
    where: np.ndarray
    """float32 (N, 3): position in the output box, mm from its centre."""
    maps: np.ndarray
    """float32 (9, N): the template's maps."""
    fold: np.ndarray
    """float32 (3, N): the folding fields."""
    lesion: np.ndarray
    """float32 (K, N): the lesion's fields, K = 0 for a healthy subject."""


def sample_brain(
    template: Template, fields: Fields, lesion_fields: np.ndarray, size: int
) -> Points:
    """Interpolate everything at the fine points inside the brain, the brain's box centred."""
    brain_map = template.maps[BRAIN : BRAIN + 1]
    coarse = sample(brain_map, field_points() + fields.warp.reshape(3, -1).T)[0]
    coarse = coarse.reshape(FIELD_SHAPE)
    box = ndi.find_objects((coarse > 0.5).astype(np.int8))[0]
    middle = np.array([(s.start + s.stop) / 2 for s in box]) / FIELD_SHAPE - 0.5
    near = ndi.binary_dilation(coarse > 0.05, np.ones((3, 3, 3), bool))
    # Output axes first in (Z, Y, X): centres, and the nearest cell of the field grid.
    fine = size * (2 if size <= SUPERSAMPLE_UP_TO else 1)
    centres = [axis_centres(fine, extent) for extent in BOX_MM[::-1]]
    shift = (middle * BOX_MM[::-1]).astype(np.float32)
    cells = [
        np.clip(((c + s) / e + 0.5) * n, 0, n - 1).astype(np.intp)
        for c, s, e, n in zip(centres, shift, BOX_MM[::-1], FIELD_SHAPE, strict=True)
    ]
    index = np.nonzero(near[np.ix_(*cells)])
    where = np.stack([centres[axis][index[axis]] for axis in (2, 1, 0)], axis=1)
    body = where + shift[::-1]
    smooth = sample(np.concatenate([fields.warp, fields.fold, lesion_fields]), body)
    mapped = body + smooth[:3].T
    inside = sample(brain_map, mapped)[0] > 0.5
    z, y, x = (axis[inside] * size // fine for axis in index)
    return Points(
        voxel=(z * size + y) * size + x,
        where=where[inside],
        maps=sample(template.maps, mapped[inside]),
        fold=smooth[3:6, inside],
        lesion=smooth[6:, inside],
    )


def white_matter_ageing(age: float, points: Points, tissues: Tissues) -> np.ndarray:
    """Return the loss of signal in patches of deep white matter, which are not lesions here.

    Args:
        age: 0 for the young to 1 for the old.
        points: the points.
        tissues: the tissue fractions there.
    """
    patch = sigmoid((points.fold[1] - 1.4) / 0.25) * sigmoid((points.maps[DEPTH] - 20.0) / 2.0)
    return np.asarray(0.16 * age * patch * tissues.wm, np.float32)


def polynomial(where: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """Evaluate a polynomial of order 2 without its constant, about unit variance in the box."""
    x, y, z = (where * np.float32(2.0 / BOX_MM)).T
    terms = (x, y, z, x * y, x * z, y * z, 1.5 * x * x, 1.5 * y * y, 1.5 * z * z)
    total = np.zeros(len(where), np.float32)
    for term, coefficient in zip(terms, coefficients, strict=True):
        total += np.float32(coefficient / 1.5) * term
    return total


def average(values: np.ndarray | None, voxel: np.ndarray, size: int) -> np.ndarray:
    """Average values of points over voxels, float64 (Z, Y, X); points outside the brain are 0.

    Args:
        values: (N,); None for the share of each voxel that is brain.
        voxel: int64 (N,), flat index of the voxel that holds each point.
        size: voxels along each axis.
    """
    per_voxel = 8.0 if size <= SUPERSAMPLE_UP_TO else 1.0
    return np.bincount(voxel, values, minlength=size**3).reshape(size, size, size) / per_voxel


def masks(truth: np.ndarray, voxel: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return brain and lesion, bool (Z, Y, X), from the points that are lesion, bool (N,)."""
    brain = average(None, voxel, size) > 0.5
    if not truth.any():
        return brain, np.zeros_like(brain)
    share = average(truth, voxel, size) * brain
    # A lacune that fills no voxel to half still marks the voxel that holds most of it.
    return brain, share > min(0.5, 0.5 * float(share.max()))


def blur(image: np.ndarray, sigma_mm: tuple[float, float, float]) -> np.ndarray:
    """Spread an image, (Z, Y, X), by standard deviations along x, y, z in mm."""
    sigma = np.array(sigma_mm[::-1]) / (BOX_MM[::-1] / np.array(image.shape))
    return np.asarray(ndi.gaussian_filter(image, sigma, mode="constant", truncate=3.0))


def rician(image: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Return the magnitude of an image with complex noise of a standard deviation."""
    real, imaginary = sigma * rng.standard_normal((2, *image.shape), dtype=np.float32)
    return np.asarray(np.sqrt((image + real) ** 2 + imaginary**2))
