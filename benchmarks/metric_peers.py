"""Sides of the evaluation's benchmark: ours and peers', from the same kept scores.

A side that runs in a process of its own loads its inputs and returns the work to measure, after
what warms up where it gives two.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy.ndimage as ndi
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from benchmarks.scored import count_many, counted, load, pooled
from uadray.metrics import measures
from uadray.metrics.counts import Region, TestPart, Threshold
from uadray.metrics.postprocess import MAX_LEVEL
from uadray.metrics.table import compute_metrics

CURVES = ("auprc", "auroc", "upper_bound_dice")
THRESHOLD = Threshold(level=8000, value=8000 / MAX_LEVEL, rule="fixed", fitted_on="nothing")


def our_curves(
    folder: Path, num: int, names: tuple[str, ...] = CURVES, region: Region = "volume"
) -> tuple[Callable[[], Any], ...]:
    """Count kept scores and read figures of all thresholds."""
    arrays = [load(folder, num, name) for name in ("levels", "brain", "lesion")]

    def work() -> list[float]:
        merged = counted(*arrays).merged(region)
        return [float(getattr(measures, name)(merged)) for name in names]

    return work, work


def sklearn_curves(folder: Path, num: int) -> tuple[Callable[[], Any], ...]:
    """The same with scikit-learn."""
    scores, truth = pooled(load(folder, num, "levels")), load(folder, num, "lesion").ravel()
    return (partial(curves_of, truth, scores),)


def curves_of(truth: NDArray[np.bool_], scores: NDArray) -> list[float]:
    """AUPRC, AUROC and the best Dice of all thresholds with scikit-learn."""
    precision, recall, thresholds = precision_recall_curve(truth, scores)
    above = thresholds > 0  # score 0 is "no anomaly" and no threshold
    dice = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    areas = [average_precision_score(truth, scores), roc_auc_score(truth, scores)]
    return [*map(float, areas), float(dice[:-1][above].max())]


def torchmetrics_curves(folder: Path, num: int, bins: int | None) -> tuple[Callable[[], Any], ...]:
    """AUPRC and AUROC with torchmetrics, exact or on evenly spaced thresholds."""
    import torch
    from torchmetrics.functional.classification import binary_auroc, binary_average_precision

    torch.set_num_threads(1)
    scores = torch.from_numpy(pooled(load(folder, num, "levels")))
    truth = torch.from_numpy(load(folder, num, "lesion").ravel()).long()

    def work() -> list[float]:
        sides = (binary_average_precision, binary_auroc)
        return [float(side(scores, truth, thresholds=bins)) for side in sides]

    return (work,)


def monai_curves(folder: Path, num: int) -> tuple[Callable[[], Any], ...]:
    """AUPRC and AUROC with MONAI, over brain voxels."""
    import torch
    from monai.metrics import compute_average_precision, compute_roc_auc

    torch.set_num_threads(1)
    inside = load(folder, num, "brain").ravel()
    scores = torch.from_numpy(pooled(load(folder, num, "levels"))[inside])
    truth = torch.from_numpy(load(folder, num, "lesion").ravel()[inside]).long()
    sides = (compute_average_precision, compute_roc_auc)
    return (lambda: [float(side(scores, truth)) for side in sides],)


def our_stream(num: int, size: int) -> tuple[Callable[[], Any], ...]:
    """Make, post-process and count volumes one by one, then read all metrics."""

    def work(count: int) -> dict[str, float | int | str | None]:
        part = count_many(range(count), TestPart, size)
        return compute_metrics(part, THRESHOLD)

    return partial(work, 2), partial(work, num)


def filtered_by(
    sizes_of: Callable[[NDArray[np.bool_]], tuple[NDArray, NDArray]],
    levels: NDArray,
    lesion: NDArray,
    brain: NDArray,
    thresholds: NDArray,
) -> tuple[NDArray, NDArray]:
    """True and false positives at each threshold, one labelling a threshold."""
    counts = []
    for threshold in thresholds:
        labels, sizes = sizes_of((levels >= threshold) & brain)
        large = sizes > 20
        large[0] = False
        kept = large[labels]
        true = np.count_nonzero(kept & lesion)
        counts.append((true, np.count_nonzero(kept) - true))
    both = np.array(counts)
    return both[:, 0], both[:, 1]


def scipy_sizes(predicted: NDArray[np.bool_]) -> tuple[NDArray, NDArray]:
    labels, num = ndi.label(predicted, np.ones((3, 3, 3)))
    return labels, np.bincount(labels.ravel(), minlength=num + 1)


def cc3d_sizes(predicted: NDArray[np.bool_]) -> tuple[NDArray, NDArray]:
    import cc3d

    labels = cc3d.connected_components(predicted, connectivity=26)
    return labels, np.bincount(labels.ravel())
