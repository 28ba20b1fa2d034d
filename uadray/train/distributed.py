"""Fitting on Ray: in this process for one worker, under Ray Train with DDP for several."""

import logging
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
import torch
import torch.distributed
from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchTrainer, prepare_model

from uadray import cluster, files
from uadray.config import Experiment
from uadray.detectors import Detector, GradientDetector, StreamDetector, build, num_parameters
from uadray.errors import ConfigError, UadrayError
from uadray.store import Cohort
from uadray.stream import READ_CPUS, TrainingStream, ValidationStream, fits_in_memory
from uadray.train.checkpoint import CheckpointStore
from uadray.train.loop import (
    Metrics,
    World,
    fit_gradient,
    fit_stream,
    healthy_reconstruction,
)
from uadray.train.run import Run


@dataclass(frozen=True, kw_only=True)
class ScaleConfig:
    """How much of a cluster a fit takes.

    Erasing and noise are the same for any number of workers; which volumes share a step is not,
    since each worker has a part of its own.
    """

    num_workers: int = 1
    """1 fits in this process; more start a DDP group under Ray Train."""
    use_gpu: bool = False
    """Whether each worker of a group takes a GPU; a single worker takes one where there is one."""
    cpus_per_worker: float = 0.75
    """Logical CPUs of each worker of a group; the rest of a node reads."""
    max_failures: int = 3
    """How often a group is started again from its newest checkpoint."""

    def __post_init__(self) -> None:
        if self.num_workers < 1 or self.cpus_per_worker <= 0:
            raise ConfigError("scale.num_workers must be >= 1 and scale.cpus_per_worker > 0")


def fit(
    experiment: Experiment,
    cohort: Cohort,
    url: str,
    *,
    scale: ScaleConfig | None = None,
    report: Callable[[Metrics], None] = lambda record: None,
) -> Run:
    """Fit an experiment on the train split of a healthy cohort and leave a run folder.

    A finished run is opened as it is; an unfinished one goes on from its newest checkpoint.

    Args:
        experiment: What to fit.
        cohort: Its train split is learned from, its validation split chooses the epoch.
        url: The run folder, local or any fsspec URL; shared by all nodes when there are several.
        scale: Workers.
        report: Called with the record of each epoch (one worker only; a group prints its own).

    Raises:
        ConfigError: settings do not suit the cohort or the cluster.
        CheckpointError: the folder holds a run of something else.
        NotFiniteError: the loss is not finite.
    """
    scale = scale or ScaleConfig()
    run = Run.create(url, experiment, cohort)
    if run.summary is not None:
        return run
    start = time.perf_counter()
    detector = _fresh(experiment, cohort.shape)
    if isinstance(detector, (GradientDetector, StreamDetector)):
        cluster.connect(dashboard=scale.num_workers > 1)
    if isinstance(detector, GradientDetector):
        if scale.num_workers == 1:
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            _fit_worker(run, cohort, World(), device, report)
        else:
            _fit_group(run, cohort, scale)
    else:
        _fit_plain(detector, run, cohort)
    _finish(run, detector, scale, time.perf_counter() - start)
    return run


def load_detector(run: Run) -> Detector:
    """The fitted detector of a run, at its best epoch, in evaluation mode.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged or of another run.
    """
    detector = _fresh(run.experiment, run.shape)
    checkpoints = CheckpointStore(run.url, _identity(run))
    state = checkpoints.state()
    if state is not None:
        checkpoints.load_model(detector, state.best)
    elif isinstance(detector, (GradientDetector, StreamDetector)):
        raise ConfigError(f"{run.url} has no checkpoint yet: run the same jobs/train.py again")
    return detector.eval()


def _identity(run: Run) -> str:
    return f"{run.experiment.fingerprint}-{run.cohort_fingerprint}"


def _fresh(experiment: Experiment, shape: tuple[int, int, int]) -> Detector:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(experiment.fit.seed)
        return build(experiment.method, shape)


def _fit_worker(
    run: Run,
    cohort: Cohort,
    world: World,
    device: torch.device,
    report: Callable[[Metrics], None],
) -> None:
    """What one worker does, alone or in a group."""
    experiment = run.experiment
    config = experiment.fit
    detector = _fresh(experiment, run.shape)
    assert isinstance(detector, GradientDetector)
    resident = config.residency == "device" or (
        config.residency == "auto"
        and fits_in_memory(cohort, ("train", "validation"), world.size, str(device))
    )
    train = TrainingStream(
        cohort,
        "train",
        ndim=detector.ndim,
        batch_size=config.batch_size // world.size,
        seed=config.seed,
        rank=world.rank,
        world=world.size,
        resident=resident,
        device=str(device),
    )
    validation = ValidationStream(cohort, rank=world.rank, world=world.size, resident=resident)
    fit_gradient(
        detector,
        experiment,
        train=train.epoch,
        validation=validation,
        checkpoints=CheckpointStore(run.url, _identity(run)),
        report=report,
        past=run.metrics(),
        device=device,
        world=world,
        log=run.write_metrics,
    )


