"""From one scan's files to the arrays that a cohort stores (Bengs 2021, section 2.1).

`pipeline` lists the steps with their parameters in order; `prepare_scan` runs them on one scan.
Each step is a pure function of a `Volume`.
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from uadray.config import from_json, to_json
from uadray.errors import ConfigError, ScanError
from uadray.phantom import make_subject
from uadray.prepare.geometry import (
    DOUBT,
    Extent,
    Volume,
    brain_best,
    crop_to_brain,
    downsample,
    pad_to_extent,
    resample,
    resize_nearest,
    to_canonical,
    voxel_ml,
)
from uadray.prepare.intensity import correct_bias, denoise, standardise
from uadray.prepare.layouts import PHANTOM_SCHEME, Scan
from uadray.prepare.lesions import LesionConfig, insert_lesion, read_mask
from uadray.prepare.read import is_stripped, load_volume
from uadray.prepare.register import Registration, register, straighten
from uadray.prepare.skull import TOOLS, SkullStrip, strip

MIN_INSIDE = 0.1
"""Least share of a lesion inside the brain, where no voxel reaches the threshold: of one that lies
outside no voxel is kept."""


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Everything that decides how a scan becomes a volume of the store."""

    shape: tuple[int, int, int] = (64, 64, 64)
    """(Z, Y, X) of a volume (section 2.1)."""
    spacing_mm: float = 1.0
    """Edge length of the isotropic voxels that all steps but the last work on (section 2.1)."""
    extent: Extent = field(default_factory=Extent)
    """The box that brains are padded to."""
    skull_strip: SkullStrip = "auto"
    """How the brain is separated from the rest. `mask`: by the mask that comes with the scan, which
    must have one. `none`: the scan is stripped, and brain is what is above 0. `auto`: `mask` where
    there is one, else `none`. `deepbet` and `robex` look for the brain on T1 scans, whatever mask
    there is (pip install -e '.[skullstrip]'). `robex-if-needed`: `auto` where a scan has no skull
    any more, else `robex` (Meissen 2021, section 3.2)."""
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


@dataclass(frozen=True, kw_only=True)
class PreparedVolume:
    """What the store holds of one scan."""

    image: np.ndarray
    """float32 (Z, Y, X) in [0, 1], exactly 0 outside the brain."""
    brain: np.ndarray
    """bool (Z, Y, X)."""
    lesion: np.ndarray | None
    """bool (Z, Y, X), inside the brain; None where the scan has no mask."""
    affine: np.ndarray
    """float64 (4, 4), from the store's voxel index (x, y, z) to the scanner's millimetres."""
    scanner: str
    """As the layout knew it, or the phantom's."""
    notes: str
    """What a reader must know."""
    image_digest: str = ""
    """Of the scan's voxels, see `identity.image_digest`; empty for a phantom."""

    @property
    def brain_ml(self) -> float:
        """Volume of the brain mask in mL."""
        return float(self.brain.sum()) * voxel_ml(self.affine)

    @property
    def lesion_ml(self) -> float:
        """Volume of the lesion mask in mL; 0 where there is none."""
        return 0.0 if self.lesion is None else float(self.lesion.sum()) * voxel_ml(self.affine)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step with its parameters."""

    name: str
    """Of the function."""
    parameters: dict[str, Any]
    """Its keyword arguments as JSON values."""
    apply: Callable[[Volume], Volume]
    """The function with its arguments bound."""


def _step(function: Callable[..., Volume], **parameters: Any) -> Step:
    return Step(
        name=function.__name__,
        parameters=to_json(parameters),
        apply=partial(function, **parameters),
    )


def pipeline(config: PrepareConfig, lesion: Step | None = None) -> list[Step]:
    """The steps in order.

    Registration comes right after the stripping, in the scan's own voxels, so that every volume is
    interpolated once only, on whichever grid.

    Args:
        config: Their parameters.
        lesion: The step that inserts a semi-synthetic lesion, bound to its mask, or None. It comes
            before the denoising, so that its tissue is treated as all other.
    """
    find_brain = _step(
        strip,
        method=config.skull_strip,
        min_ml=config.min_brain_ml,
        max_ml=config.max_brain_ml,
    )
    flow = _step(denoise, time_step=config.denoise_time_step, iterations=config.denoise_iterations)
    intensity = [
        *([lesion] if lesion else []),
        *([flow] if config.denoise else []),
        *([_step(correct_bias, shrink=config.bias_shrink)] if config.correct_bias else []),
        _step(standardise, percentiles=config.percentiles),
    ]
    box: dict[str, Any] = {"extent": config.extent, "grow": config.grow_extent}
    box["max_cut"] = config.max_cut
    if config.register == "mni152":
        own_pose = []
        placed = [find_brain, _step(register, spacing_mm=config.spacing_mm, **box)]
    else:
        own_pose = [_step(crop_to_brain), _step(pad_to_extent, **box)]
        placed = [_step(resample, spacing_mm=config.spacing_mm), find_brain]
        if config.register == "rigid":
            placed = [find_brain, _step(straighten, spacing_mm=config.spacing_mm)]
    # Steps of their own names, so that one is never taken for the other.
    down = _step(downsample if config.resize == "average" else resize_nearest, shape=config.shape)
    return [_step(to_canonical), *placed, *intensity, *own_pose, down]


def recorded_config(plan: Mapping[str, Any]) -> PrepareConfig:
    """The settings that a cohort was prepared with, from its plan.

    Raises:
        ConfigError: the plan is of another version of this package.
    """
    config: PrepareConfig = from_json(PrepareConfig, plan["config"])
    return config


def record(config: PrepareConfig, *, lesions: bool) -> list[dict[str, Any]]:
    """The steps as JSON values, for the store's plan."""
    lesion = Step(
        name=insert_lesion.__name__,
        parameters={"mask": "of each scan", "config": to_json(config.lesion.resolved())},
        apply=lambda volume: volume,
    )
    steps = pipeline(config, lesion if lesions else None)
    return [{"step": step.name, **step.parameters} for step in steps]


