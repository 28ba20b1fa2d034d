"""Registration to MNI152 and the way back, on a template brain put into scanners of all kinds."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import scipy.ndimage as ndi
from nibabel.affines import apply_affine
from nilearn.datasets import load_mni152_template
from scipy.spatial.transform import Rotation
from tiny_scans import ellipsoid, write

from uadray.errors import ScanError
from uadray.preparation import register as module
from uadray.preparation.geometry import to_scanner, voxel_ml
from uadray.preparation.layouts import Scan
from uadray.preparation.settings import Extent, PrepareConfig
from uadray.preparation.steps import PreparedVolume, prepare_scan

MEISSEN = PrepareConfig(shape=(54, 64, 53), spacing_mm=3.0, register="mni152", denoise=False)
LESION_MM = (-32.0, -18.0, 24.0)
RADIUS_MM = 12.0

POSES = {
    "oblique": (np.diag([3.0, 3.0, 3.0]), (9, -5, 7), 1.05),
    "left-handed sagittal, thick slices": (
        np.array([[0, 0, 4.0], [2.8, 0, 0], [0, -3.2, 0]]),
        (-4, 6, 3),
        0.95,
    ),
}
"""Directions and spacing of the axes, a rotation in degrees, a head's size relative to MNI."""


def put(pose: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The template and a ball in a scanner: image, lesion, affine, MNI to scanner."""
    axes, angles, size = POSES[pose]
    template = load_mni152_template(resolution=2)
    from_mni = np.eye(4)
    from_mni[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * size
    from_mni[:3, 3] = (12, -20, 30)
    affine = np.eye(4)
    affine[:3, :3] = axes
    shape = tuple(np.ceil(204 / np.linalg.norm(axes, axis=0)).astype(int))
    middle = apply_affine(from_mni, (0, -18, 8))
    affine[:3, 3] = middle - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    to_mni = np.linalg.inv(from_mni) @ affine
    grid = np.linalg.inv(template.affine) @ to_mni
    image = 200 * np.asarray(template.dataobj, np.float32)
    sampled = ndi.affine_transform(image, grid[:3, :3], grid[:3, 3], shape, order=1)
    place = apply_affine(to_mni, np.indices(shape).transpose(1, 2, 3, 0))
    lesion = np.linalg.norm(place - LESION_MM, axis=-1) <= RADIUS_MM
    return np.where(lesion, 0.7 * sampled, sampled), lesion, affine, from_mni


@pytest.fixture(scope="module", params=POSES)
def registered(request, tmp_path_factory) -> tuple[Scan, PreparedVolume, np.ndarray]:
    folder = tmp_path_factory.mktemp("pose")
    image, lesion, affine, from_mni = put(request.param)
    scan = Scan(
        id="one",
        subject="one",
        modality="T1w",
        image=write(folder / "image.nii.gz", np.where(image > 20, image, 0), affine),
        lesion=write(folder / "lesion.nii.gz", lesion, affine),
    )
    return scan, prepare_scan(scan, MEISSEN), from_mni


def test_the_store_grid_is_the_templates(registered):
    """A store's voxel means the same place in every brain: where MNI has it."""
    _, out, from_mni = registered
    centre = ndi.center_of_mass(out.lesion.T)
    template = module._template_centre()
    mni = (np.array(centre) - (np.array(out.lesion.T.shape) - 1) / 2) * 3.0 + template
    assert np.allclose(mni, LESION_MM, atol=3.0)
    corners = np.array([[x, y, z] for x in (0, 52) for y in (0, 63) for z in (0, 53)])
    wanted = apply_affine(from_mni, (corners - np.array([52, 63, 53]) / 2) * 3.0 + template)
    error = np.linalg.norm(apply_affine(out.affine, corners) - wanted, axis=1)
    assert error.max() < 6
    assert error.mean() < 3


def test_a_lesion_goes_there_and_back(registered):
    scan, out, _ = registered
    file, truth = nib.load(scan.image), np.asarray(nib.load(scan.lesion).dataobj)
    back = to_scanner(out.lesion, out.affine, file.affine, file.shape)
    distance = np.array(ndi.center_of_mass(back)) - ndi.center_of_mass(truth)
    store_mm = np.linalg.norm(out.affine[:3, :3], axis=0)
    # The registration's own error cancels: what is left is half a voxel, the store's or the scan's.
    step = np.maximum(1.0, store_mm.max() / np.linalg.norm(file.affine[:3, :3], axis=0))
    assert (abs(distance) < 0.5 * step).all()
    # Volumes are the scanner's, whatever size the head has in the template.
    true_ml = truth.sum() * voxel_ml(file.affine)
    assert out.lesion_ml == pytest.approx(true_ml, rel=0.2)
    assert float(back.sum()) * voxel_ml(file.affine) == pytest.approx(out.lesion_ml, rel=0.05)


@pytest.fixture(scope="module")
def upright() -> Scan:
    return Scan(id="one", subject="one", modality="T1w", image="")


@pytest.fixture
def known(monkeypatch, tmp_path, upright) -> Scan:
    """A scan whose registration is known, and so takes no time."""
    image, lesion, affine, from_mni = put("oblique")
    monkeypatch.setattr(module, "register_to_mni", lambda *_, **__: np.linalg.inv(from_mni))
    return replace(
        upright,
        image=write(tmp_path / "a.nii", np.where(image > 20, image, 0), affine),
        lesion=write(tmp_path / "l.nii", lesion, affine),
    )


def test_a_brain_larger_than_the_extent(known):
    small = replace(MEISSEN, extent=Extent(posterior_anterior=156), shape=(54, 52, 53))
    with pytest.raises(ScanError, match=r"posterior_anterior 18\d mm \(limit 156\)"):
        prepare_scan(known, small)
    out = prepare_scan(known, replace(small, grow_extent=True))
    assert out.image.shape == small.shape
    assert "extent grown to" in out.notes
    whole = prepare_scan(known, MEISSEN)
    cut = prepare_scan(known, replace(small, max_cut=0.2))
    assert "of the brain lie outside the extent and are cut off" in cut.notes
    # The grid stays the template's.
    assert np.array_equal(cut.brain, whole.brain[:, 6:58])
    # Nothing is cut off: the brain is as large as on the grid that holds it anyway.
    assert out.brain_ml == pytest.approx(whole.brain_ml, rel=0.01)


def test_the_lesion_threshold_of_the_paper(known):
    """At 0.9 only voxels that are nearly all lesion count (Meissen 2021, section 3.2)."""
    half, most = (prepare_scan(known, replace(MEISSEN, mask_threshold=t)) for t in (0.5, 0.9))
    assert 0.3 * half.lesion_ml < most.lesion_ml < 0.85 * half.lesion_ml
    assert not (most.lesion & ~half.lesion).any()


def test_what_is_no_brain_is_refused(tmp_path, upright):
    """A flat plate of brain volume has no place in the template."""
    plate = ellipsoid((60, 60, 60), (28, 28, 3.5))
    image = np.where(plate, 50 + np.indices(plate.shape).sum(0), 0).astype(np.float32)
    path = write(tmp_path / "plate.nii", image, np.diag([4.0, 4, 4, 1]))
    config = replace(MEISSEN, grow_extent=True)
    with pytest.raises(ScanError, match=r"plate\.nii: .*registration"):
        prepare_scan(replace(upright, image=path), config)


def test_a_real_brain_lies_on_the_template(real_data, upright):
    path = str(real_data / "ds002748/sub-01/anat/sub-01_T1w.nii.gz")
    config = PrepareConfig(shape=(81, 95, 79), spacing_mm=2.0, register="mni152")
    out = prepare_scan(replace(upright, image=path), config)
    template = module._template_brain()
    grid = np.diag([2.0, 2, 2, 1])
    grid[:3, 3] = module._template_centre() - np.array([78, 94, 80])
    there = np.linalg.inv(template.affine) @ grid
    expected = ndi.affine_transform(
        template.brain.astype(np.float32), there[:3, :3], there[:3, 3], (79, 95, 81), order=1
    )
    mask = expected.T > 0.5
    assert 2 * (mask & out.brain).sum() / (mask.sum() + out.brain.sum()) > 0.94
