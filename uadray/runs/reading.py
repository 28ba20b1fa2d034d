"""What a run folder says of itself, read without what computes: settings, epochs, summary.

Whatever looks at a run while it is fitted, from any machine, has this alone to import.
"""

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from uadray import files
from uadray.errors import RunError

CONFIG, SUMMARY, EPOCHS = "config.json", "summary.json", "metrics.jsonl"
"""Names of the files that a fit writes."""

SETTINGS = "train.toml"
"""What `jobs/train.py --config` takes to fit the same again."""

CHECKPOINT = "checkpoint"
"""Folder of the weights, see `uadray.runs.checkpoint`."""

SWEEP, TRIALS = "sweep.json", "runs"
"""In the folder of a sweep: what was compared, and the folder of its runs."""

SWEEP_SETTINGS, SPACE = "tune.toml", "space.toml"
"""In the folder of a sweep: what `jobs/tune.py` takes as `--config` and as `--space` to do the same
again."""

PLAN, POPULATION = "plan.json", "population"
"""In the folder of a sweep: which trials it has, written as it starts, and the folder of earlier
generations of populations."""

EVALUATION = "evaluation"
"""The folder in a run folder."""

THRESHOLDS = "-threshold"
"""What stands between a cohort's name and `.json` where frozen thresholds are listed."""

AGAIN = "restore the file from a copy, or fit again into another folder (--out)"
"""What helps where a file of a run cannot be read."""


@contextmanager
def writing(url: str) -> Iterator[None]:
    """Name the run folder at `url` where it may not be written to.

    Raises:
        RunError: it is read-only, or belongs to another user.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise RunError(
            f"{url} cannot be written to ({error.strerror}): choose another --out"
        ) from (error)


def read_config(url: str) -> dict[str, Any]:
    """`config.json` of the run folder at `url`.

    Raises:
        RunError: there is none, it is damaged or cannot be read, or it lacks a field.
    """
    place = files.join(url, CONFIG)
    config = read_object(place)
    if config is None:
        raise RunError(f"{url}: no run there; fit one with jobs/train.py")
    need(config, ("name", "experiment", "fingerprint", "cohort"), place)
    for key in ("experiment", "cohort"):
        if not isinstance(config[key], dict):
            raise RunError(f"{place}: expected {key} to be an object, got {config[key]!r}; {AGAIN}")
    return config


def read_summary(url: str) -> dict[str, Any] | None:
    """`summary.json` of the run folder at `url`; None where there is none.

    Raises:
        RunError: it is damaged or cannot be read, or lacks the status.
    """
    place = files.join(url, SUMMARY)
    summary = read_object(
        place,
        "move it away and run the same jobs/train.py again, which makes it from the checkpoint",
    )
    if summary is not None:
        need(summary, ("status",), place)
    return summary


def read_epochs(url: str) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl` of the run folder at `url`, in the order of the epochs.

    A copy that was cut short may have torn the last line, which is left out; of an epoch that is
    there twice the later line counts.

    Raises:
        RunError: it is damaged or cannot be read.
    """
    place = files.join(url, EPOCHS)
    lines = [line for line in (_read(place) or b"").splitlines() if line.strip()]
    epochs: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            values = files.parse_json(line)
            epochs[int(values["epoch"])] = dict(values)
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            if number == len(lines):
                break
            raise RunError(f"{place}: line {number} is not an epoch ({error}); {AGAIN}") from None
    return [epochs[epoch] for epoch in sorted(epochs)]


def read_object(place: str, again: str = AGAIN) -> dict[str, Any] | None:
    """The JSON object in a file of a run folder; None where there is none.

    Args:
        place: The file.
        again: What helps where it is damaged.

    Raises:
        RunError: it is damaged or cannot be read.
    """
    content = _read(place)
    if content is None:
        return None
    try:
        value = files.parse_json(content)
    except ValueError as error:  # no JSON, or no UTF-8
        raise RunError(f"{place} is damaged: it is no JSON ({error}); {again}") from None
    if not isinstance(value, dict):
        raise RunError(
            f"{place} is damaged: expected a JSON object, got {type(value).__name__}; {again}"
        )
    return value


def need(values: Any, keys: Iterable[str], place: str, prefix: str = "") -> None:
    """Refuse an object in a file that lacks keys.

    Raises:
        RunError: it is no object, or lacks one.
    """
    if not isinstance(values, dict):
        raise RunError(f"{place}: expected {prefix.rstrip('.')} to be an object, got {values!r}")
    if missing := [f"{prefix}{key}" for key in keys if key not in values]:
        raise RunError(f"{place}: {', '.join(missing)} missing; run the stage that writes it again")


def _read(place: str) -> bytes | None:
    """Not by `exists`, which takes what may not be looked at for absent."""
    try:
        return files.read_bytes(place)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(f"{place} cannot be read ({error.strerror or error})") from None


def folder_of(run_url: str) -> str:
    """Where the run folder at `run_url` holds its evaluations."""
    return files.join(run_url, EVALUATION)


def place(run_url: str, cohort: str, kind: str = "") -> str:
    """Where a run's record on a cohort lies, or the arrays of a kind beside it."""
    name = f"{cohort}-{kind}.npz" if kind else f"{cohort}.json"
    return files.join(run_url, EVALUATION, name)


def evaluated_on(run_url: str) -> list[str]:
    """Names of the cohorts that the run at `run_url` has a record of.

    Raises:
        OSError: the folder cannot be listed.
    """
    names = [name for name in files.list_names(folder_of(run_url)) if not files.is_draft(name)]
    records = [name.removesuffix(".json") for name in names if name.endswith(".json")]
    return [name for name in records if not name.endswith(THRESHOLDS)]
