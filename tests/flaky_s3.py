"""A real S3 server in this process (moto's) that can answer 500 now and then, or be down."""

import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    # A server that is down is given up within seconds.
    "AWS_MAX_ATTEMPTS": "3",
}


def set_environment() -> None:
    """Point this process and those it starts to a server that is not running yet."""
    if "UADRAY_TEST_S3_PORT" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            os.environ["UADRAY_TEST_S3_PORT"] = str(probe.getsockname()[1])
    port = os.environ["UADRAY_TEST_S3_PORT"]
    os.environ.update(ENVIRONMENT | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"})


class Quiet(WSGIRequestHandler):
    def log_request(self, *_: object) -> None:
        """Say nothing."""


class FlakyS3:
    """Counts requests, and refuses some of them."""

    def __init__(self) -> None:
        self.fail_every = 0
        """Every so manieth request is answered 500; 0 for none."""
        self.down = False
        """Whether all requests are answered 503."""
        self.requests = self.refused = 0
        self._app, self._lock = DomainDispatcherApplication(create_backend_app), threading.Lock()

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        with self._lock:
            self.requests += 1
            hit = self.fail_every and self.requests % self.fail_every == 0
            self.refused += bool(hit or self.down)
        if not (hit or self.down):
            return self._app(environ, start)
        status = "503 Service Unavailable" if self.down else "500 Internal Server Error"
        start(status, [("Content-Type", "application/xml")])
        return [b"<Error><Code>InternalError</Code><Message>try again</Message></Error>"]


@contextmanager
def serve() -> Iterator[FlakyS3]:
    """Serve at the port that `set_environment` chose."""
    app = FlakyS3()
    port = int(os.environ["UADRAY_TEST_S3_PORT"])
    server = make_server("127.0.0.1", port, app, threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield app
    finally:
        server.shutdown()
        thread.join()
