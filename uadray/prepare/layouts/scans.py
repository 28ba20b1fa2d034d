"""What a layout yields, and what all layouts share: listing files, naming modalities, refusing."""

import logging
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import fsspec

from uadray import files
from uadray.errors import NoScanFoundError
from uadray.prepare.layouts.naming import recognise

_log = logging.getLogger(__name__)

PHANTOM_SCHEME = "phantom://"
"""Scans behind it are made, not read: `phantom://stroke/17` is subject 17 of the kind stroke."""

IMAGE_ENDINGS = (".nii", ".nii.gz", ".img", ".img.gz")
"""How the files end that can hold a scan; an `.img` has its `.hdr` beside it."""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """One series of one subject at one session, and the masks that come with it."""

    id: str
    """Unique in the data set, such as `sub-17` or `sub-17_ses-2`."""
    subject: str
    """The person: all scans of one share it."""
    image: str
    """Path or URL of the NIfTI file or Analyze image, or `phantom://KIND/SEED`."""
    modality: str
    """By one name in all sets: T1w, T1ce, T2w, FLAIR, PDw, or as the set calls it."""
    session: str = ""
    """Empty where there is only one."""
    scanner: str = ""
    """Scanner or site; empty where the set does not tell."""
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
    orientation: str = ""
    """Where the axes of a file that does not record it run, such as LAS: to the left, the front
    and the top. Empty where files record it."""
    notes: str = ""
    """What the layout knows that a reader of the result must know."""

    @property
    def lesioned(self) -> bool:
        """Whether the scan has, or is to be given, a lesion of known place."""
        return bool(
            self.lesion
            or self.synthetic_lesion
            or (
                self.image.startswith(PHANTOM_SCHEME)
                and not self.image.startswith(PHANTOM_SCHEME + "healthy/")
            )
        )


class Layout(Protocol):
    """Finds the scans of one modality in a folder (or table), sorted by id.

    The default of `modality` is the one that the set is mostly used with.
    """

    __name__: str

    def __call__(self, root: str, modality: str = ...) -> list[Scan]:
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


def find_files(root: str, endings: tuple[str, ...] = IMAGE_ENDINGS) -> list[str]:
    """Paths of all files under `root` with one of the endings, relative to it, sorted.

    Links to folders are followed. Hidden files and folders are left out: they hold the copies that
    version control and macOS make.

    Raises:
        NoScanFoundError: there is no such folder, or it or one inside cannot be listed: a scan
            that is left out unnoticed is worse.
    """
    if not files.is_remote(root):
        return sorted(name for name in _walk(files.normalise(root)) if name.endswith(endings))
    fs, path = fsspec.core.url_to_fs(root)
    if not fs.exists(path):
        raise NoScanFoundError(f"{root}: no such folder; give the folder of the data set")
    prefix = path.rstrip("/") + "/"
    names = (found.removeprefix(prefix) for found in fs.find(path) if found.startswith(prefix))
    return sorted(n for n in names if n.endswith(endings) and "/." not in f"/{n}")


def _walk(root: str) -> Iterable[str]:
    """Files under a local folder, relative to it."""
    if not os.path.isdir(root):
        what = "is a file" if os.path.exists(root) else "no such folder"
        raise NoScanFoundError(f"{root}: {what}; give the folder of the data set")

    def refuse(error: OSError) -> None:
        raise NoScanFoundError(
            f"{error.filename}: cannot be listed ({error.strerror}); make it readable, or leave it "
            "out by naming the scans in a table (layout csv)"
        )

    seen = set()
    for folder, folders, names in os.walk(root, onerror=refuse, followlinks=True):
        here = os.stat(folder)
        # A link to a folder above would be walked for ever.
        if (here.st_dev, here.st_ino) in seen:
            folders.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        relative = "" if folder == root else os.path.relpath(folder, root) + "/"
        yield from (relative + name for name in names if not name.startswith("."))


def stem(path: str) -> str:
    """The file's name without its ending."""
    return re.sub(r"\.(nii|img)(\.gz)?$", "", path.rsplit("/", 1)[-1])


def checked(scans: Iterable[Scan], where: str) -> list[Scan]:
    """The scans sorted by id.

    Raises:
        NoScanFoundError: two of them share their id or their image.
    """
    scans = sorted(scans, key=lambda scan: scan.id)
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
    return scans


def with_lesion_mask(scans: Sequence[Scan], where: str) -> list[Scan]:
    """Those of a set of patients that have a lesion mask.

    The others' lesions are unknown (test parts whose masks are kept back): they may count neither
    as healthy nor as lesioned. How many are left out is logged.

    Raises:
        NoScanFoundError: there are scans, and none has a mask.
    """
    kept = [scan for scan in scans if scan.lesion]
    if scans and not kept:
        raise NoScanFoundError(
            f"{where}: {len(scans)} scans, first {scans[0].image}, but none has its lesion mask; "
            "get the part of the set that has masks, or name the scans in a CSV"
        )
    if left_out := len(scans) - len(kept):
        _log.warning("%s: %d scans have no lesion mask and are left out", where, left_out)
    return kept


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
    shown = ", ".join(there[:12]) + (f" and {len(there) - 12} more" if len(there) > 12 else "")
    message = f"{where}: no scan found; looked for {looked_for}; {what}: {shown or 'none'}; "
    if not there:
        fitting = recognise(names)
        if fitting:
            listed = ", ".join(f"{name} ({len(found)} files)" for name, found in fitting.items())
            advice = f"the files there are named as in layout {listed}"
        elif names:
            message += f"{len(names)} other files, first {names[0]}; "
        else:
            message += f"no file there ends in {', '.join(IMAGE_ENDINGS)}; "
    return NoScanFoundError(message + advice)


def is_dangling(path: str) -> bool:
    """Whether a local path is a link to what is not there."""
    try:
        return stat.S_ISLNK(os.lstat(path).st_mode) and not os.path.exists(path)
    except OSError:
        return False
