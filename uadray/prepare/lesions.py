"""Semi-synthetic strokes: a real stroke's outline on a real healthy brain, with exact truth.

Real lesioned scans with public masks are rare, and phantoms are not real anatomy. In between, the
mask of a real stroke (in MNI space) is mapped onto a healthy subject's brain by an affine, and the
tissue inside is darkened as chronic strokes are on T1. Figures made with it are to be called
semi-synthetic.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.ndimage as ndi

from uadray import files
from uadray.errors import ConfigError, ScanError
from uadray.prepare.geometry import Volume, voxel_sizes
from uadray.prepare.layouts import Scan
from uadray.prepare.register import register_to_mni


@dataclass(frozen=True, kw_only=True)
class StrokeConfig:
    """How the tissue of a semi-synthetic stroke looks.

    The defaults are set so that intensity alone does not solve the task: filling the mask with
    dark tissue does (1 - x reaches a Dice of 0.7), and a cohort that raw intensity solves measures
    nothing.
    """

    lesion_seed: int = 0
    """Decides side, darkness and texture of every lesion, with the scan's id."""
    min_darkening: float = 0.12
    """Least share of its intensity that tissue loses, mean over the lesion, drawn per lesion."""
    max_darkening: float = 0.45
    """Largest such share."""
    texture_mm: float = 4.0
    """Standard deviation of the smoothing that makes the texture."""
    texture_strength: float = 0.35
    """Standard deviation of the texture relative to its mean; it is cut at 0.2 and 1.8."""
    border_mm: float = 1.5
    """Standard deviation of the soft border."""

    def __post_init__(self) -> None:
        if not 0 < self.min_darkening <= self.max_darkening < 1:
            raise ConfigError(
                "min_darkening and max_darkening must be 0 < min <= max < 1, were "
                f"{self.min_darkening} and {self.max_darkening}"
            )


@dataclass(frozen=True, kw_only=True)
class StrokeMask:
    """A real stroke's mask in MNI space."""

    share: np.ndarray
    """float32 (X, Y, Z), 1 in the lesion."""
    affine: np.ndarray
    """(4, 4), from its voxels to MNI millimetres."""


def assign_strokes(scans: Sequence[Scan], masks: Sequence[str], seed: int) -> list[Scan]:
    """Give each scan a stroke mask of its own; a mask repeats only once all are used.

    Args:
        scans: Healthy scans, in any order.
        masks: Paths of the masks, in any order.
        seed: Decides which scan has which.

    Raises:
        ConfigError: a scan has a lesion already, or there is no mask.
    """
    if not masks:
        raise ConfigError("no stroke mask: --lesions must name a folder with Subject_*.nii.gz")
    if diseased := [scan.id for scan in scans if scan.lesion]:
        raise ConfigError(f"{diseased[0]} has a real lesion already: strokes are for healthy scans")
    order = np.random.default_rng([seed, len(masks)]).permutation(len(masks))
    masks = sorted(masks)
    return [
        replace(scan, synthetic_lesion=masks[order[k % len(masks)]])
        for k, scan in enumerate(sorted(scans, key=lambda scan: scan.id))
    ]


def find_stroke_masks(folder: str) -> list[str]:
    """Paths of the masks `Subject_*.nii.gz` in a folder or URL."""
    folder = files.normalise(folder)
    names = files.list_names(folder)
    return [
        files.join(folder, n) for n in names if n.startswith("Subject_") and n.endswith(".nii.gz")
    ]


def insert_stroke(
    volume: Volume, *, mask: StrokeMask, seed: Sequence[int], config: StrokeConfig
) -> Volume:
    """Darken the tissue inside a stroke mask mapped onto the brain, and return the truth with it.

    Args:
        volume: A healthy brain without its skull, canonical, at about 1 mm.
        mask: The stroke.
        seed: Decides side, darkness and texture.
        config: How the tissue looks.

    Returns:
        The volume with a lesion mask, 1 where the softened mask is over 0.5 and 0 elsewhere.

    Raises:
        ScanError: next to nothing of the stroke lies in the brain, so that the registration failed.
    """
    rng = np.random.default_rng(list(seed))
    flip = bool(rng.random() < 0.5)
    darkening = rng.uniform(config.min_darkening, config.max_darkening)
    mapped = _map_onto(volume, mask, flip)
    soft = ndi.gaussian_filter(mapped, config.border_mm / volume.spacing) * volume.brain
    truth = soft > 0.5
    expected_ml = float(mask.share.sum() * np.prod(voxel_sizes(mask.affine))) / 1000.0
    found_ml = float(truth.sum() * np.prod(volume.spacing)) / 1000.0
    if found_ml < 0.2 * expected_ml:
        raise ScanError(
            f"only {found_ml:.1f} mL of a stroke of {expected_ml:.1f} mL lie in the brain: its "
            "registration to MNI failed; leave the scan out"
        )
    noise = rng.standard_normal(volume.image.shape, dtype=np.float32)
    texture = ndi.gaussian_filter(noise, config.texture_mm / volume.spacing)
    texture *= config.texture_strength / float(texture[truth].std())
    texture = np.clip(1.0 + texture - float(texture[truth].mean()), 0.2, 1.8)
    image = volume.image * (1.0 - soft * np.clip(darkening * texture, 0.0, 0.9))
    return replace(volume, image=image.astype(np.float32), lesion=truth.astype(np.float32))


def _map_onto(volume: Volume, mask: StrokeMask, flip: bool) -> np.ndarray:
    """The mask sampled on the volume's grid, (X, Y, Z) in [0, 1]."""
    to_mni = register_to_mni(volume)
    if flip:
        to_mni = np.diag([-1.0, 1.0, 1.0, 1.0]) @ to_mni
    grid = np.linalg.inv(mask.affine) @ to_mni @ volume.affine
    return np.asarray(
        ndi.affine_transform(
            mask.share, grid[:3, :3], grid[:3, 3], volume.image.shape, order=1, mode="constant"
        )
    )
