"""Folds as one row, and what an ensemble gains: from records alone."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_runs import write_run

from uadray.config import with_fit
from uadray.metrics.inference import Fits, difference, interval
from uadray.report import write_report
from uadray.report.compare import ONE_FIT, compare, merge_folds, series_of
from uadray.report.ensembles import gain_columns, gains_of, gains_on
from uadray.report.rows import CohortRows, group_by_cohort
from uadray.report.sweep import find_sweep
from uadray.report.terminal import terminal_table
from uadray.runs.records import RunRecord, load_runs

SETTINGS = {"protocol": "bengs2021"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three folds of one experiment and a plain baseline."""
    root = tmp_path_factory.mktemp("folds")
    for fold in (1, 2, 3):
        write_run(
            root / f"fold-{fold}",
            "3D-None",
            cohorts=("stroke",),
            change=lambda one, fold=fold: with_fit(one, folds=3, fold=fold),
        )
    write_run(root / "HistEq", "HistEq", cohorts=("stroke",))
    return root


def only(runs: Sequence[RunRecord]) -> CohortRows:
    (group,) = group_by_cohort(runs)
    return group


def test_folds_are_one_row_of_their_mean(place: Path) -> None:
    runs = load_runs([str(place)])
    folds = [run for run in runs if run.fold]
    assert [run.label for run in folds] == [f"3D-None · seed 0, fold {k} of 3" for k in (1, 2, 3)]
    group = only(runs)
    (series,) = [one for one in series_of(group) if one.name == "3D-None"]
    assert series.count == "3 folds"
    merged = merge_folds(group)
    assert sorted(row.run.label for row in merged.rows) == ["3D-None · mean of 3 folds", "HistEq"]
    one = next(row for row in merged.rows if row.run.fold)
    for metric in ("dice_d", "auprc", "dice_s_mean"):
        values = [run.evaluations[0].metric(metric) for run in folds]
        assert one.evaluation.metric(metric) == pytest.approx(np.mean(values))
    fits = series.fits("dice_d")
    assert fits is not None
    assert fits.values.shape[0] == 3
    assert one.evaluation.interval("dice_d") == pytest.approx(interval(fits))
    assert one.evaluation.values["threshold"]["value"] is None
    assert len(group.rows) == 4
    assert terminal_table(runs, "stroke").row_count == 2
    assert find_sweep(runs, []) is None


def test_the_page_has_folds_once_in_its_results(place: Path, tmp_path: Path) -> None:
    page = Path(write_report([str(place)], str(tmp_path / "r.html"))).read_text()
    results = page.split('aria-label="Results on stroke"')[1].split("</table>")[0]
    assert results.count('<th scope="row"') == 2
    assert "3D-None · mean of 3 folds" in results
    assert "or the mean over the fits of several folds" in page
    assert "Over seeds and folds" in page
    # Each fit is a line of the table of figures.
    lines = (tmp_path / "r.csv").read_text().splitlines()
    assert len(lines) == 5


def with_weights(run: RunRecord, weights: str, **config: Any) -> RunRecord:
    (one,) = run.evaluations
    values = {**one.values, "weights": weights, "settings": SETTINGS}
    return replace(run, evaluations=(replace(one, values=values),), config={**run.config, **config})


@pytest.fixture
def combined(place: Path, tmp_path: Path) -> list[RunRecord]:
    """Three members and the run that combines them, last."""
    write_run(tmp_path / "together", "3D-None", cohorts=("stroke",), seed=9)
    runs = [run for run in load_runs([str(place)]) if run.fold]
    members = [with_weights(run, f"w{k}") for k, run in enumerate(runs)]
    (own,) = load_runs([str(tmp_path / "together")])
    method = {
        "type": "Ensemble",
        "title": "3D-None (ensemble of 3 folds)",
        "combine": "mean",
        "members": [
            {"method": run.config["experiment"]["method"], "weights": f"w{k}"}
            for k, run in enumerate(members)
        ],
    }
    experiment = {**own.config["experiment"], "method": method}
    made = with_weights(own, "all", experiment=experiment, name=method["title"])
    return [*members, replace(made, label=str(method["title"]))]


def test_a_gain_is_over_people_of_these_fits(combined: list[RunRecord]) -> None:
    (gain,) = gains_of(only(combined))
    *members, own = (run.evaluations[0] for run in combined)
    for metric in ("dice_d", "auprc"):
        mean = np.mean([one.metric(metric) for one in members])
        assert gain.differences[metric].value == pytest.approx(own.metric(metric) - mean)  # type: ignore[operator]
    every = np.concatenate([one.by_person.fits["dice_d"].values for one in members])  # type: ignore[union-attr]
    ours = own.by_person.fits["dice_d"]  # type: ignore[union-attr]
    expected = difference(ours, Fits(values=every.mean(0)[None], limits=ours.limits))
    assert gain.differences["dice_d"].bounds == pytest.approx(expected.bounds)
    assert gain.differences["dice_d"].over_fits == 0
    lines = gains_on(combined, "stroke")
    assert lines[0] == "3D-None (ensemble of 3 folds) against the mean of its 3 members:"
    assert "no verdict" in lines[-1]
    assert not gains_on(combined[:3], "stroke")
    texts = [column.line(gain) for column in gain_columns([gain])]
    assert texts[:2] == ["3D-None (ensemble of 3 folds)", "3"]
    low, high = expected.bounds or (0, 0)
    assert f"[{low:+.3f}, {high:+.3f}]".replace("-", "\N{MINUS SIGN}") in " ".join(texts)


def test_there_is_no_verdict_on_an_ensemble(combined: list[RunRecord]) -> None:
    series = series_of(only(combined))
    assert sorted(len(one.rows) for one in series) == [1, 3]
    alone, folds = sorted(series, key=lambda one: len(one.rows))
    made = compare(alone, folds)
    assert made is not None
    assert made.verdict == ONE_FIT


@pytest.mark.parametrize("what", ["gone", "other weights", "other settings", "no people"])
def test_without_all_members_alike_nothing_is_said(combined: list[RunRecord], what: str) -> None:
    *members, own = combined
    last = members[-1]
    (one,) = last.evaluations
    changed = {
        "gone": None,
        "other weights": with_weights(last, "w9"),
        "other settings": replace(
            last,
            evaluations=(replace(one, values={**one.values, "settings": {"protocol": "x"}}),),
        ),
        "no people": replace(last, evaluations=(replace(one, by_person=None),)),
    }[what]
    kept = [*members[:-1], *([changed] if changed else []), own]
    assert gains_of(only(combined))
    assert not gains_of(only(kept))


def test_an_ensemble_is_no_trial_of_a_sweep(combined: list[RunRecord]) -> None:
    assert find_sweep(combined, []) is None
    seeds = [
        replace(
            run,
            config={
                **run.config,
                "experiment": {**run.config["experiment"], "fit": {"seed": k, "epochs": 5 + k}},
            },
        )
        for k, run in enumerate(combined[:3])
    ]
    made = find_sweep([*seeds, combined[3]], [])
    assert made is not None
    assert len(made.runs) == 3
