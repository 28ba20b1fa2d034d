"""Phantom brains for a first run and for scale: real anatomy, invented subjects, exact lesions.

A subject is a pure function of (kind, seed, size). It starts from the MNI152 2009a tissue maps
that nilearn ships (Fonov et al. 2011, NeuroImage 54), deforms, ages and folds them
(`anatomy`), adds a lesion (`lesions`) and is "scanned" here by one of 22 scanners.
Nothing is stored and nothing is downloaded.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import scipy.ndimage as ndi

from uadray.errors import ConfigError
from uadray.phantom import lesions as lesions
from uadray.phantom.anatomy import (
    BOX_CENTRE_MNI,
    BOX_MM,
    BRAIN,
    DEPTH,
    FIELD_SHAPE,
    Anatomy,
    Fields,
    Template,
    Tissues,
    axis_centres,
    draw_anatomy,
    field_points,
    load_template,
    make_fields,
    make_tissues,
    maps_on_field_grid,
    sample,
    sigmoid,
)

Kind = Literal["healthy", "tumour", "stroke"]

NUM_SCANNERS = 22
"""Number of scanner profiles: as many as the most diverse public healthy T1 sets have sites."""

MIN_SIZE = 16
"""Smallest grid: below it a voxel is over 1 mL and holds no anatomy."""

SUPERSAMPLE_UP_TO = 96
"""Largest size that is drawn at twice its resolution and averaged."""

ROOT_SEED = 2021
"""Mixed into every seed, so that phantoms share no random stream with the rest of a run."""


@dataclass(frozen=True, kw_only=True)
class PhantomSubject:
    """One phantom brain, its truth and its place in space."""

    image: np.ndarray
    """float32 (Z, Y, X) in [0, 1]; exactly 0 outside the brain."""
    brain: np.ndarray
    """bool (Z, Y, X)."""
    lesion: np.ndarray
    """bool (Z, Y, X): the exact truth, inside the brain; all False for a healthy subject."""
    affine: np.ndarray
    """float64 (4, 4): voxel index (x, y, z) of the array transposed to NIfTI order, to mm (RAS+).
    Centred on the brain's box in MNI space, so it is near MNI but not registered."""
    scanner: str
    """Name of the scanner profile, "phantom-01" to "phantom-22"."""
    meta: dict[str, float | str]
    """What was drawn: kind, age, widths, lesion type, volumes in mL."""


@dataclass(frozen=True, kw_only=True)
class ScannerProfile:
    """How one scanner renders tissue; fixed per scanner."""

    name: str
    """"phantom-NN", NN from 01."""
    means: tuple[float, float, float]
    """Intensity of CSF, GM and WM before scaling, (0, 1)."""
    detail: float
    """Factor on the template's intensity residue."""
    noise: float
    """Standard deviation of the Rician noise at the output grid, relative to the signal range."""
    bias: float
    """Standard deviation of the log bias field over the box."""
    bias_shape: tuple[float, ...]
    """Nine coefficients of the bias field's polynomial of order 2."""
    gamma: float
    """Exponent of the intensity curve."""
    blur_mm: tuple[float, float, float]
    """Standard deviation of the point spread along x, y, z in mm."""


@lru_cache(maxsize=1)
def scanner_profiles() -> tuple[ScannerProfile, ...]:
    """Return the 22 scanner profiles, always the same."""
    profiles = []
    for index in range(NUM_SCANNERS):
        rng = np.random.default_rng([ROOT_SEED, 7, index])
        in_plane = rng.uniform(0.4, 1.1)
        slices = in_plane * (rng.uniform(1.3, 2.2) if rng.random() < 0.3 else 1.0)
        profiles.append(
            ScannerProfile(
                name=f"phantom-{index + 1:02d}",
                means=(rng.uniform(0.08, 0.16), rng.uniform(0.45, 0.54), rng.uniform(0.80, 0.88)),
                detail=rng.uniform(0.7, 1.1),
                noise=float(np.exp(rng.uniform(np.log(0.006), np.log(0.02)))),
                bias=rng.uniform(0.02, 0.05),
                bias_shape=tuple(float(c) for c in rng.standard_normal(9)),
                gamma=rng.uniform(0.9, 1.15),
                blur_mm=(in_plane, in_plane, slices),
            )
        )
    return tuple(profiles)


@dataclass(frozen=True, kw_only=True)
class _Points:
    """The fine points inside the brain, and what was interpolated there."""

    voxel: np.ndarray
    """int64 (N,): flat index of the output voxel that holds each point."""
    where: np.ndarray
    """float32 (N, 3): position in the output box, mm from its centre."""
    maps: np.ndarray
    """float32 (9, N): the template's maps."""
    fold: np.ndarray
    """float32 (3, N): the folding fields."""
    lesion: np.ndarray
    """float32 (K, N): the lesion's fields, K = 0 for a healthy subject."""


