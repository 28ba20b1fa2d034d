"""The report's examples as pages of their own, from runs that the jobs have left."""

import json
import re
import shutil
from pathlib import Path

import pytest
from shell import Flow

from uadray.errors import RunError
from uadray.report import write_report
from uadray.store import open_cohort
from uadray.viewer.runs import write_viewers


@pytest.mark.slow
def test_examples_get_pages_to_which_the_report_links(flow: Flow, tmp_path: Path) -> None:
    runs = [str(flow.shell.folder / "runs" / name) for name in ("3D-Cube-n", "PCA-4")]
    report = tmp_path / "report.html"
    viewers = write_viewers(runs, str(report), num_runs=2)
    assert {run.rsplit("/", 1)[-1] for _, _, run in viewers} == {"3D-Cube-n", "PCA-4"}
    page = Path(write_report(runs, str(report), viewers=viewers)).read_text()
    cohort = open_cohort(str(flow.shell.folder / "s.zarr"))
    test = set(cohort.subjects.loc[cohort.subjects["split"] == "test", "id"])
    for (name, subject, run), address in viewers.items():
        assert name == "s"
        assert subject in test
        assert f'href="{address}"' in page
        text = (tmp_path / address).read_text()
        values = json.loads((Path(run) / "evaluation" / "s.json").read_text())
        assert f"{values['threshold']['value']:.4g}" in text
        # What the page counts from its masks is what the evaluation counted from levels.
        dice = next(s["dice"] for s in values["subjects"] if s["id"] == subject)
        match = re.search(r"Dice with the truth</dt><dd>([^<]*)", text)
        assert match is not None
        assert float(match[1]) == pytest.approx(dice, abs=1e-3)
        assert ("volume-reconstruction" in text) == bool(re.search(r"Cube|PCA", run))
    assert (tmp_path / "report-cases" / "index.html").exists()


@pytest.mark.slow
def test_a_cohort_that_changed_is_refused(flow: Flow, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(flow.shell.folder / "runs" / "PCA-4", run)
    file = run / "evaluation" / "s.json"
    values = json.loads(file.read_text())
    values["cohort"]["fingerprint"] = "0" * 16
    file.write_text(json.dumps(values))
    with pytest.raises(RunError, match="evaluate the run again"):
        write_viewers([str(run)], str(tmp_path / "report.html"), num_runs=1)