Watch = Callable[[str, Volume], None]
"""Called with the name of what has just been done and the volume as it is then."""


def prepare_scan(
    scan: Scan, config: PrepareConfig, watch: Watch = lambda name, volume: None
) -> PreparedVolume:
    """Read one scan and take it through all steps.

    Args:
        scan: Where its files are.
        config: The steps' parameters.
        watch: Called after the reading (`read`, the volume as in the file) and after each step;
            not for phantoms, which need none.

    Raises:
        ScanError: it cannot be used; the message names the file, what was expected, what came and
            what to do.
    """
    if scan.image.startswith(PHANTOM_SCHEME):
        return _prepare_phantom(scan, config)
    if config.skull_strip == "mask" and not scan.brain:
        raise ScanError(
            f"{scan.image}: no brain mask comes with it, and skull_strip is mask; give one, or "
            "choose another --skull-strip"
        )
    if config.skull_strip == "robex-if-needed":
        stripped = is_stripped(scan, config.max_brain_ml)
        config = replace(config, skull_strip="auto" if stripped else "robex")
    if config.skull_strip not in ("auto", "mask"):
        scan = replace(scan, brain="")
    # A small lesion in a mask that was interpolated may reach one half and no higher threshold.
    least = min(config.mask_threshold, 0.5)
    volume = load_volume(scan, stripped=config.skull_strip not in TOOLS, least_lesion=least)
    watch("read", volume)
    lesion = _lesion_step(scan, config.lesion) if scan.synthetic_lesion else None
    try:
        for step in pipeline(config, lesion):
            volume = step.apply(volume)
            watch(step.name, volume)
    except ScanError as error:
        raise ScanError(f"{scan.image}: {error}") from None
    return _finish(scan, volume, config)


def _finish(scan: Scan, volume: Volume, config: PrepareConfig) -> PreparedVolume:
    """Cut the lesion mask at its threshold and turn the axes to (Z, Y, X)."""
    brain = np.ascontiguousarray(volume.brain.T)
    lesion, notes = None, volume.notes
    if volume.lesion is not None:
        share = volume.lesion
        mask = (share >= config.mask_threshold) & volume.brain
        if not mask.any():
            best = brain_best(share, volume.brain)
            if share[best] <= 0 or share[volume.brain].sum() < MIN_INSIDE * share.sum():
                raise ScanError(
                    f"{scan.lesion or scan.synthetic_lesion}: no voxel of {config.shape} is lesion "
                    f"to {config.mask_threshold:g} inside the brain: the lesion lies outside of "
                    "it; look at the masks of lesion and brain, or leave the scan out"
                )
            mask[best] = True
            notes = (*notes, f"{DOUBT}{_kept_one(float(share[best]), config)}")
        lesion = np.ascontiguousarray(mask.T)
    return PreparedVolume(
        image=np.where(brain, volume.image.T, np.float32(0)).clip(0.0, 1.0),
        brain=brain,
        lesion=lesion,
        affine=volume.scanner_affine,
        scanner=scan.scanner,
        notes="; ".join(notes),
        image_digest=volume.image_digest,
    )


def _kept_one(most: float, config: PrepareConfig) -> str:
    return (
        f"no voxel is lesion to {config.mask_threshold:g}: the one that is most so "
        f"({most:.2g}) is kept alone"
    )


def _lesion_step(scan: Scan, config: LesionConfig) -> Step:
    mask = read_mask(scan.synthetic_lesion, config.placement)
    seed = (config.lesion_seed, zlib.crc32(scan.id.encode()))
    return Step(
        name=insert_lesion.__name__,
        parameters={"mask": scan.synthetic_lesion, "config": to_json(config.resolved())},
        apply=partial(insert_lesion, mask=mask, seed=seed, config=config),
    )


def _prepare_phantom(scan: Scan, config: PrepareConfig) -> PreparedVolume:
    """Make an invented subject on the store's grid; it needs none of the steps."""
    kind, seed = scan.image.removeprefix(PHANTOM_SCHEME).split("/")
    if len(set(config.shape)) != 1 or config.extent != Extent():
        raise ConfigError(
            f"phantoms are made on N x N x N voxels over {Extent().mm.tolist()} mm, not on "
            f"{config.shape} over {config.extent.mm.tolist()}: use --size N and no --extent"
        )
    subject = make_subject(kind, int(seed), config.shape[0])  # type: ignore[arg-type]
    return PreparedVolume(
        image=subject.image,
        brain=subject.brain,
        lesion=subject.lesion if scan.lesioned else None,
        affine=subject.affine,
        scanner=subject.scanner,
        notes=f"phantom, {kind}",
    )
