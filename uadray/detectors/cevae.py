"""Context-encoding variational autoencoder (Zimmerer 2018)."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from uadray.detectors.base import Detection, GradientDetector, by_samples
from uadray.detectors.coders import Decoder, Encoder, bounded, coarse_grid, divergence, uniform
from uadray.methods.autoencoders import CeVAE
from uadray.methods.network import OUTPUT_RANGE


class CeVAEDetector(GradientDetector):
    """A VAE that also learns to fill in squares, and scores by residual and gradient.

    Each sample has squares of its own, each filled with one value, and the target is the clean
    image. (Public code applies one sample's squares to its whole batch, keeps the last square
    alone, or learns to give the masked image back.)

    Args:
        config: Its settings.
        shape: (Z, Y, X) of a volume.

    Raises:
        ConfigError: a side is not divisible by 2 for each strided convolution.
    """

    def __init__(self, config: CeVAE, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.config, self.ndim = config, config.ndim
        self.grid = coarse_grid(shape, config.ndim, len(config.widths), config.label)
        self.encoder = Encoder.dense(config, self.grid, heads=2)
        self.decoder = Decoder.dense(config, self.grid)
        # The latent's; how many squares; and of each its side, its value and its corner.
        self.num_noise = config.latent_size + 1 + config.max_squares * (2 + config.ndim)

    def forward(
        self, x_in: Tensor, target: Tensor, noise: Tensor, player: str = ""
    ) -> dict[str, Tensor]:
        """(1 - c)(L1 + kl_weight * KL) + c L1 of the masked input, L1 terms a voxel."""
        config = self.config
        to_draw, to_mask = noise[:, : config.latent_size], noise[:, config.latent_size :]
        mu, log_sigma = self._encode(x_in)
        output = self.decoder(mu + log_sigma.exp() * to_draw)
        reconstruction = (output - target).abs().mean()
        units = divergence(mu, log_sigma)
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
        return mu.float(), bounded(log_sigma)

    def reconstruct(self, x_BCZYX: Tensor) -> Tensor:
        """Decoded mu, clamped to [0, 1]."""

        def run(x: Tensor) -> Tensor:
            return self.decoder(self._encode(x)[0]).clamp(*OUTPUT_RANGE)

        return by_samples(run, x_BCZYX, self.ndim)

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
                total = divergence(*self._encode(asked)).sum()
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


def separable(x: Tensor, kernel: Tensor) -> Tensor:
    """A kernel, (taps,) with odd length, along each spatial axis of (B, 1, *spatial)."""
    ndim, radius = x.ndim - 2, len(kernel) // 2
    # What is smoothed may be a target: bfloat16 has too few digits for it.
    with torch.autocast(x.device.type, enabled=False):
        for axis in range(ndim):
            rows = x.movedim(2 + axis, -1)
            flat = functional.conv1d(
                rows.reshape(-1, 1, rows.shape[-1]), kernel.view(1, 1, -1), padding=radius
            )
            x = flat.view(rows.shape).movedim(-1, 2 + axis)
    return x
