"""What decides a cohort's content, and the lines of its tables."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from uadray import files
from uadray.config import to_json
from uadray.preparation.identity import Source, look_at
from uadray.preparation.layouts import PHANTOM_SCHEME, Scan
from uadray.preparation.layouts.listing import printable
from uadray.preparation.settings import PrepareConfig, SplitConfig
from uadray.preparation.steps import PreparedVolume, record
from uadray.store import Split, Subject
from uadray.strata import SCANNER

Rows = Sequence[tuple[Scan, Split]]
"""Scans in the order of a cohort's rows, each with its part."""


def make_plan(
    rows: Rows, config: PrepareConfig, split: SplitConfig, *, seed: int
) -> dict[str, Any]:
    """What decides a cohort's content besides `planned_scans`, as a JSON value."""
    phantom = rows[0][0].image.startswith(PHANTOM_SCHEME)
    lesions = any(scan.synthetic_lesion for scan, _ in rows)
    steps = [{"step": "make_subject"}] if phantom else record(config, lesions=lesions)
    settings = to_json(config)
    if not lesions:
        del settings["lesion"]
    if settings["resize"] == "average":
        del settings["resize"]  # as plans of earlier versions, which knew no other
    subjects = {(scan.subject, part) for scan, part in rows}
    return {
        "seed": seed,
        "config": settings,
        "steps": steps,
        "split": {
            "preset": split.preset,
            "by": "subject",
            # As plans of earlier versions, which knew no other.
            "stratified_by": SCANNER if split.stratify_by == (SCANNER,) else [*split.stratify_by],
            "subjects": dict(Counter(part for _, part in sorted(subjects))),
        },
    }


def planned_scans(rows: Rows) -> Iterator[dict[str, Any]]:
    """What a cohort's list of scans says of each, as JSON values.

    Paths stand relative to their common folder, so that a cohort is the same wherever its scans
    lie, and without what is secret in signed URLs.
    """
    prefix = _common_folder([path for scan, _ in rows for path in scan.paths])

    def public(path: str) -> str:
        return files.without_secrets(path).removeprefix(files.without_secrets(prefix))

    for scan, part in rows:
        fields = {key: value for key, value in asdict(scan).items() if value}
        fields.pop("template", None)  # it lies beside the mask
        fields.pop("covariates", None)  # they decide nothing in the volumes
        for key in ("image", "brain", "lesion"):
            if key in fields:
                fields[key] = public(fields[key])
        if scan.more_lesions:
            fields["more_lesions"] = list(map(public, scan.more_lesions))
        if scan.synthetic_lesion:
            fields["synthetic_lesion"] = scan.synthetic_lesion.rsplit("/", 1)[-1]
        yield {**fields, "split": part}


def sources(rows: Rows) -> list[Source]:
    """Each scan's files as they lie there, not read."""
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(lambda row: look_at(row[0]), rows))


def subject_of(
    row: int, scan: Scan, split: Split, volume: PreparedVolume, source: Source, digest: str
) -> Subject:
    """A prepared scan's line in the table of subjects.

    Args:
        row: Of the cohort.
        scan: What was prepared.
        split: Its part.
        volume: What came of it.
        source: Its files, as they lay there before they were read.
        digest: Of their content, from `identity.digest_of`.
    """
    return Subject(
        row=row,
        id=scan.id,
        subject=scan.subject,
        scanner=volume.scanner,
        split=split,
        modality=scan.modality,
        affine=tuple(tuple(map(float, line)) for line in volume.affine),
        source=files.without_secrets(printable(scan.image)),
        source_bytes=source.num_bytes,
        source_digest=digest,
        source_stamp=source.stamp,
        image_digest=volume.image_digest,
        brain_ml=volume.brain_ml,
        lesion_ml=volume.lesion_ml,
        notes=printable(volume.notes),
    )


def _common_folder(paths: Sequence[str]) -> str:
    prefix = os.path.commonprefix(paths)  # noqa: RUF071 (it is cut to whole folders below)
    return prefix[: prefix.rfind("/") + 1]
