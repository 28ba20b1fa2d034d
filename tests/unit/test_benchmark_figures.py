"""No benchmark prints a figure that it did not measure."""

import pytest

from benchmarks import defaults
from benchmarks.evaluate import ratio
from benchmarks.evaluate_on_ray import quotient, rate, unmeasured
from benchmarks.harness import Row, publish
from uadray.papers import phantoms
from uadray.papers.scales import PHANTOM_OF, SCALES


@pytest.mark.parametrize(
    ("whole", "part", "expected"),
    [(10.0, 1.0, 2.0), (3.0, 3.0, None), (3.0, 3.4, None), (3.0, 2.9, None)],
)
def test_a_rate_needs_a_difference(whole: float, part: float, expected: float | None) -> None:
    measured = rate(18, whole, part)
    assert measured == expected
    assert bool(unmeasured(measured)) == (expected is None)
    assert quotient(measured, measured) == (None if expected is None else 1.0)


def test_what_was_not_measured_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    row = Row("m", None, "volumes/s", goal=">= 3")
    assert row.holds is None
    publish("made", [row], keep=False)
    assert "not measured" in capsys.readouterr().out


def test_a_ratio_needs_both_sides() -> None:
    assert ratio("m", 0.0, 40.0, "x", ">= 2", "").value is None
    assert ratio("m", 2.0, 40.0, "x", ">= 2", "").value == 20.0


def test_defaults_are_chosen_on_phantoms_that_no_figure_is_of() -> None:
    scale = SCALES["phantom"]
    largest = max(scale.healthy, *(count for _, count in scale.lesioned))
    assert phantoms.FIRST_SEED * (1 + len(PHANTOM_OF)) + largest < defaults.FIRST_SEED
