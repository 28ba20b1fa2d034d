"""Epochs on TensorBoard, MLflow and Weights & Biases, read back with their own readers."""

import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
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


OFFLINE = """
import http.server, json, os, sys, threading
requests = []
class Refuse(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        requests.append(self.path)
        self.send_error(500)
    do_GET = do_CONNECT = do_POST
    def log_message(self, *args):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuse)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}"
for name in ("WANDB_BASE_URL", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
    os.environ[name] = os.environ[name.lower()] = url
import atexit
# The first that is registered is the last that is called.
atexit.register(lambda: print("requests", json.dumps(requests)))
sys.path[:0] = [sys.argv[1], os.path.join(sys.argv[1], "unit")]
from test_track import record, run_in
from uadray.train.settings import TrackConfig
from uadray.train.track import prepared, tracked
config = prepared(TrackConfig(wandb="brains", wandb_mode=sys.argv[3]))
assert config.wandb_mode == "offline"
run = run_in(sys.argv[2])
try:
    with tracked(run, config) as follow:
        follow(record(1))
        raise KeyboardInterrupt
except KeyboardInterrupt:
    pass
with tracked(run, config) as follow:
    follow(record(2))
    follow(record(3))
"""


class TestWandb:
    @pytest.mark.parametrize("by", ["flag", "environment"])
    def test_offline_a_resumed_fit_is_one_run_and_no_network_is_asked(
        self, tmp_path: Path, by: str
    ) -> None:
        """In a process of its own, whose network is a server that counts what it is asked for."""
        pytest.importorskip("wandb")
        key = "planted-key-" + 28 * "7"
        folder = tmp_path / "run"
        folder.mkdir()
        kept = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
        environment = kept | {
            "WANDB_API_KEY": key,
            "HOME": str(tmp_path),
            "NO_PROXY": "",
            "no_proxy": "",
        }
        if by == "environment":
            environment["WANDB_MODE"] = "offline"
        tests, mode = str(Path(__file__).parents[1]), "offline" if by == "flag" else ""
        done = subprocess.run(
            [sys.executable, "-c", OFFLINE, tests, str(folder), mode],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "requests []"
        known = json.loads((folder / "wandb.json").read_text())
        assert known["project"] == "brains"
        parts = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))
        assert [part.name for part in parts] == 2 * [f"run-{known['run_id']}.wandb"]
        first, second = (read_wandb(part) for part in parts)
        assert [row["epoch"] for row in first["history"]] == [1]
        assert [row["epoch"] for row in second["history"]] == [2, 3]
        assert second["history"][1]["train/loss"] == pytest.approx(1 / 3)
        for part, code in ((first, 1), (second, 0)):
            assert part["config"]["fit.seed"] == 4
            assert part["config"]["erasing.strategy"] == "cube"
            assert part["config"]["experiment"] == "3D-Cube-n"
            assert part["config"]["fingerprint"] == EXPERIMENT.fingerprint
            assert part["exit_code"] == code
            assert part["host"] == ""
        for path in tmp_path.rglob("*"):
            if path.is_file():
                assert key.encode() not in path.read_bytes(), path

    def test_offline_needs_a_local_folder(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("wandb")
        monkeypatch.delenv("WANDB_DIR", raising=False)
        config = TrackConfig(wandb="brains", wandb_mode="offline")
        expected = r"s3://bucket/run is remote: export WANDB_DIR"
        with pytest.raises(ConfigError, match=expected), tracked(run_in("s3://bucket/run"), config):
            pass

    def test_without_a_key_it_is_refused_before_anything_is_fitted(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("wandb")
        for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("NETRC", str(tmp_path / "none"))
        with pytest.raises(ConfigError, match=r"no key on this machine.*wandb-mode offline"):
            prepared(TrackConfig(wandb="brains"))

    def test_settings_are_checked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for wrong in ("/brains", "a/b/c", "team/"):
            with pytest.raises(ConfigError, match="ENTITY/PROJECT"):
                TrackConfig(wandb=wrong)
        monkeypatch.setenv("WANDB_MODE", "dryrun")
        with pytest.raises(ConfigError, match="must be online or offline, was 'dryrun'"):
            prepared(TrackConfig(wandb="brains"))

    def test_a_missing_package_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "wandb", None)
        expected = r"wandb cannot be imported .*pip install -e '\.\[wandb\]'"
        for mode in ("online", "offline"):
            with pytest.raises(ConfigError, match=expected):
                prepared(TrackConfig(wandb="brains", wandb_mode=mode))


def leveldb_records(content: bytes) -> Iterator[bytes]:
    """Records of a log as LevelDB has it: parts with a header of 7 bytes, in blocks of 32 KiB."""
    at, record = 7, b""
    while at + 7 <= len(content):
        if 32_768 - at % 32_768 < 7:
            at += 32_768 - at % 32_768
            continue
        _, size, kind = struct.unpack("<IHB", content[at : at + 7])
        record += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def read_wandb(path: Path) -> dict[str, Any]:
    """What a file that W&B would send holds."""
    from wandb.proto import wandb_internal_pb2 as messages

    held: dict[str, Any] = {"history": [], "config": {}, "exit_code": None}
    for data in leveldb_records(path.read_bytes()):
        one = messages.Record()
        one.ParseFromString(data)
        kind = one.WhichOneof("record_type")
        if kind == "history":
            items = ((".".join(i.nested_key) or i.key, i.value_json) for i in one.history.item)
            held["history"].append({name: json.loads(value) for name, value in items})
        elif kind in ("run", "config"):
            config = one.run.config if kind == "run" else one.config
            if kind == "run":
                held["host"] = one.run.host
            for i in config.update:
                held["config"][".".join(i.nested_key) or i.key] = json.loads(i.value_json)
        elif kind == "exit":
            held["exit_code"] = one.exit.exit_code
    return held


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    expected = r"mlflow cannot be imported .*pip install -e '\.\[track\]'"
    config = TrackConfig(mlflow="sqlite:///never.db")
    with pytest.raises(ConfigError, match=expected), tracked(run_in(str(tmp_path)), config):
        pass
