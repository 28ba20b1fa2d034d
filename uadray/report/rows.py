"""One table per cohort, for every medium: page, CSV, Markdown and terminal show the same rows."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from uadray.report.load import Evaluation, RunRecord

ABSENT = "\N{EN DASH}"
"""Stands where a figure is not defined or was not recorded."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run on one cohort."""

    run: RunRecord
    """The run."""
    evaluation: Evaluation
    """Its evaluation on the cohort of the table."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column: the figure itself, and how it reads."""

    key: str
    """Name in the CSV."""
    head: str
    """Name on the page."""
    value: Callable[[Row], float | str | None]
    """The figure, unrounded."""
    text: Callable[[Row], str]
    """The figure as shown."""
    detail: Callable[[Row], str] = lambda row: ""
    """What stands behind or below it, such as its interval; empty for nothing."""
    note: str = ""
    """A second line of the head: a unit, or what a reader must know."""
    bounds: str = ""
    """Name of the metric whose interval the CSV adds as two columns; empty for none."""
    first: str = "descending"
    """Order of the first click: the best, or the first, on top."""

    def line(self, row: Row) -> str:
        """Text and detail in one line."""
        return f"{self.text(row)} {self.detail(row)}".rstrip()


@dataclass(frozen=True, kw_only=True)
class CohortRows:
    """All evaluations on one lesioned cohort, the highest Dice_D on top."""

    name: str
    """Of the cohort."""
    fingerprint: str
    """Of the cohort; rows of another one are never in the same table."""
    notes: tuple[str, ...]
    """Distinct notes of its subjects, such as `semi-synthetic`; shown beside the name."""
    rows: tuple[Row, ...]
    """Sorted by Dice_D, descending; undefined ones last."""
    warnings: tuple[str, ...]
    """Why some of the rows must not be held against each other; empty where all may."""


def number(value: float | None, digits: int = 3) -> str:
    """A figure with a fixed number of digits, or `ABSENT`."""
    return ABSENT if value is None else f"{value:.{digits}f}"


def short(value: float | None) -> str:
    """A figure with three significant digits, or `ABSENT`."""
    if value is None:
        return ABSENT
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def with_interval(evaluation: Evaluation, metric: str) -> str:
    """`0.476 [0.410, 0.540]`, the 95 % bootstrap interval over subjects in brackets."""
    return f"{number(evaluation.metric(metric))} {_brackets(evaluation, metric)}".rstrip()


def _brackets(evaluation: Evaluation, metric: str) -> str:
    bounds = evaluation.interval(metric)
    return "" if bounds is None else f"[{bounds[0]:.3f}, {bounds[1]:.3f}]"


def _deviation(row: Row) -> str:
    deviation = row.evaluation.metric("dice_s_std")
    return "" if deviation is None else f"± {deviation:.3f}"


def _epochs(row: Row) -> str:
    best, epochs = row.run.summary.get("best_epoch"), row.run.summary.get("epochs")
    return ABSENT if best is None else f"{best} / {epochs if epochs is not None else ABSENT}"


def _millions(row: Row) -> str:
    count = row.run.summary.get("num_parameters")
    if count is None:
        return ABSENT
    return f"{count / 1e6:.2f} M" if count >= 1e5 else f"{count:,}"


def _minutes(row: Row) -> float | None:
    seconds = row.run.summary.get("fit_seconds")
    return None if seconds is None else seconds / 60


def _minutes_text(minutes: float | None) -> str:
    if minutes is None:
        return ABSENT
    return "< 0.1" if minutes < 0.1 else f"{minutes:.1f}"


def _metric(key: str, head: str, *, note: str = "", interval: bool = False) -> Column:
    return Column(
        key=key,
        head=head,
        note="[95 %]" if interval else note,
        value=lambda row: row.evaluation.metric(key),
        text=lambda row: number(row.evaluation.metric(key)),
        detail=lambda row: _brackets(row.evaluation, key) if interval else "",
        bounds=key,
    )


