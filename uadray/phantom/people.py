"""Who a phantom is: age, sex and how the brain differs from the template."""

from dataclasses import dataclass

import numpy as np

from uadray.phantom.anatomy import (
    BRAIN,
    CEREBELLUM,
    CORTEX,
    CSF,
    DEPTH,
    DETAIL,
    GM,
    WM,
    Fields,
    Template,
    Tissues,
    band_spectrum,
    folia_spectrum,
    gaussian_field,
    mixed_spectrum,
    pose,
    sample,
    sigmoid,
    smooth_spectrum,
    widen_ventricles,
)

AGES = (18, 88)
"""Youngest and oldest, in years."""

TEMPLATE_AGE = 25.0
"""Mean age in years of the MNI152's people (Fonov et al. 2011): the age that looks like them."""

LARGE_WARP = (2.4, 80.0)
"""Standard deviation and wavelength in mm of the deformation that shapes the head as well."""

SMALL_WARPS = ((0.8, 0.4), (40.0, 20.0))
"""Standard deviations and wavelengths in mm of the deformations that leave the skull smooth."""

CORTEX_OWN, DEPTH_OWN, CEREBELLUM_OWN = 0.65, 0.1, 0.6
"""Correlation, in [0, 1), of a brain's tissue borders with the folding field of its own: at 0 they
are the template's, at 1 all its own. In cerebral cortex, below it, and in the cerebellum."""

SHARED_WIDTH = 0.6
"""Share of the cortex's own field that opens or closes all sulci of a region together."""


@dataclass(frozen=True, kw_only=True)
class Person:
    """What is drawn once per subject; the random fields follow from `field_seed`."""

    age: int
    """Years."""
    sex: str
    """M or F."""
    rotation: tuple[float, float, float]
    """Head angles about x, y, z in radians."""
    scale: tuple[float, float, float]
    """Size relative to the template along x, y, z."""
    ventricles_mm: float
    """How far the ventricles' walls lie outward of the template's in mm; negative is narrower."""
    atrophy: float
    """How far the borders of tissue to fluid have moved, in standard deviations of the folding
    field: about 0 at 25 years and 0.5 at 85."""
    gyrus_mm: float
    """Wavelength of the folding field in mm."""
    field_seed: int
    """Seed of the subject's random fields."""

    @property
    def elapsed(self) -> float:
        """How much of 60 years after the template's age has passed, in [0, 1.05]."""
        return max(self.age - TEMPLATE_AGE, 0.0) / 60.0


def draw_age_and_sex(rng: np.random.Generator) -> tuple[int, str]:
    """Draw an adult's age in years, the young more often, and sex, M or F."""
    age = AGES[0] + round((AGES[1] - AGES[0]) * rng.beta(1.2, 2.2))
    return age, "M" if rng.random() < 0.5 else "F"


def draw_person(rng: np.random.Generator) -> Person:
    """Draw one adult: 1.1 to 1.7 L of brain, men's 9 % larger, ventricles and sulci by age."""
    age, sex = draw_age_and_sex(rng)
    elapsed = max(age - TEMPLATE_AGE, 0.0) / 60.0
    overall = 0.895 * (1.015 if sex == "M" else 0.985) * np.clip(rng.normal(1.0, 0.022), 0.94, 1.06)
    scale = overall * np.clip(rng.normal(1.0, 0.018, 3), 0.95, 1.05)
    # Heads lie in the scanner with the chin lower than in MNI space.
    rotation = rng.normal(np.deg2rad([-6.0, 0.0, 0.0]), np.deg2rad([3.0, 1.2, 1.5]))
    return Person(
        age=age,
        sex=sex,
        rotation=(float(rotation[0]), float(rotation[1]), float(rotation[2])),
        scale=(float(scale[0]), float(scale[1]), float(scale[2])),
        ventricles_mm=float(np.clip(rng.normal(0.3 + 3.6 * elapsed**1.3, 1.0), -2.0, 5.5)),
        atrophy=float(0.55 * elapsed**1.2 + rng.normal(0.0, 0.15)),
        gyrus_mm=float(rng.uniform(16.0, 21.0)),
        field_seed=int(rng.integers(1 << 62)),
    )


def make_fields(person: Person, template: Template) -> Fields:
    """Rasterise the deformation and the folding of a subject on the field grid."""
    rng = np.random.default_rng(person.field_seed)
    mapped = pose(person.scale, person.rotation)
    # The skull is smooth: what is small fades out towards the surface.
    depth = sample(template.maps[DEPTH : DEPTH + 1], mapped)[0]
    inner = np.clip(depth / 15.0, 0.3, 1.0)
    sigma, wavelength = LARGE_WARP
    small, spectrum = mixed_spectrum(*SMALL_WARPS)
    for axis in range(3):
        mapped[:, axis] += sigma * gaussian_field(rng, smooth_spectrum(wavelength)).ravel()
        mapped[:, axis] += small * inner * gaussian_field(rng, spectrum).ravel()
    warp = widen_ventricles(mapped, person.ventricles_mm, template)
    width = gaussian_field(rng, smooth_spectrum(24.0))
    folds = gaussian_field(rng, band_spectrum(person.gyrus_mm, width=0.3))
    cortex = np.sqrt(1.0 - SHARED_WIDTH**2) * folds + SHARED_WIDTH * width
    folia = gaussian_field(rng, folia_spectrum())
    return Fields(warp=warp, fold=np.stack([cortex, width, folia]).astype(np.float32))


def make_tissues(person: Person, maps: np.ndarray, fold: np.ndarray) -> Tissues:
    """Compose tissue fractions: one brain out of the many that the template is the mean of.

    The template says how often each tissue lies at a place, in order from the surface: fluid, grey
    matter, white matter. A brain has there the tissue that a standard normal field of its own
    chooses by those frequencies (an ordered probit), so that sulci are where people have them,
    differ from brain to brain where people differ, and phantoms without atrophy have the template
    as their mean. What the correlation leaves open stays a mixture, as in a large voxel.

    Args:
        person: the subject's parameters.
        maps: float32 (9, N), the template's maps at the points.
        fold: float32 (3, N), the folding fields at the points.

    Returns:
        The fractions; they sum to the brain's fraction of the template.
    """
    from scipy.special import ndtr, ndtri

    total = np.maximum(maps[CSF] + maps[GM] + maps[WM], np.float32(1e-6))
    fluid = ndtri(np.clip(maps[CSF] / total, 1e-4, 1.0 - 1e-4))
    not_white = ndtri(np.clip((maps[CSF] + maps[GM]) / total, 1e-4, 1.0 - 1e-4))
    outer = maps[CORTEX] * sigmoid((26.0 - maps[DEPTH]) / 4.0)
    own = DEPTH_OWN * maps[CORTEX] + (CORTEX_OWN - DEPTH_OWN) * outer
    own = own + CEREBELLUM_OWN * maps[CEREBELLUM]
    shift = own * (fold[0] + maps[CEREBELLUM] * (fold[2] - fold[0]))
    left = np.sqrt(1.0 - own**2)
    csf = ndtr((fluid + person.atrophy - shift) / left)
    # White matter is lost later, and less.
    csf_and_gm = np.maximum(ndtr((not_white + 0.5 * person.atrophy - shift) / left), csf)
    brain = maps[BRAIN]
    return Tissues(
        csf=np.asarray(csf * brain, np.float32),
        gm=np.asarray((csf_and_gm - csf) * brain, np.float32),
        wm=np.asarray((1.0 - csf_and_gm) * brain, np.float32),
        detail=np.asarray(maps[DETAIL] * (1.0 - 0.5 * outer), np.float32),
    )
