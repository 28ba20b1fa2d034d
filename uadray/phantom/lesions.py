"""Lesions of the phantom brains: tumour-like and stroke-like, on T1, with their exact extent.

Geometry is drawn and rasterised on the field grid of `anatomy` and so does not depend on
the output size; painting works at the points of the output.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from uadray.phantom.anatomy import (
    BOX_MM,
    BRAIN,
    CEREBELLUM,
    CORTEX,
    CSF,
    DEPTH,
    FIELD_SHAPE,
    GM,
    WM,
    Tissues,
    band_spectrum,
    field_points,
    gaussian_field,
    sigmoid,
    smooth_spectrum,
)

STROKE_ML = (5.0, 80.0, 200.0)
"""Least, median and largest volume of an infarct of a cortical artery in mL."""

LACUNAR = 0.1
"""Share of the strokes that are lacunes, which a coarse grid hardly shows."""

STROKE_LOSS = (0.2, 0.5)
"""Least and largest share of its signal that infarcted tissue loses on T1."""

OEDEMA_TRUTH = 0.4
"""Share of the full oedema effect from which a point counts as lesion."""


@dataclass(frozen=True, kw_only=True)
class Tumour:
    """A space-occupying lesion: core, often with necrosis, and oedema around it."""

    centre: tuple[float, float, float]
    """(x, y, z) in subject space, mm."""
    core_mm: float
    """Mean radius of the core in mm."""
    oedema_mm: float
    """How far the oedema runs along white matter beyond the core, in mm."""
    mass_effect: float
    """Outward displacement relative to the distance from the centre, [0, 0.4]."""
    core_tone: float
    """Core intensity: below 1 relative to grey matter, from 1 relative to white matter."""
    necrosis: float
    """Radius of the necrosis relative to the core's, 0 for none."""
    oedema_tone: float
    """Factor on the intensity where the oedema is full, (0, 1)."""
    texture_seed: int
    """Seed of the shape's irregularity and of the core's texture."""


@dataclass(frozen=True, kw_only=True)
class Stroke:
    """Infarcts: one cortical wedge, or up to three lacunes."""

    pattern: Literal["wedge", "lacunes"]
    """Which of the two."""
    side: int
    """+1 for the right hemisphere, -1 for the left."""
    centres: tuple[tuple[float, float, float], ...]
    """(x, y, z) in subject space, mm: the lacunes' centres, or the one apex of the wedge."""
    radii_mm: tuple[float, ...]
    """The lacunes' mean radii, or the distance of the wedge's inner face from its apex, mm."""
    direction: tuple[float, float, float]
    """Unit vector of the wedge's axis; of no effect for lacunes."""
    opening_rad: float
    """The wedge's half angle in radians; of no effect for lacunes."""
    severity: float
    """Share of its signal that the tissue loses; in version 1, how far it has gone towards fluid.
    In (0, 1)."""
    texture_seed: int
    """Seed of the border's irregularity and of the inner texture."""
    volume_ml: float = 0.0
    """Volume to which the shape is grown or shrunk, mL, ventricles and fissures included; 0 for as
    it is drawn."""


def draw_tumour(rng: np.random.Generator, maps: np.ndarray) -> Tumour:
    """Draw a tumour whose centre lies in the cerebral white matter.

    Args:
        rng: source of all parameters.
        maps: float32 (9, N), the template's maps at the points of the field grid.
    """
    core = float(np.clip(np.exp(rng.normal(np.log(17.0), 0.3)), 8.0, 28.0))
    inner = (maps[WM] > 0.5) & (maps[CORTEX] > 0.9) & (maps[DEPTH] > 5.0 + 0.5 * core)
    places = np.flatnonzero(inner & (np.abs(field_points()[:, 0]) > 12.0))
    centre = field_points()[places[int(rng.integers(len(places)))]]
    dark = rng.random() < 0.9
    return Tumour(
        centre=(float(centre[0]), float(centre[1]), float(centre[2])),
        core_mm=core,
        oedema_mm=float(rng.uniform(8.0, 26.0)),
        mass_effect=float(rng.uniform(0.08, 0.36)),
        core_tone=float(rng.uniform(0.55, 0.85) if dark else rng.uniform(1.0, 1.05)),
        necrosis=float(rng.uniform(0.35, 0.7) if rng.random() < 0.55 else 0.0),
        oedema_tone=float(rng.uniform(0.6, 0.8)),
        texture_seed=int(rng.integers(1 << 62)),
    )


