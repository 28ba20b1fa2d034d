"""Affine registration to MNI152: where a brain lies in the template, and sampling it there."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import nibabel as nib
import numpy as np
import scipy.ndimage as ndi
import SimpleITK as sitk

from uadray.errors import ScanError
from uadray.preparation.geometry import BRAIN_THRESHOLD, Volume, brain_box, fit_extent, voxel_sizes
from uadray.preparation.intensity import one_thread
from uadray.preparation.settings import Extent

MARGIN = 4
"""Voxels around a brain that was turned."""

COARSE_MM, FINE_MM = 4.0, 2.0
"""Voxels of the registration: 4 mm are enough to place a lesion and take seconds; a cohort that is
compared voxel by voxel goes on at 2 mm."""

SMOOTHING = 0.75
"""Standard deviation of the smoothing before it samples so coarsely, in those voxels."""

MIN_OVERLAP = 0.8
"""Least Dice of a registered brain and the template's; below, the registration went astray."""


def register(
    volume: Volume, *, spacing_mm: float, extent: Extent, grow: bool, max_cut: float
) -> Volume:
    """Sample a brain on a grid around the template's, which all scans then share.

    The grid is isotropic, along the template's axes, with the middle of the template brain's box
    in its middle: the image is interpolated once, cubic and clamped, the masks linearly (Meissen
    2021, section 3.2, with MNI152 for SRI24 and each contrast registered by itself, since mutual
    information does not need the same one).

    Args:
        volume: A canonical brain without its skull, in the scanner's millimetres.
        spacing_mm: Edge length of the new voxels.
        extent: Of the grid.
        grow: See `fit_extent`.
        max_cut: Likewise.

    Returns:
        The volume in the template's millimetres; `world_to_scanner` leads back.

    Raises:
        ScanError: the registration failed, or the brain is larger than the extent.
    """
    to_mni = register_to_mni(volume, voxels_mm=(COARSE_MM, FINE_MM))
    centre = _template_centre()
    needed, lost = _brain_on_template(volume, to_mni @ volume.affine, extent)
    fitted, notes = fit_extent(
        extent, np.ceil(needed / spacing_mm), lost, spacing_mm, grow=grow, max_cut=max_cut
    )
    shape = fitted.voxels(spacing_mm)
    grid = np.diag([spacing_mm] * 3 + [1.0])
    grid[:3, 3] = centre - (np.array(shape) - 1) / 2 * spacing_mm
    moved = _sampled(volume, to_mni, grid, shape)
    _check_overlap(moved.brain, moved.affine)
    return replace(moved, notes=(*volume.notes, *notes))


def straighten(volume: Volume, *, spacing_mm: float) -> Volume:
    """Turn a brain to the template's pose, and sample it on a grid along the template's axes.

    Size and shape stay as they are: of the affine registration only the rotation is taken. The
    image is interpolated once, as in `register`.

    Args:
        volume: A canonical brain without its skull, in the scanner's millimetres.
        spacing_mm: Edge length of the new voxels.

    Returns:
        The volume in millimetres that are turned like the template's; `world_to_scanner` leads
        back.

    Raises:
        ScanError: the registration failed.
    """
    to_mni = register_to_mni(volume)
    _check_overlap(volume.brain, to_mni @ volume.affine)
    places = np.argwhere(volume.brain) @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    turned = _rotation_about(to_mni, places.mean(axis=0))
    mm = places @ turned[:3, :3].T + turned[:3, 3]
    low, high = mm.min(axis=0), mm.max(axis=0)
    x, y, z = (np.ceil((high - low) / spacing_mm) + 1 + 2 * MARGIN).astype(int).tolist()
    grid = np.diag([spacing_mm] * 3 + [1.0])
    grid[:3, 3] = low - MARGIN * spacing_mm
    moved = _sampled(volume, turned, grid, (x, y, z))
    degrees = float(np.rad2deg(np.arccos(np.clip((np.trace(turned[:3, :3]) - 1) / 2, -1, 1))))
    return replace(moved, notes=(*volume.notes, f"turned by {degrees:.0f} degrees to the template"))


