"""A fitted detector as `predict` needs it, from a run folder or from an exported model folder."""

import hashlib
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save

from uadray import files
from uadray.config import Experiment, from_json, to_json
from uadray.data.sampling import fit_rows, fold_rows
from uadray.errors import (
    CheckpointError,
    ConfigError,
    NoThresholdError,
    RunError,
    StoreError,
)
from uadray.evaluation.protocols import EvaluateConfig
from uadray.methods import Detector
from uadray.methods.ensemble import Ensemble, members_of
from uadray.metrics.postprocess import MAX_LEVEL
from uadray.metrics.thresholds import NONE
from uadray.prediction.healthy import Healthy, measure_healthy
from uadray.prediction.reference import (
    Reference,
    Way,
    reference_of_record,
    validation_references,
)
from uadray.preparation.settings import PrepareConfig
from uadray.preparation.steps import recorded_config
from uadray.runs.checkpoint import weights_digest
from uadray.runs.detector import load_detector
from uadray.runs.folder import Run
from uadray.runs.maps import has_maps
from uadray.runs.reading import evaluated_on, place
from uadray.store import Cohort, open_cohort

FORMAT = 1
"""Version of the files that hold a model."""

UNKNOWN_WEIGHTS = "evaluated before weights were recorded: evaluate again to be sure of them"
"""Note of a threshold whose evaluation does not say which weights it is of."""

KEPT = "predict.json"
"""In a run folder: what prediction needs of the cohort, so that the cohort may go."""


@dataclass(frozen=True, kw_only=True)
class FrozenThreshold:
    """A threshold that an evaluation froze, with the settings that its scores were made under."""

    name: str
    """Of the cohort that was evaluated."""
    value: float
    """In the method's units: what is at or above it is proposed."""
    level: int
    """The same as one of 65 536 levels, which decides."""
    rule: str
    """How it was fitted."""
    fitted_on: str
    """Cohort and part, with the number of subjects."""
    fingerprint: str
    """Of all that decided it; empty for one that the user gave."""
    notes: tuple[str, ...]
    """Of the cohort, such as `semi-synthetic lesion`."""
    config: EvaluateConfig
    """Residual, post-processing, component filter and slices."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not math.isfinite(self.value):
            raise ConfigError(f"value must be a finite score, was {self.value}")
        if not 1 <= self.level <= MAX_LEVEL + 1:
            raise ConfigError(f"level must be in [1, {MAX_LEVEL + 1}], was {self.level}")

    def check_range(self, score_range: tuple[float, float]) -> None:
        """Check that value and level are one threshold of a method with these scores.

        Raises:
            ConfigError: they are not.
        """
        low, high = score_range
        step = (high - low) / MAX_LEVEL
        if not low < self.value <= high + step:
            raise ConfigError(
                f"value must lie within the scores, {low:g} to {high:g}, was {self.value:g}"
            )
        if abs((self.value - low) / step - self.level) > 1:
            raise ConfigError(
                f"value {self.value:g} and level {self.level} must be the same threshold, but "
                f"that level is the score {low + self.level * step:g}"
            )

    def to_json(self) -> dict[str, Any]:
        """As a JSON value."""
        return {**vars(self), "notes": list(self.notes), "config": to_json(self.config)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "FrozenThreshold":
        """The inverse.

        Raises:
            ConfigError: a field is unknown, absent or of another kind.
        """
        threshold: FrozenThreshold = from_json(cls, value)
        return threshold


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a model was fitted on."""

    name: str
    """Of the cohort."""
    fingerprint: str
    """Of the cohort."""
    modality: str
    """Of its scans, such as T1w; several with commas between them."""
    splits: dict[str, int]
    """Scans in each part."""
    num_scanners: int
    """Scanners or sites, as far as the set names them; 0 where it does not."""
    notes: tuple[str, ...]
    """Of its subjects, without those of single ones."""
    image_digests: tuple[str, ...] = ()
    """Of its scans' voxels, by which one is known again; empty where they were not recorded."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A fitted detector with all that it takes to apply it to a scan in a file."""

    url: str
    """The run folder or the model folder."""
    experiment: Experiment
    """What was fitted."""
    shape: tuple[int, int, int]
    """(Z, Y, X) of the volumes that it takes."""
    detector: Detector
    """In evaluation mode, on the CPU."""
    prepare: PrepareConfig
    """How the cohort's scans were prepared."""
    origin: Origin
    """What it was fitted on."""
    healthy: Healthy
    """What healthy scans look like to it."""
    thresholds: tuple[FrozenThreshold, ...]
    """By the name of the cohort; empty where the run was never evaluated."""
    versions: dict[str, str]
    """Of the software that fitted it."""
    references: tuple[Reference, ...] = ()
    """Healthy people to compare a scan's scores with; empty in models of earlier versions."""
    notes: tuple[str, ...] = ()
    """What a user must know of how it was opened."""

    @cached_property
    def identity(self) -> str:
        """16 hexadecimal digits over experiment, cohort and weights: alike in run and export."""
        weights = hashlib.sha256(save_weights(self.detector)).hexdigest()
        text = f"{self.experiment.fingerprint}-{self.origin.fingerprint}-{weights}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def settings(self, name: str = "") -> EvaluateConfig:
        """How scores are made and read: as evaluated on a cohort, or by the defaults.

        Args:
            name: The cohort; may be empty where there is only one.
        """
        configs = {one.name: one.config for one in self.thresholds}
        if not name and len(set(map(str, configs.values()))) == 1:
            return self.thresholds[0].config
        return configs.get(name, EvaluateConfig())

    def choose_threshold(self, name: str = "", value: float | None = None) -> FrozenThreshold:
        """The threshold to propose with.

        Args:
            name: Cohort whose frozen threshold to take; may be empty where there is only one.
            value: In the method's units; takes the place of the frozen one, and the other settings
                stay those of the evaluation, or the defaults where there is none.

        Raises:
            NoThresholdError: there is none, or several and no name; it says what to do.
            ConfigError: the value is outside the method's range.
        """
        thresholds = {one.name: one for one in self.thresholds}
        if name and name not in thresholds:
            has = f"it has those of {', '.join(thresholds)}" if thresholds else "it has none"
            raise NoThresholdError(
                f"{self.url}: no threshold was frozen on a cohort named {name!r}; {has}"
            )
        if value is not None:
            low, high = self.detector.score_range
            if not low < value <= high:
                raise ConfigError(
                    f"the threshold {value:g} lies outside the scores of {self.experiment.name}, "
                    f"which run from {low:g} to {high:g}"
                )
            return given_threshold(value, (low, high), self.settings(name))
        if not thresholds:
            raise NoThresholdError(
                f"{self.url}: no threshold is frozen for it. Fit one on a cohort with lesions: "
                f"python jobs/evaluate.py {self.url} --cohort LESIONED.zarr (or on healthy volumes "
                "alone: with --threshold-rule healthy_fpr_5 --healthy HEALTHY.zarr); of an "
                "exported model evaluate the run that it came from, and export that again. Or "
                "give one with --threshold, or ask for maps alone with --map-only"
            )
        if not name and len(thresholds) > 1:
            raise NoThresholdError(
                f"{self.url}: thresholds are frozen on several cohorts, {', '.join(thresholds)}: "
                "choose one with --threshold-from"
            )
        return thresholds[name] if name else self.thresholds[0]


