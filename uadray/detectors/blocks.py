"""Layers that work in 2D and 3D, with exact fast forms of the two ends of a network.

The first convolution has one input channel and the last one output channel, which wastes the
hardware. Both have stride 2, so they equal a stride-1 convolution with kernel 3 on the 2^n phases
of the image (space to depth), with the same parameters.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from uadray.methods.network import GROUPS, KERNEL

_CONV: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}
_DECONV: dict[int, Any] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_NORM: dict[int, Any] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_CONV_FUNCTION: dict[int, Any] = {2: functional.conv2d, 3: functional.conv3d}


def pointwise(ndim: int, width_in: int, width_out: int) -> nn.Module:
    """A 1x1 convolution."""
    layer: nn.Module = _CONV[ndim](width_in, width_out, 1)
    return layer


def same(ndim: int, width_in: int, width_out: int) -> nn.Module:
    """A convolution with kernel 3 that keeps each side."""
    layer: nn.Module = _CONV[ndim](width_in, width_out, 3, padding=1)
    return layer


def down(ndim: int, width_in: int, width_out: int) -> nn.Module:
    """A convolution with kernel 5 that halves each side."""
    if width_in == 1:
        return EntryConv(ndim, width_out)
    layer: nn.Module = _CONV[ndim](width_in, width_out, KERNEL, stride=2, padding=2)
    return layer


def up(ndim: int, width_in: int, width_out: int) -> nn.Module:
    """A transposed convolution with kernel 5 that doubles each side."""
    if width_out == 1:
        return ExitConv(ndim, width_in)
    layer: nn.Module = _DECONV[ndim](
        width_in, width_out, KERNEL, stride=2, padding=2, output_padding=1
    )
    return layer


def norm(kind: str, ndim: int, width: int) -> list[nn.Module]:
    """The normalisation layer of that kind, or none."""
    if kind == "batch":
        return [_NORM[ndim](width)]
    if kind == "group":
        return [nn.GroupNorm(GROUPS, width)]
    return []


def space_to_depth(x: Tensor, ndim: int) -> Tensor:
    """(B, 1, *spatial) to (B, 2^ndim, *spatial / 2): one channel a phase."""
    for axis in range(ndim):
        x = x.unflatten(2 + 2 * axis, (-1, 2))
    phases = tuple(3 + 2 * axis for axis in range(ndim))
    halves = tuple(2 + 2 * axis for axis in range(ndim))
    return x.permute(0, 1, *phases, *halves).flatten(1, 1 + ndim)


def depth_to_space(x: Tensor, ndim: int) -> Tensor:
    """The inverse of `space_to_depth`."""
    x = x.unflatten(1, (1, *[2] * ndim))
    order = [axis for d in range(ndim) for axis in (2 + ndim + d, 2 + d)]
    x = x.permute(0, 1, *order)
    for axis in range(ndim):
        x = x.flatten(2 + axis, 3 + axis)
    return x


def _taps_by_phase(weight: Tensor, ndim: int) -> Tensor:
    """(W, 1, 5, ...) to (W, 2, ..., 3, ...): tap k = 2 a + p goes to place a of phase p."""
    weight = functional.pad(weight, (0, 1) * ndim)[:, 0]
    for axis in range(ndim):
        weight = weight.unflatten(1 + 2 * axis, (3, 2))
    phases = tuple(2 + 2 * axis for axis in range(ndim))
    places = tuple(1 + 2 * axis for axis in range(ndim))
    return weight.permute(0, *phases, *places)


class EntryConv(nn.Module):
    """One channel to `width`, kernel 5, stride 2, padding 2; parameters as `nn.ConvNd`."""

    def __init__(self, ndim: int, width: int) -> None:
        super().__init__()
        self.ndim = ndim
        self.conv: Any = _CONV[ndim](1, width, KERNEL, stride=2, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, *spatial) to (B, width, *spatial / 2)."""
        weight = _taps_by_phase(self.conv.weight, self.ndim).flatten(1, self.ndim)
        phases = space_to_depth(x, self.ndim)
        out: Tensor = _CONV_FUNCTION[self.ndim](phases, weight, self.conv.bias, padding=1)
        return out


class ExitConv(nn.Module):
    """`width` channels to one, transposed, kernel 5, stride 2; as `nn.ConvTransposeNd`."""

    def __init__(self, ndim: int, width: int) -> None:
        super().__init__()
        self.ndim = ndim
        self.conv: Any = _DECONV[ndim](width, 1, KERNEL, stride=2, padding=2, output_padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, *spatial) to (B, 1, 2 * spatial)."""
        # Output 2 q + p takes input q + j with tap p + 2 - 2 j: the places in reverse.
        weight = _taps_by_phase(self.conv.weight, self.ndim).flip(
            tuple(range(1 + self.ndim, 1 + 2 * self.ndim))
        )
        weight = weight.flatten(1, self.ndim).transpose(0, 1)
        bias = self.conv.bias.expand(2**self.ndim)
        out: Tensor = _CONV_FUNCTION[self.ndim](x, weight, bias, padding=1)
        return depth_to_space(out, self.ndim)


def channels_last(ndim: int) -> torch.memory_format:
    """The memory format in which convolutions are fastest."""
    return torch.channels_last if ndim == 2 else torch.channels_last_3d
