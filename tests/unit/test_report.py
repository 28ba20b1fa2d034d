"""The report without a browser: what it reads, what it refuses, and that every medium agrees."""

import base64
import csv
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_runs import write_run
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_tables import rows_of
from PIL import Image
from rich.console import Console

from uadray import files, html
from uadray.errors import ConfigError, RunError, UadrayError
from uadray.metrics import inference
from uadray.papers.study import Published
from uadray.report import (
    columns,
    compare,
    export,
    figures,
    rows,
    terminal_summary,
    terminal_table,
    words,
    write_report,
)
from uadray.report.montage import MAX_RUNS, montage
from uadray.report.page import erased_shares
from uadray.runs.records import RunRecord, load_runs

REPOSITORY = Path(__file__).resolve().parents[2]
NASTY = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs on two cohorts, one that failed and one that was not evaluated."""
    root = tmp_path_factory.mktemp("runs")
    for name in ("3D-Cube-n", "PCA-16", "Intensity-dark"):
        write_run(root / name, name, cohorts=("stroke", "tumour"))
    failed = {"status": "failed", "error": "out of memory at epoch 3"}
    write_run(root / "failed", "3D-Multi-Cube-n", cohorts=(), summary=failed)
    write_run(root / "waiting", "2D-Half-Slice-n", cohorts=())
    (root / "notes.txt").write_text("not a run")
    return root


@pytest.fixture(scope="module")
def runs(folder: Path) -> list[RunRecord]:
    return load_runs([str(folder)])


@pytest.fixture(scope="module")
def page(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("out") / "report.html"
    return Path(write_report([str(folder)], str(out))).read_text(encoding="utf-8")


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def compared(runs: list[RunRecord]) -> list[words.Compared]:
    return [words.compare_cohort(group) for group in rows.group_by_cohort(runs)]


class TestErased:
    def test_fits_of_earlier_versions_did_not_record_it(self, page: str) -> None:
        section = page.split('id="erasing"')[1].split("</section>")[0]
        assert ">3D-Cube-n<" in section
        assert ">2D-Half-Slice-n<" in section
        assert "not recorded" in section
        assert "PCA-16" not in section

    def test_means_over_the_fits_of_an_experiment(self, tmp_path: Path) -> None:
        shares = {"samples": 90, "nominal_share": 0.13, "share": 0.08}
        for seed, brain in ((0, 0.10), (1, 0.14)):
            run = write_run(tmp_path / str(seed), "3D-Cube-n", seed=seed)
            recorded = shares | {"brain_share": brain, "no_brain": 0.025}
            edit(run / "summary.json", lambda v, recorded=recorded: v.update(erasing=recorded))
        write_run(tmp_path / "old", "3D-Cube-n", seed=2)
        write_run(tmp_path / "none", "3D-None")
        (row,) = erased_shares(load_runs([str(tmp_path)]))
        assert (row["name"], row["fits"], row["missing"]) == ("3D-Cube-n", 2, 1)
        assert row["shares"] == pytest.approx([0.13, 0.08, 0.12, 0.025])


class Cells(HTMLParser):
    """All `data-value` attributes of the sortable tables, row by row."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if "data-value" in values:
            if tag == "th":
                self.rows.append([])
            self.rows[-1].append(values["data-value"] or "")


