"""Imports go downward only, and few modules know Ray."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import uadray

ROOT = Path(uadray.__file__).parent
RAY_ALLOWED = {
    "uadray.cluster",
    "uadray.data.stream",
    "uadray.prepare.ingest",
    "uadray.train.group",
    "uadray.evaluation.job",
    "uadray.each",
    "uadray.tune.asha",
    "uadray.tune.draws",
    "uadray.tune.sweep",
    "uadray.tune.trial",
    "uadray.tune.watch",
}
HEIGHT = [
    {"errors", "lazy"},
    {"files"},
    {"counter", "html", "memory", "naming", "npz", "progress", "tables"},
    {"attempts", "cli", "lock", "methods", "results", "phantom"},
    {"config", "metrics"},
    {"store", "cluster"},
    {"each"},
    {"data"},
    {"prepare"},
    {"runs"},
    {"train"},
    {"evaluation"},
    {"tune"},
    {"papers"},
    {"report", "quality"},
    {"viewer"},
    {"prediction"},
    {"api"},
]
"""Rooms from the ground up; a room imports from itself and from lower ones."""

MODULES = {
    "uadray." + ".".join(p.relative_to(ROOT).with_suffix("").parts): p
    for p in sorted(ROOT.rglob("*.py"))
    if p != ROOT / "__init__.py"
}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module or ""} | {f"{node.module}.{a.name}" for a in node.names}
    return names


def height(module: str) -> int:
    room = module.split(".")[1]
    found = [level for level, rooms in enumerate(HEIGHT) if room in rooms]
    assert found, f"{module} is in no room: add it to HEIGHT"
    return found[0]


@pytest.mark.parametrize("module", MODULES)
def test_ray_is_known_to_few(module: str) -> None:
    if module not in RAY_ALLOWED:
        assert not {n for n in imported(MODULES[module]) if n == "ray" or n.startswith("ray.")}


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_downward(module: str) -> None:
    room = module.split(".")[1]
    for name in imported(MODULES[module]):
        if (
            name.startswith("uadray.")
            and name.split(".")[1] != room
            and name != "uadray.__version__"
        ):
            assert height(name) < height(module), f"{module} imports {name}"


def test_no_circle() -> None:
    """None at all, whether an import is on top, in a function or under TYPE_CHECKING."""
    graph = {module: imported(path) & set(MODULES) for module, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_metrics_know_no_file_no_cohort_no_ray() -> None:
    """Not by way of what they import either."""
    modules = [name for name in MODULES if name.startswith("uadray.metrics.")]
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = {".".join(name.split(".")[:2]) for name in done.stdout.split()}
    of_files = {f"uadray.{room}" for room in ("files", "npz", "lock", "store", "prepare", "stream")}
    assert not names & {"ray", "zarr", "fsspec", "nibabel", "uadray.cluster", *of_files}
