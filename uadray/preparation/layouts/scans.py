"""What a layout yields, and what all layouts share: naming modalities, refusing."""

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Protocol

from uadray import files
from uadray.errors import NoLesionMaskError, NoScanFoundError, ScanError
from uadray.preparation.layouts.listing import (
    IMAGE_ENDINGS,
    LeftOut,
    Listing,
    find_files,
    left_out_lines,
    printable,
)
from uadray.preparation.layouts.naming import recognise

__all__ = [
    "IMAGE_ENDINGS",
    "PHANTOM_SCHEME",
    "Layout",
    "Scan",
    "Scans",
    "canonical_modality",
    "checked",
    "find_files",
    "nothing_found",
    "phantom_url",
    "read_phantom_url",
    "stem",
    "with_lesion_mask",
]

_log = logging.getLogger(__name__)

PHANTOM_SCHEME = "phantom://"
"""Scans with it are made, not read: `phantom://v2/stroke/17` is subject 17 of the kind stroke, by
version 2 of how phantoms are made. Without `v2/` it is version 1, as in older cohorts."""


def phantom_url(kind: str, seed: int, version: int) -> str:
    """The image of a phantom."""
    return f"{PHANTOM_SCHEME}{f'v{version}/' if version > 1 else ''}{kind}/{seed}"


def read_phantom_url(image: str) -> tuple[str, int, int]:
    """Kind, seed and version of a phantom.

    Raises:
        ScanError: it is not as `phantom_url` writes it.
    """
    match = re.fullmatch(rf"{PHANTOM_SCHEME}(?:v(\d+)/)?(\w+)/(\d+)", image)
    if match is None:
        raise ScanError(
            f"{image}: expected a phantom such as {phantom_url('stroke', 17, 2)}: version, kind "
            "(healthy, tumour or stroke) and seed"
        )
    return match[2], int(match[3]), int(match[1] or 1)


@dataclass(frozen=True, kw_only=True)
class Scan:
    """One series of one subject at one session, and the masks that come with it."""

    id: str
    """Unique in the data set, such as `sub-17` or `sub-17_ses-2`."""
    subject: str
    """The person: all scans of one share it."""
    image: str
    """Path or URL of the NIfTI file or Analyze image, or `phantom://VERSION/KIND/SEED`."""
    modality: str
    """By one name in all sets: T1w, T1ce, T2w, FLAIR, PDw, or as the set calls it."""
    session: str = ""
    """Empty where there is only one."""
    scanner: str = ""
    """Scanner or site; empty where the set does not say."""
    brain: str = ""
    """Path of the brain mask; empty for a scan without its skull."""
    lesion: str = ""
    """Path of the lesion mask; empty where there is none."""
    more_lesions: tuple[str, ...] = ()
    """Paths of further lesion masks: what is lesion in any of them is lesion."""
    lesion_labels: tuple[int, ...] = ()
    """Values of the lesion mask that count as lesion; empty where all above 0 do."""
    synthetic_lesion: str = ""
    """Path of the real lesion mask that a semi-synthetic lesion is made from; mostly empty."""
    template: str = ""
    """Path of the brain in whose space that mask is; empty where its placement has none."""
    orientation: str = ""
    """Where the axes of a file that does not record it run, such as LAS: to the left, the front
    and the top. Empty where files record it."""
    notes: str = ""
    """What the layout knows that a reader of the result must know."""
    covariates: tuple[tuple[str, str], ...] = ()
    """What tables say of the person besides, such as `("age", "43")`: column and cell. A mapping is
    taken, too. It decides nothing in a cohort's voxels."""

    def __post_init__(self) -> None:
        pairs = ((printable(str(k)), printable(str(v))) for k, v in dict(self.covariates).items())
        object.__setattr__(self, "covariates", tuple(pairs))
        # Tables and pages are UTF-8; only the paths of the files keep what is not.
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, str) and field.name not in _PATHS:
                object.__setattr__(self, field.name, printable(value))

    @property
    def paths(self) -> tuple[str, ...]:
        """Its own files; none of a phantom's."""
        if self.image.startswith(PHANTOM_SCHEME):
            return ()
        own = (self.image, self.brain, self.lesion, *self.more_lesions)
        return tuple(path for path in own if path)

    @property
    def lesioned(self) -> bool:
        """Whether the scan has, or is to be given, a lesion of known place."""
        return bool(
            self.lesion
            or self.synthetic_lesion
            or (self.image.startswith(PHANTOM_SCHEME) and "/healthy/" not in self.image)
        )


_PATHS = ("image", "brain", "lesion", "synthetic_lesion", "template")


class Scans(list[Scan]):
    """The scans that a layout found, sorted by id, and what it left out."""

    def __init__(self, scans: Iterable[Scan], left_out: Iterable[LeftOut] = ()) -> None:
        super().__init__(scans)
        self.left_out = tuple(left_out)
        """Files that could have been scans, each with the reason why it is none."""
        self.remarks: tuple[str, ...] = ()
        """What could not be read besides, such as a table of scanners."""

    def lines(self, root: str = "") -> list[str]:
        """How many were found and left out, and which; for the terminal."""
        return [*left_out_lines(len(self), self.left_out, root), *self.remarks]


class Layout(Protocol):
    """Finds the scans of one modality in a folder (or table), sorted by id.

    The default of `modality` is the one that the set is mostly used with.
    """

    __name__: str

    def __call__(self, root: str, modality: str = ...) -> Scans:
        """Find the scans.

        Raises:
            NoScanFoundError: there is none, two share an id or a file, or a folder cannot be read.
        """


