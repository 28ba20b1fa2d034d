"""The report of a sweep in a real browser: filters, highlighting, keyboard, phone, dark, print."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("selenium", reason="selenium is not installed")

from browsing import open_page
from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select

NUM_TRIALS = 19

CONTRAST = """
const probe = document.body.appendChild(document.createElement("span"));
const luminance = (name) => {
  probe.style.color = `var(--${name})`;
  const parts = getComputedStyle(probe).color.match(/\\d+/g).slice(0, 3).map(v => v / 255);
  const [r, g, b] = parts.map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const page = luminance("page");
const found = arguments[0].map(name => {
  const own = luminance(name);
  return (Math.max(own, page) + 0.05) / (Math.min(own, page) + 0.05);
});
probe.remove();
return found;
"""


def emulate(browser: Chrome, *, dark: bool = False, media: str = "") -> None:
    feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": [feature]})


def resize(browser: Chrome, width: int, height: int = 1000) -> None:
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


@pytest.fixture
def page(browser: Chrome, sweep_report: Path) -> Iterator[Chrome]:
    """The page, freshly opened, with what was logged before thrown away."""
    emulate(browser)
    resize(browser, 1440)
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    open_page(browser, sweep_report.as_uri())
    yield browser
    emulate(browser)
    resize(browser, 1440)


def faded(page: Chrome) -> list[bool]:
    return page.execute_script(
        "return [...document.querySelectorAll('.parallel polyline')]"
        ".map(line => line.classList.contains('faded'))"
    )


def readout(page: Chrome) -> str:
    return page.find_element(By.CSS_SELECTOR, ".parallel .readout").text


def tick(page: Chrome, label: str) -> WebElement:
    return page.find_element(By.CSS_SELECTOR, f".tick[aria-label='only {label}']")


def with_key(page: Chrome, axis: int, text: str) -> list[bool]:
    """Which lines pass a label, from what they say in words."""
    labels = page.execute_script(
        "return [...document.querySelectorAll('.parallel polyline')].map(l => l.dataset.text)"
    )
    return [text in label.split(", ")[axis] for label in labels]


def test_it_opens_from_a_file_without_error_or_request(page: Chrome, sweep_report: Path) -> None:
    assert page.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    urls = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    own = sweep_report.as_uri()
    assert [url for url in urls if url != own and not url.startswith("data:")] == []
    ids = page.execute_script("return [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))


def test_labels_of_settings_filter_and_a_button_shows_all(page: Chrome) -> None:
    assert faded(page) == [False] * NUM_TRIALS
    tick(page, "latent size 64").click()
    kept = with_key(page, 1, "latent size 64")
    assert sum(kept) == 8
    assert faded(page) == [not one for one in kept]
    assert readout(page) == f"8 of {NUM_TRIALS} trials."
    tick(page, "training data 20 %").click()
    both = [a and b for a, b in zip(kept, with_key(page, 2, "training data 20 %"), strict=True)]
    assert faded(page) == [not one for one in both]
    assert sum(both) == 4
    # Two labels of one axis: any of them will do.
    tick(page, "training data 100 %").click()
    assert faded(page) == [not one for one in kept]
    assert tick(page, "latent size 64").get_attribute("aria-pressed") == "true"
    page.find_element(By.CSS_SELECTOR, ".parallel .reset").click()
    assert faded(page) == [False] * NUM_TRIALS
    assert tick(page, "latent size 64").get_attribute("aria-pressed") == "false"
    assert readout(page) == f"{NUM_TRIALS} trials."


def test_the_keyboard_reaches_labels_and_list(page: Chrome) -> None:
    label = tick(page, "experiment 3D-Cube-n")
    for key, pressed in ((Keys.ENTER, "true"), (Keys.SPACE, "false")):
        label.send_keys(key)
        assert label.get_attribute("aria-pressed") == pressed
    assert page.switch_to.active_element == label
    choices = Select(page.find_element(By.CSS_SELECTOR, ".parallel select"))
    assert len(choices.options) == NUM_TRIALS + 1
    name = "3D-Cube-n · latent size 512, training data 100 %, seed 1"
    choices.select_by_visible_text(name)
    picked = page.find_elements(By.CSS_SELECTOR, ".parallel .picked")
    assert [line.get_attribute("data-label") for line in picked] == [name]
    assert sum(faded(page)) == NUM_TRIALS - 1
    assert readout(page).startswith(f"{name}: experiment 3D-Cube-n, latent size 512, ")
    assert "healthy L1 0.0" in readout(page)
    assert "Dice_D stroke 0." in readout(page)


def test_pointing_at_a_line_tells_it_and_a_click_keeps_it(page: Chrome) -> None:
    svg = page.find_element(By.CSS_SELECTOR, ".parallel svg")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", svg)
    x, y, label = page.execute_script(
        "const line = [...document.querySelectorAll('.parallel polyline')].at(-1);"
        "const [a, b] = line.getAttribute('points').split(' ').slice(-2)"
        ".map(pair => pair.split(',').map(Number));"
        "const at = new DOMPoint(0.1 * a[0] + 0.9 * b[0], 0.1 * a[1] + 0.9 * b[1])"
        ".matrixTransform(arguments[0].getScreenCTM());"
        "const box = arguments[0].getBoundingClientRect();"
        "return [at.x - box.x - box.width / 2, at.y - box.y - box.height / 2, line.dataset.label]",
        svg,
    )
    ActionChains(page).move_to_element_with_offset(svg, round(x), round(y)).perform()
    assert readout(page).startswith(f"{label}: ")
    ActionChains(page).click().perform()
    outside = page.find_element(By.TAG_NAME, "h1")
    ActionChains(page).move_to_element(outside).perform()
    assert readout(page).startswith(f"{label}: ")
    assert sum(faded(page)) == NUM_TRIALS - 1


def test_the_figures_behind_the_plots_open_and_sort(page: Chrome) -> None:
    details = page.find_element(By.XPATH, "//details[contains(., 'behind these plots')]")
    table = details.find_element(By.TAG_NAME, "table")
    assert not table.is_displayed()
    details.find_element(By.TAG_NAME, "summary").click()
    assert table.is_displayed()
    table.find_elements(By.CSS_SELECTOR, "thead button")[3].click()
    cells = table.find_elements(By.CSS_SELECTOR, "td[data-key='dice_d']")
    numbers = [float(str(cell.get_attribute("data-value"))) for cell in cells]
    assert len(numbers) == 8
    assert numbers == sorted(numbers, reverse=True)


def test_names_that_are_markup_stay_text_and_endings_are_named(page: Chrome) -> None:
    assert page.execute_script("return document.scripts.length") == 1
    section = page.find_element(By.CSS_SELECTOR, "section[aria-labelledby='unevaluated']")
    assert "NotFiniteError: <script>alert(1)</script>" in section.text
    assert "scheduler stopped it after epoch 3" in section.text
    links = page.find_elements(By.CSS_SELECTOR, ".montage a")
    assert [link.get_attribute("href").rsplit("/", 2)[-2:] for link in links] == [
        ["viewers", "pca.html"]
    ]


def test_plots_are_drawn_and_described(page: Chrome) -> None:
    plots = page.execute_script(
        "return [...document.querySelectorAll('.effects svg.plot')].map(plot => {"
        "const box = plot.getBoundingClientRect();"
        "return [box.width, box.height, plot.querySelectorAll('path').length,"
        " plot.getAttribute('aria-label')]})"
    )
    # Healthy error and two cohorts of two settings, AUPRC over data, three of slices.
    assert len(plots) == 2 * 3 + 1 + 3
    assert all(width > 250 and height > 150 for width, height, _, _ in plots)
    assert all(paths > 10 and label for _, _, paths, label in plots)


@pytest.mark.parametrize("dark", [False, True])
def test_lines_stand_out_from_the_page(page: Chrome, dark: bool) -> None:
    emulate(page, dark=dark)
    names = [f"line-{n}" for n in range(1, 7)] + [f"fifth-{n}" for n in range(5)]
    assert min(page.execute_script(CONTRAST, names)) >= 3


def test_dark_mode_turns_the_drawing(page: Chrome) -> None:
    script = (
        "const style = s => getComputedStyle(document.querySelector(s));"
        "return [style('.parallel .head').fill, style('.parallel .q4').stroke]"
    )
    light = page.execute_script(script)
    emulate(page, dark=True)
    assert all(a != b for a, b in zip(light, page.execute_script(script), strict=True))


def test_a_phone_scrolls_the_drawing_but_not_the_page(page: Chrome) -> None:
    resize(page, 390, 844)
    assert page.execute_script("return document.documentElement.scrollWidth") <= 390
    wide, size = page.execute_script(
        "const svg = document.querySelector('.parallel svg'), box = svg.parentElement;"
        "return [box.scrollWidth > box.clientWidth,"
        " parseFloat(getComputedStyle(svg.querySelector('.tick text')).fontSize)"
        " * svg.getScreenCTM().a]"
    )
    assert wide
    assert size > 8


def test_paper_has_the_drawing_without_its_controls(page: Chrome) -> None:
    emulate(page, media="print")
    assert not page.find_element(By.CSS_SELECTOR, ".parallel .controls").is_displayed()
    assert page.find_element(By.CSS_SELECTOR, ".parallel svg").is_displayed()
    made = page.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert base64.b64decode(made["data"]).startswith(b"%PDF-")
