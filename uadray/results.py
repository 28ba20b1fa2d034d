"""Which folders hold results of this package: no scans are read there, and no others written."""

import os
from collections.abc import Iterator
from typing import Any

from uadray import files
from uadray.errors import UadrayError

PREDICTIONS = "predict.json"
"""In each folder of predictions, see `uadray.prediction.outputs`."""

_TELLING = (PREDICTIONS, "zarr.json", "config.json", "manifest.json")
"""In folders of predictions, cohorts, runs and models, in this order."""

_OF_A_JOB = "/runtime_resources/working_dir_files/"
"""In the path of what `ray job submit --working-dir` unpacks on a node."""

_FIELDS: dict[str, tuple[str, ...]] = {
    PREDICTIONS: ("request",),
    "dataset_description.json": ("GeneratedBy",),
    "config.json": ("experiment", "fingerprint", "cohort"),
    "zarr.json": ("zarr_format", "node_type"),
}
"""What files have that say whose a folder is."""


def results_in(folder: str, names: set[str]) -> str:
    """What of this package's a folder holds, in a few words; empty where nothing.

    Args:
        folder: Path or URL.
        names: Of the files in it, as far as they are known.
    """
    if PREDICTIONS in names and _is_marked(folder, PREDICTIONS, damaged=True):
        return "predictions of uadray"
    if {"summary.json", "anomaly.nii.gz"} <= names:
        return "a prediction of uadray"  # of one scan, copied out of its folder
    if "dataset_description.json" in names and _is_marked(folder, "dataset_description.json"):
        return "predictions of uadray"
    if "zarr.json" in names and _is_marked(folder, "zarr.json"):
        return "a cohort or another Zarr store"
    if {"config.json", "metrics.jsonl"} <= names and _is_marked(folder, "config.json"):
        return "a run of uadray"
    if {"manifest.json", "experiment.json", "model.safetensors"} <= names:
        return "a model of uadray"
    return ""


def owner_of(folder: str) -> str:
    """Results of this package that a folder is or lies in, in words; empty for none."""
    if not files.is_remote(folder):
        folder = os.path.realpath(folder)
    for place in (folder, *_parents(folder)):
        names = {name for name in _TELLING if _exists(files.join(place, name))}
        if "config.json" in names:
            names.add("metrics.jsonl")  # which a run has that learns in epochs
        if "manifest.json" in names:
            names |= set(files.list_names(place))
        if whose := results_in(place, names):
            return f"{whose} ({place})"
    return ""


def refuse_inside(out: str, error: type[UadrayError]) -> None:
    """Refuse to begin results where they would be lost, or among others that they are not part of.

    Raises:
        UadrayError: of the type `error`, where `out` is or lies in a cohort, a run, a model,
            predictions, or the folder of a job that `ray job submit` sent.
    """
    refuse_place(out, error)
    if owner := owner_of(out):
        raise error(
            f"{out} lies in {owner}, which holds other results: choose another --out, outside of it"
        )


def refuse_place(out: str, error: type[UadrayError], *, is_folder: bool = True) -> None:
    """Refuse a place that is or lies in a file, or in the folder of a submitted job.

    Ray unpacks that folder for the job and removes it with it.

    Args:
        out: Path or URL that results are to be written to.
        error: Type of the error.
        is_folder: Whether it is to be a folder; a file is replaced by a file.

    Raises:
        UadrayError: of the type `error`.
    """
    if files.is_remote(out):
        return
    path = os.path.abspath(out)
    for place in ([path] if is_folder else []) + list(_parents(path)):
        if os.path.lexists(place) and not os.path.isdir(place):
            raise error(
                f"{out}: expected the place of a folder, but {place} is a file or leads nowhere: "
                "choose another --out"
            )
    if _OF_A_JOB in os.path.realpath(out):
        raise error(
            f"{out} lies in the folder of this job, which does not outlast the job: give "
            "a full path that the nodes share, such as /home/me/runs, or a URL such as "
            "s3://bucket/runs"
        )


def predictions_above(path: str) -> str:
    """The folder of predictions that `path` lies in; empty where in none."""
    return next((folder for folder in _parents(path) if are_predictions(folder)), "")


def are_predictions(folder: str) -> bool:
    """Whether a folder is one that predictions are written into."""
    marker = files.join(folder, PREDICTIONS)
    return _exists(marker) and _is_marked(folder, PREDICTIONS, damaged=True)


def _parents(path: str) -> Iterator[str]:
    start = path.index("://") + 3 if files.is_remote(path) else 0
    while (cut := path.rfind("/")) > start:
        path = path[:cut]
        yield path


def _exists(url: str) -> bool:
    try:
        return files.exists(url)
    except Exception:
        return False


def _is_marked(folder: str, name: str, *, damaged: bool = False) -> bool:
    """Whether a JSON file has the fields of ours; `damaged` is said of one that is no JSON."""
    try:
        fields: Any = files.read_json(files.join(folder, name))
    except (OSError, ValueError, RecursionError):
        return damaged
    if not isinstance(fields, dict) or not set(_FIELDS[name]) <= fields.keys():
        return False
    if name != "dataset_description.json":
        return True
    makers = fields["GeneratedBy"]
    makers = makers if isinstance(makers, list) else [makers]
    return any(isinstance(maker, dict) and maker.get("Name") == "uadray" for maker in makers)
