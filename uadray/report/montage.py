"""Example slices of one cohort as tiles, as in figure 7 of Bengs 2021."""

from collections.abc import Sequence
from dataclasses import dataclass

from uadray.report import figures
from uadray.report.load import Cases
from uadray.report.rows import CohortRows, Row

MAX_RUNS = 10
"""Most runs side by side; beyond, the highest by Dice_D and always the best plain baseline."""


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """One case seen by one run; data URIs."""

    reconstruction: str | None
    """None where the method has none."""
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


@dataclass(frozen=True, kw_only=True)
class Montage:
    """All rows, and how the columns are scaled."""

    rows: tuple[Row, ...]
    """The runs shown, in order of the columns."""
    limits: tuple[tuple[float, float], ...]
    """Lower and upper end of each run's colour scale, in its score units."""
    cases: tuple[MontageCase, ...]
    """In the order in which the runs kept them."""
    num_left_out: int
    """Runs with cases that are not shown."""


def montage(group: CohortRows) -> Montage | None:
    """The montage of one cohort, or None where no run kept cases."""
    held = [row for row in group.rows if row.evaluation.cases is not None]
    if not held:
        return None
    shown = _choose(held)
    limits: list[tuple[float, float]] = []
    places: list[dict[tuple[str, int], int]] = []
    for row in shown:
        held_cases = _cases(row)
        low = (row.evaluation.values.get("score_range") or (0.0, 1.0))[0]
        limits.append(figures.heat_limits(held_cases, float(low)))
        keys = zip(held_cases.ids, held_cases.slices, strict=True)
        places.append({key: k for k, key in enumerate(keys)})
    first: dict[tuple[str, int], tuple[Row, int]] = {}
    for row, place in zip(shown, places, strict=True):
        for key, k in place.items():
            first.setdefault(key, (row, k))
    cases = []
    for key, (row, k) in first.items():
        tiles = tuple(
            _tiles(other, place[key], scale) if key in place else None
            for other, place, scale in zip(shown, places, limits, strict=True)
        )
        cases.append(_case(row, k, tiles))
    return Montage(
        rows=tuple(shown),
        limits=tuple(limits),
        cases=tuple(cases),
        num_left_out=len(held) - len(shown),
    )


def _choose(held: Sequence[Row]) -> list[Row]:
    shown = list(held[:MAX_RUNS])
    if not any(row.run.is_plain for row in shown):
        shown[-1:] = [next((row for row in held if row.run.is_plain), shown[-1])]
    return shown


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
        scores=figures.heat_tile(cases.scores[k], *limits),
        outlines=figures.outline_tile(cases.input[k], cases.lesion[k], cases.prediction[k]),
        dice=_subject(row, cases.ids[k], "dice"),
    )


def _case(row: Row, k: int, tiles: tuple[Tiles | None, ...]) -> MontageCase:
    cases = _cases(row)
    return MontageCase(
        subject=cases.ids[k],
        plane=cases.slices[k],
        lesion_ml=_subject(row, cases.ids[k], "lesion_ml"),
        input=figures.grey_tile(cases.input[k]),
        truth=figures.outline_tile(cases.input[k], cases.lesion[k], None),
        tiles=tiles,
    )
