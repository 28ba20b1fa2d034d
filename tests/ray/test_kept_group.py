"""A group of workers that fits one run after another."""

import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from safetensors.torch import load_file
from tiny_cohorts import write_healthy

from tests.waiting import wait_until
from uadray.config import FitConfig
from uadray.runs.folder import Run
from uadray.train.job import fit
from uadray.train.kept_group import Desk, KeptGroup
from uadray.train.settings import ScaleConfig
from uadray.tune.space import Space
from uadray.tune.sweep import SweepConfig, sweep

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("ray_session"),
    pytest.mark.timeout(300),
]


class Group:
    """Workers as threads, which an error ends together and a start begins again."""

    def __init__(self, tries: int = 1) -> None:
        self.tries, self.done = tries, list[tuple[int, Any]]()

    def __call__(self, desk: Desk) -> None:
        errors: list[Exception] = []
        for _ in range(self.tries):
            errors.clear()
            threads = [
                threading.Thread(target=self._work, args=(desk, rank, errors)) for rank in (0, 1)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            if not errors:
                return
        raise errors[0]

    def _work(self, desk: Desk, rank: int, errors: list[Exception]) -> None:
        try:
            for task, finish in desk.tasks(rank):
                again = (rank, task) in self.done
                self.done.append((rank, task))
                if task == "fails" and not again:
                    raise OSError(f"of {rank}")
                if rank == 0:
                    finish(f"{task} is done")
        except OSError as error:
            errors.append(error)


def test_each_worker_has_each_task_once_and_the_first_one_gives_the_outcome() -> None:
    workers = Group()
    group: KeptGroup[str] = KeptGroup(workers)
    assert [group.do(task) for task in "abc"] == [f"{task} is done" for task in "abc"]
    assert group.is_sound
    group.end()
    assert sorted(workers.done) == [(rank, task) for rank in (0, 1) for task in "abc"]


def test_a_group_that_starts_again_takes_up_its_open_task_alone() -> None:
    workers = Group(tries=2)
    group: KeptGroup[str] = KeptGroup(workers)
    group.do("a")
    assert group.do("fails") == "fails is done"
    assert workers.done.count((0, "a")) == 1
    assert workers.done.count((0, "fails")) == 2
    # It has a try less than a new one.
    assert not group.is_sound
    group.end()


def test_what_ends_a_group_is_raised_where_its_task_is_awaited() -> None:
    group: KeptGroup[str] = KeptGroup(Group())
    assert group.do("a") == "a is done"
    with pytest.raises(OSError, match="of "):
        group.do("fails")
    assert not group.is_sound


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_trials_share_a_group_and_a_killed_worker_costs_none_of_them(tmp_path: Path) -> None:
    cohort = write_healthy(tmp_path)
    # As many epochs as it takes for one to be met in the middle.
    settings = FitConfig(epochs=16, batch_size=18, precision="float32")
    space = Space(
        experiments=("3D-None",),
        learning_rate=(1e-3, 2e-3, 3e-3, 4e-3),
        baselines=False,
        fit=settings,
    )
    config = SweepConfig(workers_per_trial=2, cpus_per_trial=2.0, max_failures=0)
    killed, groups = list[int](), list[set[int]]()

    def workers() -> set[int]:
        mine = psutil.Process().children(recursive=True)
        return {p.pid for p in mine if "RayTrainWorker" in " ".join(_words(p))}

    def begun(number: int) -> list[Run]:
        folders = [str(p) for p in (tmp_path / "out" / "runs").glob("*")]
        runs = [Run.open(folder) for folder in folders if Run.is_begun(folder)]
        return [run for run in runs if run.metrics()] if len(runs) == number else []

    def strike() -> None:
        for number in (1, 2):
            wait_until(lambda number=number: len(begun(number)) == number, 300)  # type: ignore[misc]
            groups.append(workers())
        killed.append(min(groups[1]))
        psutil.Process(killed[0]).kill()

    thread = threading.Thread(target=strike)
    thread.start()
    outcomes = sweep(space, cohort, str(tmp_path / "out"), config=config)
    thread.join()
    assert [o.status for o in outcomes] == ["finished"] * 4
    assert len(groups[0]) == 2
    assert groups[0] == groups[1]
    assert killed
    # Of groups whose trial's process has gone, nothing stays reserved.
    wait_until(lambda: ray.available_resources().get("CPU", 0) == 4, 60)
    scale = ScaleConfig(num_workers=2, cpus_per_worker=1.75)
    for number, outcome in list(enumerate(outcomes))[1:3]:
        kept = Run.open(outcome.url)
        alone = fit(kept.experiment, cohort, str(tmp_path / f"alone-{number}"), scale=scale)
        ours, theirs = (
            load_file(Path(run.url) / "checkpoint" / "epoch-00016" / "model.safetensors")
            for run in (kept, alone)
        )
        assert ours.keys() == theirs.keys()
        assert all((ours[name] == theirs[name]).all() for name in ours)


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
