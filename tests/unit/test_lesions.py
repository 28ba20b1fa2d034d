from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import scipy.ndimage as ndi
from hypothesis import given, settings
from hypothesis import strategies as st
from nilearn.datasets import load_mni152_template
from scipy.spatial.transform import Rotation
from tiny_scans import TINY, ellipsoid, write, write_bids

from uadray.errors import ConfigError, NoScanFoundError, ScanError
from uadray.preparation.geometry import Volume, voxel_ml, voxel_sizes
from uadray.preparation.layouts import Scan
from uadray.preparation.lesion_shapes import displacement_mm, keep_components, push_outward
from uadray.preparation.lesions import (
    LesionMask,
    assign_masks,
    brighten,
    find_masks,
    insert_lesion,
    read_mask,
    register_to_mni,
)
from uadray.preparation.settings import CHANGES, LesionConfig, PrepareConfig
from uadray.preparation.steps import prepare_scan, record

CONFIG = LesionConfig()
LOW, HIGH = CHANGES["stroke", "t1-dark"]
BORDER_MM = 1.5


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


def sphere(centre_mm: tuple[float, float, float], radius_mm: float) -> LesionMask:
    shape, origin = (181, 217, 181), np.array([-90.0, -125.0, -71.0])
    affine = np.eye(4)
    affine[:3, 3] = origin
    share = ellipsoid(shape, (radius_mm,) * 3, np.array(centre_mm) - origin)
    return LesionMask(share=share.astype(np.float32), affine=affine)


STROKE = sphere((-35, -15, 20), 16)


@pytest.fixture(scope="module")
def lesioned(mni) -> list[Volume]:
    return [insert_lesion(mni, mask=STROKE, seed=(0, k), config=CONFIG) for k in (1, 2)]


def test_registration_finds_the_way_to_mni_and_repeats_to_the_bit(mni):
    first = register_to_mni(mni)
    assert np.array_equal(first, register_to_mni(mni))
    composed = first @ from_mni()
    corners = np.array([[x, y, z, 1] for x in (-60, 60) for y in (-90, 60) for z in (-40, 70)])
    error = np.linalg.norm((corners @ composed.T - corners)[:, :3], axis=1)
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
        assert 1 - HIGH - 0.05 < kept.mean() < 1 - 0.6 * LOW
        assert kept.std() > 0.02
        far = ndi.distance_transform_edt(~inside) * 2.12 > 6 * BORDER_MM
        assert np.array_equal(one.image[far], mni.image[far])
        assert (one.image[~mni.brain] == 0).all()
    means = [one.image[one.lesion > 0].mean() for one in lesioned]
    assert len({round(float(m), 4) for m in means}) == 2


def test_the_same_seed_gives_the_same_bits(mni, lesioned):
    again = insert_lesion(mni, mask=STROKE, seed=(0, 2), config=CONFIG)
    assert np.array_equal(again.image, lesioned[1].image)


def test_a_stroke_outside_the_brain_is_refused(mni):
    with pytest.raises(ScanError, match=r"only 0\.\d mL of a lesion of .* registration to MNI"):
        insert_lesion(mni, mask=sphere((0, 80, 80), 10), seed=(0, 0), config=CONFIG)


def scan(k: int) -> Scan:
    return Scan(id=f"s{k}", subject=f"s{k}", image=f"/s{k}.nii", modality="T1w")


def test_masks_are_assigned_once_each_and_whatever_the_order():
    scans, masks = [scan(k) for k in range(9)], [f"/m{k}.nii.gz" for k in range(9)]
    given = assign_masks(scans, masks, seed=1)
    assert {s.synthetic_lesion for s in given} == set(masks)
    assert given == assign_masks(scans[::-1], masks[::-1], seed=1)
    assert given != assign_masks(scans, masks, seed=2)
    assert all(s.lesioned for s in given)
    few = assign_masks(scans, masks[:4], seed=1)
    assert len({s.synthetic_lesion for s in few[:4]}) == 4