COLUMNS: tuple[Column, ...] = (
    Column(
        key="method",
        head="Method",
        value=lambda row: row.run.label,
        text=lambda row: row.run.label,
        first="ascending",
    ),
    _metric("dice_d", "Dice_D", interval=True),
    Column(
        key="dice_s_mean",
        head="Dice_S",
        note="mean ± std over subjects",
        value=lambda row: row.evaluation.metric("dice_s_mean"),
        text=lambda row: number(row.evaluation.metric("dice_s_mean")),
        detail=_deviation,
        bounds="dice_s_mean",
    ),
    _metric("auprc", "AUPRC", interval=True),
    _metric("auroc", "AUROC"),
    _metric("slice_auprc", "AUPRC by slice", note="axial slices"),
    _metric(
        "upper_bound_dice",
        "Upper-bound Dice",
        note="upper bound: threshold chosen on the test part",
    ),
    Column(
        key="threshold",
        head="Threshold",
        note="value, rule",
        value=lambda row: row.evaluation.values["threshold"]["value"],
        text=lambda row: short(row.evaluation.values["threshold"]["value"]),
        detail=lambda row: str(row.evaluation.values["threshold"]["rule"]),
    ),
    Column(
        key="healthy_reconstruction",
        head="Healthy L1",
        note="reconstruction, intensity",
        value=lambda row: row.evaluation.values.get("healthy_reconstruction"),
        text=lambda row: number(row.evaluation.values.get("healthy_reconstruction"), 4),
        first="ascending",
    ),
    Column(
        key="seconds_per_volume",
        head="Scoring",
        note="seconds a volume",
        value=lambda row: row.evaluation.values.get("seconds_per_volume"),
        text=lambda row: short(row.evaluation.values.get("seconds_per_volume")),
        first="ascending",
    ),
    Column(
        key="fit_minutes",
        head="Fit",
        note="minutes",
        value=_minutes,
        text=lambda row: _minutes_text(_minutes(row)),
        first="ascending",
    ),
    Column(
        key="best_epoch",
        head="Best epoch",
        note="of all",
        value=lambda row: row.run.summary.get("best_epoch"),
        text=_epochs,
        first="ascending",
    ),
    Column(
        key="num_parameters",
        head="Parameters",
        value=lambda row: row.run.summary.get("num_parameters"),
        text=_millions,
        first="ascending",
    ),
)
"""The columns of every table, in order."""


