"""Small files on a local path or any fsspec URL: joined, read, and written whole or not at all."""

import fcntl
import hashlib
import json
import os
import re
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import datetime
from glob import has_magic
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from uadray.errors import ConfigError

_DRAFT = re.compile(r"\..+\.[0-9a-f]{32}")
"""Names under which `write_bytes` writes aside."""


def is_draft(name: str) -> bool:
    """Whether a file of that name is what a killed `write_bytes` left."""
    return bool(_DRAFT.fullmatch(name))


LOCK = ".lock"
"""Name of the file by which a job keeps others off its output; see `uadray.lock`."""


def is_transient(name: str) -> bool:
    """Whether a file of that name is a lock, or what a killed writer left: no output."""
    return is_draft(name) or name.startswith(LOCK)


def is_empty(url: str) -> bool:
    """Whether a folder is absent, or holds nothing but a lock and what killed writers left."""
    return all(map(is_transient, list_names(url)))


def is_remote(url: str) -> bool:
    """Whether `url` names a store with a protocol such as `s3://`, not a local path."""
    return "://" in url and not url.startswith("file://")


def normalise(url: str | os.PathLike[str]) -> str:
    """An absolute local path, or the URL without a trailing slash.

    Raises:
        ConfigError: the URL holds a password or a signature, which records and logs would repeat,
            or the home folder of a user that there is not.
    """
    url = os.fspath(url)
    if is_remote(url):
        if (public := without_secrets(url)) != url:
            raise ConfigError(
                f"{public}: the URL holds a password or a signed query, which would stand in every "
                "record of the results: give them by environment variables, a role of the "
                "machine, or the configuration files of the storage's library"
            )
        return url.rstrip("/")
    try:
        return str(Path(url.removeprefix("file://")).expanduser().absolute())
    except RuntimeError:
        raise ConfigError(
            f"{url}: no such user, whose home folder that would be; write ./{url} for a file of "
            "that name"
        ) from None


_PASSWORD = re.compile(r"(\w://)[^/\s'\"@:]*:[^/\s'\"@]*@|(https?://)[^/\s'\"@]+@")
_SIGNED = re.compile(r"(https?://[^\s'\"?]+)\?[^\s'\"]*")


def without_secrets(text: str) -> str:
    """`text` with what may be secret left out of each URL in it, for records and messages.

    That is `user:password@`, whatever stands there in `https://`, and the query of `http://` and
    `https://`, where signed URLs have their signature.
    """
    return _SIGNED.sub(r"\1?...", _PASSWORD.sub(r"\1\2...@", text))


def join(url: str, *parts: str) -> str:
    """`url` followed by `parts`."""
    return "/".join([url.rstrip("/"), *parts])


