"""Sentences made from figures and their intervals only; they say what these allow, and no more."""

from collections.abc import Sequence
from dataclasses import dataclass

from uadray.report.columns import brackets, number, signed
from uadray.report.compare import (
    Comparison,
    Comparisons,
    Estimate,
    Series,
    compare,
    compare_all,
    references,
    series_of,
)
from uadray.report.rows import CohortRows


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A cohort with all that is said of it."""

    group: CohortRows
    """Its evaluations."""
    series: tuple[Series, ...]
    """The same by experiment."""
    comparisons: tuple[Comparisons, ...]
    """One a reference."""
    sentences: tuple[str, ...]
    """The summary in words."""


def compare_cohort(group: CohortRows, wanted: Sequence[str] = ()) -> Compared:
    """Compare the methods of one cohort; see `compare.references` for `wanted`."""
    series = series_of(group)
    return Compared(
        group=group,
        series=series,
        comparisons=tuple(compare_all(series, one) for one in references(series, wanted)),
        sentences=tuple(sentences_of(group, wanted)),
    )


def sentences_of(group: CohortRows, wanted: Sequence[str] = ()) -> list[str]:
    """Sentences on one cohort.

    Args:
        group: Its evaluations.
        wanted: Names of the references; see `compare.references`.
    """
    series = [one for one in series_of(group) if one.mean("dice_d") is not None]
    if not series:
        return ["No run has a Dice_D on this cohort."]
    top, *others = series
    kind = " (a plain baseline)" if top.is_plain else ""
    if not others:
        return [f"{top.label}{kind} is the only method, with Dice_D {figure_in_words(top)}."]
    sentences = [f"{top.label}{kind} has the highest Dice_D: {figure_in_words(top)}."]
    rivals = [one for one in others if one.is_plain != top.is_plain]
    if rivals:
        what = "method that is not a plain baseline" if top.is_plain else "plain baseline"
        sentences.append(f"The best {what} is {_against(top, rivals[0])}")
    elif top.is_plain:
        sentences.append("All methods are plain baselines.")
    else:
        sentences.append("No plain baseline was evaluated, so nothing says how hard the task is.")
    sentences += [
        f"Against {_against(top, one)}"
        for one in references(series, wanted)
        if one is not top and one not in rivals[:1]
    ]
    return sentences + _count(top, others)


def figure_in_words(series: Series, *, spread: bool = True) -> str:
    """`0.476 [0.410, 0.540]`, with the number and the range of fits where there are several.

    Args:
        series: One that has a Dice_D.
        spread: Whether the fits are listed.
    """
    figure = series.figure("dice_d")
    assert figure is not None
    text = f"{number(figure.value)} {brackets(figure.bounds)}".rstrip()
    if len(series.rows) == 1 or not spread:
        return text
    values = series.each("dice_d")
    ends = f"{number(min(values))} to {number(max(values))}"
    return f"{text} (mean of {series.count}, which range from {ends})"


def _against(top: Series, rival: Series) -> str:
    """The rest of a sentence that holds `top` against `rival`."""
    head = f"{rival.label} with {figure_in_words(rival)}: "
    comparison = compare(top, rival)
    if comparison is None:
        return head + _overlap(top, rival)
    return f"{head}{difference_in_words(comparison)}."


def difference_in_words(comparison: Comparison, *, subjects: bool = True) -> str:
    """The paired difference, its interval, on how many subjects, and what that allows to say."""
    difference = comparison.differences["dice_d"]
    text = f"{signed(difference.value)} {brackets(difference.bounds, signed)}".rstrip()
    on_subjects = f" on the same {comparison.num_subjects} test subjects" if subjects else ""
    if comparison.verdict == "not compared":
        return f"paired difference {text}{on_subjects}; its interval is not defined"
    verdict = ", not distinguishable" if comparison.verdict == "not distinguishable" else ""
    return f"paired difference {text}{on_subjects}{verdict}"


def _overlap(top: Series, rival: Series) -> str:
    """What two intervals say that do not pair."""
    first, second = (one.figure("dice_d") for one in (top, rival))
    assert first is not None
    assert second is not None
    if first.bounds is None or second.bounds is None:
        return "an interval is not recorded, so the two are not compared."
    again = "evaluate both again for a paired comparison"
    num = top.rows[0].evaluation.values["num_test"]
    if _do_overlap(first, second):
        return f"the intervals overlap on {num} test subjects, which sets neither above; {again}."
    return f"the intervals do not overlap on {num} test subjects; {again}."


def _do_overlap(a: Estimate, b: Estimate) -> bool:
    assert a.bounds is not None
    assert b.bounds is not None
    return a.bounds[0] <= b.bounds[1] and b.bounds[0] <= a.bounds[1]


def _count(top: Series, others: Sequence[Series]) -> list[str]:
    """How many of the others the paired interval sets apart from the highest."""
    if len(others) < 2:
        return []
    comparisons = [compare(top, other) for other in others]
    verdicts = [one.verdict for one in comparisons if one is not None]
    if len(verdicts) != len(others) or "not compared" in verdicts:
        return []
    apart, alike = verdicts.count("higher"), verdicts.count("not distinguishable")
    return [
        f"Of the {len(others)} other methods, {apart} {'is' if apart == 1 else 'are'} lower than "
        f"{top.label} by a paired interval that excludes 0, and {alike} "
        f"{'is' if alike == 1 else 'are'} not distinguishable from it."
    ]
