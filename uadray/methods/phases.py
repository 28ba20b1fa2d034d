"""Transposed convolutions of stride 2 as convolutions of stride 1 on the phases of their output.

Each of the 2^n phases of the output is a convolution with kernel 3 of the input, all of them
together one convolution to 2^n times the maps. It multiplies 1.7 times as much (216 taps for 125 in
3D), and its gradients are those of a plain convolution, for which GPUs have faster kernels than for
strided ones.
"""

from typing import Any

from torch import Tensor, nn

from uadray.methods.taps import taps_by_phase

BY_PHASES = False
"""Whether a GPU takes this way; `python -m benchmarks.gpu` measures which of the two is faster."""


def transpose_by_phases(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A transposed convolution with kernel 5, stride 2, padding 2 and output padding 1.

    Args:
        x: (B, maps, *spatial).
        weight: (maps, maps of the output, 5, ...).
        bias: (maps of the output,).

    Returns:
        (B, maps of the output, *(2 * spatial)), channels last.
    """
    ndim, (width_in, width_out) = x.ndim - 2, weight.shape[:2]
    # Output 2 q + p takes input q + j with tap p + 2 - 2 j: the places in reverse.
    taps = taps_by_phase(weight.flatten(0, 1)[:, None], ndim)
    taps = taps.flip(tuple(range(1 + ndim, 1 + 2 * ndim))).unflatten(0, (width_in, width_out))
    phases, places = range(2, 2 + ndim), range(2 + ndim, 2 + 2 * ndim)
    taps = taps.permute(*phases, 1, 0, *places).flatten(0, ndim)
    convolve = nn.functional.conv2d if ndim == 2 else nn.functional.conv3d
    out = convolve(x, taps, None if bias is None else bias.repeat(2**ndim), padding=1)
    last = out.movedim(1, -1).unflatten(-1, (*[2] * ndim, width_out))
    order = [axis for d in range(ndim) for axis in (1 + d, 1 + ndim + d)]
    last = last.permute(0, *order, 1 + 2 * ndim)
    for axis in range(ndim):
        last = last.flatten(1 + axis, 2 + axis)
    return last.movedim(-1, 1)


class _Phased:
    """Takes the way by phases where that is on and there is a GPU."""

    weight: Tensor
    bias: Tensor | None

    def forward(self, x: Tensor, output_size: Any = None) -> Tensor:
        """As the layer that it derives from."""
        if BY_PHASES and x.is_cuda:
            return transpose_by_phases(x, self.weight, self.bias)
        plain: Tensor = super().forward(x, output_size)  # type: ignore[misc]
        return plain


class ConvTranspose2d(_Phased, nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` with kernel 5, stride 2, padding 2 and output padding 1."""


class ConvTranspose3d(_Phased, nn.ConvTranspose3d):
    """`nn.ConvTranspose3d` with kernel 5, stride 2, padding 2 and output padding 1."""
