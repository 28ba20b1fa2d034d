"""What runs of ours say of the papers' claims: each contrast on a cohort, and its verdict."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from uadray.config import to_json
from uadray.metrics.inference import LEVEL, can_reject, holm
from uadray.papers.claims import CLAIMS, Claim, Side, experiment_of
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
        claims: Those that are looked for. Each is taken in its first metric, on all subjects; a
            contrast between cohorts or among lesions of one size is passed over.
    """
    found = []
    for claim in claims:
        for contrast in claim.contrasts if claim.subset == "all" else ():
            sides = [match(series, claim, side) for side in (contrast.of, contrast.against)]
            if sides[0] is None or sides[1] is None:
                continue
            compared = compare(sides[0], sides[1])
            gap = None if compared is None else compared.differences.get(claim.metrics[0])
            if compared is None or gap is None:
                continue
            fits = [len(one.rows) for one in sides if one is not None and not one.is_plain]
            found.append(
                Finding(
                    paper=claim.paper,
                    claim=claim.key,
                    contrast=str(contrast),
                    metric=claim.metrics[0],
                    value=gap.value,
                    bounds=gap.bounds,
                    p=None if np.isnan(gap.p) else gap.p,
                    num_people=compared.num_people,
                    fits=min(fits, default=0),
                )
            )
    return found


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
    for found in (exact, named):
        if len(found) == 1:
            return found[0]
    return None


def _part(one: Series, name: str) -> dict[str, Any]:
    found: dict[str, Any] = one.rows[0].run.config["experiment"].get(name) or {}
    return found


def _setting(one: Series, part: str, name: str, default: Any) -> Any:
    return _part(one, part).get(name, default)


def judge(found: Sequence[Finding]) -> list[Finding]:
    """The findings with their verdicts, corrected over all of them (Holm 1979).

    Call it with what one table shows: a verdict depends on how many comparisons stand beside it.
    One that several claims make counts once.
    """
    distinct = {(one.contrast, one.metric): one for one in found}
    corrected = holm([np.nan if one.p is None else one.p for one in distinct.values()])
    p_values = dict(zip(distinct, map(float, corrected), strict=True))
    return [
        replace(one, verdict=_verdict(one, p_values[one.contrast, one.metric], len(distinct)))
        for one in found
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
