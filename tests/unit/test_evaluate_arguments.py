"""The arguments of jobs/evaluate.py: a protocol gives defaults, nothing to do is refused."""

from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from uadray.errors import ConfigError
from uadray.evaluation.job import actors_for, gpu_actors_for
from uadray.evaluation.protocols import PROTOCOLS, EvaluateConfig
from uadray.metrics.settings import ComponentConfig

JOB = Path(__file__).resolve().parents[2] / "jobs" / "evaluate.py"


@pytest.fixture(scope="module")
def job() -> ModuleType:
    return import_module("uadray.jobs.evaluate")


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_gives_the_defaults(job, name):
    for order in (["--protocol", name, "--cohort", "a.zarr"], ["--cohort", "a.zarr"]):
        rest = [] if "--protocol" in order else [f"--protocol={name}"]
        read = job.parse(["runs/x", *order, *rest])
        assert read.config == EvaluateConfig.of(name)
        assert read.config.changes() == {}


def test_without_one_it_is_bengs(job):
    read = job.parse(["r1", "r2", "--cohort", "a.zarr", "b.zarr"])
    assert read.config == EvaluateConfig()
    assert (read.runs, read.cohort, read.healthy) == (("r1", "r2"), ("a.zarr", "b.zarr"), None)


def test_a_flag_changes_the_protocol_and_is_named(job):
    args = ["r", "--cohort", "a", "--protocol", "meissen2021-I", "--components.max-size", "7"]
    config = job.parse(
        [*args, "--threshold-rule", "healthy_fpr_5", "--residual", "absolute"]
    ).config
    assert config.components == ComponentConfig(max_size=7, fit_after=False)
    assert set(config.changes()) == {"components", "threshold_rule", "residual"}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--cohort", "a.zarr"], "name at least one run"),
        (["runs/x", "--cohort"], "name at least one cohort"),
        (["runs/x"], "--cohort"),
        (["runs/x", "--cohort", "a", "--protocol", "ours"], "meissen2021-II"),
        (["runs/x", "--cohort", "a", "--components.connectivity", "8"], "26"),
        (["runs/x", "--cohort", "a", "--components.max-size", "-1"], "components.max_size"),
        (["runs/x", "--cohort", "a", "--postprocess.median-size", "4"], "median_size must be odd"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(job, args, message, capsys):
    with pytest.raises(SystemExit) as stop:
        job.parse(args)
    assert stop.value.code == 2
    output = capsys.readouterr()
    assert message in output.out + output.err


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([2.0], (2, 0.75)),
        ([1.0, 1.0, 1.0, 1.0], (4, 0.75)),
        ([0.0, 16.0], (21, 0.75)),
        ([0.5], (1, 0.5)),
        ([0.0], (1, 0.75)),
    ],
    ids=["a laptop", "four small nodes", "a head without work", "little", "nodes to come"],
)
def test_scoring_actors_find_room_on_nodes(nodes, expected):
    assert actors_for(nodes) == expected


@pytest.mark.parametrize(
    ("nodes", "gpus", "expected"),
    [
        ([(64.0, 8.0)], 1.0, 8),  # not 85, as its CPUs would hold
        ([(64.0, 1.0)], 0.25, 4),
        ([(64.0, 2.0)], 0.4, 4),  # two parts of each: none has a share of both
        ([(0.0, 0.0), (8.0, 1.0), (8.0, 1.0)], 1.0, 2),
        ([(3.0, 8.0)], 1.0, 2),  # the CPUs of a node bound them, too
    ],
)
def test_scoring_actors_find_gpus(nodes, gpus, expected):
    assert gpu_actors_for(nodes, gpus) == expected


@pytest.mark.parametrize("nodes", [[(64.0, 0.0)], [(1.0, 8.0)], [(64.0, 0.0), (1.0, 1.0)], []])
def test_actors_that_would_wait_for_ever_are_refused(nodes):
    with pytest.raises(ConfigError, match="no node has them beside CPUs"):
        gpu_actors_for(nodes, 1.0)


def test_a_device_of_cuda_gives_each_actor_a_gpu(job):
    args = ["runs/x", "--cohort", "a"]
    assert job.parse(args).config.gpus == 0
    assert job.parse([*args, "--device", "cuda"]).config.gpus == 1
    assert job.parse([*args, "--gpus-per-actor", "0.5"]).config.gpus == 0.5
    assert job.parse([*args, "--device", "cpu"]).config.gpus == 0
