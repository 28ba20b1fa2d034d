"""Arrays in one npz file, written and read without pickle and without Python literals.

`np.load` parses each array's header with `ast.literal_eval`, which CPython 3.11 breaks where two
threads parse at the same time: whole files then count as damaged. Headers are matched by a pattern
here; files that numpy wrote, and numpy itself, read the same.
"""

import io
import math
import re
import zipfile
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MAGIC = b"\x93NUMPY"
_LENGTH_BYTES = {1: 2, 2: 4, 3: 4}
"""Bytes of the header's length, by the version of the format."""

_HEADER = re.compile(
    r"\{'descr': '([<>|=][biufcSU]\d+)', 'fortran_order': (True|False), 'shape': \(([\d, ]*)\), \}"
)
"""What numpy writes of arrays of numbers, truth values and text; objects are no match."""


def pack(**arrays: Any) -> bytes:
    """An npz file of arrays by name, compressed.

    Raises:
        ValueError: one holds objects.
    """
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def pack_quickly(**arrays: Any) -> bytes:
    """The same with little effort on compression: a third of the time for some more bytes.

    For what is written for each of many volumes. Mostly zeros, they are packed well in any case.

    Raises:
        ValueError: one holds objects.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, value in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, np.asanyarray(value), allow_pickle=False)
            # An entry of our own has no time of writing: the same arrays give the same bytes.
            entry = zipfile.ZipInfo(f"{name}.npy")
            archive.writestr(entry, content.getbuffer(), zipfile.ZIP_DEFLATED, compresslevel=1)
    return buffer.getvalue()


def unpack(content: bytes, only: str = "") -> dict[str, NDArray[Any]]:
    """The arrays of an npz file by name; safe in threads.

    Args:
        content: Of the file.
        only: Name of the one array that is wanted, without the others; none where it is not there.

    Raises:
        ValueError: it is no such file, or damaged: a checksum is wrong, a header is none, an array
            is cut short or holds objects.
    """
    arrays = {}
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for name in archive.namelist():
                if only and name != f"{only}.npy":
                    continue
                arrays[name.removesuffix(".npy")] = _array(archive.read(name), name)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError) as error:
        raise ValueError(f"no npz file, or a damaged one: {error}") from None
    except (RuntimeError, OSError, OverflowError) as error:  # a header of the archive that lies
        raise ValueError(f"a damaged npz file: {error}") from None
    return arrays


def _array(content: bytes, name: str) -> NDArray[Any]:
    if content[:6] != _MAGIC or len(content) < 12 or content[6] not in _LENGTH_BYTES:
        raise ValueError(f"{name} is no array of numpy")
    start = 8 + _LENGTH_BYTES[content[6]]
    end = start + int.from_bytes(content[8:start], "little")
    header = _HEADER.fullmatch(content[start:end].decode("latin1").strip())
    if header is None:
        raise ValueError(f"{name} has no header of numbers, truth values or text")
    kind, fortran, sides = header.groups()
    dtype = np.dtype(kind)
    shape = tuple(int(side) for side in sides.split(",") if side.strip())
    if len(content) - end != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name} holds {len(content) - end} bytes for {kind} of shape {shape}")
    flat = np.frombuffer(content, dtype, count=math.prod(shape), offset=end)
    # A copy: what is read from bytes cannot be written to.
    return flat.reshape(shape, order="F" if fortran == "True" else "C").copy(order="K")
