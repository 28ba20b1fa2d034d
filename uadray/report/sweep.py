"""A sweep as a whole: its trials, how they ended, and what may be said of them.

Made from the run folders alone. A sweep is what the report calls several runs that differ in a
setting or in the seed; a table of methods with one fit each is none.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from uadray.report.columns import number, signed
from uadray.report.compare import Comparison, Series, compare, correct, count_verdicts
from uadray.report.effects import Effect, Line, effects, healthy_error
from uadray.report.rows import CohortRows, Row
from uadray.report.words import Compared, difference_in_words, figure_in_words
from uadray.runs.evaluations import Evaluation
from uadray.runs.records import RunRecord
from uadray.runs.settings import EXPERIMENT, Setting, varied

MAX_LISTED = 3
"""Maximum number of lines that are listed one by one; of more, how many go up and down."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Several runs that differ in a setting or in the seed."""

    runs: tuple[RunRecord, ...]
    """All of them, however they ended."""
    settings: tuple[Setting, ...]
    """What varies, the experiment's name first where there are several; the seed apart."""
    effects: tuple[Effect, ...]
    """One a setting and cohort on which it has two values."""
    sentences: tuple[str, ...]
    """The summary in words."""

    @property
    def endings(self) -> dict[str, int]:
        """How many trials ended how."""
        return _count_endings(self.runs)


def find_sweep(runs: Sequence[RunRecord], cohorts: Sequence[Compared]) -> Sweep | None:
    """The sweep that the runs are, or None where nothing varies but the method."""
    settings = varied([run.config for run in runs])
    seeds: dict[tuple[str, str], set[int | None]] = {}
    for run in runs:
        seeds.setdefault((str(run.config["name"]), run.variant), set()).add(run.seed)
    varies = any(one.path != EXPERIMENT for one in settings)
    repeats = len(seeds) > 1 and any(len(distinct) > 1 for distinct in seeds.values())
    if not varies and not repeats:
        return None
    groups = [cohort.group for cohort in cohorts] or [_unevaluated(runs)]
    made = [effect for group in groups for effect in effects(group, settings)]
    return Sweep(
        runs=tuple(runs),
        settings=settings,
        effects=tuple(made),
        sentences=tuple(_in_words(runs, settings, cohorts, made)),
    )


def _unevaluated(runs: Sequence[RunRecord]) -> CohortRows:
    """The runs as if on a cohort of no name: what they tell without any label."""
    nothing = Evaluation(
        cohort="",
        cohort_fingerprint="",
        notes=(),
        values={"metrics": {}, "intervals": {}, "subjects": []},
        cases=None,
        by_person=None,
        slices=None,
    )
    rows = tuple(Row(run=run, evaluation=nothing) for run in runs)
    return CohortRows(name="", fingerprint="", notes=(), rows=rows, warnings=())


def _in_words(
    runs: Sequence[RunRecord],
    settings: Sequence[Setting],
    cohorts: Sequence[Compared],
    made: Sequence[Effect],
) -> list[str]:
    sentences = [_extent(runs, settings), _endings(runs), _objective(runs)]
    for cohort in cohorts:
        sentences += _choices(cohort)
        sentences += _spans([effect for effect in made if effect.group is cohort.group])
    return [sentence for sentence in sentences if sentence]


def _extent(runs: Sequence[RunRecord], settings: Sequence[Setting]) -> str:
    """How many trials of what, as in `6 trials of 1 experiment over epochs (5, 20), 3 seeds`."""
    learned = [run for run in runs if not run.is_plain]
    names = {str(run.config["name"]) for run in learned}
    parts = [f"{len(learned)} trial{_s(learned)} of {len(names)} experiment{_s(names)}"]
    numeric = [one for one in settings if one.path != EXPERIMENT]
    if numeric:
        parts.append("over " + ", ".join(_values(one) for one in numeric))
    seeds = {run.seed for run in learned}
    parts.append(f"with {len(seeds)} seed{_s(seeds)}")
    plain = len(runs) - len(learned)
    beside = f", beside {plain} of plain baselines" if plain else ""
    return " ".join(parts) + beside + "."


def _values(setting: Setting) -> str:
    values = [setting.text(value) for value in setting.values]
    if len(values) > 6:
        return f"{setting.label} ({len(values)} values, {values[0]} to {values[-1]})"
    return f"{setting.label} ({', '.join(values)})"


