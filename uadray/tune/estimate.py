"""What a sweep would take: steps of each network timed here, times their number."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from uadray.config import VAE, Experiment
from uadray.detectors import GradientDetector, build
from uadray.store import Cohort
from uadray.train.loop import reduced_precision

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


def estimate(trials: Sequence[Experiment], cohort: Cohort, *, threads: int = 1) -> list[Estimate]:
    """Time a few steps of each distinct network and multiply.

    Reading, validation and checkpoints are not in it; they are a few percent at 64^3.

    Args:
        trials: What would be fitted.
        cohort: On what.
        threads: Threads of a trial.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    volumes = len(cohort.rows("train"))
    slices = _slices_with_brain(cohort)
    rates: dict[tuple[VAE, int], float] = {}
    try:
        found = []
        for trial in trials:
            method, fit = trial.method, trial.fit
            if not isinstance(method, VAE):
                found.append(Estimate(experiment=trial, samples=volumes, seconds=0.0))
                continue
            each = volumes if method.ndim == 3 else volumes * slices
            samples = max(1, round(each * fit.data_share))
            key = (method, min(fit.batch_size, samples))
            if key not in rates:
                rates[key] = seconds_per_sample(trial, cohort.shape, key[1])
            seconds = rates[key] * samples * fit.epochs
            found.append(Estimate(experiment=trial, samples=samples, seconds=seconds))
    finally:
        torch.set_num_threads(before)
    return found


def seconds_per_sample(trial: Experiment, shape: tuple[int, int, int], batch_size: int) -> float:
    """Seconds of a training step, a sample; on a GPU where there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    detector = build(trial.method, shape)
    assert isinstance(detector, GradientDetector)
    detector = detector.to(device)
    optimizer = torch.optim.Adam(detector.parameters(), fused=True)
    spatial = shape if detector.ndim == 3 else shape[1:]
    x = torch.rand(batch_size, 1, *spatial, device=device)
    noise = torch.randn(batch_size, detector.num_noise, device=device)
    bfloat16 = reduced_precision(trial.fit.precision, detector, device)
    start = math.nan
    for step in range(1 + STEPS):
        if step == 1:
            _wait(device)
            start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            loss = detector(x, x, noise)["loss"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    _wait(device)
    return (time.perf_counter() - start) / (STEPS * batch_size)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _slices_with_brain(cohort: Cohort) -> float:
    """Mean number of axial slices that hold brain, from the first volumes."""
    brain = cohort.read("brain", 0, min(8, len(cohort.subjects)))
    return float(np.asarray(brain).any((2, 3)).sum(1).mean())
