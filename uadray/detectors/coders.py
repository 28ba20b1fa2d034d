"""Encoders, decoders and critics that the autoencoders and adversarial methods share, in 2D and 3D.

The layers are those of the comparative study of the authors of Baur 2018 (which names no layers but
those of its latents): convolutions with kernel 5 and stride 2, a norm, a leaky ReLU; transposed
convolutions back, and a 1x1 convolution to one channel.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor, nn

from uadray.detectors.blocks import channels_last, down, norm, pointwise, up
from uadray.errors import ConfigError

Norm = Literal["none", "batch", "group"]


def coarse_grid(
    shape: tuple[int, int, int], ndim: int, num_halvings: int, method: str
) -> tuple[int, ...]:
    """Shape of the coarsest maps of samples of volumes of `shape` (Z, Y, X).

    Raises:
        ConfigError: a side is not divisible by 2 for each strided convolution.
    """
    spatial, factor = shape[3 - ndim :], 2**num_halvings
    if any(n % factor for n in spatial):
        raise ConfigError(
            f"volumes of {shape} do not fit {method}: sides must be divisible by {factor}; "
            "prepare the cohort with another --size, or give fewer --method.widths"
        )
    return tuple(n // factor for n in spatial)


class Dense(Protocol):
    """Settings of a method with a dense latent, as encoder and decoder take them."""

    @property
    def ndim(self) -> Literal[2, 3]: ...  # noqa: D102
    @property
    def widths(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def latent_size(self) -> int: ...  # noqa: D102
    @property
    def bottleneck(self) -> int: ...  # noqa: D102
    @property
    def norm(self) -> Norm: ...  # noqa: D102
    @property
    def slope(self) -> float: ...  # noqa: D102


def _dense_settings(config: Dense, grid: Sequence[int]) -> dict[str, Any]:
    return {
        "ndim": config.ndim,
        "grid": grid,
        "widths": config.widths,
        "latent_size": config.latent_size,
        "bottleneck": config.bottleneck,
        "norm_kind": config.norm,
        "slope": config.slope,
    }


class Encoder(nn.Module):
    """Convolutions with stride 2, then one or more heads onto the latent.

    Args:
        ndim: 2 or 3.
        grid: Shape of the coarsest maps.
        widths: Feature maps of the convolutions.
        latent_size: Units of a dense latent; 0 for a spatial one.
        latent_width: Maps of a spatial latent; 0 takes the maps of the last convolution.
        bottleneck: Maps of the 1x1 convolution before the dense heads.
        heads: How many outputs there are, such as mu and log sigma.
        norm_kind: Normalisation behind each convolution.
        slope: Negative slope of the leaky ReLU.
    """

    def __init__(
        self,
        ndim: int,
        grid: Sequence[int],
        widths: Sequence[int],
        *,
        latent_size: int = 0,
        latent_width: int = 0,
        bottleneck: int = 16,
        heads: int = 1,
        norm_kind: Norm = "group",
        slope: float = 0.3,
    ) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(down(ndim, a, b), *norm(norm_kind, ndim, b), nn.LeakyReLU(slope))
                for a, b in zip((1, *widths), widths, strict=False)
            )
        )
        last: nn.Module = nn.Identity()
        if latent_size:
            last = nn.Sequential(pointwise(ndim, widths[-1], bottleneck), nn.Flatten())
        self.squeeze = last
        dense = bottleneck * math.prod(grid)
        made: list[nn.Module] = []
        for _ in range(heads):
            if latent_size:
                made.append(nn.Linear(dense, latent_size))
            elif latent_width:
                made.append(pointwise(ndim, widths[-1], latent_width))
            else:
                made.append(nn.Identity())
        self.heads = nn.ModuleList(made)
        lay_out(self, ndim)

    @classmethod
    def dense(cls, config: Dense, grid: Sequence[int], *, heads: int = 1) -> Self:
        """Onto the dense latent of a method's settings."""
        return cls(heads=heads, **_dense_settings(config, grid))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, 1, *spatial) to the output of each head, (B, units) or (B, maps, *grid)."""
        features = self.squeeze(self.blocks(x))
        return tuple(head(features) for head in self.heads)


class Decoder(nn.Module):
    """A latent back to an image: the mirror of `Encoder`, with the same arguments.

    Args:
        output: What it ends in.
    """

    def __init__(
        self,
        ndim: int,
        grid: Sequence[int],
        widths: Sequence[int],
        *,
        latent_size: int = 0,
        latent_width: int = 0,
        bottleneck: int = 16,
        norm_kind: Norm = "group",
        slope: float = 0.3,
        output: Literal["linear", "sigmoid"] = "linear",
    ) -> None:
        super().__init__()
        first: nn.Module = nn.Identity()
        if latent_size:
            first = nn.Sequential(
                nn.Linear(latent_size, bottleneck * math.prod(grid)),
                nn.Unflatten(1, (bottleneck, *grid)),
            )
        self.expand = first
        given = bottleneck if latent_size else latent_width
        opening = [pointwise(ndim, given, widths[-1])] if given else []
        opening += [*norm(norm_kind, ndim, widths[-1]), nn.ReLU()]
        outputs = (*reversed(widths[:-1]), widths[0])
        self.blocks = nn.Sequential(
            nn.Sequential(*opening),
            *(
                nn.Sequential(up(ndim, a, b), *norm(norm_kind, ndim, b), nn.LeakyReLU(slope))
                for a, b in zip(reversed(widths), outputs, strict=True)
            ),
        )
        self.last = pointwise(ndim, widths[0], 1)
        self.sigmoid = output == "sigmoid"
        lay_out(self, ndim)

    @classmethod
    def dense(
        cls, config: Dense, grid: Sequence[int], *, output: Literal["linear", "sigmoid"] = "linear"
    ) -> Self:
        """Of the dense latent of a method's settings."""
        return cls(output=output, **_dense_settings(config, grid))

    def forward(self, z: Tensor) -> Tensor:
        """The latent to (B, 1, *spatial) float32, not clamped."""
        return self.finish(self.blocks(self.expand(z)))

    def finish(self, features: Tensor) -> Tensor:
        """The last maps to the image."""
        image: Tensor = self.last(features).float()
        return image.sigmoid() if self.sigmoid else image


