"""From one scan's files to the arrays that a cohort stores (Bengs 2021, section 2.1).

`pipeline` lists the steps with their parameters in order; `prepare_scan` runs them on one scan.
Each step is a pure function of a `Volume`.
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from uadray.config import from_json, to_json
from uadray.errors import ConfigError, ScanError
from uadray.phantom import make_subject
from uadray.preparation.geometry import (
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
from uadray.preparation.intensity import correct_bias, denoise, standardise
from uadray.preparation.layouts import PHANTOM_SCHEME, Scan, read_phantom_url
from uadray.preparation.lesions import insert_lesion, read_mask
from uadray.preparation.read import is_stripped, load_volume
from uadray.preparation.register import register, straighten
from uadray.preparation.settings import (
    DOUBT,
    WAYS,
    Extent,
    LesionConfig,
    PrepareConfig,
)
from uadray.preparation.skull import strip

MIN_INSIDE = 0.1
"""Least share of a lesion inside the brain, where no voxel reaches the threshold: of one that lies
outside no voxel is kept."""


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
    volume = load_volume(scan, stripped=config.skull_strip in WAYS, least_lesion=least)
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
    kind, seed, version = read_phantom_url(scan.image)
    if len(set(config.shape)) != 1 or config.extent != Extent():
        raise ConfigError(
            f"phantoms are made on N x N x N voxels over {Extent().mm.tolist()} mm, not on "
            f"{config.shape} over {config.extent.mm.tolist()}: use --size N and no --extent"
        )
    subject = make_subject(kind, seed, config.shape[0], version=version)  # type: ignore[arg-type]
    return PreparedVolume(
        image=subject.image,
        brain=subject.brain,
        lesion=subject.lesion if scan.lesioned else None,
        affine=subject.affine,
        scanner=subject.scanner,
        notes=f"phantom, {kind}",
    )
