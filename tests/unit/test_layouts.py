import json
from pathlib import Path

import fsspec
import pytest

from uadray.errors import NoScanFoundError
from uadray.prepare.layouts import bids, csv, mslub, phantom


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


class TestBids:
    def test_sessions_runs_and_both_endings(self, tmp_path):
        touch(
            tmp_path,
            "sub-02/ses-b/anat/sub-02_ses-b_run-1_T1w.nii.gz",
            "sub-02/ses-a/anat/sub-02_ses-a_T1w.nii.gz",
            "sub-01/anat/sub-01_T1w.nii",
            "sub-01/anat/sub-01_FLAIR.nii.gz",
            "sub-01/func/sub-01_task-rest_bold.nii.gz",
        )
        scans = bids(str(tmp_path), "T1w")
        assert [s.id for s in scans] == ["sub-01", "sub-02_ses-a", "sub-02_ses-b_run-1"]
        assert [s.subject for s in scans] == ["sub-01", "sub-02", "sub-02"]
        assert [s.session for s in scans] == ["", "a", "b"]
        assert scans[0].image == str(tmp_path / "sub-01/anat/sub-01_T1w.nii")
        assert not scans[0].lesioned

    @pytest.mark.parametrize(
        "mask", ["sub-01_lesion_mask.nii.gz", "sub-01_label-lesion_roi.nii.gz"]
    )
    def test_masks_of_the_right_subject(self, tmp_path, mask):
        touch(
            tmp_path,
            "sub-01/anat/sub-01_T1w.nii.gz",
            "sub-011/anat/sub-011_T1w.nii.gz",
            f"derivatives/lesions/sub-01/anat/{mask}",
            "derivatives/strip/sub-01/anat/sub-01_desc-brain_mask.nii.gz",
        )
        first, second = bids(str(tmp_path), "T1w")
        assert first.lesion.endswith(mask)
        assert first.brain.endswith("sub-01_desc-brain_mask.nii.gz")
        assert first.lesioned
        assert (second.brain, second.lesion) == ("", "")

    def test_a_mask_beside_the_scan_is_no_scan(self, tmp_path):
        # As ATLAS R2.0 has them.
        stem = "sub-r001s001_ses-1_space-MNI152NLin2009aSym"
        folder = "sub-r001s001/ses-1/anat"
        mask = f"{folder}/{stem}_label-L_desc-T1lesion_mask.nii.gz"
        touch(tmp_path, f"{folder}/{stem}_T1w.nii.gz", mask)
        (scan,) = bids(str(tmp_path), "T1w")
        assert scan.lesion == str(tmp_path / mask)

    def test_scanner_from_sidecar_else_participants(self, tmp_path):
        touch(tmp_path, *(f"sub-{k}/anat/sub-{k}_T1w.nii.gz" for k in "123"))
        sidecar = {"Manufacturer": "Siemens", "ManufacturersModelName": "Prisma"}
        (tmp_path / "sub-1/anat/sub-1_T1w.json").write_text(json.dumps(sidecar))
        (tmp_path / "participants.tsv").write_text("participant_id\tsite\nsub-1\tA\nsub-2\tB\n")
        assert [s.scanner for s in bids(str(tmp_path), "T1w")] == ["Siemens Prisma", "B", ""]

    def test_wrong_modality_says_what_is_there(self, tmp_path):
        touch(tmp_path, "sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_T2w.nii.gz")
        with pytest.raises(NoScanFoundError, match=r"_FLAIR\.nii.*T1w, T2w.*--modality"):
            bids(str(tmp_path), "FLAIR")

    def test_no_bids_folder(self, tmp_path):
        touch(tmp_path, "scan.nii.gz")
        with pytest.raises(NoScanFoundError, match=r"none; 1 other files, first scan.nii.gz; give"):
            bids(str(tmp_path), "T1w")
        with pytest.raises(NoScanFoundError, match=r"absent: no such folder"):
            bids(str(tmp_path / "absent"), "T1w")

    def test_the_same_id_twice(self, tmp_path):
        touch(tmp_path, "sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_T1w.nii")
        with pytest.raises(NoScanFoundError, match=r"first sub-01: .*nii, .*nii\.gz"):
            bids(str(tmp_path), "T1w")

    def test_a_url(self):
        fs = fsspec.filesystem("memory")
        fs.pipe_file("/bids-url/sub-01/anat/sub-01_T1w.nii.gz", b"x")
        try:
            (scan,) = bids("memory://bids-url", "T1w")
            assert scan.image == "memory://bids-url/sub-01/anat/sub-01_T1w.nii.gz"
        finally:
            fs.rm("/bids-url", recursive=True)


