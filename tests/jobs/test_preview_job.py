"""`jobs/preview.py` as a user runs it; it needs no Ray."""

from pathlib import Path

from shell import Shell
from tiny_cohorts import write_healthy


def test_it_leaves_a_page_and_refuses_what_it_cannot_show(tmp_path: Path) -> None:
    cohort = write_healthy(tmp_path)
    shell = Shell(folder=tmp_path)
    commands = {
        "good": ("preview", cohort.url, "--out", "p.html", "--experiments", "3D-Cube-n"),
        "bad": ("preview", cohort.url, "--out", "q.html", "--experiments", "3D-Cubes"),
        "nobody": ("preview", cohort.url, "--out", "q.html", "--subject", "nobody"),
    }
    done = shell.run_all(commands)
    page = tmp_path / "p.html"
    assert f"preview: {page}" in done["good"].must().out
    assert "3D-Cube-n" in page.read_text()
    assert done["good"].err == ""
    assert done["bad"].code == done["nobody"].code == 1
    assert done["bad"].err.startswith("error: no experiment is named '3D-Cubes'; did you mean")
    assert done["nobody"].err.startswith(f"error: {cohort.url} has no scan 'nobody'")
    assert not (tmp_path / "q.html").exists()