def draw_stroke(rng: np.random.Generator, maps: np.ndarray) -> Stroke:
    """Draw a stroke: most are in the territory of a cortical artery, the others lacunes.

    Args:
        rng: source of all parameters.
        maps: float32 (9, N), the template's maps at the points of the field grid.
    """
    side = 1 if rng.random() < 0.5 else -1
    lacunar = rng.random() < LACUNAR
    azimuth, elevation = rng.uniform(-1.1, 0.9), rng.uniform(-0.3, 0.8)
    direction = (
        float(side * np.cos(azimuth) * np.cos(elevation)),
        float(np.sin(azimuth) * np.cos(elevation)),
        float(np.sin(elevation)),
    )
    least, median, most = STROKE_ML
    volume = float(np.clip(np.exp(rng.normal(np.log(median), 0.85)), least, most))
    if lacunar:
        # Lacunes sit in the deep grey nuclei and the white matter around them.
        deep = (maps[WM] + maps[GM] > 0.9) & (maps[DEPTH] > 20.0) & (maps[CORTEX] > 0.9)
        x = side * field_points()[:, 0]
        places = np.flatnonzero(deep & (x > 9.0) & (x < 36.0))
        count = int(rng.integers(1, 4))
        centres = [tuple(field_points()[i]) for i in rng.choice(places, count, replace=False)]
        radii = list(np.clip(np.exp(rng.normal(np.log(6.5), 0.35, count)), 4.5, 13.0))
    else:
        centres = [(side * rng.uniform(6, 16), rng.uniform(-35, 15), rng.uniform(-2, 16))]
        radii = [rng.uniform(4.0, 18.0)]
    return Stroke(
        pattern="lacunes" if lacunar else "wedge",
        side=side,
        centres=tuple((float(x), float(y), float(z)) for x, y, z in centres),
        radii_mm=tuple(float(r) for r in radii),
        direction=direction,
        opening_rad=float(rng.uniform(0.45, 0.75)),
        severity=float(rng.uniform(*STROKE_LOSS)),
        texture_seed=int(rng.integers(1 << 62)),
        volume_ml=0.0 if lacunar else volume,
    )


