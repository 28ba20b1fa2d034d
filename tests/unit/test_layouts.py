import json
import os
from dataclasses import asdict, replace
from functools import partial
from itertools import permutations
from pathlib import Path

import fsspec
import numpy as np
import pytest
from tiny_scans import TINY
from tiny_sets import (
    LESION,
    SECOND,
    write_atlas1,
    write_atlas2,
    write_bids_set,
    write_brats,
    write_ixi,
    write_mslub,
    write_msseg2015,
    write_oasis1,
    write_wmh,
)

from uadray.errors import NoScanFoundError, ScanError
from uadray.phantom import age_and_sex
from uadray.preparation.layouts import (
    LAYOUTS,
    Scan,
    bids,
    csv,
    detect,
    mslub,
    phantom,
    read_phantom_url,
)
from uadray.preparation.layouts.scans import find_files
from uadray.preparation.read import load_volume
from uadray.preparation.settings import DOUBT
from uadray.preparation.steps import prepare_scan


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
            ("image,lesoin\nx.nii,y\n", r"column 'lesoin' is named almost as 'lesion'"),
            ("Image\nx.nii\n", r"no column image; it has Image"),
            ("image,Scanner\nx.nii,y\n", r"column 'Scanner' is named almost as 'scanner'"),
            ("image\n", r"the table has no row"),
            ("image,modality\nx.nii,FLAIR\n", r"T1w.*FLAIR; choose one"),
            ("image,id\nx.nii,a\ny.nii,a\n", r"first a: .*x\.nii, .*y\.nii"),
            ("image,id\nx.nii,a\nx.nii,b\n", r"images belong .* first .*x\.nii: a, b; leave one"),
            ("image,id\nx.nii,a\n ,b\n", r"row 3 has no image"),
            ("image,orientation\nx.nii,LRS\n", r"row 2 has orientation LRS; give three letters"),
            ('image\n"x', r"expected a table in UTF-8"),
            ("", r"expected a table in UTF-8 .*it is empty"),
        ],
    )
    def test_bad_tables(self, tmp_path, text, message):
        (tmp_path / "scans.csv").write_text(text)
        with pytest.raises(NoScanFoundError, match=message):
            csv(str(tmp_path / "scans.csv"), "T1w")

    def test_any_separator_and_several_masks(self, tmp_path):
        for separator, between in ((",", ";"), ("\t", ";"), (";", "|")):
            row = separator.join(["x.nii", f"a.nii{between} b.nii {between}c.nii", "pir"])
            head = separator.join(["image", "lesion", "orientation"])
            (tmp_path / "s.csv").write_text(f"{head}\r\n{row}\r\n")
            (scan,) = csv(str(tmp_path / "s.csv"), "T1w")
            paths = [str(tmp_path / f"{k}.nii") for k in "abc"]
            assert [scan.lesion, *scan.more_lesions] == paths
            assert scan.orientation == "PIR"

    def test_a_modality_by_another_name(self, tmp_path):
        (tmp_path / "s.csv").write_text("image,modality\nx.nii,t1\ny.nii,MPRAGE\nz.nii,T1ce\n")
        scans = csv(str(tmp_path / "s.csv"), "T1w")
        assert [(s.id, s.modality) for s in scans] == [("x", "T1w"), ("y", "T1w")]

    def test_not_utf8(self, tmp_path):
        (tmp_path / "s.csv").write_bytes("image\nGröße.nii\n".encode("latin-1"))
        with pytest.raises(NoScanFoundError, match=r"expected a table in UTF-8 .* save it again"):
            csv(str(tmp_path / "s.csv"), "T1w")

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


