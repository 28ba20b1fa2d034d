"""A list of scans becomes a cohort on Ray Data: a task prepares a scan, a task writes a shard.

Each prepared scan is kept in a file of its own until its shard is whole, so that a job that was
killed prepares no scan twice, shards may be large, and as many scans as the cluster has CPUs are
under way at a time. What a task hands back is a few words; voxels never pass through the driver.
"""

import logging
import shlex
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from uadray import attempts, cluster, each, files
from uadray.errors import ConfigError, ScanError, StoreError, TooManyFailuresError
from uadray.lock import hold
from uadray.preparation.covariates import covariates_of
from uadray.preparation.identity import Source, digest_of, is_unchanged
from uadray.preparation.layouts import PHANTOM_SCHEME, LeftOut, Scan
from uadray.preparation.layouts.listing import printable
from uadray.preparation.plan import Rows, make_plan, planned_scans, sources, subject_of
from uadray.preparation.settings import (
    MAX_FAILURES,
    STRIPPERS,
    PrepareConfig,
    Redo,
    SplitConfig,
    check_numbers,
)
from uadray.preparation.splits import split_scans
from uadray.preparation.steps import PreparedVolume, prepare_scan
from uadray.progress import Progress
from uadray.store import (
    Cohort,
    CohortWriter,
    Failure,
    Split,
    Subject,
    open_cohort,
    parse_name,
    repeated_images,
    storage_errors,
    verify,
    write_left_out,
)

_log = logging.getLogger(__name__)


NAMED = 8
"""Scans that a message names; of more it says how many."""


def prepare_cohort(
    scans: Sequence[Scan],
    url: str,
    *,
    config: PrepareConfig,
    split: SplitConfig,
    seed: int = 0,
    max_failures: float = MAX_FAILURES,
    redo: Sequence[Redo] = (),
    workers: int | None = None,
    command: str = "",
    left_out: Sequence[LeftOut] = (),
    layout: Mapping[str, Any] | None = None,
) -> Cohort:
    """Prepare all scans and write them as a sealed cohort.

    A scan that cannot be used is quarantined with its reason; any other error ends the job. Called
    again with the same scans and settings it does what is missing, and nothing on a sealed cohort.

    Args:
        scans: All healthy or all with a lesion; their order does not matter.
        url: Local folder or fsspec URL of the cohort.
        config: The steps' parameters.
        split: How large the parts are.
        seed: Decides the parts and the order of the rows.
        max_failures: Share of the scans, in [0, 1], that may be quarantined.
        redo: Scans of a sealed cohort that are prepared again: those that were `quarantined`,
            those whose files hold something else than then (`changed`), or those that `verify`
            names (`damaged`). All others are kept. The fingerprint follows the content.
        workers: Scans prepared at a time; None takes a CPU each, all there are.
        command: What makes the cohort, without its URL, for the advice of `verify`.
        left_out: What was found besides the scans, which the cohort lists beside its quarantine.
        layout: From outside of uadray, that listed the scans: its name and package.

    Raises:
        ConfigError: see `split_scans`; or a number is out of its range.
        TooManyFailuresError: more scans than `max_failures` allows cannot be used. What is
            prepared is kept.
        LockedError: another job writes it.
        StoreError: something else is at `url`, it cannot be written, no scan could be used, or
            files of a sealed cohort have changed.
    """
    if not 0 <= max_failures <= 1:
        raise ConfigError(f"max_failures must be in [0, 1], was {max_failures}")
    check_numbers(seed=seed, workers=workers)
    if config.package is not None:
        STRIPPERS.need(config.skull_strip)  # what cannot be imported ends the job before its work
    rows = split_scans(scans, split, seed=seed)
    url = files.normalise(url)
    with storage_errors(url):
        CohortWriter.check_place(url)  # before the lock makes the folder
    with storage_errors(url), hold(url):
        contents = sources(rows)
        writer = CohortWriter.create(
            url,
            num_rows=len(rows),
            shape=config.shape,
            has_lesion=rows[0][0].lesioned,
            plan=make_plan(rows, config, split, seed=seed),
            scans=planned_scans(rows),
            command=command,
            layout=layout,
        )
        again = _rows_to_redo(writer, rows, contents, redo)
        if again is not None:
            writer.reopen(again)
        elif writer.is_sealed():
            return _with_tables(open_cohort(writer.url), rows, left_out)
        limit = _Limit(writer=writer, total=len(rows), share=max_failures)
        _fill(writer, rows, contents, config, limit, workers)
        return _with_tables(writer.seal(), rows, left_out)


