"""Maps that other software made, brought to a cohort's grid and kept as a run like any other.

What is kept are the raw scores on the cohort's grid. From there on they go the one way that all
scores go: post-processing, counts, a threshold frozen on the fitting part, figures.
"""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from uadray import files
from uadray.config import Experiment, FitConfig, experiment, to_json
from uadray.errors import ConfigError, EvaluationError, ScanError, TooManyFailuresError
from uadray.evaluation.inputs import check_has_lesions
from uadray.evaluation.map_files import MapFiles, find_maps
from uadray.evaluation.map_grid import on_grid
from uadray.evaluation.maps_settings import MapsConfig
from uadray.lock import hold
from uadray.methods.outside import OutsideMaps
from uadray.metrics.postprocess import MAX_LEVEL, quantise
from uadray.preparation.layouts.listing import LeftOut, printable
from uadray.preparation.nifti import halves, read_image
from uadray.results import are_predictions
from uadray.runs.checkpoint import CheckpointStore
from uadray.runs.folder import Run
from uadray.runs.maps import MAPS, MapStore, has_maps
from uadray.runs.reading import CONFIG
from uadray.store import Cohort, software_versions

READERS = 4
"""Maps that are read at a time: each takes the memory of a few volumes of its file."""

MAX_ABSENT = 0.5
"""Largest share of a cohort's scans that may be without a usable map: above it the folder, the
names or a setting must be wrong."""

INVERTED = 0.4
"""Median area under the ROC curve of the threshold part's scans below which maps look inverted."""

MIN_CHECKED = 3
"""Scans that it takes to say so."""

FINE = 64
"""The highest score may be this many times the usual high ones (the median over scans of
the 99.9th percentile, or the highest over scans of the `FEW`th highest score if that is more); else
single voxels would leave all others too few of the 65 536 levels."""

FEW = 100
"""As many high voxels in one scan are no single ones: sharp maps are high in lesions alone."""

MIN_LEVELS = 256
"""Fewer levels of a range that was given are worth a remark."""

VERSION = 3
"""Of how maps are brought to the grid: those of another one are read again."""


@dataclass(frozen=True, kw_only=True)
class Absent:
    """A scan of the cohort without a usable map."""

    id: str
    """Of the scan."""
    reason: str
    """Why."""
    source: str = ""
    """The file; empty where there is none."""

    def __str__(self) -> str:
        return f"{self.id}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class Brought:
    """What `bring_maps` did."""

    run: Run
    """A finished run."""
    num_maps: int
    """Scans with a usable map."""
    absent: tuple[Absent, ...]
    """Scans without."""
    left_out: tuple[LeftOut, ...]
    """Files that are no map of a scan of the cohort."""
    remarks: tuple[str, ...]
    """What a reader of the figures must know."""


@dataclass(frozen=True, kw_only=True)
class _Line:
    """One scan of the cohort."""

    row: int
    id: str
    split: str
    affine: NDArray[np.float64]
    source: str


def bring_maps(
    maps: str,
    cohort: Cohort,
    url: str,
    *,
    name: str,
    config: MapsConfig | None = None,
    report: Callable[[int], None] = lambda count: None,
) -> Brought:
    """Keep maps of a cohort's volumes as a run, which is evaluated as any other.

    Called again it reads those again whose files have changed.

    Args:
        maps: A folder of NIfTI files, or a table with the columns `id` and `path`; a local path or
            an fsspec URL.
        cohort: Sealed, with lesions.
        url: The run folder.
        name: Of the method, in tables.
        config: How they are read.
        report: Called as maps are done; the numbers add up to the cohort's scans.

    Raises:
        NoScanFoundError: there is no map of any scan.
        TooManyFailuresError: more than half of the scans have no usable map, or one has none where
            `missing` is `refuse`.
        EvaluationError: the maps look inverted, or the name is that of a method of this package.
        RunError: something else is at `url`.
        CheckpointError: maps of another method or cohort are.
        LockedError: another job writes it.
    """
    config, url = config or MapsConfig(), files.normalise(url)
    _check_name(name)
    direction = "lower" if config.direction == "lower" else "higher"
    given = Experiment(
        method=OutsideMaps.Settings(title=name, direction=direction),  # type: ignore[arg-type]
        fit=FitConfig(seed=config.seed),
    )
    Run.check_place(url)
    check_has_lesions(cohort)
    table = cohort.subjects
    lines = [
        _Line(
            row=int(one.row),
            id=str(one.id),
            split=str(one.split),
            affine=np.asarray(one.affine, np.float64),
            source=str(one.source),
        )
        for one in table.itertuples()
    ]
    found = find_maps(maps, [line.id for line in lines], config.pattern)
    if config.resample == "auto":
        predicted = are_predictions(files.normalise(maps))
        config = replace(config, resample="linear" if predicted else "average")
    with hold(url):
        begins = _is_unbegun(url)
        run = Run.create(url, given, cohort)
        run.remove_drafts()
        return _Bringing(
            run=run, cohort=cohort, config=config, lines=lines, found=found, begins=begins
        ).run_all(files.normalise(maps), report)


