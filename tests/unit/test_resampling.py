"""Sampling by matrices against interpolators that visit each voxel, and the way back."""

from dataclasses import replace
from functools import partial

import nibabel as nib
import numpy as np
import pytest
import scipy.ndimage as ndi
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.affines import apply_affine
from scipy.spatial.transform import Rotation
from skimage.transform import resize_local_mean
from tiny_scans import TINY, ellipsoid, write

from uadray.errors import ScanError
from uadray.preparation import geometry
from uadray.preparation.geometry import Volume, to_scanner
from uadray.preparation.layouts import Scan
from uadray.preparation.read import load_volume
from uadray.preparation.settings import Extent, PrepareConfig
from uadray.preparation.steps import prepare_scan


def volume(image: np.ndarray, affine: np.ndarray | None = None, **masks) -> Volume:
    brain = masks.get("brain", image > 0)
    affine = np.eye(4) if affine is None else affine
    return Volume(image=image, brain=brain, lesion=masks.get("lesion"), affine=affine)


@st.composite
def poses(draw) -> np.ndarray:
    """Any axis order, flips (so left-handed ones too), a rotation, unequal spacing."""
    order = draw(st.permutations(range(3)))
    signs = draw(st.lists(st.sampled_from([-1, 1]), min_size=3, max_size=3))
    angles = draw(st.lists(st.floats(-35, 35), min_size=3, max_size=3))
    affine = np.eye(4)
    turned = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    affine[:3, :3] = turned @ (np.eye(3)[:, order] * signs)
    affine[:3, :3] *= [draw(st.floats(0.7, 2.2)) for _ in range(3)]
    affine[:3, 3] = draw(st.lists(st.floats(-90, 90), min_size=3, max_size=3))
    return affine


class TestAgainstInterpolators:
    @settings(deadline=None, max_examples=25)
    @given(
        shape=st.tuples(*(st.integers(2, 17),) * 3),
        mm=st.tuples(*(st.floats(0.4, 3.0),) * 3),
        seed=st.integers(0, 99),
    )
    def test_resample_is_scipys_spline(self, shape, mm, seed):
        image = np.random.default_rng(seed).uniform(0, 300, shape).astype(np.float32)
        share = (image / 300).astype(np.float32)
        before = volume(image, np.diag([*mm, 1.0]), brain=image > 150, lesion=share)
        out = geometry.resample(before, spacing_mm=1.0)
        if out is before:
            return
        step = 1.0 / np.array(mm)
        offset = (np.linalg.inv(before.affine) @ out.affine)[:3, 3]

        def reference(array: np.ndarray, order: int) -> np.ndarray:
            return ndi.affine_transform(
                array.astype(float), step, offset, out.image.shape, order=order, mode="mirror"
            )

        cubic = reference(image, 3).clip(image.min(), image.max())
        assert np.allclose(out.image, cubic, atol=1e-6 * 300)
        assert np.allclose(out.lesion, reference(share, 1), atol=1e-6)
        brain = reference(before.brain, 1)
        sure = abs(brain - 0.5) > 1e-5
        assert np.array_equal(out.brain[sure], (brain >= 0.5)[sure])

    @settings(deadline=None)
    @given(
        shape=st.tuples(*(st.integers(2, 19),) * 3),
        share=st.tuples(*(st.floats(0.1, 1.0),) * 3),
    )
    def test_downsample_is_scikit_images_local_mean(self, shape, share):
        image = np.random.default_rng(0).random(shape, np.float32)
        target = tuple(max(1, int(n * s)) for n, s in zip(shape, share, strict=True))
        out = geometry.downsample(volume(image), shape=target[::-1])
        expected = resize_local_mean(image.astype(float), target, preserve_range=True)
        assert np.allclose(out.image, expected, atol=1e-6)

    def test_the_same_bits_whatever_the_threads(self):
        rng = np.random.default_rng(0)
        image = rng.random((90, 110, 100), np.float32)
        matrices = [
            rng.random((n, m), np.float32) for n, m in zip((95, 120, 64), image.shape, strict=True)
        ]
        results = []
        for threads in (1, 2):
            with geometry._blas().limit(limits=threads, user_api="blas"):
                results.append(geometry.along_axes(image, matrices))
        assert np.array_equal(*results)
        expected = np.einsum("ai,bj,ck,ijk->abc", *matrices, image, optimize=True)
        assert np.allclose(results[0], expected, rtol=1e-4)