def test_masks_that_cannot_be_assigned(tmp_path):
    with pytest.raises(ConfigError, match="no lesion mask: --lesions must name"):
        assign_masks([scan(0)], find_masks(str(tmp_path)), seed=0)
    with pytest.raises(NoScanFoundError, match="no such folder"):
        find_masks(str(tmp_path / "absent"))
    with pytest.raises(ConfigError, match="s0 has a real lesion already"):
        assign_masks([replace(scan(0), lesion="/l.nii")], ["/m.nii.gz"], seed=0)
    with pytest.raises(ConfigError, match="s0 is T1w, and --contrast flair-bright is for FLAIR"):
        assign_masks([scan(0)], ["/m.nii.gz"], seed=0, config=LesionConfig(contrast="flair-bright"))
    unknown = replace(scan(0), modality="SWI")
    assert assign_masks(
        [unknown], ["/m.nii.gz"], seed=0, config=LesionConfig(contrast="flair-bright")
    )


def test_masks_are_found_by_what_their_names_tell(tmp_path):
    def names(pattern: str = "") -> list[str]:
        return [path.removeprefix(f"{tmp_path}/") for path in find_masks(str(tmp_path), pattern)]

    for name in ("Subject_1.nii.gz", "p2/Subject_2.nii", "template_ch2.nii.gz", "p2/brainmask.nii"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert names() == ["Subject_1.nii.gz", "p2/Subject_2.nii"]
    assert names("subject_*.nii") == ["p2/Subject_2.nii"]
    (tmp_path / "p2/p2_FLAIR.nii.gz").touch()
    (tmp_path / "p2/p2_consensus_gt.nii.gz").touch()
    assert names() == ["p2/p2_consensus_gt.nii.gz"]


def test_what_is_no_mask_is_refused(tmp_path):
    with pytest.raises(
        ScanError, match=r"no value of the lesion mask is above 0\.5, the largest is 0"
    ):
        read_mask(write(tmp_path / "empty.nii.gz", np.zeros((4, 4, 4))), "mni152")
    grey = np.arange(125.0).reshape(5, 5, 5)
    with pytest.raises(ScanError, match="came an image of 124 values"):
        read_mask(write(tmp_path / "grey.nii.gz", grey), "mni152")
    path = write(
        tmp_path / "labels_seg.nii.gz", np.array([0, 0.4, 1, 2, 4, 0, 0, 0]).reshape(2, 2, 2)
    )
    assert read_mask(path, "mni152").share.ravel().tolist() == [0, 0, 1, 1, 1, 0, 0, 0]
    with pytest.raises(ScanError, match="expected one brain template"):
        read_mask(path, "template")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"min_change": 0.5}, "min_change and max_change .* were 0.5 and 0.45"),
        ({"max_change": 1.0}, "max_change"),
        ({"mass_effect_mm": 9}, r"mass_effect_mm must be in \[0, 8\], was 9"),
        ({"border_mm": -1}, "border_mm"),
        ({"min_kept": 0}, "min_kept"),
        ({"flip_probability": 1.1}, "flip_probability"),
    ],
)
def test_settings_are_checked(changed, message):
    with pytest.raises(ConfigError, match=message):
        LesionConfig(**changed)


def test_what_is_left_open_follows_the_kind_and_what_is_set_stays():
    ms = LesionConfig(lesion_kind="ms", contrast="flair-bright", texture_mm=7.0).resolved()
    assert (ms.min_change, ms.max_change) == CHANGES["ms", "flair-bright"]
    assert (ms.border_mm, ms.texture_mm, ms.mass_effect_mm) == (0.7, 7.0, 0.0)
    assert LesionConfig(lesion_kind="tumour").resolved().mass_effect_mm == 4.0
    assert ms.resolved() == ms


def reference_stroke(
    volume: Volume, to_mni: np.ndarray, mask: LesionMask, seed: tuple[int, int]
) -> np.ndarray:
    """A dark stroke by its formula, written down straight."""
    rng = np.random.default_rng(list(seed))
    flip = rng.random() < 0.5
    darkening = rng.uniform(0.12, 0.45)
    to_mni = np.diag([-1.0 if flip else 1.0, 1, 1, 1]) @ to_mni
    grid = np.linalg.inv(mask.affine) @ to_mni @ volume.affine
    mapped = ndi.affine_transform(
        mask.share, grid[:3, :3], grid[:3, 3], volume.image.shape, order=1, mode="constant"
    )
    sizes = voxel_sizes(volume.affine)
    soft = ndi.gaussian_filter(mapped, 1.5 / sizes) * volume.brain
    truth = soft > 0.5
    noise = rng.standard_normal(volume.image.shape, dtype=np.float32)
    texture = ndi.gaussian_filter(noise, 4.0 / sizes)
    texture *= 0.35 / float(texture[truth].std())
    texture = np.clip(1.0 + texture - float(texture[truth].mean()), 0.2, 1.8)
    return volume.image * (1.0 - soft * np.clip(darkening * texture, 0.0, 0.9))


