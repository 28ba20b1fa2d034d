"""The report in a real browser: offline, without errors, sortable, readable in both modes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("selenium", reason="selenium is not installed")

from browsing import open_page, wait_for
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

COLUMN = """
const column = [...arguments[0].tHead.rows[0].cells].indexOf(arguments[1]);
return [...arguments[0].tBodies[0].rows].map(row => row.cells[column].dataset.value);
"""

BLANK_IMAGES = """
return [...document.images].filter(image => {
  if (!image.complete || !image.naturalWidth) return true;
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  const values = context.getImageData(0, 0, canvas.width, canvas.height).data;
  return new Set(values.filter((_, i) => i % 4 === 0)).size < 3;
}).map(image => image.alt);
"""

CONTRASTS = """
const probe = document.body.appendChild(document.createElement("span"));
const luminance = (name) => {
  probe.style.color = `var(--${name})`;
  const parts = getComputedStyle(probe).color.match(/\\d+/g).slice(0, 3).map(v => v / 255);
  const [r, g, b] = parts.map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const found = arguments[0].map(([a, b]) => {
  const [x, y] = [luminance(a), luminance(b)];
  return (Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05);
});
probe.remove();
return found;
"""


def emulate(browser: Chrome, *, dark: bool = False, media: str = "") -> None:
    feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    command = {"media": media, "features": [feature]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", command)


def resize(browser: Chrome, width: int, height: int) -> None:
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


@pytest.fixture
def page(browser: Chrome, report: Path) -> Iterator[Chrome]:
    """The page, freshly opened from the file, with what was logged before thrown away."""
    emulate(browser)
    resize(browser, 1440, 1200)
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    open_page(browser, report.as_uri())
    yield browser
    emulate(browser)
    resize(browser, 1440, 1200)


def table(page: Chrome) -> tuple[Any, dict[str, Any]]:
    """The first table and its head cells by their key."""
    element = page.find_element(By.CSS_SELECTOR, "table.sortable")
    heads = element.find_elements(By.CSS_SELECTOR, "thead th")
    keys = ["method"] + [
        str(cell.get_attribute("data-key"))
        for cell in element.find_elements(By.CSS_SELECTOR, "tbody tr:first-child td")
    ]
    return element, dict(zip(keys, heads, strict=True))


def values(page: Chrome, key: str) -> list[str]:
    element, heads = table(page)
    return page.execute_script(COLUMN, element, heads[key])


def test_it_opens_from_a_file_without_error_or_request(page: Chrome, report: Path) -> None:
    assert "Unsupervised anomaly detection" in page.title
    assert page.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    urls = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert report.as_uri() in urls
    assert [url for url in urls if url != report.as_uri() and not url.startswith("data:")] == []


def test_the_policy_refuses_scripts_and_requests(page: Chrome) -> None:
    page.execute_script(
        "const s = document.createElement('script'); s.textContent = 'window.hit = 1';"
        "document.body.append(s);"
    )
    assert page.execute_script("return window.hit === undefined")
    message = page.execute_async_script(
        "const done = arguments[0]; fetch('http://127.0.0.1:9/').then(() => done('sent'))"
        ".catch(error => done(String(error)));"
    )
    assert message != "sent"
    refusals: list[str] = []

    def are_logged(browser: Chrome) -> bool:
        refusals.extend(entry["message"] for entry in browser.get_log("browser"))
        return sum("Content Security Policy" in text for text in refusals) >= 2

    wait_for(page, are_logged)


def test_names_that_are_markup_stay_text(page: Chrome) -> None:
    assert page.execute_script("return document.scripts.length") == 1
    names = [cell.text for cell in page.find_elements(By.CSS_SELECTOR, "tbody th")]
    assert any(name.startswith("<script>alert(1)</script>") for name in names)
    badges = [badge.text for badge in page.find_elements(By.CSS_SELECTOR, "h2 .badge")]
    assert "<script>alert(1)</script>" in badges


def test_it_starts_sorted_by_dice(page: Chrome) -> None:
    _, heads = table(page)
    assert heads["dice_d"].get_attribute("aria-sort") == "descending"
    dice = [float(value) for value in values(page, "dice_d")]
    assert dice == sorted(dice, reverse=True)
    assert len(dice) == 11


@pytest.mark.parametrize("key", ["auroc", "seconds_per_volume", "method", "threshold"])
def test_a_click_sorts_and_a_second_one_turns_round(page: Chrome, key: str) -> None:
    before = values(page, key)
    _, heads = table(page)
    heads[key].find_element(By.TAG_NAME, "button").click()
    first = values(page, key)
    order = heads[key].get_attribute("aria-sort")
    assert order == heads[key].get_attribute("data-first")
    if key == "method":
        expected = sorted(before, key=str.lower)
        assert [v for v in first if v[0].isalnum()] == [v for v in expected if v[0].isalnum()]
    else:
        assert first == sorted(before, key=float, reverse=order == "descending")
    assert sorted(first) == sorted(before)
    heads[key].find_element(By.TAG_NAME, "button").click()
    assert values(page, key) == first[::-1]
    assert first != first[::-1]
    marked = page.find_elements(By.CSS_SELECTOR, "table.sortable:first-of-type th[aria-sort]")
    assert heads[key] in marked
    assert heads["dice_d"] not in marked


def test_the_keyboard_sorts_and_absent_figures_stay_last(page: Chrome) -> None:
    _, heads = table(page)
    button = heads["best_epoch"].find_element(By.TAG_NAME, "button")
    for key in (Keys.ENTER, Keys.SPACE):
        button.send_keys(key)
        epochs = values(page, "best_epoch")
        assert epochs[-6:] == [""] * 6
        assert "" not in epochs[:5]
    assert heads["best_epoch"].get_attribute("aria-sort") == "descending"
    assert page.switch_to.active_element == button


def test_each_table_sorts_for_itself(page: Chrome) -> None:
    before = page.execute_script("return document.querySelectorAll('table.sortable')[1].innerText")
    _, heads = table(page)
    heads["fit_minutes"].find_element(By.TAG_NAME, "button").click()
    assert (
        page.execute_script("return document.querySelectorAll('table.sortable')[1].innerText")
        == before
    )


def test_paired_tables_start_sorted_by_their_differences_and_sort(page: Chrome) -> None:
    element = page.find_element(By.CSS_SELECTOR, "[aria-label^='Differences'] table")
    cells = element.find_elements(By.CSS_SELECTOR, "td[data-key='dice_d_difference']")
    differences = [float(str(cell.get_attribute("data-value"))) for cell in cells]
    assert differences == sorted(differences, reverse=True)
    assert min(differences) < 0 < max(differences)
    heads = element.find_elements(By.CSS_SELECTOR, "thead th")
    heads[4].find_element(By.TAG_NAME, "button").click()
    p = [float(value) for value in page.execute_script(COLUMN, element, heads[4])]
    assert heads[4].get_attribute("aria-sort") == "ascending"
    assert p == sorted(p)


def test_no_picture_is_blank(page: Chrome) -> None:
    assert page.execute_script("return document.images.length") > 80
    assert page.execute_script(BLANK_IMAGES) == []
    plots = page.execute_script(
        "return [...document.querySelectorAll('svg.plot')].map(plot => {"
        "const box = plot.getBoundingClientRect();"
        "return [box.width, box.height, plot.querySelectorAll('path').length,"
        " plot.getAttribute('aria-label')]})"
    )
    assert len(plots) > 20
    assert all(width > 150 and height > 80 for width, height, _, _ in plots)
    assert all(paths > 5 and label for _, _, paths, label in plots)


def test_no_identifier_stands_twice(page: Chrome) -> None:
    ids = page.execute_script("return [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))


def test_dark_mode_turns_page_and_plots(page: Chrome) -> None:
    script = (
        "return [getComputedStyle(document.body).backgroundColor,"
        " getComputedStyle(document.querySelector('svg.plot text')).fill]"
    )
    light_page, light_text = page.execute_script(script)
    emulate(page, dark=True)
    dark_page, dark_text = page.execute_script(script)
    assert light_page == "rgb(255, 255, 255)"
    assert dark_page != light_page
    assert dark_text != light_text
    emulate(page, dark=True, media="print")
    assert page.execute_script(script) == [light_page, light_text]


@pytest.mark.parametrize("dark", [False, True])
def test_contrasts(page: Chrome, dark: bool) -> None:
    emulate(page, dark=dark)
    pairs = [
        (text, ground)
        for text in ("ink", "muted", "accent", "plain")
        for ground in ("page", "panel", "stripe")
    ]
    contrasts = page.execute_script(CONTRASTS, [*pairs, ("badge", "badge-page")])
    assert min(contrasts) >= 4.5


def test_details_open(page: Chrome) -> None:
    details = page.find_element(By.CSS_SELECTOR, "details.run")
    assert not details.find_element(By.TAG_NAME, "pre").is_displayed()
    details.find_element(By.TAG_NAME, "summary").click()
    block = details.find_element(By.TAG_NAME, "pre")
    assert block.is_displayed()
    label = details.find_element(By.TAG_NAME, "summary").text
    assert label.startswith(json.loads(block.text)["name"])


def test_a_phone_scrolls_tables_but_not_the_page(page: Chrome) -> None:
    resize(page, 390, 844)
    assert page.execute_script("return document.documentElement.scrollWidth") <= 390
    wide = page.execute_script(
        "const box = document.querySelector('.scroll'); return box.scrollWidth > box.clientWidth"
    )
    assert wide
    sizes = page.execute_script(
        "return [...document.querySelectorAll('svg.plot')].map(plot => {"
        "const text = plot.querySelector('text');"
        "return parseFloat(getComputedStyle(text).fontSize) * plot.getScreenCTM().a})"
    )
    assert min(sizes) > 8


def test_links_lead_somewhere(page: Chrome) -> None:
    lost = page.execute_script(
        "return [...document.querySelectorAll('a[href^=\"#\"]')]"
        ".filter(link => !document.querySelector(link.getAttribute('href'))).length"
    )
    assert lost == 0
    assert page.find_elements(By.CSS_SELECTOR, "a[href='#unevaluated']")


def test_the_page_is_small(report: Path) -> None:
    assert report.stat().st_size < 5_000_000
