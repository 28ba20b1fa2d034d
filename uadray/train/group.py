"""A group of workers under Ray Train: distributed data parallel, restarted after failures."""

import logging
import math
import os
import threading
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
import torch
import torch.distributed
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer, prepare_model

from uadray import cluster, files
from uadray.data.sampling import batch_share
from uadray.data.settings import READ_CPUS
from uadray.data.stream import keep_volumes
from uadray.device import ENVIRONMENT, compute_device
from uadray.errors import ConfigError, StoppedError, UadrayError
from uadray.memory import ONE_ARENA
from uadray.methods import GradientDetector
from uadray.runs.folder import Run
from uadray.store import Cohort
from uadray.train.kept_group import Desk, KeptGroup
from uadray.train.settings import ScaleConfig, TrackConfig
from uadray.train.steps import Metrics, World
from uadray.train.worker import fit_worker

_log = logging.getLogger(__name__)


def can_run(nodes: Sequence[float], num_workers: int, cpus: float) -> bool:
    """Whether workers find room on nodes and always leave room for a read task.

    Ray waits without an end and without an error for what does not fit.

    Args:
        nodes: Logical CPUs of each node.
        num_workers: Workers, placed in whatever way.
        cpus: Logical CPUs of each.
    """
    if sum(math.floor(node / cpus + 1e-9) for node in nodes) < num_workers:
        return False
    # Workers that it takes to leave a node without a read task's CPUs; None where they never do.
    blocked_by: list[int | None] = []
    for node in nodes:
        fewest = max(0, math.floor((node - READ_CPUS) / cpus + 1e-9) + 1)
        blocked_by.append(fewest if fewest * cpus <= node + 1e-9 else None)
    return None in blocked_by or sum(n or 0 for n in blocked_by) > num_workers


def fit_group(
    run: Run,
    cohort: Cohort,
    scale: ScaleConfig,
    *,
    track: TrackConfig | None = None,
    report: Callable[[Metrics], None] = lambda record: None,
) -> dict[str, Any]:
    """Fit in a DDP group; it restarts from the newest checkpoint by itself.

    Returns:
        What rank 0's `fit_worker` does.

    Raises:
        ConfigError: the cluster has no room for the group, or its nodes do not share the folder.
        UadrayError: whatever named error ended a worker; starting again would not help.
        TrainingFailedError: the workers failed more than `scale.max_failures` times.
    """
    cluster.check_shared(run.url)
    if scale.takes_gpus and (note := share_note(run.experiment.fit.batch_size, scale.num_workers)):
        _log.warning("%s: %s", run.experiment.name, note)
    fitted = _Fit(run, cohort, track or TrackConfig())
    try:
        with _relayed(run, report):
            outcome = _kept.fit(fitted, scale) if _kept.wanted else _start(run, scale, fitted)
    except TrainingFailedError as error:
        failures = getattr(error, "worker_failures", {}).values()
        for failure in (*failures, getattr(error, "controller_failure", None)):
            if isinstance(failure, UadrayError):
                raise failure from None
        raise
    finally:
        # Ray's own bookkeeping of this group; the run folder holds all that counts.
        files.remove(files.join(run.url, "ray"))
    if isinstance(outcome, StoppedError):
        raise outcome
    return dict(outcome)


MIN_SHARE = 16
"""Samples of a step that keep a GPU busy; of fewer, a step lasts about as long."""


def share_note(batch_size: int, num_workers: int) -> str:
    """What to say of the share that each GPU takes of a batch; empty where it is large enough."""
    share = batch_size / num_workers
    if num_workers == 1 or share >= MIN_SHARE:
        return ""
    return (
        f"a step of {batch_size} samples leaves {share:.3g} to each of {num_workers} GPUs, which "
        f"are not kept busy by less than {MIN_SHARE}: raise --fit.batch-size (and look at "
        "--fit.learning-rate: it is another fit then), take fewer workers, or fit several "
        "experiments at a time, one a GPU (jobs/tune.py --sweep.gpus-per-trial 1)"
    )


def keep_group() -> None:
    """Keep a group for later fits of this process with the same `scale`, as an actor's trials."""
    _kept.wanted = True


def kept_group() -> str:
    """Ray's id of what the kept group holds of the cluster, for `free`; empty without one."""
    return _kept.reserved


@dataclass(frozen=True)
class _Fit:
    """One run to fit."""

    run: Run
    cohort: Cohort
    track: TrackConfig


