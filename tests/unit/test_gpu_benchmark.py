"""The benchmark of GPUs runs whole without one, keeps each row at once, and survives failures."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from test_pure_torch import ABSENT

from benchmarks.gpu import SECTIONS, TOTAL_S, Section, keep_in, run
from benchmarks.gpu_bench import Bench, brains
from benchmarks.harness import Row

ROOT = Path(__file__).parents[2]

SCRIPT = f"""
import runpy, sys
sys.modules |= dict.fromkeys({(*ABSENT, "psutil", "rich", "jinja2", "monai")!r})
sys.argv = ["gpu", *sys.argv[1:]]
runpy.run_module("benchmarks.gpu", run_name="__main__")
"""


@pytest.mark.timeout(600)
def test_all_of_it_on_a_cpu_with_torch_and_little_else(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "--quick", "--device", "cpu", "--out", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    kept = json.loads(out.read_text())
    rows = kept["rows"]
    assert kept["command"].startswith("python -m benchmarks.gpu")
    assert not [row for row in rows if row["detail"].startswith("failed")]
    ended = {row["measure"].removesuffix(": all of it") for row in rows if row["unit"] == "s"}
    assert {section.name for section in SECTIONS} <= ended
    # What is computed does not depend on how fast: these goals are met everywhere.
    exact = [row for row in rows if row["goal"] == "<= 0" or "error" in row["measure"]]
    assert len(exact) > 10
    assert all(row["holds"] for row in exact)


def test_its_sections_fit_into_six_minutes() -> None:
    assert sum(section.seconds for section in SECTIONS) <= TOTAL_S


class TestSections:
    bench = Bench(device=torch.device("cpu"), quick=False)

    def rows(self, section: Section, after: Section, total: float = math.inf) -> list[Row]:
        return run([section, after], self.bench, lambda rows: None, total)

    @pytest.fixture
    def after(self) -> Section:
        return Section(name="after", seconds=60, rows=lambda bench: iter_of(Row("last", 1.0, "s")))

    def test_one_that_fails_says_so_and_the_next_is_measured(self, after: Section) -> None:
        def fails(bench: Bench) -> Iterator[Row]:
            yield Row("first", 1.0, "ms")
            raise RuntimeError("CUDA error: an illegal memory access\nmore")

        rows = self.rows(Section(name="bad", seconds=60, rows=fails), after)
        assert [row.measure for row in rows if row.unit != "s"] == ["first", "bad: the rest"]
        assert rows[1].value is None
        assert rows[1].detail == "failed: RuntimeError: CUDA error: an illegal memory access"
        assert rows[3].measure == "last"

    def test_one_whose_seconds_are_over_is_stopped(self, after: Section) -> None:
        def endless(bench: Bench) -> Iterator[Row]:
            while True:
                yield Row("again", 1.0, "ms")

        rows = self.rows(Section(name="long", seconds=0.01, rows=endless), after)
        assert any("its 0 s are over" in row.detail for row in rows)
        assert any(row.measure == "last" for row in rows)

    def test_none_begins_when_all_seconds_are_over(self, after: Section) -> None:
        rows = self.rows(after, after, total=0.0)
        assert [row.value for row in rows] == [None, None]

    def test_each_row_is_kept_before_the_next_is_measured(self, tmp_path: Path) -> None:
        out = tmp_path / "results" / "gpu.json"
        seen = []

        def looks(bench: Bench) -> Iterator[Row]:
            yield Row("first", math.pi, "ms", goal="<= 3")
            seen.extend(json.loads(out.read_text())["rows"])

        run([Section(name="one", seconds=9, rows=looks)], self.bench, keep_in(out), math.inf)
        assert [(row["measure"], row["holds"]) for row in seen] == [("first", False)]
        assert [path.name for path in out.parent.iterdir()] == ["gpu.json"]


def iter_of(*rows: Row) -> Iterator[Row]:
    yield from rows


def test_brains_have_background_and_are_all_different() -> None:
    images = brains(4, 16)
    share = (images > 0).float().flatten(1).mean(1)
    assert ((share > 0.1) & (share < 0.6)).all()
    assert images.min() == 0
    assert images.max() <= 1
    assert not torch.equal(images[0], images[1])
