"""Kept scores at a frozen threshold, compared with the true lesions.

Apart from scoring, since a process that examines needs no torch, which takes seconds to import.
"""

from collections.abc import Sequence
from dataclasses import astuple

import numpy as np
from numpy.typing import NDArray

from uadray.data.sampling import same_block
from uadray.evaluation.protocols import EvaluateConfig
from uadray.metrics.components import drop_components
from uadray.metrics.froc import Finds
from uadray.metrics.lesionwise import compare_labelled, label
from uadray.runs.scores import ScoreStore
from uadray.store import CHUNK_VOLUMES, Cohort

Batch = dict[str, np.ndarray]


def examine(
    batch: Batch,
    stores: Sequence[ScoreStore],
    levels: Sequence[int],
    names: dict[int, str],
    spacings: dict[int, tuple[float, float, float]],
    config: EvaluateConfig,
) -> Batch:
    """Compare the kept scores of a batch of subjects, at frozen thresholds, with the truth.

    Args:
        batch: `id` and `lesion`; or, of healthy volumes, `brain` instead.
        stores: One a run.
        levels: Frozen threshold of each run.
        names: Example of each row.
        spacings: Edge lengths of a voxel in mm along Z, Y and X, of each row.
        config: Slices and component filter.

    Returns:
        `id`, `lesions` (B, runs, fields of `SubjectLesions`) float64, and `finds`, the bytes of the
        `Finds` of each run one after the other.

    Raises:
        EvaluationError: Kept scores are not those that were counted.
    """
    lesions = batch.get("lesion")
    if lesions is None:
        lesions = np.zeros(batch["brain"].shape, bool)
    compared, finds = [], []
    for row, whole in zip(batch["id"].tolist(), lesions, strict=True):
        lesion, here = whole[config.cut].astype(bool), []
        for store, level in zip(stores, levels, strict=True):
            scores = drop_components(store.checked_levels(row, names[row]), config.components)
            found = label(scores >= level, lesion)
            here.append(astuple(compare_labelled(found, spacings[row])))
            finds.append(Finds.of_labelled(scores, found).flat())
        compared.append(here)
    num = len(stores)
    packed = [
        np.concatenate(finds[num * n : num * (n + 1)]).tobytes() for n in range(len(compared))
    ]
    return {
        "id": batch["id"],
        "lesions": np.array(compared, np.float64),
        "finds": np.array(packed, object),
    }


def brain_voxels(
    cohort: Cohort, rows: NDArray[np.int64], config: EvaluateConfig
) -> NDArray[np.int64]:
    """Brain voxels of each axial slice that is evaluated, (N, Z).

    Args:
        cohort: Whose brains; a chunk of volumes is in memory at a time.
        rows: N of them, ascending.
        config: Says which slices.
    """
    counted = []
    for places in same_block(rows, CHUNK_VOLUMES):
        here = rows[places]
        brain = cohort.read("brain", int(here[0]), int(here[-1]) + 1)[here - here[0]]
        # Plane by plane: numpy counts along axes by way of integers, ten times slower.
        counted += [[np.count_nonzero(z) for z in one[config.cut]] for one in brain]
    return np.array(counted, np.int64)
