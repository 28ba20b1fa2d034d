"""The cohort store: scans preprocessed alike, in one Zarr v3 group with a table of subjects.

A cohort is a folder on a local path or any fsspec URL:

- `image` (N, Z, Y, X) float16 in [0, 1], background exactly 0; `brain` and, in cohorts with
  lesions, `lesion`, both bool of the same shape;
- `parts/00000.json`, one for each shard of rows, written after the shard's voxels: its subjects,
  the scans that were quarantined, and a digest of its voxels;
- `subjects.parquet` and `quarantine.jsonl`, gathered when the cohort is sealed;
- the group's attributes: the plan (what the cohort is to hold) and, last of all, the seal.

Rows of quarantined scans stay zero and are in no table. One task writes one whole shard, so that
no two tasks touch a file; a cohort is read only once it is sealed.
"""

import hashlib
import io
import json
import platform
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import FsspecStore, LocalStore

import uadray
from uadray import files
from uadray.errors import StoreError, StoreNotSealedError

FORMAT = 1
"""Version of this layout; a store of another one is refused."""

CHUNK_VOLUMES = 8
"""Volumes in an inner chunk: whole shards stream 1.3 to 1.5 times as fast as with 1."""

MAX_SHARD_VOLUMES = 64
"""Volumes in a shard of a large cohort."""

Split = Literal["train", "validation", "threshold", "test"]
"""Healthy cohorts have train and validation, lesioned ones threshold (fitting) and test."""


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
    reason: str
    """What was expected and what came."""