def given_threshold(
    value: float, score_range: tuple[float, float], config: EvaluateConfig
) -> FrozenThreshold:
    """A threshold that the user gave, as the next level at or above it."""
    low, high = score_range
    level = math.ceil((value - low) * MAX_LEVEL / (high - low) - 1e-6)
    return FrozenThreshold(
        name="",
        value=float(value),
        level=max(1, level),
        rule="given",
        fitted_on="nothing: it was given",
        fingerprint="",
        notes=(),
        config=config,
    )


def save_weights(detector: Detector) -> bytes:
    """All tensors of a detector as one safetensors file."""
    return save({k: t.detach().cpu().contiguous() for k, t in detector.state_dict().items()})


def model_of_run(run: Run, *, cohort: str = "") -> Model:
    """A finished run as a model.

    What it needs of the run's cohort (the preparation and the healthy ranges) is kept in the run
    folder the first time, so that the cohort is needed once only.

    Args:
        run: The run.
        cohort: Where its cohort lies, if not where it was fitted on.

    Raises:
        RunError: the run has not finished, its cohort is gone, or it holds maps from outside.
        CheckpointError: it is of folds that its cohort's covariates do not give any more.
    """
    if (run.summary or {}).get("status") not in ("finished", "stopped"):
        raise RunError(f"{run.url} is not finished: {run.how_to_resume}")
    if has_maps(run):
        raise RunError(
            f"{run.url} holds maps that other software made of one cohort's scans: it can be "
            "evaluated, but predicts nothing"
        )
    detector = load_detector(run)
    kept, notes = _kept(run, detector, cohort)
    thresholds, controls, others = _thresholds(run, detector.score_range)
    references = _references(run, detector, cohort, kept, thresholds, controls)
    return Model(
        url=run.url,
        experiment=run.experiment,
        shape=run.shape,
        detector=detector,
        prepare=kept.preprocessing,
        origin=kept.origin,
        healthy=kept.healthy,
        thresholds=tuple(thresholds),
        versions=dict(run.config.get("versions", {})),
        references=references,
        notes=(
            *notes,
            *(
                f"the threshold frozen on {name} is of other weights of this run: evaluate it again"
                for name in others
            ),
        ),
    )


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """What prediction needs of the cohort that a run was fitted on."""

    format: int
    identity: str
    preprocessing: PrepareConfig
    origin: Origin
    healthy: Healthy
    references: tuple[Reference, ...] = ()
    """Of the validation part, for evaluations without controls."""


