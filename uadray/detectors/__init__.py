"""Every method behind one registry and one interface."""

from typing import Any

from uadray import config, methods
from uadray.config import Method
from uadray.detectors.aae import AAEDetector
from uadray.detectors.anogan import AnoGANDetector
from uadray.detectors.autoencoder import AutoencoderDetector
from uadray.detectors.base import (
    Detector,
    GradientDetector,
    ReconstructionDetector,
    StreamDetector,
    num_parameters,
)
from uadray.detectors.baselines import (
    HistEqDetector,
    IntensityDetector,
    MeanImageDetector,
    PCADetector,
    ZScoreDetector,
)
from uadray.detectors.bayesian import BayesianAEDetector
from uadray.detectors.cevae import CeVAEDetector
from uadray.detectors.gan import FAnoGANDetector
from uadray.detectors.gmvae import GMVAEDetector, VAERestorationDetector
from uadray.detectors.scalespace import SSAEDetector
from uadray.detectors.vae import VAEDetector
from uadray.detectors.vqvae import TransformerDetector

__all__ = [
    "Detector",
    "GradientDetector",
    "ReconstructionDetector",
    "StreamDetector",
    "build",
    "num_parameters",
]

REGISTRY: dict[type, Any] = {
    config.VAE: VAEDetector,
    methods.Autoencoder: AutoencoderDetector,
    methods.StudyAE: AutoencoderDetector,
    methods.CeVAE: CeVAEDetector,
    methods.AAE: AAEDetector,
    methods.BayesianAE: BayesianAEDetector,
    methods.SSAE: SSAEDetector,
    methods.FAnoGAN: FAnoGANDetector,
    methods.AnoGAN: AnoGANDetector,
    methods.VAERestoration: VAERestorationDetector,
    methods.GMVAERestoration: GMVAEDetector,
    methods.Transformer: TransformerDetector,
    config.Intensity: IntensityDetector,
    config.HistEq: HistEqDetector,
    config.MeanImage: MeanImageDetector,
    config.ZScore: ZScoreDetector,
    config.PCA: PCADetector,
}
"""From a method's settings to the class that implements it, called with (settings, shape)."""


def build(method: Method, shape: tuple[int, int, int]) -> Detector:
    """An unfitted detector for volumes of `shape` (Z, Y, X).

    Raises:
        ConfigError: the shape does not suit the method.
    """
    detector: Detector = REGISTRY[type(method)](method, shape)
    return detector
