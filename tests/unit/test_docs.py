"""The documentation: its commands are understood by the jobs, its links lead somewhere."""

import os
import pkgutil
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import tyro

from uadray import settings_files
from uadray.errors import ConfigError
from uadray.jobs import VERBS

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


class _Parsed(BaseException):
    """The arguments were understood; nothing is to run."""


def commands(page: Path) -> Iterator[list[str]]:
    """Each `python jobs/...` and `uadray ...` of a page, in its blocks and lines, as words."""
    text = re.sub(r"\\\n\s*", " ", page.read_text(encoding="utf-8"))
    # A command in quotes ends where they do.
    text = re.sub(r"bash -c '([^']*)'", r"\1", text)
    text = re.sub(rf"\buadray ({'|'.join(VERBS)}) (?=[\w/-])", r"python jobs/\1.py ", text)
    for match in re.finditer(r"python (jobs/\w+\.py[^\n`;|#]*)", text):
        # Names that stand for any experiment.
        stand_ins = {"$name": "3D-None", "NAME": "3D-None", "$SLURM_ARRAY_TASK_ID": "0"}
        yield [stand_ins.get(word, word) for word in shlex.split(match[1])]


def shape(words: list[str]) -> tuple[str, ...]:
    """Commands of one shape are parsed alike: values of flags do not count."""
    flags = sorted(word for word in words if word.startswith("-"))
    return (*(word for word in words[:2] if not word.startswith("-")), *flags)


def every_command() -> list[Any]:
    seen: dict[tuple[str, ...], Any] = {}
    for page in PAGES:
        # These need what they make: tests/jobs/test_add_a_*.py run them as a whole.
        for words in commands(page) if not page.name.startswith("add-a-") else ():
            if "..." not in words and len(words) > 1:
                name = f"{page.relative_to(ROOT)}: {' '.join(words)}"
                seen.setdefault(shape(words), pytest.param(words, id=name))
    return list(seen.values())


def parse(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a job read its arguments and stop there."""
    real = tyro.cli

    def understood(*args: Any, **kwargs: Any) -> None:
        real(*args, **kwargs)
        raise _Parsed

    verb = Path(words[0]).stem
    assert verb in VERBS, f"there is no {words[0]}"
    job = import_module(f"uadray.jobs.{verb}")
    monkeypatch.setattr(tyro, "cli", understood)
    monkeypatch.setattr(settings_files, "read", lambda place, kind: {})  # what runs write
    monkeypatch.setattr(sys, "argv", [words[0], *words[1:]])
    try:
        job.main()
    except _Parsed:
        return
    except SystemExit as end:
        assert end.code in (0, None) and "--help" in words, f"refused: {shlex.join(words)}"  # noqa: PT017, PT018


@pytest.mark.parametrize("words", every_command())
def test_commands_are_understood(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    parse(words, monkeypatch)


@pytest.mark.parametrize(
    "line", ["train.py 3D-None --cohort a --out b --no-such-flag 1", "prepare.py nothing a --out b"]
)
def test_a_wrong_command_is_found(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((AssertionError, SystemExit, ConfigError)):
        parse(shlex.split(f"jobs/{line}"), monkeypatch)


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    heads = re.findall(r"^#+ +(.+)$", text, flags=re.M)
    plain = [re.sub(r"[^\w\s-]", "", head.strip().lower()) for head in heads]
    return {re.sub(r"[-\s]+", "-", head).strip("-") for head in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+://|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{target} leads nowhere"
        if anchor and there.suffix == ".md":
            assert anchor in anchors(there), f"{target}: no such heading"


def test_every_page_is_in_the_navigation() -> None:
    nav = (ROOT / "mkdocs.yml").read_text().split("\nnav:")[1]
    named = set(re.findall(r"([\w/-]+\.md)", nav))
    held = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert held == named


def test_no_machine_or_tool_shows_through() -> None:
    for page in PAGES:
        match = re.search(r"/(root|work)/", page.read_text(encoding="utf-8"))
        assert match is None, f"{page}: {match}"


def test_the_reference_names_what_there_is() -> None:
    """As the build of the documentation finds, which takes packages that few have."""
    for page in sorted((ROOT / "docs/reference").glob("*.md")):
        for name in re.findall(r"^::: ([\w.]+)$", page.read_text(), re.MULTILINE):
            assert pkgutil.resolve_name(name), f"{page}: {name}"


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install -e '.[docs]'")
    pytest.importorskip("mkdocstrings", reason="pip install -e '.[docs]'")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    pages = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.html")}
    assert {"index.html", "tutorial.html", "reference/evaluate.html"} <= pages
    reference = (tmp_path / "reference" / "evaluate.html").read_text()
    assert "uadray.metrics.measures.auprc" in reference
    outside = [
        link
        for page in tmp_path.rglob("*.html")
        for link in re.findall(r'<(?:script|img|link)[^>]+="(https?:[^"]+)', page.read_text())
    ]
    assert outside == [], "the site asks a network for something"
