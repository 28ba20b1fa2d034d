"""What killed writers left is removed; what living ones write stays."""

import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from tiny_cohorts import tiny_vae, write_healthy, write_lesioned
from tiny_models import finished_run

from uadray import files
from uadray.evaluation.protocols import EvaluateConfig
from uadray.runs.scores import ScoreStore
from uadray.train.job import fit

WRITER = """
import os, sys
from uadray import files
with files.replacing(sys.argv[1]) as file:
    file.write(b"half")
    file.flush()
    print("written", flush=True)
    sys.stdin.read()
"""


def age(path: Path, seconds: float = 3600) -> Path:
    then = time.time() - seconds
    os.utime(path, (then, then))
    return path


def draft(folder: Path, name: str = "summary.json") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".{name}.{uuid.uuid4().hex}"
    path.write_bytes(b"half")
    return age(path)


def test_those_of_a_living_writer_stay(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "a.json")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"written\n"
        (path,) = tmp_path.iterdir()
        age(path)
        files.remove_drafts(str(tmp_path))
        assert path.exists()
        writer.kill()
        writer.wait()
        assert path.exists()
        files.remove_drafts(str(tmp_path))
        assert not path.exists()


def test_young_ones_stay(tmp_path: Path) -> None:
    path = age(draft(tmp_path), 0)
    zarr = age(draft(tmp_path, "x.partial").rename(tmp_path / "0.abc.partial"), 1)
    files.remove_drafts(str(tmp_path))
    assert path.exists()
    assert zarr.exists()
    files.remove_drafts(str(tmp_path), all_are_dead=True)
    assert list(tmp_path.iterdir()) == []


def test_other_files_stay(tmp_path: Path) -> None:
    for name in (".hidden", ".env.local", "report.html", ".a.0123"):
        (tmp_path / name).write_bytes(b"")
        age(tmp_path / name)
    files.remove_drafts(str(tmp_path))
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("place", [".", "checkpoint"])
def test_a_fit_removes_them(tmp_path: Path, place: str) -> None:
    cohort = write_healthy(tmp_path)
    run = finished_run(tmp_path / "run", cohort, tiny_vae(3))
    left = draft(tmp_path / "run" / place)
    fit(run.experiment, cohort, run.url)
    assert not left.exists()


def test_an_evaluation_removes_them(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", write_healthy(tmp_path), tiny_vae(3))
    cohort = write_lesioned(tmp_path)
    scoring = EvaluateConfig().scoring(cohort.shape)
    store = ScoreStore.create(run, cohort, (0.0, 1.0), scoring)
    left = draft(Path(store.url) / "counts", "0000001.npz")
    partial = age(draft(Path(store.url) / "scores/c/1/0/0").rename(Path(store.url) / "0.a.partial"))
    ScoreStore.create(run, cohort, (0.0, 1.0), scoring)
    assert not left.exists()
    assert not partial.exists()
