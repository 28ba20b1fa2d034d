import dataclasses
from functools import cache

import numpy as np
import pytest
import scipy.ndimage as ndi
import torch

from uadray.errors import ConfigError
from uadray.phantom import Kind, PhantomSubject, make_subject, scanner_profiles
from uadray.phantom.anatomy import (
    FIELD_SHAPE,
    band_spectrum,
    draw_anatomy,
    field_points,
    gaussian_field,
    load_template,
    make_fields,
    make_tissues,
    maps_on_field_grid,
    sample,
)

KINDS: tuple[Kind, ...] = ("healthy", "tumour", "stroke")


@cache
def subject(kind: Kind, seed: int, size: int = 32) -> PhantomSubject:
    return make_subject(kind, seed, size)


def voxel_ml(subject: PhantomSubject) -> float:
    return float(np.linalg.det(subject.affine[:3, :3])) / 1000.0


def same_bytes(a: PhantomSubject, b: PhantomSubject) -> bool:
    arrays = ("image", "brain", "lesion", "affine")
    return all(getattr(a, k).tobytes() == getattr(b, k).tobytes() for k in arrays)


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
    assert got.image.max() == 1.0
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
    ages = {subject(kind, seed).meta["age"] for kind in KINDS for seed in range(3)}
    assert len(ages) == len(images)
    for i, a in enumerate(images):
        for b in images[:i]:
            assert np.abs(a - b).mean() > 0.01


def test_strokes_are_darker_than_their_surround() -> None:
    contrast = []
    for seed in range(20):
        got = subject("stroke", seed)
        inner = ndi.binary_erosion(got.brain, iterations=2)
        ring = ndi.binary_dilation(got.lesion, iterations=2) & ~got.lesion & inner
        if (got.lesion & inner).any() and ring.any():
            contrast.append(got.image[ring].mean() - got.image[got.lesion & inner].mean())
    assert len(contrast) >= 15
    assert np.mean(contrast) > 0.15
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
    # The brain's lowest tenth is cerebellum and stem behind the middle; its top is wider than
    # that; left and right are alike, front and back and top and bottom are not.
    occupied = np.mean([subject("healthy", s).brain for s in range(5)], axis=0)
    planes = np.flatnonzero(occupied.sum(axis=(1, 2)) > 5)
    low, high = occupied[planes[:4]].sum(axis=0), occupied[planes[-4:]].sum(axis=0)
    rows = np.arange(32)
    assert (low.sum(axis=1) * rows).sum() / low.sum() < 14.0
    assert low.sum() < high.sum()
    mirrored = np.abs(occupied - occupied[:, :, ::-1]).mean()
    assert mirrored < 0.5 * np.abs(occupied - occupied[:, ::-1]).mean()
    assert mirrored < 0.5 * np.abs(occupied - occupied[::-1]).mean()


def test_brain_is_centred_in_the_box() -> None:
    for seed in range(5):
        for axis in ndi.find_objects(subject("healthy", seed).brain.astype(int))[0]:
            assert abs((axis.start + axis.stop) / 2 - 16.0) <= 1.5


def test_there_are_22_distinct_scanners_and_subjects_use_them() -> None:
    profiles = scanner_profiles()
    assert len(profiles) == len({p.means for p in profiles}) == 22
    assert [p.name for p in profiles][::21] == ["phantom-01", "phantom-22"]
    names = {p.name for p in profiles}
    used = {subject(kind, s).scanner for kind in ("tumour", "stroke") for s in range(20)}
    assert used <= names
    assert len(used) > 12


@pytest.mark.parametrize(
    ("kind", "seed", "size", "field"),
    [("glioma", 0, 32, "kind"), ("healthy", -1, 32, "seed"), ("healthy", 0, 15, "size")],
)
def test_a_bad_argument_is_named(kind: Kind, seed: int, size: int, field: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{field} is "):
        make_subject(kind, seed, size)


def test_tissue_fractions_are_shares_of_the_brain() -> None:
    template = load_template()
    anatomy = draw_anatomy(np.random.default_rng(0))
    fields = make_fields(anatomy, template)
    maps = maps_on_field_grid(template, fields.warp)
    tissues = make_tissues(anatomy, maps, fields.fold.reshape(3, -1))
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
