"""Geometry of semi-synthetic lesions: how deep, which components, and what they push aside."""

from dataclasses import replace

import numpy as np
import scipy.ndimage as ndi

from uadray.preparation.geometry import Volume, brain_box

ALL_NEIGHBOURS = np.ones((3, 3, 3), bool)
"""Voxels that share a corner are one component."""

REACH_MM = 10.0
"""Least distance over which a mass effect fades out, in mm (a standard deviation)."""

SKULL_MM = 12.0
"""Least depth below the brain's surface at which tissue can move freely, in mm."""


def depth_mm(inside: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Distance of each voxel of a mask from its border.

    Args:
        inside: bool (X, Y, Z), not empty.
        spacing: Edge lengths of a voxel in mm, (3,).

    Returns:
        float32 (X, Y, Z), 0 outside.
    """
    box = brain_box(inside, margin=1)
    depth = np.zeros(inside.shape, np.float32)
    depth[box] = ndi.distance_transform_edt(inside[box], sampling=spacing)
    return depth


def keep_components(
    share: np.ndarray, least: float, rng: np.random.Generator
) -> tuple[np.ndarray, int, int]:
    """Keep some of a mask's components at random, the largest always.

    Args:
        share: float32 (X, Y, Z), lesion where over 0.5.
        least: Least share of the components that stay, in (0, 1].
        rng: Draws how many stay, and which.

    Returns:
        The mask without the others, how many stayed, and how many there were.
    """
    labels, count = ndi.label(share > 0.5, ALL_NEIGHBOURS)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    others = np.setdiff1d(np.arange(count), [sizes.argmax()])
    num = max(1, round(count * rng.uniform(least, 1.0)))
    stays = np.zeros(count + 1, bool)
    stays[1 + sizes.argmax()] = True
    stays[1 + rng.choice(others, num - 1, replace=False)] = True
    return np.where(stays[labels], share, np.float32(0)), num, count


def push_outward(volume: Volume, mass: np.ndarray, most_mm: float) -> Volume:
    """Push the tissue around a mass outward; image and brain mask move together.

    The push follows the gradient of the blurred mass: 0 in its middle, largest at its border,
    fading out around it and towards the skull, which does not give way. It nowhere folds: its
    slope stays below 1 since it fades over 2.5 times its size around the mass and over 3 times
    its size below the skull.

    Args:
        volume: A brain without its skull.
        mass: float (X, Y, Z) in [0, 1], 1 in the mass where it will be.
        most_mm: Largest displacement before the skull's part, in mm.

    Returns:
        The volume with its tissue moved, interpolated cubic and clamped; what does not move keeps
        its bits. A lesion mask that the volume may have does not move.
    """
    field = displacement_mm(volume, mass, most_mm)
    moves = np.linalg.norm(field, axis=0) > 0.02
    where = np.stack(np.nonzero(moves)).astype(np.float64)
    where -= field[:, moves] / volume.spacing[:, None]
    image, brain = volume.image.copy(), volume.brain.copy()
    moved = ndi.map_coordinates(volume.image, where, order=3, mode="nearest")
    brain[moves] = ndi.map_coordinates(volume.brain.astype(np.float32), where, order=1) >= 0.5
    inside = volume.image[volume.brain]
    image[moves] = np.where(brain[moves], moved.clip(inside.min(), inside.max()), 0.0)
    return replace(volume, image=image, brain=brain)


def displacement_mm(volume: Volume, mass: np.ndarray, most_mm: float) -> np.ndarray:
    """The field of `push_outward`: where tissue comes to lie, less where it came from.

    Returns:
        float32 (3, X, Y, Z) in mm along the volume's axes, 0 outside the brain.
    """
    reach = max(REACH_MM, 2.5 * most_mm)
    free = max(SKULL_MM, 3.0 * most_mm)
    box = brain_box(volume.brain, margin=1)
    field = np.zeros((3, *mass.shape), np.float32)
    blurred = ndi.gaussian_filter(
        mass[box].astype(np.float32), reach / volume.spacing, mode="constant", truncate=3.0
    )
    push = -np.stack(np.gradient(blurred, *volume.spacing))
    size = np.linalg.norm(push, axis=0)
    depth = depth_mm(volume.brain, volume.spacing)[box]
    push *= most_mm / max(float(size[depth > 0].max()), 1e-12) * np.clip(depth / free, 0.0, 1.0)
    field[(slice(None), *box)] = push
    return field
