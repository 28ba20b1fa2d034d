"""Histograms of post-processed scores: all that thresholds, metrics and intervals need.

One subject's voxels become two histograms over the 65 536 levels, lesion voxels and healthy ones
apart. Histograms add up, so a cohort, a part of it or a resample is a weighted sum of
its subjects, and no voxel is read a second time.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from uadray.errors import ConfigError, EvaluationError
from uadray.metrics.histograms import Histograms, SubjectHistograms
from uadray.metrics.postprocess import MAX_LEVEL, check_score_range

NUM_LEVELS = MAX_LEVEL + 1
"""Number of score levels (16-bit fixed point)."""

Region = Literal["brain", "volume"]
"""Healthy voxels that count: those in the brain mask, or those of the whole grid."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SubjectCounts:
    """One subject's counts. The region is every voxel of the brain mask or of the lesion."""

    healthy: NDArray[np.uint32]
    """(65536,) healthy voxels of the region at each level."""

    lesion: NDArray[np.uint32]
    """(65536,) lesion voxels at each level; those outside the brain mask sit at level 0."""

    num_outside: int
    """Voxels outside the region, all of them healthy and at level 0."""

    slice_score: NDArray[np.float32]
    """(Z,) mean level over the un-eroded brain of each axial slice, as a fraction of the score
    range, in [0, 1]; 0 where the slice holds no brain."""

    slice_lesion: NDArray[np.bool_]
    """(Z,) whether the axial slice holds a lesion voxel."""

    slice_brain: NDArray[np.bool_]
    """(Z,) whether the axial slice holds brain."""

    num_lesion: int
    """Lesion voxels."""

    num_lesion_eroded: int
    """Lesion voxels inside the brain mask that the erosion took away."""


def count_subject(
    levels: NDArray[np.uint16],
    brain: NDArray[np.bool_],
    lesion: NDArray[np.bool_],
    eroded: NDArray[np.bool_],
    *,
    subject: str | None = None,
) -> SubjectCounts:
    """Count one subject's voxels.

    Args:
        levels: (Z, Y, X) uint16, from `postprocess`.
        brain: (Z, Y, X) brain mask, not eroded.
        lesion: (Z, Y, X) true lesion.
        eroded: (Z, Y, X) eroded brain mask.
        subject: Named in error messages.

    Raises:
        EvaluationError: Grids differ, or a score outside the brain is not at level 0.
    """
    name = "subject" if subject is None else f"subject {subject!r}"
    shapes = {array.shape for array in (levels, brain, lesion, eroded)}
    if len(shapes) != 1 or levels.ndim != 3 or levels.dtype != np.uint16:
        raise EvaluationError(
            f"{name}: expected uint16 levels and three masks on one (Z, Y, X) grid, came levels "
            f"{levels.dtype} {levels.shape}, brain {brain.shape}, lesion {lesion.shape}, eroded "
            f"{eroded.shape}; prepare truth and scores on the same grid"
        )
    brain, lesion, eroded = (mask.astype(bool, copy=False) for mask in (brain, lesion, eroded))
    num_stray = np.count_nonzero((levels > 0) & ~brain)
    if num_stray:
        raise EvaluationError(
            f"{name}: {num_stray} voxels outside the brain mask have a score; expected level 0 "
            "there: pass the scores through `postprocess` with the same mask first"
        )
    region = brain | lesion
    brain_per_slice, lesion_per_slice = (_per_slice(mask) for mask in (brain, lesion))
    level_per_slice = levels.sum(axis=(1, 2), dtype=np.int64)
    mean = level_per_slice / (np.maximum(brain_per_slice, 1) * MAX_LEVEL)
    return SubjectCounts(
        healthy=np.bincount(levels[brain & ~lesion], minlength=NUM_LEVELS).astype(np.uint32),
        lesion=np.bincount(levels[lesion], minlength=NUM_LEVELS).astype(np.uint32),
        num_outside=int(region.size - np.count_nonzero(region)),
        slice_score=mean.astype(np.float32),
        slice_lesion=lesion_per_slice > 0,
        slice_brain=brain_per_slice > 0,
        num_lesion=int(np.count_nonzero(lesion)),
        num_lesion_eroded=int(np.count_nonzero(lesion & brain & ~eroded)),
    )


