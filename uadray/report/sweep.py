"""A sweep as a whole: its trials, how they ended, and what may be said of them.

Made from the run folders alone. A sweep is what the report calls several runs that differ in a
setting or in the seed; a table of methods with one fit each is none.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from uadray.report.columns import signed
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
    """What was tried, how it ended, and whether labels decided."""
    choices: tuple[tuple[str, ...], ...]
    """On each cohort, up to three lines: the choice without labels, the highest in hindsight, and
    how many are above the best plain baseline."""

    @property
    def endings(self) -> dict[str, int]:
        """How many trials ended how."""
        return _count_endings(self.runs)


def find_sweep(runs: Sequence[RunRecord], cohorts: Sequence[Compared]) -> Sweep | None:
    """The sweep that the runs are, or None where nothing varies but the method."""
    runs = [run for run in runs if not run.members]  # made of trials, and none itself
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
        sentences=tuple(
            one for one in (_extent(runs, settings), _endings(runs), _objective(runs)) if one
        ),
        choices=tuple(tuple(_choices(cohort)) for cohort in cohorts),
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


def _extent(runs: Sequence[RunRecord], settings: Sequence[Setting]) -> str:
    """How many trials of what, as in `6 trials of 1 experiment: epochs (5, 20); 3 seeds`."""
    learned = [run for run in runs if not run.is_plain]
    names = {str(run.config["name"]) for run in learned}
    parts = [", ".join(_values(one) for one in settings if one.path != EXPERIMENT)]
    seeds = {run.seed for run in learned}
    parts.append(f"{len(seeds)} seed{_s(seeds)}")
    plain = len(runs) - len(learned)
    if plain:
        parts.append(f"{plain} plain baseline{'' if plain == 1 else 's'} for comparison")
    head = f"{len(learned)} trial{_s(learned)} of {len(names)} experiment{_s(names)}"
    return f"{head}: {'; '.join(part for part in parts if part)}."


def _values(setting: Setting) -> str:
    values = [setting.text(value) for value in setting.values]
    if len(values) > 6:
        return f"{setting.label} ({len(values)} values, {values[0]} to {values[-1]})"
    return f"{setting.label} ({', '.join(values)})"


def _endings(runs: Sequence[RunRecord]) -> str:
    ends = _count_endings(runs)
    if set(ends) == {"finished"}:
        return "All finished."
    return f"{', '.join(f'{count} {end}' for end, count in ends.items())}."


def _objective(runs: Sequence[RunRecord]) -> str:
    """What the scheduler compared trials by, where that used labels."""
    objectives = [run.summary.get("objective") or {} for run in runs]
    names = sorted({str(one.get("name")) for one in objectives if one.get("uses_labels")})
    if not names:
        return ""
    return (
        f"Trials were compared by {' and '.join(names)} on a threshold part: the search used "
        "labels."
    )


def _count_endings(runs: Sequence[RunRecord]) -> dict[str, int]:
    ends = [str(run.summary["status"]) for run in runs]
    return {end: ends.count(end) for end in sorted(set(ends), key=lambda e: (-ends.count(e), e))}


def _choices(cohort: Compared) -> list[str]:
    """The choice without labels, the one in hindsight, and both against what learns nothing."""
    learned = [one for one in cohort.series if not one.is_plain]
    scored = [one for one in learned if one.mean("dice_d") is not None]
    healthy = {one.label: mean for one in scored if (mean := _healthy(one)) is not None}
    lines = []
    if len(scored) > 1 and healthy:
        chosen = min(
            (one for one in scored if one.label in healthy), key=lambda o: healthy[o.label]
        )
        best = scored[0]
        lines.append(
            f"Chosen without labels, by the lowest healthy L1: {chosen.label}, Dice_D "
            f"{figure_in_words(chosen)}."
        )
        if best is chosen:
            lines.append(f"It also has the highest Dice_D of all {len(scored)} on the test part.")
        else:
            lines.append(
                f"Highest Dice_D in hindsight: {best.label}, {figure_in_words(best)}"
                f"{_tail(compare(best, chosen))}. The highest of {len(scored)} is optimistic."
            )
    return lines + _above_plain(cohort, scored)


def _tail(comparison: Comparison | None) -> str:
    return "; the two do not pair" if comparison is None else f"; {difference_in_words(comparison)}"


def _above_plain(cohort: Compared, scored: Sequence[Series]) -> list[str]:
    plain = next((o for o in cohort.series if o.is_plain and o.mean("dice_d") is not None), None)
    if plain is None or len(scored) < 2:
        return []
    made = correct([one for one in (compare(s, plain) for s in scored) if one is not None])
    if not made:
        return []
    return [
        f"Against the best plain baseline, {plain.label} ({figure_in_words(plain)}): "
        f"{count_verdicts(made)}."
    ]


def _healthy(series: Series) -> float | None:
    values = [healthy_error(row.run) for row in series.rows]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def describe_span(effect: Effect) -> str:
    """The last value of a setting against the first: fixed before looking, not picked.

    Empty where no line pairs the two.
    """
    spans = [(line, span) for line in effect.lines if (span := line.span()) is not None]
    if not spans:
        return ""
    compared = correct([span for _, span in spans])
    setting = effect.setting
    first, last = setting.text(setting.values[0]), setting.text(setting.values[-1])
    others = " and ".join(other.label for other in effect.others)
    mean = "" if effect.is_held else f", means over {others}"
    head = f"From {setting.label} {first} to {last} on {effect.group.name}{mean}: Dice_D"
    if len(spans) <= MAX_LISTED:
        each = "; ".join(_span(line, one) for (line, _), one in zip(spans, compared, strict=True))
        return f"{head} of {each}."
    gaps = [one.differences["dice_d"].value for one in compared]
    return (
        f"{head} of {len(compared)} lines: {count_verdicts(compared)}; paired differences from "
        f"{signed(min(gaps))} to {signed(max(gaps))}."
    )


def _span(line: Line, comparison: Comparison) -> str:
    first, last = line.points[0].series, line.points[-1].series
    ends = " to ".join(figure_in_words(one, spread=False) for one in (first, last))
    gap = difference_in_words(comparison, people=False)
    return f"{line.label} {ends}, {gap}, {comparison.verdict}"


def _s(items: object) -> str:
    return "" if len(items) == 1 else "s"  # type: ignore[arg-type]