def _fit_group(run: Run, cohort: Cohort, scale: ScaleConfig) -> None:
    """A DDP group under Ray Train; it restarts from the newest checkpoint by itself."""
    batch_size = run.experiment.fit.batch_size
    if batch_size % scale.num_workers:
        raise ConfigError(
            f"fit.batch_size {batch_size} must be divisible by the {scale.num_workers} workers"
        )
    cpus = ray.cluster_resources().get("CPU", 0)
    needed = scale.num_workers * scale.cpus_per_worker + READ_CPUS
    if needed > cpus:
        raise ConfigError(
            f"{scale.num_workers} workers of {scale.cpus_per_worker} CPUs and a read task of "
            f"{READ_CPUS} need {needed} CPUs; the cluster has {cpus}: lower --scale.num-workers or "
            "--scale.cpus-per-worker"
        )
    if len([n for n in ray.nodes() if n["Alive"]]) > 1 and not files.is_remote(run.url):
        print(
            f"warning: {run.url} must be on storage that all nodes share, such as NFS or s3://",
            flush=True,
        )
    name = f"uadray-{run.experiment.name}-{uuid.uuid4().hex[:8]}"
    trainer = TorchTrainer(
        _group_worker,
        train_loop_config={"run": run, "cohort": cohort, "cpus": scale.cpus_per_worker},
        scaling_config=ScalingConfig(
            num_workers=scale.num_workers,
            use_gpu=scale.use_gpu,
            resources_per_worker={"CPU": scale.cpus_per_worker},
        ),
        run_config=RunConfig(
            name=name,
            storage_path=files.join(run.url, "ray"),
            failure_config=FailureConfig(
                max_failures=scale.max_failures,
                controller_failure_limit=scale.max_failures,  # type: ignore[call-arg]
            ),
        ),
    )
    try:
        trainer.fit()
    except WorkerGroupError as error:
        for failure in error.worker_failures.values():
            if isinstance(failure, UadrayError):
                raise failure from None
        raise
    finally:
        # Ray's own bookkeeping of this group; the run folder holds all that counts.
        files.remove(files.join(run.url, "ray"))


def _group_worker(config: dict[str, Any]) -> None:
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    # Each report of each worker is logged otherwise, beside our own line of progress.
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    run: Run = config["run"]
    torch.set_num_threads(max(1, int(config["cpus"])))
    device = ray.train.torch.get_device()

    def total(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.to(device)
        torch.distributed.all_reduce(tensor)
        return tensor.cpu()

    def report(metrics: Metrics) -> None:
        ray.train.report(metrics)
        if rank == 0:
            # Ray Train also logs what is printed, which would show each line twice.
            sys.stdout.write(format_epoch(run.experiment, metrics) + "\n")

    world = World(
        rank=rank,
        size=size,
        wrap=prepare_model,
        uneven=_uneven,
        sum=total,
    )
    _fit_worker(run, config["cohort"], world, device, report)


@contextmanager
def _uneven(module: Any, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Let workers take unequal numbers of steps: slices with brain differ from part to part.

    `join` leaves all of them the weights of one that stepped to the end, but each its own moments
    of Adam, with which they would drift apart in the next epoch; these follow here.
    """
    with module.join():
        yield
    states = [optimizer.state[p] for group in optimizer.param_groups for p in group["params"]]
    steps = states[0]["step"].detach().reshape(1).to(next(module.parameters()).device)
    counts = [torch.zeros_like(steps) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(counts, steps)
    source = int(torch.cat(counts).argmax())
    if all(count == counts[0] for count in counts):
        return
    for state in states:
        for tensor in state.values():
            sent = tensor.to(steps.device).contiguous()
            torch.distributed.broadcast(sent, source)
            tensor.copy_(sent)


def format_epoch(experiment: Experiment, metrics: Metrics) -> str:
    """One line of progress."""
    return (
        f"{experiment.name}: epoch {metrics['epoch']}/{experiment.fit.epochs}, "
        f"train L1 {metrics['train/reconstruction']:.4f}, "
        f"validation L1 {metrics['validation/reconstruction']:.4f}, "
        f"{metrics['samples_per_second']:.0f} samples/s"
    )


def _fit_plain(detector: Detector, run: Run, cohort: Cohort) -> None:
    """Fit what learns in one pass, or nothing, and keep it as a checkpoint of one epoch."""
    device = torch.device("cpu")
    if isinstance(detector, StreamDetector):
        # The same batches on every machine: PCA's increments depend on them.
        train = ValidationStream(cohort, "train", batch_size=32, resident=False)
        fit_stream(detector, train, device)
        value = 0.0
        if detector.has_reconstruction:
            error = healthy_reconstruction(detector, ValidationStream(cohort), device)
            value = float(error[0] / error[1])
        CheckpointStore(run.url, _identity(run)).save(1, detector, None, value)


def _finish(run: Run, detector: Detector, scale: ScaleConfig, seconds: float) -> None:
    state = CheckpointStore(run.url, _identity(run)).state()
    records = run.metrics()
    run.finish(
        {
            "status": "finished",
            "epochs": len(records),
            "best_epoch": state.best if state and records else None,
            "validation/reconstruction": (
                state.best_value if state and detector.has_reconstruction else None
            ),
            "fit_seconds": sum(r["seconds"] for r in records) or (seconds if state else None),
            "num_parameters": num_parameters(detector),
            "num_workers": scale.num_workers,
            "threads": torch.get_num_threads(),
            "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        }
    )
