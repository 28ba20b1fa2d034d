"""Volumes of a cohort as a Ray dataset: read tasks, which import no torch to read.

Ray starts a process for each task that runs at a time, and torch takes as long to import as many
shards to read.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import ray.data
from ray.data import Datasource, ReadTask
from ray.data.block import BlockAccessor, BlockMetadata

from uadray.data.sampling import same_block, slice_order
from uadray.data.settings import READ_CPUS
from uadray.memory import keep_freed_memory
from uadray.store import CHUNK_VOLUMES, Cohort

Block = dict[str, np.ndarray]
"""Columns of a block of Ray Data, of one length."""


def read_rows(cohort: Cohort, array: str, rows: np.ndarray) -> np.ndarray:
    """Rows of one array in the order given, reading each shard's span once.

    Raises:
        StoreError: the cohort is damaged there, or a shard of it is gone.
    """
    out = np.empty((len(rows), *cohort.shape), np.float16 if array == "image" else bool)
    for shard in np.unique(rows // cohort.shard):
        here = np.flatnonzero(rows // cohort.shard == shard)
        start, stop = int(rows[here].min()), int(rows[here].max()) + 1
        span = cohort.read(array, start, stop)  # type: ignore[arg-type]
        out[here] = span[rows[here] - start]
    return out


class VolumeSource(Datasource):
    """Reads groups of rows; one read task and one block a group, in the order given.

    Args:
        cohort: A sealed cohort.
        groups: Rows of each group, in order.
        arrays: Arrays to read: `image`, `brain`, `lesion`.
        change: Makes a block, with the group's number, one of another kind, inside the read task.
    """

    def __init__(
        self,
        cohort: Cohort,
        groups: Sequence[np.ndarray],
        arrays: Sequence[str] = ("image",),
        change: Callable[[Block, int], Block] | None = None,
    ) -> None:
        super().__init__()
        self._cohort, self._groups, self._arrays, self._change = cohort, groups, arrays, change
        voxels = int(np.prod(cohort.shape))
        self._row_bytes = voxels * sum(2 if name == "image" else 1 for name in arrays)

    def get_name(self) -> str:
        """Shown in Ray's progress and statistics."""
        return "UadrayVolumes"

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of all blocks."""
        return self._row_bytes * sum(len(g) for g in self._groups)

    def get_read_tasks(
        self,
        parallelism: int,
        per_task_row_limit: int | None = None,
        data_context: object | None = None,
    ) -> list[ReadTask]:
        """One task a group; `parallelism` is not asked, the order is fixed."""
        cohort, arrays, change = self._cohort, self._arrays, self._change

        def task(number: int, rows: np.ndarray) -> ReadTask:
            def read() -> Iterator[object]:
                keep_freed_memory()
                block = {name: read_rows(cohort, name, rows) for name in arrays} | {"id": rows}
                yield BlockAccessor.batch_to_block(change(block, number) if change else block)

            metadata = BlockMetadata(
                num_rows=len(rows) if change is None else None,
                size_bytes=len(rows) * self._row_bytes,
                input_files=None,
                exec_stats=None,
            )
            return ReadTask(read, metadata, per_task_row_limit=per_task_row_limit)

        return [task(i, rows) for i, rows in enumerate(self._groups)]


def as_slices(seed: int, epoch: int) -> Callable[[Block, int], Block]:
    """Makes a block of volumes one of their slices, in the order of an epoch."""

    def cut(block: Block, group: int) -> Block:
        images, rows = block["image"], block["id"]
        order = slice_order(has_brain(images), seed=seed, epoch=epoch, group=group)
        volume, z = order[:, 0], order[:, 1]
        return {"id": rows[volume] * images.shape[1] + z, "image": images[volume, z]}

    return cut


def count_slices(block: Block, group: int) -> Block:
    """How many slices of each volume hold brain."""
    return {"id": block["id"], "slices": has_brain(block["image"]).sum(1)}


def has_brain(images: np.ndarray) -> np.ndarray:
    """Which axial slices hold brain, (volumes, Z)."""
    return np.asarray(images.any((2, 3)))


def dataset_of(
    source: VolumeSource, num_tasks: int, num_cpus: float = READ_CPUS
) -> ray.data.Dataset:
    """The blocks of a source in order; `num_cpus` are those of a read task."""
    # More tasks at a time than there are CPUs would not read faster, but Ray gives each a process,
    # which takes seconds to start.
    most = max(1, min(num_tasks, int(ray.cluster_resources().get("CPU", 1))))
    dataset = ray.data.read_datasource(
        source, override_num_blocks=num_tasks, num_cpus=num_cpus, concurrency=most
    )
    dataset.context.execution_options.preserve_order = True
    return dataset


def volumes(
    cohort: Cohort,
    rows: np.ndarray,
    arrays: Sequence[str] = ("image",),
    *,
    change: Callable[[Block, int], Block] | None = None,
    num_cpus: float = READ_CPUS,
    chunks: int = 1,
) -> ray.data.Dataset:
    """Rows in ascending order, each once, as a Ray dataset with `id` and one column an array.

    Blocks are inner chunks of the store, so that the memory of a consumer stays flat.

    Args:
        cohort: A sealed cohort.
        rows: Which ones, ascending.
        arrays: Arrays to read: `image`, `brain`, `lesion`.
        change: As in `VolumeSource`.
        num_cpus: Logical CPUs of such a task.
        chunks: Inner chunks that a task reads, one at least.
    """
    groups = [rows[places] for places in same_block(rows, max(1, chunks) * CHUNK_VOLUMES)]

    source = VolumeSource(cohort, groups, arrays, change)
    return dataset_of(source, len(groups), num_cpus)
