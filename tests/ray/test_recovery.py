"""What is killed while it fits comes back, by itself or by the same command, with the same bits.

Clusters in namespaces of their own; every fit is `jobs/train.py` in a process of its own.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_cohorts import NUM_TRAIN, write_healthy

from tests.nodes import (
    HEAD,
    QUICK_TO_GIVE_UP,
    REPOSITORY,
    Network,
    Started,
    network,
    why_not,
)
from tests.waiting import wait_until
from uadray.store import Cohort

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]

EPOCHS = 60
JOINED = {"RAY_ADDRESS": f"{HEAD}:6379"}
THREE = ("--scale.num-workers", 3, "--scale.cpus-per-worker", 0.5)
"""Three workers, since two add their gradients up in one order only."""


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return write_healthy(tmp_path_factory.mktemp("cohort"))


def train(
    place: Network,
    cohort: Cohort,
    run: Path,
    *flags: object,
    batch_size: int = 8,
    epochs: int = EPOCHS,
    **env: str,
) -> Started:
    """Start the job, always with the same settings."""
    return place.start(
        *("python", REPOSITORY / "jobs" / "train.py", "3D-Cube-n"),
        *("--cohort", cohort.url, "--out", run, "--method.widths", 8, 16),
        *("--method.bottleneck", 4, "--method.latent-size", 8, "--fit.precision", "float32"),
        *("--fit.epochs", epochs, "--fit.batch-size", batch_size),
        *flags,
        **env,
    )


def last(run: Path) -> int:
    """Epochs of the newest checkpoint."""
    state = run / "checkpoint" / "state.json"
    return int(json.loads(state.read_text())["last"]) if state.exists() else 0


def records(run: Path) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def reach_the_middle(run: Path, epoch: int, started: Started) -> None:
    """Wait until half of the epoch after `epoch` is over."""
    wait_until(
        lambda: last(run) >= epoch or started.process.poll() is not None, 240, f"epoch {epoch}"
    )
    assert started.process.poll() is None, started.log.read_text()
    time.sleep(records(run)[-1]["seconds"] / 2)


def assert_same_fit(run: Path, other: Path, epochs: int = EPOCHS) -> None:
    """Weights bit for bit, and the records but for their times."""
    assert last(run) == last(other) == epochs
    for a, b in zip(records(run), records(other), strict=True):
        assert {k: v for k, v in a.items() if "second" not in k} == {
            k: v for k, v in b.items() if "second" not in k
        }
    name = f"checkpoint/epoch-{epochs:05d}/model.safetensors"
    first, second = load_file(run / name), load_file(other / name)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def cut_at(run: Path, killed: float, epochs: int = EPOCHS) -> int:
    """The newest epoch that a fit killed at that time has left."""
    # Whatever was on its way to the disk has arrived.
    time.sleep(max(0.0, killed + 0.5 - time.monotonic()))
    epoch = last(run)
    assert epoch < epochs
    return epoch


def back_after(run: Path, epoch: int, since: float) -> float:
    """Seconds until an epoch after `epoch` is recorded again."""
    wait_until(lambda: last(run) > epoch, 300, f"the epoch after {epoch}")
    return time.monotonic() - since


def record_recovery(record_property: Any, what: str, run: Path, epoch: int, seconds: float) -> None:
    lost = f"{what}: killed after epoch {epoch}, back in {seconds:.1f} s"
    record_property(what, lost)
    print(f"{lost}; an epoch takes {records(run)[-1]['seconds']:.2f} s")


def test_a_killed_process_goes_on_by_the_same_command(
    cohort: Cohort, tmp_path: Path, record_property: Any
) -> None:
    with network(1, environment=QUICK_TO_GIVE_UP) as place:
        train(place, cohort, tmp_path / "whole").must(240)
        run = tmp_path / "killed"
        started = train(place, cohort, run)
        reach_the_middle(run, 20, started)
        started.kill()
        since = time.monotonic()
        epoch = cut_at(run, since)
        assert not (run / "summary.json").exists()
        # Its Ray ends with it.
        wait_until(lambda: not place.processes("raylet"), 30, "the end of the local Ray")
        again = train(place, cohort, run)
        record_recovery(record_property, "one worker", run, epoch, back_after(run, epoch, since))
        again.must(240)
        assert_same_fit(run, tmp_path / "whole")
        # The partial epoch, and nothing before it, was computed twice.
        assert [r["epoch"] for r in records(run)] == list(range(1, EPOCHS + 1))


@pytest.fixture(scope="module")
def place() -> Iterator[Network]:
    """A cluster of one node, which outlives the jobs that join it."""
    with network(1, environment=QUICK_TO_GIVE_UP) as made:
        made.head(4)
        wait_until(lambda: made.cpus()[0] == 4, 120, "the cluster")
        yield made


@pytest.fixture(scope="module")
def whole(place: Network, cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What three undisturbed workers fit."""
    run = tmp_path_factory.mktemp("runs") / "three"
    train(place, cohort, run, *THREE, **JOINED).must(300)
    return run


def test_a_killed_worker_of_three_comes_back_by_itself(
    place: Network, cohort: Cohort, whole: Path, tmp_path: Path, record_property: Any
) -> None:
    run = tmp_path / "run"
    started = train(place, cohort, run, *THREE, **JOINED)
    reach_the_middle(run, 20, started)
    workers = place.processes("RayTrainWorker")
    assert len(workers) == 3
    workers[1].kill()
    since = time.monotonic()
    epoch = cut_at(run, since)
    record_recovery(record_property, "a worker", run, epoch, back_after(run, epoch, since))
    started.must(300)
    assert_same_fit(run, whole)
    assert sorted(p.name for p in run.iterdir()) == [
        "checkpoint", "config.json", "metrics.jsonl", "people.npz", "summary.json"
    ]  # fmt: skip


