"""Metrics of other packages: one entry reaches every table, and no mistake of theirs elsewhere."""

import csv
import json
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_runs import write_run
from own_registry import OwnRegistry
from rich.console import Console
from voxel_cohorts import count, random_cohort

from uadray.errors import RunError
from uadray.metrics import measures, thresholds
from uadray.metrics.counts import TestPart, Threshold, ThresholdPart
from uadray.metrics.inference import interval, leaving_out
from uadray.metrics.metric import _ENDS, _TAKEN
from uadray.metrics.outside import describe, guarded, installed, is_up_to_date, remark
from uadray.metrics.table import METRICS, OWN, Metric, Tested, compute_metrics, fits_by_person
from uadray.papers.study import figures
from uadray.prediction.card import _results
from uadray.report import terminal_summary, terminal_table, write_report
from uadray.report.columns import LESION_COLUMNS
from uadray.report.rows import group_by_cohort
from uadray.report.trials import leaderboard, objective_of, trials_of
from uadray.report.words import compare_cohort
from uadray.runs.records import load_runs

RECALL = """
from uadray.metrics.table import Metric

RECALL = Metric(
    key="recall",
    head="Recall",
    value=lambda one: one.true_positives.sum() / one.num_lesion.sum(),
    at_threshold=True,
    brief="Recall",
    compared=True,
    in_sweeps=True,
)
"""

PEOPLE = ["a", "b", "a", "c", "d", "b", "e", "f", "g"]


@pytest.fixture(scope="module")
def part() -> TestPart:
    return count(TestPart, random_cohort(len(PEOPLE), seed=5), name="test")


@pytest.fixture(scope="module")
def threshold() -> Threshold:
    return thresholds.best_dice(count(ThresholdPart, random_cohort(6, seed=4), name="fit"))


@pytest.fixture
def recall(own_registry: OwnRegistry) -> Metric:
    own_registry.write("their_metrics", RECALL)
    own_registry.install("their-metrics", "1.2", group="metrics", recall="their_metrics:RECALL")
    (metric,) = installed()
    return metric


class TestFromTheValueAlone:
    @pytest.mark.parametrize("own", [metric for metric in OWN if metric.weighted])
    def test_equals_the_intervals_of_ours(
        self, part: TestPart, threshold: Threshold, own: Metric
    ) -> None:
        weights = leaving_out(PEOPLE)
        alone = guarded(replace(own, weighted=None), pytest.fail)
        ours = fits_by_person(part, threshold, weights)[own.key]
        made = fits_by_person(part, threshold, weights, metrics=[alone])[own.key]
        assert made.values == pytest.approx(ours.values, rel=1e-12)
        assert made.values[0, 0] == compute_metrics(part, threshold, metrics=[own])[own.key]
        assert interval(made) == pytest.approx(interval(ours), rel=1e-9)

    @pytest.mark.parametrize(
        "value",
        [
            lambda one: one.true_positives.sum() / one.part.num_lesion.sum(),
            lambda one: float(measures.auprc(one.volume)),
            lambda one: np.nanmedian(one.dice_s),
            lambda one: one.false_positives.mean() / one.part.num_outside.mean(),
            lambda one: one.best_of_100,
            lambda one: one.num_lesion.max() / one.num_lesion.sum(),
        ],
    )
    def test_is_the_value_of_those_who_are_left(
        self, part: TestPart, threshold: Threshold, value: Any
    ) -> None:
        weights = leaving_out(PEOPLE)
        metric = guarded(Metric(key="m", head="M", value=value), pytest.fail)
        made = fits_by_person(part, threshold, weights, metrics=[metric])["m"].values[0]
        for row, figure in zip(weights, made, strict=True):
            assert figure == pytest.approx(value(Tested(part.weighted(row), threshold)), rel=1e-12)

    def test_the_only_person_leaves_nobody(self, threshold: Threshold) -> None:
        alone = count(TestPart, random_cohort(2, seed=1), name="test")
        metric = Metric(key="m", head="M", value=lambda one: one.dice_s.mean())
        made = fits_by_person(alone, threshold, leaving_out(["a", "a"]), metrics=[metric])["m"]
        assert np.isfinite(made.values[0]).tolist() == [True, False]

    def test_the_search_before_a_filter_is_searched_without_them_too(
        self, part: TestPart, threshold: Threshold
    ) -> None:
        searched = count(TestPart, random_cohort(len(PEOPLE), seed=6), name="test")
        metric = Metric(key="m", head="M", value=lambda one: one.best_of_100)
        weights = leaving_out(PEOPLE)
        made = fits_by_person(part, threshold, weights, None, searched, [metric])["m"].values[0]
        one = Tested(part.weighted(weights[2]), threshold, searched.weighted(weights[2]))
        assert made[2] == one.best_of_100
        assert made[0] == compute_metrics(part, threshold, searched)["dice_best_of_100"]


