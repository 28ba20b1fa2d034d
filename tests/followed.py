"""Pages of the documentation, followed to the letter in a shell."""

import os
import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def blocks(page: Path, kind: str) -> list[str]:
    """The blocks of a kind, such as `python`."""
    return re.findall(rf"```{kind}\n(.*?)```", page.read_text(), flags=re.S)


def run(
    script: str, folder: Path, site: Path, *, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run lines of a shell; `pip install` puts packages into `site`, and needs no network."""
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "PYTHONPATH")}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(site),
        "PIP_TARGET": str(site),
        "PIP_NO_DEPS": "1",
        "PIP_NO_BUILD_ISOLATION": "0",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "150",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if check:
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done