class TestCsv:
    def test_paths_are_relative_to_the_table(self, tmp_path):
        table = tmp_path / "scans.csv"
        table.write_text(
            "image,subject,lesion,modality,scanner\n"
            "a/one.nii.gz,p1,/masks/one.nii.gz,T1w,S\n"
            "s3://b/two.nii,p1,,,\n"
            "three.nii,p2,,FLAIR,\n"
        )
        one, two = csv(str(table), "T1w")
        assert (one.id, one.subject, one.scanner) == ("one", "p1", "S")
        assert one.image == str(tmp_path / "a/one.nii.gz")
        assert one.lesion == "/masks/one.nii.gz"
        assert (two.id, two.image, two.modality, two.lesion) == ("two", "s3://b/two.nii", "T1w", "")

    def test_tabs_and_a_byte_order_mark(self, tmp_path):
        table = tmp_path / "scans.tsv"
        table.write_text("image\tid\na b.nii\t007\n", encoding="utf-8-sig")
        (scan,) = csv(str(table), "T1w")
        assert (scan.id, scan.subject) == ("007", "007")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("path\nx.nii\n", r"no column image; it has path"),
            ("image,lesoin\nx.nii,y\n", r"unknown columns \['lesoin'\]"),
            ("image\n", r"the table has no row"),
            ("image,modality\nx.nii,FLAIR\n", r"T1w.*FLAIR; choose one"),
            ("image,id\nx.nii,a\ny.nii,a\n", r"first a: .*x\.nii, .*y\.nii"),
        ],
    )
    def test_bad_tables(self, tmp_path, text, message):
        (tmp_path / "scans.csv").write_text(text)
        with pytest.raises(NoScanFoundError, match=message):
            csv(str(tmp_path / "scans.csv"), "T1w")

    def test_no_table(self, tmp_path):
        with pytest.raises(NoScanFoundError, match="no such file"):
            csv(str(tmp_path / "scans.csv"), "T1w")


class TestMslub:
    def test_scans_with_both_masks(self, tmp_path):
        names = ("FLAIR", "T1W", "brainmask", "consensus_gt")
        touch(tmp_path, *(f"patient07/patient07_{n}.nii.gz" for n in names))
        (scan,) = mslub(str(tmp_path), "t1w")
        assert scan.image.endswith("patient07_T1W.nii.gz")
        assert scan.brain.endswith("_brainmask.nii.gz")
        assert scan.lesion.endswith("_consensus_gt.nii.gz")

    def test_wrong_modality(self, tmp_path):
        touch(tmp_path, "patient07/patient07_FLAIR.nii.gz", "patient07/patient07_brainmask.nii.gz")
        with pytest.raises(NoScanFoundError, match="modalities there: flair; choose"):
            mslub(str(tmp_path), "T2W")


def test_phantoms_are_scans():
    scans = phantom("stroke", 3, first_seed=5)
    assert [s.image for s in scans] == [f"phantom://stroke/{k}" for k in (5, 6, 7)]
    assert all(s.lesioned for s in scans)
    assert not phantom("healthy", 1)[0].lesioned
