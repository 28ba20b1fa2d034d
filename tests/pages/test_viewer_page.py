"""The viewer's page in a real browser with software WebGL: offline, drawn, and under control."""

import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("selenium", reason="selenium is not installed")

from browsing import open_page, wait_for, wait_for_images
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from tiny_cases import MARKUP, THRESHOLD, tiny_case, write_tiny_case

from uadray.viewer.page import CasePage, write_index

READY = """
return document.documentElement.dataset.ready === "yes"
  || !document.getElementById("trouble").hidden;
"""
SET = """
const field = document.getElementById("controls").elements[arguments[0]];
if (field.type === "checkbox") field.checked = arguments[1]; else field.value = arguments[1];
field.dispatchEvent(new Event("input", {bubbles: true}));
"""
LINES = """
const lines = document.getElementById("lines");
const values = lines.getContext("2d").getImageData(0, 0, lines.width, lines.height).data;
const [r, g, b] = arguments[0];
const found = [];
for (let i = 0; i < values.length; i += 4) {
  if (Math.abs(values[i] - r) < 12 && Math.abs(values[i + 1] - g) < 12
      && Math.abs(values[i + 2] - b) < 12 && values[i + 3] > 200) {
    found.push([(i / 4) % lines.width, Math.floor(i / 4 / lines.width)]);
  }
}
return found;
"""
ORANGE, BLUE = [255, 140, 0], [86, 180, 233]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> CasePage:
    folder = tmp_path_factory.mktemp("viewer")
    return write_tiny_case(folder / "a b" / "viewer.html", index=str(folder / "index.html"))


@pytest.fixture(scope="module")
def loaded(browser: Any, made: CasePage) -> Iterator[Any]:
    """The page, opened once: unpacking and compiling shaders takes software a second or two."""
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    open_page(browser, Path(made.url).as_uri())
    wait_for(browser, lambda b: b.execute_script(READY))
    trouble = browser.find_element(By.ID, "trouble")
    if trouble.is_displayed():
        pytest.skip(f"this browser draws no WebGL 2: {trouble.text}")
    yield browser
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.fixture
def page(loaded: Any) -> Any:
    """The page as it opens."""
    for name, value in {"map": True, "proposal": True, "truth": True, "crosshair": True}.items():
        put(loaded, name, value)
    for name in ("reconstruction", "radiological", "cut"):
        put(loaded, name, False)
    put(loaded, "opacity", 70)
    loaded.find_element(By.TAG_NAME, "body").send_keys("f", "n", "1")
    return loaded


def put(page: Any, name: str, value: Any) -> None:
    page.execute_script(SET, name, value)


def picture(page: Any) -> np.ndarray:
    """What is drawn, after two frames: (rows, columns, 3)."""
    page.execute_async_script(
        "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() =>"
        " requestAnimationFrame(done)))"
    )
    shot = page.find_element(By.CSS_SELECTOR, ".views").screenshot_as_png
    return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int)


def coloured(pixels: np.ndarray) -> int:
    """Pixels that are no grey: scores, outlines, crosshair."""
    return int((np.ptp(pixels, axis=2) > 40).sum())


def axial(page: Any) -> int:
    return int(page.find_element(By.ID, "strip").get_attribute("aria-valuenow"))


def press(page: Any, *keys: str) -> None:
    page.find_element(By.TAG_NAME, "body").send_keys(*keys)


def test_it_opens_from_a_file_without_error_or_request(loaded: Any, made: CasePage) -> None:
    page = loaded
    # Chromium remarks on drawing in software, and on pictures that are read back.
    assert [entry for entry in page.get_log("browser") if entry["source"] != "rendering"] == []
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    urls = {
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    }
    assert Path(made.url).as_uri() in urls
    # The browser's own pages, which it opens when it likes, are no requests of ours.
    asked = {url for url in urls if not url.startswith(("data:", "chrome://"))}
    assert asked == {Path(made.url).as_uri()}
    assert made.num_bytes < 1_500_000


def test_the_policy_refuses_requests_and_other_scripts(loaded: Any) -> None:
    page = loaded
    message = page.execute_async_script(
        "const done = arguments[0]; fetch('http://127.0.0.1:9/').then(() => done('sent'))"
        ".catch(error => done(String(error)));"
    )
    assert message != "sent"
    page.execute_script(
        "const s = document.createElement('script'); s.textContent = 'window.hit = 1';"
        "document.body.append(s); s.remove();"
    )
    assert page.execute_script("return window.hit === undefined")
    page.get_log("browser")


