"""Settings of the autoencoders of Baur 2018, of the comparative study, and of their kin."""

from dataclasses import dataclass
from typing import Literal

from uadray.methods.base import Learned, Named, check


@dataclass(frozen=True, kw_only=True)
class Convolutional(Learned):
    """What the autoencoders have in common: their convolutions."""

    widths: tuple[int, ...] = (32, 64, 128, 128)
    """Feature maps of the convolutions, kernel 5 stride 2: `min(128, 32 * 2^i)`, as in the
    comparative study. Four halve a slice of 256 to the 16 x 16 of Baur 2018, table 1; at other
    sizes their number stays, so that a place of the latent sees as many pixels."""
    norm: Literal["none", "batch", "group"] = "group"
    """Normalisation behind each convolution. Both studies have batches; groups of channels do not
    depend on what else is in a worker's batch."""
    slope: float = 0.3
    """Negative slope of the leaky ReLU (the study's; Baur 2018 names no activation)."""

    def __post_init__(self) -> None:
        check(0 <= self.slope < 1, "method.slope", "in [0, 1)", self.slope)
        check(
            len(self.widths) >= 1 and all(w % 8 == 0 and w > 0 for w in self.widths),
            "method.widths",
            "multiples of 8",
            self.widths,
        )


@dataclass(frozen=True, kw_only=True)
class Autoencoder(Convolutional):
    """An autoencoder of Baur 2018: dense or spatial, variational or not, adversarial or not."""

    latent: Literal["dense", "spatial"] = "spatial"
    """`dense`: a vector; `spatial`: maps on the coarsest grid."""
    latent_size: int = 512
    """Units of a dense latent (table 1)."""
    latent_width: int = 64
    """Maps of a spatial latent (table 1); 0 takes the maps of the last convolution."""
    bottleneck: int = 16
    """Maps of the 1x1 convolution before a dense latent (the study's: an eighth of 128)."""
    variational: bool = False
    """Whether the latent is drawn, and held near the normal distribution."""
    adversarial: bool = False
    """Whether a discriminator learns to tell reconstructions from images (equations 2 and 3)."""
    kl_weight: float = 1.0
    """Lambda_2 of equation 2, beside the L1 term, both summed over their elements."""
    adversarial_weight: float = 0.01
    """Lambda_3 of equation 2, beside the L1 term as a mean over voxels. The paper names no lambda;
    as a sum over voxels with the same weight, the L1 term would leave nothing of this one."""
    adversarial_rate: float = 1e-4
    """Learning rate of the discriminator (section 3)."""
    dropout: float = 0.0
    """Share of the latent, and of the first dense layer behind it, that is dropped in training."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of Adam."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.latent_size >= 1, "method.latent_size", ">= 1", self.latent_size)
        check(self.latent_width >= 0, "method.latent_width", ">= 0", self.latent_width)
        check(self.kl_weight >= 0, "method.kl_weight", ">= 0", self.kl_weight)
        weight, rate = self.adversarial_weight, self.adversarial_rate
        check(weight >= 0, "method.adversarial_weight", ">= 0", weight)
        check(rate > 0, "method.adversarial_rate", "> 0", rate)
        check(0 <= self.dropout < 1, "method.dropout", "in [0, 1)", self.dropout)

    @property
    def label(self) -> str:
        """As in table 1: `dAE`, `sAE1` with five halvings, `sAE3` with four, `sVAE-GAN`."""
        stem = ("d" if self.latent == "dense" else "s") + ("VAE" if self.variational else "AE")
        if self.adversarial:
            return f"{stem}-GAN"
        if stem == "sAE":
            return "sAE1" if len(self.widths) > 4 else "sAE3"
        return stem


@dataclass(frozen=True, kw_only=True)
class StudyAE(Autoencoder):
    """An autoencoder of the comparative study, whose figures stand in Meissen 2021, table 2."""

    latent_size: int = 128
    """Units of a dense latent."""
    latent_width: int = 0
    """0: the spatial latent is what the last convolution gives, 8 x 8 x 128 at 128 x 128."""
    dropout: float = 0.2
    """On the latent and on the dense layer behind it."""
    betas: tuple[float, float] = (0.5, 0.999)
    """Of Adam."""
    norm: Literal["none", "batch", "group"] = "batch"
    """Normalisation behind each convolution."""

    @property
    def label(self) -> str:
        """`AE-dense` or `AE-spatial`."""
        return f"AE-{self.latent}"


@dataclass(frozen=True, kw_only=True)
class CeVAE(Convolutional):
    """Context-encoding VAE (Zimmerer 2018): squares are masked, and what was there is learned."""

    latent_size: int = 256
    """Units of the latent."""
    bottleneck: int = 16
    """Maps of the 1x1 convolution before it."""
    kl_weight: float = 1.0
    """Beside the L1 term, both summed over their elements."""
    context_share: float = 0.5
    """Weight of the context encoder's term; the VAE's has the rest."""
    max_squares: int = 3
    """0 to so many squares, or cubes, are masked."""
    max_side: float = 0.5
    """Their longest side as a share of the input's."""
    score: Literal["residual", "gradient", "combination"] = "combination"
    """`residual`: |x - reconstruction|; `gradient`: |dKL/dx|, smoothed, as a share of its largest;
    `combination`: their product."""
    smoothing: float = 1.0
    """Standard deviation of the Gaussian that smooths the gradient, in voxels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.latent_size >= 1, "method.latent_size", ">= 1", self.latent_size)
        check(self.kl_weight >= 0, "method.kl_weight", ">= 0", self.kl_weight)
        share = self.context_share
        check(0 <= share <= 1, "method.context_share", "in [0, 1]", share)
        check(self.max_squares >= 1, "method.max_squares", ">= 1", self.max_squares)
        check(0 < self.max_side <= 1, "method.max_side", "in (0, 1]", self.max_side)
        check(self.smoothing >= 0, "method.smoothing", ">= 0", self.smoothing)

    @property
    def label(self) -> str:
        """`ceVAE`."""
        return "ceVAE"


@dataclass(frozen=True, kw_only=True)
class AAE(Convolutional):
    """Adversarial autoencoder (Makhzani 2015): a critic holds the latent near the prior."""

    latent_size: int = 128
    """Units of the latent."""
    bottleneck: int = 16
    """Maps of the 1x1 convolution before it."""
    critic_width: int = 256
    """Units of each of the two hidden layers of the critic."""
    adversarial_rate: float = 1e-4
    """Learning rate of the critic, and of the encoder against it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.latent_size >= 1, "method.latent_size", ">= 1", self.latent_size)
        check(self.critic_width >= 1, "method.critic_width", ">= 1", self.critic_width)
        rate = self.adversarial_rate
        check(rate > 0, "method.adversarial_rate", "> 0", rate)


