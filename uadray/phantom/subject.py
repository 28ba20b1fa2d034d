"""Phantom brains for a first run and for scale: real anatomy, invented subjects, exact lesions.

A subject is a pure function of (kind, seed, size) and of the version of the scheme. It starts from
the MNI152 2009a tissue maps that nilearn ships (Fonov et al. 2011, NeuroImage 54), draws a person,
whose brain is a deformed and refolded one with sulci and ventricles as wide as the age makes them
(`people`), adds a lesion (`lesions`) and is scanned by one of six scanners (`scanners`). Nothing is
stored and nothing is downloaded.

Modelled: head size by sex, pose, deformations at 20, 40 and 80 mm, folds that vary where those of
people do, atrophy, deep white matter that darkens; territorial infarcts, lacunes, gliomas with
necrosis, oedema and mass effect; contrast, receive field, blur and noise. Not modelled: skull and
vessels, what preparation leaves of both, the parcellation and thickness of cortex, asymmetry of the
hemispheres beyond chance, motion, disease besides the lesion, contrast other than T1. How near
phantoms come to scans, and whether they rank methods alike, is measured by
`python -m benchmarks.phantom`; their figures are no figures of patients.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from uadray.errors import ConfigError
from uadray.phantom import lesions, people, scanners, version_1
from uadray.phantom.anatomy import (
    BOX_CENTRE_MNI,
    BOX_MM,
    DEPTH,
    FIELD_SHAPE,
    ROOT_SEED,
    Fields,
    Template,
    load_template,
    maps_on_field_grid,
)
from uadray.phantom.rendering import sample_brain

Kind = Literal["healthy", "tumour", "stroke"]

MIN_SIZE = 16
"""Smallest grid: below it a voxel is over 1 mL and holds no anatomy."""


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
    """Name of the scanner, such as "phantom-a"."""
    meta: dict[str, float | str]
    """What was drawn: kind, age in years, sex, widths, lesion type, volumes in mL; version 1 has no
    sex, and an age from 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class _Scheme:
    """One version of how phantoms are made."""

    draw_person: Callable[[np.random.Generator], Any]
    make_fields: Callable[[Any, Template], Fields]
    draw_tumour: Callable[[np.random.Generator, np.ndarray], lesions.Tumour]
    draw_stroke: Callable[[np.random.Generator, np.ndarray], lesions.Stroke]
    scan: Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray, str]]
    about: tuple[str, ...]
    """Fields of the person that `PhantomSubject.meta` has."""


_SCHEMES = {
    1: _Scheme(
        draw_person=version_1.draw_anatomy,
        make_fields=version_1.make_fields,
        draw_tumour=version_1.draw_tumour,
        draw_stroke=version_1.draw_stroke,
        scan=version_1.scan,
        about=("age", "ventricles_mm", "sulcus_mm"),
    ),
    2: _Scheme(
        draw_person=people.draw_person,
        make_fields=people.make_fields,
        draw_tumour=lesions.draw_tumour,
        draw_stroke=lesions.draw_stroke,
        scan=scanners.scan,
        about=("age", "sex", "ventricles_mm", "atrophy"),
    ),
}
"""By version. A scheme that phantoms were made by never changes: what is better is a new one."""

VERSION = max(_SCHEMES)
"""The version of new phantoms."""


