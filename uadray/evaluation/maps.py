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
from nibabel import orientations
from numpy.typing import NDArray
from scipy import stats

from uadray import files
from uadray.config import Experiment, FitConfig, experiment, to_json
from uadray.errors import ConfigError, EvaluationError, ScanError, TooManyFailuresError
from uadray.evaluation.inputs import check_has_lesions
from uadray.evaluation.map_files import MapFiles, find_maps
from uadray.evaluation.maps_settings import MapsConfig
from uadray.lock import hold
from uadray.methods.outside import OutsideMaps
from uadray.prepare.geometry import to_scanner, voxel_sizes
from uadray.prepare.layouts import PHANTOM_SCHEME
from uadray.prepare.layouts.listing import LeftOut, printable
from uadray.prepare.masks import DOUBT_INSIDE, GRID_TOLERANCE_MM, MIN_INSIDE, average_on
from uadray.prepare.nifti import RawImage, corner_distance, halves, read_image
from uadray.results import are_predictions
from uadray.runs.checkpoint import CheckpointStore
from uadray.runs.folder import Run
from uadray.runs.maps import MAPS, MapStore
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

VERSION = 2
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
        begins = not Run.is_begun(url)
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
        try:
            self._check_absent(absent)
            remarks = [*self._check_direction(store, kept)]
        except (EvaluationError, TooManyFailuresError):
            self._leave_nothing(store)
            raise
        score_range, more = self._score_range(kept)
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
        if low == high:
            raise ScanError(
                f"{paths[0]}: expected scores, but it is {low:g} everywhere in the brain; look "
                "whether the method has failed on this scan"
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

    def _leave_nothing(self, store: MapStore) -> None:
        """Take back what this call has kept, and a run that it began, so that others may follow.

        What another job has begun, or has finished, stays.
        """
        if not self.begins or self.run.summary is not None:
            store.keep_listed()
            return
        # The other way round a kill in between would leave maps of no run, which bar the folder.
        files.remove(files.join(self.run.url, MAPS))
        files.remove(files.join(self.run.url, CONFIG))

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
        """The range that scores are kept over, and what is to be said of it."""
        if self.config.score_range is not None:
            low, high = (self._sign * end for end in self.config.score_range)
            low, high = min(low, high), max(low, high)
            beyond = [one["id"] for one in kept if one["low"] < low or one["high"] > high]
            said = [f"scores of {len(beyond)} scans lie outside of --score-range"] if beyond else []
            return (low, high), said
        low, high = min(one["low"] for one in kept), max(one["high"] for one in kept)
        usual = float(np.median([one["usual"] for one in kept]))
        top = low + FINE * (max(usual, *(one["few"] for one in kept)) - low)
        if low < top < high:
            return (low, top), [
                f"single voxels have scores up to {high:g}, far above all others: scores above "
                f"{top:g} count as equal; pass --score-range to have it otherwise"
            ]
        return (low, high), []

    def _digest(self, kept: Sequence[dict[str, Any]], score_range: tuple[float, float]) -> bytes:
        sha = hashlib.sha256(repr((self.cohort.fingerprint, score_range)).encode())
        for one in kept:
            sha.update(f"{one['id']}\0{one['digest']}\n".encode())
        return sha.digest()


def on_grid(
    raw: RawImage,
    path: str,
    affine: NDArray[np.float64],
    brain: NDArray[np.bool_],
    source: str,
    config: MapsConfig,
) -> tuple[NDArray[np.float32], list[str]]:
    """A map on the grid of its scan in the cohort.

    One that lies on that grid is taken as it is. Any other is averaged over the cohort's voxels,
    as masks are, or sampled at their centres, at the place that the affines of both give; a map
    with as many voxels as its scan or as the cohort's grid has to lie where these do.

    Args:
        raw: The map as its file has it.
        path: For messages.
        affine: (4, 4) of the scan in the cohort, from a voxel's index (x, y, z) to scanner mm.
        brain: (Z, Y, X) mask in the cohort.
        source: The file of the scan; compared where it is still there.
        config: How maps are read.

    Returns:
        (Z, Y, X) scores, finite, and notes.

    Raises:
        ScanError: it lies elsewhere, or has no score in the brain.
    """
    raw, notes = _placed(raw, path, affine, brain.shape[::-1], source, config)
    target: tuple[int, int, int] = brain.T.shape

    def bring(array: NDArray[np.float32]) -> NDArray[np.float32]:
        if config.resample == "linear":
            return to_scanner(array.T, raw.affine, affine, target)
        return average_on(array, raw.affine, affine, target)

    finite = np.isfinite(raw.voxels)
    if not finite.any():
        raise ScanError(f"{path}: expected scores, but no voxel is finite; write it again")
    lowest = raw.voxels[finite].min()
    share: NDArray[Any] = np.ones(target, np.float32)
    if _is_on(raw, affine, target):
        values = np.where(finite, raw.voxels, lowest)
        share = finite.astype(np.float32)
        outside = np.zeros(target, bool)
    else:
        # Beyond its outer voxels the sampled map is 0, so that the lowest score has to be.
        with np.errstate(over="ignore"):  # refused where it is in the brain
            above = np.where(finite, raw.voxels - lowest, np.float32(0))
        values = bring(above)
        if not finite.all():
            share = bring(finite.astype(np.float32))
            values = values / np.maximum(share, np.float32(1e-6))
        values = values + lowest
        outside = ~_within(raw, affine, target)
    num = int(brain.sum())
    off = int((outside.T & brain).sum())
    if off > (1 - MIN_INSIDE) * num:
        raise ScanError(
            f"{path}: by its affine {off / num:.0%} of the brain lie outside of the map; write it "
            "with the affine of its scan"
        )
    if off > (1 - DOUBT_INSIDE) * num:
        notes.append(f"{off / num:.0%} of the brain lie outside of the map: no anomaly there")
    bad = int(((share < 0.5) & ~outside & brain.T).sum())
    if bad:
        raise ScanError(
            f"{path}: {bad} of {num} voxels of the brain are NaN or infinite; write scores there, "
            "the lowest where there is nothing to say"
        )
    if not finite.all():
        notes.append(f"{(~finite).sum()} voxels are NaN or infinite, no voxel of the brain is")
    return np.ascontiguousarray(values.T, np.float32), notes


def _placed(
    raw: RawImage,
    path: str,
    affine: NDArray[np.float64],
    target: tuple[int, ...],
    source: str,
    config: MapsConfig,
) -> tuple[RawImage, list[str]]:
    """The map with its axes along the scanner's, at its place.

    Raises:
        ScanError: it has as many voxels as its scan, or as the cohort's grid, and lies elsewhere,
            or it records no place and that of its scan is not known to be its own.
    """
    shape = raw.voxels.shape
    grid = RawImage(voxels=np.empty(target), affine=affine, oriented=True, notes=())
    scan = None if raw.oriented and _is_on(raw, affine, target) else _scan_of(source)
    places = [("the cohort's grid", _turned(grid))]
    if scan is not None:
        # Where both have as many voxels the scan is meant: that is what other software sees.
        places.insert(0, (f"its scan {source}", _turned(scan)))
    if not raw.oriented:
        # A map of a scan in a file has that file's axes: on the cohort's grid, of as many voxels by
        # chance, left and right could be exchanged.
        what, one = ("its scan", scan) if _is_file(source) else ("the cohort's grid", grid)
        if one is not None and one.voxels.shape == shape:
            moved = _with(raw, one.affine)
            return _turned(moved), [f"the file records no orientation, taken as on {what}"]
        why = (
            f"its scan {source} is gone or records none either"
            if one is None
            else f"its {shape} voxels are not those of {what} ({one.voxels.shape})"
        )
        raise ScanError(
            f"{path}: records no orientation, and {why}, so that its place is unknown; write it "
            "with the affine of its scan"
        )
    turned = _turned(raw)
    alike = [(what, one) for what, one in places if one.voxels.shape == turned.voxels.shape]
    distances = [corner_distance(turned.affine, one.affine, one.voxels.shape) for _, one in alike]
    if not alike or config.by_affine:
        return turned, [] if config.by_affine else [f"{shape} voxels, placed by its affine"]
    nearest = int(np.argmin(distances))
    what, one = alike[nearest]
    if distances[nearest] <= GRID_TOLERANCE_MM:
        return _with(turned, one.affine), []
    if distances[nearest] <= float(voxel_sizes(one.affine).min()) / 2:
        return _with(turned, one.affine), [
            f"lies {distances[nearest]:.2f} mm off {what}, taken as on it"
        ]
    raise ScanError(
        f"{path}: has as many voxels as {alike[0][0]}, but lies up to {distances[0]:.1f} mm "
        "elsewhere by its affine; write it with the affine of its scan, or pass --by-affine if it "
        "is right"
    )


def _is_file(source: str) -> bool:
    """Whether the cohort records which file a scan was read from."""
    return bool(source) and not source.startswith(PHANTOM_SCHEME)


def _scan_of(source: str) -> RawImage | None:
    """The scan of the cohort in its file; None where it is gone or records no place."""
    if not _is_file(source):
        return None
    try:
        scan = read_image(source)
    except (ScanError, OSError):
        return None
    return scan if scan.oriented else None


def _with(raw: RawImage, affine: NDArray[np.float64]) -> RawImage:
    return RawImage(voxels=raw.voxels, affine=affine, oriented=True, notes=raw.notes)


def _turned(raw: RawImage) -> RawImage:
    """With axes that point as nearly as can be to the right, the front and the top."""
    turn = orientations.io_orientation(raw.affine)
    inverse = orientations.inv_ornt_aff(turn, raw.voxels.shape)
    voxels = orientations.apply_orientation(raw.voxels, turn)
    return RawImage(
        voxels=voxels, affine=raw.affine @ inverse, oriented=raw.oriented, notes=raw.notes
    )


def _is_on(raw: RawImage, affine: NDArray[np.float64], target: tuple[int, ...]) -> bool:
    same = raw.voxels.shape == target
    return same and corner_distance(raw.affine, affine, target) <= GRID_TOLERANCE_MM


def _within(
    raw: RawImage, affine: NDArray[np.float64], target: tuple[int, int, int]
) -> NDArray[np.bool_]:
    """(X, Y, Z) which of the cohort's voxels have their centre inside the map's box."""
    to_map = np.linalg.inv(raw.affine) @ affine
    index = np.indices(target, np.float32).reshape(3, -1)
    at = to_map[:3, :3] @ index + to_map[:3, 3:]
    size = np.array(raw.voxels.shape)[:, None]
    return np.asarray(((at >= -0.5) & (at <= size - 0.5)).all(0).reshape(target))


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
