"""Whether a group of workers fits on a cluster, against all placements there are."""

import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from uadray import cluster, device
from uadray.data.settings import READ_CPUS
from uadray.each import actors_at_a_time
from uadray.errors import ConfigError
from uadray.train import group
from uadray.train.group import _check_room, can_run, share_note
from uadray.train.job import _is_placed
from uadray.train.settings import ScaleConfig
from uadray.tune.settings import SweepConfig
from uadray.tune.sweep import at_a_time

CASES = [
    (nodes, workers, cpus)
    for count in (1, 2, 3)
    for nodes in itertools.combinations_with_replacement((0.5, 1.0, 1.5, 2.0, 4.0), count)
    for workers in (1, 2, 3, 5)
    for cpus in (0.4, 0.5, 0.75, 1.0, 1.3)
]


def placements(nodes: tuple[float, ...], most: int, cpus: float) -> list[tuple[int, ...]]:
    """All ways to put at most this many workers on nodes that hold them."""
    room = [range(int(node / cpus + 1e-9) + 1) for node in nodes]
    return [counts for counts in itertools.product(*room) if sum(counts) <= most]


def can_read(nodes: tuple[float, ...], counts: tuple[int, ...], cpus: float) -> bool:
    free = [node - count * cpus for node, count in zip(nodes, counts, strict=True)]
    return max(free) >= READ_CPUS - 1e-9


def test_a_group_that_can_run_never_waits() -> None:
    answers = []
    for nodes, workers, cpus in CASES:
        ways = placements(nodes, workers, cpus)
        whole = [counts for counts in ways if sum(counts) == workers]
        safe = bool(whole) and all(can_read(nodes, counts, cpus) for counts in ways)
        assert can_run(nodes, workers, cpus) == safe, (nodes, workers, cpus)
        answers.append(safe)
    assert 0.2 < sum(answers) / len(answers) < 0.8


@pytest.mark.parametrize(
    ("nodes", "workers", "cpus", "expected"),
    [
        ((2.0,), 2, 0.75, True),  # the default on two cores
        ((1.0, 1.0), 2, 0.49, True),  # 0.98 CPUs held, and still a read task runs
        ((1.0,), 2, 0.5, False),  # both placed, and no read task ever
        ((1.5, 1.5), 2, 1.3, False),  # 0.4 CPUs free, and on no node 0.25
        ((8.0, 8.0), 8, 1.0, True),
        ((8.0,), 8, 1.0, False),
        ((0.5, 0.5, 0.5), 1, 0.75, False),  # room in all, and in none
    ],
)
def test_cases_that_hang_without_an_error(
    nodes: tuple[float, ...], workers: int, cpus: float, expected: bool
) -> None:
    assert can_run(nodes, workers, cpus) is expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_workers": 0}, "num_workers must be >= 1"),
        ({"cpus_per_worker": 0}, "cpus_per_worker > 0"),
        ({"num_workers": 2, "min_workers": 3}, r"min_workers must be in \[0, num_workers\], was 3"),
        ({"micro_batch": -1}, "scale.wait_minutes must be >= 0"),
        ({"timeout_minutes": 0}, "timeout_minutes must be > 0"),
        ({"use_gpu": True, "device": "cpu"}, "contradicts"),
    ],
)
def test_settings_are_checked(options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ScaleConfig(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("batch", "workers", "words"),
    [(32, 1, ""), (32, 2, ""), (32, 8, "leaves 4 to each of 8 GPUs"), (256, 8, ""), (8, 1, "")],
)
def test_gpus_that_are_not_kept_busy_are_named(batch: int, workers: int, words: str) -> None:
    note = share_note(batch, workers)
    assert words in note
    assert bool(note) == bool(words)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, False),
        ({"use_gpu": True}, True),
        ({"device": "cuda"}, True),
        ({"device": "cpu"}, False),
    ],
)
def test_whether_workers_of_a_group_take_gpus(options: dict[str, Any], expected: bool) -> None:
    assert ScaleConfig(num_workers=2, **options).takes_gpus is expected


