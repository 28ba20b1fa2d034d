"""The page: one HTML file without any outside part, with its tables in other forms beside it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from markupsafe import Markup, escape

from uadray import __version__, files, html
from uadray.errors import ConfigError, EvaluationError, PluginError
from uadray.evaluation.regroup import regroup
from uadray.metrics.inference import MIN_GROUP, MIN_PEOPLE
from uadray.metrics.postprocess import describe_findable
from uadray.report import columns, compare, export, figures, vega
from uadray.report.controls import controls_of
from uadray.report.ensembles import NO_VERDICT, gain_columns, gains_of
from uadray.report.finds import froc_columns, froc_plot, size_columns, with_finds
from uadray.report.montage import Viewers, montage
from uadray.report.rows import Caveats, PublishedFigures, Row, group_by_cohort, spread_rows
from uadray.report.sections import Section, Table, make_sections
from uadray.report.strata import strata_of
from uadray.report.sweep import Sweep, find_sweep
from uadray.report.sweep_page import (
    curve_context,
    ended_early,
    reason,
    slice_context,
    sweep_context,
)
from uadray.report.words import Compared, compare_cohort
from uadray.runs.records import Broken, RunRecord, load_runs
from uadray.runs.settings import is_number
from uadray.strategies import NONE

MAX_PLOTS = 16
"""Small plots of one kind at most: the best fit of each experiment, then the highest Dice_D."""

MAX_ERASING = 14
"""Maximum number of experiments whose erasing is shown."""


def write_report(
    urls: Iterable[str],
    out: str,
    *,
    title: str = "Unsupervised anomaly detection in brain MRI",
    references: Sequence[str] = (),
    published: PublishedFigures | None = None,
    caveats: Caveats | None = None,
    viewers: Viewers | None = None,
    erasing_from: str = "",
    by: Sequence[str] = (),
    tables: str = "",
    made: datetime | None = None,
    left_out: list[Broken] | None = None,
) -> str:
    """Write the report of some runs: the page, and its tables as CSV, Markdown and LaTeX.

    Args:
        urls: Run folders, or folders of runs; local paths or fsspec URLs.
        out: Where the page goes, ending in `.html`; the tables stand beside it, see
            `export.write_tables`.
        title: Head of the page.
        references: Experiments or labels that all others are compared with; where none is named,
            the best plain baseline and `compare.REFERENCE`.
        published: Figures that a paper printed for the same cohort and experiment, if any.
        caveats: Where our figures are not that paper's, and which of them.
        viewers: Pages of single cases that the montage links to; see `montage.Viewers`.
        erasing_from: A healthy cohort, to show on its first scan what each experiment erases.
        by: What people are grouped by, such as `sex` or `age:40:60`, instead of what evaluations
            were asked for; needs the cohorts that were evaluated.
        tables: Folder of the tables, where they shall not stand beside the page.
        made: Date of making, now where None.
        left_out: Takes runs that cannot be read; the page names them, and those that are in it
            before. Where it is None, the first such error is raised. It takes sections of other
            packages that fail, too, which are named at their place, and groups that cannot be made.

    Returns:
        The page's absolute path or URL. All files are replaced whole.

    Raises:
        ConfigError: `out` does not end in `.html`, no run is called like a reference, or a
            viewer's address is not a relative one.
        StoreError: `erasing_from` holds no sealed cohort.
        RunError: a folder holds no run, or a file in it is absent or damaged, and `left_out` is
            None or no run is left.
        EvaluationError: groups cannot be made, and `left_out` is None.
    """
    out = html.page_url(out)
    runs = load_runs(urls, left_out)
    if by:
        runs = [_regrouped(run, by, left_out) for run in runs]
    groups = group_by_cohort(runs, published, caveats)
    known = {name for run in runs for name in (run.label, str(run.config["name"]))}
    if unknown := [name for name in references if name not in known]:
        raise ConfigError(f"no run is called {unknown[0]!r}; there are {sorted(known)}")
    check_viewers(viewers or {})
    cohorts = [compare_cohort(group, references) for group in groups]
    sweep = find_sweep(runs, cohorts)
    sections = make_sections(runs, cohorts)
    page = render(
        runs,
        cohorts,
        sweep=sweep,
        caveats=list(caveats or ()),
        title=title,
        viewers=viewers,
        erasing=_erasing(runs, erasing_from, left_out) if erasing_from else None,
        made=made or datetime.now(UTC),
        left_out=list(dict.fromkeys(left_out or ())),
        sections=sections,
    )
    if left_out is not None:
        failed = [one for one in sections if one.error]
        left_out += [Broken(url=f"section {one.title}", error=one.error) for one in failed]
    stem = out.removesuffix(".html")
    if tables:
        stem = files.join(files.normalise(tables), stem.rsplit("/", 1)[-1])
    export.write_tables(cohorts, stem, title=title, sweep=sweep)
    files.write_bytes(out, page.encode())
    for folder in {place.rsplit("/", 1)[0] for place in (out, stem)}:
        files.remove_drafts(folder, recursive=False)
    return out


def _regrouped(run: RunRecord, by: Sequence[str], left_out: list[Broken] | None) -> RunRecord:
    """A run whose evaluations have groups by what is asked for, as far as they can be made."""
    evaluations = []
    for one in run.evaluations:
        try:
            evaluations.append(regroup(run.url, one, by))
        except EvaluationError as error:
            if left_out is None:
                raise
            left_out.append(Broken(url=run.url, error=str(error)))
            evaluations.append(one)
    return replace(run, evaluations=tuple(evaluations))


def _slice_score(runs: Sequence[RunRecord]) -> str:
    """How slices are scored; evaluations of an earlier version took the mean and do not say so."""
    kinds = {one.values.get("slice_score", "mean") for run in runs for one in run.evaluations}
    return " or ".join(f"the {kind}" for kind in sorted(kinds))


def check_viewers(viewers: Viewers) -> None:
    """Refuse addresses that lead anywhere but to files near the report.

    Raises:
        ConfigError: an address has a scheme or a host, or starts at a root.
    """
    for address in viewers.values():
        parts = urlsplit(address)
        if parts.scheme or parts.netloc or address.startswith(("/", "\\")) or not address.strip():
            raise ConfigError(f"a viewer's address must be relative to the report, was {address!r}")


def _erasing(runs: Sequence[RunRecord], url: str, left_out: list[Broken] | None) -> Markup | None:
    """What the experiments erase of a cohort's first scan, the first seed of each name."""
    # They bring torch, which no other part of the report needs.
    from uadray.config import Experiment, from_json
    from uadray.report.erasing_page import erasing_figure
    from uadray.store import open_cohort

    experiments: dict[str, Experiment] = {}
    for run in runs:
        if (run.config["experiment"].get("erasing") or {}).get("strategy", NONE) != NONE:
            name = str(run.config["name"])
            try:
                experiments.setdefault(name, from_json(Experiment, run.config["experiment"]))
            except PluginError as error:
                if left_out is None:
                    raise
                left_out.append(Broken(url=run.url, error=f"what it erases is not shown: {error}"))
    if not experiments:
        return None
    volume = open_cohort(url).read("image", 0, 1)[0]
    return erasing_figure(list(experiments.values())[:MAX_ERASING], volume, row=0, num_draws=2)


