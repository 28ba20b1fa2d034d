"""Batches of volumes that a worker keeps in memory: no Ray, no store, torch alone."""

from collections.abc import Iterator

import numpy as np
import torch

from uadray.data.batch import Batch, on_device
from uadray.data.sampling import epoch_groups, slice_order


class ResidentBatches:
    """A worker's volumes in memory, in the order of `uadray.data.sampling`, epoch after epoch.

    Args:
        images: (N, Z, Y, X) float16 in [0, 1], on the device that computes.
        rows: (N,) int64, ascending: which volume of the cohort each is.
        ndim: 3 for volumes, 2 for axial slices that hold brain.
        batch_size: Samples in this worker's batches.
        seed: Decides the order.
        shard: Volumes in a shard of the store, which are read and mixed together.
    """

    def __init__(
        self,
        images: torch.Tensor,
        rows: np.ndarray,
        *,
        ndim: int,
        batch_size: int,
        seed: int,
        shard: int,
    ) -> None:
        self.images = images
        self._rows, self._ndim, self._batch_size = rows, ndim, batch_size
        self._seed, self._shard = seed, shard
        if ndim == 2:
            self._has_brain = images.flatten(2).any(2).cpu().numpy()

    def num_samples(self) -> int:
        """Samples in each epoch."""
        return int(self._has_brain.sum()) if self._ndim == 2 else len(self._rows)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch, from 0; the last may be smaller."""
        ids, volume, z = (torch.from_numpy(one) for one in self._order(epoch))
        device = self.images.device
        # All at once, so that no batch waits for the device.
        volume, z = (on_device(one, device) for one in (volume, z))
        for start in range(0, len(ids), self._batch_size):
            cut = slice(start, start + self._batch_size)
            where = volume[cut]
            picked = self.images[where, z[cut]] if self._ndim == 2 else self.images[where]
            yield Batch(ids=ids[cut], images=picked)

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each sample its id, the place of its volume, and its slice."""
        groups = epoch_groups(self._rows, self._shard, seed=self._seed, epoch=epoch)
        places = [np.searchsorted(self._rows, group) for group in groups]
        if self._ndim == 3:
            rows, volume = np.concatenate(groups), np.concatenate(places)
            return rows, volume, np.zeros_like(rows)
        ids, volumes, slices = [], [], []
        for number, (group, place) in enumerate(zip(groups, places, strict=True)):
            order = slice_order(self._has_brain[place], seed=self._seed, epoch=epoch, group=number)
            ids.append(group[order[:, 0]] * self.images.shape[1] + order[:, 1])
            volumes.append(place[order[:, 0]])
            slices.append(order[:, 1])
        return np.concatenate(ids), np.concatenate(volumes), np.concatenate(slices)
