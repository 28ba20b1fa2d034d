"""How people are spread over a cohort's parts, on its quality page."""

from pathlib import Path

import numpy as np
import pytest
from tiny_cohorts import write_healthy

from uadray.quality.page import write_quality_page
from uadray.quality.people import spreads
from uadray.store import Cohort


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    return write_healthy(tmp_path)


def test_every_person_counts_once_and_in_order(cohort: Cohort) -> None:
    table = cohort.subjects
    count = len(table)
    ages = [None, *map(float, np.linspace(18, 90, count - 1))]
    cohort.add_covariates(
        {
            "age": ages,
            "sex": ["M", "F", None, "F"] * (count // 4),
            "visits": [float(k % 3) for k in range(count)],
            "name": [f"n{k}" for k in range(count)],
            "site": [f"site {k % 15:02d}" for k in range(count)],
        }
    )
    found = {one.column: one for one in spreads(cohort)}
    people = table.groupby("split")["subject"].nunique()
    for one in found.values():
        totals = [sum(counts) for counts in zip(*(n for _, n in one.groups), strict=True)]
        assert totals == list(one.totals) == [people[part] for part in one.parts]
    assert [name for name, _ in found["age"].groups] == [
        "below 20",
        *(f"{low} to {low + 10}" for low in range(20, 80, 10)),
        "from 80",
        "unknown",
    ]
    first = table.duplicated("subject").to_numpy()
    inside = [a is not None and 30 <= a < 40 for a in ages]
    here = (np.array(inside) & ~first).sum()
    assert sum(dict(found["age"].groups)["30 to 40"]) == here > 0
    assert [name for name, _ in found["sex"].groups] == ["F", "M", "unknown"]
    assert [name for name, _ in found["visits"].groups] == ["0", "1", "2"]
    assert [name for name, _ in found["name"].groups] == [f"{(~first).sum()} different"]
    assert found["site"].groups[-1][0] == "3 others"


def test_the_page_shows_them_and_escapes_words(cohort: Cohort, tmp_path: Path) -> None:
    out = str(tmp_path / "qc.html")
    write_quality_page(cohort, out)
    assert 'id="people"' not in Path(out).read_text()
    cohort.add_covariates({"diagnosis": ["<b>x</b>"] * len(cohort.subjects)})
    write_quality_page(cohort, out)
    page = Path(out).read_text()
    assert 'id="people"' in page
    assert "&lt;b&gt;x&lt;/b&gt;" in page
    assert "<b>x</b>" not in page