def _with_tables(cohort: Cohort, rows: Rows, left_out: Sequence[LeftOut]) -> Cohort:
    """Write down what is known of people, and what was found besides the scans, where it changed.

    Neither decides anything in the volumes.
    """
    others = [{"path": one.path, "reason": one.reason} for one in left_out]
    if others != cohort.left_out:
        write_left_out(cohort.url, others)
    here = cohort.columns("row")["row"].tolist()
    cohort.add_covariates(covariates_of([rows[row][0] for row in here]).columns)
    return cohort


def _rows_to_redo(
    writer: CohortWriter, rows: Rows, contents: Sequence[Source], redo: Sequence[Redo]
) -> set[int] | None:
    """Rows that are written and are to be prepared again; None leaves a sealed cohort sealed."""
    damaged = verify(writer.url) if "damaged" in redo else []
    again = {row for problem in damaged for row in problem.rows}
    if writer.is_sealed():
        again |= {row for shard in writer.missing_shards() for row in writer.rows_of(shard)}
    sound = [k for k in range(writer.num_shards) if not again & set(writer.rows_of(k))]
    failures, touched, unrecorded = set[int](), list[Subject | Failure](), set[int]()
    changed = set[int]()
    for part in writer.written_parts(sound):
        failures |= {failure.row for failure in part.failures}
        records: list[Subject | Failure] = [*part.subjects, *part.failures]
        for record in records:
            now = contents[record.row]
            if record.source_digest:
                if record.source_stamp != now.stamp or not now.stamp:
                    touched.append(record)
            elif record.source_bytes != now.num_bytes:
                changed.add(record.row)
            elif not rows[record.row][0].image.startswith(PHANTOM_SCHEME):
                unrecorded.add(record.row)
    changed |= _changed(touched, rows, contents)
    if "quarantined" in redo:
        again |= failures
    if "changed" in redo:
        # Whether they changed is not known; prepared again, it will be.
        again |= unrecorded
    elif unrecorded:
        _log.warning(
            "%s: an earlier version recorded no content for %d of its scans: only sizes can be "
            "compared; --redo changed prepares them again and records it",
            writer.url,
            len(unrecorded),
        )
    if "changed" in redo or not writer.is_sealed():
        again |= changed
    elif good := sorted(changed - failures):
        named = ", ".join(
            f"{rows[r][0].id} ({files.without_secrets(rows[r][0].image)})" for r in good[:NAMED]
        )
        more = f" and {len(good) - NAMED} more" if len(good) > NAMED else ""
        raise StoreError(
            f"{writer.url}: the files of {len(good)} scans have changed since they were prepared: "
            f"{named}{more}: prepare them again with --redo changed, or choose another folder"
        )
    return again if again or damaged else None


def _changed(
    records: Sequence[Subject | Failure], rows: Rows, contents: Sequence[Source]
) -> set[int]:
    """Rows whose files hold something else than on record; they are read for it."""

    def differs(record: Subject | Failure) -> bool:
        return not is_unchanged(
            rows[record.row][0],
            contents[record.row],
            digest=record.source_digest,
            stamp=record.source_stamp,
        )

    with ThreadPoolExecutor(16) as pool:
        return {r.row for r, new in zip(records, pool.map(differs, records), strict=True) if new}


@dataclass(frozen=True, kw_only=True)
class _Limit:
    """How many scans may be quarantined."""

    writer: CohortWriter
    total: int
    share: float

    def check(self, failures: Sequence[Failure]) -> None:
        """End the job where there are too many; list those that are known by then."""
        if len(failures) <= self.share * self.total:
            return
        place = self.writer.list_failures(sorted(failures, key=lambda f: f.row))
        examples = "; ".join(f"{f.id}: {f.reason}" for f in failures[:3])
        raise TooManyFailuresError(
            f"{len(failures)} of {self.total} scans could not be used, more than the share of "
            f"{self.share:g} that --max-failures allows: {examples}{'; ...' * (len(failures) > 3)}."
            f" Those found so far are listed in {place}, and what is prepared is kept. Mend the "
            "files and run the same command again, or pass a larger --max-failures"
        )