class TestFigures:
    """Every medium shows what the JSON holds."""

    @pytest.fixture
    def truth(self, folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
        return {
            (path.stem, path.parents[1].name): json.loads(path.read_text())
            for path in folder.glob("*/evaluation/*.json")
        }

    def test_csv(self, runs: list[RunRecord], truth: dict[tuple[str, str], dict[str, Any]]) -> None:
        lines = list(csv.DictReader(io.StringIO(export.to_csv(rows.group_by_cohort(runs)))))
        assert len(lines) == len(truth) == 6
        for line in lines:
            values = truth[line["cohort"], line["method"]]
            for name, value in values["metrics"].items():
                assert float(line[name]) == value
            for name, (low, high) in values["intervals"].items():
                assert (float(line[f"{name}_low"]), float(line[f"{name}_high"])) == (low, high)
            assert float(line["threshold"]) == values["threshold"]["value"]
            assert line["threshold_rule"] == "bengs-bisection"
            assert line["notes"] == "semi-synthetic"
            assert line["plain_baseline"] == str(line["method"] != "3D-Cube-n")

    def test_page(self, page: str, truth: dict[tuple[str, str], dict[str, Any]]) -> None:
        keys = [column.key for column in columns.main_columns(())]
        cells_of_rows = [cells for cells in Cells(page).rows if len(cells) == len(keys)]
        assert len(cells_of_rows) == 6
        for place, cells in enumerate(cells_of_rows):
            line = dict(zip(keys, cells, strict=True))
            values = truth["stroke" if place < 3 else "tumour", line["method"]]
            for name in ("dice_d", "dice_s_mean", "auprc", "auroc", "slice_auprc"):
                assert float(line[name]) == values["metrics"][name]
            low, high = values["intervals"]["dice_d"]
            assert f"{values['metrics']['dice_d']:.3f} <small>[{low:.3f}, {high:.3f}]" in page
        scores = [float(cells[1]) for cells in cells_of_rows]
        assert scores[:3] == sorted(scores[:3], reverse=True)

    def test_markdown(
        self, runs: list[RunRecord], truth: dict[tuple[str, str], dict[str, Any]]
    ) -> None:
        text = export.to_markdown(compared(runs), "A | title")
        assert text.startswith("# A \\| title\n")
        assert "## stroke **[semi-synthetic]**" in text
        tables = [part.split("\n### ")[0] for part in text.split("\n## ")[1:]]
        for table in tables:
            cohort = table.split(" ", 1)[0]
            for line in rows_of(table)[1:]:
                values = truth[cohort, line[0].removesuffix(" (plain baseline)")]
                low, high = values["intervals"]["auprc"]
                assert line[3] == f"{values['metrics']['auprc']:.3f} \\[{low:.3f}, {high:.3f}\\]"
                assert line[5] == f"{values['metrics']['slice_auprc']:.3f}"

    def test_terminal(
        self, runs: list[RunRecord], truth: dict[tuple[str, str], dict[str, Any]]
    ) -> None:
        console = Console(width=80, file=io.StringIO(), record=True)
        console.print(terminal_table(runs, "tumour"))
        text = console.export_text()
        assert "tumour [semi-synthetic], 16 test subjects" in text
        for name in ("3D-Cube-n", "PCA-16", "Intensity-dark"):
            values = truth["tumour", name]
            line = next(line for line in text.splitlines() if line.strip().startswith(name))
            assert f" {values['metrics']['dice_d']:.3f} " in line
            low, high = values["intervals"]["dice_d"]
            assert f"[{low:.3f}, {high:.3f}]" in text

    def test_one_table_over_all_cohorts(
        self, runs: list[RunRecord], truth: dict[tuple[str, str], dict[str, Any]]
    ) -> None:
        console = Console(width=80, file=io.StringIO(), record=True)
        console.print(terminal_summary(runs))
        lines = console.export_text().splitlines()
        assert "stroke: semi-synthetic." in " ".join(lines)
        means = []
        for place, line in enumerate(lines):
            name = line.split(" ")[1] if line.startswith(" ") else ""
            if ("stroke", name) not in truth:
                continue
            both = [truth[cohort, name] for cohort in ("stroke", "tumour")]
            figures = [v["metrics"][key] for v in both for key in ("dice_d", "auprc")]
            assert [float(n) for n in line.split()[1:]] == [round(f, 3) for f in figures]
            low, high = both[1]["intervals"]["auprc"]
            assert f"[{low:.3f}, {high:.3f}]" in lines[place + 1]
            means.append(sum(v["metrics"]["dice_d"] for v in both))
        assert len(means) == 3
        assert means == sorted(means, reverse=True)

    def test_terminal_of_unknown_cohort(self, runs: list[RunRecord]) -> None:
        with pytest.raises(RunError, match=r"'brats'; there are \['stroke', 'tumour'\]"):
            terminal_table(runs, "brats")

    def test_undefined_figures_show_as_dashes_and_come_last(self, tmp_path: Path) -> None:
        write_run(tmp_path / "a", "PCA-16")
        write_run(tmp_path / "b", "3D-None")

        def undefine(values: dict[str, Any]) -> None:
            values["metrics"] |= dict.fromkeys(("dice_d", "auroc"))
            values["intervals"]["dice_d"] = None

        edit(tmp_path / "b" / "evaluation" / "stroke.json", undefine)
        group = rows.group_by_cohort(load_runs([str(tmp_path)]))[0]
        assert [row.run.label for row in group.rows] == ["PCA-16", "3D-None"]
        assert columns.main_columns(())[1].line(group.rows[1]) == html.ABSENT
        out = write_report([str(tmp_path)], str(tmp_path / "report.html"))
        assert 'data-key="dice_d" data-value=""' in Path(out).read_text()


class TestLoad:
    """What is a run, and what is refused."""

    def test_folder_of_runs(self, runs: list[RunRecord]) -> None:
        assert [run.label for run in runs] == [
            "3D-Cube-n",
            "Intensity-dark",
            "PCA-16",
            "3D-Multi-Cube-n",
            "2D-Half-Slice-n",
        ]
        assert [run.is_plain for run in runs] == [False, True, True, False, False]
        assert [len(run.evaluations) for run in runs] == [2, 2, 2, 0, 0]

    def test_a_run_named_twice_is_read_once(self, folder: Path) -> None:
        assert len(load_runs([str(folder), str(folder / "PCA-16"), f"{folder}/PCA-16/"])) == 5

    def test_unfinished_run_is_listed(self, tmp_path: Path) -> None:
        run = write_run(tmp_path / "run", cohorts=())
        (run / "summary.json").unlink()
        (record,) = load_runs([str(run)])
        assert record.summary["status"] == "unfinished"
        out = write_report([str(run)], str(tmp_path / "report.html"))
        assert "run it again to resume it" in Path(out).read_text()

    def test_shared_names_are_told_apart(self, tmp_path: Path) -> None:
        for seed in (0, 1):
            write_run(tmp_path / f"s{seed}", "PCA-16", seed=seed)
        write_run(tmp_path / "other", "3D-None")
        assert {run.label for run in load_runs([str(tmp_path)])} == {
            "PCA-16 · seed 0",
            "PCA-16 · seed 1",
            "3D-None",
        }
        write_run(tmp_path / "twin", "PCA-16", seed=1)
        labels = {run.label for run in load_runs([str(tmp_path)])}
        assert labels == {"3D-None", "PCA-16 · s0", "PCA-16 · s1", "PCA-16 · twin"}

    def test_a_repeated_epoch_counts_once_and_a_torn_last_line_not(self, tmp_path: Path) -> None:
        run = write_run(tmp_path / "run", num_epochs=4)
        lines = (run / "metrics.jsonl").read_text().splitlines()
        again = json.loads(lines[2]) | {"train/loss": 7.0}
        text = "\n".join([*lines[:3], json.dumps(again), lines[3], '{"epoch": 5, "tra'])
        (run / "metrics.jsonl").write_text(text)
        (record,) = load_runs([str(run)])
        assert [epoch["epoch"] for epoch in record.epochs] == [1, 2, 3, 4]
        assert record.epochs[2]["train/loss"] == 7.0

    def test_damaged_epoch_is_refused(self, tmp_path: Path) -> None:
        run = write_run(tmp_path / "run")
        (run / "metrics.jsonl").write_text('{"epoch": 1}\nnot json\n{"epoch": 3}\n')
        with pytest.raises(RunError, match=r"metrics\.jsonl: line 2 is not an epoch"):
            load_runs([str(run)])

    def test_no_run(self, tmp_path: Path) -> None:
        with pytest.raises(RunError, match="name at least one run"):
            load_runs([])
        with pytest.raises(RunError, match="absent: no such folder"):
            load_runs([str(tmp_path / "absent")])
        (tmp_path / "x").mkdir()
        with pytest.raises(RunError, match="neither a run nor a folder of runs"):
            load_runs([str(tmp_path)])

    def test_config_missing(self, tmp_path: Path) -> None:
        run = write_run(tmp_path / "run")
        (run / "config.json").unlink()
        for url in (run, tmp_path):
            with pytest.raises(RunError, match=r"run: config\.json is missing"):
                load_runs([str(url)])

    @pytest.mark.parametrize(
        ("file", "key", "message"),
        [
            ("config.json", ("experiment",), "experiment missing"),
            ("summary.json", ("status",), "status missing"),
            ("evaluation/stroke.json", ("metrics", "auprc"), r"metrics\.auprc missing"),
            ("evaluation/stroke.json", ("threshold", "rule"), r"threshold\.rule missing"),
            ("evaluation/stroke.json", ("subjects", 3, "dice"), r"subjects\[3\]\.dice missing"),
        ],
    )
    def test_missing_key(
        self, tmp_path: Path, file: str, key: tuple[str | int, ...], message: str
    ) -> None:
        run = write_run(tmp_path / "run")

        def drop(values: Any) -> None:
            for part in key[:-1]:
                values = values[part]
            del values[key[-1]]

        edit(run / file, drop)
        with pytest.raises(RunError, match=rf"run/{re.escape(file)}: {message}"):
            load_runs([str(run)])

    @pytest.mark.parametrize("file", ["config.json", "evaluation/stroke.json"])
    @pytest.mark.parametrize("content", ["{", "[1]", ""])
    def test_damaged_json(self, tmp_path: Path, file: str, content: str) -> None:
        run = write_run(tmp_path / "run")
        (run / file).write_text(content)
        with pytest.raises(RunError, match=f"run/{file}"):
            load_runs([str(run)])

    def test_evaluation_of_another_experiment(self, tmp_path: Path) -> None:
        run = write_run(tmp_path / "run")
        edit(run / "evaluation" / "stroke.json", lambda v: v.update(run_fingerprint="0" * 16))
        with pytest.raises(RunError, match=r"belongs to experiment 0{16}, .* evaluate this run"):
            load_runs([str(run)])

    def test_damaged_cases(self, tmp_path: Path) -> None:
        cases = write_run(tmp_path / "run") / "evaluation" / "stroke-cases.npz"
        with np.load(cases) as arrays:
            held = dict(arrays)
        np.savez(cases, allow_pickle=False, **(held | {"scores": held["scores"][:, :-1]}))
        with pytest.raises(RunError, match="expected arrays of one shape"):
            load_runs([str(tmp_path)])
        for content in (b"", b"PK\x03\x04 torn", cases.read_bytes()[:500]):
            cases.write_bytes(content)
            with pytest.raises(RunError, match="not a file of montage cases"):
                load_runs([str(tmp_path)])

    def test_remote_urls(self, folder: Path) -> None:
        for path in (folder / "PCA-16").rglob("*"):
            if path.is_file():
                name = path.relative_to(folder).as_posix()
                files.write_bytes(f"memory://report/{name}", path.read_bytes())
        out = write_report(["memory://report"], "memory://pages/report.html")
        assert out == "memory://pages/report.html"
        assert b"PCA-16" in files.read_bytes(out)
        assert b"PCA-16" in files.read_bytes("memory://pages/report.csv")


class TestWords:
    """The sentences say what the intervals allow, and no more."""

    @pytest.fixture
    def two(self, tmp_path: Path) -> Path:
        write_run(tmp_path / "vae", "3D-None")
        write_run(tmp_path / "pca", "PCA-16")
        return tmp_path

    @staticmethod
    def say(root: Path, **figures: tuple[float, list[float] | None]) -> str:
        for name, (value, interval) in figures.items():

            def change(values: dict[str, Any], value: Any = value, pair: Any = interval) -> None:
                values["metrics"]["dice_d"] = value
                values["intervals"]["dice_d"] = pair

            edit(root / name / "evaluation" / "stroke.json", change)
        return " ".join(words.sentences_of(rows.group_by_cohort(load_runs([str(root)]))[0]))

    def test_paired_difference(self, two: Path) -> None:
        """One fit a method: the difference and its interval, and no verdict."""
        text = self.say(two, vae=(0.5, [0.4, 0.6]), pca=(0.45, [0.35, 0.55]))
        (group,) = rows.group_by_cohort(load_runs([str(two)]))
        (made,) = words.compare_cohort(group, ["PCA-16"]).comparisons[0].comparisons
        gap = made.differences["dice_d"]
        difference = f"{columns.signed(gap.value)} {columns.brackets(gap.bounds, columns.signed)}"
        assert text == (
            "3D-None has the highest Dice_D: 0.500 [0.400, 0.600]. The best plain baseline is "
            f"PCA-16 with 0.450 [0.350, 0.550]: paired difference {difference} on the same 16 "
            "people. Dice_D against PCA-16: 1 with one fit and so no verdict. Dice_D against "
            "3D-None: 1 with one fit and so no verdict."
        )

    def test_plain_baselines_need_no_seeds(self, tmp_path: Path) -> None:
        for name in ("PCA-16", "MeanImage"):
            write_run(tmp_path / name, name)
        assert "no verdict" not in self.say(tmp_path)

    @pytest.fixture
    def old(self, two: Path) -> Path:
        """As evaluated before figures by person were kept."""
        for path in two.glob("*/evaluation/*-people.npz"):
            path.unlink()
        for name in ("vae", "pca"):
            edit(two / name / "evaluation" / "stroke.json", lambda v: v.pop("interval_method"))
        return two

    def test_intervals_of_earlier_versions_are_not_shown(self, old: Path) -> None:
        text = self.say(old, vae=(0.5, [0.4, 0.6]), pca=(0.4, [0.3, 0.45]))
        assert text == (
            "3D-None has the highest Dice_D: 0.500. The best plain baseline is PCA-16 with 0.400; "
            "evaluate both again for a paired comparison."
        )
        (group,) = rows.group_by_cohort(load_runs([str(old)]))
        assert any("evaluate again for intervals" in one for one in group.warnings)

    def test_plain_baseline_on_top(self, two: Path) -> None:
        text = self.say(two, vae=(0.3, [0.2, 0.4]), pca=(0.4, [0.3, 0.45]))
        assert text.startswith("PCA-16 (a plain baseline) has the highest Dice_D")
        assert "The best method that is not a plain baseline is 3D-None" in text

    def test_no_plain_baseline(self, tmp_path: Path) -> None:
        for name in ("3D-None", "2D-None"):
            write_run(tmp_path / name, name)
        assert "No plain baseline was evaluated" in self.say(tmp_path)

    def test_named_reference(self, tmp_path: Path) -> None:
        for name in ("3D-None", "3D-Cube-n", "2D-None", "PCA-16"):
            write_run(tmp_path / name, name)
        (group,) = rows.group_by_cohort(load_runs([str(tmp_path)]))
        assert " Dice_D against 2D-None: 3 " in " ".join(words.sentences_of(group, ["2D-None"]))
        assert "against 2D-None" not in " ".join(words.sentences_of(group))

    def test_other_subjects_are_warned_of(self, two: Path) -> None:
        edit(two / "pca" / "evaluation" / "stroke.json", lambda values: values["subjects"].pop())
        (two / "pca" / "evaluation" / "stroke-people.npz").unlink()
        (group,) = rows.group_by_cohort(load_runs([str(two)]))
        assert group.warnings[0].startswith("The test subjects differ between these runs")
        assert len(group.warnings) == 1

    def test_other_fingerprints_are_not_compared(self, two: Path) -> None:
        edit(
            two / "pca" / "evaluation" / "stroke.json",
            lambda values: values["cohort"].update(fingerprint="f" * 16),
        )
        groups = rows.group_by_cohort(load_runs([str(two)]))
        assert [(g.name, len(g.rows)) for g in groups] == [("stroke", 1), ("stroke", 1)]


class TestComparisons:
    """Pairs of methods, and fits that differ in the seed."""

    @pytest.fixture
    def seeds(self, tmp_path: Path) -> Path:
        for seed in (0, 1, 2):
            write_run(tmp_path / f"cube{seed}", "3D-Cube-n", seed=seed)
            write_run(tmp_path / f"none{seed}", "3D-None", seed=seed)
        write_run(tmp_path / "pca", "PCA-16")
        return tmp_path

    @staticmethod
    def held(root: Path, *wanted: str) -> words.Compared:
        (group,) = rows.group_by_cohort(load_runs([str(root)]))
        return words.compare_cohort(group, wanted)

    def test_fits_are_gathered_by_experiment(self, seeds: Path) -> None:
        write_run(seeds / "shorter", "3D-None", num_epochs=3)
        gathered = self.held(seeds).series
        assert sorted((s.name, [r.run.seed for r in s.rows]) for s in gathered) == [
            ("3D-Cube-n", [0, 1, 2]),
            ("3D-None", [0]),
            ("3D-None", [0, 1, 2]),
            ("PCA-16", [0]),
        ]
        assert len({series.label for series in gathered}) == 4

    def test_figures_over_seeds(self, seeds: Path) -> None:
        cube = next(s for s in self.held(seeds).series if s.name == "3D-Cube-n")
        values = [
            json.loads((seeds / f"cube{n}/evaluation/stroke.json").read_text()) for n in range(3)
        ]
        each = [v["metrics"]["dice_d"] for v in values]
        assert cube.mean("dice_d") == pytest.approx(np.mean(each))
        assert cube.deviation("dice_d") == pytest.approx(np.std(each, ddof=1))
        figure, fits = cube.figure("dice_d"), cube.fits("dice_d")
        assert fits.values[:, 0] == pytest.approx(each)
        assert figure.bounds == inference.interval(fits)

    def test_differences_are_paired(self, seeds: Path) -> None:
        tables = self.held(seeds).comparisons
        assert [table.reference.label for table in tables] == ["PCA-16", "3D-None"]
        for table in tables:
            for one in table.comparisons:
                for metric, gap in one.differences.items():
                    sides = [side.fits(metric) for side in (one.series, one.reference)]
                    counts = None
                    if metric == "dice_d":
                        counts = tuple(
                            np.mean([r.evaluation.by_person.counts for r in side.rows], axis=0)
                            for side in (one.series, one.reference)
                        )
                    assert gap == inference.difference(*sides, counts)
                    means = one.series.mean(metric), one.reference.mean(metric)
                    assert gap.value == pytest.approx(means[0] - means[1])
                assert (one.num_people, one.num_comparisons) == (16, 2)
            corrected = inference.holm([one.p for one in table.comparisons])
            assert [one.p_holm for one in table.comparisons] == pytest.approx(corrected.tolist())
        cube = next(one for one in tables[1].comparisons if one.series.name == "3D-Cube-n")
        mean = cube.reference.mean("dice_d")
        spread = [v - mean for v in cube.series.each("dice_d")]
        assert cube.over_seeds == pytest.approx((min(spread), max(spread)))
        assert "a true difference of 0.05 would be shown in 8 of 10 such studies" in tables[1].power
        assert "here are 16 people and 3 fits." in tables[1].power

    @pytest.mark.parametrize(
        ("p", "value", "fits", "people", "expected"),
        [
            (0.01, 0.1, 3, 40, compare.HIGHER),
            (0.01, -0.1, 3, 40, compare.LOWER),
            (0.2, 0.1, 3, 40, compare.SAME),
            (0.01, 0.1, 1, 40, compare.ONE_FIT),
            (0.01, 0.1, 3, 8, compare.TOO_FEW),
            (np.nan, 0.1, 3, 40, compare.TOO_FEW),
        ],
    )
    def test_verdicts(self, seeds: Path, p, value, fits, people, expected) -> None:
        made = next(
            one
            for one in self.held(seeds, "PCA-16").comparisons[0].comparisons
            if one.series.name == "3D-Cube-n"
        )
        gap = replace(made.differences["dice_d"], value=value, p=p)
        one = replace(
            made,
            series=replace(made.series, rows=made.series.rows[:fits]),
            differences={"dice_d": gap},
            p_holm=p,
            num_people=people,
            num_comparisons=14,
        )
        assert one.verdict == expected

    def test_references_can_be_chosen(self, seeds: Path) -> None:
        tables = self.held(seeds, "3D-Cube-n", "elsewhere").comparisons
        assert [table.reference.label for table in tables] == ["3D-Cube-n"]
        assert {one.series.label for one in tables[0].comparisons} == {"3D-None", "PCA-16"}
        with pytest.raises(ConfigError, match=r"no run is called '3D-Nothing'; there are \['3D-C"):
            write_report([str(seeds)], str(seeds / "r.html"), references=["3D-Nothing"])

    @pytest.mark.parametrize("spoil", ["other subjects", "other people", "none"])
    def test_what_does_not_pair_is_left_out_by_name(self, tmp_path: Path, spoil: str) -> None:
        write_run(tmp_path / "none", "3D-None")
        write_run(tmp_path / "pca", "PCA-16", num_test=15 if spoil == "other subjects" else 16)
        path = tmp_path / "pca/evaluation/stroke-people.npz"
        with np.load(path) as arrays:
            held = dict(arrays)
        if spoil == "other people":
            held["people"] = held["people"][::-1]
        np.savez(path, allow_pickle=False, **held)
        if spoil == "none":
            path.unlink()
        tables = self.held(tmp_path).comparisons
        assert [table.left_out for table in tables] == [("3D-None",), ("PCA-16",)]
        if spoil != "none":
            return
        text = Path(write_report([str(tmp_path)], str(tmp_path / "r.html"))).read_text()
        assert "Not compared, since no figures by person were kept that pair" in text

    def test_figures_by_person_of_other_subjects_are_refused(self, tmp_path: Path) -> None:
        run = write_run(tmp_path / "run")
        path = run / "evaluation/stroke-people.npz"
        with np.load(path) as arrays:
            held = dict(arrays)
        np.savez(path, allow_pickle=False, **(held | {"scans": held["scans"][::-1]}))
        with pytest.raises(RunError, match="over the 16 test subjects of the evaluation beside"):
            load_runs([str(run)])
        path.write_bytes(b"PK")
        with pytest.raises(RunError, match="not a file of figures by person"):
            load_runs([str(run)])

    def test_paired_csv(self, seeds: Path) -> None:
        held = self.held(seeds)
        lines = list(csv.DictReader(io.StringIO(export.to_paired_csv([held]))))
        assert len(lines) == 4
        for line in lines:
            table = next(t for t in held.comparisons if t.reference.label == line["reference"])
            one = next(c for c in table.comparisons if c.series.label == line["method"])
            difference = one.differences["auprc"]
            assert float(line["auprc_difference"]) == difference.value
            assert float(line["auprc_difference_low"]) == difference.bounds[0]
            assert float(line["p_holm"]) == one.p_holm
            assert line["fits"] == str(len(one.series.rows))

    def test_page_and_markdown_tell_of_seeds(self, seeds: Path) -> None:
        out = Path(write_report([str(seeds)], str(seeds / "r.html")))
        text, plain = out.read_text(), out.with_suffix(".md").read_text()
        for held in (text, plain):
            assert "Over seeds" in held
        assert "mean of 3 seeds, which range from" in plain
        assert "Against 3D-None" in text
        assert "### Paired differences from PCA-16" in plain

    def test_other_media_hold_lesions_and_filter(self, tmp_path: Path) -> None:
        write_run(tmp_path / "run", max_component=20)
        out = Path(write_report([str(tmp_path)], str(tmp_path / "r.html")))
        text, plain = out.read_text(), out.with_suffix(".md").read_text()
        assert "components dropped up to <b>20 voxels (26-connected)</b>" in text
        assert "Lesions of the cohorts" in text
        values = json.loads((tmp_path / "run/evaluation/stroke.json").read_text())
        before, after = (values[k]["metrics"]["dice_d"] for k in ("unfiltered", "filtered"))
        both = f"{before:.3f} → {after:.3f}"
        rate = f"{values['metrics']['lesion_detection_rate']:.3f}"
        detected = f"{values['metrics']['num_lesions_detected']} of 32"
        for held in (text, plain):
            assert both in held
            assert rate in held
            assert detected in held
        (line,) = csv.DictReader(io.StringIO(out.with_suffix(".csv").read_text()))
        assert float(line["filtered_dice_d"]) == after
        assert float(line["lesion_lost_to_erosion"]) == pytest.approx(678 / 12345)

    def test_published_figures_stand_beside(self, tmp_path: Path) -> None:
        write_run(tmp_path / "run", "3D-None")
        published = {("stroke", "3D-None"): {"dice_d": Published(value=0.31, deviation=0.04)}}
        out = Path(write_report([str(tmp_path)], str(tmp_path / "r.html"), published=published))
        assert "published 0.310 ± 0.040</small>" in out.read_text()
        assert "what the paper prints" in out.read_text()
        (line,) = csv.DictReader(io.StringIO(out.with_suffix(".csv").read_text()))
        assert float(line["dice_d_published"]) == 0.31

    def test_rows_have_the_numbers_of_their_differences_from_a_paper(self, tmp_path: Path) -> None:
        for name in ("3D-None", "3D-Cube-n"):
            write_run(tmp_path / name, name, cohorts=("stroke", "tumour"))
        caveats = {
            "Phantoms.": {("stroke", "3D-None"), ("stroke", "3D-Cube-n")},
            "Boxes & borders.": {("stroke", "3D-Cube-n"), ("tumour", "3D-Cube-n")},
            "Of no row.": set[tuple[str, str]](),
            "Other epochs.": {("stroke", "3D-Cube-n")},
        }
        out = Path(write_report([str(tmp_path)], str(tmp_path / "r.html"), caveats=caveats))
        text = out.read_text()
        notes = re.findall(r'data-key="caveats"[^>]*>([^<]*)<', text)
        assert sorted(notes) == ["", "1", "1-2, 4", "2"]
        section = text[text.index('id="caveats"') :]
        assert re.findall(r"<li>(.*)</li>", section)[:4] == [
            *("Phantoms.", "Boxes &amp; borders.", "Of no row.", "Other epochs.")
        ]
        assert text.count('href="#caveats"') == 2

    def test_a_page_without_a_paper_has_no_notes(self, page: str) -> None:
        assert 'data-key="caveats"' not in page
        assert 'id="caveats"' not in page

    def test_paired_differences_are_on_the_page_with_interval_and_verdict(
        self, seeds: Path
    ) -> None:
        out = Path(write_report([str(seeds)], str(seeds / "r.html")))
        lines = list(csv.DictReader(io.StringIO((seeds / "r-paired.csv").read_text())))
        text = out.read_text()
        assert text.count('data-key="verdict"') == len(lines) > 0
        for line in lines:
            low, high = (float(line[f"dice_d_difference_{end}"]) for end in ("low", "high"))
            ends = f"[{low:+.3f}, {high:+.3f}]".replace("-", "\N{MINUS SIGN}")
            assert f"<small>{ends}</small>" in text
            assert f">{line['verdict']}<" in text


class TestPage:
    """The page is whole, closed and escaped."""

    def test_nothing_from_outside(self, page: str) -> None:
        links = re.findall(r'(?:src|href)="([^"]{0,40})', page)
        assert len(links) > 20
        assert [link for link in links if not link.startswith(("data:", "#"))] == []
        assert "@import" not in page
        assert not re.search(r"url\((?!#)", page)

    def test_badges_stand_at_each_cohort_name(self, page: str) -> None:
        badge = '<span class="badge">semi-synthetic</span>'
        # Summary, head, caption and five parts of two cohorts; slices of each and of both; then
        # six evaluations.
        assert page.count(badge) == 2 * 8 + 3 + 6

    def test_unevaluated_runs(self, page: str) -> None:
        section = page[page.index('id="unevaluated"') : page.index('id="reading"')]
        assert "out of memory at epoch 3" in section
        assert "finished, not evaluated" in section
        assert "PCA-16" not in section

    def test_erosion_is_stated(self, page: str) -> None:
        assert re.search(r"<b>678</b> of 12345 lesion voxels \(5\.5 %, [\d.,]+ mL\) are lost", page)
        assert "upper bound: threshold chosen on the test part" in page

    def test_escaping(self, tmp_path: Path) -> None:
        run = write_run(tmp_path / "run", name=NASTY, cohorts=("stroke",), notes=(NASTY,))
        edit(run / "summary.json", lambda values: values.update(error=NASTY))
        edit(run / "config.json", lambda values: values.update(versions={NASTY: NASTY}))

        def poison(values: dict[str, Any]) -> None:
            values["cohort"]["name"] = NASTY
            values["threshold"] |= {"rule": NASTY, "fitted_on": NASTY}
            values["postprocess"] = {NASTY: NASTY}
            for subject in values["subjects"]:
                subject["id"] = NASTY

        edit(run / "evaluation" / "stroke.json", poison)
        path = run / "evaluation" / "stroke-people.npz"
        with np.load(path) as arrays:
            held = dict(arrays)
        np.savez(path, allow_pickle=False, **(held | {"scans": np.array([NASTY] * 16)}))
        title = f'{NASTY}"$\\bad'
        out = Path(write_report([str(run)], str(tmp_path / "report.html"), title=title))
        text = out.read_text()
        assert "<script>alert" not in text
        assert text.count("<script") == 1
        assert text.count("&lt;script&gt;alert(1)") > 15
        assert "<script>alert" not in out.with_suffix(".md").read_text()
        line = next(csv.DictReader(io.StringIO(out.with_suffix(".csv").read_text())))
        assert line["cohort"] == line["method"] == line["notes"] == NASTY

    @pytest.mark.parametrize("name", ["$\\frac{1}$", "a $ b $", "%s {x}", "日本 🧠", "q\"uote's"])
    def test_names_that_plots_could_trip_over(self, tmp_path: Path, name: str) -> None:
        run = write_run(tmp_path / "run", name=name)
        text = Path(write_report([str(run)], str(tmp_path / "report.html"))).read_text("utf-8")
        assert "<svg" in text

    def test_page_of_unevaluated_runs_only(self, tmp_path: Path) -> None:
        write_run(tmp_path / "run", cohorts=())
        text = Path(write_report([str(tmp_path)], str(tmp_path / "report.html"))).read_text()
        assert "No run was evaluated yet" in text

    def test_files_beside_and_none_left_over(self, folder: Path, tmp_path: Path) -> None:
        write_report([str(folder / "waiting")], str(tmp_path / "deep" / "page.html"))
        names = sorted(path.name for path in (tmp_path / "deep").iterdir())
        assert names == ["page-paired.csv", "page.csv", "page.html", "page.md", "page.tex"]

    def test_out_must_be_a_page(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"a page must end in \.html"):
            write_report([str(folder)], str(tmp_path / "report.pdf"))

    def test_a_refused_run_leaves_the_old_page(self, tmp_path: Path) -> None:
        run = write_run(tmp_path / "run")
        out = Path(write_report([str(run)], str(tmp_path / "report.html")))
        before = out.read_bytes()
        (run / "config.json").write_text("{")
        with pytest.raises(RunError):
            write_report([str(run)], str(out))
        assert out.read_bytes() == before


def decode(source: str) -> np.ndarray:
    picture = Image.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1])))
    return np.asarray(picture.convert("RGB")).astype(int)


