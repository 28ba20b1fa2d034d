"""The verbs: each reads its flags, calls one function, and says where the output is.

`python jobs/train.py` and `uadray train` are the same; the first is for a checkout of the
repository and for `ray job submit`, the second for whatever `pip` has installed.
"""

import os
import sys
from importlib import import_module
from pkgutil import iter_modules
from typing import NoReturn

from uadray import cli

VERBS = tuple(module.name for module in iter_modules(__path__))
"""Their names."""


def start(verb: str) -> NoReturn:
    """Run a verb with the arguments of the process, and end the process."""
    # The folder of the script: a module of a user's there may be named as one of the verbs.
    if sys.path and sys.path[0] == os.path.dirname(os.path.abspath(sys.argv[0])):
        del sys.path[0]
    # It is imported in there, since what a signal ends may be an import.
    cli.run(lambda: import_module(f"{__name__}.{verb}").main())


def about(verb: str) -> str:
    """The first line of a verb's help, without importing it."""
    from pydoc import synopsis  # for a help text alone

    return synopsis(os.path.join(__path__[0], f"{verb}.py")) or ""
