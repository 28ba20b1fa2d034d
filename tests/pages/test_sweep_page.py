"""The page of a sweep in a real browser: brushes, selection, keyboard, phone, dark, print."""

import base64
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("selenium", reason="selenium is not installed")

from browsing import open_page, wait_for
from fake_runs import write_run
from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from uadray.config import Experiment, with_fit
from uadray.report import write_report

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

CUT = """
for (const one of document.querySelectorAll("details")) one.open = true;
return [...document.querySelectorAll(".scroll")]
  .filter(box => box.scrollWidth > box.clientWidth)
  .map(box => box.getAttribute("aria-label"));
"""

LISTED = """
return [...document.querySelectorAll(".leaderboard tbody tr")]
  .filter(row => row.getClientRects().length).map(row => row.dataset.trial);
"""

LINES = """
const lines = [...document.querySelectorAll("#parallel g.line path")];
return lines.sort((a, b) => b.__data__.datum.trial - a.__data__.datum.trial).map(path => {
  const style = getComputedStyle(path);
  return [Number(style.strokeOpacity), parseFloat(style.strokeWidth), style.stroke];
});
"""
"""Opacity, width and colour of each line, the best trial last."""

AXIS = """
const box = document.querySelector("#parallel g.hit" + arguments[0] + " path");
box.scrollIntoView({ block: "center" });
const { x, y, width, height } = box.getBoundingClientRect();
return [x + width / 2, y, height];
"""


def emulate(browser: Chrome, *, dark: bool = False, media: str = "") -> None:
    feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": [feature]})


def resize(browser: Chrome, width: int, height: int = 1000) -> None:
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def open_drawn(browser: Chrome, report: Path) -> None:
    """Open the page of a sweep and wait until all of its charts stand."""
    open_page(browser, report.as_uri())
    drawn = "return document.documentElement.dataset.charts === 'drawn'"
    wait_for(browser, lambda b: b.execute_script(drawn))


@pytest.fixture
def page(browser: Chrome, sweep_report: Path) -> Iterator[Chrome]:
    """The page, freshly opened, with what was logged before thrown away."""
    emulate(browser)
    resize(browser, 1280)
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    open_drawn(browser, sweep_report)
    yield browser
    emulate(browser)
    resize(browser, 1440)


def readout(page: Chrome) -> str:
    return page.find_element(By.CSS_SELECTOR, ".readout").text


def cells(page: Chrome, key: str) -> dict[str, str]:
    """Shown texts of a column by trial, of the rows that are listed."""
    return page.execute_script(
        "return Object.fromEntries([...document.querySelectorAll('.leaderboard tbody tr')]"
        ".filter(row => row.getClientRects().length).map(row => [row.dataset.trial,"
        " row.querySelector(`td[data-key='${arguments[0]}']`).innerText.replace(/\\s*best/, '')]))",
        key,
    )


def drag(page: Chrome, axis: int, start: float, end: float) -> None:
    """Brush an axis between two heights, 0 at its lower end and 1 at its upper."""
    x, y, height = page.execute_script(AXIS, axis)
    places = [y + 6 + (height - 12) * (1 - share) for share in (start, end)]
    chain = ActionChains(page, duration=50)
    pointer = chain.w3c_actions.pointer_action
    pointer.move_to_location(round(x), round(places[0]))
    pointer.pointer_down()
    pointer.move_to_location(round(x), round(sum(places) / 2))
    pointer.move_to_location(round(x), round(places[1]))
    pointer.pointer_up()
    chain.perform()


def is_settled(page: Chrome, text: str) -> None:
    wait_for(page, lambda b: readout(b) == text)


def rows_of(page: Chrome) -> list[str]:
    return page.execute_script(LISTED)


def box_of(page: Chrome, trial: str) -> WebElement:
    return page.find_element(By.CSS_SELECTOR, f".leaderboard .pick[data-trial='{trial}']")


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


