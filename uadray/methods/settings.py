"""What the settings of all methods share."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from uadray.errors import ConfigError
from uadray.plugins import Package

Norm = Literal["none", "batch", "group"]


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


_LIMITS: dict[str, Callable[[Any], bool]] = {
    ">= 0": lambda value: value >= 0,
    ">= 1": lambda value: value >= 1,
    ">= 2": lambda value: value >= 2,
    "> 0": lambda value: value > 0,
    "in [0, 1]": lambda value: 0 <= value <= 1,
    "in [0, 1)": lambda value: 0 <= value < 1,
    "in (0, 1]": lambda value: 0 < value <= 1,
    "in (0, 1)": lambda value: 0 < value < 1,
}


def check_limits(settings: Any, prefix: str = "method.", /, **limits: str) -> None:
    """Refuse settings out of their limits.

    Args:
        settings: A dataclass.
        prefix: Stands before a field's name, such as `fit.`.
        limits: Of each field, such as `dropout="in [0, 1)"`.

    Raises:
        ConfigError: one is; the message names the field.
    """
    for name, expected in limits.items():
        value = getattr(settings, name)
        check(_LIMITS[expected](value), f"{prefix}{name}", expected, value)


def check_widths(widths: tuple[int, ...], at_least: int = 1, name: str = "method.widths") -> None:
    """Refuse widths that group normalisation cannot divide, or too few.

    Raises:
        ConfigError: they are.
    """
    holds = len(widths) >= at_least and all(w % 8 == 0 and w > 0 for w in widths)
    expected = "multiples of 8" if at_least == 1 else "two or more multiples of 8"
    check(holds, name, expected, widths)


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """Settings of a method: the class `Settings` in the method's own."""

    name: ClassVar[str] = ""
    """The method's, which its decorator sets; of several the last."""

    package: ClassVar[Package | None] = None
    """Of a method from outside of uadray, which its decorator sets."""

    @property
    def label(self) -> str:
        """Its name in tables, such as `sVAE-GAN`, without dimension and erasing.

        Where a class has several names its settings decide which. Empty for a method that is named
        by dimension and erasing alone, as that of Bengs 2021.
        """
        return self.name or self.type_name()

    @classmethod
    def type_name(cls) -> str:
        """Name of the method's class: `type` in JSON. From outside of uadray, its place."""
        name = cls.__qualname__.removesuffix(".Settings").rpartition(".")[2]
        return name if cls.package is None else f"{cls.__module__}:{name}"


@dataclass(frozen=True, kw_only=True)
class Learned(MethodSettings):
    """Settings of a method that learns by gradient."""

    erases: ClassVar[bool] = True
    """Whether it may learn from erased input."""

    ndim: Literal[2, 3] = 2
    """2: axial slices; 3: whole volumes."""


@dataclass(frozen=True, kw_only=True)
class Convolutional(Learned):
    """Settings of the convolutions that most methods have in common."""

    widths: tuple[int, ...] = (32, 64, 128, 128)
    """Feature maps of the convolutions, kernel 5 stride 2: `min(128, 32 * 2^i)`, as in the
    comparative study. Four halve a slice of 256 to the 16 x 16 of Baur 2018, table 1; at other
    sizes their number stays, so that a place of the latent sees as many pixels."""
    norm: Norm = "group"
    """Normalisation after each convolution. Both studies have batches; groups of channels do not
    depend on what else is in a worker's batch."""
    slope: float = 0.3
    """Negative slope of the leaky ReLU (the study's; Baur 2018 names no activation)."""

    def __post_init__(self) -> None:
        check_widths(self.widths)
        check_limits(self, slope="in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class DenseLatent(Convolutional):
    """The same with a vector as the latent."""

    latent_size: int = 128
    """Units of the latent."""
    bottleneck: int = 16
    """Maps of the 1x1 convolution before it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_limits(self, latent_size=">= 1")
