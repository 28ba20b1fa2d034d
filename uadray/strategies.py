"""Erasing strategies (Bengs 2021, section 2.2): one table that everything else reads.

A new strategy is one entry: its names become names of experiments, its key a value of
`erasing.strategy`, its settings those that a sweep may vary, its words those of help, pages and
documentation. Ours stand at the end of this file; those of other packages have an entry point of
the group `uadray.strategies`, of their key and the place of their `Strategy`.

Shape suffixes: B samples, R regions, D = 2 or 3 spatial axes (Y, X) or (Z, Y, X).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from uadray.errors import PluginError
from uadray.methods.settings import check, check_finite, check_limits
from uadray.plugins import Package, Registry

__all__ = [
    "NONE",
    "STRATEGIES",
    "ErasingConfig",
    "Regions",
    "Strategy",
    "keys",
    "strategy",
]

NONE = "none"
"""Value of `erasing.strategy` that erases nothing."""

ADDED = {"added": True}
"""Metadata of a field that came after experiments had been fitted: JSON leaves it out at its
default, so that their fingerprints stay."""


def _check_entry(key: str, one: Any) -> None:
    if not isinstance(one, Strategy):
        raise PluginError(f"expected a uadray.strategies.Strategy, was {one!r:.200}")
    if one.key != key:
        raise PluginError(f"its key is {one.key!r}")
    if set(one.names) != {2, 3}:
        raise PluginError(f"erasing strategy {key!r} must have a name in 2D and one in 3D")
    named = (key, *one.names.values())
    if bad := [name for name in named if not re.fullmatch(r"[A-Za-z][\w.+-]*", str(name))]:
        raise PluginError(f"a name is a letter, then letters, digits and . + - _, was {bad[0]!r}")
    others = [other for other in STRATEGIES.imported.values() if other.key != key]
    taken = {NONE, "None", *(n for other in others for n in (other.key, *other.names.values()))}
    if clash := taken & set(named):
        raise PluginError(f"erasing strategy {key!r}: {sorted(clash)[0]!r} is taken")
    if unknown := set(one.settings) - set(ErasingConfig.__dataclass_fields__):
        raise PluginError(f"erasing strategy {key!r} names no setting: {sorted(unknown)[0]!r}")


STRATEGIES: "Registry[Strategy]" = Registry("uadray.strategies", "erasing strategy", _check_entry)
"""Every strategy by its key, in the order of tables."""


@dataclass(frozen=True, kw_only=True)
class ErasingConfig:
    """Spatial erasing of the input; the target stays clean (Bengs 2021, section 2.2)."""

    named: ClassVar[tuple[str, Registry[Any]]] = ("strategy", STRATEGIES)
    """The field that may name an entry of another package."""

    strategy: str = NONE
    """`none`, or a strategy's key: `cube` is the paper's patch in 2D, `half-volume` its
    half-slice."""
    fill: Literal["zero", "noise"] = "noise"
    """What erased voxels become: 0, or values drawn from the image's own brain intensities."""
    probability: float = 0.5
    """Share of the samples that are erased (Bengs 2021, section 2.2)."""
    min_share: float = 0.01
    """Smallest erased share of the input's voxels, before clipping at the border (cube, multi), or
    of the cells (cells)."""
    max_share: float = 0.25
    """Largest erased share of the input's voxels (cube, multi), or of the cells (cells)."""
    max_regions: int = 10
    """Most regions of multi-cube."""
    max_slices_share: float = 0.5
    """Most successive axial slices of half-volume as a share of all: 32 of the paper's 64."""
    border: Literal["clip", "shift"] = field(default="clip", metadata=ADDED)
    """Boxes that reach over the border (cube, multi): `clip` cuts them there, so that less is
    erased than was drawn, and in 3D less than in 2D; `shift` moves them inside, so that the share
    drawn is the share erased. The paper draws a centre within the image and says no more; our rows
    of its tables are fitted with `clip`."""

    def __post_init__(self) -> None:
        if self.strategy != NONE and self.strategy not in STRATEGIES:
            check(False, "erasing.strategy", f"one of {', '.join(keys())}", self.strategy)
        check(self.border in ("clip", "shift"), "erasing.border", "clip or shift", self.border)
        check_finite(self, "erasing.")
        check_limits(
            self,
            "erasing.",
            probability="in [0, 1]",
            max_regions=">= 1",
            max_slices_share="in (0, 1]",
        )
        check(
            0 < self.min_share <= self.max_share <= 1,
            "erasing.min_share and max_share",
            "0 < min_share <= max_share <= 1",
            (self.min_share, self.max_share),
        )

    @property
    def package(self) -> Package | None:
        """Of its strategy, where that is from outside of uadray."""
        return None if self.strategy == NONE else STRATEGIES.package(self.strategy)


