from dataclasses import replace

import numpy as np
import pytest
import scipy.ndimage as ndi
from nilearn.datasets import load_mni152_template
from scipy.spatial.transform import Rotation
from tiny_scans import ellipsoid

from uadray.errors import ConfigError, ScanError
from uadray.prepare.geometry import Volume, voxel_ml
from uadray.prepare.layouts import Scan
from uadray.prepare.lesions import (
    StrokeConfig,
    StrokeMask,
    assign_strokes,
    find_stroke_masks,
    insert_stroke,
    register_to_mni,
)
from uadray.prepare.steps import PrepareConfig, prepare_scan

CONFIG = StrokeConfig()


@pytest.fixture(scope="module")
def mni() -> Volume:
    """The MNI brain at 2 mm, placed in a scanner of its own: turned, larger, and shifted."""
    template = load_mni152_template(resolution=2)
    image = np.asarray(template.dataobj, np.float32)
    return Volume(image=image, brain=image > 0, lesion=None, affine=from_mni() @ template.affine)


def from_mni() -> np.ndarray:
    """MNI millimetres to those of the scanner."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", (8, -4, 6), degrees=True).as_matrix() * 1.06
    affine[:3, 3] = (12, -20, 30)
    return affine


def sphere(centre_mm: tuple[float, float, float], radius_mm: float) -> StrokeMask:
    shape, origin = (181, 217, 181), np.array([-90.0, -125.0, -71.0])
    affine = np.eye(4)
    affine[:3, 3] = origin
    share = ellipsoid(shape, (radius_mm,) * 3, np.array(centre_mm) - origin)
    return StrokeMask(share=share.astype(np.float32), affine=affine)


STROKE = sphere((-35, -15, 20), 16)


@pytest.fixture(scope="module")
def lesioned(mni) -> list[Volume]:
    return [insert_stroke(mni, mask=STROKE, seed=(0, k), config=CONFIG) for k in (1, 2)]


def test_registration_finds_the_way_to_mni_and_repeats_to_the_bit(mni):
    first = register_to_mni(mni)
    assert np.array_equal(first, register_to_mni(mni))
    found = first @ from_mni()
    corners = np.array([[x, y, z, 1] for x in (-60, 60) for y in (-90, 60) for z in (-40, 70)])
    error = np.linalg.norm((corners @ found.T - corners)[:, :3], axis=1)
    assert error.max() < 4.0
    assert error.mean() < 2.0


def test_the_truth_lies_where_the_mask_was_on_either_side(mni, lesioned):
    to_mni = np.linalg.inv(from_mni()) @ mni.affine
    sides = set()
    for one in lesioned:
        assert set(np.unique(one.lesion)) == {0.0, 1.0}
        x, y, z = to_mni[:3, :3] @ ndi.center_of_mass(one.lesion) + to_mni[:3, 3]
        sides.add(bool(x > 0))
        assert np.allclose([-abs(x), y, z], [-35, -15, 20], atol=3.0)
        # The brain is 1.06 times as large along each axis as in MNI.
        expected = STROKE.share.sum() / 1000 * 1.06**3
        assert one.lesion.sum() * voxel_ml(one.affine) == pytest.approx(expected, rel=0.1)
    assert sides == {True, False}


def test_tissue_is_darkened_inside_and_left_alone_outside(mni, lesioned):
    for one in lesioned:
        inside = one.lesion > 0
        kept = one.image[inside] / mni.image[inside]
        # Nowhere brighter; the mean within the drawn range, less the soft border's share.
        assert kept.max() < 1
        assert 1 - CONFIG.max_darkening - 0.05 < kept.mean() < 1 - 0.6 * CONFIG.min_darkening
        assert kept.std() > 0.02
        far = ndi.distance_transform_edt(~inside) * 2.12 > 6 * CONFIG.border_mm
        assert np.array_equal(one.image[far], mni.image[far])
        assert (one.image[~mni.brain] == 0).all()
    means = [one.image[one.lesion > 0].mean() for one in lesioned]
    assert len({round(float(m), 4) for m in means}) == 2


def test_the_same_seed_gives_the_same_bits(mni, lesioned):
    again = insert_stroke(mni, mask=STROKE, seed=(0, 2), config=CONFIG)
    assert np.array_equal(again.image, lesioned[1].image)


def test_a_stroke_outside_the_brain_is_refused(mni):
    with pytest.raises(ScanError, match=r"only 0\.\d mL of a stroke of .* registration to MNI"):
        insert_stroke(mni, mask=sphere((0, 80, 80), 10), seed=(0, 0), config=CONFIG)


def scan(k: int) -> Scan:
    return Scan(id=f"s{k}", subject=f"s{k}", image=f"/s{k}.nii", modality="T1w")


def test_masks_are_assigned_once_each_and_whatever_the_order():
    scans, masks = [scan(k) for k in range(9)], [f"/m{k}.nii.gz" for k in range(9)]
    given = assign_strokes(scans, masks, seed=1)
    assert {s.synthetic_lesion for s in given} == set(masks)
    assert given == assign_strokes(scans[::-1], masks[::-1], seed=1)
    assert given != assign_strokes(scans, masks, seed=2)
    assert all(s.lesioned for s in given)
    few = assign_strokes(scans, masks[:4], seed=1)
    assert len({s.synthetic_lesion for s in few[:4]}) == 4


def test_masks_that_cannot_be_assigned(tmp_path):
    with pytest.raises(ConfigError, match="no stroke mask"):
        assign_strokes([scan(0)], find_stroke_masks(str(tmp_path)), seed=0)
    with pytest.raises(ConfigError, match="s0 has a real lesion already"):
        assign_strokes([replace(scan(0), lesion="/l.nii")], ["/m.nii.gz"], seed=0)


def test_darkening_is_checked():
    with pytest.raises(ConfigError, match="min_darkening"):
        StrokeConfig(min_darkening=0.5)


def test_a_real_stroke_on_a_real_brain(real_data):
    masks = find_stroke_masks(str(real_data / "stroke_masks"))
    assert len(masks) == 90
    healthy = Scan(
        id="sub-01",
        subject="sub-01",
        modality="T1w",
        image=str(real_data / "ds002748/sub-01/anat/sub-01_T1w.nii.gz"),
    )
    (one,) = assign_strokes([healthy], masks, seed=0)
    out = prepare_scan(one, PrepareConfig())
    assert out.notes == f"semi-synthetic stroke from {one.synthetic_lesion[-18:-7]}"
    plain = prepare_scan(healthy, PrepareConfig())
    assert out.lesion is not None
    assert 5 < out.lesion_ml < 400
    assert out.image[out.lesion].mean() < 0.9 * plain.image[out.lesion].mean()
    # Tissue is darker, not gone: intensity alone is not to solve it.
    assert out.image[out.lesion].mean() > 0.3 * plain.image[out.lesion].mean()
