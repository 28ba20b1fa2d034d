"""Restoration: the healthy image that is most probable given the image, found by gradient.

Chen, You, Tezcan and Konukoglu 2020, the `VAE (rest.)` and `GMVAE (rest.)` of Meissen 2021,
table 2. The posterior of the healthy image y given the image x is taken as

    log p(y | x) = ELBO(y) - w TV(x - y) + constant

so that y keeps to what the network knows, and differs from x by patches rather than by speckle.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from typing import Literal

from uadray.lazy import Tensor, nn, torch
from uadray.methods.base import Losses, Masked, Shape, in_pieces, sum_within, with_brain
from uadray.methods.blocks import OUTPUT_RANGE
from uadray.methods.networks import bound_log_sigma, kl_divergence
from uadray.methods.registry import method
from uadray.methods.settings import Learned, Norm, check, check_limits, check_widths
from uadray.methods.vae import VAE


@dataclass(frozen=True, kw_only=True)
class Restore:
    """How an image is restored."""

    steps: int = 150
    """Steps of the descent: 500 in the original, 150 in the comparative study."""
    first_steps: int = 100
    """How many of them are longer; the original's."""
    first_step_size: float = 5e-3
    """Of the first steps, in intensities a unit of the gradient; the original's."""
    step_size: float = 2e-3
    """Of the later steps; the original's."""
    clip: float = 50.0
    """Bound of the gradient at each voxel; the original's is 50 with the VAE, 100 with the
    mixture."""
    tv_weights: tuple[float, ...] = (0.0, 0.1, 0.2, 0.4, 0.8, 1.2, 1.8, 2.6)
    """Weights of the total variation to choose from by healthy volumes, ascending; one alone is
    taken as it is. The original searches 0 to 3.8."""
    tolerance: float = 0.5
    """The smallest weight is chosen whose healthy change lies within this share of the span between
    the most and the least of all; 0 takes the least, as the original. On small synthetic brains
    with a bright block the least let hardly anything change: the block's mean score was 1.5 times
    the rest's in 3D and 3.1 in 2D, against 5.0 and 6.9 at half the span."""
    search_volumes: int = 4
    """Validation volumes, over all workers, that the search restores once a weight."""

    def __post_init__(self) -> None:
        check_limits(
            self,
            "method.restore.",
            steps=">= 1",
            first_steps=">= 0",
            first_step_size="> 0",
            step_size="> 0",
            clip="> 0",
            tolerance="in [0, 1)",
            search_volumes=">= 1",
        )
        ascending = self.tv_weights and list(self.tv_weights) == sorted(set(self.tv_weights))
        check(
            bool(ascending) and self.tv_weights[0] >= 0,
            "method.restore.tv_weights",
            "ascending, none below 0",
            self.tv_weights,
        )


Energy = Callable[[Tensor], Tensor]
"""The negative ELBO of each image, (B,), of (B, 1, *spatial)."""

MAX_VOXELS = 2**22
"""Voxels that are restored at a time: 16 volumes of 64^3, or 64 slices of 256 x 256. Samples do not
see each other, so that it bounds the memory alone."""


def total_variation(image: Tensor) -> Tensor:
    """Sum of the absolute differences between neighbours along each axis, (B,).

    Args:
        image: (B, 1, *spatial).
    """
    axes = range(2, image.ndim)
    return sum(
        (image.diff(dim=axis).abs().flatten(1).sum(1) for axis in axes),
        start=image.new_zeros(len(image)),
    )


def restore(
    energy: Energy, image: Tensor, brain: Tensor, weight: Tensor, config: Restore
) -> Tensor:
    """Descend from the image to its restoration.

    Inside the brain alone: what is background stays 0. No number is drawn, so that the same image
    gives the same restoration, whatever else is in the batch.

    Args:
        energy: The negative ELBO.
        image: (B, 1, *spatial) in [0, 1], background 0.
        brain: (B, 1, *spatial) bool.
        weight: Of the total variation, (B,): one a sample.
        config: Steps, their size, and the bound of the gradient.

    Returns:
        (B, 1, *spatial) in [0, 1].
    """
    # Scoring runs in inference mode, whose tensors know no gradient.
    with torch.inference_mode(False), torch.enable_grad():
        image, weight = image.detach().clone(), weight.detach().clone()
        brain, restored = brain.clone(), image
        for step in range(config.steps):
            restored = restored.detach().requires_grad_()
            total = energy(restored) + weight * total_variation(image - restored)
            (gradient,) = torch.autograd.grad(total.sum(), restored)
            size = config.first_step_size if step < config.first_steps else config.step_size
            clamped = gradient.clamp(-config.clip, config.clip)
            restored = restored.detach() - size * clamped * brain
    return restored.detach().clamp(*OUTPUT_RANGE)


