"""Who is in a cohort: how what is known of its people is spread over its parts."""

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from uadray.store import Cohort
from uadray.strata import UNKNOWN, By

MAX_GROUPS = 12
"""Words of a column that the page shows; the others are one line."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How one column is spread over a cohort's people."""

    column: str
    """Its name."""
    parts: tuple[str, ...]
    """Of the cohort."""
    groups: tuple[tuple[str, tuple[int, ...]], ...]
    """Name of a group, and how many people it has in each part; who is unknown comes last."""
    totals: tuple[int, ...]
    """People of each part."""

    @property
    def most(self) -> float:
        """The largest share that a group has of a part."""
        shares = [
            n / total
            for _, counts in self.groups
            for n, total in zip(counts, self.totals, strict=True)
        ]
        return max(shares, default=0.0) or 1.0


def spreads(cohort: Cohort) -> list[Spread]:
    """One for each column of a cohort's covariates; a person counts once, by the first scan."""
    table = cohort.columns("subject", "split")
    first = ~table.duplicated("subject")
    known, part_of = cohort.covariates[first], table.loc[first, "split"]
    parts = tuple(dict.fromkeys(part_of))
    found = []
    for column in map(str, known):
        groups = _groups(column, known[column])
        counts = pd.crosstab(groups, part_of).reindex(groups.cat.categories, fill_value=0)
        lines = zip(counts.index, counts[[*parts]].to_numpy().tolist(), strict=True)
        found.append(
            Spread(
                column=column,
                parts=parts,
                groups=tuple((str(name), tuple(line)) for name, line in lines if any(line)),
                totals=tuple(int((part_of == part).sum()) for part in parts),
            )
        )
    return found


def _groups(column: str, values: "pd.Series[Any]") -> "pd.Series[Any]":
    """The group of each person, with the groups in order as categories; unknown comes last."""
    by = By(column, _edges(values))
    names = pd.Series([by.group(value) for value in values], index=values.index)
    names = names.str.removeprefix(f"{column} ").mask(values.isna(), UNKNOWN)
    here = names[values.notna()]
    if pd.api.types.is_numeric_dtype(values):
        order = list(dict.fromkeys(here[values.dropna().sort_values().index]))
    else:
        order = list(here.value_counts().index)
        # Names and dates are hardly groups.
        shown = 0 if len(order) > max(MAX_GROUPS, len(here) / 2) else MAX_GROUPS
        if rest := order[shown:]:
            others = f"{len(rest)} {'others' if shown else 'different'}"
            names = names.mask(names.isin(rest) & values.notna(), others)
            order = [*order[:shown], others]
    return names.astype(pd.CategoricalDtype([*dict.fromkeys([*order, UNKNOWN])]))


def _edges(values: "pd.Series[Any]") -> tuple[float, ...]:
    """Where ranges of a column of numbers end, about eight of them; none for a few values."""
    if not pd.api.types.is_numeric_dtype(values) or values.nunique() <= MAX_GROUPS:
        return ()
    low, high = float(values.min()), float(values.max())
    rough = (high - low) / 8
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= rough)
    # Multiples, not sums, so that an edge is the number that it is written as.
    places = range(math.floor(low / step) + 1, math.ceil(high / step))
    return tuple(float(f"{step * place:.12g}") for place in places)
