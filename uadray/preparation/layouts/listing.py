"""Which files a folder holds, and which of them are left out, each with the reason.

What is passed over unnoticed is worse than an error, so that a listing accounts for every file that
could be a scan: it is among the names, or among those left out.
"""

import os
import stat
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from uadray import files
from uadray.errors import NoScanFoundError
from uadray.results import predictions_above, results_in

IMAGE_ENDINGS = (".nii", ".nii.gz", ".img", ".img.gz")
"""How the files end that can hold a scan, in any case; an `.img` has its `.hdr` beside it."""

OTHER_IMAGES = (
    *(".mgz", ".mgh", ".mha", ".mhd", ".nrrd", ".nhdr", ".mnc", ".dcm", ".ima", ".par", ".rec"),
    *(".head", ".brik", ".brik.gz", ".nii.bz2", ".nii.xz", ".nii.zst", ".nii.zip", ".vmr"),
)
"""Endings of images that are not read here."""

VERSION_CONTROL = (".git", ".datalad", ".svn", ".hg")
"""Hidden folders that hold copies by their nature; they are left out without being looked into."""

OF_THE_DISK = ("lost+found", "$RECYCLE.BIN", "System Volume Information")
"""Folders that file systems keep for themselves and let nobody list."""

MAX_VISITS = 64
"""A folder is listed through at most this many links: links among folders could go on forever."""

MAX_SHOWN = 12
"""Files of one reason that a message names."""


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A file or folder that is not among the scans."""

    path: str
    """Path or URL."""
    reason: str
    """Why it is left out."""
    scan: Any = None
    """The `Scan` that it is, where only its lesion mask is missing."""


class Listing(list[str]):
    """Paths of files relative to a folder, sorted, with what else is there."""

    def __init__(self, root: str, names: Iterable[str], left_out: Iterable[LeftOut] = ()) -> None:
        super().__init__(sorted(names))
        self.root = root
        """The folder."""
        self.left_out = tuple(sorted(left_out, key=lambda one: one.path))
        """Files that could be scans and are not among the names, and folders not looked into."""


def find_files(root: str, endings: tuple[str, ...] = IMAGE_ENDINGS) -> Listing:
    """All files under `root` with one of the endings, in any case.

    Links to folders are followed, but those to a folder above them. Left out are hidden files and
    folders (the copies that version control and macOS make), folders with results of this package,
    and images of formats that are not read.

    Raises:
        NoScanFoundError: there is no such folder, it holds results of this package, or it or one
            inside cannot be listed.
    """
    root = files.normalise(root)
    if inside := predictions_above(root):
        raise NoScanFoundError(
            f"{root}: lies in {inside}, which holds results of uadray and no scans to read; give "
            "the folder of the scans"
        )
    if files.is_remote(root):
        return _remote(root, endings)
    walk = _Walk(endings=endings)
    walk.run(root)
    return Listing(root, walk.names, walk.left_out)


def left_out_lines(
    num_found: int, left_out: Sequence[LeftOut], root: str = "", what: str = "scans"
) -> list[str]:
    """`found N scans, left out M` and, for each reason, how many files and the first names."""
    noun = what.removesuffix("s") if num_found == 1 else what
    lines = [f"found {num_found} {noun}, left out {len(left_out)}{':' if left_out else ''}"]
    by_reason: dict[str, list[str]] = {}
    for one in left_out:
        name = one.path.removeprefix(root.rstrip("/") + "/") if root else one.path
        by_reason.setdefault(one.reason, []).append(printable(name))
    for reason, names in sorted(by_reason.items(), key=lambda item: (-len(item[1]), item[0])):
        more = f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
        lines.append(f"  {len(names)} {reason}: {', '.join(names[:MAX_SHOWN])}{more}")
    return lines


def printable(text: str) -> str:
    """`text` with what is no UTF-8 spelled out, so that any table or page takes it.

    Paths keep such bytes, since only so is the file found.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def is_image(name: str, endings: tuple[str, ...] = IMAGE_ENDINGS) -> bool:
    """Whether a file is named as one of these."""
    return name.lower().endswith(endings)


