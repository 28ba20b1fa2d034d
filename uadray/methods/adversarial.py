"""Settings of the generative adversarial methods."""

from dataclasses import dataclass
from typing import Literal

from uadray.methods.autoencoders import Convolutional
from uadray.methods.base import Named, check


@dataclass(frozen=True, kw_only=True)
class Adversarial(Convolutional):
    """A generator from a normal latent, and a critic."""

    latent_size: int = 128
    """Units of the latent, drawn from the normal distribution."""
    bottleneck: int = 16
    """Maps that the generator's dense layer opens to."""
    game: Literal["wasserstein", "logistic"] = "wasserstein"
    """`wasserstein`: with a penalty on the critic's gradient (Gulrajani 2017); `logistic`: the
    discriminator of Goodfellow 2014, whose generator maximises log Dis."""
    critic_updates: int = 5
    """Steps of the critic on each batch, before one of the generator."""
    penalty: float = 10.0
    """Lambda of the gradient penalty."""
    adversarial_rate: float = 1e-4
    """Learning rate of generator and critic (Schlegl 2019)."""
    betas: tuple[float, float] = (0.0, 0.9)
    """Of Adam, of generator and critic (Schlegl 2019)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.latent_size >= 1, "method.latent_size", ">= 1", self.latent_size)
        check(self.critic_updates >= 1, "method.critic_updates", ">= 1", self.critic_updates)
        check(self.penalty >= 0, "method.penalty", ">= 0", self.penalty)
        rate = self.adversarial_rate
        check(rate > 0, "method.adversarial_rate", "> 0", rate)


@dataclass(frozen=True, kw_only=True)
class FAnoGAN(Adversarial):
    """f-AnoGAN (Schlegl 2019): a Wasserstein GAN, then an encoder into its latent."""

    feature_weight: float = 1.0
    """Kappa: weight of the critic's features beside the image, each a mean of squares."""
    gan_share: float = 0.6
    """Share of the epochs that the GAN takes; the encoder has the rest."""
    encoder_rate: float = 5e-5
    """Learning rate of the encoder, of RMSprop."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.feature_weight >= 0, "method.feature_weight", ">= 0", self.feature_weight)
        check(0 < self.gan_share < 1, "method.gan_share", "in (0, 1)", self.gan_share)
        check(self.encoder_rate > 0, "method.encoder_rate", "> 0", self.encoder_rate)

    @property
    def label(self) -> str:
        """`f-AnoGAN`."""
        return "f-AnoGAN"


NAMED: dict[str, Named] = {
    "f-AnoGAN": Named(
        method=FAnoGAN(),
        source="Schlegl 2019, as in Meissen 2021, table 2",
        equation=(
            "WGAN-GP: min over C of C(G(z)) - C(x) + 10 (|dC/dx| - 1)^2, min over G of -C(G(z)); "
            "then min over E of mse(x, G(E(x))) + kappa mse(f(x), f(G(E(x)))), f = C's last "
            "features; s = abs(x - G(E(x)))"
        ),
        deviations=(
            "The norm in the penalty is of the whole image (the study's code takes rows). Images "
            "in [0, 1] behind a sigmoid, as in the study; the encoder's output has no bound, as "
            "the latent has none. Gradients of each step are clipped like those of all methods."
        ),
        fit={"epochs": 250, "batch_size": 64, "learning_rate": 1e-4},
    ),
}
"""By their names in tables."""