class TestPlacedByRay:
    """A single worker with a GPU of a cluster: Ray says on which node."""

    @pytest.fixture(autouse=True)
    def joined(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("RAY_JOB_CONFIG_JSON_ENV_VAR", "CUDA_VISIBLE_DEVICES"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
        monkeypatch.setattr(device, "assigned_gpus", lambda: None)
        self.nodes(monkeypatch, (0.0, 0.0), (8.0, 1.0))

    def nodes(self, monkeypatch: pytest.MonkeyPatch, *nodes: tuple[float, float]) -> None:
        cpus, gpus = (list(kind) for kind in zip(*nodes, strict=True))
        monkeypatch.setattr(cluster, "room", lambda: (cpus, gpus))

    @pytest.mark.parametrize(
        ("wanted", "expected"), [("auto", True), ("cuda", True), ("cpu", False)]
    )
    def test_where_the_cluster_has_one(self, wanted: Any, expected: bool) -> None:
        assert _is_placed(ScaleConfig(device=wanted)) is expected

    def test_where_it_has_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.nodes(monkeypatch, (8.0, 0.0))
        assert not _is_placed(ScaleConfig())
        # It is refused, or waited for, as a group's would be.
        assert _is_placed(ScaleConfig(device="cuda"))
        with pytest.raises(ConfigError, match="1 workers need as many GPUs; the cluster has 0"):
            _check_room(ScaleConfig(device="cuda"))

    def test_gpus_on_nodes_without_room_are_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.nodes(monkeypatch, (8.0, 0.0), (0.5, 2.0))
        assert not _is_placed(ScaleConfig())
        with pytest.raises(ConfigError, match="has 2, on nodes with room for 0 workers"):
            _check_room(ScaleConfig(num_workers=2, use_gpu=True))

    def test_not_in_a_worker_such_as_a_trial(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(device, "assigned_gpus", list)
        assert not _is_placed(ScaleConfig(device="cuda"))

    def test_not_where_the_job_was_sent_with_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
        assert not _is_placed(ScaleConfig(device="cuda"))

    @pytest.mark.parametrize("address", ["", "local"])
    def test_not_by_a_ray_of_our_own(self, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert not _is_placed(ScaleConfig(device="cuda"))


class TestHowAGroupIsStarted:
    @pytest.fixture
    def started(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        """What Ray Train is given."""
        given: dict[str, Any] = {}

        class Trainer:
            def __init__(self, worker: Any, **options: Any) -> None:
                given.update(options)

            def fit(self) -> SimpleNamespace:
                return SimpleNamespace(return_value="done")

        monkeypatch.setattr(group, "TorchTrainer", Trainer)
        monkeypatch.setattr(group, "_check_room", lambda scale: None)
        return given

    @pytest.mark.parametrize("source", [SimpleNamespace(), group.Desk(None)])
    def test_workers_have_their_environment_from_the_start(
        self, started: dict[str, Any], source: Any
    ) -> None:
        """Of one fit, and of the fits that a kept group does one after another."""
        run: Any = SimpleNamespace(url="/runs/a", experiment=SimpleNamespace(name="3D-None"))
        scale = ScaleConfig(num_workers=2, device="cuda", timeout_minutes=0.51)
        assert group._start(run, scale, source) == "done"
        environment = started["run_config"].worker_runtime_env["env_vars"]
        assert environment["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert started["scaling_config"].use_gpu
        assert started["torch_config"].timeout_s == 31


NODES = [(64.0, 8.0)]


@pytest.mark.parametrize(
    ("nodes", "options", "expected"),
    [
        ([(4.0, 0.0)], {}, 4),
        (NODES, {"gpus_per_trial": 1}, 8),
        (NODES, {"gpus_per_trial": 0.5}, 16),
        (NODES, {"gpus_per_trial": 0.4}, 16),  # 3.2 GPUs' worth would be 20
        (NODES, {"device": "cuda"}, 8),
        (NODES, {"gpus_per_trial": 2, "workers_per_trial": 2}, 4),
        (NODES, {"device": "cuda", "workers_per_trial": 4}, 2),
        ([(64.0, 0.0), (2.0, 4.0)], {"gpus_per_trial": 1}, 2),  # CPUs are beside its GPU
    ],
)
def test_trials_at_a_time(nodes: Any, options: dict[str, Any], expected: int) -> None:
    assert at_a_time(nodes, SweepConfig(**options)) == expected


@pytest.mark.parametrize(
    ("nodes", "options"),
    [
        ([(0.5, 0.0)], {}),
        ([(64.0, 0.0)], {"device": "cuda"}),
        ([(64.0, 0.0), (0.5, 1.0)], {"gpus_per_trial": 1}),
        ([(64.0, 2.0)], {"device": "cuda", "workers_per_trial": 4}),
    ],
)
def test_a_trial_without_room_is_refused(nodes: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="a trial takes"):
        at_a_time(nodes, SweepConfig(**options))


@pytest.mark.parametrize(
    "options",
    [
        {"gpus_per_trial": 1, "workers_per_trial": 2},  # each worker takes a whole one
        {"gpus_per_trial": 0.5, "workers_per_trial": 2},
        {"gpus_per_trial": 2},
        {"gpus_per_trial": 1, "device": "cpu"},
    ],
)
def test_gpus_of_a_trial_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="gpus_per_trial"):
        SweepConfig(**options)


@pytest.mark.parametrize("gpus", [1.0, 0.5])
def test_predicting_actors_find_gpus(gpus: float) -> None:
    assert actors_at_a_time([(16.0, 0.0), (16.0, 1.0)], gpus) == 1 / gpus
    with pytest.raises(ConfigError, match="no node has them"):
        actors_at_a_time([(16.0, 0.0)], gpus)
