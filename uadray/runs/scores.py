"""Kept scores and counts of one run on one cohort, in the run folder.

`scores/<cohort>.zarr` holds `scores` (N, Z, Y, X) uint16, one chunk a subject, and
`counts/0000017.npz`, one file a subject, written after its chunk: a subject with that file is done.
Counts of the scores without components of at most 20 voxels lie in `counts-20-26/`, and so on for
other filters. Every metric that speaks of voxels or slices can be computed from counts alone.
"""

import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Self, TypeVar

import numpy as np
import zarr
from zarr.codecs import BloscCodec

from uadray import files, npz
from uadray.errors import EvaluationError
from uadray.metrics.counts import NUM_LEVELS, CohortCounts, SubjectCounts
from uadray.metrics.settings import ComponentConfig
from uadray.runs.folder import Run
from uadray.runs.state import weights_digest
from uadray.store import Cohort, open_array, storage_errors, zarr_store

_READERS = 16
"""Files of counts that are asked for at a time: an object store takes a while to answer."""

_CHECKSUM = "levels_crc32"
"""In a subject's file, of the levels that were counted."""

Part = TypeVar("Part", bound=CohortCounts)


@dataclass(frozen=True, kw_only=True)
class ScoreStore:
    """Where the scores of one run on one cohort are kept; pickles small."""

    url: str
    score_range: tuple[float, float]
    mends: bool = False
    """Whether damaged counts are dropped, so that the next evaluation makes them again; only what
    evaluates may do so."""

    @classmethod
    def of(cls, run_url: str, cohort: str, score_range: tuple[float, float]) -> Self:
        """The store of a run's scores on the cohort of that name, to be read."""
        return cls(url=_place(run_url, cohort), score_range=score_range)

    @classmethod
    def kept(
        cls,
        run_url: str,
        cohort: Cohort,
        score_range: tuple[float, float],
        *,
        weights: str,
        scoring: dict[str, Any],
    ) -> Self:
        """The store of a run's scores on a cohort, to be read, if it is the one that is meant.

        Args:
            run_url: The run folder.
            cohort: Of what.
            score_range: As recorded.
            weights: Digest of the weights that made the scores.
            scoring: From `EvaluateConfig.scoring`.

        Raises:
            EvaluationError: the scores are gone, or are others.
        """
        url = _place(run_url, cohort.name)
        held = _attributes(url) or {}
        wanted = {"cohort": cohort.fingerprint, "weights": weights, "scoring": scoring}
        if differing := [key for key, value in wanted.items() if held.get(key) != value]:
            what = f"are of another {' and '.join(differing)}" if held else "are gone"
            raise EvaluationError(f"the kept scores in {url} {what}")
        return cls(url=url, score_range=score_range)

    @classmethod
    def create(
        cls,
        run: Run,
        cohort: Cohort,
        score_range: tuple[float, float],
        scoring: dict[str, Any],
    ) -> Self:
        """Lay out the store, or resume one of the same run, weights, cohort and scoring.

        Scores of other weights or under another scoring are dropped and made again, and so are
        those that do not record the weights: nothing tells what they are of.

        Args:
            run: Whose scores.
            cohort: Of what.
            score_range: The method's stated (low, high).
            scoring: JSON value that decides the scores, from `EvaluateConfig.scoring`.

        Raises:
            EvaluationError: scores of another cohort of the same name are there.
        """
        url = _place(run.url, cohort.name)
        depth, *plane = cohort.shape
        start, stop = scoring["slices"] or (0, depth)
        attributes = {
            "cohort": cohort.fingerprint,
            "run": run.experiment.fingerprint,
            "fitted_on": run.cohort_fingerprint,
            "weights": weights_digest(run),
            "score_range": list(score_range),
            "scoring": scoring,
        }
        if (old := _attributes(url)) is not None:
            if old.get("cohort", cohort.fingerprint) != cohort.fingerprint:
                raise EvaluationError(
                    f"{url} holds scores of another cohort named {cohort.name!r} "
                    f"({old['cohort']}, not {cohort.fingerprint}): give the cohort's folder "
                    "another name"
                )
            if old == attributes and files.exists(files.join(url, "scores", "zarr.json")):
                files.remove_drafts(url)
                return cls(url=url, score_range=score_range, mends=True)
        files.remove(url)
        group = zarr.create_group(zarr_store(url, read_only=False, small=True), zarr_format=3)
        group.create_array(
            "scores",
            shape=(int(cohort.attributes["num_rows"]), stop - start, *plane),
            dtype="uint16",
            chunks=(1, stop - start, *plane),
            compressors=BloscCodec(cname="lz4", shuffle="shuffle"),
            dimension_names=("volume", "z", "y", "x"),
        )
        group.update_attributes({"uadray": attributes})
        return cls(url=url, score_range=score_range, mends=True)

    def done(self, components: ComponentConfig | None = None) -> set[int]:
        """Rows that are scored and counted, after a component filter where one is given."""
        names = files.list_names(files.join(self.url, _folder(components)))
        return {int(name.removesuffix(".npz")) for name in names if name.endswith(".npz")}

    def write(self, row: int, levels: np.ndarray, counts: SubjectCounts) -> None:
        """Keep one subject's levels (Z, Y, X) uint16 and counts."""
        self._array[row] = levels
        self._write(row, None, vars(counts) | {_CHECKSUM: np.uint32(_checksum(levels))})

    def write_counts(self, row: int, counts: SubjectCounts, components: ComponentConfig) -> None:
        """Keep one subject's counts after a component filter."""
        self._write(row, components, vars(counts))

    def _write(self, row: int, components: ComponentConfig | None, values: dict[str, Any]) -> None:
        files.write_bytes(self._counts_url(row, components), npz.pack_quickly(**values))

    def levels(self, row: int) -> np.ndarray:
        """One subject's kept levels, (Z, Y, X) uint16, unchecked."""
        return np.asarray(self._array[row])

    def checked_levels(self, row: int, subject: str) -> np.ndarray:
        """One subject's kept levels, (Z, Y, X) uint16, compared with what was counted.

        A chunk that is gone reads as zeros and many a damaged one decodes without a word; the
        file of the counts tells: by a checksum, or, of an earlier version, by the counts.

        Raises:
            EvaluationError: the levels are not those that were counted; the counts are dropped, so
                that the next evaluation scores the subject again.
            StoreError: the storage cannot be read.
        """
        kept = self._values(row, subject, None, only=_CHECKSUM)
        counted = None if kept else self._read(row, subject, None)
        try:
            levels = self.levels(row)
        except FileNotFoundError as error:
            raise self._drop(row, None, subject, str(error)) from None
        except OSError as error:
            with storage_errors(self.url):
                raise error
        except Exception as error:  # whatever a codec raises on a damaged chunk
            raise self._drop(row, None, subject, str(error)) from None
        if counted is None:
            if _checksum(levels) != kept[_CHECKSUM]:
                raise self._drop(row, None, subject, "a checksum is wrong")
            return levels
        expected = counted.healthy.astype(np.int64) + counted.lesion
        held = np.bincount(levels.ravel(), minlength=NUM_LEVELS)
        if not np.array_equal(held[1:], expected[1:]):
            mismatch = f"{held[1:].sum()} voxels with a score, {expected[1:].sum()} were counted"
            raise self._drop(row, None, subject, mismatch)
        return levels

    def counts(
        self,
        subjects: Iterable[tuple[int, str]],
        name: str,
        kind: type[Part],
        components: ComponentConfig | None = None,
    ) -> Part:
        """The counts of subjects as a part of a cohort; no other subject's file is opened.

        Args:
            subjects: Pairs of row and id.
            name: Of the part.
            kind: Such as `ThresholdPart`.
            components: The filter that the counts come after; None for none.

        Raises:
            EvaluationError: one is not scored yet, or its file is damaged; that is dropped, so that
                the next evaluation makes it again.
            StoreError: the storage cannot be read.
        """
        return kind.from_subjects(
            self._read_all(list(subjects), components), name=name, score_range=self.score_range
        )

    def _read_all(
        self, subjects: list[tuple[int, str]], components: ComponentConfig | None
    ) -> Iterator[tuple[str, SubjectCounts]]:
        read = partial(self._read, components=components)
        # Not all at once: a subject's counts fill a megabyte until they are stacked.
        with ThreadPoolExecutor(_READERS) as pool:
            for start in range(0, len(subjects), _READERS):
                some = subjects[start : start + _READERS]
                rows, names = zip(*some, strict=True)
                yield from zip(names, pool.map(read, rows, names), strict=True)

    def _read(self, row: int, subject: str, components: ComponentConfig | None) -> SubjectCounts:
        values = self._values(row, subject, components)
        values.pop(_CHECKSUM, None)
        try:
            return SubjectCounts(**values)
        except (ValueError, TypeError) as error:
            url = self._counts_url(row, components)
            raise self._drop(row, components, subject, f"{url}: {error}") from None

    def _values(
        self, row: int, subject: str, components: ComponentConfig | None, only: str = ""
    ) -> dict[str, Any]:
        """What a subject's file holds, or of it what is named `only`, where that is there."""
        url = self._counts_url(row, components)
        with storage_errors(url):
            try:
                content = files.read_bytes(url)
            except FileNotFoundError:
                raise EvaluationError(
                    f"subject {subject!r} is not scored in {self.url}, or what was kept of it was "
                    "dropped as damaged: run jobs/evaluate.py again, which makes it"
                ) from None
        try:
            arrays = npz.unpack(content, only)
        except ValueError as error:
            raise self._drop(row, components, subject, f"{url}: {error}") from None
        return {k: v if v.ndim else v.item() for k, v in arrays.items()}

    def _drop(
        self, row: int, components: ComponentConfig | None, subject: str, mismatch: str
    ) -> EvaluationError:
        """Drop a subject's counts, without which it is not done; returns what is to be raised."""
        if self.mends:
            with suppress(OSError):
                files.remove_file(self._counts_url(row, components))
        return EvaluationError(
            f"the kept scores of subject {subject!r} in {self.url} are cut short or damaged "
            f"({mismatch}): run the same jobs/evaluate.py again, which makes them again"
        )

    def _counts_url(self, row: int, components: ComponentConfig | None) -> str:
        return files.join(self.url, _folder(components), f"{row:07d}.npz")

    @cached_property
    def _array(self) -> zarr.Array:
        return open_array(self.url, "scores", mode="r+", small=True)

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "score_range": self.score_range, "mends": self.mends}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def _checksum(levels: np.ndarray) -> int:
    return zlib.crc32(levels.tobytes())


def _place(run_url: str, cohort: str) -> str:
    return files.join(run_url, "scores", f"{cohort}.zarr")


def _attributes(url: str) -> dict[str, Any] | None:
    """What the store at `url` records of its scores; None where there is none that can be read."""
    with storage_errors(url):
        try:
            return dict(files.read_json(files.join(url, "zarr.json"))["attributes"]["uadray"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None  # Cut short where it is there; laid out again.


def _folder(components: ComponentConfig | None) -> str:
    return "counts" if components is None else f"counts-{components.key}"
