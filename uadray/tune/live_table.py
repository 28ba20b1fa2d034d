"""What a sweep shows while it runs: a live table on a terminal, a line a trial in a log."""

import re
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from ray.tune import Callback
from rich.console import Console
from rich.live import Live
from rich.table import Table

from uadray.gauges import Exported, set_trials
from uadray.progress import clock
from uadray.train.kept_group import free
from uadray.tune.settings import RECONSTRUCTION, SweepConfig
from uadray.tune.trial import RESERVED
from uadray.tune.trials import Task
from uadray.tune.vary import settings_of

PLAIN_EVERY_S = 60.0
"""Seconds between lines in a log while no trial ends."""


class Watch(Callback):
    """Follows trials through Tune's callbacks; use it as a context around the sweep.

    Attributes:
        tasks: All trials seen, in the order of their start.
        ended: Trials that left their actor, with the error that ended them or an empty string.
        on_point: Called with the configuration of each trial that starts.
    """

    def __init__(
        self,
        *,
        total: int,
        varied: Sequence[str] = (),
        config: SweepConfig | None = None,
        what: str = "trials",
        sweep: str = "",
        console: Console | None = None,
    ) -> None:
        """Begin with nothing done.

        Args:
            total: Number of trials.
            varied: Settings that tell trials apart, as paths into the experiment.
            config: What trials are compared by.
            what: What they are called.
            sweep: Name of the sweep, for its gauges.
            console: Where to write; standard error by default.
        """
        self._total, self._what, self._sweep = total, what, sweep
        self._gauges = Exported()
        self._config = config or SweepConfig()
        self._varied = [path for path in varied if path != "experiment"]
        self._console = console or Console(stderr=True, highlight=False)
        self._live: Live | None = None
        self._started = self._shown = time.monotonic()
        self._running: dict[str, tuple[Task, float, dict[str, Any]]] = {}
        self._best: tuple[float, Task] | None = None
        self._read: Callable[[dict[str, Any]], Task] | None = None
        self.tasks: list[Task] = []
        self.ended: dict[Task, str] = {}
        self.reserved: dict[str, str] = {}
        self.on_point: Callable[[dict[str, Any]], None] = lambda point: None

    def __reduce__(self) -> tuple[Any, ...]:
        """Tune keeps a copy of its callbacks for its own restore, which is not used."""
        return _copy, ()

    def reads(self, read: Callable[[dict[str, Any]], Task]) -> None:
        """Say how the task is read from a trial's configuration."""
        self._read = read

    def __enter__(self) -> Self:
        self._started = self._shown = time.monotonic()
        self._gauges.__enter__()
        if self._console.is_terminal:
            self._live = Live(self._table(), console=self._console, refresh_per_second=2)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._gauges.__exit__(kind, error, _)
        if self._live:
            self._live.update(self._table())
            self._live.stop()

    def label(self, task: Task) -> str:
        """A trial's name with the settings that tell it from others, such as `3D-None seed=1`."""
        settings = settings_of(task.experiment)
        parts = [f"{p.rpartition('.')[2]}={settings[p]}" for p in self._varied if p in settings]
        member = re.search(r"-(m\d+)$", task.url)
        return " ".join([task.experiment.name, *([member[1]] if member else []), *parts])

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Tune starts a trial, or starts it again."""
        assert self._read is not None
        task = self._read(trial.config)
        if task not in self.tasks:
            self.tasks.append(task)
        self.ended.pop(task, None)
        self._running[trial.trial_id] = (task, time.monotonic(), {})
        self.on_point(trial.config)
        self._show()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        """A trial has reported an epoch, or why it cannot go on."""
        self.reserved |= {trial.trial_id: result[RESERVED]} if result.get(RESERVED) else {}
        if trial.trial_id not in self._running:
            return
        if "error" in result:
            self._end(trial, str(result["error"]))
        if RECONSTRUCTION not in result or "error" in result:
            return
        task, since, _ = self._running[trial.trial_id]
        self._running[trial.trial_id] = (task, since, result)
        value = result.get("objective")
        if value is not None and (self._best is None or value < self._best[0]):
            self._best = (value, task)
        if time.monotonic() - self._shown >= PLAIN_EVERY_S:
            self._line(self._state())
        self._show()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial has ended well, or was stopped."""
        self._end(trial, "")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial has failed; Tune may start it again, in another actor."""
        if trial.trial_id in self.reserved:
            free([self.reserved.pop(trial.trial_id)])
        lines = str(trial.get_error() or "its process died").strip().splitlines()
        self._end(trial, lines[-1] if lines else "its process died")

    def _end(self, trial: Any, error: str) -> None:
        if trial.trial_id not in self._running:
            return
        task, since, result = self._running.pop(trial.trial_id)
        self.ended[task] = error
        took = clock(time.monotonic() - since)
        if error:
            line = f"{self.label(task)} FAILED after {took}: {error}"
        else:
            line = f"{self.label(task)} ended in {took}{self._figure(result)}"
        self._line(f"{len(self.ended)} of {self._total} {self._what}: {line}{self._left()}")
        self._show()

    def _state(self) -> str:
        running = ", ".join(
            f"{self.label(task)}{self._figure(result)}"
            for task, _, result in self._running.values()
        )
        return f"{len(self.ended)} of {self._total} {self._what}{self._left()}; running: {running}"

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
        failed = sum(bool(error) for error in self.ended.values())
        done, running = len(self.ended), len(self._running)
        set_trials(
            self._gauges,
            self._sweep,
            running=running,
            ended=done - failed,
            failed=failed,
            waiting=max(0, self._total - done - running),
        )
        if self._live:
            self._live.update(self._table())

    def _table(self) -> Table:
        failed = sum(bool(error) for error in self.ended.values())
        title = f"{len(self.ended)} of {self._total} {self._what}, {failed} failed{self._left()}"
        config, caption = self._config, None
        if self._best:
            best = config.sign * self._best[0]
            caption = f"best {config.head} {best:.4f}: {self.label(self._best[1])}"
        table = Table(title=title, caption=caption)
        for head in ("running", "epoch", *dict.fromkeys(("healthy L1", config.head))):
            is_name = head == "running"
            table.add_column(
                head, justify="left" if is_name else "right", min_width=12 if is_name else None
            )
        for task, _, result in self._running.values():
            values = [result.get(RECONSTRUCTION)]
            if config.uses_labels:
                value = result.get("objective")
                values.append(None if value is None else config.sign * value)
            epoch = f"{result.get('epoch', 0)}/{task.experiment.fit.epochs}"
            texts = ["" if value is None else f"{value:.4f}" for value in values]
            table.add_row(self.label(task), epoch, *texts)
        return table

    def _figure(self, result: dict[str, Any]) -> str:
        config, text = self._config, ""
        if result.get(RECONSTRUCTION) is not None:
            text = f", epoch {result['epoch']}, healthy L1 {result[RECONSTRUCTION]:.4f}"
        if config.uses_labels and result.get("objective") is not None:
            text += f", {config.head} {config.sign * result['objective']:.4f}"
        return text


def _copy() -> Watch:
    return Watch(total=0)
