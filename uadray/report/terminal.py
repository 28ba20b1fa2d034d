"""The tables of a report for the terminal."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from uadray.errors import RunError
from uadray.html import ABSENT
from uadray.metrics.table import OWN
from uadray.report.columns import SPECIFICITY, Column, main_columns, number
from uadray.report.compare import merge_folds
from uadray.report.rows import CohortRows, Row, group_by_cohort, metrics_of
from uadray.runs.records import RunRecord

MIN_METHOD = 12
"""Characters that the names of methods get at least; other columns go first."""


def terminal_table(runs: Sequence[RunRecord], cohort: str, *, width: int = 80) -> Table:
    """The table of one cohort for the terminal, with the columns that fit it.

    Args:
        runs: What `load_runs` gave.
        cohort: Name of the lesioned cohort.
        width: Characters of a line; what does not fit is left out from the right, and named.

    Raises:
        RunError: no run was evaluated on a cohort of that name.
    """
    groups = [merge_folds(group) for group in group_by_cohort(runs) if group.name == cohort]
    if not groups:
        known = sorted({e.cohort for run in runs for e in run.evaluations})
        raise RunError(
            f"no run was evaluated on cohort {cohort!r}; there are {known}: evaluate it first"
        )
    rows = [row for group in groups for row in group.rows]
    heads = {"method": "Method"} | {one.key: one.brief for one in metrics_of(rows) if one.brief}
    heads[SPECIFICITY.key] = "Specificity\n[95 %]"
    # What has no short head has its own.
    columns = [one for one in main_columns(rows) if one.key in {"fit_minutes", *heads}]

    def table(num: int) -> Table:
        return _table(groups, columns[:num], columns[num:], heads)

    return fitting(table, len(columns), width)


def protocol_figures(runs: Sequence[RunRecord], cohort: str) -> list[str]:
    """A line for each run with what its protocol reports and no table of the terminal shows."""
    by_key, lines = {metric.key: metric for metric in OWN}, []
    for group in (group for group in group_by_cohort(runs) if group.name == cohort):
        for row in group.rows:
            wanted = (row.evaluation.values.get("protocol") or {}).get("metrics") or ()
            known = [by_key[key] for key in wanted if key in by_key]
            hidden = [m for m in known if not m.shown and m.key != "dice_s_std"]
            hidden_figures = [f"{m.head} {number(row.evaluation.metric(m.key))}" for m in hidden]
            lines += [f"{row.run.label}: {', '.join(hidden_figures)}"] if hidden_figures else []
    return lines


def fitting(build: Callable[[int], Table], num_columns: int, width: int) -> Table:
    """The table of most columns that fits a line, the first column at least."""
    endless = Console(width=10_000)
    for num in range(num_columns, 1, -1):
        table = build(num)
        # Names are folded; figures are not.
        table.columns[0].max_width = MIN_METHOD
        needed = Measurement.get(endless, endless.options, table).maximum
        table.columns[0].max_width = None
        if needed <= width:
            return table
    return build(1)


def _table(
    groups: Sequence[CohortRows],
    columns: Sequence[Column[Row]],
    left_out: Sequence[Column[Row]],
    heads: Mapping[str, str],
) -> Table:
    notes = "".join(f" [{note}]" for group in groups[:1] for note in group.notes)
    counts = sorted({row.evaluation.values["num_test"] for g in groups for row in g.rows})
    subjects = "subject" if counts == [1] else "subjects"
    table = Table(
        title=Text(f"{groups[0].name}{notes}, {' or '.join(map(str, counts))} test {subjects}"),
        caption=Text(
            f"{_intervals(groups)} Italic: plain baseline.\n"
            "Upper bound: Dice_D, threshold chosen on the test part." + _not_shown(left_out)
        ),
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for column in columns:
        head = Text(heads.get(column.key) or f"{column.head}\n{column.note}")
        is_name = column.key == "method"
        justify: Literal["left", "right"] = "left" if is_name else "right"
        table.add_column(
            head,
            justify=justify,
            no_wrap=not is_name,
            overflow="fold",
            min_width=MIN_METHOD if is_name else None,
        )
    for group in groups:
        for row in group.rows:
            cells = (f"{column.text(row)}\n{column.detail(row)}".rstrip() for column in columns)
            table.add_row(*map(Text, cells), style="italic" if row.run.is_plain else "bold")
        table.add_section()
    return table


def _intervals(groups: Sequence[CohortRows]) -> str:
    if all(row.evaluation.has_too_few_people for group in groups for row in group.rows):
        return "No intervals: too few people."
    if any(row.run.fold for group in groups for row in group.rows):
        return "[95 %]: over people, and over fits where there are folds."
    return "[95 %]: over people."


def _not_shown(left_out: Sequence[Column[Row]]) -> str:
    if not left_out:
        return ""
    heads = ", ".join(column.head for column in left_out)
    return f"\nToo narrow for {heads}: see the report."


def terminal_summary(runs: Sequence[RunRecord], *, width: int = 80) -> Table:
    """One table over all cohorts: Dice_D, AUPRC and what packages add to sweeps, with intervals.

    The best mean Dice_D comes first.

    Args:
        runs: What `load_runs` gave.
        width: Characters of a line; cohorts that do not fit are left out, and named.

    Raises:
        RunError: no run was evaluated.
    """
    groups = group_by_cohort(runs)
    if not groups:
        raise RunError("no run was evaluated: run jobs/evaluate.py first")
    rows = [row for group in groups for row in group.rows]
    keys = {one.key for one in metrics_of(rows) if one.in_sweeps}
    columns = [column for column in main_columns(rows) if column.key in keys]

    def summary(num: int) -> Table:
        return _summary(runs, groups, (num - 1) // len(columns), columns)

    return fitting(summary, 1 + len(columns) * len(groups), width)


def _summary(
    runs: Sequence[RunRecord],
    all_groups: Sequence[CohortRows],
    num: int,
    columns: Sequence[Column[Row]],
) -> Table:
    groups = all_groups[:num]
    left_out = ", ".join(group.name for group in all_groups[num:])
    table = Table(
        caption=Text(
            "[95 %]: over test people. Italic: plain baseline.\n"
            "Thresholds were fitted on other subjects of the same cohort.\n"
            + "\n".join(f"{g.name}: {', '.join(g.notes)}." for g in all_groups if g.notes)
            + (f"\nToo narrow for {left_out}: see the report." if left_out else "")
        ),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column(Text("Method"), overflow="fold", min_width=MIN_METHOD)
    for group in groups:
        size = f"{group.name}, n = {group.rows[0].evaluation.values['num_test']}"
        for column in columns:
            head = Text(f"{size}\n{column.head} [95 %]")
            table.add_column(head, justify="right", no_wrap=True)
    places = [{row.run.label: row for row in group.rows} for group in all_groups]

    def rank(run: RunRecord) -> float:
        values = [p[run.label].evaluation.metric("dice_d") for p in places if run.label in p]
        known = [v for v in values if v is not None]
        return -sum(known) / len(known) if known else 1.0

    for run in sorted((r for r in runs if any(r.label in p for p in places)), key=rank):
        cells = [run.label]
        for place in places[:num]:
            for column in columns:
                row = place.get(run.label)
                cell = f"{column.text(row)}\n{column.detail(row)}" if row else ABSENT
                cells.append(cell.rstrip())
        table.add_row(*map(Text, cells), style="italic" if run.is_plain else "bold")
    return table
