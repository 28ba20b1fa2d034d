"""Layers that work in 2D and 3D, with exact fast forms of the two ends of a network.

The first convolution has one input channel and the last one output channel, which wastes the
hardware. Both have stride 2, so they equal a stride-1 convolution with kernel 3 on the 2^n phases
of the image (space to depth), with the same parameters.
"""

from typing import Any

from uadray.errors import ConfigError
from uadray.lazy import Module, Tensor, functional, nn, torch
from uadray.methods.taps import taps_by_phase

KERNEL = 5
"""Kernel of all strided convolutions (Bengs 2021, figure 2)."""

GROUPS = 8
"""Groups of channels that group normalisation normalises together."""

OUTPUT_RANGE = (0.0, 1.0)
"""Reconstructions are clamped to the range of the intensities before they are compared."""


def constants() -> dict[str, Any]:
    """What a forward pass depends on besides the settings, as JSON values, for `config.json`."""
    return {
        "kernel_size": KERNEL,
        "group_norm_groups": GROUPS,
        "output_range": list(OUTPUT_RANGE),
    }


def coarse_grid(config: Any, shape: tuple[int, int, int]) -> tuple[int, ...]:
    """Shape of the coarsest maps of samples of volumes of `shape` (Z, Y, X).

    Args:
        config: Settings with `ndim` and the `widths` of strided convolutions.
        shape: Of a volume.

    Raises:
        ConfigError: a side is not divisible by 2 for each strided convolution.
    """
    spatial, factor = shape[3 - config.ndim :], 2 ** len(config.widths)
    if any(n % factor for n in spatial):
        raise ConfigError(
            f"volumes of {shape} do not fit {config.label or f'the {config.type_name()}'}: sides "
            f"must be divisible by {factor}; prepare the cohort with another --size, or give fewer "
            "--method.widths"
        )
    return tuple(n // factor for n in spatial)


def _layer(name: str, ndim: int, *args: Any, **kwargs: Any) -> Any:
    """`nn.Conv2d` or `nn.Conv3d` of `Conv`, and so on."""
    return getattr(nn, f"{name}{ndim}d")(*args, **kwargs)


def _convolve(ndim: int, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return (functional.conv2d if ndim == 2 else functional.conv3d)(x, weight, bias, padding=1)


def pointwise(ndim: int, width_in: int, width_out: int) -> Module:
    """A 1x1 convolution."""
    layer: Module = _layer("Conv", ndim, width_in, width_out, 1)
    return layer


def same(ndim: int, width_in: int, width_out: int) -> Module:
    """A convolution with kernel 3 that keeps each side."""
    layer: Module = _layer("Conv", ndim, width_in, width_out, 3, padding=1)
    return layer


def down(ndim: int, width_in: int, width_out: int) -> Module:
    """A convolution with kernel 5 that halves each side."""
    if width_in == 1:
        return EntryConv(ndim, width_out)
    layer: Module = _layer("Conv", ndim, width_in, width_out, KERNEL, stride=2, padding=2)
    return layer


def up(ndim: int, width_in: int, width_out: int) -> Module:
    """A transposed convolution with kernel 5 that doubles each side."""
    if width_out == 1:
        return ExitConv(ndim, width_in)
    from uadray.methods.phases import ConvTranspose2d, ConvTranspose3d

    kind = ConvTranspose2d if ndim == 2 else ConvTranspose3d
    return kind(width_in, width_out, KERNEL, **_DOUBLING)


_DOUBLING: Any = {"stride": 2, "padding": 2, "output_padding": 1}


def norm(kind: str, ndim: int, width: int) -> list[Module]:
    """The normalisation layer of that kind, or none."""
    if kind == "batch":
        return [_layer("BatchNorm", ndim, width)]
    return [nn.GroupNorm(GROUPS, width)] if kind == "group" else []


def stack(*layers: Module) -> Module:
    """Layers one after another, named as in `nn.Sequential`; on a GPU fused while they learn."""
    from uadray.methods.fused import Stack

    return Stack(*layers)


def space_to_depth(x: Tensor, ndim: int) -> Tensor:
    """(B, 1, *spatial) to (B, 2^ndim, *spatial / 2): one channel a phase."""
    for axis in range(ndim):
        x = x.unflatten(2 + 2 * axis, (-1, 2))
    phases = tuple(3 + 2 * axis for axis in range(ndim))
    halves = tuple(2 + 2 * axis for axis in range(ndim))
    return x.permute(0, 1, *phases, *halves).flatten(1, 1 + ndim)


def space_to_depth_last(x: Tensor, ndim: int) -> Tensor:
    """The same with channels last in memory, by one copy."""
    for axis in range(ndim):
        x = x.unflatten(2 + 2 * axis, (-1, 2))
    phases = tuple(3 + 2 * axis for axis in range(ndim))
    halves = tuple(2 + 2 * axis for axis in range(ndim))
    return x.permute(0, *halves, 1, *phases).flatten(1 + ndim).movedim(-1, 1)


def depth_to_space(x: Tensor, ndim: int) -> Tensor:
    """The inverse of `space_to_depth`."""
    x = x.unflatten(1, (1, *[2] * ndim))
    order = [axis for d in range(ndim) for axis in (2 + ndim + d, 2 + d)]
    x = x.permute(0, 1, *order)
    for axis in range(ndim):
        x = x.flatten(2 + axis, 3 + axis)
    return x


class EntryConv(Module):
    """One channel to `width`, kernel 5, stride 2, padding 2; parameters as `nn.ConvNd`."""

    def __init__(self, ndim: int, width: int) -> None:
        super().__init__()
        self.ndim = ndim
        self.conv: Any = _layer("Conv", ndim, 1, width, KERNEL, stride=2, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, *spatial) to (B, width, *spatial / 2)."""
        weight = taps_by_phase(self.conv.weight, self.ndim).flatten(1, self.ndim)
        # A GPU gives its output the layout of the input; a CPU that of the weight, too.
        phases = (space_to_depth_last if x.is_cuda else space_to_depth)(x, self.ndim)
        return _convolve(self.ndim, phases, weight, self.conv.bias)


class ExitConv(Module):
    """`width` channels to one, transposed, kernel 5, stride 2; as `nn.ConvTransposeNd`."""

    def __init__(self, ndim: int, width: int) -> None:
        super().__init__()
        self.ndim = ndim
        self.conv: Any = _layer("ConvTranspose", ndim, width, 1, KERNEL, **_DOUBLING)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, *spatial) to (B, 1, 2 * spatial)."""
        # Output 2 q + p takes input q + j with tap p + 2 - 2 j: the places in reverse.
        weight = taps_by_phase(self.conv.weight, self.ndim).flip(
            tuple(range(1 + self.ndim, 1 + 2 * self.ndim))
        )
        weight = weight.flatten(1, self.ndim).transpose(0, 1)
        bias = self.conv.bias.expand(2**self.ndim)
        return depth_to_space(_convolve(self.ndim, x, weight, bias), self.ndim)


def to_channels_last(module: Module, ndim: int) -> None:
    """Let convolutions keep their weights as they are fastest."""
    layout = torch.channels_last if ndim == 2 else torch.channels_last_3d
    for layer in module.modules():
        if isinstance(layer, nn.modules.conv._ConvNd) and 1 not in layer.weight.shape[:2]:
            layer.to(memory_format=layout)  # type: ignore[call-overload]
