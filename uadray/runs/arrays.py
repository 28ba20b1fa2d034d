"""Arrays that an evaluation keeps beside its record, each in an npz file of the run folder."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from uadray import npz
from uadray.metrics.slicewise import Slices


def pack_resamples(subjects: Sequence[str], resamples: Mapping[str, NDArray[np.float64]]) -> bytes:
    """Resamples as an npz file, by which two runs can be compared without their counts.

    Args:
        subjects: (N,) ids in the order that the draws refer to.
        resamples: (R,) values by the metric's name, of draws with seed 0.
    """
    return npz.pack(subjects=np.array(subjects, np.str_), seed=np.array(0), **resamples)


def pack_slices(slices: Slices) -> bytes:
    """Slices as an npz file; the inverse of `unpack_slices`."""
    return npz.pack(
        subjects=np.array(slices.subjects, np.str_),
        score=slices.score.astype(np.float32),
        lesion=slices.lesion,
        counted=slices.counted,
    )


def unpack_slices(content: bytes) -> Slices:
    """Read what `pack_slices` gave.

    Raises:
        ValueError: It is not such a file, or its arrays do not go together.
    """
    arrays = npz.unpack(content)
    missing = {"subjects", "score", "lesion", "counted"} - set(arrays)
    if missing:
        raise ValueError(f"{', '.join(sorted(missing))} missing")
    shapes = {arrays[name].shape for name in ("score", "lesion", "counted")}
    score, subjects = arrays["score"], arrays["subjects"]
    if len(shapes) != 1 or score.ndim != 2 or len(subjects) != len(score):
        raise ValueError(f"expected (N, Z) arrays for N subjects, got {sorted(shapes)}")
    return Slices(
        subjects=tuple(str(subject) for subject in subjects),
        score=score,
        lesion=arrays["lesion"],
        counted=arrays["counted"],
    )