class TestTiles:
    """Anterior up, left on the left, one colour scale."""

    def test_orientation(self) -> None:
        image = np.zeros((6, 4), np.float32)
        image[-1, 0] = 1  # most anterior row, leftmost column
        pixels = decode(figures.grey_tile(image))
        assert pixels.shape == (6, 4, 3)
        assert pixels[0, 0].tolist() == [255, 255, 255]
        assert pixels.sum() == 3 * 255

    def test_heat_is_clipped_and_grows_brighter(self) -> None:
        scores = np.array([[-1.0, 0.0, 0.5, 1.0, 9.0]], np.float32)
        brightness = decode(figures.heat_tile(scores, 0, 1)).sum(axis=-1)[0]
        assert brightness[0] == brightness[1] < brightness[2] < brightness[3] == brightness[4]
        assert decode(figures.heat_tile(scores, 0.0, 0.0)).shape == (1, 5, 3)

    def test_outlines_surround_the_masks(self) -> None:
        image = np.full((64, 64), 0.5, np.float32)
        lesion, prediction = (np.zeros((64, 64), bool) for _ in range(2))
        lesion[40:60, 5:25] = True
        prediction[5:25, 40:60] = True
        pixels = decode(figures.outline_tile(image, lesion, prediction))
        assert pixels.shape == (256, 256, 3)
        blue = np.argwhere((pixels == (86, 180, 233)).all(-1))
        orange = np.argwhere((pixels == (255, 140, 0)).all(-1))
        assert blue.min(0).tolist() == [4 * (64 - 60), 4 * 5]
        assert blue.max(0).tolist() == [4 * (64 - 40) - 1, 4 * 25 - 1]
        assert orange.min(0).tolist() == [4 * (64 - 25), 4 * 40]
        assert pixels[4 * (64 - 50), 4 * 15].tolist() == pixels[0, 0].tolist()

    def test_montage_keeps_the_best_plain_baseline(self, tmp_path: Path) -> None:
        for seed in range(MAX_RUNS + 2):
            write_run(tmp_path / f"vae{seed}", "3D-None", seed=seed, size=8)
        write_run(tmp_path / "mean", "MeanImage", size=8)
        write_run(tmp_path / "hist", "HistEq-dark", size=8)
        (group,) = rows.group_by_cohort(load_runs([str(tmp_path)]))
        made = montage(group)
        assert made is not None
        assert len(made.rows) == MAX_RUNS
        assert made.num_left_out == 4
        # The best fit of each experiment comes before second seeds.
        plain = {row.run.label for row in made.rows if row.run.is_plain}
        assert plain == {"MeanImage", "HistEq-dark"}
        assert [case.subject for case in made.cases] == ["stroke-0000", "stroke-0001"]
        assert made.cases[0].tiles[-1] is not None
        assert made.cases[0].tiles[-1].reconstruction is None

    def test_scale_is_the_stated_one(self, runs: list[RunRecord]) -> None:
        cases = runs[0].evaluations[0].cases
        assert cases is not None
        low, high = figures.heat_limits([cases], 0.0)
        assert low == 0.0
        assert high == pytest.approx(np.percentile(cases.scores[cases.brain], 99.5))


