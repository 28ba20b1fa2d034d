"""How scanners render tissue: contrast, receive field, blur, noise and scaling."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from uadray.phantom import lesions
from uadray.phantom.anatomy import BOX_MM, ROOT_SEED
from uadray.phantom.people import Person, make_tissues
from uadray.phantom.rendering import (
    Points,
    average,
    blur,
    masks,
    polynomial,
    rician,
    white_matter_ageing,
)

MEANS = (0.20, 0.55, 0.95)
"""Intensity of CSF, GM and WM on T1 before scaling; scanners differ by up to 4 %."""

PERCENTILES = (0.01, 0.99)
"""Of the intensities inside the brain: they become 0 and 1, as the preparation of scans does."""

HEADROOM = 0.07
"""Standard deviation of how far vessels and noise raise the upper percentile of a real scan."""


@dataclass(frozen=True, kw_only=True)
class Scanner:
    """How one scanner renders tissue; fixed per scanner."""

    name: str
    """"phantom-a" and so on."""
    means: tuple[float, float, float]
    """Intensity of CSF, GM and WM before scaling, (0, 1)."""
    detail: float
    """Factor on the template's intensity residue."""
    noise: float
    """Standard deviation of the Rician noise in 1 mm^3, relative to white matter; larger voxels
    average it."""
    centre: float
    """By how much the log of the signal falls from the brightest place to the box's faces: little
    with receive coils that are corrected for, up to a half at 3 T without."""
    brightest: tuple[float, float, float]
    """Where the signal is highest, (x, y, z) relative to half the box."""
    bias: float
    """Standard deviation over the box of what else the log of the receive field has."""
    bias_shape: tuple[float, ...]
    """Nine coefficients of that field's polynomial of order 2."""
    gamma: float
    """Exponent of the intensity curve."""
    blur_mm: tuple[float, float, float]
    """Standard deviation of the point spread along x, y, z in mm."""


@lru_cache(maxsize=1)
def scanners() -> tuple[Scanner, ...]:
    """Return the six scanners, always the same; two of them have thick slices."""
    made = []
    for index in range(6):
        rng = np.random.default_rng([ROOT_SEED, 8, index])
        in_plane = rng.uniform(0.4, 0.9)
        slices = in_plane * (rng.uniform(1.3, 2.0) if index % 3 == 2 else 1.0)
        csf, gm, wm = (float(mean * rng.uniform(0.96, 1.04)) for mean in MEANS)
        made.append(
            Scanner(
                name=f"phantom-{'abcdef'[index]}",
                means=(csf, gm, wm),
                detail=rng.uniform(0.8, 1.1),
                noise=float(np.exp(rng.uniform(np.log(0.02), np.log(0.05)))),
                centre=rng.uniform(0.15, 0.55),
                brightest=(rng.normal(0.0, 0.05), rng.uniform(-0.2, 0.1), rng.uniform(-0.5, 0.0)),
                bias=rng.uniform(0.04, 0.09),
                bias_shape=tuple(float(c) for c in rng.standard_normal(9)),
                gamma=rng.uniform(0.92, 1.10),
                blur_mm=(in_plane, in_plane, slices),
            )
        )
    return tuple(made)


def scan(
    person: Person,
    lesion: lesions.Tumour | lesions.Stroke | None,
    points: Points,
    rng: np.random.Generator,
    size: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    """Scan a subject on one of the scanners.

    Args:
        person: the subject.
        lesion: what the subject has.
        points: the points of the output inside the brain.
        rng: source of the scanner, of the session's contrast and field, and of the noise.
        size: voxels along each axis.

    Returns:
        Image, brain and lesion, (Z, Y, X), and the scanner's name.
    """
    scanner = scanners()[int(rng.integers(len(scanners())))]
    signal, truth = _signal(person, lesion, scanner, points, rng)
    shape = np.array(scanner.bias_shape) + 0.4 * rng.standard_normal(9)
    away = points.where * np.float32(2.0 / BOX_MM) - np.array(scanner.brightest, np.float32)
    log_field = scanner.bias * polynomial(points.where, shape)
    log_field = log_field - scanner.centre * (away**2).sum(axis=1)
    signal = np.maximum(signal * np.exp(log_field), 0.0) ** np.float32(scanner.gamma)
    low, high = (float(value) for value in np.quantile(signal, PERCENTILES))
    high *= float(np.exp(abs(rng.normal(0.0, HEADROOM))))
    signal = np.clip((signal - low) / (high - low), 0.0, 1.0)
    brain, mask = masks(truth, points.voxel, size)
    image = blur(average(signal, points.voxel, size).astype(np.float32), scanner.blur_mm)
    voxel_mm3 = max(float(np.prod(BOX_MM / size)), 1.0)
    image = rician(image, scanner.noise / np.sqrt(voxel_mm3), rng)
    image = np.where(brain, np.clip(image, 0.0, 1.0), 0.0).astype(np.float32)
    return image, brain, mask, scanner.name


def _signal(
    person: Person,
    lesion: lesions.Tumour | lesions.Stroke | None,
    scanner: Scanner,
    points: Points,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Return what the tissue gives off, and the lesion's truth at the points, both (N,)."""
    tissues = make_tissues(person, points.maps, points.fold)
    spread = 1.0 + rng.normal(0.0, 0.015, 3)
    # White matter loses contrast with age.
    spread[2] *= 1.0 - 0.05 * person.elapsed
    csf, gm, wm = (float(m * s) for m, s in zip(scanner.means, spread, strict=True))
    signal = csf * tissues.csf + gm * tissues.gm + wm * tissues.wm
    signal += scanner.detail * tissues.detail
    signal *= 1.0 - white_matter_ageing(person.elapsed, points, tissues)
    if isinstance(lesion, lesions.Tumour):
        return lesions.paint_tumour(lesion, signal, tissues, points.lesion, (csf, gm, wm))
    if isinstance(lesion, lesions.Stroke):
        return lesions.paint_stroke(lesion, signal, points.maps, points.lesion)
    return signal, np.zeros(len(signal), bool)
