"""People in groups: by what is known of them, such as `scanner`, `sex` or `age:40:60`."""

import bisect
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from uadray.errors import ConfigError

Value = float | str | None
"""What is known of somebody: a number, a word, or nothing."""

SCANNER = "scanner"
"""What is known of each scan, if no more is."""

UNKNOWN = "unknown"
"""Who is in no other group, since nothing is known of them."""


@dataclass(frozen=True)
class By:
    """What people are grouped by."""

    column: str
    """Of the table of covariates, or `scanner`."""
    edges: tuple[float, ...] = ()
    """Where ranges of numbers end, ascending; a value on an edge belongs to the range above it.
    Without them each value is a group of its own."""

    @classmethod
    def parse(cls, text: str) -> "By":
        """Read `column`, or `column:edge:edge`.

        Raises:
            ConfigError: it is neither, or the edges do not ascend.
        """
        column, *parts = (part.strip() for part in text.split(":"))
        try:
            edges = tuple(map(float, parts))
        except ValueError:
            edges = (math.nan,)
        ascending = all(a < b for a, b in itertools.pairwise(edges))
        if not column or not ascending or not all(map(math.isfinite, edges)):
            raise ConfigError(
                f"expected a column, or a column and where its ranges end, ascending, such as "
                f"age:40:60, was {text!r}"
            )
        return cls(column, edges)

    def __str__(self) -> str:
        return ":".join([self.column, *(f"{edge:g}" for edge in self.edges)])

    def group(self, value: Value) -> str:
        """The group of one value, such as `age 40 to 60` for ages from 40 up to below 60.

        Raises:
            ConfigError: ranges of a word.
        """
        if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
            return f"{self.column} {UNKNOWN}"
        if not self.edges:
            return f"{self.column} {value:g}" if isinstance(value, float) else str(value)
        if isinstance(value, str):
            raise ConfigError(
                f"{self}: {self.column} has words such as {value!r}; ranges are of numbers: give "
                f"{self.column} alone"
            )
        place = bisect.bisect_right(self.edges, value)
        if place == 0:
            return f"{self.column} below {self.edges[0]:g}"
        if place == len(self.edges):
            return f"{self.column} from {self.edges[-1]:g}"
        return f"{self.column} {self.edges[place - 1]:g} to {self.edges[place]:g}"

    def order(self, values: Sequence[Value]) -> list[str]:
        """The groups that some values are in: numbers ascend, then words; unknown comes last.

        Raises:
            ConfigError: see `group`.
        """
        last = self.group(None)
        least: dict[str, tuple[bool, float, str]] = {}
        for value in values:
            name = self.group(value)
            number = value if isinstance(value, (int, float)) else 0.0
            rank = (name == last, 0.0 if name == last else number, name)
            least[name] = min(least.get(name, rank), rank)
        return sorted(least, key=lambda name: least[name])


def groups(by: Sequence[By], people: Sequence[Mapping[str, Value]]) -> list[str]:
    """The group of each of several people by all columns together.

    Args:
        by: What they are grouped by.
        people: What is known of each, by column.

    Raises:
        ConfigError: nobody has such a column.
    """
    known = dict.fromkeys(column for one in people for column in one)
    for one in by:
        if one.column not in known:
            there = f"; known are {', '.join(known)}" if known else ", nor anything else"
            raise ConfigError(f"nothing is known of anybody's {one.column}{there}")
    return [" · ".join(one.group(values.get(one.column)) for one in by) for values in people]
