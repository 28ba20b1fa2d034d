"""From one scan's files to the arrays that a cohort stores (Bengs 2021, section 2.1).

`pipeline` lists the steps with their parameters in order; `prepare_scan` runs them on one scan.
Each step is a pure function of a `Volume`.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import SimpleITK as sitk

from uadray.config import to_json
from uadray.errors import ConfigError, ScanError
from uadray.prepare.geometry import (
    Extent,
    Volume,
    crop_to_brain,
    downsample,
    pad_to_extent,
    resample,
    to_canonical,
    voxel_ml,
)
from uadray.prepare.layouts import PHANTOM_SCHEME, Scan
from uadray.prepare.lesions import StrokeConfig, StrokeMask, insert_stroke
from uadray.prepare.phantom import make_subject
from uadray.prepare.read import load_volume, read_nifti


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Everything that decides how a scan becomes a volume of the store."""

    shape: tuple[int, int, int] = (64, 64, 64)
    """(Z, Y, X) of a volume (section 2.1)."""
    spacing_mm: float = 1.0
    """Edge length of the isotropic voxels that all steps but the last work on (section 2.1)."""
    extent: Extent = field(default_factory=Extent)
    """The box that brains are padded to."""
    denoise: bool = True
    """Curvature flow, as the 2D studies that the paper follows."""
    denoise_time_step: float = 0.125
    """Of the curvature flow; the paper names none, both public codes of its line use this."""
    denoise_iterations: int = 3
    """Of the curvature flow; likewise."""
    percentiles: tuple[float, float] = (1.0, 99.0)
    """Of the intensities inside the brain: they become 0 and 1. The paper says only
    "standardization"; its authors' later code does this, inside the mask."""
    mask_threshold: float = 0.5
    """Least share of a voxel that is lesion where the voxel counts as lesion, in (0, 1]."""
    stroke: StrokeConfig = field(default_factory=StrokeConfig)
    """How semi-synthetic strokes look, in cohorts that have them."""

    def __post_init__(self) -> None:
        low, high = self.percentiles
        if not 0 <= low < high <= 100:
            raise ConfigError(f"percentiles must be 0 <= low < high <= 100, were {low} and {high}")
        if not 0 < self.mask_threshold <= 1:
            raise ConfigError(f"mask_threshold must be in (0, 1], was {self.mask_threshold}")
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


def strip(volume: Volume) -> Volume:
    """Zero outside the brain mask."""
    return replace(volume, image=np.where(volume.brain, volume.image, np.float32(0)))


def denoise(volume: Volume, *, time_step: float, iterations: int) -> Volume:
    """Smooth by curvature flow, which keeps edges (Sethian 1996; SimpleITK)."""
    image = sitk.GetImageFromArray(volume.image.T)
    image.SetSpacing(volume.spacing.tolist())
    smooth = sitk.GetArrayFromImage(
        sitk.CurvatureFlow(image, timeStep=time_step, numberOfIterations=iterations)
    )
    return replace(volume, image=np.ascontiguousarray(smooth.T))


def standardise(volume: Volume, *, percentiles: tuple[float, float]) -> Volume:
    """Map two percentiles of the brain's intensities to 0 and 1, clip, and zero the outside.

    Raises:
        ScanError: the brain has a single intensity between the percentiles.
    """
    low, high = np.percentile(volume.image[volume.brain], percentiles)
    if not high > low:
        raise ScanError(
            f"percentiles {percentiles} of the brain are both {low:g}: the scan has no contrast"
        )
    scaled = np.clip((volume.image - low) / (high - low), 0.0, 1.0)
    return replace(volume, image=np.where(volume.brain, scaled, 0.0).astype(np.float32))


def pipeline(config: PrepareConfig, stroke: Step | None = None) -> list[Step]:
    """The steps in order.

    Args:
        config: Their parameters.
        stroke: The step that inserts a semi-synthetic stroke, bound to its mask, or None. It comes
            before the denoising, so that its tissue is treated as all other.
    """
    flow = _step(denoise, time_step=config.denoise_time_step, iterations=config.denoise_iterations)
    return [
        _step(to_canonical),
        _step(resample, spacing_mm=config.spacing_mm),
        _step(strip),
        *([stroke] if stroke else []),
        *([flow] if config.denoise else []),
        _step(standardise, percentiles=config.percentiles),
        _step(crop_to_brain),
        _step(pad_to_extent, extent=config.extent),
        _step(downsample, shape=config.shape),
    ]


def record(config: PrepareConfig, *, strokes: bool) -> list[dict[str, Any]]:
    """The steps as JSON values, for the store's plan."""
    stroke = Step(
        name=insert_stroke.__name__,
        parameters={"mask": "of each scan", "config": to_json(config.stroke)},
        apply=lambda volume: volume,
    )
    steps = pipeline(config, stroke if strokes else None)
    return [{"step": step.name, **step.parameters} for step in steps]


def prepare_scan(scan: Scan, config: PrepareConfig) -> PreparedVolume:
    """Read one scan and take it through all steps.

    Args:
        scan: Where its files are.
        config: The steps' parameters.

    Raises:
        ScanError: it cannot be used; the message names the file, what was expected, what came and
            what to do.
    """
    if scan.image.startswith(PHANTOM_SCHEME):
        return _prepare_phantom(scan, config)
    volume = load_volume(scan)
    stroke = _stroke_step(scan, config.stroke) if scan.synthetic_lesion else None
    try:
        for step in pipeline(config, stroke):
            volume = step.apply(volume)
    except ScanError as error:
        raise ScanError(f"{scan.image}: {error}") from None
    return _finish(scan, volume, config)


def _finish(scan: Scan, volume: Volume, config: PrepareConfig) -> PreparedVolume:
    """Cut the lesion mask at its threshold and turn the axes to (Z, Y, X)."""
    brain = np.ascontiguousarray(volume.brain.T)
    lesion = None
    if volume.lesion is not None:
        lesion = (config.mask_threshold <= volume.lesion.T) & brain
        if not lesion.any():
            raise ScanError(
                f"{scan.lesion or scan.synthetic_lesion}: no voxel of {config.shape} is lesion to "
                f"{config.mask_threshold:g} inside the brain: the lesion is too small for this "
                "grid; use a finer --shape, a lower --mask-threshold, or leave the scan out"
            )
    notes = list(volume.notes)
    if name := scan.synthetic_lesion.rsplit("/", 1)[-1].removesuffix(".nii.gz"):
        notes.append(f"semi-synthetic stroke from {name}")
    return PreparedVolume(
        image=np.where(brain, volume.image.T, np.float32(0)).clip(0.0, 1.0),
        brain=brain,
        lesion=lesion,
        affine=volume.affine,
        scanner=scan.scanner,
        notes="; ".join(notes),
    )


def _stroke_step(scan: Scan, config: StrokeConfig) -> Step:
    share, affine = read_nifti(scan.synthetic_lesion)
    mask = StrokeMask(share=(share > 0.5).astype(np.float32), affine=affine)
    if not mask.share.any():
        raise ScanError(f"{scan.synthetic_lesion}: the stroke mask is empty; choose another one")
    seed = (config.lesion_seed, zlib.crc32(scan.id.encode()))
    return Step(
        name=insert_stroke.__name__,
        parameters={"mask": scan.synthetic_lesion, "config": to_json(config)},
        apply=partial(insert_stroke, mask=mask, seed=seed, config=config),
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
