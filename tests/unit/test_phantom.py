import dataclasses
from functools import cache

import numpy as np
import pytest
import scipy.ndimage as ndi
import torch

from uadray.errors import ConfigError
from uadray.evaluation.calibration import calibrate
from uadray.evaluation.scoring import Example
from uadray.phantom import VERSION, Kind, PhantomSubject, age_and_sex, make_subject
from uadray.phantom.anatomy import (
    BOX_MM,
    CORTEX,
    CSF,
    DEPTH,
    FIELD_SHAPE,
    GM,
    WM,
    band_spectrum,
    field_points,
    gaussian_field,
    load_template,
    maps_on_field_grid,
    sample,
)
from uadray.phantom.people import AGES, draw_person, make_fields, make_tissues
from uadray.phantom.scanners import scanners

KINDS: tuple[Kind, ...] = ("healthy", "tumour", "stroke")


@cache
def subject(kind: Kind, seed: int, size: int = 32) -> PhantomSubject:
    return make_subject(kind, seed, size)


def voxel_ml(subject: PhantomSubject) -> float:
    return float(np.linalg.det(subject.affine[:3, :3])) / 1000.0


def same_bytes(a: PhantomSubject, b: PhantomSubject) -> bool:
    arrays = ("image", "brain", "lesion", "affine")
    return all(getattr(a, k).tobytes() == getattr(b, k).tobytes() for k in arrays)


VERSION_1 = {
    ("healthy", 0): ("phantom-12", 8680, 0, 0.728824785324424),
    ("tumour", 7): ("phantom-20", 8335, 166, 0.3502976792967353),
    ("stroke", 7): ("phantom-01", 10741, 494, 0.5304451406130977),
}
"""Scanner, voxels of the brain and of the lesion, and age, as they have been since the first."""

VERSION_1_VOXELS = {
    ("healthy", 0): [0.72896, 0.85639, 0.79351, 0.80295, 0.90585, 0.48299, 0.81609, 0.61727],
    ("tumour", 7): [0.81347, 0.81915, 0.72584, 0.94291, 0.92641, 0.39474, 0.35927, 0.66111],
    ("stroke", 7): [0.75232, 0.75031, 0.87751, 0.81103, 0.88877, 0.60258, 0.78652, 0.55766],
}
"""Of the planes 13 and 18, row 16, every fourth column from 10 on."""


@pytest.mark.parametrize(("kind", "seed"), VERSION_1)
def test_phantoms_of_version_1_stay_what_they_were(kind: Kind, seed: int) -> None:
    got = make_subject(kind, seed, 32, version=1)
    scanner, brain, lesion, age = VERSION_1[kind, seed]
    assert (got.scanner, got.brain.sum(), got.lesion.sum()) == (scanner, brain, lesion)
    assert got.meta["age"] == pytest.approx(age)
    voxels = got.image[[13, 18], 16, 10:24:4].ravel()
    np.testing.assert_allclose(voxels, VERSION_1_VOXELS[kind, seed], atol=1e-4)
    assert not same_bytes(got, subject(kind, seed))


@pytest.mark.parametrize("kind", KINDS)
def test_same_arguments_give_the_same_bytes_on_any_number_of_threads(kind: Kind) -> None:
    first = subject(kind, 3)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        again = make_subject(kind, 3, 32)
    finally:
        torch.set_num_threads(threads)
    assert same_bytes(first, again)
    assert (first.scanner, first.meta) == (again.scanner, again.meta)


def test_global_random_state_is_neither_read_nor_moved() -> None:
    np.random.seed(0)
    torch.manual_seed(0)
    expected = np.random.random(), float(torch.rand(()))
    np.random.seed(0)
    torch.manual_seed(0)
    assert same_bytes(make_subject("stroke", 5, 32), subject("stroke", 5))
    assert (np.random.random(), float(torch.rand(()))) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_have_the_promised_types_and_ranges(kind: Kind) -> None:
    got = subject(kind, 1)
    assert {f.name for f in dataclasses.fields(got)} >= {"image", "brain", "lesion", "affine"}
    assert got.image.shape == got.brain.shape == got.lesion.shape == (32, 32, 32)
    assert (got.image.dtype, got.brain.dtype, got.lesion.dtype) == (np.float32, bool, bool)
    assert got.image.min() == 0.0
    # Vessels and noise of a real scan reach higher than tissue.
    assert 0.7 < got.image.max() <= 1.0
    assert not got.image[~got.brain].any()
    assert (got.image[got.brain] > 0.0).mean() > 0.99


