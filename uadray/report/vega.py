"""Vega as the page of a sweep carries it, and the data that its charts are drawn from."""

import hashlib
import json
import re
from functools import lru_cache
from importlib import resources
from typing import Any

from markupsafe import Markup

from uadray.errors import ConfigError

VENDORED = {
    "vega-6.4.0.min.js": "8f6a3587cf8d4f42c7e08120e3eb05d067e746d554e39d2dcf52acc0bd5ba28f",
    "vega-lite-6.4.3.min.js": "35a9821df838825b05a6a73e9414b58747a1b18321583858ed903c66393a5c7e",
    "vega-embed-7.3.0.min.js": "b1455caba2fb1a72fb46025ba0ba1316e2dbc7f0dd40a3f6040172bf9c08ba91",
}
"""Files in `vendor/`, in the order in which a page runs them, and their SHA-256."""


@lru_cache
def library() -> str:
    """All of it as one script.

    Raises:
        ConfigError: a file is not the one that was vendored.
    """
    texts = []
    for name, digest in VENDORED.items():
        content = (resources.files("uadray.report") / "vendor" / name).read_bytes()
        if hashlib.sha256(content).hexdigest() != digest:
            raise ConfigError(f"vendor/{name} is damaged: install uadray again")
        # A page without a network has no source map to ask for.
        texts.append(re.sub(r"//# sourceMappingURL=\S*", "", content.decode()).strip())
    return "\n".join(texts)


def block(value: Any) -> Markup:
    """A JSON value for a `<script type="application/json">`; no text in it can end the element."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))
