"""Epochs on TensorBoard, MLflow and Weights & Biases, beside `metrics.jsonl`.

All are extras: `uadray[track]` has the first two, `uadray[wandb]` the last.
"""

import importlib
import os
import tempfile
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
        ConfigError: MLflow or Weights & Biases is asked for and not installed, or the latter has no
            key.
    """
    if config.wandb:
        config = _with_mode(config)
        if config.wandb_mode == "online":
            _check_key()
        _wandb_module()
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

    A resumed fit goes on where the earlier one was: TensorBoard hides what it repeats, the run of
    MLflow or Weights & Biases is the same one.

    Raises:
        ConfigError: a package is not installed, or the run folder is remote.
    """
    with ExitStack() as stack:
        follows: list[Follow] = []
        if config.tensorboard:
            follows.append(stack.enter_context(_tensorboard(run)))
        if config.mlflow:
            follows.append(stack.enter_context(_mlflow(run, config)))
        if config.wandb:
            follows.append(stack.enter_context(_wandb(run, config)))

        def follow(record: dict[str, Any]) -> None:
            for each in follows:
                each(record)

        yield follow


def _extra(name: str, extra: str = "track") -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"{name} cannot be imported ({error}): pip install -e '.[{extra}]'"
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


def _with_mode(config: TrackConfig) -> TrackConfig:
    """The mode that the environment asks for, which workers on other nodes do not see."""
    asked = config.wandb_mode or os.environ.get("WANDB_MODE") or "online"
    if asked not in ("online", "offline"):
        raise ConfigError(
            f"WANDB_MODE must be online or offline, was {asked!r}: leave --track.wandb out to send "
            "nothing"
        )
    return replace(config, wandb_mode="offline" if asked == "offline" else "online")


def _check_key() -> None:
    """Refuse before anything is fitted what would be refused after."""
    module = _wandb_module()
    try:
        # Without asking for one: a job has nobody to answer.
        has_key = bool(module.login(prompt=False))
    except module.errors.Error as error:
        raise ConfigError(f"{_first_line(error)}: {_OFFLINE}") from None
    if not has_key:
        raise ConfigError(
            "Weights & Biases has no key on this machine: run `wandb login`, or export "
            f"WANDB_API_KEY on every node; or {_OFFLINE}"
        )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


_OFFLINE = "--track.wandb-mode offline keeps all here, for `wandb sync`"


def _wandb_module() -> Any:
    # Else it reports on itself, offline, too.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    return _extra("wandb", "wandb")


@contextmanager
def _wandb(run: Run, config: TrackConfig) -> Iterator[Follow]:
    config = _with_mode(config)
    module = _wandb_module()
    folder = os.environ.get("WANDB_DIR") or ("" if files.is_remote(run.url) else run.url)
    if not folder and config.wandb_mode == "offline":
        raise ConfigError(
            f"Weights & Biases writes to local folders when it is offline, and {run.url} is "
            "remote: export WANDB_DIR"
        )
    entity, _, project = config.wandb.rpartition("/")
    url = files.join(run.url, "wandb.json")
    known = files.read_json(url) if files.exists(url) else {}
    if known.get("project") != config.wandb:
        known = {"project": config.wandb, "run_id": uuid.uuid4().hex}
        files.write_json(url, known)
    with ExitStack() as stack:
        if not folder:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="uadray-wandb-"))
        try:
            session = module.init(
                project=project,
                entity=entity or None,
                id=known["run_id"],
                resume="allow",
                # One process fits several trials, one after another.
                reinit="create_new",
                name=run.url.rpartition("/")[2],
                config={
                    **flat(to_json(run.experiment)),
                    "experiment": run.experiment.name,
                    "fingerprint": run.experiment.fingerprint,
                    "cohort": run.cohort_fingerprint,
                },
                dir=folder,
                mode=config.wandb_mode,
                # The epochs and the settings, and nothing of the machine, its user or their code.
                settings=module.Settings(
                    silent=True,
                    console="off",
                    host="",
                    save_code=False,
                    disable_git=True,
                    x_disable_meta=True,
                    x_disable_stats=True,
                    x_save_requirements=False,
                ),
            )
        except module.errors.Error as error:
            raise ConfigError(f"{_first_line(error)}: {_OFFLINE}") from None

        def follow(record: dict[str, Any]) -> None:
            session.log(record, step=record["epoch"])

        try:
            yield follow
        except BaseException:
            session.finish(exit_code=1)
            raise
        session.finish(exit_code=0)


def _begin(client: Any, run: Run, experiment: str) -> str:
    """A new MLflow run with all settings as its parameters."""
    number = _experiment(client, experiment)
    tags = {"cohort": run.cohort_fingerprint, "fingerprint": run.experiment.fingerprint}
    created = client.create_run(number, run_name=run.experiment.name, tags=tags)
    for name, value in flat(to_json(run.experiment)).items():
        client.log_param(created.info.run_id, name, value)
    return str(created.info.run_id)
