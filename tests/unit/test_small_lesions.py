"""No subject vanishes: a lesion that reaches the threshold nowhere keeps its best voxel."""

from dataclasses import replace

import numpy as np
import pytest
from skimage.transform import resize
from tiny_scans import TINY, brain_image, ellipsoid, write

from uadray.errors import ScanError
from uadray.preparation import geometry
from uadray.preparation.geometry import Volume, resize_nearest
from uadray.preparation.layouts import Scan
from uadray.preparation.lesions import LesionMask, insert_lesion
from uadray.preparation.plan import make_plan
from uadray.preparation.read import is_stripped
from uadray.preparation.settings import DOUBT, LesionConfig, PrepareConfig, SplitConfig
from uadray.preparation.steps import pipeline, prepare_scan


def scan_of(folder, lesion, image=None) -> Scan:
    image = brain_image() if image is None else image
    return Scan(
        id="sub-01",
        subject="sub-01",
        modality="T1w",
        image=write(folder / "a.nii", image),
        lesion=write(folder / "l.nii", lesion) if lesion is not None else "",
    )


def one_voxel(place=(11, 13, 12)) -> np.ndarray:
    mask = np.zeros(brain_image().shape, bool)
    mask[place] = True
    return mask


@pytest.mark.parametrize("resize", ["average", "nearest"])
@pytest.mark.parametrize("place", [(11, 13, 12), (10, 12, 11), (9, 12, 12), (12, 13, 14)])
def test_one_voxel_stays_wherever_it_lies(tmp_path, place, resize):
    config = replace(TINY, denoise=False, resize=resize, mask_threshold=0.9)
    out = prepare_scan(scan_of(tmp_path, one_voxel(place)), config)
    assert out.lesion.sum() == 1
    (voxel,) = np.argwhere(out.lesion.T)
    there = out.affine[:3, :3] @ voxel + out.affine[:3, 3]
    assert (abs(there - place) <= np.abs(out.affine[:3, :3]).sum(1) / 2 + 1e-6).all()
    if resize == "average":
        assert f"{DOUBT}no voxel is lesion to 0.9: the one that is most so" in out.notes


def test_a_lesion_with_a_whole_voxel_has_no_note(tmp_path):
    out = prepare_scan(scan_of(tmp_path, ellipsoid(brain_image().shape, (4, 4, 4))), TINY)
    assert "no voxel" not in out.notes


def test_one_outside_the_brain_is_still_refused(tmp_path):
    lesion = one_voxel((11, 25, 12))
    with pytest.raises(ScanError, match="the lesion lies outside of it"):
        prepare_scan(scan_of(tmp_path, lesion), replace(TINY, denoise=False))


@pytest.mark.parametrize("kind", ["stroke", "tumour", "ms"])
@pytest.mark.parametrize("radius", [0.5, 1.0, 2.0])
def test_a_small_semi_synthetic_lesion_keeps_a_voxel(kind, radius):
    shape = (40, 40, 40)
    brain = ellipsoid(shape, (18, 18, 18))
    noise = np.random.default_rng(0).normal(100, 5, shape).astype(np.float32)
    volume = Volume(image=noise * brain, brain=brain, lesion=None, affine=np.eye(4))
    share = ellipsoid(shape, (radius,) * 3, (20, 21, 19)).astype(np.float32)
    mask = LesionMask(share=share, affine=np.eye(4))
    look = LesionConfig(lesion_kind=kind, placement="headers", flip_probability=0)
    out = insert_lesion(volume, mask=mask, seed=(0, 1), config=look)
    assert out.lesion[20, 21, 19] == 1
    if "is kept" in out.notes[-1]:
        assert out.lesion.sum() == 1
    changed = out.image[20, 21, 19] < volume.image[20, 21, 19]
    assert changed or kind == "tumour"  # whose mass effect moves the tissue, too


def test_nearest_takes_the_voxels_that_scikit_image_takes():
    rng = np.random.default_rng(0)
    image = rng.random((30, 45, 20)).astype(np.float32)
    brain, lesion = image > 0.1, (image > 0.5).astype(np.float32)
    volume = Volume(image=image, brain=brain, lesion=lesion, affine=np.diag([1.0, 2, 3, 1]))
    out = resize_nearest(volume, shape=(20, 24, 16))
    for made, array in ((out.image, image), (out.lesion, lesion), (out.brain, brain)):
        expected = resize(array.astype(float), (16, 24, 20), order=0, anti_aliasing=False)
        np.testing.assert_allclose(made, expected, rtol=1e-6)
    # Each voxel that is taken lies within half a new one of where the affine says.
    spacing = geometry.voxel_sizes(out.affine)
    np.testing.assert_allclose(spacing * (16, 24, 20), (30, 90, 60))
    assert resize_nearest(volume, shape=(20, 45, 30)) is volume


def test_the_two_ways_are_steps_of_two_names_and_old_plans_stay():
    names = [pipeline(replace(TINY, resize=r))[-1].name for r in ("average", "nearest")]
    assert names == ["downsample", "resize_nearest"]
    scans = [
        (Scan(id=str(k), subject=str(k), modality="T1w", image=f"{k}.nii"), "train")
        for k in range(2)
    ]
    plans = [
        make_plan(scans, replace(TINY, resize=r), SplitConfig(), seed=0)["config"]
        for r in ("average", "nearest")
    ]
    assert "resize" not in plans[0]
    assert plans[1]["resize"] == "nearest"


def test_a_stripped_scan_is_told_from_a_head(tmp_path):
    brain = brain_image()
    head = np.random.default_rng(0).normal(5, 1, brain.shape).astype(np.float32) + brain
    padded = np.pad(brain, 8)
    for name, image, limit, expected in (
        ("stripped", brain, 50, True),
        ("another background", np.where(brain > 0, brain, -3), 50, True),
        ("too much for a brain", padded, 1, False),
        ("noise around it", head, 50, False),
    ):
        one = scan_of(tmp_path / name, None, image.astype(np.float32))
        assert is_stripped(one, limit) == expected, name


def test_robex_is_left_out_where_no_skull_is(tmp_path):
    one = scan_of(tmp_path, None)
    made = [
        prepare_scan(one, replace(TINY, skull_strip=s, max_brain_ml=50.0))
        for s in ("auto", "robex-if-needed")
    ]
    assert np.array_equal(made[0].image, made[1].image)
    assert PrepareConfig().skull_strip == "auto"


def test_an_interpolated_mask_that_reaches_no_high_threshold_keeps_its_best(tmp_path):
    share = np.where(ellipsoid(brain_image().shape, (2, 2, 2), (11, 13, 12)), 0.6, 0)
    share[11, 13, 12] = 0.8
    one = scan_of(tmp_path, share.astype(np.float32))
    out = prepare_scan(one, replace(TINY, denoise=False, mask_threshold=0.9))
    assert out.lesion.sum() == 1
    assert "no voxel is lesion to 0.9" in out.notes