class TestPlots:
    def test_cubic_fit_is_the_least_squares_one(self, runs: list[RunRecord]) -> None:
        (row, *_) = rows.group_by_cohort(runs)[0].rows
        fit = figures.cubic_fit(row)
        assert fit is not None
        subjects = row.evaluation.values["subjects"]
        x = np.log10([subject["lesion_ml"] for subject in subjects])
        reference = np.polyfit(x, [subject["dice"] for subject in subjects], 3)
        np.testing.assert_allclose(fit[1], np.polyval(reference, np.log10(fit[0])), atol=1e-9)
        np.testing.assert_allclose(np.log10([fit[0][0], fit[0][-1]]), [x.min(), x.max()])

    def test_few_subjects_have_no_fit(self, tmp_path: Path) -> None:
        write_run(tmp_path / "run", num_test=figures.MIN_FIT_SUBJECTS - 1)
        (group,) = rows.group_by_cohort(load_runs([str(tmp_path)]))
        assert figures.cubic_fit(group.rows[0]) is None
        out = write_report([str(tmp_path)], str(tmp_path / "report.html"))
        assert "Too few subjects for a regression" in Path(out).read_text()

    def test_colours_are_left_to_the_page(self, runs: list[RunRecord]) -> None:
        plot = figures.interval_plot(rows.group_by_cohort(runs)[0])
        assert {"var(--ink)", "var(--accent)", "var(--plain)"} <= set(
            re.findall(r"var\S+?\)", plot)
        )
        assert "#0a0b0" not in plot

    def test_a_crowded_plot_becomes_a_picture(self) -> None:
        def draw(palette: figures.Palette) -> figures.Figure:
            figure = figures.Figure()
            x = np.random.default_rng(0).normal(size=(2, 20_000))
            figure.add_subplot().plot(*x, "o", color=palette.accent)
            return figure

        made = figures.inline(draw, 'many "marks" <b>')
        assert made.startswith('<img class="plot" alt="many &#34;marks&#34; &lt;b&gt;"')


