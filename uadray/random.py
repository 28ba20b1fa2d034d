"""Counter-based random numbers: a value is a function of its address, never of a generator's state.

The address is (seed, epoch, sample id, stream, counter). The same address gives the same bits on
CPU and GPU, in any batch, on any number of workers, in a first run or a resumed one. The mixing
function is the 64-bit finaliser of SplitMix64 (Steele, Lea and Flood 2014).
"""

import math

import numpy as np
from numpy.typing import NDArray

from uadray.lazy import Tensor, torch

_MASK64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)

PARAMETERS, NOISE, LATENT = range(3)
"""Streams: what the numbers are for, so that no two uses share a value."""


def _signed(value: int) -> int:
    value &= _MASK64
    return value - (1 << 64) if value >> 63 else value


def _mix_int(value: int) -> int:
    value &= _MASK64
    value = ((value ^ (value >> 30)) * _MULTIPLIERS[0]) & _MASK64
    value = ((value ^ (value >> 27)) * _MULTIPLIERS[1]) & _MASK64
    return value ^ (value >> 31)


def _mix_words_(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix in place."""
    high = value >> np.uint64(30)
    value ^= high
    value *= np.uint64(_MULTIPLIERS[0])
    np.right_shift(value, np.uint64(27), out=high)
    value ^= high
    value *= np.uint64(_MULTIPLIERS[1])
    np.right_shift(value, np.uint64(31), out=high)
    value ^= high
    return value


def _mix_(value: Tensor) -> Tensor:
    """Mix in place."""
    # int64 wraps in torch as two's complement; its shift is arithmetic, so mask the sign's copies.
    high = value >> 30
    value.bitwise_xor_(high.bitwise_and_(2**34 - 1)).mul_(_signed(_MULTIPLIERS[0]))
    torch.bitwise_right_shift(value, 27, out=high)
    value.bitwise_xor_(high.bitwise_and_(2**37 - 1)).mul_(_signed(_MULTIPLIERS[1]))
    torch.bitwise_right_shift(value, 31, out=high)
    return value.bitwise_xor_(high.bitwise_and_(2**33 - 1))


def keys(seed: int, epoch: int, ids: Tensor, stream: int) -> Tensor:
    """One key a sample.

    Args:
        seed: The run's seed.
        epoch: The epoch, from 0.
        ids: Sample ids, (B,) int64.
        stream: What the numbers are for.

    Returns:
        (B,) int64 on the ids' device.
    """
    base = _mix_int(_mix_int(_mix_int(seed) + epoch + 1) + stream + 1)
    return _mix_(ids * _signed(_GOLDEN) + _signed(base))


def bits(key: Tensor, counter: Tensor) -> Tensor:
    """32 random bits at each counter, as int64 in [0, 2^32); shapes broadcast."""
    if key.device.type == "cpu":  # NumPy has unsigned words, and takes a third of torch's time
        words = counter.numpy().view(np.uint64) * np.uint64(_GOLDEN)
        words = words + (key.numpy().view(np.uint64) + np.uint64(_GOLDEN))
        words = _mix_words_(words) >> np.uint64(32)
        return torch.from_numpy(words.view(np.int64))
    return bits_on_device(key, counter)


def bits_on_device(key: Tensor, counter: Tensor) -> Tensor:
    """`bits` by torch's operations alone, as accelerators compute it."""
    mixed = _mix_(counter * _signed(_GOLDEN) + (key + _signed(_GOLDEN)))
    return mixed.bitwise_right_shift_(32).bitwise_and_(2**32 - 1)


def uniform(key: Tensor, count: int) -> Tensor:
    """Uniform float64 in (0, 1), (B, count), at the counters 0 to count - 1."""
    counter = torch.arange(count, device=key.device)
    return (bits(key[:, None], counter).double() + 0.5) / 2**32


def normal(key: Tensor, count: int) -> Tensor:
    """Standard normal float32, (B, count), by Box and Muller."""
    u = uniform(key, 2 * count)
    radius = torch.sqrt(-2 * torch.log(u[:, :count]))
    return (radius * torch.cos(2 * math.pi * u[:, count:])).float()
