"""Waiting for what another process does, however busy the machine is."""

import time
from collections.abc import Callable


def wait_until(holds: Callable[[], object], minutes: float = 10) -> None:
    """Return as soon as `holds`; fail only where it never comes."""
    deadline = time.monotonic() + 60 * minutes
    while not holds():
        assert time.monotonic() < deadline, f"{holds} did not come in {minutes:g} minutes"
        time.sleep(0.05)
