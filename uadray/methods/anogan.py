"""Settings of AnoGAN (Schlegl 2017; Baur 2018)."""

from dataclasses import dataclass
from typing import Literal

from uadray.methods.adversarial import Adversarial
from uadray.methods.base import Named, check


@dataclass(frozen=True, kw_only=True)
class AnoGAN(Adversarial):
    """A GAN, and a search by gradient for the latent of each image."""

    latent_size: int = 64
    """Units of the latent (Baur 2018, table 1)."""
    game: Literal["wasserstein", "logistic"] = "logistic"
    """The discriminator of Goodfellow 2014, as in both papers."""
    critic_updates: int = 1
    """Steps of the discriminator on each batch, before one of the generator."""
    betas: tuple[float, float] = (0.5, 0.999)
    """Of Adam, of generator and discriminator (Radford 2016, whose networks Schlegl 2017 takes)."""
    search_steps: int = 100
    """Steps of the search (Baur 2018, section 3.1)."""
    search_rate: float = 0.05
    """Of the search's Adam; the papers give none. A hundred such steps go from the origin to any
    place that is likely under the normal distribution."""
    feature_share: float = 0.1
    """Lambda: weight of the discriminator's features; the residual has the rest (Schlegl 2017)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.search_steps >= 1, "method.search_steps", ">= 1", self.search_steps)
        check(self.search_rate > 0, "method.search_rate", "> 0", self.search_rate)
        check(0 <= self.feature_share <= 1, "method.feature_share", "in [0, 1]", self.feature_share)

    @property
    def label(self) -> str:
        """`AnoGAN`."""
        return "AnoGAN"


NAMED: dict[str, Named] = {
    "AnoGAN": Named(
        method=AnoGAN(),
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
    ),
}
"""On slices."""