class TestBidsChoices:
    def test_the_plain_scan_of_the_first_run(self, tmp_path):
        first, second, third = bids(str(write_bids_set(tmp_path)), "T1w")
        assert [s.id for s in (first, second, third)] == [
            "sub-01_ses-a",
            "sub-01_ses-b_run-1",
            "sub-02_ses-a_acq-mprage",
        ]
        assert first.notes == third.notes == ""
        assert second.notes == (
            "taken of 3 in its session, the others being "
            "sub-01_ses-b_ce-gadolinium_run-1_T1w, sub-01_ses-b_run-2_T1w"
        )

    def test_others_by_their_entities(self, tmp_path):
        root = str(write_bids_set(tmp_path))
        (scan,) = bids(root, "run-2_T1w")
        assert (scan.id, scan.modality, scan.notes) == ("sub-01_ses-b_run-2", "T1w", "")
        (scan,) = bids(root, "ce-gadolinium_T1w")
        assert scan.id == "sub-01_ses-b_ce-gadolinium_run-1"
        with pytest.raises(NoScanFoundError, match=r"acq-space_FLAIR, acq-space_T1w; choose"):
            bids(root, "acq-space_T1w")

    def test_masks_may_leave_entities_out_but_not_contradict(self, tmp_path):
        first, second, third = bids(str(write_bids_set(tmp_path)), "T1w")
        assert (first.brain, first.lesion, second.lesion, third.brain) == ("",) * 4
        assert second.brain.endswith("sub-01_ses-b_desc-brain_mask.nii.gz")
        assert third.lesion.endswith("sub-02_ses-a_label-lesion_roi.nii.gz")

    def test_sidecars_are_inherited(self, tmp_path):
        scanners = [s.scanner for s in bids(str(write_bids_set(tmp_path)), "T1w")]
        assert scanners == ["Siemens Prisma 3T", "Siemens Prisma 1.5T", "Siemens 3T"]
        (flair,) = bids(str(tmp_path), "FLAIR")
        assert flair.scanner == "B"

    def test_several_masks_of_a_kind_are_noted(self, tmp_path):
        touch(
            tmp_path,
            "sub-01/anat/sub-01_T1w.nii.gz",
            *(f"derivatives/{k}/sub-01_desc-brain_mask.nii.gz" for k in ("hdbet", "bet")),
        )
        (scan,) = bids(str(tmp_path), "T1w")
        assert scan.brain.endswith("derivatives/bet/sub-01_desc-brain_mask.nii.gz")
        taken = "derivatives/bet/sub-01_desc-brain_mask.nii.gz"
        assert scan.notes == f"brain mask {taken} taken of 2"

    def test_a_phase_image_is_no_scan(self, tmp_path):
        touch(
            tmp_path,
            "sub-01/anat/sub-01_part-phase_T1w.nii.gz",
            "sub-01/anat/sub-01_part-mag_T1w.nii.gz",
        )
        (scan,) = bids(str(tmp_path), "T1w")
        assert scan.id == "sub-01_part-mag"

    SIDECAR = "sub-1/anat/sub-1_T1w.json"

    @pytest.mark.parametrize(
        ("name", "content", "note"),
        [
            (SIDECAR, b"{no", "its sidecar sub-1/anat/sub-1_T1w.json cannot be read (Expecting"),
            (SIDECAR, b"", "cannot be read (Expecting value"),
            (SIDECAR, b'{"Manufacturer": "M\xfcller"}', "cannot be read ('utf-8' codec"),
            (SIDECAR, b"[1, 2]", "holds no JSON object"),
            (SIDECAR, b"[" * 100_000, "cannot be read (maximum recursion"),
            (SIDECAR, bytes(range(256)) * 4, "cannot be read"),
            (SIDECAR, None, "cannot be read (No such file"),
            ("participants.tsv", b"participant_id\tsite\nsub-1\tA\tB\n", "line 2 has 3 cells"),
            ("participants.tsv", b"participant_id\tsite\nsub-1\tM\xfcnchen\n", "codec can't"),
            ("participants.tsv", b"", "participants.tsv cannot be read (it is empty)"),
            ("participants.tsv", b"id\tsite\nsub-1\tA\n", "has no column participant_id"),
            ("participants.tsv", b"\x00\x01\x02", "participants.tsv cannot be read"),
            ("participants.tsv", "folder", "participants.tsv cannot be read (Is a directory"),
            ("participants.tsv", None, "participants.tsv is a link to what is not there"),
        ],
    )
    def test_side_files_that_cannot_be_read(self, tmp_path, name, content, note):
        """They tell the scanner and nothing else: it is unknown, and the scan's notes say why."""
        touch(tmp_path, "sub-1/anat/sub-1_T1w.nii.gz")
        if content is None:
            (tmp_path / name).symlink_to("/nowhere/.git/annex/objects/x")
        elif isinstance(content, str):
            (tmp_path / name).mkdir()
        else:
            (tmp_path / name).write_bytes(content)
        (scan,) = bids(str(tmp_path), "T1w")
        assert scan.scanner == ""
        assert note in scan.notes
        assert scan.notes.endswith(": scanner unknown")

    @pytest.mark.parametrize(
        "content",
        [
            b"participant_id\tsite\nsub-1\tA\n",
            b"\xef\xbb\xbfparticipant_id\tsite\nsub-1\tA\t\n",
            "participant_id\tsite\t\r\n1\tA\t\t\r\n".encode("utf-16"),
            b"age\tparticipant_id\tsite\n30\tsub-1\tA\t\n",
            b"participant_id\tsite\rsub-1\tA\rsub-2\tn/a\r",
            b"participant_id;site\nsub-1;A\n",
            b"participant_id,site\nsub-1,A\n",
        ],
    )
    def test_participants_as_programs_save_them(self, tmp_path, content):
        touch(tmp_path, "sub-1/anat/sub-1_T1w.nii.gz")
        (tmp_path / "participants.tsv").write_bytes(content)
        (scan,) = bids(str(tmp_path), "T1w")
        assert (scan.scanner, scan.notes) == ("A", "")

    @pytest.mark.parametrize(
        "folder", ["study [v1]", "a*b", "what?", "[!x]{y}", "a::b", "~x", "%20"]
    )
    def test_no_pattern_is_read_from_a_path(self, tmp_path, folder):
        root = touch(tmp_path / folder, "sub-1/anat/sub-1_T1w.nii.gz")
        (root / "sub-1/anat/sub-1_T1w.json").write_text('{"Manufacturer": "Siemens"}')
        (scan,) = bids(str(root), "T1w")
        assert (scan.scanner, scan.notes) == ("Siemens", "")
        assert Path(scan.image).exists()


