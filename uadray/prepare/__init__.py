"""From scans to a cohort: layouts, steps, phantom, lesion synthesis, ingest."""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _Verb(ModuleType):
    """This package, which is called as the verb of its name, too: `uadray.prepare(...)`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return import_module("uadray.api").prepare(*args, **kwargs)


sys.modules[__name__].__class__ = _Verb
