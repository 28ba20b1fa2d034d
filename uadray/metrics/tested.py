"""What metrics are computed from: the counts of a test part at a frozen threshold."""

from collections.abc import Callable
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from uadray.errors import EvaluationError
from uadray.metrics import measures
from uadray.metrics.counts import TestPart, Threshold
from uadray.metrics.histograms import Histograms, SubjectHistograms
from uadray.metrics.postprocess import MAX_LEVEL, dequantise
from uadray.metrics.thresholds import best_linear_level
from uadray.metrics.weighted import weighted_curves

Values = NDArray[np.float64]


class Tested:
    """A test part at a frozen threshold, from which metrics are computed.

    Args:
        part: N test subjects, perhaps after a component filter.
        threshold: Frozen.
        searched: The same before that filter, where the best of 100 thresholds is searched; the
            part itself by default.

    Raises:
        TypeError: `part` is not a test part.
        EvaluationError: the threshold belongs to another score range, or was fitted on the part.
    """

    __test__ = False  # pytest collects classes by this prefix

    def __init__(
        self, part: TestPart, threshold: Threshold, searched: TestPart | None = None
    ) -> None:
        _check(part, threshold)
        self._part, self.threshold, self._searched = part, threshold, searched or part

    @property
    def part(self) -> TestPart:
        """The counts themselves."""
        return self._part

    @property
    def searched(self) -> TestPart:
        """The counts before a component filter."""
        return self._searched

    @cached_property
    def positives(self) -> tuple[Values, Values]:
        """(N,) true and (N,) false positives of each subject at the threshold."""
        return self.part.positives(self.threshold.level)

    @property
    def true_positives(self) -> Values:
        """(N,) lesion voxels of each subject that are predicted."""
        return self.positives[0]

    @property
    def false_positives(self) -> Values:
        """(N,) other voxels of each subject that are predicted."""
        return self.positives[1]

    @cached_property
    def num_lesion(self) -> Values:
        """(N,) lesion voxels of each subject."""
        return self.part.num_lesion.astype(np.float64)

    @cached_property
    def volume(self) -> Histograms:
        """All voxels of the grid, the background included, over all subjects."""
        return self.part.merged("volume")

    @cached_property
    def by_subject(self) -> SubjectHistograms:
        """The same of each subject apart."""
        return self.part.histograms("volume")

    @cached_property
    def best_of_100(self) -> float:
        """Dice_D at the best of 100 thresholds, which is searched before any filter."""
        level = best_linear_level(self.searched.merged("volume"))
        return float(measures.dice_d(self.part, level))

    @cached_property
    def dice_s(self) -> Values:
        """(N,) of each subject, NaN without lesion."""
        return measures.dice_s(self.part, self.threshold.level)


class LeftOut(Tested):
    """The same without some subjects; what is known of each of the others is not counted again.

    Args:
        whole: With all N subjects.
        kept: (N,) bool, one or more.
    """

    def __init__(self, whole: Tested, kept: NDArray[np.bool_]) -> None:
        self._whole, self._kept, self.threshold = whole, kept, whole.threshold

    @cached_property
    def part(self) -> TestPart:
        """The counts themselves, which are copied: slow where there are many subjects."""
        return self._whole.part.weighted(self._kept.astype(np.int64))

    @cached_property
    def searched(self) -> TestPart:
        """The counts before a component filter."""
        return self._whole.searched.weighted(self._kept.astype(np.int64))

    @cached_property
    def positives(self) -> tuple[Values, Values]:
        """True and false positives of each subject that is kept."""
        true, false = self._whole.positives
        return true[self._kept], false[self._kept]

    @cached_property
    def num_lesion(self) -> Values:
        """Lesion voxels of each subject that is kept."""
        return self._whole.num_lesion[self._kept]

    @cached_property
    def volume(self) -> Histograms:
        """All voxels of the subjects that are kept: whole numbers, so that taking away is exact."""
        whole, each = self._whole.volume, self._whole.by_subject
        return Histograms.whole(
            each.levels,
            whole.healthy - each.healthy[~self._kept].sum(axis=0, dtype=np.float64),
            whole.lesion - each.lesion[~self._kept].sum(axis=0, dtype=np.float64),
        )

    @cached_property
    def dice_s(self) -> Values:
        """Of each subject that is kept."""
        return self._whole.dice_s[self._kept]


class Weighted(Tested):
    """The same in R weightings of its subjects, such as all but one person.

    Args:
        part: N test subjects.
        threshold: Frozen.
        weights: (R, N), how often each subject counts in each.
        searched: As in `Tested`.
    """

    def __init__(
        self,
        part: TestPart,
        threshold: Threshold,
        weights: NDArray[np.int64],
        searched: TestPart | None = None,
    ) -> None:
        super().__init__(part, threshold, searched)
        self.weights = weights

    @cached_property
    def curves(self) -> dict[str, Values]:
        """Areas and best Dice over the voxels of the grid, (R,) each."""
        return weighted_curves(self.part.histograms(), self.weights)

    @cached_property
    def slice_curves(self) -> dict[str, Values]:
        """The same over axial slices."""
        return weighted_curves(self.part.slice_histograms(), self.weights)


def leave_out(value: Callable[[Tested], float], one: Weighted) -> Values:
    """A metric in weightings of 0 and 1, from its value alone: (R,), NaN where nobody is left."""
    kept = one.weights.astype(bool)
    return np.array([value(LeftOut(one, row)) if row.any() else np.nan for row in kept])


def _check(test: TestPart, threshold: Threshold) -> None:
    """Refuse a part that is none to report on, and a threshold that does not belong to it.

    Raises:
        TypeError: `test` is not a test part.
        EvaluationError: see `Tested`.
    """
    if not isinstance(test, TestPart):
        raise TypeError(f"expected a TestPart to report on, came {type(test).__name__}")
    if threshold.fitted_on == test.name:
        raise EvaluationError(
            f"threshold {threshold.rule!r} was fitted on {test.name!r} itself; expected one from "
            "a threshold part: the best Dice on the test part is reported as `upper_bound_dice`"
        )
    expected = float(dequantise(threshold.level, test.score_range))
    level_width = (test.score_range[1] - test.score_range[0]) / MAX_LEVEL
    if abs(expected - threshold.value) > level_width / 2:
        raise EvaluationError(
            f"threshold level {threshold.level} stands for score {threshold.value}, but for "
            f"{expected} in the range {test.score_range} of {test.name!r}; fit it on counts of "
            "the same method and score range"
        )
