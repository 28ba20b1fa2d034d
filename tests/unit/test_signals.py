"""A signal to end is not lost, wherever in the code it comes."""

import signal
import subprocess
import sys

import pytest

SCRIPT = """
import os, signal, sys, time
from uadray import cli

def main():
    if sys.argv[1] == "as while Ray starts":
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
    number = signal.SIGINT if sys.argv[1] == "key" else signal.SIGTERM
    asked = []

    def meanwhile():
        if not asked:
            asked.append(True)
            signal.raise_signal(number)
    if sys.argv[2] == "fork":
        os.register_at_fork(after_in_parent=meanwhile)
        if (child := os.fork()) == 0:
            os._exit(0)
        os.waitpid(child, 0)
    else:
        class Dropped:
            __del__ = lambda self: meanwhile()
        Dropped()
    for _ in range(600):
        time.sleep(0.1)

cli.run(main)
"""


@pytest.mark.parametrize("where", ["fork", "collector"])
@pytest.mark.parametrize(
    ("how", "number"),
    [
        ("key", signal.SIGINT),
        ("supervisor", signal.SIGTERM),
        ("as while Ray starts", signal.SIGTERM),
    ],
)
def test_it_ends_the_job_where_it_cannot_be_raised(how: str, number: int, where: str) -> None:
    """In callbacks Python reports exceptions and goes on."""
    command = [sys.executable, "-c", SCRIPT, how, where]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=50)
    assert done.returncode == 128 + number
    assert "interrupted; run the same command again to go on" in done.stderr
    assert "Exception ignored" not in done.stderr