def _kept(run: Run, detector: Detector, cohort: str) -> tuple[_Kept, tuple[str, ...]]:
    """What is known of the run's cohort: as kept, or taken from it and kept."""
    url = files.join(run.url, KEPT)
    old: _Kept | None = None
    # Absent, damaged or unreadable: made again.
    with suppress(OSError, ValueError):
        kept: _Kept = from_json(_Kept, files.read_json(url))
        if kept.format == FORMAT and kept.identity == _identity(run):
            return kept, ()
        if kept.format == FORMAT and kept.identity == _identity_by_epoch(run):
            old = kept
    try:
        opened = _cohort_of(run, cohort)
    except RunError:
        if old is None or cohort:
            raise
        return old, (
            f"{url} was written before weights were recorded, and the cohort cannot be opened: "
            "whether its healthy ranges are of these weights is not known",
        )
    if "validation" not in set(opened.subjects["split"]):
        raise RunError(
            f"{opened.url}: its scans are all for testing, but a model says how a scan compares "
            "with healthy ones: fit the method on a healthy cohort, which has a validation part"
        )
    kept = _Kept(
        format=FORMAT,
        identity=_identity(run),
        preprocessing=recorded_config(opened.attributes["plan"]),
        origin=origin_of(opened),
        healthy=measure_healthy(
            opened, detector, torch.device("cpu"), _held_back(run, opened, detector)
        ),
    )
    try:
        files.write_json(url, to_json(kept))
    except OSError as error:
        return kept, (f"{url} cannot be written ({error}): each call measures the cohort again",)
    return kept, ()


def _held_back(
    run: Run, cohort: Cohort, detector: Detector
) -> list[tuple[NDArray[np.int64], Detector]]:
    """Who was held back from which detector; of folds each member tells of its own fold alone.

    Raises:
        CheckpointError: the cohort's covariates have changed, so that its folds are others.
    """
    fit, method = run.experiment.fit, run.experiment.method
    members = method.members if isinstance(method, Ensemble.Settings) else ()
    folds = members[0].folds if members else fit.folds
    if folds:
        run.check_folds(cohort, folds)
    if not members:
        return [(fit_rows(cohort, fit).validation, detector)]
    if not folds:
        return [(cohort.rows("validation"), detector)]
    parts = fold_rows(cohort, folds)
    own = members_of(detector)
    return [(parts[m.fold - 1], one) for m, one in zip(members, own, strict=True)]


def _references(
    run: Run,
    detector: Detector,
    cohort: str,
    kept: _Kept,
    thresholds: Sequence[FrozenThreshold],
    controls: Sequence[Reference],
) -> tuple[Reference, ...]:
    """The controls of the evaluations; the validation part where none scored controls alike.

    The latter is kept in the run folder the first time. Without a cohort there is none.
    """
    ways = [way_of(one, run.shape) for one in thresholds]
    ways = ways or [Way(config=EvaluateConfig(), shape=run.shape, level=None)]
    with_controls = {one.scoring for one in controls}
    left = [way for way in ways if way.scoring not in with_controls]
    known = [one for one in kept.references if any(way.gave(one) for way in left)]
    left = [way for way in left if not any(map(way.gave, known))]
    if left:
        with suppress(RunError, StoreError, CheckpointError):
            opened = _cohort_of(run, cohort)
            held_back = _held_back(run, opened, detector)
            made = validation_references(opened, held_back, left, torch.device("cpu"))
            known += [one for one in made if one.people]
            with suppress(OSError):  # said where the rest is kept
                now = replace(kept, references=tuple(known))
                files.write_json(files.join(run.url, KEPT), to_json(now))
    return (*controls, *known)


