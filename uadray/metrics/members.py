"""The levels of several fits as those of one, and how far the fits are apart.

Levels are those after post-processing, as kept; combining them is exact, so that the same members
give the same bits in whatever order and wherever they are combined.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from uadray.metrics.postprocess import MAX_LEVEL, check_score_range


def combine_levels(
    members: Sequence[NDArray[np.uint16]], combine: Literal["mean", "median"]
) -> NDArray[np.uint16]:
    """The mean or the median of several fits' levels, voxel by voxel.

    Args:
        members: One fit each, all of one shape.
        combine: Which; the median of an even number lies halfway between the middle two.

    Returns:
        Levels of the same shape, rounded to nearest, halves up.
    """
    if len(members) == 1:
        return members[0]
    stack = np.stack(list(members))
    if combine == "mean":
        part = stack
    else:
        middle = (len(stack) - 1) // 2, len(stack) // 2
        part = np.partition(stack, middle, axis=0)[middle[0] : middle[1] + 1]
    total = part.sum(axis=0, dtype=np.int64)
    return ((2 * total + len(part)) // (2 * len(part))).astype(np.uint16)


def spread_over_members(
    members: Sequence[NDArray[np.uint16]], score_range: tuple[float, float]
) -> NDArray[np.float32] | None:
    """Standard deviation of the scores over several fits, voxel by voxel.

    Args:
        members: Their levels, one fit each, all of one shape.
        score_range: The method's stated (low, high).

    Returns:
        In the method's units, division by one less than the fits; None for a single fit, which has
        no spread.
    """
    low, high = check_score_range(score_range)
    if len(members) < 2:
        return None
    deviation = np.stack(list(members)).std(axis=0, ddof=1, dtype=np.float64)
    return (deviation * ((high - low) / MAX_LEVEL)).astype(np.float32)
