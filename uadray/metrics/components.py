"""Small connected components dropped from thresholded scores, at all thresholds in one sweep.

Dropping the components of at most S voxels at every threshold is one operation on the scores: an
area opening (Vincent 1993). A voxel's opened level is the highest threshold at which it lies in a
component that is kept; above it the voxel is never predicted. So the opened levels take the place
of the levels everywhere: the same counts, rules and metrics then speak of the filtered prediction,
exactly and at all 65 536 thresholds.
"""

from itertools import product

import numba
import numpy as np
from numpy.typing import NDArray

from uadray.errors import EvaluationError
from uadray.metrics.settings import ComponentConfig, Connectivity

_STEPS: dict[int, int] = {6: 1, 18: 2, 26: 3}


def neighbours(connectivity: Connectivity) -> NDArray[np.bool_]:
    """Return the (3, 3, 3) structuring element of a connectivity, as scipy's `label` takes it."""
    steps = np.abs(np.indices((3, 3, 3)) - 1).sum(axis=0)
    return np.asarray(steps <= _STEPS[connectivity])


def open_components(
    levels: NDArray[np.uint16], max_size: int, connectivity: Connectivity = 26
) -> NDArray[np.uint16]:
    """Lower each voxel to the highest threshold at which its component has over `max_size` voxels.

    For every threshold t from 1 up, `opened >= t` is `levels >= t` without its components of at
    most `max_size` voxels. Voxels join their neighbours from the highest level down in a forest of
    disjoint sets (Meijster and Wilkinson 2002), so that all thresholds cost one pass.

    Args:
        levels: (Z, Y, X) uint16; level 0 is never predicted.
        max_size: Largest component that is dropped, in voxels; 0 returns a copy.
        connectivity: 6, 18 or 26.

    Returns:
        (Z, Y, X) uint16, nowhere above `levels`; 0 where no threshold keeps the voxel.

    Raises:
        EvaluationError: The levels are not 16-bit integers over a volume.
    """
    if levels.ndim != 3 or levels.dtype != np.uint16:
        raise EvaluationError(
            f"expected uint16 levels over (Z, Y, X), came {levels.dtype} {levels.shape}; pass "
            "scores through `postprocess` first"
        )
    config = ComponentConfig(max_size=max_size, connectivity=connectivity)
    opened = np.zeros_like(levels)
    if max_size == 0 or not levels.any():
        opened[...] = levels
        return opened
    box = tuple(
        slice(int(used[0]), int(used[-1]) + 1)
        for used in (np.flatnonzero(levels.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1)))
    )
    # a border of level 0 is never visited, so that no neighbour needs a check of its place
    padded = np.pad(levels[box], 1)
    strides = np.array([padded.shape[1] * padded.shape[2], padded.shape[2], 1])
    steps = np.array([s for s in product((-1, 0, 1), repeat=3) if any(s)])
    steps = steps[np.abs(steps).sum(axis=1) <= _STEPS[config.connectivity]]
    flat = _open(padded.ravel(), (steps @ strides).astype(np.int32), max_size)
    opened[box] = flat.reshape(padded.shape)[1:-1, 1:-1, 1:-1]
    return opened


def drop_components(levels: NDArray[np.uint16], config: ComponentConfig) -> NDArray[np.uint16]:
    """Levels without the components that the settings drop; see `open_components`."""
    return open_components(levels, config.max_size, config.connectivity)


@numba.njit(cache=True, nogil=True)
def _open(levels, steps, max_size):  # type: ignore[no-untyped-def]
    """Return the opened levels of a padded, flattened volume."""
    order = _descending(levels)
    parent = np.full(len(levels), -1, np.int32)
    size = np.zeros(len(levels), np.int32)
    # a voxel known to lie in a set that is large enough: it need not be joined nor looked up
    kept = np.zeros(len(levels), np.bool_)
    for here in order:
        parent[here] = here
        total = 1
        for step in steps:
            other = here + step
            if parent[other] < 0:
                continue
            if kept[other]:
                total = max_size + 1
                continue
            while parent[parent[other]] != parent[other]:
                parent[other] = parent[parent[other]]
                other = parent[other]
            root = parent[other]
            if root == here:
                continue
            if size[root] > max_size:
                kept[here + step] = True
                total = max_size + 1
            else:
                parent[root] = here
                total = min(total + size[root], max_size + 1)
        size[here] = total
        kept[here] = total > max_size
    opened = np.zeros_like(levels)
    for index in range(len(order) - 1, -1, -1):
        here = order[index]
        if parent[here] != here:
            opened[here] = opened[parent[here]]
        elif size[here] > max_size:
            opened[here] = levels[here]
    return opened


@numba.njit(cache=True, nogil=True)
def _descending(levels):  # type: ignore[no-untyped-def]
    """Return the places of all levels above 0, from the highest level down, by counting."""
    first = np.zeros((1 << 16) + 1, np.int32)
    for level in levels:
        first[level] += 1
    first[0] = 0
    for level in range((1 << 16) - 1, -1, -1):
        first[level] += first[level + 1]
    order = np.empty(first[0], np.int32)
    for place in range(len(levels)):
        level = levels[place]
        if level > 0:
            # first[level + 1] counts what is higher, and what of this level is placed
            order[first[level + 1]] = place
            first[level + 1] += 1
    return order
