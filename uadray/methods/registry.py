"""The registry: a class becomes a method by one decorator, and everything else follows from it.

@method("MyAE", source="...", equation="...")
class MyAE(GradientDetector):
    @dataclass(frozen=True, kw_only=True)
    class Settings(Learned):
        width: int = 8
        '''Feature maps of the first layer.'''
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from uadray.errors import ConfigError
from uadray.methods.base import Detector, GradientDetector, Shape, StreamDetector
from uadray.methods.settings import MethodSettings

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


NAMED: dict[str, PublishedMethod] = {}
"""Every method by its name, in the order of the files: the label of its settings, but for the two
of Bengs."""

DETECTORS: dict[str, type[Detector]] = {}
"""Every class of methods by its own name, which is the `type` of its settings in JSON."""


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
    """

    def register(kind: Kind) -> Kind:
        own = f"{kind.__module__}.{kind.__qualname__}"
        if kind.Settings.type_name() != kind.__name__:
            raise ConfigError(f"{own} must have a class Settings of its own")
        if name in NAMED or DETECTORS.get(kind.__name__, kind) is not kind:
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
        later = {n: NAMED.pop(n) for n in list(NAMED) if type(NAMED[n].method) is kind.Settings}
        NAMED.update({name: made} | later)
        DETECTORS[kind.__name__] = kind
        return kind

    return register


def detector_type(name: object) -> type[Detector]:
    """The class of methods of that name, which is the `type` of its settings in JSON.

    Raises:
        ConfigError: there is none.
    """
    if not isinstance(name, str) or name not in DETECTORS:
        raise ConfigError(f"type must be one of {sorted(DETECTORS)}, was {name!r}")
    return DETECTORS[name]


def is_fitted(settings: MethodSettings) -> bool:
    """Whether the method learns from healthy volumes; others score the same on any cohort."""
    return issubclass(detector_type(settings.type_name()), (GradientDetector, StreamDetector))


def build(settings: MethodSettings, shape: Shape) -> Detector:
    """An unfitted detector for volumes of `shape` (Z, Y, X).

    Raises:
        ConfigError: the shape does not suit the method.
    """
    kind: Callable[[MethodSettings, Shape], Detector] = detector_type(settings.type_name())
    return kind(settings, shape)
