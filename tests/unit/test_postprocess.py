"""Fixed point, erosion and median against plain scipy and against the cost that erosion has."""

import numpy as np
import pytest
import scipy.ndimage as ndi
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from uadray.errors import ConfigError, EvaluationError
from uadray.metrics.median import _plan, median_filter
from uadray.metrics.postprocess import dequantise, erode_brain, postprocess, quantise
from uadray.metrics.settings import PostprocessConfig

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
    @settings(deadline=None, max_examples=60)
    @given(
        st.tuples(*[st.integers(3, 11)] * 3),
        st.sampled_from([1, 3, 5, 7]),
        st.sampled_from([1, 3, 65535]),
        st.sampled_from([0.01, 0.3, 1.0]),
        st.integers(0, 2**32 - 1),
    )
    def test_equals_scipy_inside_the_mask(self, shape, size, top, share, seed):
        rng = np.random.default_rng(seed)
        levels = rng.integers(0, top, shape, np.uint16, endpoint=True)
        mask = rng.random(shape) < share
        expected = ndi.median_filter(levels, size=size, mode="reflect")
        assert (median_filter(levels, mask, size) == np.where(mask, expected, 0)).all()

    @pytest.mark.parametrize("shape", [(24, 23, 30), (5, 40, 61), (33, 7, 64), (1, 1, 300)])
    def test_more_voxels_than_fit_at_once(self, shape):
        levels = np.random.default_rng(1).integers(0, 65535, shape, np.uint16)
        everywhere = np.ones(shape, bool)
        assert (median_filter(levels, everywhere, 5) == ndi.median_filter(levels, 5)).all()

    def test_the_face_of_the_volume_is_a_mirror(self):
        """The edge voxel is repeated: d c b a | a b c d; not `mirror`, `nearest` or zeros."""
        levels = np.random.default_rng(2).integers(0, 65535, (6, 6, 6), np.uint16)
        everywhere = np.ones(levels.shape, bool)
        filtered = median_filter(levels, everywhere, 5)
        padded = np.pad(levels, 2, mode="symmetric")
        windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5, 5))
        assert (filtered == np.median(windows, axis=(3, 4, 5))).all()
        for other in ("mirror", "nearest", "constant", "wrap"):
            assert (filtered != ndi.median_filter(levels, 5, mode=other)).any()

    def test_neither_layout_nor_write_protection_matters(self):
        levels = np.random.default_rng(3).integers(0, 65535, (9, 8, 14), np.uint16)
        mask = levels > 9000
        expected = median_filter(levels, mask, 3)
        view = np.asfortranarray(levels)
        view.setflags(write=False)
        assert (median_filter(view, mask, 3) == expected).all()
        every_second = np.repeat(levels, 2, axis=2)[:, :, ::2]
        assert (median_filter(every_second, mask, 3) == expected).all()

    def test_an_empty_mask_gives_zeros(self):
        assert not median_filter(np.ones((4, 4, 4), np.uint16), np.zeros((4, 4, 4), bool), 5).any()

    @pytest.mark.parametrize("size", [3, 5])
    def test_networks_sort_every_input_of_zeros_and_ones(self, size):
        """The 0-1 principle: what holds for them holds for all values (Knuth, section 5.3.4)."""
        plan = _plan(size)
        columns = np.indices((2,) * size).reshape(size, -1)
        assert (np.diff(run(plan.column, columns), axis=0) >= 0).all()
        for network, parts in (
            (plan.two_columns, [size] * 2),
            (plan.row, [2 * size] * (size // 2) + [size]),
            (plan.two_rows, [size**2] * 2),
            (plan.core, [2 * size**2] * (size // 2)),
        ):
            counts = np.indices([n + 1 for n in parts]).reshape(len(parts), -1)
            lists = [np.arange(n)[:, None] >= n - c for n, c in zip(parts, counts, strict=True)]
            values = np.concatenate(lists).astype(int)
            expected = np.sort(values, axis=0)
            if network is plan.core:
                middle = (size**3 - 1) // 2
                expected = expected[middle - size**2 : middle + 1]
            assert (run(network, values) == expected).all()


def run(network, values):
    """The network's results, spelled out; results that are of no use are spoilt."""
    wires = values.copy()
    for low, high, use in network.steps:
        a, b = wires[low].copy(), wires[high].copy()
        wires[low] = np.minimum(a, b) if use in (0, 1) else -1
        wires[high] = np.maximum(a, b) if use in (0, 2) else -1
    return wires[network.ranks]


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