def test_a_dark_stroke_is_its_formula_to_the_bit(mni, lesioned):
    to_mni = register_to_mni(mni)
    for k, one in enumerate(lesioned, start=1):
        expected = reference_stroke(mni, to_mni, STROKE, (0, k)).astype(np.float32)
        assert np.array_equal(one.image, expected)


@pytest.fixture(scope="module")
def in_mni() -> Volume:
    """The MNI brain at 4 mm in its own millimetres, noisy, for the placement `headers`."""
    template = load_mni152_template(resolution=4)
    image = np.asarray(template.dataobj, np.float32)
    noise = np.random.default_rng(0).normal(1, 0.03, image.shape)
    image = np.where(image > 0, (image * noise).clip(1e-3), 0).astype(np.float32)
    return Volume(image=image, brain=image > 0, lesion=None, affine=np.array(template.affine))


def here(**changed) -> LesionConfig:
    return LesionConfig(placement="headers", **changed)


def test_headers_alone_place_a_mask_on_either_side(in_mni):
    mask = sphere((-35, -15, 20), 16)
    for flip, x in ((0.0, -35.0), (1.0, 35.0)):
        out = insert_lesion(in_mni, mask=mask, seed=(1,), config=here(flip_probability=flip))
        place = in_mni.affine @ [*ndi.center_of_mass(out.lesion), 1]
        assert np.allclose(place[:3], [x, -15, 20], atol=2.5)
        assert ("sides flipped" in out.notes[0]) == bool(flip)


def test_bright_lesions_stay_in_the_range_of_tissue(in_mni):
    for kind in ("stroke", "tumour", "ms"):
        config = here(lesion_kind=kind, contrast="flair-bright", max_change=0.9)
        out = insert_lesion(in_mni, mask=STROKE, seed=(2,), config=replace(config, min_change=0.9))
        inside = out.lesion > 0
        brain = in_mni.image[in_mni.brain]
        assert out.image[inside].mean() > 1.1 * in_mni.image[inside].mean()
        assert out.image.max() <= max(in_mni.image.max(), np.percentile(brain, 99.9)) * (1 + 1e-6)
        # Not cut flat: its texture is still there.
        assert len(np.unique(out.image[inside])) > 0.9 * inside.sum()
        assert (out.image[~out.brain] == 0).all()


@given(image=st.floats(0, 2), amount=st.floats(0, 0.9), full=st.floats(0.1, 1.5))
def test_brightening_rises_and_ends_at_full(image, amount, full):
    out = float(brighten(np.array(image), np.array(amount), full))
    assert image <= out <= max(full, image) * (1 + 1e-9)
    assert out <= image * (1 + amount) * (1 + 1e-9)
    assert out <= float(brighten(np.array(image), np.array(amount + 0.05), full)) + 1e-12


def test_a_small_share_brightens_as_a_plain_factor():
    out = brighten(np.array([0.5]), np.array([0.01]), 1.0)
    assert out == pytest.approx([0.505], rel=1e-3)


def test_a_tumour_changes_more_in_its_core_than_in_its_rim(in_mni):
    big = sphere((-30, -20, 25), 26)
    config = here(lesion_kind="tumour", mass_effect_mm=0.0, texture_strength=0.0, min_change=0.4)
    out = insert_lesion(in_mni, mask=big, seed=(3,), config=config)
    ratio = out.image / np.where(in_mni.brain, in_mni.image, 1)
    depth = ndi.distance_transform_edt(out.lesion > 0) * 4
    core, rim = (depth > 14) & in_mni.brain, (depth > 0) & (depth <= 4) & in_mni.brain
    assert ratio[core].max() < ratio[rim].mean() - 0.1
    assert ratio[core].mean() == pytest.approx(0.58, abs=0.03)  # 40 to 45 % darker
    steps = [ratio[(depth > a) & (depth <= a + 4)].mean() for a in (0, 4, 8)]
    assert steps == sorted(steps, reverse=True)


