"""The house: the order of its rooms is the table of CONTRIBUTING.md, and few of them know Ray."""

import ast
import itertools
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import uadray

ROOT = Path(uadray.__file__).parent
MODULES = {
    "uadray." + ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
    for p in sorted(ROOT.rglob("*.py"))
    if p != ROOT / "__init__.py"
}


def rows() -> Iterator[tuple[list[str], str]]:
    """Rooms of each row of the table, from the top, and which of their modules may import Ray."""
    text = (ROOT.parent / "CONTRIBUTING.md").read_text()
    for line in text.splitlines():
        if line.startswith("| `uadray/"):
            _, rooms, _, ray, _ = line.split("|")
            yield re.findall(r"`uadray/(\w+)", rooms), ray.strip()


ORDER = list(rows())
HEIGHT = {room: -level for level, (rooms, _) in enumerate(ORDER) for room in rooms}


def may_import_ray(module: str) -> bool:
    _, room, *inside = module.split(".")
    ray = next(ray for rooms, ray in ORDER if room in rooms)
    return ray == "yes" or bool(inside and f"`{inside[-1]}`" in ray)


def imported(path: Path, *, on_top: bool = False) -> set[str]:
    """What a module imports anywhere, or as it is imported itself."""
    names = set()
    tree = ast.parse(path.read_text())
    for node in tree.body if on_top else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module or ""} | {f"{node.module}.{a.name}" for a in node.names}
    return names


def loads_ray(module: str) -> bool:
    """Whether importing a module imports Ray, by what it and those below it name."""
    reached, todo = set[str](), [module]
    while todo:
        name = todo.pop()
        if name in reached or name not in MODULES:
            continue
        reached.add(name)
        names = imported(MODULES[name], on_top=True)
        if any(other.split(".")[0] == "ray" for other in names):
            return True
        todo += [*names, *(other.rpartition(".")[0] for other in (*names, name))]
    return False


def test_every_room_is_in_the_table() -> None:
    assert {module.split(".")[1] for module in MODULES} == set(HEIGHT)


def test_the_picture_in_the_documentation_has_the_order_of_the_table() -> None:
    text = (ROOT.parent / "docs/index.md").read_text().split("## The house")[1]
    pictured = [word for word in re.findall(r"\w+", text.split("```")[1]) if word in HEIGHT]
    lines = [
        [HEIGHT[word] for word in re.split(r"\s{3,}", line.strip())[0].split() if word in HEIGHT]
        for line in text.split("```")[1].splitlines()
    ]
    levels = [level for level in lines if level]
    assert {"papers", "runs", "methods", "files"} <= set(pictured)
    for above, below in itertools.pairwise(levels):
        assert min(above) > max(below)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_downward(module: str) -> None:
    room = module.split(".")[1]
    for name in imported(MODULES[module]):
        other = name.split(".")[1] if name.startswith("uadray.") else room
        if other not in (room, "__version__"):
            assert HEIGHT[other] < HEIGHT[room], f"{module} imports {name}"


def test_no_circle() -> None:
    """None at all, whether an import is on top, in a function or under TYPE_CHECKING."""
    # Every module stands on its package, which is no circle where it names the module, too.
    graph = {
        module: {n for n in imported(path) & set(MODULES) if not module.startswith(f"{n}.")}
        for module, path in MODULES.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def in_a_fresh_process(code: str) -> set[str]:
    """Modules that are loaded once the code has run."""
    code = f"{code}\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


class TestRay:
    @pytest.mark.parametrize("module", MODULES)
    def test_is_named_by_few(self, module: str) -> None:
        names = {name.split(".")[0] for name in imported(MODULES[module])}
        assert "ray" not in names or may_import_ray(module) or module == "uadray.cluster"

    def test_is_loaded_by_those_alone_that_name_it_or_call_them(self) -> None:
        without = [module for module in MODULES if not loads_ray(module)]
        loaded = in_a_fresh_process(f"import {', '.join(without)}")
        assert not {name for name in loaded if name.split(".")[0] == "ray"}
        light = {"api", "prediction.job", "train.fit", "cluster", "runs.records", "report.page"}
        assert {f"uadray.{name}" for name in light} <= set(without)


def literals(path: Path) -> Iterator[str]:
    """Texts of a module that are no documentation."""
    tree = ast.parse(path.read_text())
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in docstrings
        ):
            yield node.value


@pytest.mark.parametrize(
    ("homes", "names"),
    [
        ({"runs"}, {"config.json", "metrics.jsonl", "people.npz", "state.json", "sweep.json"}),
        ({"runs"}, {"checkpoint", "evaluation"}),
        ({"store"}, {"scans.jsonl", "subjects.parquet", "left_out.jsonl", "parts"}),
        ({"store", "runs"}, {"zarr.json"}),  # scores are a Zarr store, too
    ],
)
def test_files_are_named_in_one_room(homes: set[str], names: set[str]) -> None:
    """`results` tells by them whose a folder is, and reads nothing else of them."""
    for module, path in MODULES.items():
        if module.split(".")[1] not in homes | {"results"}:
            named = {text for text in literals(path) if set(text.strip("/").split("/")) & names}
            assert not named, f"{module} names files of {homes}: {named}"


@pytest.mark.parametrize("room", ["metrics", "methods", "phantom"])
def test_pure_rooms_know_no_file_no_cohort_no_ray(room: str) -> None:
    """Not by way of what they import either."""
    modules = [name for name in MODULES if name.startswith(f"uadray.{room}")]
    loaded = in_a_fresh_process(f"import {', '.join(modules)}")
    names = {".".join(name.split(".")[:2]) for name in loaded}
    of_files = {f"uadray.{name}" for name in ("files", "npz", "lock", "store", "prepare", "data")}
    assert not names & {"ray", "zarr", "fsspec", "uadray.cluster", *of_files}


def test_a_report_is_imported_by_few() -> None:
    importers = {
        module.split(".")[1]
        for module, path in MODULES.items()
        if any(name.startswith("uadray.report") for name in imported(path))
    }
    assert importers <= {"report", "viewer", "papers", "tune", "jobs"}


def test_test_files_have_names_of_their_own() -> None:
    """Pytest imports them by their names alone, and refuses the second of one name."""
    names = [path.name for path in Path(__file__).parents[1].rglob("test_*.py")]
    assert sorted(set(names)) == sorted(names)
