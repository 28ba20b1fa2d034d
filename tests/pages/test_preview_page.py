"""The page of erasings in a real browser: offline, without errors, nothing blank or cut off."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("selenium", reason="selenium is not installed")

from browsing import open_page, wait_for_images
from tiny_cohorts import write_healthy

from uadray.config import experiment
from uadray.report.erasing_page import write_erasing_page

IMAGES = "return [...document.images].map(i => [i.complete && i.naturalWidth > 0, i.width, i.alt])"


def test_it_opens_offline(browser: Any, tmp_path: Path) -> None:
    experiments = [experiment(n) for n in ("2D-Half-Slice-n", "3D-None", "3D-Multi-Cube-n")]
    page = Path(write_erasing_page(write_healthy(tmp_path), str(tmp_path / "p.html"), experiments))
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    open_page(browser, page.as_uri())
    assert [e for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []
    images = wait_for_images(browser, IMAGES)
    assert len(images) == 3 + 3 + 9
    assert all(loaded and width > 60 for loaded, width, _ in images)
    assert images[0][2].startswith("2D-Half-Slice-n, epoch ")
    assert len({alt for *_, alt in images}) == 15
    # Wide tables scroll in their frames; the page itself does not.
    assert browser.execute_script(
        "return document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    )
