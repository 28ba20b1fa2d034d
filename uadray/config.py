"""Experiments: everything that decides a result, their names, and their fingerprints.

An experiment is named as in the papers, `experiment("3D-Cube-n")`, and changed field by field.
"""

import dataclasses
import hashlib
import json
import re
import types
import typing
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from uadray.errors import ConfigError, PluginError
from uadray.fields import closest, fits
from uadray.methods import NAMED, Learned, MethodSettings, PublishedMethod
from uadray.methods.baselines import PCA
from uadray.methods.registry import detector_type, name_at
from uadray.methods.settings import check, check_finite, check_limits
from uadray.plugins import Package
from uadray.strategies import ADDED, BENGS, NONE, STRATEGIES, ErasingConfig, Strategy, strategy

__all__ = [
    "BASELINES",
    "BENGS_TABLE_1",
    "OTHERS",
    "ErasingConfig",
    "Experiment",
    "FitConfig",
    "base_name",
    "changes",
    "experiment",
    "flat",
    "from_json",
    "learns",
    "to_json",
    "with_fit",
]


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How a detector is fitted (Bengs 2021, section 2.3)."""

    epochs: int = 100
    """Passes over the training part. The best by healthy validation reconstruction is kept; the
    paper tunes this number without giving it."""
    batch_size: int = 32
    """Samples in a step over all workers: volumes in 3D, slices in 2D."""
    data_share: float = 1.0
    """Share of the training subjects that is learned from, in (0, 1], for studies of the size of
    the data: the seed chooses, each scanner gives its part, and a smaller share is a subset of a
    larger one. Validation stays whole."""
    learning_rate: float = 1e-3
    """Of Adam."""
    clip_norm: float = 1.0
    """Longest gradient of a step, over all parameters; longer ones are scaled down. The paper names
    none; without one a fit of 300 epochs on 29 scans diverged at epoch 153."""
    seed: int = 0
    """Decides weights, order, erasing and the latent's noise."""
    folds: int = field(default=0, metadata=ADDED)
    """Parts that the healthy people are in, whatever the cohort's own split, for a fit that learns
    from all but one of them; 0 takes the cohort's split. `--folds` of jobs/train.py fits all."""
    fold: int = field(default=0, metadata=ADDED)
    """Which of the `folds`, from 1, is held back for validation."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the convolutions and matrix products; weights and losses stay float32. `auto` takes
    bfloat16 where the hardware multiplies it natively."""
    deterministic: bool = False
    """Only algorithms on a GPU that give the same bits every time, at a cost in speed. A CPU with
    the same number of threads and workers always does."""
    compile: bool = False
    """Compile the network with `torch.compile`; the first epoch then takes a minute longer. On a
    CPU give `precision="float32"` beside it where maps of a 3D network have two planes."""
    residency: Literal["auto", "stream", "device"] = "auto"
    """`stream`: every epoch from the store; `device`: streamed once, then held in the device's
    memory; `auto`: `device` where it takes at most a quarter of that memory. The batches are the
    same."""
    checkpoint_every: int = 1
    """Epochs between checkpoints; the best epoch is chosen among those that have one."""
    patience: int = 0
    """Stop after so many epochs without a better validation reconstruction; 0 never stops."""

    def __post_init__(self) -> None:
        check_finite(self, "fit.")
        check_limits(
            self,
            "fit.",
            epochs=">= 1",
            batch_size=">= 1",
            data_share="in (0, 1]",
            learning_rate="> 0",
            clip_norm="> 0",
            seed=">= 0",
            checkpoint_every=">= 1",
            patience=">= 0",
        )
        if self.folds or self.fold:
            check(self.folds >= 2, "fit.folds", ">= 2, or 0 for the cohort's split", self.folds)
            check(1 <= self.fold <= self.folds, "fit.fold", f"in [1, {self.folds}]", self.fold)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that decides a fitted detector, given a cohort."""

    # Its docstring would stand in help texts in place of the method's own.

    method: MethodSettings
    erasing: ErasingConfig = field(default_factory=ErasingConfig)
    """Only methods that learn by gradient erase."""
    fit: FitConfig = field(default_factory=FitConfig)
    """How it is fitted."""

    def __post_init__(self) -> None:
        check_finite(self.method, "method.")
        bottleneck = getattr(self.method, "bottleneck", 1)
        check(bottleneck >= 1, "method.bottleneck", ">= 1", bottleneck)
        betas = getattr(self.method, "betas", (0.0, 0.0))
        check(all(0 <= beta < 1 for beta in betas), "method.betas", "in [0, 1)", betas)
        if self.erasing.strategy != NONE and not getattr(self.method, "erases", False):
            raise ConfigError(
                f"erasing.strategy is {self.erasing.strategy!r}, but {self.method.type_name()} "
                f"does not learn from erased input: set it to {NONE!r}"
            )

    @property
    def name(self) -> str:
        """The paper's name, such as `3D-Cube-n`, `sVAE`, `3D-sVAE-Cube-n`, `HistEq` or `PCA-16`."""
        method = self.method
        if not isinstance(method, Learned):
            return method.label
        erased = []
        if (one := strategy(self.erasing)) is not None:
            erased = [one.names[method.ndim], _FILLS[self.erasing.fill]]
        if not method.label:
            return "-".join([f"{method.ndim}D", *(erased or ["None"])])
        return "-".join([*(["3D"] if method.ndim == 3 else []), method.label, *erased])

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits over all fields."""
        text = json.dumps(to_json(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


_FILLS: dict[Literal["zero", "noise"], str] = {"zero": "0", "noise": "n"}
"""How erased voxels are filled, as names of experiments end."""

BENGS_TABLE_1 = (
    *("2D-None", "3D-None"),
    *(
        f"{ndim}D-{STRATEGIES[key].names[ndim]}-{letter}"
        for key in BENGS
        for letter in _FILLS.values()
        for ndim in (2, 3)
    ),
)
"""The fourteen configurations of Bengs 2021, table 1."""

_OWN = {n: one.method for n, one in NAMED.imported.items() if one.method.package is None}

BASELINES = tuple(name for name, method in _OWN.items() if not isinstance(method, Learned))
"""The plain methods that stand beside every other."""

OTHERS = tuple(name for name in _OWN if name not in (*BENGS_TABLE_1, *BASELINES))
"""Every other method of ours, on slices; `3D-` before a name takes volumes."""


def known() -> str:
    """Names of all experiments, those of other packages last, as help texts list them."""
    from_outside = (name for name in NAMED if name not in _OWN)
    return ", ".join((*BENGS_TABLE_1, *BASELINES, *OTHERS, *from_outside))


def experiment(name: str) -> Experiment:
    """The experiment of that name with its defaults.

    `3D-` before a method's name takes volumes, and `-Cube-n` after it erases (on slices
    `-Patch-n`), as in `3D-sVAE-Cube-n`. In place of the method's name, `package.module:Class` says
    where it is.

    Raises:
        ConfigError: there is none of that name.
        PluginError: the package that the method is from cannot be used.
    """
    if match := re.fullmatch(r"PCA-(\d+)", name):
        return Experiment(method=PCA.Settings(num_components=int(match[1])))
    if at := re.fullmatch(r"([23]D-)?([^:\s]+:\w+)(-.*)?", name):
        name = f"{at[1] or ''}{name_at(at[2])}{at[3] or ''}"
    broken: list[object] = []
    made = _named(name, bool(at), STRATEGIES.imported)
    # Strategies of other packages are imported only where it takes them.
    made = made or _named(name, bool(at), STRATEGIES.usable(lambda key, e: broken.append(e)))
    if made is None:
        left_out = "".join(f"; left out: {one}" for one in broken)
        near = closest(name, known().split(", "))
        any_n = "" if "did you mean" in near else " (any n in PCA-n)"
        raise ConfigError(f"no experiment is named {name!r}{near}{any_n}{left_out}")
    return made


def _named(name: str, at: bool, strategies: Mapping[str, Strategy]) -> Experiment | None:
    """The experiment of a name, given how it may erase; `at` says that its method is imported."""
    ndim: Literal[2, 3] = 3 if name.startswith("3D-") else 2
    rest = name.removeprefix(f"{ndim}D-")
    for end, erasing in _endings(ndim, strategies).items():
        if not f"-{rest}".endswith(end):
            continue
        # What has no label of its own is Bengs' autoencoder.
        label = f"-{rest}".removesuffix(end)[1:] or f"{ndim}D-None"
        # Given its place, it does not matter that another package has a method of that name.
        one = NAMED.imported.get(label) if at else NAMED.get(label)
        if one is not None and (made := _made(one, ndim, erasing)).name == name:
            return made
    return None


def base_name(one: Experiment) -> str:
    """A name that `experiment` knows of an experiment of the same method and dimension.

    It is its own name where that is known; settings have made another of it otherwise.
    """
    method = one.method
    dimension = "3D-" if getattr(method, "ndim", 2) == 3 else ""
    if method.package is not None:
        return f"{dimension}{method.type_name()}"
    named = [name for name, own in _OWN.items() if type(own) is type(method)]
    for name in (one.name, *(f"{dimension}{own}" for own in named), *named):
        with suppress(ConfigError):
            base = experiment(name).method
            if type(base) is type(method) and vars(base).get("ndim") == vars(method).get("ndim"):
                return name
    raise ConfigError(f"no name leads to {one.name}")


def _made(one: PublishedMethod, ndim: Literal[2, 3], erasing: ErasingConfig) -> Experiment:
    method: Any = one.method
    if isinstance(method, Learned):
        method = replace(method, ndim=ndim)
    if method.package is None:
        return Experiment(method=method, erasing=erasing, fit=FitConfig(**one.fit))
    try:
        made = Experiment(method=method, erasing=erasing, fit=FitConfig(**one.fit))
        again = from_json(Experiment, json.loads(json.dumps(to_json(made))))
        if again != made or hash(again) != hash(made):
            raise ConfigError("its settings are not the same when they are read from JSON")
    except (TypeError, ValueError, NameError) as error:
        raise PluginError(f"the method {method.type_name()}: {error}") from None
    return made


def _endings(ndim: Literal[2, 3], strategies: Mapping[str, Strategy]) -> dict[str, ErasingConfig]:
    """Ends of a name, by how it erases."""
    erasing = {
        f"-{one.names[ndim]}-{letter}": ErasingConfig(strategy=key, fill=fill)
        for key, one in strategies.items()
        for fill, letter in _FILLS.items()
    }
    return {"": ErasingConfig(), "-None": ErasingConfig(), **erasing}


def learns(what: Experiment) -> bool:
    """Whether its method learns by gradient, in epochs."""
    return isinstance(what.method, Learned)


def to_json(value: Any) -> Any:
    """A dataclass as a JSON value; settings of a method carry its class as `type`.

    What is from outside of uadray, or names such a thing, carries its `package`. A field that came
    later (`uadray.strategies.ADDED`) is left out at its default, so that what was written before is
    written again to the letter.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            f.name: to_json(getattr(value, f.name))
            for f in dataclasses.fields(value)
            if not (f.metadata.get("added") and getattr(value, f.name) == f.default)
        }
        if (package := getattr(value, "package", None)) is not None:
            fields = {"package": to_json(package)} | fields
        return {"type": value.type_name()} | fields if isinstance(value, MethodSettings) else fields
    if isinstance(value, (list, tuple)):
        return [to_json(v) for v in value]
    if isinstance(value, dict):
        return {k: to_json(v) for k, v in value.items()}
    return value


