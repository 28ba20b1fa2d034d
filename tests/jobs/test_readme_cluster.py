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


def printed() -> str:
    section = (ROOT / "README.md").read_text().split("## On a cluster")[1]
    block = re.search(r"```\n(.*?)```", section, re.DOTALL)
    assert block
    assert "ray start --head" in block[1]
    return re.sub(r"(?m)^\$ ", "", block[1])


@pytest.fixture
def home() -> Iterator[Path]:
    """On a short path, since Ray keeps sockets there."""
    folder = Path(tempfile.mkdtemp(prefix="u", dir="/tmp"))
    yield folder
    for process in psutil.process_iter(["cmdline"]):
        if any(str(folder) in part for part in process.info["cmdline"] or ()):
            process.kill()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
def test_the_commands_work(used: bool, home: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    for folder in ("jobs", "uadray"):
        shutil.copytree(ROOT / folder, clone / folder)
    write_healthy(clone / "runs/demo")
    if used:
        (home / ".ray").mkdir()
        (home / ".ray/auth_token").write_text("0123456789abcdef" * 4)
    # A hundred epochs say no more than one.
    command = printed().replace("--out", "--fit.epochs 1 --out")
    without = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
    environment = {k: v for k, v in os.environ.items() if k not in without}
    done = subprocess.run(
        ["unshare", "--net", "bash", "-c", f"ip link set lo up\nset -e\n{command}"],
        cwd=clone,
        env=environment | {"HOME": str(home), "RAY_TMPDIR": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout + done.stderr
    assert (clone / "runs/3D-Cube-n/summary.json").exists()
