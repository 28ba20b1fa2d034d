"""The quality page of a cohort: one HTML file that shows every scan, and which ones to look at.

It is made from the sealed store alone, so that it can be made again at any time, and the same
store gives the same bytes. Voxels are read a chunk at a time and the pictures wait in a temporary
file: memory stays flat, and holds some figures a scan. The page takes about 10 kB a scan of 64
voxels a side, and at most about 20 kB however large the scans are: 2000 scans fit into 40 MB.
"""

import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from numpy.typing import NDArray

from uadray import __version__, files, html
from uadray.errors import ConfigError
from uadray.html import ABSENT
from uadray.preparation.settings import DOUBT
from uadray.quality import measures
from uadray.quality.figures import MAX_SIDE, picture
from uadray.quality.measures import MEASURES, Limits, ScanMeasures, measure_scan
from uadray.quality.people import spreads
from uadray.store import CHUNK_VOLUMES, Cohort


@dataclass(frozen=True, kw_only=True)
class Scan:
    """One row of the page."""

    row: int
    """In the store."""
    id: str
    """Name of the scan."""
    subject: str
    """The person."""
    scanner: str
    """Scanner or site, or empty."""
    split: str
    """Part of the cohort."""
    modality: str
    """Such as T1w."""
    source: str
    """Where it came from."""
    notes: tuple[str, ...]
    """What was assumed or done when it was prepared, doubts left out."""
    doubts: tuple[str, ...]
    """Those notes that want a look."""
    size_mm: tuple[float, float, float]
    """Extent of the grid (Z, Y, X)."""
    measures: ScanMeasures
    """Its figures."""
    flags: list[str] = field(default_factory=list)
    """Why to look at it: doubts first, then how it stands out."""
    cells: list[tuple[str, str, str, bool]] = field(default_factory=list)
    """Key, value for sorting, text, and whether it stands out, in the order of `MEASURES`."""


@dataclass(frozen=True, kw_only=True)
class QualityPage:
    """What was written."""

    url: str
    """The page's absolute path or URL."""
    num_scans: int
    """Scans on it, without those that could not be used."""
    flagged: tuple[str, ...]
    """Ids of the scans with at least one flag, those with most flags first."""

    def line(self) -> str:
        """One line for a terminal."""
        count = f"{len(self.flagged)} of {self.num_scans} scans flagged"
        names = ", ".join(self.flagged[:3]) + (", ..." if len(self.flagged) > 3 else "")
        return f"quality page {self.url}: {count}{f' ({names})' if names else ''}"


def quality_url(store: str, out: str = "") -> str:
    """Where the quality page of a store goes.

    Args:
        store: Local path or URL of the store.
        out: The page's place, a local path or an fsspec URL; where it is empty, beside the store,
            with `-qc.html` for its ending `.zarr`.

    Raises:
        ConfigError: `out` does not end in `.html`, or is empty and the store is a whole bucket,
            which has nothing beside it.
    """
    store = files.normalise(store)
    if out:
        return html.page_url(out)
    if files.is_remote(store) and "/" not in store.split("://", 1)[1]:
        raise ConfigError(f"{store} is a whole bucket: say where the quality page goes with --qc")
    return f"{store.removesuffix('.zarr')}-qc.html"


def write_quality_page(cohort: Cohort, out: str = "") -> QualityPage:
    """Write the quality page of a sealed cohort.

    Args:
        cohort: The cohort.
        out: As for `quality_url`.

    Returns:
        Where it is, and which scans are flagged. The file is replaced whole.

    Raises:
        ConfigError: see `quality_url`.
    """
    out = quality_url(cohort.url, out)
    with tempfile.TemporaryFile() as pictures:
        scans = list(_look(cohort, pictures))
        limits = measures.find_limits([scan.measures for scan in scans])
        _flag(scans, limits)
        scans.sort(key=lambda scan: -len(scan.flags))
        pictures.seek(0)
        with files.replacing(out) as page:
            for piece in _render(cohort, scans, limits, pictures):
                page.write(piece.encode())
    flagged = tuple(scan.id for scan in scans if scan.flags)
    return QualityPage(url=out, num_scans=len(scans), flagged=flagged)


def _look(cohort: Cohort, pictures: IO[bytes]) -> Iterator[Scan]:
    """Measure each scan, and write a line with its pictures."""
    table = cohort.subjects.set_index("row", drop=False)
    rows = table.index.to_numpy()
    for start in range(0, cohort.attributes["num_rows"], CHUNK_VOLUMES):
        stop = min(start + CHUNK_VOLUMES, cohort.attributes["num_rows"])
        here = rows[(rows >= start) & (rows < stop)]
        if not len(here):
            continue
        image, brain = cohort.read("image", start, stop), cohort.read("brain", start, stop)
        lesion = cohort.read("lesion", start, stop) if cohort.has_lesion else None
        for row in here:
            k = int(row) - start
            mask = None if lesion is None else lesion[k]
            scan, drawn = _scan(table.loc[row], image[k], brain[k], mask)
            pictures.write(json.dumps(drawn, separators=(",", ":")).encode() + b"\n")
            yield scan