def run_metric(
    part: TestPart, threshold: Threshold, **settings: Any
) -> tuple[float | None, bool, str]:
    """Value, whether it has an interval, and the remark on it."""
    notes: list[str] = []
    metric = guarded(Metric(**{"key": "m", "head": "M"} | settings), notes.append)
    value = compute_metrics(part, threshold, metrics=[metric])["m"]
    fits = fits_by_person(part, threshold, leaving_out(PEOPLE), metrics=[metric]).get("m")
    ends = None if fits is None else interval(fits)
    return value, ends is not None, remark(value, fits, notes[0] if notes else "")


def raises_without(key: str) -> Any:
    def value(one: Tested) -> float:
        if len(one.part.subjects) < len(PEOPLE):
            raise KeyError(key)
        return 0.5

    return value


class TestMistakes:
    @pytest.mark.parametrize(
        ("value", "said"),
        [
            (lambda one: 1 / 0, "no figure: ZeroDivisionError: division by zero \\(.*, line"),
            (lambda one: [][1], "no figure: IndexError"),
            (lambda one: exec("raise SystemExit(3)"), "no figure: SystemExit: 3"),
            (lambda one: None, "no figure: gave NoneType where a number is expected"),
            (lambda one: "0.5", "no figure: gave str"),
            (lambda one: True, "no figure: gave bool"),
            (lambda one: 0.5 + 0j, "no figure: gave complex"),
            (lambda one: one.dice_s, "no figure: gave ndarray"),
            (lambda one: 1.7, "no figure: gave 1.7, which is not within its limits 0 to 1"),
            (lambda one: -0.1, "no figure: gave -0.1"),
            (lambda one: np.inf, "no figure: gave inf"),
            (lambda one: 10**400, "no figure: OverflowError"),
            (lambda one: np.nan, r"not defined \(NaN\) on these test subjects"),
            (lambda one: np.float64(0) / 0, r"not defined \(NaN\)"),
            (lambda one: one.nothing, "no figure: AttributeError: 'Tested' object has no"),
        ],
    )
    def test_of_a_value_leave_a_dash_and_a_remark(
        self, part: TestPart, threshold: Threshold, value: Any, said: str
    ) -> None:
        with warnings.catch_warnings(record=True) as warned:
            figure, has_interval, text = run_metric(part, threshold, value=value)
        assert (figure, has_interval, warned) == (None, False, [])
        assert re.match(said, text), text

    @pytest.mark.parametrize(
        "value", [0.5, 1, np.float32(0.25), np.int64(0), np.array(0.5), 1 + 1e-12, -1e-12]
    )
    def test_any_number_is_one(self, part: TestPart, threshold: Threshold, value: Any) -> None:
        figure, _, text = run_metric(part, threshold, value=lambda one: value)
        assert figure == pytest.approx(float(value), abs=1e-9)
        assert 0 <= figure <= 1
        assert json.dumps(figure)
        assert text == ""

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"value": raises_without("s3")}, "no interval: KeyError: 's3'"),
            ({"weighted": lambda one: 1 / 0}, "no interval: ZeroDivisionError"),
            ({"weighted": lambda one: 0.5}, "no interval: weighted gave float64 ()"),
            ({"weighted": lambda one: one.dice_s}, "no interval: weighted gave float64 (9,)"),
            ({"weighted": lambda one: ["x"] * 8}, "no interval: weighted gave <U1 (8,)"),
            (
                {"weighted": lambda one: np.linspace(0.4, 0.6, 8)},
                "no interval: weighted gives 0.4 with everyone, value 0.5",
            ),
            (
                {"weighted": lambda one: np.linspace(0.5, 1.5, 8)},
                "no interval: gave 1.07143, which is not within its limits 0 to 1",
            ),
        ],
    )
    def test_of_an_interval_leave_the_value(
        self, part: TestPart, threshold: Threshold, settings: dict[str, Any], said: str
    ) -> None:
        made = run_metric(part, threshold, **{"value": lambda one: 0.5} | settings)
        assert made[:2] == (0.5, False)
        assert made[2].startswith(said)

    @pytest.mark.parametrize(
        ("people", "said"),
        [
            (lambda one: 1 / 0, "ZeroDivisionError"),
            (lambda one: -one.num_lesion, "people gave weights below 0"),
            (lambda one: np.full(9, np.nan), "people gave weights below 0 or not finite"),
            (lambda one: 1.0, "people gave float64 ()"),
        ],
    )
    def test_of_weights_let_people_count_alike(
        self, part: TestPart, threshold: Threshold, people: Any, said: str
    ) -> None:
        value = METRICS["dice_s_mean"].value
        figure, has_interval, text = run_metric(part, threshold, value=value, people=people)
        assert (figure, has_interval) == (value(Tested(part, threshold)), True)
        assert text.startswith(said)

    @pytest.mark.parametrize(
        "value",
        [
            lambda one: one.part.num_lesion.fill(1),
            lambda one: one.part.slice_score.sort(),
            lambda one: one.part.lesion.data.fill(0),
            lambda one: one.searched.num_outside.fill(0),
        ],
    )
    def test_cannot_change_the_counts(
        self, part: TestPart, threshold: Threshold, value: Any
    ) -> None:
        before = compute_metrics(part, threshold)
        _, _, text = run_metric(part, threshold, value=value, at_threshold=True)
        assert "read-only" in text or "read only" in text
        assert compute_metrics(part, threshold) == before

    def test_what_it_sorts_is_its_own(self, part: TestPart, threshold: Threshold) -> None:
        greedy = guarded(
            Metric(key="m", head="M", value=lambda one: one.dice_s.sort() or 0.0), pytest.fail
        )
        ours = compute_metrics(part, threshold)
        after = METRICS["dice_s_mean"]
        both = compute_metrics(part, threshold, metrics=[greedy, after])
        assert both["dice_s_mean"] == ours["dice_s_mean"]


