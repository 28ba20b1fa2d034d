"""A fit by gradient, of one worker: alone in its process, or one of a group.

It knows batches, checkpoints and the other workers, and neither Ray nor a cohort.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from uadray.config import Experiment
from uadray.data.batch import Batch
from uadray.errors import ConfigError, UadrayError
from uadray.memory import keep_freed_memory
from uadray.methods.base import Detector, GradientDetector, Phase
from uadray.runs.checkpoint import BackgroundSaves, CheckpointStore
from uadray.runs.state import State
from uadray.train.precision import numerics, reduced_precision
from uadray.train.schedule import Schedule
from uadray.train.steps import Metrics, Steps, World, make_optimizers, means, over_workers


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
    """Of the epochs so far, when a run is resumed."""
    world: World = field(default_factory=World)
    """The workers."""
    sizes: Sequence[int] | None = None
    """Samples in each step of an epoch over all workers (`step_sizes`); None where there is one
    worker."""
    micro_batch: int = 0
    """Maximum number of samples in the network at a time; gradients add up to that of the batch.
    0 takes the batch as it is."""
    log: Callable[[list[Metrics]], None] = lambda records: None
    """Keeps the records of all epochs so far; called before each epoch's checkpoint is written, on
    rank 0."""
    report: Callable[[Metrics], None] = lambda record: None
    """Called with the record of each epoch, on every worker."""
    is_leaving: Callable[[], bool] = lambda: False
    """Whether a worker is about to be lost, so that an epoch gets a checkpoint in any case; called
    after each epoch, on every worker."""
    in_background: bool | None = None
    """Whether a thread writes checkpoints while the fit goes on; by default where it is alone on a
    GPU. On a CPU the thread would hold up those that compute, and the records of a group are read
    by others, who expect the checkpoint of an epoch soon after its record."""

    graph: bool = False
    """Whether whole steps are repeated as a CUDA graph where they can be (`Steps.graph`)."""

    def __post_init__(self) -> None:
        config = self.experiment.fit
        self._background: BackgroundSaves | None = None
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
        with self._saves() as saves:
            self._go_on(done, self._begin(state), saves)
        return self.records

    @contextmanager
    def _saves(self) -> Iterator[CheckpointStore | BackgroundSaves]:
        """Where checkpoints are given to."""
        alone_on_gpu = self.device.type == "cuda" and self.world.size == 1
        if not (alone_on_gpu if self.in_background is None else self.in_background):
            yield self.checkpoints
            return
        with BackgroundSaves(self.checkpoints) as self._background:
            yield self._background

    def _go_on(self, done: int, steps: Steps, saves: CheckpointStore | BackgroundSaves) -> None:
        config = self.experiment.fit
        for epoch in range(done, config.epochs):
            phase, since = self._schedule.enter(epoch)
            record = self.epoch(steps, epoch, phase)
            self.records.append(record)
            if self.world.rank == 0:
                # Before the checkpoint: a record too many is dropped on resuming, none is missing.
                self.log(self.records)
            stop = epoch + 1 == config.epochs or self._schedule.stops(self.records)
            due = stop or (epoch + 1) % config.checkpoint_every == 0
            is_leaving = self.is_leaving()
            if (is_leaving or due) and self.world.rank == 0:
                # An epoch that an undisturbed fit would not keep is not to be chosen here either.
                value = record.get(f"validation/{phase.measure}", 0.0) if due else None
                saves.save(epoch + 1, self.detector, steps.optimizers, value, since)
                if is_leaving and self._background is not None:
                    self._background.settle()
            self.report(record)
            if stop:
                break

    def epoch(self, steps: Steps, epoch: int, phase: Phase) -> Metrics:
        """Take the steps of an epoch, from 0, and measure; returns its record.

        Raises:
            NotFiniteError: the loss is not finite.
        """
        start = time.perf_counter()
        check = self._background.check if self._background else lambda: None
        batches, world = _Timed(self.train(epoch), check), self.world
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
        optimizers = make_optimizers(
            self.detector,
            self.experiment.fit,
            capturable=self.graph and self.device.type == "cuda",
        )
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
            graph=self.graph,
        )

    def _module(self, *, alone: bool) -> nn.Module:
        """What steps call: the detector, compiled and averaged over the workers where it may be."""
        detector, compiled = self.detector, self.experiment.fit.compile
        if alone:
            module = (
                cast(nn.Module, torch.compile(detector, dynamic=False)) if compiled else detector
            )
            return self.world.wrap(module)
        if compiled:
            raise ConfigError(
                f"fit.compile is for methods with one optimiser, and {type(detector).__name__} has "
                "several: leave it out"
            )
        # What each turn's gradient is of changes, and double gradients pass through no DDP: steps
        # average the gradients of the acting player by themselves.
        return detector


def healthy_reconstruction(
    detector: Detector, volumes: Iterable[Batch], device: torch.device, bfloat16: bool = False
) -> Tensor:
    """Sum of |x - reconstruction| over the brain's voxels, and their number, (2,) float64.

    Their ratio is the error by which epochs are chosen (Bengs 2021, section 2.3). It counts brain
    voxels alone, so that it means the same in 2D and 3D and does not fall with the background. A
    method may put another error in its place (`Detector.held_out_error`).
    """
    # Fetched once: each look at a value waits for the device.
    total = torch.zeros(2, dtype=torch.float64, device=device)
    for batch in volumes:
        x = batch.images.to(device).float()[:, None]
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            total += detector.held_out_error(x, batch.inside.to(device)).to(device)
    return total.cpu()


class _Timed(Iterator[Batch]):
    """Batches, and how long one had to wait for them; `check` may refuse the next one."""

    def __init__(self, batches: Iterable[Batch], check: Callable[[], None]) -> None:
        self._batches, self.seconds, self._check = iter(batches), 0.0, check

    def __next__(self) -> Batch:
        self._check()
        start = time.perf_counter()
        try:
            return next(self._batches)
        finally:
            self.seconds += time.perf_counter() - start
