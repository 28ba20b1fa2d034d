"""What a sweep would take: steps of each network timed here, times their number."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from uadray.config import Experiment, learns
from uadray.data.batch import Batch
from uadray.device import Device, compute_device
from uadray.methods import GradientDetector
from uadray.runs.detector import build_detector
from uadray.store import Cohort
from uadray.train.precision import reduced_precision
from uadray.train.steps import Steps, World, make_optimizers

STEPS = 2
"""Timed steps of each network, after one that warms up."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One trial's."""

    experiment: Experiment
    samples: int
    """Volumes or slices of an epoch."""
    seconds: float
    """Of all epochs on one worker, from steps timed on this machine; 0 for plain baselines, which
    take one pass."""


def estimate(
    trials: Sequence[Experiment],
    cohort: Cohort,
    *,
    threads: int = 1,
    device: Device = "auto",
) -> list[Estimate]:
    """Time a few steps of each distinct network and multiply.

    Reading, validation and checkpoints are not in it; they are a few percent at 64^3.

    Args:
        trials: What would be fitted.
        cohort: On what.
        threads: Threads of a trial.
        device: Where steps are timed.

    Raises:
        ConfigError: There is no such device here.
    """
    place = compute_device(device)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    volumes = len(cohort.rows("train"))
    slices = _slices_with_brain(cohort)
    rates: dict[Experiment, float] = {}
    try:
        estimates = []
        for trial in trials:
            fit = trial.fit
            if not learns(trial):
                estimates.append(Estimate(experiment=trial, samples=volumes, seconds=0.0))
                continue
            each = volumes if getattr(trial.method, "ndim", 3) == 3 else volumes * slices
            samples = max(1, round(each * fit.data_share))
            size = min(fit.batch_size, samples)
            # What a step costs follows from these alone.
            key = replace(trial, fit=replace(fit, seed=0, batch_size=size, learning_rate=1e-3))
            key = replace(key, fit=replace(key.fit, data_share=1.0))
            if key not in rates:
                rates[key] = seconds_per_sample(key, cohort.shape, place)
            seconds = rates[key] * samples * fit.epochs
            estimates.append(Estimate(experiment=trial, samples=samples, seconds=seconds))
    finally:
        torch.set_num_threads(before)
    return estimates


def seconds_per_sample(
    trial: Experiment, shape: tuple[int, int, int], device: torch.device
) -> float:
    """Seconds of a training step, a sample, over all its phases."""
    detector = build_detector(trial, shape)
    assert isinstance(detector, GradientDetector)
    detector = detector.to(device)
    spatial = shape if detector.ndim == 3 else shape[1:]
    size = trial.fit.batch_size
    batch = Batch(ids=torch.arange(size), images=torch.rand(size, *spatial).half())
    steps = Steps(
        detector=detector,
        module=detector,
        optimizers=make_optimizers(detector, trial.fit),
        experiment=trial,
        device=device,
        bfloat16=reduced_precision(trial.fit.precision, detector, device),
        micro_batch=0,
        world=World(),
    )
    seconds = 0.0
    for phase in detector.phases():
        detector.phase = phase.name
        steps.epoch(iter([batch]), None, 0, phase.players)
        start = time.perf_counter()
        steps.epoch(iter([batch] * STEPS), None, 0, phase.players)
        seconds += phase.share * (time.perf_counter() - start)
    return seconds / (STEPS * size)


def _slices_with_brain(cohort: Cohort) -> float:
    """Mean number of axial slices that hold brain, from the first volumes."""
    brain = cohort.read("brain", 0, min(8, len(cohort.subjects)))
    return float(np.asarray(brain).any((2, 3)).sum(1).mean())
