"""What a worker does with a batch of volumes: score and count it, or examine its kept scores."""

import math
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from uadray.evaluate.components import ComponentConfig, open_components
from uadray.evaluate.counts import count_subject
from uadray.evaluate.inputs import check_truth
from uadray.evaluate.lesionwise import compare_lesions
from uadray.evaluate.postprocess import erode_brain, postprocess
from uadray.evaluate.protocols import EvaluateConfig, Residual
from uadray.evaluate.scores import ScoreStore
from uadray.methods import Detector
from uadray.methods.base import ReconstructionDetector
from uadray.store import CHUNK_VOLUMES
from uadray.train.distributed import load_detector
from uadray.train.run import Run

Batch = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one run still has to score on one cohort; pickles small."""

    run: Run
    """The run."""

    store: ScoreStore
    """Where its scores of the cohort are kept."""

    to_score: frozenset[int]
    """Rows without scores and counts."""

    to_filter: frozenset[int]
    """Rows without counts behind the component filter; empty where there is none."""


class Scorer:
    """An actor that scores batches of volumes with every run's detector."""

    def __init__(self, work: Sequence[Work], names: dict[int, str], config: EvaluateConfig) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self._device.type == "cpu":
            torch.set_num_threads(1)
        self._work, self._names, self._config = work, names, config
        self._ranks = {row: rank for rank, row in enumerate(sorted(names))}
        self._detectors = [
            load_detector(one.run).to(self._device) if one.to_score else None for one in work
        ]

    def __call__(self, batch: Batch) -> Batch:
        """Score, post-process, count and keep; returns the seconds that each run took."""
        rows = [int(row) for row in batch["id"]]
        brain = batch["brain"].astype(bool)
        lesion = batch["lesion"].astype(bool) if "lesion" in batch else np.zeros_like(brain)
        for row, inside, truth in zip(rows, brain, lesion, strict=True):
            check_truth(inside, truth, self._names[row])
        images = torch.from_numpy(np.array(batch["image"], dtype=np.float32))
        seconds = np.zeros((len(rows), len(self._work)))
        for number, (work, detector) in enumerate(zip(self._work, self._detectors, strict=True)):
            todo = [i for i, row in enumerate(rows) if row in work.to_score]
            if todo and detector is not None:
                start = time.perf_counter()
                for group in self._groups(rows, todo):
                    # Filled up with a volume of its own, which no method minds.
                    filled = [
                        group.get(place, next(iter(group.values()))) for place in self._places
                    ]
                    scores = score_volumes(
                        detector, images[filled], brain[filled], self._device, self._config.residual
                    )
                    for place, i in group.items():
                        self._keep(work.store, rows[i], scores[place], brain[i], lesion[i])
                seconds[todo, number] = (time.perf_counter() - start) / len(todo)
            for i, row in enumerate(rows):
                if row in work.to_filter:
                    self._filter(work.store, row, brain[i], lesion[i])
        return {"id": batch["id"], "seconds": seconds}

    @property
    def _places(self) -> range:
        """Places of the volumes that are scored at once; whole groups make a chunk of a cohort."""
        return range(math.gcd(self._config.batch_size, CHUNK_VOLUMES))

    def _groups(self, rows: Sequence[int], todo: Sequence[int]) -> list[dict[int, int]]:
        """Which of a batch to score at once: for each group its members by their place.

        A product of matrices rounds otherwise with another number of rows. So that scores do not
        depend on what else was still to be scored, every volume has one place in one group, by its
        rank among all that are evaluated: such as lie scattered in a cohort fill their groups.
        """
        groups: dict[int, dict[int, int]] = {}
        for i in todo:
            group, place = divmod(self._ranks[rows[i]], len(self._places))
            groups.setdefault(group, {})[place] = i
        return list(groups.values())

    def _keep(
        self, store: ScoreStore, row: int, score: NDArray, brain: NDArray, lesion: NDArray
    ) -> None:
        """Post-process, count and keep one subject's scores."""
        name, config = self._names[row], self._config
        cut = slices(config)
        brain, lesion = brain[cut], lesion[cut]
        levels = postprocess(score[cut], brain, store.score_range, config.postprocess, subject=name)
        store.write(row, levels, count_subject(levels, brain, lesion, self._eroded(brain)))

    def _filter(self, store: ScoreStore, row: int, brain: NDArray, lesion: NDArray) -> None:
        """Count one subject's kept scores behind the component filter."""
        components, cut = self._config.components, slices(self._config)
        opened = _open(store.checked_levels(row, self._names[row]), components)
        brain, lesion = brain[cut], lesion[cut]
        counts = count_subject(opened, brain, lesion, self._eroded(brain))
        store.write_counts(row, counts, components)

    def _eroded(self, brain: NDArray) -> NDArray:
        return erode_brain(brain, self._config.postprocess.iterations(brain.shape))


def score_volumes(
    detector: Detector,
    images: torch.Tensor,
    brain: NDArray[np.bool_],
    device: torch.device,
    residual: Residual = "absolute",
) -> NDArray[np.float64]:
    """Raw scores (B, Z, Y, X) float64 of volumes (B, Z, Y, X).

    Args:
        detector: In evaluation mode, on `device`.
        images: Volumes in [0, 1].
        brain: Their masks.
        device: Where to compute.
        residual: `positive` scores what is brighter than its reconstruction alone. Methods that
            do not score by a residual have no sign to go by, and keep their map.
    """
    with torch.inference_mode():
        x = images.float()[:, None].to(device)
        if residual == "positive" and isinstance(detector, ReconstructionDetector):
            scores = (x - detector.reconstruct(x)).clamp_min(0)[:, 0]
        else:
            scores = detector.anomaly_map(x, torch.from_numpy(brain).to(device))
    return scores.double().cpu().numpy()


def examine(
    batch: Batch,
    stores: Sequence[ScoreStore],
    levels: Sequence[int],
    names: dict[int, str],
    spacings: dict[int, tuple[float, float, float]],
    config: EvaluateConfig,
) -> Batch:
    """Hold the kept scores of a batch of subjects, at frozen thresholds, against the truth.

    Args:
        batch: `id` and `lesion`.
        stores: One a run.
        levels: Frozen threshold of each run.
        names: Subject of each row.
        spacings: Edge lengths of a voxel in mm along Z, Y and X, of each row.
        config: Slices and component filter.

    Returns:
        `id`, and `lesions` (B, runs, fields of `SubjectLesions`) float64.

    Raises:
        EvaluationError: Kept scores are not those that were counted.
    """
    found = [
        [
            astuple(
                compare_lesions(
                    _open(store.checked_levels(int(row), names[int(row)]), config.components)
                    >= level,
                    lesion[slices(config)].astype(bool),
                    spacings[int(row)],
                )
            )
            for store, level in zip(stores, levels, strict=True)
        ]
        for row, lesion in zip(batch["id"], batch["lesion"], strict=True)
    ]
    return {"id": batch["id"], "lesions": np.array(found, np.float64)}


def slices(config: EvaluateConfig) -> slice:
    """The axial slices that are evaluated."""
    return slice(*(config.fixed.slices or (None,)))


def _open(levels: NDArray[np.uint16], components: ComponentConfig) -> NDArray[np.uint16]:
    if components.max_size == 0:
        return levels
    return open_components(levels, components.max_size, components.connectivity)
