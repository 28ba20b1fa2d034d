"""Settings of every method, and their names.

A method is: settings here (a frozen dataclass, a member of `Method`, an entry of `NAMED`) and a
class in `uadray.detectors` with a line in its registry.
"""

from typing import get_args

from uadray.methods import bengs, plain, restoration, vqvae
from uadray.methods.base import Learned, Named, Settings
from uadray.methods.bengs import VAE
from uadray.methods.plain import PCA, HistEq, Intensity, MeanImage, ZScore
from uadray.methods.restoration import GMVAERestoration, VAERestoration
from uadray.methods.vqvae import Transformer

__all__ = [
    "METHODS",
    "NAMED",
    "PCA",
    "VAE",
    "GMVAERestoration",
    "HistEq",
    "Intensity",
    "Learned",
    "MeanImage",
    "Method",
    "Named",
    "Settings",
    "Transformer",
    "VAERestoration",
    "ZScore",
]

Method = (
    VAE
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
    **restoration.NAMED,
    **vqvae.NAMED,
    **plain.NAMED,
}
"""Every method by its name: that of the settings' `label`, but for the two of Bengs."""
