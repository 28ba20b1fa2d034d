"""Healthy people whom a scan's scores are compared with, and where it stands among them.

The reference comes from an evaluation with controls: people of whom nothing was learned. Without
one it is the validation part of the cohort that the model was fitted on, which chose the epoch of
the fit, so that its scores may be a little low. People have no names in it.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from uadray.config import from_json, to_json
from uadray.evaluation.controls import healthy_people
from uadray.evaluation.protocols import EvaluateConfig
from uadray.evaluation.scoring import Example, count_levels, count_volumes
from uadray.methods import Detector
from uadray.metrics.components import drop_components
from uadray.metrics.counts import CohortCounts, SubjectCounts
from uadray.metrics.inference import MIN_PEOPLE
from uadray.metrics.normative import SIMILAR_YEARS, Standing, among, at_age, is_similar
from uadray.metrics.patients import SCORES, in_units, scan_scores
from uadray.prediction.healthy import MAX_SCORED, thinned, volumes_of
from uadray.preparation.geometry import voxel_ml
from uadray.store import Cohort

MAIN = "top_mean"
"""The score that a terminal and a table name: it needs no threshold, and has few ties."""

Source = Literal["controls", "validation"]


@dataclass(frozen=True, kw_only=True)
class HealthyPerson:
    """One healthy person, without a name."""

    scores: dict[str, float]
    """By the names of `metrics.patients.SCORES`, in the method's units, the volume in mL."""
    age: float | None
    """In years; None where it is not known."""
    sex: str
    """`M`, `F`, or as the cohort's table says; empty where it is not known."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Healthy people as one evaluation scores them."""

    cohort: str
    """Name of the healthy cohort."""
    fingerprint: str
    """Of it."""
    source: Source
    """`controls` of whom nothing was learned, or the `validation` part of the fit's own cohort."""
    evaluation: str
    """Cohort with lesions whose evaluation gave settings and threshold; empty for the defaults."""
    scoring: str
    """Digest of what decides the scores of voxels, see `Way.scoring`."""
    threshold: str
    """Digest of what decides the volume besides, see `Way.threshold`; empty where there is none."""
    people: tuple[HealthyPerson, ...]
    """Of all who have a score."""

    @property
    def digest(self) -> str:
        """16 hexadecimal digits over all of it."""
        return _digest(to_json(self))

    @property
    def ages(self) -> NDArray[np.float64]:
        """(N,) NaN where not known."""
        return np.array([np.nan if one.age is None else one.age for one in self.people])

    def values(self, name: str) -> NDArray[np.float64]:
        """(N,) of one score; NaN where it is absent."""
        return np.array([one.scores.get(name, np.nan) for one in self.people], np.float64)

    def describe(self) -> str:
        """Who they are, in a few words: how many, of which sex and ages, from where."""
        sexes = Counter(one.sex for one in self.people)
        of_sex = ", ".join(
            f"{sexes[sex]} {word}" for sex, word in (("F", "women"), ("M", "men")) if sexes[sex]
        )
        known = self.ages[np.isfinite(self.ages)]
        parts = [of_sex] if of_sex else []
        if len(known):
            parts.append(f"{known.min():.3g} to {known.max():.3g} years")
        if 0 < len(known) < len(self.people):
            parts.append(f"ages of {len(known)} known")
        who = f"{len(self.people)} healthy people of cohort {self.cohort}"
        return f"{who} ({'; '.join(parts)})" if parts else who

    def caution(self) -> str:
        """What is to be said of where they are from; empty of controls."""
        if self.source == "controls":
            return ""
        return (
            f"the healthy people are of cohort {self.cohort} and were held back from the fit, "
            "which may have chosen its epoch by them: people of whom nothing was learned may "
            "score higher; "
            "jobs/evaluate.py --controls HEALTHY.zarr tests such"
        )


@dataclass(frozen=True, kw_only=True)
class Way:
    """How scores of people come about: the settings and the threshold of one evaluation."""

    config: EvaluateConfig
    """Its settings."""
    shape: tuple[int, int, int]
    """(Z, Y, X) of the model's volumes."""
    level: int | None
    """Of the threshold; None where there is none."""
    evaluation: str = ""
    """Cohort with lesions that it was on; empty for the defaults."""

    @property
    def scoring(self) -> str:
        """Digest of what decides the scores of voxels."""
        return _digest(self.config.scoring(self.shape))

    @property
    def threshold(self) -> str:
        """Digest of what decides the volume besides; empty where there is no threshold."""
        if self.level is None:
            return ""
        return _digest([self.level, to_json(self.config.components)])

    def gave(self, reference: Reference) -> bool:
        """Whether scores and volume of a reference came about in this way."""
        ours, theirs = ((one.scoring, one.threshold) for one in (self, reference))
        return ours == theirs


