"""What lies where in a cohort's folder, and the records in it."""

import errno
import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal, Self

import numpy as np
import zarr
from zarr.abc.store import ByteRequest
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import FsspecStore, LocalStore, MemoryStore, WrapperStore

import uadray
from uadray import files
from uadray.errors import StoreError, UadrayError

FORMAT = 2
"""Version of this layout; a store of another one is refused."""

CHUNK_VOLUMES = 8
"""Volumes in an inner chunk: whole shards stream 1.3 to 1.5 times as fast as with 1."""

MAX_SHARD_VOLUMES = 64
"""Volumes in a shard of a large cohort."""

SCANS = "scans.jsonl"
"""Name of the list of the scans that a cohort is to hold, in row order."""

SUBJECTS, QUARANTINE = "subjects.parquet", "quarantine.jsonl"
"""Names of the gathered tables."""

LEFT_OUT = "left_out.jsonl"
"""Name of the list of files that were found and are no scans of the cohort; it is under no seal."""

COVARIATES = "covariates.parquet"
"""Name of the table of what is known of people besides; it bears checksums of its own, and is under
no seal, since it decides nothing in the volumes and may be completed later."""

Split = Literal["train", "validation", "threshold", "test"]
"""Healthy cohorts have train and validation, lesioned ones threshold (fitting) and test."""

ArrayName = Literal["image", "brain", "lesion"]
"""Names of the arrays."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One row of the table of subjects."""

    row: int
    """Index along the first axis of the arrays; it is the volume id that erasing is seeded by."""
    id: str
    """Unique name of the scan in the cohort, such as `sub-17` or `sub-17_ses-2`."""
    subject: str
    """The person: all scans of one person share it, and its split."""
    scanner: str
    """Scanner or site where the set tells, else empty."""
    split: Split
    """The part of the cohort that the scan belongs to."""
    modality: str
    """Such as T1w or FLAIR."""
    affine: tuple[tuple[float, ...], ...]
    """4 x 4, from the store's voxel index (x, y, z) to the scanner's millimetres."""
    source: str
    """Where the scan came from."""
    source_bytes: int = 0
    """Size of its files together."""
    source_digest: str = ""
    """SHA-256 over the content of all its files, 32 hexadecimal digits: another one later means
    another version of them. Empty for phantoms, and in cohorts that did not record it."""
    source_stamp: str = ""
    """Of paths, sizes and times of the files: while it is the same, they need not be read."""
    image_digest: str = ""
    """SHA-256 over the voxels of the image, 32 hexadecimal digits: the same scan in another cohort
    has the same, whatever its name, masks and packing. Empty as above."""
    brain_ml: float
    """Volume of the brain mask in mL."""
    lesion_ml: float
    """Volume of the lesion mask in mL; 0 where there is none."""
    notes: str = ""
    """What a reader must know, such as `semi-synthetic lesion from Subject_017`."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A scan that could not be used."""

    row: int
    """The row that stays empty."""
    id: str
    """Name of the scan."""
    source: str
    """The file that is to blame."""
    source_bytes: int = 0
    """Size of its files together, as in `Subject`."""
    source_digest: str = ""
    """As in `Subject`."""
    source_stamp: str = ""
    """As in `Subject`."""
    reason: str
    """What was expected and what came."""


