import errno
import hashlib
import json
import pickle
from dataclasses import replace
from pathlib import Path

import botocore.exceptions
import fsspec
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from uadray import files
from uadray.errors import StoreError, StoreNotSealedError
from uadray.store import (
    CohortWriter,
    Failure,
    Problem,
    Subject,
    advice,
    open_cohort,
    shard_volumes,
    storage_errors,
    verify,
)
from uadray.store.parts import read_part, write_part

SHAPE = (4, 5, 6)
NUM_ROWS = 20
FAILED_ROW = 9
VOXEL_ML = 0.008
PLAN = {"steps": [{"step": "none"}], "seed": 3}
SCANS = [{"id": f"s{k}"} for k in range(NUM_ROWS)]


def create(url: Path | str, **changes) -> CohortWriter:
    options = {"num_rows": NUM_ROWS, "shape": SHAPE, "has_lesion": True}
    return CohortWriter.create(str(url), **(options | {"plan": PLAN, "scans": SCANS} | changes))


def arrays(rows: range) -> dict[str, np.ndarray]:
    image = np.stack([np.random.default_rng(r).random(SHAPE, np.float32) for r in rows])
    brain = image > 0.3
    image *= brain
    for k, row in enumerate(rows):
        if row == FAILED_ROW:
            image[k], brain[k] = 0, False
    return {"image": image, "brain": brain, "lesion": brain & (image > 0.8)}


def subject(row: int) -> Subject:
    content = arrays(range(row, row + 1))
    return Subject(
        row=row,
        id=f"s{row}",
        subject=f"p{row // 2}",
        scanner="A",
        split="threshold" if row < 6 else "test",
        modality="T1w",
        affine=((2.0, 0, 0, 1), (0, 2.0, 0, 2), (0, 0, 2.0, 3), (0, 0, 0, 1)),
        source=f"/s{row}.nii",
        source_bytes=100 + row,
        source_digest=f"d{row}",
        source_stamp=f"s{row}",
        brain_ml=float(content["brain"].sum()) * VOXEL_ML,
        lesion_ml=float(content["lesion"].sum()) * VOXEL_ML,
    )


def failure(row: int) -> Failure:
    return Failure(row=row, id=f"s{row}", source=f"/s{row}.nii", reason="truncated")


def write(writer: CohortWriter, shard: int) -> None:
    rows = writer.rows_of(shard)
    failures = [failure(r) for r in rows if r == FAILED_ROW]
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


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"plan": PLAN | {"steps": []}}, "other steps"),
        ({"plan": PLAN | {"seed": 4}}, "seed: 3 there, 4 here"),
        ({"shape": (4, 5, 5)}, "another size"),
        ({"num_rows": 19}, "another size"),
        ({"scans": [*SCANS[1:], {"id": "x"}, {"id": "y"}]}, "scans: 1 only there, 2 only here"),
        (
            {"scans": [SCANS[0] | {"scanner": "B"}, *SCANS[1:]]},
            "s0: scanner None there, 'B' here",
        ),
        ({"scans": SCANS[::-1]}, "scans: 0 only there, 0 only here, in another order"),
    ],
)
def test_another_plan_or_shape_is_refused(sealed, change, what):
    before = hashes(sealed)
    with pytest.raises(StoreError, match="holds a cohort of another plan") as caught:
        create(sealed, **change)
    assert what in str(caught.value)
    create(sealed)
    assert hashes(sealed) == before


def test_the_fingerprint_is_that_of_one_value(sealed):
    parts = [read_part(str(sealed), k, range(8 * k, min(20, 8 * k + 8))) for k in range(3)]
    value = {
        "plan": {**PLAN, "scans": SCANS},
        "shape": SHAPE,
        "digests": [digest for part in parts for digest in part.digests],
        "subjects": [(s.row, s.id, s.split) for part in parts for s in part.subjects],
    }
    expected = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
    assert open_cohort(str(sealed)).fingerprint == expected


