"""Scans are distinguished by their content, never by its size or name."""

import gzip
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from tiny_cohorts import write_lesioned
from tiny_models import SMALL, scan_of, write_cohort, write_head

from uadray import files
from uadray.errors import EvaluationError, StoreError
from uadray.evaluation.inputs import _check_cohort
from uadray.evaluation.protocols import EvaluateConfig
from uadray.preparation.identity import digest_of, image_digest, is_unchanged, look_at
from uadray.preparation.ingest import _rows_to_redo, _still_good, summary
from uadray.preparation.layouts import Scan
from uadray.preparation.plan import make_plan, planned_scans, sources
from uadray.preparation.read import load_volume
from uadray.preparation.settings import SplitConfig
from uadray.preparation.steps import prepare_scan
from uadray.store import CohortWriter, Subject, open_cohort, repeated_images
from uadray.store.layout import part_url


def write_plain(path: Path, seed: int) -> str:
    """An unpacked head: those of one shape have one size."""
    packed = write_head(path.with_suffix(".nii.gz"), seed)
    path.write_bytes(gzip.decompress(Path(packed).read_bytes()))
    Path(packed).unlink()
    return str(path)


def with_mask(folder: Path) -> Scan:
    path = write_plain(folder / "a_T1w.nii", 1)
    image = nib.load(path)
    mask = (np.asarray(image.dataobj) > 0).astype(np.uint8)
    nib.save(nib.Nifti1Image(mask, image.affine), folder / "mask.nii")
    return replace(scan_of(path), brain=str(folder / "mask.nii"))


def rewrite(path: str, at: int = -1000, *, keep_times: bool = False) -> None:
    """Change one byte in place; the size stays."""
    before = os.stat(path)
    content = bytearray(Path(path).read_bytes())
    content[at] ^= 1
    Path(path).write_bytes(bytes(content))
    if keep_times:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


class TestDigest:
    @pytest.mark.parametrize("which", ["image", "brain"])
    @pytest.mark.parametrize("at", [-1000, 200])  # a voxel, a letter of the header
    @pytest.mark.parametrize("keep_times", [False, True])
    def test_sees_what_keeps_its_size(self, tmp_path, which, at, keep_times) -> None:
        scan = with_mask(tmp_path)
        source, digest = look_at(scan), digest_of(scan)
        assert is_unchanged(scan, look_at(scan), digest=digest, stamp=source.stamp)
        rewrite(getattr(scan, which), at, keep_times=keep_times)
        now = look_at(scan)
        assert now.num_bytes == source.num_bytes
        assert not is_unchanged(scan, now, digest=digest, stamp=source.stamp)

    def test_each_file_counts(self, tmp_path: Path) -> None:
        scan = with_mask(tmp_path)
        known = {digest_of(scan)}
        for other in (
            replace(scan, brain=""),
            replace(scan, brain="", lesion=scan.brain),
            replace(scan, lesion=scan.brain),
            replace(scan, more_lesions=(scan.brain,), lesion=scan.brain),
            replace(scan, synthetic_lesion=scan.brain),
            replace(scan, template=scan.brain),
            replace(scan, brain=str(tmp_path / "absent.nii")),
        ):
            known.add(digest_of(other))
        assert len(known) == 8

    def test_the_header_of_a_pair_counts(self, tmp_path: Path) -> None:
        image = nib.load(write_head(tmp_path / "a.nii.gz"))
        nib.save(nib.Nifti1Pair(np.asarray(image.dataobj), image.affine), tmp_path / "a.img")
        scan = scan_of(str(tmp_path / "a.img"))
        before = digest_of(scan)
        rewrite(str(tmp_path / "a.hdr"), 200)
        assert digest_of(scan) != before

    def test_touched_or_moved_it_is_the_same(self, tmp_path: Path) -> None:
        scan = with_mask(tmp_path / "one")
        source, digest = look_at(scan), digest_of(scan)
        os.utime(scan.image)
        assert look_at(scan).stamp != source.stamp
        assert is_unchanged(scan, look_at(scan), digest=digest, stamp=source.stamp)
        shutil.copytree(tmp_path / "one", tmp_path / "two")
        moved = replace(
            scan, image=str(tmp_path / "two/a_T1w.nii"), brain=str(tmp_path / "two/mask.nii")
        )
        assert look_at(moved).stamp != look_at(scan).stamp
        assert digest_of(moved) == digest

    def test_of_what_was_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        scan = with_mask(tmp_path)
        expected = digest_of(scan)
        with files.digests_of_reads() as read:
            load_volume(scan)
        monkeypatch.setattr(files, "digest", lambda url: pytest.fail(f"{url} is read again"))
        assert digest_of(scan, read) == expected

    def test_in_an_object_store(self) -> None:
        scan = Scan(id="a", subject="a", image="memory://id/a.nii", modality="T1w")
        files.write_bytes(scan.image, b"one")
        source, digest = look_at(scan), digest_of(scan)
        files.write_bytes(scan.image, b"two")
        assert not is_unchanged(scan, look_at(scan), digest=digest, stamp=source.stamp)

    def test_phantoms_have_none(self) -> None:
        scan = Scan(id="p", subject="p", image="phantom://healthy/1", modality="T1w")
        assert (digest_of(scan), look_at(scan).stamp) == ("", "")


