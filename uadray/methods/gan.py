"""Generative adversarial networks: AnoGAN, and f-AnoGAN, which adds an encoder."""

from dataclasses import dataclass
from typing import Literal

from uadray.device import full_float32
from uadray.lazy import Tensor, torch
from uadray.methods.base import GradientDetector, Losses, Phase, Player, Shape, in_pieces
from uadray.methods.blocks import OUTPUT_RANGE, coarse_grid
from uadray.methods.networks import (
    Critic,
    Decoder,
    Encoder,
    discriminator_loss,
    generator_loss,
    uniform,
)
from uadray.methods.registry import method
from uadray.methods.settings import DenseLatent, check_limits

MAX_VOXELS = 2**22
"""Voxels whose latents are searched at a time."""


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
    with torch.autocast(real.device.type, enabled=False), full_float32(), torch.enable_grad():
        point = (share * real + (1 - share) * made).detach().float().requires_grad_(True)
        score = critic(point).sum()
        (slope,) = torch.autograd.grad(score, point, create_graph=torch.is_grad_enabled())
        # The root has no gradient at 0.
        length = (slope.flatten(1).square().sum(1) + 1e-12).sqrt()
        return (length - 1).square().mean()


class GAN(GradientDetector):
    """A generator from a normal latent and a critic, which learn from each other.

    On each batch the critic takes its steps first. The generator's image has its background: no
    mask is laid over it. What scores is a subclass's.
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(DenseLatent):
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
            check_limits(self, critic_updates=">= 1", penalty=">= 0", adversarial_rate="> 0")

    config: Settings

    def __init__(self, config: Settings, shape: Shape) -> None:
        super().__init__(config, shape)
        self.grid = coarse_grid(config, shape)
        self.generator = Decoder.dense(config, self.grid, sigmoid=True)
        self.critic = Critic(config.ndim, self.grid, config.widths)
        # The latent's, and one that chooses a point between an image and a generated one.
        self.num_noise = config.latent_size + 1

    def players(self) -> tuple[Player, ...]:
        """Critic and generator."""
        config = self.config
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

    def forward(self, x_in: Tensor, target: Tensor, noise: Tensor, player: str = "") -> Losses:
        """The critic's or the generator's side of the game."""
        wasserstein = self.config.game == "wasserstein"
        z = noise[:, : self.config.latent_size]
        if player == "generator":
            score = self.critic(self.generator(z))
            return {"loss": -score.mean() if wasserstein else generator_loss(score)}
        with torch.no_grad():
            made = self.generator(z)
        real, fake = self.critic(target), self.critic(made)
        if not wasserstein:
            return {"loss": discriminator_loss(real, fake)}
        distance = real.mean() - fake.mean()
        penalty = gradient_penalty(self.critic, target, made, uniform(noise[:, -1]))
        loss = self.config.penalty * penalty - distance
        return {"loss": loss, "distance": distance, "penalty": penalty}


@method(
    "f-AnoGAN",
    source="Schlegl 2019, as in Meissen 2021, table 2",
    equation=(
        "WGAN-GP: min over C of C(G(z)) - C(x) + 10 (|dC/dx| - 1)^2, min over G of -C(G(z)); "
        "then min over E of mse(x, G(E(x))) + kappa mse(f(x), f(G(E(x)))), f = C's last "
        "features; s = abs(x - G(E(x)))"
    ),
    deviations=(
        "The norm in the penalty is of the whole image (the study's code takes rows). Images "
        "in [0, 1] after a sigmoid, as in the study; the encoder's output has no bound, as "
        "the latent has none. Gradients of each step are clipped like those of all methods."
    ),
    fit={"epochs": 250, "batch_size": 64, "learning_rate": 1e-4},
)
class FAnoGAN(GAN):
    """f-AnoGAN (Schlegl 2019): a Wasserstein GAN, then an encoder into its latent."""

    @dataclass(frozen=True, kw_only=True)
    class Settings(GAN.Settings):
        feature_weight: float = 1.0
        """Kappa: weight of the critic's features beside the image, each a mean of squares."""
        gan_share: float = 0.6
        """Share of the epochs that the GAN takes; the encoder has the rest."""
        encoder_rate: float = 5e-5
        """Learning rate of the encoder, of RMSprop."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_limits(self, feature_weight=">= 0", gan_share="in (0, 1)", encoder_rate="> 0")

    config: Settings

    def __init__(self, config: Settings, shape: Shape) -> None:
        super().__init__(config, shape)
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

    def forward(self, x_in: Tensor, target: Tensor, noise: Tensor, player: str = "") -> Losses:
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

    def healthy(self, x: Tensor) -> Tensor:
        """What the generator makes of the encoder's latent."""
        return self.generator(self.encoder(x)[0].float())