@pytest.mark.parametrize("kind", ["tumour", "stroke"])
def test_lesions_lie_inside_the_brain_and_are_never_empty(kind: Kind) -> None:
    for seed in range(20):
        got = subject(kind, seed)
        assert got.lesion.any(), seed
        assert not (got.lesion & ~got.brain).any(), seed
        share = got.lesion.sum() / got.brain.sum()
        assert share < 0.3, seed
        assert got.meta["lesion_ml"] == pytest.approx(got.lesion.sum() * voxel_ml(got))


def test_the_smallest_grid_still_shows_a_lacune() -> None:
    lacunes = [s for s in range(20) if subject("stroke", s).meta["lesion_type"] == "lacunes"]
    assert lacunes
    assert all(make_subject("stroke", s, 16).lesion.any() for s in lacunes[:4])


def test_healthy_subjects_have_no_lesion() -> None:
    for seed in range(5):
        assert not subject("healthy", seed).lesion.any()
        assert subject("healthy", seed).meta["lesion_type"] == "none"


def test_seeds_and_kinds_give_other_subjects() -> None:
    images = [subject(kind, seed).image for kind in KINDS for seed in range(3)]
    widths = {subject(kind, seed).meta["ventricles_mm"] for kind in KINDS for seed in range(3)}
    assert len(widths) == len(images)
    for i, a in enumerate(images):
        for b in images[:i]:
            assert np.abs(a - b).mean() > 0.01


def test_ages_and_sexes_are_known_without_making_anyone() -> None:
    known = {age_and_sex("stroke", seed) for seed in range(20)}
    assert known == {(s.meta["age"], s.meta["sex"]) for s in map(strokes, range(20))}
    ages = np.array([age_and_sex("healthy", seed)[0] for seed in range(300)])  # type: ignore[index]
    assert AGES[0] <= ages.min() < 22
    assert 75 < ages.max() <= AGES[1]
    assert 35 < ages.mean() < 55
    assert age_and_sex("healthy", 0, version=1) is None


def strokes(seed: int) -> PhantomSubject:
    return subject("stroke", seed)


def test_ventricles_widen_and_sulci_open_with_age() -> None:
    people = [draw_person(np.random.default_rng(seed)) for seed in range(300)]
    ages = np.array([person.age for person in people])
    for width in ("ventricles_mm", "atrophy"):
        values = np.array([getattr(person, width) for person in people])
        assert np.corrcoef(ages, values)[0, 1] > 0.5, width
        young, old = values[ages < 35].mean(), values[ages > 65].mean()
        assert old - young > 0.25, width
    template = load_template()
    shares = []
    for atrophy, ventricles in ((0.0, 0.0), (0.5, 3.0)):
        one = dataclasses.replace(people[0], atrophy=atrophy, ventricles_mm=ventricles)
        fields = make_fields(one, template)
        maps = maps_on_field_grid(template, fields.warp)
        shares.append(make_tissues(one, maps, fields.fold.reshape(3, -1)).csf.mean())
    assert shares[1] > 1.3 * shares[0]


def test_people_have_on_average_the_tissue_of_the_template() -> None:
    rng = np.random.default_rng(3)
    maps = load_template().maps.reshape(9, -1)
    cortex = np.flatnonzero((maps[CORTEX] > 0.9) & (maps[DEPTH] > 3.0) & (maps[DEPTH] < 20.0))
    maps = np.repeat(maps[:, rng.choice(cortex, 200)], 400, axis=1)
    person = dataclasses.replace(draw_person(rng), atrophy=0.0)
    fold = rng.standard_normal((3, maps.shape[1])).astype(np.float32)
    tissues = make_tissues(person, maps, fold)
    for name, share in (("csf", CSF), ("gm", GM), ("wm", WM)):
        found = getattr(tissues, name).reshape(200, 400)
        expected = maps[share].reshape(200, 400)[:, 0]
        np.testing.assert_allclose(found.mean(axis=1), expected, atol=0.06)
        # Each person has their own.
        assert found.std(axis=1).max() > 0.2, name


