"""Spatial erasing of the input (Bengs 2021, section 2.2 and figure 3), in 2D and 3D.

`sample_erasing` draws where to erase, `erase` applies it. Both are functions of
(seed, epoch, sample id), so that an epoch's erasing is the same on CPU and GPU, for any number of
workers, in a first run or a resumed one. The training target is always the clean image.

Shape suffixes: B samples, R regions, D = 2 or 3 spatial axes (Y, X) or (Z, Y, X).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from uadray import counter
from uadray.config import ErasingConfig


@dataclass(frozen=True, kw_only=True)
class Erasing:
    """Where one batch is erased; drawn apart from its application, so that it can be replayed."""

    erased: np.ndarray
    """(B,) bool: whether the sample is erased at all."""
    regions_BRD2: np.ndarray
    """(B, R, D, 2) int64: boxes [start, stop), clipped at the border; an absent one is empty."""
    right: np.ndarray | None
    """(B,) bool for half-volume: right or left side of the brain; None for boxes."""


def sample_erasing(
    config: ErasingConfig, ids: Tensor, *, seed: int, epoch: int, spatial: tuple[int, ...]
) -> Erasing:
    """Draw what is erased in each sample.

    A region of share s has the input's own aspect: each side is s^(1/D) of the input's, around a
    random centre voxel, clipped at the border. Multi-cube draws the total share and splits it at
    random over 1 to `max_regions` regions. Half-volume draws a side of the brain and 1 to
    `max_slices_share` of successive axial slices; in 2D the one slice.

    Args:
        config: What to draw from.
        ids: (B,) int64 sample ids.
        seed: The run's seed.
        epoch: The epoch, from 0.
        spatial: Shape of a sample, (Y, X) or (Z, Y, X).
    """
    ndim, size = len(spatial), np.array(spatial)
    num_regions = config.max_regions if config.strategy == "multi-cube" else 1
    key = counter.keys(seed, epoch, ids.cpu(), counter.PARAMETERS)
    # Sampled on the CPU whatever the device: a last-bit difference would move a box by a voxel.
    u = counter.uniform(key, 4 + num_regions * (ndim + 1)).numpy()
    erased = (u[:, 0] < config.probability) & (config.strategy != "none")
    regions = np.zeros((len(ids), num_regions, ndim, 2), np.int64)
    if config.strategy == "half-volume":
        regions[:, 0, :, 1] = size
        if ndim == 3:
            most = max(1, round(config.max_slices_share * spatial[0]))
            count = 1 + np.floor(u[:, 1] * most).astype(np.int64)
            start = np.floor(u[:, 2] * (spatial[0] - count + 1)).astype(np.int64)
            regions[:, 0, 0] = np.stack([start, start + count], 1)
        return Erasing(erased=erased, regions_BRD2=regions, right=u[:, 3] < 0.5)
    share = config.min_share + (config.max_share - config.min_share) * u[:, 1]
    present = np.arange(num_regions) < 1 + np.floor(u[:, 2:3] * num_regions)
    # Normalised exponentials split the total uniformly over all ways to split it.
    weight = -np.log(u[:, 4 : 4 + num_regions]) * present
    shares = share[:, None] * weight / weight.sum(1, keepdims=True)
    sides = np.maximum(1, np.rint(shares[..., None] ** (1 / ndim) * size)).astype(np.int64)
    centre = u[:, 4 + num_regions :].reshape(len(ids), num_regions, ndim)
    start = np.floor(centre * size).astype(np.int64) - sides // 2
    boxes = np.stack([start.clip(0), np.minimum(start + sides, size)], -1)
    regions[present] = boxes[present]
    return Erasing(erased=erased, regions_BRD2=regions, right=None)


def _inside(spans_BR2: Tensor, length: int) -> Tensor:
    place = torch.arange(length, device=spans_BR2.device)
    return (place >= spans_BR2[..., :1]) & (place < spans_BR2[..., 1:])


def _mask(x: Tensor, regions_BRD2: Tensor, right: Tensor | None) -> Tensor:
    """Erased voxels, (B, *spatial) bool, as a union of boxes, without a loop over samples."""
    spatial = x.shape[1:]
    axes = [_inside(regions_BRD2[:, :, d], n) for d, n in enumerate(spatial)]
    if right is not None:
        # The mid-sagittal plane is where half of the brain's voxels lie on either side: steady
        # under one-sided outgrowths, and it needs no registration.
        columns = (x > 0).flatten(1, -2).sum(1).cumsum(1)
        half = (columns * 2 >= columns[:, -1:]).int().argmax(1)
        is_right = torch.arange(spatial[-1], device=x.device) > half[:, None]
        axes[-1] = axes[-1] & (is_right == right[:, None])[:, None]
    rows = axes[0].float()
    for axis in axes[1:-1]:
        rows = (rows[..., None] * axis.float()[:, :, None]).flatten(2)
    # The union of outer products is a matrix product over the regions.
    union = torch.bmm(rows.transpose(1, 2), axes[-1].float()) > 0
    return union.reshape(x.shape)


def erase(
    x: Tensor, erasing: Erasing, config: ErasingConfig, ids: Tensor, *, seed: int, epoch: int
) -> Tensor:
    """Apply `erasing` to a batch.

    Noise is drawn from the brain voxels of the same sample with replacement, so that it follows
    the image's own intensity distribution. The paper says "sampled from the image pixel
    distribution"; we leave the background out of it, since its zeros are two thirds of the voxels
    and would make noise mostly zero fill.

    Args:
        x: (B, *spatial) of any floating type, background 0.
        erasing: From `sample_erasing`.
        config: The same as there.
        ids: (B,) int64 sample ids.
        seed: The run's seed.
        epoch: The epoch, from 0.

    Returns:
        A new tensor; samples that are not erased and voxels outside the regions are bit-equal.
    """
    chosen = torch.from_numpy(np.flatnonzero(erasing.erased)).to(x.device)
    if len(chosen) == 0:
        return x.clone()
    where = erasing.erased
    regions = torch.from_numpy(erasing.regions_BRD2[where]).to(x.device)
    right = None if erasing.right is None else torch.from_numpy(erasing.right[where]).to(x.device)
    part = x[chosen]
    mask = _mask(part, regions, right)
    if config.fill == "zero":
        part = part.masked_fill(mask, 0)
    else:
        key = counter.keys(seed, epoch, ids.to(x.device)[chosen], counter.NOISE)
        flat = part.flatten(1)
        sample, voxel = mask.flatten(1).nonzero(as_tuple=True)
        brain = flat > 0
        count = brain.sum(1)
        offset = count.cumsum(0) - count
        pool = flat[brain]
        pick = (counter.bits(key[sample], voxel) * count[sample]) >> 32
        if len(pool):
            drawn = pool[(offset[sample] + pick).clamp_max(len(pool) - 1)]
            drawn = torch.where(count[sample] > 0, drawn, torch.zeros_like(drawn))
        else:
            drawn = torch.zeros_like(flat[sample, voxel])
        flat = flat.clone()
        flat[sample, voxel] = drawn
        part = flat.reshape(part.shape)
    out = x.clone()
    out[chosen] = part
    return out
