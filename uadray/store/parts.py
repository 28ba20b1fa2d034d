"""The record of one shard, and its rows read back with proof that they are as they were written."""

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from uadray import files
from uadray.errors import StoreError
from uadray.store.cohort import Cohort
from uadray.store.layout import (
    CHUNK_VOLUMES,
    Failure,
    Subject,
    array_names,
    part_url,
    row_digest,
    shard_url,
    storage_errors,
)

Arrays = dict[str, np.ndarray]
"""Name -> one row of that array, (Z, Y, X)."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a shard's record says; its rows in order."""

    digests: tuple[str, ...]
    """Of the voxels, one for each row."""
    subjects: tuple[Subject, ...]
    """The rows that hold a scan."""
    failures: tuple[Failure, ...]
    """The rows that stay empty."""

    @property
    def ids(self) -> dict[int, str]:
        """Row -> name of its scan."""
        subjects = {subject.row: subject.id for subject in self.subjects}
        return subjects | {failure.row: failure.id for failure in self.failures}


def write_part(url: str, shard: int, part: Part) -> None:
    """Write a shard's record, whole or not at all."""
    files.write_json(part_url(url, shard), asdict(part), compact=True)


def read_part(url: str, shard: int, rows: range) -> Part:
    """Read a shard's record.

    Raises:
        StoreError: it is absent or damaged, or does not account for each of `rows` once.
    """
    place = part_url(url, shard)
    try:
        fields = files.read_json(place)
        part = Part(
            digests=tuple(fields["digests"]),
            subjects=tuple(Subject(**s) for s in fields["subjects"]),
            failures=tuple(Failure(**f) for f in fields["failures"]),
        )
    except FileNotFoundError:
        raise StoreError(f"shard {shard}: its record {place} is missing") from None
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"shard {shard}: its record {place} is damaged: {error}") from None
    num_records = len(part.subjects) + len(part.failures)
    if sorted(part.ids) != list(rows) or not len(part.digests) == num_records == len(rows):
        raise StoreError(f"shard {shard}: its record {place} does not hold the rows {rows}")
    return part


class Summary:
    """What a seal says of the content: how many scans, and the fingerprint.

    The fingerprint is the beginning of a SHA-256 over the plan, the voxels and the table of
    subjects, as one JSON value with sorted keys. It is made part by part, since a large cohort's
    parts together would fill gigabytes.
    """

    def __init__(self) -> None:
        self._sha = hashlib.sha256(b'{"digests": [')
        # It comes last in the value; a large cohort's lies on the disk until then.
        self._subjects = tempfile.SpooledTemporaryFile(max_size=2**20)  # noqa: SIM115 (`of` closes it)
        self._num_rows = self._num_quarantined = 0
        self.num_subjects = 0

    def add(self, part: Part) -> None:
        """Take the next part, in the order of the shards."""
        for digest in part.digests:
            self._sha.update(_item(digest, first=self._num_rows == 0))
            self._num_rows += 1
        for subject in part.subjects:
            entry = (subject.row, subject.id, subject.split)
            self._subjects.write(_item(entry, first=self.num_subjects == 0))
            self.num_subjects += 1
        self._num_quarantined += len(part.failures)

    def of(self, attributes: dict[str, Any], scans: Iterable[bytes]) -> dict[str, Any]:
        """The summary of a cohort, once all its parts are added; call it once.

        Args:
            attributes: Of the cohort.
            scans: Lines of its list of scans.
        """
        sha = self._sha
        sha.update(b'], "plan": {')
        for k, key in enumerate(sorted({*attributes["plan"], "scans"})):
            sha.update(f"{', ' if k else ''}{json.dumps(key)}: ".encode())
            if key == "scans":
                sha.update(b"[")
                for n, line in enumerate(scans):
                    sha.update((b", " if n else b"") + line.rstrip(b"\n"))
                sha.update(b"]")
            else:
                sha.update(json.dumps(attributes["plan"][key], sort_keys=True).encode())
        sha.update(f'}}, "shape": {json.dumps(attributes["shape"])}, "subjects": ['.encode())
        with self._subjects as file:
            file.seek(0)
            while block := file.read(2**20):
                sha.update(block)
        sha.update(b"]}")
        return {
            "fingerprint": sha.hexdigest()[:16],
            "num_subjects": self.num_subjects,
            "num_quarantined": self._num_quarantined,
        }


def _item(value: Any, *, first: bool) -> bytes:
    return (("" if first else ", ") + json.dumps(value)).encode()


def read_rows(cohort: Cohort, shard: int, digests: tuple[str, ...]) -> Iterator[Arrays | str]:
    """Read a shard row by row and compare each with its digest; a chunk at a time is in memory.

    Yields:
        For each row its arrays, or in a few words what is wrong with them.
    """
    first = shard * cohort.shard
    names = array_names(has_lesion=cohort.has_lesion)
    for start in range(0, len(digests), CHUNK_VOLUMES):
        wanted = digests[start : start + CHUNK_VOLUMES]
        begin = first + start
        try:
            chunk = {n: cohort.read_as_it_is(n, begin, begin + len(wanted)) for n in names}
        except Exception as error:  # whatever a codec raises on a damaged chunk
            if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
                with storage_errors(cohort.url):
                    raise
            text = " ".join(str(error).split())
            yield from [f"its chunk is unreadable ({type(error).__name__}: {text})"] * len(wanted)
            continue
        for k, digest in enumerate(wanted):
            row: Arrays = {name: array[k] for name, array in chunk.items()}
            if row_digest(row["image"], row["brain"], row.get("lesion")) == digest:
                yield row
                continue
            gone = [n for n in names if not files.exists(shard_url(cohort.url, n, shard))]
            yield (
                f"the shard of {' and '.join(gone)} is missing"
                if gone
                else "its voxels differ from what was written"
            )
