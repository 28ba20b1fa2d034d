"""No message advises to destroy what may be good: a trained run, a cohort, a sweep."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]

DESTROYS = re.compile(
    r"\b(remov\w+|delet\w+|rm|eras\w+ (it|the)|overwrit\w+|wipe|empty (it|the)|clear (it|the)|"
    r"discard\w*|throw away)\b",
    re.IGNORECASE,
)
"""Words of advice that loses something."""

ALLOWED = ("is removed",)
"""What the code has done itself to a file that is damaged beyond use and is made again."""


def messages(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of what a module raises, prints or logs."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
        elif isinstance(node, ast.Raise):
            called = "Error"
        else:
            continue
        if re.search(r"(Error|print|_log\.\w+|LeftOut|Problem|note)$", called):
            texts = [
                str(part.value)
                for part in ast.walk(node)
                if isinstance(part, ast.Constant) and isinstance(part.value, str)
            ]
            yield node.lineno, " ".join(texts)


def test_no_message_advises_to_destroy() -> None:
    matches = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for folder in ("uadray", "jobs")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line, text in messages(path)
        if DESTROYS.search(re.sub("|".join(ALLOWED), "", text))
    ]
    assert not matches, "\n".join(matches)


def test_the_words_are_found() -> None:
    for text in ("remove the run and fit again", "delete it", "rm -r out", "overwrite it"):
        assert DESTROYS.search(text)
    assert not DESTROYS.search("choose another --out; the erasing page is there")