def displace(tumour: Tumour, warp: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Push the tissue out from a tumour, less so below the skull.

    Args:
        tumour: the tumour.
        warp: float32 (3, Z, Y, X), template point minus subject point.
        depth: float32 (N,), depth below the surface at the field grid's points.

    Returns:
        The new warp, same shape.
    """
    away = field_points() - np.array(tumour.centre, np.float32)
    reach = 1.6 * (tumour.core_mm + 0.4 * tumour.oedema_mm)
    square = (away**2).sum(axis=1)
    push = tumour.mass_effect * np.exp(-square / reach**2) * np.clip(depth / 14.0, 0.0, 1.0)
    return np.asarray(warp - (away * push[:, None]).T.reshape(warp.shape), np.float32)


def tumour_fields(tumour: Tumour, maps: np.ndarray) -> np.ndarray:
    """Rasterise a tumour: depth inside its core in mm, oedema in [0, 1], texture.

    Args:
        tumour: the tumour.
        maps: float32 (9, N), the maps after the mass effect at the field grid's points.

    Returns:
        float32 (3, Z, Y, X).
    """
    rng = np.random.default_rng(tumour.texture_seed)
    texture = gaussian_field(rng, band_spectrum(9.0, width=0.4))
    lobes = gaussian_field(rng, smooth_spectrum(18.0))
    away = np.sqrt(((field_points() - np.array(tumour.centre, np.float32)) ** 2).sum(axis=1))
    radius = tumour.core_mm * (1.0 + 0.05 * texture + 0.2 * lobes)
    core = radius - away.reshape(FIELD_SHAPE)
    oedema = _grow(tumour, maps.reshape(-1, *FIELD_SHAPE), core)
    return np.stack([core, oedema, texture]).astype(np.float32)


def _grow(tumour: Tumour, maps: np.ndarray, core: np.ndarray) -> np.ndarray:
    """Let oedema spread from the core: Fisher's equation, quick in white matter, none in fluid.

    The usual model of glioma infiltration (Swanson et al. 2000, Cell Proliferation 33); here it
    gives oedema its fingers along white matter and its stop at sulci, ventricles and midline.
    """
    spacing = BOX_MM[::-1] / FIELD_SHAPE
    middle = (np.array(tumour.centre[::-1]) / BOX_MM[::-1] + 0.5) * FIELD_SHAPE
    reach = (1.5 * tumour.core_mm + tumour.oedema_mm + 8.0) / spacing
    low = np.maximum(np.floor(middle - reach), 0).astype(int)
    high = np.minimum(np.ceil(middle + reach) + 1, FIELD_SHAPE).astype(int)
    window = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    wm, gm = maps[WM][window], maps[GM][window]
    speed = 0.155 * np.clip(wm**2 + 0.06 * gm, 0.0, 1.0)
    # Flux passes a face at the rate of its slower side.
    faces = [np.minimum(speed[_from(1, a)], speed[_to(-1, a)]) for a in range(3)]
    growth = 0.1 * np.clip(wm + 0.3 * gm, 0.0, 1.0)
    seed = np.clip(core[window] + 0.5, 0.0, 1.0)
    density = seed.copy()
    for _ in range(round(tumour.oedema_mm / 0.55)):
        change = growth * density * (1.0 - density)
        for axis, face in enumerate(faces):
            flux = face * (density[_from(1, axis)] - density[_to(-1, axis)])
            change[_to(-1, axis)] += flux
            change[_from(1, axis)] -= flux
        density = np.maximum(density + change, seed)
    oedema = np.zeros(FIELD_SHAPE, np.float32)
    oedema[window] = density
    return oedema


def _from(start: int, axis: int) -> tuple[slice, ...]:
    return tuple(slice(start, None) if a == axis else slice(None) for a in range(3))


def _to(stop: int, axis: int) -> tuple[slice, ...]:
    return tuple(slice(None, stop) if a == axis else slice(None) for a in range(3))


def stroke_fields(stroke: Stroke, maps: np.ndarray) -> np.ndarray:
    """Rasterise a stroke: depth inside the infarct in mm, texture.

    Args:
        stroke: the stroke.
        maps: float32 (9, N), the template's maps at the field grid's points.

    Returns:
        float32 (2, Z, Y, X).
    """
    rng = np.random.default_rng(stroke.texture_seed)
    texture = gaussian_field(rng, band_spectrum(9.0, width=0.4))
    lobes = gaussian_field(rng, smooth_spectrum(20.0))
    points = field_points()
    # A border that moves far has to be smooth, or it breaks into islands.
    fine = 0.03 if stroke.volume_ml else 0.12
    ragged = (fine * texture + 0.22 * lobes).ravel()
    if stroke.pattern == "wedge":
        away = points - np.array(stroke.centres[0], np.float32)
        far = np.sqrt((away**2).sum(axis=1)) + 1e-3
        along = (away * np.array(stroke.direction, np.float32)).sum(axis=1)
        angle = np.arccos(np.clip(along / far, -1.0, 1.0))
        across = (stroke.opening_rad * (1.0 + ragged) - angle) * far
        inside = np.minimum(across, far - stroke.radii_mm[0] * (1.0 + ragged))
    else:
        inside = np.full(len(points), -100.0)
        for centre, radius in zip(stroke.centres, stroke.radii_mm, strict=True):
            away = np.sqrt(((points - np.array(centre, np.float32)) ** 2).sum(axis=1))
            inside = np.maximum(inside, radius * (1.0 + 0.8 * ragged) - away)
    # Arteries keep to their hemisphere and to their side of the tentorium.
    supplied = np.minimum(stroke.side * points[:, 0] - 1.5, 20.0 * (0.5 - maps[CEREBELLUM]))
    if stroke.volume_ml:
        # The lesion is the level set that holds as many points of the field grid.
        values = np.sort(inside[(supplied > 0.0) & (maps[BRAIN] > 0.5)])
        num = round(stroke.volume_ml / (float(np.prod(BOX_MM / FIELD_SHAPE[::-1])) / 1000.0))
        inside = inside - values[max(len(values) - num, 0)]
    inside = np.minimum(inside, supplied)
    return np.stack([inside.reshape(FIELD_SHAPE), texture]).astype(np.float32)


def paint_tumour(
    tumour: Tumour,
    image: np.ndarray,
    tissues: Tissues,
    fields: np.ndarray,
    means: tuple[float, float, float],
) -> tuple[np.ndarray, np.ndarray]:
    """Paint a tumour on intensities.

    Args:
        tumour: the tumour.
        image: float32 (N,), intensities of the healthy tissue.
        tissues: the tissue fractions at the N points.
        fields: float32 (3, N), `tumour_fields` at the points.
        means: intensity of (CSF, GM, WM).

    Returns:
        The new intensities, and the truth as bool (N,).
    """
    inside, spread, texture = fields
    core = sigmoid(inside / 0.8)
    # Fluid in sulci and ventricles does not swell.
    dry = 1.0 - np.clip(tissues.csf * 1.4, 0.0, 1.0)
    oedema = sigmoid((spread - 0.4) / 0.08) * (0.25 + 0.75 * tissues.wm) * dry
    tone = tumour.core_tone * (means[1] if tumour.core_tone < 1.0 else means[2])
    filling = tone * (1.0 + 0.08 * texture)
    if tumour.necrosis > 0.0:
        dead = sigmoid((inside - (1.0 - tumour.necrosis) * tumour.core_mm) / 0.8)
        filling = filling * (1.0 - dead) + dead * 1.4 * means[0]
    out = image * (1.0 - oedema * (1.0 - tumour.oedema_tone))
    out = out * (1.0 - core) + core * filling
    return out, (core > 0.5) | (oedema > OEDEMA_TRUTH)


def paint_stroke(
    stroke: Stroke, image: np.ndarray, maps: np.ndarray, fields: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Paint a stroke on intensities: tissue loses a share of its signal and keeps its structure.

    The truth spans the sulci inside an infarct, as manual outlines do, but not the ventricles.

    Args:
        stroke: the stroke.
        image: float32 (N,), intensities of the healthy tissue.
        maps: float32 (9, N), the template's maps at the N points.
        fields: float32 (2, N), `stroke_fields` at the points.

    Returns:
        The new intensities, and the truth as bool (N,).
    """
    inside, texture = fields
    weight = sigmoid(inside / 1.2) * (1.0 - ventricles(maps))
    loss = weight * stroke.severity * np.clip(1.0 + 0.35 * texture, 0.2, 1.8)
    return image * (1.0 - np.minimum(loss, 0.9)), weight > 0.5


def ventricles(maps: np.ndarray) -> np.ndarray:
    """Weigh the ventricles: fluid in the depth, float32 (N,) in [0, 1]."""
    return sigmoid((maps[CSF] - 0.5) / 0.06) * sigmoid((maps[DEPTH] - 15.0) / 1.0)
