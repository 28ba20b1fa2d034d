"""Waiting for what another process does, however busy the machine is."""

import time
from collections.abc import Callable


def wait_until(holds: Callable[[], object], seconds: float = 600, what: str = "") -> None:
    """Wait for a condition.

    Raises:
        TimeoutError: it did not come to hold.
    """
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:.0f} s: {what or holds}")
        time.sleep(0.05)