def _digest(value: Any) -> str:
    return sha256(json.dumps(value).encode()).hexdigest()[:16]


def reference_of_record(record: Mapping[str, Any], way: Way) -> Reference | None:
    """The controls of an evaluation; None where there are none, or an earlier version kept none.

    Args:
        record: Of the evaluation.
        way: How it makes scores.

    Raises:
        ConfigError: what it says of them is damaged.
    """
    controls = record.get("controls") or {}
    if not controls.get("people"):
        return None
    return Reference(
        cohort=str(controls["cohort"]["name"]),
        fingerprint=str(controls["cohort"]["fingerprint"]),
        source="controls",
        evaluation=way.evaluation,
        scoring=way.scoring,
        threshold=way.threshold,
        people=tuple(from_json(HealthyPerson, one) for one in controls["people"]),
    )


def validation_references(
    cohort: Cohort,
    held_back: Sequence[tuple[NDArray[np.int64], Detector]],
    ways: Sequence[Way],
    device: torch.device,
) -> list[Reference]:
    """Healthy people that were held back from a fit, as several evaluations score them.

    Args:
        cohort: That was fitted on.
        held_back: Rows, and the detector that has not learned from them, in evaluation mode on
            `device`: the validation part, or that of each fold and its member.
        ways: One of each evaluation.
        device: Where to score.
    """
    table, most = cohort.subjects, max(1, MAX_SCORED // len(held_back))
    place_of = {int(row): place for place, row in enumerate(table["row"])}
    found: list[list[dict[str, float]]] = [[] for _ in ways]
    places = []
    for rows, unseen in held_back:
        for row, image, brain in volumes_of(cohort, thinned(rows, most)):
            places.append(place_of[row])
            ml = voxel_ml(np.array(table["affine"].iloc[places[-1]]))
            nothing = np.zeros_like(brain)
            example = Example(id=str(row), image=image, brain=brain, lesion=nothing)
            for scores, way in zip(found, ways, strict=True):
                (counted,) = count_volumes(unseen, {0: example}, way.config, device)
                scores.append(_scores_of(counted.counts, unseen.score_range))
                if way.level is not None:
                    opened = drop_components(counted.levels, way.config.components)
                    scores[-1]["volume"] = ml * float((opened >= way.level).sum())
    people = table["subject"].iloc[places].astype(str).tolist()
    known = cohort.covariates.iloc[places]
    return [
        Reference(
            cohort=cohort.name,
            fingerprint=cohort.fingerprint,
            source="validation",
            evaluation=way.evaluation,
            scoring=way.scoring,
            threshold=way.threshold,
            people=tuple(
                from_json(HealthyPerson, one)
                for one in healthy_people(
                    {name: np.array([one[name] for one in each]) for name in each[0]}, people, known
                )
            ),
        )
        for way, each in zip(ways, found, strict=True)
    ]


def scores_of_scan(
    levels: NDArray[np.uint16],
    brain: NDArray[np.bool_],
    score_range: tuple[float, float],
    config: EvaluateConfig,
) -> dict[str, float]:
    """The scores of one scan but for the volume, as the evaluation has them of a person.

    Args:
        levels: (Z, Y, X) post-processed, with all components.
        brain: Its mask.
        score_range: Of the method.
        config: Says which slices count.
    """
    nothing = np.zeros(brain.shape, np.float32)
    example = Example(id="scan", image=nothing, brain=brain, lesion=np.zeros_like(brain))
    return _scores_of(count_levels(levels[config.cut], example, config), score_range)


def _scores_of(counts: SubjectCounts, score_range: tuple[float, float]) -> dict[str, float]:
    part = CohortCounts.from_subjects([("scan", counts)], name="scan", score_range=score_range)
    return {k: float(v[0]) for k, v in in_units(scan_scores(part), score_range).items()}


def choose(references: Iterable[Reference], way: Way) -> Reference | None:
    """The reference for scans that are scored in a way: at its threshold first, then the largest.

    Its volumes are at that threshold only where `way.gave` it.
    """
    alike = [one for one in references if one.scoring == way.scoring]
    return min(alike, key=lambda one: (not way.gave(one), -len(one.people)), default=None)


def place(
    scores: Mapping[str, float], age: float | None, reference: Reference | None, way: Way
) -> dict[str, Any]:
    """Where a person stands, as JSON values.

    Args:
        scores: Of the person, as `HealthyPerson.scores`.
        age: In years; None where it is not known.
        reference: Whom to compare with, from `choose`.
        way: How the person's scores came about.

    Returns:
        `age`; `reference`, who they are; `num_similar`, how many of them are of similar age;
        `scores`, by name with its `value`, where it stands among `all` and, where the age allows
        it, among those of `similar_age`; `remarks`, what limits them, in sentences.
    """
    standing: dict[str, Any] = {"age": age, "reference": None, "num_similar": 0}
    placed: dict[str, dict[str, Any]] = {
        name: {"value": scores[name]} for name in SCORES if name in scores
    }
    if reference is None:
        return standing | {"scores": placed, "remarks": [NO_REFERENCE]}
    ages, remarks = reference.ages, list[str]()
    for name, one in placed.items():
        if name == "volume" and not way.gave(reference):
            remarks.append("the volume is at another threshold than the healthy people's")
            continue
        value, values = scores[name], reference.values(name)
        one["all"] = _json(among(value, values))
        one["similar_age"] = None if age is None else _json(at_age(value, age, values, ages))
    num_similar = 0 if age is None else int(is_similar(age, ages).sum())
    known = ages[np.isfinite(ages)]
    return {
        "age": age,
        "reference": {
            "cohort": reference.cohort,
            "fingerprint": reference.fingerprint,
            "source": reference.source,
            "evaluated_on": reference.evaluation,
            "digest": reference.digest,
            "num_people": len(reference.people),
            "num_with_age": len(known),
            "ages": [float(known.min()), float(known.max())] if len(known) else None,
            "who": reference.describe(),
        },
        "num_similar": num_similar,
        "scores": placed,
        "remarks": [
            *_remarks(age, num_similar, known, len(reference.people)),
            *([caution] if (caution := reference.caution()) else []),
            *remarks,
        ],
    }


NO_REFERENCE = (
    "where this person stands among healthy people is not known: the model has no reference; "
    "jobs/evaluate.py RUN --cohort LESIONED.zarr --controls HEALTHY.zarr makes one, of a healthy "
    "cohort with a test part, and jobs/export.py again takes it into a model"
)
"""Remark where a model knows no healthy people."""


def _remarks(
    age: float | None, num_similar: int, known: NDArray[np.float64], num_people: int
) -> list[str]:
    if num_people < MIN_PEOPLE:
        return [f"{num_people} healthy people are too few for a percentile"]
    if not len(known):
        return ["the ages of the healthy people are not known: the comparison is with all of them"]
    if age is None:
        return [
            "the age is not known (--age, --covariates): the comparison is with people of all ages"
        ]
    if not known.min() <= age <= known.max():
        return [
            f"nobody among the healthy people is as {'old' if age > known.max() else 'young'} as "
            f"{age:g} years: they are {known.min():.3g} to {known.max():.3g}, and what is usual at "
            "these ages says nothing of another; the percentile is among all of them"
        ]
    if num_similar < MIN_PEOPLE:
        return [
            f"{num_similar or 'none'} of the healthy people are within {SIMILAR_YEARS:g} years of "
            f"{age:g}: too few for a percentile at that age; the percentile is among all of them"
        ]
    return []


def sentence(standing: Mapping[str, Any], name: str = MAIN) -> str:
    """Where a person stands by one score, in a line; empty where that is not known."""
    one = standing.get("scores", {}).get(name, {})
    if similar := one.get("similar_age"):
        whom = f"{similar['num_people']} healthy people within {SIMILAR_YEARS:g} years of age"
        return f"{SCORES[name]}: {_text(similar)} among {whom}"
    if every := one.get("all"):
        return f"{SCORES[name]}: {_text(every)} among all {every['num_people']} healthy people"
    return ""


def _text(one: Mapping[str, Any]) -> str:
    low, high = one["interval"]
    return f"percentile {one['percentile']:.0f} [{low:.0f}, {high:.0f}]"


def _json(one: Standing | None) -> dict[str, Any] | None:
    return None if one is None else {**asdict(one), "interval": list(one.interval)}
