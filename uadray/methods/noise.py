"""Coarse noise: normal numbers on grids of a few cells across the field of view, enlarged linearly.

The grids are periodic and lie anywhere, so that the noise has no seam and is alike at all voxels.
All is a function of standard normal numbers that are given, at every size of the images.
"""

import math
from collections.abc import Sequence

from uadray import random
from uadray.lazy import Tensor, torch
from uadray.methods.networks import uniform


class CoarseNoise:
    """A sum of coarse grids, scaled to a deviation of 1.

    Args:
        spatial: Shape of a sample.
        cells: Of each grid, its cells along the longest side; along others in proportion.
        decay: Amplitude of each grid over that of the one before.
    """

    def __init__(self, spatial: Sequence[int], cells: Sequence[int], decay: float = 1.0) -> None:
        self.spatial = tuple(spatial)
        longest = max(spatial)
        self.grids = [
            tuple(max(1, min(n, round(across * n / longest))) for n in spatial) for across in cells
        ]
        # Linear interpolation lowers the mean variance to 2/3 an axis.
        variances = [(2 / 3) ** sum(n > 1 for n in grid) for grid in self.grids]
        total = math.sqrt(sum(v * decay ** (2 * k) for k, v in enumerate(variances)))
        self._amplitudes = [decay**k / total for k in range(len(self.grids))]
        self._parts = [math.prod(grid) for grid in self.grids]
        self.num_noise = sum(self._parts) + len(self.grids) * len(spatial)
        """Standard normal numbers that a field takes: its grids, then where each begins."""

    def __call__(self, noise: Tensor) -> Tensor:
        """Fields (B, 1, *spatial) float32 of numbers (B, num_noise)."""
        ndim = len(self.spatial)
        *values, places = noise.split([*self._parts, len(self.grids) * ndim], dim=1)
        begins = uniform(places).unflatten(1, (-1, ndim))
        field = torch.zeros(len(noise), *self.spatial, device=noise.device)
        # In bfloat16 the noise would have steps.
        with torch.autocast(noise.device.type, enabled=False):
            for number, (grid, amplitude) in enumerate(
                zip(self.grids, self._amplitudes, strict=True)
            ):
                enlarged = values[number].float().unflatten(1, grid)
                for axis, (size, count) in enumerate(zip(self.spatial, grid, strict=True)):
                    weights = _weights(size, count, begins[:, number, axis])
                    rows = enlarged.movedim(1 + axis, -1)
                    flat = rows.flatten(1, -2) @ weights.transpose(1, 2)
                    enlarged = flat.unflatten(1, rows.shape[1:-1]).movedim(-1, 1 + axis)
                field = field + amplitude * enlarged
        return field[:, None]


def _weights(size: int, count: int, begin_B: Tensor) -> Tensor:
    """Of periodic linear interpolation from `count` cells to `size` voxels, (B, size, count)."""
    at = torch.arange(size, device=begin_B.device) * (count / size) + begin_B[:, None]
    below = at.floor()
    above = (at - below)[..., None]
    cells = torch.arange(count, device=begin_B.device)
    first = (below.remainder(count)[..., None] == cells).float()
    second = ((below + 1).remainder(count)[..., None] == cells).float()
    return first * (1 - above) + second * above


def fixed(rows: int, num: int) -> Tensor:
    """Standard normal numbers (rows, num), always the same: for what a score draws.

    With them the same scan has the same map.
    """
    return random.normal(random.keys(0, 0, torch.arange(rows), random.LATENT), num)


def as_maps(values_B: Tensor, ndim: int) -> Tensor:
    """A number of each sample as (B, 1, 1, 1) or (B, 1, 1, 1, 1)."""
    return values_B.view(-1, 1, *[1] * ndim)


def a_voxel(brain: Tensor, place_B: Tensor) -> Tensor:
    """A voxel of each brain, (B, ndim) int64; the last of all where there is none.

    Args:
        brain: (B, 1, *spatial) bool.
        place_B: Uniform in (0, 1).
    """
    counts = brain.flatten(1).long().cumsum(1)
    wanted = (place_B * counts[:, -1]).floor().long() + 1
    at = torch.searchsorted(counts, wanted[:, None])[:, 0].clamp_max(counts.shape[1] - 1)
    places = []
    for size in reversed(brain.shape[2:]):
        places.append(at % size)
        at = at // size
    return torch.stack(places[::-1], 1)


def moved(x: Tensor, shifts: Tensor, mirrors: Tensor | None = None) -> Tensor:
    """Images moved round along each axis, and perhaps mirrored before.

    Args:
        x: (B, 1, *spatial).
        shifts: Uniform in (0, 1), (B, ndim): how far, as a share of the side.
        mirrors: The same: less than a half mirrors.
    """
    for axis in range(2, x.ndim):
        size, own = x.shape[axis], slice(axis - 2, axis - 1)
        at = torch.arange(size, device=x.device)
        at = (at + (shifts[:, own] * size).floor().long()) % size
        if mirrors is not None:
            at = torch.where(mirrors[:, own] < 0.5, size - 1 - at, at)
        places = at.view(-1, *(size if a == axis else 1 for a in range(1, x.ndim)))
        x = torch.take_along_dim(x, places, axis)
    return x
