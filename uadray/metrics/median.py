"""Exact 3D median filter on 16-bit levels by selection networks: a minimum and a maximum a step.

No window of S^3 voxels is ever gathered. S voxels along z are sorted once and serve S^2 windows, S
such columns along x are merged once and serve S windows, and two windows that are neighbours in y
share the merge of the S - 1 rows that both hold, of which only the ranks that can be the median are
computed. A step compares whole stretches of voxels without a branch, so the compiler takes the
widest vectors that the machine has; which stretches a step compares is data, made once for a size.

The idea, separable selection networks that share their parts, is that of Adams 2021 ("Fast median
filters using separable sorting networks", ACM Transactions on Graphics 40), here in 3D.
"""

from functools import lru_cache
from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

_LANES = 256  # voxels that a step treats at once: the lists of a 5^3 window stay in the L2 cache
_BOTH, _ONLY_LOW, _ONLY_HIGH = 0, 1, 2  # which results of a step are of use


class _Network(NamedTuple):
    """Steps on wires, each of which holds one value a lane."""

    steps: NDArray[np.uint32]
    """(T, 3): wire that takes the minimum, wire that takes the maximum, which are of use."""

    ranks: NDArray[np.uint32]
    """(R,) wires of the results, in ascending order of what they hold."""


class _Plan(NamedTuple):
    """The networks of one window size S."""

    column: _Network
    """Sorts S voxels along z."""

    two_columns: _Network
    """Merges two neighbouring columns."""

    row: _Network
    """Merges (S - 1) / 2 such pairs and a column to the S^2 voxels of one row."""

    two_rows: _Network
    """Merges two neighbouring rows."""

    core: _Network
    """Merges (S - 1) / 2 such pairs; of the S^3 - S^2 ranks the S^2 + 1 that may be the median."""


