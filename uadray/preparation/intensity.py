"""The steps that change intensities: denoise, correct the bias field, standardise."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import SimpleITK as sitk

from uadray.errors import ScanError
from uadray.preparation.geometry import Volume, brain_box

FLAT = 1e-9
"""Least squared gradient per mm where the direction of a level set is known, as in ITK; for
intensities of a contrast of `CONTRAST` it is where their rounding ends."""

CONTRAST = 2**7
"""`denoise` works at a contrast from this to twice as much, whatever the unit of the image."""

PLANES = 4
"""Planes that the curvature flow works on at a time, so that they stay in the CPU's cache."""

BIAS_ITERATIONS = (50, 50, 50, 50)
"""Of N4 on each of its levels; SimpleITK's default."""


def contrast_of(inside: np.ndarray) -> float:
    """Range of a brain's intensities, (n,), without its outer percents; 0 where all are one."""
    # One odd voxel must not decide, and some thousand voxels are enough.
    low, high = np.percentile(inside[:: max(1, inside.size // 10_000)], (1, 99))
    return float(high - low) or float(inside.max() - inside.min())


def power_to(target: int, contrast: float) -> int:
    """The power of two that brings a contrast to [target, 2 * target), target being one, too."""
    return target.bit_length() - 1 - int(np.floor(np.log2(contrast)))


def denoise(volume: Volume, *, time_step: float, iterations: int) -> Volume:
    """Smooth by curvature flow, which keeps edges (Sethian 1996), inside the brain's box.

    A voxel feels only those within `iterations` of it, so that a margin as wide makes the brain
    the same as if the whole volume were smoothed. What is flat follows from the brain's contrast,
    so that the result does not depend on the unit of the image.
    """
    box = brain_box(volume.brain, margin=iterations)
    contrast = contrast_of(volume.image[volume.brain])
    # By a power of two there and back: exactly.
    power = power_to(CONTRAST, contrast) if contrast > 0 else 0
    smooth = curvature_flow(
        np.ldexp(volume.image[box], power),
        volume.spacing,
        time_step=time_step,
        iterations=iterations,
    )
    image = volume.image.copy()
    image[box] = np.ldexp(smooth, -power)
    return replace(volume, image=image)


def curvature_flow(
    image: np.ndarray, spacing: np.ndarray, *, time_step: float, iterations: int
) -> np.ndarray:
    """Move each level set of an image along its normal, by its mean curvature.

    It computes what ITK's CurvatureFlowImageFilter does, to single precision, in a third of
    its time: this step would cost as much as all others together.

    Args:
        image: (X, Y, Z).
        spacing: Edge lengths of a voxel in mm, (3,).
        time_step: Of one iteration.
        iterations: How many.

    Returns:
        float32 (X, Y, Z). At its border the image goes on unchanged.
    """
    image = np.pad(np.asarray(image, np.float32), 1, mode="edge")
    per_mm = (1.0 / spacing).astype(np.float32)
    for _ in range(iterations):
        moved = image.copy()
        for start in range(1, len(image) - 1, PLANES):
            stop = min(start + PLANES, len(image) - 1)
            speed = _curvature_speed(image[start - 1 : stop + 1], per_mm)
            moved[start:stop, 1:-1, 1:-1] += np.float32(time_step) * speed
        for axis in range(3):
            planes = np.moveaxis(moved, axis, 0)
            planes[0], planes[-1] = planes[1], planes[-2]
        image = moved
    return image[1:-1, 1:-1, 1:-1]


def _curvature_speed(slab: np.ndarray, per_mm: np.ndarray) -> np.ndarray:
    """Mean curvature times the gradient's length, where all neighbours are known.

    With the gradient g and the Hessian H it is trace(H) - g'Hg / g'g.
    """
    x, y, z = per_mm
    half, quarter = np.float32(0.5), np.float32(0.25)
    here = slab[1:-1, 1:-1, 1:-1]
    left, right = slab[:-2, 1:-1, 1:-1], slab[2:, 1:-1, 1:-1]
    back, front = slab[1:-1, :-2, 1:-1], slab[1:-1, 2:, 1:-1]
    below, above = slab[1:-1, 1:-1, :-2], slab[1:-1, 1:-1, 2:]
    gx, gy, gz = (
        (right - left) * (half * x),
        (front - back) * (half * y),
        (above - below) * (half * z),
    )
    twice = here + here
    hxx = (right + left - twice) * (x * x)
    hyy = (front + back - twice) * (y * y)
    hzz = (above + below - twice) * (z * z)
    hxy = slab[2:, 2:, 1:-1] - slab[2:, :-2, 1:-1] - slab[:-2, 2:, 1:-1] + slab[:-2, :-2, 1:-1]
    hxz = slab[2:, 1:-1, 2:] - slab[2:, 1:-1, :-2] - slab[:-2, 1:-1, 2:] + slab[:-2, 1:-1, :-2]
    hyz = slab[1:-1, 2:, 2:] - slab[1:-1, 2:, :-2] - slab[1:-1, :-2, 2:] + slab[1:-1, :-2, :-2]
    hxy, hxz, hyz = hxy * (quarter * x * y), hxz * (quarter * x * z), hyz * (quarter * y * z)
    length = gx * gx + gy * gy + gz * gz
    along = gx * (gx * hxx + 2 * (gy * hxy + gz * hxz)) + gy * (gy * hyy + 2 * gz * hyz)
    along += gz * gz * hzz
    flat = length < FLAT
    length[flat] = 1.0
    speed = hxx + hyy + hzz - along / length
    speed[flat] = 0.0
    return np.asarray(speed)


def correct_bias(volume: Volume, *, shrink: int) -> Volume:
    """Divide by the smooth field that N4 finds inside the brain (Tustison et al. 2010; SimpleITK).

    Voxels of 0 are left out of the search: N4 works on logarithms and takes that of 0 for 0, which
    is that of an intensity of 1, in whatever unit.

    Args:
        volume: A brain without its skull.
        shrink: The field is estimated on every `shrink`-th voxel along each axis.

    Raises:
        ScanError: N4 found no field.
    """
    image = sitk.GetImageFromArray(np.maximum(volume.image, 0).T)
    image.SetSpacing(volume.spacing.tolist())
    mask = sitk.GetImageFromArray((volume.brain & (volume.image > 0)).T.astype(np.uint8))
    mask.CopyInformation(image)
    factors = [min(shrink, n) for n in image.GetSize()]
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations(BIAS_ITERATIONS)
    try:
        with one_thread():
            n4.Execute(sitk.Shrink(image, factors), sitk.Shrink(mask, factors))
            field = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image)).T
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ScanError(f"N4 found no bias field ({reason}); leave it out for the cohort") from None
    return replace(volume, image=np.ascontiguousarray(volume.image / np.exp(field)))


def standardise(volume: Volume, *, percentiles: tuple[float, float]) -> Volume:
    """Map two percentiles of the brain's intensities to 0 and 1, clip, and zero the outside.

    Raises:
        ScanError: the brain has a single intensity between the percentiles.
    """
    inside = volume.image[volume.brain]
    low, high = np.percentile(inside, percentiles)
    if not high > low:
        raise ScanError(
            f"percentiles {percentiles} of the brain are both {low:g}: the scan has no contrast"
        )
    image = np.zeros(volume.image.shape, np.float32)
    image[volume.brain] = np.clip((inside - low) / (high - low), 0.0, 1.0)
    return replace(volume, image=image)


@contextmanager
def one_thread() -> Iterator[None]:
    """Give SimpleITK one thread: some filters sum in the order in which their threads end.

    They obey only the global number.
    """
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
