"""Torch, imported when it is first used.

Importing it takes longer than a help text, a listing of runs or a preparation may. Modules that
take their names from here, and derive from this `Module`, cost nothing until they compute: that is
how a method's settings can stand in one file with its network.

Annotations that are evaluated must not touch `torch` or `nn`: `Tensor` and `Module` are safe, all
others stand in quotes.
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import torch as torch
    from torch import Tensor as Tensor
    from torch import nn as nn
    from torch.nn import Module as Module
    from torch.nn import functional as functional
else:

    class _Lazy(ModuleType):
        """Stands for a module; keeps what was asked for, so that asking again costs nothing."""

        def __getattr__(self, name: str) -> Any:
            value = getattr(import_module(self.__name__), name)
            setattr(self, name, value)
            return value

    torch, nn, functional = map(_Lazy, ("torch", "torch.nn", "torch.nn.functional"))
    Tensor = Any

    class _Nothing:
        """What `Module` derives from before torch is there; Python forbids to replace `object`."""

    class Module(_Nothing):
        """`torch.nn.Module`, from which it derives as soon as the first object is made."""

        def __new__(cls, *args: Any, **kwargs: Any) -> Self:  # noqa: D102
            if Module.__bases__ == (_Nothing,):
                Module.__bases__ = (nn.Module,)
            return super().__new__(cls)