def from_json(kind: Any, value: Any) -> Any:
    """The inverse of `to_json`.

    Args:
        kind: The dataclass, or a type of one of its fields.
        value: What `to_json` gave.

    Raises:
        ConfigError: a field is unknown, so that no setting is lost in silence, or is absent, or has
            a value of another kind: null, a number that is not finite, a text for a number.
    """
    if kind is MethodSettings and isinstance(value, dict):
        own = {key: inner for key, inner in value.items() if key != "type"}
        from_outside = ":" in str(value.get("type"))
        package = from_json(Package, own.pop("package", None)) if from_outside else None
        return from_json(detector_type(value.get("type"), package).Settings, own)
    if isinstance(kind, types.UnionType):
        structured = dict if isinstance(value, dict) else tuple
        for one in typing.get_args(kind):
            if (typing.get_origin(one) or (dataclasses.is_dataclass(one) and dict)) is structured:
                return from_json(one, value)
        return value
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _dataclass_from_json(kind, value)
    if typing.get_origin(kind) is tuple and isinstance(value, (list, tuple)):
        args = typing.get_args(kind)
        if len(args) == 2 and args[1] is Ellipsis:
            args = (args[0],) * len(value)
        if len(args) == len(value):
            return tuple(map(from_json, args, value))
    return value


