"""What all jobs do around their one call: the terminal, named errors, signals, and exit codes."""

import atexit
import codecs
import errno
import io
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from types import FrameType
from typing import Any, NoReturn, TextIO

from uadray import files
from uadray.errors import UadrayError, UadrayWarning

COMMAND = "uadray"
"""What `pip` installs for a console: a verb is its first argument."""

OK, FAILED, INCOMPLETE = 0, 1, 3
"""Exit codes: all done; an error, which was printed; done, but some input could not be used."""


def run(main: Callable[[], int | None]) -> NoReturn:
    """Call a job's main function and end the process with its exit code (None is 0).

    An error of ours is a message to the user and is printed as one; any other is a defect and
    keeps its traceback. A job that is asked to end, by a key, a supervisor or `ray job stop`, says
    how to go on, and ends with 128 and the signal's number, as shells have it. What the terminal
    cannot show, or a reader that has gone, changes no exit code.
    """
    _use_utf8_names()
    usual, warnings.showwarning = warnings.showwarning, partial(_show, warnings.showwarning)
    sys.stdout, sys.stderr = _lasting(sys.stdout, 1), _lasting(sys.stderr, 2)
    signal.signal(signal.SIGTERM, _interrupt)
    sys.unraisablehook = _ask_again
    try:
        sys.exit(main() or OK)
    except UadrayError as error:
        print(f"error: {files.without_secrets(str(error))}", file=sys.stderr)
        sys.exit(FAILED)
    except KeyboardInterrupt:
        _end_on(_asked[-1] if _asked else signal.SIGINT)
    except SystemExit as ended:
        # What Ray makes of SIGTERM while it starts.
        if ended.code == signal.SIGTERM:
            _end_on(signal.SIGTERM)
        raise
    except Exception as error:
        if _asked:
            _end_on(_asked[-1])  # what the interrupt broke on its way
        if storage := _storage_failed(error):
            print(f"error: {files.without_secrets(storage)}", file=sys.stderr)
            sys.exit(FAILED)
        if (full := _full_disk(error)) is None:
            raise
        # Ray Data appends advice on retries to an error's arguments, where the name of a file is.
        named = full.filename and "\n" not in str(full.filename)
        where = f"{full.filename}: " if named else ""
        print(
            f"error: {where}no space is left on the device; free some and run the same command "
            "again: it goes on where it stopped, nothing half-written counts",
            file=sys.stderr,
        )
        sys.exit(FAILED)
    finally:
        sys.unraisablehook = sys.__unraisablehook__
        warnings.showwarning = usual


def program(*words: str) -> str:
    """How usages name this process: the file or the verb, then what was named first."""
    return " ".join([os.path.basename(sys.argv[0]), *filter(None, words)])


def say_left_out(left_out: Iterable[object]) -> int:
    """Print what was left out, each with its reason as its text; returns a job's exit code."""
    lines = dict.fromkeys(map(str, left_out))
    for line in lines:
        print(files.without_secrets(f"left out: {line}"), file=sys.stderr)
    return INCOMPLETE if lines else OK


_asked: list[signal.Signals] = []
"""Signals that asked this process to end."""


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    # Ray raises interrupts again as its own: which signal it was is noted apart.
    _asked.append(signal.Signals(number))
    raise KeyboardInterrupt


def _ask_again(unraisable: "sys.UnraisableHookArgs") -> None:
    """Send once more a signal whose exception Python could not raise where it came.

    Such places are callbacks of a fork and of the garbage collector: there it would be reported,
    forgotten, and the job would go on for hours.
    """
    lost = unraisable.exc_value
    if isinstance(lost, KeyboardInterrupt):
        number = _asked[-1] if _asked else signal.SIGINT
    elif isinstance(lost, SystemExit) and lost.code == signal.SIGTERM:
        number = signal.SIGTERM  # by the handler that Ray has while it starts
    else:
        sys.__unraisablehook__(unraisable)
        return
    # A little later, since the callback, and this function within it, have to end before.
    again = threading.Timer(0.1, os.kill, (os.getpid(), number))
    again.daemon = True
    again.start()


def _end_on(number: signal.Signals) -> NoReturn:
    # What Ray installs while it starts aborts the process three seconds after a SIGTERM.
    signal.alarm(0)
    sys.unraisablehook = sys.__unraisablehook__  # it ends; another signal need not be sent again
    print("interrupted; run the same command again to go on", file=sys.stderr)
    # Ray is shut down and temporary folders go. The interpreter is not taken down after that:
    # threads of libraries that are still at work crash in it, and the exit code would be theirs.
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(128 + number)


