"""README's commands for a cluster, as printed, in a fresh home and in a used one."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tiny_cohorts import write_healthy

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(
        not shutil.which("unshare") or os.geteuid() != 0,
        reason="the printed ports are free in a network of its own alone, which takes root",
    ),
]


def printed(number: int) -> str:
    """One of README's blocks for a cluster, without the prompts."""
    section = (ROOT / "README.md").read_text().split("## On a cluster")[1]
    block = re.findall(r"```\n(.*?)```", section, re.DOTALL)[number]
    assert "ray start --head" in block
    return re.sub(r"(?m)^\$ ", "", block)


@pytest.fixture
def home() -> Iterator[Path]:
    """On a short path, since Ray keeps sockets there."""
    folder = Path(tempfile.mkdtemp(prefix="u", dir="/tmp"))
    yield folder
    for process in psutil.process_iter(["cmdline"]):
        if any(str(folder) in part for part in process.info["cmdline"] or ()):
            process.kill()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The folder that the commands are run in."""
    for folder in ("jobs", "uadray"):
        shutil.copytree(ROOT / folder, tmp_path / "clone" / folder)
    return tmp_path / "clone"


def run(commands: str, clone: Path, home: Path) -> str:
    """Run them one after the other, on a network of their own; what they print."""
    without = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
    environment = {k: v for k, v in os.environ.items() if k not in without}
    done = subprocess.run(
        ["unshare", "--net", "bash", "-c", f"ip link set lo up\nset -e\n{commands}"],
        cwd=clone,
        env=environment | {"HOME": str(home), "RAY_TMPDIR": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.timeout(900)
@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
def test_the_main_job_works_in_two_lines(used: bool, home: Path, clone: Path) -> None:
    commands = printed(0)
    assert commands == "ray start --head\nray job submit -- python jobs/tune.py\n"
    if used:
        # A job that starts a Ray of its own, as on any day before.
        write_healthy(clone / "own")
        fit = "python jobs/train.py 3D-None --fit.epochs 1 --cohort own/healthy.zarr --out own/run"
        run(fit, clone, home)
    # The trials' own length is not what is tested.
    said = run(commands.replace("tune.py", "tune.py first-run --space.epochs 1 2"), clone, home)
    assert "succeeded" in said
    assert "no cohort given" in said
    (report,) = (home / "uadray" / "first-run").glob("tune-*/report.html")
    assert "Dice" in report.read_text()


@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
def test_a_job_is_sent_with_its_token(used: bool, home: Path, clone: Path) -> None:
    write_healthy(clone / "runs/demo")
    if used:
        (home / ".ray").mkdir()
        (home / ".ray/auth_token").write_text("0123456789abcdef" * 4)
    # A hundred epochs say no more than one.
    said = run(printed(1).replace("--out", "--fit.epochs 1 --out"), clone, home)
    assert "succeeded" in said
    assert (clone / "runs/3D-Cube-n/summary.json").exists()
