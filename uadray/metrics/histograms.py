"""Histograms over a level axis, of one sum of subjects, of many, or of each subject apart."""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array


@dataclass(frozen=True, kw_only=True, eq=False)
class Histograms:
    """Dense counts over all used levels, for one sum of subjects or many (leading axes)."""

    levels: NDArray
    """(L,) strictly ascending."""

    healthy: NDArray[np.float64]
    """(..., L) healthy voxels (or slices) at each level."""

    lesion: NDArray[np.float64]
    """(..., L) lesion voxels (or slices) at each level."""

    num_healthy: NDArray[np.float64]
    """(...,) healthy ones at all levels."""

    num_lesion: NDArray[np.float64]
    """(...,) lesion ones at all levels."""

    @classmethod
    def whole(cls, levels: NDArray, healthy: NDArray, lesion: NDArray) -> Self:
        """Take (L,) levels and (..., L) counts as all there is."""
        healthy, lesion = np.asarray(healthy, np.float64), np.asarray(lesion, np.float64)
        return cls(
            levels=np.asarray(levels),
            healthy=healthy,
            lesion=lesion,
            num_healthy=healthy.sum(axis=-1),
            num_lesion=lesion.sum(axis=-1),
        )

    @cached_property
    def true_positives(self) -> NDArray[np.float64]:
        """(..., L) lesion ones at or above each level."""
        return _cumulate_down(self.lesion)

    @cached_property
    def false_positives(self) -> NDArray[np.float64]:
        """(..., L) healthy ones at or above each level."""
        return _cumulate_down(self.healthy)


def _cumulate_down(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.cumsum(counts[..., ::-1], axis=-1)[..., ::-1]


@dataclass(frozen=True, kw_only=True, eq=False)
class SubjectHistograms:
    """Sparse histograms of N subjects over the union of the levels that they use."""

    levels: NDArray
    """(L,) strictly ascending."""

    healthy: csr_array
    """(N, L) uint32 counts."""

    lesion: csr_array
    """(N, L) uint32 counts."""

    def merged(self) -> Histograms:
        """Add all subjects: counts of shape (L,)."""
        return Histograms.whole(
            self.levels,
            self.healthy.sum(axis=0, dtype=np.float64),
            self.lesion.sum(axis=0, dtype=np.float64),
        )
