"""Whom a method fails: its figures for groups of the test people, and against all others.

People are grouped by what the cohort knows of them: `scanner`, `lesion_ml`, `brain_ml` and every
covariate. The threshold is the frozen one, fitted on people of all groups.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from uadray.errors import EvaluationError
from uadray.evaluation.figures import Measured, figures_of
from uadray.evaluation.people import known_of
from uadray.metrics.inference import Difference, Fits, gap, holm
from uadray.metrics.table import Metric
from uadray.store import Cohort
from uadray.strata import SCANNER, By

FROM_IMAGES = ("lesion_ml", "brain_ml")
"""Columns of a cohort's table of subjects that people are grouped by, besides the scanner."""


def groups_of(cohort: Cohort, by: Sequence[str]) -> dict[str, pd.Categorical]:
    """The group of each scan of the test part, for each of several things to group by.

    Args:
        cohort: With covariates.
        by: Such as `sex` or `age:40:60`.

    Raises:
        EvaluationError: nothing is known of what is asked for.
        ConfigError: it is no column, or ranges of words.
    """
    table, known = cohort.subjects, cohort.covariates
    columns = {name: table[name] for name in (SCANNER, *FROM_IMAGES)}
    columns |= {str(name): known[name] for name in known}
    found = {}
    for text in by:
        one = By.parse(text)
        if one.column not in columns:
            raise EvaluationError(
                f"{cohort.url} knows nobody's {one.column}; it knows {', '.join(columns)}: the "
                "same jobs/prepare.py again with --covariates TABLE adds it, and prepares nothing "
                "anew"
            )
        values = columns[one.column][table["split"] == "test"].tolist()
        found[text] = pd.Categorical(list(map(one.group, values)), one.order(values))
    return found


def groups_of_controls(cohort: Cohort, by: Sequence[str]) -> dict[str, pd.Categorical]:
    """The same of healthy controls, by what is known of them.

    What is not known of them, or means nothing there (lesions), groups patients alone.
    """
    known = {SCANNER, *map(str, cohort.covariates)}
    return groups_of(cohort, [text for text in by if By.parse(text).column in known])


def ages_and_sexes(cohort: Cohort) -> dict[str, str]:
    """What a person is compared by with the controls, as part of an evaluation's settings.

    A digest of the ages and sexes of the test part; empty where neither is known.
    """
    known = known_of(cohort, "test")
    columns = {name: known[name].astype(str).tolist() for name in ("age", "sex") if name in known}
    return {"controls_known": _digest(columns)} if columns else {}


def as_asked(cohort: Cohort, by: Sequence[str]) -> dict[str, Any]:
    """What decides the strata of an evaluation, as part of its settings; empty where none are.

    Covariates are no part of a cohort's fingerprint: who is in which group is compared itself.
    """
    assigned = groups_of(cohort, by)
    if not assigned:
        return {}
    groups = {text: list(names) for text, names in assigned.items()}
    return {"by": list(by), "groups": _digest(groups)}


def _digest(value: Mapping[str, Any]) -> str:
    return sha256(json.dumps(value).encode()).hexdigest()[:16]


Of = Callable[[Measured, NDArray[np.bool_]], tuple[dict[str, Any], dict[str, Fits]]]
"""Gives what is reported of some of the scans, and what its intervals are made from."""


def stratify(
    measured: Measured, assigned: Mapping[str, pd.Categorical], metrics: Sequence[Metric]
) -> dict[str, list[dict[str, Any]]]:
    """All figures of each group of the test people, see `compare_groups`.

    Args:
        measured: Of the whole test part.
        assigned: From `groups_of`.
        metrics: What is computed, besides figures of lesions.
    """

    def of(some: Measured, _: NDArray[np.bool_]) -> tuple[dict[str, Any], dict[str, Fits]]:
        figures = figures_of(some, metrics)
        plain = {k: v for k, v in figures.metrics.items() if not k.startswith("threshold")}
        return {"metrics": plain, "intervals": figures.intervals}, figures.by_person

    return compare_groups(measured, assigned, of)


def compare_groups(
    measured: Measured, assigned: Mapping[str, pd.Categorical], of: Of
) -> dict[str, list[dict[str, Any]]]:
    """Figures of each group, and how far they are from those of all others, as JSON values.

    Args:
        measured: Of all people.
        assigned: What they are grouped by -> the group of each scan.
        of: Computes the figures of some of them.

    Returns:
        For each of `assigned`, its groups in order: their name, numbers of people and scans,
        `metrics`, `intervals`, and `gaps`: per metric the `value` of the group less that of all
        other people, its 95 % `interval`, and `p`, corrected over all groups of all that is asked
        for (Holm); None where too few people tell. Two groups make one comparison.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    differences: list[tuple[dict[str, Any], dict[str, Difference]]] = []
    for by, names in assigned.items():
        inside = {str(name): np.asarray(names == name) for name in names.categories}
        parts = [of(_only(measured, here), here) for here in inside.values()]
        found[by] = [
            {
                "group": name,
                "num_people": len(set(np.asarray(measured.people)[here])),
                "num_scans": int(here.sum()),
                **figures,
                "gaps": {},
            }
            for (name, here), (figures, _) in zip(inside.items(), parts, strict=True)
        ]
        if len(inside) == 2:
            differences.append((found[by][0], _gaps(parts[0][1], parts[1][1])))
        elif len(inside) > 2:
            for entry, here, (_, fits) in zip(found[by], inside.values(), parts, strict=True):
                rest = of(_only(measured, ~here), ~here)[1]
                differences.append((entry, _gaps(fits, rest)))
    keys = dict.fromkeys(key for _, ones in differences for key in ones)
    for key in keys:
        made = [(entry, ones[key]) for entry, ones in differences if key in ones]
        for (entry, one), p in zip(made, holm([d.p for _, d in made]), strict=True):
            entry["gaps"][key] = {
                "value": None if np.isnan(one.value) else one.value,
                "interval": None if one.bounds is None else list(one.bounds),
                "p": None if np.isnan(p) else float(p),
            }
    for entries in found.values():
        if len(entries) == 2:
            entries[1]["gaps"] = {k: _turned(v) for k, v in entries[0]["gaps"].items()}
    return found


def _only(measured: Measured, here: NDArray[np.bool_]) -> Measured:
    """What is measured of some of the test subjects."""
    weights = here.astype(np.int64)
    return replace(
        measured,
        scores=measured.scores.weighted(weights),
        filtered=measured.filtered and measured.filtered.weighted(weights),
        people=[p for p, h in zip(measured.people, here, strict=True) if h],
        lesions=[one for one, h in zip(measured.lesions, here, strict=True) if h],
        finds=(),  # of all people alone
    )


def _gaps(here: Mapping[str, Fits], rest: Mapping[str, Fits]) -> dict[str, Difference]:
    return {key: gap(here[key], rest[key]) for key in here}


def _turned(one: dict[str, Any]) -> dict[str, Any]:
    """A comparison from the other side."""
    bounds = one["interval"]
    return {
        "value": None if one["value"] is None else -one["value"],
        "interval": None if bounds is None else [-bounds[1], -bounds[0]],
        "p": one["p"],
    }
