"""One way from a volume to its counts, and what a worker does with a batch of volumes."""

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from uadray.device import compute_device, full_float32
from uadray.errors import EvaluationError
from uadray.evaluation.protocols import EvaluateConfig, Residual
from uadray.methods import Detector
from uadray.methods.base import Detection, ReconstructionDetector, check_detection
from uadray.methods.ensemble import Ensemble, combine_of, members_of
from uadray.methods.outside import OutsideMaps
from uadray.metrics.components import drop_components
from uadray.metrics.counts import SubjectCounts, count_subject
from uadray.metrics.members import combine_levels
from uadray.metrics.postprocess import (
    MAX_LEVEL,
    check_score_range,
    erode_brain,
    filter_levels,
    hide_dark,
    postprocess,
    quantise,
)

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

    members: tuple["ScoreStore", ...] = ()
    """Of an ensemble whose members are evaluated as well: their stores, which come first. What they
    keep is combined, and nothing is scored twice."""

    @property
    def num_maps(self) -> int:
        """Maps that are computed of each volume: one a member."""
        method = self.run.experiment.method
        return len(method.members) if isinstance(method, Ensemble.Settings) else 1

    def combined(self, levels: Sequence[NDArray[np.uint16]]) -> NDArray[np.uint16]:
        """The run's levels (Z, Y, X) of a volume from those of its members, or the only ones."""
        method = self.run.experiment.method
        return combine_levels(
            levels, method.combine if isinstance(method, Ensemble.Settings) else "mean"
        )


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
    each = member_levels(detector, examples, config, device, num_places)
    for example, levels in zip(examples.values(), each, strict=True):
        combined = combine_levels(levels, combine_of(detector))
        yield Counted(combined, count_levels(combined, example, config))


def member_levels(
    detector: Detector,
    examples: Mapping[int, Example],
    config: EvaluateConfig,
    device: torch.device,
    num_places: int = 1,
) -> Iterator[list[NDArray[np.uint16]]]:
    """The post-processed levels (Z, Y, X) of each member of an ensemble; of others the only ones.

    Args:
        detector: As for `count_volumes`, and so are the others.
        examples: See there.
        config: See there.
        device: See there.
        num_places: See there.

    Yields:
        For each volume those of all members, in their order.
    """
    spare = next(iter(examples.values()))
    batch = [examples.get(place, spare) for place in range(num_places)]
    members = members_of(detector)
    scores = [_raw_scores(one, batch, config, device) for one in members]
    for place, one in examples.items():
        yield [
            clean(raw[place], one.image, one.brain, member.score_range, config, one.id)
            for member, raw in zip(members, scores, strict=True)
        ]


def _raw_scores(
    detector: Detector, batch: Sequence[Example], config: EvaluateConfig, device: torch.device
) -> NDArray[np.float64]:
    """(B, Z, Y, X): computed, or looked up where other software has computed them."""
    if isinstance(detector, OutsideMaps):
        return detector.of([one.id for one in batch])
    images = torch.from_numpy(np.stack([one.image for one in batch]).astype(np.float32))
    brain = np.stack([one.brain for one in batch])
    return score_volumes(detector, images, brain, device, config.residual)


def level_volumes(
    detector: Detector, batch: Sequence[Example], config: EvaluateConfig, device: torch.device
) -> NDArray[np.uint16]:
    """Levels (B, Z, Y, X) of raw scores, as `quantise` gives them, computed where the scores are.

    Raises:
        EvaluationError: A score is not finite.
    """
    if isinstance(detector, OutsideMaps):
        raw = _raw_scores(detector, batch, config, device)
        pairs = zip(raw, batch, strict=True)
        return np.stack([quantise(s, detector.score_range, subject=one.id) for s, one in pairs])
    images = torch.from_numpy(np.stack([one.image for one in batch]).astype(np.float32))
    brain = np.stack([one.brain for one in batch])
    scores = detect(detector, images, brain, device, config.residual).scores
    low, high = check_score_range(detector.score_range)
    scaled = ((scores.double() - low) * (MAX_LEVEL / (high - low))).clamp(0, MAX_LEVEL).round()
    whole = scores.isfinite().flatten(1).all(1)
    # Asked for at once: a GPU is waited for.
    levels = scaled.nan_to_num().to(torch.uint16).cpu().numpy()
    for place in (~whole).nonzero()[:, 0].tolist():
        # It says what is wrong.
        quantise(scores[place].cpu().numpy(), detector.score_range, subject=batch[place].id)
    return levels


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
    # Levels have 16 bits, of which TensorFloat-32 would spoil some, and thresholds are frozen.
    with torch.inference_mode(), full_float32():
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


