"""What the reproduction of a table or figure prints: what is there, and ours beside theirs."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from uadray import tables
from uadray.evaluation.record import describe_lesions
from uadray.papers.caveats import kind
from uadray.papers.claims import CLAIMS
from uadray.papers.reproduce import Reproduction
from uadray.papers.verdicts import findings, judge
from uadray.report.columns import ranges
from uadray.report.compare import series_of
from uadray.report.rows import group_by_cohort
from uadray.runs.records import load_runs
from uadray.store import Cohort

_OF_KIND = {
    "phantom": "phantoms",
    "semi-synthetic": "semi-synthetic lesions",
    "scans": "scans",
}


def state_table(one: Reproduction) -> Table:
    """Cohorts, methods and runs of a study: what is there and what is missing."""
    table = Table(title=f"{one.paper.key} {one.study.key}: {one.study.title}", title_justify="left")
    for head in ("what", "the paper's", "ours"):
        table.add_column(head, overflow="fold")
    if one.study.experiments():
        table.add_row("healthy cohort", one.study.training, _cohort(one, "healthy", one.healthy))
    for need in one.study.cohorts:
        wanted = f"{need.data}, {need.modality}"
        if need.num_test is not None:
            wanted += f", {need.num_threshold or 'no'} + {need.num_test} subjects"
        ours = _cohort(one, need.role, one.cohorts.get(need.role))
        if need.role in one.cohorts and not one.fits(need):
            ours += "; on another grid than the protocol's"
        table.add_row(f"cohort {need.role}", wanted, ours)
    for name in one.study.missing_methods():
        table.add_row(f"method {name}", "", "not built")
    states = one.states()
    counts = {s: [r[2] for r in states].count(s) for s in dict.fromkeys(r[2] for r in states)}
    if states:
        told = ", ".join(f"{n} {state}" for state, n in counts.items())
        table.add_row(f"{len(states)} runs", f"{len(one.study.experiments())} fits", told)
    return table


def caveats_text(one: Reproduction) -> Text:
    """Where ours is not theirs, numbered as in the table's last column, and what is missing."""
    text = Text()
    for number, line in enumerate(one.caveats(), start=1):
        text.append(f"note {number}: {line}\n")
    for line in one.missing():
        text.append(f"missing: {line}\n")
    return text


def figures_table(one: Reproduction) -> Table:
    """Ours beside theirs, each row with the numbers of its differences, which stand below."""
    table = Table(title=f"{one.paper.key} {one.study.key}, ours beside the paper's")
    table.caption, table.caption_justify = caveats_text(one), "left"
    for head in ("method", "cohort", "figure", "ours", "95 % or seeds", "paper's", "±", "notes"):
        right = head in ("ours", "95 % or seeds", "paper's", "±")
        table.add_column(head, justify="right" if right else "left")
    for row in one.rows():
        table.add_row(
            row["label"],
            row["role"],
            row["metric"],
            _number(row["ours"]),
            _spread(row["interval"], row["ours_each_seed"]),
            _printed(row),
            _number(row["published_deviation"]),
            ranges(row["caveats"]),
        )
    return table


def statistics_table(one: Reproduction) -> Table:
    """Lesion statistics of the cohorts that are given, beside the published ones.

    The paper counts voxels of 1 mm; ours are mm^3, so that they compare on any grid.
    """
    table = Table(title=f"{one.paper.key} {one.study.key}: lesion components, 26-connected")
    for head in ("cohort", "components a scan", "the paper's", "mm^3 a component", "the paper's"):
        table.add_column(head, justify="left" if head == "cohort" else "right")
    for statistic in one.study.statistics:
        ours = ("", "")
        if statistic.role in one.cohorts:
            lesions = describe_lesions(one.cohorts[statistic.role])
            size = lesions["mean_size_ml"]
            per_subject = lesions["components_per_subject"]
            ours = (
                "" if per_subject is None else f"{per_subject:.1f}",
                "" if size is None else f"{1000 * float(size):.0f}",  # type: ignore[arg-type]
            )
        table.add_row(
            statistic.role,
            ours[0],
            f"{statistic.components_per_scan:g}",
            ours[1],
            f"{statistic.voxels_per_component:g}",
        )
    return table


def claims_table(one: Reproduction, runs: Sequence[str]) -> Table | None:
    """What the paper claims from this table or figure, and what our runs say; None for nothing.

    Verdicts are corrected over the rows of each cohort.
    """
    claims = [c for c in CLAIMS if (c.paper, c.study) == (one.paper.key, one.study.key)]
    table = Table(title=f"{one.paper.key} {one.study.key}: what is claimed", title_justify="left")
    for head in ("claim", "cohort", "contrast", "figure", "difference", "verdict"):
        table.add_column(head, justify="right" if head == "difference" else "left")
    for group in group_by_cohort(load_runs(runs)):
        for finding in judge(findings(series_of(group), claims)):
            spread = _spread(finding.bounds and list(finding.bounds), [])
            table.add_row(
                next(claim.says for claim in claims if claim.key == finding.claim),
                group.name,
                finding.contrast,
                finding.metric,
                f"{finding.value:+.3f} {spread}".rstrip(),
                finding.verdict,
            )
    return table if table.row_count else None


def title(one: Reproduction) -> str:
    """Head of the report: what is made again, and on what kind of data."""
    kinds = sorted({_OF_KIND[kind(one.cohorts[role])] for role in one.roles if role in one.cohorts})
    return (
        f"{one.paper.key} {one.study.key} made again on {' and '.join(kinds) or 'no cohort'}, "
        f"scale {one.scale.name}; the paper's figures are of other data"
    )


def to_markdown(one: Reproduction) -> str:
    """Ours beside theirs with all that must be said of it, as Markdown."""
    lines = [f"# {title(one)}", "", f"{one.paper.citation}: {one.study.title}.", ""]
    lines += [f"{number}. {line}" for number, line in enumerate(one.caveats(), start=1)]
    lines += ["", *(f"- Missing: {line}" for line in one.missing())]
    cells = []
    for row in one.rows():
        printed = _printed(row)
        if row["published_deviation"] is not None:
            printed += f" ± {_number(row['published_deviation'])}"
        spread = _spread(row["interval"], row["ours_each_seed"])
        what = [row["label"], row["role"], row["metric"]]
        cells.append([*what, _number(row["ours"]), spread, printed, ranges(row["caveats"])])
    if cells:
        head = ["method", "cohort", "figure", "ours", "95 % or seeds", "the paper's", "notes"]
        lines += ["", tables.to_markdown(head, cells, align="lllr")]
    return "\n".join([*lines, ""])


def _cohort(one: Reproduction, role: str, cohort: Cohort | None) -> str:
    if cohort is None:
        return "phantoms, to be made" if role in one.to_make else "missing"
    splits = cohort.subjects["split"].value_counts()
    counts = ", ".join(f"{number} {split}" for split, number in splits.items())
    z, y, x = cohort.shape
    return f"{cohort.name}: {_OF_KIND[kind(cohort)]}, {counts}; {z} x {y} x {x}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _printed(row: Mapping[str, Any]) -> str:
    """The paper's figure; one that was read off a picture is marked so."""
    return ("about " if row["published_digitised"] else "") + _number(row["published"])


def _spread(interval: list[float] | None, seeds: list[float]) -> str:
    if len(seeds) > 1:
        return f"{min(seeds):.3f} to {max(seeds):.3f}"
    if interval is None or None in interval:
        return ""
    return f"[{interval[0]:.3f}, {interval[1]:.3f}]"
