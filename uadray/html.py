"""What all pages share: templates, styles and scripts inlined, and how their files end."""

import base64
import hashlib
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from uadray import files
from uadray.errors import ConfigError

_FOLDER = "templates"

ABSENT = "\N{EN DASH}"
"""Stands where a figure is not defined or was not recorded."""

NO_INTERVAL = "no interval"
"""Stands in its place where there are too few test people."""


def environment() -> Environment:
    """Jinja's, with this package's templates; every string is escaped unless it is `Markup`."""
    return Environment(
        loader=PackageLoader("uadray", _FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def style(*names: str) -> Markup:
    """Style sheets, one after the other."""
    return Markup("".join(map(_asset, names)))


def script(*names: str) -> dict[str, Any]:
    """Scripts, one after the other, and the digest by which a page's policy lets them run."""
    text = "".join(map(_asset, names))
    return {"script": Markup(text), "script_digest": digest(text.encode())}


def digest(content: bytes) -> str:
    """SHA-256 in base64, as a content security policy names it."""
    return base64.b64encode(hashlib.sha256(content).digest()).decode()


def data_uri(png: bytes) -> str:
    """A PNG file as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def page_url(url: str) -> str:
    """Where a page goes, on a local path or any fsspec URL.

    Raises:
        ConfigError: it does not end in `.html`.
    """
    url = files.normalise(url)
    if not url.endswith(".html"):
        raise ConfigError(f"a page must end in .html, was {url!r}")
    return url


def _asset(name: str) -> str:
    return (resources.files("uadray") / _FOLDER / name).read_text(encoding="utf-8")