def test_four_views_are_drawn(loaded: Any) -> None:
    page = loaded
    pixels = picture(page)
    rows, columns = (n // 2 for n in pixels.shape[:2])
    for part in (pixels[:rows], pixels[rows:]):
        for tile in (part[:, :columns], part[:, columns:]):
            assert tile.std() > 8
            assert len(np.unique(tile)) > 30
    assert coloured(pixels) > 500


@pytest.mark.slow
def test_opacity_and_threshold_change_the_picture(page: Any) -> None:
    for name in ("proposal", "truth", "crosshair"):
        put(page, name, False)
    counts = []
    levels = (20, 140, 200, 255)
    for level in levels:
        put(page, "threshold", level)
        counts.append(coloured(picture(page)))
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 4 * counts[1] > 0
    put(page, "threshold", 60)
    strong = picture(page)
    put(page, "opacity", 20)
    weak = picture(page)
    assert coloured(weak) < coloured(strong)
    put(page, "opacity", 0)
    none = picture(page)
    put(page, "opacity", 100)
    put(page, "map", False)
    assert np.abs(picture(page) - none).max() < 3
    assert coloured(none) < 200


@pytest.mark.slow
def test_the_frozen_threshold_is_where_it_starts(page: Any) -> None:
    text = page.find_element(By.ID, "threshold-text").text
    assert text == f"{THRESHOLD:g} (frozen)"
    press(page, "+", "+")
    assert "frozen" not in page.find_element(By.ID, "threshold-text").text
    page.find_element(By.NAME, "frozen").click()
    assert page.find_element(By.ID, "threshold-text").text == text


def test_a_click_on_the_strip_moves_the_slice(loaded: Any) -> None:
    page = loaded
    before, start = picture(page), axial(page)
    strip = page.find_element(By.ID, "strip")
    total = int(strip.get_attribute("aria-valuemax"))
    box = strip.rect
    seen = set()
    for share in (0.2, 0.5, 0.8):
        page.execute_script(
            "const s = document.getElementById('strip'); const b = s.getBoundingClientRect();"
            "s.setPointerCapture = () => {};"
            "s.dispatchEvent(new PointerEvent('pointerdown', {bubbles: true, pointerId: 1,"
            " clientX: b.left + arguments[0] * b.width, clientY: b.top + 9}));",
            share,
        )
        pixels = picture(page)
        assert axial(page) == int(share * total) + 1
        assert f"slice {axial(page)} of {total}" in page.find_element(By.ID, "where").text
        assert np.abs(pixels - before).max() > 50
        seen.add(axial(page))
    assert len(seen) == 3
    # And a real one.
    from selenium.webdriver import ActionChains

    place = ActionChains(page).move_to_element_with_offset(strip, -box["width"] // 3, 0)
    place.click().perform()
    picture(page)
    assert axial(page) not in {start, *seen}


@pytest.mark.slow
def test_keys(page: Any) -> None:
    start = axial(page)
    press(page, Keys.ARROW_UP, Keys.ARROW_UP, Keys.ARROW_DOWN)
    picture(page)
    assert axial(page) == start + 1
    press(page, "n")
    picture(page)
    assert axial(page) == start
    where = page.find_element(By.ID, "where")
    position = re.search(r"position (\S+), (\S+), (\S+) mm", where.text)
    assert position is not None
    press(page, Keys.ARROW_RIGHT, Keys.SHIFT + Keys.ARROW_UP + Keys.NULL)
    picture(page)
    moved = re.search(r"position (\S+), (\S+), (\S+) mm", where.text)
    assert moved is not None
    steps = [float(b) - float(a) for a, b in zip(position.groups(), moved.groups(), strict=True)]
    assert steps == pytest.approx([2.0, 2.0, 0.0])
    for key, name in (("m", "map"), ("p", "proposal"), ("t", "truth"), ("r", "reconstruction")):
        field = page.find_element(By.NAME, name)
        before, was = picture(page), field.is_selected()
        press(page, key)
        assert field.is_selected() != was
        assert np.abs(picture(page) - before).max() > 30, name
        press(page, key)
    for key in "2345":
        press(page, key)
        assert picture(page).std() > 8


@pytest.mark.slow
def test_arrows_in_a_slider_stay_there(page: Any) -> None:
    start = axial(page)
    slider = page.find_element(By.NAME, "opacity")
    slider.send_keys(Keys.ARROW_RIGHT)
    picture(page)
    assert axial(page) == start
    assert slider.get_attribute("value") == "71"


@pytest.mark.slow
@pytest.mark.parametrize(("key", "name"), [("2", "axial"), ("3", "coronal"), ("4", "sagittal")])
def test_outlines_lie_on_what_they_outline(page: Any, key: str, name: str) -> None:
    press(page, key)
    put(page, "crosshair", False)
    put(page, "opacity", 100)
    line = np.array(drawn(page, ORANGE))
    assert len(line) > 50
    # The same voxels in colour: at the frozen threshold the map shows what is proposed.
    for outline in ("proposal", "truth"):
        put(page, outline, False)
    pixels = picture(page)
    assert drawn(page, ORANGE) == []
    rows, columns = np.nonzero(np.ptp(pixels, axis=2) > 60)
    map_box = (columns.min(), rows.min(), columns.max(), rows.max())
    line_box = (*line.min(0), *line.max(0))
    voxel = pixels.shape[0] / 36
    assert np.abs(np.subtract(map_box, line_box)).max() < voxel, name


def drawn(page: Any, colour: list[int]) -> list[list[int]]:
    picture(page)
    points: list[list[int]] = page.execute_script(LINES, colour)
    return points


@pytest.mark.slow
def test_left_is_left_until_it_is_asked_for_otherwise(page: Any) -> None:
    press(page, "2")
    middle = picture(page).shape[1] / 2
    blue = np.array(drawn(page, BLUE))
    # The spot lies in the right half of the brain: on the right, as the report has it.
    assert blue[:, 0].mean() > middle + 20
    press(page, "l")
    blue = np.array(drawn(page, BLUE))
    assert blue[:, 0].mean() < middle - 20


@pytest.mark.slow
def test_the_reconstruction_takes_the_scans_place(page: Any) -> None:
    press(page, "2", "m")
    put(page, "crosshair", False)
    scan = picture(page)
    press(page, "r")
    again = picture(page)
    assert "reconstruction" in page.find_element(By.ID, "where").text
    # Left of the spot the tiny case's reconstruction is flat, and its scan is not.
    rows, columns = scan.shape[:2]
    part = (slice(int(0.4 * rows), int(0.6 * rows)), slice(int(0.4 * columns), int(0.46 * columns)))
    assert again[part].std() < 0.3 * scan[part].std()
    press(page, "r")
    assert np.abs(picture(page) - scan).max() < 3


def test_the_spread_over_members_takes_the_maps_place(
    browser: Any, tmp_path_factory: pytest.TempPathFactory, loaded: Any, made: CasePage
) -> None:
    """On a page of an ensemble; the page of a single fit has no such box."""
    assert not loaded.find_elements(By.NAME, "spread")
    anomaly = tiny_case()["anomaly"]
    values = np.asarray(anomaly.dataobj)
    # Where scores are low members are apart here, so that the two layers differ everywhere.
    spread = np.where(values > 0, np.float32(0.2) * (1 - values), 0).astype(np.float32)
    out = tmp_path_factory.mktemp("ensemble") / "viewer.html"
    write_tiny_case(out, spread=nib.Nifti1Image(spread, anomaly.affine))
    try:
        open_page(browser, out.as_uri())
        wait_for(browser, lambda b: b.execute_script(READY))
        press(browser, "2")
        for name in ("crosshair", "proposal", "truth"):
            put(browser, name, False)
        few = coloured(picture(browser))
        assert "spread" in browser.find_element(By.ID, "where").text
        press(browser, "s")
        many = coloured(picture(browser))
        assert many > 1.5 * few > 0
        put(browser, "opacity", 0)
        assert coloured(picture(browser)) < 0.05 * many
        put(browser, "opacity", 70)
        press(browser, "s")
        assert coloured(picture(browser)) == pytest.approx(few, rel=0.05)
    finally:
        open_page(browser, Path(made.url).as_uri())
        wait_for(browser, lambda b: b.execute_script(READY))


def test_names_that_are_markup_stay_text(loaded: Any) -> None:
    page = loaded
    assert page.find_element(By.TAG_NAME, "h1").text == MARKUP
    assert MARKUP in page.find_element(By.CSS_SELECTOR, "header .warning").text
    assert page.execute_script("return [...document.scripts].filter(s => !s.type).length") == 2


@pytest.mark.slow
def test_both_modes_and_a_phone(page: Any) -> None:
    colour = "return getComputedStyle(document.body).backgroundColor"
    light = page.execute_script(colour)
    feature = {"name": "prefers-color-scheme", "value": "dark"}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": [feature]})
    assert page.execute_script(colour) != light
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    size = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        assert page.execute_script("return document.documentElement.scrollWidth") <= 390
        page.execute_script("document.querySelector('.views').scrollIntoView()")
        assert picture(page).std() > 8
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_an_index_leads_to_pages(
    browser: Any, made: CasePage, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = Path(made.url).parents[1]
    calm = write_tiny_case(
        folder / "calm" / "viewer.html", name="calm", summary={"score": 0.2, "volume_ml": 900.0}
    )
    open_page(browser, Path(write_index(str(folder / "index.html"), [calm, made])).as_uri())
    names: Callable[[], list[str]] = lambda: browser.execute_script(  # noqa: E731
        "return [...document.querySelectorAll('#cards li:not([hidden])')].map(c => c.dataset.name)"
    )
    assert names() == [MARKUP, "calm"]
    loaded = "return [...document.images].map(i => i.complete && i.naturalWidth > 100)"
    assert wait_for_images(browser, loaded) == [True, True]
    sort = "const s = document.getElementById('tools').elements"
    fire = "s.sort.dispatchEvent(new Event('input', {bubbles: true}))"
    browser.execute_script(f"{sort}; s.sort.value = 'volume'; {fire}")
    assert names() == ["calm", MARKUP]
    browser.execute_script(f"{sort}; s.search.value = 'unlike'; {fire}")
    assert names() == [MARKUP]
    assert [e for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []
    links = [a.get_attribute("href") for a in browser.find_elements(By.CSS_SELECTOR, "#cards a")]
    assert all(Path(url.removeprefix("file://").replace("%20", " ")).exists() for url in links)
