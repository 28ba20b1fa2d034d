"""Bengs' variational autoencoder in 2D and 3D."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from uadray.lazy import Tensor, nn
from uadray.methods.base import GradientDetector, Losses, Shape
from uadray.methods.blocks import coarse_grid, down, norm, pointwise, stack, to_channels_last, up
from uadray.methods.networks import bound_log_sigma, kl_divergence
from uadray.methods.registry import method
from uadray.methods.settings import Learned, Norm, check_limits, check_widths

_PUBLISHED: Any = {
    "source": "Bengs 2021, section 2.2 and figure 2",
    "equation": "min sum abs(x - D(mu + sigma e)) + kl_weight KL; s = abs(x - D(mu))",
    "deviations": (
        "The paper names no norm, activation, weight of the KL term or reduction; each is a "
        "setting whose default was chosen on phantoms. The input may be erased, the target never "
        "is."
    ),
}


@method("2D-None", settings={"ndim": 2, "latent_size": 128}, **_PUBLISHED)
@method("3D-None", settings={"ndim": 3, "latent_size": 512}, **_PUBLISHED)
class VAE(GradientDetector):
    """Bengs' variational autoencoder (section 2.2, figure 2), the same in 2D and 3D.

    Convolutions with stride 2, a 1x1 convolution, dense mu and log sigma; mirrored back. Volumes
    are scored at mu. What the paper leaves open is a setting. By default both terms of the loss are
    sums, as in the study that the paper follows; as there, the head predicts log sigma. The loss is
    divided by the number of voxels, which moves no optimum and keeps Adam's epsilon small beside
    the gradients.
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(Learned):
        """Bengs' variational autoencoder (section 2.2, figure 2), the same in 2D and 3D.

        What the paper leaves open was compared on phantoms at 32^3, 40 epochs, three seeds, one
        setting at a time (`python -m benchmarks.defaults`), by labels: figures of methods belong
        on other phantoms. Below, figures are Dice_D for strokes
        and tumours, means over the seeds; with the defaults they are 0.350 and 0.566, deviating by
        0.03 from seed to seed.
        """

        ndim: Literal[2, 3] = 3
        """2: axial slices; 3: whole volumes."""
        latent_size: int = 512
        """Length of z: 128 in 2D, 512 in 3D (section 2.2)."""
        widths: tuple[int, ...] = (32, 64, 128)
        """Feature maps of the convolutions, kernel 5 stride 2 (figure 2)."""
        bottleneck: int = 16
        """Feature maps of the 1x1 convolution before the dense layer (figure 2)."""
        kl_weight: float = 1.0
        """Weight of the KL term beside the L1 term, both summed over their elements. 1 is that of
        the study that the paper follows. 0.08 gave 0.316 and 0.573, 8 gave 0.224 and 0.460 with
        most of the latent unused (weights of 64^3, scaled to the comparison's size with the number
        of voxels)."""
        norm: Norm = "group"
        """Normalisation after each convolution; the paper names none. Groups of channels (8 of
        them) did best, 0.259 and 0.506 without one, 0.291 and 0.497 with batches of 4; and they do
        not depend on what else is in a worker's batch."""
        slope: float = 0.01
        """Negative slope of the leaky ReLU; the paper names no activation. It does not matter:
        0.338 and 0.559 with 0 (ReLU), 0.352 and 0.579 with 0.3, within the seeds' deviation.
        Torch's default."""
        reduction: Literal["sum", "mean"] = "sum"
        """How both terms add up: `sum` over voxels and over latents, as in the study that the paper
        follows, or `mean` over each, which weighs the KL term by voxels / latents more."""
        output: Literal["linear", "sigmoid"] = "linear"
        """What the decoder ends in while it learns; a linear one is clamped to [0, 1] to score. A
        sigmoid did better on these phantoms, 0.383 and 0.613. The default stays that of the study
        that the paper follows until real anatomy at 64^3 says the same."""

        def __post_init__(self) -> None:
            check_limits(self, latent_size=">= 1", kl_weight=">= 0", slope="in [0, 1)")
            check_widths(self.widths)

        @property
        def label(self) -> str:
            """None of its own."""
            return ""

    config: Settings

    def __init__(self, config: Settings, shape: Shape) -> None:
        super().__init__(config, shape)
        self.grid = coarse_grid(config, shape)
        self.num_noise = config.latent_size
        n, widths, dense = config.ndim, config.widths, config.bottleneck * math.prod(self.grid)
        encoder: list[nn.Module] = []
        for width_in, width_out in zip((1, *widths), widths, strict=False):
            encoder += [down(n, width_in, width_out), *norm(config.norm, n, width_out)]
            encoder += [nn.LeakyReLU(config.slope)]
        self.encoder = stack(*encoder, pointwise(n, widths[-1], config.bottleneck))
        self.to_mu = nn.Linear(dense, config.latent_size)
        self.to_log_sigma = nn.Linear(dense, config.latent_size)
        self.from_z = nn.Linear(config.latent_size, dense)
        decoder: list[nn.Module] = [pointwise(n, config.bottleneck, widths[-1])]
        decoder += [*norm(config.norm, n, widths[-1]), nn.LeakyReLU(config.slope)]
        outputs = (*reversed(widths[:-1]), 1)
        for width_in, width_out in zip(reversed(widths), outputs, strict=True):
            decoder += [up(n, width_in, width_out)]
            if width_out != 1:
                decoder += [*norm(config.norm, n, width_out), nn.LeakyReLU(config.slope)]
        self.decoder = stack(*decoder)
        to_channels_last(self, n)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mu and log sigma, each (B, latent_size), of (B, 1, *spatial)."""
        features = self.encoder(x).flatten(1)
        return self.to_mu(features), bound_log_sigma(self.to_log_sigma(features))

    def decode(self, z: Tensor) -> Tensor:
        """(B, 1, *spatial) of (B, latent_size), not clamped."""
        features = self.from_z(z).unflatten(1, (self.config.bottleneck, *self.grid))
        out: Tensor = self.decoder(features)
        return out.float().sigmoid() if self.config.output == "sigmoid" else out

    def forward(self, x_in: Tensor, target: Tensor, noise: Tensor, player: str = "") -> Losses:
        """L1 + kl_weight * KL, the L1 term per voxel (section 2.3)."""
        mu, log_sigma = (t.float() for t in self.encode(x_in))
        output = self.decode(mu + log_sigma.exp() * noise).float()
        summed = self.config.reduction == "sum"
        elements = math.prod(target.shape[1:]) if summed else self.config.latent_size
        reconstruction = (output - target).abs().mean()
        units = kl_divergence(mu, log_sigma)
        kl = units.sum(1).mean()
        loss = reconstruction + self.config.kl_weight * kl / elements
        parts = {"reconstruction": reconstruction, "kl": kl}
        return {"loss": loss, **parts, "kl_units": units.detach().mean(0)}

    def healthy(self, x: Tensor) -> Tensor:
        """Decoded mu."""
        return self.decode(self.encode(x)[0].float()).float()