def test_the_first_screen_has_the_best_trial_the_plot_and_the_leaderboard(page: Chrome) -> None:
    resize(page, 1280, 900)
    tops = page.execute_script(
        "return ['.card', '#parallel svg', '.leaderboard tbody tr']"
        ".map(s => document.querySelector(s).getBoundingClientRect().top)"
    )
    assert all(0 < top < 900 for top in tops)
    card = page.find_element(By.CSS_SELECTOR, ".card")
    errors = cells(page, "healthy_l1")
    best = min((float(text), trial) for trial, text in errors.items() if text[0].isdigit())
    assert card.text.startswith(f"Best trial by healthy L1, no labels: {best[0]:.4f}")
    assert re.search(r"stroke 0\.\d{3} \[0\.\d{3}, 0\.\d{3}\] 0\.\d{3} \[", card.text)
    assert "python jobs/train.py 3D-" in card.text
    assert "--fit.epochs 6" in card.text
    assert len(card.find_elements(By.CSS_SELECTOR, ".strip img")) == 2 * 4


def test_a_brush_filters_the_leaderboard_and_the_lines(page: Chrome) -> None:
    is_settled(page, f"{NUM_TRIALS} trials.")
    assert len(rows_of(page)) == NUM_TRIALS
    drag(page, 1, 0.0, 0.5)
    is_settled(page, f"8 of {NUM_TRIALS} trials.")
    assert set(cells(page, "method.latent_size").values()) == {"64"}
    faint = [opacity < 0.1 for opacity, _, _ in page.execute_script(LINES)]
    assert sum(faint) == NUM_TRIALS - 8
    # A second axis narrows it further; better is higher.
    errors = {t: float(text) for t, text in cells(page, "healthy_l1").items()}
    drag(page, 3, 0.9, 1.0)
    wait_for(page, lambda b: len(rows_of(b)) < 8)
    kept = cells(page, "healthy_l1")
    assert 0 < len(kept) < 8
    assert max(errors[t] for t in kept) < min(errors[t] for t in errors if t not in kept)
    # A click on an axis clears it, the button all of them.
    drag(page, 3, 0.5, 0.5)
    is_settled(page, f"8 of {NUM_TRIALS} trials.")
    page.find_element(By.CSS_SELECTOR, ".clear-filter").click()
    is_settled(page, f"{NUM_TRIALS} trials.")
    assert len(rows_of(page)) == NUM_TRIALS


def test_sliders_brush_by_keyboard(page: Chrome) -> None:
    page.find_element(By.CSS_SELECTOR, ".sliders summary").send_keys(Keys.ENTER)
    high = page.find_elements(By.CSS_SELECTOR, ".sliders fieldset:nth-of-type(2) input")[1]
    assert high.get_attribute("aria-valuetext") == "512"
    high.send_keys(Keys.HOME)
    for _ in range(90):
        high.send_keys(Keys.ARROW_RIGHT)
    is_settled(page, f"8 of {NUM_TRIALS} trials.")
    assert high.get_attribute("aria-valuetext") == "64"
    high.send_keys(Keys.END)
    is_settled(page, f"{NUM_TRIALS} trials.")
    # A brush moves the sliders.
    drag(page, 1, 0.0, 0.5)
    is_settled(page, f"8 of {NUM_TRIALS} trials.")
    assert float(str(high.get_attribute("value"))) == pytest.approx(0.5, abs=0.02)


def test_selected_rows_stand_out_in_every_chart(page: Chrome) -> None:
    before = page.execute_script(LINES)
    box_of(page, "0").send_keys(Keys.SPACE)
    is_settled(page, f"{NUM_TRIALS} trials, 1 selected.")
    after = page.execute_script(LINES)
    assert [line[1] for line in after[:-1]] == [line[1] for line in before[:-1]]
    assert after[-1][1] > before[-1][1] + 1
    assert after[-1][0] == 1
    assert max(line[0] for line in after[:-1]) < 0.5
    picked = page.find_elements(By.CSS_SELECTOR, ".leaderboard tr.picked")
    assert [row.get_attribute("data-trial") for row in picked] == ["0"]
    # The card's box is the same trial's.
    assert page.find_element(By.CSS_SELECTOR, ".card .pick").is_selected()
    widths = page.execute_script(
        "return [...document.querySelectorAll('[aria-labelledby=curves] svg path')]"
        ".filter(p => p.getAttribute('stroke')?.includes('fifth'))"
        ".map(p => Number(p.getAttribute('stroke-opacity') ?? p.getAttribute('opacity') ?? 1))"
    )
    assert len(widths) > 10
    assert sorted(widths)[-2:][0] < 0.5
    assert max(widths) == 1
    page.find_element(By.CSS_SELECTOR, ".clear-picked").click()
    is_settled(page, f"{NUM_TRIALS} trials.")
    assert page.execute_script(LINES) == before


