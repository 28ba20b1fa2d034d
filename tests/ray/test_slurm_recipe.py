"""The Slurm recipe as Slurm would run it, on one node that sees no other Ray."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_cohorts import write_healthy

from tests import nodes

REPOSITORY = Path(__file__).resolve().parents[2]
ENVIRONMENT = Path(sys.executable).parents[1]

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(bool(nodes.why_not()), reason=nodes.why_not()),
]

SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
[ "$1" = hostname ] && { echo 127.0.0.1; exit; }
exec "$@"
"""
"""One node: what is to run on all runs here."""


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[dict[str, str]]:
    """What stands for Slurm's commands and variables."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", "#!/bin/bash\necho here\n")):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    # Sockets lie in it, whose paths must be short.
    sockets = tempfile.mkdtemp(prefix="r-")
    yield kept | {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "UADRAY_VENV": str(ENVIRONMENT),
        "SLURM_JOB_ID": "17",
        "SLURM_JOB_NODELIST": "here",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_CPUS_PER_TASK": "2",
        "SLURM_GPUS_PER_TASK": "0",
        "RAY_TMPDIR": sockets,
        "PYTHONPATH": str(REPOSITORY),
    }
    shutil.rmtree(sockets, ignore_errors=True)


def sbatch(
    environment: dict[str, str], folder: Path, *command: object
) -> subprocess.CompletedProcess[str]:
    # `ray symmetric-run` ends with `ray stop`, which ends all that it sees.
    inside = ["unshare", "--net", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"]
    script = REPOSITORY / "cluster/slurm/uadray.sbatch"
    line = f'ip link set lo up && exec bash {script} "$@"'
    return subprocess.run(
        [*inside, "bash", "-c", line, "sbatch", *map(str, command)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=500,
        check=False,
    )


def test_a_job_runs_and_its_exit_code_comes_through(slurm: dict[str, str], tmp_path: Path) -> None:
    cohort = write_healthy(tmp_path)
    train = (sys.executable, REPOSITORY / "jobs/train.py", "PCA-4", "--cohort")
    done = sbatch(slurm, tmp_path, *train, cohort.url, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stdout
    assert "PCA-4: run folder" in done.stdout
    assert (tmp_path / "run" / "summary.json").exists()
    assert not list(tmp_path.glob(".uadray-*"))
    done = sbatch(slurm, tmp_path, *train, tmp_path / "absent.zarr", "--out", tmp_path / "no")
    assert done.returncode == 1
    assert "error: " in done.stdout
    done = sbatch(slurm, tmp_path, "bash", "-c", "exit 3")
    assert done.returncode == 3


def test_without_ray_it_fails(slurm: dict[str, str], tmp_path: Path) -> None:
    """`ray symmetric-run` itself would end well."""
    done = sbatch(slurm | {"SLURM_CPUS_PER_TASK": "none"}, tmp_path, "true")
    assert done.returncode == 1
    assert "Ray did not start" in done.stdout


def test_it_wants_a_command(slurm: dict[str, str], tmp_path: Path) -> None:
    done = sbatch(slurm, tmp_path)
    assert done.returncode == 2
    assert "usage: sbatch" in done.stdout