def test_the_table_of_a_large_cohort_is_written_in_groups(tmp_path, sealed, monkeypatch):
    monkeypatch.setattr("uadray.store.writer.GROUP_ROWS", 6)
    cohort = fill(tmp_path / "r.zarr").seal()
    assert pq.ParquetFile(tmp_path / "r.zarr/subjects.parquet").num_row_groups == 3
    assert cohort.subjects.equals(open_cohort(str(sealed)).subjects)
    assert verify(cohort.url) == []


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(StoreError, match="is not empty and holds no cohort"):
        create(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_no_cohort_there(tmp_path):
    with pytest.raises(StoreError, match=r"no cohort there; make one with jobs/prepare\.py"):
        open_cohort(str(tmp_path / "none.zarr"))


@pytest.mark.parametrize(
    "content",
    [
        *("[]", "null", '"text"', "3", '{"attributes": []}', '{"attributes": {"uadray": [1]}}'),
        "[" * 100_000,
    ],
    ids=lambda text: text[:40],
)
def test_attributes_of_another_kind_are_refused(sealed, content):
    (sealed / "zarr.json").write_text(content)
    with pytest.raises(StoreError, match=r"not a uadray cohort|zarr\.json is damaged"):
        open_cohort(str(sealed))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("num_rows", value) for value in (None, 0, -1, "8", 2.5, True)),
        *(("shard_volumes", value) for value in (None, 0, [])),
        *(("shape", value) for value in (None, 8, [8, 8], [8, 8, 0], "888")),
        *(("seal", value) for value in (None, [], {}, "x")),
        *(("plan", value) for value in (None, [])),
        ("has_lesion", 1),
    ],
)
def test_an_attribute_of_another_kind_is_named(sealed, name, value):
    document = json.loads((sealed / "zarr.json").read_text())
    document["attributes"]["uadray"][name] = value
    (sealed / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(StoreError, match=rf"zarr\.json is damaged: {name} of another kind"):
        open_cohort(str(sealed))


def test_a_table_of_another_state_is_refused(sealed):
    """As where a copy over an older one was interrupted."""
    place = sealed / "subjects.parquet"
    table = pd.read_parquet(place)
    table.assign(row=table["row"] + 1).to_parquet(place)
    cohort = open_cohort(str(sealed))
    for read in (lambda: cohort.subjects, lambda: cohort.rows("train")):
        with pytest.raises(StoreError, match="not the file that the cohort was sealed with"):
            read()


def test_a_file_is_no_cohort(tmp_path):
    (tmp_path / "file.zarr").write_text("text")
    (tmp_path / "folder.zarr/zarr.json").mkdir(parents=True)
    for name in ("file.zarr", "folder.zarr"):
        with pytest.raises(StoreError, match="no cohort there"):
            open_cohort(str(tmp_path / name))


def test_a_damaged_or_foreign_group_is_refused(sealed):
    document = json.loads((sealed / "zarr.json").read_text())
    document["attributes"] = {}
    (sealed / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(StoreError, match="not a uadray cohort"):
        open_cohort(str(sealed))
    document["attributes"] = {"uadray": {"format": 1}}
    (sealed / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(StoreError, match="of format 1, this version of uadray reads 2: prepare"):
        open_cohort(str(sealed))
    (sealed / "zarr.json").write_text("{")
    with pytest.raises(StoreError, match="is damaged"):
        open_cohort(str(sealed))


def flip(path: Path, place: float, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1 << bit
    path.write_bytes(bytes(content))


class TestVerify:
    @pytest.mark.parametrize("name", ["image", "brain", "lesion"])
    @pytest.mark.parametrize("place", [0.1, 0.5, 0.99])
    def test_a_flipped_bit_in_a_shard(self, sealed, name, place):
        flip(sealed / name / "c/1/0/0/0", place, bit=3)
        (problem,) = verify(str(sealed))
        assert problem.rows == tuple(range(8, 16))
        assert problem.ids == tuple(f"s{k}" for k in range(8, 16))
        assert "shard 1: its chunk is unreadable" in str(problem)
        assert "prepare again: s8, s9, s10, " in str(problem)
        assert "--redo damaged" in advice(str(sealed), [problem])

    def test_a_flipped_bit_in_any_small_file(self, sealed):
        small = [p for p in sealed.rglob("*") if p.is_file() and "/c/" not in str(p)]
        assert len(small) == 10
        for path in small:
            whole = path.read_bytes()
            # Of the attributes, the names of what is looked up as well.
            num = 100 if path == sealed / "zarr.json" else 4
            for place in np.linspace(0.01, 0.95, num):
                flip(path, place)
                try:
                    broken = [str(p) for p in verify(str(sealed))]
                except StoreError as error:
                    broken = [str(error)]
                # A flip in the digests that zarr.json holds is one in the files that they are of.
                name = "" if path == sealed / "zarr.json" else str(path.relative_to(sealed))
                assert any(name in p for p in broken), (path, place, broken)
                path.write_bytes(whole)
        assert verify(str(sealed)) == []

    def test_what_is_missing(self, sealed):
        (sealed / "brain/c/0/0/0/0").unlink()
        (sealed / "parts/00002.json").unlink()
        (sealed / "quarantine.jsonl").unlink()
        table, voxels, record = verify(str(sealed))
        assert str(table) == "quarantine.jsonl is missing"
        assert "shard 0: the shard of brain is missing; prepare again: s0, s1, " in str(voxels)
        assert str(record) == "4 of 20 rows are not written; prepare again: s16, s17, s18, s19"
        assert record.rows == (16, 17, 18, 19)

    def test_an_interrupted_job(self, tmp_path):
        writer = create(tmp_path / "c.zarr", command="python jobs/prepare.py csv x.csv")
        write(writer, 1)
        problems = verify(writer.url)
        assert [str(p) for p in problems] == [
            "not sealed: the job that makes it did not finish",
            "12 of 20 rows are not written; prepare again: "
            "s0, s1, s2, s3, s4, s5, s6, s7, s16, s17, s18, s19",
        ]
        expected = f"python jobs/prepare.py csv x.csv --out {writer.url}"
        assert advice(writer.url, problems) == expected
        # Damage in what is written is found as well.
        flip(tmp_path / "c.zarr/image/c/1/0/0/0", 0.5)
        assert verify(writer.url)[1].rows == tuple(range(8, 16))

    @pytest.mark.parametrize("content", [b"", b"\xff\n", b'["s0"]\n', None])
    def test_a_list_of_scans_that_cannot_be_read(self, sealed, content):
        """It names no scan then, and the command that made the cohort mends it."""
        path = sealed / "scans.jsonl"
        whole = path.read_bytes()
        (sealed / "parts/00002.json").unlink()
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        scans, record = verify(str(sealed))
        missing = "is missing" if content is None else "differs from what was written"
        assert str(scans) == f"scans.jsonl {missing}"
        assert str(record) == "4 of 20 rows are not written"
        create(sealed)
        assert path.read_bytes() == whole

    def test_another_subject_s_voxels_in_its_place(self, sealed):
        for name in ("image", "brain", "lesion"):
            first, second = (sealed / f"{name}/c/{k}/0/0/0" for k in (0, 1))
            first.write_bytes(second.read_bytes())
        (problem,) = verify(str(sealed))
        assert problem.what == "shard 0: its voxels differ from what was written"
        assert problem.rows == tuple(range(8))

    @pytest.mark.parametrize(
        ("change", "what"),
        [
            (lambda a, s: a["image"].__setitem__((2, ~a["brain"][2]), 0.5), "not 0 outside"),
            (lambda a, s: a["brain"].__setitem__((2, a["lesion"][2]), False), "outside the brain"),
            (lambda a, s: a["lesion"].__setitem__(2, False), "lesion mask is empty"),
            (lambda a, s: [x.__setitem__(2, 0) for x in a.values()], "brain mask is empty"),
            (lambda a, s: a["image"].__setitem__(FAILED_ROW % 8, 0.1), "row is not empty"),
        ],
    )
    def test_broken_promises(self, tmp_path, change, what):
        """A row that was written as it is, but not as a cohort promises."""
        writer = create(tmp_path / "c.zarr")
        for shard in range(3):
            write(writer, shard)
        rows = writer.rows_of(1 if "row is" in what else 0)
        content = arrays(rows)
        change(content, rows)
        failures = [failure(r) for r in rows if r == FAILED_ROW]
        subjects = [subject(r) for r in rows if r != FAILED_ROW]
        writer.write_shard(rows.start // 8, **content, subjects=subjects, failures=failures)
        writer.seal()
        problems = verify(writer.url)
        assert any(what in str(p) for p in problems)
        assert {p.rows for p in problems} == {(FAILED_ROW if "row is" in what else 2,)}

    def test_a_volume_that_is_not_its_mask_s(self, sealed):
        part = read_part(str(sealed), 0, range(8))
        wrong = [replace(s, lesion_ml=s.lesion_ml * 1.01) for s in part.subjects[:1]]
        write_part(str(sealed), 0, replace(part, subjects=(*wrong, *part.subjects[1:])))
        broken = verify(str(sealed))
        assert [p.ids for p in broken] == [(), ("s0",)]
        assert "a stated volume does not fit its mask" in str(broken[1])

    def test_a_record_without_a_row(self, sealed):
        part = read_part(str(sealed), 0, range(8))
        write_part(str(sealed), 0, replace(part, subjects=part.subjects[1:]))
        frame, record = verify(str(sealed))
        assert "parts/00000.json differs" in str(frame)
        assert "does not hold the rows" in str(record)
        assert record.rows == tuple(range(8))

    def test_a_problem_of_many_names_few(self):
        problem = Problem(what="x", rows=tuple(range(64)), ids=tuple(f"s{k}" for k in range(64)))
        assert str(problem).endswith("s15 and 48 more")


def hashes(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


class TestRows:
    """Scans that come one by one, in any order, and rows that are prepared again."""

    @staticmethod
    def put(writer: CohortWriter, rows) -> dict[int, str]:
        names = {}
        for row in rows:
            content = {k: v[0] for k, v in arrays(range(row, row + 1)).items()}
            names[row] = writer.put_row(subject(row), content)
        return names

    def fill(self, url: Path, order) -> CohortWriter:
        writer = create(url)
        names = self.put(writer, [r for r in order if r != FAILED_ROW])
        for shard in writer.missing_shards():
            rows = writer.rows_of(shard)
            failures = [failure(r) for r in rows if r == FAILED_ROW]
            writer.write_kept(shard, [names[r] for r in rows if r in names], failures)
        return writer

    def test_the_store_is_the_same_byte_for_byte(self, tmp_path, sealed):
        writer = self.fill(tmp_path / "r.zarr", reversed(range(NUM_ROWS)))
        assert writer.kept_rows() == set()
        writer.seal()
        assert hashes(tmp_path / "r.zarr") == hashes(sealed)

    def test_a_kept_row_is_read_back_and_a_damaged_one_is_removed(self, tmp_path):
        writer = create(tmp_path / "c.zarr")
        names = self.put(writer, range(8))
        assert writer.kept_rows() == set(names.values())
        assert names[3] == "000003-s3-d3.npz"
        flip(tmp_path / "c.zarr/rows" / names[3], 0.4)
        with pytest.raises(StoreError, match=r"was damaged .* run the same command again"):
            writer.write_kept(0, list(names.values()), [])
        assert writer.kept_rows() == set(names.values()) - {names[3]}
        assert writer.missing_shards() == [0, 1, 2]

    def test_a_row_whose_process_died_is_counted_until_it_ends(self, tmp_path):
        writer = create(tmp_path / "c.zarr")
        assert [writer.begin_row(5) for _ in range(3)] == [0, 1, 2]
        assert writer.begin_row(6) == 0
        writer.end_row(5)
        assert writer.begin_row(5) == 0
        # A new job counts from the start.
        assert writer.kept_rows() == set()
        assert writer.begin_row(6) == 0

    def test_rows_are_forgotten_and_the_others_kept(self, tmp_path, sealed):
        before = hashes(sealed)
        writer = create(sealed)
        writer.reopen([3, 17])
        with pytest.raises(StoreNotSealedError):
            open_cohort(str(sealed))
        assert writer.missing_shards() == [0, 2]
        kept = writer.kept_rows()
        assert {int(name[:6]) for name in kept} == {*range(8), 16, 17, 18, 19} - {3, 17}
        again = self.put(writer, [3, 17])
        for shard in (0, 2):
            rows = writer.rows_of(shard)
            names = {n for n in kept | set(again.values()) if int(n[:6]) in rows}
            writer.write_kept(shard, sorted(names), [])
        writer.seal()
        assert hashes(sealed) == before

    def test_damaged_rows_are_not_kept(self, sealed):
        flip(sealed / "brain/c/0/0/0/0", 0.3)
        (sealed / "parts/00002.json").write_text("{")
        flip(sealed / "image/zarr.json", 0.5)
        before = (sealed / "zarr.json").read_bytes()
        writer = create(sealed)
        writer.reopen([0, 16])
        assert writer.kept_rows() == set()
        assert writer.missing_shards() == [0, 2]
        for shard in (0, 2):
            write(writer, shard)
        writer.seal()
        assert verify(str(sealed)) == []
        assert (sealed / "zarr.json").read_bytes() == before


class TestInterrupted:
    """Whatever a killed job leaves, the same steps again end in the same store."""

    def finish(self, url: Path) -> None:
        writer = create(url)
        for shard in writer.missing_shards():
            write(writer, shard)
        writer.seal()

    def test_before_the_attributes_are_whole(self, tmp_path, sealed):
        url = tmp_path / "r.zarr"
        url.mkdir()
        (url / f".zarr.json.{'0' * 32}").write_text("{")
        self.finish(url)
        assert hashes(url) == hashes(sealed)

    def test_before_the_list_of_scans(self, tmp_path, sealed):
        create(tmp_path / "r.zarr")
        (tmp_path / "r.zarr/scans.jsonl").unlink()
        self.finish(tmp_path / "r.zarr")
        assert hashes(tmp_path / "r.zarr") == hashes(sealed)

    def test_between_the_arrays_metadata(self, tmp_path, sealed):
        create(tmp_path / "r.zarr")
        (tmp_path / "r.zarr/brain/zarr.json").unlink()
        (tmp_path / "r.zarr/lesion/zarr.json").write_text("{")
        self.finish(tmp_path / "r.zarr")
        assert hashes(tmp_path / "r.zarr") == hashes(sealed)

    @pytest.mark.parametrize("shard", [0, 2])
    def test_in_the_middle_of_a_shard(self, tmp_path, sealed, shard):
        """Also in the last shard, which is not full and would be merged into what is there."""
        url = tmp_path / "r.zarr"
        write(create(url), shard)
        (url / f"parts/0000{shard}.json").unlink()
        for name in ("image", "brain"):
            path = url / f"{name}/c/{shard}/0/0/0"
            path.write_bytes(path.read_bytes()[:-9])
        (url / "lesion/c" / str(shard) / f"0/0/.{'a' * 32}.partial").write_text("cut short")
        assert create(url).missing_shards() == [0, 1, 2]
        self.finish(url)
        assert hashes(url) == hashes(sealed)

    @pytest.mark.parametrize("step", ["quarantine.jsonl", "zarr.json"])
    def test_in_the_middle_of_sealing(self, tmp_path, sealed, step, monkeypatch):
        writer = fill(tmp_path / "r.zarr")
        write_bytes = files.write_bytes

        def killed(url: str, content: bytes) -> None:
            if url.endswith(f"r.zarr/{step}"):
                raise KeyboardInterrupt
            write_bytes(url, content)

        with monkeypatch.context() as patch:
            patch.setattr(files, "write_bytes", killed)
            with pytest.raises(KeyboardInterrupt):
                writer.seal()
        with pytest.raises(StoreNotSealedError):
            open_cohort(writer.url)
        self.finish(tmp_path / "r.zarr")
        assert hashes(tmp_path / "r.zarr") == hashes(sealed)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space is left there; free some"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "no space is left there"),
        (PermissionError(errno.EACCES, "Permission denied"), "cannot be read or written"),
        (botocore.exceptions.EndpointConnectionError(endpoint_url="x"), "Could not connect"),
    ],
)
def test_storage_that_cannot_be_used(error, message):
    with pytest.raises(StoreError, match=message) as caught, storage_errors("s3://b/c.zarr"):
        raise error
    assert "s3://b/c.zarr: " in str(caught.value)
    assert "run the same command again" in str(caught.value)


def test_other_errors_are_left_as_they_are():
    with pytest.raises(ZeroDivisionError), storage_errors("c.zarr"):
        _ = 1 / 0
    with pytest.raises(StoreNotSealedError, match=r"^x$"), storage_errors("c.zarr"):
        raise StoreNotSealedError("x")


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
    content = {name: np.zeros((1, *SHAPE), bool) for name in ("brain", "lesion")}
    image = np.zeros((1, *SHAPE), np.float32)
    writer.write_shard(0, image=image, **content, subjects=[], failures=[failure(0)])
    with pytest.raises(StoreError, match=r"none of 1 scans could be used.*s0: truncated"):
        writer.seal()


@pytest.mark.parametrize(
    ("num_rows", "expected"), [(1, 8), (64, 8), (65, 16), (500, 64), (2000, 64)]
)
def test_shards_are_whole_chunks(num_rows, expected):
    assert shard_volumes(num_rows) == expected
