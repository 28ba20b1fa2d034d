"""Which axial slices hold a lesion: their scores and labels, kept so that cohorts can be pooled."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uadray.metrics.counts import TestPart
from uadray.metrics.histograms import Histograms


@dataclass(frozen=True, kw_only=True, eq=False)
class Slices:
    """The axial slices of N test subjects, scored by one run."""

    subjects: tuple[str, ...]
    """(N,) ids."""
    score: NDArray[np.float32]
    """(N, Z) sum or mean over the slice's brain, a score being a fraction of the method's range."""
    lesion: NDArray[np.bool_]
    """(N, Z) whether a voxel of the slice is annotated (Bengs 2021, section 2.3)."""
    counted: NDArray[np.bool_]
    """(N, Z) slices that count: those that hold brain or lesion."""

    @classmethod
    def of(cls, test: TestPart) -> "Slices":
        """The slices of a test part."""
        return cls(
            subjects=test.subjects,
            score=test.slice_score,
            lesion=test.slice_lesion,
            counted=test.slice_brain | test.slice_lesion,
        )

    def flat(self, weights: NDArray[np.int64] | None = None) -> tuple[NDArray, NDArray, NDArray]:
        """The slices that count, one after another.

        Args:
            weights: (R, N), how often each subject counts in each resample; once each by default.

        Returns:
            (S,) scores, (S,) labels and (R, S) weights; R is 1 by default.
        """
        if weights is None:
            weights = np.ones((1, len(self.subjects)), np.int64)
        rows = np.nonzero(self.counted)[0]
        return self.score[self.counted], self.lesion[self.counted], weights[:, rows]


def histograms(scores: NDArray, lesion: NDArray, weights: NDArray) -> Histograms:
    """Slices pooled over subjects: counts over their distinct scores, one line a resample.

    Args:
        scores: (S,).
        lesion: (S,) labels.
        weights: (R, S).
    """
    levels, place = np.unique(scores, return_inverse=True)
    order = np.argsort(place, kind="stable")
    starts = np.searchsorted(place[order], np.arange(len(levels)))
    sick, well = weights * lesion, weights * ~lesion
    return Histograms.whole(
        levels,
        healthy=np.add.reduceat(well[:, order], starts, axis=1),
        lesion=np.add.reduceat(sick[:, order], starts, axis=1),
    )
