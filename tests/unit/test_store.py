import json
import pickle
from pathlib import Path

import fsspec
import numpy as np
import pytest

from uadray.errors import StoreError, StoreNotSealedError
from uadray.store import (
    CohortWriter,
    Failure,
    Subject,
    open_cohort,
    shard_volumes,
    verify,
)

SHAPE = (4, 5, 6)
NUM_ROWS = 20
FAILED_ROW = 9
PLAN = {"scans": [f"s{k}" for k in range(NUM_ROWS)], "steps": [{"step": "none"}]}


def create(url: Path | str, plan: dict = PLAN, **changes) -> CohortWriter:
    options = {"num_rows": NUM_ROWS, "shape": SHAPE, "has_lesion": True, "plan": plan}
    return CohortWriter.create(str(url), **(options | changes))


def arrays(rows: range) -> dict[str, np.ndarray]:
    image = np.stack([np.random.default_rng(r).random(SHAPE, np.float32) for r in rows])
    brain = image > 0.3
    image *= brain
    for k, row in enumerate(rows):
        if row == FAILED_ROW:
            image[k], brain[k] = 0, False
    return {"image": image, "brain": brain, "lesion": brain & (image > 0.8)}


def subject(row: int) -> Subject:
    return Subject(
        row=row,
        id=f"s{row}",
        subject=f"p{row // 2}",
        scanner="A",
        split="threshold" if row < 6 else "test",
        modality="T1w",
        affine=((2.0, 0, 0, 1), (0, 2.0, 0, 2), (0, 0, 2.0, 3), (0, 0, 0, 1)),
        source=f"/s{row}.nii",
        brain_ml=1.0,
        lesion_ml=0.5,
    )


def write(writer: CohortWriter, shard: int) -> None:
    rows = writer.rows_of(shard)
    failures = [
        Failure(row=r, id=f"s{r}", source=f"/s{r}.nii", reason="truncated")
        for r in rows
        if r == FAILED_ROW
    ]
    subjects = [subject(r) for r in rows if r != FAILED_ROW]
    writer.write_shard(shard, **arrays(rows), subjects=subjects, failures=failures)


def fill(url: Path | str) -> CohortWriter:
    writer = create(url)
    for shard in writer.missing_shards():
        write(writer, shard)
    return writer


@pytest.fixture
def sealed(tmp_path) -> Path:
    fill(tmp_path / "c.zarr").seal()
    return tmp_path / "c.zarr"


def test_what_is_written_is_read(sealed):
    cohort = open_cohort(str(sealed))
    assert (cohort.name, cohort.shape, cohort.has_lesion) == ("c", SHAPE, True)
    expected = arrays(range(3, 13))
    for name in ("image", "brain", "lesion"):
        got = cohort.read(name, 3, 13)
        assert np.array_equal(got, expected[name].astype(got.dtype))
    assert cohort.read("image", 0, 1).dtype == np.float16
    assert cohort.rows("threshold").tolist() == list(range(6))
    assert FAILED_ROW not in cohort.rows("test")
    assert cohort.subjects["row"].is_monotonic_increasing
    assert cohort.subjects.loc[0, "affine"][0] == [2.0, 0, 0, 1]
    assert [q["id"] for q in cohort.quarantine] == [f"s{FAILED_ROW}"]
    assert verify(str(sealed)) == []
    with pytest.raises(StoreError, match=r"no subject in split 'train'; it has \['test', 'thr"):
        cohort.rows("train")


def test_a_cohort_travels_as_its_url(sealed):
    cohort = open_cohort(str(sealed))
    cohort.read("image", 0, 1)
    sent = pickle.dumps(cohort)
    assert len(sent) < 10_000
    assert np.array_equal(pickle.loads(sent).read("brain", 0, 20), cohort.read("brain", 0, 20))


def test_a_cohort_in_memory():
    url = "memory://store-test/c.zarr"
    try:
        cohort = fill(url).seal()
        assert cohort.url == url
        assert open_cohort(url + "/").fingerprint == cohort.fingerprint
        assert verify(url) == []
    finally:
        fsspec.filesystem("memory").rm("/store-test", recursive=True)


def test_not_sealed_is_refused(tmp_path):
    writer = create(tmp_path / "c.zarr")
    with pytest.raises(StoreNotSealedError, match="run the same job again"):
        open_cohort(str(tmp_path / "c.zarr"))
    write(writer, 0)
    with pytest.raises(StoreError, match=r"shards \[1, 2\] are not written"):
        writer.seal()


