"""The one fit loop: used bare, in a process of its own, and by each worker of a distributed fit."""

import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from uadray import counter
from uadray.batch import Batch
from uadray.config import Experiment, FitConfig
from uadray.detectors.base import Detector, GradientDetector, StreamDetector
from uadray.erasing import erase, sample_erasing
from uadray.errors import UadrayError
from uadray.memory import keep_freed_memory
from uadray.train.checkpoint import CheckpointStore

Metrics = dict[str, Any]

ACTIVE_NATS = 0.01
"""A unit of the latent is active where its KL divergence is larger, on average over an epoch."""


class NotFiniteError(UadrayError, ArithmeticError):
    """The loss became NaN or infinite."""


@dataclass(frozen=True, kw_only=True)
class World:
    """The workers of a fit; alone by default."""

    rank: int = 0
    """This worker."""
    size: int = 1
    """Number of workers."""
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module
    """Makes a module average its gradients over the workers."""
    sum: Callable[[Tensor], Tensor] = lambda tensor: tensor
    """Sum over the workers."""


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
    voxels alone, so that it means the same in 2D and 3D and does not fall with the background.
    """
    total = torch.zeros(2, dtype=torch.float64)
    for batch in volumes:
        x = batch.images.to(device).float()[:, None]
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            error = (x - detector.reconstruct(x).float()).abs()
        brain = x > 0
        total += torch.stack([error[brain].double().sum(), brain.double().sum()]).cpu()
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
    state = checkpoints.state()
    done = state.last if state else 0
    records = [r for r in past if r["epoch"] <= done]
    if done >= fit.epochs or _stopped(records, fit.patience):
        return records
    if device.type == "cpu":
        keep_freed_memory()
    bfloat16 = reduced_precision(fit.precision, detector, device)
    detector.to(device)
    optimizer = torch.optim.Adam(detector.parameters(), lr=fit.learning_rate, fused=True)
    if state:
        checkpoints.load_model(detector, state.last)
        checkpoints.load_optimizer(optimizer, state.last)
    steps = _Steps(
        detector=detector,
        module=world.wrap(cast(nn.Module, torch.compile(detector)) if fit.compile else detector),
        optimizer=optimizer,
        experiment=experiment,
        device=device,
        bfloat16=bfloat16,
        micro_batch=micro_batch,
        num_workers=world.size,
    )
    for epoch in range(done, fit.epochs):
        start = time.perf_counter()
        batches = _Timed(train(epoch))
        detector.train()
        with numerics(device, fit):
            sums = world.sum(steps.epoch(batches, sizes, epoch))
            seconds = time.perf_counter() - start
            waited = world.sum(torch.tensor([batches.seconds], dtype=torch.float64)) / world.size
            detector.eval()
            error = world.sum(healthy_reconstruction(detector, validation, device, bfloat16))
        # The last step of an epoch can spoil the weights; only the validation tells.
        if not torch.isfinite(torch.cat([sums, error])).all():
            raise NotFiniteError(
                f"{experiment.name}: the loss is not finite in epoch {epoch + 1}; lower "
                f"--fit.learning-rate (it is {fit.learning_rate}) or use float32"
            )
        value = float(error[0] / error[1])
        record = {"epoch": epoch + 1, **_means(sums)} | {
            "validation/reconstruction": value,
            "seconds": time.perf_counter() - start,
            "seconds/data": float(waited),
            "samples_per_second": float(sums[3]) / seconds,
        }
        records.append(record)
        if world.rank == 0:
            # Before the checkpoint: a record too many is dropped on resuming, none is missing.
            log(records)
        stop = epoch + 1 == fit.epochs or _stopped(records, fit.patience)
        if world.rank == 0 and (stop or (epoch + 1) % fit.checkpoint_every == 0):
            checkpoints.save(epoch + 1, detector, optimizer, value)
        report(record)
        if stop:
            break
    return records


@dataclass(frozen=True, kw_only=True)
class _Steps:
    """The optimiser's steps of a fit."""

    detector: GradientDetector
    module: nn.Module
    """The detector, compiled and averaged over the workers where that is asked for."""
    optimizer: torch.optim.Optimizer
    experiment: Experiment
    device: torch.device
    bfloat16: bool
    micro_batch: int
    num_workers: int

    def epoch(self, batches: Iterator[Batch], sizes: Sequence[int] | None, epoch: int) -> Tensor:
        """Take the steps of an epoch; returns this worker's sums, on the CPU (see `_means`)."""
        sums: Tensor | None = None
        last: Batch | None = None
        for size in sizes if sizes is not None else itertools.repeat(0):
            batch = next(batches, None)
            if batch is None and sizes is None:
                break
            self.optimizer.zero_grad(set_to_none=True)
            if batch is None:
                # Slices with brain differ from part to part: this worker has no more of them, but
                # the others wait for its gradient, which counts nothing.
                assert last is not None
                self._backward(_cut(last, 1)[0], 0.0, epoch)
            else:
                last, parts = batch, _cut(batch, self.micro_batch)
                for number, part in enumerate(parts, start=1):
                    # Workers average their gradients; weights make that the mean over all samples.
                    weight = len(part.ids) / (size or len(batch.ids)) * self.num_workers
                    held = number < len(parts) and hasattr(self.module, "no_sync")
                    with self.module.no_sync() if held else nullcontext():  # type: ignore[operator]
                        found = self._backward(part, weight, epoch)
                    sums = found if sums is None else sums + found
            clip = self.experiment.fit.clip_norm
            nn.utils.clip_grad_norm_(self.detector.parameters(), clip)
            self.optimizer.step()
        assert sums is not None
        return sums.cpu()

    def _backward(self, batch: Batch, weight: float, epoch: int) -> Tensor:
        seed, erasing = self.experiment.fit.seed, self.experiment.erasing
        x = batch.images.to(self.device, non_blocking=True).float()
        x_in = x
        if erasing.strategy != "none":
            where = sample_erasing(
                erasing, batch.ids, seed=seed, epoch=epoch, spatial=tuple(x.shape[1:])
            )
            x_in = erase(x, where, erasing, batch.ids, seed=seed, epoch=epoch)
        # The latent's noise follows the sample too, so that no generator's state is to be kept.
        key = counter.keys(seed, epoch, batch.ids, counter.LATENT)
        noise = counter.normal(key, self.detector.num_noise).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            losses = self.module(x_in[:, None], x[:, None], noise)
        (losses["loss"] * weight).backward()
        return _sums({name: term.detach() for name, term in losses.items()}, x)