def choose(change: Tensor, config: Restore) -> int:
    """Number of the smallest weight whose healthy change is near the least.

    Args:
        change: Mean absolute change of healthy brain voxels by candidate, ascending weights, (N,).
        config: The tolerance.
    """
    least, most = change.min(), change.max()
    near = change <= least + config.tolerance * (most - least)
    return int(near.nonzero()[0, 0])


class Restoration(VAE):
    """Bengs' network with a restoration in place of its reconstruction.

    The weight of the total variation is a buffer, which `calibrate` sets after the last epoch.
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(Learned):
        widths: tuple[int, ...] = (32, 64, 128)
        """Feature maps of the convolutions, kernel 5 stride 2."""
        bottleneck: int = 16
        """Feature maps of the 1x1 convolution before the dense layer."""
        norm: Norm = "group"
        """Normalisation after each convolution."""
        slope: float = 0.01
        """Negative slope of the leaky ReLU."""
        kl_weight: float = 1.0
        """Weight of all divergences beside the data term, in the fit and in the restoration."""
        data_term: Literal["l1", "l2"] = "l1"
        """Sum of the absolute or of the squared differences to the decoded image, in the fit and in
        the restoration. The original squares standardised intensities; squares of intensities in
        [0, 1] weigh so little beside the divergences that nothing is learned. The comparative study
        has l1."""
        restore: Restore = field(default_factory=Restore)
        """The descent."""

        def __post_init__(self) -> None:
            check_limits(self, kl_weight=">= 0", slope="in [0, 1)")
            check_widths(self.widths)

    tv_weight: Tensor
    calibrates = True

    def __init__(self, config: Settings, shape: Shape, latent_size: int) -> None:
        common = {f.name for f in fields(config)} & {f.name for f in fields(VAE.Settings)}
        network = {name: getattr(config, name) for name in common} | {"latent_size": latent_size}
        super().__init__(VAE.Settings(**network), shape)
        self.settings, self.calibration_volumes = config, config.restore.search_volumes
        weight = torch.tensor(float(config.restore.tv_weights[0]))
        self.register_buffer("tv_weight", weight)

    def data_term(self, output: Tensor, target: Tensor) -> Tensor:
        """Sum of absolute or squared differences of each sample, (B,)."""
        difference = (output - target).float().flatten(1)
        return (difference.abs() if self.settings.data_term == "l1" else difference.square()).sum(1)

    @abstractmethod
    def energy(self, image: Tensor) -> Tensor:
        """The negative ELBO of each sample with its noise at the mean, (B,)."""

    def reconstruct(self, x_BCZYX: Tensor) -> Tensor:
        """The restoration of what is above 0, 2D slice by slice."""
        return self.reconstruct_within(x_BCZYX, x_BCZYX[:, 0] > 0)

    def reconstruct_within(self, x_BCZYX: Tensor, brain_BZYX: Tensor) -> Tensor:
        """The restoration of the brain, 2D slice by slice."""
        return self.restored(x_BCZYX, brain_BZYX, self.tv_weight)

    def restored(self, x_BCZYX: Tensor, brain_BZYX: Tensor, weight: Tensor) -> Tensor:
        """The restoration with another weight of the total variation, a scalar."""

        def run(samples: Tensor) -> Tensor:
            image, brain = samples[:, :1], samples[:, 1:] > 0
            weights = weight.expand(len(samples))
            return restore(self.energy, image, brain, weights, self.settings.restore)

        return in_pieces(run, with_brain(x_BCZYX, brain_BZYX), self.ndim, MAX_VOXELS)

    def held_out_error(self, x_BCZYX: Tensor, brain_BZYX: Tensor) -> Tensor:
        """Of the network's plain reconstruction: epochs are many, and a restoration takes long."""
        error = (x_BCZYX - super().reconstruct(x_BCZYX).float()).abs()
        return sum_within(error, brain_BZYX[:, None])

    def calibrate(self, volumes: Iterable[Masked], total: Callable[[Tensor], Tensor]) -> None:
        """Choose the weight of the total variation by healthy volumes.

        The original takes the weight whose restorations of healthy images change least, of 20
        between 0 and 3.8. The larger the weight, the less anything changes, lesions included,
        until the descent's own zigzag outweighs that: where the change is least, lesions hardly
        change either. So the smallest weight is taken here whose change exceeds the least by at
        most `tolerance` of the span between the most and the least. One weight alone is taken as
        it is.

        Args:
            volumes: Healthy ones of this worker.
            total: Sum over the workers.
        """
        candidates = torch.tensor(self.settings.restore.tv_weights, device=self.tv_weight.device)
        if len(candidates) == 1:
            return
        sums = torch.zeros(len(candidates) + 1, dtype=torch.float64)
        for x, brain in volumes:
            for number, weight in enumerate(candidates):
                change = (self.restored(x, brain, weight) - x).abs()[:, 0]
                sums[number] += change[brain].double().sum().cpu()
            sums[-1] += brain.sum().cpu()
        sums = total(sums)
        self.tv_weight.copy_(candidates[choose(sums[:-1] / sums[-1], self.settings.restore)])


