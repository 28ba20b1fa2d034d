"""What the settings of every method share."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from uadray.errors import ConfigError


def check(holds: bool, name: str, expected: str, got: object) -> None:
    """Refuse a setting.

    Raises:
        ConfigError: it does not hold; the message names the field.
    """
    if not holds:
        raise ConfigError(f"{name} must be {expected}, was {got!r}")


def check_finite(settings: Any, prefix: str) -> None:
    """Refuse settings of which a number is NaN or infinite; comparisons let NaN pass.

    Args:
        settings: A dataclass.
        prefix: Stands before a field's name, such as `fit.`.

    Raises:
        ConfigError: one is; the message names the field.
    """
    for one in dataclasses.fields(settings):
        value = getattr(settings, one.name)
        numbers = value if isinstance(value, (tuple, list)) else (value,)
        for number in numbers:
            if isinstance(number, float) and not math.isfinite(number):
                raise ConfigError(f"{prefix}{one.name} must be finite, was {value!r}")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a method."""

    @property
    def label(self) -> str:
        """Its name in tables, such as `sVAE-GAN`, without dimension and erasing."""
        return type(self).__name__


@dataclass(frozen=True, kw_only=True)
class Learned(Settings):
    """Settings of a method that learns by gradient."""

    erases: ClassVar[bool] = True
    """Whether it may learn from erased input."""

    ndim: Literal[2, 3] = 2
    """2: axial slices; 3: whole volumes."""


@dataclass(frozen=True, kw_only=True)
class Named:
    """A method under the name that a paper gives it, with what there is to say about it."""

    method: Settings
    """Its settings in that paper; those in 3D differ by `ndim` alone."""
    source: str
    """Paper and section."""
    equation: str
    """What it minimises and how it scores, in one line."""
    deviations: str = ""
    """Where the paper is silent or we differ from it, and why."""
    fit: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `FitConfig` that the paper sets."""