class _Kept:
    """The group that this process keeps."""

    def __init__(self) -> None:
        self.wanted = False
        self._scale: ScaleConfig | None = None
        self._group: KeptGroup[_Fit] | None = None

    @property
    def reserved(self) -> str:
        return "" if self._group is None else self._group.reserved

    def fit(self, fitted: _Fit, scale: ScaleConfig) -> Any:
        # One that had to be started again has fewer tries left than its next fit may take.
        if self._group is not None and (self._scale != scale or not self._group.is_sound):
            self._group.end()
            self._group = None
        if self._group is None:
            self._group = KeptGroup(partial(_start, fitted.run, scale))
            self._scale = scale
        try:
            return self._group.do(fitted)
        except BaseException:
            self._group = None
            raise


_kept = _Kept()


def _start(run: Run, scale: ScaleConfig, source: "_Fit | Desk") -> Any:
    """Run a group until it has done its one fit, or all that a desk hands to it.

    Returns:
        What rank 0's `_group_worker` does.
    """
    _check_room(scale)
    if scale.takes_gpus:
        cluster.check_gpus()
    # Ray hands it on to its controller, which by default sees a fit's end two seconds late.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    worker: Any = _group_worker
    workers: Any = (scale.min_workers, scale.num_workers) if scale.min_workers else None
    callbacks: Any = [_EndOnNamedErrors()]
    trainer = TorchTrainer(
        worker,
        train_loop_config={"source": source, "scale": scale},
        scaling_config=ScalingConfig(
            num_workers=workers or scale.num_workers,
            use_gpu=scale.takes_gpus,
            resources_per_worker={"CPU": scale.cpus_per_worker},
        ),
        torch_config=TorchConfig(timeout_s=math.ceil(60 * scale.timeout_minutes)),
        run_config=RunConfig(
            name=f"uadray-{run.experiment.name}-{uuid.uuid4().hex[:8]}",
            storage_path=files.join(run.url, "ray"),
            failure_config=FailureConfig(
                # Nodes that left as announced, such as spot instances, are not counted.
                max_failures=scale.max_failures,
                # Without it a group that cannot be placed is tried again for ever.
                controller_failure_limit=scale.max_failures,  # type: ignore[call-arg]
            ),
            callbacks=callbacks,
            worker_runtime_env={"env_vars": ONE_ARENA | ENVIRONMENT},
        ),
    )
    result: Any = trainer.fit()
    return result.return_value


class _EndOnNamedErrors(UserCallback):
    """Our named errors come back however often a group is started: they end it at once."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for error in worker_exceptions.values():
            if isinstance(error, UadrayError):
                raise error


def _check_room(scale: ScaleConfig) -> None:
    fewest = scale.min_workers or scale.num_workers
    bundle = {"CPU": scale.cpus_per_worker} | ({"GPU": 1} if scale.takes_gpus else {})
    # What reads beside the workers wants room, too.
    bundles = [bundle] * scale.num_workers + [{"CPU": READ_CPUS}]

    def with_gpus(nodes: Iterable[tuple[float, float]]) -> int:
        return cluster.num_fitting(nodes, scale.cpus_per_worker, 1)

    def fits() -> bool:
        cpus, gpus = cluster.room()
        has_gpus = not scale.takes_gpus or with_gpus(zip(cpus, gpus, strict=True)) >= fewest
        return has_gpus and can_run(cpus, fewest, scale.cpus_per_worker)

    if cluster.wait_for_room(bundles, fits, scale.wait_minutes):
        return
    cpus, gpus = cluster.room()
    if not can_run(cpus, fewest, scale.cpus_per_worker):
        raise ConfigError(
            f"{fewest} workers of {scale.cpus_per_worker} CPUs and a read task of {READ_CPUS} do "
            f"not surely fit on nodes of {', '.join(f'{n:g}' for n in cpus)} CPUs: lower "
            "--scale.num-workers or --scale.cpus-per-worker (or, where an autoscaler starts nodes, "
            "give it --scale.wait-minutes)"
        )
    fit = with_gpus(zip(cpus, gpus, strict=True))
    beside = f", on nodes with room for {fit} workers" if fit < sum(gpus) else ""
    raise ConfigError(
        f"{fewest} workers need as many GPUs; the cluster has {sum(gpus):g}{beside}: lower "
        "--scale.num-workers, drop --scale.use-gpu or choose another --scale.device (or, where an "
        "autoscaler starts nodes, give it --scale.wait-minutes)"
    )


@contextmanager
def _relayed(run: Run, report: Callable[[Metrics], None]) -> Iterator[None]:
    """Report the records that workers leave in the run folder, as they come.

    An epoch that a restarted group repeats is reported once.
    """
    done, raised = threading.Event(), list[Exception]()
    last = max((record["epoch"] for record in run.metrics()), default=0)

    def tell() -> None:
        nonlocal last
        for record in run.metrics():
            if record["epoch"] > last:
                last = record["epoch"]
                report(record)

    def watch() -> None:
        try:
            while not done.wait(_RELAY_S):
                tell()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=watch, name="uadray-relay", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    if raised:
        raise raised[0]
    tell()


_RELAY_S = 0.5
"""Seconds between two looks at a group's records."""


