"""Each item once on Ray: in tasks, or in actors that hold what is costly to load."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import ray
import SimpleITK as sitk
import torch
from ray import cloudpickle

from uadray import cluster, errors
from uadray.errors import ConfigError, UadrayError

MAX_TASKS = 10_000
"""More items than that share tasks."""

Item = TypeVar("Item")
Result = TypeVar("Result")

Work = Callable[[Item], Result]
"""What is done with an item. A named error of ours ends the job, any other is Ray's to retry."""


def in_tasks(
    work: "Work[Item, Result]", items: Sequence[Item], *, workers: int | None = None
) -> Iterator[tuple[Item, Result]]:
    """Do the work in tasks of one CPU each.

    Args:
        work: Travels with every task, so that it should be small.
        items: What cloudpickle takes: names of files may be no UTF-8, which Arrow refuses.
        workers: Items at a time; as many as there are CPUs by default.

    Yields:
        Items with their results, as they come.

    Raises:
        UadrayError: the named error that ended a task.
    """
    if items:
        tasks = ray.data.TaskPoolStrategy(size=workers)
        yield from _results(_dataset(items).map(_Once(work), num_cpus=1, compute=tasks), items)


def in_actors(
    load: "Callable[[], Work[Item, Result]]",
    items: Sequence[Item],
    *,
    workers: int | None = None,
    gpus: float = 0.0,
) -> Iterator[tuple[Item, Result]]:
    """Do the work in actors, each of which calls `load` once; otherwise as `in_tasks`.

    Args:
        load: Gives what is done with an item.
        items: See `in_tasks`.
        workers: Actors; by default as many as there are CPUs, or as find a GPU where they take
            one.
        gpus: Of each actor.

    Raises:
        ConfigError: No node has room for an actor with its GPUs.
    """
    if not items:
        return
    cpus = int(ray.cluster_resources().get("CPU", 1))
    fit = actors_at_a_time(list(zip(*cluster.room(), strict=True)), gpus) if gpus else cpus
    actors = ray.data.ActorPoolStrategy(size=max(1, min(len(items), workers or fit)))
    done = _dataset(items).map(
        _Loaded,  # type: ignore[arg-type]  # an actor's class
        fn_constructor_args=(load,),
        num_cpus=min(1, cpus),
        num_gpus=gpus or None,
        compute=actors,
    )
    with cluster.plain_errors():
        yield from _results(done, items)


def actors_at_a_time(nodes: Sequence[tuple[float, float]], gpus: float) -> int:
    """Actors of one CPU each that find room.

    Args:
        nodes: Logical CPUs and GPUs of each node.
        gpus: Of each actor, more than 0.

    Raises:
        ConfigError: None does; Ray would wait for ever, without an error.
    """
    cpus = min(1.0, max((node for node, _ in nodes), default=1.0) or 1.0)
    if not (fit := cluster.num_fitting(nodes, cpus, gpus)):
        raise ConfigError(cluster.without_gpus(nodes, gpus))
    return fit


def _dataset(items: Sequence[Any]) -> ray.data.Dataset:
    packed = [{"n": n, "item": cloudpickle.dumps(item)} for n, item in enumerate(items)]
    return ray.data.from_items(packed, override_num_blocks=min(len(items), MAX_TASKS))


def _results(done: ray.data.Dataset, items: Sequence[Item]) -> Iterator[tuple[Item, Any]]:
    for row in done.iter_rows():
        if row["error"]:
            name, message = cloudpickle.loads(row["result"])
            raise getattr(errors, name)(message)
        yield items[row["n"]], cloudpickle.loads(row["result"])


class _Once(Generic[Item, Result]):
    """Does the work with one item, on one thread."""

    def __init__(self, work: "Work[Item, Result]") -> None:
        self._work = work

    def __call__(self, packed: dict[str, Any]) -> dict[str, Any]:
        # Ray grants one CPU; a library that takes all of them only makes the others wait.
        torch.set_num_threads(1)
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
        try:
            result: Any = self._work(cloudpickle.loads(packed["item"]))
        except UadrayError as error:
            # Ray Data drops the cause of a failed task, so that a named error travels as a value.
            result = type(error).__name__, str(error)
            return {"n": packed["n"], "error": True, "result": cloudpickle.dumps(result)}
        return {"n": packed["n"], "error": False, "result": cloudpickle.dumps(result)}


class _Loaded(_Once[Item, Result]):
    def __init__(self, load: "Callable[[], Work[Item, Result]]") -> None:
        torch.set_num_threads(1)
        super().__init__(load())
