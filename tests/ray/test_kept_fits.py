"""What a long study keeps of each fit is enough to go on from, and to make its figures from."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_cohorts import write_healthy, write_lesioned

from benchmarks import kept
from benchmarks.methods import Study, measure
from uadray.config import experiment
from uadray.runs.folder import Run
from uadray.store import open_cohort
from uadray.train.job import fit


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("study")
    cohorts = write_healthy(folder).url, write_lesioned(folder).url
    return Study(
        names=("Intensity", "PCA-16", "2D-None"),
        out=str(folder / "runs"),
        size=16,
        epochs=1,
        seeds=2,
        resamples=20,
        cohorts=cohorts,
    )


def test_a_study_goes_on_from_what_is_kept_alone(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert measure(replace(study, seeds=1), tmp_path)
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(first) == {f"{name}-0.tar.xz" for name in study.names}
    shutil.rmtree(study.out)  # as on another machine

    measured = measure(study, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*first, "2D-None-1.tar.xz"}
    assert all((tmp_path / name).read_bytes() == content for name, content in first.items())
    assert measured["2D-None"]["stroke Dice_D"].deviation is not None
    assert measured["PCA-16"]["stroke Dice_D"].bounds is not None
    shutil.rmtree(study.out)
    monkeypatch.setattr("benchmarks.methods.fit", lambda *args, **kwargs: pytest.fail("fitted"))
    assert measure(study, tmp_path) == measured


def test_no_fit_begins_after_the_minutes(study: Study, tmp_path: Path) -> None:
    assert measure(study, tmp_path, minutes=0) == {}


def test_what_was_kept_of_other_settings_or_people_is_refused(study: Study, tmp_path: Path) -> None:
    healthy = open_cohort(study.cohorts[0])
    wanted = experiment("PCA-16")
    run = fit(wanted, healthy, str(tmp_path / "run"))
    kept.keep(run, tmp_path / "kept", "PCA-16-0")
    assert kept.is_kept(tmp_path / "kept", "PCA-16-0", wanted, healthy)
    assert not kept.is_kept(tmp_path / "kept", "PCA-16-1", wanted, healthy)
    with pytest.raises(SystemExit, match="other settings"):
        kept.is_kept(tmp_path / "kept", "PCA-16-0", experiment("ZScore"), healthy)
    other = write_healthy(tmp_path, seed=5)
    with pytest.raises(SystemExit, match="another cohort"):
        kept.is_kept(tmp_path / "kept", "PCA-16-0", wanted, other)


def test_weights_and_scores_are_left_out(study: Study, tmp_path: Path) -> None:
    run = fit(experiment("PCA-16"), open_cohort(study.cohorts[0]), str(tmp_path / "run"))
    kept.keep(run, tmp_path / "kept", "a")
    kept.keep(run, tmp_path / "kept", "b")
    (one, other) = (tmp_path / "kept" / f"{name}.tar.xz" for name in "ab")
    assert one.read_bytes() == other.read_bytes()
    again = kept.unpacked(tmp_path / "kept", tmp_path / "again")["a"]
    assert Run.open(str(again)).summary == run.summary
    assert [path.name for path in (again / "checkpoint").iterdir()] == ["state.json"]
    assert len(list((Path(run.url) / "checkpoint").iterdir())) > 1
