"""Every verb without a word of arguments: phantoms are made, and what one leaves the next takes."""

import re
import sys
from functools import partial
from pathlib import Path

import pytest

from uadray import first_run
from uadray.errors import ConfigError
from uadray.jobs import evaluate, report, train, tune
from uadray.methods.vae import VAE
from uadray.tune import space
from uadray.tune.space import FIRST_RUN, PRESETS, smoke

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session"), pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("here")


@pytest.fixture(autouse=True)
def small(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer and smaller phantoms, one epoch, and the sweep of a minute."""
    monkeypatch.chdir(place)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    tiny = partial(first_run.cohorts, size=32, healthy=20, lesioned=6)
    monkeypatch.setattr(first_run, "cohorts", tiny)
    monkeypatch.setattr(first_run, "small", partial(first_run.small, epochs=1))
    monkeypatch.setitem(PRESETS, FIRST_RUN, smoke)


def call(main, *args: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["job", *args])
    return main() or 0


def test_evaluate_and_report_have_something_to_show(place, monkeypatch, capsys) -> None:
    """Before anything was fitted: plain baselines, in seconds."""
    assert call(report.main, monkeypatch=monkeypatch) == 0
    output = capsys.readouterr().out
    assert "no cohort given: phantom brains" in output
    page = (place / "runs/first-run/report.html").read_text()
    assert all(name in page for name in first_run.PLAIN)
    assert call(evaluate.main, monkeypatch=monkeypatch) == 0
    assert "PCA-16" in capsys.readouterr().out


def test_train_fits_and_names_the_next_command(place, monkeypatch, capsys) -> None:
    assert call(train.main, monkeypatch=monkeypatch) == 0
    output = capsys.readouterr().out
    assert "runs/first-run/fits/3D-Cube-n" in output
    assert "--cohort runs/first-run/stroke.zarr" in output
    assert call(evaluate.main, monkeypatch=monkeypatch) == 0
    assert "3D-Cube-n" in capsys.readouterr().out


def test_tune_sweeps_evaluates_and_reports(place, monkeypatch, capsys) -> None:
    assert call(tune.main, monkeypatch=monkeypatch) == 0
    output = capsys.readouterr().out
    assert "--cohort C --evaluate L --out FOLDER takes your own" in output
    assert "AUPRC" in output
    page = place / "runs/first-run/tune-first-run/report.html"
    assert f"report: {page}" in output
    heads = re.findall(r'<h2 id="cohort-\d+">(\w+)', page.read_text())
    assert {"stroke", "tumour"} <= set(heads)


def test_first_sweep_is_of_the_three_settings_that_were_asked_for() -> None:
    trials = [t for t in space.first_run().trials() if isinstance(t.method, VAE.Settings)]
    assert len(trials) == 12
    assert {t.erasing.strategy for t in trials} == {"none", "cube", "half-volume"}
    assert len({t.method.latent_size for t in trials}) == 2
    assert len({t.fit.epochs for t in trials}) == 2


def test_results_of_a_submitted_job_do_not_vanish(tmp_path, monkeypatch) -> None:
    """Relative to the folder that Ray unpacks and removes: refused, with what to give instead."""
    here = tmp_path / "runtime_resources/working_dir_files/_ray_pkg_1"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert first_run.folder() == str(tmp_path / "home/uadray/first-run")
    own = first_run.out_for("s3://data/healthy.zarr", "fits/x")
    assert own == str(tmp_path / "home/uadray/healthy/fits/x")
    for job, args in (
        (tune.main, ["smoke", "--out", "runs/sweep"]),
        (train.main, ["3D-None", "--out", "runs/fit"]),
        (report.main, ["runs/fit"]),
    ):
        with pytest.raises(ConfigError, match=r"does not outlast the job: give a full path"):
            call(job, *args, monkeypatch=monkeypatch)