class TestEntries:
    @pytest.mark.parametrize(
        ("entry", "said"),
        [
            ("recall = 3", "came a int"),
            ("from uadray.metrics.table import Metric as recall", "came Metric"),
            ("def recall(one): return 0.5", "came a function"),
            ("recall = Metric(key='other', head='R', value=abs)", "its key is 'other'"),
            ("recall = Metric(key='recall', head='', value=abs)", "head must be a name"),
            ("recall = Metric(key='recall', head=3, value=abs)", "head must be .*str.*, was 3"),
            ("recall = Metric(key='recall', head='R', value=0.5)", "value must be a function"),
            ("recall = Metric(key='recall', head='R', value=abs, brief=None)", "brief must be"),
            ("recall = Metric(key='recall', head='R', value=abs, shown=1)", "shown must be"),
            ("recall = Metric(key='recall', head='R', value=abs, weighted=1)", "weighted must"),
            (
                "recall = Metric(key='recall', head='R', value=abs, compared=True, "
                "has_interval=False)",
                "compared needs has_interval",
            ),
            ("recall = Metric(key='recall', head='R', value=abs, limits=(1, 0))", "limits must"),
            ("recall = Metric(key='recall', head='R', value=abs, limits=(0,))", "limits must"),
            (
                "recall = Metric(key='recall', head='R', value=abs, limits=(-float('inf'), 0))",
                "limits must",
            ),
            ("recall = Metric(key='recall', value=abs)", "TypeError: .*'head'"),
            ("raise RuntimeError('no licence')", "RuntimeError: no licence"),
            ("import a_package_that_is_not_there", "a_package_that_is_not_there"),
            ("import sys; sys.exit(2)", "SystemExit: 2"),
            ("x = 1", "has no 'recall'"),
        ],
    )
    def test_that_cannot_be_used_are_named_once_and_left_out(
        self, own_registry: OwnRegistry, entry: str, said: str
    ) -> None:
        own_registry.write("theirs", f"from uadray.metrics.table import Metric\n{entry}\n")
        own_registry.write("good", RECALL.replace("recall", "good"))
        own_registry.install("theirs", "1", group="metrics", recall="theirs:recall")
        own_registry.install("good", "1", group="metrics", good="good:RECALL")
        with pytest.warns(UserWarning, match=f"left out: theirs 1 .*{said}") as warned:
            usable = installed()
        assert [metric.key for metric in usable] == ["good"]
        assert len(warned) == 1
        with warnings.catch_warnings(action="error"):
            assert installed() == usable

    def test_of_one_key_are_both_left_out(self, own_registry: OwnRegistry, recall: Metric) -> None:
        own_registry.install("others", "3", group="metrics", recall="their_metrics:RECALL")
        METRICS.imported.pop("recall")
        installed.cache_clear()
        with pytest.warns(UserWarning, match=r"'recall' is there more than once: others 3 .* and"):
            assert installed() == ()

    def test_of_one_of_our_keys_are_named(self, own_registry: OwnRegistry) -> None:
        own_registry.write("theirs", RECALL.replace("recall", "dice_d"))
        own_registry.install("theirs", "1", group="metrics", dice_d="theirs:RECALL")
        with pytest.warns(UserWarning, match="uadray's own dice_d is meant, not that of theirs 1"):
            assert installed() == ()
        with pytest.warns(UserWarning, match="uadray's own dice_d is meant"):
            assert METRICS["dice_d"] in OWN

    def test_that_replace_ours_change_nothing(self, own_registry: OwnRegistry) -> None:
        own_registry.write(
            "theirs",
            f"{RECALL}\nfrom uadray.metrics.table import METRICS\n"
            "METRICS['auprc'] = Metric(key='auprc', head='A', value=abs)\n",
        )
        own_registry.install("theirs", "1", group="metrics", recall="theirs:RECALL")
        assert [metric.key for metric in installed()] == ["recall"]

    @pytest.mark.parametrize(
        "key",
        [
            "Recall",
            "1st",
            "re-call",
            "threshold",
            "num_lesions",
            "lesion_precision",
            "x_low",
            "filtered_x",
            "method",
            "p",
        ],
    )
    def test_of_a_key_that_is_taken_or_no_name(self, own_registry: OwnRegistry, key: str) -> None:
        own_registry.write("theirs", RECALL.replace('"recall"', repr(key)))
        own_registry.install("theirs", "1", group="metrics", **{key: "theirs:RECALL"})
        with pytest.warns(UserWarning, match=r"left out: theirs 1 .*(a key is|something else)"):
            assert installed() == ()

    def test_taken_is_what_other_columns_are_called(self, tmp_path: Path) -> None:
        """So that no key of a package heads two columns of a file."""
        for name in ("3D-None", "3D-Cube-n"):
            for seed in (0, 1):
                write_run(tmp_path / f"{name}-{seed}", name, seed=seed, max_component=3)
        write_report([str(tmp_path)], str(tmp_path / "report.html"))
        own = {metric.key for metric in OWN} | {column.key for column in LESION_COLUMNS}
        for path in tmp_path.glob("*.csv"):
            for head in next(csv.reader(path.open())):
                free = not head.endswith(_ENDS) and not head.startswith("filtered_")
                assert not free or head in _TAKEN | own, head
        record = json.loads((tmp_path / "3D-None-0/evaluation/stroke.json").read_text())
        assert set(record["metrics"]) <= _TAKEN | own
        runs = load_runs([str(tmp_path)])
        cohorts = [compare_cohort(group) for group in group_by_cohort(runs)]
        board = leaderboard(
            trials_of(runs, cohorts, objective_of(runs)), (), objective_of(runs), cohorts
        )
        assert {c.key for c in board.columns} <= _TAKEN | {"dice_d_0", "auprc_0"}


