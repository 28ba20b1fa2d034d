"""What runs of ours say of the papers' claims: each contrast on a cohort, and its verdict."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from uadray.config import to_json
from uadray.metrics.inference import (
    LEVEL,
    Difference,
    Fits,
    can_reject,
    difference,
    holm,
    leaving_out,
)
from uadray.papers.claims import CLAIMS, Claim, Contrast, Side, experiment_of
from uadray.report.compare import HIGHER, LOWER, ONE_FIT, SAME, TOO_FEW, Series, compare

UNTESTED = "not tested"
"""Verdict on what an earlier version kept: the means, without the figures by person."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A contrast of a claim in one metric on one cohort of ours."""

    paper: str
    """Key of the paper."""
    claim: str
    """Key of the claim."""
    contrast: str
    """`3D-Cube-n, 60% of the data against 3D-None`."""
    metric: str
    """Name of the figure."""
    value: float
    """The first method's figure minus the second's, of the means over fits."""
    bounds: tuple[float, float] | None
    """95 % interval; None where it has none."""
    p: float | None
    """Two-sided; None where it was not tested."""
    num_people: int
    """That both were evaluated on."""
    fits: int
    """Of the method that has fewer, among those that depend on a seed; 0 where neither does."""
    verdict: str = ""
    """One of those of a comparison, or `UNTESTED`; empty until the table is known."""


def findings(series: Sequence[Series], claims: Iterable[Claim] = CLAIMS) -> list[Finding]:
    """Every contrast of the claims that the fits on one cohort can be compared for.

    Args:
        series: Of the cohort.
        claims: Those that are looked for, each in its first metric; contrasts between cohorts are
            passed over.
    """
    results = []
    for claim in claims:
        for contrast in claim.contrasts:
            sides = [match(series, claim, side) for side in (contrast.of, contrast.against)]
            if sides[0] is None or sides[1] is None:
                continue
            made = _difference(sides[0], sides[1], claim)
            if made is None:
                continue
            gap, num_people = made
            fits = [len(one.rows) for one in sides if one is not None and not one.is_plain]
            results.append(
                Finding(
                    paper=claim.paper,
                    claim=claim.key,
                    contrast=contrast_text(claim, contrast),
                    metric=claim.metrics[0],
                    value=gap.value,
                    bounds=gap.bounds,
                    p=None if np.isnan(gap.p) else gap.p,
                    num_people=num_people,
                    fits=min(fits, default=0),
                )
            )
    return results


def contrast_text(claim: Claim, contrast: Contrast) -> str:
    """`3D-Cube-n against 3D-None, large lesions`."""
    return str(contrast) if claim.subset == "all" else f"{contrast}, {claim.subset}"


def _difference(ours: Series, theirs: Series, claim: Claim) -> tuple[Difference, int] | None:
    """The difference in the claim's first metric, and the people that it is of."""
    if (compared := compare(ours, theirs)) is None:
        return None
    if claim.subset == "all":
        gap = compared.differences.get(claim.metrics[0])
        return None if gap is None else (gap, compared.num_people)
    size = {
        str(subject["id"]): float(subject["lesion_ml"])
        for subject in ours.rows[0].evaluation.values["subjects"]
        if subject["dice"] is not None and subject["lesion_ml"]
    }
    middle = np.median(list(size.values())) if size else np.nan
    small = claim.subset == "small lesions"
    scans = [scan for scan, ml in size.items() if (ml < middle if small else ml > middle)]
    fits = [_dice_of(one, scans) for one in (ours, theirs)]
    if fits[0] is None or fits[1] is None:
        return None
    return difference(fits[0], fits[1]), fits[0].values.shape[1] - 1


def _dice_of(series: Series, scans: Sequence[str]) -> Fits | None:
    """Mean Dice_S of some scans, with everyone and without each person; None where it lacks one."""
    kept = series.by_person
    if not kept or not scans:
        return None
    person = dict(zip(kept[0].scans, kept[0].people, strict=True))
    weights = leaving_out([person[scan] for scan in scans])
    values = []
    for row in series.rows:
        dice = {str(s["id"]): s["dice"] for s in row.evaluation.values["subjects"]}
        each = np.array([dice.get(scan) for scan in scans], np.float64)
        with np.errstate(invalid="ignore"):
            values.append(weights @ each / weights.sum(axis=1))
    stacked = np.stack(values)
    return Fits(values=stacked, limits=(0.0, 1.0)) if np.isfinite(stacked).all() else None


def match(series: Sequence[Series], claim: Claim, side: Side) -> Series | None:
    """The fits of a side: its name, its share of the data, and the paper's settings of the method.

    None where there are none, or several that nothing tells apart.
    """
    if side.role:
        return None
    wanted = experiment_of(claim, side)
    named = [
        one
        for one in series
        if one.name == wanted.name and _setting(one, "fit", "data_share", 1.0) == side.share
    ]
    exact = [one for one in named if _part(one, "method") == to_json(wanted.method)]
    for matches in (exact, named):
        if len(matches) == 1:
            return matches[0]
    return None


def _part(one: Series, name: str) -> dict[str, Any]:
    settings: dict[str, Any] = one.rows[0].run.config["experiment"].get(name) or {}
    return settings


def _setting(one: Series, part: str, name: str, default: Any) -> Any:
    return _part(one, part).get(name, default)


def judge(results: Sequence[Finding]) -> list[Finding]:
    """The findings with their verdicts, corrected over all of them (Holm 1979).

    Call it with what one table shows: a verdict depends on how many comparisons stand beside it.
    One that several claims make counts once.
    """
    distinct = {(one.contrast, one.metric): one for one in results}
    corrected = holm([np.nan if one.p is None else one.p for one in distinct.values()])
    p_values = dict(zip(distinct, map(float, corrected), strict=True))
    return [
        replace(one, verdict=_verdict(one, p_values[one.contrast, one.metric], len(distinct)))
        for one in results
    ]


def _verdict(one: Finding, p: float, num: int) -> str:
    if one.fits == 1:
        return ONE_FIT
    if not can_reject(one.num_people, num):
        return TOO_FEW
    if np.isnan(p):
        return UNTESTED
    if p >= LEVEL:
        return SAME
    return HIGHER if one.value > 0 else LOWER
