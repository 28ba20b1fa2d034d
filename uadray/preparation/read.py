"""Reading one scan with its masks, and refusing what cannot be used with a reason."""

import numpy as np
import scipy.ndimage as ndi

from uadray.errors import ScanError
from uadray.preparation.geometry import BRAIN_THRESHOLD, Volume, voxel_ml, voxel_sizes
from uadray.preparation.identity import image_digest
from uadray.preparation.intensity import CONTRAST, contrast_of, power_to
from uadray.preparation.layouts import Scan
from uadray.preparation.masks import read_share
from uadray.preparation.nifti import RawImage, read_image
from uadray.preparation.settings import DOUBT

RINGING = 0.25
"""A lowest value so far below 0, relative to the highest, is the ringing of an interpolation; one
further below is the scale (z-scores, an offset)."""

BACKGROUND_SHARE = 0.5
"""A value is the background's if at least this share of the voxels on the outer faces has it."""

COARSE_MM = 3.0
"""Voxels that the look at the contrast does with."""

ORDINARY = (2.0**-4, 2.0**24)
"""Ranges of a brain's intensities that all steps are sound for; some compare with small constants,
as ITK does, and would do nothing to values of 1e-8."""

RIM_MM, CORE_MM = 5.0, (10.0, 25.0)
"""How deep in the brain its rim ends, and where its white matter is looked for."""


def load_volume(scan: Scan, *, stripped: bool = True, least_lesion: float = 0.0) -> Volume:
    """Read a scan and its masks, and check that they can be used.

    What is not finite outside the brain becomes background. Intensities below 0 are clipped where
    they are an interpolation's ringing, and else all are shifted so that the brain's lowest is 0.
    What was assumed stands in the volume's notes.

    Args:
        scan: Where the files are.
        stripped: Whether a scan without a brain mask is without its skull: then brain is what
            differs from the background, its holes filled, its largest component. Otherwise its
            brain is still to be found, and all voxels count as brain.
        least_lesion: A lesion mask none of whose values reaches this is refused.

    Raises:
        ScanError: see `prepare_scan` in `steps`.
    """
    raw = read_image(scan.image, orientation=scan.orientation)
    notes = [scan.notes] if scan.notes else []
    notes += raw.notes
    finite = np.isfinite(raw.voxels)
    _check_contrast(scan.image, raw.voxels[finite] if not finite.all() else raw.voxels)
    image = raw.voxels
    if not finite.all():
        image = np.where(finite, image, _outside(image, finite))
    if scan.brain:
        share, mask_notes = read_share(scan.brain, raw, scan.image, least=BRAIN_THRESHOLD)
        brain = share > 0.5
        notes += mask_notes
        image, more = _shift_up(image, brain)
    elif stripped:
        image, brain, more = _find_stripped(scan.image, image)
    else:
        brain = np.ones(image.shape, bool)
        image, more = _shift_up(image, brain)
    notes += more
    if not brain.any():
        what = "no voxel is brain"
        if scan.brain:
            what = (
                f"the brain mask is empty: no value is above {BRAIN_THRESHOLD:g}, the largest is "
                f"{float(share.max()):.3g}; make it again"
            )
        raise ScanError(f"{scan.brain or scan.image}: {what}, or leave the scan out")
    notes += _check_finite(scan.image, finite, brain if scan.brain or stripped else finite)
    if scan.brain or stripped:
        _check_contrast(scan.image, image[brain], "its brain")
        notes += _doubt_contrast(image, brain, raw.affine, scan.modality)
    image, more = _ordinary(image, brain)
    notes += more
    lesion, more = _read_lesion(scan, raw, least_lesion)
    return Volume(
        image=image,
        brain=brain,
        lesion=lesion,
        affine=raw.affine,
        notes=(*notes, *more),
        image_digest=image_digest(raw.voxels, raw.affine),
        placing=raw.placing,
    )