@method(
    "AnoGAN",
    source="Baur 2018, table 1 (Schlegl 2017)",
    equation=(
        "min over D of -log D(x) - log(1 - D(G(z))), over G of -log D(G(z)); then for each "
        "image min over z of 0.9 sum abs(x - G(z)) + 0.1 sum abs(f(x) - f(G(z))), f = D's last "
        "features; s = abs(x - G(z))"
    ),
    deviations=(
        "The search begins at z = 0, not at a drawn one, so that scores repeat, and all slices "
        "search at once. Batch normalisation sees other images of a batch: groups of channels "
        "here."
    ),
    fit={"epochs": 82, "batch_size": 8},
)
class AnoGAN(GAN):
    """A GAN, and a search by gradient for the latent of each image."""

    @dataclass(frozen=True, kw_only=True)
    class Settings(GAN.Settings):
        latent_size: int = 64
        """Units of the latent (Baur 2018, table 1)."""
        game: Literal["wasserstein", "logistic"] = "logistic"
        """The discriminator of Goodfellow 2014, as in both papers."""
        critic_updates: int = 1
        """Steps of the discriminator on each batch, before one of the generator."""
        betas: tuple[float, float] = (0.5, 0.999)
        """Of Adam, of generator and discriminator (Radford 2016, whose networks Schlegl 2017
        takes)."""
        search_steps: int = 100
        """Steps of the search (Baur 2018, section 3.1)."""
        search_rate: float = 0.05
        """Of the search's Adam; the papers give none. A hundred such steps go from the origin to
        any place that is likely under the normal distribution."""
        feature_share: float = 0.1
        """Lambda: weight of the discriminator's features; the residual has the rest (Schlegl
        2017)."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_limits(self, search_steps=">= 1", search_rate="> 0", feature_share="in [0, 1]")

    config: Settings

    def misfit(self, image: Tensor, z: Tensor) -> Tensor:
        """What the search descends, (B,): residual and difference of features, both summed.

        Args:
            image: (B, 1, *spatial).
            z: (B, latent_size).
        """
        made, share = self.generator(z), self.config.feature_share
        residual = (image - made).abs().flatten(1).sum(1)
        features = self.critic.features(image) - self.critic.features(made)
        return (1 - share) * residual + share * features.float().abs().sum(1)

    def search(self, image: Tensor) -> Tensor:
        """The latent of each image, (B, latent_size), from the origin; no number is drawn."""
        # Scoring runs in inference mode, whose tensors know no gradient.
        with torch.inference_mode(False), torch.enable_grad():
            image = image.detach().clone()
            z = torch.zeros(
                len(image), self.config.latent_size, device=image.device, requires_grad=True
            )
            # Adam looks at each number for itself, so that images do not see each other.
            optimizer = torch.optim.Adam([z], lr=self.config.search_rate)
            for _ in range(self.config.search_steps):
                (z.grad,) = torch.autograd.grad(self.misfit(image, z).sum(), z)
                optimizer.step()
        return z.detach()

    def reconstruct(self, x_BCZYX: Tensor) -> Tensor:
        """What the generator makes of that latent, in [0, 1]; 2D slice by slice."""
        return in_pieces(
            lambda x: self.generator(self.search(x)).clamp(*OUTPUT_RANGE),
            x_BCZYX,
            self.ndim,
            MAX_VOXELS,
        )