def make_subject(kind: Kind, seed: int, size: int, *, version: int = VERSION) -> PhantomSubject:
    """Make one phantom brain; the same arguments give the same bytes.

    The grid has size^3 voxels over a box of 158 (left to right) x 191 (posterior to anterior) x
    163 mm (inferior to superior), the same squeezed grid as the paper's downsampling (Bengs 2021,
    section 2.1). The anatomy of (kind, seed) is the same at every size; the noise is not.

    Args:
        kind: "healthy", "tumour" or "stroke".
        seed: number of the subject, >= 0. Subjects of two kinds, or of two versions, share nothing
            by a common seed.
        size: voxels along each axis, >= 16.
        version: 2, or 1 for phantoms as they were made first.

    Returns:
        The subject, arrays (Z, Y, X).

    Raises:
        ConfigError: unknown kind or version, negative seed or size under 16.
    """
    _check(kind, seed, size, version)
    scheme = _SCHEMES[version]
    rng_body, rng_lesion, rng_scan = _streams(kind, seed, version)
    template = load_template()
    person = scheme.draw_person(rng_body)
    fields = scheme.make_fields(person, template)
    lesion, fields, lesion_fields = _add_lesion(scheme, kind, rng_lesion, template, fields)
    points = sample_brain(template, fields, lesion_fields, size)
    image, brain, mask, scanner = scheme.scan(person, lesion, points, rng_scan, size)
    affine = np.diag([*(BOX_MM / size), 1.0])
    affine[:3, 3] = BOX_CENTRE_MNI - BOX_MM / 2 + BOX_MM / size / 2
    millilitres = float(np.prod(BOX_MM / size)) / 1000.0
    meta: dict[str, float | str] = {
        "kind": kind,
        "lesion_type": _lesion_type(lesion),
        **{name: getattr(person, name) for name in scheme.about},
        "brain_ml": float(brain.sum()) * millilitres,
        "lesion_ml": float(mask.sum()) * millilitres,
    }
    return PhantomSubject(
        image=image, brain=brain, lesion=mask, affine=affine, scanner=scanner, meta=meta
    )


def age_and_sex(kind: Kind, seed: int, *, version: int = VERSION) -> tuple[int, str] | None:
    """Return a subject's age in years and sex, M or F, without making it; None in version 1.

    Args:
        kind: "healthy", "tumour" or "stroke".
        seed: number of the subject, >= 0.
        version: see `make_subject`.

    Raises:
        ConfigError: unknown kind or version, or negative seed.
    """
    _check(kind, seed, MIN_SIZE, version)
    if version == 1:
        return None
    return people.draw_age_and_sex(_streams(kind, seed, version)[0])


def _streams(kind: Kind, seed: int, version: int) -> list[np.random.Generator]:
    """The random streams of a subject's body, lesion and scan."""
    words = [ROOT_SEED, get_args(Kind).index(kind), seed] + ([version] if version > 1 else [])
    return [np.random.default_rng(s) for s in np.random.SeedSequence(words).spawn(3)]


def _check(kind: str, seed: int, size: int, version: int) -> None:
    if kind not in get_args(Kind):
        raise ConfigError(f"kind is {kind!r}: it must be one of {', '.join(get_args(Kind))}")
    if seed < 0:
        raise ConfigError(f"seed is {seed}: it must be 0 or more")
    if size < MIN_SIZE:
        raise ConfigError(f"size is {size}: it must be {MIN_SIZE} or more voxels along each axis")
    if version not in _SCHEMES:
        raise ConfigError(
            f"version is {version}: it must be {' or '.join(map(str, _SCHEMES))}; "
            "a later one needs a later uadray"
        )


def _lesion_type(lesion: lesions.Tumour | lesions.Stroke | None) -> str:
    if lesion is None:
        return "none"
    if isinstance(lesion, lesions.Stroke):
        return lesion.pattern
    return "tumour, necrotic" if lesion.necrosis > 0.0 else "tumour, solid"


def _add_lesion(
    scheme: _Scheme, kind: Kind, rng: np.random.Generator, template: Template, fields: Fields
) -> tuple[lesions.Tumour | lesions.Stroke | None, Fields, np.ndarray]:
    """Draw the lesion; return it, the fields after its mass effect, and its own fields."""
    if kind == "healthy":
        return None, fields, np.zeros((0, *FIELD_SHAPE), np.float32)
    maps = maps_on_field_grid(template, fields.warp)
    if kind == "stroke":
        stroke = scheme.draw_stroke(rng, maps)
        return stroke, fields, lesions.stroke_fields(stroke, maps)
    tumour = scheme.draw_tumour(rng, maps)
    warp = lesions.displace(tumour, fields.warp, maps[DEPTH])
    pushed = maps_on_field_grid(template, warp)
    return tumour, Fields(warp=warp, fold=fields.fold), lesions.tumour_fields(tumour, pushed)
