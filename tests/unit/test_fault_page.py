"""The table of faults says what was measured, and lists whatever falls short."""

from typing import Any

import pytest
from markdown_tables import rows_of

from benchmarks import fault_page
from benchmarks.faults import read
from benchmarks.harness import DOCS

WHOLE = {"run": {"digest": "a", "figure": 0.5}}


def cell(stage: str, fault: str, **changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "stage": stage,
        "fault": fault,
        "codes": [0],
        "seconds": 40.0,
        "back_s": None,
        "whole": WHOLE,
        "false_whole": [],
        "said": [],
    }
    return made | changes


def table(*cells: dict[str, Any]) -> dict[tuple[str, str], Any]:
    return {(c["stage"], c["fault"]): c for c in cells}


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([0], "by itself"),
        ([-9, 0], "the same command"),
        ([1, 1, 0], "the same command, 2 times"),
        (["hung", 0], "the same command, after a hang"),
        ([1, 1, 1, 1], "**not**"),
    ],
)
def test_how_a_job_came_back(codes: list[Any], expected: str) -> None:
    assert fault_page.outcome(cell("fit", "worker", codes=codes)) == expected


def test_a_full_disk_is_timed_against_the_same_disk() -> None:
    cells = table(
        cell("fit", "none"),
        cell("fit", "none-disk", seconds=30.0),
        cell("fit", "disk", seconds=70.0),
        cell("fit", "cut", seconds=70.0),
    )
    assert fault_page.lost(cells["fit", "disk"], cells) == 40
    assert fault_page.lost(cells["fit", "cut"], cells) == 30


def test_nothing_that_falls_short_is_left_out() -> None:
    sound = [cell(s, f) for s in fault_page.STAGES for f in ("none", *fault_page.HEADS)]
    assert "Every cell that was measured holds." in fault_page.text(sound)
    assert all(row["holds"] is not False for row in fault_page.rows(sound))
    changed = {"whole": {"run": {"digest": "b", "figure": 0.5}}}
    for short in (
        {"codes": [1, 1, 1, 1], "said": ["error: why"]},
        {"codes": ["hung", 0]},
        {"false_whole": ["run"]},
        {"whole": {}},
        changed,
    ):
        cells = [c | (short if (c["stage"], c["fault"]) == ("tune", "head") else {}) for c in sound]
        text = fault_page.text(cells)
        assert "- tune, the head (GCS) is killed: " in text, short
        assert ("It said: `error: why`" in text) == ("said" in short)
        assert any(row["holds"] is False for row in fault_page.rows(cells)), short
    missing = [c for c in sound if c["fault"] != "s3"]
    lines = [f"- {s}, not measured yet: {fault_page.HEADS['s3']}." for s in fault_page.STAGES]
    assert all(line in fault_page.text(missing) for line in lines)
    alone = [c for c in sound if c["stage"] == "fit"]
    assert "- tune, not measured yet." in fault_page.text(alone)
    assert "**not equal**" in fault_page.text(
        [c | (changed if c["fault"] == "cut" else {}) for c in sound]
    )


def test_the_page_in_the_documentation_is_of_what_is_kept() -> None:
    page = (DOCS / fault_page.PAGE).read_text(encoding="utf-8")
    assert page == fault_page.text(list(read().values()))


def test_what_is_not_measured_is_named() -> None:
    rows = rows_of(fault_page.text([cell("fit", "none")]))
    assert ["undisturbed", "not measured", "40 s", *["not measured"] * 2] in rows
