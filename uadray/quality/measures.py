"""What the quality page measures of each scan, and which scans stand out from their cohort."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

BINS = 32
"""Bins of a histogram over the intensities [0, 1]."""

MAX_Z = 3.5
"""A robust z beyond it is an outlier (Iglewicz and Hoaglin 1993)."""

MIN_SCANS = 8
"""Fewer scans say nothing about each other."""

MIRROR_MARGIN = 0.02
"""A brain whose best mirror plane beats the sagittal one by more may lie on its side."""

MAD_TO_SD = 1.4826
"""Standard deviation of normal values over their median absolute deviation."""


@dataclass(frozen=True, kw_only=True)
class ScanMeasures:
    """Figures of one prepared scan; NaN where its brain mask is empty."""

    brain_ml: float
    """Volume of the brain mask, mL."""
    grid_share: float
    """Share of the grid's voxels that are brain, in [0, 1]."""
    lesion_ml: float
    """Volume of the lesion mask, mL; 0 where there is none."""
    mean: float
    """Mean intensity inside the brain, in [0, 1]."""
    low: float
    """5th percentile of the intensities inside the brain."""
    high: float
    """95th percentile of the intensities inside the brain."""
    mirrors: tuple[float, float, float]
    """Share of the brain that its mirror image covers, by axis (Z, Y, X), about its box's middle;
    the last one is left on right."""
    offsets: tuple[float, float, float]
    """From the middle of the brain's box to its centre of mass, in lengths of the box (Z, Y, X);
    a brain that lies the other way round has the opposite sign."""
    position_mm: float
    """From the middle of the grid to the brain's centre of mass, mm."""
    histogram: NDArray[np.float64]
    """(`BINS`,) shares of the brain's voxels."""
    digest: str
    """Of the image's voxels: two scans share it only where they are the same."""

    @property
    def mirror(self) -> float:
        """Left on right."""
        return self.mirrors[2]

    @property
    def up(self) -> float:
        """Offset towards the vertex."""
        return self.offsets[0]

    @property
    def forward(self) -> float:
        """Offset towards the front."""
        return self.offsets[1]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One figure by which all scans are compared, and a column of the page."""

    key: str
    """Name in `ScanMeasures`, or `histogram` for the distance to the cohort's mean histogram."""
    head: str
    """Head of its column."""
    unit: str
    """Second line of the head."""
    meaning: str
    """What it tells, in a sentence's end."""
    floor: float
    """Least standard deviation that is assumed, in the measure's unit: what differs by less than
    `MAX_Z` times this is no outlier however alike the others are."""
    digits: int
    """After the point."""
    side: Literal["both", "low", "high"] = "both"
    """On which side a scan can stand out."""

    def text(self, value: float) -> str:
        """A value as it stands on the page."""
        return f"{value:,.{self.digits}f}".replace("-", "\N{MINUS SIGN}")


MEASURES = (
    Measure(
        key="brain_ml",
        head="Brain",
        unit="mL",
        meaning="a mask that leaked into the skull, or lost a part of the brain",
        floor=20.0,
        digits=0,
    ),
    Measure(
        key="mean",
        head="Mean",
        unit="intensity",
        meaning="another contrast, or intensities that were not brought to one scale",
        floor=0.01,
        digits=3,
    ),
    Measure(
        key="low",
        head="5 %",
        unit="intensity",
        meaning="background, fluid or a border inside the mask",
        floor=0.01,
        digits=3,
    ),
    Measure(
        key="high",
        head="95 %",
        unit="intensity",
        meaning="bright vessels, fat or an artefact inside the mask",
        floor=0.01,
        digits=3,
    ),
    Measure(
        key="histogram",
        head="Histogram",
        unit="distance",
        meaning="intensities spread unlike the cohort's (earth mover's distance to its mean)",
        floor=0.005,
        digits=3,
        side="high",
    ),
    Measure(
        key="mirror",
        head="Mirror",
        unit="left on right",
        meaning="one side larger than the other: axes mixed up, or a mask that is cut",
        floor=0.005,
        digits=3,
        side="low",
    ),
    Measure(
        key="up",
        head="Up",
        unit="of height",
        meaning="a centre of mass that lies lower or higher than in the others: upside down?",
        floor=0.005,
        digits=3,
    ),
    Measure(
        key="forward",
        head="Forward",
        unit="of length",
        meaning="a centre of mass nearer to the front or the back: back to front?",
        floor=0.005,
        digits=3,
    ),
    Measure(
        key="position_mm",
        head="Off centre",
        unit="mm",
        meaning="a brain that is not where the others are: a registration or a crop that failed",
        floor=1.0,
        digits=1,
        side="high",
    ),
)
"""In the order of the page's columns."""


def measure_scan(
    image: NDArray[np.floating],
    brain: NDArray[np.bool_],
    lesion: NDArray[np.bool_] | None,
    *,
    spacing_mm: Sequence[float],
) -> ScanMeasures:
    """Measure one prepared scan.

    Args:
        image: (Z, Y, X) in [0, 1].
        brain: Mask of the same shape.
        lesion: Mask of the same shape, or None where the cohort has none.
        spacing_mm: Voxel sizes (Z, Y, X).
    """
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    digest = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).hexdigest()
    count = int(np.count_nonzero(brain))
    nan = float("nan")
    inside = image[brain].astype(np.float64)
    low, high = np.percentile(inside, [5, 95]) if count else (nan, nan)
    mirrors, offsets, position = _shape(brain, spacing_mm) if count else ((nan,) * 3,) * 2 + (nan,)
    shares = np.histogram(inside, BINS, (0, 1))[0] / max(count, 1)
    return ScanMeasures(
        brain_ml=count * voxel_ml,
        grid_share=count / brain.size,
        lesion_ml=0.0 if lesion is None else int(np.count_nonzero(lesion)) * voxel_ml,
        mean=float(inside.mean()) if count else nan,
        low=float(low),
        high=float(high),
        mirrors=mirrors,
        offsets=offsets,
        position_mm=position,
        histogram=shares,
        digest=digest,
    )


