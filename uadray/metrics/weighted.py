"""Curves of many weighted sums of subjects in one sweep over the levels.

The sums are never laid out whole. From the highest level down, the subjects that have voxels at a
level add them to each sum, as often as it drew them, and the sum's areas and best Dice
move on. Subjects without voxels at a level, by far the most, cost nothing.
"""

import numba
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from uadray.metrics.histograms import SubjectHistograms

CURVES = ("auprc", "auroc", "upper_bound_dice")
"""What `weighted_curves` returns; each is defined in `metrics` under the same name."""

_AT_ONCE = 128  # sums of a sweep: the weights of 2000 subjects stay in the L2 cache


def weighted_curves(
    histograms: SubjectHistograms, weights: NDArray[np.integer]
) -> dict[str, NDArray[np.float64]]:
    """Take areas and best Dice of weighted sums of subjects.

    Exact: every count is a whole number below 2^53, kept as a float64.

    Args:
        histograms: Of N subjects.
        weights: (R, N), how often each subject counts in each of R sums; below 2^24.

    Returns:
        `CURVES`, each of shape (R,): the value that the function of that name in `metrics` gives
        for the sum; NaN where it is undefined.
    """
    healthy, lesion = (_by_level(counts) for counts in (histograms.healthy, histograms.lesion))
    num_healthy, num_lesion = (
        weights @ counts.sum(axis=1, dtype=np.float64)
        for counts in (histograms.healthy, histograms.lesion)
    )
    # level 0 means no anomaly: it is part of the areas, but nobody may choose it as a threshold
    lowest = int(np.searchsorted(histograms.levels, 0, side="right"))
    values = np.empty((len(CURVES), len(weights)))
    for start in range(0, len(weights), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        drawn = np.ascontiguousarray(weights[part].T, np.float32)
        _sweep(*healthy, *lesion, lowest, drawn, num_healthy[part], num_lesion[part], values, start)
    with np.errstate(invalid="ignore", divide="ignore"):
        values[0] /= num_lesion
        values[1] /= num_lesion * num_healthy
    values[2, num_lesion == 0] = np.nan
    return dict(zip(CURVES, values, strict=True))


def _by_level(counts: csr_array) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray]:
    columns = counts.tocsc()
    return (
        columns.indptr.astype(np.int64),
        columns.indices.astype(np.int32),
        columns.data.astype(np.float64),
    )


@numba.njit(cache=True, nogil=True)
def _sweep(  # type: ignore[no-untyped-def]
    healthy_starts, healthy_subjects, healthy_counts,
    lesion_starts, lesion_subjects, lesion_counts,
    lowest, weights, num_healthy, num_lesion, values, first,
):  # fmt: skip
    """Fill the unscaled areas and the best Dice of (N, R') weights into columns of `values`."""
    num = np.uintp(weights.shape[1])
    # one by one: rows of a matrix are typed as strided, and then no vectors are used
    true_positives, false_positives = np.zeros(num), np.zeros(num)
    lesion, healthy = np.zeros(num), np.zeros(num)
    precisions, beaten, best = np.zeros(num), np.zeros(num), np.zeros(num)
    for level in range(len(healthy_starts) - 2, -1, -1):
        healthy[:] = 0
        stop = healthy_starts[level + 1]
        _add(healthy, healthy_counts, healthy_subjects, healthy_starts[level], stop, weights, num)
        if lesion_starts[level] == lesion_starts[level + 1]:
            for r in range(num):
                false_positives[r] += healthy[r]
            continue
        lesion[:] = 0
        stop = lesion_starts[level + 1]
        _add(lesion, lesion_counts, lesion_subjects, lesion_starts[level], stop, weights, num)
        for r in range(num):
            above = false_positives[r]
            true_positives[r] += lesion[r]
            false_positives[r] = above + healthy[r]
            predicted = true_positives[r] + false_positives[r]
            # where nothing is predicted no lesion is gained, so the quotient does not matter
            precisions[r] += lesion[r] * true_positives[r] / max(predicted, 1.0)
            beaten[r] += lesion[r] * (num_healthy[r] - above - healthy[r] / 2)
        if level >= lowest:
            for r in range(num):
                predicted = true_positives[r] + false_positives[r]
                dice = 2 * true_positives[r] / max(predicted + num_lesion[r], 1.0)
                best[r] = max(best[r], dice)
    for r in range(num):
        values[0, first + r] = precisions[r]
        values[1, first + r] = beaten[r]
        values[2, first + r] = best[r]


@numba.njit(cache=True, nogil=True)
def _add(sums, counts, subjects, start, stop, weights, num):  # type: ignore[no-untyped-def]
    """Add subjects' counts at one level to every sum, as often as it drew each subject."""
    place = start
    while place + 4 <= stop:  # four at a time: the sums are read and written once for all of them
        a, b = np.uintp(subjects[place]), np.uintp(subjects[place + 1])
        c, d = np.uintp(subjects[place + 2]), np.uintp(subjects[place + 3])
        n_a, n_b, n_c, n_d = counts[place], counts[place + 1], counts[place + 2], counts[place + 3]
        for r in range(num):
            both = n_a * weights[a, r] + n_b * weights[b, r]
            sums[r] += both + (n_c * weights[c, r] + n_d * weights[d, r])
        place += 4
    while place < stop:
        row, count = np.uintp(subjects[place]), counts[place]
        for r in range(num):
            sums[r] += count * weights[row, r]
        place += 1
