"""The tables as CSV, Markdown and LaTeX."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from uadray import files, tables
from uadray.report import columns, compare
from uadray.report.columns import (
    CONTROL_COLUMNS,
    LESION_COLUMNS,
    Column,
    filter_columns,
    main_columns,
)
from uadray.report.controls import controls_of
from uadray.report.effects import effect_columns
from uadray.report.ensembles import gain_columns, gains_of
from uadray.report.finds import froc_columns, with_finds
from uadray.report.latex import to_latex
from uadray.report.rows import CohortRows
from uadray.report.strata import HEAD, lines_of, strata_of
from uadray.report.sweep import Sweep, describe_span
from uadray.report.words import Compared
from uadray.tables import escape


def write_tables(
    compared: Sequence[Compared], stem: str, *, title: str, sweep: Sweep | None = None
) -> list[str]:
    """Write every table of a report.

    Args:
        compared: The cohorts.
        stem: Path or URL without its ending: `.csv`, `-paired.csv`, `-groups.csv` (where
            people were grouped), `-ensembles.csv` (of ensembles with their members), `-sweep.csv`
            (of a sweep), `.md` and `.tex` are appended to it.
        title: Head of the Markdown and the LaTeX.
        sweep: Effects of settings, if any.

    Returns:
        What was written; each file is replaced whole.
    """
    texts = {
        ".csv": to_csv([cohort.group for cohort in compared]),
        "-paired.csv": to_paired_csv(compared),
        ".md": to_markdown(compared, title, sweep),
        ".tex": to_latex(compared, title, sweep),
    }
    if lines := lines_of([cohort.group for cohort in compared]):
        texts["-groups.csv"] = tables.to_csv(list(HEAD), lines)
    if any(gains_of(cohort.group) for cohort in compared):
        texts["-ensembles.csv"] = to_ensembles_csv(compared)
    if sweep is not None:
        texts["-sweep.csv"] = to_sweep_csv(sweep)
    for ending, text in texts.items():
        files.write_bytes(f"{stem}{ending}", text.encode())
    return [f"{stem}{ending}" for ending in texts]


def to_ensembles_csv(compared: Sequence[Compared]) -> str:
    """What ensembles gain over their members, unrounded; one line an ensemble and cohort."""
    gains = [(cohort.group, gain) for cohort in compared for gain in gains_of(cohort.group)]
    shown_columns = gain_columns([gain for _, gain in gains])
    head = ["cohort", "cohort_fingerprint", *_heads(shown_columns)]
    lines: list[list[object]] = [
        [group.name, group.fingerprint, *_cells(shown_columns, gain)] for group, gain in gains
    ]
    return tables.to_csv(head, lines)


def to_sweep_csv(sweep: Sweep) -> str:
    """Every point of every effect, unrounded; one line a value of a setting and a line of it."""
    shown_columns = effect_columns([point for effect in sweep.effects for point in effect.points])
    head = ["cohort", "cohort_fingerprint", "setting", "others", *_heads(shown_columns)]
    lines: list[list[object]] = [
        [
            effect.group.name,
            effect.group.fingerprint,
            effect.setting.path,
            effect.method,
            *_cells(shown_columns, point),
        ]
        for effect in sweep.effects
        for point in effect.points
    ]
    return tables.to_csv(head, lines)


def to_csv(groups: Sequence[CohortRows]) -> str:
    """All rows with unrounded figures and interval ends; absent figures are empty."""
    rows = [row for group in groups for row in group.rows]
    shown_columns = (*main_columns(rows), *LESION_COLUMNS[1:], *filter_columns(rows)[1:])
    if with_finds(rows):
        shown_columns += froc_columns()[1:]
    if any(row.evaluation.controls for row in rows):
        controls = [one for group in groups for one in controls_of(group)]
        detection = {column.key: column for one in controls for column in one.columns()[1:]}
        shown_columns += (*CONTROL_COLUMNS[1:-1], *detection.values())
    printed = sorted({name for group in groups for row in group.rows for name in row.published})
    head = ["cohort", "cohort_fingerprint", "notes", *_heads(shown_columns)]
    head += [f"{name}_published" for name in printed]
    head += ["dice_s_std", "num_lesions", "num_lesions_detected"]
    head += ["threshold_rule", "num_threshold", "num_test", "num_people"]
    head += ["plain_baseline", "seed", "run_fingerprint", "run"]
    lines = []
    for group in groups:
        for row in group.rows:
            values = row.evaluation.values
            line: list[object] = [group.name, group.fingerprint, "; ".join(group.notes)]
            line += _cells(shown_columns, row)
            line += [row.published[n].value if n in row.published else None for n in printed]
            line.append(row.evaluation.metric("dice_s_std"))
            line += [values["metrics"].get(n) for n in ("num_lesions", "num_lesions_detected")]
            line += [values["threshold"]["rule"], values["num_threshold"], values["num_test"]]
            line += [values.get("num_people")]
            line += [row.run.is_plain, row.run.seed, row.run.config["fingerprint"], row.run.url]
            lines.append(line)
    return tables.to_csv(head, lines)


def to_paired_csv(compared: Sequence[Compared]) -> str:
    """All paired comparisons, unrounded; differences are method - reference."""
    shown_columns = compare.comparison_columns(
        [one for cohort in compared for table in cohort.comparisons for one in table.comparisons]
    )
    head = ["cohort", "cohort_fingerprint", "reference", *_heads(shown_columns)]
    head += ["p_holm", "num_people", "num_comparisons"]
    lines: list[list[object]] = []
    for cohort in compared:
        for table in cohort.comparisons:
            for one in table.comparisons:
                line: list[object] = [cohort.group.name, cohort.group.fingerprint]
                line += [table.reference.label, *_cells(shown_columns, one)]
                line += [None if np.isnan(one.p) else one.p_holm]
                lines.append([*line, one.num_people, one.num_comparisons])
    return tables.to_csv(head, lines)


def _heads(shown_columns: Sequence[Column[Any]]) -> list[str]:
    ends = ("", "_low", "_high")
    return [f"{c.key}{end}" for c in shown_columns for end in (ends if c.bounds else ends[:1])]


def _cells(shown_columns: Sequence[Column[Any]], item: object) -> list[object]:
    cells: list[object] = []
    for column in shown_columns:
        cells.append(column.value(item))
        if column.bounds is not None:
            cells += column.bounds(item) or (None, None)
    return cells


def to_markdown(compared: Sequence[Compared], title: str, sweep: Sweep | None = None) -> str:
    """The tables as GitHub Markdown, with the sentences above each."""
    lines = [f"# {escape(title)}", ""]
    if sweep is not None:
        lines += ["## Sweep", "", escape(" ".join(sweep.sentences)), ""]
        for cohort, choices in zip(compared, sweep.choices, strict=True):
            lines += [f"- {escape(f'{cohort.group.name}: {line}')}" for line in choices]
        lines += [""]
        for effect in sweep.effects:
            where = f" on {effect.group.name}" if effect.group.name else ""
            lines += [f"### {escape(effect.setting.label.capitalize() + where)}", ""]
            words = " ".join(part for part in (effect.method, describe_span(effect)) if part)
            lines += [escape(words), "", _table(effect_columns(effect.points), effect.points), ""]
    for cohort in compared:
        group = cohort.group
        notes = "".join(f" **[{escape(note)}]**" for note in group.notes)
        lines += [f"## {escape(group.name)}{notes}", ""]
        lines += [escape(sentence) for sentence in (*cohort.sentences, *group.warnings)]
        lines += ["", _table(main_columns(group.rows), group.rows), ""]
        if columns.has_lesions(group.rows):
            lines += ["### Lesion by lesion", "", _table(LESION_COLUMNS, group.rows), ""]
        if columns.has_filter(group.rows):
            filtered = _table(filter_columns(group.rows), group.rows)
            lines += ["### Component filter", "", filtered, ""]
        for controls in controls_of(group):
            lines += ["### Healthy controls", "", _table(CONTROL_COLUMNS, controls.rows), ""]
            lines += [_table(controls.columns(), controls.rows), ""]
        for one in strata_of(group.rows):
            lines += [f"### {one.head} by {escape(one.column)}", ""]
            lines += [*map(escape, one.sentences()), "", _table(one.columns(), one.rows), ""]
        several = [series for series in cohort.series if len(series.rows) > 1]
        if several:
            lines += ["### Over seeds", "", _table(compare.seed_columns(several), several), ""]
        for table in cohort.comparisons:
            if table.comparisons:
                lines += [f"### Paired differences from {escape(table.reference.label)}", ""]
                shown_columns = compare.comparison_columns(table.comparisons)
                lines += [_table(shown_columns, table.comparisons), ""]
    return "\n".join(lines)


def _table(shown_columns: Sequence[Column[Any]], items: Sequence[Any]) -> str:
    heads = [escape(f"{column.head} {_note(column)}".rstrip()) for column in shown_columns]
    rows = [[escape(column.line(item)) for column in shown_columns] for item in items]
    for row, item in zip(rows, items, strict=True):
        row[0] += " (plain baseline)" if item.is_plain else ""
    return tables.to_markdown(heads, rows)


def _note(column: Column[Any]) -> str:
    return f"({column.note})" if column.note and column.note[0] != "[" else column.note
