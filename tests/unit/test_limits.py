"""Every number of every settings dataclass: taken, or refused by the field's name."""

import dataclasses
import math
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from uadray.config import ErasingConfig, Experiment, FitConfig
from uadray.errors import ConfigError
from uadray.evaluation.protocols import EvaluateConfig
from uadray.methods import DETECTORS, MethodSettings
from uadray.methods.ensemble import Ensemble
from uadray.metrics.settings import ComponentConfig, PostprocessConfig
from uadray.train.settings import ScaleConfig
from uadray.tune.settings import SweepConfig
from uadray.tune.space import Space

METHODS = tuple(kind.Settings for kind in DETECTORS.values() if kind is not Ensemble)
"""Without ensembles, whose settings are their members': no command line gives them."""
SETTINGS = (
    *(ErasingConfig, FitConfig, EvaluateConfig, PostprocessConfig, ComponentConfig),
    *(ScaleConfig, SweepConfig, Space, *METHODS),
)
NEVER_NEGATIVE = {
    *("seed", "gpus_per_trial", "bottleneck", "epochs", "batch_size", "num_resamples"),
    *("learning_rate", "latent_size", "betas", "max_trials", "max_hours", "data_share"),
}


def numbers(cls: type) -> Iterator[tuple[str, Any]]:
    """Fields that hold a number, or several, and their defaults."""
    base = cls()
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        inner = {hints[field.name], *typing.get_args(hints[field.name])}
        if {int, float} & inner and not isinstance(getattr(base, field.name), (bool, str)):
            yield field.name, getattr(base, field.name)


def build(cls: type, name: str, default: Any, value: float) -> None:
    """Make the settings, and what is made of them."""
    given = (value,) * max(1, len(default)) if isinstance(default, tuple) else value
    made = dataclasses.replace(cls(), **{name: given})  # type: ignore[type-var]
    if isinstance(made, MethodSettings):
        Experiment(method=made)
    if isinstance(made, Space):
        made.trials()


FIELDS = [(cls, name, default) for cls in SETTINGS for name, default in numbers(cls)]


@pytest.mark.parametrize(
    ("cls", "name", "default"), FIELDS, ids=[f"{one[0].__qualname__}.{one[1]}" for one in FIELDS]
)
def test_odd_values_are_taken_or_named(cls: type, name: str, default: Any) -> None:
    for value in (-1, 0, -1.5, math.nan, math.inf, -math.inf):
        refused = ""
        try:
            build(cls, name, default, value)
        except ConfigError as error:
            refused = str(error)
        known = {name, name.removesuffix("s"), "levels"}  # of a space, and what widths allow
        assert not refused or any(one in refused for one in known), refused
        if not math.isfinite(value) or (value < 0 and name in NEVER_NEGATIVE):
            assert refused, f"{cls.__qualname__}.{name} = {value} was taken"


@pytest.mark.parametrize(
    ("job", "flags", "message"),
    [
        ("report", ["x", "--viewer", "-1"], "--viewer must be >= 0"),
        ("preview", ["x", "--epochs", "0"], "--epochs must be >= 1"),
        ("train", ["3D-None", "--cohort", "x", "--out", "y", "--fit.learning-rate", "nan"],
         r"fit.learning_rate must be finite"),
        ("tune", ["smoke", "--cohort", "x", "--out", "y", "--sweep.seed", "-1"], "sweep: "),
    ],
)  # fmt: skip
def test_jobs_name_them_without_a_traceback(job: str, flags: list[str], message: str) -> None:
    script = Path(__file__).parents[2] / "jobs" / f"{job}.py"
    done = subprocess.run(
        [sys.executable, script, *flags], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
