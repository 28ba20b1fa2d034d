"""Run folders as records: read whole, checked, and refused with the file's name where damaged."""

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uadray import config, files, npz
from uadray.cli import INCOMPLETE, OK
from uadray.errors import CheckpointError, RunError
from uadray.evaluate.slicewise import Slices
from uadray.methods import NAMED
from uadray.report.settings import variants
from uadray.train.run import (
    CONFIG,
    EPOCHS,
    SUMMARY,
    Run,
    need,
    read_config,
    read_epochs,
    read_object,
    read_summary,
)
from uadray.train.state import checkpoint_weights

METRICS = ("dice_d", "dice_s_mean", "dice_s_std", "auprc", "auroc", "upper_bound_dice")
"""What every evaluation holds; a value may be null where it is not defined."""

_PLAIN = {NAMED[name].method.type_name() for name in config.BASELINES}
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
class Resamples:
    """Figures in each bootstrap resample of the test subjects, drawn alike for all runs."""

    subjects: tuple[str, ...]
    """Test subjects in the order that the draws refer to."""
    seed: int
    """Of the draws."""
    values: Mapping[str, NDArray[np.float64]]
    """(R,) by the metric's name; NaN where a resample does not define it."""

    def pairs_with(self, other: "Resamples") -> bool:
        """Whether each resample drew the same subjects in both."""
        return (self.subjects, self.seed) == (other.subjects, other.seed)


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
    resamples: Resamples | None
    """For paired comparisons; None where none were kept."""
    slices: Slices | None
    """Scores and labels of the axial slices; None where none were kept."""

    def showing(self, values: Mapping[str, Any]) -> "Evaluation":
        """The same with other `metrics` and `intervals`, such as those before a filter."""
        return replace(self, values={**self.values, **values})

    @property
    def has_one_subject(self) -> bool:
        """Whether there is one test subject alone, so that no interval can be given."""
        return len(self.values["subjects"]) == 1

    def metric(self, name: str) -> float | None:
        """A metric, or None where it is not defined."""
        value = self.values["metrics"].get(name)
        return None if value is None else float(value)

    def interval(self, name: str) -> tuple[float, float] | None:
        """The 95 % bootstrap interval of a metric over subjects, or None."""
        pair = self.values["intervals"].get(name)
        if pair is None or None in pair or self.has_one_subject:
            return None
        return float(pair[0]), float(pair[1])


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run folder."""

    url: str
    """Where it was read."""
    label: str
    """The experiment's name, lengthened where several runs share it."""
    config: Mapping[str, Any]
    """`config.json`."""
    summary: Mapping[str, Any]
    """`summary.json`; only `status` (`unfinished`) and `error` where there is none."""
    epochs: tuple[Mapping[str, Any], ...]
    """Lines of `metrics.jsonl`, one an epoch; empty for methods that have none."""
    evaluations: tuple[Evaluation, ...]
    """One a cohort, sorted by its name; empty for a run that was not evaluated."""
    variant: str = ""
    """Settings that part it from runs of its name, the seed apart, such as `latent size 32`."""

    @property
    def is_plain(self) -> bool:
        """Whether the method is one of the plain baselines that stand beside every other."""
        return self.config["experiment"].get("method", {}).get("type") in _PLAIN

    @property
    def seed(self) -> int | None:
        """Of the fit."""
        return self.config["experiment"].get("fit", {}).get("seed")


@dataclass(frozen=True, kw_only=True)
class Broken:
    """A run, or an evaluation of it, that cannot be read."""

    url: str
    """The run folder, or what was named as one."""
    error: str
    """Which file it is, what is wrong with it, and what to do."""

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.url.rstrip("/").rsplit("/", 1)[-1]