printable = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=30)


@settings(max_examples=25, deadline=None)
@given(label=printable, note=printable)
def test_any_name_survives_csv_and_markdown(runs: list[RunRecord], label: str, note: str) -> None:
    named = [replace(runs[0], label=label), *runs[1:]]
    groups = [replace(group, notes=(note,)) for group in rows.group_by_cohort(named)]
    lines = list(csv.DictReader(io.StringIO(export.to_csv(groups))))

    def guarded(name: str) -> str:
        return f"'{name}" if name[0] in "=+-@" else name

    assert guarded(label) in {line["method"] for line in lines}
    assert {line["notes"] for line in lines} == {guarded(note)}
    text = export.to_markdown([words.compare_cohort(group) for group in groups], "t")
    tables = (columns.main_columns(()), columns.LESION_COLUMNS, compare.comparison_columns(()))
    widths = set(map(len, tables))
    for line in text.splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) - 1 in widths
        assert not re.search(r"<[a-zA-Z/!]", line)


@pytest.mark.parametrize("name", ["=1+1", "+A1", "-2", "@SUM(A1)", "\t=1", '=HYPERLINK("x")'])
def test_names_are_no_formulas_in_a_spreadsheet(runs: list[RunRecord], name: str) -> None:
    group = rows.group_by_cohort([replace(runs[0], label=name), *runs[1:]])[0]
    for text in (export.to_csv([group]), export.to_paired_csv([words.compare_cohort(group)])):
        cells = [cell for line in csv.reader(io.StringIO(text)) for cell in line]
        assert f"'{name}" in cells
        for cell in cells:
            assert cell == "" or cell[0] not in "=+@\t\r"
            assert not cell.startswith("-") or float(cell) < 0


