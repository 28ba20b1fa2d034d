"""Groups of people that an evaluation was not asked for, from what it has kept.

Counts of each person, the frozen threshold and the lesions of the record are all that figures of
groups need: nothing is scored again, and no image is read.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from uadray.errors import ConfigError, EvaluationError, RunError, StoreError
from uadray.evaluation.controls import Tested, strata_of_controls
from uadray.evaluation.figures import Measured
from uadray.evaluation.people import people_of, subjects_of, voxel_volumes
from uadray.evaluation.protocols import EvaluateConfig
from uadray.evaluation.strata import groups_of, groups_of_controls, stratify
from uadray.metrics.counts import TestPart, Threshold
from uadray.metrics.lesionwise import SubjectLesions
from uadray.metrics.outside import guarded, installed
from uadray.metrics.table import OWN
from uadray.metrics.thresholds import NONE, no_threshold
from uadray.runs.evaluations import Evaluation
from uadray.runs.frozen_thresholds import frozen
from uadray.runs.scores import ScoreStore
from uadray.store import Cohort, open_cohort


def regroup(run_url: str, evaluation: Evaluation, by: Sequence[str]) -> Evaluation:
    """An evaluation with other groups of its people, as if it had been asked for them.

    Args:
        run_url: The run folder.
        evaluation: As it was recorded.
        by: Such as `sex` or `age:40:60`.

    Raises:
        EvaluationError: a cohort knows nothing of it, or what is kept does not suffice; the message
            has the command that makes it.
    """
    values = evaluation.values
    try:
        return evaluation.showing(_regrouped(run_url, evaluation, by))
    except (EvaluationError, StoreError, RunError, ConfigError, KeyError, TypeError) as error:
        cohort, controls = values["cohort"], (values.get("controls") or {}).get("cohort") or {}
        command = ["python", "jobs/evaluate.py", run_url, "--cohort", str(cohort.get("url", ""))]
        command += ["--controls", str(controls["url"])] if controls.get("url") else []
        reason = f"its record lacks {error}" if isinstance(error, KeyError) else str(error)
        raise EvaluationError(
            f"{evaluation.cohort}: figures by {', '.join(by)} cannot be made from what is kept "
            f"({reason}); {shlex.join([*command, '--by', *by])} makes them, from kept scores where "
            "these are there"
        ) from None


def _regrouped(run_url: str, evaluation: Evaluation, by: Sequence[str]) -> dict[str, Any]:
    values = evaluation.values
    config = EvaluateConfig.from_record(values["settings"])
    cohort = _opened(values["cohort"])
    assigned = groups_of(cohort, by)
    threshold, refits = _threshold(run_url, evaluation, config)
    part = _part(run_url, cohort, values, config)
    if evaluation.slices is None:
        raise EvaluationError("the scores of its axial slices are gone")
    part = replace(part, slice_score=evaluation.slices.score)
    filtered = None
    if config.components.max_size:
        filtered = _part(run_url, cohort, values, config, filtered=True)
    measured = Measured(
        scores=part,
        filtered=filtered,
        people=people_of(cohort, "test"),
        threshold=threshold,
        refits=refits,
        fingerprint=str(values["threshold"]["fingerprint"]),
        num_threshold=int(values["num_threshold"]),
        lesions=[_lesions(one) for one in values["subjects"]],
    )
    noted: dict[str, str] = {}
    outside = [guarded(one, partial(noted.setdefault, one.key)) for one in installed()]
    found: dict[str, Any] = {"strata": stratify(measured, assigned, (*OWN, *outside))}
    if kept := values.get("controls"):
        healthy = _opened(kept["cohort"])
        sizes = voxel_volumes(healthy)
        tested = Tested(
            measured=Measured(
                scores=_part(run_url, healthy, values, config),
                filtered=None,
                people=people_of(healthy, "test"),
                threshold=threshold,
                refits=refits,
                fingerprint=measured.fingerprint,
                num_threshold=measured.num_threshold,
                lesions=[_alarms(*pair) for pair in zip(kept["subjects"], sizes, strict=True)],
            ),
            voxel_ml=sizes,
        )
        groups = groups_of_controls(healthy, by)
        strata = strata_of_controls(tested, groups) if tested.level is not None else {}
        found["controls"] = {**kept, "strata": strata}
    return found


def _opened(recorded: Mapping[str, Any]) -> Cohort:
    cohort = open_cohort(str(recorded["url"]))
    if cohort.fingerprint != recorded["fingerprint"]:
        raise EvaluationError(
            f"{cohort.url} is cohort {cohort.fingerprint} by now, not {recorded['fingerprint']}"
        )
    return cohort


def _threshold(
    run_url: str, evaluation: Evaluation, config: EvaluateConfig
) -> tuple[Threshold, Sequence[Threshold]]:
    low, high = evaluation.values["score_range"]
    recorded = evaluation.values["threshold"]
    if recorded["rule"] == NONE:
        return no_threshold((low, high)), ()
    return frozen(run_url, evaluation.cohort, recorded["fingerprint"])


def _part(
    run_url: str,
    cohort: Cohort,
    values: Mapping[str, Any],
    config: EvaluateConfig,
    *,
    filtered: bool = False,
) -> TestPart:
    low, high = values["score_range"]
    store = ScoreStore.kept(
        run_url,
        cohort,
        (float(low), float(high)),
        weights=values["weights"],
        scoring=config.scoring(cohort.shape),
    )
    components = config.components if filtered else None
    return store.counts(subjects_of(cohort, "test"), f"{cohort.name}/test", TestPart, components)


def _lesions(subject: Mapping[str, Any]) -> SubjectLesions:
    """What a record says of one scan's lesions; nothing was predicted without a threshold."""

    def number(key: str) -> int:
        return int(subject[key] or 0)

    def distance(key: str) -> float:
        return np.nan if subject[key] is None else float(subject[key])

    return SubjectLesions(
        num_lesions=number("lesions"),
        num_detected=number("lesions_detected"),
        num_predicted=number("predicted_components"),
        num_false=number("false_components"),
        true_positives=number("true_positives"),
        false_positives=number("false_positives"),
        hd95_mm=distance("hd95_mm"),
        surface_distance_mm=distance("surface_distance_mm"),
    )


def _alarms(subject: Mapping[str, Any], ml: float) -> SubjectLesions:
    """What a record says of one control."""
    false = round(float(subject["false_ml"] or 0) / ml)
    components = int(subject["false_components"] or 0)
    return SubjectLesions(
        num_lesions=0,
        num_detected=0,
        num_predicted=components,
        num_false=components,
        true_positives=0,
        false_positives=false,
        hd95_mm=np.nan,
        surface_distance_mm=np.nan,
    )
