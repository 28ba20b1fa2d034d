"""Several fits as one method: it scores by the mean or the median of their anomaly maps.

What is evaluated and proposed is combined after post-processing, voxel by voxel, from the levels
that members keep (`uadray.metrics.members`): an ensemble of one is its member, and members that
were evaluated need not be scored again. `detect` combines raw maps, which tell how a whole scan
compares with healthy ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from uadray.lazy import Tensor, nn, torch
from uadray.methods.base import Detection, Detector, Shape
from uadray.methods.registry import DETECTORS, build, is_fitted
from uadray.methods.settings import MethodSettings, check

Combine = Literal["mean", "median"]
"""How the maps of members become one."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """One fit of an ensemble."""

    method: MethodSettings
    """Its settings."""
    weights: str
    """SHA-256 of what it detects with, as `uadray.runs.state.weights_digest` gives it."""
    seed: int = 0
    """Of its fit."""
    fold: int = 0
    """Of `folds`, the part of the people that it was validated on; 0 for a cohort's own split."""
    folds: int = 0
    """Parts that the people were in."""


class Ensemble(Detector):
    """Fits whose maps are combined; its state is that of all members."""

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        title: str
        """Name of the method in tables."""
        members: tuple[Member, ...]
        """In an order that does not depend on how they were named."""
        combine: Combine = "mean"
        """How the maps of members become one."""

        def __post_init__(self) -> None:
            check(bool(self.members), "members", "one fit at least", self.members)
            known = ("mean", "median")
            check(self.combine in known, "combine", f"one of {known}", self.combine)

        @property
        def label(self) -> str:
            """The name that it was given."""
            return self.title

        @property
        def erases(self) -> bool:
            """Whether its members may have learned from erased input."""
            return any(getattr(one.method, "erases", False) for one in self.members)

    def __init__(self, config: Settings, shape: Shape) -> None:
        super().__init__()
        self.config = config
        members = [build(one.method, shape) for one in config.members]
        ranges = [one.score_range for one in members]
        check(len(set(ranges)) == 1, "members", "of methods with one range of scores", ranges)
        self.score_range = ranges[0]
        self.has_reconstruction = all(one.has_reconstruction for one in members)
        self.ndim = max(getattr(one, "ndim", 3) for one in members)
        self.members: Any = nn.ModuleList(members)

    @classmethod
    def is_fitted(cls, settings: MethodSettings) -> bool:
        """Whether any of its members does."""
        return any(is_fitted(one.method) for one in settings.members)  # type: ignore[attr-defined]

    def combined(self, values: Sequence[Tensor]) -> Tensor:
        """One value for those of all members; of an even number the median lies between two."""
        stack = torch.stack(list(values))
        if self.config.combine == "mean":
            return stack.mean(0)
        ordered, num = stack.sort(0).values, len(stack)
        return (ordered[(num - 1) // 2] + ordered[num // 2]) / 2

    def detect(self, x_BCZYX: Tensor, brain_BZYX: Tensor) -> Detection:
        """Raw maps and reconstructions, combined."""
        found = [one.detect(x_BCZYX, brain_BZYX) for one in self.members]
        outputs = [one.reconstruction for one in found if one.reconstruction is not None]
        whole = len(outputs) == len(found)
        return Detection(
            self.combined([one.scores for one in found]), self.combined(outputs) if whole else None
        )

    def reconstruct(self, x_BCZYX: Tensor) -> Tensor:
        """The healthy versions of all members, combined.

        Raises:
            TypeError: a member has none.
        """
        return self.combined([one.reconstruct(x_BCZYX) for one in self.members])

    def reconstruct_within(self, x_BCZYX: Tensor, brain_BZYX: Tensor) -> Tensor:
        """The same by members that ask where the brain is."""
        return self.combined([one.reconstruct_within(x_BCZYX, brain_BZYX) for one in self.members])


def members_of(detector: Detector) -> list[Detector]:
    """The members of an ensemble; any other detector is the only one of its own."""
    return list(detector.members) if isinstance(detector, Ensemble) else [detector]


def combined(detector: Detector, values: Sequence[Tensor]) -> Tensor:
    """One value for those of the members of an ensemble; of any other detector the only one."""
    return detector.combined(values) if isinstance(detector, Ensemble) else values[0]


def combine_of(detector: Detector) -> Combine:
    """How the maps of its members become one; of one map any way gives that map."""
    return detector.config.combine if isinstance(detector, Ensemble) else "mean"


# Under no name that a command line knows: it is made of runs, not fitted.
DETECTORS[Ensemble.__name__] = Ensemble
