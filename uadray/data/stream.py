"""From a cohort to batches: shuffled, split over workers, in the same order every time.

Ray Data reads whole shards; what a worker keeps in memory it reads by itself. Which volumes a
worker sees, in which order, and how they fall into batches is decided by `uadray.data.sampling`, as
functions of (seed, epoch, rank) alone. `streaming_split` is not used: it places rows differently
from run to run, so that a resumed run would not repeat the undisturbed one. For the same reason
nothing here asks Ray Data for its epoch, which begins at 0 again whenever a group of workers does:
the fit loop names the epoch.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import psutil
import ray.data
import torch

from uadray import cluster
from uadray.data.batch import Batch
from uadray.data.resident import ResidentBatches
from uadray.data.sampling import batch_share, epoch_groups, rank_rows, same_block
from uadray.data.volumes import (
    VolumeSource,
    as_slices,
    count_slices,
    dataset_of,
    read_rows,
    volumes,
)
from uadray.store import CHUNK_VOLUMES, Cohort


class TrainingStream:
    """One worker's part of a split, epoch after epoch.

    Args:
        cohort: A sealed cohort.
        rows: What all workers train on, ascending, such as `fit_rows` gives.
        ndim: 3 for volumes, 2 for axial slices that hold brain.
        batch_size: Samples in a batch over all workers; this one gets its `batch_share`.
        seed: Decides the order.
        rank: This worker.
        world: Number of workers.
        resident: Keep the part on `device` after reading it once; the batches are the same.
        device: Where resident images are kept.

    Raises:
        ConfigError: there are more workers than rows or than samples in a batch.
    """

    def __init__(
        self,
        cohort: Cohort,
        rows: np.ndarray,
        *,
        ndim: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        resident: bool = True,
        device: str = "cpu",
    ) -> None:
        self._cohort, self._ndim, self._seed = cohort, ndim, seed
        self._batch_size = batch_share(batch_size, rank, world)
        self.rows = rank_rows(rows, rank, world, batch_size)
        self._resident: ResidentBatches | None = None
        if resident:
            (images,) = _load(cohort, self.rows, "train", device)
            self._resident = ResidentBatches(
                images,
                self.rows,
                ndim=ndim,
                batch_size=self._batch_size,
                seed=seed,
                shard=cohort.shard,
            )

    def num_samples(self) -> int:
        """Samples of this worker in each epoch; streamed slices are counted by reading all once."""
        if self._ndim == 3:
            return len(self.rows)
        if self._resident is not None:
            return self._resident.num_samples()
        groups = epoch_groups(self.rows, self._cohort.shard, seed=0, epoch=0)
        dataset = dataset_of(VolumeSource(self._cohort, groups, change=count_slices), len(groups))
        with cluster.plain_errors():
            blocks = dataset.iter_batches(batch_size=None, batch_format="numpy")
            return sum(int(block["slices"].sum()) for block in blocks)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch, from 0; the last may be smaller."""
        if self._resident is not None:
            return self._resident.epoch(epoch)
        groups = epoch_groups(self.rows, self._cohort.shard, seed=self._seed, epoch=epoch)
        change = as_slices(self._seed, epoch) if self._ndim == 2 else None
        dataset = dataset_of(VolumeSource(self._cohort, groups, change=change), len(groups))
        return _batches(dataset, self._batch_size)


def _batches(dataset: ray.data.Dataset, batch_size: int) -> Iterator[Batch]:
    with cluster.plain_errors():
        for batch in dataset.iter_batches(batch_size=batch_size, batch_format="numpy"):
            # Batches are read-only views of the object store; the copy makes them ours.
            brain = batch.get("brain")
            yield Batch(
                ids=torch.from_numpy(batch["id"].astype(np.int64)),
                images=torch.from_numpy(np.array(batch["image"], dtype=np.float16)),
                brain=None if brain is None else torch.from_numpy(np.array(brain, bool)),
            )


Arrays = tuple[torch.Tensor, ...]
"""Images of volumes, and their brains where these are read."""


