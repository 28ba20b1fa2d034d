"""Starting Ray and joining it: what fails is named, in time, and nothing is left behind."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = """
from uadray import cli, cluster
def main():
    cluster.connect()
    import ray
    print("works", ray.get(ray.remote(lambda: 1).remote()))
cli.run(main)
"""


def connect(home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    without = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    known = {name: value for name, value in os.environ.items() if name not in without}
    return subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=known | {"HOME": str(home)} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def refused(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert "cohort" not in line
    return line


@pytest.fixture
def listening() -> Iterator[str]:
    """A service that takes connections and is no Ray."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        kept = []

        def accept() -> None:
            while True:
                try:
                    kept.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        for one in kept:
            one.close()


@pytest.mark.parametrize(
    "address",
    ["dead", "no-such-host.invalid:6379", "nonsense", "127.0.0.1", "127.0.0.1:99999999"],
)
def test_no_cluster_answers(address: str, tmp_path: Path) -> None:
    if address == "dead":
        with socket.create_server(("127.0.0.1", 0)) as server:
            address = f"127.0.0.1:{server.getsockname()[1]}"
    line = refused(connect(tmp_path, RAY_ADDRESS=address))
    assert f"no Ray cluster answers at RAY_ADDRESS={address}" in line
    assert "Unset RAY_ADDRESS to start Ray on this machine" in line


def test_the_address_of_the_dashboard(tmp_path: Path) -> None:
    line = refused(connect(tmp_path, RAY_ADDRESS="http://127.0.0.1:8265"))
    assert "RAY_ADDRESS=http://127.0.0.1:8265 is the address of a dashboard" in line
    assert "not the dashboard's" in line


@pytest.mark.slow
def test_another_service_listens_there(listening: str, tmp_path: Path) -> None:
    """Ray itself tries for two minutes, and then ends the process as a signal would."""
    line = refused(connect(tmp_path, RAY_ADDRESS=listening))
    assert f"no Ray cluster answers at RAY_ADDRESS={listening}" in line


def test_a_temporary_folder_of_a_long_path(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    line = refused(connect(tmp_path, TMPDIR=str(long)))
    assert f"{long}, is too long for the sockets" in line
    assert "RAY_TMPDIR=/tmp" in line


def test_a_temporary_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    line = refused(connect(tmp_path, RAY_TMPDIR=str(tmp_path / "file" / "inside")))
    assert "Set RAY_TMPDIR" in line


def test_a_home_that_cannot_be_written_does_not_matter(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.write_text("")  # even root can write nothing into a file's folder
    done = connect(home)
    assert done.returncode == 0, done.stderr
    assert "works 1" in done.stdout


def test_no_token_is_left_for_a_later_ray(tmp_path: Path) -> None:
    """One in the home folder would switch authentication on for the user's own `ray start`."""
    assert connect(tmp_path).returncode == 0
    assert not (tmp_path / ".ray").exists()


def test_a_token_of_the_users_is_taken(tmp_path: Path) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("0123456789abcdef" * 4)
    assert connect(tmp_path).returncode == 0
    assert (tmp_path / ".ray/auth_token").read_text() == "0123456789abcdef" * 4