@dataclass(frozen=True, kw_only=True)
class Regions:
    """Where the samples of a batch are erased, if they are."""

    boxes_BRD2: NDArray[np.int64]
    """(B, R, D, 2): boxes [start, stop) within the sample; an absent one is empty."""
    right: NDArray[np.bool_] | None = None
    """(B,): of the first box only the right or the left side of the brain, whose plane the image
    itself tells; None for whole boxes."""


Uniform = Callable[[int], NDArray[np.float64]]
"""Random numbers in (0, 1) of each sample, (B, count); asking again gives the same ones."""


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """One way to choose what is erased."""

    key: str
    """Value of `erasing.strategy`."""
    names: Mapping[Literal[2, 3], str]
    """In experiments' names, in 2D and in 3D: `Patch` in `2D-Patch-n`, `Cube` in `3D-Cube-n`."""
    erases: str
    """What it erases, in words, for help, pages and documentation."""
    settings: tuple[str, ...]
    """Fields of `ErasingConfig` that it uses beside strategy, fill and probability."""
    draw: Callable[[ErasingConfig, tuple[int, ...], Uniform], Regions]
    """Draws the regions of a batch of samples of shape (Y, X) or (Z, Y, X)."""
    nominal: Callable[[ErasingConfig, tuple[int, ...]], float]
    """Mean share of an erased input that it draws, before clipping and overlap."""
    source: str
    """Paper and section."""


def keys() -> tuple[str, ...]:
    """Values of `erasing.strategy`."""
    return (NONE, *STRATEGIES)


def strategy(config: ErasingConfig) -> Strategy | None:
    """The entry of a configuration; None where nothing is erased.

    Raises:
        PluginError: it is of another package, which is not installed here or cannot be used.
    """
    return None if config.strategy == NONE else STRATEGIES.need(config.strategy)


def _boxes(config: ErasingConfig, spatial: tuple[int, ...], uniform: Uniform, most: int) -> Regions:
    """One to `most` boxes of the input's own aspect.

    The total share is drawn and split at random. Each side is share^(1/D) of the input's, around a
    random centre voxel. Before clipping and overlap the total is between `min_share` and
    `max_share`, in whole voxels too.
    """
    ndim, size = len(spatial), np.array(spatial)
    u = uniform(3 + most * (ndim + 1))
    share = config.min_share + (config.max_share - config.min_share) * u[:, 0]
    present = np.arange(most) < 1 + np.floor(u[:, 1:2] * most)
    # Normalised exponentials split the total uniformly over all ways to split it.
    weight = -np.log(u[:, 3 : 3 + most]) * present
    shares = share[:, None] * weight / weight.sum(1, keepdims=True)
    sides = _whole_sides(shares[..., None] ** (1 / ndim) * size, present, size, config)
    centre = u[:, 3 + most :].reshape(len(u), most, ndim)
    start = np.floor(centre * size).astype(np.int64) - sides // 2
    if config.border == "shift":
        start = start.clip(0, size - sides)
    boxes = np.stack([start.clip(0), np.minimum(start + sides, size)], -1)
    return Regions(boxes_BRD2=boxes * present[..., None, None])


def _whole_sides(
    sides_BRD: NDArray[np.float64],
    present_BR: NDArray[np.bool_],
    size: NDArray[np.int64],
    config: ErasingConfig,
) -> NDArray[np.int64]:
    """Sides in whole voxels: the nearest, or those below or above where that leaves the limits."""

    def total(sides: NDArray[np.float64]) -> NDArray[np.float64]:
        voxels: NDArray[np.float64] = (sides.prod(-1) * present_BR).sum(1)
        return voxels[:, None, None] / size.prod()

    sides = np.rint(sides_BRD).clip(1)
    sides = np.where(total(sides) > config.max_share, np.floor(sides_BRD).clip(1), sides)
    sides = np.where(total(sides) < config.min_share, np.ceil(sides_BRD).clip(1), sides)
    return sides.astype(np.int64)


