"""Phantoms of version 1, kept so that cohorts of them can be made again bit for bit.

One random field folded their outer brain, at other places in each brain, and their infarcts were
small: networks had little to learn, and linear models were far ahead of them. See `subject` for
what replaced them. Nothing here is to change.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from uadray.phantom.anatomy import (
    BOX_MM,
    BRAIN,
    CEREBELLUM,
    CORTEX,
    CSF,
    DEPTH,
    DETAIL,
    FIELD_SHAPE,
    GM,
    MIDLINE,
    ROOT_SEED,
    WM,
    Fields,
    Template,
    Tissues,
    band_spectrum,
    field_points,
    folia_spectrum,
    gaussian_field,
    mixed_spectrum,
    pose,
    sigmoid,
    smooth_spectrum,
    widen_ventricles,
)
from uadray.phantom.lesions import (
    Stroke,
    Tumour,
    paint_tumour,
    ventricles,
)
from uadray.phantom.rendering import (
    Points,
    average,
    blur,
    masks,
    polynomial,
    rician,
    white_matter_ageing,
)

NUM_SCANNERS = 22
"""Number of scanner profiles."""


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """What is drawn once per subject; the random fields follow from `field_seed`."""

    age: float
    """0 young to 1 old."""
    rotation: tuple[float, float, float]
    """Head angles about x, y, z in radians."""
    scale: tuple[float, float, float]
    """Size relative to the template along x, y, z."""
    warp_mm: tuple[float, float, float]
    """Standard deviation in mm of the deformations of 80, 40 and 20 mm wavelength."""
    ventricles_mm: float
    """How far the ventricles' walls move outward in mm; negative narrows them."""
    gyrus_mm: float
    """Wavelength of the folding field in mm; gyri are about 0.7 of it apart."""
    sulcus_depth_mm: float
    """Mean depth of the sulci in mm."""
    sulcus_mm: float
    """Mean half width of an open sulcus in mm; grows with age."""
    ribbon_mm: float
    """Thickness of the cortical ribbon in mm."""
    field_seed: int
    """Seed of the subject's random fields."""


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """Draw one adult. Size is set so that brains measure about 1.2 to 1.7 L, as real ones."""
    age = float(rng.beta(2.0, 2.0))
    overall = np.clip(rng.normal(0.91, 0.025), 0.84, 0.97)
    scale = overall * np.clip(rng.normal(1.0, 0.018, 3), 0.96, 1.04)
    rotation = rng.normal(0.0, np.deg2rad([4.0, 2.0, 2.0]))
    sulcus = 0.55 + 0.75 * age + rng.normal(0.0, 0.12)
    return Anatomy(
        age=age,
        rotation=(float(rotation[0]), float(rotation[1]), float(rotation[2])),
        scale=(float(scale[0]), float(scale[1]), float(scale[2])),
        warp_mm=(2.4, 0.9, 0.4),
        ventricles_mm=float(np.clip(rng.normal(-0.8 + 3.4 * age, 1.0), -2.0, 5.0)),
        gyrus_mm=float(rng.uniform(15.0, 18.0)),
        sulcus_depth_mm=float(rng.uniform(10.0, 14.0)),
        sulcus_mm=float(np.clip(sulcus, 0.15, 1.5)),
        ribbon_mm=float(rng.normal(3.6, 0.15) - 0.5 * age),
        field_seed=int(rng.integers(1 << 62)),
    )


def make_fields(anatomy: Anatomy, template: Template) -> Fields:
    """Rasterise the deformation and the folding of a subject on the field grid."""
    rng = np.random.default_rng(anatomy.field_seed)
    mapped = pose(anatomy.scale, anatomy.rotation)
    sigma, spectrum = mixed_spectrum(anatomy.warp_mm, (80.0, 40.0, 20.0))
    for axis in range(3):
        mapped[:, axis] += sigma * gaussian_field(rng, spectrum).ravel()
    warp = widen_ventricles(mapped, anatomy.ventricles_mm, template)
    sulci = _sheet_distance(gaussian_field(rng, band_spectrum(anatomy.gyrus_mm)))
    opening = gaussian_field(rng, smooth_spectrum(24.0))
    folia = _sheet_distance(gaussian_field(rng, folia_spectrum()))
    return Fields(warp=warp, fold=np.stack([sulci, opening, folia]))


