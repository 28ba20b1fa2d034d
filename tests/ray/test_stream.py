"""A real cohort through Ray Data: the same batches whatever the way, and every row once."""

import os
import shutil
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_cohorts import SHAPE, write_healthy, write_lesioned

from uadray.config import ErasingConfig, FitConfig
from uadray.data.batch import Batch
from uadray.data.erasing import erase, sample_erasing
from uadray.data.sampling import fit_rows, step_sizes
from uadray.data.stream import (
    TrainingStream,
    ValidationStream,
    _Kept,
    fits_in_memory,
    keep_volumes,
    read_rows,
    volumes,
)
from uadray.errors import StoreError
from uadray.store import Cohort, open_cohort

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("ray_session"),
    pytest.mark.timeout(300),
]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return write_healthy(tmp_path_factory.mktemp("healthy"))


@pytest.fixture(scope="module")
def lesioned(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return write_lesioned(tmp_path_factory.mktemp("lesioned"))


def stream(cohort: Cohort, ndim: int, *, batch_size: int = 8, **options: object) -> TrainingStream:
    return TrainingStream(
        cohort,
        cohort.rows("train"),
        ndim=ndim,
        batch_size=batch_size,
        seed=3,
        **options,  # type: ignore[arg-type]
    )


def joined(batches: list[Batch]) -> tuple[np.ndarray, np.ndarray]:
    return (
        torch.cat([b.ids for b in batches]).numpy(),
        torch.cat([b.images for b in batches]).numpy(),
    )


def expected_image(cohort: Cohort, sample: int, ndim: int) -> np.ndarray:
    row, z = (sample, None) if ndim == 3 else divmod(sample, SHAPE[0])
    image = cohort.read("image", row, row + 1)[0]
    return image if z is None else image[z]


@pytest.mark.parametrize(("ndim", "batch_size"), [(3, 8), (2, 50)])
def test_streamed_and_resident_batches_are_the_same_bits(
    cohort: Cohort, ndim: int, batch_size: int
) -> None:
    streamed = stream(cohort, ndim, batch_size=batch_size, resident=False)
    resident = stream(cohort, ndim, batch_size=batch_size, resident=True)
    images = cohort.read("image", 0, int(cohort.attributes["num_rows"]))
    has_brain = np.asarray(cohort.read("brain", 0, len(images)).any((2, 3)))
    rows = cohort.rows("train")
    every = (
        rows
        if ndim == 3
        else [r * SHAPE[0] + z for r in rows for z in range(16) if has_brain[r, z]]
    )
    orders = []
    for epoch in (0, 1):
        a, b = list(streamed.epoch(epoch)), list(resident.epoch(epoch))
        assert [len(x.ids) for x in a] == [len(x.ids) for x in b]
        assert [len(x.ids) for x in a[:-1]] == [batch_size] * (len(a) - 1)
        for x, y in zip(a, b, strict=True):
            assert torch.equal(x.ids, y.ids)
            assert x.images.dtype == y.images.dtype == torch.float16
            assert torch.equal(x.images, y.images)
        ids, got = joined(a)
        assert sorted(ids) == list(every)  # each once
        for place in range(0, len(ids), 7):
            assert np.array_equal(got[place], expected_image(cohort, int(ids[place]), ndim))
        orders.append(ids.tolist())
    assert orders[0] != orders[1]
    again, _ = joined(list(stream(cohort, ndim, batch_size=batch_size, resident=False).epoch(1)))
    assert again.tolist() == orders[1]  # started again at the second epoch, as a resumed run does


@pytest.mark.parametrize("ndim", [2, 3])
def test_workers_share_an_epoch_out(cohort: Cohort, ndim: int) -> None:
    world, batch_size = 3, 8  # shares of 3, 3 and 2 samples
    streams = [
        stream(cohort, ndim, batch_size=batch_size, resident=False, rank=rank, world=world)
        for rank in range(world)
    ]
    parts = [list(each.epoch(0)) for each in streams]
    assert [len(part[0].ids) for part in parts] == [3, 3, 2]
    alone, _ = joined(list(stream(cohort, ndim, resident=False).epoch(0)))
    ids = [joined(part)[0] for part in parts]
    assert sorted(np.concatenate(ids)) == sorted(alone)  # each sample on one worker, once
    # What a worker says beforehand is what it then has, streamed or resident.
    assert [each.num_samples() for each in streams] == [len(part) for part in ids]
    resident = stream(cohort, ndim, batch_size=batch_size, rank=1, world=world)
    assert resident.num_samples() == len(ids[1])
    sizes = step_sizes([len(part) for part in ids], batch_size)
    assert sizes == [sum(len(b.ids) for b in step if b is not None) for step in zip_longest(*parts)]


def test_an_actor_reads_a_cohort_once(
    cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of this test alone.
    monkeypatch.setattr("uadray.data.stream._kept", _Kept())
    keep_volumes()
    alone = TrainingStream(cohort, cohort.rows("train")[:5], ndim=3, batch_size=8, seed=3)
    expected = joined(list(alone.epoch(1)))
    held_back = ValidationStream(cohort, cohort.rows("validation"))
    validated = joined(list(held_back))
    moved = shutil.copytree(cohort.url, tmp_path / "moved.zarr")
    gone = open_cohort(str(moved))
    first = joined(list(stream(gone, 3).epoch(0)))
    ValidationStream(gone, gone.rows("validation"))
    # The store is gone: what comes was kept.
    shutil.rmtree(moved)
    again = joined(list(stream(gone, 3).epoch(0)))
    for was, came in zip(first, again, strict=True):
        np.testing.assert_array_equal(was, came)
    for was, came in zip(
        validated, joined(list(ValidationStream(gone, gone.rows("validation")))), strict=True
    ):
        np.testing.assert_array_equal(was, came)
    # Other rows, and another store, are read.
    share = TrainingStream(cohort, cohort.rows("train")[:5], ndim=3, batch_size=8, seed=3)
    for was, came in zip(expected, joined(list(share.epoch(1))), strict=True):
        np.testing.assert_array_equal(was, came)
    with pytest.raises((StoreError, FileNotFoundError)):
        stream(gone, 3)


def test_a_sample_is_erased_alike_on_any_worker(cohort: Cohort) -> None:
    config = ErasingConfig(strategy="multi-cube", probability=1.0)
    erased: list[dict[int, np.ndarray]] = []
    for world in (1, 2):
        seen: dict[int, np.ndarray] = {}
        for rank in range(world):
            for batch in stream(cohort, 3, resident=False, rank=rank, world=world).epoch(1):
                x = batch.images.float()
                where = sample_erasing(config, batch.ids, seed=3, epoch=1, spatial=SHAPE)
                x_in = erase(x, where, config, batch.ids, seed=3, epoch=1)
                assert not torch.equal(x_in, x)
                seen |= dict(zip(batch.ids.tolist(), x_in.numpy(), strict=True))
        erased.append(seen)
    assert erased[0].keys() == erased[1].keys()
    assert all(np.array_equal(erased[0][k], erased[1][k]) for k in erased[0])


def test_volumes_come_in_row_order_with_their_masks(lesioned: Cohort) -> None:
    rows = np.array([0, 2, 3, 7, 8, 11])
    names = ("image", "brain", "lesion")
    batches = list(volumes(lesioned, rows, names).iter_batches(batch_size=4, batch_format="numpy"))
    ids = np.concatenate([b["id"] for b in batches])
    assert ids.tolist() == rows.tolist()
    for name in names:
        got = np.concatenate([b[name] for b in batches])
        expected = np.concatenate([lesioned.read(name, r, r + 1) for r in rows])  # type: ignore[arg-type]
        assert np.array_equal(got, expected)
    assert np.concatenate([b["lesion"] for b in batches]).any((1, 2, 3)).all()


def test_volumes_are_changed_where_they_are_read(lesioned: Cohort) -> None:
    rows = np.array([0, 2, 3, 7, 8, 11])

    def change(block: dict[str, np.ndarray], number: int) -> dict[str, np.ndarray]:
        assert list(block) == ["lesion", "id"]
        sums = block["lesion"].sum((1, 2, 3))
        return {"id": block["id"], "sum": sums, "worker": np.full(len(sums), os.getpid())}

    dataset = volumes(lesioned, rows, ("lesion",), change=change, num_cpus=0.5)
    got = list(dataset.iter_batches(batch_size=None, batch_format="numpy"))
    assert np.concatenate([b["id"] for b in got]).tolist() == rows.tolist()
    expected = [lesioned.read("lesion", r, r + 1).sum() for r in rows]
    assert np.concatenate([b["sum"] for b in got]).tolist() == expected
    assert os.getpid() not in np.concatenate([b["worker"] for b in got])


@pytest.mark.parametrize("resident", [True, False])
def test_validation_volumes_come_once_on_any_number_of_workers(
    cohort: Cohort, resident: bool
) -> None:
    for world in (1, 3, 5):  # five workers for four volumes: one has none
        ids = []
        for rank in range(world):
            part = ValidationStream(
                cohort,
                cohort.rows("validation"),
                batch_size=2,
                rank=rank,
                world=world,
                resident=resident,
            )
            for _ in range(2 if resident else 1):  # it can be gone through again
                again = [i for batch in part for i in batch.ids.tolist()]
            ids += again
        assert sorted(ids) == cohort.rows("validation").tolist()


def test_rows_are_read_in_the_order_asked(cohort: Cohort) -> None:
    rows = np.array([31, 3, 30, 3, 17])
    got = read_rows(cohort, "image", rows)
    assert all(
        np.array_equal(image, cohort.read("image", row, row + 1)[0])
        for row, image in zip(rows, got, strict=True)
    )


@pytest.mark.parametrize("place", [0.3, 0.6])
def test_a_damaged_chunk_is_an_error_and_not_garbage(
    cohort: Cohort, tmp_path: Path, place: float
) -> None:
    url = tmp_path / "damaged.zarr"
    shutil.copytree(cohort.url, url)
    chunk = url / "image" / "c" / "1" / "0" / "0" / "0"
    content = bytearray(chunk.read_bytes())
    content[round(place * len(content))] ^= 0xFF
    chunk.write_bytes(content)
    damaged = open_cohort(str(url))
    expected = r"damaged\.zarr: rows .* of 'image' are damaged .*restore it from a copy"
    with pytest.raises(StoreError, match=expected):
        list(stream(damaged, 3, resident=False).epoch(0))
    with pytest.raises(StoreError, match=expected):
        stream(damaged, 3, resident=True)


def test_a_share_of_the_cohort_follows_its_table(cohort: Cohort) -> None:
    table = cohort.subjects.set_index("row")
    train = set(cohort.rows("train").tolist())
    tenth, half = (
        set(fit_rows(cohort, FitConfig(data_share=s, seed=3)).train.tolist()) for s in (0.1, 0.5)
    )
    assert tenth < half < train
    assert (len(tenth), len(half)) == (round(0.1 * len(train)), round(0.5 * len(train)))
    at_one = sum(table.loc[row, "scanner"] == "one" for row in half)
    of_one = sum(table.loc[row, "scanner"] == "one" for row in train)
    assert abs(at_one - of_one / 2) <= 1
    assert np.array_equal(fit_rows(cohort, FitConfig(seed=3)).train, cohort.rows("train"))


def test_residency_follows_the_free_memory(cohort: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
    class Memory:
        available = 4 * 40 * 2 * 16**3  # four times forty volumes in float16

    monkeypatch.setattr("uadray.data.stream.psutil.virtual_memory", Memory)
    assert fits_in_memory(cohort, 40, 1, "cpu")
    assert not fits_in_memory(cohort, 41, 1, "cpu")
    assert fits_in_memory(cohort, 40, 2, "cpu")  # half of them in half of the memory
