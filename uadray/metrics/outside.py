"""Metrics of other packages: found, recorded, and their mistakes kept from everything else.

A package offers one by an entry point of the group `uadray.metrics`, which bears its key and leads
to a `uadray.metrics.table.Metric`. What it raises, or gives that is no figure of its, is a remark
in the record, and no figure; the counts that it gets cannot be written to.
"""

import hashlib
import inspect
import numbers
import sys
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, fields, replace
from functools import cache
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from uadray import plugins
from uadray.errors import EvaluationError, UadrayError, UadrayWarning
from uadray.metrics.counts import TestPart
from uadray.metrics.inference import Fits
from uadray.metrics.table import METRICS, OWN, Appearance, Metric, Tested, Values, Weighted
from uadray.metrics.tested import leave_out

Note = Callable[[str], object]
"""Takes what is wrong with a metric."""


@cache
def installed() -> tuple[Metric, ...]:
    """Metrics of other packages; those that cannot be used are named in a warning, once."""
    own = {metric.key for metric in OWN}
    usable = METRICS.usable(
        lambda key, error: warnings.warn(f"left out: {error}", UadrayWarning, stacklevel=2)
    )
    return tuple(metric for key, metric in usable.items() if key not in own)


def describe(metric: Metric) -> dict[str, Any]:
    """How it appears and which code it is, as JSON values, so that records show it anywhere.

    The digest is of the file that computes it: an evaluation is made again where it has changed.
    """
    module, digest = getattr(metric.value, "__module__", None) or "", ""
    package = METRICS.package(metric.key)
    with suppress(OSError, TypeError, KeyError):
        digest = hashlib.sha256(inspect.getsource(sys.modules[module]).encode()).hexdigest()[:16]
    appearance = {field.name: getattr(metric, field.name) for field in fields(Appearance)}
    return appearance | {"package": package and asdict(package), "digest": digest}


def is_up_to_date(recorded: Mapping[str, Any]) -> bool:
    """Whether an evaluation holds all installed metrics as they are now.

    Args:
        recorded: What it keeps of them, by key; see `describe`.
    """
    for metric in installed():
        kept = recorded.get(metric.key)
        now = describe(metric)
        if not isinstance(kept, Mapping) or any(kept.get(k) != v for k, v in now.items()):
            return False
    return True


def guarded(metric: Metric, note: Note) -> Metric:
    """The metric with NaN wherever its code fails, or gives what is no figure of it.

    Args:
        metric: Of another package.
        note: Called with what is wrong.
    """

    def attempt(compute: Callable[[], Any]) -> Any:
        try:
            with np.errstate(all="ignore"):
                return compute()
        except UadrayError as error:
            note(str(error))
        except (Exception, SystemExit) as error:
            note(plugins.failure(error, getattr(metric.value, "__module__", None) or ""))
        return None

    def inside(values: Values) -> Values:
        low, high = metric.limits
        slack = 1e-9 * max((abs(end) for end in metric.limits if np.isfinite(end)), default=0.0)
        wrong = (values < low - slack) | (values > high + slack) | np.isinf(values)
        if wrong.any():
            note(f"gave {values[wrong][0]:g}, which is not within its limits {low:g} to {high:g}")
        return np.where(wrong, np.nan, np.clip(values, low, high))

    def figure(one: Tested) -> float:
        def compute() -> float:
            given = metric.value(one)
            if isinstance(given, np.ndarray) and given.ndim == 0:
                given = given[()]
            if isinstance(given, (bool, np.bool_)) or not isinstance(given, numbers.Real):
                raise EvaluationError(f"gave {type(given).__name__} where a number is expected")
            return float(given)

        made = attempt(compute)
        return np.nan if made is None else float(inside(np.array([made]))[0])

    def array(compute: Callable[[], Any], num: int, what: str) -> Values | None:
        def checked() -> Values:
            given = np.asarray(compute())
            if given.shape != (num,) or given.dtype.kind not in "iuf":
                raise EvaluationError(
                    f"{what} gave {given.dtype} {given.shape} where ({num},) numbers are expected"
                )
            return given.astype(np.float64)

        made: Values | None = attempt(checked)
        return made

    def value(one: Tested) -> float:
        return figure(Tested(_fixed(one.part), one.threshold, _fixed(one.searched)))

    def weighted(one: Weighted) -> Values:
        weights = one.weights.view()
        weights.flags.writeable = False
        safe = Weighted(_fixed(one.part), one.threshold, weights, _fixed(one.searched))
        nothing = np.full(len(weights), np.nan)
        if metric.weighted is None:
            return leave_out(figure, safe)
        with_weights = metric.weighted
        made = array(lambda: with_weights(safe), len(weights), "weighted")
        if made is None:
            return nothing
        made, everyone = inside(made), figure(safe)
        if not np.isclose(made[0], everyone, rtol=1e-6, atol=1e-12, equal_nan=True):
            note(f"weighted gives {made[0]:g} with everyone, value {everyone:g}")
            return nothing
        return made

    def people(one: Tested) -> Values:
        weigh = metric.people
        assert weigh is not None
        num = len(one.part.subjects)
        safe = Tested(_fixed(one.part), one.threshold, _fixed(one.searched))
        made = array(lambda: weigh(safe), num, "people")
        if made is not None and not (np.isfinite(made) & (made >= 0)).all():
            note("people gave weights below 0 or not finite")
            made = None
        return np.ones(num) if made is None else made

    return replace(metric, value=value, weighted=weighted, people=people if metric.people else None)


def remark(value: float | None, fits: Fits | None, noted: str) -> str:
    """What a record says of a metric where something was wrong with it; empty where nothing was.

    Args:
        value: Its figure; None where it has none.
        fits: What its interval is made from; None where it is to have none.
        noted: The first note on it.
    """
    if value is None:
        return f"no figure: {noted}" if noted else "not defined (NaN) on these test subjects"
    if noted and fits is not None and not np.isfinite(fits.values).all():
        return f"no interval: {noted}"
    return noted


def _fixed(part: TestPart) -> TestPart:
    """The same counts, which cannot be written to."""

    def fixed(value: Any) -> Any:
        if isinstance(value, csr_array):
            parts = tuple(map(fixed, (value.data, value.indices, value.indptr)))
            return csr_array(parts, value.shape)
        if not isinstance(value, np.ndarray):
            return value
        view = value.view()
        view.flags.writeable = False
        return view

    return replace(part, **{f.name: fixed(getattr(part, f.name)) for f in fields(part)})
