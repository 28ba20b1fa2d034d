"""Gauges without a Ray: what passes through them stays as it is, and costs next to nothing."""

import threading
import time
from collections.abc import Iterator

import pytest

from uadray import gauges
from uadray.gauges import GAUGES, Exported, fit_gauges, scoring_gauges, set_gauge

Made = list[tuple[str, float, dict[str, str]]]


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Made:
    """What would be set."""
    made: Made = []
    monkeypatch.setattr(
        gauges, "set_gauge", lambda name, value, tags: made.append((name, value, dict(tags)))
    )
    return made


def batches(number: int) -> Iterator[list[int]]:
    for size in (4, 4, 3):
        time.sleep(0.01)
        yield [number] * size


def test_batches_pass_unchanged_and_their_rate_is_set_once_an_epoch(settings: Made) -> None:
    with fit_gauges("s3://b/runs/one", experiment="3D-None", cohort="h", rank=1) as fit:
        passed = list(fit.counted(batches, len)(7))
    assert passed == list(batches(7))
    tags = {"run": "s3://b/runs/one", "trial": "one", "experiment": "3D-None", "cohort": "h"}
    rate, waited = settings
    assert rate[0] == "uadray_samples_per_second"
    assert 11 / 1 < rate[1] < 11 / 0.03
    assert rate[2] == tags | {"worker": "1"}
    assert waited[0] == "uadray_data_wait_share"
    assert 0.5 < waited[1] <= 1


def test_a_long_epoch_is_seen_before_it_ends(
    settings: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gauges, "EVERY_S", 0.005)
    with fit_gauges("one", experiment="e", cohort="h", rank=0) as fit:
        for _ in fit.counted(batches, len)(0):
            pass
        assert len(settings) == 2 * 4


def test_a_value_is_set_again_until_what_it_is_of_has_ended(
    settings: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray exports for 20 s what was set once."""
    monkeypatch.setattr(gauges, "REFRESH_S", 0.01)
    threads = threading.active_count()

    def interrupted() -> None:
        with fit_gauges("one", experiment="e", cohort="h", rank=0) as fit:
            fit.start(7)
            fit.start(8)
            deadline = time.monotonic() + 60
            while len(settings) < 20:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [value for _, value, _ in settings[2:]] == [8] * (len(settings) - 2)
    set_before = len(settings)
    time.sleep(0.1)
    assert len(settings) == set_before
    assert threading.active_count() == threads


def test_every_gauge_is_set_with_its_tags(settings: Made) -> None:
    with fit_gauges("one", experiment="e", cohort="h", rank=0) as fit:
        fit.start(3)
        list(fit.counted(batches, len)(0))
        fit.record({"epoch": 1, "seconds": 2.5, "train/loss": 0.5, "seconds/data": 0.1})
    counted = list[int]()
    with scoring_gauges(counted.append, "stroke", 5) as scored:
        scored(2)
        scored(3)
    assert counted == [2, 3]
    with Exported() as exported:
        gauges.set_trials(exported, "sweep", running=1, waiting=2)
    assert {name for name, _, _ in settings} == set(GAUGES)
    for name, _, tags in settings:
        assert set(tags) == set(GAUGES[name].tags)
    values = [value for name, value, _ in settings if name == "uadray_volumes_scored"]
    assert values == [2, 5]


def test_without_ray_nothing_happens() -> None:
    set_gauge("uadray_volumes_scored", 1, {"cohort": "stroke"})


def test_a_step_costs_microseconds() -> None:
    many = 100_000
    with fit_gauges("one", experiment="e", cohort="h", rank=0) as fit:
        start = time.perf_counter()
        for _ in fit.counted(lambda number: range(many), lambda batch: 1)(0):
            pass
        assert (time.perf_counter() - start) / many < 20e-6