def _check_name(name: str) -> None:
    """Refuse the name of a method of this package: its published figures would stand beside it.

    Raises:
        ConfigError: it is one.
    """
    if ":" in name:  # looked up, it would be imported
        return
    with suppress(ConfigError):
        taken = experiment(name)
        raise EvaluationError(
            f"{taken.name} is the name of a method of uadray, with which these maps would be taken "
            f'for its fits: give them another --name, such as "{taken.name} from elsewhere"'
        )


@dataclass(frozen=True, kw_only=True)
class _Bringing:
    """The maps of one call."""

    run: Run
    cohort: Cohort
    config: MapsConfig
    lines: Sequence[_Line]
    found: MapFiles
    begins: bool
    """Whether the run folder held no run before this call."""

    @property
    def _sign(self) -> float:
        return -1.0 if self.config.direction == "lower" else 1.0

    @property
    def _reading(self) -> dict[str, Any]:
        """What decides the kept maps besides their files."""
        return {
            "version": VERSION,
            "sign": self._sign,
            "by_affine": self.config.by_affine,
            "resample": self.config.resample,
        }

    def run_all(self, source: str, report: Callable[[int], None]) -> Brought:
        store = MapStore(run_url=self.run.url)
        earlier = store.index() or {}
        same = earlier.get("reading") == self._reading
        known = {str(one["id"]): one for one in earlier.get("maps", ())} if same else {}
        kept: list[dict[str, Any]] = []
        absent: list[Absent] = []

        def bring(line: _Line) -> dict[str, Any] | Absent:
            try:
                return self._one(store, line, known.get(line.id))
            except ScanError as error:
                path = self.found.by_id.get(line.id, ("",))[0]
                return Absent(id=line.id, reason=str(error), source=path)

        with ThreadPoolExecutor(READERS) as pool:
            for outcome in pool.map(bring, self.lines):
                if isinstance(outcome, Absent):
                    absent.append(outcome)
                else:
                    kept.append(outcome)
                report(1)
        kept, failed, remarks = self._look_at_constants(kept)
        absent += failed
        try:
            self._check_absent(absent)
            remarks += self._check_direction(store, kept)
            score_range, more = self._score_range(kept)
        except (EvaluationError, TooManyFailuresError):
            self._leave_nothing(store)
            raise
        remarks += more
        digest = self._digest(kept, score_range)
        index = {
            "cohort": self.cohort.fingerprint,
            "source": printable(source),
            "digest": digest.hex(),
            "reading": self._reading,
            "score_range": list(score_range),
            "remarks": remarks,
            "maps": kept,
            "absent": [{**vars(one), "source": printable(one.source)} for one in absent],
            "left_out": [
                {"path": printable(one.path), "reason": one.reason} for one in self.found.left_out
            ],
        }
        store.write_index(index)
        detector = OutsideMaps(self.run.experiment.method, self.cohort.shape)  # type: ignore[arg-type]
        detector.know(digest, score_range)
        CheckpointStore.of(self.run).save(1, detector, None, 0.0)
        self.run.note(
            {
                "maps": {
                    "what": "maps from outside",
                    "source": printable(source),
                    "digest": digest.hex(),
                    "settings": to_json(self.config),
                    "score_range": list(score_range),
                    "num_maps": len(kept),
                    "absent": [one.id for one in absent],
                }
            }
        )
        if not self.run.finished:
            self.run.finish(
                {"status": "finished", "epochs": 0, "best_epoch": None, "fit_seconds": None}
                | {"num_parameters": None, "warnings": [], "versions": software_versions()}
            )
        store.keep_listed()
        return Brought(
            run=self.run,
            num_maps=len(kept),
            absent=tuple(absent),
            left_out=self.found.left_out,
            remarks=tuple(remarks),
        )

    def _one(self, store: MapStore, line: _Line, earlier: dict[str, Any] | None) -> dict[str, Any]:
        """Bring one scan's map to the grid and keep it; kept before, it stays.

        Raises:
            ScanError: there is none, or it cannot be used.
        """
        paths = self.found.by_id.get(line.id, ())
        if not paths:
            raise ScanError("no map of it was found")
        if len(paths) > 1:
            raise ScanError(
                f"{len(paths)} files are maps of it by their names, {' and '.join(paths[:3])}: "
                "choose by --pattern which files are maps, or name each scan's map in a table"
            )
        content = _content(paths[0])
        if earlier and content and earlier.get("content") == content:
            try:
                store.read(line.row, str(earlier["digest"]))
            except EvaluationError:
                pass
            else:
                return earlier | {"source": printable(paths[0])}
        with files.digests_of_reads() as read:
            raw = read_image(paths[0])
        content = _join(read.get(part, "") for part in halves(paths[0]))
        brain = self.cohort.read("brain", line.row, line.row + 1)[0].astype(bool)
        values, notes = on_grid(raw, paths[0], line.affine, brain, line.source, self.config)
        inside = values[brain]
        low, high = float(inside.min()), float(inside.max())
        if not np.isfinite(high - low):
            raise ScanError(
                f"{paths[0]}: has scores from {low:g} to {high:g}, which no arithmetic holds; "
                "scale them"
            )
        kept = np.where(brain, np.float32(self._sign) * values, np.float32(0)).astype(np.float32)
        scores = kept[brain]
        usual = np.quantile(scores, 0.999)
        few = np.partition(scores, -FEW)[-FEW] if len(scores) >= FEW else scores.max()
        return {
            "id": line.id,
            "row": line.row,
            "source": printable(paths[0]),
            "content": content,
            "digest": store.write(line.row, kept),
            "low": float(kept[brain].min()),
            "high": float(kept[brain].max()),
            "usual": float(usual),
            "few": float(few),
            "skew": float(np.nan_to_num(stats.skew(kept[brain].astype(np.float64)))),
            "notes": [*raw.notes, *notes],
        }

    def _look_at_constants(
        self, kept: list[dict[str, Any]]
    ) -> tuple[list[dict[str, Any]], list[Absent], list[str]]:
        """Maps that can be used, those that cannot, and what is to be said.

        A map of one value says that nothing was found where no map has lower scores; any other
        value, such as the start of a network that has not learned, is a failure.
        """
        lowest = min((one["low"] for one in kept if _varies(one)), default=-np.inf)
        failed = [one for one in kept if not _varies(one) and one["low"] > lowest]
        absent = [
            Absent(
                id=one["id"],
                reason=f"{one['source']}: expected scores, but it is {self._sign * one['low']:g} "
                "everywhere in the brain; look whether the method has failed on this scan",
                source=one["source"],
            )
            for one in failed
        ]
        usable = [one for one in kept if one not in failed]
        empty = [one["id"] for one in usable if not _varies(one)]
        if not empty:
            return usable, absent, []
        shown = ", ".join(empty[:5]) + f" and {len(empty) - 5} more" * (len(empty) > 5)
        return (
            usable,
            absent,
            [
                f"{len(empty)} of {len(self.lines)} maps have one value everywhere in the brain, "
                f"the lowest of all maps: nothing was found in these scans ({shown})"
            ],
        )

    def _leave_nothing(self, store: MapStore) -> None:
        """Take back what this call has kept, and a run that it began, so that others may follow.

        What another job has begun, or has finished, stays.
        """
        if not self.begins or self.run.summary is not None:
            store.keep_listed()
            return
        _take_back(self.run.url)

    def _check_absent(self, absent: Sequence[Absent]) -> None:
        total = len(self.lines)
        refused = self.config.missing == "refuse" and absent
        if not refused and len(absent) <= MAX_ABSENT * total:
            return
        examples = "; ".join(map(str, absent[: 20 if refused else 3]))
        more = "; ..." if len(absent) > (20 if refused else 3) else ""
        why = "which --missing refuse forbids" if refused else "more than half of them"
        raise TooManyFailuresError(
            f"{len(absent)} of {total} scans have no usable map, {why}: {examples}{more}. Mend the "
            "files or name them in a table with the columns id and path, and run the same command "
            "again"
        )

    def _check_direction(self, store: MapStore, kept: Sequence[dict[str, Any]]) -> list[str]:
        """Refuse maps that look inverted; by the truth of the threshold part alone.

        Raises:
            EvaluationError: they do, and no direction was chosen.
        """
        if self.config.direction != "check":
            return []
        splits = {line.id: line.split for line in self.lines}
        fitting = [one for one in kept if splits[one["id"]] == "threshold"]
        areas = [a for one in fitting if (a := self._area(store, one)) is not None]
        insist = (
            "pass --direction lower where lower scores are the more anomalous (likelihoods, "
            "similarities), or --direction higher where the method is meant so"
        )
        # The direction is one of a run's settings, which are never changed.
        elsewhere = "" if self.begins else f"; lower ones in another --out than {self.run.url}"
        if len(areas) >= MIN_CHECKED:
            if (median := float(np.median(areas))) < INVERTED:
                raise EvaluationError(
                    f"{self.run.experiment.name}: the maps look inverted: in the threshold part "
                    f"lesions have lower scores than the rest of the brain (median area under the "
                    f"ROC curve of {len(areas)} scans {median:.2f}): {insist}{elsewhere}"
                )
            return []
        if np.median([one["skew"] for one in kept]) < 0:
            return [
                "the direction of the scores could not be checked, since the threshold part is too "
                f"small, and most scores are high, which is unusual: {insist}"
            ]
        return []

    def _area(self, store: MapStore, one: dict[str, Any]) -> float | None:
        """Area under the ROC curve within one scan's brain; None where it is not defined."""
        row = int(one["row"])
        brain, lesion = (
            self.cohort.read(name, row, row + 1)[0].astype(bool) for name in ("brain", "lesion")
        )
        truth = lesion[brain]
        num, rest = int(truth.sum()), int((~truth).sum())
        if not num or not rest:
            return None
        ranks = stats.rankdata(store.read(row, str(one["digest"]))[brain])
        return float((ranks[truth].sum() - num * (num + 1) / 2) / (num * rest))

    def _score_range(self, kept: Sequence[dict[str, Any]]) -> tuple[tuple[float, float], list[str]]:
        """The range that scores are kept over, and what is to be said of it.

        Raises:
            EvaluationError: the range given leaves no difference within most maps.
        """
        kept = [one for one in kept if _varies(one)]
        low, high = min(one["low"] for one in kept), max(one["high"] for one in kept)
        if self.config.score_range is not None:
            return self._given_range(kept, sorted((self._sign * low, self._sign * high)))
        usual = float(np.median([one["usual"] for one in kept]))
        top = low + FINE * (max(usual, *(one["few"] for one in kept)) - low)
        if low < top < high:
            return (low, top), [
                f"single voxels have scores up to {high:g}, far above all others: scores above "
                f"{top:g} count as equal; pass --score-range to have it otherwise"
            ]
        return (low, high), []

    def _given_range(
        self, kept: Sequence[dict[str, Any]], found: Sequence[float]
    ) -> tuple[tuple[float, float], list[str]]:
        """The same where a range was given; `found` is that of the maps in their own units."""
        assert self.config.score_range is not None
        low, high = sorted(self._sign * end for end in self.config.score_range)
        ends = np.array([(one["low"], one["high"]) for one in kept])
        levels = quantise(ends.astype(np.float32), (low, high)).astype(np.int64)
        same = int((levels[:, 0] == levels[:, 1]).sum())
        if same > MAX_ABSENT * len(kept):
            raise EvaluationError(
                f"--score-range {self.config.score_range[0]:g} {self.config.score_range[1]:g} "
                f"leaves {same} of {len(kept)} maps without any difference: inside the brain their "
                f"scores are {found[0]:g} to {found[1]:g}; give the lowest and the highest score "
                "that the method can give, in the units of the maps"
            )
        remarks = []
        if beyond := int(((ends[:, 0] < low) | (ends[:, 1] > high)).sum()):
            remarks.append(f"scores of {beyond} scans lie outside of --score-range")
        if (used := int(levels.max() - levels.min()) + 1) < MIN_LEVELS:
            remarks.append(
                f"all scores lie on {used} of {MAX_LEVEL + 1} levels of --score-range: a narrower "
                "one tells scores apart that count as equal now"
            )
        return (low, high), remarks

    def _digest(self, kept: Sequence[dict[str, Any]], score_range: tuple[float, float]) -> bytes:
        sha = hashlib.sha256(repr((self.cohort.fingerprint, score_range)).encode())
        for one in kept:
            sha.update(f"{one['id']}\0{one['digest']}\n".encode())
        return sha.digest()


def _is_unbegun(url: str) -> bool:
    """Whether `url` holds no run; what a call that was killed has left of one is taken back."""
    if not Run.is_begun(url):
        return True
    run = Run.open(url)
    if not has_maps(run) or run.finished or MapStore(run_url=url).index() is not None:
        return False
    _take_back(url)  # its settings, such as the direction, may be other ones now
    return True


def _take_back(url: str) -> None:
    # The other way round a kill in between would leave maps of no run, which bar the folder.
    files.remove(files.join(url, MAPS))
    files.remove(files.join(url, CONFIG))


def _varies(one: dict[str, Any]) -> bool:
    return bool(one["low"] < one["high"])


def _content(path: str) -> str:
    """Digest of a map's files; empty where one cannot be read, which is said when it is read."""
    try:
        return _join(files.digest(part) for part in halves(path))
    except (OSError, ValueError) as error:
        if files.is_remote(path) and not isinstance(error, FileNotFoundError):
            raise
        return ""


def _join(digests: Any) -> str:
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()
