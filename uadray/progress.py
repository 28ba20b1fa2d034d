"""How far a job is: one moving line on a terminal, a plain line now and then in a log."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console

PLAIN_EVERY_S = 30.0
"""Seconds between lines in a log."""


class Progress:
    """Counts items done and says how fast it goes and how long it will take.

    Use it as a context; `advance` and `reach` are called from one thread. A log gets its first
    line with the first of these calls, so that a job that finds all done says nothing.
    """

    def __init__(self, *, total: int, what: str, console: Console | None = None) -> None:
        """Start counting.

        Args:
            total: Items in all.
            what: Their name, in the plural.
            console: Where to write; standard error by default.
        """
        self._total, self._what = total, what
        self._console = console or Console(stderr=True, highlight=False)
        self._done, self._before, self._shown = 0, 0, float("-inf")
        self._started = self._since = time.monotonic()
        self._status = self._console.status("") if self._console.is_terminal else None

    def __enter__(self) -> Self:
        if self._status:
            self._status.start()
            self._show("")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._status:
            self._status.stop()

    def advance(self, count: int, note: str = "") -> None:
        """Count items as done; `note` follows the line that says so."""
        self._done += count
        self._show(note)

    def set_done(self, done: int, note: str = "") -> None:
        """Say that item number `done` is done; the speed counts from the first such call."""
        if not self._done:
            # Before it lies the start, and what an earlier process did.
            self._before, self._since = done, time.monotonic()
        self._done = done
        self._show(note)

    def _show(self, note: str) -> None:
        now = time.monotonic()
        finished = self._done >= self._total
        line = f"{self._done} of {self._total} {self._what}"
        seconds, counted = now - self._since, self._done - self._before
        if finished:
            line += f" in {clock(now - self._started)}"
        elif counted and seconds:
            left = seconds / counted * (self._total - self._done)
            line += f", {_rate(counted / seconds)}, about {clock(left)} left"
        line += f", {note}" if note else ""
        if self._status:
            self._status.update(line)
        elif now - self._shown >= PLAIN_EVERY_S or finished:
            self._console.print(line, soft_wrap=True, markup=False)
            self._shown = now


def _rate(per_second: float) -> str:
    return f"{per_second:.1f} per second" if per_second >= 1 else f"{1 / per_second:.1f} s each"


def clock(seconds: float) -> str:
    """`m:ss` or `h:mm:ss`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
