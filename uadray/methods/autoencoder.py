"""The autoencoders of Baur 2018 and of the comparative study: dense, spatial, adversarial."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from uadray.lazy import Tensor, torch
from uadray.methods.base import GradientDetector, Losses, Player, Shape
from uadray.methods.blocks import coarse_grid
from uadray.methods.networks import (
    Critic,
    Decoder,
    Encoder,
    bound_log_sigma,
    discriminator_loss,
    dropout,
    generator_loss,
    kl_divergence,
)
from uadray.methods.registry import method
from uadray.methods.settings import Convolutional, Norm, check_limits

SPATIAL_KL = 0.01
"""Weight of KL with a spatial latent: a unit stands for four pixels there, whose L1 term in [0, 1]
is worth less than the unit's divergence. With 1 no unit of 256 was active after two epochs on
phantoms."""

STUDY = {"epochs": 1000, "batch_size": 8, "learning_rate": 1e-4, "patience": 5}
"""How the comparative study fits."""

_AE = "min sum abs(x - D(E(x))); s = abs(x - D(E(x)))"
_VAE = "min sum abs(x - D(mu + sigma e)) + KL; s = abs(x - D(mu))"
_GAN = "; min over Dis of -log Dis(x) - log(1 - Dis(x'))"
_LAYERS = (
    "The paper takes the network of Larsen's VAE-GAN (2015) for images of 64 and changes its "
    "latent; how it is extended to 256 it does not say. The convolutions here, also of 5 with "
    "stride 2, are those of its authors' later comparative study: 32 to 128 maps where Larsen has "
    "64 to 256, leaky ReLU, and group instead of batch normalisation. At other sizes than 256 the "
    "number of halvings stays."
)
_LAMBDAS = (
    " The paper names no weights: 1 for KL beside summed L1 where the latent is dense, 0.01 where "
    "it is spatial, and 0.01 for the adversarial term beside mean L1."
)


def _baur(name: str, equation: str, section: str = "", **settings: Any) -> Any:
    """A row of table 1 of Baur 2018."""
    weighed = settings.get("variational") or settings.get("adversarial")
    return method(
        name,
        source=f"Baur 2018, section 3 and table 1{section}",
        equation=equation,
        deviations=_LAYERS + (_LAMBDAS if weighed else ""),
        settings=settings,
        fit={"epochs": 150, "batch_size": 8, "learning_rate": 1e-3},
    )


def _study(name: str, latent: str) -> Any:
    return method(
        name,
        source="comparative study of Baur et al., as in Meissen 2021, table 2",
        equation=_AE,
        deviations=(
            "Gradients are clipped, as in all methods; a patience of 5 ends the fit, as there."
        ),
        settings={"latent": latent},
        fit=STUDY,
    )


@_baur("dAE", _AE, latent="dense")
@_baur("dVAE", _VAE, latent="dense", variational=True)
@_baur("sAE1", _AE, widths=(32, 64, 128, 128, 128))
@_baur("sAE3", _AE)
@_baur("sVAE", _VAE, variational=True, kl_weight=SPATIAL_KL)
@_baur(
    "sAE-GAN",
    "min over E, D of sum abs(x - x') - lambda log Dis(x')" + _GAN,
    ", equations 2 and 3",
    adversarial=True,
)
@_baur(
    "sVAE-GAN",
    "min over E, D of sum abs(x - x') + KL - lambda log Dis(x')" + _GAN,
    ", equations 2 and 3",
    variational=True,
    adversarial=True,
    kl_weight=SPATIAL_KL,
)
class Autoencoder(GradientDetector):
    """An autoencoder of Baur 2018: dense or spatial, variational or not, adversarial or not.

    The L1 term is a mean over voxels and the KL term is divided by their number, so that they weigh
    as sums do. A discriminator, where there is one, acts first on each batch, then encoder and
    decoder (section 2).
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(Convolutional):
        latent: Literal["dense", "spatial"] = "spatial"
        """`dense`: a vector; `spatial`: maps on the coarsest grid."""
        latent_size: int = 512
        """Units of a dense latent (table 1)."""
        latent_width: int = 64
        """Maps of a spatial latent (table 1); 0 takes the maps of the last convolution."""
        bottleneck: int = 16
        """Maps of the 1x1 convolution before a dense latent (the study's: an eighth of 128)."""
        variational: bool = False
        """Whether the latent is drawn, and kept near the normal distribution."""
        adversarial: bool = False
        """Whether a discriminator learns to tell reconstructions from images (equations 2 and
        3)."""
        kl_weight: float = 1.0
        """Lambda_2 of equation 2, beside the L1 term, both summed over their elements."""
        adversarial_weight: float = 0.01
        """Lambda_3 of equation 2, beside the L1 term as a mean over voxels. The paper names no
        lambda; as a sum over voxels with the same weight, the L1 term would leave nothing of this
        one."""
        adversarial_rate: float = 1e-4
        """Learning rate of the discriminator (section 3)."""
        dropout: float = 0.0
        """Share of the latent, and of the first dense layer after it, that is dropped in
        training."""
        betas: tuple[float, float] = (0.9, 0.999)
        """Of Adam."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_limits(
                self,
                latent_size=">= 1",
                latent_width=">= 0",
                kl_weight=">= 0",
                adversarial_weight=">= 0",
                adversarial_rate="> 0",
                dropout="in [0, 1)",
            )

        @property
        def label(self) -> str:
            """As in table 1: `dAE`, `sAE1` with five halvings, `sAE3` with four, `sVAE-GAN`."""
            stem = ("d" if self.latent == "dense" else "s") + ("VAE" if self.variational else "AE")
            if self.adversarial:
                return f"{stem}-GAN"
            if stem == "sAE":
                return "sAE1" if len(self.widths) > 4 else "sAE3"
            return stem

    config: Settings

    def __init__(self, config: Settings, shape: Shape) -> None:
        super().__init__(config, shape)
        self.grid = coarse_grid(config, shape)
        dense = config.latent == "dense"
        size, width = (config.latent_size, 0) if dense else (0, config.latent_width)
        maps = width or config.widths[-1]
        self.latent_shape: tuple[int, ...] = (size,) if dense else (maps, *self.grid)
        latent: Any = {"latent_size": size, "latent_width": width, "bottleneck": config.bottleneck}
        self.encoder = Encoder(config, self.grid, heads=2 if config.variational else 1, **latent)
        self.decoder = Decoder(config, self.grid, **latent)
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

    def forward(self, x_in: Tensor, target: Tensor, noise: Tensor, player: str = "") -> Losses:
        """Equation 2 of Baur 2018 for the autoencoder, equation 3 for the discriminator."""
        if player == "discriminator":
            with torch.no_grad():
                output, _ = self._through(x_in, noise)
            real, made = self.discriminator(target), self.discriminator(output)
            return {"loss": discriminator_loss(real, made)}
        config = self.config
        output, units = self._through(x_in, noise)
        reconstruction = (output - target).abs().mean()
        losses = {"loss": reconstruction, "reconstruction": reconstruction}
        if units is not None:
            kl = units.sum(1).mean()
            losses["loss"] = losses["loss"] + config.kl_weight * kl / math.prod(target.shape[1:])
            losses |= {"kl": kl, "kl_units": units.detach().mean(0)}
        if player:
            losses["adversarial"] = generator_loss(self.discriminator(output))
            losses["loss"] = losses["loss"] + config.adversarial_weight * losses["adversarial"]
        return losses

    def _through(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor | None]:
        """Output, and the divergence of each unit of the latent where it is drawn, (B, units)."""
        rate = self.config.dropout
        to_draw, to_drop, to_open = noise[:, : sum(self._parts)].split(self._parts, dim=1)
        heads = list(self.encoder(x))
        if rate:
            parts = to_drop.unflatten(1, (len(heads), *self.latent_shape)).unbind(1)
            heads = [dropout(head, part, rate) for head, part in zip(heads, parts, strict=True)]
        z, units = heads[0], None
        if self.config.variational:
            mu, log_sigma = heads[0].float(), bound_log_sigma(heads[1])
            z = mu + log_sigma.exp() * to_draw.unflatten(1, self.latent_shape)
            units = kl_divergence(mu, log_sigma).flatten(1)
        opened = self.decoder.expand(z)
        if rate and self.config.latent == "dense":
            opened = dropout(opened, to_open.view(opened.shape), rate)
        return self.decoder.finish(self.decoder.blocks(opened)), units

    def healthy(self, x: Tensor) -> Tensor:
        """The decoded latent, or its mean where it is drawn."""
        return self.decoder(self.encoder(x)[0].float())


@_study("AE-dense", "dense")
@_study("AE-spatial", "spatial")
class StudyAE(Autoencoder):
    """An autoencoder of the comparative study, whose figures stand in Meissen 2021, table 2."""

    @dataclass(frozen=True, kw_only=True)
    class Settings(Autoencoder.Settings):
        latent_size: int = 128
        """Units of a dense latent."""
        latent_width: int = 0
        """0: the spatial latent is what the last convolution gives, 8 x 8 x 128 at 128 x 128."""
        dropout: float = 0.2
        """On the latent and on the dense layer after it."""
        betas: tuple[float, float] = (0.5, 0.999)
        """Of Adam."""
        norm: Norm = "batch"
        """Normalisation after each convolution."""

        @property
        def label(self) -> str:
            """`AE-dense` or `AE-spatial`."""
            return f"AE-{self.latent}"
