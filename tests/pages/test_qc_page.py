"""The quality page in a real browser: offline, lazy, sortable, filterable, in both modes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("selenium", reason="selenium is not installed")

from browsing import open_page, wait_for
from tiny_qc import DOUBT_NOTE, MARKUP, NAMES, write_cohort

from uadray.quality.page import write_quality_page

SHOWN = """
return [...document.querySelectorAll("#scans tbody tr:not([hidden])")].map(r => r.dataset.id);
"""
DRAWN = """
const rows = [...document.querySelectorAll("#scans tbody tr")];
return rows.map(row => row.querySelectorAll("image").length);
"""
CHOOSE = """
const field = document.getElementById("choose").elements[arguments[0]];
if (field.type === "checkbox") field.checked = arguments[1]; else field.value = arguments[1];
field.dispatchEvent(new Event("input", {bubbles: true}));
"""
SORT = """
const heads = [...document.getElementById("scans").tHead.rows[0].cells];
const column = heads.findIndex(head => head.innerText.trim().startsWith(arguments[0]));
heads[column].querySelector("button").click();
return [...document.querySelectorAll("#scans tbody tr")].map(r => r.cells[column].dataset.value);
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qc")
    return Path(write_quality_page(write_cohort(folder), str(folder / "a b-qc.html")).url)


@pytest.fixture
def page(browser: Any, made: Path) -> Iterator[Any]:
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    open_page(browser, made.as_uri())
    yield browser
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})


def wait_until_drawn(page: Any) -> list[int]:
    wait_for(page, lambda p: p.execute_script(DRAWN)[0] == 3)
    return list(page.execute_script(DRAWN))


def test_it_opens_offline_without_error(page: Any, made: Path) -> None:
    wait_until_drawn(page)
    assert page.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    urls = {
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    }
    assert {url for url in urls if not url.startswith("data:")} == {made.as_uri()}


def test_only_rows_in_sight_are_drawn(page: Any) -> None:
    # A frame of two rows: what is far below is not drawn, and what is far above is let go.
    page.execute_script("document.querySelector('.frame').style.maxHeight = '220px'")
    wait_until_drawn(page)
    wait_for(page, lambda p: p.execute_script(DRAWN)[-1] == 0)
    page.execute_script("const f = document.querySelector('.frame'); f.scrollTop = f.scrollHeight")
    wait_for(page, lambda p: p.execute_script(DRAWN)[-1] == 3)
    wait_for(page, lambda p: p.execute_script(DRAWN)[0] == 0)


def test_pictures_show_the_scan_and_its_outlines(page: Any) -> None:
    wait_until_drawn(page)
    tiles = page.execute_script(
        "return [...document.querySelectorAll('#scans tbody tr:first-child .tile')].map(t => {"
        "const box = t.getBoundingClientRect();"
        "return [box.width, box.height, ...['.brain', '.lesion'].map("
        "  s => t.querySelector(s).getBBox().width), t.querySelector('svg').ariaLabel]})"
    )
    assert len(tiles) == 3
    for (width, height, brain, lesion, label), name in zip(
        tiles, ("axial", "coronal", "sagittal"), strict=True
    ):
        assert width > 60
        assert height > 60
        assert 0 < lesion < brain
        assert f", {name} plane " in label
    bars = page.execute_script("return document.querySelector('.shares .bars').getBBox().height")
    assert bars > 10


def test_filters(page: Any) -> None:
    everything = page.execute_script(SHOWN)
    assert sorted(everything) == sorted(NAMES)
    page.execute_script(CHOOSE, "show", "doubts")
    assert page.execute_script(SHOWN) == [NAMES[2]]
    assert page.find_element("id", "count").text == f"1 of {len(NAMES)} scans shown"
    page.execute_script(CHOOSE, "show", "flagged")
    flagged = page.execute_script(SHOWN)
    assert 1 < len(flagged) < len(NAMES)
    page.execute_script(CHOOSE, "show", "all")
    page.execute_script(CHOOSE, "search", DOUBT_NOTE[:20].upper())
    assert page.execute_script(SHOWN) == [NAMES[2]]
    page.execute_script(CHOOSE, "search", "")
    page.execute_script(CHOOSE, "part", "threshold")
    # Row 3 could not be used.
    assert sorted(page.execute_script(SHOWN)) == sorted(NAMES[:4])
    page.execute_script(CHOOSE, "part", "")
    page.execute_script(CHOOSE, "scanner", f"={MARKUP}")
    some = page.execute_script(SHOWN)
    assert 0 < len(some) < len(NAMES)
    assert page.execute_script("return document.getElementById('ids').textContent").split() == some


@pytest.mark.parametrize("head", ["Brain", "Lesion", "Histogram", "Mirror", "Flags"])
def test_columns_sort(page: Any, head: str) -> None:
    first = [float(value) for value in page.execute_script(SORT, head)]
    second = [float(value) for value in page.execute_script(SORT, head)]
    assert first in (sorted(first), sorted(first, reverse=True))
    assert second == first[::-1]
    # What was sorted away from sight is drawn where it comes into it.
    wait_until_drawn(page)


def test_outlines_can_be_hidden_and_pictures_made_large(page: Any) -> None:
    wait_until_drawn(page)
    display = "return getComputedStyle(document.querySelector('.tile .brain')).display"
    width = "return document.querySelector('.tile').getBoundingClientRect().width"
    before = page.execute_script(width)
    assert page.execute_script(display) == "inline"
    page.execute_script(CHOOSE, "lines", False)
    page.execute_script(CHOOSE, "large", True)
    assert page.execute_script(display) == "none"
    assert page.execute_script(width) > 1.8 * before


def test_names_that_are_markup_stay_text(page: Any) -> None:
    assert page.execute_script("return [...document.scripts].filter(s => !s.type).length") == 1
    assert MARKUP in page.execute_script(SHOWN)


def test_both_modes_and_a_phone(page: Any) -> None:
    colour = "return getComputedStyle(document.body).backgroundColor"
    light = page.execute_script(colour)
    feature = {"name": "prefers-color-scheme", "value": "dark"}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": [feature]})
    assert page.execute_script(colour) != light
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        assert page.execute_script("return document.documentElement.scrollWidth") <= 390
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
