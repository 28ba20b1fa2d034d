"""Lesions found against false ones, the surer ones first (free-response ROC, FROC).

A predicted component is as sure as its highest score. A true lesion is found as soon as a component
touches it; a component that touches none is false. The curve is that of the prediction at the
frozen threshold, taken from its surest component to all of it.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from uadray.metrics.inference import Fits
from uadray.metrics.lesionwise import LESION_CONNECTIVITY, Labelled, label
from uadray.metrics.settings import Connectivity

Values = NDArray[np.float64]

RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False components a scan at which the share of lesions that are found is reported."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Finds:
    """What the prediction of one scan finds, and how sure it is."""

    sizes: Values
    """(n,) voxels of each true lesion."""
    scores: Values
    """(n,) level of the surest component that touches it; 0 where none does."""
    false_scores: Values
    """(m,) level of each component that touches none."""

    @classmethod
    def of(
        cls,
        levels: NDArray[np.integer],
        prediction: NDArray[np.bool_],
        lesion: NDArray[np.bool_],
        connectivity: Connectivity = LESION_CONNECTIVITY,
    ) -> Self:
        """Look at one scan.

        Args:
            levels: (Z, Y, X) scores.
            prediction: The same shape.
            lesion: The same shape.
            connectivity: What makes one component of two voxels.
        """
        return cls.of_labelled(levels, label(prediction, lesion, connectivity))

    @classmethod
    def of_labelled(cls, levels: NDArray[np.integer], found: Labelled) -> Self:
        """The same, of components that are known."""
        sure = np.zeros(found.num_predicted + 1)
        np.maximum.at(sure, found.predicted[found.prediction], levels[found.box][found.prediction])
        both = found.prediction & found.lesion
        scores = np.zeros(found.num_lesions + 1)
        np.maximum.at(scores, found.truth[both], sure[found.predicted[both]])
        is_false = np.ones(found.num_predicted + 1, bool)
        is_false[0] = False
        is_false[found.predicted[both]] = False
        sizes = np.bincount(found.truth[found.lesion], minlength=found.num_lesions + 1)[1:]
        return cls(sizes=sizes.astype(np.float64), scores=scores[1:], false_scores=sure[is_false])

    def flat(self) -> Values:
        """As numbers in a row, from which `read` makes it again."""
        counts = [len(self.sizes), len(self.false_scores)]
        return np.concatenate([counts, self.sizes, self.scores, self.false_scores])

    @classmethod
    def read(cls, flat: Values) -> list[Self]:
        """All that lie one after the other."""
        found = []
        while len(flat):
            num, num_false = int(flat[0]), int(flat[1])
            ends = np.cumsum([2, num, num, num_false])
            sizes, scores, false_scores = (flat[a:b] for a, b in itertools.pairwise(ends))
            found.append(cls(sizes=sizes, scores=scores, false_scores=false_scores))
            flat = flat[ends[-1] :]
        return found


def curve(finds: Sequence[Finds], weights: NDArray[np.integer]) -> tuple[Values, Values]:
    """False components a scan and the share of lesions found, from nothing to the whole prediction.

    Args:
        finds: Of N scans.
        weights: (W, N) how often each counts.

    Returns:
        Both (W, 1 + T) at T levels, descending; NaN where there is no lesion.
    """
    scans = np.repeat(np.arange(len(finds)), [len(one.scores) for one in finds])
    false_scans = np.repeat(np.arange(len(finds)), [len(one.false_scores) for one in finds])
    scores = np.concatenate([np.empty(0), *(one.scores for one in finds)])
    false_scores = np.concatenate([np.empty(0), *(one.false_scores for one in finds)])
    levels = np.unique(np.concatenate([scores[scores > 0], false_scores]))[::-1]
    counts = np.asarray(weights, np.float64)

    def above(values: Values, of: NDArray[np.intp]) -> Values:
        """(W, 1 + T) weighted counts of values at each level and above."""
        place = np.searchsorted(-levels, -values)  # the first level that is not above it
        held = np.zeros((len(counts), len(levels) + 1))
        for n in range(len(counts)):
            held[n] = np.bincount(place, counts[n][of], minlength=len(levels) + 1)
        total = np.cumsum(held[:, : len(levels)], axis=1)
        return np.concatenate([np.zeros((len(counts), 1)), total], axis=1)

    num_lesions = counts @ np.array([len(one.sizes) for one in finds], np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        false = above(false_scores, false_scans) / counts.sum(axis=1)[:, None]
        found = above(scores, scans) / num_lesions[:, None]
    return false, found


def sensitivities(finds: Sequence[Finds], weights: NDArray[np.integer]) -> list[Fits]:
    """The share of lesions found at each of `RATES`, and their mean, by who is left out.

    Between two points of the curve it is taken linearly; where the whole prediction has fewer false
    components than a rate, it is that of the whole.

    Args:
        finds: Of N scans.
        weights: (1 + P, N), see `inference.leaving_out`.
    """
    false, found = curve(finds, weights)
    at = np.array([np.interp(RATES, x, y) for x, y in zip(false, found, strict=True)])
    at[np.isnan(found[:, -1])] = np.nan
    columns = [*at.T, at.mean(axis=1)]
    return [Fits(values=column[None], limits=(0.0, 1.0)) for column in columns]


def found_by_size(
    finds: Sequence[Finds],
    voxel_ml: Sequence[float],
    edges: Sequence[float],
    weights: NDArray[np.integer],
) -> list[tuple[int, int, Fits]]:
    """Lesions of several ranges of size: how many, how many of them found, and the share.

    Args:
        finds: Of N scans.
        voxel_ml: Volume of a voxel of each.
        edges: In mL, ascending: k of them make k + 1 ranges.
        weights: (1 + P, N), see `inference.leaving_out`.
    """
    places = [
        np.searchsorted(edges, one.sizes * ml, side="right")
        for one, ml in zip(finds, voxel_ml, strict=True)
    ]
    ranges = []
    for n in range(len(edges) + 1):
        there = np.array([np.count_nonzero(place == n) for place in places], np.float64)
        hit = np.array(
            [
                np.count_nonzero(one.scores[place == n] > 0)
                for one, place in zip(finds, places, strict=True)
            ],
            np.float64,
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            share = (weights @ hit) / (weights @ there)
        fits = Fits(values=share[None], limits=(0.0, 1.0))
        ranges.append((int(there.sum()), int(hit.sum()), fits))
    return ranges
