"""The registry: a class becomes a method by one decorator, and everything else follows from it.

@uadray.method("MyAE", source="...", equation="...")
class MyAE(GradientDetector):
    @dataclass(frozen=True, kw_only=True)
    class Settings(Learned):
        width: int = 8
        '''Feature maps of the first layer.'''
"""

import inspect
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from uadray import plugins
from uadray.errors import ConfigError, PluginError
from uadray.methods.base import Detector, GradientDetector, Shape
from uadray.methods.settings import Learned, MethodSettings
from uadray.plugins import Package, Registry

Kind = TypeVar("Kind", bound=type[Detector])


@dataclass(frozen=True, kw_only=True)
class PublishedMethod:
    """A method under the name that a paper gives it, with what there is to say about it."""

    method: MethodSettings
    """Its settings in that paper; those in 3D differ by `ndim` alone."""
    source: str
    """Paper and section."""
    equation: str
    """What it minimises and how it scores, in one line."""
    deviations: str = ""
    """Where the paper is silent or we differ from it, and why."""
    fit: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `FitConfig` that the paper sets."""


def _check_entry(name: str, entry: Any) -> None:
    if not isinstance(entry, PublishedMethod):
        raise PluginError("its entry point must bear the name that @uadray.method gives it")


NAMED: Registry[PublishedMethod] = Registry("uadray.methods", "method", _check_entry)
"""Every method by its name: ours in the order of the files, those of others once asked for. It is
the label of their settings, but for the two of Bengs."""

DETECTORS: dict[str, type[Detector]] = {}
"""Every class of methods by the `type` of its settings in JSON: its name, of others its place."""


def method(
    name: str,
    *,
    source: str,
    equation: str,
    deviations: str = "",
    settings: Mapping[str, Any] | None = None,
    fit: Mapping[str, Any] | None = None,
) -> Callable[[Kind], Kind]:
    """Make a detector a method; several of these make it one under several names.

    Its class `Settings` has a default and a docstring in each field; where it has no docstring of
    its own, the detector's stands in help texts.

    Args:
        name: In tables, on command lines and in papers.
        source: As in `PublishedMethod`.
        equation: As there.
        deviations: As there.
        settings: Fields of `Settings` that differ from their defaults.
        fit: As in `PublishedMethod`.

    Raises:
        ConfigError: another method has that name, or another class the name of this one; the class
            has no `Settings` of its own, or these have another label.
        PluginError: a class from outside of uadray breaks another rule.
    """

    def register(kind: Kind) -> Kind:
        own = f"{kind.__module__}.{kind.__qualname__}"
        if not kind.__module__.startswith("uadray."):
            _check_from_outside(name, kind, own)
            if "package" not in vars(kind.Settings):
                kind.Settings.package = plugins.package_of(kind.__module__, NAMED.group)
        key = kind.Settings.type_name()
        if key.rpartition(":")[2] != kind.__name__:
            raise ConfigError(f"{own} must have a class Settings of its own")
        # A module that is loaded again replaces its own.
        there = [type(NAMED.imported[name].method)] if name in NAMED.imported else []
        there += [DETECTORS[key].Settings] if key in DETECTORS else []
        if any(_place(one) != _place(kind.Settings) for one in there):
            raise ConfigError(f"{own}: there is a method {name!r} or a class of its name already")
        if "name" not in vars(kind.Settings):
            kind.Settings.name = name
        if (kind.Settings.__doc__ or "").startswith("Settings("):  # what a dataclass gives itself
            kind.Settings.__doc__ = kind.__doc__
        made = PublishedMethod(
            method=kind.Settings(**(settings or {})),
            source=source,
            equation=equation,
            deviations=deviations,
            fit=fit or {},
        )
        if made.method.label not in (name, ""):
            raise ConfigError(
                f"{own}: the label of {name!r} must be that, was {made.method.label!r}"
            )
        # The decorators of a class run from the last to the first.
        later = {n: m for n, m in NAMED.imported.items() if type(m.method) is kind.Settings}
        for each, one in ({name: made} | later).items():
            NAMED.imported.pop(each, None)
            NAMED.add(each, one, kind.Settings.package, key)
        DETECTORS[key] = kind
        return kind

    return register


def _place(settings: type[MethodSettings]) -> str:
    return f"{settings.__module__}:{settings.__qualname__}"


def _check_from_outside(name: str, kind: Any, own: str) -> None:
    """Refuse what could not be fitted, found again or explained; of our own, tests look at that.

    Raises:
        PluginError: it is so.
    """
    if not re.fullmatch(r"[A-Za-z][\w.+-]*", name):
        raise PluginError(
            f"{own}: the name must be a letter, then letters, digits and . + - _, was {name!r}; "
            "3D- and erasing are added to it"
        )
    if name.endswith(("-n", "-0")):
        raise PluginError(f"{own}: the endings -n and -0 are those of erasing, was {name!r}")
    if not (isinstance(kind, type) and issubclass(kind, Detector)):
        raise PluginError(f"{own} must be a class that derives from uadray.methods.Detector")
    if kind.__module__ == "__main__" or kind.__qualname__ != kind.__name__:
        raise PluginError(
            f"{own} must stand at the top of a module that can be imported, such as my_method.py: "
            "workers and later commands look for it there"
        )
    if missing := sorted(kind.__abstractmethods__):
        raise PluginError(f"{own} must define {', '.join(missing)}")
    settings = vars(kind).get("Settings")
    learns = issubclass(kind, GradientDetector)
    base = Learned if learns else MethodSettings
    fits = isinstance(settings, type) and issubclass(settings, base)
    if not fits or issubclass(settings, Learned) != learns:  # type: ignore[arg-type]
        raise PluginError(
            f"{own} must have a class Settings of its own that derives from "
            f"uadray.methods.{base.__name__}"
        )
    plugins.check_settings(settings, own)  # type: ignore[arg-type]


def name_at(place: str) -> str:
    """The name of the method at `package.module:Class`, which is imported.

    Raises:
        PluginError: there is none, or none that the record of a run could lead to.
    """
    kind = plugins.load(place, here=True)
    for name, one in NAMED.imported.items():
        if inspect.isclass(kind) and type(one.method) is vars(kind).get("Settings"):
            package = one.method.package
            if package is not None and not _may_be_recorded(place, package):
                raise PluginError(
                    f"{place}: the record of a run leads to a class in a file of its own, such as "
                    f"{place.partition(':')[0].rpartition('.')[2]}.py, or to an entry point of the "
                    f"group {NAMED.group} of an installed package, and this is neither: give its "
                    "package that entry point and install it"
                )
            return name
    raise PluginError(f"{place} is no method: decorate the class with @uadray.method")


def detector_type(name: object, package: Package | None = None) -> type[Detector]:
    """The class of methods of that name, which is the `type` of its settings in JSON.

    Args:
        name: Of our own classes the name, of others the place.
        package: What a record says that the place is of; it is imported only where that is here.

    Raises:
        ConfigError: there is none.
        PluginError: its package is not installed, or another version of it.
    """
    if isinstance(name, str) and package is not None:
        _import_recorded(name, package)
    if not isinstance(name, str) or name not in DETECTORS:
        raise ConfigError(f"type must be one of {sorted(DETECTORS)}, was {name!r}")
    return DETECTORS[name]


def _import_recorded(place: str, package: Package) -> None:
    """Import what a record names, which anybody may have written.

    That is a place that an installed package offers by an entry point, or a file that lies itself
    in a folder where Python looks: none that came in a folder of such a folder, such as beside a
    model, since to look for a module of a package runs the package.
    """
    here: Package | None = None
    module, _, name = place.partition(":")
    if place in DETECTORS:
        here = DETECTORS[place].Settings.package
    elif _may_be_recorded(place, package):
        with suppress(PluginError):
            here = plugins.package_of(module, NAMED.group)
    plugins.check_package(f"{name} is a method of", here, package, module)
    if place not in DETECTORS:
        plugins.load(place)


def _may_be_recorded(place: str, package: Package) -> bool:
    """Whether a place is one that a record alone may have imported."""
    module = place.partition(":")[0]
    if not package.distribution:
        return "." not in module and module not in sys.stdlib_module_names
    several = plugins.entries(NAMED.group).values()
    return place in {one.value for entries in several for one in entries}


def is_fitted(settings: MethodSettings) -> bool:
    """Whether the method learns from healthy volumes; others score the same on any cohort."""
    return detector_type(settings.type_name()).is_fitted(settings)


def build(settings: MethodSettings, shape: Shape) -> Detector:
    """An unfitted detector for volumes of `shape` (Z, Y, X).

    Raises:
        ConfigError: the shape does not suit the method.
    """
    kind: Callable[[MethodSettings, Shape], Detector] = detector_type(settings.type_name())
    return kind(settings, shape)