def load_runs(urls: Iterable[str], broken: list[Broken] | None = None) -> list[RunRecord]:
    """Read run folders.

    Args:
        urls: Local paths or fsspec URLs of run folders, of folders whose folders are runs, or of
            sweeps. One named twice is read once.
        broken: Takes what cannot be read, run by run or evaluation by evaluation, so that the
            others are; where it is None, the first such error is raised.

    Returns:
        The runs in the order given, with labels that tell them apart. Runs that failed, did not
        finish or were not evaluated are among them.

    Raises:
        RunError: a folder holds no run, or a file in it is absent or damaged, and `broken` is None
            or nothing is left.
    """
    folders: dict[str, None] = {}
    runs, noted = [], list[Broken]() if broken is None else broken
    for url in urls:
        try:
            folders.update(dict.fromkeys(_run_folders(files.normalise(url), broken)))
        except RunError as error:
            _note(broken, url, error)
    for url in folders:
        try:
            runs.append(_load_run(url, broken))
        except RunError as error:
            _note(broken, url, error)
    if not runs:
        first = noted[0].error if noted else "name at least one run folder, or a folder of runs"
        raise RunError(first if noted else f"no run to report: {first}")
    return _label(runs)


def _run_folders(url: str, broken: list[Broken] | None) -> list[str]:
    names = _names(url)
    if CONFIG in names:
        return [url]
    if not names:
        raise RunError(f"{url}: no such folder, or an empty one; pass a run or a folder of runs")
    if {"sweep.json", "runs"} <= set(names):
        return _run_folders(files.join(url, "runs"), broken)
    if {SUMMARY, EPOCHS, "evaluation"} & set(names):
        raise RunError(f"{url}: config.json is missing from this run; {_AGAIN}")
    found = []
    for name in names:
        if name[0] == ".":
            continue
        folder = files.join(url, name)
        try:
            inside = _names(folder)
            if _is_headless(inside):
                raise RunError(f"{folder}: config.json is missing from this run; {_AGAIN}")
        except RunError as error:
            _note(broken, folder, error)
            continue
        if CONFIG in inside:
            found.append(folder)
    if not found and not broken:
        raise RunError(
            f"{url}: config.json is missing here and in every folder of it, so this is neither a "
            "run nor a folder of runs; pass the folder that the fit wrote"
        )
    return found


_AGAIN = "restore it from a copy, or fit again into another folder"
"""What helps where a run has lost its settings."""


def _is_headless(names: list[str]) -> bool:
    return SUMMARY in names and CONFIG not in names


def find_runs(urls: Iterable[str]) -> tuple[list[Run], list[Broken]]:
    """Open run folders, or folders of runs.

    Returns:
        The runs, and what cannot be read.

    Raises:
        RunError: nothing is left.
    """
    broken: list[Broken] = []
    runs = []
    for record in load_runs(urls, broken):
        try:
            runs.append(Run.open(record.url))
        except RunError as error:
            broken.append(Broken(url=record.url, error=str(error)))
    if not runs:
        raise RunError(broken[0].error)
    # Figures that cannot be read, or are of other weights, are about to be made again.
    opened = {run.url for run in runs}
    return runs, [one for one in broken if one.url not in opened]


def say_left_out(left_out: Iterable[Broken]) -> int:
    """Print what was left out and why; returns a job's exit code."""
    lines = dict.fromkeys(f"left out: {one.name}: {one.error}" for one in left_out)
    for line in lines:
        print(files.without_secrets(line), file=sys.stderr)
    return INCOMPLETE if lines else OK


def _load_run(url: str, broken: list[Broken] | None) -> RunRecord:
    settings = read_config(url)
    summary = read_summary(url)
    if summary is None:
        error = "summary.json is missing: the fit did not finish; run it again to resume it"
        summary = {"status": "unfinished", "error": error}
    epochs = read_epochs(url)
    _check_kinds(_setting_kinds(settings), files.join(url, CONFIG), _AGAIN)
    _check_kinds(_summary_kinds(summary), files.join(url, SUMMARY), _AGAIN)
    _check_kinds(_epoch_kinds(epochs), files.join(url, EPOCHS), _AGAIN)
    evaluations, folder = [], files.join(url, "evaluation")
    for name in _names(folder):
        if not name.endswith(".json") or name.endswith("-threshold.json") or files.is_draft(name):
            continue
        try:
            evaluations.append(_load_evaluation(files.join(folder, name), settings, url))
        except RunError as error:
            _note(broken, url, error)
    return RunRecord(
        url=url,
        label=str(settings["name"]),
        config=settings,
        summary=summary,
        epochs=tuple(epochs),
        evaluations=tuple(evaluations),
    )


