"""A cohort that is being made: rows come in one by one, become shards, and are sealed."""

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from typing import IO, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from uadray import files
from uadray.config import changes
from uadray.errors import StoreError
from uadray.results import refuse_inside
from uadray.store import staging
from uadray.store.cohort import Cohort, open_cohort
from uadray.store.layout import (
    FORMAT,
    QUARANTINE,
    SCANS,
    SUBJECTS,
    Failure,
    Subject,
    array_documents,
    array_names,
    document_digest,
    file_digest,
    lines_digest,
    open_array,
    part_url,
    read_attributes,
    row_digest,
    scan_line,
    scans_of,
    shard_url,
    shard_volumes,
    small_files,
    software_versions,
    write_attributes,
)
from uadray.store.parts import Part, Summary, read_part, read_rows, write_part

NAMED = 3
"""Scans whose differences a message spells out."""

GROUP_ROWS = 16_384
"""Rows of the table of subjects that are gathered before they are written."""


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
        scans: Iterable[Mapping[str, Any]] = (),
        command: str = "",
        layout: Mapping[str, Any] | None = None,
    ) -> Self:
        """Lay out a cohort, or resume one that was started from the same plan.

        Args:
            url: Local folder or fsspec URL.
            num_rows: Scans in the plan, quarantined ones included.
            shape: (Z, Y, X) of a volume.
            has_lesion: Whether lesion masks are stored.
            plan: JSON value that, with `scans`, decides the content: steps and parameters. Two
                calls with the same plan and scans write the same cohort.
            scans: JSON values with an `id` each, in row order: what is known of each scan, and its
                split. Taken one by one.
            command: What makes it, without its URL, for the advice of `verify`.
            layout: From outside of uadray, that lists the scans: its name and package.

        Raises:
            StoreError: something else is at `url`, or a cohort of another plan.
        """
        url = files.normalise(url)
        cls.check_place(url)
        shard = shard_volumes(num_rows)
        writer = cls(url=url, num_rows=num_rows, shape=shape, shard=shard, has_lesion=has_lesion)
        with tempfile.TemporaryFile() as lines:
            lines.writelines(map(scan_line, scans))
            made_by = {"command": command} | ({"layout": dict(layout)} if layout else {})
            writer._begin(lines, plan, made_by)
        if not writer.is_sealed():
            writer._lay_out()
        return writer

    @staticmethod
    def check_place(url: str) -> None:
        """Refuse to begin a cohort inside of other results.

        Raises:
            StoreError: `url` lies in a run, a model, predictions or another cohort.
        """
        if not files.exists(files.join(url, "zarr.json")):
            refuse_inside(url, StoreError)

    def _begin(self, lines: IO[bytes], plan: dict[str, Any], made_by: dict[str, Any]) -> None:
        """Write attributes and list of scans, or see that those that are there ask for the same."""
        lines.seek(0)
        attributes = {
            "format": FORMAT,
            "num_rows": self.num_rows,
            "shape": list(self.shape),
            "shard_volumes": self.shard,
            "has_lesion": self.has_lesion,
            "plan": plan,
            "scans_digest": lines_digest(lines),
            "versions": software_versions(),
            **made_by,
        }
        lines.seek(0)
        if files.exists(files.join(self.url, "zarr.json")):
            old = read_attributes(self.url)
            new = json.loads(json.dumps(attributes))
            if any(old.get(k) != new[k] for k in new if k not in ("versions", *made_by)):
                raise StoreError(
                    f"{self.url} holds a cohort of another plan "
                    f"({_differences(old, new, self.url, lines)}): "
                    "choose another folder"
                )
        elif not files.is_empty(self.url):
            raise StoreError(f"{self.url} is not empty and holds no cohort: choose another folder")
        else:
            write_attributes(self.url, attributes)
        with suppress(FileNotFoundError):
            if lines_digest(scans_of(self.url)) == attributes["scans_digest"]:
                return
        with files.replacing(files.join(self.url, SCANS)) as file:
            shutil.copyfileobj(lines, file)

    def _lay_out(self) -> None:
        """Write the arrays' metadata where it is missing or damaged."""
        for path, content in array_documents(read_attributes(self.url)).items():
            place = files.join(self.url, path)
            if not files.exists(place) or files.read_bytes(place) != content:
                files.write_bytes(place, content)

    @property
    def num_shards(self) -> int:
        """Shards in the whole cohort."""
        return -(-self.num_rows // self.shard)

    def rows_of(self, shard: int) -> range:
        """Rows that lie in one shard."""
        return range(shard * self.shard, min(self.num_rows, (shard + 1) * self.shard))

    def is_sealed(self) -> bool:
        """Whether the cohort is whole."""
        return "seal" in read_attributes(self.url)

    def missing_shards(self) -> list[int]:
        """Shards that are still to be written."""
        written = set(files.list_names(files.join(self.url, "parts")))
        return [k for k in range(self.num_shards) if f"{k:05d}.json" not in written]

    def written_parts(self, shards: Iterable[int] | None = None) -> Iterator[Part]:
        """What stands in those of some shards that are written, in order; None asks for all.

        One at a time: a large cohort's together would fill gigabytes.

        Raises:
            StoreError: a record is damaged.
        """
        missing = set(self.missing_shards())
        asked = range(self.num_shards) if shards is None else shards
        return (self._part(shard) for shard in asked if shard not in missing)

    def _part(self, shard: int) -> Part:
        try:
            return read_part(self.url, shard, self.rows_of(shard))
        except StoreError as error:
            raise StoreError(f"{error}; run the same command with --redo damaged") from None

    def put_row(self, subject: Subject, arrays: Mapping[str, np.ndarray]) -> str:
        """Keep one prepared scan until its shard is written; return the file's name.

        Args:
            subject: Its line in the table.
            arrays: `image`, `brain` and, in a cohort with lesions, `lesion`, each (Z, Y, X).
        """
        return staging.put(self.url, subject, arrays)

    def begin_row(self, row: int) -> int:
        """Note that a row is about to be prepared; return how often its process died before."""
        return staging.begin(self.url, row)

    def end_row(self, row: int) -> None:
        """Note that the preparation of a row has come to an end, good or bad."""
        staging.end(self.url, row)

    def kept_rows(self) -> set[str]:
        """File names of the scans that are prepared and not yet in a shard.

        Call it when a job begins: it forgets what `begin_row` noted in an earlier one.
        """
        staging.forget_begun(self.url)
        return staging.names(self.url)

    def write_kept(self, shard: int, names: Sequence[str], failures: list[Failure]) -> None:
        """Write one whole shard from scans that `put_row` kept, which are then let go.

        Args:
            shard: Its number.
            names: Files of its scans, as `put_row` returned them.
            failures: The rows that stay empty, and why.

        Raises:
            StoreError: a kept scan is damaged, or as `write_shard`.
        """
        rows = self.rows_of(shard)
        arrays = {
            name: np.zeros((len(rows), *self.shape), np.float16 if name == "image" else bool)
            for name in array_names(has_lesion=self.has_lesion)
        }
        subjects = []
        for name in names:
            subject, content = staging.get(self.url, name)
            subjects.append(subject)
            for key, array in arrays.items():
                array[subject.row - rows.start] = content[key]
        self.write_shard(
            shard,
            image=arrays["image"],
            brain=arrays["brain"],
            lesion=arrays.get("lesion"),
            subjects=subjects,
            failures=failures,
        )
        for name in names:
            staging.drop(self.url, name)

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
        arrays = {"image": image, "brain": brain}
        if lesion is not None:
            arrays["lesion"] = lesion
        for name, array in arrays.items():
            if array.shape != expected:
                raise StoreError(f"shard {shard}: {name} has {array.shape}, expected {expected}")
        if sorted([s.row for s in subjects] + [f.row for f in failures]) != list(rows):
            raise StoreError(f"shard {shard}: each of the rows {rows} is a subject or a failure")
        image = arrays["image"] = image.astype(np.float16)
        if not (image.min() >= 0 and image.max() <= 1):
            raise StoreError(f"shard {shard}: intensities outside [0, 1]")
        for name, array in arrays.items():
            # What an interrupted or damaged shard left would be merged into one at the end.
            files.remove_file(shard_url(self.url, name, shard))
            open_array(self.url, name, mode="r+")[rows.start : rows.stop] = array
            files.flush(shard_url(self.url, name, shard))
        digests = [
            row_digest(image[k], brain[k], None if lesion is None else lesion[k])
            for k in range(len(rows))
        ]
        part = Part(
            digests=tuple(digests),
            subjects=tuple(sorted(subjects, key=lambda s: s.row)),
            failures=tuple(sorted(failures, key=lambda f: f.row)),
        )
        write_part(self.url, shard, part)

    def reopen(self, rows: Iterable[int]) -> None:
        """Break the seal and forget some rows, so that they are prepared again.

        The other rows of their shards are kept as `put_row` keeps them, if their voxels are as
        they were written, and forgotten else.
        """
        attributes = read_attributes(self.url)
        attributes.pop("seal", None)
        write_attributes(self.url, attributes)
        self._lay_out()
        rows = set(rows)
        for shard in sorted({row // self.shard for row in rows} - set(self.missing_shards())):
            self._take_apart(shard, rows)
            files.remove_file(part_url(self.url, shard))

    def _take_apart(self, shard: int, without: set[int]) -> None:
        try:
            part = read_part(self.url, shard, self.rows_of(shard))
        except StoreError:
            return  # A damaged record vouches for no row.
        subjects = {subject.row: subject for subject in part.subjects}
        cohort = Cohort(url=self.url, attributes=read_attributes(self.url))
        contents = read_rows(cohort, shard, part.digests)
        for row, content in zip(self.rows_of(shard), contents, strict=True):
            if row in subjects and row not in without and not isinstance(content, str):
                self.put_row(subjects[row], content)

    def list_failures(self, failures: Sequence[Failure]) -> str:
        """Write the list of scans that could not be used; return its URL."""
        url = files.join(self.url, QUARANTINE)
        lines = "".join(json.dumps(asdict(f)) + "\n" for f in failures)
        files.write_bytes(url, lines.encode())
        return url

    def seal(self) -> Cohort:
        """Gather the tables and mark the cohort as whole.

        Raises:
            StoreError: shards are missing or their records damaged, or no scan is left.
        """
        missing = self.missing_shards()
        if missing:
            raise StoreError(f"{self.url}: shards {missing} are not written; cannot seal")
        # Part by part: those of a large cohort together would fill gigabytes.
        content, failures, group = Summary(), list[Failure](), list[Subject]()
        table = files.join(self.url, SUBJECTS)
        with files.replacing(table) as file, pq.ParquetWriter(file, _SCHEMA) as lines:
            for part in self.written_parts():
                content.add(part)
                failures += part.failures
                group += part.subjects
                if len(group) >= GROUP_ROWS:
                    lines.write_table(_table(group))
                    group = []
            if group:
                lines.write_table(_table(group))
            if content.num_subjects == 0:
                raise StoreError(
                    f"{self.url}: none of {self.num_rows} scans could be used; the first reason: "
                    f"{failures[0].id}: {failures[0].reason}"
                )
        staging.clear(self.url)
        files.remove_drafts(self.url, all_are_dead=True)
        self.list_failures(failures)
        attributes = read_attributes(self.url)
        digests = {
            path: file_digest(files.read_bytes(files.join(self.url, path)))
            for path in small_files(attributes)
        }
        seal = content.of(attributes, scans_of(self.url)) | {
            "attributes": document_digest(attributes),
            "files": digests,
        }
        write_attributes(self.url, attributes | {"seal": seal})
        return open_cohort(self.url)


def _table(subjects: Sequence[Subject]) -> pa.Table:
    """Lines of the table of subjects; an affine is text there."""
    lines = [{**vars(s), "affine": json.dumps(s.affine)} for s in subjects]
    return pa.Table.from_pylist(lines, schema=_SCHEMA)


_KINDS: dict[Any, Any] = {int: pa.int64(), float: pa.float64()}
_SCHEMA = pa.schema([(f.name, _KINDS.get(f.type, pa.string())) for f in fields(Subject)])


def _differences(
    old: Mapping[str, Any], new: Mapping[str, Any], url: str, lines: Iterable[bytes]
) -> str:
    """In a few words, what two cohorts ask for that is not the same; `lines` are the new scans."""
    plans = [{k: v for k, v in one["plan"].items() if k != "steps"} for one in (old, new)]
    differences = changes(*plans)
    if old["scans_digest"] != new["scans_digest"]:
        there = set[bytes]()
        with suppress(FileNotFoundError):
            there = set(scans_of(url))
        here = set(lines)
        order = ", in another order" if there == here else ""
        differences.append(
            f"scans: {len(there - here)} only there, {len(here - there)} only here{order}"
        )
        differences += _changed_fields(there - here, here - there)
    return "; ".join(differences) or "other steps or another size"


def _changed_fields(there: Iterable[bytes], here: Iterable[bytes]) -> list[str]:
    """What is known of one scan there and here, in a few words, for the first that differ."""
    with suppress(ValueError, KeyError, TypeError):  # the list that is there may be damaged
        old, new = ({str(s["id"]): s for s in map(json.loads, lines)} for lines in (there, here))
        return [
            f"{name}: {key} {old[name].get(key)!r} there, {new[name].get(key)!r} here"
            for name in sorted(old.keys() & new.keys())[:NAMED]
            for key in sorted(old[name].keys() | new[name].keys())
            if old[name].get(key) != new[name].get(key)
        ]
    return []
