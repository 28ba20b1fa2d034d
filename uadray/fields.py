"""Fields of settings: their types, values from text, and tables of a file laid over them."""

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from uadray.errors import ConfigError

Settings = TypeVar("Settings")

_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "text",
    types.NoneType: "none",
}


def types_of(settings: Any, prefix: str = "") -> dict[str, Any]:
    """The type of each field by dotted path, such as `restore.steps`, those within fields too."""
    hints = typing.get_type_hints(type(settings))
    found: dict[str, Any] = {}
    for one in dataclasses.fields(settings):
        value, path = getattr(settings, one.name), f"{prefix}{one.name}"
        inner = dataclasses.is_dataclass(value)
        found |= types_of(value, f"{path}.") if inner else {path: hints[one.name]}
    return found


def replaced(settings: Any, changes: Mapping[str, Any]) -> Any:
    """`settings` with fields changed by dotted path, those of one dataclass at once."""
    own: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {}
    for path, value in changes.items():
        name, _, rest = path.partition(".")
        if rest:
            inner.setdefault(name, {})[rest] = value
        else:
            own[name] = value
    own |= {name: replaced(getattr(settings, name), some) for name, some in inner.items()}
    return replace(settings, **own)


def fits(hint: Any, value: Any) -> bool:
    """Whether a value is of a field's type; numbers are to be finite."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return any(value == one and type(value) is type(one) for one in args)
    if origin in (types.UnionType, typing.Union):
        return any(fits(one, value) for one in args)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if len(args) == 2 and args[1] is Ellipsis:
            return all(fits(args[0], one) for one in value)
        return len(args) == len(value) and all(map(fits, args, value))
    if origin is dict:
        return isinstance(value, dict) and all(fits(args[1], one) for one in value.values())
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value)
    if hint in (bool, int, str, types.NoneType):
        return type(value) is hint
    return isinstance(value, hint) if isinstance(hint, type) else True


def checked(name: str, hint: Any, value: Any) -> Any:
    """A value of a field's type: lists become tuples, and 1 is 1.0 where a number is asked for.

    Raises:
        ConfigError: it is of another type; the message begins with `name`.
    """
    made = _converted(hint, value)
    if not fits(hint, made):
        raise ConfigError(f"{name} must be {_in_words(hint)}, was {value!r}")
    return made


def instance(name: str, kind: type[Settings], value: Any) -> Settings:
    """A value that has to be settings of a type, with fields of their types.

    Raises:
        ConfigError: it is something else, or one of its fields is.
    """
    if not isinstance(value, kind):
        raise ConfigError(f"{name} must be a {kind.__name__}(...), was {value!r}")
    hints = types_of(value)
    return replaced(
        value,
        {
            path: checked(f"{name}.{path}", hint, functools.reduce(getattr, path.split("."), value))
            for path, hint in hints.items()
        },
    )


def from_text(name: str, hint: Any, text: str) -> Any:
    """A value of a field's type from the text of a command line; commas part a list.

    Raises:
        ConfigError: as `checked`.
    """
    return checked(name, hint, _parsed(hint, text.strip()))


def closest(name: str, known: Iterable[str]) -> str:
    """The end of a message on a name that is unknown: what it may have meant, or all names."""
    names = list(known)
    ends = {one.rpartition(".")[2]: one for one in names}
    near = difflib.get_close_matches(name.rpartition(".")[2], ends, 1, cutoff=0.7)
    return f"; did you mean {ends[near[0]]}?" if near else f"; known are {', '.join(names)}"


def overlay(settings: Any, table: Mapping[str, Any], place: str, prefix: str = "") -> Any:
    """`settings` with the fields that a table of a file gives; tables within it are their parts.

    Args:
        settings: A dataclass; its fields are the keys that are known.
        table: Of the file.
        place: The file, for messages.
        prefix: Path of the table in the file.

    Raises:
        ConfigError: a key is unknown, a value has another type or is out of range.
    """
    hints = typing.get_type_hints(type(settings))
    names = [one.name for one in dataclasses.fields(settings)]
    changes: dict[str, Any] = {}
    for key, value in table.items():
        name, path = key.replace("-", "_"), f"{prefix}{key}"
        if name not in names:
            raise ConfigError(f"{place}: no setting is named {path!r}{closest(name, names)}")
        if name in changes:
            raise ConfigError(f"{place}: {path} is given twice")
        if dataclasses.is_dataclass(own := getattr(settings, name)):
            if isinstance(value, type(own)):  # as Python has it
                changes[name] = value
                continue
            if not isinstance(value, Mapping):
                raise ConfigError(f"{place}: {path} must be a table, [{path}], was {value!r}")
            changes[name] = overlay(own, value, place, f"{path}.")
        else:
            changes[name] = checked(f"{place}: {path}", hints[name], value)
    try:
        return replace(settings, **changes)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from None


def _converted(hint: Any, value: Any) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value == "none" and types.NoneType in args:
            return None  # in files that have no null
        made = (_converted(one, value) for one in args)
        return value if fits(hint, value) else next((m for m in made if fits(hint, m)), value)
    if origin is tuple and isinstance(value, (list, tuple)):
        inner = args[:1] * len(value) if Ellipsis in args else args
        return tuple(map(_converted, inner, value)) if len(inner) == len(value) else value
    if hint is float and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            return math.inf
    if hint is int and type(value) is float and value.is_integer():
        return int(value)
    return value


def _parsed(hint: Any, text: str) -> Any:
    """A value where the text is one; the text itself, which fits no such field, where not."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return next((one for one in args if str(one) == text), text)
    if origin in (types.UnionType, typing.Union):
        return next((made for one in args if fits(one, made := _parsed(one, text))), text)
    if origin is tuple:
        parts = [part.strip() for part in text.strip("()[]").rstrip(", ").split(",")]
        inner = args[:1] * len(parts) if Ellipsis in args else args
        return tuple(map(_parsed, inner, parts)) if len(inner) == len(parts) else text
    if hint is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    if hint is types.NoneType:
        return None if text.lower() == "none" else text
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError:
            return text
    return text


def _in_words(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin in (types.UnionType, typing.Union):
        return " or ".join(map(_in_words, args))
    if origin is tuple:
        several = Ellipsis in args
        inner = _in_words(args[0]) if several else ", ".join(map(_in_words, args))
        return f"a list ({inner}{', ...' if several else ''})"
    return str(_WORDS.get(hint) or getattr(hint, "__name__", hint))
