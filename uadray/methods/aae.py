"""Adversarial autoencoder."""

from dataclasses import dataclass

from uadray.lazy import Tensor, nn
from uadray.methods.base import GradientDetector, Losses, Player, Shape
from uadray.methods.blocks import coarse_grid
from uadray.methods.networks import Decoder, Encoder, discriminator_loss, generator_loss
from uadray.methods.registry import method
from uadray.methods.settings import DenseLatent, check_limits


@method(
    "AAE",
    source="Makhzani 2015, Adversarial autoencoders",
    equation=(
        "min sum abs(x - D(E(x))); min over C of -log C(e) - log(1 - C(E(x))); "
        "min over E of -log C(E(x)); s = abs(x - D(E(x)))"
    ),
    deviations="Three players in turn on each batch; the convolutions are those of the others.",
    fit={"epochs": 100, "batch_size": 32, "learning_rate": 1e-3},
)
class AAE(GradientDetector):
    """Adversarial autoencoder (Makhzani 2015): a critic holds the latent near the prior.

    On each batch encoder and decoder learn to reconstruct, then the critic to tell codes from the
    prior's draws, then the encoder to deceive it.
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(DenseLatent):
        critic_width: int = 256
        """Units of each of the two hidden layers of the critic."""
        adversarial_rate: float = 1e-4
        """Learning rate of the critic, and of the encoder against it."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_limits(self, critic_width=">= 1", adversarial_rate="> 0")

    config: Settings

    def __init__(self, config: Settings, shape: Shape) -> None:
        super().__init__(config, shape)
        self.grid = coarse_grid(config, shape)
        self.num_noise = config.latent_size
        self.encoder = Encoder.dense(config, self.grid)
        self.decoder = Decoder.dense(config, self.grid)
        width = config.critic_width
        self.critic = nn.Sequential(
            nn.Linear(config.latent_size, width),
            nn.LeakyReLU(0.2),
            nn.Linear(width, width),
            nn.LeakyReLU(0.2),
            nn.Linear(width, 1),
        )

    def players(self) -> tuple[Player, ...]:
        """Autoencoder, critic, and the encoder against it."""
        rate, encoder = self.config.adversarial_rate, tuple(self.encoder.parameters())
        return (
            Player(name="autoencoder", parameters=(*encoder, *self.decoder.parameters())),
            Player(name="critic", parameters=tuple(self.critic.parameters()), learning_rate=rate),
            Player(name="encoder", parameters=encoder, learning_rate=rate),
        )

    def forward(self, x_in: Tensor, target: Tensor, noise: Tensor, player: str = "") -> Losses:
        """L1 for the autoencoder, the two sides of a logistic GAN for the others."""
        (z,) = self.encoder(x_in)
        if player == "autoencoder":
            reconstruction = (self.decoder(z) - target).abs().mean()
            return {"loss": reconstruction, "reconstruction": reconstruction}
        made = self.critic(z).float()
        if player == "encoder":
            return {"loss": generator_loss(made)}
        return {"loss": discriminator_loss(self.critic(noise).float(), made)}

    def healthy(self, x: Tensor) -> Tensor:
        """The decoded code."""
        return self.decoder(self.encoder(x)[0].float())
