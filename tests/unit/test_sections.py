"""Sections of other packages: at the end of the page, and nothing in them that leaves the page."""

import base64
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fake_runs import write_run
from markupsafe import Markup
from own_registry import OwnRegistry

from uadray.errors import RunError
from uadray.report import write_report
from uadray.report.sections import SECTIONS, ReportData, Table, make_sections
from uadray.runs.records import Broken

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>'

SOURCE = """
import pandas as pd

def volumes(data):
    rows = [
        {"method": run.label, "cohort": one.cohort, "lesion, mL": subject["lesion_ml"]}
        for run in data.runs
        for one in run.evaluations
        for subject in one.values["subjects"][:2]
    ]
    best = data.cohorts[0].series[0].label if data.cohorts else "nobody"
    return "Their <volumes>", [f"<p>Best: <b>{best}</b></p>", pd.DataFrame(rows)]

def greedy(data):
    for run in data.runs:
        run.config["name"] = "taken"
        for one in run.evaluations:
            one.values["metrics"].clear()
            one.by_person.counts[:] = 0
    return "Greedy", "<p>took all</p>"

def broken(data):
    return "Broken", "<p>" + data.nothing
"""


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    names = ("3D-None", "PCA-16")
    return [str(write_run(tmp_path / "runs" / name, name)) for name in names]


def written(runs: list[str], tmp_path: Path, **settings: Any) -> str:
    return Path(write_report(runs, str(tmp_path / "report.html"), **settings)).read_text()


def test_they_stand_at_the_end(own_registry: OwnRegistry, runs: list[str], tmp_path: Path) -> None:
    own_registry.write("theirs", SOURCE)
    before = written(runs, tmp_path)
    tables = {p.name: p.read_bytes() for p in tmp_path.glob("report.*") if p.suffix != ".html"}
    own_registry.install(
        "their-pages", "2", group="sections", volumes="theirs:volumes", greedy="theirs:greedy"
    )
    page = written(runs, tmp_path)
    start = page.index('<section aria-labelledby="section-1">')
    cut = re.compile(r"<time.*?</time>|<svg.*?</svg>|\s", flags=re.S)
    assert cut.sub("", before.split("</main>")[0]) == cut.sub("", page[:start])
    assert {p.name: p.read_bytes() for p in tmp_path.glob("report.*") if p.name in tables} == tables
    assert page.index('id="provenance"') < start
    ours = page[start:]
    assert '<h2 id="section-1">Greedy</h2>' in ours
    assert '<h2 id="section-2">Their &lt;volumes&gt;</h2>' in ours
    assert re.search("<p>Best: <b>(3D-None|PCA-16)</b></p>", ours)
    assert ours.count('<th scope="row"') == 4
    assert '<button type="button">lesion, mL</button>' in ours
    assert ours.count("By their-pages 2.") == 2


def erasing(probability: float) -> Any:
    return lambda one: replace(one, erasing=replace(one.erasing, probability=probability))


def test_on_a_sweep_they_are_folded(own_registry: OwnRegistry, tmp_path: Path) -> None:
    own_registry.write("theirs", SOURCE)
    own_registry.install("their-pages", "2", group="sections", volumes="theirs:volumes")
    made = [
        str(write_run(tmp_path / f"{n}", "3D-Cube-n", change=erasing(n / 10))) for n in range(1, 4)
    ]
    page = written(made, tmp_path)
    assert '<details class="fold"><summary>Their &lt;volumes&gt;</summary>' in page


def test_one_that_fails_is_named(
    own_registry: OwnRegistry, runs: list[str], tmp_path: Path
) -> None:
    own_registry.write("theirs", SOURCE)
    own_registry.write("worse", "raise RuntimeError('no <licence>')")
    own_registry.install(
        "their-pages", "2", group="sections",
        broken="theirs:broken", volumes="theirs:volumes", worse="worse:it", none="theirs:none",
        text="theirs:__name__",
    )  # fmt: skip
    own_registry.install("others", "1", group="sections", both="theirs:volumes")
    own_registry.install("others-too", "1", group="sections", both="theirs:volumes")
    left_out: list[Broken] = []
    page = written(runs, tmp_path, left_out=left_out)
    for text in (
        "This section of their-pages 2 failed: AttributeError: &#39;ReportData&#39; object has no "
        "attribute &#39;nothing&#39;",
        "RuntimeError: no &lt;licence&gt;",
        "module theirs has no &#39;none&#39;",
        "expected a function of the report&#39;s data",
        "is there more than once: others 1 (theirs:volumes) and others-too 1",
    ):
        assert text in page
    assert "Their &lt;volumes&gt;" in page
    names = ["section both", "section broken", "section none", "section text", "section worse"]
    assert [one.name for one in left_out] == names
    assert "left out as damaged" not in page  # that is of runs
    (tmp_path / "runs/PCA-16/summary.json").write_text("{")
    with pytest.raises(RunError):
        written(runs, tmp_path)


def parts(content: Any, title: Any = "T") -> Any:
    SECTIONS["one"] = lambda data: (title, content)
    (made,) = make_sections([], [])
    return made.error or made.parts


