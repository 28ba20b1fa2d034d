"""A small scan in any orientation with a anomalous spot, its scores and masks, for the viewer."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage

from uadray.viewer.page import CasePage, write_case

MARKUP = "<script>alert(1)</script>"
"""A name that is markup."""

THRESHOLD = 0.5
"""Frozen threshold of the scores."""

SPOT_MM = np.array([14.0, -6.0, 8.0])
"""Middle of the anomalous spot in the scanner's mm, to the right, the back and the top."""


def tiny_case(
    axes: str = "LAS", shape: tuple[int, int, int] = (40, 48, 36), seed: int = 0
) -> dict[str, Any]:
    """Images of a brain of 2 mm voxels whose file's axes run as `axes` says.

    Args:
        axes: Codes of nibabel, such as LAS.
        shape: Voxels along x, y and z.
        seed: Of the texture.

    Returns:
        Arguments for `write_case`.
    """
    rng = np.random.default_rng(seed)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = -2.0 * np.array(shape) / 2
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    mm = index @ affine[:3, :3].T + affine[:3, 3]
    brain = ((mm / [34.0, 42.0, 30.0]) ** 2).sum(-1) < 1
    texture = ndimage.gaussian_filter(rng.standard_normal(shape), 1.5)
    scan = np.clip(0.45 + 0.6 * texture, 0.1, 0.8) * brain * 1000
    distance = np.linalg.norm(mm - SPOT_MM, axis=-1)
    truth = (distance < 9) & brain
    scan[truth] *= 0.4
    anomaly = (0.9 * np.exp(-((distance / 9) ** 2)) + 0.15 * rng.random(shape)) * brain
    arrays = {
        "scan": scan.astype(np.int16),
        "anomaly": anomaly.astype(np.float32),
        "proposal": (anomaly > THRESHOLD).astype(np.uint8),
        "truth": truth.astype(np.uint8),
        "reconstruction": (0.45 * brain).astype(np.float32),
        "brain": brain.astype(np.uint8),
    }
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(axes)
    )
    return {
        name: nib.Nifti1Image(array, affine).as_reoriented(turn) for name, array in arrays.items()
    }


def write_tiny_case(out: Path, name: str = MARKUP, **changes: Any) -> CasePage:
    """The page of a tiny case."""
    arguments = tiny_case(changes.pop("axes", "LAS")) | changes
    summary = {
        "threshold": THRESHOLD,
        "warnings": [f"unlike the others: {MARKUP}"],
        "num_components": 1,
        "method": MARKUP,
    }
    return write_case(str(out), summary=arguments.pop("summary", summary), name=name, **arguments)