def test_deformations_do_not_fold_the_brain_over() -> None:
    spacing = BOX_MM[::-1] / np.array(FIELD_SHAPE)
    for seed in range(4):
        warp = make_fields(draw_person(np.random.default_rng(seed)), load_template()).warp
        # Axes of the gradient (z, y, x) for components (x, y, z).
        slopes = np.stack([np.stack(np.gradient(part, *spacing)[::-1]) for part in warp])
        jacobian = np.linalg.det(np.eye(3) + slopes.transpose(2, 3, 4, 0, 1))
        assert (jacobian > 0.0).mean() > 0.999


def test_infarcts_are_as_large_as_territories() -> None:
    volumes = [float(strokes(s).meta["lesion_ml"]) for s in range(20)]
    assert 25.0 < np.median(volumes) < 130.0
    assert max(volumes) > 100.0


@pytest.mark.parametrize("kind", ["stroke", "tumour"])
def test_darkness_alone_finds_some_of_a_lesion_and_not_all(kind: Kind) -> None:
    """1 - x has a Dice_D of 0.33 to 0.45 on lesions made on scans."""
    cases = [
        Example(id=str(s), image=p.image, brain=p.brain, lesion=p.lesion)
        for s, p in ((s, subject(kind, s)) for s in range(20))
    ]
    standings = {s.method: s for s in calibrate(cases[:8], cases[8:]).standings}
    assert 0.2 < standings["1 - x"].dice_d < 0.6
    assert standings["x"].dice_d < 0.2


def test_strokes_are_darker_than_their_surround() -> None:
    contrast = []
    for seed in range(20):
        got = subject("stroke", seed)
        inner = ndi.binary_erosion(got.brain, iterations=2)
        ring = ndi.binary_dilation(got.lesion, iterations=2) & ~got.lesion & inner
        if (got.lesion & inner).any() and ring.any():
            contrast.append(got.image[ring].mean() - got.image[got.lesion & inner].mean())
    assert len(contrast) >= 15
    assert np.mean(contrast) > 0.1
    assert np.mean(np.array(contrast) > 0.0) > 0.85


def test_brain_volumes_are_those_of_adults() -> None:
    volumes = [
        subject(kind, s).brain.sum() * voxel_ml(subject(kind, s))
        for kind in KINDS
        for s in range(20 if kind != "healthy" else 5)
    ]
    assert min(volumes) > 900.0
    assert max(volumes) < 1900.0
    assert 1300.0 < np.mean(volumes) < 1600.0
    assert np.std(volumes) > 50.0


@pytest.mark.parametrize("kind", KINDS)
def test_a_subject_is_the_same_brain_at_another_size(kind: Kind) -> None:
    small, large = subject(kind, 2), make_subject(kind, 2, 48)
    assert small.scanner == large.scanner
    for field in ("brain", "lesion"):
        a, b = (getattr(s, field).sum() * voxel_ml(s) for s in (small, large))
        assert a == pytest.approx(b, rel=0.1, abs=1.0), field
    resized = ndi.zoom(large.image, 32 / 48, order=1, grid_mode=True, mode="nearest")
    inside = small.brain
    assert np.corrcoef(resized[inside], small.image[inside])[0, 1] > 0.85


def test_affine_centres_the_box_and_counts_in_nifti_order() -> None:
    got = subject("healthy", 0)
    np.testing.assert_allclose(np.diag(got.affine), [158 / 32, 191 / 32, 163 / 32, 1.0])
    middle = got.affine @ [15.5, 15.5, 15.5, 1.0]
    np.testing.assert_allclose(middle, [0.0, -18.0, 4.0, 1.0], atol=1e-9)