class TestListing:
    def test_hidden_copies_are_left_out(self, tmp_path):
        touch(
            tmp_path,
            "sub-1/anat/sub-1_T1w.nii.gz",
            "sub-1/anat/._sub-1_T1w.nii.gz",
            ".git/annex/objects/x/sub-1/anat/sub-1_T1w.nii.gz",
        )
        assert find_files(str(tmp_path)) == ["sub-1/anat/sub-1_T1w.nii.gz"]

    def test_links_are_followed_but_not_in_circles(self, tmp_path):
        touch(tmp_path / "elsewhere", "anat/sub-1_T1w.nii.gz")
        root = tmp_path / "set"
        (root / "sub-1").parent.mkdir()
        (root / "sub-1").symlink_to(tmp_path / "elsewhere")
        (root / "again").symlink_to(root)
        (root / "gone.nii").symlink_to("/nowhere.nii")
        assert find_files(str(root)) == ["gone.nii", "sub-1/anat/sub-1_T1w.nii.gz"]

    def test_a_folder_that_cannot_be_listed(self, tmp_path, monkeypatch):
        touch(tmp_path, "sub-1/anat/sub-1_T1w.nii.gz", "sub-2/anat/sub-2_T1w.nii.gz")
        scandir = os.scandir

        def refuse(path):
            if str(path).endswith("sub-2"):
                raise PermissionError(13, "Permission denied", str(path))
            return scandir(path)

        # Tests may run as root, whom no mode keeps out.
        monkeypatch.setattr(os, "scandir", refuse)
        with pytest.raises(NoScanFoundError, match=r"sub-2: cannot be listed \(Permission denied"):
            bids(str(tmp_path), "T1w")

    def test_a_file_is_no_folder(self, tmp_path):
        touch(tmp_path, "scan.nii")
        with pytest.raises(NoScanFoundError, match=r"scan\.nii: is a file; give the folder"):
            bids(str(tmp_path / "scan.nii"), "T1w")

    def test_names_in_any_script(self, tmp_path):
        touch(tmp_path, "sub-Ünï/anat/sub-Ünï_T1w.nii.gz", "sub-脳/anat/sub-脳_T1w.nii.gz")
        assert [s.subject for s in bids(str(tmp_path), "T1w")] == ["sub-Ünï", "sub-脳"]