@dataclass(kw_only=True)
class _Walk:
    """Goes through a local folder."""

    endings: tuple[str, ...]
    names: list[str] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    _visits: Counter[tuple[int, int]] = field(default_factory=Counter)

    def run(self, root: str) -> None:
        """List it and all folders below."""
        if not os.path.isdir(root):
            what = "is a file" if os.path.exists(root) else "no such folder"
            raise NoScanFoundError(f"{root}: {what}; give the folder of the data set")
        real = os.path.realpath(root)
        above = frozenset(
            _identity(os.path.join(real, *[".."] * k)) for k in range(1, _depth(real))
        )
        # The nearest first, so that folders that are linked too often are left out far from here.
        todo = deque([(root, "", above, False)])
        while todo:
            folder, relative, above, linked = todo.popleft()
            here = _identity(folder)
            if here in above:
                self._leave(folder, "a link to a folder above it")
                continue
            self._visits[here] += linked
            if linked and self._visits[here] > MAX_VISITS:
                self._leave(folder, f"a folder that more than {MAX_VISITS} links lead to")
                continue
            entries = _entries(folder)
            if whose := results_in(folder, {entry.name for entry in entries}):
                if not relative:
                    raise NoScanFoundError(
                        f"{root}: holds {whose} and no scans to read; give the folder of the scans"
                    )
                self._leave(folder, f"a folder with {whose}")
                continue
            for entry in entries:
                if self._is_folder(entry):
                    below = f"{relative}{entry.name}/"
                    through_link = linked or entry.is_symlink()
                    todo.append((entry.path, below, above | {here}, through_link))
                else:
                    self._file(entry, relative, entries)

    def _is_folder(self, entry: os.DirEntry[str]) -> bool:
        """Whether to look into it; what is hidden is left out."""
        with suppress(OSError):
            if entry.is_dir():
                if entry.name in OF_THE_DISK:
                    self._leave(entry.path, "a folder of the file system")
                elif not entry.name.startswith("."):
                    return True
                elif entry.name not in VERSION_CONTROL and _holds_image(entry.path, self.endings):
                    self._leave(entry.path, "a hidden folder")
        return False

    def _file(
        self, entry: os.DirEntry[str], relative: str, entries: Sequence[os.DirEntry[str]]
    ) -> None:
        name = entry.name
        image = is_image(name, self.endings)
        if name.startswith("."):
            if image and os.path.isfile(entry.path):
                self._leave(entry.path, "a hidden file")
        elif image and _is_own_result(name, {other.name for other in entries}):
            self._leave(entry.path, OWN_RESULT)
        elif image and is_special(entry.path):
            self._leave(entry.path, "no regular file")
        elif image:
            # A link to what is not there is quarantined when it is read, with the reason.
            self.names.append(relative + name)
        elif is_image(name, OTHER_IMAGES):
            self._leave(entry.path, "an image of a format that is not read; convert it to NIfTI")
        elif is_image(name, (".hdr", ".hdr.gz")):
            images = {other.name.lower() for other in entries}
            stem = name.lower().removesuffix(".gz").removesuffix(".hdr")
            if not images & {f"{stem}.img", f"{stem}.img.gz"}:
                self._leave(entry.path, "a header without its .img")
        elif entry.is_symlink() and not os.path.exists(entry.path) and _may_be_folder(entry):
            self._leave(entry.path, f"a link to {os.readlink(entry.path)}, which is not there")

    def _leave(self, path: str, reason: str) -> None:
        self.left_out.append(LeftOut(path=path, reason=reason))


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise NoScanFoundError(
            f"{error.filename or folder}: cannot be listed ({error.strerror}); make it readable, "
            "or leave it out by naming the scans in a table (layout csv)"
        ) from None


def _identity(folder: str) -> tuple[int, int]:
    try:
        status = os.stat(folder)
    except OSError:
        return -1, hash(folder)
    return status.st_dev, status.st_ino


def _depth(path: str) -> int:
    """How many folders are above a path, and one."""
    return len([part for part in path.split("/") if part]) + 1


def is_special(path: str) -> bool:
    """Whether it is, or leads to, a pipe, a socket or a device, which reading would wait for."""
    try:
        mode = os.stat(path).st_mode
        return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
    except OSError:
        return False


def _may_be_folder(entry: os.DirEntry[str]) -> bool:
    """Whether a link to what is not there may be a subject's; git-annex has links to files only."""
    return "annex/objects" not in os.readlink(entry.path) and "." not in entry.name


def _holds_image(folder: str, endings: tuple[str, ...]) -> bool:
    return any(is_image(name, endings) for _, _, names in os.walk(folder) for name in names)


def _remote(root: str, endings: tuple[str, ...]) -> Listing:
    """What an object store holds, by one listing."""
    fs, path = files.located(root)
    if not fs.exists(path):
        raise NoScanFoundError(f"{root}: no such folder; give the folder of the data set")
    prefix = path.rstrip("/") + "/"
    everything = [n.removeprefix(prefix) for n in fs.find(path) if n.startswith(prefix)]
    by_folder: dict[str, set[str]] = {}
    for name in everything:
        folder, _, short = name.rpartition("/")
        by_folder.setdefault(folder, set()).add(short)
    own = {
        folder: result
        for folder, names in by_folder.items()
        if (result := results_in(f"{root}/{folder}".rstrip("/"), names))
    }
    if whose := own.get("", ""):
        raise NoScanFoundError(
            f"{root}: holds {whose} and no scans to read; give the folder of the scans"
        )
    names, left_out = [], []
    for folder, what in own.items():
        left_out.append(LeftOut(path=f"{root}/{folder}", reason=f"a folder with {what}"))
    for name in everything:
        if any(name.startswith(f"{folder}/") for folder in own):
            continue
        parts = name.split("/")
        hidden = next((part for part in parts if part.startswith(".")), "")
        if hidden and is_image(name, endings):
            if hidden not in VERSION_CONTROL:
                left_out.append(LeftOut(path=f"{root}/{name}", reason="a hidden file"))
        elif is_image(name, endings) and _is_own_result(parts[-1], by_folder["/".join(parts[:-1])]):
            left_out.append(LeftOut(path=f"{root}/{name}", reason=OWN_RESULT))
        elif is_image(name, endings):
            names.append(name)
        elif is_image(name, OTHER_IMAGES):
            reason = "an image of a format that is not read; convert it to NIfTI"
            left_out.append(LeftOut(path=f"{root}/{name}", reason=reason))
    return Listing(root, names, left_out)


OWN_RESULT = "a result of uadray, as its summary beside it says"


def _is_own_result(name: str, beside: set[str]) -> bool:
    """Whether an image is one of the BIDS derivatives that `uadray.predict` writes for a scan."""
    entities, separator, _ = name.partition("_desc-")
    return bool(separator) and f"{entities}_desc-anomaly_summary.json" in beside
