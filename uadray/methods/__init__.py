"""Settings of every method, and their names.

A method is: settings here (a frozen dataclass, a member of `Method`, an entry of `NAMED`) and a
class in `uadray.detectors` with a line in its registry.
"""

from typing import get_args

from uadray.methods import bengs, plain
from uadray.methods.base import Learned, Named, Settings
from uadray.methods.bengs import VAE
from uadray.methods.plain import PCA, HistEq, Intensity, MeanImage, ZScore

__all__ = [
    "METHODS",
    "NAMED",
    "PCA",
    "VAE",
    "HistEq",
    "Intensity",
    "Learned",
    "MeanImage",
    "Method",
    "Named",
    "Settings",
    "ZScore",
]

Method = VAE | Intensity | HistEq | MeanImage | ZScore | PCA
METHODS: tuple[type[Settings], ...] = get_args(Method)
"""Every class of settings."""

NAMED: dict[str, Named] = {**bengs.NAMED, **plain.NAMED}
"""Every method by its name: that of the settings' `label`, but for the two of Bengs."""
