"""One way from a volume to its counts, and what a worker does with a batch of volumes."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from uadray.errors import EvaluationError
from uadray.evaluation.protocols import EvaluateConfig, Residual
from uadray.methods import Detector
from uadray.methods.base import Detection, ReconstructionDetector, check_detection
from uadray.methods.outside import OutsideMaps
from uadray.metrics.components import drop_components
from uadray.metrics.counts import SubjectCounts, count_subject
from uadray.metrics.postprocess import erode_brain, hide_dark, postprocess

if TYPE_CHECKING:
    # Scoring volumes in memory needs neither a run folder nor a cohort.
    from uadray.runs.folder import Run
    from uadray.runs.scores import ScoreStore
    from uadray.store import Cohort

Batch = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one run still has to score on one cohort; pickles small."""

    run: "Run"
    """The run."""

    store: "ScoreStore"
    """Where its scores of the cohort are kept."""

    to_score: frozenset[int]
    """Rows without scores and counts."""

    to_filter: frozenset[int]
    """Rows without counts after the component filter; empty where there is none."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """One volume with its truth.

    Raises:
        EvaluationError: a lesion voxel lies outside the brain.
    """

    id: str
    """Unique in its part of a cohort."""

    image: NDArray[np.floating]
    """(Z, Y, X) in [0, 1]."""

    brain: NDArray[np.bool_]
    """(Z, Y, X)."""

    lesion: NDArray[np.bool_]
    """(Z, Y, X); nowhere in a healthy one."""

    def __post_init__(self) -> None:
        """Check the truth."""
        check_truth(self.brain, self.lesion, self.id)


def read_example(cohort: "Cohort", row: int, name: str) -> Example:
    """One volume of a cohort with lesions."""
    image, brain, lesion = (cohort.read(n, row, row + 1)[0] for n in ("image", "brain", "lesion"))
    return Example(id=name, image=image, brain=brain.astype(bool), lesion=lesion.astype(bool))


def check_truth(brain: np.ndarray, lesion: np.ndarray, subject: str) -> None:
    """Refuse a subject whose lesion leaves its brain mask.

    Scores exist inside the mask alone, so that such voxels could never be found; a cohort that
    `jobs/prepare.py` wrote has none.

    Args:
        brain: (Z, Y, X) mask.
        lesion: (Z, Y, X) truth.
        subject: Named in the message.

    Raises:
        EvaluationError: A lesion voxel lies outside the brain.
    """
    outside = int(np.count_nonzero(lesion & ~brain))
    if outside:
        raise EvaluationError(
            f"subject {subject!r}: {outside} of {int(np.count_nonzero(lesion))} lesion voxels lie "
            "outside the brain mask; check that both masks are of this scan, and prepare the "
            "cohort again"
        )


class Counted(NamedTuple):
    """One volume, scored."""

    levels: NDArray[np.uint16]
    """(Z, Y, X) post-processed scores of the slices that are evaluated."""

    counts: SubjectCounts
    """Of these."""


def count_volumes(
    detector: Detector,
    examples: Mapping[int, Example],
    config: EvaluateConfig,
    device: torch.device,
    num_places: int = 1,
) -> Iterator[Counted]:
    """Score some volumes at once, post-process and count each.

    All that is evaluated goes this way: in the job, in a calibration, in an objective.

    Args:
        detector: In evaluation mode, on `device`.
        examples: Volumes by their place in the batch. Free places are filled up with one of them,
            which no method minds.
        config: Residual, post-processing and slices.
        device: Where to score.
        num_places: Size of the batch.

    Yields:
        The scored volumes, in the order of `examples`.
    """
    spare = next(iter(examples.values()))
    batch = [examples.get(place, spare) for place in range(num_places)]
    scores = _raw_scores(detector, batch, config, device)
    for place, example in examples.items():
        levels = clean(
            scores[place], example.image, example.brain, detector.score_range, config, example.id
        )
        yield Counted(levels, count_levels(levels, example, config))


def _raw_scores(
    detector: Detector, batch: Sequence[Example], config: EvaluateConfig, device: torch.device
) -> NDArray[np.float64]:
    """(B, Z, Y, X): computed, or looked up where other software has computed them."""
    if isinstance(detector, OutsideMaps):
        return detector.of([one.id for one in batch])
    images = torch.from_numpy(np.stack([one.image for one in batch]).astype(np.float32))
    brain = np.stack([one.brain for one in batch])
    return score_volumes(detector, images, brain, device, config.residual)


def score_volumes(
    detector: Detector,
    images: torch.Tensor,
    brain: NDArray[np.bool_],
    device: torch.device,
    residual: Residual = "absolute",
) -> NDArray[np.float64]:
    """Raw scores (B, Z, Y, X) float64 of volumes (B, Z, Y, X); see `detect`."""
    return detect(detector, images, brain, device, residual).scores.double().cpu().numpy()


def detect(
    detector: Detector,
    images: torch.Tensor,
    brain: NDArray[np.bool_],
    device: torch.device,
    residual: Residual = "absolute",
) -> Detection:
    """Raw scores, and the reconstructions that they are made from.

    Args:
        detector: In evaluation mode, on `device`.
        images: Volumes (B, Z, Y, X) in [0, 1].
        brain: Their masks.
        device: Where to compute.
        residual: `positive` scores what is brighter than its reconstruction alone. Methods that
            do not score by a residual have no sign to go by, and keep their map.
    """
    with torch.inference_mode():
        x, inside = images.float()[:, None].to(device), torch.from_numpy(brain).to(device)
        if residual == "positive" and isinstance(detector, ReconstructionDetector):
            output = detector.reconstruct_within(x, inside)
            return Detection((x - output).clamp_min(0)[:, 0], output)
        found = detector.detect(x, inside)
        check_detection(detector, found, x, inside)
        return found


def clean(
    scores: NDArray[np.float64],
    image: NDArray[np.floating],
    brain: NDArray[np.bool_],
    score_range: tuple[float, float],
    config: EvaluateConfig,
    subject: str,
) -> NDArray[np.uint16]:
    """Post-process one volume's scores (Z, Y, X): levels of the slices that are evaluated."""
    cut = config.cut
    scores = hide_dark(scores, image, config.postprocess.prior_quantile, score_range[0])
    return postprocess(scores[cut], brain[cut], score_range, config.postprocess, subject=subject)


