"""Healthy controls, of whom nothing was learned: false alarms, and patients against them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from uadray.evaluation.figures import Measured, defined
from uadray.evaluation.strata import compare_groups
from uadray.metrics.inference import Fits, interval, leaving_out
from uadray.metrics.lesionwise import SubjectLesions
from uadray.metrics.patients import SCORES, by_person, detection, in_units, roc, scan_scores
from uadray.metrics.thresholds import NONE

Values = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Tested:
    """Some test people of one run, and how large their voxels are."""

    measured: Measured
    """Their counts and predictions at the frozen threshold."""
    voxel_ml: Sequence[float]
    """Of each scan."""

    @property
    def level(self) -> int | None:
        """Of the threshold; None where there is none."""
        threshold = self.measured.threshold
        return None if threshold.rule == NONE else threshold.level


def controls_record(
    controls: Tested,
    patients: Tested,
    assigned: Mapping[str, pd.Categorical],
    known: pd.DataFrame,
) -> dict[str, Any]:
    """What the record of a run says of healthy controls, as JSON values.

    Args:
        controls: The test part of a healthy cohort.
        patients: The test people of the lesioned cohort.
        assigned: What controls are grouped by -> the group of each scan.
        known: What is known of the controls besides, a row a scan.

    Returns:
        `metrics` and `intervals` of false alarms, `subjects` one by one, `people` without their
        names (see `healthy_people`), `strata`, and `detection` by each score of a person.
    """
    measured = controls.measured
    false_ml = [one.false_positives * ml for one, ml in _pairs(controls)]
    components = [float(one.num_predicted) for one in measured.lesions]
    has_threshold = controls.level is not None
    fits = false_alarms(controls) if has_threshold else {}
    people_ml = by_person(np.array(false_ml), measured.people)
    metrics = {key: defined(one.values[0, 0]) for key, one in fits.items()}
    if has_threshold:
        metrics |= {
            "false_ml_median": float(np.median(people_ml)),
            "false_ml_highest": float(people_ml.max()),
            "clean_share": float((people_ml == 0).mean()),
        }
    bounds = {key: interval(one) for key, one in fits.items()}
    return {
        "num_people": len(people_ml),
        "num_scans": len(false_ml),
        "metrics": metrics,
        "intervals": {key: None if pair is None else list(pair) for key, pair in bounds.items()},
        "subjects": [
            {"id": name}
            | (
                {"false_ml": ml, "false_components": int(number)}
                if has_threshold
                else {"false_ml": None, "false_components": None}
            )
            for name, ml, number in zip(measured.scores.subjects, false_ml, components, strict=True)
        ],
        "people": healthy_people(
            in_units(scores_of(controls), measured.scores.score_range), measured.people, known
        ),
        "strata": strata_of_controls(controls, assigned) if has_threshold else {},
        "detection": _detection(controls, patients),
    }


def false_alarms(controls: Tested) -> dict[str, Fits]:
    """Means over people with everyone and without each: volume, components, specificity.

    `specificity` is the share of all brain voxels that are not predicted.
    """
    measured = controls.measured
    weights = leaving_out(measured.people)
    volumes = by_person(
        np.array([one.false_positives * ml for one, ml in _pairs(controls)]), measured.people
    )
    components = by_person(
        np.array([one.num_predicted for one in measured.lesions], np.float64), measured.people
    )
    # People weigh alike in the means, and by their voxels in the share.
    kept = np.concatenate([np.ones((1, len(volumes))), 1 - np.eye(len(volumes))])
    false = np.array([one.false_positives for one in measured.lesions], np.float64)
    brain = np.asarray(
        measured.scores.healthy.sum(axis=1) + measured.scores.lesion.sum(axis=1), np.float64
    ).ravel()
    with np.errstate(invalid="ignore", divide="ignore"):
        means = {
            "false_ml_mean": kept @ volumes / kept.sum(1),
            "false_components_mean": kept @ components / kept.sum(1),
        }
        specificity = 1 - (weights @ false) / (weights @ brain)
    ends = {"false_ml_mean": (0.0, np.inf), "false_components_mean": (0.0, np.inf)}
    return {key: Fits(values=one[None], limits=ends[key]) for key, one in means.items()} | {
        "specificity": Fits(values=specificity[None], limits=(0.0, 1.0))
    }


def strata_of_controls(
    controls: Tested, assigned: Mapping[str, pd.Categorical]
) -> dict[str, list[dict[str, Any]]]:
    """False alarms of groups of controls, see `compare_groups`."""

    def of(measured: Measured, here: NDArray[np.bool_]) -> tuple[dict[str, Any], dict[str, Fits]]:
        sizes = [ml for ml, kept in zip(controls.voxel_ml, here, strict=True) if kept]
        fits = false_alarms(Tested(measured=measured, voxel_ml=sizes))
        bounds = {key: interval(one) for key, one in fits.items()}
        return {
            "metrics": {key: defined(one.values[0, 0]) for key, one in fits.items()},
            "intervals": {k: None if pair is None else list(pair) for k, pair in bounds.items()},
        }, fits

    return compare_groups(controls.measured, assigned, of)


def scores_of(tested: Tested) -> dict[str, Values]:
    """One score a scan of each kind: (N,) levels, and mL of the volume where there is one."""
    values = scan_scores(tested.measured.scores)
    if tested.level is not None:
        values["volume"] = np.array(
            [(one.true_positives + one.false_positives) * ml for one, ml in _pairs(tested)]
        )
    return values


def healthy_people(
    scores: Mapping[str, Values], people: Sequence[str], known: pd.DataFrame
) -> list[dict[str, Any]]:
    """Healthy people without their names, as JSON values: what one person is compared with.

    Args:
        scores: (N,) of each scan by the names of `SCORES`, in the method's units.
        people: (N,) the person of each scan.
        known: What is known of them besides, a row a scan.

    Returns:
        For each person the mean of each score over the scans, the age (mean over the scans where
        it is known) and the sex; null and empty where they are not. Those without a score, whose
        brains have no voxel, are left out. Their order says nothing of who they are.
    """
    found = []
    for person in dict.fromkeys(people):
        here = np.array([one == person for one in people])
        means = {name: float(values[here].mean()) for name, values in scores.items()}
        if not np.isfinite(list(means.values())).all():
            continue
        ages, sexes = (known[key][here].dropna() if key in known else () for key in ("age", "sex"))
        numbers = [float(age) for age in ages if isinstance(age, float)]
        found.append(
            {
                "scores": {name: means[name] for name in SCORES if name in means},
                "age": float(np.mean(numbers)) if numbers else None,
                "sex": next(map(str, sexes), ""),
            }
        )
    return sorted(found, key=lambda one: one["scores"]["top_mean"])


def _detection(controls: Tested, patients: Tested) -> dict[str, Any]:
    scored = [scores_of(one) for one in (patients, controls)]
    found: dict[str, Any] = {}
    for name in (name for name in SCORES if name in scored[0]):
        sick, well = (
            by_person(values[name], one.measured.people)
            for values, one in zip(scored, (patients, controls), strict=True)
        )
        fits = detection(sick, well)
        bounds = {key: interval(one) for key, one in fits.items()}
        found[name] = {
            "metrics": {key: defined(one.values[0, 0]) for key, one in fits.items()},
            "intervals": {k: None if pair is None else list(pair) for k, pair in bounds.items()},
            "num_patients": len(sick),
            "num_healthy": len(well),
        }
        if np.isfinite([*sick, *well]).all():
            found[name]["roc"] = list(roc(sick, well))
    return found


def _pairs(tested: Tested) -> Iterator[tuple[SubjectLesions, float]]:
    return zip(tested.measured.lesions, tested.voxel_ml, strict=True)