def located(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The filesystem of `url` and the path in it, as it is now.

    Without the cache of listings that fsspec keeps for each folder that it was asked for: another
    process may have written since, and its files would count as absent. A local path is taken as it
    is: fsspec would read a chain of protocols from `::` in it.
    """
    if not is_remote(url):
        return LocalFileSystem(), LocalFileSystem._strip_protocol(url)
    fs, path = fsspec.core.url_to_fs(url, use_listings_cache=False, **one_request(url))
    return fs, path


def one_request(url: str) -> dict[str, Any]:
    """Options under which a filesystem reads an object by one request.

    S3's asks for the size first, to read in parts what has over 50 MB, and lists the folder where
    there is no such object: two to three requests for each small file.
    """
    return {"max_concurrency": 1} if url.startswith(("s3://", "s3a://")) else {}


def exists(url: str) -> bool:
    """Whether there is a file or folder at `url`."""
    fs, path = located(url)
    return bool(fs.exists(path))


def list_names(url: str) -> list[str]:
    """Sorted names of the files and folders in the folder `url`; empty where it is absent."""
    fs, path = located(url)
    if not fs.exists(path):
        return []
    return sorted(Path(name).name for name in fs.ls(path, detail=False))


def modified_times(url: str) -> dict[str, float]:
    """When each file and folder in the folder `url` was last written, in seconds since 1970.

    By the storage's clock, and by one request; without those of which it does not say.
    """
    fs, path = located(url)
    times = {}
    for entry in fs.ls(path, detail=True) if fs.exists(path) else ():
        when = entry.get("mtime") or entry.get("LastModified") or entry.get("created")
        when = when.timestamp() if isinstance(when, datetime) else when
        if isinstance(when, (int, float)):
            times[Path(entry["name"]).name] = float(when)
    return times


def read_bytes(url: str) -> bytes:
    """The content of one file.

    Raises:
        FileNotFoundError: there is no such file.
    """
    fs, path = located(url)
    content = bytes(fs.cat_file(path))
    if (noted := _noted.get()) is not None:
        noted[url] = hashlib.sha256(content).hexdigest()
    return content


_noted: ContextVar[dict[str, str] | None] = ContextVar("noted", default=None)


@contextmanager
def digests_of_reads() -> Iterator[dict[str, str]]:
    """URL -> SHA-256 of each file that `read_bytes` gives inside the block, as they come.

    So the digest is that of the very bytes that were worked with, and costs no second read.
    """
    noted: dict[str, str] = {}
    token = _noted.set(noted)
    try:
        yield noted
    finally:
        _noted.reset(token)


def digest(url: str) -> str:
    """SHA-256 of one file, without holding it whole.

    Raises:
        FileNotFoundError: there is no such file.
    """
    fs, path = located(url)
    with fs.open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_lines(url: str) -> Iterator[bytes]:
    """The lines of one file with their ends, without reading it whole.

    Raises:
        FileNotFoundError: there is no such file.
    """
    fs, path = located(url)
    with fs.open(path, "rb") as file:
        yield from file


def write_bytes(url: str, content: bytes) -> None:
    """Write one file so that a reader sees the old content, the new one, or none; never a part.

    An object store puts an object whole. A local file is written aside, flushed and renamed.
    """
    if is_remote(url):
        fs, path = located(url)
        fs.pipe_file(path, content)
        return
    with replacing(url) as file:
        file.write(content)


@contextmanager
def replacing(url: str) -> Iterator[BinaryIO]:
    """A file to write to piece by piece, which becomes the one at `url`, whole, at the end.

    Nothing changes at `url` where the block raises. What goes to an object store is gathered in a
    temporary file, so that it need not fit into memory.
    """
    fs, path = located(url)
    if is_remote(url):
        with tempfile.NamedTemporaryFile() as gathered:
            yield cast(BinaryIO, gathered)
            gathered.flush()
            fs.put_file(gathered.name, path)
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with aside.open("wb") as file:
            # As long as it is held, the writer lives; it ends with the process, however that ends.
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)


def flush(url: str) -> None:
    """See to it that a file written by others is on the disk; an object store needs none of it."""
    if is_remote(url) or not exists(url):
        return
    _, path = located(url)
    with Path(path).open("rb") as file:
        os.fsync(file.fileno())


DRAFT_S, PARTIAL_S = 5.0, 60.0
"""Seconds after its last change that a draft of ours, and one of Zarr, may still be written to.
Ours are held by a lock, but for the moment in which they are made."""


def remove_drafts(url: str, *, recursive: bool = True, all_are_dead: bool = False) -> None:
    """Remove what writers that were killed left in a local folder and those below it.

    Drafts are what `write_bytes` and Zarr write aside before they rename it. Those of a living
    writer stay, and so does whatever may not be removed.

    Args:
        url: The folder.
        recursive: Whether to look into the folders below it.
        all_are_dead: Whether nobody can be writing there.
    """
    if is_remote(url):
        return
    folder = Path(normalise(url))
    for path in folder.rglob("*") if recursive else folder.glob("*"):
        if path.name.endswith(".partial") or is_draft(path.name):
            with suppress(OSError):
                if all_are_dead or not _is_alive(path):
                    path.unlink(missing_ok=True)


def _is_alive(draft: Path) -> bool:
    """Whether somebody may still be writing a draft."""
    age = time.time() - draft.stat().st_mtime
    if not is_draft(draft.name):
        return age < PARTIAL_S
    if age < DRAFT_S:
        return True
    with draft.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # a file system without locks
            return age < PARTIAL_S
    return False


def parse_json(content: bytes | str) -> Any:
    """The value that JSON text stands for.

    Raises:
        ValueError: it is no JSON, no UTF-8, or nested deeper than Python follows.
    """
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError(str(error)) from None


def read_json(url: str) -> Any:
    """The value in a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: see `parse_json`.
    """
    return parse_json(read_bytes(url))


def write_json(url: str, value: Any, *, compact: bool = False) -> None:
    """Write a JSON file, whole or not at all; NaN is refused, since JSON has none.

    Args:
        url: The file.
        value: What to write.
        compact: Without indentation: a tenth of the time and half of the bytes, for large values
            that nobody reads.
    """
    indent = None if compact else 2
    write_bytes(url, (json.dumps(value, indent=indent, allow_nan=False) + "\n").encode())


def remove_file(url: str) -> None:
    """Remove one file, by one request; nothing happens where there is none."""
    fs, path = located(url)
    with suppress(FileNotFoundError):
        fs.rm_file(path)


def remove(url: str) -> None:
    """Remove a file or a folder with all in it; nothing happens where there is none."""
    fs, path = located(url)
    if not fs.exists(path):
        return
    # With brackets and the like in its name the path would be taken for a pattern.
    if is_remote(url) and has_magic(path):
        for name in fs.find(path):
            fs.rm_file(name)
        return
    fs.rm(path, recursive=True)
