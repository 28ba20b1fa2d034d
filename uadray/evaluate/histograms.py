"""Histograms over a level axis, of one sum of subjects, of many, or of each subject apart.

A *run of levels* is a stretch of the axis. Every quantity of `metrics` that is a sum or a maximum
over levels can be taken run by run, which bounds memory for any number of resamples.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

_VALUES_PER_RUN = 1 << 17  # of one float64 array while resampling: 1 MiB stays in cache


@dataclass(frozen=True, kw_only=True, eq=False)
class Histograms:
    """Dense counts over a run of levels, for one sum of subjects or many (leading axes)."""

    levels: NDArray
    """(L,) strictly ascending."""

    healthy: NDArray[np.float64]
    """(..., L) healthy voxels (or slices) at each level."""

    lesion: NDArray[np.float64]
    """(..., L) lesion voxels (or slices) at each level."""

    healthy_above: NDArray[np.float64]
    """(...,) healthy ones above the run; 0 where the run is the whole."""

    lesion_above: NDArray[np.float64]
    """(...,) lesion ones above the run; 0 where the run is the whole."""

    num_healthy: NDArray[np.float64]
    """(...,) healthy ones at all levels, in the run or not."""

    num_lesion: NDArray[np.float64]
    """(...,) lesion ones at all levels, in the run or not."""

    @classmethod
    def whole(cls, levels: NDArray, healthy: NDArray, lesion: NDArray) -> Self:
        """Take (L,) levels and (..., L) counts as all there is."""
        healthy, lesion = np.asarray(healthy, np.float64), np.asarray(lesion, np.float64)
        nothing = np.zeros(healthy.shape[:-1])
        return cls(
            levels=np.asarray(levels),
            healthy=healthy,
            lesion=lesion,
            healthy_above=nothing,
            lesion_above=nothing,
            num_healthy=healthy.sum(axis=-1),
            num_lesion=lesion.sum(axis=-1),
        )

    @cached_property
    def true_positives(self) -> NDArray[np.float64]:
        """(..., L) lesion ones at or above each level."""
        return _cumulate_down(self.lesion, self.lesion_above)

    @cached_property
    def false_positives(self) -> NDArray[np.float64]:
        """(..., L) healthy ones at or above each level."""
        return _cumulate_down(self.healthy, self.healthy_above)


def _cumulate_down(counts: NDArray[np.float64], above: NDArray[np.float64]) -> NDArray[np.float64]:
    total = np.cumsum(counts[..., ::-1], axis=-1)[..., ::-1]
    total += np.asarray(above)[..., None]
    return total


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

    def resampled(self, weights: NDArray) -> Iterator[Histograms]:
        """Yield weighted sums of the subjects, run by run, from the highest levels down.

        Args:
            weights: (R, N), how often each subject counts in each of R sums.

        Yields:
            Runs of levels with counts of shape (R, L'); together they cover every level once.
        """
        weights = np.asarray(weights, np.float64)
        healthy, lesion = self.healthy.tocsc(), self.lesion.tocsc()
        num_healthy = weights @ self.healthy.sum(axis=1, dtype=np.float64)
        num_lesion = weights @ self.lesion.sum(axis=1, dtype=np.float64)
        healthy_above, lesion_above = np.zeros((2, len(weights)))
        step = max(1, _VALUES_PER_RUN // len(weights))
        for stop in range(len(self.levels), 0, -step):
            run = slice(max(0, stop - step), stop)
            part = Histograms(
                levels=self.levels[run],
                healthy=weights @ healthy[:, run].toarray().astype(np.float64),
                lesion=weights @ lesion[:, run].toarray().astype(np.float64),
                healthy_above=healthy_above,
                lesion_above=lesion_above,
                num_healthy=num_healthy,
                num_lesion=num_lesion,
            )
            healthy_above = part.false_positives[:, 0]
            lesion_above = part.true_positives[:, 0]
            yield part
