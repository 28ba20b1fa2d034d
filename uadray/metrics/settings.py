"""Settings of the post-processing and of the component filter; nothing here computes.

They stand apart so that a help text, which needs them, imports neither scipy nor numba.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from uadray.errors import ConfigError
from uadray.methods.settings import check_finite

ROWS_PER_EROSION = 25
"""One erosion step for each 25 rows of the plane: 1 at 32, 2 at 64, 3 at 96."""


@dataclass(frozen=True, kw_only=True)
class PostprocessConfig:
    """How raw scores are cleaned before they are counted (Bengs 2021, section 2.3)."""

    erosion_iterations: int | None = None
    """Erosion steps of the brain mask, in voxels; `None` derives them: rows // 25, 0 is off.

    The paper says "slightly eroded"; rows // 25 is what code of the same group does."""

    median_size: int = 5
    """Edge of the cubic median window in voxels, odd; 1 switches it off.

    The paper says "a median filter"; 5 is what code of the same group does."""

    prior_quantile: float = 0.0
    """Scores of voxels darker than this quantile of the volume, background included, become 0: the
    prior that lesions are bright (0.9 in the comparative study of Meissen 2021, table 2, by its
    code); 0 switches it off."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_finite(self, "postprocess.")
        if self.erosion_iterations is not None and self.erosion_iterations < 0:
            raise ConfigError(
                f"erosion_iterations must be >= 0 or None, was {self.erosion_iterations}"
            )
        if self.median_size < 1 or self.median_size % 2 == 0:
            raise ConfigError(f"median_size must be odd and >= 1, was {self.median_size}")
        if not 0 <= self.prior_quantile < 1:
            raise ConfigError(f"prior_quantile must be in [0, 1), was {self.prior_quantile}")

    def iterations(self, shape: tuple[int, ...]) -> int:
        """Return the erosion steps for a volume of `shape` (Z, Y, X)."""
        if self.erosion_iterations is None:
            return shape[1] // ROWS_PER_EROSION
        return self.erosion_iterations


Connectivity = Literal[6, 18, 26]
"""Neighbours of a voxel: those that share a face; also an edge; also a corner."""


@dataclass(frozen=True, kw_only=True)
class ComponentConfig:
    """Which connected components of a thresholded map are dropped (Meissen 2021, section 3.4)."""

    max_size: int = 0
    """Components of at most this many voxels are dropped; 0 drops none.

    Meissen's text says "less than 20", its code drops 20 as well: 20 here does as the code."""

    connectivity: Connectivity = 26
    """Neighbours of a voxel; both public codes of the papers' lines take 26."""

    fit_after: bool = True
    """Whether the threshold is fitted on filtered scores; Meissen's code filters once, after it.
    """

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_finite(self, "components.")
        if self.max_size < 0:
            raise ConfigError(f"components.max_size must be >= 0, was {self.max_size}")
        if self.connectivity not in get_args(Connectivity):
            raise ConfigError(
                f"components.connectivity must be 6, 18 or 26, was {self.connectivity}"
            )

    @property
    def key(self) -> str:
        """Names the counts under this filter, such as `20-26`."""
        return f"{self.max_size}-{self.connectivity}"
