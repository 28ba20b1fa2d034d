"""Settings of the plain baselines."""

from dataclasses import dataclass
from typing import Literal

from uadray.methods.base import Named, Settings, check


@dataclass(frozen=True, kw_only=True)
class Intensity(Settings):
    """The intensity itself as the anomaly score: a baseline that learns nothing."""

    polarity: Literal["bright", "dark"] = "bright"
    """`bright` scores x, `dark` scores 1 - x."""

    @property
    def label(self) -> str:
        """`Intensity` or `Intensity-dark`."""
        return "Intensity-dark" if self.polarity == "dark" else "Intensity"


@dataclass(frozen=True, kw_only=True)
class HistEq(Settings):
    """Histogram-equalised intensity (Meissen 2021, section 3)."""

    polarity: Literal["bright", "dark"] = "bright"
    """`bright` scores the rank of x in its brain, `dark` one minus it."""

    @property
    def label(self) -> str:
        """`HistEq` or `HistEq-dark`."""
        return "HistEq-dark" if self.polarity == "dark" else "HistEq"


@dataclass(frozen=True, kw_only=True)
class MeanImage(Settings):
    """Distance to the mean healthy image."""


@dataclass(frozen=True, kw_only=True)
class ZScore(Settings):
    """Distance to the mean healthy image in standard deviations of each voxel."""

    max_score: float = 10.0
    """Scores are clipped here, in standard deviations; the upper end of the kept range."""
    min_deviation: float = 0.02
    """Floor of the deviation, in intensity units, so that constant voxels do not explode."""

    def __post_init__(self) -> None:
        check(self.max_score > 0, "method.max_score", "> 0", self.max_score)
        check(self.min_deviation > 0, "method.min_deviation", "> 0", self.min_deviation)


@dataclass(frozen=True, kw_only=True)
class PCA(Settings):
    """Residual of a linear principal component reconstruction of whole volumes."""

    num_components: int = 16
    """Components kept."""

    def __post_init__(self) -> None:
        check(self.num_components >= 1, "method.num_components", ">= 1", self.num_components)

    @property
    def label(self) -> str:
        """`PCA-16`."""
        return f"PCA-{self.num_components}"


_HIST_EQ = "s = share of the brain's voxels that are not brighter than x"
_EXACT = "256 bins in the text; the exact ranks here, as the study's code computes on integers."

NAMED: dict[str, Named] = {
    "Intensity": Named(method=Intensity(), source="plain", equation="s = x"),
    "Intensity-dark": Named(
        method=Intensity(polarity="dark"), source="plain", equation="s = 1 - x"
    ),
    "HistEq": Named(
        method=HistEq(), source="Meissen 2021, section 3", equation=_HIST_EQ, deviations=_EXACT
    ),
    "HistEq-dark": Named(
        method=HistEq(polarity="dark"),
        source="Meissen 2021, section 3, for dark lesions",
        equation="s = 1 - share of the brain's voxels that are not brighter than x",
        deviations=_EXACT,
    ),
    "MeanImage": Named(method=MeanImage(), source="plain", equation="s = abs(x - mean)"),
    "ZScore": Named(
        method=ZScore(),
        source="plain",
        equation="s = min(10, abs(x - mean) / max(deviation, 0.02))",
    ),
    "PCA-16": Named(
        method=PCA(),
        source="plain",
        equation="s = abs(x - mean - projection of x - mean on 16 principal components)",
    ),
}
"""The plain methods that stand beside every other."""
