"""What a sweep shows while it runs: a live table on a terminal, a line a trial in a log."""

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from ray.tune import Callback
from rich.console import Console
from rich.live import Live
from rich.table import Table

from uadray.config import Experiment
from uadray.progress import clock
from uadray.tune.space import flat

PLAIN_EVERY_S = 60.0
"""Seconds between lines in a log while no trial ends."""


class Watch(Callback):
    """Follows trials through Tune's callbacks; use it as a context around the sweep.

    Attributes:
        experiments: All trials seen, in the order of their start.
        ended: Trials that left their actor, with the error that ended them or an empty string.
    """

    def __init__(
        self,
        *,
        total: int,
        varied: Sequence[str] = (),
        console: Console | None = None,
    ) -> None:
        """Begin with nothing done.

        Args:
            total: Number of trials.
            varied: Settings that tell trials apart, as paths into the experiment.
            console: Where to write; standard error by default.
        """
        self._total = total
        self._varied = [path for path in varied if path != "experiment"]
        self._console = console or Console(stderr=True, highlight=False)
        self._live: Live | None = None
        self._started = self._shown = time.monotonic()
        self._running: dict[str, tuple[Experiment, float, dict[str, Any]]] = {}
        self._best: tuple[float, Experiment] | None = None
        self._read: Callable[[dict[str, Any]], Experiment] | None = None
        self.experiments: list[Experiment] = []
        self.ended: dict[Experiment, str] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Tune keeps a copy of its callbacks for its own restore, which is not used."""
        return _copy, ()

    def reads(self, read: Callable[[dict[str, Any]], Experiment]) -> None:
        """Say how the experiment is read from a trial's configuration."""
        self._read = read

    def __enter__(self) -> Self:
        self._started = self._shown = time.monotonic()
        if self._console.is_terminal:
            self._live = Live(self._table(), console=self._console, refresh_per_second=2)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._live:
            self._live.update(self._table())
            self._live.stop()

    def label(self, experiment: Experiment) -> str:
        """A trial's name with the settings that tell it from others, such as `3D-None seed=1`."""
        settings = flat(experiment)
        parts = [f"{p.split('.')[1]}={settings[p]}" for p in self._varied if p in settings]
        return " ".join([experiment.name, *parts])

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Tune starts a trial, or starts it again."""
        assert self._read is not None
        experiment = self._read(trial.config)
        if experiment not in self.experiments:
            self.experiments.append(experiment)
        self.ended.pop(experiment, None)
        self._running[trial.trial_id] = (experiment, time.monotonic(), {})
        self._show()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        """A trial has told an epoch, or why it cannot go on."""
        if trial.trial_id not in self._running:
            return
        if "error" in result:
            self._end(trial, str(result["error"]))
        if "validation/reconstruction" not in result or "error" in result:
            return
        experiment, since, _ = self._running[trial.trial_id]
        self._running[trial.trial_id] = (experiment, since, result)
        value = result["validation/reconstruction"]
        if self._best is None or value < self._best[0]:
            self._best = (value, experiment)
        if time.monotonic() - self._shown >= PLAIN_EVERY_S:
            self._line(self._state())
        self._show()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial has ended well, or was stopped."""
        self._end(trial, "")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial has failed; Tune may start it again."""
        told = str(trial.get_error() or "its process died").strip().splitlines()
        self._end(trial, told[-1] if told else "its process died")

    def _end(self, trial: Any, error: str) -> None:
        if trial.trial_id not in self._running:
            return
        experiment, since, result = self._running.pop(trial.trial_id)
        self.ended[experiment] = error
        took = clock(time.monotonic() - since)
        if error:
            line = f"{self.label(experiment)} FAILED after {took}: {error}"
        else:
            told = _figure(result)
            line = f"{self.label(experiment)} ended in {took}{told}"
        self._line(f"{len(self.ended)} of {self._total} trials: {line}{self._left()}")
        self._show()

    def _state(self) -> str:
        running = ", ".join(
            f"{self.label(experiment)}{_figure(result)}"
            for experiment, _, result in self._running.values()
        )
        return f"{len(self.ended)} of {self._total} trials{self._left()}; running: {running}"

    def _left(self) -> str:
        done, left = len(self.ended), self._total - len(self.ended)
        if not done or left <= 0:
            return ""
        return f"; about {clock((time.monotonic() - self._started) / done * left)} left"

    def _line(self, text: str) -> None:
        self._shown = time.monotonic()
        if not self._live:
            self._console.print(text, soft_wrap=True, markup=False)

    def _show(self) -> None:
        if self._live:
            self._live.update(self._table())

    def _table(self) -> Table:
        failed = sum(bool(error) for error in self.ended.values())
        title = f"{len(self.ended)} of {self._total} trials, {failed} failed{self._left()}"
        caption = None
        if self._best:
            caption = f"best healthy L1 {self._best[0]:.4f}: {self.label(self._best[1])}"
        table = Table(title=title, caption=caption)
        for head, side in (("running", "left"), ("epoch", "right"), ("healthy L1", "right")):
            table.add_column(head, justify=side)  # type: ignore[arg-type]
        for experiment, _, result in self._running.values():
            value = result.get("validation/reconstruction")
            epoch = f"{result.get('epoch', 0)}/{experiment.fit.epochs}"
            table.add_row(self.label(experiment), epoch, "" if value is None else f"{value:.4f}")
        return table


def _copy() -> Watch:
    return Watch(total=0)


def _figure(result: dict[str, Any]) -> str:
    value = result.get("validation/reconstruction")
    return "" if value is None else f", epoch {result['epoch']}, healthy L1 {value:.4f}"
