"""Prepared scans that wait for their shard: `rows/ROW-STAMP-DIGEST.npz`, one file each.

The name holds stamp and digest of the scan's files, so that a listing tells which of them are still
as they were.
A file is a zip archive of arrays: it has a checksum, and nothing in it is executed.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict

import numpy as np

from uadray import attempts, files, npz
from uadray.errors import StoreError
from uadray.store.layout import Subject

FOLDER = "rows"
"""Below the cohort; gone once it is sealed."""


_STARTED = ".begun"


def kept_name(subject: Subject) -> str:
    """Name of a kept scan's file."""
    return f"{subject.row:06d}-{subject.source_stamp}-{subject.source_digest}.npz"


def parse_name(name: str) -> tuple[int, str, str]:
    """Row, stamp and digest in the name of a kept scan's file.

    Raises:
        ValueError: it is none, or of a version that recorded no digest.
    """
    row, stamp, digest = name.removesuffix(".npz").split("-")
    return int(row), stamp, digest


def put(url: str, subject: Subject, arrays: Mapping[str, np.ndarray]) -> str:
    """Write one scan, whole or not at all; return the file's name."""
    line = np.frombuffer(json.dumps(asdict(subject)).encode(), np.uint8)
    name = kept_name(subject)
    files.write_bytes(files.join(url, FOLDER, name), npz.pack(subject=line, **arrays))
    return name


def get(url: str, name: str) -> tuple[Subject, dict[str, np.ndarray]]:
    """Read one scan.

    Raises:
        StoreError: the file is damaged; it is removed.
    """
    place = files.join(url, FOLDER, name)
    try:
        arrays = npz.unpack(files.read_bytes(place))
        return Subject(**json.loads(arrays.pop("subject").tobytes())), arrays
    except (ValueError, KeyError, TypeError) as error:
        files.remove_file(place)
        raise StoreError(
            f"{place} was damaged ({error}) and is removed: run the same command again"
        ) from None


def names(url: str) -> set[str]:
    """File names of all kept scans."""
    return {name for name in files.list_names(files.join(url, FOLDER)) if name.endswith(".npz")}


def begin(url: str, row: int) -> int:
    """Note that a scan is about to be prepared; return how often a process died over it."""
    return attempts.begin(_note(url, row))


def end(url: str, row: int) -> None:
    """Note that the preparation has come to an end, good or bad."""
    attempts.end(_note(url, row))


def forget_begun(url: str) -> None:
    """Remove the notes of an earlier job."""
    for name in files.list_names(files.join(url, FOLDER)):
        if name.endswith(_STARTED):
            files.remove_file(files.join(url, FOLDER, name))


def _note(url: str, row: int) -> str:
    return files.join(url, FOLDER, f"{row:06d}{_STARTED}")


def drop(url: str, name: str) -> None:
    """Remove one scan."""
    files.remove_file(files.join(url, FOLDER, name))


def clear(url: str) -> None:
    """Remove all of them."""
    files.remove(files.join(url, FOLDER))
