"""How maps from outside are read; nothing here computes, so that a help text needs no library."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from uadray.errors import ConfigError
from uadray.methods.settings import check, check_limits

Direction = Literal["check", "higher", "lower"]
Resample = Literal["auto", "average", "linear"]
Missing = Literal["nothing-found", "refuse"]


@dataclass(frozen=True, kw_only=True)
class MapsConfig:
    """How maps that other software made are read; with --maps alone."""

    pattern: str = ""
    """Which files of the folder are maps, such as `*_anomaly.nii.gz`, where it holds others, too;
    compared with a file's name, or with its path in the folder where it has a `/`."""
    direction: Direction = "check"
    """Which scores are the more anomalous. `check` takes the higher ones, and refuses maps that
    look inverted on the threshold part; `higher` takes them without a look, `lower` inverts."""
    score_range: tuple[float, float] | None = None
    """Lowest and highest score that the method can give, in the maps' own units; what lies beyond
    counts as these. By default the range that the maps have inside the brain."""
    seed: int = 0
    """Of the fit that the maps come from: maps of several fits of one method, each in a run folder
    of its own, stand together under one name."""
    missing: Missing = "nothing-found"
    """A scan without a usable map counts as one in which nothing was found, and the run is then
    compared with no other; or the job is refused."""
    resample: Resample = "auto"
    """How a map on another grid is brought to the cohort's: `average` over each voxel, as scans are
    made smaller, or `linear` at its centre, which undoes a linear interpolation from that grid.
    `auto` takes `linear` for a folder of `jobs/predict.py`, which has interpolated so."""
    by_affine: bool = False
    """Take maps where their affines place them, also where that is not their scan's place though
    they have as many voxels."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_limits(self, "", seed=">= 0")
        for name, values in (
            ("direction", Direction),
            ("missing", Missing),
            ("resample", Resample),
        ):
            value, known = getattr(self, name), get_args(values)
            check(value in known, name, f"one of {', '.join(known)}", value)
        if self.score_range is not None:
            low, high = self.score_range
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ConfigError(
                    f"score_range must be two finite numbers, low < high, was {low:g} {high:g}"
                )