def fields_of(scan: Scan, root: Path) -> dict[str, object]:
    """What a layout says, paths relative to the root."""
    fields = {key: value for key, value in asdict(scan).items() if value}
    for key in ("image", "brain", "lesion"):
        if key in fields:
            fields[key] = str(Path(fields[key]).relative_to(root))
    if scan.more_lesions:
        fields["more_lesions"] = [str(Path(p).relative_to(root)) for p in scan.more_lesions]
    return fields


class TestPublicSets:
    def test_ixi(self, tmp_path):
        scans = LAYOUTS["ixi"](str(write_ixi(tmp_path)))
        assert fields_of(scans[0], tmp_path) == {
            "id": "IXI002-Guys-0828",
            "subject": "IXI002",
            "modality": "T1w",
            "scanner": "Guys Philips 1.5T",
            "image": "IXI-T1/IXI002-Guys-0828-T1.nii.gz",
        }
        assert [s.scanner for s in scans[1:]] == ["HH Philips 3T", "IOP GE 1.5T"]
        assert len(LAYOUTS["ixi"](str(tmp_path / "IXI-PD"), "PD")) == 3
        (tmp_path / "IXI.csv").write_text('IXI_ID,"SEX_ID (1=m, 2=f)",AGE\n2,2,35.8\n12,1,\n')
        scans = LAYOUTS["ixi"](str(tmp_path))
        assert dict(scans[0].covariates) == {"AGE": "35.8", "sex": "F"}
        (tmp_path / "IXI.csv").write_text("ID,AGE\n2,35.8\n")
        assert LAYOUTS["ixi"](str(tmp_path)).remarks == ("  note: IXI.csv has no column IXI_ID",)

    def test_atlas_reads_its_own_table(self, tmp_path):
        root = write_atlas1(tmp_path / "one")
        table = root / "ATLAS_Meta-Data_Release_1.1_standard_mni.csv"
        head = "INDI Site ID,INDI Subject ID,Session,Stroke type"
        table.write_text(
            f"{head}\nSite1,31768,t01,Embolic\nSite6,31923,t01,Lacunar\nSite6,31923,t02,\n"
        )
        found = {s.id: dict(s.covariates) for s in LAYOUTS["atlas"](str(root))}
        assert found["031768_t01"] == {"INDI Site ID": "Site1", "Stroke type": "Embolic"}
        assert [found[f"031923_t0{n}"]["Stroke type"] for n in (1, 2)] == ["Lacunar", ""]
        table.write_text("INDI Subject ID,Stroke type\n31768,Embolic\n31768,Lacunar\n")
        assert not any(s.covariates for s in LAYOUTS["atlas"](str(root)))  # it says both
        table.write_text("ID,Stroke type\n31768,Embolic\n")
        (remark,) = LAYOUTS["atlas"](str(root)).remarks
        assert "has no column INDI Subject ID or Subject ID" in remark
        root = write_atlas2(tmp_path / "two")
        # Published as a workbook, and saved as CSV.
        (root / "20220425_ATLAS_2.0_MetaData.csv").write_text(
            "Subject ID,# Lesions LH Subcortical\nsub-r001s001,2\nsub-r052s003,0\n"
        )
        found = {s.id: dict(s.covariates) for s in LAYOUTS["atlas"](str(root))}
        assert found["sub-r001s001_ses-1"] == {"# Lesions LH Subcortical": "2"}
        assert LAYOUTS["atlas"](str(root)).remarks == ()

    def test_oasis1(self, tmp_path):
        scans = LAYOUTS["oasis1"](str(write_oasis1(tmp_path)))
        stem = "disc1/OAS1_0001_MR1/PROCESSED/MPRAGE/T88_111/OAS1_0001_MR1_mpr_n4_anon_111_t88"
        assert fields_of(scans[0], tmp_path) == {
            "id": "OAS1_0001_MR1",
            "subject": "OAS1_0001",
            "session": "MR1",
            "modality": "T1w",
            "orientation": "LAS",
            "image": f"{stem}_masked_gfc.img",
            "covariates": (("M/F", "F"), ("CDR", "0")),
        }
        assert [(s.subject, s.session) for s in scans[1:]] == [
            ("OAS1_0061", "MR1"),
            ("OAS1_0061", "MR2"),
        ]
        assert [s.notes for s in scans[1:]] == [f"{DOUBT}clinical dementia rating 0.5", ""]

    @pytest.mark.parametrize(
        ("year", "first"),
        [
            (2019, {"id": "BraTS19_2013_0_1", "scanner": "2013", "notes": "LGG"}),
            (2020, {"id": "BraTS20_Training_001"}),
            (2021, {"id": "BraTS2021_00000"}),
            (
                2023,
                {
                    "id": "BraTS-GLI-00005-000",
                    "subject": "BraTS-GLI-00005",
                    "session": "000",
                },
            ),
        ],
    )
    def test_brats(self, tmp_path, year, first):
        root = str(write_brats(tmp_path, year))
        by_modality = {m: LAYOUTS["brats"](root, m) for m in ("T1w", "T1ce", "T2w", "FLAIR")}
        assert LAYOUTS["brats"](root) == by_modality["FLAIR"]
        own = {
            "T1w": "t1n" if year == 2023 else "t1",
            "T1ce": "t1c" if year == 2023 else "t1ce",
            "T2w": "t2w" if year == 2023 else "t2",
            "FLAIR": "t2f" if year == 2023 else "flair",
        }
        for modality, scans in by_modality.items():
            assert len(scans) == 2
            fields = fields_of(scans[0], tmp_path)
            image, lesion = fields.pop("image"), fields.pop("lesion")
            assert fields == {"subject": first["id"], "modality": modality} | first
            joint = "-" if year == 2023 else "_"
            assert image.split(".")[0].endswith(
                f"{first['id']}/{first['id']}{joint}{own[modality]}"
            )
            assert "seg." in lesion
            assert LAYOUTS["brats"](root, own[modality]) == scans
        last = by_modality["T1w"][1]
        assert last.lesion.endswith("Segm.nii" if year == 2020 else "seg.nii.gz")
        assert np.array_equal(load_volume(last).lesion, LESION)

    def test_brats_without_masks(self, tmp_path, caplog):
        write_brats(tmp_path, 2021)
        (tmp_path / "BraTS2021_00002/BraTS2021_00002_seg.nii.gz").unlink()
        (scan,) = LAYOUTS["brats"](str(tmp_path))
        assert scan.id == "BraTS2021_00000"
        assert "1 scans have no lesion mask and are left out" in caplog.text
        (tmp_path / "BraTS2021_00000/BraTS2021_00000_seg.nii.gz").unlink()
        with pytest.raises(NoScanFoundError, match=r"2 scans, first .*, but none has its lesion"):
            LAYOUTS["brats"](str(tmp_path))

    def test_atlas1_merges_masks(self, tmp_path):
        scans = LAYOUTS["atlas"](str(write_atlas1(tmp_path)))
        stem = "standard_mni/Site6/031923/t01/031923"
        assert [s.id for s in scans] == ["031768_t01", "031923_t01", "031923_t02"]
        assert fields_of(scans[1], tmp_path) == {
            "id": "031923_t01",
            "subject": "031923",
            "session": "t01",
            "modality": "T1w",
            "scanner": "Site6",
            "image": f"{stem}_t1w_deface_stx.nii.gz",
            "lesion": f"{stem}_LesionSmooth_1_stx.nii.gz",
            "more_lesions": [f"{stem}_LesionSmooth_stx.nii.gz"],
            "notes": "2 lesion masks merged",
        }
        assert np.array_equal(load_volume(scans[1]).lesion, LESION | SECOND)
        assert np.array_equal(load_volume(scans[0]).lesion, LESION)

    def test_atlas2_leaves_its_test_part_out(self, tmp_path, caplog):
        scans = LAYOUTS["atlas"](str(write_atlas2(tmp_path)))
        stem = "Training/R001/sub-r001s001/ses-1/anat/sub-r001s001_ses-1_space-MNI152NLin2009aSym"
        assert fields_of(scans[0], tmp_path) == {
            "id": "sub-r001s001_ses-1",
            "subject": "sub-r001s001",
            "session": "1",
            "modality": "T1w",
            "scanner": "r001",
            "image": f"{stem}_T1w.nii.gz",
            "lesion": f"{stem}_label-L_desc-T1lesion_mask.nii.gz",
        }
        assert len(scans) == 2
        assert "1 scans have no lesion mask" in caplog.text

    def test_mslub(self, tmp_path):
        scans = LAYOUTS["mslub"](str(write_mslub(tmp_path)))
        assert fields_of(scans[0], tmp_path) == {
            "id": "patient01",
            "subject": "patient01",
            "modality": "FLAIR",
            "image": "patient01/patient01_FLAIR.nii.gz",
            "brain": "patient01/patient01_brainmask.nii.gz",
            "lesion": "patient01/patient01_consensus_gt.nii.gz",
        }
        assert LAYOUTS["mslub"](str(tmp_path), "T1ce")[0].image.endswith("_T1WKS.nii.gz")

    def test_wmh_takes_label_1_of_the_corrected_scan(self, tmp_path):
        scans = LAYOUTS["wmh"](str(write_wmh(tmp_path)))
        assert {s.id: s.scanner for s in scans} == {
            "Amsterdam-GE3T-100": "Amsterdam GE Signa HDxt 3T",
            "Amsterdam-Philips_VU-160": "Amsterdam Philips Ingenuity 3T",
            "Singapore-50": "Singapore Siemens TrioTim 3T",
            "Utrecht-0": "Utrecht Philips Achieva 3T",
        }
        assert fields_of(scans[0], tmp_path) == {
            "id": "Amsterdam-GE3T-100",
            "subject": "Amsterdam-100",
            "modality": "FLAIR",
            "scanner": "Amsterdam GE Signa HDxt 3T",
            "image": "training/Amsterdam/GE3T/100/pre/FLAIR.nii.gz",
            "lesion": "training/Amsterdam/GE3T/100/wmh.nii.gz",
            "lesion_labels": (1,),
            "notes": "label 2 of its mask (other pathology) is not counted as lesion",
        }
        volume = load_volume(scans[0])
        assert np.array_equal(volume.lesion, LESION & ~SECOND)
        assert volume.notes[0] == scans[0].notes
        assert all("/pre/T1." in s.image for s in LAYOUTS["wmh"](str(tmp_path), "T1w"))

    def test_msseg2015_takes_the_first_rater(self, tmp_path):
        scans = LAYOUTS["msseg2015"](str(write_msseg2015(tmp_path)))
        assert [s.id for s in scans] == ["training01_01", "training01_02", "training05_01"]
        assert fields_of(scans[1], tmp_path) == {
            "id": "training01_02",
            "subject": "training01",
            "session": "02",
            "modality": "FLAIR",
            "image": "training01/preprocessed/training01_02_flair_pp.nii",
            "lesion": "training01/masks/training01_02_mask1.nii",
            "notes": "lesion mask of rater 1 of 2",
        }
        assert LAYOUTS["msseg2015"](str(tmp_path), "mprage")[0].modality == "T1w"


