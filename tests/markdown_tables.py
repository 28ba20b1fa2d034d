"""Reads the tables of a Markdown text back, whatever their columns are padded to."""

import re


def rows_of(text: str) -> list[list[str]]:
    """The cells of each line of each table; a bar after a backslash belongs to its cell."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[c.strip() for c in re.split(r"(?<!\\)(?:\\\\)*\|", line)[1:-1]] for line in lines]
    return [cells for cells in rows if not re.fullmatch(r"[:-]*", "".join(cells) or " ")]
