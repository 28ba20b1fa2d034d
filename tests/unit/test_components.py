"""The component filter at all thresholds against labelling at each of them."""

import numpy as np
import pytest
import scipy.ndimage as ndi
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage.morphology import area_opening

from uadray.errors import ConfigError, EvaluationError
from uadray.metrics.components import neighbours, open_components
from uadray.metrics.settings import ComponentConfig

CONNECTIVITIES = st.sampled_from([6, 18, 26])
SIZES = st.sampled_from([0, 1, 2, 3, 5, 20, 10**9])
_VALUES = st.sampled_from([0, 0, 0, 1, 2, 300, 65534, 65535])
volumes = hnp.arrays(
    np.uint16, hnp.array_shapes(min_dims=3, max_dims=3, max_side=6), elements=_VALUES
)


def labelled(mask: np.ndarray, max_size: int, connectivity: int) -> np.ndarray:
    """The mask without its small components, by scipy."""
    structure = ndi.generate_binary_structure(3, {6: 1, 18: 2, 26: 3}[connectivity])
    labels, count = ndi.label(mask, structure)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    return (labels > 0) & (sizes > max_size)[labels]


def blobs(seed: int, size: int = 20) -> np.ndarray:
    """Smooth scores with many components of many sizes at every threshold."""
    noise = ndi.gaussian_filter(np.random.default_rng(seed).standard_normal((size,) * 3), 0.8)
    return (np.abs(noise) / np.abs(noise).max() * 65535).astype(np.uint16)


class TestOpenComponents:
    @settings(deadline=None, max_examples=300)
    @given(volumes, SIZES, CONNECTIVITIES)
    def test_equals_labelling_at_every_threshold(self, levels, max_size, connectivity):
        opened = open_components(levels, max_size, connectivity)
        assert opened.dtype == np.uint16
        for threshold in (1, 2, 3, 300, 301, 65534, 65535):
            expected = labelled(levels >= threshold, max_size, connectivity)
            np.testing.assert_array_equal(opened >= threshold, expected)

    @settings(deadline=None)
    @given(st.integers(0, 10**6), SIZES, CONNECTIVITIES)
    def test_equals_labelling_where_ties_are_rare(self, seed, max_size, connectivity):
        levels = blobs(seed, size=10)
        opened = open_components(levels, max_size, connectivity)
        for threshold in np.linspace(1, 65535, 12).astype(int):
            expected = labelled(levels >= threshold, max_size, connectivity)
            np.testing.assert_array_equal(opened >= threshold, expected)

    @pytest.mark.parametrize("max_size", [1, 20, 200])
    def test_equals_the_area_opening_of_scikit_image(self, max_size):
        levels = blobs(1)
        for connectivity, steps in ((6, 1), (26, 3)):
            expected = area_opening(levels, max_size + 1, connectivity=steps)
            # theirs keeps what remains under the last threshold, ours leaves it at no anomaly
            expected = np.where(labelled(levels > 0, max_size, connectivity), expected, 0)
            np.testing.assert_array_equal(open_components(levels, max_size, connectivity), expected)

    @settings(deadline=None)
    @given(volumes, st.sampled_from([1, 2, 5]), CONNECTIVITIES)
    def test_laws_of_an_opening(self, levels, max_size, connectivity):
        opened = open_components(levels, max_size, connectivity)
        assert (opened <= levels).all()
        np.testing.assert_array_equal(open_components(opened, max_size, connectivity), opened)
        assert (open_components(levels, max_size + 1, connectivity) <= opened).all()
        np.testing.assert_array_equal(open_components(levels, 0, connectivity), levels)
        for axes in ((2, 1, 0), (1, 0, 2)):
            turned = open_components(
                np.ascontiguousarray(levels.transpose(axes)), max_size, connectivity
            )
            np.testing.assert_array_equal(turned, opened.transpose(axes))

    def test_connectivity_decides_what_touches(self):
        levels = np.zeros((3, 3, 3), np.uint16)
        levels[1, 1, 1] = 9
        for other, joined in (((1, 1, 2), {6, 18, 26}), ((1, 2, 2), {18, 26}), ((2, 2, 2), {26})):
            pair = levels.copy()
            pair[other] = 5
            for connectivity in (6, 18, 26):
                opened = open_components(pair, 1, connectivity)
                assert (opened.max() == 5) == (connectivity in joined)

    def test_a_border_of_the_volume_joins_nothing(self):
        levels = np.zeros((2, 3, 4), np.uint16)
        levels[0, 0, 3] = levels[0, 1, 0] = levels[1, 0, 0] = 7
        assert not open_components(levels, 1, 6).any()

    @pytest.mark.parametrize("levels", [np.zeros((2, 2), np.uint16), np.zeros((2, 2, 2))])
    def test_what_are_no_levels_is_refused(self, levels):
        with pytest.raises(EvaluationError, match="expected uint16 levels over"):
            open_components(levels, 1)


def test_neighbours_are_those_of_scipy():
    for connectivity, steps in ((6, 1), (18, 2), (26, 3)):
        expected = ndi.generate_binary_structure(3, steps)
        np.testing.assert_array_equal(neighbours(connectivity), expected)


@pytest.mark.parametrize("wrong", [{"max_size": -1}, {"connectivity": 8}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=f"components.{next(iter(wrong))} must be"):
        ComponentConfig(**wrong)
