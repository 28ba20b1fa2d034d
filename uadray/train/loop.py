"""The one fit loop: used bare, in a process of its own, and by each worker of a distributed fit."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from uadray import counter
from uadray.batch import Batch
from uadray.config import Experiment
from uadray.detectors.base import Detector, GradientDetector, StreamDetector
from uadray.erasing import erase, sample_erasing
from uadray.errors import UadrayError
from uadray.train.checkpoint import CheckpointStore

Metrics = dict[str, Any]


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
    uneven: Callable[[nn.Module, torch.optim.Optimizer], AbstractContextManager[Any]] = (
        lambda module, optimizer: nullcontext()
    )
    """Context in which workers may take unequal numbers of steps; behind it they are equal."""
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
    bfloat16 = reduced_precision(fit.precision, detector, device)
    detector.to(device)
    optimizer = torch.optim.Adam(detector.parameters(), lr=fit.learning_rate, fused=True)
    if state:
        checkpoints.load_model(detector, state.last)
        checkpoints.load_optimizer(optimizer, state.last)
    module = world.wrap(detector)
    for epoch in range(done, fit.epochs):
        start = time.perf_counter()
        sums = torch.zeros(5, dtype=torch.float64)
        detector.train()
        with world.uneven(module, optimizer):
            for losses, x in _steps(
                detector, module, optimizer, experiment, train(epoch), epoch, device, bfloat16
            ):
                terms = torch.stack([losses[k].detach() for k in ("loss", "kl", "reconstruction")])
                # The L1 term is a mean over all voxels; by brain voxels it compares to validation.
                weights = torch.tensor([len(x), len(x), x.numel()], dtype=torch.float64)
                sums[:3] += terms.cpu().double() * weights
                sums[3:] += torch.tensor([len(x), float((x > 0).sum())], dtype=torch.float64)
        sums = world.sum(sums)
        seconds = time.perf_counter() - start
        detector.eval()
        error = world.sum(healthy_reconstruction(detector, validation, device, bfloat16))
        # The last step of an epoch can spoil the weights; only the validation tells.
        if not torch.isfinite(torch.cat([sums, error])).all():
            raise NotFiniteError(
                f"{experiment.name}: the loss is not finite in epoch {epoch + 1}; lower "
                f"--fit.learning-rate (it is {fit.learning_rate}) or use float32"
            )
        value = float(error[0] / error[1])
        record = {
            "epoch": epoch + 1,
            "train/loss": float(sums[0] / sums[3]),
            "train/reconstruction": float(sums[2] / sums[4]),
            "train/kl": float(sums[1] / sums[3]),
            "validation/reconstruction": value,
            "seconds": time.perf_counter() - start,
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


def _steps(
    detector: GradientDetector,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    experiment: Experiment,
    batches: Iterable[Batch],
    epoch: int,
    device: torch.device,
    bfloat16: bool,
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """One optimiser step a batch; yields its loss terms and its clean samples."""
    seed, erasing = experiment.fit.seed, experiment.erasing
    for batch in batches:
        x = batch.images.to(device, non_blocking=True).float()
        x_in = x
        if erasing.strategy != "none":
            where = sample_erasing(
                erasing, batch.ids, seed=seed, epoch=epoch, spatial=tuple(x.shape[1:])
            )
            x_in = erase(x, where, erasing, batch.ids, seed=seed, epoch=epoch)
        # The latent's noise follows the sample too, so that no generator's state is to be kept.
        key = counter.keys(seed, epoch, batch.ids, counter.LATENT)
        noise = counter.normal(key, detector.num_noise).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            losses = module(x_in[:, None], x[:, None], noise)
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        nn.utils.clip_grad_norm_(detector.parameters(), experiment.fit.clip_norm)
        optimizer.step()
        yield losses, x


def _stopped(records: list[Metrics], patience: int) -> bool:
    values = [r["validation/reconstruction"] for r in records]
    return bool(patience and values and len(values) - 1 - values.index(min(values)) >= patience)