def _endings(runs: Sequence[RunRecord]) -> str:
    ends = _count_endings(runs)
    if set(ends) == {"finished"}:
        return "All have finished."
    return f"Of all {len(runs)}, {', '.join(f'{count} {end}' for end, count in ends.items())}."


def _objective(runs: Sequence[RunRecord]) -> str:
    """What the scheduler compared trials by, where that used labels."""
    objectives = [run.summary.get("objective") or {} for run in runs]
    names = sorted({str(one.get("name")) for one in objectives if one.get("uses_labels")})
    if not names:
        return ""
    return (
        f"The sweep compared its trials by {' and '.join(names)} of a threshold part: which of "
        "them went on, or were drawn, has used labels."
    )


def _count_endings(runs: Sequence[RunRecord]) -> dict[str, int]:
    ends = [str(run.summary["status"]) for run in runs]
    return {end: ends.count(end) for end in sorted(set(ends), key=lambda e: (-ends.count(e), e))}


def _choices(cohort: Compared) -> list[str]:
    """What is chosen without labels, what with them, and what the choice costs."""
    learned = [one for one in cohort.series if not one.is_plain]
    scored = [one for one in learned if one.mean("dice_d") is not None]
    healthy = {one.label: mean for one in scored if (mean := _healthy(one)) is not None}
    sentences = []
    if len(scored) > 1 and healthy:
        chosen = min(
            (one for one in scored if one.label in healthy), key=lambda o: healthy[o.label]
        )
        best = scored[0]
        name = cohort.group.name
        also = "; it is also the best by Dice_D on the test part" if best is chosen else ""
        sentences.append(
            f"On {name}, the best by reconstruction of healthy volumes, which uses no label, is "
            f"{chosen.label} (healthy L1 {number(healthy[chosen.label], 4)}) with Dice_D "
            f"{figure_in_words(chosen)}{also}."
        )
        if best is not chosen:
            sentences.append(
                f"The best by Dice_D on the test part of {name}, a choice that uses its labels and "
                f"is therefore optimistic, is {best.label} with {figure_in_words(best)}"
                f"{_tail(compare(best, chosen))}."
            )
    return sentences + _above_plain(cohort, scored)


def _tail(comparison: Comparison | None) -> str:
    return "; the two do not pair" if comparison is None else f": {difference_in_words(comparison)}"


def _above_plain(cohort: Compared, scored: Sequence[Series]) -> list[str]:
    plain = next((o for o in cohort.series if o.is_plain and o.mean("dice_d") is not None), None)
    if plain is None or len(scored) < 2:
        return []
    made = correct([one for one in (compare(s, plain) for s in scored) if one is not None])
    if not made:
        return []
    return [
        f"On {cohort.group.name}, Dice_D of {len(made)} experiments with their settings against "
        f"the best plain baseline, {plain.label} ({figure_in_words(plain)}): "
        f"{count_verdicts(made)}."
    ]


def _healthy(series: Series) -> float | None:
    values = [healthy_error(row.run) for row in series.rows]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _spans(made: Sequence[Effect]) -> list[str]:
    """The last value of each setting against the first: fixed before looking, not picked."""
    sentences = []
    for effect in made:
        spans = [(line, span) for line in effect.lines if (span := line.span()) is not None]
        if not spans:
            continue
        compared = correct([span for _, span in spans])
        setting = effect.setting
        first, last = setting.text(setting.values[0]), setting.text(setting.values[-1])
        others = " and ".join(other.label for other in effect.others)
        mean = "" if effect.is_held else f", as means over {others}"
        head = f"From {setting.label} {first} to {last} on {effect.group.name}{mean}"
        if len(spans) <= MAX_LISTED:
            each = "; ".join(
                _span(line, one) for (line, _), one in zip(spans, compared, strict=True)
            )
            sentences.append(f"{head}, Dice_D goes as follows: {each}.")
            continue
        gaps = [one.differences["dice_d"].value for one in compared]
        sentences.append(
            f"{head}, Dice_D of {len(compared)} lines: {count_verdicts(compared)}; the paired "
            f"differences range from {signed(min(gaps))} to {signed(max(gaps))}."
        )
    return sentences


def _span(line: Line, comparison: Comparison) -> str:
    first, last = line.points[0].series, line.points[-1].series
    ends = " to ".join(figure_in_words(one, spread=False) for one in (first, last))
    gap = difference_in_words(comparison, people=False)
    return f"{line.label} {ends}, {gap}, {comparison.verdict}"


def _s(items: object) -> str:
    return "" if len(items) == 1 else "s"  # type: ignore[arg-type]
