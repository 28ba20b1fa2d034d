"""The intensity steps against SimpleITK and brute force."""

import numpy as np
import pytest
import scipy.ndimage as ndi
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_scans import ellipsoid

from uadray.errors import ScanError
from uadray.preparation.geometry import Volume
from uadray.preparation.intensity import correct_bias, curvature_flow, denoise, standardise


def itk_flow(image: np.ndarray, spacing, time_step: float, iterations: int) -> np.ndarray:
    there = sitk.GetImageFromArray(image.T)
    there.SetSpacing([float(s) for s in spacing])
    flow = sitk.CurvatureFlow(there, timeStep=time_step, numberOfIterations=iterations)
    return sitk.GetArrayFromImage(flow).T


class TestCurvatureFlow:
    @settings(deadline=None, max_examples=30)
    @given(
        shape=st.tuples(*(st.integers(2, 14),) * 3),
        spacing=st.tuples(*(st.floats(0.5, 3.0),) * 3),
        step=st.floats(0.01, 0.125),
        iterations=st.integers(1, 5),
        seed=st.integers(0, 99),
    )
    def test_it_is_itks_filter(self, shape, spacing, step, iterations, seed):
        rng = np.random.default_rng(seed)
        image = ndi.gaussian_filter(rng.uniform(0, 2000, shape), 0.7).astype(np.float32)
        ours = curvature_flow(image, np.array(spacing), time_step=step, iterations=iterations)
        theirs = itk_flow(image, spacing, step, iterations)
        assert ours.dtype == np.float32
        # Where the gradient all but vanishes its direction is rounding in both.
        assert np.quantile(abs(ours - theirs), 0.999) < 1e-5 * 2000
        assert abs(ours - theirs).max() < 1e-3 * 2000

    def test_whole_numbers_and_flat_regions(self):
        """As in scans of bytes: many gradients are exactly 0."""
        rng = np.random.default_rng(0)
        image = np.where(ellipsoid((30, 30, 30), (11, 12, 10)), rng.integers(90, 99, (30,) * 3), 0)
        image = image.astype(np.float32)
        ours = curvature_flow(image, np.ones(3), time_step=0.125, iterations=3)
        assert abs(ours - itk_flow(image, (1, 1, 1), 0.125, 3)).max() < 1e-3
        assert (ours[0] == 0).all()

    def test_a_real_brain(self, real_data):
        import nibabel as nib

        path = real_data / "ds002748/sub-01/anat/sub-01_T1w.nii.gz"
        image = np.asarray(nib.load(path).dataobj, np.float32)[40:120, 50:150, 40:110]
        image = ndi.zoom(image, (0.87, 0.87, 1), order=3)
        ours = curvature_flow(image, np.ones(3), time_step=0.125, iterations=3)
        assert abs(ours - itk_flow(image, (1, 1, 1), 0.125, 3)).max() < 1e-2


@settings(deadline=None, max_examples=20)
@given(
    radii=st.tuples(*(st.floats(2, 7),) * 3),
    centre=st.tuples(*(st.floats(6, 18),) * 3),
    iterations=st.integers(1, 4),
)
def test_the_brains_box_is_as_good_as_the_whole_volume(radii, centre, iterations):
    """To the bit, also next to a skull that was left outside the mask."""
    brain = ellipsoid((25, 24, 23), radii, centre)
    image = np.random.default_rng(0).uniform(50, 150, brain.shape).astype(np.float32)
    before = Volume(image=image, brain=brain, lesion=None, affine=np.eye(4))
    out = denoise(before, time_step=0.125, iterations=iterations)
    whole = curvature_flow(image, np.ones(3), time_step=0.125, iterations=iterations)
    assert np.array_equal(out.image[brain], whole[brain])
    assert np.array_equal(before.image, image)


class TestBias:
    def test_it_flattens_a_field(self):
        brain = ellipsoid((48, 56, 44), (21, 25, 19))
        rng = np.random.default_rng(0)
        tissue = np.where(ndi.gaussian_filter(rng.normal(size=brain.shape), 2) > 0, 100, 60)
        x, y, z = (np.linspace(-1, 1, n) for n in brain.shape)
        field = np.exp(0.3 * x[:, None, None] - 0.2 * y[None, :, None] ** 2 + 0.1 * z[None, None])
        image = np.where(brain, tissue * field, 0).astype(np.float32)
        before = Volume(image=image, brain=brain, lesion=None, affine=np.diag([3.0, 3, 3, 1]))
        out = correct_bias(before, shrink=2)

        def unevenness(image: np.ndarray) -> float:
            return float(np.std(np.log(image[brain] / tissue[brain])))

        assert unevenness(out.image) < 0.35 * unevenness(image)
        assert out.image.dtype == np.float32
        assert (out.image[~brain] == 0).all()
        assert np.array_equal(out.image, correct_bias(before, shrink=2).image)

    def test_too_little_to_go_by(self):
        ones = np.ones((2, 2, 2), np.float32)
        before = Volume(image=ones, brain=ones > 0, lesion=None, affine=np.eye(4))
        with pytest.raises(ScanError, match="N4 found no bias field"):
            correct_bias(before, shrink=4)


@given(st.integers(0, 200), st.floats(0, 40), st.floats(60, 100))
def test_standardise_maps_the_percentiles(seed, low, high):
    rng = np.random.default_rng(seed)
    image = rng.gamma(2, 100, (7, 8, 9)).astype(np.float32)
    brain = rng.random(image.shape) < 0.6
    before = Volume(image=image, brain=brain, lesion=None, affine=np.eye(4))
    out = standardise(before, percentiles=(low, high)).image
    a, b = np.percentile(image[brain], (low, high))
    assert np.allclose(out[brain], np.clip((image[brain] - a) / (b - a), 0, 1), atol=1e-6)
    assert (out[~brain] == 0).all()