def make_subject(kind: Kind, seed: int, size: int) -> PhantomSubject:
    """Make one phantom brain; the same arguments give the same bytes.

    The grid has size^3 voxels over a box of 158 (left to right) x 191 (posterior to anterior) x
    163 mm (inferior to superior), the same squeezed grid as the paper's downsampling (Bengs 2021,
    section 2.1). The anatomy of (kind, seed) is the same at every size; the noise is not.

    Args:
        kind: "healthy", "tumour" or "stroke".
        seed: number of the subject, >= 0. Subjects of two kinds share nothing by a common seed.
        size: voxels along each axis, >= 16.

    Returns:
        The subject, arrays (Z, Y, X).

    Raises:
        ConfigError: unknown kind, negative seed or size under 16.
    """
    _check(kind, seed, size)
    streams = np.random.SeedSequence([ROOT_SEED, get_args(Kind).index(kind), seed]).spawn(3)
    rng_body, rng_lesion, rng_scan = (np.random.default_rng(s) for s in streams)
    template = load_template()
    anatomy = draw_anatomy(rng_body)
    fields = make_fields(anatomy, template)
    lesion, fields, lesion_fields = _add_lesion(kind, rng_lesion, template, fields)
    points = _sample_brain(template, fields, lesion_fields, size)
    scanner = scanner_profiles()[int(rng_scan.integers(NUM_SCANNERS))]
    signal, truth = _render(anatomy, lesion, scanner, points, rng_scan)
    image, brain, mask = _digitise(signal, truth, points.voxel, scanner, rng_scan, size)
    affine = np.diag([*(BOX_MM / size), 1.0])
    affine[:3, 3] = BOX_CENTRE_MNI - BOX_MM / 2 + BOX_MM / size / 2
    millilitres = float(np.prod(BOX_MM / size)) / 1000.0
    meta: dict[str, float | str] = {
        "kind": kind,
        "lesion_type": _lesion_type(lesion),
        "age": anatomy.age,
        "ventricles_mm": anatomy.ventricles_mm,
        "sulcus_mm": anatomy.sulcus_mm,
        "brain_ml": float(brain.sum()) * millilitres,
        "lesion_ml": float(mask.sum()) * millilitres,
    }
    return PhantomSubject(
        image=image, brain=brain, lesion=mask, affine=affine, scanner=scanner.name, meta=meta
    )


def _check(kind: str, seed: int, size: int) -> None:
    if kind not in get_args(Kind):
        raise ConfigError(f"kind is {kind!r}: it must be one of {', '.join(get_args(Kind))}")
    if seed < 0:
        raise ConfigError(f"seed is {seed}: it must be 0 or more")
    if size < MIN_SIZE:
        raise ConfigError(f"size is {size}: it must be {MIN_SIZE} or more voxels along each axis")


def _lesion_type(lesion: lesions.Tumour | lesions.Stroke | None) -> str:
    if lesion is None:
        return "none"
    if isinstance(lesion, lesions.Stroke):
        return lesion.pattern
    return "tumour, necrotic" if lesion.necrosis > 0.0 else "tumour, solid"


def _add_lesion(
    kind: Kind, rng: np.random.Generator, template: Template, fields: Fields
) -> tuple[lesions.Tumour | lesions.Stroke | None, Fields, np.ndarray]:
    """Draw the lesion; return it, the fields after its mass effect, and its own fields."""
    if kind == "healthy":
        return None, fields, np.zeros((0, *FIELD_SHAPE), np.float32)
    maps = maps_on_field_grid(template, fields.warp)
    if kind == "stroke":
        stroke = lesions.draw_stroke(rng, maps)
        return stroke, fields, lesions.stroke_fields(stroke, maps)
    tumour = lesions.draw_tumour(rng, maps)
    warp = lesions.displace(tumour, fields.warp, maps[DEPTH])
    pushed = maps_on_field_grid(template, warp)
    return tumour, Fields(warp=warp, fold=fields.fold), lesions.tumour_fields(tumour, pushed)


