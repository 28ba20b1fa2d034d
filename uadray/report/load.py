"""Run folders as records: read whole, checked, and refused with the file's name where damaged."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uadray import config, files, npz
from uadray.errors import RunError
from uadray.evaluate.slicewise import Slices
from uadray.report.settings import variants

METRICS = ("dice_d", "dice_s_mean", "dice_s_std", "auprc", "auroc", "upper_bound_dice")
"""What every evaluation holds; a value may be null where it is not defined."""

_PLAIN = {
    kind.__name__
    for kind in (config.Intensity, config.HistEq, config.MeanImage, config.ZScore, config.PCA)
}
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

    def metric(self, name: str) -> float | None:
        """A metric, or None where it is not defined."""
        value = self.values["metrics"].get(name)
        return None if value is None else float(value)

    def interval(self, name: str) -> tuple[float, float] | None:
        """The 95 % bootstrap interval of a metric over subjects, or None."""
        pair = self.values["intervals"].get(name)
        if pair is None or None in pair:
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


def load_runs(urls: Iterable[str]) -> list[RunRecord]:
    """Read run folders.

    Args:
        urls: Local paths or fsspec URLs of run folders, of folders whose folders are runs, or of
            sweeps. One named twice is read once.

    Returns:
        The runs in the order given, with labels that tell them apart. Runs that failed, did not
        finish or were not evaluated are among them.

    Raises:
        RunError: a folder holds no run, or a file in it is absent or damaged.
    """
    folders: dict[str, None] = {}
    for url in urls:
        folders.update(dict.fromkeys(_run_folders(files.normalise(url))))
    if not folders:
        raise RunError("no run to report: name at least one run folder, or a folder of runs")
    return _label([_load_run(url) for url in folders])


def _run_folders(url: str) -> list[str]:
    names = files.list_names(url)
    if "config.json" in names:
        return [url]
    if not names:
        raise RunError(f"{url}: no such folder, or an empty one; pass a run or a folder of runs")
    if {"sweep.json", "runs"} <= set(names):
        return _run_folders(files.join(url, "runs"))
    if {"summary.json", "metrics.jsonl", "evaluation"} & set(names):
        raise RunError(f"{url}: config.json is missing from this run; fit it again")
    inside = {name: files.list_names(files.join(url, name)) for name in names if name[0] != "."}
    if broken := [n for n, inner in inside.items() if _is_headless(inner)]:
        raise RunError(f"{url}/{broken[0]}: config.json is missing from this run; fit it again")
    found = [files.join(url, name) for name, inner in inside.items() if "config.json" in inner]
    if not found:
        raise RunError(
            f"{url}: config.json is missing here and in every folder of it, so this is neither a "
            "run nor a folder of runs; pass the folder that the fit wrote"
        )
    return found


def _is_headless(names: list[str]) -> bool:
    return "summary.json" in names and "config.json" not in names


def _load_run(url: str) -> RunRecord:
    settings = _mapping(files.join(url, "config.json"))
    _need(settings, ("name", "experiment", "fingerprint", "cohort"), files.join(url, "config.json"))
    names = files.list_names(url)
    if "summary.json" in names:
        summary = _mapping(files.join(url, "summary.json"))
        _need(summary, ("status",), files.join(url, "summary.json"))
    else:
        error = "summary.json is missing: the fit did not finish; run it again to resume it"
        summary = {"status": "unfinished", "error": error}
    evaluations = []
    for name in files.list_names(files.join(url, "evaluation")) if "evaluation" in names else []:
        if name.endswith(".json") and not name.endswith("-threshold.json"):
            place = files.join(url, "evaluation", name)
            evaluations.append(_load_evaluation(place, settings["fingerprint"]))
    return RunRecord(
        url=url,
        label=str(settings["name"]),
        config=settings,
        summary=summary,
        epochs=_load_epochs(files.join(url, "metrics.jsonl")) if "metrics.jsonl" in names else (),
        evaluations=tuple(evaluations),
    )


def _load_epochs(url: str) -> tuple[Mapping[str, Any], ...]:
    """A resumed fit may have written an epoch twice (the later counts) and torn its last line."""
    lines = [line for line in files.read_bytes(url).splitlines() if line.strip()]
    epochs: dict[int, Mapping[str, Any]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line)
            epochs[int(values["epoch"])] = values
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise RunError(f"{url}: line {number} is not an epoch ({error}); fit again") from error
    return tuple(epochs[epoch] for epoch in sorted(epochs))


def _load_evaluation(url: str, fingerprint: str) -> Evaluation:
    values = _mapping(url)
    needed = ("cohort", "metrics", "intervals", "threshold", "num_threshold", "num_test")
    _need(values, (*needed, "subjects", "lesion_voxels", "lesion_voxels_eroded"), url)
    _need(values["cohort"], ("name",), url, "cohort.")
    _need(values["metrics"], METRICS, url, "metrics.")
    _need(values["threshold"], ("value", "rule", "fitted_on"), url, "threshold.")
    for index, subject in enumerate(values["subjects"]):
        _need(subject, ("id", "dice", "lesion_ml"), url, f"subjects[{index}].")
    if (found := values.get("run_fingerprint", fingerprint)) != fingerprint:
        raise RunError(
            f"{url}: belongs to experiment {found}, but the run's config.json says {fingerprint}; "
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


def _mapping(url: str) -> dict[str, Any]:
    try:
        value = files.read_json(url)
    except (ValueError, OSError) as error:
        raise RunError(f"{url}: cannot be read as JSON ({error}); write it again") from error
    if not isinstance(value, dict):
        raise RunError(f"{url}: expected a JSON object, got {type(value).__name__}")
    return value


def _need(values: Any, keys: Iterable[str], url: str, prefix: str = "") -> None:
    if not isinstance(values, dict):
        raise RunError(f"{url}: expected {prefix.rstrip('.')} to be an object, got {values!r}")
    if missing := [f"{prefix}{key}" for key in keys if key not in values]:
        raise RunError(f"{url}: {', '.join(missing)} missing; run the stage that writes it again")


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