def _fill(
    writer: CohortWriter,
    rows: Rows,
    contents: Sequence[Source],
    config: PrepareConfig,
    limit: _Limit,
    workers: int | None,
) -> None:
    """Prepare what is neither in a shard nor kept, write the shards, and say how far it is."""
    missing = writer.missing_shards()
    failures = [failure for part in writer.written_parts() for failure in part.failures]
    limit.check(failures)
    if not missing:
        return
    cluster.connect()
    cluster.check_shared(writer.url)
    first = rows[0][0]
    cluster.check_readable(*filter(None, (first.image, first.brain, first.lesion)))
    wanted = [row for shard in missing for row in writer.rows_of(shard)]
    shards = _Shards(writer, missing, _still_good(writer.kept_rows(), wanted, rows, contents))
    items = [
        _Item(row=r, scan=rows[r][0], split=rows[r][1], source=contents[r])
        for r in wanted
        if r not in shards.names
    ]
    with Progress(total=len(rows), what="scans") as progress:
        # Full-size scans take a while: say at once that the job has started, and where.
        progress.set_done(len(rows) - len(items), note=f"{len(failures)} quarantined")
        task = _PrepareTask(writer=writer, config=config)
        for item, result in each.in_tasks(task, items, workers=workers):
            if isinstance(result, _Kept):
                shards.add(item.row, result.name)
            else:
                # What it did not come to read is read here: the file may have killed its process.
                failure = item.failure(result.reason, digest_of(item.scan, result.read))
                failures.append(failure)
                limit.check(failures)
                shards.leave_out(failure)
            progress.advance(1, note=f"{len(failures)} quarantined")
        shards.finish()


def _still_good(
    kept: set[str], wanted: Sequence[int], rows: Rows, contents: Sequence[Source]
) -> dict[int, str]:
    """Row -> file of the kept scans whose own files still are what they were then."""
    candidates = []
    for name in kept:
        try:
            row, stamp, digest = parse_name(name)
        except ValueError:
            continue  # of a version that distinguished files by their size
        candidates.append((row, stamp, digest, name))
    asked = set(wanted)

    def is_good(one: tuple[int, str, str, str]) -> bool:
        row, stamp, digest, _ = one
        if row not in asked:
            return False
        if not digest:
            return rows[row][0].image.startswith(PHANTOM_SCHEME)
        return is_unchanged(rows[row][0], contents[row], digest=digest, stamp=stamp)

    with ThreadPoolExecutor(16) as pool:
        good = list(pool.map(is_good, candidates))
    return {one[0]: one[3] for one, is_kept in zip(candidates, good, strict=True) if is_kept}


@dataclass(frozen=True, kw_only=True)
class _Item:
    """One scan to prepare."""

    row: int
    scan: Scan
    split: Split
    source: Source

    def failure(self, reason: str, digest: str) -> Failure:
        """What the quarantine says of it."""
        return Failure(
            row=self.row,
            id=self.scan.id,
            source=files.without_secrets(printable(self.scan.image)),
            source_bytes=self.source.num_bytes,
            source_digest=digest,
            source_stamp=self.source.stamp,
            reason=files.without_secrets(printable(reason)),
        )


@dataclass(frozen=True, kw_only=True)
class _PrepareTask:
    """Prepares one scan and keeps it; small enough to travel with every task."""

    writer: CohortWriter
    config: PrepareConfig

    def __call__(self, item: _Item) -> "_Kept | _Refused":
        with files.digests_of_reads() as read, storage_errors(item.scan.image):
            try:
                return _Kept(name=self.keep(item, read))
            except ScanError as error:
                return _Refused(reason=str(error), read=dict(read))

    def keep(self, item: _Item, read: Mapping[str, str]) -> str:
        """Prepare one scan and write it aside; return the file's name.

        Args:
            item: The scan.
            read: Digests of the files that are read meanwhile, as they come.
        """
        volume = self.prepare(item.row, item.scan)
        # float16 as in the store.
        arrays = {"image": volume.image.astype(np.float16), "brain": volume.brain}
        if self.writer.has_lesion:
            assert volume.lesion is not None, f"{item.scan.id} has no lesion, but its cohort has"
            arrays["lesion"] = volume.lesion
        digest = digest_of(item.scan, read)
        subject = subject_of(item.row, item.scan, item.split, volume, item.source, digest)
        with storage_errors(self.writer.url):
            return self.writer.put_row(subject, arrays)

    def prepare(self, row: int, scan: Scan) -> PreparedVolume:
        """Prepare one scan, unless its process dies each time."""
        with storage_errors(self.writer.url):
            deaths = self.writer.begin_row(row)
        try:
            attempts.refuse(scan.image, deaths, "prepared")
            return prepare_scan(scan, self.config)
        finally:
            with storage_errors(self.writer.url):
                self.writer.end_row(row)


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """A prepared scan."""

    name: str
    """Of its file."""