def count_levels(
    levels: NDArray[np.uint16], example: Example, config: EvaluateConfig
) -> SubjectCounts:
    """Count one volume's levels, those of the slices that are evaluated."""
    brain, lesion = example.brain[config.cut], example.lesion[config.cut]
    eroded = erode_brain(brain, config.postprocess.iterations(brain.shape))
    return count_subject(levels, brain, lesion, eroded, subject=example.id)


class Scorer:
    """An actor that scores batches of volumes with every run's detector."""

    def __init__(self, work: Sequence[Work], names: dict[int, str], config: EvaluateConfig) -> None:
        from uadray.runs.detector import load_detector
        from uadray.store import CHUNK_VOLUMES

        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self._device.type == "cpu":
            torch.set_num_threads(1)
        self._work, self._names, self._config = work, names, config
        self._ranks = {row: rank for rank, row in enumerate(sorted(names))}
        self._detectors = [
            load_detector(one.run).to(self._device) if one.to_score else None for one in work
        ]
        # Volumes that are scored at once; whole groups make a chunk of a cohort.
        self._num_places = math.gcd(config.batch_size, CHUNK_VOLUMES)

    def __call__(self, batch: Batch) -> Batch:
        """Score, post-process, count and keep; returns the seconds that each run took."""
        rows = [int(row) for row in batch["id"]]
        brain = batch["brain"].astype(bool)
        lesion = batch["lesion"].astype(bool) if "lesion" in batch else np.zeros_like(brain)
        examples = {
            row: Example(id=self._names[row], image=image, brain=inside, lesion=truth)
            for row, image, inside, truth in zip(rows, batch["image"], brain, lesion, strict=True)
        }
        seconds = np.zeros((len(rows), len(self._work)))
        for number, (work, detector) in enumerate(zip(self._work, self._detectors, strict=True)):
            todo = [row for row in rows if row in work.to_score]
            if todo and detector is not None:
                start = time.perf_counter()
                for group in self._groups(todo):
                    members = {place: examples[row] for place, row in group.items()}
                    counted = count_volumes(
                        detector, members, self._config, self._device, self._num_places
                    )
                    for row, one in zip(group.values(), counted, strict=True):
                        work.store.write(row, one.levels, one.counts)
                here = [row in work.to_score for row in rows]
                seconds[here, number] = (time.perf_counter() - start) / len(todo)
            for row in rows:
                if row in work.to_filter:
                    self._filter(work.store, row, examples[row])
        return {"id": batch["id"], "seconds": seconds}

    def _groups(self, todo: Sequence[int]) -> list[dict[int, int]]:
        """Which rows to score at once: for each group its members by their place.

        A product of matrices rounds otherwise with another number of rows. So that scores do not
        depend on what else was still to be scored, every volume has one place in one group, by its
        rank among all that are evaluated: such as lie scattered in a cohort fill their groups.
        """
        groups: dict[int, dict[int, int]] = {}
        for row in todo:
            group, place = divmod(self._ranks[row], self._num_places)
            groups.setdefault(group, {})[place] = row
        return list(groups.values())

    def _filter(self, store: "ScoreStore", row: int, example: Example) -> None:
        """Count one subject's kept scores after the component filter."""
        components = self._config.components
        opened = drop_components(store.checked_levels(row, example.id), components)
        store.write_counts(row, count_levels(opened, example, self._config), components)