class TestRecords:
    def test_know_the_package_and_the_code(self, own_registry: OwnRegistry, recall: Metric) -> None:
        kept = json.loads(json.dumps({"recall": describe(recall) | {"remark": ""}}))
        assert kept["recall"]["package"] == {"distribution": "their-metrics", "version": "1.2"}
        assert kept["recall"]["head"] == "Recall"
        assert is_up_to_date(kept)
        assert is_up_to_date(kept | {"more": {}})  # not installed here: kept as it is
        assert not is_up_to_date({})
        kept["recall"]["digest"] = "0" * 16
        assert not is_up_to_date(kept)

    def test_in_the_papers_names(self, recall: Metric) -> None:
        assert "recall" in figures()

    @pytest.mark.parametrize(
        "kept",
        [
            [],
            {"recall": 3},
            {"recall": {}},
            {"recall": {"head": 3}},
            {"recall": {"head": "R", "shown": "yes"}},
            {"recall": {"head": "R", "package": "x 1"}},
            {"recall": {"head": "R", "package": {"version": 1}}},
        ],
    )
    def test_that_are_damaged_are_named(self, tmp_path: Path, kept: Any) -> None:
        run = write_run(tmp_path / "run")
        path = run / "evaluation/stroke.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"outside_metrics": kept or 1}))
        with pytest.raises(RunError, match=r"stroke.json is damaged: outside_metrics"):
            load_runs([str(run)])

    def test_of_later_versions_open(self, tmp_path: Path) -> None:
        kept = {"recall": {"head": "R", "package": None, "something_new": [1], "value": 0.5}}
        run = write_run(tmp_path / "run", outside=kept)
        (evaluation,) = load_runs([str(run)])[0].evaluations
        assert evaluation.outside["recall"].appearance.head == "R"


