"""What `evaluation/<cohort>.json` says of one run: every figure with its settings and its source.

From counts and examined lesions; no score is read again.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np

from uadray.config import to_json
from uadray.errors import EvaluationError
from uadray.evaluation.figures import Measured, defined, figures_of
from uadray.evaluation.finds import describe_finds
from uadray.evaluation.protocols import EvaluateConfig
from uadray.evaluation.strata import groups_of, stratify
from uadray.metrics.counts import TestPart
from uadray.metrics.inference import Fits, leaving_out
from uadray.metrics.lesionwise import (
    LesionTruth,
    component_sizes,
    lesion_statistics,
)
from uadray.metrics.measures import dice_s
from uadray.metrics.outside import describe, guarded, installed, remark
from uadray.metrics.postprocess import findable
from uadray.metrics.table import (
    OWN,
    Metric,
)
from uadray.metrics.thresholds import NONE
from uadray.preparation.geometry import voxel_ml
from uadray.runs.evaluations import INTERVAL_METHOD, pack_people
from uadray.runs.folder import Run
from uadray.runs.learned import Match, origin_of
from uadray.store import CHUNK_VOLUMES, Cohort

MAX_NOTES = 3
"""Notes of some scans that are listed one by one."""


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
        The figures as JSON values, and those without each person as `pack_people` leaves them.
    """
    match = match or Match()
    scores, threshold = measured.scores, measured.threshold
    final = measured.filtered or scores
    table = cohort.subjects.set_index("id")
    noted: dict[str, str] = {}
    outside = [guarded(one, partial(noted.setdefault, one.key)) for one in installed()]
    found = figures_of(measured, (*OWN, *outside))
    weights = leaving_out(measured.people)
    has_threshold = threshold.rule != NONE
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
        "metrics": found.metrics,
        "intervals": found.intervals,
        "unfiltered": None if found.filtered is None else found.plain,
        "filtered": found.filtered,
        "interval_method": INTERVAL_METHOD,
        "num_refits": len(measured.refits),
        "num_threshold": measured.num_threshold,
        "num_test": len(scores.subjects),
        "num_people": len(weights) - 1,
        "lesion_voxels": int(scores.num_lesion.sum()),
        "lesion_voxels_eroded": int(scores.num_lesion_eroded.sum()),
        "healthy_reconstruction": (run.summary or {}).get("validation/reconstruction"),
        "subjects": [
            {
                "id": subject,
                "lesion_ml": float(table.loc[subject, "lesion_ml"]),
                "lesion_voxels": int(num_lesion),
                "lesions": compared.num_lesions,
            }
            | {
                key: value if has_threshold else None
                for key, value in (
                    ("dice", defined(dice)),
                    ("dice_unfiltered", defined(dice_before)),
                    ("true_positives", compared.true_positives),
                    ("false_positives", compared.false_positives),
                    ("lesions_detected", compared.num_detected),
                    ("predicted_components", compared.num_predicted),
                    ("false_components", compared.num_false),
                    ("hd95_mm", defined(compared.hd95_mm)),
                    ("surface_distance_mm", defined(compared.surface_distance_mm)),
                )
            }
            for subject, dice, dice_before, num_lesion, compared in zip(
                scores.subjects,
                dice_s(final, threshold.level),
                dice_s(scores, threshold.level),
                scores.num_lesion,
                measured.lesions,
                strict=True,
            )
        ],
    }
    if has_threshold and len(measured.finds):
        sizes = table.loc[list(scores.subjects), "affine"]
        record["froc"] = describe_finds(
            measured.finds, [voxel_ml(np.array(affine)) for affine in sizes], weights
        )
    if assigned := groups_of(cohort, config.by):
        record["strata"] = stratify(measured, assigned, (*OWN, *outside))
    if outside:
        record["outside_metrics"] = {
            one.key: describe(one)
            | {"remark": _remark(one, found.metrics, found.by_person, noted, has_threshold)}
            for one in installed()
        }
    positives = np.stack([*final.positives(threshold.level), final.num_lesion.astype(np.float64)])
    packed = pack_people(
        scores.subjects,
        measured.people,
        counts=np.rint(positives @ (1 - weights[1:]).T).astype(np.int64),
        fits=found.by_person,
    )
    return record, packed


def _remark(
    metric: Metric,
    values: dict[str, float | None],
    by_person: dict[str, Fits],
    noted: dict[str, str],
    has_threshold: bool,
) -> str:
    """What is to be said of a metric of another package; its code may have noted something."""
    if metric.at_threshold and not has_threshold:
        return ""
    return remark(values[metric.key], by_person.get(metric.key), noted.get(metric.key, ""))


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
