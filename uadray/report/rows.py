"""Evaluations gathered by cohort: what stands in one table, and what must be said of it."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from uadray.metrics.inference import MIN_PEOPLE
from uadray.metrics.metric import Appearance
from uadray.metrics.outside import installed
from uadray.metrics.postprocess import describe_findable
from uadray.metrics.table import OWN
from uadray.runs.evaluations import INTERVAL_METHOD, Evaluation
from uadray.runs.records import RunRecord


class Published(Protocol):
    """A figure as a paper prints it, in fractions of 1."""

    @property
    def value(self) -> float:
        """The figure."""

    @property
    def deviation(self) -> float | None:
        """Standard deviation, where the paper gives one."""

    @property
    def deviation_over(self) -> str:
        """What it is over: `subjects` or `folds`."""

    @property
    def digitised(self) -> bool:
        """Whether it was read off a picture."""


NOT_COMPARED = (
    "modality, preparation and people of fit and test were not compared: evaluated by an earlier "
    "version"
)
"""Of an evaluation that does not record the comparison."""

TOO_FEW_PEOPLE = f"There are fewer than {MIN_PEOPLE} test people: too few for intervals."
"""Of an evaluation on so few people that none is given."""

OLD_INTERVALS = (
    "intervals of earlier versions covered too little and are not shown: evaluate again for "
    "intervals (kept scores are used)"
)
"""Of an evaluation whose intervals were made otherwise."""

PublishedFigures = Mapping[tuple[str, str], Mapping[str, Published]]
"""Printed figures by name of the metric, by name of the cohort and of the experiment."""

Caveats = Mapping[str, Collection[tuple[str, str]]]
"""Where figures are not a paper's, in words, with the cohorts and experiments that each is of."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run on one cohort."""

    run: RunRecord
    """The run."""
    evaluation: Evaluation
    """Its evaluation on the cohort of the table."""
    published: Mapping[str, Published] = field(default_factory=dict)
    """What a paper printed for it, by name of the metric; mostly empty."""
    caveats: tuple[int, ...] = ()
    """Numbers, from 1, of those of the page's caveats that it has."""

    @property
    def is_plain(self) -> bool:
        """Whether the method is a plain baseline."""
        return self.run.is_plain

    @property
    def lost_share(self) -> float | None:
        """Share of the lesion voxels that the erosion of the brain mask took away."""
        lost, whole = (self.evaluation.values[f"lesion_voxels{s}"] for s in ("_eroded", ""))
        return lost / whole if whole and lost is not None else None

    @property
    def lost_ml(self) -> float | None:
        """The same in mL: the share of the lesion volume of all test subjects."""
        volumes = [subject["lesion_ml"] for subject in self.evaluation.values["subjects"]]
        share = self.lost_share
        return None if share is None or None in volumes else share * sum(volumes)


@dataclass(frozen=True, kw_only=True)
class CohortRows:
    """All evaluations on one lesioned cohort, the highest Dice_D on top."""

    name: str
    """Of the cohort."""
    fingerprint: str
    """Of the cohort; rows of another one are never in the same table."""
    notes: tuple[str, ...]
    """Distinct notes of its subjects, such as `semi-synthetic`; shown beside the name."""
    rows: tuple[Row, ...]
    """Sorted by Dice_D, descending; undefined ones last."""
    warnings: tuple[str, ...]
    """Why some of the rows must not be compared with each other; empty where all may."""


