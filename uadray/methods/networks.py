"""Encoders, decoders and critics that the autoencoders and adversarial methods share, in 2D and 3D.

The layers are those of the comparative study of the authors of Baur 2018 (which names no layers but
those of its latents): convolutions with kernel 5 and stride 2, a norm, a leaky ReLU; transposed
convolutions back, and a 1x1 convolution to one channel.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Self

from uadray.device import full_float32
from uadray.lazy import Module, Tensor, functional, nn, torch
from uadray.methods.blocks import down, norm, pointwise, stack, to_channels_last, up
from uadray.methods.settings import Convolutional, DenseLatent, Norm


def _halving(
    ndim: int,
    widths: Sequence[int],
    norm_kind: Norm,
    slope: float,
    stacked: Callable[..., Module] = stack,
) -> list[Module]:
    """Convolutions with stride 2, each with its norm and activation."""
    return [
        stacked(down(ndim, a, b), *norm(norm_kind, ndim, b), nn.LeakyReLU(slope))
        for a, b in zip((1, *widths), widths, strict=False)
    ]


class Encoder(Module):
    """Convolutions with stride 2, then one or more heads onto the latent.

    Args:
        config: Settings of the convolutions.
        grid: Shape of the coarsest maps.
        widths: Feature maps of the convolutions where not those of the settings.
        latent_size: Units of a dense latent; 0 for a spatial one.
        latent_width: Maps of a spatial latent; 0 takes the maps of the last convolution.
        bottleneck: Maps of the 1x1 convolution before the dense heads.
        heads: How many outputs there are, such as mu and log sigma.
    """

    def __init__(
        self,
        config: Convolutional,
        grid: Sequence[int],
        *,
        widths: Sequence[int] = (),
        latent_size: int = 0,
        latent_width: int = 0,
        bottleneck: int = 16,
        heads: int = 1,
    ) -> None:
        super().__init__()
        ndim, widths = config.ndim, widths or config.widths
        self.blocks = nn.Sequential(*_halving(ndim, widths, config.norm, config.slope))
        self.squeeze: nn.Module = nn.Identity()
        if latent_size:
            self.squeeze = nn.Sequential(pointwise(ndim, widths[-1], bottleneck), nn.Flatten())

        def head() -> nn.Module:
            if latent_size:
                return nn.Linear(bottleneck * math.prod(grid), latent_size)
            return pointwise(ndim, widths[-1], latent_width) if latent_width else nn.Identity()

        self.heads = nn.ModuleList(head() for _ in range(heads))
        to_channels_last(self, ndim)

    @classmethod
    def dense(cls, config: DenseLatent, grid: Sequence[int], **more: Any) -> Self:
        """Onto the dense latent of a method's settings."""
        sizes: Any = {"latent_size": config.latent_size, "bottleneck": config.bottleneck}
        return cls(config, grid, **sizes, **more)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, 1, *spatial) to the output of each head, (B, units) or (B, maps, *grid)."""
        features = self.squeeze(self.blocks(x))
        return tuple(head(features) for head in self.heads)


class Decoder(Module):
    """A latent back to an image: the mirror of `Encoder`, with the same arguments.

    Args:
        sigmoid: Whether it ends in one.
    """

    def __init__(
        self,
        config: Convolutional,
        grid: Sequence[int],
        *,
        widths: Sequence[int] = (),
        latent_size: int = 0,
        latent_width: int = 0,
        bottleneck: int = 16,
        sigmoid: bool = False,
    ) -> None:
        super().__init__()
        ndim, widths, slope = config.ndim, widths or config.widths, config.slope
        self.expand: nn.Module = nn.Identity()
        if latent_size:
            self.expand = nn.Sequential(
                nn.Linear(latent_size, bottleneck * math.prod(grid)),
                nn.Unflatten(1, (bottleneck, *grid)),
            )
        given = bottleneck if latent_size else latent_width
        opening = [pointwise(ndim, given, widths[-1])] if given else []
        opening += [*norm(config.norm, ndim, widths[-1]), nn.ReLU()]
        outputs = (*reversed(widths[:-1]), widths[0])
        self.blocks = nn.Sequential(
            stack(*opening),
            *(
                stack(up(ndim, a, b), *norm(config.norm, ndim, b), nn.LeakyReLU(slope))
                for a, b in zip(reversed(widths), outputs, strict=True)
            ),
        )
        self.last = pointwise(ndim, widths[0], 1)
        self.sigmoid = sigmoid
        to_channels_last(self, ndim)

    @classmethod
    def dense(cls, config: DenseLatent, grid: Sequence[int], **more: Any) -> Self:
        """Of the dense latent of a method's settings."""
        sizes: Any = {"latent_size": config.latent_size, "bottleneck": config.bottleneck}
        return cls(config, grid, **sizes, **more)

    def forward(self, z: Tensor) -> Tensor:
        """The latent to (B, 1, *spatial) float32, not clamped."""
        return self.finish(self.blocks(self.expand(z)))

    def finish(self, features: Tensor) -> Tensor:
        """The last maps to the image."""
        image: Tensor = self.last(features).float()
        return image.sigmoid() if self.sigmoid else image


