"""What distinguishes scans: the content of its files, never their names or sizes.

A digest costs a read, which preparing and predicting do anyway: it is made of the bytes that they
read. Later a stamp says, without a read, that files at the very same paths were not touched since;
only where it differs are they read again and their digests compared.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from nibabel import orientations

from uadray import files
from uadray.preparation.layouts.scans import PHANTOM_SCHEME, Scan
from uadray.preparation.nifti import halves

DIGITS = 32
"""Hexadecimal digits that are kept of a SHA-256: no two of 1e15 scans share them by chance."""

_VERSIONS = (
    *("ETag", "etag", "md5Hash", "content_md5", "generation"),
    *("LastModified", "last_modified", "updated", "mtime", "created"),
)
"""What object stores call the version of an object, or the time of its last change."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """The files of one scan as they lie there, without a look into them."""

    num_bytes: int
    """Their sizes together; what is absent counts as nothing."""
    stamp: str
    """Digest of each file's path, size, times and number on its disk (or its version in an object
    store); empty where a store knows no more than sizes."""


def scan_files(scan: Scan) -> Iterator[tuple[str, str]]:
    """What each of a scan's own files is for, and its path; a phantom has none."""
    if scan.image.startswith(PHANTOM_SCHEME):
        return
    named = [("image", scan.image), ("brain", scan.brain), ("lesion", scan.lesion)]
    named += [("lesion", path) for path in scan.more_lesions]
    named += [("shape", scan.synthetic_lesion), ("template", scan.template)]
    for role, path in named:
        for part in halves(path) if path else ():
            yield role, part


def look_at(scan: Scan) -> Source:
    """Sizes and stamp of a scan's files."""
    sha, total, stamped = hashlib.sha256(), 0, True
    for role, path in scan_files(scan):
        size, version = _state(path)
        total += size if role != "template" else 0  # which many scans share
        stamped &= bool(version)
        sha.update(f"{role}\0{path}\0{size}\0{version}\n".encode(errors="surrogateescape"))
    known = stamped and not scan.image.startswith(PHANTOM_SCHEME)
    return Source(num_bytes=total, stamp=sha.hexdigest()[:DIGITS] if known else "")


def digest_of(scan: Scan, read: Mapping[str, str] | None = None) -> str:
    """SHA-256 over the content of all of a scan's files; empty for a phantom.

    Args:
        scan: Where they lie.
        read: Path -> digest of those that were read before, from `files.digests_of_reads`.

    Raises:
        OSError: a remote store does not answer.
    """
    sha, count = hashlib.sha256(), 0
    for role, path in scan_files(scan):
        content = (read or {}).get(path) or _content(path)
        sha.update(f"{role} {content}\n".encode())
        count += 1
    return sha.hexdigest()[:DIGITS] if count else ""


def is_unchanged(scan: Scan, now: Source, *, digest: str, stamp: str) -> bool:
    """Whether a scan's files still are what they were.

    Args:
        scan: Where they lie.
        now: From `look_at`.
        digest: On record, from `digest_of`; not empty.
        stamp: On record, from `look_at`.
    """
    return (stamp != "" and stamp == now.stamp) or digest == digest_of(scan)


def same_place(one: object, other: str) -> bool:
    """Whether two paths or URLs are of one file, which a path may be spelled in several ways."""
    if one == other or not isinstance(one, str) or files.is_remote(one) or files.is_remote(other):
        return one == other
    with suppress(OSError, ValueError):
        return os.path.realpath(one) == os.path.realpath(other)
    return False


def image_digest(voxels: np.ndarray, affine: np.ndarray) -> str:
    """SHA-256 over the voxels of one image: alike however the file is packed, named or turned.

    Args:
        voxels: float32 (X, Y, Z), as read.
        affine: (4, 4), from a voxel's index to the scanner's millimetres.
    """
    turned = orientations.apply_orientation(voxels, orientations.io_orientation(affine))
    sha = hashlib.sha256(repr(turned.shape).encode())
    sha.update(np.ascontiguousarray(turned, np.float32).data)
    return sha.hexdigest()[:DIGITS]


def _state(path: str) -> tuple[int, str]:
    """Size and version of a file; a version is empty where none is known."""
    try:
        if not files.is_remote(path):
            status = os.stat(path.removeprefix("file://"))
            # The time of the last change of the inode can't be set back, unlike the content's.
            return status.st_size, f"{status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"
        fs, inner = files.located(path)
        info = fs.info(inner)
    except FileNotFoundError:
        return 0, "absent"
    except (OSError, ValueError) as error:
        # Why it cannot be read is said when it is read; a store that does not answer ends the job.
        if files.is_remote(path) and isinstance(error, OSError):
            raise
        return 0, f"unreadable: {getattr(error, 'errno', None)}"
    version = " ".join(f"{key}={info[key]}" for key in _VERSIONS if info.get(key))
    return int(info.get("size") or 0), version


def _content(path: str) -> str:
    try:
        return files.digest(path)
    except FileNotFoundError:
        return "absent"
    except (OSError, ValueError) as error:
        if files.is_remote(path) and isinstance(error, OSError):
            raise
        return f"unreadable: {getattr(error, 'errno', None)}"
