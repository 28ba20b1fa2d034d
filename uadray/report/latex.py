"""The tables as LaTeX with booktabs, one `longtable` each, to be taken into a paper as they are."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from uadray.html import ABSENT
from uadray.report import columns, compare
from uadray.report.columns import LESION_COLUMNS, METHOD, Column, main_columns
from uadray.report.effects import effect_columns
from uadray.report.rows import CohortRows, Row, metrics_of
from uadray.report.sweep import Sweep
from uadray.report.words import Compared

_MARKS = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "\N{MINUS SIGN}": r"$-$",
    "\N{PLUS-MINUS SIGN}": r"$\pm$",
    "\N{EN DASH}": "--",
    "\N{MIDDLE DOT}": r"$\cdot$",
    "\N{RIGHTWARDS ARROW}": r"$\rightarrow$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
}
_TERMS = {"Dice_D": r"Dice\textsubscript{D}", "Dice_S": r"Dice\textsubscript{S}"}


def to_latex(compared: Sequence[Compared], title: str, sweep: Sweep | None = None) -> str:
    """All tables, each with the cohort's notes in its caption.

    Args:
        compared: The cohorts.
        title: Stands on top as a comment.
        sweep: Effects of settings, if any.

    Returns:
        LaTeX that needs `booktabs`, `longtable`, and an engine or `inputenc` for UTF-8 names.
    """
    parts = [
        f"% {' '.join(title.split())}",
        r"% \usepackage{booktabs,longtable}; square brackets: 95 % intervals over test",
        "% people; where several fits are averaged, over people and fits.",
        "",
    ]
    for n, cohort in enumerate(compared, start=1):
        group = cohort.group
        where = f"on {group.name}" + "".join(f" [{note}]" for note in group.notes)
        size = subjects_of(group)
        printed = _published_columns(group.rows)
        caption = f"Results {where}: {size}. Best figure of each column in bold."
        label = f"tab:results-{n}"
        # What fits a page; the CSV holds all.
        fitting = {one.key for one in metrics_of(group.rows) if one.printed}
        shown_columns = [column for column in main_columns(group.rows) if column.key in fitting]
        shown_columns = [METHOD, *shown_columns, *printed]
        parts.append(_table(shown_columns, group.rows, caption, label, bold=True))
        if columns.has_lesions(group.rows):
            caption = f"Lesion by lesion {where}: {size}."
            parts.append(_table(LESION_COLUMNS, group.rows, caption, f"tab:lesions-{n}"))
        for k, table in enumerate(cohort.comparisons, start=1):
            if table.comparisons:
                caption = (
                    f"Paired differences from {table.reference.label} {where}, over people and "
                    "fits; p in brackets is corrected for all comparisons (Holm)."
                )
                paired = compare.comparison_columns(table.comparisons)
                parts.append(_table(paired, table.comparisons, caption, f"tab:paired-{n}-{k}"))
        for k, effect in enumerate(e for e in (sweep.effects if sweep else ()) if e.group is group):
            caption = f"Effect of {effect.setting.label} {where}. {effect.method}"
            shown = effect_columns(effect.points)
            parts.append(_table(shown, effect.points, caption, f"tab:effect-{n}-{k + 1}"))
    return "\n".join(parts)


def subjects_of(group: CohortRows) -> str:
    """How many test subjects there are; of too few people no interval can be given."""
    first = group.rows[0].evaluation
    num, none = int(first.values["num_test"]), first.has_too_few_people
    return f"{num} test subject{'' if num == 1 else 's'}" + (
        ", too few for intervals" if none else ""
    )


def _published_columns(rows: Sequence[Row]) -> list[Column[Row]]:
    """Our figures beside the paper's: a column for each figure that it prints."""
    heads = {column.key: column.head for column in main_columns(rows)}
    keys = [key for key in heads if any(key in row.published for row in rows)]
    return [_published(key, heads[key]) for key in keys]


def _published(key: str, head: str) -> Column[Row]:
    def text(row: Row) -> str:
        figure = row.published.get(key)
        if figure is None:
            return ABSENT
        spread = "" if figure.deviation is None else f" ± {figure.deviation:.3f}"
        return f"{figure.value:.3f}{spread}"

    return Column(
        key=f"{key}_published",
        head=f"{head}, published",
        value=lambda row: row.published[key].value if key in row.published else None,
        text=text,
    )


def _table(
    shown_columns: Sequence[Column[Any]],
    items: Sequence[Any],
    caption: str,
    label: str,
    *,
    bold: bool = False,
) -> str:
    best = {c.key: _best(c, items) for c in shown_columns[1:]} if bold else {}
    rows = [[_cell(column, item, best) for column in shown_columns] for item in items]
    for row, item in zip(rows, items, strict=True):
        # A bracket or a star after a line break would be taken for its argument.
        guard = "{}" if row[0].startswith(("[", "*")) else ""
        row[0] = f"{guard}{row[0]}{' (plain)' if item.is_plain else ''}"
    heads = [rf"\textbf{{{escape(column.head)}}}" for column in shown_columns]
    notes = [escape(column.note) for column in shown_columns]
    head = pd.MultiIndex.from_arrays([heads, notes] if any(notes) else [heads])
    style = pd.DataFrame(rows, columns=head, dtype=object).style.hide(axis="index")
    return style.to_latex(
        environment="longtable",
        column_format="l" + "r" * (len(shown_columns) - 1),
        hrules=True,
        sparse_columns=False,
        caption=escape(caption),
        label=label,
    )


def _best(column: Column[Any], items: Sequence[Any]) -> Any:
    values = [value for item in items if (value := column.value(item)) is not None]
    if column.first != "descending" or len(values) < 2 or column.key.endswith("published"):
        return None
    return max(values)


def _cell(column: Column[Any], item: Any, best: dict[str, Any]) -> str:
    text, detail = column.text(item), column.detail(item)
    # What a paper printed has a column of its own here.
    detail = detail.partition("published")[0].strip()
    cell = escape(text)
    if best.get(column.key) is not None and column.value(item) == best[column.key]:
        cell = rf"\textbf{{{cell}}}"
    if not detail:
        return cell
    return rf"{cell} {{\small {escape(detail)}}}"


def escape(text: str) -> str:
    """`text` as LaTeX shows it, the papers' terms with their subscripts."""
    for term, mark in _TERMS.items():
        if term in text:
            return mark.join(escape(part) for part in text.split(term))
    return "".join(_MARKS.get(c, " " if c.isspace() else c) for c in text)
