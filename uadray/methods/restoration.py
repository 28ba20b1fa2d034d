"""Settings of the restoring methods (Chen, You, Tezcan and Konukoglu 2020; Meissen 2021)."""

from dataclasses import dataclass, field
from typing import Literal

from uadray.methods.base import Learned, Named, check


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
        check(self.steps >= 1, "method.restore.steps", ">= 1", self.steps)
        check(self.first_steps >= 0, "method.restore.first_steps", ">= 0", self.first_steps)
        for name in ("first_step_size", "step_size", "clip"):
            value = getattr(self, name)
            check(value > 0, f"method.restore.{name}", "> 0", value)
        ascending = self.tv_weights and list(self.tv_weights) == sorted(set(self.tv_weights))
        check(
            bool(ascending) and self.tv_weights[0] >= 0,
            "method.restore.tv_weights",
            "ascending, none below 0",
            self.tv_weights,
        )
        check(0 <= self.tolerance < 1, "method.restore.tolerance", "in [0, 1)", self.tolerance)
        volumes = self.search_volumes
        check(volumes >= 1, "method.restore.search_volumes", ">= 1", volumes)


@dataclass(frozen=True, kw_only=True)
class Restoring(Learned):
    """What the restoring methods share: Bengs' convolutions, and a descent through them."""

    widths: tuple[int, ...] = (32, 64, 128)
    """Feature maps of the convolutions, kernel 5 stride 2."""
    bottleneck: int = 16
    """Feature maps of the 1x1 convolution before the dense layer."""
    norm: Literal["none", "batch", "group"] = "group"
    """Normalisation behind each convolution."""
    slope: float = 0.01
    """Negative slope of the leaky ReLU."""
    kl_weight: float = 1.0
    """Weight of all divergences beside the data term, in the fit and in the restoration."""
    data_term: Literal["l1", "l2"] = "l1"
    """Sum of the absolute or of the squared differences to the decoded image, in the fit and in the
    restoration. The original squares standardised intensities; squares of intensities in [0, 1]
    weigh so little beside the divergences that nothing is learned. The comparative study has l1."""
    restore: Restore = field(default_factory=Restore)
    """The descent."""

    def __post_init__(self) -> None:
        check(self.kl_weight >= 0, "method.kl_weight", ">= 0", self.kl_weight)
        check(0 <= self.slope < 1, "method.slope", "in [0, 1)", self.slope)
        check(
            len(self.widths) >= 1 and all(w % 8 == 0 and w > 0 for w in self.widths),
            "method.widths",
            "multiples of 8",
            self.widths,
        )


@dataclass(frozen=True, kw_only=True)
class VAERestoration(Restoring):
    """A variational autoencoder whose score is the distance to the restored image."""

    latent_size: int = 128
    """Length of z, as in the comparative study."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.latent_size >= 1, "method.latent_size", ">= 1", self.latent_size)

    @property
    def label(self) -> str:
        """`VAE-restoration`."""
        return "VAE-restoration"


@dataclass(frozen=True, kw_only=True)
class GMVAERestoration(Restoring):
    """The same with a mixture of Gaussians as the prior of z."""

    num_clusters: int = 9
    """Values of c (`dim_c`), as in the comparative study."""
    latent_size: int = 128
    """Length of z (`dim_z`), likewise."""
    prior_size: int = 1
    """Length of w (`dim_w`), from which the clusters' Gaussians follow, likewise."""
    prior_width: int = 64
    """Hidden units between w and the clusters."""
    cluster_floor: float = 1.0
    """Least divergence of c that counts, in nats (`c_lambda`): below it c is free to differ from
    its uniform prior. 1 in the comparative study, 0.5 in the original."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_clusters", "latent_size", "prior_size", "prior_width"):
            check(getattr(self, name) >= 1, f"method.{name}", ">= 1", getattr(self, name))
        check(self.cluster_floor >= 0, "method.cluster_floor", ">= 0", self.cluster_floor)

    @property
    def label(self) -> str:
        """`GMVAE-restoration`."""
        return "GMVAE-restoration"


_RESTORED = "y = argmin of the same over the image + w TV(x - y); s = abs(x - y)"
_OPEN = (
    "Absolute differences, as in the comparative study, whose figures the table prints; the total "
    "variation is of what changed, as in the original, not of what is decoded, as in the study. "
    "Of the searched weights the smallest that spares healthy images half of the change that any "
    "spares them, not the one of the least change, which hardly lets lesions change either. "
)

NAMED: dict[str, Named] = {
    "VAE-restoration": Named(
        method=VAERestoration(),
        source="Meissen 2021, table 2 (Chen 2020)",
        equation=f"min sum abs(x - D(z)) + KL(q(z) | N(0, 1)); {_RESTORED}",
        deviations=_OPEN + "Bengs' convolutions.",
    ),
    "GMVAE-restoration": Named(
        method=GMVAERestoration(restore=Restore(clip=100.0)),
        source="Meissen 2021, table 2 (Chen 2020)",
        equation=(
            "min sum abs(x - D(z)) + E KL(q(z) | p(z | w, c)) + KL(q(w) | N(0, 1)) "
            f"+ max(KL(p(c | z, w) | uniform), c_lambda); {_RESTORED}"
        ),
        deviations=_OPEN + "The density of a cluster is the normalised Gaussian, which the public "
        "codes miss by a sign. Bengs' convolutions, dense latents.",
    ),
}
"""Both, on slices."""