def test_pointing_at_a_line_tells_it_and_a_click_selects_it(page: Chrome) -> None:
    x, y = page.execute_script(
        "const line = [...document.querySelectorAll('#parallel g.near path')].at(-1);"
        "line.scrollIntoView({block: 'center'});"
        "const at = line.getPointAtLength(line.getTotalLength() * 0.93)"
        ".matrixTransform(line.getScreenCTM());"
        "return [at.x, at.y]"
    )
    chain = ActionChains(page)
    chain.w3c_actions.pointer_action.move_to_location(round(x), round(y))
    chain.perform()
    tip = wait_for(page, lambda b: b.find_element(By.CSS_SELECTOR, "#vg-tooltip-element.visible"))
    assert "latent size" in tip.text
    assert "healthy L1" in tip.text
    ActionChains(page).click().perform()
    is_settled(page, f"{NUM_TRIALS} trials, 1 selected.")


def test_all_listed_trials_are_selected_at_once(page: Chrome) -> None:
    drag(page, 1, 0.0, 0.5)
    is_settled(page, f"8 of {NUM_TRIALS} trials.")
    page.find_element(By.CSS_SELECTOR, ".pick-all").send_keys(Keys.SPACE)
    is_settled(page, f"8 of {NUM_TRIALS} trials, 8 selected.")


def test_the_leaderboard_sorts_and_marks_the_best_of_each_column(page: Chrome) -> None:
    table = page.find_element(By.CSS_SELECTOR, ".leaderboard")
    for key, pick in (("healthy_l1", min), ("dice_d_0", max), ("auprc_1", max), ("minutes", min)):
        head = page.execute_script(
            "const at = arguments[0].querySelector(`td[data-key='${arguments[1]}']`).cellIndex;"
            "return arguments[0].tHead.rows[0].cells[at]",
            table,
            key,
        )
        head.find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
        found = table.find_elements(By.CSS_SELECTOR, f"td[data-key='{key}']")
        values = [cell.get_attribute("data-value") for cell in found]
        known = [float(str(value)) for value in values if value]
        assert known == sorted(known, reverse=pick is max)
        assert values[: len(known)].count("") == 0
        best = table.find_elements(By.CSS_SELECTOR, f"td.best[data-key='{key}']")
        assert len(best) == 1
        assert "best" in str(best[0].get_attribute("textContent"))
        if key != "minutes":
            assert float(str(best[0].get_attribute("data-value"))) == pick(known)


def test_no_table_is_cut(page: Chrome) -> None:
    for width in (1280, 1440, 1920):
        resize(page, width)
        assert page.execute_script(CUT) == []
        assert page.execute_script("return document.documentElement.scrollWidth") <= width


def test_every_control_is_reached_by_keyboard(page: Chrome) -> None:
    reached = page.execute_script(
        "return [...document.querySelectorAll('.first *, .board *')].filter(e =>"
        " ['pointer', 'ns-resize'].includes(getComputedStyle(e).cursor)"
        " && !e.closest('svg, button, summary, select, label, input')).length"
    )
    assert reached == 0
    names = page.execute_script(
        "return [...document.querySelectorAll('.board input, .first input, .board button')]"
        ".filter(e => !(e.ariaLabel || e.textContent || e.closest('label'))).length"
    )
    assert names == 0


def test_the_figures_behind_the_plots_open_and_sort(page: Chrome) -> None:
    details = page.find_element(By.XPATH, "//details[contains(., 'behind these plots')]")
    table = details.find_element(By.TAG_NAME, "table")
    assert not table.is_displayed()
    details.find_element(By.TAG_NAME, "summary").click()
    assert table.is_displayed()
    assert "Dice" in details.text
    table.find_elements(By.CSS_SELECTOR, "thead button")[3].click()
    found = table.find_elements(By.CSS_SELECTOR, "td[data-key='dice_d']")
    numbers = [float(str(cell.get_attribute("data-value"))) for cell in found]
    assert len(numbers) == 8
    assert numbers == sorted(numbers, reverse=True)


