"""The page: one HTML file without any outside part, with its table as CSV and Markdown beside."""

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from uadray import __version__, files
from uadray.errors import ConfigError
from uadray.report import columns, compare, export, figures
from uadray.report.load import RunRecord, load_runs
from uadray.report.montage import montage
from uadray.report.rows import PublishedFigures, Row, group_by_cohort
from uadray.report.words import Compared, hold_together

MAX_PLOTS = 24
"""Most small plots of one kind: those of the highest Dice_D."""


def write_report(
    urls: Iterable[str],
    out: str,
    *,
    title: str = "Unsupervised anomaly detection in brain MRI",
    references: Sequence[str] = (),
    published: PublishedFigures | None = None,
    made: datetime | None = None,
) -> str:
    """Write the report of some runs: the page, and its tables as CSV and Markdown beside it.

    Args:
        urls: Run folders, or folders of runs; local paths or fsspec URLs.
        out: Where the page goes, ending in `.html`; `.csv`, `-paired.csv` and `.md` stand beside
            it.
        title: Head of the page.
        references: Experiments or labels that all others are held against; where none is named,
            the best plain baseline and `compare.REFERENCE`.
        published: Figures that a paper printed for the same cohort and experiment, if any.
        made: Date of making, now where None.

    Returns:
        The page's absolute path or URL. All four files are replaced whole.

    Raises:
        ConfigError: `out` does not end in `.html`, or no run is called like a reference.
        RunError: a folder holds no run, or a file in it is absent or damaged.
    """
    out = files.normalise(out)
    if not out.endswith(".html"):
        raise ConfigError(f"out must end in .html, was {out!r}")
    runs = load_runs(urls)
    groups = group_by_cohort(runs, published)
    known = {name for run in runs for name in (run.label, str(run.config["name"]))}
    if unknown := [name for name in references if name not in known]:
        raise ConfigError(f"no run is called {unknown[0]!r}; there are {sorted(known)}")
    cohorts = [hold_together(group, references) for group in groups]
    page = render(runs, cohorts, title=title, made=made or datetime.now(UTC))
    stem = out.removesuffix(".html")
    files.write_bytes(f"{stem}.csv", export.to_csv(groups).encode())
    files.write_bytes(f"{stem}-paired.csv", export.to_paired_csv(cohorts).encode())
    files.write_bytes(f"{stem}.md", export.to_markdown(cohorts, title).encode())
    files.write_bytes(out, page.encode())
    return out


def render(
    runs: Sequence[RunRecord], cohorts: Sequence[Compared], *, title: str, made: datetime
) -> str:
    """The page as text; every string from a run folder is escaped on its way in."""
    environment = Environment(
        loader=PackageLoader("uadray.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": columns.number, "short": columns.short, "sub": _subscripts}
    script = _asset("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    notes = {cohort.group.name: cohort.group.notes for cohort in cohorts}
    curves = [run for run in _by_dice(runs, cohorts) if figures.has_curves(run)]
    limits = figures.curve_limits(curves) if curves else (0.0, 1.0)
    return environment.get_template("report.html.j2").render(
        title=title,
        made=made,
        version=__version__,
        style=Markup(_asset("report.css")),
        script=Markup(script),
        script_digest=digest,
        runs=runs,
        columns=columns.COLUMNS,
        lesion_columns=columns.LESION_COLUMNS,
        filter_columns=columns.FILTER_COLUMNS,
        seed_columns=compare.SEED_COLUMNS,
        comparison_columns=compare.COMPARISON_COLUMNS,
        cohorts=[_cohort(cohort, cohorts) for cohort in cohorts],
        lesions=_lesion_statistics(cohorts),
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


def _by_dice(runs: Sequence[RunRecord], cohorts: Sequence[Compared]) -> list[RunRecord]:
    """The runs in the order of the tables, those without evaluation last."""
    ordered = {row.run.url: row.run for cohort in cohorts for row in cohort.group.rows}
    return list((ordered | {run.url: run for run in runs}).values())


def _cohort(cohort: Compared, cohorts: Sequence[Compared]) -> dict[str, Any]:
    group = cohort.group
    first = group.rows[0]
    sized = [row for row in group.rows if row.evaluation.values["subjects"]][:MAX_PLOTS]
    return {
        "group": group,
        "anchor": f"cohort-{list(cohorts).index(cohort) + 1}",
        "is_ambiguous": sum(other.group.name == group.name for other in cohorts) > 1,
        "sentences": cohort.sentences,
        "values": first.evaluation.values,
        "first": first,
        "settings": _settings(first.evaluation.values),
        "fitted_on": sorted({str(_threshold(row)["fitted_on"]) for row in group.rows}),
        "has_published": any(row.published for row in group.rows),
        "has_lesions": columns.has_lesions(group.rows),
        "has_filter": columns.has_filter(group.rows),
        "interval_plot": figures.interval_plot(group),
        "several": [series for series in cohort.series if len(series.rows) > 1],
        "comparisons": [
            (table, figures.difference_plot(table) if table.comparisons else None)
            for table in cohort.comparisons
        ],
        "volume_plots": list(zip(sized, figures.volume_plots(sized), strict=True)),
        "has_fit": any(figures.cubic_fit(row) is not None for row in sized),
        "min_fit": figures.MIN_FIT_SUBJECTS,
        "max_lines": figures.MAX_LINES,
        "montage": montage(group),
    }


def _settings(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How the scores were read, in the order in which it happens."""
    components = values.get("components") or {}
    protocol = values.get("protocol") or {}
    found: dict[str, Any] = {"protocol": protocol.get("name"), "residual": values.get("residual")}
    found |= {k.replace("_", " "): v for k, v in (values.get("postprocess") or {}).items()}
    if values.get("slices"):
        found["axial slices"] = "{} to {}".format(*values["slices"])
    if components.get("max_size"):
        found["components dropped up to"] = (
            f"{components['max_size']} voxels ({components.get('connectivity')}-connected)"
        )
    if values.get("healthy_cohort"):
        found["threshold from healthy"] = values["healthy_cohort"].get("name")
    return [(key, str(value)) for key, value in found.items() if value is not None]


def _lesion_statistics(cohorts: Sequence[Compared]) -> list[tuple[str, dict[str, Any]]]:
    """Lesions of each cohort as table 1 of Meissen 2021 has them, where they were counted."""
    found = []
    for cohort in cohorts:
        counted = [row.evaluation.values.get("lesions") for row in cohort.group.rows]
        known = next((one for one in counted if one and one.get("num_components")), None)
        if known is not None:
            found.append((cohort.group.name, known))
    return found


def _threshold(row: Row) -> dict[str, Any]:
    return row.evaluation.values["threshold"]


def _provenance(run: RunRecord, notes: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    cohort = run.config["cohort"] or {}
    name = str(cohort.get("name", columns.ABSENT))
    return {
        "run": run,
        "cohort": name,
        "notes": tuple(map(str, cohort.get("notes") or notes.get(name, ()))),
        "cohort_fingerprint": cohort.get("fingerprint") or columns.ABSENT,
        "hardware": run.config.get("hardware") or {},
        "versions": run.config.get("versions") or {},
        "seconds": run.summary.get("fit_seconds"),
        "json": json.dumps(run.config, indent=2, ensure_ascii=False),
    }
