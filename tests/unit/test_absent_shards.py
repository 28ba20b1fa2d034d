"""What is gone from a sealed cohort is named; it never reads as volumes without content."""

import errno
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_cohorts import AFFINE, SHAPE, write_lesioned

from uadray import files
from uadray.data.volumes import read_rows
from uadray.errors import StoreError
from uadray.store import (
    Cohort,
    CohortWriter,
    Failure,
    Subject,
    layout,
    open_cohort,
    verify,
)

ARRAYS = ("image", "brain", "lesion")


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    return write_lesioned(tmp_path)


def shard(cohort: Cohort, array: str, number: int = 1) -> Path:
    return Path(cohort.url, array, "c", str(number), "0", "0", "0")


@pytest.mark.parametrize("array", ARRAYS)
class TestGone:
    @pytest.mark.parametrize("how", ["file", "folder", "all", "empty"])
    def test_is_named_at_opening(self, cohort: Cohort, array: str, how: str) -> None:
        place = shard(cohort, array)
        if how == "file":
            place.unlink()
        elif how == "folder":
            shutil.rmtree(place.parents[2])
        elif how == "all":
            shutil.rmtree(place.parents[3])
        else:
            place.write_bytes(b"")
        shards, are = ("shards 0, 1", "are") if how == "all" else ("shard 1", "is")
        with pytest.raises(
            StoreError, match=rf"stroke\.zarr was sealed, but {shards} of '{array}' {are} gone or"
        ) as caught:
            open_cohort(cohort.url)
        assert f"--verify {cohort.url}" in str(caught.value)

    def test_is_named_where_it_is_read(self, cohort: Cohort, array: str) -> None:
        """Also where it vanishes later than the opening, and in a task that has it pickled."""
        sent = pickle.loads(pickle.dumps(open_cohort(cohort.url)))
        shard(cohort, array).unlink()
        for one in (cohort, sent):
            one.read(array, 0, 8)
            with pytest.raises(StoreError, match=rf"shard 1 of '{array}' is gone"):
                one.read(array, 7, 9)
            with pytest.raises(StoreError, match=rf"shard 1 of '{array}' is gone"):
                read_rows(one, array, np.array([3, 11]))

    def test_one_cut_short_is_named_as_damaged(self, cohort: Cohort, array: str) -> None:
        place = shard(cohort, array)
        place.write_bytes(place.read_bytes()[:-20])
        with pytest.raises(StoreError, match=rf"rows 8 to 11 of '{array}' are damaged"):
            open_cohort(cohort.url).read(array, 8, 12)

    def test_verify_still_says_what_to_prepare_again(self, cohort: Cohort, array: str) -> None:
        shard(cohort, array).unlink()
        (problem,) = verify(cohort.url)
        assert f"the shard of {array} is missing" in problem.what
        assert problem.rows == (8, 9, 10, 11)


def test_a_shard_of_quarantined_scans_is_absent_by_right(tmp_path: Path) -> None:
    writer = CohortWriter.create(
        str(tmp_path / "c.zarr"), num_rows=16, shape=SHAPE, has_lesion=True, plan={}
    )
    brain = np.ones((8, *SHAPE), bool)
    subjects = [
        Subject(
            row=row, id=f"s{row}", subject=f"s{row}", scanner="", split="test", modality="T1w",
            affine=AFFINE, source="", brain_ml=16**3 * 0.064, lesion_ml=16**3 * 0.064,
        )
        for row in range(8)
    ]  # fmt: skip
    writer.write_shard(
        0, image=brain * 0.5, brain=brain, lesion=brain, subjects=subjects, failures=[]
    )
    failures = [Failure(row=row, id=f"s{row}", source="", reason="-") for row in range(8, 16)]
    writer.write_shard(
        1, image=brain * 0.0, brain=~brain, lesion=~brain, subjects=[], failures=failures
    )
    cohort = writer.seal()
    assert not shard(cohort, "image").exists()
    opened = open_cohort(cohort.url)
    assert not opened.read("image", 8, 16).any()
    assert verify(cohort.url) == []


def test_storage_that_does_not_answer_is_not_called_damaged(
    cohort: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("uadray.store.cohort.open_array", fails)
    with pytest.raises(StoreError, match="cannot be read or written"):
        cohort.read("image", 0, 1)
    with pytest.raises(StoreError, match="cannot be read or written"):
        verify(cohort.url)


@pytest.mark.parametrize("name", ["subjects.parquet", "quarantine.jsonl"])
@pytest.mark.parametrize("damage", ["remove", "shorten"])
def test_a_table_that_is_gone_or_cut_short_is_named(cohort: Cohort, name: str, damage: str) -> None:
    place = Path(cohort.url, name)
    content = place.read_bytes() or b'{"id": "a"}\n'
    place.unlink() if damage == "remove" else place.write_bytes(content[: len(content) // 2])
    fresh = open_cohort(cohort.url)
    with pytest.raises(StoreError, match=name):
        fresh.subjects if name.startswith("subjects") else fresh.quarantine


def test_one_listing_for_each_array_of_a_remote_cohort(monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = write_lesioned("memory://listed")
    calls: list[str] = []
    fs, _ = files.located(cohort.url)
    whole = type(fs).find
    monkeypatch.setattr(
        type(fs), "find", lambda self, path, **how: calls.append(path) or whole(self, path, **how)
    )
    open_cohort(cohort.url)
    assert [path.rsplit("/", 2)[-2:] for path in calls] == [[name, "c"] for name in ARRAYS]
    files.remove(files.join(cohort.url, "lesion", "c", "1", "0", "0", "0"))
    with pytest.raises(StoreError, match="shard 1 of 'lesion' is gone"):
        open_cohort(cohort.url)


def test_a_web_server_has_no_listing() -> None:
    assert layout.present_shards("https://example.org/c.zarr", "image", 3) == {0, 1, 2}