def test_an_image_is_known_however_it_is_packed_named_or_turned(tmp_path: Path) -> None:
    path = write_head(tmp_path / "a.nii.gz", 3)
    image = nib.load(path)
    again = nib.Nifti1Image(np.asarray(image.dataobj), image.affine)
    again.header["descrip"] = b"exported again"
    nib.save(again, tmp_path / "b.nii")
    nib.save(image.slicer[::-1], tmp_path / "c.nii.gz")
    write_head(tmp_path / "other.nii.gz", 4)
    digests = [
        prepare_scan(scan_of(str(tmp_path / name)), SMALL).image_digest
        for name in ("a.nii.gz", "b.nii", "c.nii.gz", "other.nii.gz")
    ]
    assert len(digests[0]) == 32
    assert digests[0] == digests[1] == digests[2] != digests[3]
    voxels = np.asarray(image.dataobj, np.float32)
    assert image_digest(voxels, image.affine) == digests[0]


class TestRedo:
    @pytest.fixture
    def scans(self, tmp_path: Path) -> list[Scan]:
        return [scan_of(write_plain(tmp_path / f"in/s{k}_T1w.nii", k)) for k in range(4)]

    def writer(self, url: Path, scans: Sequence[Scan]) -> tuple[CohortWriter, list]:
        rows = [(scan, "train") for scan in scans]
        if not url.exists():
            write_cohort(url, scans, ["train"] * len(scans))
        return CohortWriter.create(
            str(url),
            num_rows=len(rows),
            shape=SMALL.shape,
            has_lesion=False,
            plan=make_plan(rows, SMALL, SplitConfig(), seed=0),
            scans=planned_scans(rows),
        ), rows

    def test_content_is_seen(self, tmp_path: Path, scans: list[Scan]) -> None:
        writer, rows = self.writer(tmp_path / "c.zarr", scans)
        assert _rows_to_redo(writer, rows, sources(rows), ()) is None
        os.utime(scans[0].image)
        rewrite(scans[2].image)
        with pytest.raises(StoreError, match=r"1 scans have changed .*: s2_T1w.nii \(.*s2_T1w"):
            _rows_to_redo(writer, rows, sources(rows), ())
        assert _rows_to_redo(writer, rows, sources(rows), ["changed"]) == {2}

    def test_of_two_scans_that_swapped_their_files(self, tmp_path, scans) -> None:
        writer, rows = self.writer(tmp_path / "c.zarr", scans)
        one, two = Path(scans[0].image), Path(scans[1].image)
        assert one.stat().st_size == two.stat().st_size
        one.rename(tmp_path / "aside")
        two.rename(one)
        (tmp_path / "aside").rename(two)
        assert _rows_to_redo(writer, rows, sources(rows), ["changed"]) == {0, 1}

    def test_a_cohort_without_digests(self, tmp_path, scans, caplog) -> None:
        writer, rows = self.writer(tmp_path / "c.zarr", scans)
        url = part_url(writer.url, 0)
        part = files.read_json(url)
        for line in part["subjects"]:
            for field in ("source_digest", "source_stamp", "image_digest"):
                del line[field]
        files.write_json(url, part, compact=True)
        assert _rows_to_redo(writer, rows, sources(rows), ()) is None
        assert "recorded no content for 4 of its scans" in caplog.text
        assert _rows_to_redo(writer, rows, sources(rows), ["changed"]) == {0, 1, 2, 3}
        Path(scans[1].image).write_bytes(Path(scans[1].image).read_bytes() + b"1")
        with pytest.raises(StoreError, match="s1_T1w"):
            _rows_to_redo(writer, rows, sources(rows), ())

    def test_what_waits_for_its_shard(self, tmp_path: Path, scans: list[Scan]) -> None:
        writer, rows = self.writer(tmp_path / "c.zarr", scans)
        writer.reopen([])
        kept = set()
        arrays = {"image": np.zeros(SMALL.shape, np.float16), "brain": np.ones(SMALL.shape, bool)}
        for line in open_cohort_lines(writer):
            kept.add(writer.put_row(line, arrays))
        kept.add("000003-5000.npz")  # of a version that went by size
        os.utime(scans[0].image)
        rewrite(scans[1].image)
        good = _still_good(kept, range(3), rows, sources(rows))
        assert sorted(good) == [0, 2]


