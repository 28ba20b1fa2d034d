"""Bengs' variational autoencoder in 2D and 3D (Bengs 2021, section 2.2, figure 2)."""

import math

from torch import Tensor, nn

from uadray.config import VAE
from uadray.detectors.base import GradientDetector, by_samples
from uadray.detectors.blocks import down, norm, pointwise, up
from uadray.detectors.coders import bounded, coarse_grid, divergence, lay_out
from uadray.methods.network import OUTPUT_RANGE


class VAEDetector(GradientDetector):
    """Convolutions with stride 2, a 1x1 convolution, dense mu and log sigma; mirrored back.

    What the paper leaves open is a setting: the normalisation, the activation, the decoder's
    output, the weight of the KL term and how both terms add up. By default both are sums, as in
    the study that the paper follows; as there, the head predicts log sigma. Volumes are scored at
    mu. The loss is divided by the number of voxels, which moves no optimum and keeps Adam's
    epsilon small beside the gradients.

    Args:
        config: Its settings.
        shape: (Z, Y, X) of a volume.

    Raises:
        ConfigError: a side is not divisible by 2 for each strided convolution.
    """

    def __init__(self, config: VAE, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.config, self.ndim, self.num_noise = config, config.ndim, config.latent_size
        self.grid = coarse_grid(shape, config.ndim, len(config.widths), "the VAE")
        n, widths, dense = config.ndim, config.widths, config.bottleneck * math.prod(self.grid)
        encoder: list[nn.Module] = []
        for width_in, width_out in zip((1, *widths), widths, strict=False):
            encoder += [down(n, width_in, width_out), *norm(config.norm, n, width_out)]
            encoder += [nn.LeakyReLU(config.slope)]
        self.encoder = nn.Sequential(*encoder, pointwise(n, widths[-1], config.bottleneck))
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
        self.decoder = nn.Sequential(*decoder)
        lay_out(self, n)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mu and log sigma, each (B, latent_size), of (B, 1, *spatial)."""
        features = self.encoder(x).flatten(1)
        return self.to_mu(features), bounded(self.to_log_sigma(features))

    def decode(self, z: Tensor) -> Tensor:
        """(B, 1, *spatial) of (B, latent_size), not clamped."""
        features = self.from_z(z).unflatten(1, (self.config.bottleneck, *self.grid))
        out: Tensor = self.decoder(features)
        return out.float().sigmoid() if self.config.output == "sigmoid" else out

    def forward(
        self, x_in: Tensor, target: Tensor, noise: Tensor, player: str = ""
    ) -> dict[str, Tensor]:
        """L1 + kl_weight * KL, the L1 term per voxel (section 2.3)."""
        mu, log_sigma = (t.float() for t in self.encode(x_in))
        output = self.decode(mu + log_sigma.exp() * noise).float()
        summed = self.config.reduction == "sum"
        elements = math.prod(target.shape[1:]) if summed else self.config.latent_size
        reconstruction = (output - target).abs().mean()
        units = divergence(mu, log_sigma)
        kl = units.sum(1).mean()
        loss = reconstruction + self.config.kl_weight * kl / elements
        parts = {"reconstruction": reconstruction, "kl": kl}
        return {"loss": loss, **parts, "kl_units": units.detach().mean(0)}

    def reconstruct(self, x_BCZYX: Tensor) -> Tensor:
        """Decoded mu, clamped to [0, 1]; 2D slice by slice."""

        def run(x: Tensor) -> Tensor:
            return self.decode(self.encode(x)[0].float()).float().clamp(*OUTPUT_RANGE)

        return by_samples(run, x_BCZYX, self.ndim)
