"""Trials of two cohorts are in no one ranking."""

from pathlib import Path

import pytest
from tiny_cohorts import tiny_vae, write_healthy
from tiny_models import finished_run

from uadray import files
from uadray.errors import CheckpointError
from uadray.tune.settings import RECONSTRUCTION, SweepConfig
from uadray.tune.trials import check_cohort, outcome, reached


@pytest.mark.parametrize("place", ["runs/a", "population/p/g00-m00"])
def test_a_trial_of_another_cohort_is_refused_by_name(tmp_path: Path, place: str) -> None:
    first, second = (write_healthy(tmp_path / str(k), seed=k) for k in (0, 1))
    sweep = tmp_path / "sweep"
    run = finished_run(sweep / place, first, tiny_vae(3))
    check_cohort(str(sweep), first)
    with pytest.raises(CheckpointError, match=rf"{run.url} was fitted on .*choose another --out"):
        check_cohort(str(sweep), second)


def test_an_empty_or_damaged_folder_is_no_trial_of_another(tmp_path: Path) -> None:
    cohort = write_healthy(tmp_path)
    check_cohort(str(tmp_path / "absent"), cohort)
    files.write_bytes(str(tmp_path / "sweep/runs/a/config.json"), b"{")
    check_cohort(str(tmp_path / "sweep"), cohort)


def test_what_a_trial_has_reached_is_the_same_before_and_after_its_summary(
    tmp_path: Path,
) -> None:
    run = finished_run(tmp_path / "run", write_healthy(tmp_path), tiny_vae(3))
    run.write_metrics([{"epoch": k, RECONSTRUCTION: v} for k, v in ((1, 0.1), (2, 0.3))])
    config = SweepConfig()
    assert reached(run.url, config) == outcome(run.url, run.experiment, config).objective == 0.1
    run.reopen()
    assert reached(run.url, config) == 0.1
    assert reached(str(tmp_path / "absent"), config) is None
