"""Epochs on TensorBoard and MLflow, read back with their own readers."""

import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_cohorts import SHAPE, tiny_vae

from uadray.errors import ConfigError
from uadray.runs.folder import Run
from uadray.train.settings import TrackConfig
from uadray.train.track import prepared, tracked

EXPERIMENT = tiny_vae(3, strategy="cube", seed=4)


def run_in(folder: str) -> Run:
    return Run(
        url=folder, experiment=EXPERIMENT, cohort_url="", cohort_fingerprint="c0ffee", shape=SHAPE
    )


def record(epoch: int, loss: float | None = None) -> dict[str, Any]:
    value = 1 / epoch if loss is None else loss
    return {"epoch": epoch, "train/loss": value, "train/active_units": 8}


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    """What TensorBoard itself shows."""
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    reader = module.EventAccumulator(str(folder))
    reader.Reload()
    if name not in reader.Tags()["scalars"]:
        return []
    return [(event.step, event.value) for event in reader.Scalars(name)]


def test_nothing_is_written_unless_asked_for(tmp_path: Path) -> None:
    with tracked(run_in(str(tmp_path)), TrackConfig()) as follow:
        follow(record(1))
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_shows_a_resumed_fit_as_one(tmp_path: Path) -> None:
    run = run_in(str(tmp_path))
    with tracked(run, TrackConfig(tensorboard=True)) as follow:
        for epoch in (1, 2, 3):
            follow(record(epoch))
    # Killed after the record of epoch 3 and before its checkpoint: epoch 3 comes again.
    run.write_metrics([record(1), record(2)])
    time.sleep(1.1)  # TensorBoard reads files in the order of the seconds in their names
    with tracked(run, TrackConfig(tensorboard=True)) as follow:
        for epoch in (3, 4):
            follow(record(epoch, loss=epoch))
    assert [p.name for p in tmp_path.iterdir()].count("tensorboard") == 1
    logged = scalars(tmp_path / "tensorboard", "train/loss")
    assert logged == [(1, 1.0), (2, 0.5), (3, 3.0), (4, 4.0)]
    assert scalars(tmp_path / "tensorboard", "train/active_units")[-1] == (4, 8.0)


def test_an_epoch_is_on_disk_soon_after_it_is_over(tmp_path: Path) -> None:
    with tracked(run_in(str(tmp_path)), TrackConfig(tensorboard=True)) as follow:
        follow(record(1))
        deadline = time.monotonic() + 300
        # A thread of the writer's own puts it there.
        while not (logged := scalars(tmp_path / "tensorboard", "train/loss")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert logged == [(1, 1.0)]


def test_tensorboard_needs_a_local_folder() -> None:
    with (
        pytest.raises(ConfigError, match="local folders, and s3://bucket/run is remote"),
        tracked(run_in("s3://bucket/run"), TrackConfig(tensorboard=True)),
    ):
        pass


@pytest.fixture
def client(tmp_path: Path) -> Any:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    return mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")


def test_a_relative_file_is_named_in_full_and_the_experiment_is_there(
    tmp_path: Path, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = TrackConfig(mlflow="sqlite:///mlflow.db", mlflow_experiment="erasing")
    config = prepared(given)
    assert config == replace(given, mlflow=f"sqlite:///{tmp_path}/mlflow.db")
    number = client.get_experiment_by_name("erasing").experiment_id
    assert prepared(config) == config
    assert client.get_experiment_by_name("erasing").experiment_id == number
    assert prepared(TrackConfig(tensorboard=True)) == TrackConfig(tensorboard=True)


def test_mlflow_keeps_settings_and_epochs_of_a_resumed_fit_in_one_run(
    tmp_path: Path, client: Any
) -> None:
    run = run_in(str(tmp_path / "run"))
    config = TrackConfig(mlflow=f"sqlite:///{tmp_path}/mlflow.db", mlflow_experiment="erasing")

    def cut_short() -> None:
        with tracked(run, config) as follow:
            follow(record(1))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut_short()
    number = client.get_experiment_by_name("erasing").experiment_id
    (logged,) = client.search_runs([number])
    assert logged.info.status == "FAILED"
    with tracked(run, config) as follow:
        follow(record(2))
    (logged,) = client.search_runs([number])
    assert logged.info.status == "FINISHED"
    assert logged.info.run_name == "3D-Cube-n"
    assert logged.data.params["fit.seed"] == "4"
    assert logged.data.params["erasing.strategy"] == "cube"
    assert logged.data.params["method.type"] == "VAE"
    assert logged.data.tags["fingerprint"] == EXPERIMENT.fingerprint
    history = client.get_metric_history(logged.info.run_id, "train/loss")
    assert [(m.step, m.value) for m in history] == [(1, 1.0), (2, 0.5)]
    with tracked(run_in(str(tmp_path / "other")), config):
        pass
    assert len(client.search_runs([number])) == 2


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    expected = r"mlflow cannot be imported .*pip install -e '\.\[track\]'"
    config = TrackConfig(mlflow="sqlite:///never.db")
    with pytest.raises(ConfigError, match=expected), tracked(run_in(str(tmp_path)), config):
        pass
