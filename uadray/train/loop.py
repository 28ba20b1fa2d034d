"""The one fit loop: used bare, in a process of its own, and by each worker of a distributed fit."""

import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from uadray.config import Experiment, FitConfig
from uadray.data.batch import Batch
from uadray.errors import ConfigError, UadrayError
from uadray.memory import keep_freed_memory
from uadray.methods.base import Detector, GradientDetector, Phase, StreamDetector
from uadray.runs.checkpoint import CheckpointStore
from uadray.train.steps import Metrics, Steps, make_optimizers, means, over_workers
from uadray.train.world import World

__all__ = [
    "Metrics",
    "NotFiniteError",
    "Schedule",
    "World",
    "fit_gradient",
    "fit_stream",
    "healthy_reconstruction",
    "numerics",
    "reduced_precision",
]


class NotFiniteError(UadrayError, ArithmeticError):
    """The loss became NaN or infinite."""


def reduced_precision(wanted: str, detector: GradientDetector, device: torch.device) -> bool:
    """Whether to compute in bfloat16: `auto` does so where the hardware multiplies it natively.

    On CPUs oneDNN's backward pass of strided 3D convolutions gives uninitialised memory in bfloat16
    where the coarsest grid has two voxels along a side (torch 2.13); `auto` takes float32 there.
    """
    if wanted != "auto":
        return wanted == "bfloat16"
    if device.type == "cpu" and detector.ndim == 3 and min(detector.grid) < 3:
        return False
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported())


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


def fit_stream(detector: StreamDetector, volumes: Iterable[Batch], device: torch.device) -> None:
    """Fit a method that learns in one pass over the healthy volumes."""
    for batch in volumes:
        detector.update(batch.images.to(device).float())
    detector.finish()


def fit_gradient(
    detector: GradientDetector,
    experiment: Experiment,
    *,
    train: Callable[[int], Iterable[Batch]],
    validation: Iterable[Batch],
    checkpoints: CheckpointStore,
    report: Callable[[Metrics], None],
    past: list[Metrics],
    device: torch.device,
    world: World | None = None,
    sizes: Sequence[int] | None = None,
    micro_batch: int = 0,
    log: Callable[[list[Metrics]], None] = lambda records: None,
) -> list[Metrics]:
    """Fit by gradient from the newest checkpoint to the last epoch.

    Calling it again after the last epoch does nothing and returns the same metrics.

    Args:
        detector: Freshly built; its weights come from the seed or the checkpoint.
        experiment: What to fit.
        train: Batches of this worker for an epoch, from 0.
        validation: Volumes of this worker's part of the validation split.
        checkpoints: Where checkpoints are; only rank 0 writes.
        report: Called with the record of each epoch, on every worker.
        past: Records of earlier epochs, when a run is taken up again.
        device: Where to compute.
        world: The workers.
        sizes: Samples in each step of an epoch over all workers (`step_sizes`); None where there is
            one worker.
        micro_batch: Most samples that go through the network at a time; their gradients add up to
            that of the batch. 0 takes the batch as it is.
        log: Keeps the records of all epochs so far; called before each epoch's checkpoint is
            written, on rank 0.

    Raises:
        NotFiniteError: the loss is not finite.
    """
    world, fit = world or World(), experiment.fit
    schedule = Schedule(detector, fit)
    state = checkpoints.state()
    done = state.last if state else 0
    records = [r for r in past if r["epoch"] <= done]
    if done >= fit.epochs or schedule.stops(records):
        return records
    if device.type == "cpu":
        keep_freed_memory()
    bfloat16 = reduced_precision(fit.precision, detector, device)
    detector.to(device)
    optimizers = make_optimizers(detector, fit)
    if state:
        checkpoints.load_model(detector, state.last)
        checkpoints.load_optimizer(optimizers, state.last)
    steps = Steps(
        detector=detector,
        module=_module(detector, fit, world, alone=len(optimizers) == 1),
        optimizers=optimizers,
        experiment=experiment,
        device=device,
        bfloat16=bfloat16,
        micro_batch=micro_batch,
        world=world,
    )
    for epoch in range(done, fit.epochs):
        start = time.perf_counter()
        batches = _Timed(train(epoch))
        phase, since = schedule.enter(epoch)
        detector.train()
        with numerics(device, fit):
            sums = over_workers(steps.epoch(batches, sizes, epoch, phase.players), world)
            seconds = time.perf_counter() - start
            waited = world.sum(torch.tensor([batches.seconds], dtype=torch.float64)) / world.size
            detector.eval()
            error = torch.zeros(2, dtype=torch.float64)
            if phase.measure:
                error = world.sum(healthy_reconstruction(detector, validation, device, bfloat16))
        # The last step of an epoch can spoil the weights; only the validation tells.
        if not all(torch.isfinite(value).all() for value in (*sums.values(), error)):
            raise NotFiniteError(
                f"{experiment.name}: the loss is not finite in epoch {epoch + 1}; lower "
                f"--fit.learning-rate (it is {fit.learning_rate}) or use float32"
            )
        value = float(error[0] / error[1]) if phase.measure else 0.0
        record = {"epoch": epoch + 1, **means(sums)}
        if phase.measure:
            record[f"validation/{phase.measure}"] = value
        record |= schedule.facts(epoch) | {
            "seconds": time.perf_counter() - start,
            "seconds/data": float(waited),
            "samples_per_second": float(sums["#samples"]) / seconds,
        }
        records.append(record)
        if world.rank == 0:
            # Before the checkpoint: a record too many is dropped on resuming, none is missing.
            log(records)
        stop = epoch + 1 == fit.epochs or schedule.stops(records)
        if world.rank == 0 and (stop or (epoch + 1) % fit.checkpoint_every == 0):
            checkpoints.save(epoch + 1, detector, optimizers, value, since)
        report(record)
        if stop:
            break
    return records


