"""Where a score stands among healthy people: counted one by one, and what the interval covers."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.normative import POPULATIONS, placed
from uadray.metrics.normative import SIMILAR_YEARS, among, at_age, percentile_curves

RANDOM = np.random.default_rng(1)
AGES = RANDOM.uniform(20, 80, 60)
SCORES = 3 + 0.04 * AGES + RANDOM.normal(0, 0.2, 60)


def exact(lower: int, equal: int, num: int) -> tuple[float, float]:
    """Clopper and Pearson's interval by its beta quantiles, in percent."""
    low = 0.0 if lower == 0 else scipy.stats.beta.ppf(0.025, lower, num - lower + 1)
    above = lower + equal
    high = 1.0 if above == num else scipy.stats.beta.ppf(0.975, above + 1, num - above)
    return 100 * low, 100 * high


@given(
    values=st.lists(st.integers(0, 9), min_size=5, max_size=30),
    value=st.integers(-1, 10),
)
def test_among_all_people_are_counted(values: list[int], value: int) -> None:
    found = among(float(value), np.array(values, float))
    assert found is not None
    lower = sum(one < value for one in values)
    equal = sum(one == value for one in values)
    assert found.num_people == len(values)
    assert found.percentile == pytest.approx(100 * (lower + equal / 2) / len(values))
    assert found.interval == pytest.approx(exact(lower, equal, len(values)))
    assert found.interval[0] <= found.percentile <= found.interval[1]


@pytest.mark.parametrize("age", [25.0, 44.0, 63.5, 78.0])
@pytest.mark.parametrize("above", [-0.3, 0.0, 0.1, 5.0])
def test_people_of_similar_age_are_counted_along_a_line_through_those_around(age, above) -> None:
    value = 3 + 0.04 * age + above
    wide = [n for n in range(60) if abs(AGES[n] - age) <= 2 * SIMILAR_YEARS]
    slope, level = np.linalg.lstsq(
        np.array([[AGES[n], 1.0] for n in wide]), SCORES[wide], rcond=None
    )[0]
    near = [n for n in range(60) if abs(AGES[n] - age) <= SIMILAR_YEARS]
    rest = value - slope * age - level
    lower = sum(SCORES[n] - slope * AGES[n] - level < rest for n in near)
    found = at_age(value, age, SCORES, AGES)
    assert found is not None
    assert (found.num_people, found.num_lower) == (len(near), lower)
    assert found.interval == pytest.approx(exact(lower, 0, len(near)))


def test_a_planted_trend_over_age_is_taken_out() -> None:
    """However steep it is; among all people it decides alone."""
    for slope in (0.0, 1.0, -3.0):
        moved = SCORES + slope * AGES
        found = at_age(5.1 + slope * 50, 50, moved, AGES)
        assert found == at_age(5.1, 50, SCORES, AGES)
    assert found is not None
    assert 0 < found.percentile < 100
    old = among(3 + 0.04 * 78, SCORES)
    similar = at_age(3 + 0.04 * 78, 78, SCORES, AGES)
    assert old is not None
    assert similar is not None
    assert similar.percentile < 75 < 90 < old.percentile


def test_nobody_is_compared_beyond_the_ages_that_are_there_or_with_too_few() -> None:
    youngest, oldest = AGES.min(), AGES.max()
    assert at_age(5.0, oldest, SCORES, AGES) is not None
    assert at_age(5.0, oldest + 0.1, SCORES, AGES) is None
    assert at_age(5.0, youngest - 0.1, SCORES, AGES) is None
    ages = np.where(np.arange(60) < 4, 50.0, np.where(np.arange(60) < 30, 20.0, 80.0))
    assert at_age(5.0, 50, SCORES, ages) is None  # four people within ten years
    assert at_age(5.0, 20, SCORES, ages) is not None
    assert at_age(np.nan, 20, SCORES, ages) is None
    assert among(5.0, SCORES[:4]) is None
    assert at_age(5.0, 50, SCORES, np.full(60, np.nan)) is None


def test_people_of_unknown_age_are_left_out_of_a_comparison_by_age() -> None:
    ages = np.append(AGES, [np.nan, np.nan])
    values = np.append(SCORES, [1e6, 1e6])
    assert at_age(5.0, 50, values, ages) == at_age(5.0, 50, SCORES, AGES)


def test_people_of_one_age_have_no_trend() -> None:
    found = at_age(5.0, 40, SCORES, np.full(60, 40.0))
    assert found == among(5.0, SCORES)


def test_the_curves_are_those_of_the_percentiles() -> None:
    at = np.linspace(AGES.min(), AGES.max(), 7)
    curves = percentile_curves(at, SCORES, AGES, (10.0, 50.0, 90.0))
    assert np.isfinite(curves[1:-1]).all()
    for age, row in zip(at[1:-1].tolist(), curves[1:-1], strict=True):
        for percentile, value in zip((10, 50, 90), row.tolist(), strict=True):
            found = at_age(value, age, SCORES, AGES)
            assert found is not None
            # One person more or less.
            assert abs(found.percentile - percentile) <= 100 / found.num_people
    # Few people have a median and no band, fewer nothing.
    few = percentile_curves(np.array([50.0]), SCORES[:6], np.linspace(45, 55, 6), (10.0, 50.0))
    assert np.isnan(few[0, 0])
    assert np.isfinite(few[0, 1])
    assert np.isnan(percentile_curves(np.array([19.0]), SCORES, AGES, (50.0,))).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", POPULATIONS)
@pytest.mark.parametrize("num", [13, 40, 120])
def test_the_interval_of_the_percentile_covers(name: str, num: int) -> None:
    """Also where scores are skewed, spread more with age, or bend: as a normal one does not."""
    ours = np.array([placed(name, num, seed)[0] for seed in range(400)])
    assert np.nanmean(ours) >= 0.94 - 2 * np.sqrt(0.95 * 0.05 / np.isfinite(ours).sum())
