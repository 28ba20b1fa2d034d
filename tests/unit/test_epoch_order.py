"""The order of an epoch as pure functions; tests/ray/test_stream.py reads real cohorts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uadray.data.sampling import (
    batch_share,
    epoch_groups,
    rank_rows,
    slice_order,
    step_sizes,
    subset_rows,
)
from uadray.errors import ConfigError

ROWS = st.lists(st.integers(0, 500), min_size=1, max_size=200, unique=True).map(
    lambda rows: np.array(sorted(rows))
)


@given(ROWS, st.integers(1, 8), st.integers(1, 40))
def test_workers_share_rows_and_steps(rows: np.ndarray, world: int, batch_size: int) -> None:
    if world > min(len(rows), batch_size):
        with pytest.raises(ConfigError, match=rf"{world} workers cannot share batches of"):
            rank_rows(rows, 0, world, batch_size)
        return
    parts = [rank_rows(rows, rank, world, batch_size) for rank in range(world)]
    assert np.array_equal(np.concatenate(parts), rows)
    assert all(len(part) > 0 for part in parts)
    shares = [batch_share(batch_size, rank, world) for rank in range(world)]
    assert sum(shares) == batch_size
    assert max(shares) - min(shares) <= 1
    # As many steps as one worker alone takes, though each has a part of its own.
    sizes = step_sizes([len(part) for part in parts], batch_size)
    assert len(sizes) == -(-len(rows) // batch_size)
    assert sum(sizes) == len(rows)


@given(st.lists(st.integers(1, 90), min_size=1, max_size=6), st.integers(6, 40))
def test_steps_hold_what_each_worker_cuts(samples: list[int], batch_size: int) -> None:
    cut = []
    for rank, n in enumerate(samples):
        share = batch_share(batch_size, rank, len(samples))
        cut.append([min(share, n - start) for start in range(0, n, share)])
    steps = range(max(map(len, cut)))
    expected = [sum(sizes[k] for sizes in cut if k < len(sizes)) for k in steps]
    assert step_sizes(samples, batch_size) == expected


PEOPLE = st.lists(
    st.tuples(st.sampled_from(["", "guys", "hh", "iop"]), st.integers(1, 3)),
    min_size=1,
    max_size=60,
)
"""Of each subject: the scanner and the number of scans."""


@given(PEOPLE, st.integers(0, 9), st.lists(st.floats(0.01, 1), min_size=2, max_size=4))
def test_a_share_is_nested_whole_in_its_subjects_and_fair_to_scanners(
    people: list[tuple[str, int]], seed: int, shares: list[float]
) -> None:
    subjects = [k for k, (_, scans) in enumerate(people) for _ in range(scans)]
    # Scans of one person need not stand side by side.
    subjects = [subjects[i] for i in np.random.default_rng(seed).permutation(len(subjects))]
    scanners = [people[k][0] for k in subjects]
    rows = np.arange(len(subjects)) * 3 + 5
    smaller: set[int] = set()
    for share in sorted(shares):
        kept = subset_rows(rows, subjects, scanners, share=share, seed=seed)
        again = subset_rows(rows, subjects, scanners, share=share, seed=seed)
        assert np.array_equal(kept, again)
        assert list(kept) == sorted(kept)
        assert smaller <= set(kept.tolist())
        smaller = set(kept.tolist())
        chosen = {subjects[(row - 5) // 3] for row in kept}
        assert len(kept) == sum(people[k][1] for k in chosen)  # no person is cut in two
        assert len(chosen) == max(1, round(share * len(people)))
        for scanner in set(scanners):
            members = {k for k, (name, _) in enumerate(people) if name == scanner}
            exact = len(chosen) * len(members) / len(people)
            assert abs(len(chosen & members) - exact) < 2
    whole = subset_rows(rows, subjects, scanners, share=1.0, seed=seed)
    assert np.array_equal(whole, rows)


def test_seeds_choose_different_subjects() -> None:
    rows = np.arange(200)
    scanners = ["a" if row % 4 else "b" for row in rows]
    chosen = [
        frozenset(subset_rows(rows, rows.tolist(), scanners, share=0.1, seed=seed).tolist())
        for seed in range(400)
    ]
    assert len(set(chosen)) == 400
    assert {len(c) for c in chosen} == {20}
    # Over many seeds each subject is as likely as any other: 400 draws of one in ten, 40 +- 6.
    counts = np.bincount(np.concatenate([sorted(c) for c in chosen]), minlength=200)
    assert counts.mean() == 40
    assert 5 < counts.std() < 7
    assert abs(counts - 40).max() < 4.5 * 6
    assert {sum(scanners[k] == "b" for k in c) for c in chosen} <= {4, 5, 6}


@given(ROWS, st.integers(0, 99), st.integers(0, 9), st.sampled_from([8, 16, 64]))
def test_an_epoch_is_a_permutation_read_in_pairs_of_shards(
    rows: np.ndarray, seed: int, epoch: int, shard: int
) -> None:
    groups = epoch_groups(rows, shard, seed=seed, epoch=epoch)
    assert sorted(np.concatenate(groups)) == list(rows)
    assert all(len(np.unique(g // shard)) <= 2 for g in groups)
    again = epoch_groups(rows, shard, seed=seed, epoch=epoch)
    assert all(np.array_equal(a, b) for a, b in zip(groups, again, strict=True))


def test_epochs_and_seeds_differ_and_mix_well() -> None:
    rows = np.arange(256)
    orders = {
        tuple(np.concatenate(epoch_groups(rows, 64, seed=s, epoch=e)))
        for s in range(3)
        for e in range(20)
    }
    assert len(orders) == 60
    place = np.array([np.argsort(order) for order in orders])
    # Over many epochs each volume comes early and late alike: 128 +- 4 standard errors.
    assert abs(place.mean(0) - 127.5).max() < 4 * 74 / np.sqrt(60)


def test_each_slice_with_brain_comes_once() -> None:
    has_brain = np.random.default_rng(0).random((7, 16)) < 0.5
    order = slice_order(has_brain, seed=1, epoch=2, group=0)
    assert sorted(map(tuple, order)) == sorted(map(tuple, np.argwhere(has_brain)))
    other = slice_order(has_brain, seed=1, epoch=2, group=1)
    assert not np.array_equal(order, other)
