"""Tables of the papers' claims, from `uadray.papers.claims` and the sweeps that are kept.

    python -m benchmarks.claims     the tables of README.md and docs/results.md again

Verdicts are those of `uadray.papers.verdicts`, corrected over all comparisons of the table that
they stand in. Nothing is fitted here.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.harness import write_between
from uadray.metrics.table import METRICS
from uadray.papers import PAPERS
from uadray.papers.claims import (
    CLAIMS,
    Claim,
    Contrast,
    Side,
    experiment_of,
    in_own_table,
    printed_figure,
)
from uadray.papers.verdicts import Finding, contrast_text, findings, judge
from uadray.report.compare import Series, probability
from uadray.tables import to_markdown

README = Path(__file__).parents[1] / "README.md"

LATENT = {2: 128, 3: 512}
"""Latent sizes of Bengs 2021, by which kept results of earlier versions are found."""


def measured(series: Sequence[Series]) -> list[dict[str, Any]]:
    """What a cohort's fits say of the claims, as JSON values to be kept."""
    return [asdict(one) for one in findings(series)]


def kept_findings(cohort: dict[str, Any]) -> list[Finding]:
    """What is kept of a cohort; of earlier versions the differences of the means over fits."""
    if "claims" in cohort:
        return [
            Finding(**one | {"bounds": None if one["bounds"] is None else tuple(one["bounds"])})
            for one in cohort["claims"]
        ]
    kept = []
    for claim in CLAIMS:
        for contrast in claim.contrasts if claim.subset == "all" else ():
            sides = [_kept_side(cohort, claim, side) for side in (contrast.of, contrast.against)]
            means = [_mean(one, claim.metrics[0]) for one in sides]
            if means[0] is None or means[1] is None:
                continue
            fits = [len(one["seeds"]) for one in sides if one and not one["is_plain"]]
            kept.append(
                Finding(
                    paper=claim.paper,
                    claim=claim.key,
                    contrast=str(contrast),
                    metric=claim.metrics[0],
                    value=means[0] - means[1],
                    bounds=None,
                    p=None,
                    num_people=cohort["num_test"],
                    fits=min(fits, default=0),
                )
            )
    return kept


def _kept_side(cohort: dict[str, Any], claim: Claim, side: Side) -> dict[str, Any] | None:
    wanted = experiment_of(claim, side)
    latent = LATENT.get(getattr(wanted.method, "ndim", 0))
    matches = [
        one
        for one in cohort["experiments"]
        if one["name"] == wanted.name
        and one.get("data_share", 1.0) == side.share
        and (one["is_plain"] or one["latent_size"] == latent)
        and not side.role
    ]
    return matches[0] if len(matches) == 1 else None


def _mean(one: dict[str, Any] | None, metric: str) -> float | None:
    figure = None if one is None else one["figures"].get(metric)
    return None if figure is None else float(figure["mean"])


def readme_table(sweeps: Sequence[dict[str, Any]]) -> str:
    """Each claim that is measured in its main contrast: the paper's difference, and ours."""
    columns = _columns(sweeps)
    judged = {
        head: judge([one for one in by_cohort if _is_main(one)])
        for head, by_cohort in columns.items()
    }
    rows = []
    for claim in CLAIMS:
        cells = [
            _cell([one for one in by_cohort if _is_of(one, claim)]) for by_cohort in judged.values()
        ]
        if any(cells):
            rows.append([_said(claim), _printed_difference(claim), *cells])
    head = ["claim", "the paper prints", *columns]
    # Its sentences are long: padded columns would be wider than any screen.
    return re.sub(r" {2,}|(?<=:-)-+", _unpadded, to_markdown(head, rows, align="l" * len(head)))


def results_table(sweeps: Sequence[dict[str, Any]]) -> str:
    """Every claim of the papers: where, what is printed, and how often it is said of ours."""
    columns = {head: judge(column) for head, column in _columns(sweeps).items()}
    rows = []
    for claim in CLAIMS:
        holds, total = in_own_table(claim)
        own = f"{holds} of {total}" if total else ""
        place = ", ".join(part for part in (claim.where, claim.study.replace("-", " ")) if part)
        counts = [_counts(claim, column) for column in columns.values()]
        what = f"{PAPERS[claim.paper].citation.split(',')[0]}, {place}"
        says = f"{claim.says} (no contrast: {claim.why_not})" if claim.why_not else claim.says
        rows.append([what, says, _in_text(claim), own, *counts])
    head = ["where", "claim", "printed in the text", "holds in its own table", *columns]
    return to_markdown(head, rows, align="l" * len(head))


