"""What all jobs do around their one call: named errors without a traceback, and exit codes."""

import errno
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from uadray import files
from uadray.errors import UadrayError

OK, FAILED, INCOMPLETE = 0, 1, 3
"""Exit codes: all done; an error, which was printed; done, but some input could not be used."""


def run(main: Callable[[], int | None]) -> NoReturn:
    """Call a job's main function and end the process with its exit code (None is 0).

    An error of ours is a message to the user and is printed as one; any other is a defect and
    keeps its traceback. A job that is asked to end, by a key or by `ray job stop`, says how to go
    on, and ends with 128 and the signal's number, as shells have it.
    """
    try:
        sys.exit(main() or OK)
    except UadrayError as error:
        print(f"error: {files.without_secrets(str(error))}", file=sys.stderr)
        sys.exit(FAILED)
    except KeyboardInterrupt:
        _end_on(signal.SIGINT)
    except SystemExit as ended:
        # What Ray makes of SIGTERM in a process that has joined a cluster.
        if ended.code == signal.SIGTERM:
            _end_on(signal.SIGTERM)
        raise
    except Exception as error:
        if (full := _full_disk(error)) is None:
            raise
        # Ray Data puts advice on retries behind an error's arguments, where the name of a file is.
        named = full.filename and "\n" not in str(full.filename)
        where = f"{full.filename}: " if named else ""
        print(
            f"error: {where}no space is left on the device; free some and run the same command "
            "again: it goes on where it stopped, nothing half-written counts",
            file=sys.stderr,
        )
        sys.exit(FAILED)


def _full_disk(error: BaseException) -> OSError | None:
    """What a full disk raised, however deep Ray has wrapped it; None where none did."""
    found = [error]
    for each in found:
        if isinstance(each, OSError) and each.errno in (errno.ENOSPC, errno.EDQUOT):
            return each
        within = (each.__cause__, each.__context__, getattr(each, "cause", None))
        failures = getattr(each, "worker_failures", None) or {}
        for other in (*within, *failures.values()):
            if isinstance(other, BaseException) and not any(other is known for known in found):
                found.append(other)
    return None


def _end_on(number: signal.Signals) -> NoReturn:
    print("interrupted; run the same command again to go on", file=sys.stderr)
    sys.exit(128 + number)