def _note(broken: list[Broken] | None, url: str, error: RunError) -> None:
    """Note what cannot be read, or raise it where nobody takes notes."""
    if broken is None:
        raise error
    broken.append(Broken(url=url, error=str(error)))


def _names(url: str) -> list[str]:
    try:
        return files.list_names(url)
    except OSError as error:
        raise RunError(f"{url} cannot be listed ({error.strerror or error})") from None


def _load_evaluation(url: str, settings: Mapping[str, Any], run: str) -> Evaluation:
    values = read_object(url, "evaluate the run again") or {}
    needed = ("cohort", "metrics", "intervals", "threshold", "num_threshold", "num_test")
    need(values, (*needed, "subjects", "lesion_voxels", "lesion_voxels_eroded"), url)
    need(values["cohort"], ("name",), url, "cohort.")
    need(values["metrics"], METRICS, url, "metrics.")
    need(values["threshold"], ("value", "rule", "fitted_on"), url, "threshold.")
    _check_kinds({"subjects": isinstance(values["subjects"], list)}, url, "evaluate the run again")
    for index, subject in enumerate(values["subjects"]):
        need(subject, ("id", "dice", "lesion_ml"), url, f"subjects[{index}].")
    _check_kinds(_evaluation_kinds(values), url, "evaluate the run again")
    fingerprint = settings["fingerprint"]
    if (found := values.get("run_fingerprint", fingerprint)) != fingerprint:
        raise RunError(
            f"{url}: belongs to experiment {found}, but the run's config.json says {fingerprint}; "
            "evaluate this run again"
        )
    if "weights" in values and values["weights"] != _weights(settings, run):
        raise RunError(
            f"{url}: its figures are of other weights of this run, which was fitted on since then: "
            "evaluate this run again"
        )
    stem = url.removesuffix(".json")
    cases_url, resamples_url = f"{stem}-cases.npz", f"{stem}-resamples.npz"
    slices_url = f"{stem}-slices.npz"
    return Evaluation(
        cohort=str(values["cohort"]["name"]),
        cohort_fingerprint=str(values["cohort"].get("fingerprint") or ""),
        notes=tuple(str(note) for note in values["cohort"].get("notes") or ()),
        values=values,
        cases=_load_cases(cases_url) if files.exists(cases_url) else None,
        resamples=_load_resamples(resamples_url, values) if files.exists(resamples_url) else None,
        slices=_load_slices(slices_url) if files.exists(slices_url) else None,
    )


def _check_kinds(kinds: Mapping[str, bool], place: str, again: str) -> None:
    """Refuse a file in which a value is of another kind than those that pages are made of."""
    if wrong := ", ".join(name for name, right in kinds.items() if not right):
        raise RunError(f"{place} is damaged: {wrong} of another kind; {again}")


def _is_number(value: object) -> bool:
    """Whether it is a figure, or none that is defined."""
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _is_interval(value: object) -> bool:
    pair = isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))
    return value is None or pair


_TEXT = ("id", "split", "subject", "threshold_rule", "threshold_fitted_on")
"""What is no number among the figures of a cohort or a subject."""


def _evaluation_kinds(values: Mapping[str, Any]) -> dict[str, bool]:
    cohort, intervals = values["cohort"], values["intervals"]
    kinds = {
        "cohort.notes": isinstance(cohort.get("notes"), (list, type(None))),
        "intervals": isinstance(intervals, dict),
        "threshold.value": _is_number(values["threshold"]["value"]),
    }
    counts = ("num_threshold", "num_test", "lesion_voxels", "lesion_voxels_eroded")
    kinds |= {name: _is_number(values[name]) for name in counts}
    figures = {f"metrics.{name}": value for name, value in values["metrics"].items()}
    for index, subject in enumerate(values["subjects"]):
        figures |= {f"subjects[{index}].{name}": value for name, value in subject.items()}
    kinds |= {k: _is_number(v) for k, v in figures.items() if k.rsplit(".", 1)[1] not in _TEXT}
    if kinds["intervals"]:
        kinds |= {f"intervals.{name}": _is_interval(pair) for name, pair in intervals.items()}
    return kinds


