"""Lets `uadray.predict` be a package and a function in one.

A module's class may be changed (Python data model, section 3.3.2.1); with a `__call__` it is both.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _Verb(ModuleType):
    """A package that, called, calls the function of its name in `uadray.api`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(import_module("uadray.api"), self.__name__.rpartition(".")[2])(
            *args, **kwargs
        )


def make_verb(package: str) -> None:
    """Let a package be called; for its own `__init__`."""
    sys.modules[package].__class__ = _Verb