def test_names_that_are_markup_stay_text_and_endings_are_named(page: Chrome) -> None:
    kinds = page.execute_script("return [...document.scripts].map(s => s.type)")
    assert kinds == ["application/json", "", ""]
    rows = page.find_element(By.CSS_SELECTOR, ".leaderboard").text
    assert "<script>alert(1)</script>" in rows
    section = page.find_element(By.CSS_SELECTOR, "section[aria-labelledby='unevaluated']")
    assert not section.is_displayed()
    text = str(section.get_attribute("textContent"))
    assert "NotFiniteError: <script>alert(1)</script>" in text
    assert "scheduler stopped it after epoch 3" in text
    links = page.find_elements(By.CSS_SELECTOR, ".montage a")
    assert [str(link.get_attribute("href")).rsplit("/", 2)[-2:] for link in links] == [
        ["viewers", "pca.html"]
    ]


def test_all_else_is_behind_a_fold(page: Chrome) -> None:
    shown = [head.text for head in page.find_elements(By.TAG_NAME, "h2") if head.is_displayed()]
    assert shown == [
        shown[0],
        "Leaderboard",
        "Importance of settings",
        "Over each setting",
        "Pairs of settings",
        "Learning curves",
        "Time and memory",
    ]
    lines = page.find_elements(By.CSS_SELECTOR, ".words > div")
    assert [len(one.find_elements(By.TAG_NAME, "li")) <= 3 for one in lines] == [True, True]
    folds = [one.text for one in page.find_elements(By.CSS_SELECTOR, ".fold > summary")]
    assert folds[:2] == [
        f"{name}: all figures, intervals, verdicts and examples" for name in ("stroke", "tumour")
    ]
    page.get(f"{page.current_url}#cohort-1")
    wait_for(page, lambda b: b.find_element(By.ID, "cohort-1").is_displayed())


def test_charts_are_drawn_and_described(page: Chrome) -> None:
    charts = page.execute_script(
        "return [...document.querySelectorAll('.chart')].map(chart => {"
        "const svg = chart.querySelector('svg'), box = svg.getBoundingClientRect();"
        "return [box.width, box.height, svg.querySelectorAll('path').length,"
        " (chart.closest('[aria-label]') ?? svg.closest('[aria-label]')).ariaLabel]})"
    )
    # Healthy error and two cohorts of two settings, AUPRC over data; pairs; curves; time.
    assert len(charts) >= 2 * 3 + 1 + 3 + 1 + 1
    assert all(width > 250 and height > 80 for width, height, _, _ in charts)
    assert all(paths > 5 and label for _, _, paths, label in charts)
    slices = page.find_elements(By.CSS_SELECTOR, "[aria-labelledby='slices'] svg.plot")
    assert len(slices) == 3


@pytest.mark.parametrize("dark", [False, True])
def test_lines_stand_out_from_the_page(page: Chrome, dark: bool) -> None:
    emulate(page, dark=dark)
    names = [f"line-{n}" for n in range(1, 7)] + [f"fifth-{n}" for n in range(5)]
    assert min(page.execute_script(CONTRAST, [*names, "plain", "muted"])) >= 3


def test_dark_mode_turns_the_charts(page: Chrome) -> None:
    script = (
        "const style = s => getComputedStyle(document.querySelector(s));"
        "return [style('#parallel g.role-mark text').fill,"
        " style('.chart g.role-axis-label text').fill,"
        " [...document.querySelectorAll('#parallel g.line path')].map(p =>"
        " getComputedStyle(p).stroke).at(-1)]"
    )
    light = page.execute_script(script)
    emulate(page, dark=True)
    dark = page.execute_script(script)
    assert all(a != b for a, b in zip(light, dark, strict=True))
    # Paper is light again.
    emulate(page, dark=True, media="print")
    assert page.execute_script(script) == light


def test_a_phone_scrolls_the_drawing_but_not_the_page(page: Chrome) -> None:
    resize(page, 390, 844)
    wide = "const box = document.querySelector('#parallel').parentElement;"
    wait_for(page, lambda b: b.execute_script(f"{wide} return box.scrollWidth > box.clientWidth"))
    assert page.execute_script("return document.documentElement.scrollWidth") <= 390
    sizes = page.execute_script(
        "return [...document.querySelectorAll('#parallel text, .chart text')].map(text =>"
        " parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().a)"
        ".filter(size => size > 0)"
    )
    assert min(sizes) > 6
    page.execute_script(CUT)
    assert page.execute_script("return document.documentElement.scrollWidth") <= 390