_NAMES_OF = {
    "T1w": ("t1w", "t1", "t1n", "mprage"),
    "T1ce": ("t1ce", "t1c", "t1gd", "t1wks"),
    "T2w": ("t2w", "t2"),
    "FLAIR": ("flair", "t2f"),
    "PDw": ("pdw", "pd"),
}


def canonical_modality(name: str) -> str:
    """The one name for what sets call `t1`, `T1W`, `t1n` or `mprage`; others stay as they are."""
    known = (one for one, names in _NAMES_OF.items() if name.lower() in names)
    return next(known, name)


def stem(path: str) -> str:
    """The file's name without its ending."""
    return re.sub(r"\.(nii|img)(\.gz)?$", "", path.rsplit("/", 1)[-1], flags=re.IGNORECASE)


def checked(
    scans: Iterable[Scan],
    where: str,
    listing: Listing | None = None,
    reasons: Mapping[str, str] | None = None,
    others: str = "not named as the scans of this layout",
) -> Scans:
    """The scans sorted by id, with all else that the folder holds.

    Args:
        scans: What a layout found.
        where: The folder or table.
        listing: Of the folder; its files that belong to no scan are left out.
        reasons: File in the listing -> why it is.
        others: Why those are that have no reason of their own.

    Raises:
        NoScanFoundError: two of them share their id or their image.
    """
    scans, twins = _without_twins(sorted(scans, key=lambda scan: (scan.id, scan.image)))
    for field, advice in (
        ("id", "leave one of them out, or name the scans in a CSV with an id column"),
        ("image", "leave one of them out: a scan must not stand on two sides of a split"),
    ):
        counts = Counter(getattr(scan, field) for scan in scans)
        if twice := [name for name, count in counts.items() if count > 1]:
            other = "image" if field == "id" else "id"
            shared = [getattr(scan, other) for scan in scans if getattr(scan, field) == twice[0]]
            raise NoScanFoundError(
                f"{where}: {len(twice)} {field}s belong to more than one scan, first {twice[0]}: "
                f"{', '.join(shared)}; {advice}"
            )
    if listing is None:
        return Scans(scans, twins)
    used = {path for scan in scans for path in scan.paths} | {one.path for one in twins}
    rest = [
        LeftOut(path=files.join(where, name), reason=(reasons or {}).get(name, others))
        for name in listing
        if files.join(where, name) not in used and not name.lower().endswith(".json")
    ]
    return Scans(scans, [*rest, *twins, *listing.left_out])


def _without_twins(scans: list[Scan]) -> tuple[list[Scan], list[LeftOut]]:
    """Of scans of one id that are one file, reached by links, the one with the shortest path."""
    counts = Counter(scan.id for scan in scans)
    kept: list[Scan] = []
    twins = []
    places: dict[tuple[str, str], Scan] = {}
    for scan in sorted(scans, key=lambda scan: (len(scan.image), scan.image)):
        if counts[scan.id] > 1 and not files.is_remote(scan.image):
            first = places.setdefault((scan.id, os.path.realpath(scan.image)), scan)
            if first.image != scan.image:
                reason = "another link to a scan that is taken"
                twins.append(LeftOut(path=scan.image, reason=reason))
                continue
        kept.append(scan)
    return sorted(kept, key=lambda scan: (scan.id, scan.image)), twins


def with_lesion_mask(scans: Scans, where: str) -> Scans:
    """Those of a set of patients that have a lesion mask.

    The others' lesions are unknown (test parts whose masks are kept back): they may count neither
    as healthy nor as lesioned.

    Raises:
        NoScanFoundError: there are scans, and none has a mask.
    """
    kept = [scan for scan in scans if scan.lesion]
    bare = [
        LeftOut(path=scan.image, reason="without its lesion mask", scan=scan)
        for scan in scans
        if not scan.lesion
    ]
    if bare and not kept:
        error = NoLesionMaskError(
            f"{where}: {len(scans)} scans, first {scans[0].image}, but none has its lesion mask; "
            "get the part of the set that has masks, or name the scans in a CSV"
        )
        error.left_out = (*bare, *scans.left_out)
        raise error
    if bare:
        _log.warning("%s: %d scans have no lesion mask and are left out", where, len(bare))
    return Scans(kept, [*bare, *scans.left_out])


def nothing_found(
    where: str, *, looked_for: str, others: Iterable[str], what: str, advice: str, names: list[str]
) -> NoScanFoundError:
    """The error that says what was looked for, what is there, and which layout would fit.

    Args:
        where: The folder.
        looked_for: Naming of the files that were expected.
        others: What is there instead, such as other modalities.
        what: What `others` are.
        advice: What to do.
        names: All files there, relative to the folder; their naming may be another set's.
    """
    there = sorted(set(others))
    listed_files = ", ".join(there[:12]) + (
        f" and {len(there) - 12} more" if len(there) > 12 else ""
    )
    message = f"{where}: no scan found; looked for {looked_for}; {what}: {listed_files or 'none'}; "
    if not there:
        fitting = recognise(names)
        if fitting:
            listed = ", ".join(
                f"{name} ({len(matches)} files)" for name, matches in fitting.items()
            )
            advice = f"the files there are named as in layout {listed}"
        elif names:
            message += f"{len(names)} other files, first {names[0]}; "
        else:
            message += f"no file there ends in {', '.join(IMAGE_ENDINGS)}; "
    if left_out := getattr(names, "left_out", ()):
        message += "; ".join(line.strip() for line in left_out_lines(0, left_out, where)) + "; "
    return NoScanFoundError(message + advice)
