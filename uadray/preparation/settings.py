"""Everything that decides how scans become a cohort; nothing here computes.

It stands apart so that a help text, which needs it, imports neither SimpleITK nor scipy.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np

from uadray.errors import ConfigError, PluginError
from uadray.plugins import Package, Registry
from uadray.strata import SCANNER, By

MAX_EXTENT_MM = 1000.0
"""Largest edge of the box that brains are padded to."""


OLDEST = 130.0
"""Years that nobody is older than."""

DOUBT = "doubt: "
"""How a note begins that somebody should look at, on the quality page for instance."""


@dataclass(frozen=True, kw_only=True)
class Extent:
    """The box that every brain is padded to, in mm (Bengs 2021, section 2.1).

    The paper gives 191 x 158 x 163 without naming the axes; only this order of them fits a brain.
    """

    left_right: float = 158.0
    """mm."""
    posterior_anterior: float = 191.0
    """mm."""
    inferior_superior: float = 163.0
    """mm."""

    def __post_init__(self) -> None:
        if not all(0 < mm <= MAX_EXTENT_MM for mm in self.mm):
            raise ConfigError(
                f"the extent must be above 0 and at most {MAX_EXTENT_MM:g} mm along each axis, was "
                f"{' x '.join(f'{mm:g}' for mm in self.mm)} (left-right, posterior-anterior, "
                "inferior-superior)"
            )

    @property
    def mm(self) -> np.ndarray:
        """In the order of the axes X, Y and Z."""
        return np.array([self.left_right, self.posterior_anterior, self.inferior_superior])

    def voxels(self, spacing: float) -> tuple[int, int, int]:
        """Voxels of that edge length along X, Y and Z."""
        x, y, z = np.maximum(1, np.rint(self.mm / spacing)).astype(int).tolist()
        return x, y, z


WAYS = ("auto", "none", "mask", "robex-if-needed")
"""Values of `PrepareConfig.skull_strip` that name no skull stripper."""

TOOLS = ("deepbet", "robex")
"""Skull strippers of ours, in `uadray.preparation.skull`."""


def _check_stripper(name: str, find: Any) -> None:
    if name in WAYS:
        raise PluginError(f"{name!r} means something else; name it otherwise")
    try:
        fits = callable(find) and inspect.signature(find).bind(None) is not None
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise PluginError(f"expected a function of a Volume that returns its brain, was {find!r}")


STRIPPERS: Registry[Callable[[Any], np.ndarray]] = Registry(
    "uadray.skull_strippers", "skull stripper", _check_stripper
)
"""Functions that look for the brain themselves, whatever mask comes with the scan: of a canonical
`Volume` to its brain, bool (X, Y, Z). Ours are here once `uadray.preparation.skull` is imported."""


def check_skull_strip(value: str) -> None:
    """Refuse a value of `skull_strip` that is neither a word nor a skull stripper.

    Raises:
        ConfigError: it is.
    """
    if value not in (*WAYS, *TOOLS) and value not in STRIPPERS:
        known = ", ".join(dict.fromkeys((*WAYS, *TOOLS, *STRIPPERS)))
        raise ConfigError(f"skull_strip must be one of {known}, was {value!r}")


Registration = Literal["none", "rigid", "mni152"]
"""How brains are registered: not at all, turned to the template's pose, or by an affine to it."""


LesionKind = Literal["stroke", "tumour", "ms"]
"""`stroke` changes all of the outline alike; `tumour` has a core in a graded rim of oedema and can
push the tissue around it aside; `ms` keeps some of the components of a mask that has many."""


Contrast = Literal["t1-dark", "t1-bright", "flair-bright"]
"""On which scans, and whether lesions are darker or brighter than their tissue."""


Placement = Literal["mni152", "template", "headers"]
"""How masks find their place. `mni152`: they are in MNI space, and the brain is registered to it.
`template`: they are in the space of the brain `template*.nii.gz` beside them, without its skull,
which is registered to MNI152 as well. `headers`: they and the scan share their millimetres."""


