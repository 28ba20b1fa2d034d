"""The prepare job as a user calls it: arguments, exit codes, what it prints."""

import json
import shlex
import sys
from importlib import import_module
from types import ModuleType

import pytest
from tiny_scans import brain_image, write, write_bids

from uadray import cli
from uadray.preparation.layouts import LAYOUTS
from uadray.store import open_cohort, verify

pytestmark = pytest.mark.ray

TINY = [
    "--shape",
    "13",
    "14",
    "12",
    "--left-right",
    "24",
    "--posterior-anterior",
    "28",
    "--inferior-superior",
    "26",
    "--no-denoise",
    "--min-brain-ml",
    "0.1",
]


@pytest.fixture(scope="module")
def job() -> ModuleType:
    return import_module("uadray.jobs.prepare")


@pytest.fixture
def call(job, monkeypatch):
    """Call the job with arguments and return its exit code."""

    def run(*args: object) -> int:
        monkeypatch.setattr(sys, "argv", ["prepare.py", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            cli.run(job.main)
        return int(ended.value.code or 0)

    return run


@pytest.mark.parametrize("what", [*LAYOUTS, "phantom", "verify", "quality"])
def test_every_subcommand_has_help(call, capsys, what):
    assert call(what, "--help") == cli.OK
    text = capsys.readouterr().out
    assert f"prepare.py {what}" in text
    if what in LAYOUTS:
        words = " ".join(LAYOUTS[what].__doc__.split("\n\n")[0].split())
        assert words[:40] in " ".join(text.split())


def test_the_modality_is_the_set_s(call, capsys):
    assert call("mslub", "--help") == cli.OK
    assert "(default: FLAIR)" in capsys.readouterr().out
    assert call("ixi", "--help") == cli.OK
    assert "(default: T1w)" in capsys.readouterr().out


def test_healthy_and_held_out(call, capsys, ray_session, tmp_path):
    root = write_bids(tmp_path / "bids", 6)
    out, other = tmp_path / "healthy.zarr", tmp_path / "held.zarr"
    assert call("bids", root, "--out", out, "--hold-out", 2, *TINY) == cli.OK
    text = capsys.readouterr().out
    assert "3 train (3 subjects), 1 validation (1 subjects)" in text
    assert open_cohort(str(out)).fingerprint in text
    assert "next: python jobs/train.py" in text
    assert call("bids", root, "--out", other, "--hold-out", 2, "--held-out", *TINY) == cli.OK
    ids = [set(open_cohort(str(url)).subjects["id"]) for url in (out, other)]
    assert ids[0].isdisjoint(ids[1])
    assert len(ids[0] | ids[1]) == 6


def test_verify_says_what_to_do_and_doing_it_mends(call, capsys, ray_session, tmp_path):
    root = write_bids(tmp_path / "Größe & scans", 9)
    out = tmp_path / "my cohort.zarr"
    assert call("bids", root, *TINY, "--out", out, "--workers", 2) == cli.OK
    made = capsys.readouterr().out
    assert f"--cohort '{out}'" in made
    fingerprint = open_cohort(str(out)).fingerprint
    assert call("--verify", out) == cli.OK
    assert "whole; every file and voxel is as it was written" in capsys.readouterr().out
    shard = out / "brain/c/1/0/0/0"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert call("verify", out) == cli.FAILED
    text = capsys.readouterr().out
    subject = open_cohort(str(out)).subjects["id"][8]
    assert "shard 1: its chunk is unreadable" in text
    assert f"prepare again: {subject}" in text
    command = shlex.split(text.rsplit("next: ", 1)[1])
    assert command[:2] == ["python", "jobs/prepare.py"]
    assert command[-4:] == ["--out", str(out), "--redo", "damaged"]
    assert "--workers" not in command
    assert call(*command[2:]) == cli.OK
    assert open_cohort(str(out)).fingerprint == fingerprint
    assert call("--verify", out) == cli.OK


def test_an_interrupted_job_is_named_and_finished(call, capsys, ray_session, tmp_path):
    root, out = write_bids(tmp_path / "bids", 3), tmp_path / "c.zarr"
    assert call("bids", root, f"--out={out}", *TINY) == cli.OK
    document = json.loads((out / "zarr.json").read_text())
    del document["attributes"]["uadray"]["seal"]
    (out / "zarr.json").write_text(json.dumps(document))
    (out / "parts/00000.json").unlink()
    capsys.readouterr()
    assert call("--verify", out) == cli.FAILED
    text = capsys.readouterr().out
    assert "not sealed: the job that makes it did not finish" in text
    assert "3 of 3 rows are not written; prepare again: sub-0" in text
    command = shlex.split(text.rsplit("next: ", 1)[1])
    assert "--redo" not in command
    assert call(*command[2:]) == cli.OK
    assert call("--verify", out) == cli.OK


def test_names_and_paths_in_any_script(call, capsys, ray_session, tmp_path):
    folder = tmp_path / "データ — été"
    rows = ["image,id,subject"]
    for k, name in enumerate(["Zoë", "Łukasz", "李雷", "O'Brien"]):
        path = write(folder / f"scan {name}.nii.gz", brain_image(seed=k))
        rows.append(f"{path},{name},{name}")
    (folder / "scans.csv").write_text("\n".join(rows), encoding="utf-8")
    out = tmp_path / "größer.zarr"
    assert call("csv", folder / "scans.csv", "--out", out, *TINY) == cli.OK
    cohort = open_cohort(str(out))
    assert set(cohort.subjects["id"]) == {"Zoë", "Łukasz", "李雷", "O'Brien"}
    assert verify(str(out)) == []


def test_duplicate_ids_are_refused_by_name(call, capsys, tmp_path):
    path = write(tmp_path / "a.nii.gz", brain_image())
    other = write(tmp_path / "b.nii.gz", brain_image(seed=1))
    (tmp_path / "scans.csv").write_text(f"image,id\n{path},P1\n{other},P1\n")
    out = tmp_path / "c.zarr"
    assert call("csv", tmp_path / "scans.csv", "--out", out, *TINY) == cli.FAILED
    error = capsys.readouterr().err
    assert "P1" in error
    assert str(path) in error
    assert str(other) in error
    assert not out.exists()


def test_a_size_goes_with_any_spacing(call, ray_session, tmp_path):
    root, out = write_bids(tmp_path / "bids", 2), tmp_path / "c.zarr"
    tiny = [*TINY[4:], "--spacing-mm", 2]
    assert call("bids", root, "--out", out, "--size", 12, *tiny) == cli.OK
    assert open_cohort(str(out)).shape == (12, 12, 12)
    assert call("bids", root, "--out", out, "--size=12", *tiny) == cli.OK
    assert call("bids", root, "--out", out, "--size", 12, "--shape", 9, 9, 9, *tiny) == cli.FAILED


def test_too_many_failures_and_a_larger_share(call, capsys, ray_session, tmp_path):
    root, out = write_bids(tmp_path / "bids", 4), tmp_path / "c.zarr"
    for k in (1, 3):
        (root / f"sub-0{k}/anat/sub-0{k}_T1w.nii.gz").write_bytes(b"nothing")
    assert call("bids", root, "--out", out, *TINY) == cli.FAILED
    captured = capsys.readouterr()
    assert "2 of 4 scans could not be used" in captured.err
    assert "sub-01" in captured.err
    assert "--max-failures" in captured.err
    assert call("bids", root, "--out", out, *TINY, "--max-failures", 0.5) == cli.INCOMPLETE
    assert "--redo quarantined" in capsys.readouterr().out


def test_a_preset_of_another_size_offers_its_proportions(call, capsys, tmp_path):
    root = write_bids(tmp_path / "bids", 5, lesion=True)
    args = ("bids", root, "--out", tmp_path / "c.zarr", "--preset", "bengs2021", *TINY)
    assert call(*args) == cli.FAILED
    error = capsys.readouterr().err
    assert "335 (tumour: 133 + 202) or 304 (stroke: 121 + 183)" in error
    assert "there are 5" in error
    assert "--split-count 2" in error


def test_a_quarantined_scan_is_exit_code_3(call, capsys, ray_session, tmp_path):
    root = write_bids(tmp_path / "bids", 4, lesion=True)
    cut = root / "sub-02/anat/sub-02_T1w.nii.gz"
    cut.write_bytes(cut.read_bytes()[:1000])
    assert call("bids", root, "--out", tmp_path / "c.zarr", *TINY) == cli.INCOMPLETE
    text = capsys.readouterr().out
    assert "1 of 4 scans could not be used" in text
    assert "sub-02: " in text
    assert "next: python jobs/evaluate.py" in text


def test_phantoms(call, capsys, ray_session, tmp_path):
    url = tmp_path / "c.zarr"
    args = ("phantom", "stroke", "--count", 3, "--size", 16, "--split-count", 2, "--out", url)
    assert call(*args) == cli.OK
    out = capsys.readouterr().out
    assert "2 threshold (2 subjects), 1 test" in out
    page = tmp_path / "c-qc.html"
    assert f"quality page {page}: 0 of 3 scans flagged" in out
    other = tmp_path / "pages" / "again.html"
    assert call("quality", url, "--qc", other) == cli.OK
    assert capsys.readouterr().out.startswith(f"quality page {other}: ")
    assert other.read_bytes() == page.read_bytes()


def test_a_wrong_place_of_the_page_is_told_before_the_work(call, capsys, tmp_path):
    url = tmp_path / "c.zarr"
    assert call("phantom", "stroke", "--out", url, "--qc", tmp_path / "page.txt") == cli.FAILED
    assert "must end in .html" in capsys.readouterr().err
    assert not url.exists()


def test_an_error_is_a_message(call, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    assert call("bids", tmp_path / "empty", "--out", tmp_path / "c.zarr") == cli.FAILED
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "no scan found" in error
    assert "Traceback" not in error
