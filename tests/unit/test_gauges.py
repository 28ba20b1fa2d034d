"""Gauges without a Ray: what passes through them stays as it is, and costs next to nothing."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

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


class Clock:
    """Seconds go by where a test says so, however busy the machine is."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(gauges, "time", made)
    return made


def batches(clock: Clock, sizes: tuple[int, ...] = (4, 4, 3)) -> Callable[[int], Iterator[Any]]:
    """An epoch of batches, for each of which 0.3 s are waited."""

    def epoch(number: int) -> Iterator[list[int]]:
        for size in sizes:
            clock.now += 0.3
            yield [number] * size

    return epoch


def test_batches_pass_unchanged_and_a_short_epoch_is_measured_once(
    settings: Made, clock: Clock
) -> None:
    passed = []
    with fit_gauges("s3://b/runs/one", experiment="3D-None", cohort="h", rank=1) as fit:
        for batch in fit.counted(batches(clock), len)(7):
            passed.append(batch)
            clock.now += 0.01
    assert passed == list(batches(clock)(7))
    tags = {"run": "s3://b/runs/one", "trial": "one", "experiment": "3D-None", "cohort": "h"}
    tags["worker"] = "1"
    assert settings == [
        ("uadray_samples_per_second", pytest.approx(11 / 0.93), tags),
        ("uadray_data_wait_share", pytest.approx(0.9 / 0.93), tags),
    ]


def test_a_long_epoch_is_measured_once_a_second(settings: Made, clock: Clock) -> None:
    with fit_gauges("one", experiment="e", cohort="h", rank=0) as fit:
        for _ in fit.counted(batches(clock, (2,) * 10), len)(0):
            pass
    rates = [value for name, value, _ in settings if name == "uadray_samples_per_second"]
    # After 1.2 s, 2.4 s and 3 s.
    assert rates == pytest.approx([2 / 0.3] * 3)


def test_a_value_is_set_again_until_what_it_is_of_has_ended(
    settings: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray exports for 20 s what was set once."""
    monkeypatch.setattr(gauges, "REFRESH_S", 0.01)
    threads = set(threading.enumerate())

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
    assert not {t for t in threading.enumerate() if t.name == "uadray-gauges"} - threads


def test_every_gauge_is_set_with_its_tags(settings: Made, clock: Clock) -> None:
    with fit_gauges("one", experiment="e", cohort="h", rank=0) as fit:
        fit.start(3)
        list(fit.counted(batches(clock), len)(0))
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
        start = time.process_time()
        for _ in fit.counted(lambda number: range(many), lambda batch: 1)(0):
            pass
        assert (time.process_time() - start) / many < 20e-6
