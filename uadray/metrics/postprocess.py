"""Anomaly scores to 16-bit levels: fixed point, eroded brain mask, median filter.

The order is that of Bengs 2021 (section 2.3): residual, eroded mask, median. Scores become
fixed point *before* the median: a median over an odd window commutes with every monotone map, so
the levels are exactly those of the filtered scores, and the filter runs on integers. Beyond the
volume's faces the median sees the volume mirrored with the edge voxel repeated (scipy's `reflect`,
as reference code); what is outside the eroded brain it sees as 0.

2D methods are stacked to volumes before they come here, and are then treated as volumes. Axes are
(Z, Y, X); axis 0 is axial.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, TypeVar

import numpy as np
import scipy.ndimage as ndi
from numpy.typing import NDArray

from uadray.errors import ConfigError, EvaluationError
from uadray.metrics.median import median_filter
from uadray.metrics.settings import PostprocessConfig

Number = TypeVar("Number", np.float64, np.uint16)

MAX_LEVEL = 65535
"""Largest level: the upper end of the score range. Level 0, the lower end, is 'no anomaly'."""


_IN_PLANE_CROSS = np.array([[[0, 1, 0], [1, 1, 1], [0, 1, 0]]], dtype=bool)


def quantise(
    scores: NDArray[np.floating], score_range: tuple[float, float], *, subject: str | None = None
) -> NDArray[np.uint16]:
    """Turn scores into 16-bit fixed point over the method's stated range.

    Args:
        scores: Any shape, higher is more anomalous. Values outside the range are clipped to it.
        score_range: (low, high), low < high; low becomes level 0, high level 65535.
        subject: Named in the error message.

    Returns:
        Levels of the same shape, rounded to nearest: at most half a level (high - low) / 131070
        away from the clipped score.

    Raises:
        EvaluationError: A score is not finite.
        ConfigError: The range is empty or not finite.
    """
    low, high = check_score_range(score_range)
    scores = np.asarray(scores)
    num_bad = scores.size - np.count_nonzero(np.isfinite(scores))
    if num_bad:
        whose = "scores" if subject is None else f"scores of subject {subject!r}"
        raise EvaluationError(
            f"{whose}: expected finite numbers, but {num_bad} of {scores.size} are NaN or "
            "infinite; check the detector's checkpoint and the input volume"
        )
    scaled = (scores.astype(np.float64) - low) * (MAX_LEVEL / (high - low))
    np.clip(scaled, 0, MAX_LEVEL, out=scaled)
    return np.rint(scaled, out=scaled).astype(np.uint16)


def dequantise(
    levels: NDArray[np.number] | int, score_range: tuple[float, float]
) -> NDArray[np.float64]:
    """Return the scores that levels stand for, as float64 in `score_range`."""
    low, high = check_score_range(score_range)
    return low + np.asarray(levels, dtype=np.float64) * ((high - low) / MAX_LEVEL)


def check_score_range(score_range: tuple[float, float]) -> tuple[float, float]:
    """Return the range as two floats, or raise `ConfigError` where it is none."""
    low, high = float(score_range[0]), float(score_range[1])
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise ConfigError(f"score_range must be finite with low < high, was ({low}, {high})")
    return low, high


def erode_brain(brain: NDArray[np.bool_], iterations: int) -> NDArray[np.bool_]:
    """Shrink the brain mask within each axial plane.

    Each step takes away every voxel that lacks one of its four neighbours in the plane (a 2D
    cross); planes do not touch each other, and what lies outside the volume counts as background.

    Args:
        brain: (Z, Y, X) mask.
        iterations: Steps; 0 returns a copy.

    Returns:
        (Z, Y, X) mask within `brain`.
    """
    if iterations == 0:
        return brain.astype(bool, copy=True)
    return ndi.binary_erosion(brain, _IN_PLANE_CROSS, iterations=iterations)


def postprocess(
    scores: NDArray[np.floating],
    brain: NDArray[np.bool_],
    score_range: tuple[float, float],
    config: PostprocessConfig,
    *,
    subject: str | None = None,
) -> NDArray[np.uint16]:
    """Turn one subject's raw scores into the levels that are kept and counted.

    Scores become levels, those outside the eroded brain become 0, the 3D median follows, and what
    it would spread outside the brain stays 0. The eroded mask is not applied a second time:
    reference code does not, and the zeros around it have already pulled the median down there.

    Args:
        scores: (Z, Y, X) floats, higher is more anomalous.
        brain: (Z, Y, X) mask, not eroded.
        score_range: The method's stated (low, high).
        config: Erosion and median.
        subject: Named in error messages.

    Returns:
        (Z, Y, X) uint16 levels; 0 means no anomaly, and is all there is outside the brain.

    Raises:
        EvaluationError: Shapes differ, or a score is not finite.
    """
    if scores.ndim != 3 or scores.shape != brain.shape:
        whose = "scores" if subject is None else f"scores of subject {subject!r}"
        raise EvaluationError(
            f"{whose} have shape {scores.shape}, the brain mask {brain.shape}; expected one "
            "(Z, Y, X) grid for both: score the volume on the cohort's own grid"
        )
    return filter_levels(quantise(scores, score_range, subject=subject), brain, config)


def filter_levels(
    levels: NDArray[np.uint16], brain: NDArray[np.bool_], config: PostprocessConfig
) -> NDArray[np.uint16]:
    """The same from levels (Z, Y, X) on, which it overwrites."""
    levels[~erode_brain(brain, config.iterations(brain.shape))] = 0
    return median_filter(levels, brain.astype(bool, copy=False), config.median_size)


def hide_dark(
    scores: NDArray[Number], image: NDArray[np.floating], quantile: float, lowest: float
) -> NDArray[Number]:
    """Lower the scores of dark voxels; the erosion and the median come after it.

    Args:
        scores: (Z, Y, X); or their levels, of which the lowest is 0.
        image: (Z, Y, X) intensities, all of the volume.
        quantile: `PostprocessConfig.prior_quantile`; 0 changes nothing.
        lowest: What they become.
    """
    if quantile == 0:
        return scores
    dark = image < np.quantile(image.astype(np.float64), quantile)
    return np.where(dark, scores.dtype.type(lowest), scores)


def smallest_findable_mm(spacing_mm: Sequence[float], median_size: int) -> float:
    """Diameter of the smallest ball that outlives the median wherever it lies.

    The median keeps a voxel whose window is lesion in more than half of its voxels; a voxel is
    lesion where its centre is inside the ball, which is to say where about half of it is. A smaller
    ball can vanish altogether, however bright it is: it fits between the voxels' centres such that
    no window is half full. Nothing is said of the contrast that a method needs, nor of the eroded
    rim of the brain, where more is lost.

    Args:
        spacing_mm: Edges of a voxel along (Z, Y, X).
        median_size: Edge of the window in voxels, odd; 1 for no median.

    Returns:
        In mm. A ball that lies well may be smaller by up to a voxel and still be found.
    """
    half, needed = median_size // 2, (median_size**3 + 1) // 2
    spacing = np.asarray(spacing_mm, float)
    window = np.stack(np.meshgrid(*[np.arange(-half, half + 1)] * 3, indexing="ij"), -1)
    centres = window.reshape(-1, 3) * spacing
    # The window around the voxel that the ball's centre is in is fullest; by symmetry one eighth
    # of that voxel has all places.
    places = np.linspace(0, 0.5, 9)
    radii = [
        np.sort(np.linalg.norm(centres - np.array(place) * spacing, axis=1))[needed - 1]
        for place in product(places, repeat=3)
    ]
    return 2 * float(max(radii))


def findable(spacing_mm: Sequence[float], median_size: int) -> dict[str, Any]:
    """What the median hides, as records have it: edges of its window and `smallest_findable_mm`.

    Args:
        spacing_mm: Edges of a voxel along (Z, Y, X).
        median_size: Edge of the window in voxels, odd.
    """
    return {
        "median_window_mm": [round(median_size * float(edge), 3) for edge in spacing_mm],
        "smallest_findable_mm": smallest_findable_mm(spacing_mm, median_size),
    }


def describe_findable(limits: Mapping[str, Any]) -> str:
    """The same in a sentence."""
    window = " x ".join(f"{edge:.3g}" for edge in limits["median_window_mm"])
    return (
        f"a ball of less than {limits['smallest_findable_mm']:.1f} mm in diameter may be lost, "
        f"however bright it is: the median's window is {window} mm"
    )
