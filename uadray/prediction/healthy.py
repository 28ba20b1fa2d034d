"""What healthy scans look like to a model, so that a scan that is unlike them can be named.

The ranges are taken once from the cohort that the model was fitted on: what the quality page
measures of every healthy scan, the mean anomaly score of those that were held back from fitting,
and the voxel sizes of the scans where their files still lie. They are then kept with the model.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray

from uadray import files
from uadray.config import from_json, to_json
from uadray.errors import ConfigError
from uadray.evaluation.scoring import score_volumes
from uadray.methods import Detector
from uadray.preparation.geometry import voxel_sizes
from uadray.preparation.pose import PoseRange, pose_degrees, pose_range
from uadray.quality.measures import (
    BINS,
    MAD_TO_SD,
    MAX_Z,
    MEASURES,
    MIN_SCANS,
    Limits,
    ScanMeasures,
    find_limits,
    mean_histogram,
    measure_scan,
)
from uadray.store import CHUNK_VOLUMES, Cohort

MAX_MEASURED = 256
"""Healthy scans that are measured at most; more do not move a median."""

MAX_SCORED = 32
"""Held-back scans that are scored at most."""

MAX_HEADERS = 64
"""Scans whose voxel sizes are looked up at most."""

MIN_SCORE_SPREAD = 0.15
"""Least standard deviation of the mean score that is assumed, relative to its median: with few
scans held back their own spread says little."""

COARSER = 1.5
"""A scan whose voxels are this many times as long as the longest that the model knows is coarse."""


@dataclass(frozen=True, kw_only=True)
class HealthyRange:
    """Where one measure of healthy scans lies."""

    key: str
    """As in `quality.measures.MEASURES`."""
    median: float
    """Of the healthy scans."""
    spread: float
    """Robust standard deviation, no less than the measure's floor."""


