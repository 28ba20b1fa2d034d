"""A real S3 server (moto's) in a process of its own that can be told to fail: `FaultyS3`.

    python -m benchmarks.s3_server 10.77.0.100 9000 FOLDER

Every request becomes a line of `FOLDER/requests.log`; `FOLDER/faults.json` says how it fails, and
is looked at again whenever it changes.
"""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterable
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
    """One request in so many is hit; 0 hits none."""
    slow_s: float = 0.0
    """Every other hit is answered after so many seconds instead of with 500; 0 for none."""

    def write(self, folder: Path) -> None:
        """Tell the server that runs in `folder`."""
        aside = folder / "faults.json.new"
        aside.write_text(json.dumps(asdict(self)))
        aside.replace(folder / "faults.json")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """What the server was told."""
        path = folder / "faults.json"
        return cls(**json.loads(path.read_text())) if path.exists() else cls()


class FaultyS3:
    """A WSGI application in front of another one: it counts requests, hits some, and logs all."""

    def __init__(self, app: Callable[..., Iterable[bytes]], folder: Path) -> None:
        self._app, self._folder = app, folder
        self._log = (folder / "requests.log").open("a", buffering=1)
        self._lock, self._requests, self._hits = threading.Lock(), 0, 0
        self._faults, self._seen, self._turn = S3Faults(), 0, threading.Lock()

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        """Answer one request."""
        faults, hit = self._next()
        slow = bool(hit and faults.slow_s and hit % 2 == 0)
        what = f"{environ['REMOTE_ADDR']} {environ['REQUEST_METHOD']} {environ['PATH_INFO']}"
        if hit and not slow:
            self._note(what, "500")
            # The connection stays open: what was sent on it must not be taken for a request.
            sent = environ["wsgi.input"]
            chunked = environ.get("wsgi.input_terminated")
            sent.read() if chunked else sent.read(int(environ.get("CONTENT_LENGTH") or 0))
            start("500 Internal Server Error", [("Content-Type", "application/xml")])
            return [b"<Error><Code>InternalError</Code><Message>try again</Message></Error>"]
        if slow:
            time.sleep(faults.slow_s)

        def begin(status: str, *rest: Any) -> Any:
            self._note(what, status.split()[0] + (" slow" if slow else ""))
            return start(status, *rest)

        # moto's dictionaries do not bear two requests at a time.
        with self._turn:
            return self._app(environ, begin)

    def _next(self) -> tuple[S3Faults, int]:
        """The faults as they are now, and the number of this hit; 0 where it is none."""
        try:
            changed = (self._folder / "faults.json").stat().st_mtime_ns
        except FileNotFoundError:
            changed = 0
        with self._lock:
            if changed != self._seen:
                self._seen, self._faults = changed, S3Faults.read(self._folder)
            self._requests += 1
            if not self._faults.every or self._requests % self._faults.every:
                return self._faults, 0
            self._hits += 1
            return self._faults, self._hits

    def _note(self, what: str, status: str) -> None:
        with self._lock:
            self._log.write(f"{time.time():.3f} {what} {status}\n")


def main() -> None:
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log_request(self, *_: object) -> None:
            """Say nothing."""

    host, port, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    app = FaultyS3(DomainDispatcherApplication(create_backend_app), folder)
    server = make_server(host, port, app, threaded=True, request_handler=Quiet)
    (folder / "ready").touch()
    server.serve_forever()


if __name__ == "__main__":
    main()
