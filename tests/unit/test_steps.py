import gzip
import json
from dataclasses import replace
from pathlib import Path

import fsspec
import nibabel as nib
import numpy as np
import pytest
import scipy.ndimage as ndi
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import aff2axcodes
from scipy.spatial.transform import Rotation
from tiny_scans import TINY, brain_image, ellipsoid, write

from uadray.config import to_json
from uadray.errors import ConfigError, ScanError
from uadray.preparation import geometry
from uadray.preparation.geometry import Volume
from uadray.preparation.intensity import denoise, standardise
from uadray.preparation.layouts import Scan, phantom
from uadray.preparation.read import brain_of_stripped, load_volume
from uadray.preparation.settings import Extent, PrepareConfig
from uadray.preparation.steps import pipeline, prepare_scan, record, recorded_config


def volume(image: np.ndarray, affine: np.ndarray | None = None, **masks) -> Volume:
    brain = masks.get("brain", image > 0)
    affine = np.eye(4) if affine is None else affine
    return Volume(image=image, brain=brain, lesion=masks.get("lesion"), affine=affine)


def scan(image: str, **masks: str) -> Scan:
    return Scan(id="one", subject="one", modality="T1w", image=image, **masks)


def in_mm(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Centre of mass of an (X, Y, Z) array in the scanner."""
    return affine[:3, :3] @ np.array(ndi.center_of_mass(mask)) + affine[:3, 3]


@st.composite
def affines(draw) -> np.ndarray:
    """Any axis order, flips (so left-handed ones too), a rotation, unequal spacing."""
    order = draw(st.permutations(range(3)))
    signs = draw(st.lists(st.sampled_from([-1, 1]), min_size=3, max_size=3))
    angles = draw(st.lists(st.floats(-35, 35), min_size=3, max_size=3))
    matrix = np.eye(3)[:, order] * signs
    affine = np.eye(4)
    turned = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ matrix
    affine[:3, :3] = turned * [draw(st.floats(0.6, 1.7)) for _ in range(3)]
    affine[:3, 3] = draw(st.lists(st.floats(-90, 90), min_size=3, max_size=3))
    return affine


class TestGeometry:
    @given(affine=affines())
    def test_canonical_points_right_front_up_and_moves_nothing(self, affine):
        image = np.zeros((5, 6, 7), np.float32)
        image[1, 4, 2] = 1
        before = volume(image, affine)
        after = geometry.to_canonical(before)
        where = np.argwhere(after.image)[0]
        assert np.allclose(affine @ [1, 4, 2, 1], after.affine @ [*where, 1], atol=1e-9)
        # Each axis has its largest component along its own direction, forwards.
        assert aff2axcodes(after.affine) == ("R", "A", "S")

    @settings(deadline=None, max_examples=25)
    @given(affine=affines())
    def test_resample_keeps_a_ramp_in_the_scanner(self, affine):
        slope = np.array([0.5, -0.3, 0.2])
        grid = np.indices((14, 15, 16)).reshape(3, -1)
        ramp = slope @ (affine[:3, :3] @ grid + affine[:3, 3:])
        out = geometry.resample(
            volume(ramp.reshape(14, 15, 16).astype(np.float32), affine), spacing_mm=1.0
        )
        assert np.allclose(out.spacing, 1.0)
        index = np.indices(out.image.shape).reshape(3, -1)
        expected = slope @ (out.affine[:3, :3] @ index + out.affine[:3, 3:])
        # Mirroring bends a ramp within a few voxels of the border.
        inner = (slice(5, -5),) * 3
        got = out.image[inner]
        assert np.allclose(got, expected.reshape(out.image.shape)[inner], atol=0.02)

    def test_resample_stays_in_the_range(self):
        image = np.zeros((20, 20, 20), np.float32)
        image[6:14, 6:14, 6:14] = 255
        out = geometry.resample(volume(image, np.diag([1.3, 1.3, 1.3, 1])), spacing_mm=1.0)
        # An edge overshoots without the clamp.
        raw = ndi.zoom(image, 1.3, order=3, mode="mirror")
        assert raw.max() > 260
        assert raw.min() < -5
        assert (out.image.min(), out.image.max()) == (0, 255)

    def test_resample_leaves_its_own_spacing_alone(self):
        before = volume(brain_image())
        assert geometry.resample(before, spacing_mm=1.0) is before

    def test_downsample_is_the_mean_over_blocks(self):
        image = np.random.default_rng(0).random((8, 12, 6), np.float32)
        out = geometry.downsample(volume(image), shape=(2, 3, 4))
        expected = image.reshape(4, 2, 3, 4, 2, 3).mean(axis=(1, 3, 5))
        assert np.allclose(out.image, expected, atol=1e-6)
        assert np.allclose(out.spacing, [2, 4, 3])
        # The first new voxel's centre is the middle of the block it covers.
        assert np.allclose(out.affine[:3, 3], [0.5, 1.5, 1.0])

    def test_downsample_keeps_the_mean_at_odd_factors(self):
        image = np.random.default_rng(0).random((15, 19, 16), np.float32)
        out = geometry.downsample(volume(image), shape=(6, 7, 6))
        assert out.image.mean() == pytest.approx(image.mean(), abs=1e-5)

    def test_downsample_to_its_own_shape_is_the_identity(self):
        before = volume(brain_image((10, 12, 14)))
        assert geometry.downsample(before, shape=(14, 12, 10)) is before

    def test_crop_and_pad_centre_the_brain(self):
        image = np.zeros((30, 30, 30), np.float32)
        image[3:11, 5:15, 7:19] = 1
        cropped = geometry.crop_to_brain(volume(image))
        assert cropped.image.shape == (8, 10, 12)
        extent = Extent(left_right=12, posterior_anterior=16, inferior_superior=20)
        padded = geometry.pad_to_extent(cropped, extent=extent, grow=False, max_cut=0.0)
        assert padded.image.shape == (12, 16, 20)
        assert ndi.center_of_mass(padded.image) == (5.5, 7.5, 9.5)
        assert np.allclose(in_mm(padded.image, padded.affine), in_mm(image, np.eye(4)))

    def test_a_brain_larger_than_the_extent_names_the_axis(self):
        with pytest.raises(ScanError, match=r"posterior_anterior 21 mm \(limit 20\), 4\.76%"):
            geometry.pad_to_extent(
                volume(np.ones((10, 21, 10), np.float32)),
                extent=Extent(left_right=20, posterior_anterior=20, inferior_superior=20),
                grow=False,
                max_cut=0.0,
            )

    def test_the_papers_extent_in_store_order(self):
        assert Extent().voxels(1.0)[::-1] == (163, 191, 158)


class TestIntensity:
    def test_standardise_is_linear_between_percentiles(self):
        image = brain_image()
        brain = image > 0
        out = standardise(volume(image), percentiles=(1, 99)).image
        low, high = np.percentile(image[brain], (1, 99))
        assert np.allclose(out[brain], np.clip((image[brain] - low) / (high - low), 0, 1))
        assert (out[~brain] == 0).all()
        assert out[brain].max() == 1

    def test_standardise_looks_inside_the_brain_alone(self):
        image = brain_image()
        outside = np.where(image > 0, image, 1e6).astype(np.float32)
        got = standardise(volume(outside, brain=image > 0), percentiles=(1, 99))
        assert np.array_equal(got.image, standardise(volume(image), percentiles=(1, 99)).image)

    def test_no_contrast(self):
        with pytest.raises(ScanError, match="both 7: the scan has no contrast"):
            standardise(volume(np.full((5, 5, 5), 7, np.float32)), percentiles=(1, 99))

    def test_denoise_smooths_noise_and_keeps_an_edge(self):
        rng = np.random.default_rng(0)
        clean = np.full((24, 24, 24), 100, np.float32)
        clean[12:] = 200
        noisy = clean + rng.normal(0, 5, clean.shape).astype(np.float32)
        out = denoise(volume(noisy), time_step=0.125, iterations=3).image
        assert (out - clean)[2:10].std() < 0.6 * (noisy - clean)[2:10].std()
        assert (out[13] - out[10]).mean() == pytest.approx(100, abs=5)

    def test_brain_of_a_stripped_scan(self):
        image = ellipsoid((20, 20, 20), (7, 7, 7)).astype(np.float32)
        image[10, 10, 10] = 0
        image[0, 0, :3] = 1
        brain = brain_of_stripped(image)
        assert brain[10, 10, 10]
        assert not brain[0, 0, :3].any()


class TestPrepareScan:
    @settings(deadline=None, max_examples=20)
    @given(affine=affines(), place=st.tuples(*(st.integers(-3, 3),) * 3))
    def test_a_lesion_comes_back_where_it_was(self, tmp_path_factory, affine, place):
        folder: Path = tmp_path_factory.mktemp("scan")
        # Radii in mm, so that the brain fits the extent at every spacing.
        sizes = geometry.voxel_sizes(affine)
        shape = tuple(np.ceil(22 / sizes).astype(int))
        brain = ellipsoid(shape, tuple(9.5 / sizes))
        image = np.where(brain, 50 + np.indices(shape).sum(0), 0).astype(np.float32)
        centre = (np.array(shape) - 1) / 2 + np.array(place) / sizes
        lesion = ellipsoid(shape, tuple(4 / sizes), centre)
        config = replace(
            TINY,
            denoise=False,
            extent=Extent(left_right=26, posterior_anterior=28, inferior_superior=26),
        )
        out = prepare_scan(
            scan(
                write(folder / "image.nii.gz", image, affine),
                lesion=write(folder / "lesion.nii.gz", lesion, affine),
            ),
            config,
        )
        assert out.lesion is not None
        distance = in_mm(out.lesion.T, out.affine) - in_mm(lesion, affine)
        # In voxels of the store, along each of its axes.
        assert (abs(np.linalg.inv(out.affine[:3, :3]) @ distance) < 0.5).all()
        true_ml = lesion.sum() * geometry.voxel_ml(affine)
        assert out.lesion_ml == pytest.approx(true_ml, rel=0.4)

    def test_what_the_store_is_promised(self, tmp_path):
        path = write(tmp_path / "a.nii.gz", brain_image())
        out = prepare_scan(scan(path), TINY)
        assert out.image.shape == TINY.shape
        assert out.image.dtype == np.float32
        assert (out.image[~out.brain] == 0).all()
        assert 0 <= out.image.min() < 0.1 < 0.9 < out.image.max() <= 1
        assert out.lesion is None
        # The front is brighter: Y grows to the front.
        assert out.image[:, 10:].sum() > out.image[:, :4].sum()
        again = prepare_scan(scan(path), TINY)
        assert np.array_equal(out.image, again.image)
        assert out.brain_ml == pytest.approx((brain_image() > 0).sum() / 1000, rel=0.05)

    def test_a_brain_mask_strips_the_skull(self, tmp_path):
        image = brain_image()
        brain = image > 0
        head = np.where(brain, image, 900).astype(np.float32)
        out = prepare_scan(
            scan(write(tmp_path / "a.nii", head), brain=write(tmp_path / "b.nii", brain)), TINY
        )
        plain = prepare_scan(scan(write(tmp_path / "c.nii", image)), TINY)
        assert np.array_equal(out.image, plain.image)

    def test_the_mask_threshold_decides_the_size(self, tmp_path):
        image = brain_image()
        one = scan(
            write(tmp_path / "a.nii", image),
            lesion=write(tmp_path / "l.nii", ellipsoid(image.shape, (3, 3, 3))),
        )
        sizes = [prepare_scan(one, replace(TINY, mask_threshold=t)).lesion_ml for t in (0.2, 0.9)]
        assert sizes[0] > sizes[1]

    def test_one_frame_of_four_dimensions_is_squeezed(self, tmp_path):
        image = brain_image()
        flat = prepare_scan(scan(write(tmp_path / "a.nii", image)), TINY)
        deep = prepare_scan(scan(write(tmp_path / "b.nii", image[..., None])), TINY)
        assert np.array_equal(flat.image, deep.image)

    def test_a_url(self, tmp_path):
        path = write(tmp_path / "a.nii.gz", brain_image())
        fs = fsspec.filesystem("memory")
        fs.pipe_file("/steps-url/a.nii.gz", Path(path).read_bytes())
        fs.pipe_file("/steps-url/a.nii", gzip.decompress(Path(path).read_bytes()))
        try:
            there = [
                prepare_scan(scan(f"memory://steps-url/a.{e}"), TINY) for e in ("nii.gz", "nii")
            ]
        finally:
            fs.rm("/steps-url", recursive=True)
        here = prepare_scan(scan(path), TINY)
        assert all(np.array_equal(here.image, one.image) for one in there)

    def test_a_phantom_needs_no_file(self):
        out = prepare_scan(phantom("stroke", 1, 3)[0], PrepareConfig(shape=(16, 16, 16)))
        assert out.image.shape == (16, 16, 16)
        assert out.lesion is not None
        assert out.scanner.startswith("phantom-")
        (old,) = phantom("stroke", 1, 3, version=1)
        before = prepare_scan(old, PrepareConfig(shape=(16, 16, 16)))
        assert not np.array_equal(before.image, out.image)
        healthy = prepare_scan(phantom("healthy", 1)[0], PrepareConfig(shape=(16, 16, 16)))
        assert healthy.lesion is None
        with pytest.raises(ConfigError, match="use --size N"):
            prepare_scan(phantom("stroke", 1)[0], TINY)


def test_a_whole_head_is_refused(real_data):
    with pytest.raises(ScanError, match=r"mL are brain, expected at most 2500: .* --skull-strip"):
        prepare_scan(scan(str(real_data / "head/whole_head_T1.nii.gz")), PrepareConfig())


def test_a_real_brain(real_data):
    path = real_data / "ds002748/sub-01/anat/sub-01_T1w.nii.gz"
    out = prepare_scan(scan(str(path)), PrepareConfig(shape=(32, 32, 32)))
    raw = load_volume(scan(str(path)))
    assert 1000 < out.brain_ml < 1800
    assert np.allclose(in_mm(out.brain.T, out.affine), in_mm(raw.brain, raw.affine), atol=1.0)


class TestConfig:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"percentiles": (99.0, 1.0)}, "percentiles"),
            ({"mask_threshold": 0.0}, "mask_threshold"),
            ({"spacing_mm": 0.0}, "spacing_mm"),
            ({"min_brain_ml": 3000.0}, "min_brain_ml"),
            ({"bias_shrink": 0}, "bias_shrink"),
            ({"max_cut": 1.0}, "max_cut"),
            ({"denoise_time_step": 0.5}, "denoise_time_step"),
            ({"denoise_iterations": 0}, "denoise_iterations"),
            ({"max_cut": 0.1, "grow_extent": True}, "exclude each other"),
            ({"shape": (64, 64, 0)}, "shape"),
            ({"shape": (164, 191, 158)}, "volumes are never enlarged"),
        ],
    )
    def test_out_of_range(self, change, message):
        with pytest.raises(ConfigError, match=message):
            PrepareConfig(**change)

    def test_the_record_is_the_pipeline(self):
        steps = record(PrepareConfig(), lesions=False)
        assert [s["step"] for s in steps] == [s.name for s in pipeline(PrepareConfig())]
        assert [s["step"] for s in steps] == [
            "to_canonical",
            "resample",
            "strip",
            "denoise",
            "standardise",
            "crop_to_brain",
            "pad_to_extent",
            "downsample",
        ]
        assert steps[3] == {"step": "denoise", "time_step": 0.125, "iterations": 3}
        # Stripped in its own voxels, and interpolated once.
        meissen = replace(PrepareConfig(), register="mni152", correct_bias=True)
        assert [s["step"] for s in record(meissen, lesions=False)] == [
            "to_canonical",
            "strip",
            "register",
            "denoise",
            "correct_bias",
            "standardise",
            "downsample",
        ]
        off = record(replace(PrepareConfig(), denoise=False), lesions=True)
        names = [s["step"] for s in off]
        assert names[2:5] == ["strip", "insert_lesion", "standardise"]

    def test_the_settings_come_back_from_a_plan(self):
        config = replace(TINY, register="mni152", skull_strip="robex", percentiles=(2.0, 98.0))
        plan = json.loads(json.dumps({"config": to_json(config)}))
        assert recorded_config(plan) == config
        # As ingest records them where no lesion is made.
        del plan["config"]["lesion"]
        assert recorded_config(plan) == config
        assert record(recorded_config(plan), lesions=False) == record(config, lesions=False)


class TestUnits:
    """What a scan becomes does not depend on the unit of its intensities."""

    @pytest.mark.parametrize("correct_bias", [False, True])
    @pytest.mark.parametrize("scale", [1e-30, 1e-8, 1e-6, 1e-4, 1e-2, 0.37, 1e3, 1e4, 1e8, 1e20])
    def test_scale(self, tmp_path, scale, correct_bias):
        """To float32's rounding; float16, as the store keeps it, to its last place."""
        config = replace(TINY, correct_bias=correct_bias, bias_shrink=1)
        for seed in range(1 if correct_bias else 4):
            image = brain_image(seed=seed)
            plain = prepare_scan(scan(write(tmp_path / "a.nii", image)), config)
            other = prepare_scan(scan(write(tmp_path / "b.nii", image * np.float32(scale))), config)
            assert np.array_equal(plain.brain, other.brain)
            assert np.abs(plain.image - other.image).max() < 3e-6
            kept = [one.image.astype(np.float16) for one in (plain, other)]
            assert (np.abs(kept[0] - kept[1]) <= np.spacing(kept[0])).all()

    def test_a_power_of_two_changes_no_bit_of_the_denoised(self):
        before = volume(brain_image())
        expected = denoise(before, time_step=0.125, iterations=3).image
        for power in (-60, -20, -3, 1, 5, 12, 40):
            scaled = replace(before, image=np.ldexp(before.image, power))
            out = denoise(scaled, time_step=0.125, iterations=3).image
            assert np.array_equal(out, np.ldexp(expected, power))

    @pytest.mark.parametrize("scale", [0.37, 1e4])
    def test_zeros_inside_the_brain_do_not_tie_the_bias_field_to_the_unit(self, tmp_path, scale):
        """N4 takes the logarithm of 0 for 0, as if it were that of 1."""
        config = replace(TINY, denoise=False, correct_bias=True, bias_shrink=1)
        image = brain_image()
        mask = write(tmp_path / "m.nii", image > 0)
        image[8:12, 10:14, 9:12] = 0
        plain = prepare_scan(scan(write(tmp_path / "a.nii", image), brain=mask), config)
        scaled = image * np.float32(scale)
        other = prepare_scan(scan(write(tmp_path / "b.nii", scaled), brain=mask), config)
        assert np.abs(plain.image - other.image).max() < 1e-5

    @pytest.mark.parametrize(("scale", "offset"), [(1, 1000), (1, -300), (1e-6, 1e-4), (1e6, 1e8)])
    def test_offset(self, tmp_path, scale, offset):
        """A constant that was added everywhere goes, where a mask tells the brain.

        Not so at the brain's edge where it is denoised: outside of it there is 0.
        """
        image, config = brain_image(), replace(TINY, denoise=False)
        mask = write(tmp_path / "m.nii", image > 0)
        plain = prepare_scan(scan(write(tmp_path / "a.nii", image), brain=mask), config)
        moved = (image.astype(np.float64) * scale + offset).astype(np.float32)
        other = prepare_scan(scan(write(tmp_path / "b.nii", moved), brain=mask), config)
        assert np.allclose(plain.image, other.image, atol=2e-3)

    def test_ordinary_intensities_keep_their_bits(self, tmp_path):
        for high in (0.5, 1.0, 255.0, 4095.0, 65535.0):
            image = brain_image() * np.float32(high / 150)
            path = write(tmp_path / f"{high:g}.nii", image)
            assert np.array_equal(load_volume(scan(path)).image, image)


@pytest.mark.parametrize(("scale", "dtype"), [(0.37, "float32"), (1e4, "float32"), (100, "int16")])
def test_a_real_brain_in_another_unit(real_data, tmp_path, scale, dtype):
    path = real_data / "oasis30/sub-1000/anat/sub-1000_T1w.nii.gz"
    image = nib.load(path)
    voxels = np.asarray(image.dataobj, np.float64) * scale
    scaled = tmp_path / "scaled.nii"
    nib.save(nib.Nifti1Image(voxels.astype(dtype), image.affine), scaled)
    plain, other = (prepare_scan(scan(str(one)), PrepareConfig()) for one in (path, scaled))
    assert np.abs(plain.image - other.image).max() < 3e-6
    kept = [one.image.astype(np.float16) for one in (plain, other)]
    # Only what lies within float32's rounding of a border of float16 falls on its other side.
    assert (kept[0] != kept[1]).sum() < 100
