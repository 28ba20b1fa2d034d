"""Where one person stands among healthy people: scores over age, with bands of percentiles."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from uadray.metrics.normative import SIMILAR_YEARS, percentile_curves
from uadray.metrics.patients import SCORES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from uadray.report.figures import Palette

Values = NDArray[np.float64]

PERCENTILES = (10.0, 50.0, 90.0)
"""Of the curves."""


@dataclass(frozen=True, kw_only=True)
class Healthy:
    """Healthy people that a page shows."""

    ages: Values
    """(N,) in years; NaN where not known."""
    scores: Mapping[str, Values]
    """(N,) by the names of `metrics.patients.SCORES`."""


@dataclass(frozen=True, kw_only=True)
class Placed:
    """The part of a page that says where a person stands."""

    who: str
    """The healthy people, in words."""
    rows: tuple[tuple[str, str, str, str], ...]
    """Score, value, percentile among people of similar age and among all."""
    remarks: tuple[str, ...]
    """What limits the comparison."""
    pictures: tuple[Markup, ...]
    """One a score; none where nobody is compared with."""
    age: str
    """In years; empty where it is not known."""
    years: float = SIMILAR_YEARS
    """Within which people are of similar age."""


def placed(standing: Mapping[str, Any], healthy: Healthy | None) -> Placed:
    """What a page says of a person.

    Args:
        standing: As `summary.json` has it.
        healthy: Whom the person is compared with; None where nobody is known.
    """
    reference, age = standing["reference"], standing["age"]
    scores: Mapping[str, Mapping[str, Any]] = standing["scores"]
    return Placed(
        who="" if reference is None else str(reference["who"]),
        rows=tuple(
            (
                _named(name),
                f"{one['value']:.4g}",
                _text(one.get("similar_age")),
                _text(one.get("all")),
            )
            for name, one in scores.items()
        ),
        remarks=tuple(map(str, standing["remarks"])),
        pictures=()
        if healthy is None
        else tuple(
            picture(healthy, name, float(one["value"]), age)
            for name, one in scores.items()
            if one.get("all")
        ),
        age="" if age is None else f"{age:g}",
    )


def picture(healthy: Healthy, name: str, value: float, age: float | None) -> Markup:
    """One score of healthy people over their ages, and of this person.

    Where ages are not known on either side people stand in the order of their scores.
    """
    from uadray.report.figures import inline

    values, ages = healthy.scores[name], healthy.ages
    if age is None or not np.isfinite(ages).any():
        return inline(
            lambda palette: _over_rank(palette, name, values, value),
            f"{SCORES[name]} of {len(values)} healthy people and of this person",
        )
    return inline(
        lambda palette: _over_age(palette, name, values, ages, value, age),
        f"{SCORES[name]} over age of {int(np.isfinite(ages).sum())} healthy people and of this "
        f"person, {age:g} years; the table has the percentiles",
    )


def _over_age(
    palette: "Palette", name: str, values: Values, ages: Values, value: float, age: float
) -> "Figure":
    from uadray.report.figures import axes_of

    figure, axes = axes_of((4.2, 2.7), palette)
    at = np.linspace(np.nanmin(ages), np.nanmax(ages), 101)
    low, middle, high = percentile_curves(at, values, ages, PERCENTILES).T
    if name == "volume":
        low = np.maximum(low, 0)  # the trend may move somebody below it
    axes.fill_between(at, low, high, color=palette.accent, alpha=0.16, linewidth=0)
    axes.plot(at, middle, color=palette.accent, linewidth=1.6)
    axes.plot(ages, values, "o", color=palette.muted, markersize=3.5, alpha=0.7)
    axes.axvline(age, color=palette.plain, linewidth=0.8, alpha=0.6)
    axes.plot([age], [value], "D", color=palette.plain, markersize=7)
    axes.set_xlabel("age, years")
    axes.set_ylabel(_short(name))
    return figure


def _over_rank(palette: "Palette", name: str, values: Values, value: float) -> "Figure":
    from uadray.report.figures import axes_of

    figure, axes = axes_of((4.2, 2.7), palette)
    ordered = np.sort(values)
    axes.plot(np.arange(1, len(ordered) + 1), ordered, "o", color=palette.muted, markersize=3.5)
    axes.axhline(value, color=palette.plain, linewidth=0.8, alpha=0.6)
    rank = np.searchsorted(ordered, value) + 0.5
    axes.plot([rank], [value], "D", color=palette.plain, markersize=7)
    axes.set_xlabel("healthy people, by score")
    axes.set_ylabel(_short(name))
    return figure


_SHORT: Mapping[str, str] = {
    "volume": "predicted volume, mL",
    "maximum": "highest score",
    "percentile": "99.9th percentile",
    "top_mean": "mean of the highest",
}


def _short(name: str) -> str:
    return _SHORT.get(name, name)


def _named(name: str) -> str:
    words = SCORES[name] + (", mL" if name == "volume" else "")
    return words[0].upper() + words[1:]


def _text(one: Mapping[str, Any] | None) -> str:
    if one is None:
        return ""
    bounds: Sequence[float] = one["interval"]
    return (
        f"{one['percentile']:.0f} [{bounds[0]:.0f}, {bounds[1]:.0f}], {one['num_people']:g} people"
    )
