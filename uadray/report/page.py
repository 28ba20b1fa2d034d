"""The page: one HTML file without any outside part, with its table as CSV and Markdown beside."""

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from uadray import __version__, files
from uadray.errors import ConfigError
from uadray.report import figures, rows
from uadray.report.load import RunRecord, load_runs
from uadray.report.montage import montage
from uadray.report.rows import CohortRows

MAX_PLOTS = 24
"""Most small plots of one kind: those of the highest Dice_D."""


def write_report(
    urls: Iterable[str],
    out: str,
    *,
    title: str = "Unsupervised anomaly detection in brain MRI",
    made: datetime | None = None,
) -> str:
    """Write the report of some runs: the page, and its tables as CSV and Markdown beside it.

    Args:
        urls: Run folders, or folders of runs; local paths or fsspec URLs.
        out: Where the page goes, ending in `.html`; `.csv` and `.md` stand beside it.
        title: Head of the page.
        made: Date of making, now where None.

    Returns:
        The page's absolute path or URL. All three files are replaced whole.

    Raises:
        ConfigError: `out` does not end in `.html`.
        RunError: a folder holds no run, or a file in it is absent or damaged.
    """
    out = files.normalise(out)
    if not out.endswith(".html"):
        raise ConfigError(f"out must end in .html, was {out!r}")
    runs = load_runs(urls)
    groups = rows.group_by_cohort(runs)
    page = render(runs, groups, title=title, made=made or datetime.now(UTC))
    stem = out.removesuffix(".html")
    files.write_bytes(f"{stem}.csv", rows.to_csv(groups).encode())
    files.write_bytes(f"{stem}.md", rows.to_markdown(groups, title).encode())
    files.write_bytes(out, page.encode())
    return out


def render(
    runs: Sequence[RunRecord], groups: Sequence[CohortRows], *, title: str, made: datetime
) -> str:
    """The page as text; every string from a run folder is escaped on its way in."""
    environment = Environment(
        loader=PackageLoader("uadray.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": rows.number, "short": rows.short, "sub": _subscripts}
    script = _asset("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    notes = {group.name: group.notes for group in groups}
    curves = [run for run in _by_dice(runs, groups) if figures.has_curves(run)]
    limits = figures.curve_limits(curves) if curves else (0.0, 1.0)
    return environment.get_template("report.html.j2").render(
        title=title,
        made=made,
        version=__version__,
        style=Markup(_asset("report.css")),
        script=Markup(script),
        script_digest=digest,
        runs=runs,
        columns=rows.COLUMNS,
        cohorts=[_cohort(group, groups) for group in groups],
        curves=[(run, figures.learning_curve(run, limits)) for run in curves[:MAX_PLOTS]],
        curves_left_out=[run.label for run in curves[MAX_PLOTS:]],
        unevaluated=[run for run in runs if not run.evaluations],
        provenance=[_provenance(run, notes) for run in runs],
    )


def _subscripts(text: str) -> Markup:
    """The papers' Dice_D and Dice_S with real subscripts; everything else escaped."""
    escaped = escape(text)
    for kind in "DS":
        escaped = Markup(str(escaped).replace(f"Dice_{kind}", f"Dice<sub>{kind}</sub>"))
    return escaped


def _asset(name: str) -> str:
    return (resources.files("uadray.report") / "templates" / name).read_text(encoding="utf-8")


def _by_dice(runs: Sequence[RunRecord], groups: Sequence[CohortRows]) -> list[RunRecord]:
    """The runs in the order of the tables, those without evaluation last."""
    ordered = {row.run.url: row.run for group in groups for row in group.rows}
    return list((ordered | {run.url: run for run in runs}).values())


def _cohort(group: CohortRows, groups: Sequence[CohortRows]) -> dict[str, Any]:
    first = group.rows[0].evaluation.values
    sized = [row for row in group.rows if row.evaluation.values["subjects"]][:MAX_PLOTS]
    return {
        "group": group,
        "anchor": f"cohort-{list(groups).index(group) + 1}",
        "is_ambiguous": sum(other.name == group.name for other in groups) > 1,
        "sentences": rows.in_words(group),
        "values": first,
        "fitted_on": sorted({str(_threshold(row)["fitted_on"]) for row in group.rows}),
        "lost_share": _share(first["lesion_voxels_eroded"], first["lesion_voxels"]),
        "interval_plot": figures.interval_plot(group),
        "volume_plots": [(row, figures.volume_plot(group, row)) for row in sized],
        "has_fit": any(figures.cubic_fit(row) is not None for row in sized),
        "montage": montage(group),
    }


def _threshold(row: rows.Row) -> dict[str, Any]:
    return row.evaluation.values["threshold"]


def _share(part: int | None, whole: int | None) -> float | None:
    return None if part is None or not whole else part / whole


def _provenance(run: RunRecord, notes: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    cohort = run.config["cohort"] or {}
    name = str(cohort.get("name", rows.ABSENT))
    return {
        "run": run,
        "cohort": name,
        "notes": tuple(map(str, cohort.get("notes") or notes.get(name, ()))),
        "cohort_fingerprint": cohort.get("fingerprint") or rows.ABSENT,
        "hardware": run.config.get("hardware") or {},
        "versions": run.config.get("versions") or {},
        "seconds": run.summary.get("fit_seconds"),
        "json": json.dumps(run.config, indent=2, ensure_ascii=False),
    }
