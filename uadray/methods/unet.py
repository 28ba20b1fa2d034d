"""One U-Net for all methods that restore an image at full resolution, in 2D and 3D.

Concatenating skips, two convolutions of 3 a level, halved by means and doubled by repetition, and
perhaps a vector of numbers that scales and shifts the maps of each level (Perez 2018). None of its
operations sums in an undetermined order on a GPU.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from uadray.errors import ConfigError
from uadray.lazy import Module, Tensor, nn, torch
from uadray.methods.base import GradientDetector, Shape, in_pieces, with_brain
from uadray.methods.blocks import OUTPUT_RANGE, norm, pointwise, same, to_channels_last
from uadray.methods.settings import Learned, Norm, check_widths

MAX_VOXELS = 2**20
"""Voxels that are scored at a time: 4 volumes of 64^3, or 256 slices of 64 x 64."""


@dataclass(frozen=True, kw_only=True)
class UNetSettings(Learned):
    """Settings of the U-Net."""

    widths: tuple[int, ...] = (16, 32, 64, 128)
    """Feature maps of each level, finest first; each level after the first halves the sides. The
    papers have four to eight times as many, for slices of 96 to 240: the cost is their square."""
    norm: Norm = "group"
    """Normalisation after each convolution."""
    activation: Literal["silu", "relu"] = "silu"
    """After each normalisation."""

    def __post_init__(self) -> None:
        check_widths(self.widths)


class UNet(Module):
    """An image, or several, to an image of the same size.

    Args:
        config: Settings.
        channels: Images that it is given.
        condition: Numbers that it is conditioned on; 0 for none.
    """

    def __init__(self, config: UNetSettings, *, channels: int = 1, condition: int = 0) -> None:
        super().__init__()
        n, widths = config.ndim, config.widths
        self.ndim = n
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for width_in, width_out in zip((channels, *widths), widths, strict=False):
            self.down.append(_Level(config, width_in, width_out, condition))
        for coarse, fine in zip(reversed(widths[1:]), reversed(widths[:-1]), strict=True):
            self.up.append(_Level(config, coarse + fine, fine, condition))
        self.last = pointwise(n, widths[0], 1)
        to_channels_last(self, n)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """(B, channels, *spatial) and (B, condition) to (B, 1, *spatial) float32, not clamped."""
        skips: list[Tensor] = []
        for number, level in enumerate(self.down):
            x = level(halved(x, self.ndim) if number else x, condition)
            skips.append(x)
        skips.pop()
        for level in self.up:
            x = level(torch.cat([_doubled(x, self.ndim), skips.pop()], 1), condition)
        image: Tensor = self.last(x)
        return image.float()


class _Level(Module):
    """Two convolutions, each normalised and activated, the second scaled and shifted before."""

    def __init__(self, config: UNetSettings, width_in: int, width_out: int, condition: int) -> None:
        super().__init__()
        n, activation = config.ndim, nn.SiLU if config.activation == "silu" else nn.ReLU
        self.first = nn.Sequential(
            same(n, width_in, width_out), *norm(config.norm, n, width_out), activation()
        )
        self.second = nn.Sequential(same(n, width_out, width_out), *norm(config.norm, n, width_out))
        self.activation = activation()
        self.film: Any = None
        if condition:
            self.film = nn.Linear(condition, 2 * width_out)
            nn.init.zeros_(self.film.weight)
            nn.init.zeros_(self.film.bias)

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        x = self.second(self.first(x))
        if self.film is not None:
            numbers = self.film(condition)
            scale, shift = numbers.view(*numbers.shape, *[1] * (x.ndim - 2)).chunk(2, 1)
            x = x * (1 + scale) + shift
        out: Tensor = self.activation(x)
        return out


def halved(x: Tensor, ndim: int) -> Tensor:
    """Means of 2^ndim neighbours."""
    # Torch's own pooling has no deterministic gradient in 3D on a GPU.
    for axis in range(2, 2 + ndim):
        x = x.unflatten(axis, (-1, 2)).mean(axis + 1)
    return x


def _doubled(x: Tensor, ndim: int) -> Tensor:
    """Each value 2^ndim times."""
    for axis in range(2, 2 + ndim):
        sides = [-1] * (x.ndim + 1)
        sides[axis + 1] = 2
        x = x.unsqueeze(axis + 1).expand(sides).flatten(axis, axis + 1)
    return x


class Embedding(Module):
    """A number of each sample as a vector to condition on: sinusoids, then two dense layers.

    Args:
        size: Length of the vector.
        largest: The largest number; sinusoids are as for steps of a diffusion in [0, 1000).
    """

    def __init__(self, size: int, largest: float) -> None:
        super().__init__()
        self.size, self.factor = size, 1000 / largest
        self.layers = nn.Sequential(
            nn.Linear(2 * (size // 2), size), nn.SiLU(), nn.Linear(size, size)
        )

    def forward(self, number_B: Tensor) -> Tensor:
        """(B,) to (B, size)."""
        half = self.size // 2
        rates = torch.arange(half, device=number_B.device) * (-math.log(10_000) / half)
        angles = (self.factor * number_B.float())[:, None] * rates.exp()
        out: Tensor = self.layers(torch.cat([angles.cos(), angles.sin()], 1))
        return out


class UNetDetector(GradientDetector):
    """A method that makes the healthy version of an image with a U-Net, inside the brain."""

    config: UNetSettings

    def __init__(self, config: Any, shape: Shape) -> None:
        super().__init__(config, shape)
        self.spatial = tuple(self.grid)
        self.grid = _coarsest(config, shape)

    @abstractmethod
    def restored(self, x: Tensor, brain: Tensor) -> Tensor:
        """The healthy version of samples, not clamped; 0 outside the brain.

        Args:
            x: (B, 1, *spatial).
            brain: The same shape, bool.
        """

    def healthy(self, x: Tensor) -> Tensor:
        """The same, the brain being what is above 0."""
        return self.restored(x, x > 0)

    def reconstruct_within(self, x_BCZYX: Tensor, brain_BZYX: Tensor) -> Tensor:
        """The healthy version of volumes, 2D slice by slice, in [0, 1]."""
        return self.by_pieces(self.restored, x_BCZYX, brain_BZYX)

    def by_pieces(
        self,
        function: Callable[[Tensor, Tensor], Tensor],
        x_BCZYX: Tensor,
        brain_BZYX: Tensor,
        num_out: int = 1,
    ) -> Tensor:
        """A function of samples and their brains applied to volumes, within [0, 1] and the brain.

        Args:
            function: Of (N, 1, *spatial) and bool of the same shape, to (N, num_out, *spatial).
            x_BCZYX: Volumes.
            brain_BZYX: Their brains.
            num_out: Images that it gives of each.
        """

        def run(samples: Tensor) -> Tensor:
            brain = samples[:, 1:] > 0
            return function(samples[:, :1], brain).clamp(*OUTPUT_RANGE) * brain

        both = with_brain(x_BCZYX, brain_BZYX)
        return in_pieces(run, both, self.ndim, MAX_VOXELS, num_out)


def _coarsest(config: Any, shape: Sequence[int]) -> tuple[int, ...]:
    spatial, factor = tuple(shape[3 - config.ndim :]), 2 ** (len(config.widths) - 1)
    if any(n % factor for n in spatial):
        raise ConfigError(
            f"volumes of {tuple(shape)} do not fit {config.label}: sides must be divisible by "
            f"{factor}; prepare the cohort with another --size, or give fewer --method.widths"
        )
    return tuple(n // factor for n in spatial)