@pytest.mark.usefixtures("own_registry")
class TestContents:
    @pytest.mark.parametrize(
        ("given", "kept"),
        [
            ("<p>a &amp; b &lt; c</p>", "<p>a &amp; b &lt; c</p>"),
            ("<P CLASS=muted>a<br>b<BR/></P>", '<p class="muted">a<br>b<br></p>'),
            ("<!-- x --><ul><li>1</li></ul>", "<ul><li>1</li></ul>"),
            ("a < b and 'c' > \"d\"", "a &lt; b and &#39;c&#39; &gt; &#34;d&#34;"),
            ("<td colspan='2' title='\"><script>'>x</td>",
             '<td colspan="2" title="&#34;&gt;&lt;script&gt;">x</td>'),
            (Markup("<p>&lt;script&gt;</p>"), "<p>&lt;script&gt;</p>"),
            ("<img src='data:image/png;base64,AAAA' alt=x>",
             '<img src="data:image/png;base64,AAAA" alt="x">'),
            ("&#60;script&#62;", "&lt;script&gt;"),
            ("<details open><summary>s</summary>d</details>",
             '<details open=""><summary>s</summary>d</details>'),
            ("an unfinished <b", "an unfinished "),
        ],
    )  # fmt: skip
    def test_allowed_html_is_written_anew(self, given: str, kept: str) -> None:
        (made,) = parts(given)
        assert made.startswith(kept)
        assert "<script" not in made

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ("<script>alert(1)</script>", "has <script>"),
            ("<SCRIPT src=x></SCRIPT>", "has <script>"),
            ("<style>p { background: url(http://x) }</style>", "has <style>"),
            ("<link rel=stylesheet href=http://x>", "has <link>"),
            ("<iframe src=x></iframe>", "has <iframe>"),
            ("<a href='https://x'>x</a>", "has <a>"),
            ("<svg><use href='http://x'/></svg>", "has <svg>"),
            ("<meta http-equiv=refresh content='0;url=http://x'>", "has <meta>"),
            ("<base href='http://x'>", "has <base>"),
            ("<form action=x></form>", "has <form>"),
            ("<object data=x></object>", "has <object>"),
            ("<p onclick='alert(1)'>x</p>", "has <p onclick=...>"),
            ("<p style='background: url(http://x)'>x</p>", "has <p style=...>"),
            ("<p id='sweep-data'>x</p>", "has <p id=...>"),
            ("<p class='sortable'>x</p>", "has the class 'sortable'"),
            ("<img src='http://x/y.png'>", "has <img src='http://x/y.png'>"),
            ("<img src='//x/y.png'>", "pictures must lie in the page"),
            ("<img src='y.png'>", "pictures must lie in the page"),
            ("<img src=' data:image/png;base64,AA'>", "pictures must lie in the page"),
            ("<img src='data:text/html;base64,AA'>", "pictures must lie in the page"),
            ("<img srcset='http://x 2x' src='data:image/png;base64,AA'>", "srcset"),
            ("<table background='http://x'></table>", "background"),
            ("</section></main>", "closes <section>"),
            ("<p>x</p></p>", "closes <p>"),
            ("<p><b>x</p></b>", "closes <p>"),
            ("<p>x", "does not close <p>"),
            ("<p/>x", "does not close <p>"),
            ("<!doctype html><p>x</p>", "<!doctype html>"),
            ("<?php x ?>", "<?php"),
            ("<h1>x</h1>", "has <h1>"),
        ],
    )
    def test_others_are_refused_by_name(self, given: str, said: str) -> None:
        assert said in parts(given)

    @pytest.mark.parametrize(("given", "kind"), [(PNG, "png"), (SVG, "svg+xml")])
    def test_pictures_are_in_the_page(self, given: bytes, kind: str) -> None:
        (made,) = parts(given, title='"><script>')
        encoded = base64.b64encode(given).decode()
        assert f'src="data:image/{kind};base64,{encoded}"' in made
        assert "<script" not in made

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            (b"<svg", "a whole SVG or PNG"),
            (b"<html><svg/></html>", "a whole SVG or PNG"),
            (b"", "a whole SVG or PNG"),
            (b"\xff\xd8\xff\xe0 a JPEG", "a whole SVG or PNG"),
            (3, "'int' object is not iterable"),
            ([3], "came int"),
            ([], "are empty"),
            (None, "'NoneType' object is not iterable"),
            (pd.DataFrame(), "a table has no column"),
        ],
    )
    def test_what_is_none_is_refused(self, given: Any, said: str) -> None:
        assert said in parts(given)

    @pytest.mark.parametrize("given", [None, "T", ("T",), ("T", "a", "b"), (3, "a"), ["T", "a"]])
    def test_a_title_and_contents_are_asked_for(self, given: Any) -> None:
        SECTIONS["one"] = lambda data: given
        assert "a title and its contents" in make_sections([], [])[0].error

    @pytest.mark.parametrize("title", ["", "  "])
    def test_a_title_is_not_empty(self, title: str) -> None:
        assert "are empty" in parts("<p>x</p>", title=title)

    def test_a_table_is_laid_out_as_ours(self) -> None:
        frame = pd.DataFrame(
            {("a", 1): [0.12345, np.nan, 1234.5], "n": [1, 2, 3], "s": ["<b>", None, True]},
            index=pd.Index(["x", "y", "z"], name="who"),
        )
        (table,) = parts(frame)
        assert isinstance(table, Table)
        assert [c.head for c in table.columns] == ["who", "a 1", "n", "s"]
        texts = [[column.text(line) for column in table.columns] for line in table.lines]
        assert texts == [
            ["x", "0.123", "1", "<b>"],
            ["y", "\N{EN DASH}", "2", "\N{EN DASH}"],
            ["z", "1,234", "3", "True"],
        ]
        assert table.columns[1].value(table.lines[0]) == 0.12345

    def test_two_columns_of_one_name_stay_two(self) -> None:
        (table,) = parts(pd.DataFrame([[1, 2]], columns=["a", "a"]))
        assert [c.text(table.lines[0]) for c in table.columns] == ["1", "2"]

    def test_an_exit_ends_nothing(self) -> None:
        def leave(data: ReportData) -> Any:
            raise SystemExit(3)

        SECTIONS["one"] = leave
        assert make_sections([], [])[0].error.startswith("SystemExit: 3")
