"""The order of an epoch as pure functions; tests/ray/test_stream.py reads real cohorts."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from uadray.stream import epoch_groups, rank_rows, slice_order

ROWS = st.lists(st.integers(0, 500), min_size=1, max_size=200, unique=True).map(
    lambda rows: np.array(sorted(rows))
)


@given(ROWS, st.integers(1, 8))
def test_every_row_has_a_worker_and_all_take_the_same_number(rows: np.ndarray, world: int) -> None:
    parts = [rank_rows(rows, rank, world) for rank in range(world)]
    assert len({len(part) for part in parts}) == 1
    assert set(np.concatenate(parts)) == set(rows)
    assert len(np.concatenate(parts)) - len(rows) < world * -(-len(rows) // world)
    if len(rows) % world == 0:
        assert len(np.unique(np.concatenate(parts))) == len(rows)


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