def _sheet_distance(field: np.ndarray) -> np.ndarray:
    """Return about the signed distance in mm to the field's zero sheets, to first order."""
    slope = np.gradient(field, *(BOX_MM[::-1] / FIELD_SHAPE).astype(np.float32))
    square = slope[0] ** 2 + slope[1] ** 2 + slope[2] ** 2
    # The floor keeps flat places, far from any sheet, from running off to infinity.
    floor = 0.3 * float(np.sqrt(square.mean()))
    return np.asarray(field / np.sqrt(square + floor**2), np.float32)


def make_tissues(anatomy: Anatomy, maps: np.ndarray, fold: np.ndarray) -> Tissues:
    """Compose tissue fractions: the template in the depth, own folds in the outer brain.

    Args:
        anatomy: the subject's parameters.
        maps: float32 (9, N), the template's maps at the points.
        fold: float32 (3, N), the folding fields at the points.

    Returns:
        The fractions; they sum to the brain's fraction of the template.
    """
    depth, brain = maps[DEPTH], maps[BRAIN]
    sheet, opening, folia = np.abs(fold[0]), fold[1], np.abs(fold[2])
    floor = anatomy.sulcus_depth_mm * np.clip(1.0 + 0.25 * opening, 0.4, 1.6)
    # Distance to the sulcal sheet, rounded off where the sulcus ends in the depth.
    beyond = np.maximum(depth - floor, 0.0)
    valley = np.sqrt(sheet**2 + beyond**2)
    half = anatomy.sulcus_mm * np.clip(0.7 + 0.75 * opening, 0.0, 2.4)
    half *= np.clip(1.25 - depth / np.maximum(floor, 1.0), 0.15, 1.0)
    pial = np.minimum(valley - half, depth - 2.0 - 1.4 * anatomy.sulcus_mm)
    pial = np.minimum(pial, maps[MIDLINE] - 0.6 - 0.4 * anatomy.sulcus_mm)
    csf = sigmoid(-pial / 0.45)
    wm = sigmoid((pial - anatomy.ribbon_mm) / 0.5)
    own = sigmoid((floor + 4.0 - depth) / 1.5) * maps[CORTEX] * _outside_fissures(maps)
    leaf = maps[CEREBELLUM] * sigmoid((18.0 - depth) / 1.5) * np.clip(maps[GM] * 1.5, 0.0, 1.0)
    cleft = leaf * sigmoid((0.5 + 0.4 * anatomy.sulcus_mm - folia) / 0.35) * 0.8
    csf_out = (1.0 - own) * maps[CSF] + own * csf * brain
    wm_out = (1.0 - own) * maps[WM] + own * wm * brain
    gm_out = (1.0 - own) * maps[GM] + own * np.maximum(1.0 - csf - wm, 0.0) * brain
    return Tissues(
        csf=csf_out + cleft * gm_out,
        gm=gm_out * (1.0 - cleft),
        wm=wm_out,
        detail=maps[DETAIL] * (1.0 - 0.85 * own),
    )


def _outside_fissures(maps: np.ndarray) -> np.ndarray:
    """Weigh down own folds in the great fissures, whose place is the same in every brain."""
    return sigmoid((0.5 - maps[CSF]) / 0.08)


def draw_tumour(rng: np.random.Generator, maps: np.ndarray) -> Tumour:
    """Draw a tumour whose centre lies in the cerebral white matter.

    Args:
        rng: source of all parameters.
        maps: float32 (9, N), the template's maps at the points of the field grid.
    """
    core = float(np.clip(np.exp(rng.normal(np.log(14.0), 0.35)), 6.0, 25.0))
    inner = (maps[WM] > 0.6) & (maps[CORTEX] > 0.9) & (maps[DEPTH] > 6.0 + 0.5 * core)
    places = np.flatnonzero(inner & (np.abs(field_points()[:, 0]) > 12.0))
    centre = field_points()[places[int(rng.integers(len(places)))]]
    dark = rng.random() < 0.85
    return Tumour(
        centre=(float(centre[0]), float(centre[1]), float(centre[2])),
        core_mm=core,
        oedema_mm=float(rng.uniform(5.0, 24.0)),
        mass_effect=float(rng.uniform(0.08, 0.36)),
        core_tone=float(rng.uniform(0.5, 0.85) if dark else rng.uniform(1.0, 1.1)),
        necrosis=float(rng.uniform(0.35, 0.7) if rng.random() < 0.55 else 0.0),
        oedema_tone=float(rng.uniform(0.58, 0.8)),
        texture_seed=int(rng.integers(1 << 62)),
    )