def _mean_share(config: ErasingConfig, spatial: tuple[int, ...]) -> float:
    return (config.min_share + config.max_share) / 2


def _most_slices(config: ErasingConfig, spatial: tuple[int, ...]) -> int:
    return max(1, round(config.max_slices_share * spatial[0])) if len(spatial) == 3 else 1


def _half(config: ErasingConfig, spatial: tuple[int, ...], uniform: Uniform) -> Regions:
    """A side of the brain, in 3D over 1 to `max_slices_share` of successive axial slices."""
    u = uniform(3)
    boxes = np.zeros((len(u), 1, len(spatial), 2), np.int64)
    boxes[:, 0, :, 1] = spatial
    if len(spatial) == 3:
        count = 1 + np.floor(u[:, 0] * _most_slices(config, spatial)).astype(np.int64)
        start = np.floor(u[:, 1] * (spatial[0] - count + 1)).astype(np.int64)
        boxes[:, 0, 0] = np.stack([start, start + count], 1)
    return Regions(boxes_BRD2=boxes, right=u[:, 2] < 0.5)


def _half_share(config: ErasingConfig, spatial: tuple[int, ...]) -> float:
    # Half of the columns: the plane is near the middle of a volume that was cropped to the brain.
    return 0.5 if len(spatial) == 2 else (1 + _most_slices(config, spatial)) / 4 / spatial[0]


CELLS = 8
"""Cells of the grid along each side of the input."""


def _cells(config: ErasingConfig, spatial: tuple[int, ...], uniform: Uniform) -> Regions:
    """Some cells of a grid over the whole input, each at most once.

    Their share of all cells is between `min_share` and `max_share`; which ones is drawn apart.
    """
    edges = [np.linspace(0, n, min(CELLS, n) + 1).round().astype(np.int64) for n in spatial]
    spans = [np.stack([one[:-1], one[1:]], -1) for one in edges]
    grid = np.stack(np.meshgrid(*(range(len(one)) for one in spans), indexing="ij"), -1)
    cells = grid.reshape(-1, len(spatial))
    boxes = np.stack([span[cells[:, axis]] for axis, span in enumerate(spans)], 1)
    u = uniform(1 + len(boxes))
    share = config.min_share + (config.max_share - config.min_share) * u[:, 0]
    count = np.rint(share * len(boxes)).clip(1)
    most = max(1, round(config.max_share * len(boxes)))
    chosen = u[:, 1:].argsort(1, kind="stable")[:, :most]
    present = np.arange(most) < count[:, None]
    return Regions(boxes_BRD2=boxes[chosen] * present[..., None, None])


for _one in (
    Strategy(
        key="cube",
        names={2: "Patch", 3: "Cube"},
        erases="one box of 1 to 25 % of the input",
        settings=("min_share", "max_share", "border"),
        draw=lambda config, spatial, uniform: _boxes(config, spatial, uniform, 1),
        nominal=_mean_share,
        source="Bengs 2021, section 2.2",
    ),
    Strategy(
        key="multi-cube",
        names={2: "Multi-Patch", 3: "Multi-Cube"},
        erases="one to ten boxes of 1 to 25 % in all",
        settings=("min_share", "max_share", "max_regions", "border"),
        draw=lambda config, spatial, uniform: _boxes(config, spatial, uniform, config.max_regions),
        nominal=_mean_share,
        source="Bengs 2021, section 2.2",
    ),
    Strategy(
        key="half-volume",
        names={2: "Half-Slice", 3: "Half-Volume"},
        erases="the left or right half of the brain with the background on that side, in 3D over "
        "up to half of the axial slices",
        settings=("max_slices_share",),
        draw=_half,
        nominal=_half_share,
        source="Bengs 2021, section 2.2",
    ),
):
    STRATEGIES[_one.key] = _one

BENGS = tuple(STRATEGIES.imported)
"""Keys of the three that the paper has."""

STRATEGIES["cells"] = Strategy(
    key="cells",
    names={2: "Cells", 3: "Cells"},
    erases="1 to 25 % of the cells of a grid of 8 along each side",
    settings=("min_share", "max_share"),
    draw=_cells,
    nominal=_mean_share,
    source="Zavrtanik 2021, whose cells are hidden in turn, as erasing",
)