def _sample_brain(
    template: Template, fields: Fields, lesion_fields: np.ndarray, size: int
) -> _Points:
    """Interpolate everything at the fine points inside the brain, the brain's box centred."""
    brain_map = template.maps[BRAIN : BRAIN + 1]
    coarse = sample(brain_map, field_points() + fields.warp.reshape(3, -1).T)[0]
    coarse = coarse.reshape(FIELD_SHAPE)
    box = ndi.find_objects((coarse > 0.5).astype(np.int8))[0]
    middle = np.array([(s.start + s.stop) / 2 for s in box]) / FIELD_SHAPE - 0.5
    near = ndi.binary_dilation(coarse > 0.05, np.ones((3, 3, 3), bool))
    # Output axes first in (Z, Y, X): centres, and the nearest cell of the field grid.
    fine = size * (2 if size <= SUPERSAMPLE_UP_TO else 1)
    centres = [axis_centres(fine, extent) for extent in BOX_MM[::-1]]
    shift = (middle * BOX_MM[::-1]).astype(np.float32)
    cells = [
        np.clip(((c + s) / e + 0.5) * n, 0, n - 1).astype(np.intp)
        for c, s, e, n in zip(centres, shift, BOX_MM[::-1], FIELD_SHAPE, strict=True)
    ]
    index = np.nonzero(near[np.ix_(*cells)])
    where = np.stack([centres[axis][index[axis]] for axis in (2, 1, 0)], axis=1)
    body = where + shift[::-1]
    smooth = sample(np.concatenate([fields.warp, fields.fold, lesion_fields]), body)
    mapped = body + smooth[:3].T
    inside = sample(brain_map, mapped)[0] > 0.5
    z, y, x = (axis[inside] * size // fine for axis in index)
    return _Points(
        voxel=(z * size + y) * size + x,
        where=where[inside],
        maps=sample(template.maps, mapped[inside]),
        fold=smooth[3:6, inside],
        lesion=smooth[6:, inside],
    )


def _render(
    anatomy: Anatomy,
    lesion: lesions.Tumour | lesions.Stroke | None,
    scanner: ScannerProfile,
    points: _Points,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the noise-free signal and the lesion's truth at the points, both (N,)."""
    tissues = make_tissues(anatomy, points.maps, points.fold)
    spread = 1.0 + rng.normal(0.0, 0.02, 3)
    # White matter loses contrast with age.
    spread[2] *= 1.0 - 0.06 * max(anatomy.age - 0.5, 0.0)
    csf, gm, wm = (float(m * s) for m, s in zip(scanner.means, spread, strict=True))
    signal = csf * tissues.csf + gm * tissues.gm + wm * tissues.wm
    signal += scanner.detail * tissues.detail
    signal *= 1.0 - _white_matter_ageing(anatomy, points, tissues)
    truth = np.zeros(len(signal), bool)
    means = (csf, gm, wm)
    if isinstance(lesion, lesions.Tumour):
        signal, truth = lesions.paint_tumour(lesion, signal, tissues, points.lesion, means)
    elif isinstance(lesion, lesions.Stroke):
        signal, truth = lesions.paint_stroke(lesion, signal, points.maps, points.lesion, means)
    shape = np.array(scanner.bias_shape) + 0.5 * rng.standard_normal(9)
    signal = signal * np.exp(scanner.bias * _polynomial(points.where, shape))
    return np.maximum(signal, 0.0) ** np.float32(scanner.gamma), truth


def _white_matter_ageing(anatomy: Anatomy, points: _Points, tissues: Tissues) -> np.ndarray:
    """Return the loss of signal in patches of deep white matter, which are not lesions here."""
    patch = sigmoid((points.fold[1] - 1.4) / 0.25) * sigmoid((points.maps[DEPTH] - 20.0) / 2.0)
    return np.asarray(0.16 * anatomy.age * patch * tissues.wm, np.float32)


def _polynomial(where: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """Evaluate a polynomial of order 2 without its constant, about unit variance in the box."""
    x, y, z = (where * np.float32(2.0 / BOX_MM)).T
    terms = (x, y, z, x * y, x * z, y * z, 1.5 * x * x, 1.5 * y * y, 1.5 * z * z)
    total = np.zeros(len(where), np.float32)
    for term, coefficient in zip(terms, coefficients, strict=True):
        total += np.float32(coefficient / 1.5) * term
    return total


def _digitise(
    signal: np.ndarray,
    truth: np.ndarray,
    voxel: np.ndarray,
    scanner: ScannerProfile,
    rng: np.random.Generator,
    size: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Average points to voxels, blur, add noise and scale; return image, brain and lesion."""
    shape, per_voxel = (size, size, size), 8.0 if size <= SUPERSAMPLE_UP_TO else 1.0

    def average(values: np.ndarray | None) -> np.ndarray:
        return np.bincount(voxel, values, minlength=size**3).reshape(shape) / per_voxel

    brain = average(None) > 0.5
    share = average(truth) * brain
    # A lacune that fills no voxel to half still marks the voxel that holds most of it.
    lesion = share > min(0.5, 0.5 * float(share.max())) if truth.any() else np.zeros(shape, bool)
    image = average(signal).astype(np.float32)
    sigma = np.array(scanner.blur_mm[::-1]) / (BOX_MM[::-1] / size)
    image = ndi.gaussian_filter(image, sigma, mode="constant", truncate=3.0)
    real, imaginary = scanner.noise * rng.standard_normal((2, *shape), dtype=np.float32)
    image = np.sqrt((image + real) ** 2 + imaginary**2)
    # The top percent is the clip of the preprocessing's percentile scaling.
    top = float(np.quantile(image[brain], 0.99))
    image = np.where(brain, np.clip(image / np.float32(top), 0.0, 1.0), 0.0).astype(np.float32)
    return image, brain, lesion
