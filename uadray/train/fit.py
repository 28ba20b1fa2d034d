"""A fit by gradient, of one worker: alone in its process, or one of a group.

`Fit` is the one loop. It knows batches, checkpoints and the other workers, and neither Ray nor a
cohort; `fit_worker` gives it those of a run.
"""

import resource
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from uadray.config import Experiment
from uadray.data.batch import Batch
from uadray.data.sampling import step_sizes, train_rows
from uadray.data.stream import TrainingStream, ValidationStream, fits_in_memory
from uadray.errors import ConfigError, RunError, UadrayError
from uadray.memory import keep_freed_memory
from uadray.methods.base import Detector, GradientDetector, Phase
from uadray.runs.checkpoint import CheckpointStore
from uadray.runs.detector import fresh
from uadray.runs.folder import EPOCHS, Run
from uadray.runs.state import State
from uadray.store import Cohort
from uadray.train.precision import numerics, reduced_precision
from uadray.train.schedule import Schedule
from uadray.train.steps import Metrics, Steps, World, make_optimizers, means, over_workers
from uadray.train.track import TrackConfig, tracked


class NotFiniteError(UadrayError, ArithmeticError):
    """The loss became NaN or infinite."""


@dataclass(kw_only=True)
class Fit:
    """A fit from its newest checkpoint to its last epoch.

    Raises:
        ConfigError: the settings do not suit the method.
    """

    detector: GradientDetector
    """Freshly built; its weights come from the seed or the checkpoint."""
    experiment: Experiment
    """What to fit."""
    train: Callable[[int], Iterable[Batch]]
    """Batches of this worker for an epoch, from 0."""
    validation: Iterable[Batch]
    """Volumes of this worker's part of the validation split."""
    checkpoints: CheckpointStore
    """Where checkpoints are; only rank 0 writes."""
    device: torch.device
    """Where to compute."""
    records: list[Metrics] = field(default_factory=list)
    """Of the epochs so far, when a run is taken up again."""
    world: World = field(default_factory=World)
    """The workers."""
    sizes: Sequence[int] | None = None
    """Samples in each step of an epoch over all workers (`step_sizes`); None where there is one
    worker."""
    micro_batch: int = 0
    """Most samples that go through the network at a time; their gradients add up to that of the
    batch. 0 takes the batch as it is."""
    log: Callable[[list[Metrics]], None] = lambda records: None
    """Keeps the records of all epochs so far; called before each epoch's checkpoint is written, on
    rank 0."""
    report: Callable[[Metrics], None] = lambda record: None
    """Called with the record of each epoch, on every worker."""

    def __post_init__(self) -> None:
        config = self.experiment.fit
        self._schedule = Schedule(self.detector, config)
        self._bfloat16 = reduced_precision(config.precision, self.detector, self.device)

    def run(self) -> list[Metrics]:
        """Fit; called again after the last epoch, it does nothing and returns the same records.

        Raises:
            NotFiniteError: the loss is not finite.
        """
        config, state = self.experiment.fit, self.checkpoints.state()
        done = state.last if state else 0
        self.records = [record for record in self.records if record["epoch"] <= done]
        if done >= config.epochs or self._schedule.stops(self.records):
            return self.records
        steps = self._begin(state)
        for epoch in range(done, config.epochs):
            phase, since = self._schedule.enter(epoch)
            record = self.epoch(steps, epoch, phase)
            self.records.append(record)
            if self.world.rank == 0:
                # Before the checkpoint: a record too many is dropped on resuming, none is missing.
                self.log(self.records)
            stop = epoch + 1 == config.epochs or self._schedule.stops(self.records)
            if self.world.rank == 0 and (stop or (epoch + 1) % config.checkpoint_every == 0):
                value = record.get(f"validation/{phase.measure}", 0.0)
                self.checkpoints.save(epoch + 1, self.detector, steps.optimizers, value, since)
            self.report(record)
            if stop:
                break
        return self.records

    def epoch(self, steps: Steps, epoch: int, phase: Phase) -> Metrics:
        """Take the steps of an epoch, from 0, and measure; returns its record.

        Raises:
            NotFiniteError: the loss is not finite.
        """
        start = time.perf_counter()
        batches, world = _Timed(self.train(epoch)), self.world
        self.detector.train()
        with numerics(self.device, self.experiment.fit):
            sums = over_workers(steps.epoch(batches, self.sizes, epoch, phase.players), world)
            seconds = time.perf_counter() - start
            waited = world.sum(torch.tensor([batches.seconds], dtype=torch.float64)) / world.size
            self.detector.eval()
            error = self.validate() if phase.measure else torch.zeros(2, dtype=torch.float64)
        # The last step of an epoch can spoil the weights; only the validation tells.
        if not all(torch.isfinite(value).all() for value in (*sums.values(), error)):
            raise NotFiniteError(
                f"{self.experiment.name}: the loss is not finite in epoch {epoch + 1}; lower "
                f"--fit.learning-rate (it is {self.experiment.fit.learning_rate}) or use float32"
            )
        record = {"epoch": epoch + 1, **means(sums)}
        if phase.measure:
            record[f"validation/{phase.measure}"] = float(error[0] / error[1])
        return (
            record
            | self._schedule.facts(epoch)
            | {
                "seconds": time.perf_counter() - start,
                "seconds/data": float(waited),
                "samples_per_second": float(sums["#samples"]) / seconds,
            }
        )

    def validate(self) -> Tensor:
        """The error on held-out volumes over all workers, as `healthy_reconstruction` gives it."""
        error = healthy_reconstruction(self.detector, self.validation, self.device, self._bfloat16)
        return self.world.sum(error)

    def _begin(self, state: State | None) -> Steps:
        """Bring everything to where the newest checkpoint left it."""
        if self.device.type == "cpu":
            keep_freed_memory()
        self.detector.to(self.device)
        optimizers = make_optimizers(self.detector, self.experiment.fit)
        if state:
            self.checkpoints.load_model(self.detector, state.last)
            self.checkpoints.load_optimizer(optimizers, state.last)
        return Steps(
            detector=self.detector,
            module=self._module(alone=len(optimizers) == 1),
            optimizers=optimizers,
            experiment=self.experiment,
            device=self.device,
            bfloat16=self._bfloat16,
            micro_batch=self.micro_batch,
            world=self.world,
        )

    def _module(self, *, alone: bool) -> nn.Module:
        """What steps call: the detector, compiled and averaged over the workers where it may be."""
        detector, compiled = self.detector, self.experiment.fit.compile
        if alone:
            module = cast(nn.Module, torch.compile(detector)) if compiled else detector
            return self.world.wrap(module)
        if compiled:
            raise ConfigError(
                f"fit.compile is for methods with one optimiser, and {type(detector).__name__} has "
                "several: leave it out"
            )
        # What each turn's gradient is of changes, and double gradients pass through no DDP: steps
        # average the gradients of whoever acts by themselves.
        return detector