def is_stripped(scan: Scan, max_ml: float) -> bool:
    """Whether a scan has no skull any more: all but its background fits into a brain of `max_ml`.

    Raises:
        ScanError: its file cannot be used.
    """
    raw = read_image(scan.image, orientation=scan.orientation)
    image = np.nan_to_num(raw.voxels)
    background = _background(_face_values(image))
    if background is None:
        return False
    return bool(np.count_nonzero(image != background) * voxel_ml(raw.affine) <= max_ml)


def read_nifti(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Read one NIfTI file that holds no patient's scan, such as a stroke mask to copy.

    Args:
        path: Local path or fsspec URL.

    Returns:
        The voxels as float32 (X, Y, Z), finite, and the affine, invertible.

    Raises:
        ScanError: the file cannot be used.
        OSError: a remote store does not answer: that is no fault of the scan.
    """
    raw = read_image(path)
    bad = raw.voxels.size - int(np.isfinite(raw.voxels).sum())
    if bad:
        raise ScanError(
            f"{path}: {bad} of {raw.voxels.size} voxels are NaN or infinite; mend the file"
        )
    return raw.voxels, raw.affine


def brain_of_stripped(image: np.ndarray) -> np.ndarray:
    """What is brain in a scan whose skull is gone: above 0, holes filled, largest component."""
    labels, count = ndi.label(image > 0)
    if count == 0:
        return np.zeros(image.shape, bool)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    largest = labels == sizes.argmax()
    # Holes are what does not touch the outside; three times as fast as binary_fill_holes.
    outside, _ = ndi.label(np.pad(~largest, 1, constant_values=True))
    return np.asarray((outside != outside[0, 0, 0])[1:-1, 1:-1, 1:-1])


def _check_contrast(path: str, values: np.ndarray, what: str = "it") -> None:
    if values.size == 0:
        raise ScanError(f"{path}: expected an image, but no voxel is finite; export it again")
    low, high = float(values.min()), float(values.max())
    if low == high:
        value = "all zeros" if high == 0 else f"{high:g} everywhere"
        raise ScanError(f"{path}: expected an image, but {what} is {value}; export it again")


def _check_finite(path: str, finite: np.ndarray, brain: np.ndarray) -> list[str]:
    """Refuse what is not finite in the brain, and note it elsewhere."""
    bad = finite.size - int(finite.sum())
    if not bad:
        return []
    inside = int((brain & ~finite).sum())
    if inside:
        raise ScanError(
            f"{path}: {inside} of {int(brain.sum())} voxels of the brain are NaN or infinite; mend "
            "the file"
        )
    return [f"{bad} voxels outside the brain are NaN or infinite, taken as background"]


def _face_values(image: np.ndarray) -> np.ndarray:
    """The voxels on the six outer faces of a volume, one after the other."""
    by_axis = [np.moveaxis(image, axis, 0) for axis in range(3)]
    return np.concatenate([planes[side].ravel() for planes in by_axis for side in (0, -1)])


def _background(values: np.ndarray) -> float | None:
    """The value that most voxels of the outer faces have, or None where no value has enough."""
    distinct, counts = np.unique(values, return_counts=True)
    if counts.size == 0 or counts.max() < BACKGROUND_SHARE * values.size:
        return None
    return float(distinct[counts.argmax()])


def _outside(image: np.ndarray, finite: np.ndarray) -> np.float32:
    """What to take for voxels that are not finite: the background's value, or the lowest."""
    faces = _face_values(np.where(finite, image, np.float32(np.nan)))
    background = _background(faces[np.isfinite(faces)])
    lowest = min(0.0, float(image[finite].min()))
    return np.float32(lowest if background is None else background)


def _shift_up(image: np.ndarray, brain: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Bring intensities below 0 inside the brain to 0 and more."""
    low = float(image[brain].min()) if brain.any() else 0.0
    if low >= 0:
        return image, []
    if -low < RINGING * float(image[brain].max()):
        return image.clip(0), [f"intensities below 0 (to {low:.3g}) clipped"]
    return image - np.float32(low), [f"intensities shifted up by {-low:.3g}: some were below 0"]


def _ordinary(image: np.ndarray, brain: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Bring intensities of an unusual unit to an ordinary range, by a power of two: exactly."""
    contrast = contrast_of(image[brain])
    if ORDINARY[0] <= contrast <= ORDINARY[1] or contrast == 0 or not np.isfinite(contrast):
        return image, []
    power = power_to(CONTRAST, contrast)
    # In two halves: 2 ** 140 is no float32.
    scaled = np.ldexp(np.ldexp(image, power // 2), power - power // 2)
    return scaled, [f"intensities of a range of {contrast:.2g} multiplied by 2^{power}"]


def _find_stripped(path: str, image: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Brain of a scan whose skull is gone, and the scan with a background of 0."""
    low, high = float(image.min()), float(image.max())
    background = _background(_face_values(image))
    if low < 0 and -low < RINGING * high:
        # What is no larger than the ringing may be ringing as well.
        clipped = image.clip(0)
        note = f"intensities below 0 (to {low:.3g}) clipped"
        return clipped, brain_of_stripped(clipped > -low), [note]
    if low >= 0 and not background:
        return image, brain_of_stripped(image), []
    if background is None:
        raise ScanError(
            f"{path}: has intensities from {low:.3g} to {high:.3g} and no constant background, so "
            "that its brain cannot be recognised; give a brain mask, or pass --skull-strip deepbet"
        )
    brain = brain_of_stripped(image != background)
    notes = []
    if background:
        notes.append(f"background is {background:g}, not 0")
    if background >= high:
        notes.append(f"{DOUBT}the background is brighter than the brain: the contrast is inverted")
    shifted, more = _shift_up(image, brain)
    return np.where(brain, shifted, np.float32(0)), brain, [*notes, *more]


def _doubt_contrast(
    image: np.ndarray, brain: np.ndarray, affine: np.ndarray, modality: str
) -> list[str]:
    """Notes where a scan does not look like its modality."""
    notes = []
    outside = image[~brain]
    inside = float(np.median(image[brain]))
    if outside.size and float(np.median(outside)) > inside:
        notes.append(f"{DOUBT}outside of the brain it is brighter than inside: is it inverted?")
    if not modality.upper().startswith("T1"):
        return notes
    step = tuple(
        slice(None, None, int(n)) for n in np.maximum(1, np.rint(COARSE_MM / voxel_sizes(affine)))
    )
    spacing = voxel_sizes(affine) * [s.step for s in step]
    coarse, inner = image[step], brain[step]
    depth = ndi.distance_transform_edt(np.pad(inner, 1), sampling=spacing)[1:-1, 1:-1, 1:-1]
    rim = coarse[inner & (depth <= RIM_MM)]
    core = coarse[(depth > CORE_MM[0]) & (depth <= CORE_MM[1])]
    if rim.size and core.size and np.median(rim) > np.median(core):
        notes.append(
            f"{DOUBT}its rim is brighter than its core, unlike a {modality}: is it inverted, of "
            "another modality, or is skull left?"
        )
    return notes


def _read_lesion(scan: Scan, raw: RawImage, least: float) -> tuple[np.ndarray | None, list[str]]:
    """The share of each voxel that is lesion by any of the scan's masks."""
    if not scan.lesion:
        return None, []
    lesion, notes = read_share(scan.lesion, raw, scan.image, scan.lesion_labels, least=least)
    for path in scan.more_lesions:
        share, more = read_share(path, raw, scan.image, scan.lesion_labels, least=least)
        lesion = np.maximum(lesion, share)
        notes += more
    if not lesion.any():
        named = f" of label {' or '.join(map(str, scan.lesion_labels))}"
        raise ScanError(
            f"{scan.lesion}: expected a lesion{named if scan.lesion_labels else ''}, but the mask "
            "is empty; leave the scan out or prepare it as a healthy one"
        )
    return lesion, notes
