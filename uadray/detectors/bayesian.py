"""Bayesian autoencoder: dropout stays on, and several reconstructions are held together."""

import torch
from torch import Tensor

from uadray import counter
from uadray.detectors.base import Detection, GradientDetector, by_samples
from uadray.detectors.coders import Decoder, Encoder, coarse_grid, dropped
from uadray.methods.autoencoders import BayesianAE
from uadray.methods.network import OUTPUT_RANGE


class BayesianAEDetector(GradientDetector):
    """An autoencoder that drops feature maps (Pawlowski 2018).

    The maps that are dropped in scoring are fixed, so that a volume always has the same scores.

    Args:
        config: Its settings.
        shape: (Z, Y, X) of a volume.

    Raises:
        ConfigError: a side is not divisible by 2 for each strided convolution.
    """

    score_noise: Tensor

    def __init__(self, config: BayesianAE, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.config, self.ndim = config, config.ndim
        self.grid = coarse_grid(shape, config.ndim, len(config.widths), config.label)
        self.encoder = Encoder.dense(config, self.grid)
        self.decoder = Decoder.dense(config, self.grid)
        # Behind each convolution but the last two, whose maps are the image's own pixels.
        self._widths = (*config.widths, *reversed(config.widths))
        self.num_noise = sum(self._widths)
        key = counter.keys(0, 0, torch.arange(config.samples), counter.LATENT)
        noise = counter.normal(key, self.num_noise)
        self.register_buffer("score_noise", noise, persistent=False)

    def forward(
        self, x_in: Tensor, target: Tensor, noise: Tensor, player: str = ""
    ) -> dict[str, Tensor]:
        """L1 with maps dropped."""
        reconstruction = (self._through(x_in, noise) - target).abs().mean()
        return {"loss": reconstruction, "reconstruction": reconstruction}

    def _through(self, x: Tensor, noise: Tensor) -> Tensor:
        """The image of (B, 1, *spatial), with maps dropped by (B, num_noise) or (1, num_noise)."""
        parts = iter(noise[..., *[None] * self.ndim].split(self._widths, dim=1))
        rate = self.config.dropout
        for block in self.encoder.blocks:
            x = dropped(block(x), next(parts), rate)
        (z,) = (head(self.encoder.squeeze(x)) for head in self.encoder.heads)
        x = self.decoder.expand(z)
        blocks = list(self.decoder.blocks)
        for block in blocks[:-1]:
            x = dropped(block(x), next(parts), rate)
        return self.decoder.finish(blocks[-1](x))

    def sampled(self, x_BCZYX: Tensor) -> Tensor:
        """Reconstructions, (samples, B, 1, Z, Y, X)."""
        drawn = [
            by_samples(lambda x, one=one: self._through(x, one[None]), x_BCZYX, self.ndim)  # type: ignore[misc]
            for one in self.score_noise
        ]
        return torch.stack(drawn)

    def reconstruct(self, x_BCZYX: Tensor) -> Tensor:
        """The mean of the reconstructions, clamped to [0, 1]."""
        return self.sampled(x_BCZYX).mean(0).clamp(*OUTPUT_RANGE)

    def detect(self, x_BCZYX: Tensor, brain_BZYX: Tensor) -> Detection:
        """Distance to the mean reconstruction, or the reconstructions' standard deviation."""
        if self.config.score == "residual":
            return super().detect(x_BCZYX, brain_BZYX)
        return Detection(self.sampled(x_BCZYX).std(0)[:, 0].clamp(0, 1))
