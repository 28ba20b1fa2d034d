"""Semi-synthetic lesions: a real lesion's outline on a real healthy brain, with exact truth.

Real lesioned scans with public masks are rare, and phantoms are not real anatomy. In between, the
mask of a real stroke, tumour or scatter of MS lesions is mapped onto a healthy subject's brain, and
the tissue inside is made darker or brighter by a textured factor of its own intensity, so that its
structure shows through. Figures made with it are to be called semi-synthetic.
"""

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import scipy.ndimage as ndi

from uadray import files
from uadray.errors import ConfigError, ScanError
from uadray.preparation.geometry import Volume, brain_best, to_canonical, voxel_sizes
from uadray.preparation.layouts import Scan
from uadray.preparation.layouts.listing import LeftOut, Listing
from uadray.preparation.layouts.naming import words_of
from uadray.preparation.layouts.scans import find_files, stem
from uadray.preparation.lesion_shapes import depth_mm, keep_components, push_outward
from uadray.preparation.read import read_nifti
from uadray.preparation.register import register_to_mni
from uadray.preparation.settings import LesionConfig, Placement, number

MODALITIES = {
    "t1-dark": ("T1w", "T1ce"),
    "t1-bright": ("T1w", "T1ce"),
    "flair-bright": ("FLAIR",),
}
"""Scans that a contrast makes sense on."""


FULL_PERCENTILE = 99.9
"""Of the brain's intensities: lesions become no brighter than this."""


@dataclass(frozen=True, kw_only=True)
class LesionMask:
    """A real lesion's mask."""

    share: np.ndarray
    """float32 (X, Y, Z), 1 in the lesion."""
    affine: np.ndarray
    """(4, 4), from its voxels to its millimetres."""
    to_mni: np.ndarray = field(default_factory=lambda: np.eye(4))
    """(4, 4), from its millimetres to MNI's; of no effect for the placement `headers`."""
    name: str = ""
    """Whose it is, for the notes."""


def find_masks(folder: str, pattern: str = "") -> Listing:
    """Paths of the lesion masks in a folder or URL, subfolders included.

    Args:
        folder: A local folder or an fsspec URL.
        pattern: Of their file names, such as `*_consensus_gt.nii.gz`. Without one, the files whose
            names speak of a lesion are taken, and where there are none all but `template*` and
            those whose names speak of a brain.

    Raises:
        NoScanFoundError: the folder is not there or cannot be listed.
    """
    folder = files.normalise(folder)
    names = find_files(folder)
    short = {name: name.rsplit("/", 1)[-1] for name in names}
    reasons = dict.fromkeys(names, "not named as a lesion's mask, as others there are")
    if pattern:
        chosen = [n for n in names if fnmatch.fnmatch(short[n].lower(), pattern.lower())]
        reasons = dict.fromkeys(names, f"not named as {pattern}")
    else:
        others = [name for name in names if not _of_a_brain(short[name])]
        reasons |= dict.fromkeys(set(names) - set(others), "a template, or of a brain")
        chosen = [name for name in others if _of_a_lesion(short[name])] or others
    rest = [
        LeftOut(path=files.join(folder, name), reason=reasons[name])
        for name in names
        if name not in set(chosen)
    ]
    paths = [files.join(folder, name) for name in chosen]
    return Listing(folder, paths, [*rest, *names.left_out])


LESION_WORDS = ("lesion", "stroke", "tumor", "tumour", "wmh", "consensus_gt")
"""What the names of lesion masks hold, where they say so; shorter words have to stand alone."""


def _of_a_lesion(name: str) -> bool:
    held = any(word in name.lower() for word in LESION_WORDS)
    alone = any(re.fullmatch(r"(\w*seg|gt|roi)\d*", word) for word in words_of(stem(name)))
    return held or alone


def _of_a_brain(name: str) -> bool:
    words = words_of(stem(name))
    return name.lower().startswith("template") or any(
        re.fullmatch(r"brain(mask)?s?\d*", word) for word in words
    )


