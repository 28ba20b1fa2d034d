"""Notes of single scans, single test subjects, mismatches and narrow terminals in what is shown."""

from pathlib import Path
from typing import Any

import pytest
from fake_runs import write_run
from rich.console import Console

from uadray import files
from uadray.evaluation.record import notes_of
from uadray.html import NO_INTERVAL
from uadray.report import terminal_summary, terminal_table, write_report
from uadray.report.compare import ONE_FIT, TOO_FEW, compare, series_of
from uadray.report.latex import to_latex
from uadray.report.rows import NOT_COMPARED, TOO_FEW_PEOPLE, group_by_cohort
from uadray.report.words import compare_cohort
from uadray.runs.records import load_runs


class TestNotes:
    def test_of_all_scans_are_the_cohort_s(self) -> None:
        assert notes_of(["phantom; tumour from case 1", "phantom; tumour from case 2"]) == [
            "phantom",
            "tumour",
        ]

    def test_of_one_scan_says_of_how_many(self) -> None:
        assert notes_of(["", "brain touches the border", ""]) == [
            "brain touches the border (1 of 3 scans)"
        ]

    def test_of_many_kinds_are_counted(self) -> None:
        each = [f"extent grown by {k} mm" for k in range(5)]
        assert notes_of([*each, ""]) == ["5 of 6 scans have notes of their own"]

    def test_none(self) -> None:
        assert notes_of(["", ""]) == []
        assert notes_of([]) == []


def change(run: Path, **values: Any) -> None:
    place = str(run / "evaluation/stroke.json")
    record = files.read_json(place)
    record |= values
    files.write_json(place, record)


def printed(table: Any, width: int) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    return console.export_text()


class TestTooFewPeople:
    @pytest.fixture
    def runs(self, tmp_path: Path) -> Path:
        for name in ("3D-None", "ZScore"):
            write_run(tmp_path / "runs" / name, name, num_test=1, num_cases=1)
        return tmp_path / "runs"

    def test_has_no_interval_anywhere(self, runs: Path, tmp_path: Path) -> None:
        records = load_runs([str(runs)])
        assert all(run.evaluations[0].interval("dice_d") is None for run in records)
        text = printed(terminal_table(records, "stroke"), 100)
        assert NO_INTERVAL in text
        assert "No intervals: too few people." in text
        assert "[0." not in text
        (group,) = group_by_cohort(records)
        assert TOO_FEW_PEOPLE in group.warnings
        first, second = series_of(group)
        comparison = compare(first, second)
        assert comparison is None or comparison.verdict in (ONE_FIT, TOO_FEW)
        page = Path(write_report([str(runs)], str(tmp_path / "r.html"))).read_text()
        assert TOO_FEW_PEOPLE in page
        assert "too few for intervals" in to_latex([compare_cohort(group)], "title")


class TestMismatch:
    def test_stands_with_its_run_on_every_table(self, tmp_path: Path) -> None:
        for name in ("3D-None", "ZScore"):
            write_run(tmp_path / name, name)
        mark = "fitted on T1w, tested on FLAIR"
        record = files.read_json(str(tmp_path / "ZScore/evaluation/stroke.json"))
        record["cohort"]["notes"].insert(0, mark)
        record["compared"]["differences"] = [mark]
        files.write_json(str(tmp_path / "ZScore/evaluation/stroke.json"), record)
        records = load_runs([str(tmp_path)])
        (group,) = group_by_cohort(records)
        assert f"ZScore: {mark}" in group.notes
        assert mark in printed(terminal_table(records, "stroke"), 160)
        out = write_report([str(tmp_path / n) for n in ("3D-None", "ZScore")], f"{tmp_path}/r.html")
        for place in (out, out.replace(".html", ".md"), out.replace(".html", ".tex")):
            assert mark in Path(place).read_text()

    def test_what_was_never_compared_is_said(self, tmp_path: Path) -> None:
        run = write_run(tmp_path / "run")
        place = str(run / "evaluation/stroke.json")
        record = files.read_json(place)
        del record["compared"]
        files.write_json(place, record)
        (group,) = group_by_cohort(load_runs([str(run)]))
        assert any(NOT_COMPARED[1:] in warning for warning in group.warnings)


@pytest.mark.parametrize("width", [1, 12, 20, 30, 40, 60, 80])
def test_the_method_never_vanishes(tmp_path: Path, width: int) -> None:
    write_run(tmp_path / "a", "3D-Half-Volume-n", cohorts=("stroke", "tumour"))
    write_run(tmp_path / "b", "ZScore", cohorts=("stroke", "tumour"))
    records = load_runs([str(tmp_path)])
    for table in (
        terminal_table(records, "stroke", width=width),
        terminal_summary(records, width=width),
    ):
        text = "".join(printed(table, max(width, 1)).split())
        if width >= 12:
            assert "ZScore" in text
            assert "Half" in text
        if 12 <= width < 40:
            assert "Toonarrow" in text