def test_resume_writes_what_is_missing_and_ends_the_same(tmp_path, sealed):
    writer = create(tmp_path / "r.zarr")
    write(writer, 1)
    again = create(tmp_path / "r.zarr")
    assert again.missing_shards() == [0, 2]
    for shard in (2, 0):
        write(again, shard)
    assert again.seal().fingerprint == open_cohort(str(sealed)).fingerprint


def test_another_plan_or_shape_is_refused(sealed):
    for change in ({"plan": PLAN | {"steps": []}}, {"shape": (4, 5, 5)}, {"num_rows": 19}):
        with pytest.raises(StoreError, match="holds a cohort of another plan"):
            create(sealed, **change)
    create(sealed)


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(StoreError, match="is not empty and holds no cohort"):
        create(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_no_cohort_there(tmp_path):
    with pytest.raises(StoreError, match=r"no cohort there; make one with jobs/prepare\.py"):
        open_cohort(str(tmp_path / "none.zarr"))


def test_a_damaged_or_foreign_group_is_refused(sealed):
    document = json.loads((sealed / "zarr.json").read_text())
    document["attributes"] = {}
    (sealed / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(StoreError, match="not a uadray cohort"):
        open_cohort(str(sealed))
    (sealed / "zarr.json").write_text("{")
    with pytest.raises(StoreError, match="is damaged"):
        open_cohort(str(sealed))


@pytest.mark.parametrize("name", ["image", "brain", "lesion"])
@pytest.mark.parametrize("place", [0.1, 0.5, 0.99])
def test_verify_finds_a_flipped_byte(sealed, name, place):
    shard = sealed / name / "c" / "1" / "0" / "0" / "0"
    content = bytearray(shard.read_bytes())
    content[int(place * len(content))] ^= 0xFF
    shard.write_bytes(bytes(content))
    problems = verify(str(sealed))
    assert len(problems) == 1
    assert problems[0].startswith("shard 1 (s8, s10, ")


def test_verify_finds_what_is_missing(sealed):
    (sealed / "brain/c/0/0/0/0").unlink()
    (sealed / "parts/00002.json").unlink()
    lost_voxels, lost_part = verify(str(sealed))
    assert "shard 0 (s0, s1, " in lost_voxels
    assert "shard 2: its part file is unreadable" in lost_part


class TestWriteShard:
    @pytest.mark.parametrize("value", [-0.1, 1.1, np.nan])
    def test_values_outside(self, tmp_path, value):
        writer, rows = create(tmp_path / "c.zarr"), range(8)
        content = arrays(rows)
        content["image"][0, 0, 0, 0] = value
        with pytest.raises(StoreError, match=r"intensities outside \[0, 1\]"):
            writer.write_shard(0, **content, subjects=[subject(r) for r in rows], failures=[])
        assert writer.missing_shards() == [0, 1, 2]

    def test_shapes_and_rows(self, tmp_path):
        writer, rows = create(tmp_path / "c.zarr"), range(8)
        subjects = [subject(r) for r in rows]
        short = {name: array[:7] for name, array in arrays(rows).items()}
        with pytest.raises(StoreError, match=r"image has \(7, 4, 5, 6\), expected \(8,"):
            writer.write_shard(0, **short, subjects=subjects, failures=[])
        with pytest.raises(StoreError, match="each of the rows"):
            writer.write_shard(0, **arrays(rows), subjects=subjects[1:], failures=[])
        content = arrays(rows) | {"lesion": None}
        with pytest.raises(StoreError, match="for all scans or for none"):
            writer.write_shard(0, **content, subjects=subjects, failures=[])


def test_a_cohort_without_any_usable_scan(tmp_path):
    writer = create(tmp_path / "c.zarr", num_rows=1, plan={})
    failure = Failure(row=0, id="s0", source="/s0.nii", reason="truncated")
    content = {name: np.zeros((1, *SHAPE), bool) for name in ("brain", "lesion")}
    image = np.zeros((1, *SHAPE), np.float32)
    writer.write_shard(0, image=image, **content, subjects=[], failures=[failure])
    with pytest.raises(StoreError, match=r"none of 1 scans could be used.*s0: truncated"):
        writer.seal()


@pytest.mark.parametrize(
    ("num_rows", "expected"), [(1, 8), (64, 8), (65, 16), (500, 64), (2000, 64)]
)
def test_shards_are_whole_chunks(num_rows, expected):
    assert shard_volumes(num_rows) == expected