def draw_stroke(rng: np.random.Generator, maps: np.ndarray) -> Stroke:
    """Draw a stroke: two of three are cortical wedges, the others lacunes.

    Args:
        rng: source of all parameters.
        maps: float32 (9, N), the template's maps at the points of the field grid.
    """
    side = 1 if rng.random() < 0.5 else -1
    wedge = rng.random() < 0.66
    azimuth, elevation = rng.uniform(-1.1, 0.9), rng.uniform(-0.3, 0.8)
    direction = (
        float(side * np.cos(azimuth) * np.cos(elevation)),
        float(np.sin(azimuth) * np.cos(elevation)),
        float(np.sin(elevation)),
    )
    if wedge:
        centres = [(side * rng.uniform(6, 16), rng.uniform(-35, 15), rng.uniform(-2, 16))]
        radii = [rng.uniform(14.0, 32.0)]
    else:
        # Lacunes sit in the deep grey nuclei and the white matter around them.
        deep = (maps[WM] + maps[GM] > 0.9) & (maps[DEPTH] > 20.0) & (maps[CORTEX] > 0.9)
        x = side * field_points()[:, 0]
        places = np.flatnonzero(deep & (x > 9.0) & (x < 36.0))
        count = int(rng.integers(1, 4))
        centres = [tuple(field_points()[i]) for i in rng.choice(places, count, replace=False)]
        radii = list(np.clip(np.exp(rng.normal(np.log(6.5), 0.35, count)), 4.5, 13.0))
    return Stroke(
        pattern="wedge" if wedge else "lacunes",
        side=side,
        centres=tuple((float(x), float(y), float(z)) for x, y, z in centres),
        radii_mm=tuple(float(r) for r in radii),
        direction=direction,
        opening_rad=float(np.clip(np.exp(rng.normal(np.log(0.40), 0.45)), 0.15, 0.75)),
        severity=float(rng.uniform(0.45, 0.9)),
        texture_seed=int(rng.integers(1 << 62)),
    )


def paint_stroke(
    stroke: Stroke,
    image: np.ndarray,
    maps: np.ndarray,
    fields: np.ndarray,
    means: tuple[float, float, float],
) -> tuple[np.ndarray, np.ndarray]:
    """Paint a stroke on intensities.

    The truth spans the sulci inside an infarct, as manual outlines do, but not the ventricles.

    Args:
        stroke: the stroke.
        image: float32 (N,), intensities of the healthy tissue.
        maps: float32 (9, N), the template's maps at the N points.
        fields: float32 (2, N), `stroke_fields` at the points.
        means: intensity of (CSF, GM, WM).

    Returns:
        The new intensities, and the truth as bool (N,).
    """
    inside, texture = fields
    weight = sigmoid(inside / 0.8) * (1.0 - ventricles(maps))
    fluid = means[0] * 1.1 + 0.25 * (means[1] - means[0]) * np.clip(0.5 + 0.6 * texture, 0.0, 1.0)
    change = weight * stroke.severity * np.clip(1.0 + 0.15 * texture, 0.6, 1.15)
    change = np.clip(change, 0.0, 1.0)
    return image * (1.0 - change) + change * fluid, weight > 0.5


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


def _render(
    anatomy: Anatomy,
    lesion: Tumour | Stroke | None,
    scanner: ScannerProfile,
    points: Points,
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
    signal *= 1.0 - white_matter_ageing(anatomy.age, points, tissues)
    truth = np.zeros(len(signal), bool)
    means = (csf, gm, wm)
    if isinstance(lesion, Tumour):
        signal, truth = paint_tumour(lesion, signal, tissues, points.lesion, means)
    elif isinstance(lesion, Stroke):
        signal, truth = paint_stroke(lesion, signal, points.maps, points.lesion, means)
    shape = np.array(scanner.bias_shape) + 0.5 * rng.standard_normal(9)
    signal = signal * np.exp(scanner.bias * polynomial(points.where, shape))
    return np.maximum(signal, 0.0) ** np.float32(scanner.gamma), truth


def scan(
    anatomy: Anatomy,
    lesion: Tumour | Stroke | None,
    points: Points,
    rng: np.random.Generator,
    size: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    """Scan a subject; return image, brain and lesion, and the scanner's name."""
    scanner = scanner_profiles()[int(rng.integers(NUM_SCANNERS))]
    signal, truth = _render(anatomy, lesion, scanner, points, rng)
    brain, mask = masks(truth, points.voxel, size)
    image = blur(average(signal, points.voxel, size).astype(np.float32), scanner.blur_mm)
    image = rician(image, scanner.noise, rng)
    # The top percent is the clip of the preprocessing's percentile scaling.
    top = float(np.quantile(image[brain], 0.99))
    image = np.where(brain, np.clip(image / np.float32(top), 0.0, 1.0), 0.0).astype(np.float32)
    return image, brain, mask, scanner.name
