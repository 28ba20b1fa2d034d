"""One scan as one HTML file: the scan, its scores, the proposal and the truth in NiiVue.

    page = write_case("runs/out/sub-30/viewer.html", scan="sub-30_T1w.nii.gz",
                      anomaly="sub-30_desc-anomaly_probseg.nii.gz", summary=summary)
    write_index("runs/out/index.html", [page])

A page opens by double click, holds all that it shows, and asks no network for anything. NiiVue
stands in it packed (1.1 MB of every page); the volumes are quantised as `viewer_volumes` says.
"""

import base64
import gzip
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from importlib import resources
from typing import Any
from urllib.parse import quote

import numpy as np
from markupsafe import Markup

from uadray import __version__, files, html
from uadray.errors import ConfigError
from uadray.html import data_uri
from uadray.viewer.standing import Placed
from uadray.viewer.volumes import (
    PROPOSAL,
    TRUTH,
    CaseVolumes,
    Levels,
    Source,
    encode,
    load_volumes,
    thumbnail,
)

NIIVUE = "niivue-0.69.0.umd.js"
"""File in `vendor/`."""

NIIVUE_SHA256 = "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"
"""Of that file."""

MAX_PAGE_BYTES = 32_000_000
"""Largest page that is written."""

FIGURES = {
    "threshold": ("Frozen threshold", ""),
    "volume_ml": ("Proposal", "mL"),
    "num_components": ("Components", ""),
    "largest_ml": ("Largest component", "mL"),
    "score": ("Highest score", ""),
    "slice": ("Slice with the highest score", ""),
    "spread": ("Spread over members there", ""),
    "brain_ml": ("Brain", "mL"),
    "dice": ("Dice with the truth", ""),
    "truth_ml": ("Truth", "mL"),
    "method": ("Method", ""),
    "run": ("Run", ""),
    "fingerprint": ("Run's fingerprint", ""),
    "seconds": ("Time", "s"),
}
"""Keys of a summary that have a name on the page; other single values follow under their keys."""

_HIDDEN = {"warnings", "files", "slice_scores", "id", "name"}


@dataclass(frozen=True, kw_only=True)
class CasePage:
    """One page that was written, and what an index says of it."""

    url: str
    """Local path or URL of the page."""
    name: str
    """Of the case."""
    summary: Mapping[str, Any]
    """As given to `write_case`, with `score`, and with `volume_ml`, `truth_ml` and `dice` where
    their masks were given."""
    thumbnail: bytes
    """PNG."""
    num_bytes: int
    """Size of the page."""
    shape: tuple[int, int, int] | None
    """Voxels (X, Y, Z) on the page; None where it was not made just now."""


def write_case(
    out: str,
    *,
    scan: Source,
    anomaly: Source,
    proposal: Source | None = None,
    reconstruction: Source | None = None,
    spread: Source | None = None,
    truth: Source | None = None,
    brain: Source | None = None,
    summary: Mapping[str, Any] | None = None,
    placed: Placed | None = None,
    name: str | None = None,
    index: str | None = None,
) -> CasePage:
    """Write the page of one case, and its thumbnail beside it (`.png` for `.html`).

    Args:
        out: The page, ending in `.html`; a local path or an fsspec URL. Replaced whole.
        scan: As for `load_volumes`, as are the other volumes: images of nibabel or NIfTI files, all
            on the scan's grid.
        anomaly: Scores; higher means more anomalous.
        proposal: Mask of what the method proposes.
        reconstruction: The scan as the method would have it.
        spread: Standard deviation of the scores over the members of an ensemble; the page shows it
            on demand.
        truth: Mask of the known lesion.
        brain: Brain mask; the page is cut to its box. Where None, the voxels with a score.
        summary: Figures of the case, shown as they are; `FIGURES` says which keys have a name.
            `threshold` is the frozen threshold; `warnings`, a list of texts, stands above all else.
        placed: Where the person stands among healthy people.
        name: Head of the page; by default `id` or `name` of the summary, else the file's name.
        index: Where the index page will stand; the page then links to it.

    Returns:
        What was written.

    Raises:
        ConfigError: `out` does not end in `.html`, a volume lies on another grid than the scan, or
            the page would be over `MAX_PAGE_BYTES`.
    """
    out = html.page_url(out)
    given = dict(summary or {})
    threshold = None if given.get("threshold") is None else float(given["threshold"])
    volumes = load_volumes(
        scan=scan,
        anomaly=anomaly,
        proposal=proposal,
        reconstruction=reconstruction,
        spread=spread,
        truth=truth,
        brain=brain,
        threshold=threshold,
    )
    title = str(name or given.get("id") or given.get("name") or out.rsplit("/", 1)[-1][:-5])
    figures = _counted(volumes) | given
    held = _volumes(volumes)
    page = _render(
        title, volumes, held, figures, threshold, placed=placed, out=out, index=index
    ).encode()
    if len(page) > MAX_PAGE_BYTES:
        sizes = ", ".join(f"{key} {len(text) / 1e6:.1f} MB" for key, text in held.items())
        raise ConfigError(
            f"the page of {title} would take {len(page) / 1e6:.1f} MB, over the limit of "
            f"{MAX_PAGE_BYTES / 1e6:.0f} MB ({sizes}): leave out the reconstruction, or pass "
            "volumes of a coarser grid"
        )
    picture = thumbnail(volumes, threshold)
    files.write_bytes(out[:-5] + ".png", picture)
    files.write_bytes(out, page)
    x, y, z = volumes.scan.shape
    return CasePage(
        url=out,
        name=title,
        summary=figures,
        thumbnail=picture,
        num_bytes=len(page),
        shape=(x, y, z),
    )


