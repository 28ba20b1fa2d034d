"""Fitting through Ray: one worker, several, one that is killed, and what is refused."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from ray.train import WorkerGroupError
from safetensors.torch import load_file
from tiny_cohorts import NUM_TRAIN, NUM_VALIDATION, SHAPE, tiny_vae, write_healthy
from torch import Tensor

from uadray import random
from uadray.config import Experiment, experiment, with_fit
from uadray.data.stream import TrainingStream
from uadray.errors import CheckpointError, ConfigError, StoreError
from uadray.methods import GradientDetector, StreamDetector, build
from uadray.runs.detector import load_detector
from uadray.runs.folder import Run
from uadray.store import Cohort
from uadray.train import fit as loop
from uadray.train import group
from uadray.train.fit import NotFiniteError
from uadray.train.job import fit
from uadray.train.settings import ScaleConfig

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("ray_session"),
    pytest.mark.timeout(300),
]

TWO = ScaleConfig(num_workers=2, cpus_per_worker=0.5)

GROUP = tiny_vae(3, strategy="cube", epochs=25, batch_size=NUM_TRAIN)
"""One step an epoch over all volumes: the same sample in every step for any number of workers."""


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return write_healthy(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def undisturbed(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The experiment `GROUP`, fitted by two workers that nobody disturbed."""
    return fit(GROUP, cohort, str(tmp_path_factory.mktemp("runs") / "two"), scale=TWO)


def weights(run: Run) -> dict[str, Tensor]:
    """Of the last epoch."""
    state = json.loads((Path(run.url) / "checkpoint" / "state.json").read_text())
    assert state["last"] == run.experiment.fit.epochs
    folder = Path(run.url) / "checkpoint" / f"epoch-{state['last']:05d}"
    return load_file(folder / "model.safetensors")


def times(folder: str) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in Path(folder).rglob("*")}


def without_times(run: Run) -> list[dict[str, Any]]:
    return [{k: v for k, v in r.items() if "second" not in k} for r in run.metrics()]


@pytest.mark.parametrize(
    "what",
    [tiny_vae(3, epochs=3), *map(experiment, ("MeanImage", "ZScore", "PCA-4", "HistEq"))],
    ids=lambda e: e.name,
)
def test_one_worker_leaves_a_whole_run_folder(
    cohort: Cohort, tmp_path: Path, what: Experiment
) -> None:
    reported: list[dict[str, Any]] = []
    run = fit(what, cohort, str(tmp_path / "run"), report=reported.append)
    summary = run.summary
    assert summary is not None
    assert summary["status"] == "finished"
    assert summary["num_workers"] == 1
    detector = load_detector(run)
    stateful = isinstance(detector, (GradientDetector, StreamDetector))
    assert summary["fit_seconds"] > 0 if stateful else summary["fit_seconds"] is None
    assert not detector.training
    learns = isinstance(detector, GradientDetector)
    assert run.metrics() == reported
    assert [r["epoch"] for r in reported] == ([1, 2, 3] if learns else [])
    assert summary["epochs"] == len(reported)
    values = [r["validation/reconstruction"] for r in reported]
    assert summary["best_epoch"] == (1 + values.index(min(values)) if learns else None)
    if learns:
        assert summary["validation/reconstruction"] == min(values)
    elif detector.has_reconstruction:
        assert 0 < summary["validation/reconstruction"] < 0.3
    else:
        assert summary["validation/reconstruction"] is None
    kept = {p.name for p in Path(run.url).iterdir()} - {"metrics.jsonl"}
    learned = {"checkpoint", "people.npz"} if stateful else set()
    assert kept == {"config.json", "train.toml", "summary.json"} | learned

    before = times(run.url)
    again = fit(what, cohort, str(tmp_path / "run"), report=reported.append)
    assert again == run
    assert times(run.url) == before
    assert len(reported) == summary["epochs"]