def group_by_cohort(runs: Sequence[RunRecord]) -> list[CohortRows]:
    """The evaluations of all runs, one table a cohort, sorted by the cohort's name.

    Evaluations on stores of one name but other fingerprints stand in tables of their own.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for run in runs:
        for evaluation in run.evaluations:
            key = (evaluation.cohort, evaluation.cohort_fingerprint)
            groups.setdefault(key, []).append(Row(run=run, evaluation=evaluation))
    return [
        CohortRows(
            name=name,
            fingerprint=fingerprint,
            notes=tuple(dict.fromkeys(note for row in rows for note in row.evaluation.notes)),
            rows=tuple(sorted(rows, key=_rank)),
            warnings=_differences(rows),
        )
        for (name, fingerprint), rows in sorted(groups.items())
    ]


def _rank(row: Row) -> tuple[float, str]:
    value = row.evaluation.metric("dice_d")
    return (float("inf") if value is None else -value, row.run.label)


def _differences(rows: Sequence[Row]) -> tuple[str, ...]:
    values = [row.evaluation.values for row in rows]
    checks: dict[str, set[Any]] = {
        "the test subjects": {tuple(sorted(str(s["id"]) for s in v["subjects"])) for v in values},
        "the post-processing": {str(sorted((v.get("postprocess") or {}).items())) for v in values},
        "the rule of the threshold": {str(v["threshold"]["rule"]) for v in values},
        "the part that the threshold was fitted on": {
            str(v["threshold"]["fitted_on"]) for v in values
        },
    }
    return tuple(
        f"{what.capitalize()} differ{'' if what.endswith('subjects') else 's'} between these runs: "
        "hold their figures against each other with care."
        for what, found in checks.items()
        if len(found) > 1
    )


def in_words(group: CohortRows) -> list[str]:
    """Sentences on one cohort, each made from figures and their intervals only."""
    rows = [row for row in group.rows if row.evaluation.metric("dice_d") is not None]
    if not rows:
        return ["No run has a Dice_D on this cohort."]
    top = rows[0]
    rivals = [row for row in rows[1:] if row.run.is_plain != top.run.is_plain]
    kind = " (a plain baseline)" if top.run.is_plain else ""
    figure = with_interval(top.evaluation, "dice_d")
    if len(rows) == 1:
        return [f"{top.run.label}{kind} is the only run, with Dice_D {figure}."]
    sentences = [f"{top.run.label}{kind} has the highest Dice_D: {figure}."]
    if rivals:
        other = "method that is not a plain baseline" if top.run.is_plain else "plain baseline"
        best = rivals[0]
        figure = with_interval(best.evaluation, "dice_d")
        sentences.append(f"The best {other} is {best.run.label} with {figure}: {_pair(top, best)}.")
    elif top.run.is_plain:
        sentences.append("All runs are plain baselines.")
    else:
        sentences.append("No plain baseline was evaluated, so nothing says how hard the task is.")
    overlaps = [_overlap(top, row) for row in rows[1:]]
    if None not in overlaps and len(overlaps) > 1:
        sentences.append(
            f"The intervals of {sum(map(bool, overlaps))} of the {len(overlaps)} other runs "
            f"overlap that of {top.run.label}."
        )
    return sentences


def _overlap(a: Row, b: Row) -> bool | None:
    first, second = (row.evaluation.interval("dice_d") for row in (a, b))
    if first is None or second is None:
        return None
    return first[0] <= second[1] and second[0] <= first[1]


def _pair(top: Row, rival: Row) -> str:
    subjects = f"these {rival.evaluation.values['num_test']} test subjects"
    overlap = _overlap(top, rival)
    if overlap is None:
        return "an interval is not recorded, so the two are not compared"
    if overlap:
        return f"the intervals overlap, the two are not distinguishable on {subjects}"
    return f"the intervals do not overlap on {subjects}"


def to_csv(groups: Sequence[CohortRows]) -> str:
    """All rows with unrounded figures and interval ends; absent figures are empty."""
    head = ["cohort", "cohort_fingerprint", "notes"]
    for column in COLUMNS:
        head.append(column.key)
        head += [f"{column.bounds}_low", f"{column.bounds}_high"] if column.bounds else []
    head += ["dice_s_std", "threshold_rule", "num_threshold", "num_test", "num_resamples"]
    head += ["plain_baseline", "seed", "run_fingerprint", "run"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    for group in groups:
        for row in group.rows:
            values = row.evaluation.values
            line: list[object] = [group.name, group.fingerprint, "; ".join(group.notes)]
            for column in COLUMNS:
                line.append(column.value(row))
                if column.bounds:
                    line += row.evaluation.interval(column.bounds) or (None, None)
            line += [row.evaluation.metric("dice_s_std"), values["threshold"]["rule"]]
            line += [values["num_threshold"], values["num_test"], values.get("num_resamples")]
            line += [row.run.is_plain, row.run.seed, row.run.config["fingerprint"], row.run.url]
            writer.writerow(line)
    return text.getvalue()


def to_markdown(groups: Sequence[CohortRows], title: str) -> str:
    """The tables as GitHub Markdown, with the sentences above each."""
    lines = [f"# {_markdown(title)}", ""]
    for group in groups:
        notes = "".join(f" **[{_markdown(note)}]**" for note in group.notes)
        lines += [f"## {_markdown(group.name)}{notes}", ""]
        lines += [*(_markdown(sentence) for sentence in (*in_words(group), *group.warnings)), ""]
        heads = [f"{column.head} {_note(column)}".rstrip() for column in COLUMNS]
        lines += [_line([_markdown(head) for head in heads])]
        lines += ["|" + "|".join([":--", *["--:"] * (len(COLUMNS) - 1)]) + "|"]
        for row in group.rows:
            cells = [_markdown(column.line(row)) for column in COLUMNS]
            cells[0] += " (plain baseline)" if row.run.is_plain else ""
            lines.append(_line(cells))
        lines.append("")
    return "\n".join(lines)


def _note(column: Column) -> str:
    return f"({column.note})" if column.note and column.note[0] != "[" else column.note


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _markdown(text: str) -> str:
    """`text` with what Markdown or HTML would take for markup escaped."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    for mark in "\\`*_[]|#":
        text = text.replace(mark, f"\\{mark}")
    return text
