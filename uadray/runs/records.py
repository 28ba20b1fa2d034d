"""Run folders as records: read whole, checked, and refused with the file's name where damaged."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from uadray import files
from uadray.errors import RunError
from uadray.results import results_in
from uadray.runs.evaluations import Evaluation, check_kinds, is_number, load_evaluation
from uadray.runs.folder import Run
from uadray.runs.reading import (
    CONFIG,
    EPOCHS,
    EVALUATION,
    SUMMARY,
    SWEEP,
    TRIALS,
    evaluated_on,
    folder_of,
    read_config,
    read_epochs,
    read_summary,
)
from uadray.runs.settings import is_plain, variants


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
        return is_plain(self.config)

    @property
    def seed(self) -> int | None:
        """Of the fit."""
        return self.config["experiment"].get("fit", {}).get("seed")

    @property
    def members(self) -> Sequence[Mapping[str, Any]]:
        """What an ensemble says of each of its members; empty for a fit."""
        method = self.config["experiment"].get("method") or {}
        return tuple(method.get("members") or ()) if method.get("type") == "Ensemble" else ()

    @property
    def fold(self) -> int:
        """Which of its folds the fit was validated on; 0 where it was fitted on none."""
        return int(self.config["experiment"].get("fit", {}).get("fold") or 0)

    @property
    def repeat(self) -> str:
        """What parts it from fits of the same settings: `seed 1`, or with `fold 2 of 5`."""
        folds = self.config["experiment"].get("fit", {}).get("folds")
        return f"seed {self.seed}" + (f", fold {self.fold} of {folds}" if self.fold else "")


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

    def __str__(self) -> str:
        return f"{self.name}: {self.error}"


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
    if {SWEEP, TRIALS} <= set(names):
        return _run_folders(files.join(url, TRIALS), broken)
    if {SUMMARY, EPOCHS, EVALUATION} & set(names):
        raise RunError(f"{url}: config.json is missing from this run; {_AGAIN}")
    folders = []
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
            folders.append(folder)
    if not folders and not broken:
        if whose := results_in(url, set(names)):
            raise RunError(f"{url} is {whose}, and no run: pass the folder that the fit wrote")
        raise RunError(
            f"{url}: config.json is missing here and in every folder of it, so this is neither a "
            "run nor a folder of runs; pass the folder that the fit wrote"
        )
    return folders


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


def _load_run(url: str, broken: list[Broken] | None) -> RunRecord:
    settings = read_config(url)
    summary = read_summary(url)
    if summary is None:
        error = "summary.json is missing: the fit did not finish; run it again to resume it"
        summary = {"status": "unfinished", "error": error}
    epochs = read_epochs(url)
    check_kinds(_setting_kinds(settings), files.join(url, CONFIG), _AGAIN)
    check_kinds(_summary_kinds(summary), files.join(url, SUMMARY), _AGAIN)
    check_kinds(_epoch_kinds(epochs), files.join(url, EPOCHS), _AGAIN)
    evaluations = []
    try:
        evaluated = evaluated_on(url)
    except OSError as error:
        raise RunError(f"{folder_of(url)} cannot be listed ({error.strerror or error})") from None
    for cohort in evaluated:
        try:
            evaluations.append(load_evaluation(url, cohort, settings))
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


def _setting_kinds(settings: Mapping[str, Any]) -> dict[str, bool]:
    parts = {name: settings["experiment"].get(name) for name in ("fit", "method", "erasing")}
    return {f"experiment.{k}": isinstance(v, (dict, type(None))) for k, v in parts.items()}


def _summary_kinds(summary: Mapping[str, Any]) -> dict[str, bool]:
    figures = ("fit_seconds", "epochs", "best_epoch", "num_parameters", "num_workers")
    kinds = {name: is_number(summary.get(name)) for name in figures}
    kinds["warnings"] = isinstance(summary.get("warnings"), (list, type(None)))
    kinds["erasing"] = isinstance(summary.get("erasing"), (dict, type(None)))
    kinds["objective"] = isinstance(summary.get("objective"), (dict, type(None)))
    return kinds


def _epoch_kinds(epochs: Iterable[Mapping[str, Any]]) -> dict[str, bool]:
    measured = ("train/", "validation/", "erasing/", "seconds", "samples_per_second")
    return {
        f"{name} of epoch {epoch['epoch']}": is_number(value)
        for epoch in epochs
        for name, value in epoch.items()
        if name.startswith(measured)
    }


def _label(runs: list[RunRecord]) -> list[RunRecord]:
    """Lengthen shared names by the first of their parts that tells the runs apart."""
    parts: tuple[Callable[[RunRecord], str], ...] = (
        lambda run: run.variant,
        lambda run: ", ".join(part for part in (run.variant, run.repeat) if part),
        lambda run: str(run.config["fingerprint"])[:8],
        lambda run: run.url.rsplit("/", 1)[-1],
        lambda run: run.url,
    )
    made: dict[str, RunRecord] = {}
    for name in {run.label for run in runs}:
        group = [run for run in runs if run.label == name]
        texts = variants([run.config for run in group])
        group = [replace(run, variant=text) for run, text in zip(group, texts, strict=True)]
        labels = {run.url: name for run in group}
        for part in parts:
            if len(set(labels.values())) == len(group):
                break
            labels |= {run.url: f"{name} · {part(run)}" for run in group if part(run)}
        made |= {run.url: replace(run, label=labels[run.url]) for run in group}
    return [made[run.url] for run in runs]