def assign_masks(
    scans: Sequence[Scan], masks: Sequence[str], seed: int, config: LesionConfig | None = None
) -> list[Scan]:
    """Give each scan a lesion mask of its own; a mask repeats only once all are used.

    Args:
        scans: Healthy scans, in any order.
        masks: Paths of the masks, in any order.
        seed: Decides which scan has which.
        config: Contrast and placement of their lesions.

    Raises:
        ConfigError: a scan has a lesion already or is of a modality that the contrast is not for,
            or there is no mask.
    """
    if not masks:
        raise ConfigError(
            "no lesion mask: --lesions must name a folder of NIfTI masks, and --lesion-files, if "
            "given, a pattern of their names such as '*_seg.nii.gz'"
        )
    if diseased := [scan.id for scan in scans if scan.lesion]:
        raise ConfigError(
            f"{diseased[0]} has a real lesion already: synthetic ones are for healthy scans"
        )
    config = config or LesionConfig()
    contrast = config.contrast
    known = {name for names in MODALITIES.values() for name in names}
    fitting = MODALITIES[contrast]
    if others := [s for s in scans if s.modality in known and s.modality not in fitting]:
        raise ConfigError(
            f"{others[0].id} is {others[0].modality}, and --contrast {contrast} is for "
            f"{' and '.join(fitting)}: choose another of {', '.join(MODALITIES)}"
        )
    order = np.random.default_rng([seed, len(masks)]).permutation(len(masks))
    masks = sorted(masks)
    given = [masks[order[k % len(masks)]] for k in range(len(scans))]
    by_template = config.placement == "template"
    beside = {path: _templates_beside(path) for path in set(given)} if by_template else {}
    return [
        # One that is missing, or one of several, is quarantined with the scan.
        replace(scan, synthetic_lesion=path, template=next(iter(beside.get(path, [])), ""))
        for scan, path in zip(sorted(scans, key=lambda scan: scan.id), given, strict=True)
    ]


def read_mask(path: str, placement: Placement) -> LesionMask:
    """Read a lesion mask; all that is over 0.5 is lesion, whatever its label.

    Raises:
        ScanError: it cannot be read, is empty or is no mask, or its template is missing.
    """
    share, affine = read_nifti(path)
    lesion = share > 0.5
    if not lesion.any():
        raise ScanError(
            f"{path}: no value of the lesion mask is above 0.5, the largest is "
            f"{float(share.max()):.3g}; save it with 0 and 1, or choose another one"
        )
    values = np.unique(share[lesion])
    if len(values) > MAX_LABELS and values[-1] > 1:
        raise ScanError(
            f"{path}: expected a mask or labels, came an image of {len(values)} values above 0.5 "
            f"up to {values[-1]:g}; name the masks' files with --lesion-files"
        )
    return LesionMask(
        share=lesion.astype(np.float32),
        affine=affine,
        to_mni=_template_to_mni(path) if placement == "template" else np.eye(4),
        name=stem(path),
    )


MAX_LABELS = 64
"""A file with more values is no mask."""


def _template_to_mni(path: str) -> np.ndarray:
    templates = _templates_beside(path)
    if len(templates) != 1:
        raise ScanError(
            f"{path}: expected one brain template*.nii.gz beside it, in whose space it is, came "
            f"{[name.rsplit('/', 1)[-1] for name in templates]}; put it there, or choose another "
            "--placement"
        )
    return _brain_to_mni(templates[0], files.digest(templates[0]))


def _templates_beside(path: str) -> list[str]:
    folder = path.rsplit("/", 1)[0]
    return [
        files.join(folder, name)
        for name in files.list_names(folder)
        if fnmatch.fnmatch(name.lower(), "template*.nii*")
    ]


@lru_cache(maxsize=8)
def _brain_to_mni(path: str, digest: str) -> np.ndarray:
    """Of one content: a process lives longer than that of a file may."""
    image, affine = read_nifti(path)
    brain = Volume(image=image, brain=image > 0, lesion=None, affine=affine)
    try:
        return register_to_mni(to_canonical(brain))
    except ScanError as error:
        raise ScanError(f"{path}: {error}") from None


