"""Unsupervised anomaly detection in brain MRI, at scale, on Ray."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

# Torch's threads would wait for each other by spinning. Beside any other work (Ray's own processes
# are enough) that costs small steps a multiple of their time. Read when OpenMP is first loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_VERBS = (
    "ensemble",
    "evaluate",
    "evaluate_maps",
    "experiment",
    "export",
    "fit",
    "fit_folds",
    "open_cohort",
    "open_model",
    "open_run",
    "predict",
    "predict_folder",
    "sweep",
)
"""The Python interface, see `uadray.api`; imported when it is first used."""

_FROM = {
    **dict.fromkeys(_VERBS, "uadray.api"),
    **dict.fromkeys(("ScaleConfig", "TrackConfig"), "uadray.train.settings"),
    "FitConfig": "uadray.config",
    "Space": "uadray.tune.space",
    "method": "uadray.methods",
    "prepare": "uadray.prepared",
}
"""Where each name is; `method` makes a class a method, see `uadray.methods.registry`."""

if TYPE_CHECKING:
    from uadray.api import (  # noqa: F401
        ensemble,
        evaluate,
        evaluate_maps,
        experiment,
        export,
        fit,
        fit_folds,
        open_cohort,
        open_model,
        open_run,
        predict,
        predict_folder,
        sweep,
    )
    from uadray.config import FitConfig  # noqa: F401
    from uadray.methods import method  # noqa: F401
    from uadray.prepared import prepare  # noqa: F401
    from uadray.train.settings import ScaleConfig, TrackConfig  # noqa: F401
    from uadray.tune.space import Space  # noqa: F401


def __getattr__(name: str) -> Any:
    if name in _FROM:
        return getattr(import_module(_FROM[name]), name)
    raise AttributeError(f"module 'uadray' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_FROM})
