"""Texts from anywhere as names of files: readable in any script, and never two of one name."""

import hashlib
import unicodedata
from collections.abc import Collection, Iterator

MAX_BYTES = 160
"""Of a name in UTF-8: file systems take 255, and endings come after it."""


def file_name(text: str) -> str:
    """A text as the name of a file or folder.

    What can be printed stays, composed (NFC), in any script; of ASCII that is letters, digits, `.`,
    `-`, `_` and `+`. Each other character becomes `_`. So may different texts: see
    `distinct_names`.
    """
    text = unicodedata.normalize("NFC", text)
    kept = "".join(c if _is_safe(c) else "_" for c in text)
    # A name with a point in front is hidden, one with a point at its end is lost on some systems.
    kept = kept.lstrip(".").rstrip(".")
    if len(kept.encode()) > MAX_BYTES:
        start = kept.encode()[: MAX_BYTES - 9].decode(errors="ignore")
        kept = f"{start}-{text_digest(text)}"
    return kept or f"_{text_digest(text)}"


def _is_safe(character: str) -> bool:
    if character.isascii():
        return character.isalnum() or character in ".-_+"
    return character.isprintable()


def name_key(name: str) -> str:
    """What two names share that some file system takes for one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def text_digest(text: str) -> str:
    """Eight hexadecimal digits that distinguish texts."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]


def distinct_names(texts: Collection[str]) -> dict[str, str]:
    """Text -> name of a file; texts whose names would be one get a digest after it.

    Args:
        texts: Without repetition.
    """
    names = {text: file_name(text) for text in texts}
    keys = [name_key(name) for name in names.values()]
    return {
        text: f"{name}-{text_digest(text)}" if keys.count(name_key(name)) > 1 else name
        for text, name in names.items()
    }


def path_names(path: str, ending: str = "") -> Iterator[str]:
    """Names for a file: its own, then with one folder after the other before it, then a digest.

    Args:
        path: Path or URL.
        ending: What to cut off the file's own name.
    """
    parts = [part for part in path.removesuffix(ending).split("://")[-1].split("/") if part]
    for depth in range(1, len(parts) + 1):
        yield file_name("_".join(parts[-depth:]))
    yield f"{file_name(parts[-1])}-{text_digest(path)}"
