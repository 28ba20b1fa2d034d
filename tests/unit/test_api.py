"""The Python interface: quick to import, a package and a function in one, and what it promises."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_cohorts import write_healthy
from tiny_models import finished_run, freeze_threshold, healthy_cohort, write_head

import uadray
from uadray.errors import ConfigError, PredictError
from uadray.runs.folder import Run

IMPORT = """
import sys
import uadray
dir(uadray)
print(*(name for name in ("ray", "torch", "numpy", "pandas") if name in sys.modules))
"""


def test_import_pulls_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


def test_all_verbs_are_there() -> None:
    from uadray import api

    assert set(api.__all__) <= set(dir(uadray))
    for name in api.__all__:
        assert callable(getattr(uadray, name)), name
    with pytest.raises(AttributeError, match="no attribute 'predikt'"):
        uadray.predikt  # noqa: B018


def test_evaluate_is_the_function_of_the_interface() -> None:
    import uadray.evaluation.job
    from uadray import api

    assert uadray.evaluate is api.evaluate
    assert uadray.evaluation.job.evaluate is not api.evaluate


def test_predict_stays_a_package() -> None:
    import uadray.prediction.scan as scan

    assert uadray.prediction.scan is scan
    assert callable(uadray.predict)


@pytest.mark.parametrize(
    ("layout", "settings", "message"),
    [
        ("bidz", {}, "no layout is named 'bidz'; did you mean bids"),
        ("bids", {"hold_ot": 1}, "no setting 'hold_ot'; did you mean hold_out"),
        ("bids", {"shape": (3, 4)}, r"shape must be a list .*, was \(3, 4\)"),
        ("bids", {"denoise": "no"}, "denoise must be true or false, was 'no'"),
        ("bids", {"shape": (13, 14, 12), "size": 4}, "size and shape"),
        ("bids", {"grid": "baur"}, "no protocol is named 'baur'; known are bengs2021, baur"),
        ("bids", {"validation_share": 2.0}, "validation_share"),
        ("bids", {"seed": -1}, "seed"),
        ("bids", {"qc": "page.txt"}, "html"),
        ("phantom", {"denoise": False}, "phantoms are made on their grid"),
        ("phantom", {"grid": "baur2018"}, "phantoms are made on their grid"),
        ("phantom", {"root": "healty"}, "healthy, tumour, stroke, was 'healty'"),
    ],
)
def test_wrong_settings_of_a_preparation_are_named(
    layout: str, settings: dict, message: str, tmp_path: Path
) -> None:
    root = {"root": "healthy" if layout == "phantom" else tmp_path}
    with pytest.raises(ConfigError, match=message):
        uadray.prepare(layout, out=tmp_path / "c.zarr", **(root | settings))
    assert not (tmp_path / "c.zarr").exists()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    home = tmp_path_factory.mktemp("home")
    run = finished_run(home / "run", healthy_cohort(home, 8), "MeanImage")
    freeze_threshold(run, 0.2)
    return run


def test_predict_takes_runs_models_and_places(run: Run, tmp_path: Path) -> None:
    path = write_head(tmp_path / "p_T1w.nii.gz", 3, lesion=True)
    first = uadray.predict(run, path, out=tmp_path / "out")
    model = uadray.export(run, tmp_path / "model", onnx=False)
    for given in (run.url, Path(run.url), model, tmp_path / "model"):
        (again,) = uadray.predict(given, [path], out=tmp_path / "out")
        assert np.array_equal(again.anomaly, first.anomaly)
    assert first.proposal is not None
    assert first.proposal.any()
    assert (tmp_path / "out/p_T1w/anomaly.nii.gz").exists()
    assert uadray.predict(model, path, threshold=0.9).summary["threshold"]["value"] == 0.9


def test_predict_folder_is_the_job(run: Run, tmp_path: Path) -> None:
    for k in range(2):
        write_head(tmp_path / f"in/{k}.nii.gz", k)
    done = uadray.predict_folder(run.url, tmp_path / "in", tmp_path / "out", viewer=False)
    assert [one["name"] for one in done.summaries] == ["0", "1"]
    assert done.index == ""
    with pytest.raises(PredictError, match=r"holds 2 scans: use uadray\.predict_folder"):
        uadray.predict(run, tmp_path / "in")


def test_experiment_changes_the_fit() -> None:
    assert uadray.experiment("3D-Cube-n", epochs=3).fit.epochs == 3
    assert uadray.experiment("3D-Cube-n").name == "3D-Cube-n"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c, o: uadray.fit(3, c, o), "method must be an experiment"),
        (
            lambda c, o: uadray.fit("PCA-4", None, o),
            "expected a cohort, or where it lies, was None",
        ),
        (lambda c, o: uadray.fit("PCA-4", c, o, scale=4), r"scale must be a ScaleConfig\(\.\.\.\)"),
        (
            lambda c, o: uadray.fit("PCA-4", c, o, scale=uadray.ScaleConfig(num_workers=1.5)),
            "scale.num_workers must be a whole number",
        ),
        (lambda c, o: uadray.fit("PCA-4", c, o, epoch=1), "did you mean epochs"),
        (lambda c, o: uadray.fit("PCA-4", c, o, epochs="1"), "epochs must be a whole number"),
        (lambda c, o: uadray.sweep(None, c, o), r"space must be a Space\(\.\.\.\), was None"),
        (lambda c, o: uadray.sweep(uadray.Space(seeds=3), c, o), "space.seeds must be a list"),
        (
            lambda c, o: uadray.sweep(uadray.Space(experiments="3D-None"), c, o),
            "space.experiments must be a list",
        ),
        (lambda c, o: uadray.sweep("smoke", c, o, scheduler="ashaa"), "must be one of all, asha"),
        (lambda c, o: uadray.sweep("smoke", c, o, schedular="asha"), "did you mean scheduler"),
    ],
)
def test_wrong_arguments_are_named_before_anything_is_written(call, message, tmp_path) -> None:
    cohort = write_healthy(tmp_path)
    with pytest.raises(ConfigError, match=message):
        call(cohort, tmp_path / "out")
    assert not (tmp_path / "out").exists()