class Critic(Module):
    """A whole image to one number: the convolutions of `Encoder` and a dense layer.

    It has no batch normalisation, which a penalty on the gradient of single images forbids.
    """

    def __init__(
        self, ndim: int, grid: Sequence[int], widths: Sequence[int], slope: float = 0.2
    ) -> None:
        super().__init__()
        # Gradients of gradients pass through it, which the fused norm has not.
        layers = _halving(ndim, widths, "group", slope, nn.Sequential)
        self.blocks = nn.Sequential(*layers, nn.Flatten())
        self.score = nn.Linear(widths[-1] * math.prod(grid), 1)
        to_channels_last(self, ndim)

    def features(self, x: Tensor) -> Tensor:
        """What the score is a linear function of, (B, units)."""
        features: Tensor = self.blocks(x)
        return features

    def forward(self, x: Tensor) -> Tensor:
        """Larger is more real, (B,) float32, without bounds."""
        score: Tensor = self.score(self.features(x))
        return score.float()[:, 0]


def generator_loss(made: Tensor) -> Tensor:
    """-log Dis of what was made, a mean over logits, without overflow: the generator's loss."""
    return functional.softplus(-made).mean()


def discriminator_loss(real: Tensor, made: Tensor) -> Tensor:
    """-log Dis(real) - log(1 - Dis(made)), means over logits: the discriminator's loss."""
    return functional.softplus(-real).mean() + functional.softplus(made).mean()


def uniform(noise: Tensor) -> Tensor:
    """Uniform numbers in (0, 1) of standard normal ones."""
    return 0.5 * torch.erfc(-noise / math.sqrt(2))


def dropout(x: Tensor, noise: Tensor, rate: float) -> Tensor:
    """Dropout whose choice comes from the noise, so that a resumed fit repeats it.

    Args:
        x: What to drop from.
        noise: Standard normal, broadcast to `x`.
        rate: Share that becomes 0; the rest grows by 1 / (1 - rate).
    """
    return x * (uniform(noise) >= rate) / (1 - rate)


def kl_divergence(mu: Tensor, log_sigma: Tensor) -> Tensor:
    """KL divergence of N(mu, sigma^2) from N(0, 1) in each unit of the latent, in nats."""
    return 0.5 * (mu.square() + (2 * log_sigma).exp() - 1 - 2 * log_sigma)


MAX_LOG_SIGMA = 4.0
"""Bound of |log sigma|: sigma lies between 0.018 and 55; the prior's is 1."""


def bound_log_sigma(log_sigma: Tensor) -> Tensor:
    """Log sigma within a bound, float32.

    One bad step may throw it so far that exp overflows. A hard clamp would have no gradient there
    and never come back; this bound is smooth.
    """
    return MAX_LOG_SIGMA * torch.tanh(log_sigma.float() / MAX_LOG_SIGMA)


def separable(x: Tensor, kernel: Tensor) -> Tensor:
    """A kernel, (taps,) with odd length, along each spatial axis of (B, 1, *spatial)."""
    ndim, radius = x.ndim - 2, len(kernel) // 2
    # What is smoothed may be a target: bfloat16 has too few digits for it.
    with torch.autocast(x.device.type, enabled=False), full_float32():
        for axis in range(ndim):
            rows = x.movedim(2 + axis, -1)
            flat = functional.conv1d(
                rows.reshape(-1, 1, rows.shape[-1]), kernel.view(1, 1, -1), padding=radius
            )
            x = flat.view(rows.shape).movedim(-1, 2 + axis)
    return x
