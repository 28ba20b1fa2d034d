"""Epochs on TensorBoard and MLflow, beside `metrics.jsonl`; both are extras: `uadray[track]`."""

import importlib
import types
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from uadray import files
from uadray.config import flat, to_json
from uadray.errors import ConfigError
from uadray.runs.folder import Run
from uadray.train.settings import TrackConfig

Follow = Callable[[dict[str, Any]], None]
"""Takes the record of an epoch."""


def prepared(config: TrackConfig) -> TrackConfig:
    """What every worker of a job can be given: a file named in full, and an experiment that exists.

    Workers have other working directories, and several would make the experiment at a time.

    Raises:
        ConfigError: MLflow is not installed.
    """
    if not config.mlflow:
        return config
    scheme, colon, path = config.mlflow.partition(":///")
    if scheme.startswith("sqlite") and colon:
        config = replace(config, mlflow=f"{scheme}:///{Path(path).absolute()}")
    _experiment(_client(config), config.mlflow_experiment)
    return config


@contextmanager
def tracked(run: Run, config: TrackConfig) -> Iterator[Follow]:
    """What to call with the record of each epoch, while a fit lasts.

    A resumed fit goes on where the earlier one was: TensorBoard hides what it repeats, MLflow's run
    is the same one.

    Raises:
        ConfigError: a package is not installed, or the run folder is remote.
    """
    with ExitStack() as stack:
        follows: list[Follow] = []
        if config.tensorboard:
            follows.append(stack.enter_context(_tensorboard(run)))
        if config.mlflow:
            follows.append(stack.enter_context(_mlflow(run, config)))

        def follow(record: dict[str, Any]) -> None:
            for each in follows:
                each(record)

        yield follow


def _extra(name: str) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"{name} cannot be imported ({error}): pip install -e '.[track]'"
        ) from None


@contextmanager
def _tensorboard(run: Run) -> Iterator[Follow]:
    if files.is_remote(run.url):
        raise ConfigError(f"TensorBoard writes to local folders, and {run.url} is remote")
    module = _extra("tensorboardX")
    past = run.metrics()
    writer = module.SummaryWriter(
        log_dir=str(Path(run.url) / "tensorboard"),
        purge_step=past[-1]["epoch"] + 1 if past else None,
        # Its names tell files apart by seconds alone.
        filename_suffix=f".{uuid.uuid4().hex[:8]}",
        # Its `flush` leaves out what its thread has not taken yet; this the thread does itself.
        flush_secs=1,
    )

    def follow(record: dict[str, Any]) -> None:
        for name, value in record.items():
            if name != "epoch":
                writer.add_scalar(name, value, record["epoch"])

    try:
        yield follow
    finally:
        writer.close()


@contextmanager
def _mlflow(run: Run, config: TrackConfig) -> Iterator[Follow]:
    client = _client(config)
    url = files.join(run.url, "mlflow.json")
    if files.exists(url) and files.read_json(url)["uri"] == config.mlflow:
        run_id = files.read_json(url)["run_id"]
        client.update_run(run_id, status="RUNNING")
    else:
        run_id = _begin(client, run, config.mlflow_experiment)
        files.write_json(url, {"uri": config.mlflow, "run_id": run_id})

    def follow(record: dict[str, Any]) -> None:
        for name, value in record.items():
            if name != "epoch":
                client.log_metric(run_id, name, value, step=record["epoch"])

    try:
        yield follow
    except BaseException:
        client.set_terminated(run_id, status="FAILED")
        raise
    client.set_terminated(run_id, status="FINISHED")


def _client(config: TrackConfig) -> Any:
    return _extra("mlflow").MlflowClient(tracking_uri=config.mlflow)


def _experiment(client: Any, name: str) -> str:
    """The number of an experiment, which is made if there is none."""
    experiment = client.get_experiment_by_name(name)
    return str(experiment.experiment_id if experiment else client.create_experiment(name))


def _begin(client: Any, run: Run, experiment: str) -> str:
    """A new MLflow run with all settings as its parameters."""
    number = _experiment(client, experiment)
    tags = {"cohort": run.cohort_fingerprint, "fingerprint": run.experiment.fingerprint}
    created = client.create_run(number, run_name=run.experiment.name, tags=tags)
    for name, value in flat(to_json(run.experiment)).items():
        client.log_param(created.info.run_id, name, value)
    return str(created.info.run_id)