def healthy_reconstruction(
    detector: Detector, volumes: Iterable[Batch], device: torch.device, bfloat16: bool = False
) -> Tensor:
    """Sum of |x - reconstruction| over the brain's voxels, and their number, (2,) float64.

    Their ratio is the error by which epochs are chosen (Bengs 2021, section 2.3). It counts brain
    voxels alone, so that it means the same in 2D and 3D and does not fall with the background. A
    method may put another error in its place (`Detector.held_out_error`).
    """
    total = torch.zeros(2, dtype=torch.float64)
    for batch in volumes:
        x = batch.images.to(device).float()[:, None]
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            total += detector.held_out_error(x).cpu()
    return total


class _Timed(Iterator[Batch]):
    """Batches, and how long one had to wait for them."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self._batches, self.seconds = iter(batches), 0.0

    def __next__(self) -> Batch:
        start = time.perf_counter()
        try:
            return next(self._batches)
        finally:
            self.seconds += time.perf_counter() - start


def fit_worker(
    run: Run,
    cohort: Cohort,
    *,
    world: World,
    device: torch.device,
    micro_batch: int,
    track: TrackConfig,
    report: Callable[[Metrics], None],
) -> dict[str, Any]:
    """Fit a method that learns by gradient, from the newest checkpoint to the end.

    Returns:
        How it was done, for the summary: volumes, residency, precision, device, threads and the
        peak memory of the worker with the highest.

    Raises:
        ConfigError: the workers or micro-batches do not suit the batch or the method.
        NotFiniteError: the loss is not finite.
    """
    experiment, config = run.experiment, run.experiment.fit
    detector = fresh(experiment, run.shape)
    assert isinstance(detector, GradientDetector)
    if micro_batch and any(isinstance(m, _BATCH_NORM) for m in detector.modules()):
        raise ConfigError(
            "scale.micro_batch changes what batch normalisation learns: choose another "
            "--method.norm, or 0 micro-batches"
        )
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    rows = train_rows(cohort, share=config.data_share, seed=config.seed)
    held_back = cohort.rows("validation")
    num_volumes = len(rows) + len(held_back)
    resident = config.residency == "device" or (
        config.residency == "auto" and fits_in_memory(cohort, num_volumes, world.size, str(device))
    )
    train = TrainingStream(
        cohort,
        rows,
        ndim=detector.ndim,
        batch_size=config.batch_size,
        seed=config.seed,
        rank=world.rank,
        world=world.size,
        resident=resident,
        device=str(device),
    )
    sizes = None
    if world.size > 1:
        sizes = step_sizes([int(n) for n in of_each(world, train.num_samples())], config.batch_size)
    past, state = run.metrics(), CheckpointStore(run.url, run.identity).state()
    done = 0 if state is None else state.last
    if [r["epoch"] for r in past if r["epoch"] <= done] != list(range(1, done + 1)):
        raise RunError(
            f"{run.url}/{EPOCHS} does not hold each of the {done} epochs that the checkpoint has: "
            "restore it from a copy, or fit again into another folder (--out)"
        )
    with tracked(run, track if world.rank == 0 else TrackConfig()) as follow:

        def log(records: list[Metrics]) -> None:
            run.write_metrics(records)
            follow(records[-1])

        Fit(
            detector=detector,
            experiment=experiment,
            train=train.epoch,
            validation=ValidationStream(
                cohort, held_back, rank=world.rank, world=world.size, resident=resident
            ),
            checkpoints=CheckpointStore(run.url, run.identity),
            report=report,
            records=past,
            device=device,
            world=world,
            sizes=sizes,
            micro_batch=micro_batch,
            log=log,
        ).run()
    if detector.calibrates:
        _calibrate(detector, CheckpointStore(run.url, run.identity), cohort, world, device)
    return {
        "num_train_volumes": len(rows),
        "num_validation_volumes": len(held_back),
        "residency": "device" if resident else "stream",
        "precision": (
            "bfloat16" if reduced_precision(config.precision, detector, device) else "float32"
        ),
        "device": device.type,
        "threads": torch.get_num_threads(),
        "peak_memory_gib": max(of_each(world, _peak_memory(device))),
    }


def _calibrate(
    detector: GradientDetector,
    checkpoints: CheckpointStore,
    cohort: Cohort,
    world: World,
    device: torch.device,
) -> None:
    """Let the best epoch's detector set its buffers by healthy volumes, once."""
    state = checkpoints.state()
    assert state is not None
    if state.calibrated:
        return
    rows = cohort.rows("validation")
    rows = rows[: detector.calibration_volumes or len(rows)]
    stream = ValidationStream(cohort, rows, rank=world.rank, world=world.size, resident=False)
    checkpoints.load_model(detector.to(device).eval(), state.best)
    with torch.no_grad():
        detector.calibrate((b.images.to(device).float()[:, None] for b in stream), world.sum)
    if world.rank == 0:
        checkpoints.save_calibrated(detector)


_BATCH_NORM = torch.nn.modules.batchnorm._BatchNorm


def of_each(world: World, value: float) -> list[float]:
    """A number of each worker, by rank, on all of them."""
    mine = torch.zeros(world.size, dtype=torch.float64)
    mine[world.rank] = value
    return world.sum(mine).tolist()


def _peak_memory(device: torch.device) -> float:
    """GiB: what the fit took of its GPU, or else the highest resident size of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
