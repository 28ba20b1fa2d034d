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


APPTAINER = """#!/bin/bash
echo "apptainer $*" >>"$APPTAINER_LOG"
[ "$1" = exec ] || exit 9
shift
while [[ $1 == --* ]]; do
    case $1 in
        --nv) shift ;;
        --pwd) cd "$2" || exit 9; shift 2 ;;
        --bind) shift 2 ;;
        *) exit 9 ;;
    esac
done
[ "$1" = /shared/uadray.sif ] || exit 9
shift
exec "$@"
"""
"""An image that holds what the machine does."""


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[dict[str, str]]:
    """What stands for Slurm's commands and variables."""
    tools = tmp_path / "bin"
    tools.mkdir()
    commands = (
        ("srun", SRUN),
        ("scontrol", "#!/bin/bash\necho here\n"),
        ("apptainer", APPTAINER),
    )
    for name, text in commands:
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


def test_a_job_runs_in_an_image(slurm: dict[str, str], tmp_path: Path) -> None:
    """Of the environment of the host nothing is needed."""
    inside = slurm | {
        "PATH": f"{slurm['PATH'].split(':')[0]}:{ENVIRONMENT / 'bin'}:{slurm['PATH']}",
        "UADRAY_SIF": "/shared/uadray.sif",
        "UADRAY_BIND": "/scratch,/datasets",
        "UADRAY_HOME": str(REPOSITORY),
        "APPTAINER_LOG": str(tmp_path / "log"),
    }
    inside.pop("UADRAY_VENV")
    ask = "import os, ray; ray.init(); print('GPUS', ray.cluster_resources().get('GPU', 0))"
    sent = tmp_path / "sent from"
    sent.mkdir()
    done = sbatch(inside | {"SLURM_GPUS_PER_TASK": "a100:2"}, sent, "python", "-c", ask)
    assert done.returncode == 0, done.stdout
    assert "GPUS 2.0" in done.stdout
    log = (tmp_path / "log").read_text().splitlines()
    (called,) = [line for line in log if "symmetric-run" in line]
    binds = f"--bind {sent},/scratch,/datasets --pwd {REPOSITORY} --nv /shared/uadray.sif"
    assert called.startswith(f"apptainer exec {binds} ray symmetric-run")
    done = sbatch(inside, sent, "python", "jobs/train.py", "no-such-experiment")
    assert done.returncode == 1
    assert "no-such-experiment" in done.stdout
    log = (tmp_path / "log").read_text().splitlines()
    assert [("--nv" in line) for line in log if "symmetric-run" in line] == [True, False]
    assert not list(sent.iterdir())


def test_without_ray_it_fails(slurm: dict[str, str], tmp_path: Path) -> None:
    """`ray symmetric-run` itself would end well."""
    done = sbatch(slurm | {"SLURM_CPUS_PER_TASK": "none"}, tmp_path, "true")
    assert done.returncode == 1
    assert "Ray did not start" in done.stdout


def test_it_wants_a_command(slurm: dict[str, str], tmp_path: Path) -> None:
    done = sbatch(slurm, tmp_path)
    assert done.returncode == 2
    assert "usage: sbatch" in done.stdout