def entry(version: str = "1.2", remark: str = "", value: float | None = 0.4321) -> dict[str, Any]:
    shows = {"brief": "Recall", "compared": True, "in_sweeps": True}
    package = {"distribution": "their-metrics", "version": version}
    return {"head": "Recall", **shows, "package": package, "remark": remark, "value": value}


def write_runs(folder: Path, **settings: Any) -> list[str]:
    return [
        str(write_run(folder / f"{name}-{seed}", name, seed=seed, **settings))
        for name in ("3D-None", "3D-Cube-n", "PCA-16")
        for seed in range(1 if name == "PCA-16" else 2)
    ]


def text_of(table: Any) -> str:
    console = Console(width=250, record=True)
    console.print(table)
    return console.export_text()


def test_one_entry_reaches_every_table(tmp_path: Path) -> None:
    """Shown from the records: the package is not installed where the report is made."""
    runs = write_runs(tmp_path / "runs", outside={"recall": entry()}, max_component=3)
    write_report(runs, str(tmp_path / "report.html"))
    for ending in ("html", "csv", "md", "tex"):
        text = (tmp_path / f"report.{ending}").read_text()
        assert "0.432" in text, ending
        assert "ecall" in text, ending
    page = (tmp_path / "report.html").read_text()
    assert "[0.332, 0.532]" in page
    assert 'data-key="recall_0"' in page  # the leaderboard of a sweep
    assert ", Recall by their-metrics 1.2</dd>" in page
    for heading in ("Over seeds", "Component filter", "Paired differences from PCA-16"):
        table = (tmp_path / "report.md").read_text().split(f"### {heading}")[1].split("\n\n")[1]
        assert "Recall" in table, heading
    assert "recall_difference,recall_difference_low" in (tmp_path / "report-paired.csv").read_text()
    records = load_runs(runs)
    assert "Recall" in text_of(terminal_table(records, "stroke", width=250))
    assert "Recall" in text_of(terminal_summary(records, width=250))
    card = _results(records[0])
    assert "| Recall |" in card.replace("  ", "")
    assert "0.432 [0.332, 0.532]" in card
    assert "Metrics of other packages: Recall: their-metrics 1.2." in card


