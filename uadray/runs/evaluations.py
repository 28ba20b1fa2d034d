"""What evaluations leave in a run folder, in `evaluation/`: records, and arrays beside them.

`<cohort>.json` is the record, written last; `<cohort>-cases.npz`, `-people.npz` and
`-slices.npz` are what pages and comparisons draw from. `<cohort>-threshold.json` lists the frozen
thresholds, see `uadray.runs.frozen_thresholds`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uadray import files, npz
from uadray.errors import CheckpointError, RunError
from uadray.metrics.inference import MIN_PEOPLE, Fits
from uadray.metrics.metric import Appearance
from uadray.metrics.slicewise import Slices
from uadray.runs.reading import need, place, read_object
from uadray.runs.state import checkpoint_weights

INTERVAL_METHOD = "people left out one by one"
"""How the intervals of a record were made. Those of earlier versions, percentiles of resampled
subjects, covered too little and are not shown."""

ARRAYS = ("cases", "people", "slices")
"""Kinds of what is kept beside the record."""

NEEDED = ("dice_d", "dice_s_mean", "dice_s_std", "auprc", "auroc", "upper_bound_dice")
"""What every evaluation holds; a value may be null where it is not defined."""

_UNREADABLE = (ValueError, TypeError, KeyError, OSError)
"""What reading a torn, foreign or forbidden file raises."""


@dataclass(frozen=True, kw_only=True)
class Cases:
    """Slices for the montage: K of (Y, X), posterior to anterior and left to right."""

    ids: tuple[str, ...]
    """Subject of each case."""
    slices: tuple[int, ...]
    """Axial index of each case: the slice with most lesion voxels."""
    input: NDArray[np.float32]
    """(K, Y, X), in [0, 1]."""
    reconstruction: NDArray[np.float32] | None
    """(K, Y, X), in [0, 1]; None where the method has none."""
    scores: NDArray[np.float32]
    """(K, Y, X), post-processed, in the method's own units."""
    brain: NDArray[np.bool_]
    """(K, Y, X)."""
    lesion: NDArray[np.bool_]
    """(K, Y, X), the truth."""
    prediction: NDArray[np.bool_]
    """(K, Y, X), scores at or above the threshold."""


@dataclass(frozen=True, kw_only=True)
class ByPerson:
    """Figures with everyone and without each person, by which two runs are compared."""

    scans: tuple[str, ...]
    """(N,) ids of the test subjects."""
    people: tuple[str, ...]
    """(N,) the person of each."""
    counts: NDArray[np.int64]
    """(3, P) true positives, false positives and lesion voxels of each person."""
    fits: Mapping[str, Fits]
    """By the metric's name, of one fit."""

    def pairs_with(self, other: "ByPerson") -> bool:
        """Whether both are of the same scans of the same people."""
        return (self.scans, self.people) == (other.scans, other.people)


@dataclass(frozen=True, kw_only=True)
class OutsideMetric:
    """A metric of another package, as an evaluation recorded it."""

    appearance: Appearance
    """Its name, and how tables show it."""
    package: str
    """Name and version, such as `uadray-example 0.1.0`; empty where it is of none."""
    remark: str
    """What was wrong with it; empty where nothing was."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One run on one lesioned cohort."""

    cohort: str
    """Name of the cohort."""
    cohort_fingerprint: str
    """Of the cohort's store; figures compare only where it is the same."""
    notes: tuple[str, ...]
    """What must be said beside every figure, such as `semi-synthetic`."""
    values: Mapping[str, Any]
    """The whole JSON file: see `metrics`, `intervals`, `threshold` and `subjects` in it."""
    cases: Cases | None
    """For the montage; None where none were kept."""
    by_person: ByPerson | None
    """For comparisons; None where an earlier version evaluated."""
    slices: Slices | None
    """Scores and labels of the axial slices; None where none were kept."""

    def showing(self, values: Mapping[str, Any]) -> "Evaluation":
        """The same with other `metrics` and `intervals`, such as those before a filter."""
        return replace(self, values={**self.values, **values})

    @property
    def num_people(self) -> int:
        """Test people; scans where an earlier version did not tell people apart."""
        return int(self.values.get("num_people") or len(self.values["subjects"]))

    @property
    def has_too_few_people(self) -> bool:
        """Whether no interval can be given."""
        return self.num_people < MIN_PEOPLE

    @property
    def controls(self) -> Mapping[str, Any] | None:
        """What was found in healthy controls; None where none were tested."""
        return self.values.get("controls") or None

    @cached_property
    def outside(self) -> dict[str, OutsideMetric]:
        """Metrics of other packages that were computed, by key."""
        return {
            key: OutsideMetric(
                appearance=Appearance(
                    key=key, **{name: kept[name] for name in _APPEARANCE if name in kept}
                ),
                package=" ".join((kept.get("package") or {}).values()),
                remark=str(kept.get("remark") or ""),
            )
            for key, kept in (self.values.get("outside_metrics") or {}).items()
        }

    def metric(self, name: str) -> float | None:
        """A metric, or None where it is not defined."""
        value = self.values["metrics"].get(name)
        return None if value is None else float(value)

    def interval(self, name: str) -> tuple[float, float] | None:
        """The 95 % interval of a metric over people, or None."""
        pair = self.values["intervals"].get(name)
        if self.has_too_few_people or self.values.get("interval_method") != INTERVAL_METHOD:
            return None
        if pair is None or None in pair:
            return None
        return float(pair[0]), float(pair[1])


