"""The evaluation job: score each subject once on Ray, then thresholds and metrics as lookups."""

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import ray
import torch

from uadray import cluster, files
from uadray.config import to_json
from uadray.detectors import Detector
from uadray.errors import ConfigError, EvaluationError
from uadray.evaluate.counts import CohortCounts, count_subject, split_parts
from uadray.evaluate.metrics import compute_metrics, dice_s
from uadray.evaluate.postprocess import (
    PostprocessConfig,
    dequantise,
    erode_brain,
    postprocess,
)
from uadray.evaluate.scores import ScoreStore
from uadray.evaluate.statistics import bootstrap
from uadray.evaluate.thresholds import fit_threshold
from uadray.store import CHUNK_VOLUMES, Cohort
from uadray.stream import READ_CPUS, volumes
from uadray.train.distributed import load_detector
from uadray.train.run import Run

ACTOR_CPUS = 0.75
"""Logical CPUs of a scoring actor; the rest of a CPU reads."""

NUM_CASES = 3
"""Test subjects shown in a report: lesions at the 90th, 50th and 10th percentile of volume."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """How scores are made and read (Bengs 2021, section 2.3)."""

    postprocess: PostprocessConfig = field(default_factory=PostprocessConfig)
    """What happens to the scores before they are kept."""
    threshold_rule: Literal[
        "bengs_bisection",
        "best_dice",
        "meissen_linear",
        "healthy_fpr_1",
        "healthy_fpr_5",
        "healthy_fpr_10",
        "percentile_98",
    ] = "bengs_bisection"
    """Fitted on the threshold part alone."""
    num_resamples: int = 1000
    """Resamples of subjects for the 95 % intervals."""
    batch_size: int = 4
    """Volumes scored at once by an actor."""
    gpus_per_actor: float = 0.0
    """GPUs of each scoring actor; 0 scores on CPUs."""

    def __post_init__(self) -> None:
        if self.num_resamples < 1 or self.batch_size < 1 or self.gpus_per_actor < 0:
            raise ConfigError(
                "evaluate: num_resamples and batch_size must be >= 1, gpus_per_actor >= 0"
            )


class Scorer:
    """An actor that scores batches of volumes with every run's detector."""

    def __init__(
        self,
        runs: Sequence[Run],
        stores: Sequence[ScoreStore],
        missing: Sequence[set[int]],
        names: dict[int, str],
        config: PostprocessConfig,
    ) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self._device.type == "cpu":
            torch.set_num_threads(1)
        detectors = [load_detector(run).to(self._device) for run in runs]
        self._work = list(zip(detectors, stores, missing, strict=True))
        self._names, self._config = names, config

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Score, post-process, count and keep; returns the seconds that each run took."""
        rows = batch["id"]
        brain, lesion = batch["brain"].astype(bool), batch["lesion"].astype(bool)
        images = torch.from_numpy(np.array(batch["image"], dtype=np.float32))
        eroded = [erode_brain(b, self._config.iterations(b.shape)) for b in brain]
        seconds = np.zeros((len(rows), len(self._work)))
        for number, (detector, store, missing) in enumerate(self._work):
            todo = [i for i, row in enumerate(rows) if int(row) in missing]
            if not todo:
                continue
            start = time.perf_counter()
            scores = score_volumes(detector, images[todo], brain[todo], self._device)
            for i, score in zip(todo, scores, strict=True):
                name = self._names[int(rows[i])]
                levels = postprocess(score, brain[i], store.score_range, self._config, subject=name)
                counts = count_subject(levels, brain[i], lesion[i], eroded[i], subject=name)
                store.write(int(rows[i]), levels, counts)
            seconds[todo, number] = (time.perf_counter() - start) / len(todo)
        return {"id": rows, "seconds": seconds}


def score_volumes(
    detector: Detector, images: torch.Tensor, brain: np.ndarray, device: torch.device
) -> np.ndarray:
    """Raw scores (B, Z, Y, X) float64 of volumes (B, Z, Y, X)."""
    with torch.inference_mode():
        x = images.float()[:, None].to(device)
        scores = detector.anomaly_map(x, torch.from_numpy(brain).to(device))
    return scores.double().cpu().numpy()


def evaluate(
    runs: Sequence[Run],
    cohort: Cohort,
    *,
    config: EvaluateConfig | None = None,
    report: Callable[[int], None] = lambda count: None,
) -> list[dict[str, Any]]:
    """Evaluate finished runs on a lesioned cohort, all in one pass over its volumes.

    Leaves `scores/`, `evaluation/<cohort>.json` and `evaluation/<cohort>-cases.npz` in each run
    folder. What is there already is not made again.

    Args:
        runs: Finished runs, fitted on volumes of the cohort's shape.
        cohort: Has lesions and the splits `threshold` and `test`.
        config: Post-processing, threshold rule, resamples.
        report: Called with the number of subjects that are newly scored by all runs.

    Returns:
        The content of `evaluation/<cohort>.json` of each run.

    Raises:
        EvaluationError: cohort and runs do not fit together, or scores are not finite.
    """
    config = config or EvaluateConfig()
    _check(runs, cohort)
    table = cohort.subjects
    names = dict(zip(table["row"].astype(int), table["id"], strict=True))
    stores, missing = [], []
    for run in runs:
        score_range = load_detector(run).score_range
        stores.append(ScoreStore.create(run, cohort, score_range, config.postprocess))
        missing.append(set(names) - stores[-1].done())
    seconds = _score(runs, stores, missing, names, cohort, config, report)
    records = []
    for run, store, spent in zip(runs, stores, seconds, strict=True):
        url = files.join(run.url, "evaluation", f"{cohort.name}.json")
        old = files.read_json(url) if files.exists(url) else None
        settings = to_json(config) | {"cohort": cohort.fingerprint}
        if old is None or old["settings"] != settings or spent is not None:
            spent = spent if spent is not None else (old or {}).get("seconds_per_volume")
            record = _measure(run, store, cohort, config) | {
                "settings": settings,
                "seconds_per_volume": spent,
            }
            _write_cases(run, store, cohort, int(record["threshold"]["level"]))
            files.write_json(url, record)
            old = record
        records.append(old)
    return records


def _check(runs: Sequence[Run], cohort: Cohort) -> None:
    if not cohort.has_lesion:
        raise EvaluationError(
            f"{cohort.url} has no lesion masks, so there is nothing to evaluate against: give a "
            "cohort prepared with lesions"
        )
    for run in runs:
        if run.summary is None:
            raise EvaluationError(f"{run.url} is not finished: run the same jobs/train.py again")
        if run.shape != cohort.shape:
            raise EvaluationError(
                f"{run.url} was fitted on volumes of {run.shape}, {cohort.url} holds "
                f"{cohort.shape}: prepare the cohort with the same --size"
            )


def _score(
    runs: Sequence[Run],
    stores: Sequence[ScoreStore],
    missing: Sequence[set[int]],
    names: dict[int, str],
    cohort: Cohort,
    config: EvaluateConfig,
    report: Callable[[int], None],
) -> list[float | None]:
    """Score what is missing; seconds a volume for each run, None where nothing was missing."""
    rows = np.array(sorted(set().union(*missing)), np.int64)
    report(len(names) - len(rows))
    if len(rows) == 0:
        return [None] * len(runs)
    cluster.connect()
    cpus = ray.cluster_resources().get("CPU", 1)
    blocks = len(np.unique(rows // CHUNK_VOLUMES))
    actors = min(blocks, max(1, int((cpus - READ_CPUS) // ACTOR_CPUS)))
    busy = [number for number, rows_left in enumerate(missing) if rows_left]
    dataset = volumes(cohort, rows, ("image", "brain", "lesion")).map_batches(
        Scorer,
        fn_constructor_args=(
            [runs[n] for n in busy],
            [stores[n] for n in busy],
            [missing[n] for n in busy],
            names,
            config.postprocess,
        ),
        batch_size=config.batch_size,
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=min(ACTOR_CPUS, cpus),
        num_gpus=config.gpus_per_actor,
    )
    spent: list[np.ndarray] = []
    with cluster.plain_errors():
        for batch in dataset.iter_batches(batch_size=None, batch_format="numpy"):
            spent.append(batch["seconds"])
            report(len(batch["id"]))
    total = np.concatenate(spent)
    seconds: list[float | None] = [None] * len(runs)
    for column, number in enumerate(busy):
        taken = total[:, column]
        seconds[number] = float(taken[taken > 0].mean())
    return seconds


def _parts(store: ScoreStore, cohort: Cohort) -> tuple[CohortCounts, list[str], list[str]]:
    table = cohort.subjects
    pairs = list(zip(table["row"].astype(int), table["id"], strict=True))
    counts = store.counts(pairs, cohort.name)
    ids = {
        split: table.loc[table["split"] == split, "id"].tolist() for split in ("threshold", "test")
    }
    return counts, ids["threshold"], ids["test"]


def _measure(run: Run, store: ScoreStore, cohort: Cohort, config: EvaluateConfig) -> dict[str, Any]:
    counts, threshold_ids, test_ids = _parts(store, cohort)
    threshold_part, test = split_parts(counts, threshold_ids, test_ids)
    # The threshold is fitted and fixed before the test part is looked at.
    threshold = fit_threshold(threshold_part, config.threshold_rule)
    metrics = compute_metrics(test, threshold)
    intervals = bootstrap(test, threshold, config.num_resamples)
    table = cohort.subjects.set_index("id")
    dice = dice_s(test, threshold.level)
    summary = run.summary or {}
    return {
        "cohort": {
            "name": cohort.name,
            "url": cohort.url,
            "fingerprint": cohort.fingerprint,
            "notes": sorted({_kind_of_note(n) for n in table["notes"] if n}),
        },
        "run_fingerprint": run.experiment.fingerprint,
        "postprocess": {
            "erosion_iterations": config.postprocess.iterations(cohort.shape),
            "median_size": config.postprocess.median_size,
        },
        "score_range": list(store.score_range),
        "threshold": {
            "level": int(threshold.level),
            "value": float(threshold.value),
            "rule": threshold.rule,
            "fitted_on": f"{threshold.fitted_on}: {len(threshold_ids)} subjects",
        },
        "metrics": metrics.to_dict(),
        "intervals": {name: [i.low, i.high] for name, i in intervals.items()},
        "num_resamples": config.num_resamples,
        "num_threshold": len(threshold_ids),
        "num_test": len(test_ids),
        "lesion_voxels": int(test.num_lesion.sum()),
        "lesion_voxels_eroded": int(test.num_lesion_eroded.sum()),
        "healthy_reconstruction": summary.get("validation/reconstruction"),
        "subjects": [
            {
                "id": subject,
                "dice": None if np.isnan(value) else float(value),
                "lesion_ml": float(table.loc[subject, "lesion_ml"]),
            }
            for subject, value in zip(test.subjects, dice, strict=True)
        ],
    }


def _kind_of_note(note: str) -> str:
    """A note without the name of the one subject that it is about."""
    return note.split(" from ")[0]


def _write_cases(run: Run, store: ScoreStore, cohort: Cohort, level: int) -> None:
    """Keep one axial slice of a few test subjects, the same for every run, for the report."""
    table = cohort.subjects
    test = table[table["split"] == "test"].sort_values(["lesion_ml", "id"]).reset_index(drop=True)
    places = sorted({round(q * (len(test) - 1)) for q in (0.9, 0.5, 0.1)}, reverse=True)
    detector = load_detector(run)
    cases: dict[str, list[Any]] = {}
    for place in places[:NUM_CASES]:
        row = int(test.loc[place, "row"])
        image = cohort.read("image", row, row + 1).astype(np.float32)
        brain, lesion = (cohort.read(n, row, row + 1)[0] for n in ("brain", "lesion"))
        z = int(lesion.sum((1, 2)).argmax())
        levels = store.levels(row)[z]
        case = {
            "ids": str(test.loc[place, "id"]),
            "slice": z,
            "input": image[0, z],
            "scores": dequantise(levels, store.score_range).astype(np.float32),
            "brain": brain[z],
            "lesion": lesion[z],
            "prediction": levels >= level,
        }
        if detector.has_reconstruction:
            with torch.inference_mode():
                output = detector.reconstruct(torch.from_numpy(image)[:, None])
            case["reconstruction"] = output[0, 0, z].numpy() * brain[z]
        for key, value in case.items():
            cases.setdefault(key, []).append(value)
    buffer = io.BytesIO()
    arrays: Any = {key: np.array(values) for key, values in cases.items()}
    np.savez_compressed(buffer, **arrays)
    url = files.join(run.url, "evaluation", f"{cohort.name}-cases.npz")
    files.write_bytes(url, buffer.getvalue())
