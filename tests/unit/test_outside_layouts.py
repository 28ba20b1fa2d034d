"""Layouts of other packages: found, checked as ours are, recorded, refused by name."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from own_registry import OwnRegistry
from tiny_scans import brain_image, write

from uadray.errors import ConfigError, NoScanFoundError, PluginError
from uadray.plugins import Package
from uadray.preparation.inputs import Settings, find_inputs, modality_of
from uadray.preparation.layouts import LAYOUTS, Scans, list_scans

REPOSITORY = Path(__file__).resolve().parents[2]

HEAD = "from uadray.preparation.layouts import LeftOut, Scan, Scans, checked, find_files\n"

LAYOUT = '''
def mine(root, modality="T1w"):
    """Scans as SUBJECT/t1.nii.gz."""
    return [
        Scan(id=n.split("/")[0], subject=n.split("/")[0], image=f"{root}/{n}", modality=modality)
        for n in reversed(find_files(root))
        if n.endswith("t1.nii.gz")
    ]
'''


def returning(what: str) -> str:
    return f"{HEAD}\ndef mine(root, modality='T1w'):\n    return {what}\n"


@pytest.fixture
def root(tmp_path: Path) -> str:
    for subject in ("b", "a", "c"):
        (tmp_path / "set" / subject).mkdir(parents=True)
        write(tmp_path / "set" / subject / "t1.nii.gz", brain_image((8, 8, 8)))
    write(tmp_path / "set" / "c" / "flair.nii.gz", brain_image((8, 8, 8)))
    return str(tmp_path / "set")


def install(own_registry: OwnRegistry, text: str = HEAD + LAYOUT) -> None:
    own_registry.write("my_layout", text)
    own_registry.install("my-package", "1.2", group="layouts", mine="my_layout:mine")


class TestFound:
    def test_from_python_by_its_place(self, own_registry: OwnRegistry, root: str) -> None:
        own_registry.write("my_layout", HEAD + LAYOUT)
        assert modality_of("my_layout:mine") == "T1w"
        found = find_inputs("my_layout:mine", root, "T1w", settings=Settings())
        assert [scan.id for scan in found.scans] == ["a", "b", "c"]
        with pytest.raises(PluginError, match="no_such"):
            modality_of("no_such:mine")

    def test_by_entry_point_sorted_and_with_all_that_is_left_out(
        self, own_registry: OwnRegistry, root: str
    ) -> None:
        install(own_registry)
        assert "mine" in LAYOUTS
        assert "my_layout" not in sys.modules
        assert LAYOUTS.package("mine") == Package(distribution="my-package", version="1.2")
        scans = list_scans("mine", root, "T1w")
        assert [scan.id for scan in scans] == ["a", "b", "c"]
        assert [one.path for one in scans.left_out] == [f"{root}/c/flair.nii.gz"]

    def test_by_its_place(self, own_registry: OwnRegistry, root: str) -> None:
        own_registry.write("my_layout", HEAD + LAYOUT)
        assert len(list_scans("my_layout:mine", root, "T1w")) == 3
        package = LAYOUTS.package("my_layout:mine")
        assert package is not None
        assert package.version.startswith("sha256:")

    def test_its_own_words_on_what_it_leaves_out_are_kept(
        self, own_registry: OwnRegistry, root: str
    ) -> None:
        made = "Scans([Scan(id='a', subject='a', image=root + '/a/t1.nii.gz', modality='t1')], "
        install(own_registry, returning(made + "[LeftOut(path=root + '/b', reason='moved')])"))
        scans = list_scans("mine", root, "t1")
        assert isinstance(scans, Scans)
        assert [one.reason for one in scans.left_out] == ["moved"]
        assert scans[0].modality == "T1w"

    def test_none_of_that_name(self, root: str) -> None:
        with pytest.raises(ConfigError, match="no layout is named 'no' here, there are bids, csv"):
            list_scans("no", root, "T1w")

    def test_ours_are_as_they_were(self, root: str) -> None:
        assert LAYOUTS.package("bids") is None
        with pytest.raises(NoScanFoundError) as one:
            list_scans("ixi", root, "T1w")
        with pytest.raises(NoScanFoundError) as other:
            LAYOUTS["ixi"](root, "T1w")
        assert str(one.value) == str(other.value)


ONE = "Scan(id='a', subject='a', image=root + '/a/t1.nii.gz', modality='T1w')"


def but(old: str, new: str) -> str:
    """A list of one scan that is not quite that one."""
    assert old in ONE
    return f"[{ONE.replace(old, new)}]"


RETURNED = {
    "nothing": ("None", PluginError, "expected a list of Scan, was None"),
    "a generator": (f"({ONE} for _ in 'a')", PluginError, "expected a list of Scan, was <gen"),
    "paths": ("['a/t1.nii.gz']", PluginError, "one of it was 'a/t1.nii.gz'"),
    "a Path": (
        but("root + '/a/t1.nii.gz'", "__import__('pathlib').Path(root)"),
        PluginError,
        "image must be str, was PosixPath",
    ),
    "a label as text": (but("id=", "lesion_labels=('1',), id="), PluginError, "lesion_labels must"),
    "no id": (but("id='a'", "id=''"), PluginError, "has no id"),
    "no subject": (but("subject='a'", "subject=''"), PluginError, "has no subject"),
    "one id twice": (
        f"[{ONE}, {ONE.replace('/a/t1', '/b/t1')}]",
        NoScanFoundError,
        "1 ids belong to more than one scan, first a",
    ),
    "one image twice": (
        f"[{ONE}, {ONE.replace('(id=', '(id=str(2) + ')}]",
        NoScanFoundError,
        "1 images belong to more than one scan",
    ),
    "no scan": ("[]", NoScanFoundError, "finds no scan of modality T1w there"),
    "relative paths": (but("root + '/a", "'a"), PluginError, "paths are whole ones"),
    "another modality": (but("'T1w'", "'FLAIR'"), PluginError, "T1w was asked for"),
    "other words on what is left out": (
        f"Scans([{ONE}], ['b'])",
        PluginError,
        "what is left out must be LeftOut",
    ),
    "an error": ("1 / 0", PluginError, r"fails: ZeroDivisionError: .*my_layout.py, line 4"),
    "its leave": ("exit(3)", PluginError, "fails: SystemExit"),
}


class TestRefused:
    @pytest.mark.parametrize("what", RETURNED)
    def test_what_it_returns(self, own_registry: OwnRegistry, root: str, what: str) -> None:
        returned, kind, message = RETURNED[what]
        install(own_registry, returning(returned))
        with pytest.raises(kind, match=message) as refused:
            list_scans("mine", root, "T1w")
        if kind is PluginError:
            assert "mine of my-package 1.2" in str(refused.value)

    @pytest.mark.parametrize(
        "text",
        [
            "mine = 3",
            "def mine(root): return []",
            "def mine(folder, modality='T1w'): return []",
            "def mine(root, modality): return []",
            "class mine:\n    pass",
        ],
    )
    def test_what_is_no_layout(self, own_registry: OwnRegistry, text: str) -> None:
        install(own_registry, text)
        with pytest.raises(PluginError, match=r"my-package 1.2 .* is no layout named 'mine': exp"):
            LAYOUTS["mine"]
        with pytest.raises(PluginError, match="my_layout:mine is no layout"):
            LAYOUTS.at("my_layout:mine")

    def test_two_of_one_name_and_one_of_ours(self, own_registry: OwnRegistry) -> None:
        own_registry.write("my_layout", HEAD + LAYOUT)
        for package in ("package-one", "package-two"):
            own_registry.install(
                package, "1", group="layouts", mine="my_layout:mine", bids="my_layout:mine"
            )
        with pytest.raises(PluginError, match=r"'mine' is there more than once: package-one 1 .*"):
            LAYOUTS["mine"]
        with pytest.warns(
            UserWarning, match=r"uadray's own bids is meant, not that of package-one"
        ):
            assert LAYOUTS["bids"].__module__ == "uadray.preparation.layouts.bids"


def prepare(own_registry: OwnRegistry, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, REPOSITORY / "jobs/prepare.py", *args],
        cwd=own_registry.folder,
        env={**os.environ, "PYTHONPATH": str(own_registry.folder), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_one_that_fails_is_named_and_the_rest_works(own_registry: OwnRegistry) -> None:
    install(own_registry)
    own_registry.write("broken", "raise OSError('no licence')")
    own_registry.install("broken-package", "3.1", group="layouts", broken="broken:mine")
    own_registry.install("word-package", "1", group="layouts", phantom="my_layout:mine")
    done = prepare(own_registry, "--help")
    assert done.returncode == 0, done.stderr
    assert "Scans as SUBJECT/t1.nii.gz." in done.stdout
    assert "left out: broken-package 3.1 (broken:mine) cannot be used: OSError: no" in done.stderr
    done = prepare(own_registry, "mine", "--help")
    assert "(default: T1w)" in done.stdout
    assert done.stderr == ""
    done = prepare(own_registry, "phantom", "--help")
    assert "Invented subjects" in done.stdout
    done = prepare(own_registry, "broken", "data", "--out", "c.zarr")
    assert done.returncode == 1
    assert "broken-package 3.1" in done.stderr
    assert "Traceback" not in done.stderr
    done = prepare(own_registry, "my_layout:mine", "--help")
    assert "prepare.py my_layout:mine" in done.stdout
    done = prepare(own_registry, "my_layout:absent", "--help")
    assert "has no 'absent'" in done.stderr