@dataclass(frozen=True, kw_only=True)
class BayesianAE(Convolutional):
    """Autoencoder with dropout, which stays on when it scores (Pawlowski 2018)."""

    latent_size: int = 128
    """Units of the latent."""
    bottleneck: int = 16
    """Maps of the 1x1 convolution before it."""
    dropout: float = 0.2
    """Share of the feature maps that is dropped behind each convolution."""
    samples: int = 8
    """Reconstructions of a volume; always with the same maps dropped."""
    score: Literal["residual", "deviation"] = "residual"
    """`residual`: distance to the mean reconstruction; `deviation`: standard deviation of the
    reconstructions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.latent_size >= 1, "method.latent_size", ">= 1", self.latent_size)
        check(0 < self.dropout < 1, "method.dropout", "in (0, 1)", self.dropout)
        check(self.samples >= 2, "method.samples", ">= 2", self.samples)


@dataclass(frozen=True, kw_only=True)
class SSAE(Convolutional):
    """Scale-space autoencoder (Baur 2020): one spatial autoencoder a level of a pyramid."""

    levels: int = 3
    """Of the Laplacian pyramid; each halves the sides, and takes one convolution less."""
    latent_width: int = 64
    """Maps of each latent."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.latent_width >= 1, "method.latent_width", ">= 1", self.latent_width)
        most = len(self.widths)
        check(1 <= self.levels <= most, "method.levels", f"in [1, {most}]", self.levels)


_BAUR = {"epochs": 150, "batch_size": 8, "learning_rate": 1e-3}
_STUDY = {"epochs": 1000, "batch_size": 8, "learning_rate": 1e-4, "patience": 5}
_TABLE = "Baur 2018, section 3 and table 1"
_AE = "min sum abs(x - D(E(x))); s = abs(x - D(E(x)))"
_VAE = "min sum abs(x - D(mu + sigma e)) + KL; s = abs(x - D(mu))"
_LAYERS = (
    "The paper names the latents alone; the convolutions are those of its authors' later "
    "comparative study, with group instead of batch normalisation. At other sizes than 256 the "
    "number of halvings stays."
)
_LAMBDAS = (
    " The paper names no weights: 1 for KL beside summed L1 where the latent is dense, 0.01 where "
    "it is spatial, and 0.01 for the adversarial term beside mean L1."
)
SPATIAL_KL = 0.01
"""Weight of KL with a spatial latent: a unit stands for four pixels there, whose L1 term in [0, 1]
is worth less than the unit's divergence. With 1 no unit of 256 was active behind two epochs on
phantoms."""
_CLIPPED = "Gradients are clipped, as in all methods; a patience of 5 ends the fit, as there."
_GAN = "; min over Dis of -log Dis(x) - log(1 - Dis(x'))"

