"""Context-encoding variational autoencoder."""

import math
from dataclasses import dataclass
from typing import Literal

from uadray.lazy import Tensor, torch
from uadray.methods.base import Detection, GradientDetector, Losses, Shape, by_samples
from uadray.methods.blocks import coarse_grid
from uadray.methods.networks import (
    Decoder,
    Encoder,
    bound_log_sigma,
    kl_divergence,
    separable,
    uniform,
)
from uadray.methods.registry import method
from uadray.methods.settings import DenseLatent, check_limits


@method(
    "ceVAE",
    source="Zimmerer 2018, Context-encoding variational autoencoder",
    equation=(
        "min (1 - c)(sum abs(x - D(mu + sigma e)) + KL) + c sum abs(x - D(mu(masked x))); "
        "s = abs(x - D(mu)) times smoothed abs(dKL/dx)"
    ),
    deviations=(
        "The target of the masked input is the clean image, and each sample has squares of its "
        "own, which public code gets wrong. The gradient is scaled to its largest in a volume "
        "so that scores have a stated range."
    ),
    fit={"epochs": 100, "batch_size": 32, "learning_rate": 1e-3},
)
class CeVAE(GradientDetector):
    """Context-encoding VAE (Zimmerer 2018): squares are masked, and what was there is learned.

    It scores by residual and gradient. Each sample has squares of its own, each filled with one
    value, and the target is the clean image. (Public code applies one sample's squares to its whole
    batch, keeps the last square alone, or learns to give the masked image back.)
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(DenseLatent):
        latent_size: int = 256
        """Units of the latent."""
        kl_weight: float = 1.0
        """Beside the L1 term, both summed over their elements."""
        context_share: float = 0.5
        """Weight of the context encoder's term; the VAE's has the rest."""
        max_squares: int = 3
        """0 to this many squares, or cubes, are masked."""
        max_side: float = 0.5
        """Their longest side as a share of the input's."""
        score: Literal["residual", "gradient", "combination"] = "combination"
        """`residual`: |x - reconstruction|; `gradient`: |dKL/dx|, smoothed, as a share of its
        largest; `combination`: their product."""
        smoothing: float = 1.0
        """Standard deviation of the Gaussian that smooths the gradient, in voxels."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_limits(
                self,
                kl_weight=">= 0",
                context_share="in [0, 1]",
                max_squares=">= 1",
                max_side="in (0, 1]",
                smoothing=">= 0",
            )

    config: Settings

    def __init__(self, config: Settings, shape: Shape) -> None:
        super().__init__(config, shape)
        self.grid = coarse_grid(config, shape)
        self.encoder = Encoder.dense(config, self.grid, heads=2)
        self.decoder = Decoder.dense(config, self.grid)
        # The latent's; how many squares; and of each its side, its value and its corner.
        self.num_noise = config.latent_size + 1 + config.max_squares * (2 + config.ndim)

    def forward(self, x_in: Tensor, target: Tensor, noise: Tensor, player: str = "") -> Losses:
        """(1 - c)(L1 + kl_weight * KL) + c L1 of the masked input, L1 terms a voxel."""
        config = self.config
        to_draw, to_mask = noise[:, : config.latent_size], noise[:, config.latent_size :]
        mu, log_sigma = self._encode(x_in)
        output = self.decoder(mu + log_sigma.exp() * to_draw)
        reconstruction = (output - target).abs().mean()
        units = kl_divergence(mu, log_sigma)
        kl = units.sum(1).mean()
        variational = reconstruction + config.kl_weight * kl / math.prod(target.shape[1:])
        filled = self.decoder(self._encode(self.mask(x_in, to_mask))[0])
        context = (filled - target).abs().mean()
        share = config.context_share
        return {
            "loss": (1 - share) * variational + share * context,
            "reconstruction": reconstruction,
            "context": context,
            "kl": kl,
            "kl_units": units.detach().mean(0),
        }

    def mask(self, x: Tensor, noise: Tensor) -> Tensor:
        """Fill 0 to `max_squares` squares, or cubes, of each sample.

        Args:
            x: (B, 1, *spatial).
            noise: Standard normal, (B, 1 + max_squares * (2 + ndim)).
        """
        config, spatial = self.config, x.shape[2:]
        u = uniform(noise)
        count = (u[:, 0] * (config.max_squares + 1)).floor()
        side, value, *corner = u[:, 1:].unflatten(1, (config.max_squares, -1)).unbind(2)
        low, high = x.flatten(1).amin(1), x.flatten(1).amax(1)
        out = x
        for square in range(config.max_squares):
            inside = (square < count).view(-1, 1, *[1] * self.ndim)
            for axis, size in enumerate(spatial):
                length = (side[:, square] * config.max_side * size).ceil()
                first = (corner[axis][:, square] * (size - length + 1)).floor()
                at = torch.arange(size, device=x.device)
                within = (at >= first[:, None]) & (at < (first + length)[:, None])
                inside = inside & within.view(
                    len(x), 1, *(size if a == axis else 1 for a in range(self.ndim))
                )
            fill = low + value[:, square] * (high - low)
            out = torch.where(inside, fill.view(-1, 1, *[1] * self.ndim), out)
        return out

    def _encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu, log_sigma = self.encoder(x)
        return mu.float(), bound_log_sigma(log_sigma)

    def healthy(self, x: Tensor) -> Tensor:
        """Decoded mu."""
        return self.decoder(self._encode(x)[0])

    def detect(self, x_BCZYX: Tensor, brain_BZYX: Tensor) -> Detection:
        """Residual, gradient of the divergence, or both."""
        score = self.config.score
        if score == "residual":
            return super().detect(x_BCZYX, brain_BZYX)
        gradient = self.gradient(x_BCZYX)[:, 0] * brain_BZYX
        largest = gradient.flatten(1).amax(1).clamp_min(torch.finfo(gradient.dtype).tiny)
        share = gradient / largest.view(-1, 1, 1, 1)
        if score == "gradient":
            return Detection(share)
        residual, output = super().detect(x_BCZYX, brain_BZYX)
        return Detection(share * residual, output)

    def gradient(self, x_BCZYX: Tensor) -> Tensor:
        """|dKL / dx|, smoothed, (B, 1, Z, Y, X)."""

        def run(x: Tensor) -> Tensor:
            # Scoring runs in inference mode, whose tensors have no gradient: a copy does.
            with torch.inference_mode(False), torch.enable_grad():
                asked = x.clone().requires_grad_(True)
                total = kl_divergence(*self._encode(asked)).sum()
                (slope,) = torch.autograd.grad(total, asked)
            return smoothed(slope.abs(), self.config.smoothing)

        return by_samples(run, x_BCZYX, self.ndim)


def smoothed(x: Tensor, deviation: float) -> Tensor:
    """A Gaussian along each spatial axis of (B, 1, *spatial); outside the image is 0."""
    if deviation == 0:
        return x
    radius = max(1, round(3 * deviation))
    at = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (at / deviation) ** 2)
    return separable(x, kernel / kernel.sum())
