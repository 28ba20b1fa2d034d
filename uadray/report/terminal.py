"""The tables of a report for the terminal."""

from collections.abc import Sequence
from typing import Literal

from rich import box
from rich.table import Table
from rich.text import Text

from uadray.errors import RunError
from uadray.report.columns import ABSENT, COLUMNS
from uadray.report.load import RunRecord
from uadray.report.rows import group_by_cohort

_TERMINAL = ("method", "dice_d", "dice_s_mean", "auprc", "upper_bound_dice", "fit_minutes")
_SHORT_HEADS = {
    "method": "Method",
    "dice_s_mean": "Dice_S\n± std",
    "upper_bound_dice": "Upper\nbound",
}


def terminal_table(runs: Sequence[RunRecord], cohort: str) -> Table:
    """The table of one cohort for the terminal, with the columns that fit 80 characters.

    Args:
        runs: What `load_runs` gave.
        cohort: Name of the lesioned cohort.

    Raises:
        RunError: no run was evaluated on a cohort of that name.
    """
    groups = [group for group in group_by_cohort(runs) if group.name == cohort]
    if not groups:
        known = sorted({e.cohort for run in runs for e in run.evaluations})
        raise RunError(
            f"no run was evaluated on cohort {cohort!r}; there are {known}: evaluate it first"
        )
    columns = [column for column in COLUMNS if column.key in _TERMINAL]
    notes = "".join(f" [{note}]" for group in groups[:1] for note in group.notes)
    counts = sorted({row.evaluation.values["num_test"] for g in groups for row in g.rows})
    table = Table(
        title=Text(f"{cohort}{notes}, {' or '.join(map(str, counts))} test subjects"),
        caption=Text(
            "[95 %]: bootstrap over subjects. Italic: plain baseline.\n"
            "Upper bound: Dice_D, threshold chosen on the test part."
        ),
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for column in columns:
        head = Text(_SHORT_HEADS.get(column.key, f"{column.head}\n{column.note}"))
        is_name = column.key == "method"
        justify: Literal["left", "right"] = "left" if is_name else "right"
        table.add_column(head, justify=justify, no_wrap=not is_name, overflow="fold")
    for group in groups:
        for row in group.rows:
            cells = (f"{column.text(row)}\n{column.detail(row)}".rstrip() for column in columns)
            table.add_row(*map(Text, cells), style="italic" if row.run.is_plain else "bold")
        table.add_section()
    return table


def terminal_summary(runs: Sequence[RunRecord]) -> Table:
    """One table over all cohorts: Dice_D and AUPRC with intervals, best mean Dice_D first.

    Args:
        runs: What `load_runs` gave.

    Raises:
        RunError: no run was evaluated.
    """
    groups = group_by_cohort(runs)
    if not groups:
        raise RunError("no run was evaluated: run jobs/evaluate.py first")
    columns = [column for column in COLUMNS if column.key in ("dice_d", "auprc")]
    table = Table(
        caption=Text(
            "[95 %]: bootstrap over test subjects. Italic: plain baseline.\n"
            "Thresholds were fitted on other subjects of the same cohort.\n"
            + "\n".join(f"{g.name}: {', '.join(g.notes)}." for g in groups if g.notes)
        ),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column(Text("Method"), overflow="fold", min_width=14)
    for group in groups:
        size = f"{group.name}, n = {group.rows[0].evaluation.values['num_test']}"
        for column in columns:
            head = Text(f"{size}\n{column.head} [95 %]")
            table.add_column(head, justify="right", no_wrap=True)
    places = [{row.run.label: row for row in group.rows} for group in groups]

    def rank(run: RunRecord) -> float:
        values = [p[run.label].evaluation.metric("dice_d") for p in places if run.label in p]
        known = [v for v in values if v is not None]
        return -sum(known) / len(known) if known else 1.0

    for run in sorted((r for r in runs if any(r.label in p for p in places)), key=rank):
        cells = [run.label]
        for place in places:
            for column in columns:
                row = place.get(run.label)
                cell = f"{column.text(row)}\n{column.detail(row)}" if row else ABSENT
                cells.append(cell.rstrip())
        table.add_row(*map(Text, cells), style="italic" if run.is_plain else "bold")
    return table