SETS = {
    "bids": write_bids_set,
    "ixi": write_ixi,
    "oasis1": write_oasis1,
    "brats": partial(write_brats, year=2021),
    "atlas": write_atlas2,
    "mslub": write_mslub,
    "wmh": write_wmh,
    "msseg2015": write_msseg2015,
}


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> dict[str, Path]:
    return {name: write_set(tmp_path_factory.mktemp(name)) for name, write_set in SETS.items()}


class TestEverySet:
    @pytest.mark.parametrize("name", SETS)
    def test_its_scans_can_be_prepared(self, sets, name):
        for scan in LAYOUTS[name](str(sets[name])):
            out = prepare_scan(scan, replace(TINY, denoise=False))
            assert out.brain.any()
            assert (out.lesion is not None) == scan.lesioned
            assert not [n for n in out.notes.split("; ") if DOUBT in n and "dementia" not in n]

    @pytest.mark.parametrize("name", SETS)
    def test_it_is_recognised(self, sets, name):
        root = str(sets[name])
        assert detect(root, LAYOUTS) == name
        assert LAYOUTS["auto"](root) == LAYOUTS[name](root)

    @pytest.mark.parametrize("name", sorted(SETS.keys() - {"bids"}))
    def test_the_folder_above_will_do(self, sets, name, tmp_path):
        (tmp_path / "download").symlink_to(sets[name])
        assert len(LAYOUTS[name](str(tmp_path))) == len(LAYOUTS[name](str(sets[name])))

    @pytest.mark.parametrize(("name", "other"), list(permutations(SETS, 2)))
    def test_another_layout_names_this_one(self, sets, name, other):
        with pytest.raises(NoScanFoundError, match=rf"no scan found; .*layout {name} \(\d+ files"):
            LAYOUTS[other](str(sets[name]))

    @pytest.mark.parametrize("name", SETS)
    def test_another_modality_names_those_there(self, sets, name):
        with pytest.raises(NoScanFoundError, match=r"looked for .*SWI.* there: .*--modality|anat"):
            LAYOUTS[name](str(sets[name]), "SWI")