def open_case(url: str, summary: Mapping[str, Any], name: str | None = None) -> CasePage:
    """A page that was written before, with its thumbnail from beside it, for an index.

    Args:
        url: The page.
        summary: Figures of the case, as for `write_case`; `score` and `volume_ml` are not counted
            again, so give those that `write_case` returned.
        name: As for `write_case`.

    Raises:
        FileNotFoundError: the page or its thumbnail is not there.
    """
    url = html.page_url(url)
    title = str(name or summary.get("id") or summary.get("name") or url.rsplit("/", 1)[-1][:-5])
    return CasePage(
        url=url,
        name=title,
        summary=dict(summary),
        thumbnail=files.read_bytes(url[:-5] + ".png"),
        num_bytes=_size(url),
        shape=None,
    )


def write_index(
    out: str, cases: Iterable[CasePage], *, title: str = "Scans, the strangest first"
) -> str:
    """Write the page that leads to the pages of a folder, sorted by their highest score.

    Args:
        out: The page, ending in `.html`; a local path or an fsspec URL. Replaced whole.
        cases: Pages on the same file system; those below `out`'s folder are linked relatively, so
            that the folder can be moved.
        title: Its head.

    Returns:
        The page's absolute path or URL.

    Raises:
        ConfigError: `out` does not end in `.html`.
    """
    out = html.page_url(out)
    ordered = sorted(cases, key=lambda case: (-_score(case), case.name))
    page = (
        html.environment()
        .get_template("viewer_index.html.j2")
        .render(
            title=title,
            version=__version__,
            made=datetime.now(UTC),
            style=html.style("viewer.css"),
            has_truth=any("truth_ml" in case.summary for case in ordered),
            **html.script("viewer_index.js"),
            cases=[
                {
                    "name": case.name,
                    "href": _link(out, case.url),
                    "thumbnail": data_uri(case.thumbnail),
                    "figures": _figures(
                        {k: case.summary[k] for k in _ON_CARDS if k in case.summary}
                    ),
                    "warnings": [str(w) for w in case.summary.get("warnings") or ()],
                    "score": max(_score(case), -1e308),
                    "volume": float(case.summary.get("volume_ml") or 0.0),
                }
                for case in ordered
            ],
        )
    )
    files.write_bytes(out, page.encode())
    return out


_ON_CARDS = ("score", "volume_ml", "num_components", "dice")


def _score(case: CasePage) -> float:
    value = case.summary.get("score")
    return float("-inf") if value is None else float(value)


def _counted(volumes: CaseVolumes) -> dict[str, Any]:
    """Figures that follow from the volumes; those of the summary go before them."""
    figures: dict[str, Any] = {"score": float(volumes.slice_scores.max())}
    if volumes.labels is None or volumes.factor > 1:
        return figures
    ml = abs(float(np.linalg.det(volumes.affine[:3, :3]))) / 1000
    proposal, truth = (volumes.labels & bit > 0 for bit in (PROPOSAL, TRUTH))
    if volumes.has_proposal:
        figures["volume_ml"] = float(proposal.sum()) * ml
    if volumes.has_truth:
        figures["truth_ml"] = float(truth.sum()) * ml
    if volumes.has_proposal and volumes.has_truth and (proposal | truth).any():
        figures["dice"] = 2 * float((proposal & truth).sum()) / float(proposal.sum() + truth.sum())
    return figures