CHANGES: dict[tuple[LesionKind, Contrast], tuple[float, float]] = {
    ("stroke", "t1-dark"): (0.12, 0.45),
    ("stroke", "t1-bright"): (0.12, 0.45),
    ("stroke", "flair-bright"): (0.2, 0.6),
    ("tumour", "t1-dark"): (0.15, 0.45),
    ("tumour", "t1-bright"): (0.15, 0.45),
    ("tumour", "flair-bright"): (0.25, 0.7),
    ("ms", "t1-dark"): (0.08, 0.3),
    ("ms", "t1-bright"): (0.08, 0.3),
    ("ms", "flair-bright"): (0.2, 0.5),
}
"""Smallest and largest share by which intensities change, by kind and contrast.

Those of ms are measured: in two patients of MSLUB the lesions of 30 voxels and more are 18 to 49 %
brighter on FLAIR and up to 29 % darker on T1 than the tissue 2 to 5 mm around them."""


def number(value: float | None) -> float:
    """A setting of a resolved configuration."""
    assert value is not None
    return value


@dataclass(frozen=True, kw_only=True)
class LesionConfig:
    """How semi-synthetic lesions look.

    The defaults are set so that intensity alone does not solve the task: filling a stroke's mask
    with dark tissue does (1 - x reaches a Dice of 0.7), and a cohort that raw intensity solves
    measures nothing. None takes what suits the kind, see `resolved`.
    """

    lesion_kind: LesionKind = "stroke"
    """What the masks are made into."""
    contrast: Contrast = "t1-dark"
    """On which scans, and whether darker or brighter."""
    placement: Placement = "mni152"
    """How masks find their place."""
    lesion_seed: int = 0
    """Decides side, change and texture of every lesion, with the scan's id."""
    min_change: float | None = None
    """Least share of its intensity that tissue loses or gains, mean over the lesion (a tumour: its
    core), drawn per lesion, in (0, 1)."""
    max_change: float | None = None
    """Largest such share, in (0, 1)."""
    texture_mm: float | None = None
    """Standard deviation of the smoothing that makes the texture: 4, for ms 2."""
    texture_strength: float = 0.35
    """Standard deviation of the texture relative to its mean; it is cut at 0.2 and 1.8."""
    border_mm: float | None = None
    """Standard deviation of the soft border: 1.5, for ms 0.7."""
    flip_probability: float = 0.5
    """Share of the lesions that change sides, in [0, 1]."""
    rim_mm: float | None = None
    """Width of a tumour's oedema inside its outline: 10, at most half of its depth."""
    rim_change: float = 0.35
    """Change at the rim's outer edge relative to the core's, in [0, 1]."""
    mass_effect_mm: float | None = None
    """How far the tissue at a lesion's border is pushed outward: 4 for tumours, else 0; at most 8.
    Half of it at the least is drawn."""
    min_kept: float = 0.5
    """Least share of a mask's components that an ms lesion keeps, in (0, 1]; drawn per lesion."""
    min_inside: float = 0.2
    """A scan is refused where a smaller share of its lesion's volume lies in the brain."""

    def __post_init__(self) -> None:
        one = self.resolved()
        low, high = number(one.min_change), number(one.max_change)
        if not 0 < low <= high < 1:
            raise ConfigError(
                f"min_change and max_change must be 0 < min <= max < 1, were {low} and {high}"
            )
        for name, value, low, high in (
            ("texture_mm", one.texture_mm, 0.5, 50),
            ("texture_strength", one.texture_strength, 0, 1),
            ("border_mm", one.border_mm, 0, 10),
            ("flip_probability", one.flip_probability, 0, 1),
            ("rim_mm", one.rim_mm, 0, 50),
            ("rim_change", one.rim_change, 0, 1),
            ("mass_effect_mm", one.mass_effect_mm, 0, 8),
            ("min_kept", one.min_kept, 0.01, 1),
            ("min_inside", one.min_inside, 0, 1),
        ):
            if value is None or not low <= value <= high:
                raise ConfigError(f"{name} must be in [{low}, {high}], was {value}")

    def resolved(self) -> "LesionConfig":
        """The same with a number for each None."""
        low, high = CHANGES[self.lesion_kind, self.contrast]
        tumour, ms = self.lesion_kind == "tumour", self.lesion_kind == "ms"
        suits: dict[str, Any] = {
            "min_change": low,
            "max_change": high,
            "texture_mm": 2.0 if ms else 4.0,
            "border_mm": 0.7 if ms else 1.5,
            "rim_mm": 10.0 if tumour else 0.0,
            "mass_effect_mm": 4.0 if tumour else 0.0,
        }
        missing = {name: value for name, value in suits.items() if getattr(self, name) is None}
        return replace(self, **missing) if missing else self


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Everything that decides how a scan becomes a volume of the store."""

    named: ClassVar[tuple[str, Registry[Any]]] = ("skull_strip", STRIPPERS)
    """The field that may name an entry of another package."""

    shape: tuple[int, int, int] = (64, 64, 64)
    """(Z, Y, X) of a volume (section 2.1)."""
    spacing_mm: float = 1.0
    """Edge length of the isotropic voxels that all steps but the last work on (section 2.1)."""
    extent: Extent = field(default_factory=Extent)
    """The box that brains are padded to."""
    skull_strip: str = "auto"
    """How the brain is separated from the rest. `mask`: by the mask that comes with the scan, which
    must have one. `none`: the scan is stripped, and brain is what is above 0. `auto`: `mask` where
    there is one, else `none`. `deepbet` and `robex` look for the brain on T1 scans, whatever mask
    there is (pip install -e '.[skullstrip]'). `robex-if-needed`: `auto` where a scan has no skull
    any more, else `robex` (Meissen 2021, section 3.2). Or a skull stripper of another package."""
    min_brain_ml: float = 500.0
    """A smaller brain is refused: its mask has failed, in mL."""
    max_brain_ml: float = 2500.0
    """A larger brain is refused: it still has its skull, in mL."""
    register: Registration = "none"
    """`mni152` puts all brains on the template's grid by an affine, after the skull stripping
    (Meissen 2021, section 3.2); `none` leaves each in its own pose (Bengs 2021); `rigid` turns
    each to the template's pose and leaves its size and shape."""
    grow_extent: bool = False
    """Give a brain that is larger than the extent a larger box of the same proportions, which its
    notes say, instead of refusing it."""
    max_cut: float = 0.0
    """Largest share of a brain outside the extent that may be cut off, which its notes say; more
    is refused."""
    denoise: bool = True
    """Curvature flow, as the 2D studies that the paper follows."""
    denoise_time_step: float = 0.125
    """Of the curvature flow; the paper names none, both public codes of its line use this."""
    denoise_iterations: int = 3
    """Of the curvature flow; likewise."""
    correct_bias: bool = False
    """N4 inside the brain; the paper has none."""
    bias_shrink: int = 4
    """N4 estimates the bias field on every n-th voxel along each axis, this n."""
    percentiles: tuple[float, float] = (1.0, 99.0)
    """Of the intensities inside the brain: they become 0 and 1. The paper says only
    "standardization"; its authors' later code does this, inside the mask."""
    mask_threshold: float = 0.5
    """Least share of a voxel that is lesion where the voxel counts as lesion, in (0, 1]; Meissen
    2021, section 3.2, has 0.9. A lesion no voxel of which reaches it keeps its best one."""
    resize: Literal["average", "nearest"] = "average"
    """How volumes come to their shape, as the last step: by the `average` over the area of each new
    voxel, or by the `nearest` old voxel (Meissen 2021, by its code)."""
    lesion: LesionConfig = field(default_factory=LesionConfig)
    """How semi-synthetic lesions look, in cohorts that have them."""

    def __post_init__(self) -> None:
        check_skull_strip(self.skull_strip)
        low, high = self.percentiles
        if not 0 <= low < high <= 100:
            raise ConfigError(f"percentiles must be 0 <= low < high <= 100, were {low} and {high}")
        if not 0 < self.mask_threshold <= 1:
            raise ConfigError(f"mask_threshold must be in (0, 1], was {self.mask_threshold}")
        if not 0 <= self.min_brain_ml < self.max_brain_ml:
            raise ConfigError(
                "min_brain_ml must be in [0, max_brain_ml), were "
                f"{self.min_brain_ml:g} and {self.max_brain_ml:g}"
            )
        if not 0 <= self.max_cut < 1:
            raise ConfigError(f"max_cut must be in [0, 1), was {self.max_cut}")
        if self.grow_extent and self.max_cut:
            raise ConfigError("grow_extent and max_cut exclude each other: choose one")
        if not 0 < self.denoise_time_step <= 0.25 or self.denoise_iterations < 1:
            raise ConfigError(
                "denoise_time_step must be in (0, 0.25] and denoise_iterations >= 1, were "
                f"{self.denoise_time_step:g} and {self.denoise_iterations}"
            )
        if self.bias_shrink < 1:
            raise ConfigError(f"bias_shrink must be >= 1, was {self.bias_shrink}")
        if not 0.25 <= self.spacing_mm <= 8:
            raise ConfigError(f"spacing_mm must be in [0.25, 8], was {self.spacing_mm}")
        grid = self.extent.voxels(self.spacing_mm)[::-1]
        if any(not 1 <= n <= most for n, most in zip(self.shape, grid, strict=True)):
            raise ConfigError(
                f"shape (Z, Y, X) must be between 1 and {grid}, the extent at {self.spacing_mm} "
                f"mm, was {self.shape}: volumes are never enlarged"
            )

    @property
    def package(self) -> Package | None:
        """Of its skull stripper, where that is from outside of uadray."""
        ours = self.skull_strip in (*WAYS, *TOOLS)
        return None if ours else STRIPPERS.package(self.skull_strip)


