"""Which settings a sweep may vary: all of a method, of its erasing and of its fit, by path.

A path names the group and the field: `method.dropout`, `method.restore.steps`,
`erasing.probability`, `fit.batch_size`.
"""

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any

from uadray import fields
from uadray.config import Experiment, FitConfig, flat, learns
from uadray.errors import ConfigError
from uadray.strategies import strategy

_WORK = "says where or how fast the work is done, not what is fitted: set it by --space."

NOT_VARIED = {
    "method.ndim": "2D and 3D are experiments of their own: name both in --space.experiments",
    **{f"fit.{name}": f"{_WORK}fit.{name}" for name in ("residency", "deterministic", "compile")},
}
"""Settings that are no comparison, each with what to do instead."""

_FIT = dict.fromkeys(("learning_rate", "epochs", *FitConfig.__dataclass_fields__))
_OF_ALL = ("data_share", "seed")
"""What a method that learns nothing by gradient depends on, too."""


def settings_of(trial: Experiment) -> dict[str, Any]:
    """The settings that a sweep may vary, by path; those that play no part in it are absent."""
    paths = [p for p in fields.types_of(trial) if p.startswith("method.") and p not in NOT_VARIED]
    if learns(trial):
        fit = (f"fit.{name}" for name in _FIT if name not in _OF_ALL)
        paths += [path for path in fit if path not in NOT_VARIED]
        if getattr(trial.method, "erases", False):
            paths.append("erasing.strategy")
        if (one := strategy(trial.erasing)) is not None:
            paths += [f"erasing.{name}" for name in ("fill", "probability", *one.settings)]
    paths.append("fit.data_share")
    if learns(trial) or trial.fit.data_share < 1:
        paths.append("fit.seed")
    return {"experiment": trial.name} | {path: attrgetter(path)(trial) for path in paths}


def with_settings(base: Experiment, settings: Mapping[str, Any]) -> Experiment:
    """`base` with fields changed by path, such as `method.latent_size`.

    Raises:
        ConfigError: a path leads nowhere, or a value is not possible.
    """
    known = fields.types_of(base)
    if unknown := [path for path in settings if path not in known]:
        raise ConfigError(f"{base.name} has no setting {unknown[0]!r}")
    return fields.replaced(base, settings)


def typed(base: Experiment, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Values by path, each of the type that the setting has in this experiment.

    Raises:
        ConfigError: one is of another type.
    """
    types = fields.types_of(base)
    return {path: fields.checked(path, types[path], one) for path, one in settings.items()}


def resolved(
    vary: Mapping[str, Any], experiments: Sequence[Experiment], *, is_text: bool = False
) -> dict[str, tuple[Any, ...]]:
    """The values of each setting, by its whole path.

    Args:
        vary: Lists of values by path, or by the field's name alone where one group has it; tables
            in it are parts of paths.
        experiments: Any of them may have the setting.
        is_text: Whether the values come from a command line.

    Raises:
        ConfigError: there is no such setting, it cannot be varied, or a value is of another type.
    """
    if not isinstance(vary, Mapping):
        raise ConfigError(f"vary must be a table of settings and their values, was {vary!r}")
    types: dict[str, list[Any]] = {}
    for one in experiments:
        for path, hint in fields.types_of(one).items():
            types.setdefault(path, []).append(hint)
    read: Callable[[str, Any, Any], Any] = fields.from_text if is_text else fields.checked
    found: dict[str, tuple[Any, ...]] = {}
    for name, values in flat(vary).items():
        path = _path(name, types)
        if path in found:
            raise ConfigError(f"vary: {path} is given twice")
        if not isinstance(values, (list, tuple)) or not values:
            raise ConfigError(f"vary: {path} must have a list of values, was {values!r}")
        per_type = [[read(path, hint, one) for one in values] for hint in types[path]]
        found[path] = tuple(dict.fromkeys(per_type[0]))
    return found


def _path(given: str, types: Mapping[str, Any]) -> str:
    """The path that a name means.

    Raises:
        ConfigError: there is none, several, or it cannot be varied.
    """
    name = given.strip().replace("-", "_")
    matches = [p for p in types if p == name] or [p for p in types if p.endswith(f".{name}")]
    if len(matches) > 1:
        raise ConfigError(f"vary: {given!r} is one of {', '.join(matches)}: write the whole path")
    if name in ("experiment", "experiments"):
        raise ConfigError("vary: experiments are compared by --space.experiments")
    if not name or not matches:
        known = [path for path in types if path not in NOT_VARIED]
        raise ConfigError(
            f"vary: no experiment has a setting {given!r}{fields.closest(name, known)}"
        )
    if matches[0] in NOT_VARIED:
        raise ConfigError(f"vary: {matches[0]}: {NOT_VARIED[matches[0]]}")
    return matches[0]