def test_a_finger_brushes_an_axis_and_scrolls_elsewhere(page: Chrome) -> None:
    resize(page, 390, 844)
    page.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    page.refresh()
    drawn = "return document.documentElement.dataset.charts === 'drawn'"
    wait_for(page, lambda b: b.execute_script(drawn))

    def swipe(x: float, start: float, end: float) -> None:
        def send(kind: str, *points: float) -> None:
            touches = [{"x": round(x), "y": round(y)} for y in points]
            event = {"type": kind, "touchPoints": touches}
            page.execute_cdp_cmd("Input.dispatchTouchEvent", event)

        send("touchStart", start)
        for n in range(1, 9):
            send("touchMove", start + (end - start) * n / 8)
        send("touchEnd")

    try:
        x, y, height = page.execute_script(AXIS, 1)
        scrolled = page.execute_script("return scrollY")
        # Beside the axis by more than a mouse would be.
        swipe(x + 16, y + height - 6, y + height / 2)
        is_settled(page, f"8 of {NUM_TRIALS} trials.")
        assert page.execute_script("return scrollY") == scrolled
        # A finger that lets go has let go.
        swipe(x + 43, y + height - 6, y + height / 4)
        wait_for(page, lambda b: b.execute_script("return scrollY") > scrolled)
        assert readout(page) == f"8 of {NUM_TRIALS} trials."
        x, y, height = page.execute_script(AXIS, 1)
        swipe(x, y + height / 3, y + height / 3)
        is_settled(page, f"{NUM_TRIALS} trials.")
    finally:
        page.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})


def test_charts_and_tooltips_have_the_subscripts_of_the_tables(page: Chrome) -> None:
    script = (
        "return [...document.querySelectorAll('#parallel text, .chart text')].map(text =>"
        " [text.textContent.replace('\\u200b', ''), text.querySelectorAll('[font-size]').length])"
    )
    texts = page.execute_script(script)
    assert not any("Dice_" in text for text, _ in texts)
    assert [count for text, count in texts if text.startswith("DiceD")] == [1] * 6
    resize(page, 1400)
    wait_for(page, lambda b: not any("Dice_" in text for text, _ in b.execute_script(script)))


def test_paper_has_what_is_folded_away_on_the_screen(page: Chrome) -> None:
    closed = "return document.querySelectorAll('details:not([open])').length"
    before = page.execute_script(closed)
    page.execute_script(
        "addEventListener('beforeprint', () => {"
        " window.closed_on_paper = document.querySelectorAll('details:not([open])').length })"
    )
    page.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert page.execute_script("return window.closed_on_paper") == 0
    assert page.execute_script(closed) == before > 0


def test_paper_has_the_charts_without_their_controls(page: Chrome) -> None:
    emulate(page, media="print")
    for control in (".clear-filter", ".sliders", ".leaderboard .check"):
        assert not page.find_element(By.CSS_SELECTOR, control).is_displayed()
    for chart in ("#parallel svg", ".chart svg", ".leaderboard"):
        assert page.find_element(By.CSS_SELECTOR, chart).is_displayed()
    made = page.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert base64.b64decode(made["data"]).startswith(b"%PDF-")


def test_a_page_of_200_trials_is_small_and_opens(browser: Chrome, tmp_path: Path) -> None:
    grid = itertools.product(
        ("3D-None", "3D-Cube-n", "2D-None", "2D-Patch-n"), (32, 128), (1e-4, 3e-4), range(13)
    )
    for n, (name, size, rate, seed) in enumerate(itertools.islice(grid, 200)):

        def change(made: Experiment, size: int = size, rate: float = rate) -> Experiment:
            method: Any = replace(made.method, latent_size=size)  # type: ignore[call-arg]
            return with_fit(replace(made, method=method), learning_rate=rate)

        write_run(
            tmp_path / f"t{n}",
            name,
            cohorts=("stroke", "tumour"),
            seed=seed,
            num_cases=1,
            num_epochs=60,
            by_person=False,
            slices=False,
            change=change,
        )
    out = Path(write_report([str(tmp_path)], str(tmp_path / "report.html")))
    assert out.stat().st_size < 15_000_000
    browser.get_log("browser")
    resize(browser, 1280)
    open_drawn(browser, out)
    assert browser.get_log("browser") == []
    assert len(rows_of(browser)) == 200
    assert len(browser.execute_script(LINES)) == 200
    curves = browser.find_elements(By.CSS_SELECTOR, "[aria-labelledby='curves'] svg path[stroke]")
    assert len(curves) >= 200
    assert browser.execute_script(CUT) == []
    resize(browser, 1440)