class _Kept:
    """Volumes that outlive their fit: of each part the last that was read, none unless asked."""

    def __init__(self) -> None:
        self.wanted = False
        self._parts: dict[str, tuple[Any, Arrays]] = {}

    def get(self, part: str, key: Any, read: Callable[[], Arrays]) -> Arrays:
        """What `read` gives, or gave for the same key; another key's makes room before that."""
        if self._parts.get(part, (None,))[0] != key:
            self._parts.pop(part, None)
            arrays = read()
            if not self.wanted:
                return arrays
            self._parts[part] = (key, arrays)
        return self._parts[part][1]

    def nbytes(self, device: str) -> int:
        """Bytes kept on that device, which the next fit takes over or frees."""
        on = torch.device(device).type
        kept = (v for _, arrays in self._parts.values() for v in arrays)
        return sum(v.nbytes for v in kept if v.device.type == on)


_kept = _Kept()


def keep_volumes() -> None:
    """Keep resident volumes for later fits of this process, as an actor does that fits many trials.

    Reading a large cohort takes seconds; the next trial mostly fits on the same one.
    """
    _kept.wanted = True


_READERS = 8
"""Threads that read what is kept: they wait for storage; Zarr decodes in threads of its own."""


def _load(
    cohort: Cohort,
    rows: np.ndarray,
    part: str,
    device: str = "cpu",
    arrays: Sequence[str] = ("image",),
) -> Arrays:
    def read() -> Arrays:
        whole = tuple(
            torch.empty(
                (len(rows), *cohort.shape),
                dtype=torch.float16 if name == "image" else torch.bool,
                device=device,
            )
            for name in arrays
        )

        def fill(places: np.ndarray) -> None:
            for name, into in zip(arrays, whole, strict=True):
                values = torch.from_numpy(read_rows(cohort, name, rows[places]))
                into[torch.from_numpy(places).to(device)] = values.to(device)

        # In this process: Ray Data's own would have to start first, and its blocks be copied.
        with ThreadPoolExecutor(_READERS) as pool:
            list(pool.map(fill, same_block(rows, CHUNK_VOLUMES)))
        return whole

    key = (cohort.url, cohort.fingerprint, rows.tobytes(), device, tuple(arrays))
    return _kept.get(part, key, read)


class ValidationStream:
    """One worker's part of some volumes, each once, unequal parts allowed.

    Args:
        cohort: A sealed cohort.
        rows: What all workers share, ascending, such as those of the validation split.
        batch_size: Volumes in a batch.
        rank: This worker.
        world: Number of workers.
        resident: Read once and keep.
        device: Where resident volumes are kept.
        brain: Whether the batches have the brains, too.
    """

    def __init__(
        self,
        cohort: Cohort,
        rows: np.ndarray,
        *,
        batch_size: int = 8,
        rank: int = 0,
        world: int = 1,
        resident: bool = True,
        device: str = "cpu",
        brain: bool = True,
    ) -> None:
        self._cohort, self._batch_size = cohort, batch_size
        self._arrays = ("image", "brain") if brain else ("image",)
        self.rows = rows[rank::world]
        self._resident: Arrays | None = None
        if resident and len(self.rows):
            self._resident = _load(cohort, self.rows, "validation", device, self._arrays)

    def _read(self) -> Iterator[Batch]:
        if len(self.rows) == 0:
            return iter(())
        return _batches(volumes(self._cohort, self.rows, self._arrays), self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Batches of whole volumes in row order."""
        return self._read() if self._resident is None else self._from_memory(*self._resident)

    def _from_memory(
        self, images: torch.Tensor, brain: torch.Tensor | None = None
    ) -> Iterator[Batch]:
        ids = torch.tensor(self.rows)
        for start in range(0, len(ids), self._batch_size):
            cut = slice(start, start + self._batch_size)
            inside = None if brain is None else brain[cut]
            yield Batch(ids=ids[cut], images=images[cut], brain=inside)


def fits_in_memory(cohort: Cohort, num_volumes: int, world: int, device: str) -> bool:
    """Whether a worker's part of this many volumes takes at most a quarter of its device's memory.

    Counted is what is free now, and what `keep_volumes` keeps, which gives way; workers without a
    device of their own share the node's.
    """
    needed = -(-num_volumes // world) * int(np.prod(cohort.shape)) * 2
    if device.startswith("cuda"):
        free = torch.cuda.mem_get_info()[0]
    else:
        free = psutil.virtual_memory().available // world
    free += _kept.nbytes(device)
    return needed <= free // 4