def test_a_killed_driver_leaves_nothing_and_goes_on_by_the_same_command(
    place: Network, cohort: Cohort, whole: Path, tmp_path: Path, record_property: Any
) -> None:
    run = tmp_path / "run"
    started = train(place, cohort, run, *THREE, **JOINED)
    reach_the_middle(run, 20, started)
    # Another Ray on the same machine, which Ray's tools may take for this one.
    other = train(place, cohort, tmp_path / "other")
    wait_until(lambda: len(place.processes("raylet/raylet")) == 2, 60, "a second Ray")
    started.kill()
    since = time.monotonic()
    epoch = cut_at(run, since)
    wait_until(lambda: place.cpus()[1] == 4, 120, "the CPUs of the dead group")
    print(f"all CPUs free after {time.monotonic() - since:.1f} s")
    assert place.processes("RayTrainWorker") == []
    since = time.monotonic()
    again = train(place, cohort, run, *THREE, **JOINED)
    record_recovery(record_property, "the driver", run, epoch, back_after(run, epoch, since))
    again.must(300)
    other.must(300)
    assert_same_fit(run, whole)


def test_another_number_of_workers_goes_on_from_the_same_checkpoint(
    place: Network, cohort: Cohort, tmp_path: Path
) -> None:
    """One step an epoch over all volumes, so that all numbers of workers do the same."""
    run, batch = tmp_path / "run", NUM_TRAIN
    for workers, epoch in ((4, 10), (2, 25), (1, 40)):
        scale = ("--scale.num-workers", workers, "--scale.cpus-per-worker", 0.5)
        started = train(place, cohort, run, *scale, batch_size=batch, **JOINED)
        reach_the_middle(run, epoch, started)
        started.kill()
        assert epoch <= cut_at(run, time.monotonic())
        wait_until(lambda: place.cpus()[1] == 4, 120, "the CPUs of the dead group")
    last_scale = ("--scale.num-workers", 2, "--scale.cpus-per-worker", 0.5)
    train(place, cohort, run, *last_scale, batch_size=batch, **JOINED).must(300)
    alone = tmp_path / "alone"
    train(place, cohort, alone, batch_size=batch, **JOINED).must(300)
    assert [r["epoch"] for r in records(run)] == list(range(1, EPOCHS + 1))
    for a, b in zip(records(run), records(alone), strict=True):
        for key in ("train/loss", "train/reconstruction", "validation/reconstruction"):
            assert a[key] == pytest.approx(b[key], rel=0.02)


TWO = ("--scale.num-workers", 2, "--scale.cpus-per-worker", 0.75)


@pytest.fixture
def nodes() -> Iterator[Network]:
    """Two nodes of one CPU each: a worker of 0.75 CPUs fits once on either."""
    with network(2, environment=QUICK_TO_GIVE_UP) as made:
        made.cluster([1, 1])
        yield made


def test_a_lost_node_is_replaced_and_the_group_goes_on(
    nodes: Network, cohort: Cohort, tmp_path: Path, record_property: Any
) -> None:
    train(nodes, cohort, tmp_path / "whole", *TWO, **JOINED).must(300)
    run = tmp_path / "run"
    started = train(nodes, cohort, run, *TWO, **JOINED)
    reach_the_middle(run, 20, started)
    nodes.kill_raylet(1)
    since = time.monotonic()
    epoch = cut_at(run, since)
    nodes.join(1, 1)
    record_recovery(record_property, "a node", run, epoch, back_after(run, epoch, since))
    started.must(300)
    assert_same_fit(run, tmp_path / "whole")


def test_a_node_that_says_that_it_leaves_costs_no_epoch_and_no_failure(
    nodes: Network, cohort: Cohort, tmp_path: Path, record_property: Any
) -> None:
    epochs = 600  # more than pass before the node is gone
    seldom = ("--fit.checkpoint-every", epochs)
    train(nodes, cohort, tmp_path / "whole", *TWO, *seldom, epochs=epochs, **JOINED).must(300)
    run = tmp_path / "run"
    # No failure is allowed: leaving is none.
    flags = (*TWO, *seldom, "--scale.max-failures", 0)
    started = train(nodes, cohort, run, *flags, epochs=epochs, **JOINED)
    wait_until(lambda: len(records(run)) >= 5 or started.process.poll() is not None, 240, "epochs")
    assert last(run) == 0
    nodes.drain(1, 15)
    gone = time.monotonic() + 15  # a node that is gone before it was to be has failed
    wait_until(lambda: last(run) > 0, 15, "a checkpoint before the node leaves")
    time.sleep(max(0.0, gone - time.monotonic()))
    nodes.take_away(1)
    since = time.monotonic()
    epoch = cut_at(run, since, epochs)
    nodes.join(1, 1)
    record_recovery(record_property, "a leaving node", run, epoch, back_after(run, epoch, since))
    started.must(300)
    assert_same_fit(run, tmp_path / "whole", epochs)
    assert "is about to leave" in started.log.read_text()


def test_a_group_shrinks_to_the_nodes_that_are_left(
    nodes: Network, cohort: Cohort, tmp_path: Path, record_property: Any
) -> None:
    run = tmp_path / "run"
    started = train(nodes, cohort, run, *TWO, "--scale.min-workers", 1, **JOINED)
    reach_the_middle(run, 20, started)
    nodes.kill_raylet(1)
    since = time.monotonic()
    epoch = cut_at(run, since)
    record_recovery(record_property, "a node, for good", run, epoch, back_after(run, epoch, since))
    started.must(300)
    assert [r["epoch"] for r in records(run)] == list(range(1, EPOCHS + 1))