class Critic(nn.Module):
    """A whole image to one number: the convolutions of `Encoder` and a dense layer.

    It has no batch normalisation, which a penalty on the gradient of single images forbids.
    """

    def __init__(
        self, ndim: int, grid: Sequence[int], widths: Sequence[int], slope: float = 0.2
    ) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(down(ndim, a, b), *norm("group", ndim, b), nn.LeakyReLU(slope))
                for a, b in zip((1, *widths), widths, strict=False)
            ),
            nn.Flatten(),
        )
        self.score = nn.Linear(widths[-1] * math.prod(grid), 1)
        lay_out(self, ndim)

    def features(self, x: Tensor) -> Tensor:
        """What the score is a linear function of, (B, units)."""
        features: Tensor = self.blocks(x)
        return features

    def forward(self, x: Tensor) -> Tensor:
        """Larger is more real, (B,) float32, without bounds."""
        score: Tensor = self.score(self.features(x))
        return score.float()[:, 0]


def lay_out(module: nn.Module, ndim: int) -> None:
    """Let convolutions keep their weights as they are fastest."""
    for layer in module.modules():
        if isinstance(layer, nn.modules.conv._ConvNd) and 1 not in layer.weight.shape[:2]:
            layer.to(memory_format=channels_last(ndim))  # type: ignore[call-overload]


def uniform(noise: Tensor) -> Tensor:
    """Uniform numbers in (0, 1) of standard normal ones."""
    return 0.5 * torch.erfc(-noise / math.sqrt(2))


def dropped(x: Tensor, noise: Tensor, rate: float) -> Tensor:
    """Dropout whose choice comes from the noise, so that a resumed fit repeats it.

    Args:
        x: What to drop from.
        noise: Standard normal, broadcast to `x`.
        rate: Share that becomes 0; the rest grows by 1 / (1 - rate).
    """
    return x * (uniform(noise) >= rate) / (1 - rate)


def divergence(mu: Tensor, log_sigma: Tensor) -> Tensor:
    """KL divergence of N(mu, sigma^2) from N(0, 1) in each unit of the latent, in nats."""
    return 0.5 * (mu.square() + (2 * log_sigma).exp() - 1 - 2 * log_sigma)


MAX_LOG_SIGMA = 4.0
"""Bound of |log sigma|: sigma lies between 0.018 and 55; the prior's is 1."""


def bounded(log_sigma: Tensor) -> Tensor:
    """Log sigma within a bound, float32.

    One bad step may throw it so far that exp overflows. A hard clamp would have no gradient there
    and never come back; this bound is smooth.
    """
    return MAX_LOG_SIGMA * torch.tanh(log_sigma.float() / MAX_LOG_SIGMA)