_Three = tuple[float, float, float]


def _shape(brain: NDArray[np.bool_], spacing_mm: Sequence[float]) -> tuple[_Three, _Three, float]:
    """Mirrors, offsets and position of a mask that is not empty."""
    profiles = [brain.sum(axis=others) for others in ((1, 2), (0, 2), (0, 1))]
    mirrors, offsets, apart = [], [], 0.0
    spans = [np.flatnonzero(profile)[[0, -1]] for profile in profiles]
    box = brain[tuple(slice(first, last + 1) for first, last in spans)]
    count = int(box.sum())
    for axis, (profile, (first, last)) in enumerate(zip(profiles, spans, strict=True)):
        mirrors.append(int((box & np.flip(box, axis)).sum()) / count)
        centre = float(profile @ np.arange(len(profile))) / count
        offsets.append((centre - (first + last) / 2) / (last + 1 - first))
        apart += ((centre - (len(profile) - 1) / 2) * spacing_mm[axis]) ** 2
    z, y, x = mirrors
    up, forward, right = map(float, offsets)
    return (z, y, x), (up, forward, right), float(np.sqrt(apart))


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Where one measure lies in a cohort, and beyond what it stands out."""

    measure: Measure
    """What is measured."""
    values: NDArray[np.float64]
    """One a scan."""
    median: float
    """Of the scans that have a value; NaN where none has."""
    spread: float
    """Robust standard deviation: 1.4826 times the median absolute deviation, no less than the
    measure's floor."""

    @property
    def low(self) -> float:
        """Least value that does not stand out."""
        none = self.measure.side == "high"
        return float("-inf") if none else self.median - MAX_Z * self.spread

    @property
    def high(self) -> float:
        """Largest value that does not stand out."""
        none = self.measure.side == "low"
        return float("inf") if none else self.median + MAX_Z * self.spread

    @property
    def is_outlier(self) -> NDArray[np.bool_]:
        """One a scan; none of a cohort with fewer than `MIN_SCANS` scans."""
        if len(self.values) < MIN_SCANS:
            return np.zeros(len(self.values), bool)
        return (self.values < self.low) | (self.values > self.high)

    def reason(self, k: int) -> str:
        """What is said of outlier `k`."""
        value = float(self.values[k])
        limit, word = (self.low, "below") if value < self.low else (self.high, "above")
        name = f"{self.measure.head} ({self.measure.unit})"
        text = self.measure.text
        z = abs(value - self.median) / self.spread
        return f"{name} {text(value)}, {word} {text(limit)} (robust z {z:,.1f})"


def mean_histogram(scans: Sequence[ScanMeasures]) -> NDArray[np.float64]:
    """(`BINS`,) the mean histogram of the scans that have a brain, each counting alike."""
    known = [scan.histogram for scan in scans if scan.brain_ml]
    return np.mean(known, axis=0) if known else np.zeros(BINS)


def find_limits(scans: Sequence[ScanMeasures]) -> list[Limits]:
    """Median, spread and outliers of each measure over a cohort, in the order of `MEASURES`."""
    mean = mean_histogram(scans)
    read: dict[str, Callable[[ScanMeasures], float]] = {
        # In one dimension the earth mover's distance is the area between the distributions.
        "histogram": lambda scan: float(
            np.abs(np.cumsum(scan.histogram - mean)).sum() / BINS if scan.brain_ml else np.nan
        )
    }
    limits = []
    for measure in MEASURES:
        value = read.get(measure.key, lambda scan, key=measure.key: getattr(scan, key))
        values = np.array([value(scan) for scan in scans], np.float64)
        known = values[np.isfinite(values)]
        median = float(np.median(known)) if known.size else float("nan")
        mad = float(np.median(np.abs(known - median))) if known.size else 0.0
        spread = max(measure.floor, MAD_TO_SD * mad)
        limits.append(Limits(measure=measure, values=values, median=median, spread=spread))
    return limits


def own_doubts(scan: ScanMeasures) -> list[str]:
    """What is doubtful in a scan whatever the others are like."""
    if not scan.brain_ml:
        return ["the brain mask is empty"]
    z, y, x = scan.mirrors
    if max(z, y) > x + MIRROR_MARGIN:
        name, value = ("top on bottom", z) if z > y else ("front on back", y)
        return [
            f"the brain mirrors better {name} ({value:.3f}) than left on right ({x:.3f}): "
            "are its axes mixed up?"
        ]
    return []


def same_voxels(scans: Sequence[ScanMeasures]) -> list[list[int]]:
    """For each scan the others, by index, that hold the same image voxel for voxel."""
    alike: dict[str, list[int]] = {}
    for k, scan in enumerate(scans):
        alike.setdefault(scan.digest, []).append(k)
    return [[other for other in alike[scan.digest] if other != k] for k, scan in enumerate(scans)]