Preset = Literal["none", "bengs2021"]
"""A paper whose counts are taken."""


PRESETS: dict[Preset, dict[str, tuple[int, int]]] = {
    "bengs2021": {
        "healthy": (1807, 201),
        "tumour": (133, 202),
        "stroke": (121, 183),
    }
}
"""Subjects in the parts, in their order, by kind of cohort (Bengs 2021, section 2.1)."""


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """How large the parts are, in subjects."""

    validation_share: float = 0.1
    """Of a healthy cohort (section 2.1: 201 of 2008)."""
    threshold_share: float = 0.4
    """Of a cohort with lesions (section 2.1: 133 of 335 and 121 of 304); 0 tests all of it."""
    split_count: int | None = None
    """Subjects in the validation part, or the threshold part, instead of the share; of a cohort
    with lesions it may be 0, which tests all of it."""
    test_count: int = 0
    """Subjects of a healthy cohort in a part `test`, which nothing learns from: evaluations count
    false alarms in them, and tell them from patients (`jobs/evaluate.py --controls`)."""
    stratify_by: tuple[str, ...] = (SCANNER,)
    """What the parts are alike in: `scanner`, and covariates such as `sex` or `age:40:60`, with the
    ages where ranges end."""
    preset: Preset = "none"
    """`bengs2021`: the paper's counts, for cohorts of its sizes: 2008 healthy subjects are split
    into 1807 and 201, 335 with tumours into 133 and 202, 304 with strokes into 121 and 183."""

    def __post_init__(self) -> None:
        if self.preset != "none" and self.split_count is not None:
            raise ConfigError("preset and split_count both say how large the parts are: give one")
        if self.split_count is not None and self.split_count < 0:
            raise ConfigError(f"split_count must be >= 0, was {self.split_count}")
        if self.test_count < 0:
            raise ConfigError(f"test_count must be >= 0, was {self.test_count}")
        if not 0 < self.validation_share < 1:
            raise ConfigError(f"validation_share must be in (0, 1), was {self.validation_share}")
        if not 0 <= self.threshold_share < 1:
            raise ConfigError(f"threshold_share must be in [0, 1), was {self.threshold_share}")
        for text in self.stratify_by:
            By.parse(text)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which of the scans that a layout finds go into the cohort."""

    include: tuple[str, ...] = ()
    """Ids of scans or subjects to keep; empty keeps all."""
    exclude: tuple[str, ...] = ()
    """Ids of scans or subjects to leave out."""
    hold_out: int = 0
    """Subjects set aside for another cohort, drawn by the seed."""
    held_out: bool = False
    """Take the subjects set aside instead of the others."""
    parts: Literal["all", "healthy", "lesioned"] = "all"
    """`healthy`: only scans without a lesion mask; `lesioned`: only those with one."""

    def __post_init__(self) -> None:
        if self.hold_out < 0:
            raise ConfigError(f"hold_out must be >= 0, was {self.hold_out}")


Redo = Literal["quarantined", "changed", "damaged"]
"""Which scans of a sealed cohort are prepared again."""


MAX_FAILURES = 0.25
"""More than this share of unusable scans is a wrong folder or setting, not bad luck."""


def check_numbers(*, seed: int, workers: int | None) -> None:
    """Refuse a seed or a number of workers that cannot be.

    Raises:
        ConfigError: it is out of its range.
    """
    if seed < 0:
        raise ConfigError(f"seed must be >= 0, was {seed}")
    if workers is not None and workers < 1:
        raise ConfigError(f"workers must be >= 1, was {workers}; leave it out for all CPUs")