def _module(detector: GradientDetector, fit: FitConfig, world: World, *, alone: bool) -> nn.Module:
    """What steps call: the detector, compiled and averaged over the workers where it may be."""
    if alone:
        return world.wrap(cast(nn.Module, torch.compile(detector)) if fit.compile else detector)
    if fit.compile:
        raise ConfigError(
            f"fit.compile is for methods with one optimiser, and {type(detector).__name__} has "
            "several: leave it out"
        )
    # What each turn's gradient is of changes, and double gradients pass through no DDP: steps
    # average the gradients of whoever acts by themselves.
    return detector


class Schedule:
    """Which phase of a fit an epoch is in, and whether it was the last.

    Raises:
        ConfigError: there are fewer epochs than phases.
    """

    def __init__(self, detector: GradientDetector, fit: FitConfig) -> None:
        self._detector, self._phases, self._fit = detector, detector.phases(), fit
        if fit.epochs < len(self._phases):
            raise ConfigError(
                f"fit.epochs is {fit.epochs}, but {type(detector).__name__} learns in "
                f"{len(self._phases)} phases: take at least as many epochs"
            )
        ends = itertools.accumulate(phase.share for phase in self._phases)
        self._ends = [round(end * fit.epochs) for end in ends]
        for number in range(len(self._ends)):
            # Each has an epoch at least, and the last one ends with the fit.
            left = len(self._ends) - 1 - number
            low = self._ends[number - 1] + 1 if number else 1
            self._ends[number] = min(max(self._ends[number], low), fit.epochs - left)
        self._ends[-1] = fit.epochs

    def _number(self, epoch: int) -> int:
        return next(n for n, end in enumerate(self._ends) if epoch < end)

    def enter(self, epoch: int) -> tuple[Phase, int]:
        """The phase of an epoch, from 0, which the detector is told.

        Returns:
            It, and how many epochs lie before all whose values may be compared with this one's.
        """
        number = self._number(epoch)
        phase = self._phases[number]
        self._detector.phase = phase.name
        begin = self._ends[number - 1] if number else 0
        return phase, begin if phase.measure else epoch

    def facts(self, epoch: int) -> Metrics:
        """For the record, where there are several phases: the number of this one, from 1."""
        return {"phase": self._number(epoch) + 1} if len(self._phases) > 1 else {}

    def stops(self, records: list[Metrics]) -> bool:
        """Whether patience is at its end; only epochs of the last phase try it."""
        begin = self._ends[-2] if len(self._ends) > 1 else 0
        key = f"validation/{self._phases[-1].measure}"
        values = [r[key] for r in records if r["epoch"] > begin and key in r]
        patience = self._fit.patience
        return bool(patience and values and len(values) - 1 - values.index(min(values)) >= patience)


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


@contextmanager
def numerics(device: torch.device, fit: FitConfig) -> Iterator[None]:
    """How a GPU computes, while the context lasts; a CPU is left as it is.

    By default the fastest convolution is searched for, and products that stay float32 may round to
    TensorFloat-32; `deterministic` forbids the first and `precision="float32"` the second.
    """
    if device.type != "cuda":
        yield
        return
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32
    strict = torch.are_deterministic_algorithms_enabled()
    reduced = fit.precision != "float32"
    if fit.deterministic:
        # cuBLAS reads it when it is first used.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        cudnn.benchmark, cudnn.deterministic = not fit.deterministic, fit.deterministic
        cudnn.allow_tf32, matmul.allow_tf32 = reduced, reduced
        torch.use_deterministic_algorithms(fit.deterministic or strict)
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32 = before
        torch.use_deterministic_algorithms(strict)