def load_evaluation(run_url: str, cohort: str, settings: Mapping[str, Any]) -> Evaluation:
    """Read what an evaluation left.

    Args:
        run_url: The run folder.
        cohort: Name of the cohort.
        settings: `config.json` of the run.

    Raises:
        RunError: a file is absent, damaged, or of another fit than the run folder holds now.
    """
    url = place(run_url, cohort)
    values = read_object(url, "evaluate the run again") or {}
    needed = ("cohort", "metrics", "intervals", "threshold", "num_threshold", "num_test")
    need(values, (*needed, "subjects", "lesion_voxels", "lesion_voxels_eroded"), url)
    need(values["cohort"], ("name",), url, "cohort.")
    need(values["metrics"], NEEDED, url, "metrics.")
    need(values["threshold"], ("value", "rule", "fitted_on"), url, "threshold.")
    check_kinds({"subjects": isinstance(values["subjects"], list)}, url, "evaluate the run again")
    for index, subject in enumerate(values["subjects"]):
        need(subject, ("id", "dice", "lesion_ml"), url, f"subjects[{index}].")
    check_kinds(_evaluation_kinds(values), url, "evaluate the run again")
    fingerprint = settings["fingerprint"]
    if (recorded := values.get("run_fingerprint", fingerprint)) != fingerprint:
        raise RunError(
            f"{url}: belongs to experiment {recorded}, but the run's config.json says "
            f"{fingerprint}; evaluate this run again"
        )
    if "weights" in values and values["weights"] != _weights(settings, run_url):
        raise RunError(
            f"{url}: its figures are of other weights of this run, which was fitted on since then: "
            "evaluate this run again"
        )
    cases_url, people_url, slices_url = (place(run_url, cohort, kind) for kind in ARRAYS)
    return Evaluation(
        cohort=str(values["cohort"]["name"]),
        cohort_fingerprint=str(values["cohort"].get("fingerprint") or ""),
        notes=tuple(str(note) for note in values["cohort"].get("notes") or ()),
        values=values,
        cases=_load_cases(cases_url) if files.exists(cases_url) else None,
        by_person=_load_people(people_url, values) if files.exists(people_url) else None,
        slices=_load_slices(slices_url) if files.exists(slices_url) else None,
    )


def _weights(settings: Mapping[str, Any], url: str) -> str:
    """Digest of the weights that the run has now."""
    try:
        name = f"{settings['fingerprint']}-{settings['cohort']['fingerprint']}"
        return checkpoint_weights(url, name)
    except (KeyError, CheckpointError) as error:
        raise RunError(f"{url}: its checkpoint cannot be read ({error})") from None


def check_kinds(kinds: Mapping[str, bool], place: str, again: str) -> None:
    """Refuse a file in which a value is of another kind than those that pages are made of."""
    if wrong := ", ".join(name for name, right in kinds.items() if not right):
        raise RunError(f"{place} is damaged: {wrong} of another kind; {again}")


def is_number(value: object) -> bool:
    """Whether it is a figure, or none that is defined."""
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _is_interval(value: object) -> bool:
    pair = isinstance(value, list) and len(value) == 2 and all(map(is_number, value))
    return value is None or pair


_TEXT = ("id", "split", "subject", "threshold_rule", "threshold_fitted_on")
"""What is no number among the figures of a cohort or a subject."""


_APPEARANCE = {field.name: field.type for field in fields(Appearance) if field.name != "key"}


def _is_outside_metric(kept: object) -> bool:
    """Whether it names a metric of another package as `Evaluation.outside` reads it."""
    if not isinstance(kept, dict) or "head" not in kept:
        return False
    package = kept.get("package") or {}
    return (
        all(type(kept[name]) is kind for name, kind in _APPEARANCE.items() if name in kept)
        and isinstance(package, dict)
        and all(isinstance(text, str) for text in package.values())
    )


def _evaluation_kinds(values: Mapping[str, Any]) -> dict[str, bool]:
    cohort, intervals = values["cohort"], values["intervals"]
    kinds = {
        "cohort.notes": isinstance(cohort.get("notes"), (list, type(None))),
        "intervals": isinstance(intervals, dict),
        "threshold.value": is_number(values["threshold"]["value"]),
    }
    counts = ("num_threshold", "num_test", "lesion_voxels", "lesion_voxels_eroded")
    kinds |= {name: is_number(values[name]) for name in counts}
    figures = {f"metrics.{name}": value for name, value in values["metrics"].items()}
    for index, subject in enumerate(values["subjects"]):
        figures |= {f"subjects[{index}].{name}": value for name, value in subject.items()}
    kinds |= {k: is_number(v) for k, v in figures.items() if k.rsplit(".", 1)[1] not in _TEXT}
    outside = values.get("outside_metrics") or {}
    kinds["outside_metrics"] = isinstance(outside, dict) and all(
        map(_is_outside_metric, outside.values())
    )
    if kinds["intervals"]:
        kinds |= {f"intervals.{name}": _is_interval(pair) for name, pair in intervals.items()}
    return kinds


