"""A real S3 server (moto's) that can fail: in this process, or in one of its own.

    python -m tests.s3_server 10.77.0.100 9000 FOLDER

In a process of its own every request becomes a line of `FOLDER/requests.log`; `FOLDER/faults.json`
says how it fails, and is read again whenever it changes.
"""

import json
import os
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@dataclass(frozen=True, kw_only=True)
class S3Faults:
    """How a server fails; by default it does not."""

    every: int = 0
    """One request in this many is hit; 0 hits none."""
    slow_s: float = 0.0
    """Every other hit is answered after this many seconds instead of with 500; 0 for none."""
    down: bool = False
    """Whether every request is answered with 503."""

    def write(self, folder: Path) -> None:
        """Set the faults of the server that runs in `folder`."""
        aside = folder / "faults.json.new"
        aside.write_text(json.dumps(asdict(self)))
        aside.replace(folder / "faults.json")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The faults that were set."""
        path = folder / "faults.json"
        return cls(**json.loads(path.read_text())) if path.exists() else cls()


class FaultyS3:
    """A WSGI application in front of moto's: it counts requests, hits some, and logs all."""

    def __init__(self, folder: Path | None = None) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app

        self.faults, self.hits = S3Faults(), 0
        self.methods: Counter[str] = Counter()
        """Requests by method."""
        self._app, self._folder = DomainDispatcherApplication(create_backend_app), folder
        self._log = (folder / "requests.log").open("a", buffering=1) if folder else None
        self._lock, self._seen, self._turn = threading.Lock(), 0, threading.Lock()
        self._requests = 0

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        """Answer one request."""
        faults, hit = self._next(environ["REQUEST_METHOD"])
        slow = bool(hit and faults.slow_s and hit % 2 == 0)
        what = f"{environ['REMOTE_ADDR']} {environ['REQUEST_METHOD']} {environ['PATH_INFO']}"
        if hit and not slow:
            status = "503 Service Unavailable" if faults.down else "500 Internal Server Error"
            self._note(what, status.split()[0])
            # The connection stays open: what was sent on it must not be taken for a request.
            sent = environ["wsgi.input"]
            chunked = environ.get("wsgi.input_terminated")
            sent.read() if chunked else sent.read(int(environ.get("CONTENT_LENGTH") or 0))
            start(status, [("Content-Type", "application/xml")])
            return [b"<Error><Code>InternalError</Code><Message>try again</Message></Error>"]
        if slow:
            time.sleep(faults.slow_s)

        def begin(status: str, *rest: Any) -> Any:
            self._note(what, status.split()[0] + (" slow" if slow else ""))
            return start(status, *rest)

        # moto's dictionaries do not bear two requests at a time.
        with self._turn:
            return self._app(environ, begin)

    def _next(self, method: str) -> tuple[S3Faults, int]:
        """The faults as they are now, and the number of this hit; 0 where it is none."""
        with self._lock:
            self._read()
            self.methods[method] += 1
            self._requests += 1
            every = 1 if self.faults.down else self.faults.every
            if not every or self._requests % every:
                return self.faults, 0
            self.hits += 1
            return self.faults, self.hits

    def _read(self) -> None:
        """Read the folder's faults where they have changed."""
        if self._folder is None:
            return
        try:
            changed = (self._folder / "faults.json").stat().st_mtime_ns
        except FileNotFoundError:
            changed = 0
        if changed != self._seen:
            self._seen, self.faults = changed, S3Faults.read(self._folder)

    def _note(self, what: str, status: str) -> None:
        if self._log is not None:
            with self._lock:
                self._log.write(f"{time.time():.3f} {what} {status}\n")


def _make_server(app: FaultyS3, host: str, port: int) -> Any:
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log_request(self, *_: object) -> None:
            """Say nothing."""

    return make_server(host, port, app, threaded=True, request_handler=Quiet)


@contextmanager
def serve(port: int = 0) -> Iterator[tuple[FaultyS3, str]]:
    """Serve from a thread of this process; yield the application and its URL."""
    app = FaultyS3()
    server = _make_server(app, "127.0.0.1", port)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield app, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()


@contextmanager
def serve_bucket(name: str) -> Iterator[FaultyS3]:
    """Serve one empty bucket and point this process to it."""
    import fsspec

    before = dict(os.environ)
    with serve() as (app, url):
        os.environ.update(ENVIRONMENT | {"AWS_ENDPOINT_URL": url})
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        try:
            fsspec.filesystem("s3").mkdir(name)
            yield app
        finally:
            fsspec.get_filesystem_class("s3").clear_instance_cache()
            os.environ.clear()
            os.environ.update(before)


def set_environment() -> None:
    """Point this process and those it starts to a server that is not running yet."""
    if "UADRAY_TEST_S3_PORT" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            os.environ["UADRAY_TEST_S3_PORT"] = str(probe.getsockname()[1])
    url = f"http://127.0.0.1:{os.environ['UADRAY_TEST_S3_PORT']}"
    # A server that is down is given up within seconds.
    os.environ.update(ENVIRONMENT | {"AWS_ENDPOINT_URL": url, "AWS_MAX_ATTEMPTS": "3"})


def main() -> None:
    host, port, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    server = _make_server(FaultyS3(folder), host, port)
    (folder / "ready").touch()
    server.serve_forever()


if __name__ == "__main__":
    main()