def insert_lesion(
    volume: Volume, *, mask: LesionMask, seed: Sequence[int], config: LesionConfig
) -> Volume:
    """Change the tissue inside a mask mapped onto the brain, and return the truth with it.

    Args:
        volume: A healthy brain without its skull, canonical, at about 1 mm.
        mask: The lesion.
        seed: Decides side, change and texture.
        config: How the tissue looks.

    Returns:
        The volume with a lesion mask, 1 where the softened mask is over 0.5 and 0 elsewhere (of a
        lesion so small that this is nowhere, at its best voxel), and a note of what was drawn. A
        mass effect moves image and brain mask; the lesion keeps its outline, which had its own mass
        effect when it was drawn.

    Raises:
        ScanError: next to nothing of the lesion lies in the brain, so that it found no place.
    """
    look = config.resolved()
    rng = np.random.default_rng(list(seed))
    flip = bool(rng.random() < look.flip_probability)
    change = rng.uniform(number(look.min_change), number(look.max_change))
    notes = [f"semi-synthetic {look.lesion_kind} from {mask.name or 'a mask'}"]
    notes += ["sides flipped"] if flip else []
    notes += [f"{look.contrast} by {change:.0%}"]
    if look.lesion_kind == "ms":
        kept, num, count = keep_components(mask.share, look.min_kept, rng)
        mask = replace(mask, share=kept)
        notes += [f"{num} of {count} components"]
    mapped = _map_onto(volume, mask, flip, look.placement)
    if push := number(look.mass_effect_mm):
        push *= rng.uniform(0.5, 1.0)
        volume = push_outward(volume, mapped, push)
        notes += [f"pushes by up to {push:.1f} mm"]
    soft = ndi.gaussian_filter(mapped, number(look.border_mm) / volume.spacing) * volume.brain
    truth = soft > 0.5
    _check_place(volume, mask, np.maximum(truth, mapped * volume.brain), look.min_inside)
    if not truth.any():
        best = brain_best(soft, volume.brain)
        truth[best] = True
        notes += [f"no voxel is lesion to 0.5: the one that is most so ({soft[best]:.2g}) is kept"]
    if look.lesion_kind == "tumour":
        soft *= _grade(mapped, volume.spacing, number(look.rim_mm), look.rim_change)
    noise = rng.standard_normal(volume.image.shape, dtype=np.float32)
    texture = ndi.gaussian_filter(noise, number(look.texture_mm) / volume.spacing)
    texture *= look.texture_strength / max(float(texture[truth].std()), 1e-6)
    texture = np.clip(1.0 + texture - float(texture[truth].mean()), 0.2, 1.8)
    amount = soft * np.clip(change * texture, 0.0, 0.9)
    image = volume.image * (1.0 - amount)
    if look.contrast != "t1-dark":
        full = float(np.percentile(volume.image[volume.brain], FULL_PERCENTILE))
        image = brighten(volume.image, amount, full)
    return replace(
        volume,
        image=image.astype(np.float32),
        lesion=truth.astype(np.float32),
        notes=(*volume.notes, ", ".join(notes)),
    )


def brighten(image: np.ndarray, amount: np.ndarray, full: float) -> np.ndarray:
    """Raise intensities by a share of their own, ever less the nearer they come to `full`.

    A small share acts as a plain factor; what is at or above `full` stays as it is, so that
    nothing becomes brighter than tissue is and texture is not cut flat.

    Args:
        image: Intensities, 0 or more.
        amount: The share, the same shape, 0 or more.
        full: Upper end.
    """
    room = np.maximum(full - image, 0.0)
    return np.asarray(image + room * -np.expm1(-image * amount / np.maximum(room, 1e-6 * full)))


def _grade(mapped: np.ndarray, spacing: np.ndarray, rim_mm: float, rim_change: float) -> np.ndarray:
    """A tumour's change relative to its core's: less in the rim, rising smoothly inward."""
    inside = mapped > min(0.5, np.nextafter(mapped.max(), 0))
    depth = ndi.gaussian_filter(depth_mm(inside, spacing), 1.5 / spacing)
    rim = min(rim_mm, float(depth.max()) / 2)
    inward = np.clip(depth / rim, 0.0, 1.0) if rim > 0 else np.ones_like(depth)
    smooth = inward**2 * (3.0 - 2.0 * inward)
    return np.asarray(rim_change + (1.0 - rim_change) * smooth)


def _check_place(volume: Volume, mask: LesionMask, inside: np.ndarray, min_inside: float) -> None:
    """Refuse a lesion that hardly lies in the brain; `inside` is each voxel's share."""
    expected_ml = float(mask.share.sum() * np.prod(voxel_sizes(mask.affine))) / 1000.0
    found_ml = float(inside.sum() * np.prod(volume.spacing)) / 1000.0
    if found_ml < min_inside * expected_ml or not inside.any():
        raise ScanError(
            f"only {found_ml:.1f} mL of a lesion of {expected_ml:.1f} mL lie in the brain, "
            f"expected at least {min_inside:.0%}: its registration to MNI failed, or the mask is "
            "in another space (--placement); leave the scan out"
        )


def _map_onto(volume: Volume, mask: LesionMask, flip: bool, placement: Placement) -> np.ndarray:
    """The mask sampled on the volume's grid, (X, Y, Z) in [0, 1]."""
    to_mask = np.linalg.inv(mask.affine)
    mirror = np.diag([-1.0 if flip else 1.0, 1.0, 1.0, 1.0])
    if placement == "headers":
        # No template says where the midline is; the brain's middle is near it.
        middle = np.argwhere(volume.brain).mean(axis=0)
        mirror[0, 3] = 2 * (volume.affine[:3] @ [*middle, 1.0])[0] if flip else 0.0
        grid = to_mask @ mirror @ volume.affine
    else:
        grid = to_mask @ np.linalg.inv(mask.to_mni) @ mirror @ register_to_mni(volume)
        grid = grid @ volume.affine
    return np.asarray(
        ndi.affine_transform(
            mask.share, grid[:3, :3], grid[:3, 3], volume.image.shape, order=1, mode="constant"
        )
    )
