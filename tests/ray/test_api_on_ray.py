"""Prepare, fit and sweep from Python: what the jobs do, and the same files."""

import json
from pathlib import Path

import pytest
from tiny_cohorts import write_healthy, write_lesioned
from tiny_scans import write_bids

import uadray
from uadray import ScaleConfig, Space, files, settings_files
from uadray.config import FitConfig
from uadray.errors import ConfigError, RunError
from uadray.fields import overlay
from uadray.runs.reading import SPACE, SWEEP_SETTINGS
from uadray.store import verify
from uadray.store.layout import read_attributes
from uadray.tune.job import SweepJob
from uadray.tune.space import read_space

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

TINY = {
    "shape": (13, 14, 12),
    "left_right": 24,
    "posterior_anterior": 28.0,
    "inferior_superior": 26,
    "denoise": False,
    "min_brain_ml": 0.1,
}
FIT = FitConfig(epochs=2, batch_size=8, precision="float32")


class TestPrepare:
    def test_a_cohort_and_what_was_left_out(self, tmp_path: Path) -> None:
        root = write_bids(tmp_path / "bids", 8)
        (root / "sub-03/anat/sub-03_T1w.nii.gz").write_bytes(b"no scan")
        out = tmp_path / "c.zarr"
        done = uadray.prepare("bids", root, out, hold_out=1, max_failures=0.5, **TINY)
        assert len(done.cohort.subjects) == 6
        (failed,) = done.left_out
        assert failed["id"] == "sub-03"
        assert Path(done.page.url).exists()
        assert not verify(done.cohort.url)
        recorded = read_attributes(done.cohort.url)["command"]
        assert recorded == (
            f"python jobs/prepare.py bids {root} --seed 0 --modality T1w --hold-out 1 --shape 13 "
            "14 12 --left-right 24 --posterior-anterior 28.0 --inferior-superior 26 --no-denoise "
            "--min-brain-ml 0.1"
        )
        again = uadray.prepare(
            "bids", str(root), str(out), hold_out=1, max_failures=0.5, modality="T1w", **TINY
        )
        assert again.cohort.fingerprint == done.cohort.fingerprint

    def test_phantoms(self, tmp_path: Path) -> None:
        done = uadray.prepare("phantom", "stroke", tmp_path / "p.zarr", count=4, size=16)
        assert (len(done.cohort.subjects), done.cohort.shape) == (4, (16, 16, 16))
        assert done.left_out == []


def test_several_workers_fit(tmp_path: Path) -> None:
    cohort = write_healthy(tmp_path)
    run = uadray.fit(
        "3D-None",
        cohort,
        tmp_path / "run",
        scale=ScaleConfig(num_workers=2, cpus_per_worker=0.5),
        **vars(FIT),
    )
    assert run.summary is not None
    assert run.summary["num_workers"] == 2
    table = settings_files.read(files.join(run.url, "train.toml"), "train")
    assert table["scale"]["num_workers"] == 2
    assert settings_files.take_experiment(table, "f") == run.experiment


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    write_healthy(folder, name="h")
    write_lesioned(folder, name="s")
    return folder


class TestSweep:
    def test_a_table_a_best_run_and_a_report(self, place: Path) -> None:
        space = Space(
            experiments=("3D-Cube-n", "PCA-4"),
            latent_size=(8,),
            vary={"erasing.probability": (0.25, 0.5), "widths": ((8, 16),)},
            baselines=False,
            fit=FIT,
        )
        done = uadray.sweep(space, place / "h.zarr", place / "out", evaluate=place / "s.zarr")
        assert Path(done.report).exists()
        table = done.dataframe()
        assert list(table["experiment"]) == ["3D-Cube-n", "3D-Cube-n", "PCA-4"]
        assert list(table["erasing.probability"][:2]) == [0.25, 0.5]
        assert table["method.widths"][0] == (8, 16)
        assert set(table["status"]) == {"finished"}
        assert table["s/dice_d"].between(0, 1).all()
        learned = table[table["experiment"] != "PCA-4"]
        best = learned.loc[learned["objective"].idxmin()]
        assert done.best().url == best["url"]
        kept = {p: p.stat().st_mtime_ns for p in place.glob("out/runs/*/*.json")}
        # The files that it wrote give the same trials, and the same sweep, which is done already.
        assert read_space(str(place / "out" / SPACE)) == space
        wrote = str(place / "out" / SWEEP_SETTINGS)
        job = overlay(SweepJob(space=Space()), settings_files.read(wrote, "tune"), wrote)
        again = job.run()
        assert {p: p.stat().st_mtime_ns for p in kept} == kept
        assert again.dataframe().equals(table)
        record = json.loads((place / "out/sweep.json").read_text())
        assert record["varied"] == ["experiment", "erasing.probability"]

    def test_a_preset_under_a_budget_that_ends_at_once(self, place: Path) -> None:
        done = uadray.sweep("smoke", place / "h.zarr", place / "none", max_hours=1e-9)
        assert set(done.dataframe()["status"]) == {"unfinished"}
        assert done.report == ""
        with pytest.raises(RunError, match="no trial that learns by gradient has finished"):
            done.best()

    def test_wrong_ones_are_named(self, place: Path, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="no preset is named 'smok'"):
            uadray.sweep("smok", place / "h.zarr", tmp_path / "o")
        with pytest.raises(ConfigError, match="no such file of settings"):
            uadray.sweep(str(tmp_path / "none.toml"), place / "h.zarr", tmp_path / "o")
        assert not (tmp_path / "o").exists()
