"""Is a cohort what was written, and does it hold what a cohort promises?"""

import json
import shlex
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from uadray import files
from uadray.errors import StoreError
from uadray.plugins import Package
from uadray.store.cohort import Cohort
from uadray.store.layout import (
    COVARIATES,
    SCANS,
    Subject,
    array_documents,
    document_digest,
    file_digest,
    lines_digest,
    read_attributes,
    scans_of,
    small_files,
)
from uadray.store.parts import Arrays, Part, Summary, read_part, read_rows

ML_TOLERANCE = 1e-6
"""Relative, between a volume in the table and its mask's voxels: rounding alone."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong with a cohort."""

    what: str
    """In a sentence that names the place."""
    rows: tuple[int, ...] = ()
    """Rows that are to be prepared again; empty where sealing again is enough."""
    ids: tuple[str, ...] = ()
    """Names of their scans, where they are known."""
    unfinished: bool = False
    """Whether it is no damage, but still to be done."""

    def __str__(self) -> str:
        if not self.ids:
            return self.what
        more = f" and {len(self.ids) - 16} more" if len(self.ids) > 16 else ""
        return f"{self.what}; prepare again: {', '.join(self.ids[:16])}{more}"


def verify(url: str) -> list[Problem]:
    """Check a cohort, sealed or not, down to every voxel.

    It follows the digests from the seal over the small files to the voxels, and looks whether the
    content keeps its promises: finite intensities in [0, 1] that are 0 outside the brain, lesions
    inside the brain, the stated volumes, empty rows for quarantined scans.

    Returns:
        What is wrong; empty if all holds.

    Raises:
        StoreError: there is no cohort at all.
    """
    url = files.normalise(url)
    cohort = Cohort(url=url, attributes=read_attributes(url))
    num_rows, content = int(cohort.attributes["num_rows"]), Summary()
    problems, unwritten = [], []
    present = set(files.list_names(files.join(url, "parts")))
    for shard in range(-(-num_rows // cohort.shard)):
        rows = range(shard * cohort.shard, min(num_rows, (shard + 1) * cohort.shard))
        if f"{shard:05d}.json" not in present:
            unwritten += list(rows)
            continue
        try:
            part = read_part(url, shard, rows)
        except StoreError as error:
            problems.append(Problem(what=str(error), rows=tuple(rows)))
            continue
        content.add(part)
        problems += _check_rows(cohort, shard, part, rows)
    if unwritten:
        what = f"{len(unwritten)} of {num_rows} rows are not written"
        problems.append(Problem(what=what, rows=tuple(unwritten), unfinished=True))
    return [*_check_frame(cohort, None if problems else content), *_named(url, problems)]


def _named(url: str, problems: list[Problem]) -> list[Problem]:
    """The problems, with their scans' names from the list of scans where no record names them."""
    nameless = {row for problem in problems if not problem.ids for row in problem.rows}
    names: dict[int, str] = {}
    with suppress(FileNotFoundError, ValueError, KeyError, TypeError):  # absent or damaged
        for row, line in enumerate(scans_of(url) if nameless else ()):
            if row in nameless:
                names[row] = str(json.loads(line)["id"])
    return [
        replace(p, ids=p.ids or tuple(names[row] for row in p.rows if row in names))
        for p in problems
    ]


def _check_frame(cohort: Cohort, content: Summary | None) -> Iterator[Problem]:
    """The seal, and the files that it vouches for."""
    attributes = dict(cohort.attributes)
    seal: dict[str, Any] | None = attributes.pop("seal", None)
    scans = _check_scans(cohort)
    yield from scans
    if seal is None:
        yield Problem(what="not sealed: the job that makes it did not finish", unfinished=True)
        documents = {p: file_digest(c) for p, c in array_documents(attributes).items()}
    else:
        documents = seal.get("files", {})
        if document_digest(attributes) != seal.get("attributes"):
            yield Problem(what="zarr.json: its attributes differ from what was sealed")
        elif set(documents) != set(small_files(attributes)):
            yield Problem(what="zarr.json: the seal does not name the cohort's files")
        elif (
            content is not None
            and not scans
            and not content.of(attributes, scans_of(cohort.url)).items() <= seal.items()
        ):
            yield Problem(what="zarr.json: the fingerprint or a count does not fit the content")
    if seal is not None:
        try:
            _ = cohort.covariates
        except StoreError as error:
            if COVARIATES in str(error):  # the table of subjects is named below
                yield Problem(what=str(error).removeprefix(f"{cohort.url}/"))
    for path, digest in documents.items():
        try:
            frame = files.read_bytes(files.join(cohort.url, path))
        except FileNotFoundError:
            if not path.startswith("parts/"):  # named with its rows
                yield Problem(what=f"{path} is missing")
            continue
        if file_digest(frame) != digest:
            yield Problem(what=f"{path} differs from what was written")


def _check_scans(cohort: Cohort) -> list[Problem]:
    """The list of scans, of which the attributes hold the digest."""
    try:
        differs = lines_digest(scans_of(cohort.url)) != cohort.attributes["scans_digest"]
    except FileNotFoundError:
        return [Problem(what=f"{SCANS} is missing")]
    return [Problem(what=f"{SCANS} differs from what was written")] if differs else []


def _check_rows(cohort: Cohort, shard: int, part: Part, rows: range) -> list[Problem]:
    """Every row of one shard; rows with the same damage are one problem."""
    subjects = {subject.row: subject for subject in part.subjects}
    wrong: dict[str, list[int]] = {}
    for row, content in zip(rows, read_rows(cohort, shard, part.digests), strict=True):
        problems = [content] if isinstance(content, str) else broken(content, subjects.get(row))
        for what in problems:
            wrong.setdefault(what, []).append(row)
    return [
        Problem(
            what=f"shard {shard}: {what}",
            rows=tuple(where),
            ids=tuple(part.ids[row] for row in where),
        )
        for what, where in wrong.items()
    ]


def broken(row: Arrays, subject: Subject | None) -> list[str]:
    """The promises that one row breaks, each in a few words.

    Args:
        row: Its arrays, (Z, Y, X).
        subject: Its line in the table; None where the row is to be empty.
    """
    image, brain = row["image"], row["brain"]
    lesion = row.get("lesion", np.zeros_like(brain))
    if subject is None:
        return ["a quarantined row is not empty"] if image.any() or brain.any() else []
    voxel_ml = abs(np.linalg.det(np.array(subject.affine)[:3, :3])) / 1000
    stated = [(subject.brain_ml, brain), (subject.lesion_ml, lesion)]
    promises = {
        "an intensity is outside [0, 1]": bool(((image >= 0) & (image <= 1)).all()),
        "the brain mask is empty": bool(brain.any()),
        "the image is not 0 outside the brain": not image[~brain].any(),
        "a lesion mask is empty": "lesion" not in row or bool(lesion.any()),
        "a lesion lies outside the brain": not (lesion & ~brain).any(),
        "a stated volume does not fit its mask": all(
            np.isclose(ml, mask.sum() * voxel_ml, rtol=ML_TOLERANCE, atol=0) for ml, mask in stated
        ),
    }
    return [what for what, holds in promises.items() if not holds]


def advice(url: str, problems: list[Problem]) -> str:
    """The command that mends what `verify` found at `url`."""
    url = files.normalise(url)
    attributes = read_attributes(url)
    command = attributes.get("command") or "the command that made it, with"
    redo = "" if all(problem.unfinished for problem in problems) else " --redo damaged"
    layout = attributes.get("layout")
    needs = f"  # needs {Package(**layout['package'])}" if layout else ""
    return f"{command} --out {shlex.quote(url)}{redo}{needs}"
