"""The smallest findable ball, against balls that are drawn and filtered."""

import numpy as np
import pytest

from uadray.metrics.median import median_filter
from uadray.metrics.postprocess import (
    MAX_LEVEL,
    describe_findable,
    findable,
    smallest_findable_mm,
)


def is_found(radius: float, place: np.ndarray, spacing: np.ndarray, size: int) -> bool:
    """Whether the median leaves anything of a ball whose centre is at `place`, in voxels."""
    shape = (15, 15, 15)
    middle = np.array(shape) // 2 + place
    offset = (np.moveaxis(np.indices(shape), 0, -1) - middle) * spacing
    ball = np.linalg.norm(offset, axis=-1) <= radius
    levels = np.where(ball, MAX_LEVEL, 0).astype(np.uint16)
    return bool(median_filter(levels, np.ones(shape, bool), size).any())


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.4, 3.98, 3.29), (2.5, 1.0, 1.2)])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_every_ball_of_that_size_is_found_and_some_smaller_one_is_not(spacing, size) -> None:
    radius = smallest_findable_mm(spacing, size) / 2
    rng = np.random.default_rng(0)
    places = [*rng.uniform(-0.5, 0.5, (40, 3)), *rng.choice([-0.5, 0, 0.5], (10, 3))]
    hits = [
        [is_found(radius * factor, place, np.array(spacing), size) for place in places]
        for factor in (1.02, 0.9)
    ]
    assert all(hits[0])
    assert not all(hits[1])


def test_what_the_paper_misses_at_48_voxels() -> None:
    spacing = (163 / 48, 191 / 48, 158 / 48)
    assert smallest_findable_mm(spacing, 5) == pytest.approx(18.7, abs=0.1)
    rng = np.random.default_rng(1)
    places = rng.uniform(-0.5, 0.5, (40, 3))
    assert not any(is_found(8.0, place, np.array(spacing), 5) for place in places)


def test_what_records_and_pages_say_of_it() -> None:
    record = findable((3.4, 4.0, 3.3), 5)
    assert record["median_window_mm"] == [17.0, 20.0, 16.5]
    assert record["smallest_findable_mm"] == smallest_findable_mm((3.4, 4.0, 3.3), 5)
    assert describe_findable(record).endswith("the median's window is 17 x 20 x 16.5 mm")