def _dataclass_from_json(kind: type[Any], value: Any) -> Any:
    hints = typing.get_type_hints(kind)
    name = kind.type_name() if issubclass(kind, MethodSettings) else kind.__name__
    known = {f.name: f for f in dataclasses.fields(kind)}
    if not isinstance(value, dict):
        raise ConfigError(f"{name} must be an object with fields, was {value!r}")
    if "package" in value and (named := getattr(kind, "named", None)):
        field, registry = named
        own = dict(value)
        package = from_json(Package, own.pop("package"))
        registry.check_recorded(str(own.get(field)), package)
        value = own
    if unknown := set(value) - set(known):
        raise ConfigError(f"{name} has no field {sorted(unknown)}")
    for key, inner in value.items():
        if dataclasses.is_dataclass(hints[key]) and not isinstance(inner, dict):
            raise ConfigError(f"{name}: {key} must be an object with fields, was {inner!r}")
    values = {key: from_json(hints[key], inner) for key, inner in value.items()}
    for key, inner in values.items():
        if not fits(hints[key], inner):
            wanted = hints[key].__name__ if isinstance(hints[key], type) else str(hints[key])
            raise ConfigError(f"{name}: {key} must be {wanted}, was {inner!r}")
    missing = dataclasses.MISSING
    for key, one in known.items():
        if key not in values and one.default is missing and one.default_factory is missing:
            raise ConfigError(f"{name} lacks the field {key}")
    return kind(**values)


def flat(settings: Any, path: str = "") -> dict[str, Any]:
    """Settings as JSON by dotted path, such as `method.restore.steps`; a list is one value."""
    if not isinstance(settings, Mapping):
        return {path: settings}
    inside = ((f"{path}.{name}" if path else name, value) for name, value in settings.items())
    return {key: value for name, one in inside for key, value in flat(one, name).items()}


def changes(there: Any, here: Any) -> list[str]:
    """In a few words, each setting that is not the same in two JSON values."""
    a, b = flat(there), flat(here)
    changed = sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))
    return [f"{key}: {a.get(key)} there, {b.get(key)} here" for key in changed]


def with_fit(base: Experiment, **changes: Any) -> Experiment:
    """`base` with fields of its fit changed."""
    return replace(base, fit=replace(base.fit, **changes))