class TestExtent:
    SMALL = Extent(left_right=20, posterior_anterior=24, inferior_superior=16)

    def test_growing_keeps_the_proportions_and_says_so(self):
        brain = np.ones((10, 30, 10), np.float32)
        out = geometry.pad_to_extent(volume(brain), extent=self.SMALL, grow=True, max_cut=0.0)
        assert out.image.shape == (25, 30, 20)
        assert out.notes == ("extent grown to 25 x 30 x 20 mm",)
        assert out.image.sum() == brain.sum()
        assert np.allclose(out.affine[:3, 3], [-7, 0, -5])

    def test_a_brain_that_fits_grows_nothing(self):
        brain = np.ones((20, 24, 16), np.float32)
        out = geometry.pad_to_extent(volume(brain), extent=self.SMALL, grow=True, max_cut=0.0)
        assert out.image.shape == brain.shape
        assert out.notes == ()

    def test_the_error_names_axis_size_and_flags(self):
        with pytest.raises(ScanError) as error:
            geometry.fit_extent(
                self.SMALL, np.array([40, 49, 36]), 0.031, 0.5, grow=False, max_cut=0.03
            )
        text = str(error.value)
        assert "posterior_anterior 24 mm (limit 24), inferior_superior 18 mm (limit 16)" in text
        assert "3.10% of the brain lie outside" in text
        assert "--posterior-anterior 25 --inferior-superior 18" in text
        assert "--grow-extent" in text
        assert "left_right" not in text

    @settings(deadline=None)
    @given(
        needed=st.tuples(*(st.integers(1, 900),) * 3),
        mm=st.tuples(*(st.floats(5, 300),) * 3),
        spacing=st.floats(0.25, 8),
    )
    def test_what_has_grown_fits(self, needed, mm, spacing):
        before = Extent(left_right=mm[0], posterior_anterior=mm[1], inferior_superior=mm[2])
        fit = partial(
            geometry.fit_extent, before, np.array(needed), 0.1, spacing, grow=True, max_cut=0.0
        )
        if before.mm.max() * (np.array(needed) * spacing / before.mm).max() > 1000:
            with pytest.raises(ScanError, match="the limit is 1000"):
                fit()
            return
        grown, notes = fit()
        assert bool(notes) == (grown != before)
        assert (np.array(grown.voxels(spacing)) >= needed).all()
        ratio = grown.mm / before.mm
        assert ratio.min() == pytest.approx(ratio.max())
        assert ratio.min() > 0.999

    def test_a_cut_is_central_and_noted(self):
        brain = np.zeros((11, 28, 17), np.float32)
        brain[2:9, 2:26, 1:16] = 1
        brain[5, 0, 5] = brain[5, 27, 5] = 1
        before = volume(brain, np.diag([1.0, 1, 1, 1]))
        share = 2 / brain.sum()
        with pytest.raises(ScanError, match=r"0\.08% of the brain lie outside"):
            geometry.pad_to_extent(before, extent=self.SMALL, grow=False, max_cut=0.5 * share)
        out = geometry.pad_to_extent(before, extent=self.SMALL, grow=False, max_cut=share)
        assert out.image.shape == (20, 24, 16)
        assert out.image.sum() == brain.sum() - 2
        assert out.notes == ("0.08% of the brain lie outside the extent and are cut off",)
        brain[:, [0, 27]] = 0
        there = apply_affine(out.affine, np.argwhere(out.image))
        assert np.allclose(there.mean(0), np.argwhere(brain).mean(0))

    def test_a_grown_scan_fills_the_same_grid(self, tmp_path):
        image = np.where(ellipsoid((30, 40, 30), (11, 16, 11)), 100, 0).astype(np.float32)
        image += (image > 0) * np.indices(image.shape).sum(0)
        path = write(tmp_path / "long.nii", image)
        one = Scan(id="one", subject="one", modality="T1w", image=path)
        with pytest.raises(ScanError, match=r"posterior_anterior 32 mm \(limit 28\)"):
            prepare_scan(one, TINY)
        out = prepare_scan(one, replace(TINY, grow_extent=True))
        assert out.image.shape == TINY.shape
        assert "extent grown to" in out.notes
        assert out.brain_ml == pytest.approx((image > 0).sum() / 1000, rel=0.05)


