"""Every file that could be a scan is found, or named with the reason."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import fsspec
import numpy as np
import pytest
from tiny_scans import brain_image, write

from uadray import files
from uadray.errors import ConfigError, NoScanFoundError
from uadray.prediction.inputs import find_items
from uadray.preparation.ingest import prepare_cohort
from uadray.preparation.layouts import LAYOUTS, Scan, bids, csv, phantom
from uadray.preparation.layouts.listing import find_files, left_out_lines
from uadray.preparation.layouts.naming import mask_word
from uadray.preparation.lesions import find_masks
from uadray.preparation.settings import Extent, PrepareConfig, Selection, SplitConfig


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def reasons(listing, root: Path) -> dict[str, str]:
    return {one.path.removeprefix(f"{root}/"): one.reason for one in listing.left_out}


class TestFiles:
    def test_links_but_those_to_a_folder_above(self, tmp_path):
        data = touch(tmp_path / "data", "sub-1/a.nii", "derivatives/x/y.txt")
        touch(tmp_path / "other", "b.nii")
        (data / "derivatives/x/sub-1").symlink_to("../../sub-1")
        (data / "derivatives/up").symlink_to("..")
        (data / "derivatives/outside").symlink_to(tmp_path)
        (data / "sub-2").symlink_to(tmp_path / "other")
        (data / "self").symlink_to("self")
        listing = find_files(str(data))
        assert listing == ["derivatives/x/sub-1/a.nii", "sub-1/a.nii", "sub-2/b.nii"]
        assert reasons(listing, data) == {
            "derivatives/up": "a link to a folder above it",
            "derivatives/outside": "a link to a folder above it",
            "self": "a link to self, which is not there",
        }

    def test_folders_that_link_to_each_other_come_to_an_end(self, tmp_path):
        for one in range(8):
            touch(tmp_path, f"{one}/scan.nii")
            for other in set(range(8)) - {one}:
                (tmp_path / f"{one}/to-{other}").symlink_to(tmp_path / f"{other}")
        listing = find_files(str(tmp_path))
        assert {f"{one}/scan.nii" for one in range(8)} <= set(listing)
        assert any("more than 64 links" in one.reason for one in listing.left_out)

    def test_what_is_hidden_of_another_format_or_no_file(self, tmp_path):
        touch(tmp_path, "a.nii", "._a.nii", ".hidden/b.nii.gz", ".git/c.nii", ".cache/d.txt")
        touch(tmp_path, "e.MGZ", "f.dcm", "g.hdr", "h.img", "h.hdr", "i.json", "j.nii.gz/k.nii")
        os.mkfifo(tmp_path / "pipe.nii")
        (tmp_path / "sub-9").symlink_to("/nowhere")
        (tmp_path / "gone.json").symlink_to("/nowhere.json")
        (tmp_path / "gone.nii").symlink_to("/nowhere.nii")
        listing = find_files(str(tmp_path))
        assert listing == ["a.nii", "gone.nii", "h.img", "j.nii.gz/k.nii"]
        assert reasons(listing, tmp_path) == {
            "._a.nii": "a hidden file",
            ".hidden": "a hidden folder",
            "e.MGZ": "an image of a format that is not read; convert it to NIfTI",
            "f.dcm": "an image of a format that is not read; convert it to NIfTI",
            "g.hdr": "a header without its .img",
            "pipe.nii": "no regular file",
            "sub-9": "a link to /nowhere, which is not there",
        }

    def test_an_object_store(self):
        fs = fsspec.filesystem("memory")
        names = ("a.NII.GZ", ".x/b.nii", "c.mgz", "out/predict.json", "out/d/anomaly.nii.gz")
        for name in names:
            fs.pipe_file(f"/listed [1]/{name}", b"{")
        try:
            listing = find_files("memory://listed [1]")
            assert listing == ["a.NII.GZ"]
            assert [one.path.rsplit("]/")[-1] for one in listing.left_out] == [
                ".x/b.nii", "c.mgz", "out"
            ]  # fmt: skip
            files.remove("memory://listed [1]")
            assert not files.exists("memory://listed [1]/a.NII.GZ")
        finally:
            if fs.exists("/listed [1]"):
                for name in names:
                    fs.rm_file(f"/listed [1]/{name}")

    def test_a_removal_is_no_pattern(self):
        fs = fsspec.filesystem("memory")
        fs.pipe_file("/kept1/a", b"")
        fs.pipe_file("/kept[1]/a", b"")
        files.remove("memory://kept[1]")
        assert fs.exists("/kept1/a")
        assert not fs.exists("/kept[1]/a")
        files.remove("memory://kept1")

    def test_lines_for_the_terminal(self, tmp_path):
        touch(tmp_path, "a.nii", "b.mgz", *(f".{k:02d}.nii" for k in range(20)))
        lines = left_out_lines(1, find_files(str(tmp_path)).left_out, str(tmp_path))
        assert lines[0] == "found 1 scan, left out 21:"
        assert lines[1].startswith("  20 a hidden file: .00.nii, .01.nii")
        assert lines[1].endswith(" and 8 more")
        assert lines[2].endswith("convert it to NIfTI: b.mgz")
        assert left_out_lines(3, ()) == ["found 3 scans, left out 0"]


class TestOwnResults:
    OURS: ClassVar = {
        "predict.json": {"format": 1, "request": {"run": "x"}},
        "dataset_description.json": {"GeneratedBy": [{"Name": "uadray"}]},
        "zarr.json": {"zarr_format": 3, "node_type": "group"},
    }

    @pytest.mark.parametrize("name", OURS)
    def test_they_are_never_read(self, tmp_path, name):
        touch(
            tmp_path,
            "sub-1/anat/sub-1_T1w.nii.gz",
            "derivatives/maps/sub-1/anat/sub-1_desc-brain_mask.nii.gz",
            "derivatives/maps/sub-1/anat/sub-1_desc-anomaly_mask.nii.gz",
        )
        (tmp_path / "derivatives/maps" / name).write_text(json.dumps(self.OURS[name]))
        scans = bids(str(tmp_path))
        assert [(s.id, s.brain, s.lesion) for s in scans] == [("sub-1", "", "")]
        assert list(reasons(scans, tmp_path)) == ["derivatives/maps"]
        (item,) = find_items([str(tmp_path)], "T1w").items
        assert item.scan.brain == ""
        for inside in ("derivatives/maps", "derivatives/maps/sub-1"):
            if name == "predict.json" or inside == "derivatives/maps":
                with pytest.raises(NoScanFoundError, match=r"holds .* no scans to read"):
                    find_items([str(tmp_path / inside)], "T1w")

    def test_a_damaged_marker_still_marks(self, tmp_path):
        touch(tmp_path, "a.nii.gz", "out/a/anomaly.nii.gz")
        (tmp_path / "out/predict.json").write_text('{"request": ')
        assert find_files(str(tmp_path)) == ["a.nii.gz"]

    def test_a_namesake_of_another_program_does_not(self, tmp_path):
        touch(tmp_path, "in/a.nii.gz")
        (tmp_path / "in/predict.json").write_text('{"threshold": 1}')
        (tmp_path / "in/dataset_description.json").write_text('{"GeneratedBy": "fmriprep"}')
        (tmp_path / "in/config.json").write_text("{}")
        touch(tmp_path, "in/metrics.jsonl")
        assert find_files(str(tmp_path)) == ["in/a.nii.gz"]


class TestNames:
    SCANS = (
        "first_T1w", "second_T1w_masked", "Vosegus_T1w", "Segovia_T1", "maskell", "roisin_T1w",
        "unmasked_T1w", "T1w_brain", "lesion_patient3_T1w", "lesion01_T1w", "gtr_T1w",
    )  # fmt: skip
    MASKS = (
        "brain_mask", "T1w_seg", "label-lesion_roi", "two_gt", "Mask", "brainMask", "T1wSeg",
        "mask1", "T1w_lesion", "lesion", "sub-1_dseg", "aparc+aseg", "T1_BRAINMASK", "wmh_seg2",
        "LesionSmooth_stx", "gt", "T1w-ROI", "x.labels",
    )  # fmt: skip

    @pytest.mark.parametrize("name", SCANS)
    def test_a_part_of_a_word_is_no_mask(self, name):
        assert mask_word(name, ("t1", "t1w")) == ""

    @pytest.mark.parametrize("name", MASKS)
    def test_a_whole_word_is_one(self, name):
        assert mask_word(name, ("t1", "t1w"))

    def test_a_plain_folder(self, tmp_path):
        touch(tmp_path, *(f"{name}.nii.gz" for name in (*self.SCANS, *self.MASKS)))
        touch(tmp_path, "third_T2.nii.gz", "FOURTH_T1.NII.GZ", "x.nii.gz/fifth.nii.gz")
        listing = find_items([str(tmp_path)], "T1w")
        paths = [item.scan.image for item in listing.items] + [one.path for one in listing.left_out]
        assert sorted(paths) == sorted(str(p) for p in tmp_path.rglob("*") if p.is_file())
        assert len(listing.items) == len(self.SCANS) + 2
        (line,) = (line for line in listing.lines() if "T2w, not T1w" in line)
        assert line.endswith("third_T2.nii.gz")

    def test_a_folder_reached_twice(self, tmp_path):
        touch(tmp_path, "a/one.nii.gz", "b/x.txt")
        (tmp_path / "b/again").symlink_to("../a")
        listing = find_items([str(tmp_path)], "T1w")
        assert [item.scan.image for item in listing.items] == [str(tmp_path / "a/one.nii.gz")]
        assert reasons(listing, tmp_path) == {
            "b/again/one.nii.gz": "another link to a scan that is taken"
        }

    def test_lesion_masks(self, tmp_path):
        touch(tmp_path, "p1_seg.nii.gz", "Vosegus.nii.gz", "template.nii.gz", "x/brain/l_roi.nii")
        masks = find_masks(str(tmp_path))
        assert [Path(path).name for path in masks] == ["p1_seg.nii.gz", "l_roi.nii"]
        assert set(reasons(masks, tmp_path)) == {"Vosegus.nii.gz", "template.nii.gz"}


class TestLayouts:
    def test_bids_accounts_for_each_file(self, tmp_path):
        touch(
            tmp_path,
            *(f"sub-{k}/anat/sub-{k}_T1w.nii.gz" for k in "12"),
            "sub-1/anat/sub-1_run-2_T1w.nii.gz",
            "sub-1/anat/sub-1_T2w.nii.gz",
            "sub-1/func/sub-1_bold.nii.gz",
            "sub-3/anat/sub-3_T1w.NII.GZ",
            "sub-4/Anat/sub-4_T1w.nii.gz",
            "sub-5/anat/sub-5_T1w.nii.gz/sub-5_T1w.nii.gz",
            "sub-6/anat/sub-6_t1w.nii.gz",
            "sub-7/anat/sub-7_T1w.mgz",
            "derivatives/b/sub-1_desc-brain_mask.nii.gz",
            "derivatives/b/sub-8_desc-brain_mask.nii.gz",
        )
        scans = bids(str(tmp_path))
        assert [scan.id for scan in scans] == ["sub-1", "sub-2", "sub-3", "sub-4"]
        assert scans[0].brain.endswith("sub-1_desc-brain_mask.nii.gz")
        assert reasons(scans, tmp_path) == {
            "derivatives/b/sub-8_desc-brain_mask.nii.gz": (
                "a mask that is of no scan or not of its brain or lesion"
            ),
            "sub-1/anat/sub-1_T2w.nii.gz": "T2w, not T1w",
            "sub-1/anat/sub-1_run-2_T1w.nii.gz": "another of a session of which one is taken",
            "sub-1/func/sub-1_bold.nii.gz": (
                "not in sub-*/[ses-*/]anat/, or not named as BIDS has it"
            ),
            "sub-5/anat/sub-5_T1w.nii.gz/sub-5_T1w.nii.gz": (
                "not in sub-*/[ses-*/]anat/, or not named as BIDS has it"
            ),
            "sub-6/anat/sub-6_t1w.nii.gz": "t1w, not T1w",
            "sub-7/anat/sub-7_T1w.mgz": (
                "an image of a format that is not read; convert it to NIfTI"
            ),
        }

    def test_a_subject_that_a_derivative_links_to(self, tmp_path):
        touch(tmp_path, *(f"sub-{k}/anat/sub-{k}_T1w.nii.gz" for k in "12"), "derivatives/x/a")
        (tmp_path / "derivatives/x/sub-1").symlink_to("../../sub-1")
        (tmp_path / "sub-2b").symlink_to("sub-2")
        scans = bids(str(tmp_path))
        assert [scan.image for scan in scans] == [
            str(tmp_path / f"sub-{k}/anat/sub-{k}_T1w.nii.gz") for k in "12"
        ]
        assert set(reasons(scans, tmp_path)) == {
            "derivatives/x/sub-1/anat/sub-1_T1w.nii.gz",
            "sub-2b/anat/sub-2_T1w.nii.gz",
        }

    def test_other_layouts(self, tmp_path):
        touch(tmp_path, "IXI002-Guys-0828-T1.nii.gz", "IXI002-Guys-0828-T2.nii.gz", "x.nii")
        assert reasons(LAYOUTS["ixi"](str(tmp_path)), tmp_path) == {
            "IXI002-Guys-0828-T2.nii.gz": "T2, not T1w",
            "x.nii": "not named as the scans of this layout",
        }

    def test_rows_of_a_table(self, tmp_path):
        table = tmp_path / "t.csv"
        table.write_text("image,modality\na.nii,T1w\nb.nii,FLAIR\n")
        assert reasons(csv(str(table)), tmp_path) == {"b.nii": "FLAIR, not T1w"}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("id,image\np,a.nii,\nq,b.nii,\n", ""),
            ("id,image,\np,a.nii,\nq,b.nii\n", ""),
            ("id;image\r\np;a.nii;;;\r\nq;b.nii;\r\n", ""),
            ("id,image\np,a.nii,m.nii\nq,b.nii\n", "line 2 has 3 cells, but the head names 2"),
            ('id,image\np,"a.nii\nq,b.nii\n', "unexpected end of data"),
            ("id,image,image\np,a.nii,b.nii\n", "names image more than once"),
        ],
    )
    def test_rows_that_are_longer_than_the_head(self, tmp_path, text, message):
        table = tmp_path / "t.csv"
        table.write_bytes(text.encode())
        if message:
            with pytest.raises(NoScanFoundError, match=message):
                csv(str(table))
        else:
            assert [(s.id, Path(s.image).name) for s in csv(str(table))] == [
                ("p", "a.nii"), ("q", "b.nii")
            ]  # fmt: skip


def test_names_that_are_no_utf8(tmp_path):
    folder = os.fsencode(str(tmp_path)) + b"/sub-t\xeate/anat"
    os.makedirs(folder)
    path = os.fsdecode(folder + b"/sub-t\xeate_T1w.nii.gz")
    Path(path).touch()
    (scan,) = bids(str(tmp_path))
    assert scan.image == path
    assert (scan.id, scan.subject) == ("sub-t\\udceate",) * 2
    (item,) = find_items([str(tmp_path)], "T1w").items
    assert item.scan.image == path
    assert f"{item.name}{item.folder}{item.bids}".isascii()


class TestNumbers:
    """Numbers that make no sense are named before any work."""

    @pytest.mark.parametrize(
        "make",
        [
            lambda: phantom("healthy", 0),
            lambda: phantom("healthy", 2, -1),
            lambda: Selection(hold_out=-1),
            lambda: Extent(left_right=0),
            lambda: Extent(left_right=float("nan")),
            lambda: Extent(left_right=float("inf")),
            lambda: PrepareConfig(shape=(0, 64, 64)),
            lambda: PrepareConfig(percentiles=(99, 1)),
            lambda: PrepareConfig(percentiles=(float("nan"), 99)),
            lambda: PrepareConfig(min_brain_ml=-1),
            lambda: PrepareConfig(min_brain_ml=float("nan")),
            lambda: PrepareConfig(max_brain_ml=float("nan")),
            lambda: PrepareConfig(mask_threshold=float("nan")),
            lambda: PrepareConfig(max_cut=float("nan")),
            lambda: PrepareConfig(spacing_mm=float("nan")),
            lambda: PrepareConfig(denoise_time_step=float("nan")),
            lambda: SplitConfig(validation_share=float("nan")),
        ],
    )
    def test_settings(self, make):
        with pytest.raises(ConfigError, match=r"must be|above 0"):
            make()

    @pytest.mark.parametrize(
        "wrong", [{"seed": -1}, {"workers": 0}, {"workers": -1}, {"max_failures": float("nan")}]
    )
    def test_of_a_cohort(self, tmp_path, wrong):
        scan = Scan(id="a", subject="a", modality="T1w", image="a.nii")
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))} must be"):
            prepare_cohort(
                [scan], str(tmp_path), config=PrepareConfig(), split=SplitConfig(), **wrong
            )

    @pytest.mark.parametrize("flags", [["--workers", "0"], ["--seed", "-1"], ["--count", "0"]])
    def test_flags(self, tmp_path, flags):
        job = Path(__file__).parents[2] / "jobs/prepare.py"
        command = [sys.executable, str(job), "phantom", "healthy", "--out", str(tmp_path / "c")]
        done = subprocess.run([*command, *flags], capture_output=True, text=True, check=False)
        assert done.returncode in (1, 2)
        assert f"{flags[0][2:]} must be >=" in done.stderr
        assert "Traceback" not in done.stderr


def test_the_image_is_found_whatever_the_case_of_its_ending(tmp_path):
    path = Path(write(tmp_path / "a.nii.gz", brain_image()))
    path.rename(tmp_path / "a_T1w.NII.GZ")
    (item,) = find_items([str(tmp_path)], "T1w").items
    assert item.name == "a_T1w"
    assert np.array_equal([item.scan.modality], ["T1w"])


def test_a_subject_whose_name_ends_like_a_mask(tmp_path):
    touch(
        tmp_path,
        "sub-zebrain/anat/sub-zebrain_T1w.nii.gz",
        "derivatives/sub-zebrain_label-lesion_roi.nii.gz",
        "derivatives/sub-zebrain_desc-nonbrain_mask.nii.gz",
    )
    (scan,) = bids(str(tmp_path))
    assert scan.brain == ""
    assert scan.lesion.endswith("sub-zebrain_label-lesion_roi.nii.gz")


def test_patients_without_a_mask_are_predicted(tmp_path):
    touch(tmp_path, *(f"BraTS20_Training_00{k}/BraTS20_Training_00{k}_t1.nii.gz" for k in "12"))
    assert len(find_items([str(tmp_path)], "T1w").items) == 2
    touch(tmp_path, "BraTS20_Training_001/BraTS20_Training_001_seg.nii.gz")
    listing = find_items([str(tmp_path)], "T1w")
    assert [bool(item.scan.lesion) for item in listing.items] == [True, False]
    assert listing.left_out == ()


def test_a_table_of_ratings_that_cannot_be_read(tmp_path):
    name = "OAS1_0001_MR1_mpr_n4_anon_111_t88_masked_gfc.img"
    touch(tmp_path, f"OAS1_0001_MR1/PROCESSED/MPRAGE/T88_111/{name}")
    table = tmp_path / "oasis_cross-sectional.csv"
    for content, note in (
        (b"ID,CDR\nOAS1_0001_MR1,0.5,\n", "doubt: clinical dementia rating 0.5"),
        (b"ID,CDR\nOAS1_0001_MR1,x\n", "doubt: clinical dementia rating unknown"),
        (b"ID,Age\nOAS1_0001_MR1,70\n", "doubt: clinical dementia rating unknown"),
        (b"\xff\xfe\x00", "doubt: clinical dementia rating unknown"),
        (b"ID,CDR\nOAS1_0001_MR1,\n", ""),
    ):
        table.write_bytes(content)
        (scan,) = LAYOUTS["oasis1"](str(tmp_path))
        assert scan.notes.startswith(note)
        assert bool(scan.notes) == bool(note)


class TestCopiesOfOwnResults:
    def test_a_results_folder_without_its_marker(self, tmp_path: Path) -> None:
        touch(tmp_path, "a_T1w.nii.gz", "old/a_T1w/summary.json", "old/a_T1w/anomaly.nii.gz")
        listing = find_files(str(tmp_path))
        assert listing == ["a_T1w.nii.gz"]
        assert reasons(listing, tmp_path) == {"old/a_T1w": "a folder with a prediction of uadray"}

    @pytest.mark.parametrize("place", ["local", "memory"])
    def test_derivatives_beside_the_scan(self, tmp_path: Path, place: str) -> None:
        names = [
            "sub-1_T1w.nii.gz",
            "sub-1_desc-preproc_T1w.nii.gz",
            "sub-2_desc-brain_mask.nii.gz",
            "sub-1_desc-brain_mask.nii.gz",
            "sub-1_desc-anomaly_probseg.nii.gz",
            "sub-1_desc-anomaly_summary.json",
        ]
        root = str(tmp_path) if place == "local" else f"memory://{tmp_path.name}"
        for name in names:
            files.write_bytes(files.join(root, "sub-1/anat", name), b"{}")
        listing = find_files(root)
        assert [name.rsplit("/", 1)[1] for name in listing] == [
            "sub-1_T1w.nii.gz",
            "sub-2_desc-brain_mask.nii.gz",
        ]
        assert {one.reason for one in listing.left_out} == {
            "a result of uadray, as its summary beside it says"
        }

    def test_folders_that_a_file_system_keeps(self, tmp_path: Path) -> None:
        touch(tmp_path, "a_T1w.nii.gz", "lost+found/b_T1w.nii.gz")
        listing = find_files(str(tmp_path))
        assert listing == ["a_T1w.nii.gz"]
        assert reasons(listing, tmp_path) == {"lost+found": "a folder of the file system"}

    def test_no_scan_is_named_as_the_lists(self, tmp_path: Path) -> None:
        for name in ("predict.json", "predictions.tsv", "b"):
            write(tmp_path / f"in/{name}.nii", brain_image())
        items = find_items([str(tmp_path / "in")], "T1w").items
        assert sorted(item.folder for item in items) == [
            "b",
            "in_predict.json",
            "in_predictions.tsv",
        ]
