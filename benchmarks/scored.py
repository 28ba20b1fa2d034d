"""Made anomaly scores with brains and lesions, counted, kept, and as a cohort."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import scipy.ndimage as ndi
from numpy.typing import NDArray

from tests.tiny_cohorts import Volume as Stored
from tests.tiny_cohorts import write_cohort
from uadray.metrics.counts import CohortCounts, SubjectCounts, count_subject
from uadray.metrics.postprocess import erode_brain, postprocess
from uadray.metrics.settings import PostprocessConfig
from uadray.store import Split

CONFIG = PostprocessConfig()
SCORE_RANGE = (0.0, 1.0)
_NUM_FIELDS = 6


@dataclass(frozen=True)
class Volume:
    """One subject, (Z, Y, X)."""

    scores: NDArray[np.float32]
    brain: NDArray[np.bool_]
    lesion: NDArray[np.bool_]

    @property
    def image(self) -> NDArray[np.float32]:
        """A picture whose darkness is the score."""
        return np.where(self.brain, 1 - self.scores, 0)

    def levels(self) -> NDArray[np.uint16]:
        """The scores as they are kept: eroded, median of 5^3, 16-bit."""
        return postprocess(self.scores, self.brain, SCORE_RANGE, CONFIG)

    def counts(self, levels: NDArray[np.uint16]) -> SubjectCounts:
        """Histograms of kept scores."""
        eroded = erode_brain(self.brain, CONFIG.iterations(self.brain.shape))
        return count_subject(levels, self.brain, self.lesion, eroded)


@lru_cache(maxsize=1)
def _fields(size: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(0)
    fields = rng.normal(size=(_NUM_FIELDS, size, size, size)).astype(np.float32)
    return np.stack([f / f.std() for f in (ndi.gaussian_filter(f, 1.5) for f in fields)])


def volume(number: int, size: int = 64) -> Volume:
    """Subject `number`: smooth residuals in an ellipsoid, higher in one to three lesions."""
    rng = np.random.default_rng([7, number])
    centre = np.mgrid[:size, :size, :size].astype(np.float32) - (size - 1) / 2

    def ball(radii: NDArray, middle: NDArray) -> NDArray[np.bool_]:
        parts = zip(centre, middle, radii, strict=True)
        return sum(((axis - m) / r) ** 2 for axis, m, r in parts) <= 1  # type: ignore[return-value]

    radii = size * rng.uniform([0.36, 0.42, 0.34], [0.41, 0.47, 0.4])
    brain = ball(radii, np.zeros(3))
    lesion = np.zeros_like(brain)
    for _ in range(rng.integers(1, 4)):
        lesion |= ball(size * rng.uniform(0.03, 0.13, 3), radii * rng.uniform(-0.55, 0.55, 3))
    lesion &= brain
    mixed = sum(
        rng.normal() * np.roll(_fields(size)[k], rng.integers(0, size, 3), axis=(0, 1, 2))
        for k in rng.choice(_NUM_FIELDS, 3, replace=False)
    )
    scores = np.abs(0.06 * mixed) + rng.uniform(0.05, 0.2) * lesion
    return Volume(np.clip(scores, 0, 1).astype(np.float32) * brain, brain, lesion)


def count_many(numbers: Iterable[int], kind: type, size: int = 64, name: str = "made") -> Any:
    """Counts of many volumes, made, post-processed and counted one by one."""
    return kind.from_subjects(
        ((str(n), v.counts(v.levels())) for n, v in ((n, volume(n, size)) for n in numbers)),
        name=name,
        score_range=SCORE_RANGE,
    )


def save(folder: Path, num: int, size: int) -> None:
    """Write levels, brains and lesions of the first `num` volumes as arrays (N, Z, Y, X)."""
    shape = (num, size, size, size)
    arrays = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, shape)
        for name, dtype in (("levels", np.uint16), ("brain", bool), ("lesion", bool))
    }
    for number in range(num):
        made = volume(number, size)
        arrays["levels"][number] = made.levels()
        arrays["brain"][number], arrays["lesion"][number] = made.brain, made.lesion


def load(folder: Path, num: int, name: str) -> NDArray:
    """The first `num` volumes of what `save` wrote, in memory."""
    return np.array(np.load(folder / f"{name}.npy", mmap_mode="r")[:num])


def pooled(levels: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Kept scores as a peer takes them: flat float32, one value a level."""
    return levels.ravel().astype(np.float32) / np.float32(65535)


def counted(levels: NDArray, brain: NDArray, lesion: NDArray) -> CohortCounts:
    """Counts of (N, Z, Y, X) kept scores."""
    eroded = (erode_brain(b, 0) for b in brain)
    return CohortCounts.from_subjects(
        (
            (str(n), count_subject(*parts))
            for n, parts in enumerate(zip(levels, brain, lesion, eroded, strict=True))
        ),
        name="made",
        score_range=SCORE_RANGE,
    )


def store(url: Path | str, count: int, size: int, *, lesioned: bool) -> str:
    """A sealed cohort of made volumes whose darkness is the score."""
    parts: tuple[Split, Split] = ("threshold", "test") if lesioned else ("validation", "train")

    def made(row: int) -> Stored:
        one = volume(row, size)
        return one.image, one.brain, one.lesion if lesioned else None

    return write_cohort(str(url), [parts[row % 4 > 0] for row in range(count)], made).url
