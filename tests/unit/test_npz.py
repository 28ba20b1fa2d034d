"""npz files: as numpy's, safe in threads, and damaged only where they are."""

import ast
import gc
import io
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from uadray import npz

ARRAYS = {
    "floats": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
    "big_endian": np.arange(3, dtype=">u2"),
    "half": np.linspace(0, 1, 5, dtype=np.float16),
    "mask": np.array([[True, False]]),
    "names": np.array(["sub-01", "頭部", ""]),
    "bytes": np.array([b"ab", b"c"]),
    "number": np.array(3),
    "empty": np.zeros((0, 7)),
    "vector": np.arange(4, dtype=np.uint8),
}


def assert_same(arrays: dict[str, np.ndarray]) -> None:
    assert list(arrays) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype
        assert arrays[name].shape == array.shape
        assert np.array_equal(arrays[name], array)
        assert arrays[name].flags.writeable


PACKS = pytest.mark.parametrize("pack", [npz.pack, npz.pack_quickly])


@PACKS
def test_what_was_packed_comes_back(pack) -> None:
    assert_same(npz.unpack(pack(**ARRAYS)))


@PACKS
def test_the_same_arrays_give_the_same_bytes(pack, monkeypatch: pytest.MonkeyPatch) -> None:
    first = pack(**ARRAYS)
    monkeypatch.setattr(time, "time", lambda: 2e9)
    monkeypatch.setattr(time, "localtime", lambda _: time.struct_time((2033, *[1] * 8)))
    assert pack(**ARRAYS) == first


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_files_of_numpy_are_read(save) -> None:
    buffer = io.BytesIO()
    save(buffer, **ARRAYS)
    assert_same(npz.unpack(buffer.getvalue()))


@PACKS
def test_numpy_reads_ours(pack) -> None:
    with np.load(io.BytesIO(pack(**ARRAYS)), allow_pickle=False) as loaded:
        assert_same(dict(loaded))


@PACKS
def test_objects_are_not_packed(pack) -> None:
    with pytest.raises(ValueError, match="Object arrays"):
        pack(a=np.array([{}], dtype=object))


def test_objects_are_refused() -> None:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="no header of numbers"):
        npz.unpack(buffer.getvalue())


CONTENT = npz.pack(counts=np.arange(1000), name=np.array("a"))


@pytest.mark.parametrize("length", [0, 1, 10, 100, len(CONTENT) // 2, len(CONTENT) - 1])
def test_a_file_that_was_cut_short_is_named(length: int) -> None:
    with pytest.raises(ValueError, match="npz"):
        npz.unpack(CONTENT[:length])


def test_a_flipped_bit_is_found_or_harmless() -> None:
    whole = npz.unpack(CONTENT)
    for place in range(0, len(CONTENT), 7):
        changed = bytearray(CONTENT)
        changed[place] ^= 4
        try:
            arrays = npz.unpack(bytes(changed))
        except ValueError:
            continue
        assert all(np.array_equal(arrays[n], whole[n]) for n in arrays if n in whole), place


class Slow:
    """A finaliser that lets other threads run, as those of Ray's object references do."""

    def __del__(self) -> None:
        time.sleep(2e-4)


@pytest.fixture
def hostile() -> Iterator[None]:
    """Collect garbage and change threads at every turn."""
    before = gc.get_threshold(), sys.getswitchinterval()
    gc.set_threshold(20, 5, 5)
    sys.setswitchinterval(1e-6)
    yield
    gc.set_threshold(*before[0])
    sys.setswitchinterval(before[1])


@pytest.mark.usefixtures("hostile")
def test_whole_files_are_whole_in_threads() -> None:
    def read(_: int) -> str:
        node = Slow()
        node.me = node  # type: ignore[attr-defined]
        try:
            npz.unpack(CONTENT)
        except Exception as error:
            return repr(error)
        return ""

    with ThreadPoolExecutor(16) as pool:
        assert [problem for problem in pool.map(read, range(1000)) if problem] == []


def test_nothing_else_reads_arrays_or_literals() -> None:
    """Whatever calls `ast` may fail in threads; one module reads npz files."""
    for path in Path(npz.__file__).parent.rglob("*.py"):
        called = {
            ast.unparse(node.func)
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call)
        }
        if path.name == "plugins.py":  # a class's own docstrings, read where it is registered
            called.discard("ast.parse")
        assert not called & {"np.load", "numpy.load", "ast.literal_eval", "ast.parse"}, path
        if path.name != "npz.py":
            assert not {name for name in called if name.startswith("np.save")}, path