@dataclass(frozen=True, kw_only=True)
class Healthy:
    """What healthy scans look like to one model."""

    num_scans: int
    """Scans that the measures come from."""
    measures: tuple[HealthyRange, ...]
    """One a measure of the quality page."""
    histogram: tuple[float, ...]
    """Mean histogram of the intensities inside the brain, 32 shares over [0, 1]."""
    num_scored: int
    """Scans that the score comes from, of the validation part: the model was not fitted on them."""
    mean_score: float
    """Median over them of the mean raw anomaly score inside the brain, in the method's units; for
    a method that reconstructs, the mean absolute residual."""
    score_spread: float
    """Robust standard deviation of it, at least `MIN_SCORE_SPREAD` of the median."""
    voxel_mm: tuple[float, float] | None
    """Shortest and longest edge of the voxels of the scans' files; None where none could be
    read."""
    pose: PoseRange | None = None
    """How the brains lie on their grid; None in models of a version that did not record it."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not self.score_spread > 0:
            raise ConfigError(f"score_spread must be > 0, was {self.score_spread:g}")

    def doubts(
        self,
        image: NDArray[np.floating],
        brain: NDArray[np.bool_],
        *,
        spacing_mm: Sequence[float],
        scan_mm: Sequence[float],
        mean_score: float,
    ) -> list[str]:
        """In what a scan is unlike the healthy ones, in sentences; nothing where it is like them.

        Args:
            image: (Z, Y, X) as the detector saw it, in [0, 1].
            brain: Its mask.
            spacing_mm: Voxel sizes of that grid (Z, Y, X).
            scan_mm: Voxel sizes of the scan's file, in any order.
            mean_score: Mean raw score inside the brain.
        """
        doubts = _coarse(scan_mm, spacing_mm, self.voxel_mm)
        if self.pose is not None:
            pose = pose_degrees(brain, np.array(spacing_mm))
            doubts += self.pose.doubts(pose, few=self.num_scans < MIN_SCANS)
        if self.num_scans >= MIN_SCANS:
            doubts += self._unlike(measure_scan(image, brain, None, spacing_mm=spacing_mm))
        if (z := (mean_score - self.mean_score) / self.score_spread) > MAX_Z:
            doubts.append(
                f"the mean anomaly score of its brain is {mean_score:.4f}, {z:.1f} deviations "
                f"above the {self.mean_score:.4f} of {self.num_scored} healthy scans: a very "
                "large lesion, or a scan that the model does not know"
            )
        return doubts

    def _unlike(self, scan: ScanMeasures) -> list[str]:
        """The measures that stand out from those of the healthy scans."""
        known = {one.key: one for one in self.measures}
        apart = np.abs(np.cumsum(scan.histogram - np.array(self.histogram))).sum() / BINS
        doubts = []
        for measure in MEASURES:
            healthy = known.get(measure.key)
            if healthy is None:
                continue
            value = float(apart if measure.key == "histogram" else getattr(scan, measure.key))
            limits = Limits(
                measure=measure,
                values=np.array([value]),
                median=healthy.median,
                spread=healthy.spread,
            )
            if not limits.low <= value <= limits.high:
                doubts.append(
                    f"unlike the {self.num_scans} healthy scans of the model: {limits.reason(0)}; "
                    f"{measure.meaning}"
                )
        return doubts

    def to_json(self) -> dict[str, Any]:
        """As a JSON value."""
        return dict(to_json(self))

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Healthy":
        """The inverse.

        Raises:
            ConfigError: a field is unknown, absent or of another kind.
        """
        healthy: Healthy = from_json(cls, value)
        return healthy


def measure_healthy(
    cohort: Cohort,
    detector: Detector,
    device: torch.device,
    held_back: Sequence[tuple[NDArray[np.int64], Detector]] = (),
) -> Healthy:
    """Measure the healthy scans of a cohort, and score those that were held back.

    Args:
        cohort: That the detector was fitted on.
        detector: In evaluation mode, on `device`.
        device: Where to score.
        held_back: Rows, and the detector that has not learned from them, such as each fold's and
            its own; by default the validation part and `detector`.
    """
    # Controls, the part `test`, are nobody's reference.
    table = cohort.subjects[cohort.subjects["split"] != "test"]
    rows = thinned(table["row"].to_numpy(np.int64), MAX_MEASURED)
    spacings = {
        int(row): voxel_sizes(np.array(affine))[::-1].tolist()
        for row, affine in zip(table["row"], table["affine"], strict=True)
    }
    scans, poses = [], []
    for row, image, brain in volumes_of(cohort, rows):
        scans.append(measure_scan(image, brain, None, spacing_mm=spacings[row]))
        poses.append(pose_degrees(brain, np.array(spacings[row])))
    parts = held_back or [(cohort.rows("validation"), detector)]
    scores = np.array(
        [
            mean_inside(score_volumes(unseen, torch.from_numpy(x[None]), m[None], device)[0], m)
            for rows, unseen in parts
            for _, x, m in volumes_of(cohort, thinned(rows, max(1, MAX_SCORED // len(parts))))
        ]
    )
    median = float(np.median(scores))
    mad = float(np.median(np.abs(scores - median)))
    return Healthy(
        num_scans=len(scans),
        measures=tuple(
            HealthyRange(key=one.measure.key, median=one.median, spread=one.spread)
            for one in find_limits(scans)
        ),
        histogram=tuple(mean_histogram(scans).tolist()),
        num_scored=len(scores),
        mean_score=median,
        # Scores that do not differ at all (ranks, for instance) must not flag each rounding.
        score_spread=max(MAD_TO_SD * mad, MIN_SCORE_SPREAD * median, 1e-6),
        voxel_mm=_source_voxels(thinned(table["source"].to_numpy(), MAX_HEADERS).tolist()),
        pose=pose_range(np.array(poses)),
    )


def mean_inside(scores: NDArray[np.floating], brain: NDArray[np.bool_]) -> float:
    """Mean score inside a brain mask."""
    return float(scores[brain].mean())


def thinned(values: NDArray[Any], most: int) -> NDArray[Any]:
    """At most this many of the values, evenly spread over them."""
    if len(values) <= most:
        return values
    return values[np.linspace(0, len(values) - 1, most).round().astype(int)]


def volumes_of(
    cohort: Cohort, rows: NDArray[np.int64]
) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.bool_]]]:
    """Row, image and brain mask, a chunk of volumes in memory at a time."""
    for chunk in np.unique(rows // CHUNK_VOLUMES):
        mine = rows[rows // CHUNK_VOLUMES == chunk]
        first, last = int(mine.min()), int(mine.max()) + 1
        image, brain = (cohort.read(name, first, last) for name in ("image", "brain"))
        for row in mine.tolist():
            yield row, image[row - first].astype(np.float32), brain[row - first].astype(bool)


def _source_voxels(sources: Sequence[str]) -> tuple[float, float] | None:
    """Shortest and longest edge of a voxel over the scans whose local files can be read."""
    edges = []
    for source in sources:
        if files.is_remote(source):
            continue
        try:
            header: Any = nib.load(source).header
            edges.append(np.abs(np.array(header.get_zooms()[:3], float)))
        except Exception:  # whatever a header makes of a reader; the others are enough
            continue
    if not edges:
        return None
    return float(np.min(edges)), float(np.max(edges))


def _coarse(
    scan_mm: Sequence[float], grid_mm: Sequence[float], known_mm: tuple[float, float] | None
) -> list[str]:
    """A sentence where a scan is coarser than what the model was fitted on."""
    longest = max(scan_mm)
    text = " x ".join(f"{edge:.2g}" for edge in scan_mm)
    if known_mm is not None and longest > COARSER * known_mm[1]:
        return [
            f"its voxels of {text} mm are coarser than those of the healthy scans, which are "
            f"{known_mm[0]:.2g} to {known_mm[1]:.2g} mm: fine structure that it lacks may count "
            "as anomaly"
        ]
    if known_mm is None and longest > COARSER * max(grid_mm):
        return [
            f"its voxels of {text} mm are coarser than the {max(grid_mm):.2g} mm that the model "
            "works on: fine structure that it lacks may count as anomaly"
        ]
    return []
