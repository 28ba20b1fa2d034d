"""How far a job is: one moving line on a terminal, a plain line now and then in a log."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console

PLAIN_EVERY_S = 30.0
"""Seconds between lines in a log."""


class Progress:
    """Counts items done and says how fast it goes and how long it will take.

    Use it as a context; `advance` is called from one thread.
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
        self._done, self._shown = 0, float("-inf")
        self._started = time.monotonic()
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
        """Count items as done; `note` stands behind the line that says so."""
        self._done += count
        self._show(note)

    def _show(self, note: str) -> None:
        now = time.monotonic()
        line = f"{self._done} of {self._total} {self._what}"
        if self._done:
            seconds = now - self._started
            left = seconds / self._done * (self._total - self._done)
            line += f", {self._done / seconds:.2f} per second, about {_clock(left)} left"
        line += f", {note}" if note else ""
        if self._status:
            self._status.update(line)
        elif now - self._shown >= PLAIN_EVERY_S or self._done >= self._total:
            self._console.print(line, soft_wrap=True)
            self._shown = now


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