def _per_slice(mask: NDArray[np.bool_]) -> NDArray[np.intp]:
    # plane by plane: numpy counts along axes by way of integers, ten times slower
    return np.array([np.count_nonzero(plane) for plane in mask], np.intp)


@dataclass(frozen=True, kw_only=True, eq=False)
class CohortCounts:
    """Counts of N subjects, kept apart, with what they were scored with."""

    name: str
    """Which cohort and part this is: thresholds fitted on it bear the name."""

    score_range: tuple[float, float]
    """The method's stated (low, high): the scores of level 0 and level 65535."""

    subjects: tuple[str, ...]
    """(N,) ids, each once."""

    healthy: csr_array
    """(N, 65536) uint32, see `SubjectCounts.healthy`; sparse."""

    lesion: csr_array
    """(N, 65536) uint32, see `SubjectCounts.lesion`; sparse."""

    num_outside: NDArray[np.int64]
    """(N,) healthy voxels outside the region."""

    slice_score: NDArray[np.float32]
    """(N, Z) in [0, 1]; or the sum over the slice's brain, see `with_slice_sums`."""

    slice_lesion: NDArray[np.bool_]
    """(N, Z) axial slices with lesion."""

    slice_brain: NDArray[np.bool_]
    """(N, Z) axial slices with brain."""

    num_lesion: NDArray[np.int64]
    """(N,) lesion voxels."""

    num_lesion_eroded: NDArray[np.int64]
    """(N,) lesion voxels in the brain that the erosion took away."""

    def __post_init__(self) -> None:
        """Check ids and range."""
        check_score_range(self.score_range)
        if not self.subjects:
            raise EvaluationError(f"counts {self.name!r} hold no subject; expected one or more")
        if len(set(self.subjects)) != len(self.subjects):
            twice = sorted({s for s in self.subjects if self.subjects.count(s) > 1})
            raise EvaluationError(
                f"counts {self.name!r}: subjects {twice} came more than once; score each once"
            )

    @classmethod
    def from_subjects(
        cls,
        counted: Iterable[tuple[str, SubjectCounts]],
        *,
        name: str,
        score_range: tuple[float, float],
    ) -> Self:
        """Stack subjects; an iterator is consumed one by one, so that 2000 fit in memory.

        Args:
            counted: Pairs of id and counts, all on one grid.
            name: See the field.
            score_range: See the field; the range that `postprocess` was given.

        Raises:
            EvaluationError: There is no subject, one came twice, or grids differ.
        """
        subjects: list[str] = []
        rows: dict[str, list] = {field.name: [] for field in fields(SubjectCounts)}
        for subject, counts in counted:
            if rows["slice_score"] and counts.slice_score.shape != rows["slice_score"][0].shape:
                raise EvaluationError(
                    f"subject {subject!r} has {len(counts.slice_score)} axial slices, "
                    f"{subjects[0]!r} has {len(rows['slice_score'][0])}; expected one grid"
                )
            subjects.append(subject)
            for key, values in rows.items():
                value = getattr(counts, key)
                values.append(_sparse(value) if key in ("healthy", "lesion") else value)
        if not subjects:
            raise EvaluationError(f"counts {name!r} hold no subject; expected one or more")
        return cls(
            name=name,
            score_range=check_score_range(score_range),
            subjects=tuple(subjects),
            **{
                key: _stacked(values)
                if key in ("healthy", "lesion")
                else np.stack([np.asarray(value) for value in values])
                for key, values in rows.items()
            },
        )

    def weighted(self, weights: NDArray[np.integer]) -> Self:
        """The part with each subject as often as (N,) weights say; 0 leaves one out."""
        kept = np.flatnonzero(weights)
        times = np.asarray(weights)[kept]

        def part(name: str) -> Any:
            values = getattr(self, name)[kept]
            if name in ("healthy", "lesion"):
                rows = np.repeat(times, np.diff(values.indptr)).astype(values.dtype)
                return csr_array((values.data * rows, values.indices, values.indptr), values.shape)
            return values * times if name in ("num_outside", "num_lesion") else values

        names = {field.name for field in fields(SubjectCounts)}
        return replace(
            self,
            subjects=tuple(self.subjects[n] for n in kept),
            **{name: part(name) for name in names},
        )

    def histograms(self, region: Region = "volume") -> SubjectHistograms:
        """Return the voxels' histograms over the union of used levels (0 always among them).

        Args:
            region: `volume` counts the voxels outside the brain too, healthy and at level 0, as
                reference code does when it pools whole volumes; `brain` leaves them out.
        """
        used = np.zeros(NUM_LEVELS, bool)
        used[0] = used[self.healthy.indices] = used[self.lesion.indices] = True
        column = np.cumsum(used, dtype=np.int32) - 1
        shape = (len(self.subjects), int(column[-1]) + 1)

        def without_unused(counts: csr_array) -> csr_array:
            return csr_array((counts.data, column[counts.indices], counts.indptr), shape=shape)

        healthy = without_unused(self.healthy)
        if region == "volume":
            at_zero = (np.arange(shape[0]), np.zeros(shape[0], np.intp))
            healthy = healthy + csr_array((self.num_outside.astype(np.uint32), at_zero), shape)
        return SubjectHistograms(
            levels=np.flatnonzero(used), healthy=healthy, lesion=without_unused(self.lesion)
        )

    def slice_histograms(self) -> SubjectHistograms:
        """Return the axial slices' histograms over their scores; slices without brain are out.

        A slice is abnormal as soon as one voxel is annotated (Bengs 2021, section 2.3); a slice
        with lesion but no brain stays in, at score 0.
        """
        kept = self.slice_brain | self.slice_lesion
        rows = np.nonzero(kept)[0]
        scores, columns = np.unique(self.slice_score[kept], return_inverse=True)
        lesion = self.slice_lesion[kept]
        shape = (len(self.subjects), len(scores))

        def count(chosen: NDArray[np.bool_]) -> csr_array:
            ones = np.ones(np.count_nonzero(chosen), np.uint32)
            return csr_array((ones, (rows[chosen], columns[chosen])), shape=shape)

        return SubjectHistograms(levels=scores, healthy=count(~lesion), lesion=count(lesion))

    def merged(self, region: Region = "volume") -> Histograms:
        """Add all subjects' voxels: counts of shape (L,) over the used levels."""
        return self.histograms(region).merged()

    def positives(self, level: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return each subject's (N,) true and (N,) false positives at `level` and above.

        Args:
            level: 1 to 65536; from 1 up no voxel outside the brain is ever predicted.
        """
        if not 1 <= level <= NUM_LEVELS:
            raise EvaluationError(f"a threshold level lies in [1, {NUM_LEVELS}], was {level}")
        return (
            self.lesion[:, level:].sum(axis=1, dtype=np.float64),
            self.healthy[:, level:].sum(axis=1, dtype=np.float64),
        )

    def with_slice_sums(self, num_brain: NDArray[np.integer]) -> Self:
        """The same, its slices scored by the sum of their levels instead of the mean.

        Args:
            num_brain: (N, Z) brain voxels of each slice.
        """
        return replace(self, slice_score=(self.slice_score * num_brain).astype(np.float32))


def _sparse(counts: NDArray[np.uint32]) -> tuple[NDArray[np.int32], NDArray[np.uint32]]:
    """Return the used levels of one histogram and their counts."""
    used = np.flatnonzero(counts != 0).astype(np.int32)
    return used, counts[used]


def _stacked(rows: Sequence[tuple[NDArray[np.int32], NDArray[np.uint32]]]) -> csr_array:
    """Lay (N,) sparse histograms one below the other."""
    starts = np.concatenate([[0], np.cumsum([len(used) for used, _ in rows])])
    used, counts = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    return csr_array((counts, used, starts), shape=(len(rows), NUM_LEVELS))


class ThresholdPart(CohortCounts):
    """Subjects that thresholds are fitted on, and nothing is reported on."""


class TestPart(CohortCounts):
    """Subjects that results are reported on, and no threshold is fitted on."""

    __test__ = False  # pytest collects classes by this prefix


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """A fitted threshold, frozen before the test part is touched."""

    level: int
    """Lesion where the level is at least this; in [1, 65536], where 65536 predicts nothing."""

    value: float
    """The same as a score of the method."""

    rule: str
    """How it was found."""

    fitted_on: str
    """Name of the part that it was found on."""

    def __post_init__(self) -> None:
        """Check the range."""
        if not 1 <= self.level <= NUM_LEVELS:
            raise ConfigError(f"level must lie in [1, {NUM_LEVELS}], was {self.level}")
