"""What `evaluation/<cohort>.json` says of one run: every figure with its settings and its source.

From counts and examined lesions; no score is read again.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uadray.config import to_json
from uadray.errors import EvaluationError
from uadray.evaluation.protocols import EvaluateConfig
from uadray.metrics.counts import TestPart, Threshold
from uadray.metrics.lesionwise import (
    LesionTruth,
    SubjectLesions,
    component_sizes,
    lesion_metrics,
    lesion_statistics,
)
from uadray.metrics.measures import dice_s
from uadray.metrics.postprocess import findable
from uadray.metrics.statistics import bootstrap, interval, resampling_weights
from uadray.metrics.table import METRICS, compute_metrics
from uadray.metrics.thresholds import NONE
from uadray.prepare.geometry import voxel_ml
from uadray.runs.evaluations import pack_resamples
from uadray.runs.folder import Run
from uadray.runs.learned import Match, origin_of
from uadray.store import CHUNK_VOLUMES, Cohort

_OF_A_PREDICTION = {metric.key for metric in METRICS if metric.of_a_prediction}
"""Metrics that a component filter is meant to change; the others are of the scores."""


_AT_THE_THRESHOLD = {"dice_d", "dice_s_mean", "dice_s_std"}
"""Metrics at the frozen threshold; the others search one, or are of all."""

MAX_NOTES = 3
"""Notes of some scans that are listed one by one."""

_OF_SURFACES = ("hd95_mm_mean", "surface_distance_mm_mean")
"""Metrics over the subjects alone that have both a lesion and a prediction."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the figures of one run on one cohort are computed from."""

    scores: TestPart
    """Counts of the test subjects, as scored."""

    filtered: TestPart | None
    """The same after the component filter; None where there is none."""

    threshold: Threshold
    """Frozen before the test part was opened."""

    fingerprint: str
    """Of the settings that it was frozen under."""

    num_threshold: int
    """Subjects that it was fitted on."""

    lesions: Sequence[SubjectLesions]
    """The final prediction against the truth, in the order of the test subjects."""


def check_classes(test: TestPart, url: str) -> None:
    """Refuse a test part that holds one class only.

    Raises:
        EvaluationError: It holds no lesion voxel, or nothing else.
    """
    num = len(test.subjects)
    if not test.num_lesion.any():
        raise EvaluationError(
            f"{url}: the {num} subjects of the test part hold no lesion voxel where they are "
            "evaluated, so that no metric is defined; check the lesion masks, and the slices of "
            "the protocol"
        )
    if test.merged("brain").num_healthy == 0:
        raise EvaluationError(
            f"{url}: every brain voxel of the {num} subjects of the test part is lesion, so that "
            "no metric is defined; check the lesion masks, which may be inverted"
        )


def make_record(
    run: Run,
    cohort: Cohort,
    config: EvaluateConfig,
    measured: Measured,
    match: Match | None = None,
) -> tuple[dict[str, Any], bytes]:
    """Gather what is reported of one run on one cohort.

    Args:
        run: The run.
        cohort: The cohort.
        config: How scores were made and read.
        measured: What the figures are computed from.
        match: How run and cohort go together.

    Returns:
        The figures as JSON values, and their resamples as `pack_resamples` leaves them.
    """
    match = match or Match()
    scores, threshold = measured.scores, measured.threshold
    final = measured.filtered or scores
    table = cohort.subjects.set_index("id")
    plain, resamples = _figures(scores, threshold, config.num_resamples)
    chosen, filtered = plain, None
    if measured.filtered is not None:
        filtered, filtered_resamples = _figures(
            measured.filtered, threshold, config.num_resamples, searched=scores
        )
        chosen = {k: _mixed(plain[k], filtered[k]) for k in plain}
        resamples = _mixed(resamples, filtered_resamples)
    lesions, lesion_resamples = _lesion_figures(measured.lesions, config.num_resamples)
    has_threshold = threshold.rule != NONE
    if not has_threshold:
        lesions, lesion_resamples = _undefined(lesions, lesion_resamples)
    record = {
        "cohort": {
            "name": cohort.name,
            "url": cohort.url,
            "fingerprint": cohort.fingerprint,
            "notes": [*match.marks, *notes_of(table["notes"])],
        },
        "compared": match.to_json(),
        "run_fingerprint": run.experiment.fingerprint,
        "protocol": {
            "name": config.protocol,
            "source": config.fixed.source,
            "metrics": list(config.fixed.metrics),
            "changes": config.changes(),
        },
        "residual": config.residual,
        "slices": to_json(config.fixed.slices),
        "slice_score": config.slice_score,
        "postprocess": {
            "erosion_iterations": config.postprocess.iterations(cohort.shape),
            "median_size": config.postprocess.median_size,
        }
        | ({"prior_quantile": prior} if (prior := config.postprocess.prior_quantile) else {}),
        "findable": findable(origin_of(cohort).voxel_mm[::-1], config.postprocess.median_size),
        "components": to_json(config.components),
        "score_range": list(scores.score_range),
        "threshold": {
            "level": int(threshold.level) if has_threshold else None,
            "value": float(threshold.value) if has_threshold else None,
            "rule": threshold.rule,
            "fitted_on": f"{threshold.fitted_on}: {measured.num_threshold} subjects"
            if has_threshold
            else threshold.fitted_on,
            "fingerprint": measured.fingerprint,
        },
        "metrics": chosen["metrics"] | lesions["metrics"],
        "intervals": chosen["intervals"] | lesions["intervals"],
        "unfiltered": None if filtered is None else plain,
        "filtered": filtered,
        "num_resamples": config.num_resamples,
        "num_threshold": measured.num_threshold,
        "num_test": len(scores.subjects),
        "lesion_voxels": int(scores.num_lesion.sum()),
        "lesion_voxels_eroded": int(scores.num_lesion_eroded.sum()),
        "healthy_reconstruction": (run.summary or {}).get("validation/reconstruction"),
        "subjects": [
            {
                "id": subject,
                "lesion_ml": float(table.loc[subject, "lesion_ml"]),
                "lesion_voxels": int(num_lesion),
                "lesions": found.num_lesions,
            }
            | {
                key: value if has_threshold else None
                for key, value in (
                    ("dice", _defined(dice)),
                    ("dice_unfiltered", _defined(dice_before)),
                    ("true_positives", found.true_positives),
                    ("false_positives", found.false_positives),
                    ("lesions_detected", found.num_detected),
                    ("predicted_components", found.num_predicted),
                    ("false_components", found.num_false),
                    ("hd95_mm", _defined(found.hd95_mm)),
                    ("surface_distance_mm", _defined(found.surface_distance_mm)),
                )
            }
            for subject, dice, dice_before, num_lesion, found in zip(
                scores.subjects,
                dice_s(final, threshold.level),
                dice_s(scores, threshold.level),
                scores.num_lesion,
                measured.lesions,
                strict=True,
            )
        ],
    }
    return record, pack_resamples(scores.subjects, resamples | lesion_resamples)