def test_a_mass_effect_pushes_outward_without_folding(in_mni):
    mass = (insert_lesion(in_mni, mask=STROKE, seed=(4,), config=here()).lesion > 0).astype(float)
    centre = np.array(ndi.center_of_mass(mass))
    for most in (1.0, 4.0, 8.0):
        moved = displacement_mm(in_mni, mass, most)
        assert np.linalg.norm(moved, axis=0).max() == pytest.approx(most, rel=0.35)
        away = (np.indices(mass.shape).T - centre).T * 4.0
        near = ndi.binary_dilation(mass > 0, iterations=2) & in_mni.brain
        assert (moved * away).sum(axis=0)[near].min() > -0.3
        assert (moved[:, ~in_mni.brain] == 0).all()
        # Where tissue came from is a map with positive Jacobian determinant: nothing folds.
        slopes = [np.stack(np.gradient(-m, 4.0)) for m in moved]
        jacobian = np.moveaxis(np.stack(slopes), (0, 1), (-2, -1)) + np.eye(3)
        assert np.linalg.det(jacobian).min() > 0.02


def test_pushed_tissue_keeps_its_values_and_the_rest_its_bits(in_mni):
    mass = (insert_lesion(in_mni, mask=STROKE, seed=(4,), config=here()).lesion > 0).astype(float)
    out = push_outward(in_mni, mass, 4.0)
    still = np.linalg.norm(displacement_mm(in_mni, mass, 4.0), axis=0) <= 0.02
    assert 0.3 < still[in_mni.brain].mean() < 0.99
    assert np.array_equal(out.image[still], in_mni.image[still])
    assert not np.array_equal(out.image, in_mni.image)
    inside = in_mni.image[in_mni.brain]
    assert inside.min() <= out.image[out.brain].min()
    assert out.image.max() <= inside.max()
    assert (out.image[~out.brain] == 0).all()
    # The skull holds the surface where it is.
    assert (out.brain != in_mni.brain).mean() < 1e-3


