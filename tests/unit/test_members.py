"""Levels of several fits as those of one, and their spread, against plain arithmetic."""

from fractions import Fraction
from math import floor
from statistics import median, stdev
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uadray.metrics.members import combine_levels, spread_over_members

LEVELS = st.lists(
    st.lists(st.integers(0, 65535), min_size=3, max_size=3), min_size=1, max_size=7
).map(lambda rows: [np.array(row, np.uint16) for row in rows])


def rounded(value: Fraction) -> int:
    """To nearest, halves up."""
    return floor(value + Fraction(1, 2))


@settings(max_examples=100, deadline=None)
@given(members=LEVELS)
@pytest.mark.parametrize("combine", ["mean", "median"])
def test_one_level_of_several(members: list[Any], combine: Any) -> None:
    exact = [list(map(Fraction, map(int, column))) for column in np.stack(members).T]
    expected = [
        rounded(sum(column) / len(column) if combine == "mean" else Fraction(median(column)))
        for column in exact
    ]
    made = combine_levels(members, combine)
    assert made.dtype == np.uint16
    assert made.tolist() == expected
    assert combine_levels(members[::-1], combine).tolist() == expected


@settings(max_examples=50, deadline=None)
@given(members=LEVELS)
def test_spread(members: list[Any]) -> None:
    spread = spread_over_members(members, (0.0, 2.0))
    if len(members) == 1:
        assert spread is None
        return
    columns = np.stack(members).T.astype(float) * (2.0 / 65535)
    assert spread == pytest.approx([stdev(column) for column in columns.tolist()], abs=1e-6)


def test_members_that_agree_have_no_spread() -> None:
    level = np.full((2, 2, 2), 65535, np.uint16)
    assert not spread_over_members([level, level.copy()], (0.0, 1.0)).any()  # type: ignore[union-attr]
