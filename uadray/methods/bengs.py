"""Settings of the autoencoder of Bengs 2021."""

from dataclasses import dataclass
from typing import Literal

from uadray.methods.base import Learned, Named, check


@dataclass(frozen=True, kw_only=True)
class VAE(Learned):
    """Bengs' variational autoencoder (section 2.2, figure 2), the same in 2D and 3D.

    What the paper leaves open was compared on phantoms at 32^3, 40 epochs, three seeds, one setting
    at a time (`python -m benchmarks.defaults`). Below, figures are Dice_D for strokes and tumours,
    means over the seeds; with the defaults they are 0.350 and 0.566, deviating by 0.03 from seed to
    seed.
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
    """Weight of the KL term beside the L1 term, both summed over their elements. 1 is that of the
    study that the paper follows. 0.08 gave 0.316 and 0.573, 8 gave 0.224 and 0.460 with most of the
    latent unused (weights of 64^3, scaled to the comparison's size with the number of voxels)."""
    norm: Literal["none", "batch", "group"] = "group"
    """Normalisation behind each convolution; the paper names none. Groups of channels (8 of them)
    did best, 0.259 and 0.506 without one, 0.291 and 0.497 with batches of 4; and they do not depend
    on what else is in a worker's batch."""
    slope: float = 0.01
    """Negative slope of the leaky ReLU; the paper names no activation. It does not matter: 0.338
    and 0.559 with 0 (ReLU), 0.352 and 0.579 with 0.3, within the seeds' deviation. Torch's default.
    """
    reduction: Literal["sum", "mean"] = "sum"
    """How both terms add up: `sum` over voxels and over latents, as in the study that the paper
    follows, or `mean` over each, which weighs the KL term by voxels / latents more."""
    output: Literal["linear", "sigmoid"] = "linear"
    """What the decoder ends in while it learns; a linear one is clamped to [0, 1] to score. A
    sigmoid did better on these phantoms, 0.383 and 0.613. The default stays that of the study that
    the paper follows until real anatomy at 64^3 says the same."""

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
