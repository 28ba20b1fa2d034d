"""The prepare job as a user calls it: arguments, exit codes, what it prints."""

import importlib.util
import sys
from types import ModuleType

import pytest
from tiny_scans import write_bids

from uadray import cli
from uadray.store import open_cohort

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
def job(request) -> ModuleType:
    path = request.config.rootpath / "jobs" / "prepare.py"
    spec = importlib.util.spec_from_file_location("prepare_job", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["prepare_job"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def call(job, monkeypatch):
    """Call the job with arguments and return its exit code."""

    def run(*args: object) -> int:
        monkeypatch.setattr(sys, "argv", ["prepare.py", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            cli.run(job.main)
        return int(ended.value.code or 0)

    return run


@pytest.mark.parametrize("what", ["bids", "csv", "mslub", "phantom", "verify"])
def test_every_subcommand_has_help(call, capsys, what):
    assert call(what, "--help") == cli.OK
    assert f"prepare.py {what}" in capsys.readouterr().out


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
    assert call("verify", out) == cli.OK
    shard = next((out / "brain/c").rglob("0"))
    shard = next(path for path in shard.rglob("*") if path.is_file())
    shard.write_bytes(shard.read_bytes()[:-1])
    assert call("verify", out) == cli.FAILED


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
    assert "2 threshold (2 subjects), 1 test" in capsys.readouterr().out


def test_an_error_is_a_message(call, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    assert call("bids", tmp_path / "empty", "--out", tmp_path / "c.zarr") == cli.FAILED
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "no scan found" in error
    assert "Traceback" not in error
