"""Sweeps without a fit, as the benchmark of the report makes them: whole, honest, and not slow."""

import time
from pathlib import Path

import pytest

from benchmarks.made_sweep import NUM_TEST, trials, write_sweep
from uadray.report import write_report
from uadray.runs.records import load_runs


def test_figures_are_those_of_the_counts(tmp_path: Path) -> None:
    runs = load_runs([write_sweep(str(tmp_path), 5, num_resamples=20)])
    assert len(runs) == 5
    assert sum(run.is_plain for run in runs) == 2
    for run in runs:
        assert [evaluation.cohort for evaluation in run.evaluations] == ["stroke", "tumour"]
        for evaluation in run.evaluations:
            subjects = evaluation.values["subjects"]
            assert len(subjects) == NUM_TEST
            true_positives = sum(subject["true_positives"] for subject in subjects)
            wrong = sum(subject["false_positives"] for subject in subjects)
            lesion = sum(subject["lesion_voxels"] for subject in subjects)
            assert evaluation.metric("dice_d") == pytest.approx(
                2 * true_positives / (true_positives + wrong + lesion)
            )
            assert evaluation.by_person is not None
            kept = evaluation.by_person.fits["dice_d"]
            assert kept.values.shape == (1, 1 + NUM_TEST)
            assert kept.values[0, 0] == evaluation.metric("dice_d")
            assert kept.refits.shape == (1, 20)
            assert evaluation.slices is not None
            assert evaluation.cases is not None
            assert (evaluation.cases.reconstruction is None) == run.is_plain


@pytest.mark.parametrize("number", [20, 60, 200])
def test_trials_are_distinct_and_as_many_as_asked(number: int) -> None:
    drawn = trials(number)
    assert len(set(drawn)) == number


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_report_of_200_trials_is_small_and_quick(tmp_path: Path) -> None:
    runs = write_sweep(str(tmp_path), 200, num_resamples=1000)
    started = time.process_time()
    out = Path(write_report([runs], str(tmp_path / "report.html")))
    assert time.process_time() - started < 20
    assert out.stat().st_size < 15_000_000
    text = out.read_text()
    assert text.count('<tr data-trial="') == 200
    assert "NotFiniteError" in text
    assert "scheduler stopped it after epoch 12" in text
