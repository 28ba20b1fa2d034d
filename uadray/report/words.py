"""Sentences made from figures and their intervals only; they say what these allow, and no more."""

from collections.abc import Sequence
from dataclasses import dataclass

from uadray.report.columns import brackets, number, signed
from uadray.report.compare import (
    Comparison,
    Comparisons,
    Series,
    compare,
    compare_all,
    count_verdicts,
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
    for reference in references(series, wanted):
        made = compare_all(series, reference).comparisons
        if made:
            sentences.append(f"Dice_D against {reference.label}: {count_verdicts(made)}.")
    return sentences


def figure_in_words(series: Series, *, spread: bool = True) -> str:
    """`0.476 [0.410, 0.540]`, with the number and the range of fits where there are several.

    Args:
        series: One that has a Dice_D.
        spread: Whether the range of the fits is added.
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
    """The rest of a sentence that compares `top` with `rival`."""
    head = f"{rival.label} with {figure_in_words(rival)}"
    made = compare(top, rival)
    if made is None:
        return f"{head}; evaluate both again for a paired comparison."
    return f"{head}: {difference_in_words(made)}."


def difference_in_words(made: Comparison, *, people: bool = True) -> str:
    """The paired difference, its interval, and on how many people."""
    gap = made.differences["dice_d"]
    text = f"{signed(gap.value)} {brackets(gap.bounds, signed)}".rstrip()
    where = f" on the same {made.num_people} people" if people else ""
    return f"paired difference {text}{where}"
