"""The page on adding a metric, followed to the letter."""

import json
from pathlib import Path

import pytest
from followed import REPOSITORY, blocks, run

pytestmark = [pytest.mark.ray, pytest.mark.slow]

PAGE = REPOSITORY / "docs/howto/add-a-metric.md"


def test_the_page_is_followed(tmp_path: Path) -> None:
    (tmp_path / "jobs").symlink_to(REPOSITORY / "jobs")
    (metrics, sections), (project,) = blocks(PAGE, "python"), blocks(PAGE, "toml")
    (tmp_path / "my_metrics.py").write_text(metrics)
    (tmp_path / "my_sections.py").write_text(sections)
    (tmp_path / "pyproject.toml").write_text(project)
    (block,) = blocks(PAGE, "console")
    site = tmp_path / "site"
    shown = run(block.replace("\n$ ", "\n").removeprefix("$ "), tmp_path, site).stdout
    assert "Sensitivity" in shown
    record = json.loads((tmp_path / "runs/fits/PCA-4/evaluation/stroke.json").read_text())
    for key in ("sensitivity", "volume_error"):
        low, high = record["intervals"][key]
        assert low < record["metrics"][key] < high
        kept = record["outside_metrics"][key]
        assert kept["package"] == {"distribution": "my-metrics", "version": "0.1.0"}
        assert kept["remark"] == ""
    page = (tmp_path / "report.html").read_text()
    for text in ("Sensitivity", "Volume error", "Sensitivity difference", "By my-metrics 0.1.0."):
        assert text in page
    assert page.index('id="provenance"') < page.index(">Volumes</h2>")
    for ending in ("csv", "md", "tex"):
        assert "olume" in (tmp_path / f"report.{ending}").read_text()

    # Without the package: figures from the records, and no section.
    run("python jobs/report.py runs/fits --out again.html", tmp_path, tmp_path / "nothing")
    again = (tmp_path / "again.html").read_text()
    figure = f'data-key="sensitivity" data-value="{record["metrics"]["sensitivity"]}"'
    assert figure in page
    assert figure in again
    assert ">Volumes</h2>" not in again
