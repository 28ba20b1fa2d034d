"""Items that kill their process: a note before each attempt, which stays where its end never comes.

Ray starts a task again whose process has died, and would do so for ever with a scan that does not
fit in memory or crashes a library.
"""

from contextlib import suppress

from uadray import files
from uadray.errors import ScanError

MAX_DEATHS = 3
"""How often a process may die over an item before it is given up."""


def begin(note: str) -> int:
    """Note that an item is about to be worked on; returns how often a process died over it.

    Args:
        note: Path or URL of the item's own note.
    """
    before = b""
    with suppress(FileNotFoundError):
        before = files.read_bytes(note)
    files.write_bytes(note, before + b".")
    return len(before)


def end(note: str) -> None:
    """Note that the work has come to an end, good or bad."""
    files.remove_file(note)


def refuse(path: str, deaths: int, done: str) -> None:
    """Give a scan up that killed its process each time.

    Args:
        path: Of the scan.
        deaths: From `begin`.
        done: What was done to it, such as `prepared`.

    Raises:
        ScanError: it did.
    """
    if deaths >= MAX_DEATHS:
        raise ScanError(
            f"{path}: the process that {done} it died {deaths} times (out of memory, or a library "
            "crashed); look at the file, or use fewer --workers"
        )