def _volumes(volumes: CaseVolumes) -> dict[str, str]:
    held = {
        "scan": encode(volumes.scan, volumes.affine, volumes.scan_levels),
        "anomaly": encode(volumes.anomaly, volumes.affine, volumes.anomaly_levels),
    }
    if volumes.reconstruction is not None:
        levels = volumes.reconstruction_levels
        held["reconstruction"] = encode(volumes.reconstruction, volumes.affine, levels)
    if volumes.spread is not None:
        held["spread"] = encode(volumes.spread, volumes.affine, volumes.spread_levels)
    if volumes.labels is not None:
        held["labels"] = encode(volumes.labels, volumes.affine)
    return held


def _render(
    title: str,
    volumes: CaseVolumes,
    held: Mapping[str, str],
    summary: Mapping[str, Any],
    threshold: float | None,
    *,
    placed: Placed | None,
    out: str,
    index: str | None,
) -> str:
    niivue, packed = _niivue()
    case = {
        "threshold": threshold,
        "shape": list(volumes.scan.shape),
        "scan": _plain(volumes.scan_levels),
        "anomaly": _plain(volumes.anomaly_levels),
        "reconstruction": volumes.reconstruction_levels and _plain(volumes.reconstruction_levels),
        "spread": volumes.spread_levels and _plain(volumes.spread_levels),
        "slices": [float(f"{score:.6g}") for score in volumes.slice_scores],
        "truth": _slices(volumes, TRUTH),
        "proposal": _slices(volumes, PROPOSAL),
        "hasTruth": volumes.has_truth,
        "hasProposal": volumes.has_proposal,
        "peak": list(volumes.peak),
        "file": list(volumes.file_slices),
        "factor": volumes.factor,
    }
    return (
        html.environment()
        .get_template("viewer.html.j2")
        .render(
            title=title,
            version=__version__,
            made=datetime.now(UTC),
            style=html.style("viewer.css"),
            **html.script("viewer.js"),
            niivue_digest=niivue,
            niivue=packed,
            case=Markup(json.dumps(case, allow_nan=False).replace("<", "\\u003c")),
            volumes=held,
            sizes={key: len(text) / 1e6 for key, text in held.items()},
            volumes_shape=volumes.scan.shape,
            factor=volumes.factor,
            has_truth=volumes.has_truth,
            has_proposal=volumes.has_proposal,
            threshold=threshold,
            figures=_figures(summary),
            placed=placed,
            absent=html.ABSENT,
            warnings=[str(warning) for warning in summary.get("warnings") or ()],
            index=None if index is None else _link(out, html.page_url(index)),
        )
    )


def _plain(levels: Levels) -> dict[str, float]:
    return {"low": levels.low, "slope": levels.slope}


def _slices(volumes: CaseVolumes, bit: int) -> list[int]:
    """Axial slices that hold a voxel of that label."""
    if volumes.labels is None:
        return []
    return [int(z) for z in np.flatnonzero((volumes.labels & bit).any((0, 1)))]


def _figures(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and texts of all single values, those that have a name of their own first."""
    known = [(*FIGURES[key], summary[key]) for key in FIGURES if summary.get(key) is not None]
    rest = [
        (key.replace("_", " "), "", value)
        for key, value in summary.items()
        if key not in FIGURES and key not in _HIDDEN and isinstance(value, str | int | float)
    ]
    return [(head, f"{_text(value)} {unit}".rstrip()) for head, unit, value in known + rest]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _link(page: str, target: str) -> str:
    """From one page to another: relative where both lie on one file system."""
    if files.is_remote(page) and not target.startswith(page.split("://")[0] + "://"):
        return target
    here, there = (url.split("://", 1)[-1] for url in (page, target))
    return quote(os.path.relpath(there, os.path.dirname(here)))


def _size(url: str) -> int:
    fs, path = files.located(url)
    return int(fs.size(path) or 0)


@lru_cache(maxsize=1)
def _niivue() -> tuple[str, str]:
    """NiiVue's digest for the policy, and the base64 of its gzip."""
    content = (resources.files("uadray.viewer") / "vendor" / NIIVUE).read_bytes()
    if hashlib.sha256(content).hexdigest() != NIIVUE_SHA256:
        raise ConfigError(f"vendor/{NIIVUE} is damaged: install uadray again")
    return html.digest(content), base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()
