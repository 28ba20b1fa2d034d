"""Spatial erasing of the input (Bengs 2021, section 2.2 and figure 3), in 2D and 3D.

`sample_erasing` draws where to erase, `erase` applies it. Both are functions of
(seed, epoch, sample id), so that an epoch's erasing is the same on CPU and GPU, for any number of
workers, in a first run or a resumed one. The training target is always the clean image.

Shape suffixes: B samples, R regions, D = 2 or 3 spatial axes (Y, X) or (Z, Y, X).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import groupby, pairwise
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uadray import random
from uadray.data.batch import on_device
from uadray.errors import PluginError
from uadray.plugins import failure
from uadray.strategies import BENGS, STRATEGIES, ErasingConfig, Regions, strategy

_CPU_VOXELS = 2**18
"""Voxels of the samples that a CPU takes at once: what is computed for one volume of 64^3, or for
64 of its slices, stays in the cache."""

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, kw_only=True)
class Erasing:
    """Where one batch is erased; drawn apart from its application, so that it can be replayed."""

    erased: NDArray[np.bool_]
    """(B,): whether the sample is erased at all."""
    regions_BRD2: NDArray[np.int64]
    """(B, R, D, 2): boxes [start, stop), clipped at the border; an absent one is empty."""
    right: NDArray[np.bool_] | None
    """(B,) for half-volume: right or left side of the brain; None for boxes."""

    def part(self, samples: slice) -> "Erasing":
        """That of some samples of the batch."""
        return Erasing(
            erased=self.erased[samples],
            regions_BRD2=self.regions_BRD2[samples],
            right=None if self.right is None else self.right[samples],
        )


def sample_erasing(
    config: ErasingConfig, ids: Tensor, *, seed: int, epoch: int, spatial: tuple[int, ...]
) -> Erasing:
    """Draw what is erased in each sample.

    How regions are drawn is in the strategy's entry (`uadray.strategies`).

    Args:
        config: What to draw from.
        ids: (B,) int64 sample ids.
        seed: The run's seed.
        epoch: The epoch, from 0.
        spatial: Shape of a sample, (Y, X) or (Z, Y, X).
    """
    key = random.keys(seed, epoch, ids.cpu(), random.PARAMETERS)

    def uniform(count: int) -> NDArray[np.float64]:
        # Sampled on the CPU whatever the device: a last-bit difference would move a box by a voxel.
        numbers: NDArray[np.float64] = random.uniform(key, count).numpy()
        return numbers

    if (one := strategy(config)) is None:
        empty = np.zeros((len(ids), 1, len(spatial), 2), np.int64)
        return Erasing(erased=np.zeros(len(ids), bool), regions_BRD2=empty, right=None)
    # The first number says whether; all others are the strategy's.
    if one.key not in BENGS:
        check_draw(config, spatial)
    regions = one.draw(config, spatial, lambda count: uniform(1 + count)[:, 1:])
    return Erasing(
        erased=uniform(1)[:, 0] < config.probability,
        regions_BRD2=regions.boxes_BRD2,
        right=regions.right,
    )


@lru_cache
def check_draw(config: ErasingConfig, spatial: tuple[int, ...]) -> None:
    """Refuse a strategy from outside whose regions cannot be erased, or not be drawn again.

    Args:
        config: Its settings.
        spatial: Shape of a sample, (Y, X) or (Z, Y, X).

    Raises:
        PluginError: it fails, its regions have another type, shape or bounds, or they do not follow
            from the sample's own random numbers.
    """
    one, ids = STRATEGIES.need(config.strategy), torch.arange(16)
    whose = f"erasing strategy {config.strategy} of {config.package or 'uadray'}"

    def draw(ids: Tensor) -> Regions:
        key = random.keys(0, 0, ids, random.PARAMETERS)
        return one.draw(
            config, spatial, lambda count: random.uniform(key, 1 + count).numpy()[:, 1:]
        )

    try:
        drawn, alone = draw(ids), [draw(one_id) for one_id in ids.split(1)]
        nominal = float(one.nominal(config, spatial))
    except Exception as error:
        raise PluginError(f"{whose} fails: {failure(error, one.draw.__module__)}") from error
    boxes, right = getattr(drawn, "boxes_BRD2", None), getattr(drawn, "right", None)
    if not isinstance(boxes, np.ndarray) or boxes.dtype != np.int64 or boxes.ndim != 4:
        raise PluginError(
            f"{whose}: draw must return Regions with boxes of int64, was {drawn!r:.200}"
        )
    num, _, *ends = boxes.shape
    if (num, *ends) != (len(ids), len(spatial), 2):
        expected = f"({len(ids)}, R, {len(spatial)}, 2)"
        raise PluginError(f"{whose}: boxes must have shape {expected}, was {boxes.shape}")
    if (boxes < 0).any() or (boxes > np.array(spatial)[:, None]).any():
        raise PluginError(f"{whose}: a box leaves the sample of {spatial}: clip or shift it")
    if right is not None and (getattr(right, "dtype", None), right.shape) != (bool, (len(ids),)):
        raise PluginError(f"{whose}: right must be None or bool ({len(ids)},), was {right!r:.200}")
    if not all(_same(drawn, one, slice(k, k + 1)) for k, one in enumerate(alone)):
        raise PluginError(
            f"{whose}: regions must follow from the sample's own random numbers alone, so that a "
            "resumed fit erases alike: draw from `uniform`, with nothing of the other samples"
        )
    if not 0 < nominal <= 1:
        raise PluginError(f"{whose}: nominal must be a share in (0, 1], was {nominal!r}")


def _same(one: Regions, other: Regions, samples: slice) -> bool:
    right = None if one.right is None else one.right[samples].tolist()
    other_right = None if other.right is None else other.right.tolist()
    boxes = np.array_equal(one.boxes_BRD2[samples], other.boxes_BRD2)
    return boxes and right == other_right


def columns_left(x: Tensor) -> Tensor:
    """Columns on the left of each sample's mid-sagittal plane, (B,) int64.

    The plane stands where half of the brain's voxels lie on either side: steady under one-sided
    outgrowths, and it needs no registration. The middle column of an odd number is on the left. It
    is the plane of the whole volume in 3D, and of the slice in 2D. On 24 real brains at 64^3 it was
    within a column of the plane about which they mirror best; the heads' tilt put 1.2 % of their
    voxels on the wrong side (at most 2.5 %).

    Args:
        x: (B, *spatial), background 0.
    """
    if x.device.type == "cpu":
        brain = (_integers(x) > 0).view(np.uint8)
        # Bytes add up along the outermost axis several times as fast as wider numbers.
        narrow = np.uint8 if brain.shape[1] < 256 else np.uint32
        columns = torch.from_numpy(brain.sum(1, dtype=narrow).reshape(len(x), -1, x.shape[-1]))
    else:
        columns = (x > 0).flatten(1, -2)
    total = columns.sum(1, dtype=torch.int64).cumsum(1)
    return 1 + (total * 2 >= total[:, -1:]).int().argmax(1)


def erased_boxes(x: Tensor, erasing: Erasing) -> NDArray[np.int64]:
    """What is erased as boxes alone, (B, R, D, 2); empty where the sample is not erased.

    Args:
        x: (B, *spatial), background 0; it tells the sides of the brain.
        erasing: From `sample_erasing`.
    """
    boxes = erasing.regions_BRD2 * erasing.erased[:, None, None, None]
    if erasing.right is not None:
        left = columns_left(x).cpu().numpy()
        boxes[:, 0, -1, 0] = np.where(erasing.right, left, 0)
        boxes[:, 0, -1, 1] = np.where(erasing.right, x.shape[-1], left)
    return boxes


def erased_mask(x: Tensor, erasing: Erasing) -> NDArray[np.bool_]:
    """Which voxels are erased, (B, *spatial).

    Args:
        x: (B, *spatial), background 0; it tells the sides of the brain.
        erasing: From `sample_erasing`.
    """
    mask = np.zeros(x.shape, bool)
    for sample, box in _each_box(erased_boxes(x, erasing)):
        mask[sample][box] = True
    return mask


def erased_counts(x: Tensor, erasing: Erasing, boxes: NDArray[np.int64] | None = None) -> Tensor:
    """How much of a batch is erased, as sums that add up over batches and workers.

    Args:
        x: (B, *spatial), background 0; what is above it is brain.
        erasing: From `sample_erasing`.
        boxes: What `erased_boxes` gives, where it is known: on a GPU it may have to be waited for.

    Returns:
        (4,) float64 on the device of `x`, in the order of `ErasedShares`: samples that are erased,
        the sum of their erased shares of the input, that of their erased shares of the brain, and
        those of them that touch no brain. Overlapping boxes count once.
    """
    boxes = erased_boxes(x, erasing) if boxes is None else boxes
    hit, brain, both = _count(x, boxes) if x.device.type == "cpu" else _count_on_device(x, boxes)
    return _counted(on_device(torch.from_numpy(erasing.erased), x.device), x, hit, brain, both)


def _counted(erased_B: Tensor, x: Tensor, hit_B: Tensor, brain_B: Tensor, both_B: Tensor) -> Tensor:
    return torch.stack(
        [
            erased_B.sum().double(),
            (hit_B.double() / x[0].numel()).sum(),
            (both_B.double() / brain_B.clamp(min=1)).sum(),
            (erased_B & (both_B == 0)).sum().double(),
        ]
    )


def _count(x: Tensor, boxes_BRD2: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
    """Voxels erased, voxels of the brain, and those that are both, each (B,), on the CPU.

    Of samples that are not erased all are 0.
    """
    counts, voxels = np.zeros((3, len(x)), np.int64), _integers(x)
    for sample, boxes in groupby(_each_box(boxes_BRD2), key=itemgetter(0)):
        mask = np.zeros(x.shape[1:], bool)
        for _, box in boxes:
            mask[box] = True
        brain = voxels[sample] > 0
        counts[:, sample] = [np.count_nonzero(one) for one in (mask, brain, mask & brain)]
    hit, brain, both = torch.from_numpy(counts)
    return hit, brain, both


def _count_on_device(x: Tensor, boxes_BRD2: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
    """The same of a whole batch at once."""
    hits = hits_of(on_device(torch.from_numpy(boxes_BRD2), x.device), tuple(x.shape[1:]))
    brain = x.flatten(1) > 0
    return hits.sum(1), brain.sum(1), (hits & brain).sum(1)


def hits_of(boxes: Tensor, spatial: tuple[int, ...]) -> Tensor:
    """Which voxels lie in a box, (B, voxels), of boxes (B, R, D, 2) on the device that computes."""
    *outer, along_BRN = (
        (place >= span[..., :1]) & (place < span[..., 1:])
        for place, span in zip(
            (torch.arange(length, device=boxes.device) for length in spatial),
            boxes.unbind(2),
            strict=True,
        )
    )
    rows_BRN = outer[0]
    for inside_BRN in outer[1:]:
        rows_BRN = (rows_BRN[..., None] & inside_BRN[:, :, None]).flatten(2)
    # The union of boxes as a product of matrices: how many of them hold a voxel, exactly.
    return torch.bmm(rows_BRN.transpose(1, 2).float(), along_BRN.float()).flatten(1) > 0


@dataclass(frozen=True, kw_only=True)
class ErasedShares:
    """How much was erased of the samples that were, over an epoch or a fit."""

    samples: int
    """That were erased."""
    share: float
    """Mean erased share of the input: after clipping and overlap."""
    brain_share: float
    """Mean erased share of the brain."""
    no_brain: float
    """Share of these samples whose regions touch no brain at all."""

    @classmethod
    def of(cls, counts: Sequence[float]) -> "ErasedShares | None":
        """From the sums of `erased_counts`; None where nothing was erased."""
        samples, share, brain_share, no_brain = map(float, counts)
        if not samples:
            return None
        return cls(
            samples=round(samples),
            share=share / samples,
            brain_share=brain_share / samples,
            no_brain=no_brain / samples,
        )


def erase(
    x: Tensor,
    erasing: Erasing,
    config: ErasingConfig,
    ids: Tensor,
    *,
    seed: int,
    epoch: int,
    out: Tensor | None = None,
    boxes: NDArray[np.int64] | None = None,
) -> Tensor:
    """Apply `erasing` to a batch.

    Noise is drawn from the brain voxels of the same sample with replacement, so that it follows
    the image's own intensity distribution. The paper says "sampled from the image pixel
    distribution"; we leave the background out of it, since its zeros are two thirds of the voxels
    and would make noise mostly zero fill. A sample without brain stays as it is.

    Args:
        x: (B, *spatial) of any floating type, background 0.
        erasing: From `sample_erasing`.
        config: The same as there.
        ids: (B,) int64 sample ids.
        seed: The run's seed.
        epoch: The epoch, from 0.
        out: Another contiguous tensor like `x` to write to. On a CPU fresh memory costs more than
            the erasing itself.
        boxes: What `erased_boxes` gives, where it is known; a CPU takes it sample by sample.

    Returns:
        `out` or a new tensor; samples that are not erased and voxels outside the regions are
        bit-equal to `x`.
    """
    if out is None:
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    assert (out.shape, out.dtype, out.is_contiguous()) == (x.shape, x.dtype, True)
    assert out.data_ptr() != x.data_ptr(), "the target must stay clean"
    key = random.keys(seed, epoch, ids.cpu(), random.NOISE) if config.fill == "noise" else None
    if x.device.type != "cpu":
        boxes = erased_boxes(x, erasing) if boxes is None else boxes
        _fill_on_device(x, out.copy_(x), boxes, key)
        return out
    at_once = max(1, _CPU_VOXELS // x[0].numel())
    for first in range(0, len(x), at_once):
        part = slice(first, first + at_once)
        # Copied by and by, so that a sample is still in the cache when it is erased.
        out[part].copy_(x[part])
        if erasing.erased[part].any():
            boxes = erased_boxes(x[part], erasing.part(part))
            _fill(x[part], out[part], boxes, None if key is None else key[part])
    return out


def _integers(x: Tensor) -> NDArray[Any]:
    """The bits of floats as integers, in place: they are positive where the floats are."""
    return x.contiguous().view(_INTEGERS[x.element_size()]).numpy()


def _each_box(boxes_BRD2: NDArray[np.int64]) -> Iterator[tuple[int, tuple[slice, ...]]]:
    """Each box that is not empty, with its sample."""
    full = (boxes_BRD2[..., 0] < boxes_BRD2[..., 1]).all(-1)
    for sample, region in np.argwhere(full).tolist():
        yield sample, tuple(slice(*span) for span in boxes_BRD2[sample, region].tolist())


def _fill(x: Tensor, out: Tensor, boxes_BRD2: NDArray[np.int64], key_B: Tensor | None) -> None:
    """Fill boxes of a few samples on the CPU, with zero where there is no key."""
    target = _integers(out)
    if key_B is None:
        for sample, box in _each_box(boxes_BRD2):
            target[sample][box] = 0
        return
    runs = _Runs.of(boxes_BRD2, tuple(x.shape[1:]))
    voxel = np.arange(runs.length.sum())
    voxel += np.repeat(runs.start - runs.before, runs.length)
    key = key_B.numpy()
    if len(x) > 1:
        key = np.repeat(key[runs.sample], runs.length)
    pick = random.bits(torch.from_numpy(key), torch.from_numpy(voxel)).numpy()
    ends = np.append(runs.before, len(voxel))[np.searchsorted(runs.sample, np.arange(len(x) + 1))]
    source, target = _integers(x).reshape(len(x), -1), target.reshape(len(x), -1)
    for sample, (first, last) in enumerate(pairwise(ends.tolist())):
        if first == last:
            continue
        pool = source[sample][source[sample] > 0]
        if len(pool):
            place = (pick[first:last] * len(pool)) >> 32
            target[sample][voxel[first:last]] = pool[place]


def _fill_on_device(
    x: Tensor, out: Tensor, boxes_BRD2: NDArray[np.int64], key_B: Tensor | None
) -> None:
    """Fill boxes of a whole batch at once: as few kernels as steps, whatever is erased.

    All sizes are known to the host, so that it need not wait for the device.
    """
    runs = _Runs.of(boxes_BRD2, tuple(x.shape[1:]))
    num, num_voxels = int(runs.length.sum()), x[0].numel()
    if num == 0:
        return
    chosen, number = np.unique(runs.sample, return_inverse=True)
    which, run, start, length = (
        on_device(torch.from_numpy(a), x.device)
        for a in (chosen, number, runs.start - runs.before, runs.length)
    )
    sample = run.repeat_interleave(length, output_size=num)
    voxel = torch.arange(num, device=x.device) + start.repeat_interleave(length, output_size=num)
    place = which[sample] * num_voxels + voxel
    if key_B is None:
        out.view(-1).index_fill_(0, place, 0)
        return
    flat = x[which].flatten(1)
    brain = flat > 0
    within = brain.cumsum(1)
    first = torch.arange(0, flat.numel(), num_voxels, device=x.device)
    # What is no brain goes to one place after the rest; a sample without brain gives zeros.
    slot = torch.where(brain, within - 1 + first[:, None], flat.numel())
    pool = flat.new_zeros(flat.numel() + 1)
    pool.scatter_(0, slot.flatten(), flat.flatten())
    key = on_device(key_B[torch.from_numpy(chosen)], x.device)
    pick = (random.bits(key[sample], voxel) * within[:, -1][sample]) >> 32
    out.view(-1).scatter_(0, place, pool[pick + first[sample]])


@dataclass(frozen=True, kw_only=True)
class StaticErasing:
    """One batch's erasing as tensors on the device that computes, whose shapes are always the same.

    What is erased is then a function of tensors alone, with nothing to wait for: a CUDA graph can
    hold it. The bits are those of `erase`.
    """

    erased: Tensor
    """(B,) bool: whether the sample is erased at all."""
    boxes: Tensor
    """(B, R, D, 2) int64, empty where the sample is not erased."""
    right: Tensor | None
    """(B,) bool for half-volume; None for boxes."""
    key: Tensor | None
    """(B,) int64: keys of the noise; None fills with zero."""

    @classmethod
    def of(
        cls,
        erasing: Erasing,
        config: ErasingConfig,
        ids: Tensor,
        *,
        seed: int,
        epoch: int,
        device: torch.device,
    ) -> "StaticErasing":
        """That of `erase` with the same arguments."""
        key = random.keys(seed, epoch, ids.cpu(), random.NOISE) if config.fill == "noise" else None
        boxes = erasing.regions_BRD2 * erasing.erased[:, None, None, None]
        right = None if erasing.right is None else torch.from_numpy(erasing.right)
        return cls(
            erased=on_device(torch.from_numpy(erasing.erased), device),
            boxes=on_device(torch.from_numpy(boxes), device),
            right=None if right is None else on_device(right, device),
            key=None if key is None else on_device(key, device),
        )

    @classmethod
    def names(cls) -> set[str]:
        """Of the tensors that there may be."""
        return {one.name for one in fields(cls)}

    def part(self, samples: slice) -> "StaticErasing":
        """That of some samples of the batch."""
        each: dict[str, Any] = {
            name: None if tensor is None else tensor[samples] for name, tensor in vars(self).items()
        }
        return StaticErasing(**each)

    def tensors(self) -> dict[str, Tensor]:
        """Those that there are, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def apply(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What `erase` makes of samples (B, *spatial), and their `erased_counts`."""
        boxes = self.boxes
        if self.right is not None:
            left, boxes = columns_left(x), boxes.clone()
            boxes[:, 0, -1, 0] = torch.where(self.right, left, 0)
            boxes[:, 0, -1, 1] = torch.where(self.right, x.shape[-1], left)
        hits, flat = hits_of(boxes, tuple(x.shape[1:])), x.flatten(1)
        brain = flat > 0
        counts = _counted(self.erased, x, hits.sum(1), brain.sum(1), (hits & brain).sum(1))
        filled = self._noise(flat, brain) if self.key is not None else torch.zeros_like(flat)
        return torch.where(hits, filled, flat).view_as(x), counts

    def _noise(self, flat: Tensor, brain: Tensor) -> Tensor:
        """A value of the sample's brain for each voxel, (B, voxels); 0 where there is no brain."""
        assert self.key is not None
        num_voxels = flat.shape[1]
        within = brain.cumsum(1)
        # What is no brain goes to one place after the rest.
        slot = torch.where(brain, within - 1, num_voxels)
        pool = flat.new_zeros(len(flat), num_voxels + 1).scatter_(1, slot, flat)
        voxel = torch.arange(num_voxels, device=flat.device)
        pick = random.bits_on_device(self.key[:, None], voxel) * within[:, -1:]
        return pool.gather(1, pick.bitwise_right_shift_(32))


@dataclass(frozen=True, kw_only=True)
class _Runs:
    """Boxes as runs of voxels along X. Overlapping boxes name a voxel twice; both get its value."""

    sample: NDArray[np.int64]
    """(runs,): which sample it is in, ascending."""
    start: NDArray[np.int64]
    """(runs,): its first voxel, counted within the sample."""
    length: NDArray[np.int64]
    """(runs,): its voxels."""
    before: NDArray[np.int64]
    """(runs,): voxels of all runs before it."""

    @classmethod
    def of(cls, boxes_BRD2: NDArray[np.int64], spatial: tuple[int, ...]) -> "_Runs":
        num_regions, ndim = boxes_BRD2.shape[1:3]
        start, stop = boxes_BRD2.reshape(-1, ndim, 2).transpose(2, 0, 1)
        side = stop - start
        num = side[:, :-1].prod(1) * (side[:, -1] > 0)
        box = np.repeat(np.arange(len(num)), num)
        rest = np.arange(len(box)) - np.repeat(num.cumsum() - num, num)
        voxel, stride = start[box, -1], spatial[-1]
        for axis in range(ndim - 2, -1, -1):
            rest, along = np.divmod(rest, side[box, axis])
            voxel = voxel + (start[box, axis] + along) * stride
            stride *= spatial[axis]
        length = side[box, -1]
        before = length.cumsum() - length
        return cls(sample=box // num_regions, start=voxel, length=length, before=before)