def _show(
    usual: Callable[..., None], message: Warning | str, category: type[Warning], *where: Any
) -> None:
    """Print a warning, one of ours as a message to the user, without the line of code."""
    if issubclass(category, UadrayWarning):
        print(files.without_secrets(f"warning: {message}"), file=sys.stderr)
    else:
        usual(message, category, *where)


def _use_utf8_names() -> None:
    """Begin again in UTF-8 mode where names of files are not UTF-8 otherwise.

    That is a locale of ASCII with Python's remedies for it switched off: scans with other letters
    in their names could not even be opened. Ray's processes inherit the mode.
    """
    if sys.getfilesystemencoding() != "utf-8" and not sys.flags.utf8_mode:
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _lasting(stream: TextIO | None, descriptor: int) -> TextIO:
    """A stream to the terminal that shows any text, and outlives the terminal.

    Args:
        stream: `sys.stdout` or `sys.stderr`; None where the process began without it.
        descriptor: Of the file.
    """
    if stream is None:
        try:
            os.fstat(descriptor)
        except OSError:
            # Closed: the next file that is opened would have that number, and be written into.
            _drop_output(descriptor)
    else:
        try:
            if stream.fileno() != descriptor:
                return stream
        except OSError:
            return stream  # a caller's own, such as a test's or a notebook's
        stream.flush()
    kind = _AsCommand if sys.argv[0].startswith(f"{COMMAND} ") else io.TextIOWrapper
    return kind(
        io.BufferedWriter(_Terminal(descriptor, "wb", closefd=False)),  # type: ignore[type-var]
        encoding=getattr(stream, "encoding", None) or "utf-8",
        errors=_PLAIN,
        line_buffering=True,
    )


class _AsCommand(io.TextIOWrapper):
    """Names verbs as who has no checkout of the repository calls them."""

    def write(self, text: str) -> int:
        super().write(re.sub(r"(?:python )?\bjobs/(\w+)\.py", rf"{COMMAND} \1", text))
        return len(text)


class _Terminal(io.FileIO):
    """A terminal, pipe or log; once its reader has gone (`| head`), what is written is dropped."""

    def write(self, data: "bytes | bytearray | memoryview") -> int:  # type: ignore[override]
        try:
            return super().write(data) or 0
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO, errno.EBADF):
                raise
            _drop_output(self.fileno())
            return len(data)


def _drop_output(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    if nowhere != descriptor:
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


_PLAIN = "uadray.plain"
"""How text is written to a terminal that lacks its letters."""

_PLAIN_SIGNS = str.maketrans(
    {"\u00b1": "+-", "\u00d7": "x", "\u2026": "...", "\u2192": "->", "\u2264": "<=", "\u2265": ">="}
    | dict.fromkeys("\u2013\u2014\u2212\u2500\u2501", "-")
    | dict.fromkeys("\u2022\u00b7", "*")
)


def _plainly(error: UnicodeError) -> tuple[str, int]:
    """Signs by their look, all other letters by their number."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end].translate(_PLAIN_SIGNS)
    return text.encode("ascii", "backslashreplace").decode("ascii"), error.end


codecs.register_error(_PLAIN, _plainly)


_STORAGE = ("botocore", "aiohttp", "gcsfs", "google", "adlfs", "azure", "paramiko")
"""Packages whose errors are of a storage that cannot be reached, never of what is asked of it."""


def _storage_failed(error: BaseException) -> str:
    """What to tell of an error of the storage that a URL names; empty for any other error."""
    for each in _within(error):
        if type(each).__module__.partition(".")[0] in _STORAGE:
            break
    else:
        return ""
    return (
        f"the storage cannot be reached ({type(each).__name__}: {each}): check the URL, and that "
        "credentials and address of the storage are set here, such as AWS_ACCESS_KEY_ID, "
        "AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL for s3://; then run the same command again"
    )


def _full_disk(error: BaseException) -> OSError | None:
    """What a full disk raised, however deep Ray has wrapped it; None where none did."""
    for each in _within(error):
        if isinstance(each, OSError) and each.errno in (errno.ENOSPC, errno.EDQUOT):
            return each
    return None


def _within(error: BaseException) -> list[BaseException]:
    """An error and those that led to it, as Python and Ray chain them."""
    chain = [error]
    for each in chain:
        within = (each.__cause__, each.__context__, getattr(each, "cause", None))
        failures = getattr(each, "worker_failures", None) or {}
        for other in (*within, *failures.values()):
            if isinstance(other, BaseException) and not any(other is known for known in chain):
                chain.append(other)
    return chain
