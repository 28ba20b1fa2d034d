import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from uadray import random

MASK = (1 << 64) - 1


def reference_bits(key: int, index: int) -> int:
    """SplitMix64's output function in plain integers."""
    z = (key + (index + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return (z ^ (z >> 31)) >> 32


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**40))
def test_bits_equal_splitmix64_in_plain_integers(key: int, index: int) -> None:
    for bits in (random.bits, random.bits_on_device):
        got = bits(torch.tensor([key]), torch.tensor([index]))
        assert int(got) == reference_bits(key & MASK, index)


def test_shapes_broadcast_and_arguments_stay() -> None:
    key, index = torch.arange(3)[:, None] - 1, torch.arange(5) * 7
    want = [[reference_bits(k & MASK, i) for i in range(0, 35, 7)] for k in (-1, 0, 1)]
    for bits in (random.bits, random.bits_on_device):
        assert bits(key, index).tolist() == want
        assert bits(key, index[2]).shape == (3, 1)
    assert key.flatten().tolist() == [-1, 0, 1]
    assert index.tolist() == [0, 7, 14, 21, 28]


def test_a_number_depends_on_its_address_alone() -> None:
    ids = torch.arange(50)
    key = random.keys(3, 7, ids, random.NOISE)
    turned = random.keys(3, 7, ids.flip(0), random.NOISE).flip(0)
    assert torch.equal(key, turned)
    assert torch.equal(random.uniform(key, 9)[:, :4], random.uniform(key, 4))
    others = [
        random.keys(4, 7, ids, random.NOISE),
        random.keys(3, 8, ids, random.NOISE),
        random.keys(3, 7, ids, random.LATENT),
        random.keys(7, 3, ids, random.NOISE),
    ]
    assert len(torch.unique(torch.stack([key, *others]))) == 250


@pytest.mark.parametrize("axis", [0, 1])
def test_numbers_are_uniform_and_uncorrelated_along_samples_and_counters(axis: int) -> None:
    u = random.uniform(random.keys(0, 0, torch.arange(300), random.PARAMETERS), 300).numpy()
    assert stats.kstest(u.ravel(), "uniform").pvalue > 1e-3
    a, b = np.moveaxis(u, axis, 0)[:-1].ravel(), np.moveaxis(u, axis, 0)[1:].ravel()
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.015


def test_normal_numbers_are_standard_normal() -> None:
    n = random.normal(random.keys(1, 2, torch.arange(200), random.LATENT), 128)
    assert n.dtype == torch.float32
    assert stats.kstest(n.numpy().ravel(), "norm").pvalue > 1e-3
