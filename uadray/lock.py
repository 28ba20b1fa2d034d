"""One job at a time writes an output: `hold`.

A lock is a small file in the output, renewed while its job lives. It is a dead job's where its
process is gone from this machine, or where nobody has renewed it for a while, by the waiting job's
own clock: clocks of two machines are never compared.
"""

import fcntl
import json
import os
import shlex
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import psutil

from uadray import files
from uadray.errors import LockedError

RENEWED_S = 15.0
"""Seconds between a living job's renewals."""

LEASE_S = 75.0
"""Without a renewal in this many seconds the job of another machine is taken for dead."""

SETTLE_S = 2.0
"""How long after it was taken without the storage's word that nobody else did, a lock is looked at
once more."""


@dataclass(frozen=True)
class Holder:
    """Who writes an output, as its lock says."""

    mark: str
    """Of this lock alone."""
    host: str
    """Name of the machine."""
    machine: str
    """Tells machines, containers and boots of one name apart."""
    pid: int
    """The process there."""
    started: float
    """When that process began, by its machine's clock."""
    since: str
    """When it took the lock, UTC."""
    command: str
    """What it runs."""
    renewals: int = 0
    """How often it has said that it lives."""

    @classmethod
    def here(cls) -> "Holder":
        """This process."""
        return cls(
            mark=uuid.uuid4().hex,
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            started=psutil.Process().create_time(),
            since=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
            command=files.without_secrets(shlex.join(sys.argv)[:300]),
        )

    def ended(self) -> bool | None:
        """Whether that process has ended; None where that cannot be seen from this machine."""
        if self.machine != _machine():
            return None
        if self.pid == os.getpid():
            # One that it could not give back, as where the store was away by then, is none.
            return self.mark not in _HELD
        try:
            process = psutil.Process(self.pid)
            if process.status() == psutil.STATUS_ZOMBIE:  # killed, and nobody has taken note
                return True
            return abs(process.create_time() - self.started) > 1
        except (psutil.NoSuchProcess, ValueError):  # a number that no process can have
            return True

    def encode(self) -> bytes:
        """The lock's content."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, content: bytes) -> "Holder | None":
        """The inverse; None of what is cut short."""
        try:
            holder = cls(**json.loads(content))
            return replace(holder, pid=int(holder.pid), started=float(holder.started))
        except (ValueError, TypeError, RecursionError):
            return None


_HELD: set[str] = set()
"""Marks of this process's locks."""


@contextmanager
def hold(*folders: str, name: str = files.LOCK) -> Iterator[None]:
    """Keep other jobs off outputs while the block runs.

    A local folder that cannot be written to is not locked: no job can write it.

    Args:
        folders: Local folders or fsspec URLs.
        name: Of the lock in each, for outputs of which several lie in one folder.

    Raises:
        LockedError: another job holds one; it says which.
    """
    held: dict[str, Holder] = {}
    ended = threading.Event()
    keeper = threading.Thread(target=_renew, args=(held, ended), daemon=True)
    try:
        for folder in folders:
            place = files.join(files.normalise(folder), name)
            # The job says by itself why it cannot write there.
            with suppress(OSError):
                held[place] = _take(place)
        keeper.start()
        yield
    finally:
        ended.set()
        if keeper.is_alive():
            keeper.join()
        for place, holder in held.items():
            with suppress(Exception):  # the block's own error says more than the store's
                if _is_held(place, holder):
                    files.remove_file(place)
            _HELD.discard(holder.mark)


def _take(place: str) -> Holder:
    """Write a lock where there is none, or that of a dead job."""
    holder = Holder.here()
    _HELD.add(holder.mark)
    try:
        _write(place, holder)
    except BaseException:
        _HELD.discard(holder.mark)
        raise
    return holder


def _write(place: str, holder: Holder) -> None:
    sure = _create(place, holder)
    if sure is None:
        living, dead = _living(place)
        if living is not None:
            raise LockedError(_message(place, living))
        if dead is not None and (taken := _take_over(place, dead, holder)) is not None:
            if taken:
                return
            seen = _look(place)
            raise LockedError(_message(place, seen.holder if seen else None))
        if dead is not None:
            _remove(place, dead)
        # Another job that saw that it was dead may remove what is written now.
        sure = _create(place, holder) and False
    if not sure:
        time.sleep(SETTLE_S)
        if sure is None or not _is_held(place, holder):
            seen = _look(place)
            raise LockedError(_message(place, seen.holder if seen else None))


def _message(place: str, holder: Holder | None) -> str:
    folder = place.rpartition("/")[0]
    if holder is None:
        return f"{folder}: another job has just started to write it: wait until it has ended"
    return (
        f"{folder}: process {holder.pid} on {holder.host} has been writing it since "
        f"{holder.since} ({holder.command}): wait until it has ended and run the same command "
        "again, or choose another output"
    )