def _setting_kinds(settings: Mapping[str, Any]) -> dict[str, bool]:
    parts = {name: settings["experiment"].get(name) for name in ("fit", "method", "erasing")}
    return {f"experiment.{k}": isinstance(v, (dict, type(None))) for k, v in parts.items()}


def _summary_kinds(summary: Mapping[str, Any]) -> dict[str, bool]:
    figures = ("fit_seconds", "epochs", "best_epoch", "num_parameters", "num_workers")
    kinds = {name: _is_number(summary.get(name)) for name in figures}
    kinds["warnings"] = isinstance(summary.get("warnings"), (list, type(None)))
    kinds["objective"] = isinstance(summary.get("objective"), (dict, type(None)))
    return kinds


def _epoch_kinds(epochs: Iterable[Mapping[str, Any]]) -> dict[str, bool]:
    measured = ("train/", "validation/", "seconds", "samples_per_second")
    return {
        f"{name} of epoch {epoch['epoch']}": _is_number(value)
        for epoch in epochs
        for name, value in epoch.items()
        if name.startswith(measured)
    }


def _weights(settings: Mapping[str, Any], url: str) -> str:
    """Digest of the weights that the run has now."""
    try:
        name = f"{settings['fingerprint']}-{settings['cohort']['fingerprint']}"
        return checkpoint_weights(url, name)
    except (KeyError, CheckpointError) as error:
        raise RunError(f"{url}: its checkpoint cannot be read ({error})") from None


def _load_slices(url: str) -> Slices:
    try:
        return Slices.unpack(files.read_bytes(url))
    except _UNREADABLE as error:
        raise RunError(f"{url}: not a file of slices ({error}); evaluate again") from error


def _load_resamples(url: str, values: Mapping[str, Any]) -> Resamples:
    try:
        held = npz.unpack(files.read_bytes(url))
        subjects = tuple(str(subject) for subject in held.pop("subjects"))
        seed = int(held.pop("seed"))
    except _UNREADABLE as error:
        raise RunError(f"{url}: not a file of resamples ({error}); evaluate again") from error
    expected = [str(subject["id"]) for subject in values["subjects"]]
    sizes = {array.shape for array in held.values()}
    if list(subjects) != expected or len(sizes) != 1 or len(sizes.pop()) != 1:
        raise RunError(
            f"{url}: expected one (R,) array a metric, over the {len(expected)} test subjects of "
            "the evaluation beside it; evaluate again"
        )
    return Resamples(subjects=subjects, seed=seed, values=held)


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


def _label(runs: list[RunRecord]) -> list[RunRecord]:
    """Lengthen shared names by the first of their parts that tells the runs apart."""
    parts: tuple[Callable[[RunRecord], str], ...] = (
        lambda run: run.variant,
        lambda run: ", ".join(part for part in (run.variant, f"seed {run.seed}") if part),
        lambda run: str(run.config["fingerprint"])[:8],
        lambda run: run.url.rsplit("/", 1)[-1],
        lambda run: run.url,
    )
    made: dict[str, RunRecord] = {}
    for name in {run.label for run in runs}:
        group = [run for run in runs if run.label == name]
        told = variants([run.config for run in group])
        group = [replace(run, variant=text) for run, text in zip(group, told, strict=True)]
        labels = {run.url: name for run in group}
        for part in parts:
            if len(set(labels.values())) == len(group):
                break
            labels |= {run.url: f"{name} · {part(run)}" for run in group if part(run)}
        made |= {run.url: replace(run, label=labels[run.url]) for run in group}
    return [made[run.url] for run in runs]