class TestToScanner:
    @settings(deadline=None, max_examples=25)
    @given(affine=poses(), like=poses(), seed=st.integers(0, 99))
    def test_a_linear_map_comes_back_exactly(self, affine, like, seed):
        """A map that is linear in the scanner is the same on every grid that covers the place."""
        slope = np.random.default_rng(seed).normal(size=3)
        grid = np.indices((20, 21, 22)).transpose(1, 2, 3, 0)
        stored = apply_affine(affine, grid) @ slope
        # The other grid looks at the middle of the store's.
        like = like.copy()
        like[:3, 3] += apply_affine(affine, (9.5, 10, 10.5)) - apply_affine(like, (2, 2, 2))
        out = to_scanner(stored.T, affine, like, (5, 5, 5))
        assert out.shape == (5, 5, 5)
        assert out.dtype == np.float32
        expected = apply_affine(like, np.indices(out.shape).transpose(1, 2, 3, 0)) @ slope
        place = apply_affine(np.linalg.inv(affine) @ like, np.indices((5, 5, 5)).T).T
        inside = ((place.T > 0) & (place.T < [19, 20, 21])).all(-1).T
        assert inside[2, 2, 2]
        assert np.allclose(out[inside], expected[inside], rtol=1e-4, atol=1e-3)

    @settings(deadline=None, max_examples=25)
    @given(affine=poses(), place=st.tuples(*(st.integers(-4, 4),) * 3))
    def test_a_lesion_goes_to_the_store_and_back(self, tmp_path_factory, affine, place):
        folder = tmp_path_factory.mktemp("round")
        sizes = geometry.voxel_sizes(affine)
        shape = tuple(np.ceil(52 / sizes).astype(int))
        middle = (np.array(shape) - 1) / 2
        brain = ellipsoid(shape, tuple(22 / sizes))
        image = np.where(brain, 50 + np.indices(shape).sum(0), 0).astype(np.float32)
        lesion = ellipsoid(shape, tuple(7 / sizes), middle + np.array(place) / sizes)
        extent = Extent(left_right=50, posterior_anterior=54, inferior_superior=48)
        config = PrepareConfig(
            shape=(24, 27, 25), extent=extent, denoise=False, min_brain_ml=0, mask_threshold=0.5
        )
        scan = Scan(
            id="one",
            subject="one",
            modality="T1w",
            image=write(folder / "image.nii.gz", image, affine),
            lesion=write(folder / "lesion.nii.gz", lesion, affine),
        )
        out = prepare_scan(scan, config)
        back = to_scanner(out.lesion, out.affine, affine, shape)
        file = nib.load(scan.image)
        assert back.shape == file.shape
        distance = np.array(ndi.center_of_mass(back)) - ndi.center_of_mass(lesion)
        assert (abs(distance) < 0.5).all()
        ml = float(back.sum()) * geometry.voxel_ml(affine)
        assert ml == pytest.approx(lesion.sum() * geometry.voxel_ml(affine), rel=0.2)

    def test_labels_and_what_lies_outside(self):
        mask = np.zeros((4, 5, 6), bool)
        mask[1, 2, 3] = True
        affine = np.diag([2.0, 2, 2, 1])
        like = np.eye(4)
        like[:3, 3] = -30
        out = to_scanner(mask, affine, like, (60, 60, 60), order=0)
        assert set(np.unique(out)) == {0, 1}
        assert ndi.center_of_mass(out) == pytest.approx((36, 34, 32), abs=0.5)

    def test_a_real_scan(self, real_data):
        path = str(real_data / "ds002748/sub-01/anat/sub-01_T1w.nii.gz")
        scan = Scan(id="sub-01", subject="sub-01", modality="T1w", image=path)
        out = prepare_scan(scan, PrepareConfig())
        file = nib.load(path)
        back = to_scanner(out.brain, out.affine, file.affine, file.shape) > 0.5
        brain = load_volume(scan).brain
        dice = 2 * (back & brain).sum() / (back.sum() + brain.sum())
        assert dice > 0.97


@pytest.mark.parametrize("shape", [(110, 128, 128), (163, 224, 224), (163, 191, 158)])
def test_grids_need_not_be_cubes(tmp_path, shape):
    """The 2D protocols' planes: 128 x 128 and 224 x 224 pixels over a square box."""
    square = Extent(left_right=230, posterior_anterior=230, inferior_superior=163)
    extent = square if shape[1] == shape[2] else Extent()
    brain = ellipsoid((80, 96, 80), (33, 42, 34))
    image = np.where(brain, 50 + np.indices(brain.shape).sum(0), 0).astype(np.float32)
    path = write(tmp_path / "a.nii", image, np.diag([2.0, 2, 2, 1]))
    scan = Scan(id="one", subject="one", modality="T1w", image=path)
    out = prepare_scan(scan, PrepareConfig(shape=shape, extent=extent, denoise=False))
    assert out.image.shape == out.brain.shape == shape
    assert out.brain_ml == pytest.approx(brain.sum() * 8 / 1000, rel=0.02)
    sizes = geometry.voxel_sizes(out.affine)
    assert np.allclose(sizes * shape[::-1], extent.mm, rtol=0.01)
    centre = apply_affine(out.affine, np.array(ndi.center_of_mass(out.brain.T)))
    assert np.allclose(centre, apply_affine(np.diag([2.0, 2, 2, 1]), (39.5, 47.5, 39.5)), atol=0.5)