def way_of(threshold: FrozenThreshold, shape: tuple[int, int, int]) -> Way:
    """How the evaluation that froze a threshold makes scores of people."""
    return Way(
        config=threshold.config, shape=shape, level=threshold.level, evaluation=threshold.name
    )


def _identity(run: Run) -> str:
    """Of the fit, so that a run that is fitted on for longer is measured again."""
    return f"{run.checkpoint_key}-{weights_digest(run)}"


def _identity_by_epoch(run: Run) -> str:
    """As it was recorded before weights had a digest."""
    return f"{run.checkpoint_key}-{(run.summary or {}).get('best_epoch')}"


def _cohort_of(run: Run, given: str) -> Cohort:
    url = given or run.cohort_url
    try:
        cohort = open_cohort(url)
    except StoreError as error:
        raise RunError(
            f"{run.url}: how its scans were prepared is recorded in its cohort, which cannot be "
            f"opened ({error}); say where it lies now with --cohort, or predict from a model that "
            "jobs/export.py made"
        ) from None
    if cohort.fingerprint != run.cohort_fingerprint:
        raise RunError(
            f"{cohort.url} is cohort {cohort.fingerprint}, but {run.url} was fitted on "
            f"{run.cohort_fingerprint}: give that one with --cohort"
        )
    if "config" not in cohort.attributes["plan"]:
        raise RunError(
            f"{cohort.url} does not record how its scans were prepared, so that no scan can be "
            "prepared alike: make the cohort with jobs/prepare.py"
        )
    return cohort


def origin_of(cohort: Cohort) -> Origin:
    """What is recorded of the cohort that a model was fitted on."""
    table = cohort.subjects
    learned = table[table["split"] != "test"]
    return Origin(
        name=cohort.name,
        fingerprint=cohort.fingerprint,
        modality=", ".join(sorted(table["modality"].unique())),
        splits={str(k): int(v) for k, v in table["split"].value_counts().items()},
        num_scanners=int(table.loc[table["scanner"] != "", "scanner"].nunique()),
        notes=tuple(sorted({note.split(" from ")[0] for note in table["notes"] if note})[:20]),
        image_digests=tuple(sorted({one for one in learned.get("image_digest", ()) if one})),
    )


def _thresholds(
    run: Run, score_range: tuple[float, float]
) -> tuple[list[FrozenThreshold], list[Reference], list[str]]:
    """The frozen thresholds that the run's evaluations report with, and their controls.

    Returns:
        Both, and the names of cohorts that the run was evaluated on with other weights: it was
        fitted on since then, so that their thresholds are of other scores.
    """
    weights, thresholds, others = weights_digest(run), list[FrozenThreshold](), list[str]()
    controls = list[Reference]()
    for cohort in evaluated_on(run.url):
        url = place(run.url, cohort)
        try:
            record = files.read_json(url)
            if record["run_fingerprint"] != run.experiment.fingerprint:
                continue
            if record.get("weights", weights) != weights:
                others.append(str(record["cohort"]["name"]))
                continue
            if record["threshold"]["rule"] == NONE:
                continue
            thresholds.append(_threshold(record))
            thresholds[-1].check_range(score_range)
            if tested := reference_of_record(record, way_of(thresholds[-1], run.shape)):
                controls.append(tested)
        except OSError as error:
            raise RunError(
                f"{url} cannot be read ({error.strerror or error}): see to its permissions"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            raise RunError(f"{url} is damaged ({what}): evaluate the run again") from None
    return thresholds, controls, others


def _threshold(record: dict[str, Any]) -> FrozenThreshold:
    threshold = record["threshold"]
    return FrozenThreshold(
        name=str(record["cohort"]["name"]),
        value=float(threshold["value"]),
        level=int(threshold["level"]),
        rule=str(threshold["rule"]),
        fitted_on=str(threshold["fitted_on"]),
        fingerprint=str(threshold["fingerprint"]),
        notes=(
            *(str(note) for note in record["cohort"].get("notes", ())),
            *(() if "weights" in record else (UNKNOWN_WEIGHTS,)),
        ),
        config=EvaluateConfig.from_record(record["settings"]),
    )


def described(model: Model) -> dict[str, Any]:
    """A model in the words of a summary."""
    return {
        "name": model.experiment.name,
        "fingerprint": model.experiment.fingerprint,
        "cohort": model.origin.fingerprint,
        "identity": model.identity,
        "url": model.url,
    }