def group_by_cohort(
    runs: Sequence[RunRecord],
    published: PublishedFigures | None = None,
    caveats: Caveats | None = None,
) -> list[CohortRows]:
    """The evaluations of all runs, one table a cohort, sorted by the cohort's name.

    Evaluations on stores of one name but other fingerprints stand in tables of their own.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for run in runs:
        for evaluation in run.evaluations:
            pair = (evaluation.cohort, str(run.config["name"]))
            row = Row(
                run=run,
                evaluation=evaluation,
                published=(published or {}).get(pair, {}),
                caveats=tuple(
                    n for n, of in enumerate((caveats or {}).values(), start=1) if pair in of
                ),
            )
            key = (evaluation.cohort, evaluation.cohort_fingerprint)
            groups.setdefault(key, []).append(row)
    return [
        CohortRows(
            name=name,
            fingerprint=fingerprint,
            notes=_notes(rows),
            rows=tuple(sorted(rows, key=row_rank)),
            warnings=(*_differences(rows), *_doubts(rows)),
        )
        for (name, fingerprint), rows in sorted(groups.items())
    ]


def metrics_of(rows: Iterable[Row]) -> tuple[Appearance, ...]:
    """All metrics that tables of some evaluations are about.

    Ours come first, then those of installed packages, then those that only the records know, whose
    packages are not installed here.
    """
    recorded = {k: one.appearance for row in rows for k, one in row.evaluation.outside.items()}
    here: dict[str, Appearance] = {metric.key: metric for metric in (*OWN, *installed())}
    return tuple((here | {k: one for k, one in recorded.items() if k not in here}).values())


def findable_on(runs: Sequence[RunRecord], cohort: str) -> list[str]:
    """What the medians of the evaluations on a cohort hide, a sentence for each window."""
    records = [
        row.evaluation.values.get("findable")
        for group in group_by_cohort(runs)
        if group.name == cohort
        for row in group.rows
    ]
    return list(dict.fromkeys(describe_findable(record) for record in records if record))


def notes_on(runs: Sequence[RunRecord], cohort: str) -> list[str]:
    """What could not be compared between runs and a cohort, or is taken for coincidence."""
    return [
        doubt
        for group in group_by_cohort(runs)
        if group.name == cohort
        for doubt in _doubts(group.rows)
    ]


def _notes(rows: Sequence[Row]) -> tuple[str, ...]:
    """Notes of all rows as they are; those of some with the names of their runs."""
    notes: dict[str, list[str]] = {}
    for row in rows:
        for note in row.evaluation.notes:
            notes.setdefault(note, []).append(row.run.label)
    marks = {
        mark
        for row in rows
        for mark in row.evaluation.notes
        if mark in (row.evaluation.values.get("compared") or {}).get("differences", ())
    }
    return tuple(
        f"{_named(labels)}: {note}" if note in marks and len(labels) < len(rows) else note
        for note, labels in notes.items()
    )


def _doubts(rows: Sequence[Row]) -> tuple[str, ...]:
    """What could not be compared between a run and the cohort that it was tested on."""
    doubts: dict[str, list[str]] = {}
    for row in rows:
        compared = row.evaluation.values.get("compared")
        notes = [NOT_COMPARED] if compared is None else compared.get("notes", ())
        for note in notes:
            doubts.setdefault(str(note), []).append(row.run.label)
        if row.evaluation.values.get("interval_method") != INTERVAL_METHOD:
            doubts.setdefault(OLD_INTERVALS, []).append(row.run.label)
    for metric in metrics_of(rows)[len(OWN) :]:
        packages = {one.package for row in rows if (one := row.evaluation.outside.get(metric.key))}
        with_it = f" with {' or '.join(sorted(packages))} installed" if any(packages) else ""
        missing = f"{metric.head} was not computed: evaluate again{with_it} (kept scores are used)"
        for row in rows:
            one = row.evaluation.outside.get(metric.key)
            if one is None or one.remark:
                note = missing if one is None else f"{metric.head}: {one.remark}"
                doubts.setdefault(note, []).append(row.run.label)
    few = any(row.evaluation.has_too_few_people for row in rows)
    return (
        *((TOO_FEW_PEOPLE,) if few else ()),
        *(f"{note[0].upper()}{note[1:]}{_of(labels, rows)}." for note, labels in doubts.items()),
    )


def _of(labels: Sequence[str], rows: Sequence[Row]) -> str:
    return "" if len(labels) == len(rows) else f" ({_named(labels)})"


def _named(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - 3} more" if len(labels) > 3 else ""
    return ", ".join(labels[:3]) + more


def row_rank(row: Row) -> tuple[float, str]:
    """The highest Dice_D first, then by label."""
    value = row.evaluation.metric("dice_d")
    return (float("inf") if value is None else -value, row.run.label)


def spread_rows(rows: Sequence[Row], most: int) -> list[Row]:
    """Rows for pictures: of many, the best fit of each experiment before second ones.

    Args:
        rows: The highest Dice_D first.
        most: How many there may be.

    Returns:
        In the order of `rows`; the best plain baseline is always among them.
    """
    seen: set[str] = set()
    first: list[Row] = []
    rest: list[Row] = []
    for row in rows:
        name = str(row.run.config["name"])
        (rest if name in seen else first).append(row)
        seen.add(name)
    chosen = (first + rest)[:most]
    if not any(row.is_plain for row in chosen):
        chosen[-1:] = [next((row for row in rows if row.is_plain), chosen[-1])]
    kept = {id(row) for row in chosen}
    return [row for row in rows if id(row) in kept]


_PLURAL = ("subjects", "count", "fits")
"""How those end of which there are several."""


def _differences(rows: Sequence[Row]) -> tuple[str, ...]:
    values = [row.evaluation.values for row in rows]

    def settings(key: str) -> set[Any]:
        return {str(sorted((v.get(key) or {}).items())) for v in values}

    checks: dict[str, set[Any]] = {
        "the test subjects": {tuple(sorted(str(s["id"]) for s in v["subjects"])) for v in values},
        "the post-processing": settings("postprocess"),
        "the component filter": settings("components"),
        "the cohorts of the fits": {
            str((row.run.config["cohort"] or {}).get("fingerprint")) for row in rows
        },
        "the slices that count": {str(v.get("slices")) for v in values},
        "the rule of the threshold": {str(v["threshold"]["rule"]) for v in values},
        "the part that the threshold was fitted on": {
            str(v["threshold"]["fitted_on"]) for v in values
        },
    }
    for metric in metrics_of(rows)[len(OWN) :]:
        kept = (row.evaluation.outside.get(metric.key) for row in rows)
        checks[f"the package of {metric.head}"] = {one.package for one in kept if one}
    return tuple(
        f"{what[0].upper()}{what[1:]} differ{'' if what.endswith(_PLURAL) else 's'} between "
        "these runs: hold their figures against each other with care."
        for what, distinct in checks.items()
        if len(distinct) > 1
    )