def _cut(batch: Batch, most: int) -> list[Batch]:
    if not most or most >= len(batch.ids):
        return [batch]
    pairs = zip(batch.ids.split(most), batch.images.split(most), strict=True)
    return [Batch(ids=ids, images=images) for ids, images in pairs]


def _sums(losses: dict[str, Tensor], x: Tensor) -> Tensor:
    """What adds up over samples, float64: see `_means`. It stays on the device: asking waits."""
    brain = (x > 0).sum().double()
    count = torch.full_like(brain, len(x))
    # The L1 term is a mean over all voxels; by brain voxels it compares to validation.
    loss, divergence, l1 = (losses[k].double() for k in ("loss", "kl", "reconstruction"))
    units = losses.get("kl_units", losses["kl"].new_zeros(0)).double() * count
    terms = (loss * count, divergence * count, l1 * x.numel(), count, brain)
    return torch.cat([torch.stack(terms), units])


def _means(sums: Tensor) -> Metrics:
    """Of loss, KL, L1, samples, brain voxels, and the KL of each unit of the latent."""
    loss, divergence, reconstruction, count, brain = sums[:5].tolist()
    means = {
        "train/loss": loss / count,
        "train/reconstruction": reconstruction / brain,
        "train/kl": divergence / count,
    }
    if len(sums) > 5:
        means["train/active_units"] = int((sums[5:] / count > ACTIVE_NATS).sum())
    return means


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


def _stopped(records: list[Metrics], patience: int) -> bool:
    values = [r["validation/reconstruction"] for r in records]
    return bool(patience and values and len(values) - 1 - values.index(min(values)) >= patience)