_RESTORED = "y = argmin of the same over the image + w TV(x - y); s = abs(x - y)"
_OPEN = (
    "Absolute differences, as in the comparative study, whose figures the table prints; the total "
    "variation is of what changed, as in the original, not of what is decoded, as in the study. "
    "Of the searched weights the smallest that spares healthy images half of the change that any "
    "spares them, not the one of the least change, which hardly lets lesions change either. "
)


@method(
    "VAE-restoration",
    source="Meissen 2021, table 2 (Chen 2020)",
    equation=f"min sum abs(x - D(z)) + KL(q(z) | N(0, 1)); {_RESTORED}",
    deviations=_OPEN + "Bengs' convolutions.",
)
class VAERestoration(Restoration):
    """A variational autoencoder whose score is the distance to the restored image."""

    @dataclass(frozen=True, kw_only=True)
    class Settings(Restoration.Settings):
        latent_size: int = 128
        """Length of z, as in the comparative study."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_limits(self, latent_size=">= 1")

    settings: Settings

    def __init__(self, config: Settings, shape: Shape) -> None:
        super().__init__(config, shape, config.latent_size)

    def forward(self, x_in: Tensor, target: Tensor, noise: Tensor, player: str = "") -> Losses:
        """Data term + kl_weight * KL, a voxel."""
        mu, log_sigma = (t.float() for t in self.encode(x_in))
        output = self.decode(mu + log_sigma.exp() * noise).float()
        units = kl_divergence(mu, log_sigma)
        total = self.data_term(output, target) + self.settings.kl_weight * units.sum(1)
        return {
            "loss": total.mean() / target[0].numel(),
            "reconstruction": (output - target).abs().mean(),
            "kl": units.sum(1).mean(),
            "kl_units": units.detach().mean(0),
        }

    def energy(self, image: Tensor) -> Tensor:
        """Data term + kl_weight * KL at the latent's mean, (B,)."""
        mu, log_sigma = (t.float() for t in self.encode(image))
        data = self.data_term(self.decode(mu), image)
        return data + self.settings.kl_weight * kl_divergence(mu, log_sigma).sum(1)