def _create(place: str, holder: Holder) -> bool | None:
    """Write a lock where there is none.

    Returns:
        None where there is one; whether it is sure that nobody else has written one by now.

    Raises:
        OSError: the folder cannot be written to.
    """
    fs, path = files.located(place)
    content = holder.encode()
    try:
        if not files.is_remote(place):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            with open(path, "xb") as file:
                file.write(content)
        else:
            fs.pipe_file(path, content, mode="create")
    except FileExistsError:
        return None
    except OSError as error:
        if isinstance(error, PermissionError) or not files.is_remote(place):
            raise
        # A store that does not know the condition, or says in other words that it is not met.
        if files.exists(place):
            return None
        fs.pipe_file(path, content)
        return False
    return True


@dataclass(frozen=True)
class _Seen:
    """A lock at one moment."""

    content: bytes
    """As it stands there."""
    renewed: object
    """Another one after each renewal."""
    holder: Holder | None
    """None where its content is cut short."""


def _look(place: str) -> _Seen | None:
    """A lock as it is now; None where there is none."""
    try:
        content = files.read_bytes(place)
        _, path = files.located(place)
        renewed = 0 if files.is_remote(place) else os.stat(path).st_mtime_ns
    except FileNotFoundError:
        return None
    return _Seen(content, (content, renewed), Holder.decode(content))


def _is_held(place: str, holder: Holder) -> bool:
    seen = _look(place)
    return bool(seen and seen.holder and seen.holder.mark == holder.mark)


def _living(place: str) -> tuple[Holder | None, bytes | None]:
    """Who holds a lock; or, where that job has ended, what its lock holds, if it is still there."""
    first, deadline = _look(place), time.monotonic() + LEASE_S
    seen = first
    while seen is not None:
        ended = seen.holder.ended() if seen.holder else None
        if ended is not None or (first and seen.renewed != first.renewed and seen.holder):
            return (None, seen.content) if ended else (seen.holder, None)
        if time.monotonic() > deadline:
            return None, seen.content
        time.sleep(_LOOK_S)
        seen = _look(place)
    return None, None


def _take_over(place: str, dead: bytes, holder: Holder) -> bool | None:
    """Put a lock where a dead job's is, unless another job was faster.

    Returns:
        Whether it stands there; None where the storage cannot keep others off meanwhile.
    """
    if files.is_remote(place):
        return None
    path = Path(files.located(place)[1])
    aside = path.with_name(f"{path.name}.{holder.mark}")
    try:
        # The system gives the folder back when this process ends, however it does.
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            seen = _look(place)
            if seen is None or seen.content != dead:
                return False
            aside.write_bytes(holder.encode())
            os.replace(aside, path)
            return True
        finally:
            os.close(folder)
    except OSError:  # some network file systems lock no folders
        return None


def _remove(place: str, dead: bytes) -> None:
    """Remove a dead job's lock, and not that of another job that has found it dead, too."""
    if files.is_remote(place):
        if (seen := _look(place)) and seen.content == dead:
            files.remove_file(place)
        return
    _, path = files.located(place)
    aside = Path(f"{path}.{uuid.uuid4().hex}")
    with suppress(FileNotFoundError):
        os.rename(path, aside)
        if aside.read_bytes() != dead:
            with suppress(FileExistsError):
                os.link(aside, path)
        aside.unlink()


_LOOK_S = 1.0
"""Seconds between two looks at the lock of another machine's job."""


def _renew(held: Mapping[str, Holder], ended: threading.Event) -> None:
    """Say now and then that this job lives; end it where another one has taken its place."""
    renewals = 0
    while not ended.wait(RENEWED_S):
        renewals += 1
        for place, holder in held.items():
            # What the store refuses now is tried again, until the lease is over.
            with suppress(Exception):
                if not _is_held(place, holder):
                    print(
                        f"{place}: another job took this output while this process stood still",
                        file=sys.stderr,
                    )
                    # A real one: it wakes what waits in a system call.
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                    return
                if files.is_remote(place):
                    files.write_bytes(place, replace(holder, renewals=renewals).encode())
                else:
                    os.utime(files.located(place)[1])


def _machine() -> str:
    """This boot of this machine, and the container in it that numbers its processes."""
    marks = []
    for path in ("/proc/sys/kernel/random/boot_id", "/etc/machine-id"):
        with suppress(OSError):
            marks.append(Path(path).read_text().strip())
            break
    with suppress(OSError):
        marks.append(os.readlink("/proc/self/ns/pid"))
    return " ".join([socket.gethostname(), *marks])