def test_what_learns_in_one_pass_sees_each_training_volume_once(
    cohort: Cohort, tmp_path: Path
) -> None:
    images = np.concatenate([cohort.read("image", r, r + 1) for r in cohort.rows("train")]).astype(
        np.float64
    )
    mean = load_detector(fit(experiment("MeanImage"), cohort, str(tmp_path / "mean")))
    assert np.allclose(mean.state_dict()["mean"].numpy(), images.mean(0), atol=1e-6)
    score = load_detector(fit(experiment("ZScore"), cohort, str(tmp_path / "score")))
    expected = images.std(0, ddof=1).clip(0.02)
    assert np.allclose(score.state_dict()["deviation"].numpy(), expected, atol=1e-6)


def test_a_cut_fit_is_taken_up_where_it_was(cohort: Cohort, tmp_path: Path) -> None:
    what = tiny_vae(2, strategy="cube", epochs=4, batch_size=64)

    def cut(record: dict[str, Any]) -> None:
        if record["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(what, cohort, str(tmp_path / "cut"), report=cut)
    unfinished = Run.open(str(tmp_path / "cut"))
    assert unfinished.summary is None
    assert [r["epoch"] for r in unfinished.metrics()] == [1, 2]
    reported: list[dict[str, Any]] = []
    resumed = fit(what, cohort, str(tmp_path / "cut"), report=reported.append)
    assert [r["epoch"] for r in reported] == [3, 4]
    whole = fit(with_fit(what, residency="stream"), cohort, str(tmp_path / "whole"))
    assert without_times(resumed) == without_times(whole)
    a, b = weights(resumed), weights(whole)
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_two_workers_learn_what_one_learns(
    cohort: Cohort, undisturbed: Run, tmp_path: Path
) -> None:
    alone = fit(GROUP, cohort, str(tmp_path / "one"))
    assert undisturbed.summary is not None
    assert undisturbed.summary["num_workers"] == 2
    one, two = alone.metrics(), undisturbed.metrics()
    assert [r["epoch"] for r in two] == list(range(1, GROUP.fit.epochs + 1))
    for a, b in zip(one[:5], two[:5], strict=True):
        for key in ("train/loss", "train/reconstruction", "validation/reconstruction"):
            assert b[key] == pytest.approx(a[key], rel=1e-4)
    assert two[-1]["validation/reconstruction"] < 0.9 * two[0]["validation/reconstruction"]
    kept = {p.name for p in Path(undisturbed.url).iterdir()}
    expected = {"config.json", "train.toml", "people.npz", "metrics.jsonl", "summary.json"}
    assert kept == expected | {"checkpoint"}

    before = times(undisturbed.url)
    assert fit(GROUP, cohort, undisturbed.url, scale=TWO) == undisturbed
    assert times(undisturbed.url) == before


def workers() -> list[psutil.Process]:
    """Train workers of this process's own Ray, and of no other."""
    matches = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                matches.append(process)
        except psutil.Error:
            continue
    return matches


def kill_one_worker(run: Path, after: int, killed: dict[str, Any]) -> None:
    """Wait for the checkpoint of epoch `after`, then end one worker without warning."""
    deadline = time.monotonic() + 240
    processes: list[psutil.Process] = []
    while time.monotonic() < deadline:
        processes = processes or workers()
        state = run / "checkpoint" / "state.json"
        if (
            len(processes) == 2
            and state.exists()
            and json.loads(state.read_text())["last"] >= after
        ):
            os.kill(processes[1].pid, signal.SIGKILL)
            killed.update(pid=processes[1].pid, last=json.loads(state.read_text())["last"])
            return
        processes = processes if len(processes) == 2 else []
        time.sleep(0.01)


@pytest.mark.slow
def test_a_killed_worker_costs_time_and_nothing_else(
    cohort: Cohort, undisturbed: Run, tmp_path: Path
) -> None:
    killed: dict[str, Any] = {}
    killer = threading.Thread(target=kill_one_worker, args=(tmp_path / "run", 3, killed))
    killer.start()
    run = fit(GROUP, cohort, str(tmp_path / "run"), scale=TWO)
    killer.join()
    assert 3 <= killed["last"] < GROUP.fit.epochs  # it did come in the middle
    assert not psutil.pid_exists(killed["pid"])
    assert [r["epoch"] for r in run.metrics()] == list(range(1, GROUP.fit.epochs + 1))
    assert without_times(run) == without_times(undisturbed)
    a, b = weights(run), weights(undisturbed)
    assert all(torch.equal(a[key], b[key]) for key in a)


def validation_images(cohort: Cohort) -> Tensor:
    rows = cohort.rows("validation")
    images = np.concatenate([cohort.read("image", row, row + 1) for row in rows])
    return torch.from_numpy(images.astype(np.float32))[:, None]


def averaged_gradients(cohort: Cohort, what: Experiment, world: int) -> tuple[dict, list[int]]:
    """Weights from the mean gradient over all samples of each step, and each worker's steps."""
    torch.manual_seed(what.fit.seed)
    detector: Any = build(what.method, SHAPE).train()
    optimizer = torch.optim.Adam(detector.parameters(), lr=what.fit.learning_rate)
    streams = [
        TrainingStream(
            cohort, cohort.rows("train"), ndim=detector.ndim, batch_size=what.fit.batch_size,
            seed=what.fit.seed, rank=rank, world=world,
        )
        for rank in range(world)
    ]  # fmt: skip
    num_steps = [0] * world
    for epoch in range(what.fit.epochs):
        parts = [list(stream.epoch(epoch)) for stream in streams]
        for step in range(max(map(len, parts))):
            optimizer.zero_grad()
            total = sum(len(part[step].ids) for part in parts if step < len(part))
            for rank, part in enumerate(parts):
                if step < len(part):
                    num_steps[rank] += 1
                    x = part[step].images.float()[:, None]
                    key = random.keys(what.fit.seed, epoch, part[step].ids, random.LATENT)
                    noise = random.normal(key, detector.num_noise)
                    (detector(x, x, noise)["loss"] * (len(x) / total)).backward()
            torch.nn.utils.clip_grad_norm_(detector.parameters(), what.fit.clip_norm)
            optimizer.step()
    return detector.state_dict(), num_steps


@pytest.mark.slow
def test_workers_of_unequal_parts_take_the_steps_of_all_samples(
    cohort: Cohort, tmp_path: Path
) -> None:
    """A batch that three workers cannot share evenly, cut into micro-batches, of 2D slices."""
    what = tiny_vae(2, epochs=3, batch_size=47, learning_rate=1e-4)
    scale = ScaleConfig(num_workers=3, cpus_per_worker=0.5, micro_batch=7)
    reported: list[dict[str, Any]] = []
    run = fit(what, cohort, str(tmp_path / "run"), scale=scale, report=reported.append)
    assert [r["epoch"] for r in run.metrics()] == [1, 2, 3]
    assert reported == run.metrics()
    expected, num_steps = averaged_gradients(cohort, what, world=3)
    assert len(set(num_steps)) > 1  # one of them has nothing left for the last step
    detector: Any = build(what.method, SHAPE).eval()
    outputs = []
    with torch.no_grad():
        for state in (weights(run), expected):
            detector.load_state_dict(state)
            outputs.append(detector.reconstruct(validation_images(cohort)))
    # Compared by output: rounding alone moves biases that the norm after them takes away.
    assert float((outputs[0] - outputs[1]).abs().max()) < 1e-3
    torch.manual_seed(what.fit.seed)
    moved = build(what.method, SHAPE).eval()
    with torch.no_grad():
        before = moved.reconstruct(validation_images(cohort))
    assert float((before - outputs[1]).abs().max()) > 2e-2
    summary = run.summary
    assert summary is not None
    assert (summary["num_workers"], summary["micro_batch"]) == (3, 7)


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (ScaleConfig(num_workers=9), r"9 workers .* do not surely fit on nodes of 4 CPUs: lower"),
        (ScaleConfig(num_workers=2, use_gpu=True), r"as many GPUs; the cluster has 0: lower"),
    ],
)
def test_a_group_that_cannot_run_is_refused_at_once(
    cohort: Cohort, tmp_path: Path, scale: ScaleConfig, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        fit(GROUP, cohort, str(tmp_path / "run"), scale=scale)


def test_what_ends_a_group_is_raised_by_its_own_name(
    cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(failures: dict[int, Exception]) -> None:
        def fail(trainer: object) -> None:
            raise WorkerGroupError("a worker failed", failures)

        monkeypatch.setattr(group.TorchTrainer, "fit", fail)

    end({0: RuntimeError("Connection closed by peer"), 1: NotFiniteError("the loss is not finite")})
    with pytest.raises(NotFiniteError, match="the loss is not finite"):
        fit(GROUP, cohort, str(tmp_path / "run"), scale=TWO)
    end({0: RuntimeError("Connection closed by peer")})
    with pytest.raises(WorkerGroupError, match="a worker failed"):
        fit(GROUP, cohort, str(tmp_path / "run"), scale=TWO)
    summary = Run.open(str(tmp_path / "run")).summary
    assert summary is not None
    assert summary["status"] == "failed"
    assert "a worker failed" in summary["error"]


class TestErrorsThatComeBack:
    """Starting again would not help, so that a group is not started again."""

    @staticmethod
    def counted(cohort: Cohort, folder: Path) -> tuple[Cohort, Callable[[], int]]:
        """The cohort, and how many workers have asked for its validation rows so far."""
        log = folder / "asked.txt"

        class Counted(Cohort):
            def rows(self, split: Any) -> np.ndarray:
                if split == "validation":
                    with log.open("a") as file:
                        file.write(f"{os.getpid()}\n")
                return super().rows(split)

        counted = Counted(url=cohort.url, attributes=cohort.attributes)
        return counted, lambda: sum(
            int(line) != os.getpid() for line in log.read_text().splitlines()
        )

    @pytest.mark.slow
    def test_a_loss_that_explodes(self, cohort: Cohort, tmp_path: Path) -> None:
        counted, asked = self.counted(cohort, tmp_path)
        what = with_fit(GROUP, learning_rate=1e30)
        with pytest.raises(NotFiniteError, match=r"not finite in epoch \d"):
            fit(what, counted, str(tmp_path / "run"), scale=TWO)
        assert asked() == 2
        run = Run.open(str(tmp_path / "run"))
        assert run.summary is not None
        assert run.summary["status"] == "failed"
        assert run.summary["error"].startswith("NotFiniteError: 3D-Cube-n: the loss is not finite")
        assert {p.name for p in (tmp_path / "run").iterdir()} <= {
            "config.json", "people.npz", "train.toml", "summary.json", "metrics.jsonl", "checkpoint"
        }  # fmt: skip

    def test_a_damaged_shard_of_one_worker(self, tmp_path: Path) -> None:
        damaged = write_healthy(tmp_path, name="damaged", seed=5)
        chunk = Path(damaged.url) / "image" / "c" / "4" / "0" / "0" / "0"
        content = bytearray(chunk.read_bytes())
        content[len(content) // 2] ^= 0xFF
        chunk.write_bytes(content)
        counted, asked = self.counted(damaged, tmp_path)
        with pytest.raises(StoreError, match=r"rows .* of 'image' are damaged"):
            fit(GROUP, counted, str(tmp_path / "run"), scale=TWO)
        assert asked() == 2
        summary = Run.open(str(tmp_path / "run")).summary
        assert summary is not None
        assert summary["error"].startswith("StoreError: ")


def test_a_failed_fit_keeps_its_last_good_epoch_and_may_be_tried_again(
    cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    what = tiny_vae(3, epochs=5)
    real = loop.healthy_reconstruction
    calls = []

    def spoilt(*args: Any) -> Tensor:
        calls.append(args)
        return real(*args) * (torch.nan if len(calls) == 3 else 1)

    monkeypatch.setattr(loop, "healthy_reconstruction", spoilt)
    with pytest.raises(NotFiniteError, match="not finite in epoch 3"):
        fit(what, cohort, str(tmp_path / "run"))
    failed = Run.open(str(tmp_path / "run"))
    assert not failed.finished
    assert failed.summary is not None
    assert failed.summary["status"] == "failed"
    assert "epoch 3" in failed.summary["error"]
    assert (failed.summary["epochs"], failed.summary["best_epoch"]) == (2, 2)
    assert [r["epoch"] for r in failed.metrics()] == [1, 2]
    assert isinstance(load_detector(failed), GradientDetector)

    again: list[dict[str, Any]] = []

    def cut(record: dict[str, Any]) -> None:
        again.append(record)
        if record["epoch"] == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(what, cohort, failed.url, report=cut)
    assert Run.open(failed.url).summary is None  # no longer failed, nor finished
    run = fit(what, cohort, failed.url, report=again.append)
    assert [r["epoch"] for r in again] == [3, 4, 5]
    assert run.finished
    whole = fit(what, cohort, str(tmp_path / "whole"))
    a, b = weights(run), weights(whole)
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_the_summary_says_how_it_was_done(cohort: Cohort, tmp_path: Path) -> None:
    what = tiny_vae(3, epochs=1, data_share=0.25, residency="stream")
    run = fit(what, cohort, str(tmp_path / "run"), scale=ScaleConfig(micro_batch=3))
    summary = run.summary
    assert summary is not None
    expected = {
        "num_train_volumes": 9,
        "num_validation_volumes": NUM_VALIDATION,
        "residency": "stream",
        "precision": "float32",
        "micro_batch": 3,
        "warnings": [],
    }
    assert {key: summary[key] for key in expected} == expected
    assert 0.1 < summary["peak_memory_gib"] < 20
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["experiment"]["fit"]["data_share"] == 0.25
    chosen = fit(tiny_vae(3, epochs=1), cohort, str(tmp_path / "auto")).summary
    assert chosen is not None
    assert (chosen["residency"], chosen["num_train_volumes"]) == ("device", NUM_TRAIN)
    mean = fit(with_fit(experiment("MeanImage"), data_share=0.5), cohort, str(tmp_path / "mean"))
    assert mean.summary is not None
    assert mean.summary["num_train_volumes"] == NUM_TRAIN // 2


def test_batch_normalisation_is_not_cut_into_micro_batches(cohort: Cohort, tmp_path: Path) -> None:
    base = tiny_vae(3, epochs=1)
    what = replace(base, method=replace(base.method, norm="batch"))
    with pytest.raises(ConfigError, match="micro_batch changes what batch normalisation learns"):
        fit(what, cohort, str(tmp_path / "run"), scale=ScaleConfig(micro_batch=4))


def test_what_does_not_fit_together_is_named(cohort: Cohort, tmp_path: Path) -> None:
    cases: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (
            lambda: fit(experiment("PCA-64"), cohort, str(tmp_path / "pca")),
            ConfigError,
            "PCA-64 needs at least as many training volumes, got 36",
        ),
        (
            lambda: fit(experiment("ZScore"), cohort, str(tmp_path / "pca")),
            CheckpointError,
            "holds a run of PCA-64 with other settings",
        ),
        (
            lambda: load_detector(Run.open(str(tmp_path / "pca"))),
            ConfigError,
            "no checkpoint yet",
        ),
    ]
    for act, error, message in cases:
        with pytest.raises(error, match=message):
            act()


def test_a_damaged_cohort_is_named_and_its_reason_kept(tmp_path: Path) -> None:
    damaged = write_healthy(tmp_path, name="damaged", seed=5)
    chunk = Path(damaged.url) / "image" / "c" / "2" / "0" / "0" / "0"
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 0xFF
    chunk.write_bytes(content)
    with pytest.raises(StoreError, match=r"rows .* of 'image' are damaged"):
        fit(experiment("MeanImage"), damaged, str(tmp_path / "run"))
    run = Run.open(str(tmp_path / "run"))
    assert not run.finished
    assert run.summary is not None
    assert run.summary["status"] == "failed"
    assert run.summary["error"].startswith("StoreError: ")
