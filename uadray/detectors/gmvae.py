"""Networks that restore: the VAE, and one whose prior is a mixture of Gaussians."""

import math

from torch import Tensor, nn

from uadray.detectors.coders import bounded, divergence
from uadray.detectors.restoration import RestorationMixin
from uadray.detectors.vae import VAEDetector
from uadray.methods import VAE, GMVAERestoration, VAERestoration
from uadray.methods.restoration import Restoring


def _network(config: Restoring, latent_size: int) -> VAE:
    """The settings of Bengs' network that the restoring methods build on."""
    return VAE(
        ndim=config.ndim,
        latent_size=latent_size,
        widths=config.widths,
        bottleneck=config.bottleneck,
        kl_weight=config.kl_weight,
        norm=config.norm,
        slope=config.slope,
    )


def data_term(config: Restoring, output: Tensor, target: Tensor) -> Tensor:
    """Sum of absolute or squared differences of each sample, (B,)."""
    difference = (output - target).float().flatten(1)
    return (difference.abs() if config.data_term == "l1" else difference.square()).sum(1)


class VAERestorationDetector(RestorationMixin, VAEDetector):
    """Bengs' variational autoencoder, scored by the distance to a restored image.

    Args:
        config: Its settings.
        shape: (Z, Y, X) of a volume.

    Raises:
        ConfigError: a side is not divisible by 2 for each strided convolution.
    """

    def __init__(self, config: VAERestoration, shape: tuple[int, int, int]) -> None:
        super().__init__(_network(config, config.latent_size), shape)
        self.settings = config
        self.init_restoration(config.restore)

    def forward(
        self, x_in: Tensor, target: Tensor, noise: Tensor, player: str = ""
    ) -> dict[str, Tensor]:
        """Data term + kl_weight * KL, a voxel."""
        mu, log_sigma = (t.float() for t in self.encode(x_in))
        output = self.decode(mu + log_sigma.exp() * noise).float()
        units = divergence(mu, log_sigma)
        total = data_term(self.settings, output, target) + self.settings.kl_weight * units.sum(1)
        return {
            "loss": total.mean() / target[0].numel(),
            "reconstruction": (output - target).abs().mean(),
            "kl": units.sum(1).mean(),
            "kl_units": units.detach().mean(0),
        }

    def energy(self, image: Tensor) -> Tensor:
        """Data term + kl_weight * KL at the latent's mean, (B,)."""
        mu, log_sigma = (t.float() for t in self.encode(image))
        data = data_term(self.settings, self.decode(mu), image)
        return data + self.settings.kl_weight * divergence(mu, log_sigma).sum(1)


class GMVAEDetector(RestorationMixin, VAEDetector):
    """A variational autoencoder with a mixture as its prior (Dilokthanakul 2016; Chen 2020).

    The image comes from z, z from a cluster c and a vector w: p(w) = N(0, 1), p(c) uniform,
    p(z | w, c) a Gaussian whose mean and deviation follow from w, for each c its own. q(z) and q(w)
    follow from the image, and p(c | z, w) from Bayes' rule.

    Args:
        config: Its settings.
        shape: (Z, Y, X) of a volume.

    Raises:
        ConfigError: a side is not divisible by 2 for each strided convolution.
    """

    def __init__(self, config: GMVAERestoration, shape: tuple[int, int, int]) -> None:
        super().__init__(_network(config, config.latent_size + config.prior_size), shape)
        self.settings = config
        self.from_z = nn.Linear(config.latent_size, self.from_z.out_features)
        outputs = config.num_clusters * config.latent_size
        self.from_w = nn.Sequential(nn.Linear(config.prior_size, config.prior_width), nn.ReLU())
        self.to_cluster_mu = nn.Linear(config.prior_width, outputs)
        self.to_cluster_log_sigma = nn.Linear(config.prior_width, outputs)
        self.init_restoration(config.restore)

    def decode(self, z: Tensor) -> Tensor:
        """(B, 1, *spatial) of z, (B, latent_size), behind which w may stand; not clamped."""
        return super().decode(z[:, : self.settings.latent_size])

    def clusters(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log deviation of z in each cluster, each (B, clusters, latent_size)."""
        features = self.from_w(w)
        shape = (self.settings.num_clusters, self.settings.latent_size)
        mu = self.to_cluster_mu(features).float()
        log_sigma = bounded(self.to_cluster_log_sigma(features))
        return mu.unflatten(1, shape), log_sigma.unflatten(1, shape)

    def terms(self, image: Tensor, target: Tensor, noise: Tensor | None) -> dict[str, Tensor]:
        """The four terms of each sample, (B,), before weights, and what is made of them.

        Args:
            image: (B, 1, *spatial).
            target: What the decoded image is held against.
            noise: (B, latent_size + prior_size); None takes the means.

        Returns:
            `data`, `kl_z`, `kl_w`, `kl_c` (with its floor); `output`; `units`, the divergence of
            each unit of z, (B, latent_size).
        """
        size = self.settings.latent_size
        mu, log_sigma = (t.float() for t in self.encode(image))
        drawn = mu if noise is None else mu + log_sigma.exp() * noise
        z, w = drawn[:, :size], drawn[:, size:]
        output = self.decode(z).float()
        centres, log_widths = self.clusters(w)
        log_density = (
            -0.5 * ((z[:, None] - centres) / log_widths.exp()).square()
            - log_widths
            - 0.5 * math.log(2 * math.pi)
        ).sum(2)
        log_c = log_density.log_softmax(1)
        c = log_c.exp()
        mu_z, log_sigma_z = mu[:, None, :size], log_sigma[:, None, :size]
        ratio = ((2 * log_sigma_z).exp() + (mu_z - centres).square()) / (2 * log_widths).exp()
        units = (c[:, :, None] * (log_widths - log_sigma_z + 0.5 * (ratio - 1))).sum(1)
        kl_c = (c * (log_c + math.log(self.settings.num_clusters))).sum(1)
        return {
            "data": data_term(self.settings, output, target),
            "kl_z": units.sum(1),
            "kl_w": divergence(mu[:, size:], log_sigma[:, size:]).sum(1),
            "kl_c": kl_c.clamp_min(self.settings.cluster_floor),
            "output": output,
            "units": units,
        }

    def forward(
        self, x_in: Tensor, target: Tensor, noise: Tensor, player: str = ""
    ) -> dict[str, Tensor]:
        """Data term + kl_weight * the three divergences, a voxel."""
        found = self.terms(x_in, target, noise)
        apart = found["kl_z"] + found["kl_w"] + found["kl_c"]
        total = found["data"] + self.settings.kl_weight * apart
        return {
            "loss": total.mean() / target[0].numel(),
            "reconstruction": (found["output"] - target).abs().mean(),
            "kl": apart.mean(),
            "kl_units": found["units"].detach().mean(0),
        }

    def energy(self, image: Tensor) -> Tensor:
        """The four terms at the latents' means, (B,)."""
        found = self.terms(image, image, None)
        apart = found["kl_z"] + found["kl_w"] + found["kl_c"]
        return found["data"] + self.settings.kl_weight * apart