class TestAuto:
    def test_several_layouts(self, tmp_path):
        write_ixi(tmp_path / "a")
        write_mslub(tmp_path / "b")
        with pytest.raises(NoScanFoundError, match=r"several layouts: ixi \(6 .*mslub \(10 files"):
            LAYOUTS["auto"](str(tmp_path))

    def test_none(self, tmp_path):
        touch(tmp_path, "x/scan.nii.gz", "y/other.nii")
        with pytest.raises(NoScanFoundError, match=r"no layout fits; .*found 2 files, first x/sca"):
            LAYOUTS["auto"](str(tmp_path))

    def test_a_table(self, tmp_path):
        (tmp_path / "s.csv").write_text("image\na.nii\n")
        assert LAYOUTS["auto"](str(tmp_path / "s.csv"))[0].id == "a"

    def test_the_modality_is_that_of_the_layout_unless_given(self, tmp_path):
        write_mslub(tmp_path)
        assert LAYOUTS["auto"](str(tmp_path))[0].modality == "FLAIR"
        assert LAYOUTS["auto"](str(tmp_path), "T1w")[0].modality == "T1w"


def test_phantoms_are_scans():
    scans = phantom("stroke", 3, first_seed=5)
    assert [s.image for s in scans] == [f"phantom://v2/stroke/{k}" for k in (5, 6, 7)]
    assert all(s.lesioned for s in scans)
    assert not phantom("healthy", 1)[0].lesioned
    age, sex = dict(scans[0].covariates).values()
    assert (int(age), sex) == age_and_sex("stroke", 5)
    assert [read_phantom_url(s.image) for s in scans[:1]] == [("stroke", 5, 2)]


def test_phantoms_of_version_1_are_scans_as_they_were():
    (scan,) = phantom("stroke", 1, first_seed=5, version=1)
    assert scan.image == "phantom://stroke/5"
    assert scan.covariates == ()
    assert read_phantom_url(scan.image) == ("stroke", 5, 1)
    assert not phantom("healthy", 1, version=1)[0].lesioned
    with pytest.raises(ScanError, match="expected a phantom such as phantom://v2/stroke/17"):
        read_phantom_url("phantom://stroke")