def test_axes_point_up_forward_and_right() -> None:
    # The brain's lowest tenth is cerebellum and stem behind the middle; its top reaches the
    # front; left and right are alike, front and back and top and bottom are not.
    occupied = np.mean([subject("healthy", s).brain for s in range(5)], axis=0)
    planes = np.flatnonzero(occupied.sum(axis=(1, 2)) > 5)
    low, high = occupied[planes[:3]].sum(axis=0), occupied[planes[-3:]].sum(axis=0)
    rows = np.arange(32)
    assert (low.sum(axis=1) * rows).sum() / low.sum() < 14.0
    assert low[20:].sum() < 0.5 * high[20:].sum()
    mirrored = np.abs(occupied - occupied[:, :, ::-1]).mean()
    assert mirrored < 0.5 * np.abs(occupied - occupied[:, ::-1]).mean()
    assert mirrored < 0.5 * np.abs(occupied - occupied[::-1]).mean()


def test_brain_is_centred_in_the_box() -> None:
    for seed in range(5):
        for axis in ndi.find_objects(subject("healthy", seed).brain.astype(int))[0]:
            assert abs((axis.start + axis.stop) / 2 - 16.0) <= 1.5


def test_there_are_six_distinct_scanners_and_subjects_use_them() -> None:
    profiles = scanners()
    assert len(profiles) == len({p.means for p in profiles}) == 6
    assert [p.name for p in profiles][::5] == ["phantom-a", "phantom-f"]
    used = {subject(kind, s).scanner for kind in ("tumour", "stroke") for s in range(20)}
    assert used == {p.name for p in profiles}


@pytest.mark.parametrize(
    ("kind", "seed", "size", "field"),
    [("glioma", 0, 32, "kind"), ("healthy", -1, 32, "seed"), ("healthy", 0, 15, "size")],
)
def test_a_bad_argument_is_named(kind: Kind, seed: int, size: int, field: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{field} is "):
        make_subject(kind, seed, size)


def test_an_unknown_version_is_named() -> None:
    with pytest.raises(ConfigError, match=f"^version is 9: it must be 1 or {VERSION}"):
        make_subject("healthy", 0, 32, version=9)


def test_tissue_fractions_are_shares_of_the_brain() -> None:
    template = load_template()
    person = draw_person(np.random.default_rng(0))
    fields = make_fields(person, template)
    maps = maps_on_field_grid(template, fields.warp)
    tissues = make_tissues(person, maps, fields.fold.reshape(3, -1))
    fractions = np.stack([tissues.csf, tissues.gm, tissues.wm])
    assert fractions.min() >= 0.0
    assert fractions.sum(axis=0).max() <= 1.03
    inside = maps[3] > 0.99
    np.testing.assert_allclose(fractions.sum(axis=0)[inside], 1.0, atol=0.05)
    # Young to old, grey and white matter make up about 70 to 90 % of the skull's content.
    assert 0.65 < (tissues.gm + tissues.wm)[inside].mean() < 0.92


def test_sample_reproduces_a_linear_function_of_position() -> None:
    points = field_points()
    volume = (points @ np.array([0.5, -0.25, 1.0], np.float32)).reshape(1, *FIELD_SHAPE)
    rng = np.random.default_rng(1)
    where = rng.uniform(-70.0, 70.0, (200, 3)).astype(np.float32)
    expected = where @ np.array([0.5, -0.25, 1.0])
    np.testing.assert_allclose(sample(volume, where)[0], expected, atol=1e-3)


def test_gaussian_field_has_unit_variance_and_the_asked_wavelength() -> None:
    field = gaussian_field(np.random.default_rng(2), band_spectrum(20.0))
    assert field.shape == FIELD_SHAPE
    assert abs(float(field.mean())) < 1e-3
    assert float(field.std()) == pytest.approx(1.0, abs=1e-3)
    # A band around wavelength L in 3D has its correlation's first zero at L / 2.
    spacing = 158.0 / FIELD_SHAPE[2]
    lag = round(10.0 / spacing)
    assert abs(float((field[..., lag:] * field[..., :-lag]).mean())) < 0.15
    assert float((field[..., 1:] * field[..., :-1]).mean()) > 0.7
