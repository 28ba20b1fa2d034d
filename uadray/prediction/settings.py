"""How scans are predicted; nothing here computes, so that a help text imports no torch."""

import math
from dataclasses import dataclass, replace
from numbers import Real

from uadray.errors import ConfigError
from uadray.preparation.settings import (
    OLDEST,
    PrepareConfig,
    Registration,
    check_skull_strip,
)


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """How scans are predicted; by default as the model's cohort was prepared and evaluated."""

    threshold: float | None = None
    """What is proposed as lesion, in the method's units, instead of the frozen threshold."""
    threshold_from: str = ""
    """Name of the cohort whose frozen threshold to take, where the run has several."""
    map_only: bool = False
    """Propose nothing: no threshold is needed."""
    skull_strip: str | None = None
    """How the brain is separated from the rest; as the cohort's by default. A scan with its skull
    needs `deepbet`, `robex` or a skull stripper of another package, or a brain mask."""
    grow_extent: bool | None = None
    """As in prepare; as the cohort's by default."""
    max_cut: float | None = None
    """As in prepare; as the cohort's by default."""
    min_brain_ml: float | None = None
    """As in prepare; as the cohort's by default."""
    register: Registration | None = None
    """As in prepare; as the cohort's by default. `rigid` turns a tilted scan to the template's
    pose for the model, and its maps come back on the scan's own grid."""
    ignore_names: bool = False
    """Take a scan for one of the model's modality whatever its file's name says."""

    def __post_init__(self) -> None:
        """Check the ranges; the model knows those of its scores and of its preparation."""
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise ConfigError(f"threshold must be a finite score, was {self.threshold}")
        if self.skull_strip is not None:
            check_skull_strip(self.skull_strip)

    def prepare(self, recorded: PrepareConfig) -> PrepareConfig:
        """The recorded preparation with what is to be otherwise."""
        names = ("skull_strip", "grow_extent", "max_cut", "min_brain_ml", "register")
        given = {name: getattr(self, name) for name in names}
        return replace(recorded, **{k: v for k, v in given.items() if v is not None})


def check_age(age: float | None) -> None:
    """Check an age in years.

    Raises:
        ConfigError: nobody is that old.
    """
    if age is not None and not (isinstance(age, Real) and 0 <= age <= OLDEST):
        raise ConfigError(f"age must be in years, from 0 to {OLDEST:g}, was {age}")