SHARES = ("nominal_share", "share", "brain_share", "no_brain")
"""What the summary of a fit says of its erasing, as the columns of the table show it."""


def erased_shares(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """How much the fits of each experiment erased: means over their erased samples.

    Fits that did not record it give None; those that erase nothing have no row.
    """
    groups: dict[str, list[Mapping[str, Any] | None]] = {}
    for run in runs:
        if (run.config["experiment"].get("erasing") or {}).get("strategy", NONE) != NONE:
            groups.setdefault(str(run.config["name"]), []).append(run.summary.get("erasing"))
    rows = []
    for name, fits in groups.items():
        recorded = [one for one in fits if one and all(is_number(one.get(k)) for k in SHARES)]
        means = {k: sum(one[k] for one in recorded) / len(recorded) for k in SHARES if recorded}
        rows.append({"name": name, "fits": len(recorded), "missing": len(fits) - len(recorded)})
        rows[-1]["shares"] = [means.get(key) for key in SHARES]
    return rows


def render(
    runs: Sequence[RunRecord],
    cohorts: Sequence[Compared],
    *,
    title: str,
    made: datetime,
    sweep: Sweep | None = None,
    caveats: Sequence[str] = (),
    viewers: Viewers | None = None,
    erasing: Markup | None = None,
    left_out: Sequence[Broken] = (),
    sections: Sequence[Section] = (),
) -> str:
    """The page as text; every string from a run folder is escaped on its way in."""
    environment = html.environment()
    environment.filters |= {"number": columns.number, "short": columns.short, "sub": _subscripts}
    environment.globals["describe_findable"] = describe_findable
    environment.filters["reason"] = reason
    notes = {cohort.group.name: cohort.group.notes for cohort in cohorts}
    rows = [row for cohort in cohorts for row in cohort.group.rows]
    context = sweep_context(sweep, cohorts, viewers)
    return environment.get_template("report.html.j2").render(
        title=title,
        made=made,
        version=__version__,
        style=html.style("report.css"),
        **html.script("report.js", *(("sweep.js",) if sweep else ())),
        **(_library(context) if context else {}),
        runs=runs,
        columns=(*columns.main_columns(rows), *((columns.CAVEATS,) if caveats else ())),
        caveats=caveats,
        lesion_columns=columns.LESION_COLUMNS,
        froc_columns=froc_columns(),
        control_columns=columns.CONTROL_COLUMNS,
        filter_columns=columns.filter_columns(rows),
        seed_columns=compare.seed_columns([one for cohort in cohorts for one in cohort.series]),
        comparison_columns=compare.comparison_columns(
            [one for cohort in cohorts for each in cohort.comparisons for one in each.comparisons]
        ),
        min_people=MIN_PEOPLE,
        cohorts=[_cohort(cohort, cohorts, viewers) for cohort in cohorts],
        sweep=context,
        slices=slice_context(cohorts),
        slice_score=_slice_score(runs),
        lesions=_lesion_statistics(cohorts),
        curves=curve_context(_by_dice(runs, cohorts)) if sweep is None else [],
        erasing=erasing,
        erased=erased_shares(runs),
        unevaluated=ended_early(runs),
        left_out=left_out,
        sections=[
            (one, [(part, isinstance(part, Table)) for part in one.parts]) for one in sections
        ],
        provenance=[_provenance(run, notes) for run in runs],
    )


def _library(context: Mapping[str, Any]) -> dict[str, Any]:
    """The plotting library, the digest by which the page's policy lets it run, and its data."""
    text = vega.library()
    return {
        "library": Markup(text),
        "library_digest": html.digest(text.encode()),
        "sweep_data": vega.block(context["data"]),
    }


def _subscripts(text: str) -> Markup:
    """The papers' Dice_D and Dice_S with real subscripts; everything else escaped."""
    escaped = escape(text)
    for kind in "DS":
        escaped = Markup(str(escaped).replace(f"Dice_{kind}", f"Dice<sub>{kind}</sub>"))
    return escaped


def _by_dice(runs: Sequence[RunRecord], cohorts: Sequence[Compared]) -> list[RunRecord]:
    """The runs in the order of the tables, those without evaluation last."""
    ordered = {row.run.url: row.run for cohort in cohorts for row in cohort.group.rows}
    return list((ordered | {run.url: run for run in runs}).values())


def _cohort(
    cohort: Compared, cohorts: Sequence[Compared], viewers: Viewers | None
) -> dict[str, Any]:
    group = cohort.group
    first = group.rows[0]
    sized = [row for row in group.rows if row.evaluation.values["subjects"]]
    sized = spread_rows(sized, MAX_PLOTS) if sized else []
    return {
        "group": group,
        "rows": compare.merge_folds(group).rows,
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
        "finds": (finds := with_finds(group.rows)),
        "size_columns": size_columns(finds),
        "froc_plot": froc_plot(finds),
        "gains": (gains := gains_of(group)),
        "gain_columns": gain_columns(gains),
        "no_verdict": NO_VERDICT,
        "controls": controls_of(group),
        "strata": strata_of(group.rows),
        "min_group": MIN_GROUP,
        "volume_plots": list(zip(sized, figures.volume_plots(sized), strict=True)),
        "has_fit": any(figures.cubic_fit(row) is not None for row in sized),
        "min_fit": figures.MIN_FIT_SUBJECTS,
        "max_lines": figures.MAX_LINES,
        "montage": montage(group, viewers),
    }


def _settings(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How the scores were read, in the order in which it happens."""
    components = values.get("components") or {}
    protocol = values.get("protocol") or {}
    settings: dict[str, Any] = {
        "protocol": protocol.get("name"),
        "residual": values.get("residual"),
    }
    settings |= {k.replace("_", " "): v for k, v in (values.get("postprocess") or {}).items()}
    if values.get("slices"):
        settings["axial slices"] = "{} to {}".format(*values["slices"])
    if components.get("max_size"):
        settings["components dropped up to"] = (
            f"{components['max_size']} voxels ({components.get('connectivity')}-connected)"
        )
    if values.get("healthy_cohort"):
        settings["threshold from healthy"] = values["healthy_cohort"].get("name")
    return [(key, str(value)) for key, value in settings.items() if value is not None]


def _lesion_statistics(cohorts: Sequence[Compared]) -> list[tuple[str, dict[str, Any]]]:
    """Lesions of each cohort as table 1 of Meissen 2021 has them, where they were counted."""
    statistics = []
    for cohort in cohorts:
        counted = [row.evaluation.values.get("lesions") for row in cohort.group.rows]
        known = next((one for one in counted if one and one.get("num_components")), None)
        if known is not None:
            statistics.append((cohort.group.name, known))
    return statistics


def _threshold(row: Row) -> dict[str, Any]:
    return row.evaluation.values["threshold"]


def _provenance(run: RunRecord, notes: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    cohort = run.config["cohort"] or {}
    name = str(cohort.get("name", html.ABSENT))
    return {
        "run": run,
        "cohort": name,
        "notes": tuple(map(str, cohort.get("notes") or notes.get(name, ()))),
        "cohort_fingerprint": cohort.get("fingerprint") or html.ABSENT,
        "hardware": run.config.get("hardware") or {},
        "versions": run.config.get("versions") or {},
        "seconds": run.summary.get("fit_seconds"),
        "json": json.dumps(run.config, indent=2, ensure_ascii=False),
    }