def scattered(seed: int, count: int = 12) -> np.ndarray:
    """Balls of different sizes that do not touch."""
    rng, share = np.random.default_rng(seed), np.zeros((60, 60, 20), np.float32)
    for place in rng.choice(25, count, replace=False):
        centre = 6 + 12 * (place % 5), 6 + 12 * (place // 5), 10
        share[ellipsoid(share.shape, (rng.uniform(1, 4.5),) * 3, centre)] = 1
    return share


@given(seed=st.integers(0, 30), least=st.floats(0.05, 1))
@settings(max_examples=15, deadline=None)
def test_components_stay_whole_and_the_largest_stays(seed, least):
    share = scattered(seed)
    kept, num, count = keep_components(share, least, np.random.default_rng(seed))
    labels, expected = ndi.label(share > 0.5, np.ones((3, 3, 3)))
    assert count == expected
    assert max(1, round(count * least)) <= num <= count
    stays = [labels[labels == k].size for k in range(1, count + 1) if kept[labels == k].all()]
    gone = [labels[labels == k].size for k in range(1, count + 1) if not kept[labels == k].any()]
    assert (len(stays), len(stays) + len(gone)) == (num, count)
    assert max(stays) >= max(gone, default=0)


def test_an_ms_lesion_keeps_some_components_and_says_so(in_mni):
    affine = np.eye(4)
    affine[:3, 3] = (-30, -40, 15)
    mask = LesionMask(share=scattered(5), affine=affine, name="patient01")
    config = here(lesion_kind="ms", flip_probability=0.0, min_inside=0.01)
    # On 2 mm voxels the small ones would not be seen; the truth is what is left of the kept ones.
    out = insert_lesion(in_mni, mask=mask, seed=(6,), config=config)
    (note,) = out.notes
    assert note.startswith("semi-synthetic ms from patient01, t1-dark by ")
    assert int(note.split(", ")[2].split(" of ")[0]) >= 6
    darker = out.image < in_mni.image
    assert darker[out.lesion > 0].all()
    assert np.array_equal(out.brain, in_mni.brain)


def test_a_template_beside_the_masks_leads_to_mni(tmp_path, mni):
    """The masks' own template lies elsewhere than MNI; so the same place needs its way there."""
    nib.save(nib.Nifti1Image(mni.image, mni.affine), tmp_path / "template_own.nii.gz")
    own = from_mni()
    path = tmp_path / "one_lesion.nii.gz"
    nib.save(nib.Nifti1Image(STROKE.share.astype(np.uint8), own @ STROKE.affine), path)
    mask = read_mask(str(path), "template")
    corners = np.array([[x, y, z, 1] for x in (-50, 50) for y in (-80, 50) for z in (-30, 60)])
    error = np.linalg.norm((corners @ (mask.to_mni @ own).T - corners)[:, :3], axis=1)
    assert error.max() < 4.0
    (given,) = assign_masks(
        [scan(0)], [str(path)], seed=0, config=LesionConfig(placement="template")
    )
    assert given.template == str(tmp_path / "template_own.nii.gz")
    config = LesionConfig(placement="template", flip_probability=0.0)
    out = insert_lesion(mni, mask=mask, seed=(7,), config=config)
    # Template and brain are the same here, so that the mask's headers say where it must be.
    expected = own @ [-35, -15, 20, 1]
    centre = mni.affine @ [*ndi.center_of_mass(out.lesion), 1]
    assert np.allclose(centre, expected, atol=1.0)


@pytest.mark.parametrize("kind", ["stroke", "tumour", "ms"])
def test_every_kind_goes_through_all_steps(tmp_path, kind):
    write_bids(tmp_path, 1)
    mask = ellipsoid((22, 26, 24), (4, 4, 4), (8, 12, 12))
    path = write(tmp_path / "masks/one_lesion.nii.gz", mask)
    healthy = Scan(
        id="s1",
        subject="s1",
        modality="T1w",
        image=str(tmp_path / "sub-01/anat/sub-01_T1w.nii.gz"),
    )
    (one,) = assign_masks([healthy], find_masks(str(tmp_path / "masks")), seed=0)
    assert one.synthetic_lesion == path
    lesion = here(lesion_kind=kind, flip_probability=0.0, min_change=0.3, max_change=0.3)
    config = replace(TINY, lesion=lesion)
    out, plain = prepare_scan(one, config), prepare_scan(healthy, config)
    assert out.lesion is not None
    assert plain.lesion is None
    assert f"semi-synthetic {kind} from one_lesion, t1-dark by 30%" in out.notes
    # Voxels of 1 mm become voxels of 2 mm, (Z, Y, X).
    there = out.affine @ [*ndi.center_of_mass(out.lesion)[::-1], 1]
    assert np.allclose(there[:3], [8, 12, 12], atol=1.5)
    assert out.image[out.lesion].mean() < 0.95 * plain.image[out.lesion].mean()
    step = next(s for s in record(config, lesions=True) if s["step"] == "insert_lesion")
    assert step["config"]["lesion_kind"] == kind
    assert None not in step["config"].values()


def test_a_real_stroke_on_a_real_brain(real_data):
    masks = find_masks(str(real_data / "stroke_masks"))
    assert len(masks) == 90
    healthy = Scan(
        id="sub-01",
        subject="sub-01",
        modality="T1w",
        image=str(real_data / "ds002748/sub-01/anat/sub-01_T1w.nii.gz"),
    )
    (one,) = assign_masks([healthy], masks, seed=0)
    out = prepare_scan(one, PrepareConfig())
    assert out.notes.startswith(f"semi-synthetic stroke from {one.synthetic_lesion[-18:-7]}, ")
    assert "t1-dark by " in out.notes
    plain = prepare_scan(healthy, PrepareConfig())
    assert out.lesion is not None
    assert 5 < out.lesion_ml < 400
    assert out.image[out.lesion].mean() < 0.9 * plain.image[out.lesion].mean()
    # Tissue is darker, not gone: intensity alone is not to solve it.
    assert out.image[out.lesion].mean() > 0.3 * plain.image[out.lesion].mean()


def test_a_template_that_has_changed_is_read_again(tmp_path, mni):
    """Processes live longer than the content of a file may."""
    path = tmp_path / "one_lesion.nii.gz"
    nib.save(nib.Nifti1Image(STROKE.share.astype(np.uint8), STROKE.affine), path)
    reads = []
    for shift in (0.0, 10.0):
        moved = mni.affine + np.array([[0, 0, 0, shift]] + 3 * [[0] * 4])
        nib.save(nib.Nifti1Image(mni.image, moved), tmp_path / "template.nii.gz")
        reads.append(read_mask(str(path), "template").to_mni)
    assert np.allclose(reads[0][0, 3] - reads[1][0, 3], 10.0, atol=1.0)
