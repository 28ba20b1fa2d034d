"""The record of one shard, and its rows read back with proof that they are as they were written."""

from collections.abc import Iterator
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
    document_digest,
    part_url,
    row_digest,
    shard_url,
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
    files.write_json(part_url(url, shard), asdict(part))


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


def summary(attributes: dict[str, Any], parts: list[Part]) -> dict[str, Any]:
    """What a seal says of the content: how many scans, and the fingerprint.

    The fingerprint is 16 hexadecimal digits over the plan, the voxels and the table of subjects.
    """
    subjects = [subject for part in parts for subject in part.subjects]
    content = {
        "plan": attributes["plan"],
        "shape": attributes["shape"],
        "digests": [digest for part in parts for digest in part.digests],
        "subjects": [(s.row, s.id, s.split) for s in subjects],
    }
    return {
        "fingerprint": document_digest(content)[:16],
        "num_subjects": len(subjects),
        "num_quarantined": sum(len(part.failures) for part in parts),
    }


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
            chunk = {name: cohort.read(name, begin, begin + len(wanted)) for name in names}
        except Exception as error:  # whatever a codec raises on a damaged chunk
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
