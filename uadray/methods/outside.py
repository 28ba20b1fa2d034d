"""Anomaly maps that other software made, as a method: nothing is computed, they are looked up."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from uadray.errors import ConfigError
from uadray.lazy import Tensor, torch
from uadray.methods.base import Detection, Detector, Shape
from uadray.methods.registry import DETECTORS
from uadray.methods.settings import MethodSettings, check


class OutsideMaps(Detector):
    """Maps from outside, one a volume of one cohort; its state is what they are known by."""

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        title: str = "Maps from outside"
        """Name of the method in tables."""
        direction: Literal["higher", "lower"] = "higher"
        """Which scores of the files are the more anomalous; where it is `lower`, kept scores are
        the negative of the files'."""

        def __post_init__(self) -> None:
            check(bool(self.title.strip()), "name", "the name of a method", self.title)

        @property
        def label(self) -> str:
            """The name that it was given."""
            return self.title

    digest: Tensor
    ends: Tensor

    def __init__(self, config: Settings, shape: Shape) -> None:
        super().__init__()
        self._shape = shape
        self._read: Callable[[str], NDArray[np.float32] | None] | None = None
        self.register_buffer("digest", torch.zeros(32, dtype=torch.uint8))
        self.register_buffer("ends", torch.tensor([0.0, 1.0], dtype=torch.float64))

    def know(self, digest: bytes, score_range: tuple[float, float]) -> None:
        """Set what the maps are known by: 32 bytes over their content, and the range of scores."""
        self.digest.copy_(torch.frombuffer(bytearray(digest), dtype=torch.uint8))
        self.ends.copy_(torch.tensor(score_range, dtype=torch.float64))

    def look_up(self, read: Callable[[str], NDArray[np.float32] | None]) -> None:
        """Give it the kept maps.

        Args:
            read: Id of a volume to its map (Z, Y, X); None where there is none.
        """
        low, high = self.ends.tolist()
        self._read, self.score_range = read, (low, high)

    def of(self, ids: Sequence[str]) -> NDArray[np.float64]:
        """The maps of some volumes, (B, Z, Y, X); one without a map has the lowest score."""
        assert self._read is not None
        maps = np.full((len(ids), *self._shape), self.score_range[0])
        for place, name in enumerate(ids):
            kept = self._read(name)
            if kept is not None:
                maps[place] = kept
        return maps

    def detect(self, x_BCZYX: Tensor, brain_BZYX: Tensor) -> Detection:
        """Refused: there are maps of one cohort's volumes, and of nothing else.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "these are maps that other software made of the volumes of one cohort: nothing else "
            "can be scored with them"
        )


# Under no name that a command line knows: it can be evaluated, not fitted.
DETECTORS[OutsideMaps.__name__] = OutsideMaps