_Figures = tuple[dict[str, Any], dict[str, NDArray[np.float64]]]
"""Metrics and intervals by name, and the (R,) resamples behind the intervals."""


def _figures(
    test: TestPart, threshold: Threshold, num_resamples: int, searched: TestPart | None = None
) -> _Figures:
    intervals = bootstrap(test, threshold, num_resamples)
    figures = {
        "metrics": compute_metrics(test, threshold, searched),
        "intervals": {k: [_defined(i.low), _defined(i.high)] for k, i in intervals.items()},
    }
    resamples = {k: i.resamples for k, i in intervals.items()}
    if threshold.rule == NONE:
        return _undefined(figures, resamples, _AT_THE_THRESHOLD)
    return figures, resamples


def _undefined(
    figures: dict[str, Any], resamples: dict[str, NDArray[np.float64]], keys: Iterable[str] = ()
) -> _Figures:
    """The same without the values of some metrics, or of all: they need a threshold."""
    metrics, intervals = figures["metrics"], figures["intervals"]
    left_out = set(keys or metrics) - {"num_lesions"}
    return {
        "metrics": {k: None if k in left_out else v for k, v in metrics.items()},
        "intervals": {k: [None, None] if k in left_out else v for k, v in intervals.items()},
    }, {k: np.full_like(v, np.nan) if k in left_out else v for k, v in resamples.items()}


def _mixed(plain: dict[str, Any], filtered: dict[str, Any]) -> dict[str, Any]:
    """Dice after the filter, curves before it: what the protocols that filter report."""
    return {key: (filtered if key in _OF_A_PREDICTION else plain)[key] for key in plain}


def _lesion_figures(lesions: Sequence[SubjectLesions], num_resamples: int) -> _Figures:
    values = lesion_metrics(lesions)
    # The draws of `bootstrap`, so that all figures of one resample are of the same subjects.
    resampled = lesion_metrics(lesions, resampling_weights(len(lesions), num_resamples, seed=0))
    with_surface = sum(not math.isnan(s.hd95_mm) for s in lesions)
    bounds = {
        name: interval(
            float(values[name]),
            drawn,
            num_subjects=with_surface if name in _OF_SURFACES else len(lesions),
        )
        for name, drawn in resampled.items()
    }
    counts = {
        "num_lesions": sum(s.num_lesions for s in lesions),
        "num_lesions_detected": sum(s.num_detected for s in lesions),
        "num_with_surface": with_surface,
    }
    figures = {
        "metrics": {name: _defined(value) for name, value in values.items()} | counts,
        "intervals": {k: [_defined(i.low), _defined(i.high)] for k, i in bounds.items()},
    }
    return figures, resampled


def _defined(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)


def describe_lesions(cohort: Cohort) -> dict[str, object]:
    """The true lesions of a cohort, one chunk of volumes in memory at a time."""

    def read() -> Iterator[LesionTruth]:
        table = cohort.subjects
        for _, part in table.groupby(table["row"] // CHUNK_VOLUMES):
            first, last = int(part["row"].min()), int(part["row"].max())
            lesion = cohort.read("lesion", first, last + 1)
            for subject in part.itertuples():
                yield LesionTruth(
                    id=subject.id,
                    split=subject.split,
                    sizes=component_sizes(lesion[subject.row - first]),
                    voxel_ml=voxel_ml(np.array(subject.affine)),
                )

    return lesion_statistics(read())


def notes_of(notes: Iterable[str]) -> list[str]:
    """What the notes of a cohort's scans say of the cohort.

    A note of every scan is one of the cohort, without the name of the one subject that it is
    about; one of some scans says of how many.
    """
    each = [{note.split(" from ")[0] for note in str(one).split("; ") if note} for one in notes]
    counts = Counter(note for one in each for note in one)
    of_all = sorted(note for note, count in counts.items() if count == len(each))
    some = sorted((note, count) for note, count in counts.items() if count < len(each))
    if len(some) > MAX_NOTES:
        noted = sum(bool(one - set(of_all)) for one in each)
        return [*of_all, f"{noted} of {len(each)} scans have notes of their own"]
    return [*of_all, *(f"{note} ({count} of {len(each)} scans)" for note, count in some)]
