"""What a metric is: how it is computed, and how it appears in tables."""

import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from uadray.errors import PluginError
from uadray.metrics.lesionwise import LESION_LIMITS
from uadray.metrics.tested import Tested, Values, Weighted


@dataclass(frozen=True, kw_only=True)
class Appearance:
    """How a figure appears in tables; records of evaluations keep it of metrics from outside."""

    key: str
    """Name in records, CSV files and protocols."""
    head: str
    """Name in tables; Dice_D and Dice_S have real subscripts on pages."""
    note: str = ""
    """What is said below its name."""
    higher_is_better: bool = True
    """Which way is better."""
    deviation: str = ""
    """Key of the metric that stands after it with ±."""
    has_interval: bool = True
    """Whether an interval over people is made."""
    shown: bool = True
    """Whether it has a column in the main table, and in model cards."""
    shows_interval: bool = True
    """Whether tables show its interval."""
    printed: bool = True
    """Whether it has a column on a printed page, which holds fewer."""
    brief: str = ""
    """Its head where there is little room: on the terminal, and over seeds; empty for not there."""
    compared: bool = False
    """Whether differences between methods are shown in it."""
    in_sweeps: bool = False
    """Whether leaderboards and tables of a setting's effect have it."""


@dataclass(frozen=True, kw_only=True)
class Metric(Appearance):
    """One figure of a method on a test part."""

    value: Callable[[Tested], float]
    """The figure; NaN where it is undefined."""
    weighted: Callable[[Weighted], Values] | None = None
    """(R,) figures of weightings, for its interval; None computes `value` without each person,
    which takes as many times as long as there are people."""
    people: Callable[[Tested], Values] | None = None
    """(N,) how much each subject weighs in it; None where they count alike."""
    at_threshold: bool = False
    """Whether it moves with the frozen threshold."""
    limits: tuple[float, float] = (0.0, 1.0)
    """Ends of its range; the upper one, or both, may be infinite."""
    searches_threshold: bool = False
    """Whether it is at a threshold that is searched on the test part."""

    @property
    def is_filtered(self) -> bool:
        """Whether it is of voxels above a threshold, as after a component filter, not of scores."""
        return self.at_threshold or self.searches_threshold


_TAKEN = {
    *LESION_LIMITS,
    # Beside the metrics of a record.
    *("threshold", "threshold_rule", "threshold_fitted_on", "num_subjects", "num_lesion"),
    *("num_subjects_with_lesion", "num_lesion_eroded", "num_lesions", "num_lesions_detected"),
    *("num_with_surface", "id", "split", "subject"),
    # Heads of other columns.
    *("method", "name", "line", "value", "fits", "p", "p_holm", "verdict", "reference", "status"),
    *("cohort", "cohort_fingerprint", "notes", "caveats", "lesion_lost_to_erosion", "rank"),
    *("healthy_reconstruction", "healthy_l1", "seconds_per_volume", "fit_minutes", "best_epoch"),
    *("num_parameters", "num_threshold", "num_test", "num_people", "num_comparisons", "minutes"),
    *("plain_baseline", "seed", "run_fingerprint", "run", "setting", "others", "epochs", "memory"),
    *("objective", "seconds_per_slice"),
}
"""What records and tables hold beside metrics."""

_ENDS = ("_low", "_high", "_published", "_difference")
"""What names of further columns end with."""


def check_metric(name: str, entry: Any) -> None:
    """Refuse what an entry point of another package leads to where it is no metric of that name.

    Raises:
        PluginError: it is so.
    """
    if not isinstance(entry, Metric):
        raise PluginError(
            "expected a uadray.metrics.table.Metric at the top of the module, came "
            f"{entry.__name__ if isinstance(entry, type) else 'a ' + type(entry).__name__}"
        )
    if entry.key != name:
        raise PluginError(f"its key is {entry.key!r}: the entry point must bear that name")
    if not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise PluginError(f"a key is small letters, digits and _, was {name!r}")
    if name in _TAKEN or name.endswith(_ENDS) or name.startswith("filtered_"):
        raise PluginError(f"records and tables hold something else as {name!r}: name it otherwise")
    for field in fields(Appearance):
        if not isinstance(field.type, type) or type(getattr(entry, field.name)) is not field.type:
            raise PluginError(
                f"{field.name} must be {field.type}, was {getattr(entry, field.name)!r}"
            )
    if not entry.head.strip():
        raise PluginError("head must be a name for tables, was empty")
    if not callable(entry.value):
        raise PluginError(f"value must be a function, was {entry.value!r}")
    for part in ("weighted", "people"):
        if not ((function := getattr(entry, part)) is None or callable(function)):
            raise PluginError(f"{part} must be a function or None, was {function!r}")
    if entry.compared and not entry.has_interval:
        raise PluginError("compared needs has_interval: differences have intervals, too")
    ends = entry.limits
    numbers = isinstance(ends, tuple) and [isinstance(end, (int, float)) for end in ends]
    if numbers != [True, True] or not ends[0] < ends[1] or ends[0] == -np.inf != -ends[1]:
        raise PluginError(
            f"limits must be the ends of its range, such as (0.0, 1.0), (0.0, inf) or (-inf, inf), "
            f"were {ends!r}"
        )
