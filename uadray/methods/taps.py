"""Kernels of strided convolutions, by the phase of the image that each tap meets."""

from uadray.lazy import Tensor, functional


def taps_by_phase(weight: Tensor, ndim: int) -> Tensor:
    """(W, 1, 5, ...) to (W, 2, ..., 3, ...): tap k = 2 a + p goes to place a of phase p."""
    weight = functional.pad(weight, (0, 1) * ndim)[:, 0]
    for axis in range(ndim):
        weight = weight.unflatten(1 + 2 * axis, (3, 2))
    phases = tuple(2 + 2 * axis for axis in range(ndim))
    places = tuple(1 + 2 * axis for axis in range(ndim))
    return weight.permute(0, *phases, *places)