def clean_levels(
    levels: NDArray[np.uint16],
    image: NDArray[np.floating] | None,
    brain: NDArray[np.bool_],
    config: EvaluateConfig,
) -> NDArray[np.uint16]:
    """The same from levels (Z, Y, X) of the slices that are evaluated on.

    Args:
        levels: Of raw scores; overwritten.
        image: The whole volume; only needed where dark voxels are hidden.
        brain: Of the whole volume.
        config: Post-processing and slices.
    """
    if image is not None:
        prior = config.postprocess.prior_quantile
        whole = np.zeros(brain.shape, np.uint16)
        whole[config.cut] = levels
        levels = hide_dark(whole, image, prior, 0)[config.cut].copy()
    return filter_levels(levels, brain[config.cut], config.postprocess)


def count_levels(
    levels: NDArray[np.uint16], example: Example, config: EvaluateConfig
) -> SubjectCounts:
    """Count one volume's levels, those of the slices that are evaluated."""
    brain, lesion = example.brain[config.cut], example.lesion[config.cut]
    eroded = erode_brain(brain, config.postprocess.iterations(brain.shape))
    return count_subject(levels, brain, lesion, eroded, subject=example.id)


BATCH_SIZE = 4
"""Volumes that are scored at once on a CPU, unless the settings say otherwise."""

GPU_BATCH_SIZE = 32
"""Maximum number of volumes that are scored at once on a GPU, unless the settings say otherwise."""

GPU_VOXELS = GPU_BATCH_SIZE * 64**3
"""Maximum number of their voxels."""