def _rotation_about(affine: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """The rotation nearest to an affine, (4, 4), which takes a place where the affine takes it."""
    left, _, right = np.linalg.svd(affine[:3, :3])
    turned = np.eye(4)
    turned[:3, :3] = left @ right
    turned[:3, 3] = affine[:3, :3] @ centre + affine[:3, 3] - turned[:3, :3] @ centre
    return turned


def _sampled(
    volume: Volume, move: np.ndarray, grid: np.ndarray, shape: tuple[int, int, int]
) -> Volume:
    """A volume moved by an affine and interpolated on a grid: cubic and clamped, masks linear."""
    back = np.linalg.inv(move @ volume.affine) @ grid

    def sample(array: np.ndarray, order: int) -> np.ndarray:
        return np.asarray(
            ndi.affine_transform(
                array.astype(np.float32), back[:3, :3], back[:3, 3], shape, order=order
            )
        )

    brain = sample(volume.brain, 1) >= BRAIN_THRESHOLD
    image = sample(volume.image, 3).clip(volume.image.min(), volume.image.max())
    return replace(
        volume,
        image=np.where(brain, image, np.float32(0)),
        brain=brain,
        lesion=None if volume.lesion is None else sample(volume.lesion, 1),
        affine=grid,
        world_to_scanner=volume.world_to_scanner @ np.linalg.inv(move),
    )


def _brain_on_template(
    volume: Volume, affine: np.ndarray, extent: Extent
) -> tuple[np.ndarray, float]:
    """Edges in mm of the box about the template's centre that holds it, (3,); its share outside."""
    mm = np.argwhere(volume.brain) @ affine[:3, :3].T + affine[:3, 3]
    edges = 2 * np.abs(mm - _template_centre())
    return edges.max(axis=0), float((edges > extent.mm).any(axis=1).mean())


def _check_overlap(brain: np.ndarray, to_mni: np.ndarray) -> None:
    """Refuse a brain whose voxels, taken to MNI152 by an affine, are not where its brain is."""
    template = _template_brain()
    grid = np.linalg.inv(template.affine) @ to_mni
    share = ndi.affine_transform(
        template.brain.astype(np.float32), grid[:3, :3], grid[:3, 3], brain.shape, order=1
    )
    expected = share > BRAIN_THRESHOLD
    dice = 2.0 * float((expected & brain).sum()) / float(expected.sum() + brain.sum())
    if dice < MIN_OVERLAP:
        raise ScanError(
            f"the registered brain overlaps the template's by a Dice of {dice:.2f}, expected at "
            f"least {MIN_OVERLAP}: the registration failed; look at the scan's orientation and "
            "brain mask, or leave it out"
        )


def register_to_mni(volume: Volume, *, voxels_mm: Sequence[float] = (COARSE_MM,)) -> np.ndarray:
    """The affine from a volume's millimetres to those of MNI152, by mutual information.

    Args:
        volume: A brain without its skull, in any contrast.
        voxels_mm: Edge length of the voxels on each level, from coarse to fine.

    Returns:
        float64 (4, 4). The same volume gives the same bits: one thread, every voxel sampled.

    Raises:
        ScanError: the two images come apart.
    """
    brain = volume.image * volume.brain
    start = sitk.CenteredTransformInitializer(
        _at_voxels(brain, volume.affine, voxels_mm[0]),
        _template(voxels_mm[0]),
        sitk.AffineTransform(3),
        sitk.CenteredTransformInitializerFilter.MOMENTS,
    )
    with one_thread():
        for mm in voxels_mm:
            method = sitk.ImageRegistrationMethod()
            method.SetMetricAsMattesMutualInformation(numberOfHistogramBins=32)
            method.SetMetricSamplingStrategy(method.NONE)
            method.SetInterpolator(sitk.sitkLinear)
            method.SetOptimizerAsRegularStepGradientDescent(
                learningRate=0.5 * mm, minStep=0.01, numberOfIterations=150, relaxationFactor=0.6
            )
            method.SetOptimizerScalesFromPhysicalShift()
            method.SetInitialTransform(start, inPlace=True)
            try:
                method.Execute(_at_voxels(brain, volume.affine, mm), _template(mm))
            except RuntimeError as error:
                reason = str(error).strip().splitlines()[-1]
                raise ScanError(
                    f"the registration to MNI152 failed ({reason}); look at the scan's orientation "
                    "and brain mask, or leave it out"
                ) from None
    affine = np.eye(4)
    origin = np.array(start.TransformPoint((0.0, 0.0, 0.0)))
    for axis in range(3):
        unit = np.eye(3)[axis].tolist()
        affine[:3, axis] = np.array(start.TransformPoint(unit)) - origin
    affine[:3, 3] = origin
    return affine


def _at_voxels(image: np.ndarray, affine: np.ndarray, mm: float) -> sitk.Image:
    """A smoothed image with coarse voxels; its physical space is RAS, as everywhere here."""
    spacing = voxel_sizes(affine)
    smooth = ndi.gaussian_filter(image.astype(np.float32), SMOOTHING * mm / spacing, truncate=3.0)
    step = np.maximum(1, np.rint(mm / spacing)).astype(int)
    small = sitk.GetImageFromArray(
        np.ascontiguousarray(smooth[tuple(slice(0, None, s) for s in step)].T)
    )
    small.SetSpacing((spacing * step).tolist())
    small.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    small.SetOrigin(affine[:3, 3].tolist())
    return small


@lru_cache(maxsize=1)
def _template_brain() -> Volume:
    """The MNI152 brain without its skull (Fonov et al. 2011), as nilearn ships it."""
    from nilearn.datasets import load_mni152_template

    template: nib.Nifti1Image = load_mni152_template(resolution=1)
    image = np.asarray(template.dataobj, np.float32)
    return Volume(image=image, brain=image > 0, lesion=None, affine=np.array(template.affine))


@lru_cache(maxsize=2)
def _template(mm: float) -> sitk.Image:
    template = _template_brain()
    return _at_voxels(template.image, template.affine, mm)


@lru_cache(maxsize=1)
def _template_centre() -> np.ndarray:
    """The middle of the template brain's box, in MNI millimetres, (3,)."""
    template = _template_brain()
    box = brain_box(template.brain)
    middle = np.array([(s.start + s.stop - 1) / 2 for s in box])
    return np.asarray(template.affine[:3, :3] @ middle + template.affine[:3, 3])
