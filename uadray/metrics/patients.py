"""Patients against healthy people, by one score a person made of the scores of voxels."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from uadray.metrics.counts import CohortCounts
from uadray.metrics.histograms import SubjectHistograms
from uadray.metrics.inference import Fits
from uadray.metrics.postprocess import dequantise

Values = NDArray[np.float64]

TOP_VOXELS = 100
"""Voxels whose mean score is one of the scores of a scan."""

PERCENTILE = 99.9
"""Of the brain's voxels, that is another."""

SCORES = {
    "volume": "predicted volume",
    "maximum": "highest score of the brain",
    "percentile": f"{PERCENTILE:g}th percentile of the brain's scores",
    "top_mean": f"mean of the {TOP_VOXELS} highest scores of the brain",
}
"""Scores of a person by name, in words; `volume` is of the prediction at a threshold."""


def scan_scores(part: CohortCounts) -> dict[str, Values]:
    """One score a scan of each kind but the volume, whether its voxels are lesion or not.

    Args:
        part: Counts of N scans.

    Returns:
        (N,) levels in [0, 65535] by the names of `SCORES`; NaN without a voxel of brain.
    """
    histograms = part.histograms("brain")
    found = np.full((len(part.subjects), 3), np.nan)
    for place in range(len(found)):
        levels, counts = _row(histograms, place)
        if not len(levels):
            continue
        # From the highest level down.
        levels, above = levels[::-1], np.cumsum(counts[::-1])
        rank = (1 - PERCENTILE / 100) * above[-1]
        top = np.minimum(above, TOP_VOXELS)
        mean = float(np.diff(top, prepend=0) @ levels) / float(top[-1])
        found[place] = levels[0], levels[np.searchsorted(above, rank, side="right")], mean
    return dict(zip(("maximum", "percentile", "top_mean"), found.T, strict=True))


def in_units(scores: Mapping[str, Values], score_range: tuple[float, float]) -> dict[str, Values]:
    """Scores of scans in the method's units instead of levels; the volume, in mL, as it is."""
    return {
        name: values if name == "volume" else dequantise(values, score_range)
        for name, values in scores.items()
    }


def _row(histograms: SubjectHistograms, place: int) -> tuple[Values, Values]:
    """The levels of one scan that have voxels, ascending, and how many each has."""
    counts = np.zeros(len(histograms.levels))
    for part in (histograms.healthy, histograms.lesion):
        inside = slice(part.indptr[place], part.indptr[place + 1])
        counts[part.indices[inside]] += part.data[inside]
    used = counts > 0
    return histograms.levels[used].astype(np.float64), counts[used]


def by_person(values: Values, people: Sequence[str]) -> Values:
    """The mean over each person's scans, (P,), people in the order in which they first come."""
    _, first, place = np.unique(np.asarray(people, np.str_), return_index=True, return_inverse=True)
    means = np.bincount(place, values) / np.bincount(place)
    return np.asarray(means[np.argsort(first)], np.float64)


def detection(patients: Values, healthy: Values) -> dict[str, Fits]:
    """How well a score separates patients from healthy people, with everyone and without each.

    Args:
        patients: (P,) higher is more anomalous.
        healthy: (H,).

    Returns:
        `auroc` and `auprc` (of patients, average precision), each with (1, 1 + P + H) values.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    truth = np.concatenate([np.ones(len(patients)), np.zeros(len(healthy))])
    scores = np.concatenate([patients, healthy])
    kept = [np.ones(len(truth), bool), *~np.eye(len(truth), dtype=bool)]

    def values(compute: Callable[[Values, Values], float]) -> Values:
        if not np.isfinite(scores).all() or min(len(patients), len(healthy)) < 2:
            return np.full((1, len(kept)), np.nan)
        return np.array([[compute(truth[here], scores[here]) for here in kept]], np.float64)

    return {
        "auroc": Fits(values=values(roc_auc_score), limits=(0.0, 1.0)),
        "auprc": Fits(values=values(average_precision_score), limits=(0.0, 1.0)),
    }


def roc(patients: Values, healthy: Values) -> tuple[list[float], list[float]]:
    """The curve: shares of healthy people and of patients at or above each score, ascending."""
    from sklearn.metrics import roc_curve

    truth = np.concatenate([np.ones(len(patients)), np.zeros(len(healthy))])
    false, true, _ = roc_curve(truth, np.concatenate([patients, healthy]))
    return false.tolist(), true.tolist()
