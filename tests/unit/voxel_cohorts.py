"""Small cohorts of voxels for the evaluation tests: few levels, many ties, every odd case."""

from collections.abc import Iterable
from typing import NamedTuple, TypeVar

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from uadray.metrics.counts import CohortCounts, count_subject
from uadray.metrics.postprocess import erode_brain

SHAPE = (3, 3, 4)
LEVELS = np.array([0, 1, 7, 20000, 32768, 65535], np.uint16)
SCORE_RANGE = (0.0, 1.0)

Part = TypeVar("Part", bound=CohortCounts)


class Voxels(NamedTuple):
    """One subject, voxel by voxel; arrays of shape (Z, Y, X)."""

    levels: np.ndarray
    brain: np.ndarray
    lesion: np.ndarray


def _masked(levels: np.ndarray, brain: np.ndarray, lesion: np.ndarray) -> Voxels:
    return Voxels(np.where(brain, levels, 0).astype(np.uint16), brain, lesion)


_subject = st.builds(
    _masked,
    hnp.arrays(np.uint16, SHAPE, elements=st.sampled_from(LEVELS.tolist())),
    hnp.arrays(np.bool_, SHAPE),
    hnp.arrays(np.bool_, SHAPE) | st.just(np.zeros(SHAPE, bool)) | st.just(np.ones(SHAPE, bool)),
)
cohorts = st.lists(_subject, min_size=1, max_size=4)
"""Lesions outside the brain, none at all or everywhere, no brain: all of it occurs."""


def random_cohort(num_subjects: int, seed: int, size: int = 8) -> list[Voxels]:
    """A cohort with a signal: lesion voxels, in about half of the planes, score higher."""
    rng = np.random.default_rng(seed)
    subjects = []
    for _ in range(num_subjects):
        brain = rng.random((size,) * 3) < 0.8
        planes = rng.random((size, 1, 1)) < 0.5
        lesion = brain & planes & (rng.random(brain.shape) < rng.uniform(0.02, 0.2))
        lesion.flat[np.flatnonzero(brain)[0]] = True
        scores = rng.integers(0, 400, brain.shape) + rng.integers(50, 300) * lesion
        subjects.append(_masked(90 * scores, brain, lesion))
    return subjects


def count(
    kind: type[Part], subjects: Iterable[Voxels], name: str = "voxels", iterations: int = 1
) -> Part:
    """Count the subjects, named s0, s1, ..."""
    return kind.from_subjects(
        (
            (
                f"s{number}",
                count_subject(v.levels, v.brain, v.lesion, erode_brain(v.brain, iterations)),
            )
            for number, v in enumerate(subjects)
        ),
        name=name,
        score_range=SCORE_RANGE,
    )


def pooled(subjects: Iterable[Voxels], region: str = "volume") -> tuple[np.ndarray, np.ndarray]:
    """All voxels of the region as flat levels and labels."""
    levels, lesion = [], []
    for v in subjects:
        inside = v.brain | v.lesion if region == "brain" else np.ones(v.brain.shape, bool)
        levels.append(v.levels[inside].astype(np.int64))
        lesion.append(v.lesion[inside])
    return np.concatenate(levels), np.concatenate(lesion)


def dice_of_voxels(levels: np.ndarray, lesion: np.ndarray, threshold: float) -> float:
    """Dice of two voxel sets, spelled out; NaN where the truth is empty."""
    predicted = levels >= threshold
    if not lesion.any():
        return float("nan")
    return 2 * (predicted & lesion).sum() / (predicted.sum() + lesion.sum())
