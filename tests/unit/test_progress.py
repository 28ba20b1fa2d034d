"""Lines of progress in a log and on a terminal."""

import io
import re

import pytest
from rich.console import Console

from uadray import progress
from uadray.progress import Progress


class Log:
    """A log, and a clock that only the test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, terminal: bool = False) -> None:
        self.now, self._stream = 100.0, io.StringIO()
        self.console = Console(file=self._stream, force_terminal=terminal, width=80)
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)

    @property
    def lines(self) -> list[str]:
        return self._stream.getvalue().splitlines()


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    return Log(monkeypatch)


def test_a_log_gets_the_first_and_the_last_line_and_few_between(log: Log) -> None:
    with Progress(total=1000, what="scans", console=log.console) as bar:
        for _ in range(1000):
            log.now += 0.1
            bar.advance(1)
    assert log.lines[0] == "1 of 1000 scans, 10.0 per second, about 1:40 left"
    assert len(log.lines) == 5
    assert log.lines[-1] == "1000 of 1000 scans in 1:40"


def test_a_job_that_finds_all_done_says_nothing(log: Log) -> None:
    with Progress(total=9, what="scans", console=log.console):
        pass
    assert log.lines == []


def test_slow_items_and_long_waits(log: Log) -> None:
    with Progress(total=100, what="epochs", console=log.console) as bar:
        log.now += 90
        bar.advance(1, "train L1 [0.1]")
    expected = "1 of 100 epochs, 90.0 s each, about 2:28:30 left, train L1 [0.1]"
    assert log.lines == [expected]


def test_epochs_of_an_earlier_process_do_not_count_for_the_speed(log: Log) -> None:
    with Progress(total=100, what="epochs", console=log.console) as bar:
        for epoch, seconds in ((51, 40), (52, 35), (53, 35), (100, 35)):
            log.now += seconds
            bar.set_done(epoch)
    assert log.lines == [
        "51 of 100 epochs",
        "52 of 100 epochs, 35.0 s each, about 28:00 left",
        "53 of 100 epochs, 35.0 s each, about 27:25 left",
        "100 of 100 epochs in 2:25",
    ]


def test_a_long_note_stays_on_one_line(log: Log) -> None:
    with Progress(total=2, what="scans", console=log.console) as bar:
        bar.advance(2, "word " * 40)
    assert len(log.lines) == 1


def test_a_terminal_shows_one_line_that_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(monkeypatch, terminal=True)
    with Progress(total=3, what="scans", console=log.console) as bar:
        bar.advance(3)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", "\n".join(log.lines))
    assert "3 of 3 scans in 0:00" in text
