"""Which settings tell runs apart, read from their configurations alone."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uadray.config import BASELINES, FitConfig, flat
from uadray.methods import NAMED
from uadray.strategies import ErasingConfig

EXPERIMENT = "experiment"
"""Path of the experiment's name: method, erasing strategy and fill in one."""

_LABELS = {
    EXPERIMENT: "experiment",
    "method.latent_size": "latent size",
    "method.kl_weight": "KL weight",
    "erasing.max_share": "largest erased share",
    "erasing.min_share": "smallest erased share",
    "erasing.border": "boxes at the border",
    "erasing.probability": "share of erased samples",
    "fit.data_share": "training data",
    "fit.learning_rate": "learning rate",
    "fit.epochs": "epochs",
}
_PLAIN = {NAMED.imported[name].method.type_name() for name in BASELINES}
"""Types of the plain baselines."""

_NO_RESULT = {f"fit.{n}" for n in ("seed", "fold", "residency", "deterministic", "compile")}
"""Settings that are no comparison: repeats, and where or how fast the work was done."""


_ADDED = {
    f"{part}.{name}": one.default
    for part, kind in (("erasing", ErasingConfig), ("fit", FitConfig))
    for name, one in kind.__dataclass_fields__.items()
    if one.metadata.get("added")
}
"""What records leave out at its default, see `uadray.config.to_json`."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting that differs between runs."""

    path: str
    """Into the experiment, such as `method.latent_size`."""
    values: tuple[Any, ...]
    """Distinct values: numbers ascending, others in order of appearance."""

    @property
    def label(self) -> str:
        """How a reader calls it."""
        return label(self.path)

    @property
    def is_numeric(self) -> bool:
        """Whether the values lie on an axis."""
        return all(is_number(value) for value in self.values)

    def text(self, value: Any) -> str:
        """A value as shown."""
        return text(self.path, value)


def label(path: str) -> str:
    """How a reader calls a setting."""
    return _LABELS.get(path) or path.partition(".")[2].replace(".", " ").replace("_", " ")


def text(path: str, value: Any) -> str:
    """A value of a setting as shown; shares as percent."""
    if path == "fit.folds" and not value:
        return "none"
    if is_number(value):
        return f"{100 * value:g} %" if path.endswith("share") else f"{value:g}"
    if isinstance(value, tuple):
        return "-".join(str(part) for part in value)
    return str(value)


def is_number(value: Any) -> bool:
    """Whether a setting's value is a number; True and False are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of one run by path, its name among them; the seed is left out.

    Args:
        config: `config.json`.
    """
    paths = {path: _value(value) for path, value in flat(config["experiment"]).items()}
    # Members of an ensemble are repeats; what they share is what it is of.
    if paths.pop("method.members", None):
        methods = [one["method"] for one in config["experiment"]["method"]["members"]]
        if all(one == methods[0] for one in methods):
            paths |= {path: _value(v) for path, v in flat(methods[0], "method.member").items()}
    settings = {EXPERIMENT: str(config["name"])} | _ADDED | paths
    plain = is_plain(config)
    return {
        path: value
        for path, value in settings.items()
        if path not in _NO_RESULT and not (plain and _is_of_gradient(path))
    }


def is_plain(config: Mapping[str, Any]) -> bool:
    """Whether a run's method learns nothing by gradient, as the baselines beside every other.

    An ensemble is plain where all of its members are.

    Args:
        config: `config.json`. A method from outside need not be installed: what learns by gradient
            says by `ndim` what it takes.
    """
    method = config["experiment"].get("method") or {}
    members = [one["method"] for one in method.get("members") or ()]
    return all(
        one.get("type") in _PLAIN or ("package" in one and "ndim" not in one)
        for one in members or [method]
    )


def _is_of_gradient(path: str) -> bool:
    """Whether a setting says how a method learns by gradient; a plain baseline makes no use of it.

    Who is learned from counts for both.
    """
    of_data = ("fit.data_share", "fit.folds")
    return path.startswith(("fit.", "erasing.")) and path not in of_data


def _value(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_value(part) for part in value)
    return str(value) if isinstance(value, Mapping) else value


def varied(configs: Sequence[Mapping[str, Any]]) -> tuple[Setting, ...]:
    """The settings that are compared: those of which one experiment has several values.

    That two experiments differ in their defaults (2D and 3D have latent sizes of their own) is no
    comparison of that setting.

    Args:
        configs: `config.json` of each run.

    Returns:
        In the order of the experiment's fields; the experiment's name first where there are
        several.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for config in configs:
        groups.setdefault(str(config["name"]), []).append(settings_of(config))
    paths: dict[str, None] = {EXPERIMENT: None} if len(groups) > 1 else {}
    for runs in groups.values():
        for path in runs[0]:
            if len({run.get(path) for run in runs}) > 1:
                paths[path] = None
    values = {
        path: _ordered(run[path] for runs in groups.values() for run in runs if path in run)
        for path in paths
    }
    return tuple(Setting(path=path, values=distinct) for path, distinct in values.items())


def _ordered(values: Iterable[Any]) -> tuple[Any, ...]:
    distinct = list(dict.fromkeys(values))
    return tuple(sorted(distinct) if all(map(is_number, distinct)) else distinct)


def variants(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What parts each run from the others of its name, such as `latent size 32`.

    Args:
        configs: `config.json` of all runs of one name.

    Returns:
        One a run, in order; empty where nothing but the seed parts it.
    """
    parts = varied(configs)
    held = [settings_of(config) for config in configs]
    return [
        ", ".join(f"{one.label} {one.text(run[one.path])}" for one in parts if one.path in run)
        for run in held
    ]
