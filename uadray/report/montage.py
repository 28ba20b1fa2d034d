"""Example slices of one cohort as tiles, as in figure 7 of Bengs 2021."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uadray.report import figures
from uadray.report.rows import CohortRows, Row, spread_rows
from uadray.runs.evaluations import Cases

MAX_RUNS = 10
"""Maximum number of runs in a row; of more, the best fit of each experiment before second ones."""


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """One case seen by one run; data URIs."""

    reconstruction: str | None
    """None where the method has none."""
    difference: str | None
    """|input - reconstruction| in grey, on the scale of the scores; None without one."""
    scores: str
    """Heat map."""
    outlines: str
    """Truth and prediction on the input."""
    dice: float | None
    """Dice_S of the whole subject."""


@dataclass(frozen=True, kw_only=True)
class MontageCase:
    """One row of the montage."""

    subject: str
    """Its id."""
    plane: int
    """Axial index."""
    lesion_ml: float | None
    """Lesion volume of the whole subject, in mL."""
    input: str
    """Data URI."""
    truth: str
    """Outline of the lesion on the input; data URI."""
    tiles: tuple[Tiles | None, ...]
    """One a run; None where the run kept other cases."""
    viewers: tuple[tuple[str, str], ...]
    """Label of a run and address of its page on this subject, for those that have one."""


@dataclass(frozen=True, kw_only=True)
class Montage:
    """All rows, and how the columns are scaled."""

    rows: tuple[Row, ...]
    """The runs shown, in order of the columns."""
    limits: tuple[tuple[float, float], ...]
    """Lower and upper end of each run's colour scale: one for all methods that reconstruct, whose
    scores are differences of intensity, and one for each of the others, in its own units."""
    cases: tuple[MontageCase, ...]
    """In the order in which the runs kept them."""
    num_left_out: int
    """Runs with cases that are not shown."""

    @property
    def has_differences(self) -> bool:
        """Whether any run reconstructs."""
        return any(t is not None and t.difference for case in self.cases for t in case.tiles)


Viewers = Mapping[tuple[str, str, str], str]
"""Addresses of viewer pages, relative to the report, by cohort, subject and run: the name of the
run's folder or its whole URL."""


def montage(group: CohortRows, viewers: Viewers | None = None) -> Montage | None:
    """The montage of one cohort, or None where no run kept cases.

    Args:
        group: The evaluations.
        viewers: Pages that show whole cases.
    """
    held = [row for row in group.rows if row.evaluation.cases is not None]
    if not held:
        return None
    rows_ = spread_rows(held, MAX_RUNS)
    limits = _limits(rows_)
    places: list[dict[tuple[str, int], int]] = []
    for row in rows_:
        held_cases = _cases(row)
        keys = zip(held_cases.ids, held_cases.slices, strict=True)
        places.append({key: k for k, key in enumerate(keys)})
    first: dict[tuple[str, int], tuple[Row, int]] = {}
    for row, place in zip(rows_, places, strict=True):
        for key, k in place.items():
            first.setdefault(key, (row, k))
    cases = []
    for key, (row, k) in first.items():
        tiles = tuple(
            _tiles(other, place[key], scale) if key in place else None
            for other, place, scale in zip(rows_, places, limits, strict=True)
        )
        pages = tuple(
            (other.run.label, page)
            for other, place in zip(rows_, places, strict=True)
            if key in place and (page := _viewer(viewers, group, key[0], other))
        )
        cases.append(_case(row, k, tiles, pages))
    return Montage(
        rows=tuple(rows_),
        limits=tuple(limits),
        cases=tuple(cases),
        num_left_out=len(held) - len(rows_),
    )


def _limits(rows: Sequence[Row]) -> list[tuple[float, float]]:
    """One scale for all residuals of one score range; other scores keep their own."""
    kinds = [
        (float(low), float(high)) if _cases(row).reconstruction is not None else row.run.url
        for row in rows
        for low, high in [row.evaluation.values.get("score_range") or (0.0, 1.0)]
    ]
    limits: dict[object, tuple[float, float]] = {}
    for kind in dict.fromkeys(kinds):
        same = [row for row, own in zip(rows, kinds, strict=True) if own == kind]
        low = (same[0].evaluation.values.get("score_range") or (0.0, 1.0))[0]
        limits[kind] = figures.heat_limits([_cases(row) for row in same], float(low))
    return [limits[kind] for kind in kinds]


def _viewer(viewers: Viewers | None, group: CohortRows, subject: str, row: Row) -> str | None:
    for cohort in (group.fingerprint, group.name):
        for name in (row.run.url, row.run.url.rsplit("/", 1)[-1]):
            if page := (viewers or {}).get((cohort, subject, name)):
                return page
    return None


def _cases(row: Row) -> Cases:
    assert row.evaluation.cases is not None
    return row.evaluation.cases


def _subject(row: Row, name: str, key: str) -> float | None:
    subjects = row.evaluation.values["subjects"]
    return next((s[key] for s in subjects if str(s["id"]) == name), None)


def _tiles(row: Row, k: int, limits: tuple[float, float]) -> Tiles:
    cases = _cases(row)
    reconstruction = cases.reconstruction
    return Tiles(
        reconstruction=None if reconstruction is None else figures.grey_tile(reconstruction[k]),
        difference=None
        if reconstruction is None
        else _difference(cases.input[k], reconstruction[k], limits),
        scores=figures.heat_tile(cases.scores[k], *limits),
        outlines=figures.outline_tile(cases.input[k], cases.lesion[k], cases.prediction[k]),
        dice=_subject(row, cases.ids[k], "dice"),
    )


def _difference(
    image: NDArray[np.float32], output: NDArray[np.float32], limits: tuple[float, float]
) -> str:
    low, high = limits
    apart = np.abs(image.astype(np.float32) - output) - low
    return figures.grey_tile(apart / (high - low if high > low else 1.0))


def _case(
    row: Row, k: int, tiles: tuple[Tiles | None, ...], viewers: tuple[tuple[str, str], ...]
) -> MontageCase:
    cases = _cases(row)
    return MontageCase(
        subject=cases.ids[k],
        plane=cases.slices[k],
        lesion_ml=_subject(row, cases.ids[k], "lesion_ml"),
        input=figures.grey_tile(cases.input[k]),
        truth=figures.outline_tile(cases.input[k], cases.lesion[k], None),
        tiles=tiles,
        viewers=viewers,
    )