def _scan(
    line: "pd.Series[Any]",
    image: NDArray[np.floating],
    brain: NDArray[np.bool_],
    lesion: NDArray[np.bool_] | None,
) -> tuple[Scan, dict[str, Any]]:
    columns = np.linalg.norm(np.asarray(line["affine"], np.float64)[:3, :3], axis=0)
    z, y, x = (float(mm) for mm in columns[::-1])
    measures = measure_scan(image, brain, lesion, spacing_mm=(z, y, x))
    notes = [note for note in str(line["notes"]).split("; ") if note]
    scan = Scan(
        row=int(line["row"]),
        id=str(line["id"]),
        subject=str(line["subject"]),
        scanner=str(line["scanner"]),
        split=str(line["split"]),
        modality=str(line["modality"]),
        source=str(line["source"]),
        notes=tuple(note for note in notes if not note.startswith(DOUBT)),
        doubts=tuple(note.removeprefix(DOUBT) for note in notes if note.startswith(DOUBT)),
        size_mm=(z * image.shape[0], y * image.shape[1], x * image.shape[2]),
        measures=measures,
    )
    planes = picture(image, brain, lesion, spacing_mm=(z, y, x))
    return scan, {"row": scan.row, "planes": planes, "shares": _permille(measures.histogram)}


def _permille(shares: NDArray[np.float64]) -> list[int]:
    return [round(1000 * share) for share in shares.tolist()]


def _flag(scans: Sequence[Scan], limits: Sequence[Limits]) -> None:
    """Fill in flags and cells, in place."""
    alike = measures.same_voxels([scan.measures for scan in scans])
    outliers = [limit.is_outlier for limit in limits]
    for k, scan in enumerate(scans):
        scan.flags.extend(scan.doubts)
        scan.flags.extend(measures.own_doubts(scan.measures))
        if alike[k]:
            first = [scans[other].id for other in alike[k][:3]]
            more = len(alike[k]) - len(first)
            names = ", ".join(first) + (f" and {more} more" if more else "")
            scan.flags.append(f"holds the same voxels as {names}")
        for limit, outlier in zip(limits, outliers, strict=True):
            value = float(limit.values[k])
            if outlier[k]:
                scan.flags.append(limit.reason(k))
            known = bool(np.isfinite(value))
            cell = (f"{value:.6g}", limit.measure.text(value)) if known else ("", ABSENT)
            scan.cells.append((limit.measure.key, *cell, bool(outlier[k])))


def _render(
    cohort: Cohort, scans: Sequence[Scan], limits: Sequence[Limits], pictures: IO[bytes]
) -> Iterator[str]:
    """The page in pieces; every string from the store is escaped on its way in."""
    mean = measures.mean_histogram([scan.measures for scan in scans])
    yield from (
        html.environment()
        .get_template("qc.html.j2")
        .generate(
            cohort=cohort,
            version=__version__,
            style=html.style("report.css", "qc.css"),
            **html.script("report.js", "qc.js"),
            scans=scans,
            folder=_common_folder([scan.source for scan in scans]),
            num_flagged=sum(bool(scan.flags) for scan in scans),
            num_doubted=sum(bool(scan.doubts) for scan in scans),
            quarantine=cohort.quarantine,
            limits=limits,
            shown=_limit_rows(limits),
            measures=MEASURES,
            scanners=_scanners(scans, limits),
            people=spreads(cohort),
            parts=Counter(scan.split for scan in scans),
            size_mm=np.max([scan.size_mm for scan in scans], axis=0).tolist(),
            cohort_shares=json.dumps(_permille(mean)),
            pictures=_lines(pictures),
            max_z=measures.MAX_Z,
            min_scans=measures.MIN_SCANS,
            mirror_margin=measures.MIRROR_MARGIN,
            max_side=MAX_SIDE,
        )
    )


def _common_folder(sources: Sequence[str]) -> str:
    """The folder, with its last slash, that all sources begin with; empty where there is none."""
    # Sources may be URLs, which commonpath does not know.
    folder, slash, _ = os.path.commonprefix(list(sources)).rpartition("/")  # noqa: RUF071
    return folder + slash


def _lines(pictures: IO[bytes]) -> Iterator[tuple[int, Markup]]:
    """Row and JSON of each picture; digits, base64 and path letters need no escaping."""
    for line in pictures:
        text = line.decode().rstrip("\n")
        yield int(json.loads(text)["row"]), Markup(text)


def _limit_rows(limits: Sequence[Limits]) -> list[dict[str, Any]]:
    """The table of measures."""
    cells = []
    for limit in limits:
        text = limit.measure.text
        known = bool(np.isfinite(limit.median))
        cells.append(
            {
                "measure": limit.measure,
                "median": text(limit.median) if known else ABSENT,
                "spread": text(limit.spread) if known else ABSENT,
                "low": text(limit.low) if known and np.isfinite(limit.low) else ABSENT,
                "high": text(limit.high) if known and np.isfinite(limit.high) else ABSENT,
                "count": int(limit.is_outlier.sum()),
            }
        )
    return cells


def _scanners(scans: Sequence[Scan], limits: Sequence[Limits]) -> list[dict[str, Any]]:
    """The table of scanners: medians of each measure, so that one that differs is seen."""
    names = sorted({scan.scanner for scan in scans})
    # `limits` hold the scans in row order, the page has those with most flags on top.
    in_order = sorted(scans, key=lambda scan: scan.row)
    rows = []
    for name in names:
        here = np.array([scan.scanner == name for scan in in_order])
        medians = []
        for limit in limits:
            values = limit.values[here]
            values = values[np.isfinite(values)]
            text = limit.measure.text
            medians.append(text(float(np.median(values))) if values.size else ABSENT)
        own = [scan for scan in in_order if scan.scanner == name]
        rows.append(
            {
                "name": name,
                "count": len(own),
                "subjects": len({scan.subject for scan in own}),
                "flagged": sum(bool(scan.flags) for scan in own),
                "medians": medians,
            }
        )
    return rows
