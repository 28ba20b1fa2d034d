"""Settings of a job in a TOML file: read as the defaults of its flags, written to repeat it.

The keys are the names of the flags: `cohort = "..."`, and for `--fit.epochs` the key `epochs` in
the table `[fit]`. `kind` says whose settings they are.
"""

import itertools
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import tomli_w

from uadray import __version__, files
from uadray.config import Experiment, base_name, experiment, to_json
from uadray.errors import ConfigError
from uadray.fields import checked, overlay

Settings = TypeVar("Settings")

USES = {
    "train": "python jobs/train.py --config {place}",
    "tune": "python jobs/tune.py --config {place}",
    "space": "python jobs/tune.py --space {place}",
}
"""What takes a file, by its kind."""

_PARTS = ("method", "erasing", "fit")


def option(args: Sequence[str], flag: str) -> str:
    """The value of a flag that decides the defaults of others; empty where it is absent."""
    for given, after in itertools.pairwise([*args, ""]):
        if given.startswith(f"{flag}="):
            return given.removeprefix(f"{flag}=")
        if given == flag:
            return "" if after.startswith("--") else after
    return ""


def read(place: str, kind: str) -> dict[str, Any]:
    """The table in a file of settings, without its kind.

    Raises:
        ConfigError: there is none, it is no TOML, or of another kind.
    """
    try:
        table = tomllib.loads(files.read_bytes(place).decode("utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"{place}: no such file of settings") from None
    except OSError as error:
        raise ConfigError(f"{place} cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:  # no TOML, or no UTF-8
        raise ConfigError(f"{place} is no TOML: {error}") from None
    found = table.pop("kind", kind)
    if found != kind:
        use = f": it is for {USES[found].format(place=place)}" if found in [*USES] else ""
        raise ConfigError(f"{place}: kind must be {kind!r}, was {found!r}{use}")
    return table


def write(place: str, kind: str, settings: Mapping[str, Any]) -> None:
    """Write settings as a file that `read` reads, without what may be secret in URLs.

    Args:
        place: The file.
        kind: One of `USES`.
        settings: Texts, numbers, lists, and dataclasses as tables.
    """
    table = {"kind": kind} | _without_null(to_json(dict(settings)))
    use = USES[kind].format(place=place.rpartition("/")[2])
    head = f"# Written by uadray {__version__}; {use} does the same again.\n\n"
    files.write_bytes(place, files.without_secrets(head + tomli_w.dumps(table)).encode())


def experiment_table(one: Experiment) -> dict[str, Any]:
    """An experiment as a file has it: a name, and all settings as tables."""
    # The name has what is left out.
    no_setting = ("type", "package", "ndim")
    parts = {
        part: {k: v for k, v in to_json(getattr(one, part)).items() if k not in no_setting}
        for part in _PARTS
    }
    return {"experiment": base_name(one), **parts}


def take_experiment(table: dict[str, Any], place: str, name: str = "") -> Experiment | None:
    """Take an experiment out of a table that `experiment_table` gave, or that a user wrote.

    Args:
        table: Loses what belongs to the experiment.
        place: The file, for messages.
        name: Of the experiment, where the command line gives it.

    Returns:
        None where there is neither a name nor a setting of it.

    Raises:
        ConfigError: there is no such experiment, the two names differ, or settings are wrong.
    """
    given = checked(f"{place}: experiment", str, table.pop("experiment", name))
    if name and given != name:
        raise ConfigError(f"{place} is of {given}, the command names {name}: leave one out")
    parts = {part: table.pop(part) for part in _PARTS if part in table}
    if not given:
        if parts:
            raise ConfigError(f"{place}: [{next(iter(parts))}] needs an experiment, by its name")
        return None
    try:
        base = experiment(given)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from None
    return overlay(base, parts, place)


def _without_null(value: Any) -> Any:
    """TOML has no null; `fields.checked` takes the text for it."""
    if isinstance(value, dict):
        return {key: _without_null(one) for key, one in value.items()}
    if isinstance(value, list):
        return list(map(_without_null, value))
    return "none" if value is None else value