def cohort_table(cohort: dict[str, Any]) -> str:
    """Every contrast of a claim that a cohort is measured for; empty for none."""
    rows = []
    for one in judge(kept_findings(cohort)):
        claim = next(claim for claim in CLAIMS if _is_of(one, claim))
        p = "" if one.p is None else probability(one.p)
        bounds = "" if one.bounds is None else f" [{one.bounds[0]:+.3f}, {one.bounds[1]:+.3f}]"
        figure = f"{one.value:+.3f}{bounds}"
        fits = str(one.fits) if one.fits else ""
        rows.append(
            [claim.key, one.contrast, METRICS[one.metric].head, figure, p, fits, one.verdict]
        )
    head = ["claim", "contrast", "in", "difference", "p", "fits", "verdict"]
    return to_markdown(head, rows, align="l" * len(head)) if rows else ""


def write_readme(sweeps: Sequence[dict[str, Any]]) -> None:
    """Put the table between its marks in README.md."""
    write_between(README, "claims", readme_table(sweeps))


def _columns(sweeps: Sequence[dict[str, Any]]) -> dict[str, list[Finding]]:
    """What is kept of each cohort, by a head that names the data, the people and the fits."""
    columns = {}
    for sweep in sweeps:
        data = sweep["about"].partition(":")[0]
        for cohort in sweep["cohorts"]:
            head = f"{data}, {cohort['cohort']}: {cohort['num_test']} people"
            columns[head] = kept_findings(cohort)
    return columns


def _unpadded(match: re.Match[str]) -> str:
    return " " if match[0].startswith(" ") else "--"


def _is_of(one: Finding, claim: Claim) -> bool:
    return (one.paper, one.claim) == (claim.paper, claim.key)


def _is_main(one: Finding) -> bool:
    claim = next(claim for claim in CLAIMS if _is_of(one, claim))
    return one.contrast == contrast_text(claim, claim.contrasts[0])


def _cell(judged: Sequence[Finding]) -> str:
    if not judged:
        return ""
    (one,) = judged
    bounds = "" if one.bounds is None else f" [{one.bounds[0]:+.3f}, {one.bounds[1]:+.3f}]"
    return f"{one.value:+.3f}{bounds}: {one.verdict}"


def _said(claim: Claim) -> str:
    main = contrast_text(claim, claim.contrasts[0])
    return f"{claim.says} ({METRICS[claim.metrics[0]].head}: {main})"


def _printed_difference(claim: Claim) -> str:
    """The main contrast's difference on each cohort, as the paper's tables have it."""
    main, parts = claim.contrasts[0], []
    for role in claim.roles:
        gap = _gap(claim, main, role)
        if gap is not None:
            parts.append(f"{gap:+.3f} {role or 'on average'}")
    return ", ".join(parts) or "a picture without numbers"


def _gap(claim: Claim, main: Contrast, role: str) -> float | None:
    if claim.subset != "all":
        return None
    figures = [
        printed_figure(claim, side, role, claim.metrics[0]) for side in (main.of, main.against)
    ]
    return None if figures[0] is None or figures[1] is None else figures[0] - figures[1]


def _in_text(claim: Claim) -> str:
    parts = [
        f"{one.text} ({one.what}{'; ' + one.note if one.note else ''})" for one in claim.printed
    ]
    return "; ".join(parts)


def _counts(claim: Claim, judged: Sequence[Finding]) -> str:
    """How often each verdict was given, of the claim's contrasts; empty where none can be."""
    if claim.why_not:
        return ""
    verdicts = [one.verdict for one in judged if _is_of(one, claim)]
    counts = {verdict: verdicts.count(verdict) for verdict in dict.fromkeys(verdicts)}
    return ", ".join(f"{number} {verdict}" for verdict, number in counts.items()) or "not compared"


if __name__ == "__main__":
    from benchmarks.real_use import write_pages

    write_pages()