def test_lower_is_better_where_it_says_so(tmp_path: Path) -> None:
    lower = entry() | {"higher_is_better": False}
    runs = write_runs(tmp_path / "runs", outside={"recall": lower})
    write_report(runs, str(tmp_path / "report.html"))
    page = (tmp_path / "report.html").read_text()
    assert page.count('data-first="ascending"><button type="button">Recall<') >= 2
    assert 'data-first="descending"><button type="button">Recall' not in page


def test_runs_without_it_have_a_dash_and_are_named(tmp_path: Path, recall: Metric) -> None:
    runs = write_runs(tmp_path / "with", outside={"recall": entry()})
    old = str(write_run(tmp_path / "old", "HistEq"))
    out = write_report([*runs, old], str(tmp_path / "report.html"))
    page = Path(out).read_text()
    said = (
        "Recall was not computed: evaluate again with their-metrics 1.2 installed (kept scores "
        "are used) (HistEq)."
    )
    assert said in page
    assert said.replace("_", r"\_") in Path(out).with_suffix(".md").read_text()
    assert '<td data-key="recall" data-value="">\N{EN DASH}</td>' in page
    alone = Path(write_report([old], str(tmp_path / "old.html"))).read_text()
    assert "Recall was not computed: evaluate again (kept scores are used)." in alone


def test_remarks_and_other_versions_are_said(tmp_path: Path) -> None:
    kept = [entry(), entry("1.3"), entry(remark="no figure: gave 7", value=None)]
    names = ("3D-None", "PCA-16", "HistEq")
    runs = [
        str(write_run(tmp_path / name, name, outside={"recall": one}))
        for name, one in zip(names, kept, strict=True)
    ]
    page = Path(write_report(runs, str(tmp_path / "report.html"))).read_text()
    assert "Recall: no figure: gave 7 (HistEq)." in page
    assert "The package of Recall differs between these runs" in page


def test_a_figure_that_one_side_lacks_has_no_difference(tmp_path: Path) -> None:
    runs = [str(write_run(tmp_path / "a", "PCA-16", outside={"recall": entry()}))]
    runs.append(str(write_run(tmp_path / "b", "3D-None")))
    write_report(runs, str(tmp_path / "report.html"))
    assert "nan" not in (tmp_path / "report-paired.csv").read_text()
    lines = list(csv.DictReader((tmp_path / "report-paired.csv").open()))
    assert [line["recall_difference"] for line in lines] == [""] * len(lines)


def test_texts_of_a_package_are_escaped(tmp_path: Path) -> None:
    evil = entry() | {"head": "<b>R|_%", "note": "<script>", "brief": "<i>"}
    runs = write_runs(tmp_path / "runs", outside={"recall": evil})
    page = Path(write_report(runs, str(tmp_path / "report.html"))).read_text()
    assert "<b>R|" not in page
    assert "&lt;b&gt;R|" in page
    assert r"\textless{}b\textgreater{}R\textbar{}\_\%" in (tmp_path / "report.tex").read_text()
    assert r"&lt;b>R\|\_%" in (tmp_path / "report.md").read_text()
    assert r"&lt;b>R\|\_%" in _results(load_runs(runs)[0])


def test_without_outside_metrics_nothing_is_added(tmp_path: Path) -> None:
    runs = load_runs(write_runs(tmp_path))
    assert group_by_cohort(runs)[0].warnings == ()
    assert list(METRICS) == [metric.key for metric in OWN]
