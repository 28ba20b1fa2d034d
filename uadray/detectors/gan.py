"""Generators and critics, and f-AnoGAN, which adds an encoder (Schlegl 2019)."""

import torch
from torch import Tensor
from torch.nn import functional

from uadray.detectors.base import GradientDetector, Phase, Player, by_samples
from uadray.detectors.coders import Critic, Decoder, Encoder, coarse_grid, uniform
from uadray.methods.adversarial import Adversarial, FAnoGAN


class GANDetector(GradientDetector):
    """A generator and a critic that learn from each other; what scores is a subclass's.

    On each batch the critic takes its steps first. The generator's image has its background: no
    mask is laid over it.

    Args:
        config: Its settings.
        shape: (Z, Y, X) of a volume.

    Raises:
        ConfigError: a side is not divisible by 2 for each strided convolution.
    """

    def __init__(self, config: Adversarial, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.adversarial, self.ndim = config, config.ndim
        self.grid = coarse_grid(shape, config.ndim, len(config.widths), config.label)
        self.generator = Decoder.dense(config, self.grid, output="sigmoid")
        self.critic = Critic(config.ndim, self.grid, config.widths)
        # The latent's, and one that chooses a point between an image and a generated one.
        self.num_noise = config.latent_size + 1

    def players(self) -> tuple[Player, ...]:
        """Critic and generator."""
        config = self.adversarial
        critic = Player(
            name="critic",
            parameters=tuple(self.critic.parameters()),
            learning_rate=config.adversarial_rate,
            betas=config.betas,
            updates=config.critic_updates,
        )
        generator = Player(
            name="generator",
            parameters=tuple(self.generator.parameters()),
            learning_rate=config.adversarial_rate,
            betas=config.betas,
        )
        return critic, generator

    def phases(self) -> tuple[Phase, ...]:
        """One, of which the last epoch counts: no healthy image has a reconstruction yet."""
        return (Phase(players=("critic", "generator"), measure=""),)

    def forward(
        self, x_in: Tensor, target: Tensor, noise: Tensor, player: str = ""
    ) -> dict[str, Tensor]:
        """The critic's or the generator's side of the game."""
        wasserstein = self.adversarial.game == "wasserstein"
        z = noise[:, : self.adversarial.latent_size]
        if player == "generator":
            score = self.critic(self.generator(z))
            return {"loss": (-score if wasserstein else functional.softplus(-score)).mean()}
        with torch.no_grad():
            made = self.generator(z)
        real, fake = self.critic(target), self.critic(made)
        if not wasserstein:
            return {"loss": functional.softplus(-real).mean() + functional.softplus(fake).mean()}
        distance = real.mean() - fake.mean()
        penalty = gradient_penalty(self.critic, target, made, uniform(noise[:, -1]))
        loss = self.adversarial.penalty * penalty - distance
        return {"loss": loss, "distance": distance, "penalty": penalty}


def gradient_penalty(critic: Critic, real: Tensor, made: Tensor, between: Tensor) -> Tensor:
    """(|gradient| - 1)^2 at points between images, the norm over the whole image (Gulrajani 2017).

    Args:
        critic: What has the gradient.
        real: (B, 1, *spatial).
        made: The same shape.
        between: (B,) in [0, 1]: 0 takes the made image, 1 the real one.
    """
    share = between.view(-1, *[1] * (real.ndim - 1))
    # Of a gradient's gradient few digits are left in bfloat16.
    with torch.autocast(real.device.type, enabled=False), torch.enable_grad():
        point = (share * real + (1 - share) * made).detach().float().requires_grad_(True)
        score = critic(point).sum()
        (slope,) = torch.autograd.grad(score, point, create_graph=torch.is_grad_enabled())
        # The root has no gradient at 0.
        length = (slope.flatten(1).square().sum(1) + 1e-12).sqrt()
        return (length - 1).square().mean()


class FAnoGANDetector(GANDetector):
    """A Wasserstein GAN, and then an encoder that finds an image's latent in one pass.

    Args:
        config: Its settings.
        shape: (Z, Y, X) of a volume.

    Raises:
        ConfigError: a side is not divisible by 2 for each strided convolution.
    """

    def __init__(self, config: FAnoGAN, shape: tuple[int, int, int]) -> None:
        super().__init__(config, shape)
        self.config = config
        self.encoder = Encoder.dense(config, self.grid)

    def players(self) -> tuple[Player, ...]:
        """Critic and generator, and the encoder."""
        encoder = Player(
            name="encoder",
            parameters=tuple(self.encoder.parameters()),
            learning_rate=self.config.encoder_rate,
            optimizer="rmsprop",
        )
        return (*super().players(), encoder)

    def phases(self) -> tuple[Phase, ...]:
        """The GAN, whose last epoch goes on, and the encoder, whose best is kept."""
        share = self.config.gan_share
        return (
            Phase(name="gan", players=("critic", "generator"), share=share, measure=""),
            Phase(name="encoder", players=("encoder",), share=1 - share),
        )

    def forward(
        self, x_in: Tensor, target: Tensor, noise: Tensor, player: str = ""
    ) -> dict[str, Tensor]:
        """Of the encoder: squares of the residual, and of that of the critic's features."""
        if player != "encoder":
            return super().forward(x_in, target, noise, player)
        output = self.generator(self.encoder(x_in)[0])
        image = (output - target).square().mean()
        features = self.critic.features(output) - self.critic.features(target)
        squares = features.float().square().mean()
        return {
            "loss": image + self.config.feature_weight * squares,
            "reconstruction": (output - target).abs().mean().detach(),
            "image": image,
            "features": squares,
        }

    def reconstruct(self, x_BCZYX: Tensor) -> Tensor:
        """What the generator makes of the encoder's latent, in [0, 1]."""

        def run(x: Tensor) -> Tensor:
            return self.generator(self.encoder(x)[0].float())

        return by_samples(run, x_BCZYX, self.ndim)