@dataclass(frozen=True, kw_only=True)
class _Refused:
    """A scan that cannot be used."""

    reason: str
    read: dict[str, str]
    """Digests of those of its files that were read."""


class _Shards:
    """Starts the task that writes a shard as soon as all of its scans are prepared."""

    def __init__(self, writer: CohortWriter, missing: list[int], names: dict[int, str]) -> None:
        """Take up what is kept.

        Args:
            writer: Of the cohort.
            missing: The shards that are not written.
            names: Row -> file of the scans that are kept by now.
        """
        self.names = names
        self._writer = writer
        self._failures: dict[int, Failure] = {}
        self._missing = set(missing)
        self._tasks: list[ray.ObjectRef] = []
        for shard in missing:
            self._write_if_whole(shard)

    def add(self, row: int, name: str) -> None:
        """Take note of a scan that is prepared, and of its file."""
        self.names[row] = name
        self._write_if_whole(row // self._writer.shard)
        self._wait(timeout=0)

    def leave_out(self, failure: Failure) -> None:
        """Take note of a scan that cannot be used."""
        self._failures[failure.row] = failure
        self._write_if_whole(failure.row // self._writer.shard)
        self._wait(timeout=0)

    def finish(self) -> None:
        """Wait until all shards are written."""
        self._wait(timeout=None)

    def _write_if_whole(self, shard: int) -> None:
        rows = self._writer.rows_of(shard)
        names = [self.names[row] for row in rows if row in self.names]
        failures = [self._failures[row] for row in rows if row in self._failures]
        if shard in self._missing and len(names) + len(failures) == len(rows):
            self._missing.remove(shard)
            self._tasks.append(_write_shard.remote(self._writer, shard, names, failures))

    def _wait(self, timeout: float | None) -> None:
        if self._tasks:
            done, self._tasks = ray.wait(self._tasks, num_returns=len(self._tasks), timeout=timeout)
            with cluster.plain_errors():
                ray.get(done)


@ray.remote(num_cpus=1, max_retries=-1)
def _write_shard(
    writer: CohortWriter, shard: int, names: list[str], failures: list[Failure]
) -> None:
    # A task that died while it let the kept scans go comes again.
    if shard in writer.missing_shards():
        with storage_errors(writer.url):
            writer.write_kept(shard, names, failures)


def summary(cohort: Cohort) -> str:
    """What was made, for people: parts, quarantined scans with reasons, place, fingerprint."""
    z, y, x = cohort.shape
    table = cohort.subjects
    parts = table.groupby("split", sort=False)
    sizes = [f"{len(rows)} {part} ({rows['subject'].nunique()} subjects)" for part, rows in parts]
    quarantine = cohort.quarantine
    lines = [
        f"{cohort.name}: {len(cohort.subjects)} volumes of {z} x {y} x {x}: {', '.join(sizes)}",
        f"  brain {cohort.subjects['brain_ml'].median():.0f} mL (median)",
    ]
    if cohort.has_lesion:
        ml = cohort.subjects["lesion_ml"]
        lines[-1] += f", lesions {ml.min():.1f} to {ml.max():.1f} mL, median {ml.median():.1f}"
    if quarantine:
        total = len(quarantine) + len(cohort.subjects)
        lines.append(f"  {len(quarantine)} of {total} scans could not be used and are not in it:")
        lines += [f"    {failure['id']}: {failure['reason']}" for failure in quarantine]
        lines.append("  mend them and run the same command with --redo quarantined, or do without")
    for same in repeated_images(table):
        lines.append(
            f"  warning: {', '.join(same['id'])} hold the same image: one person counts as "
            f"{len(same)}; leave all but one of them out"
        )
    lines += [f"  at {cohort.url}", f"  fingerprint {cohort.fingerprint}"]
    url = shlex.quote(cohort.url)
    lines.append(
        f"next: python jobs/evaluate.py RUN --cohort {url}"
        if cohort.has_lesion
        else f"next: python jobs/train.py 3D-Cube-n --cohort {url} --out runs/3D-Cube-n"
    )
    return "\n".join(lines)
