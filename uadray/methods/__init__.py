"""Every method: a family a file, with its settings, its network, its names and its source.

A new one is a class with a decorator (`uadray.methods.registry`) in a file that is imported below.
"""

from uadray.methods.base import (
    Detector,
    GradientDetector,
    ReconstructionDetector,
    StreamDetector,
    num_parameters,
)
from uadray.methods.registry import (
    DETECTORS,
    NAMED,
    PublishedMethod,
    build,
    detector_type,
    is_fitted,
    method,
)
from uadray.methods.settings import Learned, MethodSettings

# In the order of the tables.
# isort: off
from uadray.methods.vae import VAE
from uadray.methods.autoencoder import Autoencoder, StudyAE
from uadray.methods.cevae import CeVAE
from uadray.methods.aae import AAE
from uadray.methods.bayesian import BayesianAE
from uadray.methods.ssae import SSAE
from uadray.methods.gan import AnoGAN, FAnoGAN
from uadray.methods.restoration import GMVAERestoration, VAERestoration
from uadray.methods.vqvae import Transformer
from uadray.methods.baselines import PCA, HistEq, Intensity, MeanImage, ZScore
from uadray.methods.outside import OutsideMaps
# isort: on

__all__ = [
    "AAE",
    "DETECTORS",
    "NAMED",
    "PCA",
    "SSAE",
    "VAE",
    "AnoGAN",
    "Autoencoder",
    "BayesianAE",
    "CeVAE",
    "Detector",
    "FAnoGAN",
    "GMVAERestoration",
    "GradientDetector",
    "HistEq",
    "Intensity",
    "Learned",
    "MeanImage",
    "MethodSettings",
    "OutsideMaps",
    "PublishedMethod",
    "ReconstructionDetector",
    "StreamDetector",
    "StudyAE",
    "Transformer",
    "VAERestoration",
    "ZScore",
    "build",
    "detector_type",
    "is_fitted",
    "method",
    "num_parameters",
]
