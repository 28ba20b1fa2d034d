"""Tiny smooth brains, a lesion planted in them, and a fit of a few seconds without any loop."""

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from uadray import random
from uadray.methods import GradientDetector
from uadray.methods.base import Masked, slices_as_batch

SHAPE = (8, 16, 16)
"""(Z, Y, X) of every volume."""

NUM = 16
"""Volumes that a short fit learns from."""


def brains(num: int, seed: int = 0) -> Tensor:
    """Ellipsoids with six shared smooth modes of texture, (num, 1, Z, Y, X), background 0."""
    shared = np.random.default_rng(99)
    modes = np.stack(
        [ndimage.gaussian_filter(shared.standard_normal(SHAPE), (1, 2, 2)) for _ in range(6)]
    )
    modes /= modes.std((1, 2, 3), keepdims=True)
    z, y, x = (np.linspace(-1, 1, n) for n in SHAPE)
    inside = (z[:, None, None] / 1.2) ** 2 + y[:, None] ** 2 + x**2 < 0.9
    weights = np.random.default_rng(seed).standard_normal((num, 6))
    images = 0.5 + 0.04 * np.tensordot(weights, modes, 1)
    return torch.from_numpy((images.clip(0.05, 0.95) * inside).astype(np.float32))[:, None]


def plant(x: Tensor) -> tuple[Tensor, Tensor]:
    """A bright block of 2 x 4 x 4 voxels in each volume; the volumes, and where, (B, Z, Y, X)."""
    lesion = torch.zeros(x[:, 0].shape, dtype=torch.bool)
    lesion[:, 3:5, 6:10, 6:10] = True
    return torch.where(lesion[:, None], (x + 0.35).clamp_max(1), x), lesion


def contrast(detector: GradientDetector, x: Tensor, lesion: Tensor) -> float:
    """Mean score of the lesion over the mean score of the rest of the brain."""
    brain = x[:, 0] > 0
    with torch.inference_mode():
        scores = detector.eval().anomaly_map(x, brain)
    return float(scores[lesion].mean() / scores[brain & ~lesion].mean())


def fit_few(detector: GradientDetector, *, epochs: int, rate: float = 3e-3) -> list[float]:
    """Phase by phase and player by player, then calibrate; the loss of each epoch's last player."""
    x = brains(NUM)
    samples = slices_as_batch(x) if detector.ndim == 2 else x
    samples = samples[samples.flatten(1).any(1)]
    players = {player.name: player for player in detector.players()}
    optimizers = {
        name: torch.optim.Adam(p.parameters, p.learning_rate or rate, betas=p.betas)
        for name, p in players.items()
    }
    losses = []
    detector.train()
    for phase in detector.phases():
        detector.phase = phase.name
        for epoch in range(max(1, round(phase.share * epochs))):
            for name in phase.players:
                for parameter in detector.parameters():
                    parameter.requires_grad_(False)
                for parameter in players[name].parameters:
                    parameter.requires_grad_(True)
                key = random.keys(0, epoch, torch.arange(len(samples)), random.LATENT)
                noise = random.normal(key, detector.num_noise)
                who = {"player": name} if name else {}
                optimizers[name].zero_grad()
                loss = detector(samples, samples, noise, **who)["loss"]
                loss.backward()
                optimizers[name].step()
            losses.append(loss.item())
    for parameter in detector.parameters():
        parameter.requires_grad_(True)
    detector.eval()
    with torch.no_grad():
        healthy = brains(2, seed=50)
        detector.calibrate([Masked(healthy, healthy[:, 0] > 0)], lambda tensor: tensor)
    return losses