def shard_volumes(num_rows: int) -> int:
    """Volumes in a shard: whole chunks, about eight shards in a small cohort, at most 64.

    It follows from the cohort's size alone, so that a store is the same for every writer.
    """
    chunks = -(-num_rows // (8 * CHUNK_VOLUMES))
    return min(MAX_SHARD_VOLUMES, max(1, chunks) * CHUNK_VOLUMES)


def array_names(*, has_lesion: bool) -> list[ArrayName]:
    """The arrays that a cohort has."""
    return ["image", "brain", "lesion"] if has_lesion else ["image", "brain"]


def array_documents(attributes: dict[str, Any]) -> dict[str, bytes]:
    """Relative path -> content of each array's metadata, as its attributes ask for them."""
    shape = tuple(attributes["shape"])
    documents: dict[str, Any] = {}
    group = zarr.create_group(MemoryStore(documents), zarr_format=3)
    for name in array_names(has_lesion=attributes["has_lesion"]):
        shuffle: Literal["shuffle", "bitshuffle"] = "shuffle" if name == "image" else "bitshuffle"
        group.create_array(
            name,
            shape=(attributes["num_rows"], *shape),
            dtype="float16" if name == "image" else "bool",
            chunks=(CHUNK_VOLUMES, *shape),
            shards=(attributes["shard_volumes"], *shape),
            # LZ4 decodes many a damaged chunk without a word; the checksum does not.
            compressors=[BloscCodec(cname="lz4", shuffle=shuffle), Crc32cCodec()],
            dimension_names=("volume", "z", "y", "x"),
        )
    return {path: data.to_bytes() for path, data in documents.items() if "/" in path}


def zarr_store(url: str, *, read_only: bool, small: bool = False) -> LocalStore | FsspecStore:
    """The Zarr store at a local path or URL.

    Args:
        url: Of the group or array.
        read_only: Whether nothing is to be written.
        small: Its objects are a few megabytes, so that each is read by one request, as in
            `files.located`.
    """
    if files.is_remote(url):
        options = files.one_request(url) if small else {}
        return FsspecStore.from_url(url, storage_options=options, read_only=read_only)
    return LocalStore(url, read_only=read_only)


class _Telling(WrapperStore[LocalStore | FsspecStore]):
    """A store that tells of each chunk or shard that is read and not there."""

    def __init__(
        self, store: LocalStore | FsspecStore, absent: Callable[[int], None] = lambda shard: None
    ) -> None:
        super().__init__(store)
        self._absent = absent

    def _with_store(self, store: LocalStore | FsspecStore) -> Self:
        return type(self)(store, self._absent)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        content = await self._store.get(key, prototype, byte_range)
        if content is None and key.startswith("c/"):
            self._absent(int(key.split("/")[1]))
        return content


def open_array(
    url: str,
    name: str,
    *,
    mode: Literal["r", "r+"] = "r",
    small: bool = False,
    absent: Callable[[int], None] | None = None,
) -> zarr.Array:
    """One array of the group at `url`; no other object is asked for than that array's metadata.

    Args:
        url: Of the group.
        name: Of the array.
        mode: Whether it may be written to.
        small: As in `zarr_store`.
        absent: Called with the place along the first axis of each chunk or shard that is read and
            not there, before it reads as fill values; what it raises ends the reading.
    """
    store: Any = zarr_store(files.join(url, name), read_only=mode == "r", small=small)
    if absent is not None:
        store = _Telling(store, absent)
    return zarr.open_array(store, mode=mode, zarr_format=3)


_LOOKING = 16
"""Files that are asked for at a time: a file server takes a while to answer."""


def present_shards(url: str, name: str, num_shards: int) -> set[int]:
    """Shards of one array that are there and not empty, by one listing where objects are remote.

    What lies on a web server, which has no listings, counts as there.
    """
    if url.startswith(("http://", "https://")):
        return set(range(num_shards))
    if not files.is_remote(url):

        def is_there(shard: int) -> bool:
            try:
                return os.stat(shard_url(url, name, shard)).st_size > 0
            except (FileNotFoundError, NotADirectoryError):
                return False

        with ThreadPoolExecutor(_LOOKING) as pool:
            present = pool.map(is_there, range(num_shards))
            return {shard for shard, there in enumerate(present) if there}
    fs, path = files.located(files.join(url, name, "c"))
    try:
        listed = fs.find(path, detail=True)
    except FileNotFoundError:
        return set()
    names = {key.removeprefix(path).strip("/"): value.get("size") for key, value in listed.items()}
    return {
        int(place.removesuffix("/0/0/0"))
        for place, size in names.items()
        if place.endswith("/0/0/0") and place.removesuffix("/0/0/0").isdecimal() and size != 0
    }


def part_url(url: str, shard: int) -> str:
    """Where the record of one shard lies."""
    return files.join(url, "parts", f"{shard:05d}.json")


def shard_url(url: str, name: str, shard: int) -> str:
    """Where one shard of one array lies."""
    return files.join(url, name, "c", str(shard), "0", "0", "0")


def file_digest(content: bytes) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(content).hexdigest()


def scan_line(scan: Mapping[str, Any]) -> bytes:
    """A scan's line in the list of scans, with its end."""
    return json.dumps(scan, sort_keys=True).encode() + b"\n"


def scans_of(url: str) -> Iterator[bytes]:
    """The lines of a cohort's list of scans, one at a time: of a million they fill gigabytes.

    Raises:
        FileNotFoundError: there is none.
    """
    return files.read_lines(files.join(url, SCANS))


def write_left_out(url: str, rows: Sequence[Mapping[str, str]]) -> None:
    """List the files that were found besides the scans, each with its path and reason."""
    content = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    files.write_bytes(files.join(url, LEFT_OUT), content)


def lines_digest(lines: Iterable[bytes]) -> str:
    """SHA-256 of a file that has these lines."""
    sha = hashlib.sha256()
    for line in lines:
        sha.update(line)
    return sha.hexdigest()


def row_digest(image: np.ndarray, brain: np.ndarray, lesion: np.ndarray | None) -> str:
    """SHA-256 of the voxels of one row, as 64 hexadecimal digits."""
    sha = hashlib.sha256()
    for array in (image, brain, lesion):
        if array is not None:
            sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()


def document_digest(value: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def small_files(attributes: dict[str, Any]) -> list[str]:
    """Relative paths of the files that a seal vouches for.

    That is all but the attributes, the list of scans, whose digest stands in them, and the shards.
    """
    num_shards = -(-attributes["num_rows"] // attributes["shard_volumes"])
    arrays = array_names(has_lesion=attributes["has_lesion"])
    return [
        *(f"{name}/zarr.json" for name in arrays),
        *(f"parts/{shard:05d}.json" for shard in range(num_shards)),
        SUBJECTS,
        QUARANTINE,
    ]


def read_attributes(url: str) -> dict[str, Any]:
    """The attributes of the cohort at `url`, sealed or not.

    Raises:
        StoreError: there is none, or it is damaged.
    """
    try:
        document = files.read_json(files.join(url, "zarr.json"))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise StoreError(f"{url}: no cohort there; make one with jobs/prepare.py") from None
    except ValueError as error:  # no JSON, or no UTF-8
        raise StoreError(f"{url}/zarr.json is damaged: {error}; {_AGAIN}") from None
    try:
        attributes = document["attributes"]["uadray"]
    except (KeyError, TypeError):
        attributes = None
    if not isinstance(attributes, dict):
        raise StoreError(f"{url}: a Zarr group, but not a uadray cohort")
    if (written := attributes.get("format")) != FORMAT:
        raise StoreError(
            f"{url}: a cohort of format {written}, this version of uadray reads {FORMAT}: prepare "
            "its scans again, into another folder"
        )
    if not _GROUP.items() <= document.items():
        raise StoreError(f"{url}/zarr.json is damaged: no group of Zarr v3; {_AGAIN}")
    if lacking := _REQUIRED - attributes.keys():
        names = ", ".join(sorted(lacking))
        raise StoreError(f"{url}/zarr.json is damaged: it lacks {names}; {_AGAIN}")
    shape = attributes["shape"]
    kinds = {
        "num_rows": _is_count(attributes["num_rows"]),
        "shard_volumes": _is_count(attributes["shard_volumes"]),
        "shape": isinstance(shape, list) and len(shape) == 3 and all(map(_is_count, shape)),
        "has_lesion": isinstance(attributes["has_lesion"], bool),
        "plan": isinstance(attributes["plan"], dict),
        "seal": isinstance(attributes.get("seal", _SEAL), dict)
        and _SEAL.keys() <= attributes.get("seal", _SEAL).keys(),
    }
    if wrong := ", ".join(name for name, right in kinds.items() if not right):
        raise StoreError(f"{url}/zarr.json is damaged: {wrong} of another kind; {_AGAIN}")
    return dict(attributes)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


_SEAL = {"fingerprint": ""}
"""What a seal has in any case."""

_AGAIN = "restore it from a copy, or prepare the scans again into another folder"
"""What helps where a cohort does not say what it is; its voxels may be whole."""

_GROUP = {"zarr_format": 3, "node_type": "group"}
"""What Zarr wants to read beside the attributes."""

_REQUIRED = {"num_rows", "shape", "shard_volumes", "has_lesion", "plan", "scans_digest"}
"""Attributes of every cohort, sealed or not."""


def write_attributes(url: str, attributes: dict[str, Any]) -> None:
    """Replace the attributes, whole or not at all."""
    document = {**_GROUP, "attributes": {"uadray": attributes}}
    files.write_json(files.join(url, "zarr.json"), document)


def software_versions() -> dict[str, str]:
    """Versions of what decides an output's figures."""
    names = ("numpy", "scipy", "scikit-image", "SimpleITK", "nibabel", "nilearn", "torch", "zarr")
    own = {"uadray": uadray.__version__, "python": platform.python_version()}
    return own | {name: version(name) for name in names}


_STORAGE_LIBRARIES = ("botocore", "aiobotocore", "aiohttp", "gcsfs", "azure")


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Turn what a disk or an object store raises when it cannot be used into a StoreError.

    Raises:
        StoreError: it names `url` and says that the same command goes on once it can be used.
    """
    again = "run the same command again: it goes on where it stopped, nothing half-written counts"
    try:
        yield
    except UadrayError:
        raise
    except Exception as error:
        library = type(error).__module__.split(".")[0]
        if not isinstance(error, OSError) and library not in _STORAGE_LIBRARIES:
            raise
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(f"{url}: no space is left there; free some and {again}") from error
        what = f"{type(error).__name__}: {error}"
        raise StoreError(
            f"{url}: cannot be read or written ({what}); when it can, {again}"
        ) from error
