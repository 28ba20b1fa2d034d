"""A group of workers that fits one run after another, as an actor does that fits trials.

To start one takes longer than a short trial: a controller, its helpers, and a process for each
worker that imports everything. Ray Train has no group that outlives a fit, so this one's training
function asks for the next run instead of returning.
"""

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import RayActorError
from ray.util.placement_group import (
    PlacementGroup,
    PlacementGroupID,
    get_current_placement_group,
    remove_placement_group,
)

T = TypeVar("T")


class KeptGroup(Generic[T]):
    """A group that is started with the first task and takes others as long as the process lives."""

    def __init__(self, start: Callable[["Desk"], Any]) -> None:
        """Start it.

        Args:
            start: Blocks until the group has ended; its workers go through `Desk.tasks`.
        """
        self._actor: Any = ray.remote(num_cpus=0)(_Desk).remote()
        self._error: BaseException | None = None

        def live() -> None:
            try:
                start(Desk(self._actor))
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=live, name="uadray-group", daemon=True)
        self._thread.start()

    @property
    def is_sound(self) -> bool:
        """Whether it can take another task with all of its tries left."""
        return self._thread.is_alive() and len(self._starts()) <= 1

    @property
    def reserved(self) -> str:
        """Ray's id of what it holds of the cluster, for `free`; empty before it has begun."""
        return next(reversed(self._starts()), "")

    def _starts(self) -> list[str]:
        try:
            return list(ray.get(self._actor.starts.remote()))
        except RayActorError:
            return ["", ""]  # as after a failure

    def do(self, task: T) -> Any:
        """Have a task done.

        Returns:
            What rank 0 gave for it.

        Raises:
            Exception: whatever ended the group, which then takes no other task.
        """
        try:
            ray.get(self._actor.put.remote(task))
            outcome = self._actor.outcome.remote()
            while not ray.wait([outcome], timeout=_LOOK_S)[0]:
                if not self._thread.is_alive():
                    ray.kill(self._actor)
                    raise self._error or RuntimeError("the group ended before its task did")
            return ray.get(outcome)
        except RayActorError:
            # Without their desk the workers end after this task; nobody may begin it before.
            self._thread.join()
            raise

    def end(self) -> None:
        """Let the workers go; returns when they have."""
        with suppress(RayActorError):
            if self._thread.is_alive():
                ray.get(self._actor.put.remote(None))
        self._thread.join()
        ray.kill(self._actor)


def free(reserved: Iterable[str]) -> None:
    """Give back what groups held whose process has gone: Ray keeps it for the whole cluster."""
    for name in reserved:
        # Removing one that was removed before does nothing.
        remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(name))))


_LOOK_S = 0.5
"""Seconds between two looks at whether a group that has a task is still there."""


class Desk:
    """Where the workers of a group get their tasks."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def tasks(self, rank: int) -> Iterator[tuple[Any, Callable[[Any], None]]]:
        """Each task with what takes its outcome, which rank 0 alone gives.

        A group that was started again begins with the task that has none yet.
        """
        if rank == 0:
            group = get_current_placement_group()
            ray.get(self._actor.start.remote(group.id.hex() if group else ""))
        number = 0
        while True:
            number, task = ray.get(self._actor.next.remote(number))
            if task is None:
                return
            yield task, lambda outcome: ray.get(self._actor.finish.remote(outcome))


class _Desk:
    """The actor: one task at a time, and its outcome."""

    def __init__(self) -> None:
        self._change = asyncio.Condition()
        self._number, self._starts = 0, list[str]()
        self._task: Any = None
        self._outcome: tuple[Any, ...] = ()

    async def put(self, task: Any) -> None:
        async with self._change:
            self._number, self._task, self._outcome = self._number + 1, task, ()
            self._change.notify_all()

    async def next(self, after: int) -> tuple[int, Any]:
        async with self._change:
            await self._change.wait_for(lambda: self._number > after and not self._outcome)
            return self._number, self._task

    async def finish(self, outcome: Any) -> None:
        async with self._change:
            self._outcome = (outcome,)
            self._change.notify_all()

    async def outcome(self) -> Any:
        async with self._change:
            await self._change.wait_for(lambda: bool(self._outcome))
            return self._outcome[0]

    async def start(self, reserved: str) -> None:
        self._starts.append(reserved)

    async def starts(self) -> list[str]:
        return self._starts
