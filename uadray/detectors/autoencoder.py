"""The autoencoders of Baur 2018 and of the comparative study: dense, spatial, adversarial."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from uadray.detectors.base import GradientDetector, Player, by_samples
from uadray.detectors.coders import (
    Critic,
    Decoder,
    Encoder,
    bounded,
    coarse_grid,
    divergence,
    dropped,
)
from uadray.methods.autoencoders import Autoencoder
from uadray.methods.network import OUTPUT_RANGE


class AutoencoderDetector(GradientDetector):
    """Encoder and decoder with a dense or spatial latent, and a discriminator where asked for.

    The L1 term is a mean over voxels and the KL term is divided by their number, so that they weigh
    as sums do. With a discriminator, it acts first on each batch, then encoder and decoder
    (Baur 2018, section 2).

    Args:
        config: Its settings.
        shape: (Z, Y, X) of a volume.

    Raises:
        ConfigError: a side is not divisible by 2 for each strided convolution.
    """

    def __init__(self, config: Autoencoder, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.config, self.ndim = config, config.ndim
        self.grid = coarse_grid(shape, config.ndim, len(config.widths), config.label)
        dense = config.latent == "dense"
        size, width = (config.latent_size, 0) if dense else (0, config.latent_width)
        maps = width or config.widths[-1]
        self.latent_shape: tuple[int, ...] = (size,) if dense else (maps, *self.grid)
        self.encoder = Encoder(
            config.ndim,
            self.grid,
            config.widths,
            latent_size=size,
            latent_width=width,
            bottleneck=config.bottleneck,
            heads=2 if config.variational else 1,
            norm_kind=config.norm,
            slope=config.slope,
        )
        self.decoder = Decoder(
            config.ndim,
            self.grid,
            config.widths,
            latent_size=size,
            latent_width=width,
            bottleneck=config.bottleneck,
            norm_kind=config.norm,
            slope=config.slope,
        )
        if config.adversarial:
            self.discriminator = Critic(config.ndim, self.grid, config.widths)
        num = math.prod(self.latent_shape)
        # Numbers to draw the latent with, to drop from it, and to drop from what a dense one opens.
        drawn = num if config.variational else 0
        heads = num * (2 if config.variational else 1) if config.dropout else 0
        opened = config.bottleneck * math.prod(self.grid) if config.dropout and dense else 0
        self._parts = (drawn, heads, opened)
        self.num_noise = max(1, sum(self._parts))

    def players(self) -> tuple[Player, ...]:
        """The autoencoder, or discriminator and autoencoder."""
        config = self.config
        if not config.adversarial:
            return (Player(parameters=tuple(self.parameters()), betas=config.betas),)
        return (
            Player(
                name="discriminator",
                parameters=tuple(self.discriminator.parameters()),
                learning_rate=config.adversarial_rate,
                betas=config.betas,
            ),
            Player(
                name="autoencoder",
                parameters=(*self.encoder.parameters(), *self.decoder.parameters()),
                betas=config.betas,
            ),
        )

    def forward(
        self, x_in: Tensor, target: Tensor, noise: Tensor, player: str = ""
    ) -> dict[str, Tensor]:
        """Equation 2 of Baur 2018 for the autoencoder, equation 3 for the discriminator."""
        if player == "discriminator":
            with torch.no_grad():
                output, _ = self._through(x_in, noise)
            real, made = self.discriminator(target), self.discriminator(output)
            # log Dis and log(1 - Dis) of a logit, without overflow.
            return {"loss": functional.softplus(-real).mean() + functional.softplus(made).mean()}
        config = self.config
        output, units = self._through(x_in, noise)
        reconstruction = (output - target).abs().mean()
        losses = {"loss": reconstruction, "reconstruction": reconstruction}
        if units is not None:
            kl = units.sum(1).mean()
            losses["loss"] = losses["loss"] + config.kl_weight * kl / math.prod(target.shape[1:])
            losses |= {"kl": kl, "kl_units": units.detach().mean(0)}
        if player:
            fooled = functional.softplus(-self.discriminator(output)).mean()
            losses["loss"] = losses["loss"] + config.adversarial_weight * fooled
            losses["adversarial"] = fooled
        return losses

    def _through(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor | None]:
        """Output, and the divergence of each unit of the latent where it is drawn, (B, units)."""
        rate = self.config.dropout
        to_draw, to_drop, to_open = noise[:, : sum(self._parts)].split(self._parts, dim=1)
        heads = list(self.encoder(x))
        if rate:
            parts = to_drop.unflatten(1, (len(heads), *self.latent_shape)).unbind(1)
            heads = [dropped(head, part, rate) for head, part in zip(heads, parts, strict=True)]
        z, units = heads[0], None
        if self.config.variational:
            mu, log_sigma = heads[0].float(), bounded(heads[1])
            z = mu + log_sigma.exp() * to_draw.unflatten(1, self.latent_shape)
            units = divergence(mu, log_sigma).flatten(1)
        opened = self.decoder.expand(z)
        if rate and self.config.latent == "dense":
            opened = dropped(opened, to_open.view(opened.shape), rate)
        return self.decoder.finish(self.decoder.blocks(opened)), units

    def reconstruct(self, x_BCZYX: Tensor) -> Tensor:
        """The decoded latent, or its mean where it is drawn, clamped to [0, 1]."""

        def run(x: Tensor) -> Tensor:
            return self.decoder(self.encoder(x)[0].float()).clamp(*OUTPUT_RANGE)

        return by_samples(run, x_BCZYX, self.ndim)
