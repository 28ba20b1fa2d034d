"""Lesions as objects: which were found, what was found that is none, how far the surfaces lie.

These need voxels and one threshold, so they come from kept scores once the threshold is frozen,
subject by subject; a part's figures are sums and means over its subjects.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import scipy.ndimage as ndi
from numpy.typing import NDArray
from scipy.spatial import KDTree

from uadray.errors import EvaluationError
from uadray.metrics.components import neighbours
from uadray.metrics.settings import Connectivity

LESION_CONNECTIVITY: Connectivity = 26
"""Neighbours that make one lesion of two voxels, in the truth and in the prediction: those of the
component analysis in Meissen 2021 (its code's connectivity 3), section 3.1."""


@dataclass(frozen=True, kw_only=True)
class SubjectLesions:
    """One subject's prediction against its truth, lesion by lesion."""

    num_lesions: int
    """Components of the truth."""

    num_detected: int
    """Those that share a voxel with the prediction."""

    num_predicted: int
    """Components of the prediction."""

    num_false: int
    """Those that share no voxel with the truth."""

    true_positives: int
    """Predicted lesion voxels."""

    false_positives: int
    """Predicted healthy voxels."""

    hd95_mm: float
    """95th percentile Hausdorff distance of the surfaces in mm; NaN where one is empty."""

    surface_distance_mm: float
    """Mean distance between the surfaces in mm, symmetric; NaN where one is empty."""

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Self:
        """The inverse of `dataclasses.astuple`, from an array."""
        pairs = zip(fields(cls), values.tolist(), strict=True)
        return cls(**{one.name: v if one.type is float else int(v) for one, v in pairs})


def compare_lesions(
    prediction: NDArray[np.bool_],
    lesion: NDArray[np.bool_],
    spacing_mm: Sequence[float],
    connectivity: Connectivity = LESION_CONNECTIVITY,
) -> SubjectLesions:
    """Compare one subject's predicted lesions with the true ones.

    A true lesion is detected if any of its voxels is predicted, and a predicted one is false if
    none of its voxels is lesion: the lesion-wise true and false positives of Carass 2017
    ("Longitudinal multiple sclerosis lesion segmentation", NeuroImage 148), without a least
    overlap. One large prediction thus detects all that it covers; read the rate beside the false
    ones and Dice.

    Args:
        prediction: (Z, Y, X).
        lesion: (Z, Y, X) truth.
        spacing_mm: Edge lengths of a voxel along Z, Y and X.
        connectivity: What makes one component of two voxels.

    Raises:
        EvaluationError: Grids differ, or a spacing is not positive.
    """
    return compare_labelled(label(prediction, lesion, connectivity), spacing_mm)


@dataclass(frozen=True, kw_only=True, eq=False)
class Labelled:
    """The components of a prediction and of the truth, in the box that holds both."""

    box: tuple[slice, ...]
    """Where it lies in the volume."""
    prediction: NDArray[np.bool_]
    lesion: NDArray[np.bool_]
    predicted: NDArray[np.int32]
    """Number of each voxel's component, from 1; 0 elsewhere."""
    truth: NDArray[np.int32]
    """The same of the truth."""
    num_predicted: int
    num_lesions: int


def label(
    prediction: NDArray[np.bool_],
    lesion: NDArray[np.bool_],
    connectivity: Connectivity = LESION_CONNECTIVITY,
) -> Labelled:
    """Find the components of (Z, Y, X) masks.

    Raises:
        EvaluationError: Grids differ.
    """
    if prediction.shape != lesion.shape or prediction.ndim != 3:
        raise EvaluationError(
            f"expected a prediction and a truth on one (Z, Y, X) grid, came {prediction.shape} and "
            f"{lesion.shape}"
        )
    structure = neighbours(connectivity)
    # Each step takes a time for each voxel, and most of a volume is neither.
    box = _box(prediction | lesion)
    prediction, lesion = prediction[box], lesion[box]
    truth, num_lesions = ndi.label(lesion, structure)
    predicted, num_predicted = ndi.label(prediction, structure)
    return Labelled(
        box=box,
        prediction=prediction,
        lesion=lesion,
        predicted=predicted,
        truth=truth,
        num_predicted=int(num_predicted),
        num_lesions=int(num_lesions),
    )


def compare_labelled(found: Labelled, spacing_mm: Sequence[float]) -> SubjectLesions:
    """As `compare_lesions`, of components that are known."""
    start = [side.start for side in found.box]
    hd95, mean = _distances(found.prediction, found.lesion, spacing_mm, start)
    both = found.prediction & found.lesion
    num_both = int(np.count_nonzero(both))
    return SubjectLesions(
        num_lesions=found.num_lesions,
        num_detected=len(np.unique(found.truth[both])),
        num_predicted=found.num_predicted,
        num_false=found.num_predicted - len(np.unique(found.predicted[both])),
        true_positives=num_both,
        false_positives=int(np.count_nonzero(found.prediction)) - num_both,
        hd95_mm=hd95,
        surface_distance_mm=mean,
    )


def surface_distances(
    prediction: NDArray[np.bool_], lesion: NDArray[np.bool_], spacing_mm: Sequence[float]
) -> tuple[float, float]:
    """Return how far two masks' surfaces lie apart, in mm.

    The surface of a mask are its voxels that have a face neighbour outside it; what lies beyond
    the volume is outside. Distances go from the centre of each surface voxel to the nearest one of
    the other mask, exact (scipy's k-d tree). Definitions as in MONAI's metrics and the DeepMind
    package "surface-distance": the larger of the two directed 95th percentiles, and the mean over
    both directions together.

    Args:
        prediction: (Z, Y, X).
        lesion: (Z, Y, X) truth.
        spacing_mm: Edge lengths of a voxel along Z, Y and X.

    Returns:
        The 95th percentile Hausdorff distance and the average symmetric surface distance. Both NaN
        where a mask is empty: no distance says what a missed or invented lesion costs; Dice and
        the detection rate do, and the number of subjects that the means are over is reported.

    Raises:
        EvaluationError: A spacing is not positive.
    """
    return _distances(prediction, lesion, spacing_mm, (0, 0, 0))


def _distances(
    prediction: NDArray[np.bool_],
    lesion: NDArray[np.bool_],
    spacing_mm: Sequence[float],
    start: Sequence[int],
) -> tuple[float, float]:
    """The same of masks that were cut out of a volume, whose first voxel was there at `start`."""
    spacing = np.asarray(spacing_mm, np.float64)
    if spacing.shape != (3,) or not (spacing > 0).all():
        raise EvaluationError(f"expected three edge lengths above 0 mm, came {spacing_mm}")
    points = [(_surface(mask) + start) * spacing for mask in (prediction, lesion)]
    if min(map(len, points)) == 0:
        return float("nan"), float("nan")
    # A plain tree takes two thirds of the time of a balanced one for as few points as these.
    trees = (KDTree(p, 32, compact_nodes=False, balanced_tree=False) for p in points)
    (back, _), (there, _) = (t.query(p) for t, p in zip(trees, reversed(points), strict=True))
    hd95 = max(np.percentile(there, 95), np.percentile(back, 95))
    return float(hd95), float(np.concatenate([there, back]).mean())


def _surface(mask: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Return the places of a mask's surface voxels, (n, 3)."""
    box = _box(mask)
    inside = mask[box]
    edge = inside & ~ndi.binary_erosion(inside)
    return np.argwhere(edge) + [part.start for part in box]


def _box(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """Return the smallest box that holds a mask; an empty one where nothing is set."""
    plane = np.any(mask, 0)  # numpy is slow along several axes at once unless they are the last
    sides = map(np.flatnonzero, (np.any(mask, (1, 2)), np.any(plane, 1), np.any(plane, 0)))
    ends = ((side[0], side[-1]) if len(side) else (0, -1) for side in sides)
    return tuple(slice(int(first), int(last) + 1) for first, last in ends)


def lesion_metrics(
    subjects: Sequence[SubjectLesions], weights: NDArray | None = None
) -> dict[str, NDArray[np.float64]]:
    """Sum up a part's subjects.

    Args:
        subjects: N of them.
        weights: (..., N), how often each subject counts; once each by default.

    Returns:
        By name, each (...,): `lesion_detection_rate`, detected lesions over all lesions of the
        part; `lesion_precision`, predicted components that are not false over all of them;
        `false_components_per_volume`; `hd95_mm_mean` and `surface_distance_mm_mean` over the
        subjects that have them. NaN where a ratio has no denominator.
    """
    if weights is None:
        weights = np.ones(len(subjects))
    weights = np.asarray(weights, np.float64)

    def column(name: str) -> NDArray[np.float64]:
        return np.array([getattr(subject, name) for subject in subjects], np.float64)

    def ratio(part: NDArray, whole: NDArray) -> NDArray[np.float64]:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.true_divide(weights @ part, weights @ whole)

    predicted = column("num_predicted")
    values = {
        "lesion_detection_rate": ratio(column("num_detected"), column("num_lesions")),
        "lesion_precision": ratio(predicted - column("num_false"), predicted),
        "false_components_per_volume": ratio(column("num_false"), np.ones(len(subjects))),
    }
    for name in ("hd95_mm", "surface_distance_mm"):
        defined = ~np.isnan(column(name))
        values[f"{name}_mean"] = ratio(
            np.where(defined, column(name), 0.0), defined.astype(np.float64)
        )
    return values


LESION_LIMITS = {
    "lesion_detection_rate": (0.0, 1.0),
    "lesion_precision": (0.0, 1.0),
    "false_components_per_volume": (0.0, np.inf),
    "hd95_mm_mean": (0.0, np.inf),
    "surface_distance_mm_mean": (0.0, np.inf),
}
"""Ends of the range of each of `lesion_metrics`."""


def component_sizes(
    lesion: NDArray[np.bool_], connectivity: Connectivity = LESION_CONNECTIVITY
) -> NDArray[np.int64]:
    """Return the sizes of a mask's components in voxels, ascending, (n,)."""
    labels, count = ndi.label(lesion, neighbours(connectivity))
    return np.sort(np.bincount(labels.ravel(), minlength=count + 1)[1:])


@dataclass(frozen=True, kw_only=True)
class LesionTruth:
    """The true lesions of one subject."""

    id: str
    """The subject."""

    split: str
    """The part of the cohort that it is in."""

    sizes: NDArray[np.int64]
    """(n,) voxels of each component."""

    voxel_ml: float
    """Volume of a voxel in mL."""


def lesion_statistics(
    subjects: Iterable[LesionTruth], connectivity: Connectivity = LESION_CONNECTIVITY
) -> dict[str, object]:
    """Describe a cohort's lesions as Meissen 2021, table 1: how many, how large.

    Args:
        subjects: Their components, from `component_sizes`.
        connectivity: What they were made with; recorded.

    Returns:
        JSON values: components in all and per subject, their mean and median size in voxels and
        mL, and each subject's own; sizes are None where there is no component.
    """
    every = list(subjects)
    voxels = np.concatenate([np.asarray(s.sizes, np.float64) for s in every] or [np.empty(0)])
    ml = np.concatenate([np.asarray(s.sizes) * s.voxel_ml for s in every] or [np.empty(0)])

    def of(function: str, values: NDArray) -> float | None:
        return float(getattr(np, function)(values)) if len(values) else None

    return {
        "connectivity": connectivity,
        "num_subjects": len(every),
        "num_components": len(voxels),
        "components_per_subject": len(voxels) / len(every) if every else None,
        "mean_size_voxels": of("mean", voxels),
        "median_size_voxels": of("median", voxels),
        "mean_size_ml": of("mean", ml),
        "median_size_ml": of("median", ml),
        "subjects": [
            {
                "id": s.id,
                "split": s.split,
                "components": len(s.sizes),
                "voxels": int(np.sum(s.sizes)),
                "largest_voxels": int(np.max(s.sizes, initial=0)),
            }
            for s in every
        ],
    }