def open_cohort_lines(writer: CohortWriter) -> list[Subject]:
    return [subject for part in writer.written_parts() for subject in part.subjects]


def test_a_digest_does_not_enter_the_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = [scan_of(write_plain(tmp_path / f"in/s{k}_T1w.nii", k)) for k in range(2)]
    one = write_cohort(tmp_path / "one.zarr", scans, ["train", "validation"])
    monkeypatch.setattr("tiny_models.digest_of", lambda scan: "")
    two = write_cohort(tmp_path / "two.zarr", scans, ["train", "validation"])
    assert one.fingerprint == two.fingerprint
    assert one.subjects["source_digest"].str.len().tolist() == [32, 32]
    assert isinstance(open_cohort(one.url).columns("image_digest"), pd.DataFrame)


class TestPairs:
    @pytest.mark.parametrize("named", ["img", "hdr"])
    @pytest.mark.parametrize("changed", ["img", "hdr"])
    @pytest.mark.parametrize("upper", [False, True])
    def test_both_files_count_whichever_was_named(self, tmp_path, named, changed, upper) -> None:
        def place(ending: str) -> str:
            return str(tmp_path / f"a.{ending.upper() if upper else ending}")

        for ending in ("img", "hdr"):
            Path(place(ending)).write_bytes(bytes(1000))
        scan = replace(scan_of(place(named)), brain=place(named))
        before = digest_of(scan)
        stamp = look_at(scan).stamp
        rewrite(place(changed), 500)
        assert digest_of(scan) != before
        assert look_at(scan).stamp != stamp


class TestOneImageUnderTwoIds:
    @pytest.fixture
    def twice(self, tmp_path: Path) -> list[Scan]:
        first, other, packed = (tmp_path / f"{name}_T1w.nii" for name in ("a", "b", "c"))
        write_plain(first, 1)
        write_plain(other, 2)
        packed.with_suffix(".nii.gz").write_bytes(gzip.compress(first.read_bytes()))
        return [scan_of(str(p)) for p in (first, other, packed.with_suffix(".nii.gz"))]

    def test_is_seen_in_the_table_and_said(self, tmp_path: Path, twice: list[Scan]) -> None:
        cohort = write_cohort(tmp_path / "c.zarr", twice, ["train", "train", "validation"])
        ((first, second),) = (group["id"] for group in repeated_images(cohort.subjects))
        assert {first, second} == {twice[0].id, twice[2].id}
        assert f"{first}, {second} hold the same image" in summary(cohort)

    def test_is_not_said_of_others(self, tmp_path: Path, twice: list[Scan]) -> None:
        cohort = write_cohort(tmp_path / "c.zarr", twice[:2], ["train", "validation"])
        assert repeated_images(cohort.subjects) == []
        assert "same image" not in summary(cohort)

    def test_of_old_cohorts_nothing_is_known(self) -> None:
        table = pd.DataFrame({"id": ["a", "b"], "split": ["test", "threshold"]})
        assert repeated_images(table) == []
        assert repeated_images(table.assign(image_digest=["", None])) == []

    def test_on_both_sides_of_an_evaluation_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cohort = write_lesioned(tmp_path)
        table = cohort.subjects.assign(image_digest=[str(k) for k in range(len(cohort.subjects))])
        _check_cohort(cohort, EvaluateConfig(), needs_threshold=True)
        one, other = (int(cohort.rows(part)[0]) for part in ("threshold", "test"))
        table.loc[table["row"].isin([one, other]), "image_digest"] = "same"
        monkeypatch.setattr(type(cohort), "subjects", table)
        with pytest.raises(EvaluationError, match="hold the same image, and one is in the thresh"):
            _check_cohort(open_cohort(cohort.url), EvaluateConfig(), needs_threshold=True)
