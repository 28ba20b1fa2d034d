"""Settings of every method, and their names.

A method is: settings here (a frozen dataclass, a member of `Method`, an entry of `NAMED`) and a
class in `uadray.detectors` with a line in its registry.
"""

from typing import get_args

from uadray.methods import adversarial, anogan, autoencoders, bengs, plain, restoration, vqvae
from uadray.methods.adversarial import FAnoGAN
from uadray.methods.anogan import AnoGAN
from uadray.methods.autoencoders import (
    AAE,
    SSAE,
    Autoencoder,
    BayesianAE,
    CeVAE,
    StudyAE,
)
from uadray.methods.base import Learned, Named, Settings
from uadray.methods.bengs import VAE
from uadray.methods.plain import PCA, HistEq, Intensity, MeanImage, ZScore
from uadray.methods.restoration import GMVAERestoration, VAERestoration
from uadray.methods.vqvae import Transformer

__all__ = [
    "AAE",
    "METHODS",
    "NAMED",
    "PCA",
    "SSAE",
    "VAE",
    "AnoGAN",
    "Autoencoder",
    "BayesianAE",
    "CeVAE",
    "FAnoGAN",
    "GMVAERestoration",
    "HistEq",
    "Intensity",
    "Learned",
    "MeanImage",
    "Method",
    "Named",
    "Settings",
    "StudyAE",
    "Transformer",
    "VAERestoration",
    "ZScore",
]

Method = (
    VAE
    | Autoencoder
    | StudyAE
    | CeVAE
    | AAE
    | BayesianAE
    | SSAE
    | FAnoGAN
    | AnoGAN
    | VAERestoration
    | GMVAERestoration
    | Transformer
    | Intensity
    | HistEq
    | MeanImage
    | ZScore
    | PCA
)
METHODS: tuple[type[Settings], ...] = get_args(Method)
"""Every class of settings."""

NAMED: dict[str, Named] = {
    **bengs.NAMED,
    **autoencoders.NAMED,
    **adversarial.NAMED,
    **anogan.NAMED,
    **restoration.NAMED,
    **vqvae.NAMED,
    **plain.NAMED,
}
"""Every method by its name: that of the settings' `label`, but for the two of Bengs."""
