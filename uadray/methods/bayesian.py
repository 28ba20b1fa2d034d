"""Bayesian autoencoder."""

from dataclasses import dataclass
from typing import Literal

from uadray import random
from uadray.lazy import Tensor, torch
from uadray.methods.base import Detection, GradientDetector, Losses, Shape, by_samples
from uadray.methods.blocks import coarse_grid
from uadray.methods.networks import Decoder, Encoder, dropout
from uadray.methods.registry import method
from uadray.methods.settings import DenseLatent, check_limits


@method(
    "BayesianAE",
    source="Pawlowski 2018, Bayesian convolutional autoencoders",
    equation="min sum abs(x - x'); s = abs(x - mean of 8 x'), maps dropped at random in each",
    deviations="Whole feature maps are dropped, the same ones for every volume when it scores.",
    fit={"epochs": 100, "batch_size": 32, "learning_rate": 1e-3},
)
class BayesianAE(GradientDetector):
    """Autoencoder with dropout, which stays on when it scores (Pawlowski 2018).

    The maps that are dropped in scoring are fixed, so that a volume always has the same scores.
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(DenseLatent):
        dropout: float = 0.2
        """Share of the feature maps that is dropped after each convolution."""
        samples: int = 8
        """Reconstructions of a volume; always with the same maps dropped."""
        score: Literal["residual", "deviation"] = "residual"
        """`residual`: distance to the mean reconstruction; `deviation`: standard deviation of the
        reconstructions."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_limits(self, dropout="in (0, 1)", samples=">= 2")

    config: Settings
    score_noise: Tensor

    def __init__(self, config: Settings, shape: Shape) -> None:
        super().__init__(config, shape)
        self.grid = coarse_grid(config, shape)
        self.encoder = Encoder.dense(config, self.grid)
        self.decoder = Decoder.dense(config, self.grid)
        # After each convolution but the last two, whose maps are the image's own pixels.
        self._widths = (*config.widths, *reversed(config.widths))
        self.num_noise = sum(self._widths)
        key = random.keys(0, 0, torch.arange(config.samples), random.LATENT)
        noise = random.normal(key, self.num_noise)
        self.register_buffer("score_noise", noise, persistent=False)

    def forward(self, x_in: Tensor, target: Tensor, noise: Tensor, player: str = "") -> Losses:
        """L1 with maps dropped."""
        reconstruction = (self._through(x_in, noise) - target).abs().mean()
        return {"loss": reconstruction, "reconstruction": reconstruction}

    def _through(self, x: Tensor, noise: Tensor) -> Tensor:
        """The image of (B, 1, *spatial), with maps dropped by (B, num_noise) or (1, num_noise)."""
        parts = iter(noise[..., *[None] * self.ndim].split(self._widths, dim=1))
        rate = self.config.dropout
        for block in self.encoder.blocks:
            x = dropout(block(x), next(parts), rate)
        (z,) = (head(self.encoder.squeeze(x)) for head in self.encoder.heads)
        x = self.decoder.expand(z)
        blocks = list(self.decoder.blocks)
        for block in blocks[:-1]:
            x = dropout(block(x), next(parts), rate)
        return self.decoder.finish(blocks[-1](x))

    def sampled(self, x: Tensor) -> Tensor:
        """Reconstructions of samples, (num, B, 1, *spatial)."""
        return torch.stack([self._through(x, one[None]) for one in self.score_noise])

    def healthy(self, x: Tensor) -> Tensor:
        """The mean of the reconstructions."""
        return self.sampled(x).mean(0)

    def detect(self, x_BCZYX: Tensor, brain_BZYX: Tensor) -> Detection:
        """Distance to the mean reconstruction, or the reconstructions' standard deviation."""
        if self.config.score == "residual":
            return super().detect(x_BCZYX, brain_BZYX)
        spread = by_samples(lambda x: self.sampled(x).std(0), x_BCZYX, self.ndim)
        return Detection(spread[:, 0].clamp(0, 1))