class TestJob:
    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(REPOSITORY / "jobs" / "report.py"), *args]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def test_it_says_where_the_page_is(self, folder: Path, tmp_path: Path) -> None:
        out = tmp_path / "r.html"
        done = self.run(str(folder / "PCA-16"), str(folder / "failed"), "--out", str(out))
        assert (done.returncode, done.stderr) == (0, "")
        assert str(out) in done.stdout
        assert out.is_file()

    def test_a_wrong_folder_is_named_without_traceback(self, tmp_path: Path) -> None:
        done = self.run(str(tmp_path / "absent"), "--out", str(tmp_path / "r.html"))
        assert done.returncode == 1
        assert "absent: no such folder" in done.stderr
        assert "Traceback" not in done.stderr
        assert issubclass(RunError, UadrayError)


@pytest.mark.parametrize(
    ("kept", "words"),
    [
        (["sum", "sum"], "the sum"),
        ([None, None], "the mean"),
        (["sum", "mean"], "the mean or the sum"),
    ],
)
def test_the_page_says_how_slices_are_scored(
    tmp_path: Path, kept: list[str | None], words: str
) -> None:
    for number, score in enumerate(kept):
        write_run(tmp_path / f"run-{number}", seed=number)
        (place,) = (tmp_path / f"run-{number}/evaluation").glob("*.json")
        values = json.loads(place.read_text())
        values.pop("slice_score", None)
        place.write_text(json.dumps(values | ({"slice_score": score} if score else {})))
    page = Path(write_report([str(tmp_path)], str(tmp_path / "r.html"))).read_text()
    assert f"its score is {words} over its brain" in page