@method(
    "GMVAE-restoration",
    source="Meissen 2021, table 2 (Chen 2020)",
    equation=(
        "min sum abs(x - D(z)) + E KL(q(z) | p(z | w, c)) + KL(q(w) | N(0, 1)) "
        f"+ max(KL(p(c | z, w) | uniform), c_lambda); {_RESTORED}"
    ),
    deviations=_OPEN + "The density of a cluster is the normalised Gaussian, which the public "
    "codes miss by a sign. The term of z is the published estimator, which weighs the divergences "
    "from the clusters by the posterior of c at one sample of z, not the exact bound. Bengs' "
    "convolutions, dense latents.",
    settings={"restore": Restore(clip=100.0)},
)
class GMVAERestoration(Restoration):
    """The same with a mixture of Gaussians as the prior of z.

    The image comes from z, z from a cluster c and a vector w: p(w) = N(0, 1), p(c) uniform,
    p(z | w, c) a Gaussian whose mean and deviation follow from w, for each c its own. q(z) and q(w)
    follow from the image, and p(c | z, w) from Bayes' rule (Dilokthanakul 2016; Chen 2020).
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(Restoration.Settings):
        num_clusters: int = 9
        """Values of c (`dim_c`), as in the comparative study."""
        latent_size: int = 128
        """Length of z (`dim_z`), likewise."""
        prior_size: int = 1
        """Length of w (`dim_w`), from which the clusters' Gaussians follow, likewise."""
        prior_width: int = 64
        """Hidden units between w and the clusters."""
        cluster_floor: float = 1.0
        """Least divergence of c that counts, in nats (`c_lambda`): below it c is free to differ
        from its uniform prior. 1 in the comparative study, 0.5 in the original."""

        def __post_init__(self) -> None:
            super().__post_init__()
            sizes = ("num_clusters", "latent_size", "prior_size", "prior_width")
            check_limits(self, cluster_floor=">= 0", **dict.fromkeys(sizes, ">= 1"))

    settings: Settings

    def __init__(self, config: Settings, shape: Shape) -> None:
        super().__init__(config, shape, config.latent_size + config.prior_size)
        self.from_z = nn.Linear(config.latent_size, self.from_z.out_features)
        outputs = config.num_clusters * config.latent_size
        self.from_w = nn.Sequential(nn.Linear(config.prior_size, config.prior_width), nn.ReLU())
        self.to_cluster_mu = nn.Linear(config.prior_width, outputs)
        self.to_cluster_log_sigma = nn.Linear(config.prior_width, outputs)

    def decode(self, z: Tensor) -> Tensor:
        """(B, 1, *spatial) of z, (B, latent_size), which w may follow; not clamped."""
        return super().decode(z[:, : self.settings.latent_size])

    def clusters(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log deviation of z in each cluster, each (B, clusters, latent_size)."""
        features = self.from_w(w)
        shape = (self.settings.num_clusters, self.settings.latent_size)
        mu = self.to_cluster_mu(features).float()
        log_sigma = bound_log_sigma(self.to_cluster_log_sigma(features))
        return mu.unflatten(1, shape), log_sigma.unflatten(1, shape)

    def terms(self, image: Tensor, target: Tensor, noise: Tensor | None) -> dict[str, Tensor]:
        """The four terms of each sample, (B,), before weights, and what is made of them.

        Args:
            image: (B, 1, *spatial).
            target: What the decoded image is compared with.
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
            "data": self.data_term(output, target),
            "kl_z": units.sum(1),
            "kl_w": kl_divergence(mu[:, size:], log_sigma[:, size:]).sum(1),
            "kl_c": kl_c.clamp_min(self.settings.cluster_floor),
            "output": output,
            "units": units,
        }

    def forward(self, x_in: Tensor, target: Tensor, noise: Tensor, player: str = "") -> Losses:
        """Data term + kl_weight * the three divergences, a voxel."""
        terms = self.terms(x_in, target, noise)
        divergence = terms["kl_z"] + terms["kl_w"] + terms["kl_c"]
        total = terms["data"] + self.settings.kl_weight * divergence
        return {
            "loss": total.mean() / target[0].numel(),
            "reconstruction": (terms["output"] - target).abs().mean(),
            "kl": divergence.mean(),
            "kl_units": terms["units"].detach().mean(0),
        }

    def energy(self, image: Tensor) -> Tensor:
        """The four terms at the latents' means, (B,)."""
        terms = self.terms(image, image, None)
        divergence = terms["kl_z"] + terms["kl_w"] + terms["kl_c"]
        return terms["data"] + self.settings.kl_weight * divergence
