"""The page of a scan says where its person stands: drawn, with its figures, offline."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import open_page
from tiny_models import finished_run, freeze_threshold, healthy_cohort, write_head

import uadray
from uadray import files
from uadray.html import ABSENT
from uadray.runs.folder import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """With 80 controls of 20 to 80 years, whose scores rise with age."""
    home = tmp_path_factory.mktemp("standing")
    made = finished_run(home / "run", healthy_cohort(home, 8), "MeanImage")
    freeze_threshold(made, 0.2)
    place = files.join(made.url, "evaluation", "stroke.json")
    record, random = files.read_json(place), np.random.default_rng(0)
    people = []
    for age in random.uniform(20, 80, 80).tolist():
        score = 0.1 + 0.002 * age + random.normal(0, 0.02)
        scores = dict.fromkeys(("maximum", "percentile", "top_mean"), score)
        people.append({"scores": scores | {"volume": 20 * score}, "age": age, "sex": "F"})
    cohort = {"name": "<b>others</b>", "url": "/others.zarr", "fingerprint": "1" * 16}
    record["controls"] = {"cohort": cohort, "num_people": 80, "people": people}
    files.write_json(place, record)
    return made


@pytest.fixture(params=[63.0, 95.0, None])
def page(request, run: Run, browser: Any, tmp_path: Path) -> Iterator[tuple[Any, float | None]]:
    path = write_head(tmp_path / "p_T1w.nii.gz", 40, lesion=True)
    uadray.predict(run, path, out=tmp_path / "out", age=request.param, viewer=True)
    browser.get_log("performance")
    open_page(browser, (tmp_path / "out/p_T1w/viewer.html").as_uri())
    yield browser, request.param
    shutil.rmtree(tmp_path / "out")


def test_shows_the_curve_and_the_percentiles(page: tuple[Any, float | None]) -> None:
    browser, age = page
    section = browser.find_element("css selector", ".standing")
    text = section.text
    assert "80 healthy people of cohort <b>others</b> (80 women; " in text
    plots = section.find_elements("css selector", "svg.plot")
    assert len(plots) == 4
    for plot in plots:
        assert plot.size["width"] > 150
        assert 100 < plot.size["height"] < 400
        # A dot for each person, or a marker that is used again for each.
        assert len(plot.find_elements("css selector", "use")) >= 80
    heads = [one.text for one in section.find_elements("css selector", "th")]
    cells = [
        [cell.text for cell in row.find_elements("css selector", "td")]
        for row in section.find_elements("css selector", "tbody tr")
    ]
    assert [row[0] for row in cells][:2] == [
        "Predicted volume, mL",
        "Highest score of the brain",
    ]
    if age is None:
        assert heads == ["Score", "This person", "Percentile among all"]
        assert "The age is not known (--age, --covariates)" in text
    else:
        assert heads[2] == "Percentile at this age"
        assert f"this person: {age:g} years" in text
    if age == 95:
        assert "Nobody among the healthy people is as old as 95 years" in text
        assert {row[2] for row in cells} == {ABSENT}
    if age == 63:
        assert all("[" in row[2] and row[2].endswith("people") for row in cells)


def test_asks_no_network_for_anything(page: tuple[Any, float | None]) -> None:
    browser, _ = page
    asked = [one["message"] for one in browser.get_log("performance")]
    assert not [one for one in asked if '"Network.requestWillBeSent"' in one and "http" in one]
    width, view = browser.execute_script(
        "return [document.documentElement.scrollWidth, window.innerWidth]"
    )
    assert width <= view