def median_filter(
    levels: NDArray[np.uint16], mask: NDArray[np.bool_], size: int
) -> NDArray[np.uint16]:
    """Take the exact median of a cubic window around each voxel of the mask; 0 elsewhere.

    Windows see the whole volume, not only the mask. Beyond the volume's faces the image is
    mirrored with the edge voxel repeated: scipy's `reflect`.

    Args:
        levels: (Z, Y, X) uint16.
        mask: (Z, Y, X), where medians are wanted.
        size: Odd edge of the window, in voxels; 1 leaves the levels as they are.

    Returns:
        (Z, Y, X) uint16, equal to `scipy.ndimage.median_filter` inside the mask.
    """
    filtered = np.zeros_like(levels)
    if size == 1 or not mask.any():
        filtered[mask] = levels[mask]
        return filtered
    box = tuple(
        slice(int(used[0]), int(used[-1]) + 1)
        for used in (np.flatnonzero(mask.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1)))
    )
    seen = tuple(slice(side.start, side.stop + size - 1) for side in box)
    padded = np.pad(levels, size // 2, mode="symmetric")[seen]
    wanted = np.pad(mask[box], ((0, 0), (0, 0), (0, size - 1)))
    medians = np.zeros(wanted.transpose(1, 0, 2).shape, np.uint16)
    _filter(
        np.ascontiguousarray(padded.transpose(1, 0, 2)),
        np.ascontiguousarray(wanted.transpose(1, 0, 2)),
        size,
        _plan(size),
        medians,
    )
    inside = mask[box]
    filtered[box][inside] = medians.transpose(1, 0, 2)[:, :, : inside.shape[2]][inside]
    return filtered


@lru_cache
def _plan(size: int) -> _Plan:
    half, area = size // 2, size * size
    half_core = (size**3 - 1) // 2
    pairs = [list(range(2 * size * i, 2 * size * (i + 1))) for i in range(half)]
    rows = [list(range(2 * area * i, 2 * area * (i + 1))) for i in range(half)]
    # a rank of the S^3 - S^2 can be the median of S^3 if at most S^2 others push it there
    may_be_median = range(half_core - area, half_core + 1)
    return _Plan(
        column=_merge_all([[i] for i in range(size)]),
        two_columns=_merge_all([list(range(size)), list(range(size, 2 * size))]),
        row=_merge_all([*pairs, list(range(area - size, area))]),
        two_rows=_merge_all([list(range(area)), list(range(area, 2 * area))]),
        core=_merge_all(rows, may_be_median),
    )


def _merge_all(lists: list[list[int]], ranks: range | None = None) -> _Network:
    """Merge sorted lists of wires, the shortest first; keep the steps that `ranks` need."""
    steps: list[tuple[int, int]] = []
    while len(lists) > 1:
        first, second, *rest = sorted(lists, key=len)
        lists = [*rest, _merge(first, second, steps)]
    wires = lists[0] if ranks is None else [lists[0][rank] for rank in ranks]
    used, kept = set(wires), []
    for low, high in reversed(steps):
        if low in used or high in used:
            both = low in used and high in used
            kept.append((low, high, _BOTH if both else _ONLY_LOW if low in used else _ONLY_HIGH))
            used |= {low, high}
    return _Network(
        steps=np.array(kept[::-1], np.uint32).reshape(-1, 3), ranks=np.array(wires, np.uint32)
    )


def _merge(a: list[int], b: list[int], steps: list[tuple[int, int]]) -> list[int]:
    """Append Batcher's odd-even merge of two sorted lists of wires; return the merged order."""
    if not a or not b:
        return a + b
    if len(a) == len(b) == 1:
        steps.append((a[0], b[0]))
        return a + b
    odd, even = _merge(a[0::2], b[0::2], steps), _merge(a[1::2], b[1::2], steps)
    merged = [odd[0]]
    for high, low in zip(odd[1:], even, strict=False):
        steps.append((low, high))
        merged += [low, high]
    num_paired = min(len(odd) - 1, len(even))
    return merged + odd[1 + num_paired :] + even[num_paired:]


# Indices below are unsigned where they meet an array: a signed one may count from the end, and the
# test for it keeps the compiler from taking vectors. Rows are indexed and not sliced: a slice
# counts references, one by one and atomically.


@numba.njit(cache=True, nogil=True)
def _run(wires, network, num_lanes):  # type: ignore[no-untyped-def]
    """Run a network in place on (wires, lanes)."""
    steps, lanes = network.steps, range(np.uintp(num_lanes))
    for step in range(np.uintp(len(steps))):
        low, high, use = steps[step, 0], steps[step, 1], steps[step, 2]
        if use == _BOTH:
            for lane in lanes:
                a, b = wires[low, lane], wires[high, lane]
                wires[low, lane] = a if a < b else b
                wires[high, lane] = b if a < b else a
        elif use == _ONLY_LOW:
            for lane in lanes:
                a, b = wires[low, lane], wires[high, lane]
                wires[low, lane] = a if a < b else b
        else:
            for lane in lanes:
                a, b = wires[low, lane], wires[high, lane]
                wires[high, lane] = b if a < b else a


@numba.njit(cache=True, nogil=True)
def _copy(sorted_wires, ranks, shift, target, first, num_lanes):  # type: ignore[no-untyped-def]
    """Copy results in ascending order to wires `first`, `first` + 1, ..., `shift` lanes down."""
    shift, first = np.uintp(shift), np.uintp(first)
    for rank in range(np.uintp(len(ranks))):
        source, wire = ranks[rank], first + rank
        for lane in range(np.uintp(num_lanes)):
            target[wire, lane] = sorted_wires[source, lane + shift]


@numba.njit(cache=True, nogil=True)
def _sort_row(source, y, start, width, size, plan, columns, pairs, row, num_lanes):  # type: ignore[no-untyped-def]
    """Sort the S x S voxels of row `y` of each lane's window; leaves them on the wires `row`."""
    wide = num_lanes + size - 1
    for depth in range(size):
        _copy(source, np.array([y], np.uint32), start + depth * width, columns, depth, wide)
    _run(columns, plan.column, wide)
    ranks = plan.column.ranks
    _copy(columns, ranks, 0, pairs, 0, wide - 1)
    _copy(columns, ranks, 1, pairs, size, wide - 1)
    _run(pairs, plan.two_columns, wide - 1)
    for pair in range(size // 2):
        _copy(pairs, plan.two_columns.ranks, 2 * pair, row, 2 * size * pair, num_lanes)
    _copy(columns, ranks, size - 1, row, size * (size - 1), num_lanes)
    _run(row, plan.row, num_lanes)


@numba.njit(cache=True, nogil=True)
def _select(core, core_ranks, row, row_ranks, medians, y, start, num_lanes):  # type: ignore[no-untyped-def]
    """Take the middle of S^2 + 1 and S^2 sorted values: the least of the largest of each split."""
    y, start, last = np.uintp(y), np.uintp(start), core_ranks[-1]
    for lane in range(np.uintp(num_lanes)):
        medians[y, lane + start] = core[last, lane]
    for taken in range(len(row_ranks)):
        above, below = core_ranks[len(row_ranks) - 1 - taken], row_ranks[taken]
        for lane in range(np.uintp(num_lanes)):
            a, b, least = core[above, lane], row[below, lane], medians[y, lane + start]
            larger = a if a > b else b
            medians[y, lane + start] = larger if larger < least else least


@numba.njit(cache=True, nogil=True)
def _filter(source, wanted, size, plan, medians):  # type: ignore[no-untyped-def]
    """Fill (Y, Z, X + S - 1) medians from a (Y + S - 1, Z + S - 1, X + S - 1) source.

    Lanes run over z and x as they lie in memory; those beyond X in x hold what is of no use.
    """
    num_rows, width = wanted.shape[0], source.shape[2]
    area, half = size * size, size // 2
    source, wanted = source.reshape(len(source), -1), wanted.reshape(num_rows, -1)
    medians = medians.reshape(num_rows, -1)
    columns = np.empty((size, _LANES + size), np.uint16)
    pairs = np.empty((2 * size, _LANES + size), np.uint16)
    rows = np.empty((size + 1, area, _LANES), np.uint16)
    two_rows = np.empty((half, 2 * area, _LANES), np.uint16)
    core = np.empty((2 * area * half, _LANES), np.uint16)
    end = wanted.shape[1] - size + 1
    for start in range(0, end, _LANES):
        num_lanes = min(_LANES, end - start)
        first, last = _rows_with(wanted[:, start : start + num_lanes])
        next_row, next_pair = first, first + 1
        for y in range(first, last, 2):
            while next_row <= min(y + size, last + size - 2):
                _sort_row(
                    source, next_row, start, width, size, plan,
                    columns, pairs, rows[next_row % (size + 1)], num_lanes,
                )  # fmt: skip
                next_row += 1
            while next_pair <= y + size - 2:
                pair = two_rows[(next_pair - first) // 2 % half]
                for part in range(2):
                    row = rows[(next_pair + part) % (size + 1)]
                    _copy(row, plan.row.ranks, 0, pair, part * area, num_lanes)
                _run(pair, plan.two_rows, num_lanes)
                next_pair += 2
            for part in range(half):
                _copy(two_rows[part], plan.two_rows.ranks, 0, core, 2 * area * part, num_lanes)
            _run(core, plan.core, num_lanes)
            for here, other in ((y, y), (y + 1, y + size)):
                if here < last:
                    row = rows[other % (size + 1)]
                    _select(
                        core, plan.core.ranks, row, plan.row.ranks,
                        medians, here, start, num_lanes,
                    )  # fmt: skip


@numba.njit(cache=True, nogil=True)
def _rows_with(wanted):  # type: ignore[no-untyped-def]
    """Return the first row with a wanted lane and one past the last; both 0 where none has one."""
    first, last = 0, 0
    for row in range(len(wanted)):
        if wanted[row].any():
            if last == 0:
                first = row
            last = row + 1
    return first, last