def _group_worker(config: dict[str, Any]) -> Any:
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    source: _Fit | Desk = config["source"]
    if isinstance(source, _Fit):
        return _fit_one(source, config["scale"])
    keep_volumes()
    rank = ray.train.get_context().get_world_rank()
    for task, finish in source.tasks(rank):
        outcome: Any
        try:
            outcome = _fit_one(task, config["scale"])
        except StoppedError as stopped:  # all workers together, so that they can go on
            outcome = stopped
        if rank == 0:
            finish(outcome)
    return None


def _fit_one(fitted: _Fit, scale: ScaleConfig) -> dict[str, Any]:
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    run = fitted.run
    # Threads beyond the CPUs granted wait for each other: several times slower, not faster.
    torch.set_num_threads(max(1, int(scale.cpus_per_worker)))
    # Refuses where the worker's GPU cannot be used; Ray Train lets workers of a node see all of
    # their GPUs, and knows which is whose.
    device = compute_device("cuda" if scale.takes_gpus else "cpu")
    if device.type == "cuda":
        device = ray.train.torch.get_device()

    def total(tensor: torch.Tensor) -> torch.Tensor:
        there = tensor.to(device)
        torch.distributed.all_reduce(there)
        return there.to(tensor.device)

    def end_where_asked(record: Metrics) -> None:
        # All workers end together, or those that go on would wait for the others.
        asked = torch.tensor([float(rank == 0 and run.asked_to_stop)])
        is_last = record["epoch"] == run.experiment.fit.epochs
        if float(total(asked) if size > 1 else asked) and not is_last:
            raise StoppedError(f"{run.url} was asked to stop after epoch {record['epoch']}")

    announced = False

    def is_leaving() -> bool:
        # Ray asks all workers alike; it knows of a spot instance's end two minutes or so before.
        nonlocal announced
        info = ray.train.get_preemption_info()
        if info is not None and not announced and rank == 0:
            _log.warning("a node is about to leave: %s saves each epoch until it does", run.url)
        announced = info is not None
        return announced

    alone = World(rank=rank, size=size)
    share = batch_share(run.experiment.fit.batch_size, rank, size)
    num_samples = min(share, scale.micro_batch or share)
    return fit_worker(
        run,
        fitted.cohort,
        world=(
            World(
                rank=rank,
                size=size,
                wrap=partial(_averaged, shape=run.shape, num_samples=num_samples),
                sum=total,
            )
            if size > 1
            else alone
        ),
        device=device,
        micro_batch=scale.micro_batch,
        cuda_graph=scale.cuda_graph,
        track=fitted.track,
        # The driver reads the records. Ray Train's own report waits for its controller's next look
        # at the workers, two seconds an epoch by default, and logs a line for each worker.
        report=end_where_asked,
        is_leaving=is_leaving,
    )


def _averaged(
    module: torch.nn.Module, shape: tuple[int, int, int], num_samples: int = 1
) -> torch.nn.Module:
    """The module under DDP, after steps that count nothing.

    Args:
        module: A detector, maybe compiled.
        shape: Of a volume.
        num_samples: That are in the network at a time: what is compiled, is so for their number.

    DDP rebuilds its buckets after its second step, and where a gradient stands in a bucket
    decides in which order more than two workers add it up. With these steps over, the first one of
    a resumed fit rounds as the same one of an undisturbed fit did.
    """
    buffers = [buffer.clone() for buffer in module.buffers()]
    averaged: torch.nn.Module = prepare_model(
        module,
        parallel_strategy_kwargs={
            "gradient_as_bucket_view": True,
            "static_graph": True,
            # Without batch normalisation there are none that a step would change.
            "forward_sync_buffers": bool(buffers),
        },
    )
    detector = getattr(module, "_orig_mod", module)
    assert isinstance(detector, GradientDetector)
    device = next(module.parameters()).device
    size = 1 if detector is module else num_samples
    blank = torch.zeros(size, 1, *shape[3 - detector.ndim :], device=device)
    noise = torch.zeros(size, detector.num_noise, device=device)
    # DDP's copy of a 1x1 convolution's gradient has other strides of the same meaning.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    for _ in range(2):
        losses = averaged(blank, blank, noise)
        (losses["loss"] * 0).backward()
        module.zero_grad(set_to_none=True)
    with torch.no_grad():
        for buffer, value in zip(module.buffers(), buffers, strict=True):
            buffer.copy_(value)
    return averaged
