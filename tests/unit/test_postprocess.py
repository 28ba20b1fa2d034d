"""Fixed point, erosion and median against plain scipy and against the cost that erosion has."""

import numpy as np
import pytest
import scipy.ndimage as ndi
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from uadray.errors import ConfigError, EvaluationError
from uadray.evaluate.postprocess import (
    PostprocessConfig,
    dequantise,
    erode_brain,
    median_in_mask,
    postprocess,
    quantise,
)

RANGE = (-0.5, 1.5)


def ellipsoid(size: int) -> np.ndarray:
    """A brain whose semi-axes (Z, Y, X) are 0.40, 0.45 and 0.375 of the grid's edge."""
    z, y, x = np.mgrid[:size, :size, :size] - (size - 1) / 2
    radii = size * np.array([0.40, 0.45, 0.375])
    return (z / radii[0]) ** 2 + (y / radii[1]) ** 2 + (x / radii[2]) ** 2 <= 1


class TestQuantise:
    def test_ends_and_clipping(self):
        levels = quantise(np.array([-9.0, -0.5, 0.5, 1.5, 9.0]), RANGE)
        assert levels.dtype == np.uint16
        assert levels.tolist() == [0, 0, 32768, 65535, 65535]

    @given(hnp.arrays(np.float32, 50, elements=st.floats(-0.5, 1.5, width=32)))
    def test_round_trip_is_within_half_a_level(self, scores):
        back = dequantise(quantise(scores, RANGE), RANGE)
        assert np.abs(back - scores).max() <= 2.0 / 65535 / 2 + 1e-9

    @given(hnp.arrays(np.uint16, 50))
    def test_levels_survive_the_round_trip(self, levels):
        assert (quantise(dequantise(levels, RANGE), RANGE) == levels).all()

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_not_finite_names_the_subject(self, bad):
        with pytest.raises(EvaluationError, match=r"sub-17.*1 of 3"):
            quantise(np.array([0.0, bad, 1.0]), RANGE, subject="sub-17")

    @pytest.mark.parametrize("score_range", [(1.0, 1.0), (1.0, 0.0), (0.0, np.inf)])
    def test_empty_range_is_refused(self, score_range):
        with pytest.raises(ConfigError, match="low < high"):
            quantise(np.zeros(3), score_range)


class TestErosion:
    @pytest.mark.parametrize(
        ("size", "iterations", "kept"), [(64, 2, 0.84), (96, 3, 0.84), (128, 12, 0.57)]
    )
    def test_cost_on_an_ellipsoid(self, size, iterations, kept):
        brain = ellipsoid(size)
        eroded = erode_brain(brain, iterations)
        assert eroded.sum() / brain.sum() == pytest.approx(kept, abs=0.01)

    def test_works_in_each_axial_plane_alone(self):
        brain = np.random.default_rng(0).random((6, 12, 10)) < 0.9
        cross = ndi.generate_binary_structure(2, 1)
        for iterations in (1, 2):
            expected = [ndi.binary_erosion(plane, cross, iterations) for plane in brain]
            assert (erode_brain(brain, iterations) == expected).all()

    def test_the_face_of_the_volume_counts_as_background(self):
        eroded = erode_brain(np.ones((3, 5, 5), bool), 1)
        assert eroded.sum() == 3 * 9
        assert eroded[0, 1:-1, 1:-1].all()

    def test_zero_steps_keep_the_mask(self):
        brain = ellipsoid(8)
        eroded = erode_brain(brain, 0)
        assert (eroded == brain).all()
        assert eroded is not brain

    @pytest.mark.parametrize(("rows", "iterations"), [(20, 0), (32, 1), (64, 2), (96, 3), (192, 7)])
    def test_steps_follow_the_rows_of_the_plane(self, rows, iterations):
        assert PostprocessConfig().iterations((10, rows, 500)) == iterations
        assert PostprocessConfig(erosion_iterations=4).iterations((10, rows, 500)) == 4


class TestMedian:
    @settings(deadline=None, max_examples=30)
    @given(
        st.tuples(*[st.integers(3, 9)] * 3),
        st.sampled_from([1, 3, 5]),
        st.sampled_from([3, 65535]),
        st.integers(0, 2**32 - 1),
    )
    def test_equals_scipy_inside_the_mask(self, shape, size, top, seed):
        rng = np.random.default_rng(seed)
        levels = rng.integers(0, top, shape, np.uint16, endpoint=True)
        mask = rng.random(shape) < 0.7
        expected = ndi.median_filter(levels, size=size, mode="reflect")
        assert (median_in_mask(levels, mask, size) == np.where(mask, expected, 0)).all()

    def test_more_windows_than_fit_at_once(self):
        levels = np.random.default_rng(1).integers(0, 65535, (20, 20, 20), np.uint16)
        mask = np.ones(levels.shape, bool)
        assert (median_in_mask(levels, mask, 3) == ndi.median_filter(levels, 3)).all()

    def test_an_empty_mask_gives_zeros(self):
        assert not median_in_mask(np.ones((4, 4, 4), np.uint16), np.zeros((4, 4, 4), bool), 5).any()


class TestPostprocess:
    def test_equals_the_float_way_through_scipy(self):
        """Residual, eroded mask, median on floats; fixed point last instead of first."""
        rng = np.random.default_rng(2)
        brain = ellipsoid(24)
        scores = np.abs(rng.normal(0, 0.3, brain.shape)).astype(np.float32)
        config = PostprocessConfig(erosion_iterations=1)
        masked = np.where(erode_brain(brain, 1), scores, 0)
        expected = quantise(ndi.median_filter(masked, size=5) * brain, (0, 1))
        assert (postprocess(scores, brain, (0, 1), config) == expected).all()

    def test_no_anomaly_is_level_zero_whatever_the_range(self):
        brain = ellipsoid(16)
        levels = postprocess(np.full(brain.shape, 1.0), brain, RANGE, PostprocessConfig())
        assert (levels[~brain] == 0).all()
        assert levels[8, 8, 8] == 49151

    def test_both_steps_can_be_switched_off(self):
        brain = ellipsoid(16)
        scores = np.random.default_rng(3).random(brain.shape)
        config = PostprocessConfig(erosion_iterations=0, median_size=1)
        levels = postprocess(scores, brain, (0, 1), config)
        assert (levels == np.where(brain, quantise(scores, (0, 1)), 0)).all()

    def test_other_grid_is_refused(self):
        with pytest.raises(EvaluationError, match=r"'a'.*\(4, 4, 4\).*\(4, 4, 5\)"):
            postprocess(
                np.zeros((4, 4, 4)),
                np.ones((4, 4, 5), bool),
                RANGE,
                PostprocessConfig(),
                subject="a",
            )

    @pytest.mark.parametrize("size", [0, 4, -1])
    def test_even_window_is_refused(self, size):
        with pytest.raises(ConfigError, match="median_size must be odd"):
            PostprocessConfig(median_size=size)

    def test_negative_erosion_is_refused(self):
        with pytest.raises(ConfigError, match="erosion_iterations"):
            PostprocessConfig(erosion_iterations=-1)
