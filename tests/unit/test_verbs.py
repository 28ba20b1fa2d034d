"""The verbs as files of a checkout and as one command: each names itself as it was called."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import uadray
from uadray.jobs import VERBS, about

ROOT = Path(__file__).parents[2]


def call(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run in a folder that is not the repository's."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=env, capture_output=True, text=True, check=False
    )


def test_each_is_a_file_of_a_checkout() -> None:
    assert {path.stem for path in (ROOT / "jobs").glob("*.py")} == set(VERBS)
    for verb in VERBS:
        assert f'start("{verb}")' in (ROOT / f"jobs/{verb}.py").read_text()


def test_the_command_lists_them(tmp_path: Path) -> None:
    done = call(tmp_path, "-m", "uadray", "--help")
    assert done.returncode == 0
    for verb in VERBS:
        assert f"{verb:10} {about(verb)}\n" in done.stdout
    assert call(tmp_path, "-m", "uadray", "--version").stdout == f"uadray {uadray.__version__}\n"
    wrong = call(tmp_path, "-m", "uadray", "trian")
    assert wrong.returncode == 2
    assert "no verb is named 'trian'; did you mean train?" in wrong.stderr


@pytest.mark.parametrize("verb", ["train", "evaluate", "report"])
def test_both_ways_do_the_same_and_name_themselves(tmp_path: Path, verb: str) -> None:
    as_file = call(tmp_path, str(ROOT / f"jobs/{verb}.py"), "--help")
    as_command = call(tmp_path, "-m", "uadray", verb, "--help")
    assert as_file.returncode == as_command.returncode == 0
    assert f"python jobs/{verb}.py" in as_file.stdout
    assert f"    uadray {verb}" in as_command.stdout
    assert "jobs/" not in as_command.stdout


def test_errors_name_the_command_that_was_used(tmp_path: Path) -> None:
    wrong = ("3D-None", "--cohort", str(tmp_path / "none"), "--out", "run")
    as_file = call(tmp_path, str(ROOT / "jobs/train.py"), *wrong)
    as_command = call(tmp_path, "-m", "uadray", "train", *wrong)
    assert "make one with jobs/prepare.py" in as_file.stderr
    assert "make one with uadray prepare" in as_command.stderr
    assert as_file.returncode == as_command.returncode == 1
    refused = call(tmp_path, "-m", "uadray", "train", "3D-None", "--no-such-flag")
    assert refused.returncode == 2
    assert "uadray train 3D-None --help" in refused.stderr


@pytest.mark.parametrize("way", ["file", "command"])
def test_a_module_of_the_user_may_be_named_as_a_verb(tmp_path: Path, way: str) -> None:
    (tmp_path / "report.py").write_text("Mine = 1\n")
    start = [str(ROOT / "jobs/train.py")] if way == "file" else ["-m", "uadray", "train"]
    done = call(tmp_path, *start, "report:Mine", "--help")
    assert "report:Mine is no method: decorate the class with @uadray.method" in done.stderr
