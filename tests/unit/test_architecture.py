"""Imports go downward only, and few modules know Ray."""

import ast
from pathlib import Path

import pytest

import uadray

ROOT = Path(uadray.__file__).parent
RAY_ALLOWED = {
    "uadray.cluster",
    "uadray.stream",
    "uadray.prepare.ingest",
    "uadray.train.group",
    "uadray.evaluate.distributed",
    "uadray.predict.distributed",
    "uadray.tune.asha",
    "uadray.tune.draws",
    "uadray.tune.sweep",
    "uadray.tune.trial",
    "uadray.tune.watch",
}
HEIGHT = [
    {"errors", "lazy"},
    {"files", "counter", "batch", "calling", "memory", "naming", "npz", "order", "progress"},
    {"cli", "lock", "methods"},
    {"config"},
    {"store", "erasing", "cluster"},
    {"prepare", "stream"},
    {"train"},
    {"evaluate"},
    {"tune"},
    {"papers"},
    {"report"},
    {"share"},
    {"predict"},
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
