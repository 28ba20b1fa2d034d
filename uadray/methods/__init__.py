"""Every method: a family a file, with its settings, its network, its names and its source.

A new one is a class with a decorator (`uadray.methods.registry`): in a file that is named below, or
in any other package, with an entry point of the group `uadray.methods`.
"""

from importlib import import_module

from uadray.methods.base import (
    Detection,
    Detector,
    GradientDetector,
    ReconstructionDetector,
    StreamDetector,
    num_parameters,
)
from uadray.methods.registry import DETECTORS, NAMED, PublishedMethod, build, is_fitted, method
from uadray.methods.settings import Learned, MethodSettings

_FAMILIES = (
    "vae",
    "autoencoder",
    "cevae",
    "aae",
    "bayesian",
    "ssae",
    "gan",
    "restoration",
    "vqvae",
    "denoising",
    "riad",
    "disyre",
    "itermask",
    "diffusion",
)
for _file in (*_FAMILIES, "baselines", "outside", "ensemble"):  # in the order of the tables
    import_module(f"uadray.methods.{_file}")

__all__ = [
    "DETECTORS",
    "NAMED",
    "Detection",
    "Detector",
    "GradientDetector",
    "Learned",
    "MethodSettings",
    "PublishedMethod",
    "ReconstructionDetector",
    "StreamDetector",
    "build",
    "is_fitted",
    "method",
    "num_parameters",
]