def num_places(config: EvaluateConfig, shape: tuple[int, ...]) -> int:
    """Volumes that are scored at once.

    On CPUs whole groups of them make a chunk of a cohort; for GPUs groups are read as such.

    Args:
        config: Says whether GPUs score.
        shape: Of a volume.
    """
    from uadray.store import CHUNK_VOLUMES

    if not config.gpus:
        return math.gcd(config.batch_size or BATCH_SIZE, CHUNK_VOLUMES)
    fit = max(1, min(GPU_BATCH_SIZE, GPU_VOXELS // math.prod(shape)))
    # A power of two, so that no part of the hardware's tiles is left empty.
    return config.batch_size or 2 ** (fit.bit_length() - 1)


def batches_of(rows: NDArray[np.int64], names: Iterable[int], size: int) -> list[NDArray[np.int64]]:
    """Rows by the group that they are scored in: each place of it has the same row at any time.

    Args:
        rows: Ascending, those that are to be scored.
        names: All rows that are evaluated.
        size: Of a group.
    """
    groups = np.searchsorted(np.array(sorted(names)), rows) // size
    return np.split(rows, np.flatnonzero(np.diff(groups)) + 1) if len(rows) else []


class Scorer:
    """An actor that scores batches of volumes with every run's detector."""

    def __init__(self, work: Sequence[Work], names: dict[int, str], config: EvaluateConfig) -> None:
        from uadray.runs.detector import load_detector

        self._device = compute_device("cuda" if config.gpus else "cpu")
        if self._device.type == "cpu":
            torch.set_num_threads(1)
        self._work, self._names, self._config = work, names, config
        self._ranks = {row: rank for rank, row in enumerate(sorted(names))}
        self._detectors = [
            load_detector(one.run).to(self._device) if one.to_score and not one.members else None
            for one in work
        ]
        shape = work[0].run.shape if work else (1,)
        self._num_places = num_places(config, shape)

    def __call__(self, batch: Batch) -> Batch:
        """Score, post-process, count and keep; returns the seconds that each run took."""
        rows = [int(row) for row in batch["id"]]
        examples = _examples(batch, self._names)
        seconds = np.zeros((len(rows), len(self._work)))
        for number, (work, detector) in enumerate(zip(self._work, self._detectors, strict=True)):
            todo = [row for row in rows if row in work.to_score]
            if todo and work.members:
                _combine(work, todo, examples, self._config)
            elif todo and detector is not None:
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
                    _filter(work.store, row, examples[row], self._config)
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


class LevelScorer(Scorer):
    """The same on a GPU, which would wait for the rest: only raw scores, for `Finisher`."""

    def __call__(self, batch: Batch) -> Batch:
        """Adds `levels` (volumes, maps of all runs, Z, Y, X) to be scored, and `seconds`."""
        rows = [int(row) for row in batch["id"]]
        examples, cut = _examples(batch, self._names), self._config.cut
        shape = next(iter(examples.values())).brain[cut].shape
        places = _places_of_maps(self._work)
        levels = np.zeros((len(rows), places[-1].stop, *shape), np.uint16)
        seconds = np.zeros((len(rows), len(self._work)))
        for number, (work, detector) in enumerate(zip(self._work, self._detectors, strict=True)):
            todo = [row for row in rows if row in work.to_score]
            if not todo or detector is None:
                continue
            start = time.perf_counter()
            for group in self._groups(todo):
                spare = examples[next(iter(group.values()))]
                filled = [
                    examples[group[place]] if place in group else spare
                    for place in range(self._num_places)
                ]
                for slot, member in zip(places[number], members_of(detector), strict=True):
                    scored = level_volumes(member, filled, self._config, self._device)
                    for place, row in group.items():
                        levels[rows.index(row), slot] = scored[place][cut]
            here = [row in work.to_score for row in rows]
            seconds[here, number] = (time.perf_counter() - start) / len(todo)
        kept: Batch = {name: batch[name] for name in ("id", "brain", "lesion") if name in batch}
        if self._config.postprocess.prior_quantile:
            kept["image"] = batch["image"]
        return kept | {"levels": levels, "seconds": seconds}


@dataclass(frozen=True, kw_only=True)
class Finisher:
    """Post-processes, counts and keeps what a `LevelScorer` has scored, in tasks on CPUs."""

    work: Sequence[Work]
    names: dict[int, str]
    """Subject of each row that is evaluated."""
    config: EvaluateConfig

    def __call__(self, batch: Batch) -> Batch:
        """Returns what `Scorer` does."""
        rows = [int(row) for row in batch["id"]]
        examples, seconds = _examples(batch, self.names), np.array(batch["seconds"])
        places = _places_of_maps(self.work)
        for number, work in enumerate(self.work):
            if work.members:
                todo = [row for row in rows if row in work.to_score]
                _combine(work, todo, examples, self.config)
            for place, row in enumerate(rows):
                example = examples[row]
                if row in work.to_score and not work.members:
                    start = time.perf_counter()
                    image = batch["image"][place] if "image" in batch else None
                    raw = batch["levels"][place, places[number]]
                    levels = work.combined(
                        [clean_levels(np.array(r), image, example.brain, self.config) for r in raw]
                    )
                    work.store.write(row, levels, count_levels(levels, example, self.config))
                    seconds[place, number] += time.perf_counter() - start
                if row in work.to_filter:
                    _filter(work.store, row, example, self.config)
        return {"id": batch["id"], "seconds": seconds}


def _places_of_maps(work: Sequence[Work]) -> list[range]:
    """Where each run's maps stand among all that are computed of a volume."""
    ends = np.cumsum([one.num_maps for one in work]).tolist()
    return [range(end - one.num_maps, end) for end, one in zip(ends, work, strict=True)]


def _combine(
    work: Work, rows: Iterable[int], examples: Mapping[int, Example], config: EvaluateConfig
) -> None:
    """Keep and count an ensemble's scores of some rows, from those of its members."""
    for row in rows:
        example = examples[row]
        levels = work.combined([one.checked_levels(row, example.id) for one in work.members])
        work.store.write(row, levels, count_levels(levels, example, config))


def _examples(batch: Batch, names: Mapping[int, str]) -> dict[int, Example]:
    """By row; without their images where the batch has none."""
    brain = batch["brain"].astype(bool)
    lesion = batch["lesion"].astype(bool) if "lesion" in batch else np.zeros_like(brain)
    images = batch.get("image", brain)
    return {
        int(row): Example(id=names[int(row)], image=image, brain=inside, lesion=truth)
        for row, image, inside, truth in zip(batch["id"], images, brain, lesion, strict=True)
    }


def _filter(store: "ScoreStore", row: int, example: Example, config: EvaluateConfig) -> None:
    """Count one subject's kept scores after the component filter."""
    opened = drop_components(store.checked_levels(row, example.id), config.components)
    store.write_counts(row, count_levels(opened, example, config), config.components)
