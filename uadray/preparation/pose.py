"""How a brain lies on its grid: three angles from the second moments of its mask."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PLANES = {"pitch": (1, 2), "yaw": (1, 0), "roll": (0, 2)}
"""Angle -> the axes X, Y, Z (right, front, top) of the plane that a brain turns in by it."""

MOTIONS = {
    "pitch": "its front is turned up or down",
    "yaw": "its front is turned to the left or the right",
    "roll": "its top is turned to the left or the right",
}
"""In words."""

MIN_TILT_DEG = 10.0
"""A smaller difference costs a learned method next to nothing."""

MAX_Z = 2.5
"""Robust deviations of the healthy scans beyond which a pose is none of theirs. Heads lie in a
scanner with a deviation of about 6 degrees in pitch: 3.5, as for other measures, would let a tilt
of 20 degrees pass."""


USUAL_SPREAD_DEG = 6.0
"""Deviation of heads in a scanner, taken where too few scans show their own."""


@dataclass(frozen=True, kw_only=True)
class PoseRange:
    """How the brains of a cohort lie, in degrees, in the order of `PLANES`."""

    median: tuple[float, float, float]
    """Of the scans."""
    spread: tuple[float, float, float]
    """Robust standard deviation."""

    def doubts(self, pose: NDArray[np.floating], *, few: bool = False) -> list[str]:
        """In which angles a brain lies as none of the cohort does, in sentences.

        Args:
            pose: As `pose_degrees` gives it.
            few: Whether the cohort has too few scans for a spread of its own.
        """
        doubts = []
        for k, name in enumerate(PLANES):
            apart = (float(pose[k]) - self.median[k] + 90) % 180 - 90
            spread = max(self.spread[k], USUAL_SPREAD_DEG) if few else self.spread[k]
            limit = max(MIN_TILT_DEG, MAX_Z * spread)
            if abs(apart) > limit:
                doubts.append(
                    f"its brain is tilted by {abs(apart):.0f} degrees against the healthy scans of "
                    f"the model ({name}: {MOTIONS[name]}; up to {limit:.0f} are usual): a learned "
                    "method loses much of its map by that; --register rigid turns it to the "
                    "template's pose, best for the cohort and the scan alike"
                )
        return doubts


def pose_degrees(brain: NDArray[np.bool_], spacing_mm: NDArray[np.floating]) -> NDArray[np.float64]:
    """Pitch, yaw and roll of a brain against its grid, (3,) in (-90, 90]; NaN of an empty mask.

    In each plane it is the angle of the longer principal axis of the mask. A brain that is about
    as wide as high has no roll that this could tell, which shows in a cohort's large spread.

    Args:
        brain: bool (Z, Y, X).
        spacing_mm: Voxel sizes (Z, Y, X).
    """
    place = np.argwhere(brain)[:, ::-1] * np.asarray(spacing_mm)[::-1]
    if len(place) < 2:
        return np.full(3, np.nan)
    moments = np.cov(place.T)
    return np.array(
        [
            np.rad2deg(np.arctan2(2 * moments[i, j], moments[i, i] - moments[j, j])) / 2
            for i, j in PLANES.values()
        ]
    )


def pose_range(poses: NDArray[np.float64]) -> PoseRange | None:
    """Where the poses of healthy scans lie; None where there are none.

    Args:
        poses: (N, 3) as `pose_degrees` gives them.
    """
    poses = poses[np.isfinite(poses).all(axis=1)]
    if len(poses) == 0:
        return None
    median = np.median(poses, axis=0)
    apart = (poses - median + 90) % 180 - 90
    spread = 1.4826 * np.median(np.abs(apart), axis=0)
    (a, b, c), (d, e, f) = median.tolist(), spread.tolist()
    return PoseRange(median=(a, b, c), spread=(d, e, f))