NAMED: dict[str, Named] = {
    "dAE": Named(
        method=Autoencoder(latent="dense"),
        source=_TABLE,
        equation=_AE,
        deviations=_LAYERS,
        fit=_BAUR,
    ),
    "dVAE": Named(
        method=Autoencoder(latent="dense", variational=True),
        source=_TABLE,
        equation=_VAE,
        deviations=_LAYERS + _LAMBDAS,
        fit=_BAUR,
    ),
    "sAE1": Named(
        method=Autoencoder(widths=(32, 64, 128, 128, 128)),
        source=_TABLE,
        equation=_AE,
        deviations=_LAYERS,
        fit=_BAUR,
    ),
    "sAE3": Named(method=Autoencoder(), source=_TABLE, equation=_AE, deviations=_LAYERS, fit=_BAUR),
    "sVAE": Named(
        method=Autoencoder(variational=True, kl_weight=SPATIAL_KL),
        source=_TABLE,
        equation=_VAE,
        deviations=_LAYERS + _LAMBDAS,
        fit=_BAUR,
    ),
    "sAE-GAN": Named(
        method=Autoencoder(adversarial=True),
        source=_TABLE + ", equations 2 and 3",
        equation="min over E, D of sum abs(x - x') - lambda log Dis(x')" + _GAN,
        deviations=_LAYERS + _LAMBDAS,
        fit=_BAUR,
    ),
    "sVAE-GAN": Named(
        method=Autoencoder(variational=True, adversarial=True, kl_weight=SPATIAL_KL),
        source=_TABLE + ", equations 2 and 3",
        equation="min over E, D of sum abs(x - x') + KL - lambda log Dis(x')" + _GAN,
        deviations=_LAYERS + _LAMBDAS,
        fit=_BAUR,
    ),
    "AE-dense": Named(
        method=StudyAE(latent="dense"),
        source="comparative study of Baur et al., as in Meissen 2021, table 2",
        equation=_AE,
        deviations=_CLIPPED,
        fit=_STUDY,
    ),
    "AE-spatial": Named(
        method=StudyAE(),
        source="comparative study of Baur et al., as in Meissen 2021, table 2",
        equation=_AE,
        deviations=_CLIPPED,
        fit=_STUDY,
    ),
    "ceVAE": Named(
        method=CeVAE(),
        source="Zimmerer 2018, Context-encoding variational autoencoder",
        equation=(
            "min (1 - c)(sum abs(x - D(mu + sigma e)) + KL) + c sum abs(x - D(mu(masked x))); "
            "s = abs(x - D(mu)) times smoothed abs(dKL/dx)"
        ),
        deviations=(
            "The target of the masked input is the clean image, and each sample has squares of its "
            "own, which public code gets wrong. The gradient is scaled to its largest in a volume "
            "so that scores have a stated range."
        ),
        fit={"epochs": 100, "batch_size": 32, "learning_rate": 1e-3},
    ),
    "AAE": Named(
        method=AAE(),
        source="Makhzani 2015, Adversarial autoencoders",
        equation=(
            "min sum abs(x - D(E(x))); min over C of -log C(e) - log(1 - C(E(x))); "
            "min over E of -log C(E(x)); s = abs(x - D(E(x)))"
        ),
        deviations="Three players in turn on each batch; the convolutions are those of the others.",
        fit={"epochs": 100, "batch_size": 32, "learning_rate": 1e-3},
    ),
    "BayesianAE": Named(
        method=BayesianAE(),
        source="Pawlowski 2018, Bayesian convolutional autoencoders",
        equation="min sum abs(x - x'); s = abs(x - mean of 8 x'), maps dropped at random in each",
        deviations="Whole feature maps are dropped, the same ones for every volume when it scores.",
        fit={"epochs": 100, "batch_size": 32, "learning_rate": 1e-3},
    ),
    "SSAE": Named(
        method=SSAE(),
        source="Baur 2020, Scale-space autoencoders, as in Meissen 2021, table 2",
        equation=(
            "x_k' = up(x_{k+1}') + D_k(E_k(band_k)); min sum over levels of mean abs(x_k - x_k'); "
            "s = abs(x_0 - x_0')"
        ),
        deviations=(
            "Its authors gave no code, and their text was not at hand: three levels, binomial "
            "smoothing and spatial latents follow descriptions of it; L1 as in the study."
        ),
        fit=_STUDY,
    ),
}
"""By their names in tables."""