def shard_volumes(num_rows: int) -> int:
    """Volumes in a shard: whole chunks, about eight shards in a small cohort, at most 64.

    It follows from the cohort's size alone, so that a store is the same whoever writes it.
    """
    chunks = -(-num_rows // (8 * CHUNK_VOLUMES))
    return min(MAX_SHARD_VOLUMES, max(1, chunks) * CHUNK_VOLUMES)


def zarr_store(url: str, *, read_only: bool) -> LocalStore | FsspecStore:
    """The Zarr store at a local path or URL."""
    if files.is_remote(url):
        return FsspecStore.from_url(url, read_only=read_only)
    return LocalStore(url, read_only=read_only)


def _array(group: zarr.Group, name: str) -> zarr.Array:
    array = group[name]
    assert isinstance(array, zarr.Array)
    return array


def _digest(image: np.ndarray, brain: np.ndarray, lesion: np.ndarray | None) -> str:
    sha = hashlib.sha256()
    for array in (image, brain, lesion):
        if array is not None:
            sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def _part_url(url: str, shard: int) -> str:
    return files.join(url, "parts", f"{shard:05d}.json")


def software_versions() -> dict[str, str]:
    """Versions of what decides an output's figures."""
    names = ("numpy", "scipy", "scikit-image", "SimpleITK", "nibabel", "nilearn", "torch", "zarr")
    own = {"uadray": uadray.__version__, "python": platform.python_version()}
    return own | {name: version(name) for name in names}


@dataclass(frozen=True, kw_only=True)
class CohortWriter:
    """A cohort being written; pickles small, so that any task can open it again from its URL."""

    url: str
    num_rows: int
    shape: tuple[int, int, int]
    shard: int
    has_lesion: bool

    @classmethod
    def create(
        cls,
        url: str,
        *,
        num_rows: int,
        shape: tuple[int, int, int],
        has_lesion: bool,
        plan: dict[str, Any],
    ) -> Self:
        """Lay out a cohort, or take up one that was begun from the same plan.

        Args:
            url: Local folder or fsspec URL.
            num_rows: Scans in the plan, quarantined ones included.
            shape: (Z, Y, X) of a volume.
            has_lesion: Whether lesion masks are stored.
            plan: JSON value that decides the content: scans in row order with their split, steps
                and parameters. Two calls with the same plan write the same cohort.

        Raises:
            StoreError: something else is at `url`, or a cohort of another plan.
        """
        url = files.normalise(url)
        shard = shard_volumes(num_rows)
        writer = cls(url=url, num_rows=num_rows, shape=shape, shard=shard, has_lesion=has_lesion)
        attributes = {
            "format": FORMAT,
            "num_rows": num_rows,
            "shape": list(shape),
            "shard_volumes": shard,
            "has_lesion": has_lesion,
            "plan": plan,
            "versions": software_versions(),
        }
        if files.exists(files.join(url, "zarr.json")):
            old = _attributes(url)
            same = {k: v for k, v in old.items() if k not in ("versions", "seal")}
            if same != json.loads(json.dumps({k: attributes[k] for k in same})):
                raise StoreError(
                    f"{url} holds a cohort of another plan (other scans, steps or size): choose "
                    "another folder or remove that one"
                )
            return writer
        if files.list_names(url):
            raise StoreError(f"{url} is not empty and holds no cohort: choose another folder")
        store = zarr_store(url, read_only=False)
        group = zarr.create_group(store, zarr_format=3)
        names = [("image", "float16"), ("brain", "bool")]
        for name, dtype in names + ([("lesion", "bool")] if has_lesion else []):
            group.create_array(
                name,
                shape=(num_rows, *shape),
                dtype=dtype,
                chunks=(CHUNK_VOLUMES, *shape),
                shards=(shard, *shape),
                # LZ4 decodes many a damaged chunk without a word; the checksum does not.
                compressors=[
                    BloscCodec(
                        cname="lz4", shuffle="shuffle" if dtype == "float16" else "bitshuffle"
                    ),
                    Crc32cCodec(),
                ],
                dimension_names=("volume", "z", "y", "x"),
            )
        # The attributes come last: a group without them is a layout that was cut short.
        group.update_attributes({"uadray": attributes})
        return writer

    @property
    def num_shards(self) -> int:
        """Shards in the whole cohort."""
        return -(-self.num_rows // self.shard)

    def rows_of(self, shard: int) -> range:
        """Rows that lie in one shard."""
        return range(shard * self.shard, min(self.num_rows, (shard + 1) * self.shard))

    def missing_shards(self) -> list[int]:
        """Shards that are still to be written."""
        written = set(files.list_names(files.join(self.url, "parts")))
        return [k for k in range(self.num_shards) if f"{k:05d}.json" not in written]

    def write_shard(
        self,
        shard: int,
        *,
        image: np.ndarray,
        brain: np.ndarray,
        lesion: np.ndarray | None,
        subjects: list[Subject],
        failures: list[Failure],
    ) -> None:
        """Write one whole shard; what is not among `subjects` is to be zero.

        Args:
            shard: Its number.
            image: (rows, Z, Y, X), in [0, 1].
            brain: The same shape, bool.
            lesion: The same shape, bool, or None in a cohort without lesions.
            subjects: The rows that hold a scan.
            failures: The rows that stay empty, and why.

        Raises:
            StoreError: a shape does not fit, a value is outside [0, 1], or a row is unaccounted.
        """
        rows = self.rows_of(shard)
        expected = (len(rows), *self.shape)
        if (lesion is not None) != self.has_lesion:
            raise StoreError(f"{self.url}: lesion masks are stored for all scans or for none")
        for name, array in (("image", image), ("brain", brain), ("lesion", lesion)):
            if array is not None and array.shape != expected:
                raise StoreError(f"shard {shard}: {name} has {array.shape}, expected {expected}")
        if sorted([s.row for s in subjects] + [f.row for f in failures]) != list(rows):
            raise StoreError(f"shard {shard}: each of the rows {rows} is a subject or a failure")
        image = image.astype(np.float16)
        if not (image.min() >= 0 and image.max() <= 1):
            raise StoreError(f"shard {shard}: intensities outside [0, 1]")
        group = zarr.open_group(zarr_store(self.url, read_only=False), mode="r+")
        where = slice(rows.start, rows.stop)
        _array(group, "image")[where] = image
        _array(group, "brain")[where] = brain
        if lesion is not None:
            _array(group, "lesion")[where] = lesion
        part = {
            "digest": _digest(image, brain, lesion),
            "subjects": [asdict(s) for s in subjects],
            "failures": [asdict(f) for f in failures],
        }
        files.write_json(_part_url(self.url, shard), part)

    def seal(self) -> "Cohort":
        """Gather the tables and mark the cohort as whole.

        Raises:
            StoreError: shards are missing, or no scan is left.
        """
        missing = self.missing_shards()
        if missing:
            raise StoreError(f"{self.url}: shards {missing} are not written; cannot seal")
        parts = [files.read_json(_part_url(self.url, k)) for k in range(self.num_shards)]
        subjects = [s for part in parts for s in part["subjects"]]
        failures = [f for part in parts for f in part["failures"]]
        if not subjects:
            raise StoreError(
                f"{self.url}: none of {self.num_rows} scans could be used; the first reason: "
                f"{failures[0]['id']}: {failures[0]['reason']}"
            )
        attributes = _attributes(self.url)
        content = {
            "plan": attributes["plan"],
            "shape": attributes["shape"],
            "digests": [part["digest"] for part in parts],
            "subjects": [(s["row"], s["id"], s["split"]) for s in subjects],
        }
        fingerprint = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
        table = pd.DataFrame(subjects)
        table["affine"] = [json.dumps(a) for a in table["affine"]]
        buffer = io.BytesIO()
        table.to_parquet(buffer, index=False)
        files.write_bytes(files.join(self.url, "subjects.parquet"), buffer.getvalue())
        lines = "".join(json.dumps(f) + "\n" for f in failures)
        files.write_bytes(files.join(self.url, "quarantine.jsonl"), lines.encode())
        seal = {
            "fingerprint": fingerprint,
            "num_subjects": len(subjects),
            "num_quarantined": len(failures),
        }
        group = zarr.open_group(zarr_store(self.url, read_only=False), mode="r+")
        group.update_attributes({"uadray": attributes | {"seal": seal}})
        return open_cohort(self.url)


def _attributes(url: str) -> dict[str, Any]:
    try:
        document = files.read_json(files.join(url, "zarr.json"))
    except FileNotFoundError:
        raise StoreError(f"{url}: no cohort there; make one with jobs/prepare.py") from None
    except json.JSONDecodeError as error:
        raise StoreError(f"{url}/zarr.json is damaged: {error}") from None
    attributes = document.get("attributes", {}).get("uadray")
    if attributes is None or attributes.get("format") != FORMAT:
        raise StoreError(f"{url}: a Zarr group, but not a uadray cohort of format {FORMAT}")
    return dict(attributes)


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """A sealed cohort, read only. Pickles as its URL and attributes; arrays open on first use."""

    url: str
    attributes: dict[str, Any]

    @property
    def name(self) -> str:
        """The folder's name without its ending, for tables."""
        return self.url.rsplit("/", 1)[-1].removesuffix(".zarr")

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits over the plan, the voxels and the table of subjects."""
        return str(self.attributes["seal"]["fingerprint"])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(Z, Y, X) of a volume."""
        z, y, x = self.attributes["shape"]
        return z, y, x

    @property
    def shard(self) -> int:
        """Volumes in a shard."""
        return int(self.attributes["shard_volumes"])

    @property
    def has_lesion(self) -> bool:
        """Whether lesion masks are stored."""
        return bool(self.attributes["has_lesion"])

    @cached_property
    def subjects(self) -> pd.DataFrame:
        """The table of subjects in row order, with the columns of `Subject`."""
        buffer = io.BytesIO(files.read_bytes(files.join(self.url, "subjects.parquet")))
        table = pd.read_parquet(buffer)
        table["affine"] = [json.loads(a) for a in table["affine"]]
        return table.sort_values("row").reset_index(drop=True)

    @property
    def quarantine(self) -> list[dict[str, Any]]:
        """The scans that could not be used, with reasons."""
        text = files.read_bytes(files.join(self.url, "quarantine.jsonl")).decode()
        return [json.loads(line) for line in text.splitlines()]

    def rows(self, split: Split) -> np.ndarray:
        """Rows of one split, ascending, (n,) int64.

        Raises:
            StoreError: the cohort has no subject of that split.
        """
        rows = self.subjects.loc[self.subjects["split"] == split, "row"].to_numpy(np.int64)
        if len(rows) == 0:
            has = sorted(self.subjects["split"].unique())
            raise StoreError(f"{self.url}: no subject in split {split!r}; it has {has}")
        return rows

    @cached_property
    def _group(self) -> zarr.Group:
        return zarr.open_group(zarr_store(self.url, read_only=True), mode="r")

    def read(self, array: Literal["image", "brain", "lesion"], start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) of one array, (stop - start, Z, Y, X)."""
        return np.asarray(_array(self._group, array)[start:stop])

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "attributes": self.attributes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def open_cohort(url: str) -> Cohort:
    """Open a sealed cohort.

    Raises:
        StoreError: there is none.
        StoreNotSealedError: its prepare job did not finish.
    """
    url = files.normalise(url)
    attributes = _attributes(url)
    if "seal" not in attributes:
        raise StoreNotSealedError(
            f"{url} is not sealed: its prepare job did not finish; run the same job again, it "
            "does only what is missing"
        )
    return Cohort(url=url, attributes=attributes)


def verify(url: str) -> list[str]:
    """Check every voxel against the digests taken when it was written.

    Returns:
        What is wrong, one sentence each, naming the shard and its subjects; empty if all holds.
    """
    cohort = open_cohort(url)
    problems = []
    num_shards = -(-int(cohort.attributes["num_rows"]) // cohort.shard)
    names = ["image", "brain", *(["lesion"] if cohort.has_lesion else [])]
    for shard in range(num_shards):
        try:
            part = files.read_json(_part_url(cohort.url, shard))
        except (FileNotFoundError, json.JSONDecodeError) as error:
            problems.append(f"shard {shard}: its part file is unreadable: {error}")
            continue
        start = shard * cohort.shard
        stop = min(start + cohort.shard, int(cohort.attributes["num_rows"]))
        ids = ", ".join(s["id"] for s in part["subjects"])
        try:
            arrays = [cohort.read(name, start, stop) for name in names]  # type: ignore[arg-type]
        except Exception as error:  # whatever the codec raises on a damaged chunk
            problems.append(f"shard {shard} ({ids}): unreadable: {type(error).__name__}: {error}")
            continue
        digest = _digest(arrays[0], arrays[1], arrays[2] if cohort.has_lesion else None)
        if digest != part["digest"]:
            problems.append(f"shard {shard} ({ids}): voxels differ from what was written")
    return problems
