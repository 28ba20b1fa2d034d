"""Settings of the autoencoder of Bengs 2021."""

from dataclasses import dataclass
from typing import Literal

from uadray.methods.base import Learned, Named, check


@dataclass(frozen=True, kw_only=True)
class VAE(Learned):
    """Bengs' variational autoencoder (section 2.2, figure 2), the same in 2D and 3D."""

    ndim: Literal[2, 3] = 3
    """2: axial slices; 3: whole volumes."""
    latent_size: int = 512
    """Length of z: 128 in 2D, 512 in 3D (section 2.2)."""
    widths: tuple[int, ...] = (32, 64, 128)
    """Feature maps of the convolutions, kernel 5 stride 2 (figure 2)."""
    bottleneck: int = 16
    """Feature maps of the 1x1 convolution before the dense layer (figure 2)."""
    kl_weight: float = 1.0
    """Weight of the KL term beside the L1 term, both summed over their elements."""
    norm: Literal["none", "batch", "group"] = "group"
    """Normalisation behind each convolution; the paper names none. On phantoms at 32^3 the net
    without one learned several times slower; groups of channels (8 groups) did as well as batches,
    and do not depend on what else is in a worker's batch."""
    slope: float = 0.01
    """Negative slope of the leaky ReLU; the paper names no activation."""
    reduction: Literal["sum", "mean"] = "sum"
    """How both terms add up: `sum` over voxels and over latents, or `mean` over each, which weighs
    the KL term by voxels / latents more."""
    output: Literal["linear", "sigmoid"] = "linear"
    """What the decoder ends in while it learns; a linear one is clamped to [0, 1] to score."""

    def __post_init__(self) -> None:
        check(self.latent_size >= 1, "method.latent_size", ">= 1", self.latent_size)
        check(self.kl_weight >= 0, "method.kl_weight", ">= 0", self.kl_weight)
        check(0 <= self.slope < 1, "method.slope", "in [0, 1)", self.slope)
        check(
            len(self.widths) >= 1 and all(w % 8 == 0 and w > 0 for w in self.widths),
            "method.widths",
            "multiples of 8",
            self.widths,
        )


_SOURCE = "Bengs 2021, section 2.2 and figure 2"
_EQUATION = "min sum abs(x - D(mu + sigma e)) + kl_weight KL; s = abs(x - D(mu))"
_OPEN = (
    "The paper names no norm, activation, weight of the KL term or reduction; each is a setting "
    "whose default was chosen on phantoms. The input may be erased, the target never is."
)

NAMED: dict[str, Named] = {
    "2D-None": Named(
        method=VAE(ndim=2, latent_size=128), source=_SOURCE, equation=_EQUATION, deviations=_OPEN
    ),
    "3D-None": Named(
        method=VAE(ndim=3, latent_size=512), source=_SOURCE, equation=_EQUATION, deviations=_OPEN
    ),
}
"""Without erasing; names with erasing are made of these."""
