"""What a record says of lesions one by one: found against false ones, and by their size."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uadray.evaluation.figures import defined
from uadray.metrics.froc import RATES, Finds, curve, found_by_size, sensitivities
from uadray.metrics.inference import Fits, interval

SIZES_ML = (1.0, 10.0, 100.0)
"""Where ranges of the size of lesions end."""

MAX_POINTS = 200
"""Points of a curve that are kept."""


def describe_finds(
    finds: Sequence[Finds], voxel_ml: Sequence[float], weights: NDArray[np.int64]
) -> dict[str, Any]:
    """Lesions found against false components, and by their size, as JSON values.

    Args:
        finds: Of each test scan.
        voxel_ml: Volume of a voxel of each.
        weights: From `leaving_out`.
    """
    false, found = (values[0] for values in curve(finds, weights[:1]))
    shown = np.unique(np.linspace(0, len(false) - 1, MAX_POINTS).round().astype(int))
    *each, mean = sensitivities(finds, weights)
    ends = np.array([[0.0, *SIZES_ML], [*SIZES_ML, np.inf]]).T

    def figure(fits: Fits) -> dict[str, Any]:
        bounds = interval(fits)
        return {
            "value": defined(fits.values[0, 0]),
            "interval": None if bounds is None else list(bounds),
        }

    return {
        "false_per_scan": list(RATES),
        "sensitivity": [figure(fits) for fits in each],
        "mean": figure(mean),
        "curve": [false[shown].tolist(), [defined(value) for value in found[shown]]],
        "by_size_ml": [
            {"from": low, "to": None if np.isinf(high) else high}
            | {"lesions": number, "found": hits, **figure(fits)}
            for (low, high), (number, hits, fits) in zip(
                ends.tolist(), found_by_size(finds, voxel_ml, SIZES_ML, weights), strict=True
            )
        ],
    }