def pack_people(
    scans: Sequence[str], people: Sequence[str], counts: NDArray, fits: Mapping[str, Fits]
) -> bytes:
    """What intervals and comparisons are made from, as an npz file.

    Args:
        scans: (N,) ids of the test subjects.
        people: (N,) the person of each.
        counts: See `ByPerson`.
        fits: By the metric's name, of one fit each.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for name, one in fits.items():
        arrays[f"values/{name}"] = one.values[0]
        arrays[f"limits/{name}"] = np.array(one.limits)
        if one.refits is not None:
            arrays[f"refits/{name}"] = one.refits[0]
        if one.effective is not None:
            arrays[f"effective/{name}"] = np.array(one.effective)
    names = {"scans": np.array(scans, np.str_), "people": np.array(people, np.str_)}
    return npz.pack(**names, counts=counts, **arrays)


def pack_slices(slices: Slices) -> bytes:
    """Slices as an npz file; the inverse of `unpack_slices`."""
    return npz.pack(
        subjects=np.array(slices.subjects, np.str_),
        score=slices.score.astype(np.float32),
        lesion=slices.lesion,
        counted=slices.counted,
    )


def _load_slices(url: str) -> Slices:
    try:
        return unpack_slices(files.read_bytes(url))
    except _UNREADABLE as error:
        raise RunError(f"{url}: not a file of slices ({error}); evaluate again") from error


def _load_people(url: str, values: Mapping[str, Any]) -> ByPerson:
    try:
        kept = npz.unpack(files.read_bytes(url))
        people = tuple(str(person) for person in kept["people"])
        names = [name.partition("/")[2] for name in kept if name.startswith("values/")]
        refits = {name: kept.get(f"refits/{name}") for name in names}
        effective = {name: kept.get(f"effective/{name}") for name in names}
        by_person = ByPerson(
            scans=tuple(str(scan) for scan in kept["scans"]),
            people=people,
            counts=kept["counts"],
            fits={
                name: Fits(
                    values=kept[f"values/{name}"][None],
                    refits=None if (again := refits[name]) is None else again[None],
                    effective=None if (number := effective[name]) is None else float(number),
                    limits=(float(kept[f"limits/{name}"][0]), float(kept[f"limits/{name}"][1])),
                )
                for name in names
            },
        )
    except _UNREADABLE as error:
        raise RunError(f"{url}: not a file of figures by person ({error}); evaluate again") from (
            error
        )
    num = len(set(people))
    shapes = {one.values.shape for one in by_person.fits.values()} | {by_person.counts[:1, :].shape}
    expected = tuple(str(subject["id"]) for subject in values["subjects"])
    if (
        by_person.scans != expected
        or len(people) != len(expected)
        or shapes != {(1, 1 + num), (1, num)}
    ):
        raise RunError(
            f"{url}: expected figures without each of {num} people, over the {len(expected)} test "
            "subjects of the evaluation beside it; evaluate again"
        )
    return by_person


def _load_cases(url: str) -> Cases:
    try:
        held = npz.unpack(files.read_bytes(url))
        cases = Cases(
            ids=tuple(str(i) for i in held["ids"]),
            slices=tuple(int(i) for i in held["slice"]),
            reconstruction=held.get("reconstruction"),
            **{n: held[n] for n in ("input", "scores", "brain", "lesion", "prediction")},
        )
    except _UNREADABLE as error:
        raise RunError(f"{url}: not a file of montage cases ({error}); evaluate again") from error
    stacks = (cases.input, cases.scores, cases.brain, cases.lesion, cases.prediction)
    shapes = {s.shape for s in (*stacks, cases.reconstruction) if s is not None}
    if len(shapes) != 1 or cases.input.ndim != 3 or len(cases.ids) != len(cases.input):
        raise RunError(
            f"{url}: expected arrays of one shape (K, Y, X) for {len(cases.ids)} ids, "
            f"got {sorted(shapes)}; evaluate again"
        )
    return cases


def unpack_slices(content: bytes) -> Slices:
    """Read what `pack_slices` gave.

    Raises:
        ValueError: It is not such a file, or its arrays do not go together.
    """
    arrays = npz.unpack(content)
    missing = {"subjects", "score", "lesion", "counted"} - set(arrays)
    if missing:
        raise ValueError(f"{', '.join(sorted(missing))} missing")
    shapes = {arrays[name].shape for name in ("score", "lesion", "counted")}
    score, subjects = arrays["score"], arrays["subjects"]
    if len(shapes) != 1 or score.ndim != 2 or len(subjects) != len(score):
        raise ValueError(f"expected (N, Z) arrays for N subjects, got {sorted(shapes)}")
    return Slices(
        subjects=tuple(str(subject) for subject in subjects),
        score=score,
        lesion=arrays["lesion"],
        counted=arrays["counted"],
    )
