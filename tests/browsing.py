"""Pages in a real browser, read once they have loaded, however slow the machine."""

from typing import Any

WAIT_S = 300
"""Seconds that anything in a browser may take; it is looked at again and again, so that a quick
machine waits for nothing."""

_LOADED = """
return document.readyState === "complete"
  && [...document.images].every(i => i.complete || i.loading === "lazy");
"""


def wait_for(browser: Any, holds: Any) -> Any:
    """Wait until a function of the browser gives something true, and return it."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, WAIT_S).until(holds)


def open_page(browser: Any, uri: str) -> None:
    """Open a page and wait until it, its pictures and its scripts have loaded."""
    browser.get(uri)
    wait_for(browser, lambda b: b.execute_script(_LOADED))


def wait_for_images(browser: Any, script: str) -> Any:
    """What a script says of the pictures, once all of them have loaded, those in sight or not."""
    browser.execute_script("for (const i of document.images) i.loading = 'eager'")
    wait_for(
        browser,
        lambda b: b.execute_script(
            "return [...document.images].every(i => i.complete && i.naturalWidth > 0)"
        ),
    )
    return browser.execute_script(script)
