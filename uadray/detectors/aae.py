"""Adversarial autoencoder (Makhzani 2015): a critic holds the latent near the prior."""

from torch import Tensor, nn
from torch.nn import functional

from uadray.detectors.base import GradientDetector, Player, by_samples
from uadray.detectors.coders import Decoder, Encoder, coarse_grid
from uadray.methods.autoencoders import AAE
from uadray.methods.network import OUTPUT_RANGE


class AAEDetector(GradientDetector):
    """An autoencoder whose codes a critic cannot tell from the prior's draws.

    On each batch encoder and decoder learn to reconstruct, then the critic to tell codes from
    draws, then the encoder to deceive it.

    Args:
        config: Its settings.
        shape: (Z, Y, X) of a volume.

    Raises:
        ConfigError: a side is not divisible by 2 for each strided convolution.
    """

    def __init__(self, config: AAE, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.config, self.ndim, self.num_noise = config, config.ndim, config.latent_size
        self.grid = coarse_grid(shape, config.ndim, len(config.widths), config.label)
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

    def forward(
        self, x_in: Tensor, target: Tensor, noise: Tensor, player: str = ""
    ) -> dict[str, Tensor]:
        """L1 for the autoencoder, the two sides of a logistic GAN for the others."""
        (z,) = self.encoder(x_in)
        if player == "autoencoder":
            reconstruction = (self.decoder(z) - target).abs().mean()
            return {"loss": reconstruction, "reconstruction": reconstruction}
        made = self.critic(z).float()
        if player == "encoder":
            return {"loss": functional.softplus(-made).mean()}
        real = self.critic(noise).float()
        return {"loss": functional.softplus(-real).mean() + functional.softplus(made).mean()}

    def reconstruct(self, x_BCZYX: Tensor) -> Tensor:
        """The decoded code, clamped to [0, 1]."""

        def run(x: Tensor) -> Tensor:
            return self.decoder(self.encoder(x)[0].float()).clamp(*OUTPUT_RANGE)

        return by_samples(run, x_BCZYX, self.ndim)
