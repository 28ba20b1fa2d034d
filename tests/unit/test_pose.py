"""A tilted brain is noticed, turned straight, and its map comes back to where the brain lies."""

from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage as ndi
from nilearn.datasets import load_mni152_template
from scipy.spatial.transform import Rotation
from tiny_scans import ellipsoid, write

from uadray.preparation.geometry import to_scanner, voxel_sizes
from uadray.preparation.layouts import Scan
from uadray.preparation.pose import PLANES, PoseRange, pose_degrees, pose_range
from uadray.preparation.settings import PrepareConfig
from uadray.preparation.steps import PreparedVolume, prepare_scan

RIGID = PrepareConfig(
    shape=(54, 64, 53), spacing_mm=3.0, register="rigid", denoise=False, grow_extent=True
)
BALL_MM, RADIUS_MM = (-32.0, -18.0, 24.0), 12.0
STRAIGHT = ellipsoid((44, 52, 40), (14, 20, 12))


def tilted(folder: Path, angles: tuple[float, float, float]) -> tuple[Scan, np.ndarray, np.ndarray]:
    """The template with a dark ball, on a grid that is tilted against it; the ball, the affine."""
    template = load_mni152_template(resolution=2)
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    shape = (72, 80, 72)
    affine[:3, 3] = -1.5 * (np.array(shape) - 1)
    # What the file says of its place is straight: the head itself lies tilted.
    to_mni = turn.copy()
    to_mni[:3, 3] = (0, -18, 8)
    grid = np.linalg.inv(template.affine) @ to_mni @ affine
    image = 200 * np.asarray(template.dataobj, np.float32)
    sampled = ndi.affine_transform(image, grid[:3, :3], grid[:3, 3], shape, order=1)
    where = np.indices(shape).transpose(1, 2, 3, 0) @ (to_mni @ affine)[:3, :3].T
    where += (to_mni @ affine)[:3, 3]
    ball = np.linalg.norm(where - BALL_MM, axis=-1) <= RADIUS_MM
    image = np.where(sampled > 20, np.where(ball, 0.7 * sampled, sampled), 0)
    scan = Scan(
        id="one",
        subject="one",
        modality="T1w",
        image=write(folder / "image.nii.gz", image, affine),
        lesion=write(folder / "lesion.nii.gz", ball, affine),
    )
    return scan, ball, affine


def pose(prepared: PreparedVolume) -> np.ndarray:
    return pose_degrees(prepared.brain, voxel_sizes(prepared.affine)[::-1])


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> np.ndarray:
    scan, _, _ = tilted(tmp_path_factory.mktemp("straight"), (0, 0, 0))
    return pose(prepare_scan(scan, RIGID))


SLOW = [pytest.param(angles, marks=pytest.mark.slow) for angles in ((-5, 20, 0), (12, -10, 8))]


@pytest.mark.parametrize("angles", [(18, 0, 0), *SLOW])
def test_rigid_turns_it_straight_and_maps_come_back(tmp_path, straight, angles):
    scan, ball, affine = tilted(tmp_path, angles)
    out = prepare_scan(scan, RIGID)
    assert np.abs(pose(out) - straight).max() < 4
    assert "degrees to the template" in out.notes
    back = to_scanner(out.lesion, out.affine, affine, ball.shape, order=0) > 0.5
    apart = 3.0 * np.subtract(ndi.center_of_mass(back), ndi.center_of_mass(ball))
    assert np.linalg.norm(apart) < 1.5
    assert 2 * (back & ball).sum() / (back.sum() + ball.sum()) > 0.85
    # Its size stays.
    assert out.lesion_ml == pytest.approx(ball.sum() * 27 / 1000, rel=0.1)


@pytest.mark.parametrize("degrees", [-20, -8, 0, 15])
@pytest.mark.parametrize("name", PLANES)
def test_angles(name, degrees):
    first, second = PLANES[name]
    turned = ndi.rotate(STRAIGHT.astype(float), degrees, axes=(first, second), order=1) > 0.5
    angles = pose_degrees(turned.T, np.ones(3))
    expected = np.zeros(3)
    expected[list(PLANES).index(name)] = degrees
    angles = np.minimum(np.abs(angles), 180 - np.abs(angles))
    # Which of two axes is the longer one decides between an angle and its complement.
    assert np.abs(np.minimum(angles, 90 - angles) - np.abs(expected)).max() < 1.5


def test_what_is_usual_is_the_cohorts(tmp_path):
    usual = pose_range(np.array([[5.0, 0, 0], [7, 1, 30], [9, -1, -40], [6, 0, 80]]))
    assert usual is not None
    assert usual.doubts(np.array([8.0, 2, -80])) == []
    (doubt,) = usual.doubts(np.array([24.0, 2, 10]))
    assert "tilted by 18 degrees" in doubt
    assert "--register rigid" in doubt
    assert pose_range(np.full((2, 3), np.nan)) is None
    # Angles of axes come round at 90 degrees.
    assert PoseRange(median=(88, 0, 0), spread=(1, 1, 1)).doubts(np.array([-88.0, 0, 0])) == []


def test_no_brain():
    assert np.isnan(pose_degrees(np.zeros((4, 4, 4), bool), np.ones(3))).all()


def test_few_scans_tell_a_tilt_by_the_usual_spread() -> None:
    known = PoseRange(median=(10.0, 0.0, 0.0), spread=(1.0, 1.0, 1.0))
    for degrees, own, usual in ((9, 0, 0), (12, 1, 0), (18, 1, 1)):
        pose = np.array([10.0 + degrees, 0.0, 0.0])
        assert len(known.doubts(pose)) == own
        assert len(known.doubts(pose, few=True)) == usual
