"""A help text or a wrong argument loads no library that computes: it comes at once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from uadray.jobs import VERBS

ROOT = Path(__file__).parents[2]
HEAVY = {
    *("torch", "ray", "scipy", "matplotlib", "SimpleITK", "pandas", "zarr"),
    *("nibabel", "sklearn", "numba", "pyarrow", "skimage", "nilearn"),
}

# One process runs several calls of a job: what the first loads is seen after the last, too.
SCRIPT = """
import contextlib, io, json, runpy, sys
path, *calls = json.loads(sys.argv[1])
codes = []
for args in calls:
    sys.argv = [path, *args]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as ended:
            codes.append(ended.code)
print(json.dumps([codes, sorted({name.split(".")[0] for name in sys.modules})]))
"""

CALLS: dict[str, list[tuple[list[str], int]]] = {
    "ensemble": [
        (["--out", "o"], 2),
        (["runs/one", "--out", "o", "--combine", "sum"], 2),
    ],
    "evaluate": [
        (["--protocol", "meissen2021-I", "--help"], 0),
        (["runs/one"], 2),
        (["runs/one", "--cohort", "c", "--components.max-size", "-1"], 2),
    ],
    "predict": [(["m", "s", "--out", "o", "--threshold", "nan"], 1)],
    "prepare": [
        (["bids", "--help"], 0),
        (["phantom", "healthy", "--out", "o", "--seed", "-1"], 2),
        (["bids", "scans", "--out", "o", "--max-cut", "3"], 2),
    ],
    "preview": [(["c", "--epochs", "0"], 2)],
    "report": [(["--viewer", "-1"], 2)],
    "reproduce": [
        (["bengs2021", "--help"], 0),
        (["no-paper"], 1),
        (["bengs2021", "--out", "o", "--table", "99"], 1),
    ],
    "train": [
        (["3D-Cube-n", "--help"], 0),
        (["4D-None"], 1),
        (["3D-Cube-n", "--fit.epochs", "0"], 2),
        (["3D-Cube-n", "--folds", "1"], 2),
        (["3D-Cube-n", "--folds", "5", "--fit.folds", "5", "--fit.fold", "1"], 2),
    ],
    "tune": [
        (["smoke", "--help"], 0),
        (["no-preset"], 1),
        (["smoke", "--sweep.objective", "dice"], 2),
    ],
}


@pytest.mark.parametrize("job", VERBS)
def test_arguments_are_read_before_anything_heavy_is_loaded(job: str) -> None:
    calls = [(["--help"], 0), (["--no-such-flag"], 2), *CALLS.get(job, [])]
    given = json.dumps([str(ROOT / f"jobs/{job}.py"), *(args for args, _ in calls)])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, given], cwd=ROOT, capture_output=True, text=True, check=True
    )
    codes, loaded = json.loads(done.stdout)
    assert codes == [code for _, code in calls]
    assert not HEAVY & set(loaded)


@pytest.mark.parametrize(
    "module",
    [
        "uadray.data.volumes",  # reads
        "uadray.preparation.steps",  # prepares
        "uadray.evaluation.examination",  # compares kept scores with lesions
    ],
)
def test_workers_that_compute_no_network_import_no_torch(module: str) -> None:
    """Each is a process of its own, and importing torch takes as long as many a task."""
    code = f"import {module}, sys; print([n for n in ('torch', 'sklearn') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
