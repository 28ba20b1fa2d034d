"""Tables as text: one Markdown and one CSV for reports, cards, papers and benchmarks."""

from collections.abc import Iterable, Sequence

import pandas as pd

_ALIGN = {"l": "left", "r": "right"}
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def to_markdown(head: Sequence[str], rows: Iterable[Sequence[str]], align: str = "lr") -> str:
    """A Markdown table of cells that are Markdown themselves.

    Args:
        head: Name of each column.
        rows: Cells of each row.
        align: `l` or `r` for each column; the last letter serves all that follow.
    """
    sides = [_ALIGN[side] for side in align.ljust(len(head), align[-1])]
    return _frame(head, rows).to_markdown(index=False, disable_numparse=True, colalign=sides)


def to_csv(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Unrounded figures; None is empty, and no text passes for a formula of a spreadsheet."""
    guarded = [[_guard(cell) for cell in row] for row in rows]
    return _frame(head, guarded).to_csv(index=False, lineterminator="\n")


def escape(text: str) -> str:
    """`text` with what Markdown or HTML would take for markup escaped."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    for mark in "\\`*_[]|#":
        text = text.replace(mark, f"\\{mark}")
    return text


def _frame(head: Sequence[str], rows: Iterable[Sequence[object]]) -> pd.DataFrame:
    # As objects: an absent whole number would make a column of floats.
    return pd.DataFrame(list(rows), columns=list(head), dtype=object)


def _guard(cell: object) -> object:
    """Keep a spreadsheet from taking a name for a formula; figures stay figures."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell
