"""Sweeps in the report: what varies, what it does, and that words and tables say no more."""

import csv
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_runs import write_run
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import average_precision_score

from uadray.config import Experiment, experiment, to_json
from uadray.errors import ConfigError, RunError
from uadray.metrics.measures import auprc
from uadray.metrics.slicewise import Slices, histograms
from uadray.papers.study import Published
from uadray.report import effects, export, latex, rows, slices, words, write_report
from uadray.report.montage import montage
from uadray.report.over_cohorts import mean_effect
from uadray.report.sweep import Sweep, describe_span, find_sweep
from uadray.report.sweep_page import ended_early, reason
from uadray.runs.evaluations import pack_slices, unpack_slices
from uadray.runs.records import RunRecord, load_runs
from uadray.runs.settings import settings_of, varied

NASTY = "<script>alert(1)</script>"


def latent(size: int) -> Callable[[Experiment], Experiment]:
    return lambda made: replace(made, method=replace(made.method, latent_size=size))


def share(part: float, size: int = 512) -> Callable[[Experiment], Experiment]:
    return lambda made: latent(size)(replace(made, fit=replace(made.fit, data_share=part)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two experiments at three latent sizes with two seeds, a baseline, and three that ended."""
    root = tmp_path_factory.mktemp("sweep")
    for name in ("3D-None", "3D-Cube-n"):
        for size in (32, 128, 512):
            for seed in (0, 1):
                write_run(
                    root / f"{name}-{size}-{seed}",
                    name,
                    seed=seed,
                    cohorts=("stroke", "tumour"),
                    size=12,
                    change=latent(size),
                )
    write_run(root / "pca", "PCA-16", cohorts=("stroke", "tumour"), size=12)
    failed = {"status": "failed", "error": "NotFiniteError: loss is nan"}
    write_run(root / "failed", "3D-None", seed=5, cohorts=(), summary=failed)
    stopped = {"status": "stopped", "epochs": 4, "validation/reconstruction": 0.0512}
    write_run(root / "stopped", "3D-None", seed=6, cohorts=(), summary=stopped)
    (write_run(root / "cut", "3D-None", seed=7, cohorts=()) / "summary.json").unlink()
    return root


@pytest.fixture(scope="module")
def runs(folder: Path) -> list[RunRecord]:
    return load_runs([str(folder)])


@pytest.fixture(scope="module")
def cohorts(runs: list[RunRecord]) -> list[words.Compared]:
    return [words.compare_cohort(group) for group in rows.group_by_cohort(runs)]


@pytest.fixture(scope="module")
def sweep(runs: list[RunRecord], cohorts: list[words.Compared]) -> Sweep:
    result = find_sweep(runs, cohorts)
    assert result is not None
    return result


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


class TestSettings:
    def test_what_varies_within_an_experiment(self, runs: list[RunRecord]) -> None:
        changed = varied([run.config for run in runs])
        assert [one.path for one in changed] == ["experiment", "method.latent_size"]
        assert changed[1].values == (32, 128, 512)
        assert changed[1].label == "latent size"

    def test_defaults_of_other_experiments_are_no_comparison(self, tmp_path: Path) -> None:
        for name in ("2D-None", "3D-None", "PCA-16"):
            write_run(tmp_path / name, name)
        loaded = load_runs([str(tmp_path)])
        assert [one.path for one in varied([run.config for run in loaded])] == ["experiment"]
        assert find_sweep(loaded, []) is None

    def test_labels_name_the_settings(self, runs: list[RunRecord]) -> None:
        labels = [run.label for run in runs]
        assert len(set(labels)) == len(labels)
        assert "3D-None · latent size 32, seed 1" in labels
        assert "PCA-16" in labels

    def test_the_folder_of_a_sweep_means_its_runs(self, tmp_path: Path) -> None:
        for size in (8, 16):
            write_run(tmp_path / "runs" / str(size), "3D-None", cohorts=(), change=latent(size))
        (tmp_path / "population" / "member").mkdir(parents=True)
        (tmp_path / "sweep.json").write_text("{}")
        labels = {run.label for run in load_runs([str(tmp_path)])}
        assert labels == {"3D-None · latent size 8", "3D-None · latent size 16"}

    def test_labels_without_seeds(self, tmp_path: Path) -> None:
        for part in (0.1, 1.0):
            write_run(tmp_path / str(part), "3D-None", cohorts=(), change=share(part))
        labels = {run.label for run in load_runs([str(tmp_path)])}
        assert labels == {"3D-None · training data 10 %", "3D-None · training data 100 %"}

    def test_series_are_called_by_their_settings(self, cohorts: list[words.Compared]) -> None:
        labels = {series.label for series in cohorts[0].series}
        assert "3D-Cube-n · latent size 128" in labels
        assert len(labels) == 7


def test_a_setting_that_records_leave_out_at_its_default_is_compared() -> None:
    one = experiment("3D-Cube-n")
    both = [one, replace(one, erasing=replace(one.erasing, border="shift"))]
    for order in (both, both[::-1]):
        (border,) = varied([{"name": e.name, "experiment": to_json(e)} for e in order])
        assert (border.path, set(border.values)) == ("erasing.border", {"clip", "shift"})


class TestEffects:
    def test_points_hold_the_fits_of_their_value(self, cohorts: list[words.Compared]) -> None:
        (effect,) = effects.effects(
            cohorts[0].group, varied([row.run.config for row in cohorts[0].group.rows])
        )
        assert effect.is_held
        assert [line.label for line in effect.lines] == ["3D-Cube-n", "3D-None"]
        for line in effect.lines:
            assert [point.value for point in line.points] == [32, 128, 512]
            for point in line.points:
                own = [
                    row.evaluation.metric("dice_d")
                    for row in cohorts[0].group.rows
                    if settings_of(row.run.config).get("method.latent_size") == point.value
                    and row.run.config["name"] == line.label
                ]
                figure = point.figure("dice_d")
                assert figure is not None
                assert sorted(point.each("dice_d")) == sorted(own)
                assert len(own) == 2
                assert figure.value == pytest.approx(np.mean(own))
                assert figure.bounds is not None
                assert figure.bounds[0] < figure.value < figure.bounds[1]
                errors = point.each(effects.HEALTHY)
                assert point.figure(effects.HEALTHY).value == pytest.approx(np.mean(errors))

    @staticmethod
    def grid(root: Path, missing: Callable[[float, int], bool]) -> effects.Effect:
        """Shares by sizes; enough combinations that the sizes are averaged over."""
        for name in ("3D-None", "3D-Cube-n"):
            for size in (8, 16, 24, 28, 32):
                for part in (0.1, 1.0):
                    if not missing(part, size):
                        place = root / f"{name}-{size}-{part}"
                        write_run(place, name, size=8, num_cases=1, change=share(part, size))
        (group,) = rows.group_by_cohort(load_runs([str(root)]))
        result = effects.effects(group, varied([row.run.config for row in group.rows]))
        return next(one for one in result if one.setting.path == "fit.data_share")

    def test_averages_are_over_the_combinations_that_every_value_has(self, tmp_path: Path) -> None:
        effect = self.grid(tmp_path, lambda part, size: part == 0.1 and size == 32)
        assert not effect.is_held
        assert effect.is_balanced
        assert "mean over latent size" in effect.method
        for line in effect.lines:
            for point in line.points:
                sizes = [settings_of(r.run.config)["method.latent_size"] for r in point.series.rows]
                assert sorted(sizes) == [8, 16, 24, 28]

    def test_no_complete_combination_is_said(self, tmp_path: Path) -> None:
        def missing(part: float, size: int) -> bool:
            return (part == 0.1) == (size < 20)

        # Seven lines need two values each, so one further value is fitted everywhere.
        for size in (8, 16, 24, 28, 32):
            for name in ("3D-None", "3D-Cube-n"):
                write_run(tmp_path / f"h{name}{size}", name, size=8, change=share(0.5, size))
        effect = self.grid(tmp_path, missing)
        assert not effect.is_balanced
        assert "read it with care" in effect.method
        assert [point.value for point in effect.lines[0].points] == [0.1, 0.5, 1.0]

    def test_mean_over_cohorts(self, sweep: Sweep) -> None:
        mean = mean_effect(sweep.effects)
        assert mean is not None
        assert mean.cohorts == ("stroke", "tumour")
        for label, points in mean.lines:
            for point in points:
                figure = point.figure("auprc")
                assert figure is not None
                alone = [
                    next(
                        p.figure("auprc")
                        for line in effect.lines
                        if line.label == label
                        for p in line.points
                        if p.value == point.value
                    )
                    for effect in sweep.effects
                ]
                assert figure.value == pytest.approx(np.mean([one.value for one in alone]))
                widths = [one.bounds[1] - one.bounds[0] for one in alone]
                # Independent cohorts: narrower than the mean width, not below its sqrt(1/2).
                own = figure.bounds[1] - figure.bounds[0]
                assert 0.6 * np.mean(widths) < own < 0.95 * np.mean(widths)
                assert len(point.each("auprc")) == 2

    def test_one_cohort_has_no_mean(self, sweep: Sweep) -> None:
        assert mean_effect(sweep.effects[:1]) is None


class TestWords:
    def test_extent_and_endings(self, sweep: Sweep) -> None:
        assert sweep.sentences[0] == (
            "15 trials of 2 experiments: latent size (32, 128, 512); 5 seeds; 1 plain baseline for "
            "comparison."
        )
        assert sweep.sentences[1] == "13 finished, 1 failed, 1 stopped, 1 unfinished."
        assert sweep.endings["finished"] == 13

    def test_choices_name_the_use_of_labels(
        self, sweep: Sweep, cohorts: list[words.Compared]
    ) -> None:
        assert [len(lines) <= 3 for lines in sweep.choices] == [True, True]
        text = " ".join(sweep.choices[0])
        series = [one for one in cohorts[0].series if not one.is_plain]
        lowest = min(
            series,
            key=lambda one: np.mean([r.run.summary["validation/reconstruction"] for r in one.rows]),
        )
        assert f"Chosen without labels, by the lowest healthy L1: {lowest.label}, Dice_D" in text
        best = series[0]
        if best is not lowest:
            assert f"Highest Dice_D in hindsight: {best.label}, " in text
            assert f"The highest of {len(series)} is optimistic." in text
        assert "best plain baseline, PCA-16 (" in text

    def test_spans_compare_the_last_value_with_the_first(self, sweep: Sweep) -> None:
        text = describe_span(sweep.effects[0])
        assert text.startswith("From latent size 32 to 512 on stroke: Dice_D of ")
        for line in sweep.effects[0].lines:
            span = line.span()
            assert span is not None
            alike = span.verdict == "not distinguishable"
            value = f"{span.differences['dice_d'].value:+.3f}".replace("-", "\N{MINUS SIGN}")
            part = text[text.index(f"{line.label} ") :]
            part = part.split(";")[0]
            assert value in part
            assert ("not distinguishable" in part) == alike

    def test_reasons(self, runs: list[RunRecord]) -> None:
        reasons = {str(run.summary["status"]): reason(run) for run in ended_early(runs)}
        assert list(reasons) == ["failed", "unfinished", "stopped"]
        assert reasons["failed"] == "NotFiniteError: loss is nan"
        assert "after epoch 4, healthy L1 0.0512 at best" in reasons["stopped"]
        assert "run it again to resume it" in reasons["unfinished"]

    def test_an_objective_that_used_labels_is_named(self, tmp_path: Path, sweep: Sweep) -> None:
        for size in (8, 16):
            run = write_run(tmp_path / str(size), "3D-None", cohorts=(), change=latent(size))
            objective = {"name": "dice", "value": 0.3, "uses_labels": True}
            edit(run / "summary.json", lambda v, held=objective: v.update(objective=held))
        result = find_sweep(load_runs([str(tmp_path)]), [])
        assert result is not None
        assert any("compared by dice on a threshold part" in s for s in result.sentences)
        assert not any("compared by" in s for s in sweep.sentences)

    def test_without_any_evaluation(self, tmp_path: Path) -> None:
        for size in (8, 16):
            write_run(tmp_path / str(size), "3D-None", cohorts=(), change=latent(size))
        out = Path(write_report([str(tmp_path)], str(tmp_path / "r.html")))
        text = out.read_text()
        assert "2 trials of 1 experiment: latent size (8, 16); 1 seed." in text
        assert 'id="sweep"' in text
        assert "Healthy L1, no labels" in text
        (first, _) = csv.DictReader(io.StringIO((tmp_path / "r-sweep.csv").read_text()))
        summary = json.loads((tmp_path / "8/summary.json").read_text())
        assert float(first["healthy_l1"]) == summary["validation/reconstruction"]
        assert first["dice_d"] == ""


@st.composite
def slice_sets(draw: st.DrawFn) -> Slices:
    num, planes = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    levels = st.sampled_from([0.0, 0.1, 0.25, 0.5])
    return Slices(
        subjects=tuple(f"s{n}" for n in range(num)),
        score=draw(hnp.arrays(np.float32, (num, planes), elements=levels.map(np.float32))),
        lesion=draw(hnp.arrays(bool, (num, planes))),
        counted=draw(hnp.arrays(bool, (num, planes)).filter(lambda a: a.any())),
    )


class TestSlices:
    @settings(max_examples=60, deadline=None)
    @given(held=slice_sets(), data=st.data())
    def test_pooled_average_precision_is_that_of_repeated_slices(
        self, held: Slices, data: st.DataObject
    ) -> None:
        num = len(held.subjects)
        weights = data.draw(hnp.arrays(np.int64, (3, num), elements=st.integers(0, 3)))
        pooled = auprc(histograms(*held.flat(weights)))
        for k, row in enumerate(weights):
            scores, labels = [], []
            for n, times in enumerate(row):
                kept = held.counted[n]
                scores += held.score[n, kept].tolist() * int(times)
                labels += held.lesion[n, kept].tolist() * int(times)
            if any(labels):
                assert pooled[k] == pytest.approx(average_precision_score(labels, scores))
            else:
                assert np.isnan(pooled[k])

    @settings(max_examples=20, deadline=None)
    @given(held=slice_sets())
    def test_packing_keeps_all(self, held: Slices) -> None:
        again = unpack_slices(pack_slices(held))
        assert again.subjects == held.subjects
        for name in ("score", "lesion", "counted"):
            np.testing.assert_array_equal(getattr(again, name), getattr(held, name))

    def test_plots_of_each_cohort_and_of_all(self, cohorts: list[words.Compared]) -> None:
        pooled, *single = slices.slice_plots(cohorts)
        assert pooled.names == ("stroke", "tumour")
        assert [plot.names for plot in single] == [("stroke",), ("tumour",)]
        assert pooled.num_slices == sum(plot.num_slices for plot in single)
        assert len(pooled.curves) == slices.MAX_METHODS
        assert pooled.num_left_out == 1
        assert "PCA-16" in [curve.series.label for curve in pooled.curves]
        for curve in pooled.curves:
            assert len(curve.lines) == len(curve.series.rows)
            assert curve.figure.bounds is not None
            assert curve.figure.bounds[0] < curve.figure.value < curve.figure.bounds[1]
            for recall, precision in curve.lines:
                assert recall[0] == 0
                assert recall[-1] == 1
                assert (np.diff(recall) >= 0).all()
                assert precision[-1] == pytest.approx(pooled.chance)
            each = []
            for url in [row.run.url for row in curve.series.rows]:
                same = [r for c in cohorts for r in c.group.rows if r.run.url == url]
                joined = [r.evaluation.slices.flat() for r in same if r.evaluation.slices]
                assert len(joined) == 2
                lesion, score = (np.concatenate([one[n] for one in joined]) for n in (1, 0))
                each.append(average_precision_score(lesion, score))
            assert curve.figure.value == pytest.approx(np.mean(each))

    def test_damaged_slices_are_refused(self, tmp_path: Path) -> None:
        run = write_run(tmp_path / "run")
        path = run / "evaluation" / "stroke-slices.npz"
        for content in (b"", b"PK\x03\x04 torn", path.read_bytes()[:200]):
            path.write_bytes(content)
            with pytest.raises(RunError, match=r"stroke-slices\.npz: not a file of slices"):
                load_runs([str(run)])

    def test_runs_without_slices_have_no_section(self, tmp_path: Path) -> None:
        write_run(tmp_path / "run", slices=False)
        text = Path(write_report([str(tmp_path)], str(tmp_path / "r.html"))).read_text()
        assert 'id="slices"' not in text


class TestTables:
    def test_sweep_csv(self, sweep: Sweep) -> None:
        lines = list(csv.DictReader(io.StringIO(export.to_sweep_csv(sweep))))
        points = [point for effect in sweep.effects for point in effect.points]
        assert len(lines) == len(points) == 12
        for line, point in zip(lines, points, strict=True):
            figure = point.figure("dice_d")
            assert figure is not None
            assert float(line["dice_d"]) == figure.value
            assert (float(line["dice_d_low"]), float(line["dice_d_high"])) == figure.bounds
            assert float(line["value"]) == point.value
            assert line["setting"] == "method.latent_size"

    def test_files(self, tmp_path: Path) -> None:
        for size in (8, 16):
            write_run(tmp_path / str(size), "3D-None", cohorts=(), change=latent(size))
        write_report([str(tmp_path)], str(tmp_path / "r.html"), tables=str(tmp_path / "tables"))
        names = sorted(path.name for path in (tmp_path / "tables").iterdir())
        assert names == ["r-paired.csv", "r-sweep.csv", "r.csv", "r.md", "r.tex"]
        assert (tmp_path / "r.html").is_file()
        assert not (tmp_path / "r.csv").exists()

    def test_latex_holds_the_figures(self, cohorts: list[words.Compared], sweep: Sweep) -> None:
        text = latex.to_latex(cohorts, "A title", sweep)
        row = cohorts[0].group.rows[0]
        low, high = row.evaluation.interval("dice_d")
        figure = f"{row.evaluation.metric('dice_d'):.3f}"
        assert rf"\textbf{{{figure}}} {{\small [{low:.3f}, {high:.3f}]}}" in text
        check_latex(text)

    def test_latex_has_published_figures_beside_ours(self, tmp_path: Path) -> None:
        write_run(tmp_path / "none", "3D-None")
        write_run(tmp_path / "pca", "PCA-16")
        published = {("stroke", "3D-None"): {"dice_d": Published(value=0.31, deviation=0.04)}}
        out = Path(write_report([str(tmp_path)], str(tmp_path / "r.html"), published=published))
        text = out.with_suffix(".tex").read_text()
        check_latex(text)
        assert r"\textbf{Dice\textsubscript{D}, published}" in text
        (line,) = [x for x in text.splitlines() if x.startswith("3D-None & \\textbf")]
        assert line.endswith(r"0.310 $\pm$ 0.040 \\")
        (other,) = [x for x in text.splitlines() if x.startswith("PCA-16 (plain)") and "0." in x][
            :1
        ]
        assert other.endswith(r"-- \\")

    @settings(max_examples=20, deadline=None)
    @given(name=st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20))
    def test_any_name_stays_text_in_latex(self, cohorts: list[words.Compared], name: str) -> None:
        first = cohorts[0]
        named = [replace(r, run=replace(r.run, label=name)) for r in first.group.rows]
        group = replace(first.group, rows=tuple(named[:3]), name=name, notes=(name,))
        check_latex(latex.to_latex([words.compare_cohort(group)], name))


def test_a_nested_setting_is_compared_by_its_own_path() -> None:
    base = experiment("VAE-restoration")
    configs = []
    for steps in (50, 100):
        restore = replace(base.method.restore, steps=steps)
        made = replace(base, method=replace(base.method, restore=restore))
        configs.append({"name": made.name, "experiment": to_json(made)})
    (one,) = varied(configs)
    assert (one.path, one.label, one.values) == ("method.restore.steps", "restore steps", (50, 100))


def check_latex(text: str) -> None:
    """Rows have as many cells as their table, braces close, and no character is left alone."""
    columns = 0
    for line in text.splitlines():
        if line.startswith("%"):
            continue
        bare = re.sub(r"\\(?:[&%$#_{}]|text\w+\{\})", "", line)
        depth = 0
        for character in bare:
            depth += (character == "{") - (character == "}")
            assert depth >= 0
        assert depth == 0, line
        if line.startswith(r"\begin{longtable}"):
            columns = len(re.search(r"\{([lr]+)\}$", line)[1])
        elif bare.endswith(r"\\") and not line.startswith((r"\caption", r"\multicolumn")):
            assert bare.count("&") == columns - 1, line
            assert not line.startswith("[")
        for mark in "#%~^_":
            assert mark not in bare.replace(r"\_", ""), line


class TestPage:
    def test_every_name_is_escaped(self, tmp_path: Path) -> None:
        for size in (8, 16):
            run = write_run(tmp_path / str(size), "3D-None", name=NASTY, change=latent(size))

            def poison(values: dict[str, Any]) -> None:
                values["cohort"] |= {"name": NASTY, "notes": [NASTY]}

            edit(run / "evaluation" / "stroke.json", poison)
            config = json.loads((run / "config.json").read_text())
            config["experiment"]["method"]["norm"] = f"{NASTY}{size}"
            (run / "config.json").write_text(json.dumps(config))
        viewers = {(NASTY, "stroke-0000", "8"): 'view"><script>alert(1)</script>.html'}
        out = Path(write_report([str(tmp_path)], str(tmp_path / "r.html"), viewers=viewers))
        text = out.read_text()
        assert "<script>alert" not in text
        # The data, the plotting library and the page's own script.
        assert text.count("<script") == 3
        assert "&lt;script&gt;alert(1)" in text[text.index('class="parallel"') :]
        assert "3D view" in text

    def test_viewers_are_linked(self, folder: Path, tmp_path: Path) -> None:
        viewers = {("stroke", "stroke-0000", "pca"): "viewer/pca/stroke-0000.html"}
        runs = [str(folder / "pca")]
        out = Path(write_report(runs, str(tmp_path / "r.html"), viewers=viewers))
        assert out.read_text().count('<a href="viewer/pca/stroke-0000.html">3D view</a>') == 1

    @pytest.mark.parametrize(
        "address", ["https://x.org/a", "//x.org/a", "/etc/passwd", "javascript:alert(1)", " "]
    )
    def test_other_addresses_are_refused(self, folder: Path, tmp_path: Path, address: str) -> None:
        with pytest.raises(ConfigError, match="must be relative to the report"):
            write_report(
                [str(folder / "pca")],
                str(tmp_path / "r.html"),
                viewers={("stroke", "stroke-0000", "pca"): address},
            )
        assert not (tmp_path / "r.html").exists()

    def test_reconstructions_share_a_scale(self, cohorts: list[words.Compared]) -> None:
        made = montage(cohorts[0].group)
        assert made is not None
        held = [row.evaluation.cases for row in made.rows]
        same = {
            limit
            for limit, cases in zip(made.limits, held, strict=True)
            if cases.reconstruction is not None
        }
        inside = np.concatenate([c.scores[c.brain] for c in held if c.reconstruction is not None])
        assert same == {(0.0, float(np.percentile(inside, 99.5)))}
        own = [c for c in held if c.reconstruction is None]
        assert len(own) == 1
        assert made.has_differences
        for case in made.cases:
            for tiles, cases in zip(case.tiles, held, strict=True):
                assert (tiles.difference is None) == (cases.reconstruction is None)
