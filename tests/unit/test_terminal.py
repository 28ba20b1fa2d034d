"""What a terminal cannot show, or has no reader for, changes no exit code."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import sys
from rich.console import Console
from rich.table import Table
from uadray import cli

def main():
    print("T\\u00eate \\u5934\\u90e8 0.5 \\u00b1 0.1 \\u2026 caf\\udce9")
    table = Table("m\\u00e9thode")
    table.add_row("\\u5934\\u90e8")
    Console().print(table)
    for _ in range(int(sys.argv[2])):
        print("line")
    print("to the log", file=sys.stderr)
    return int(sys.argv[1])

cli.run(main)
"""


def call(
    code: int, shell: str = "", lines: int = 0, **environment: str
) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", SCRIPT, str(code), str(lines)]
    if shell:
        command = ["bash", "-c", f'"$0" "$@" {shell}', *command]
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, check=False, timeout=300
    )


@pytest.mark.parametrize("code", [0, 1, 3])
@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "cp1252:strict"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "POSIX"},
        {"TERM": "dumb", "NO_COLOR": "1"},
        {"COLUMNS": "5"},
    ],
    ids=str,
)
def test_any_terminal_shows_any_name(code: int, environment: dict[str, str]) -> None:
    done = call(code, **environment)
    assert done.returncode == code, done.stderr.decode(errors="replace")
    assert b"Traceback" not in done.stderr
    assert b"0.5 " in done.stdout
    assert b"to the log" in done.stderr


def test_signs_are_written_by_their_look() -> None:
    done = call(0, PYTHONIOENCODING="ascii")
    assert b"T\\xeate \\u5934\\u90e8 0.5 +- 0.1 ... caf\\udce9" in done.stdout


@pytest.mark.parametrize("code", [0, 1, 3])
@pytest.mark.parametrize("lines", [0, 100_000])
def test_a_reader_that_goes_early(code: int, lines: int) -> None:
    done = call(code, "2>&1 | head -n 1 >/dev/null; exit ${PIPESTATUS[0]}", lines)
    assert done.returncode == code


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_closed_terminal(closed: str) -> None:
    done = call(3, closed)
    assert done.returncode == 3


def test_what_is_opened_after_a_closed_terminal_is_not_written_into(tmp_path) -> None:
    script = f"""
import os
from uadray import cli
def main():
    with open({str(tmp_path / "file")!r}, "w") as file:
        os.write(1, b"printed")
        os.write(2, b"logged")
        file.write("content")
cli.run(main)
"""
    subprocess.run(["bash", "-c", '"$0" -c "$1" <&- >&- 2>&-', sys.executable, script], check=True)
    assert (tmp_path / "file").read_text() == "content"


def test_names_that_are_not_ascii_are_read_in_any_locale(tmp_path) -> None:
    (tmp_path / "Tête.txt").write_text("x")
    script = f"""
import os
from uadray import cli
cli.run(lambda: 0 if os.path.exists({str(tmp_path)!r} + "/T\\u00eate.txt") else 1)
"""
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", script], env=os.environ | locale, check=False)
    assert done.returncode == 0
