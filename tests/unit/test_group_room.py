"""Whether a group of workers fits on a cluster, against all placements there are."""

import itertools

import pytest

from uadray.data.settings import READ_CPUS
from uadray.errors import ConfigError
from uadray.train.group import can_run
from uadray.train.settings import ScaleConfig

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
    ],
)
def test_settings_are_checked(options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ScaleConfig(**options)  # type: ignore[arg-type]
