"""The sweep and the papers as a user runs them."""

import json
from pathlib import Path

import pytest
from markdown_tables import rows_of
from shell import Shell
from tiny_cohorts import write_healthy, write_lesioned

SMOKE = ("--space.experiments", "3D-None", "--space.fit.precision", "float32")


def test_a_dry_run_says_what_is_there_and_what_is_missing(tmp_path: Path) -> None:
    done = Shell(folder=tmp_path).run(
        "reproduce", "bengs2021", "--table", 2, "--scale", "smoke", "--out", "out", "--dry-run"
    )
    assert done.must().err == ""
    assert "phantoms, to be made" in done.out
    assert "missing: cohort tumour-t1ce: BraTS 2019, T1ce" in done.out
    assert "the figures mean nothing" in " ".join(done.out.split())
    assert "9 missing" in done.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
class TestSweep:
    @pytest.fixture(scope="class")
    def shell(self, tmp_path_factory: pytest.TempPathFactory) -> Shell:
        folder = tmp_path_factory.mktemp("sweep")
        write_healthy(folder, name="h")
        write_lesioned(folder, name="s")
        return Shell(folder=folder)

    def test_from_trials_to_the_report_and_again(self, shell: Shell) -> None:
        command = ("tune", "smoke", "--cohort", "h.zarr", "--out", "sweep", *SMOKE)
        plan = shell.run(*command, "--dry-run").must()
        assert "9 trials" in plan.out
        assert not (shell.folder / "sweep").exists()
        done = shell.run(*command, "--evaluate", "s.zarr").must()
        assert "9 trials: 9 finished" in done.out
        assert "without a label" in " ".join(done.out.split())
        assert "Dice_D [95 %]" in done.out
        assert "AUPRC [95 %]" in done.out
        runs = sorted(p.name for p in (shell.folder / "sweep/runs").iterdir())
        assert len(runs) == 9
        stands = shell.run("status", "sweep", "--follow").must()
        assert stands.out.startswith("sweep, ended: 9 trials: 9 finished; best healthy L1")
        report = (shell.folder / "sweep/report.html").read_text()
        assert "trials are compared by the reconstruction of healthy volumes" in report
        kept = {p: p.stat().st_mtime_ns for p in shell.folder.glob("sweep/runs/*/*.json")}
        figures = (shell.folder / "sweep/report.csv").read_text()
        again = shell.run(*command, "--evaluate", "s.zarr").must()
        assert "9 trials: 9 finished" in again.out
        assert {p: p.stat().st_mtime_ns for p in kept} == kept
        assert (shell.folder / "sweep/report.csv").read_text() == figures

    def test_labels_are_named_wherever_they_choose(self, shell: Shell) -> None:
        done = shell.run(
            *("tune", "smoke", "--cohort", "h.zarr", "--out", "labelled", *SMOKE),
            *("--sweep.objective", "dice", "--sweep.labelled", "s.zarr", "--evaluate", "s.zarr"),
        ).must()
        assert "Dice_D (uses" in done.out
        assert "this uses labels" in " ".join(done.out.split())
        assert "this uses labels" in (shell.folder / "labelled/report.html").read_text()
        record = json.loads((shell.folder / "labelled/sweep.json").read_text())
        assert record["objective"]["uses_labels"] is True

    def test_the_budget_ends_with_its_own_exit_code(self, shell: Shell) -> None:
        done = shell.run(
            *("tune", "smoke", "--cohort", "h.zarr", "--out", "short", *SMOKE),
            *("--space.fit.epochs", 2000, "--sweep.max-hours", 10 / 3600),
            "--space.no-baselines",
        )
        assert done.code == 3, done.out + done.err
        assert "unfinished" in done.out


@pytest.mark.slow
def test_a_figure_of_bengs_is_made_again_on_phantoms(tmp_path: Path) -> None:
    shell = Shell(folder=tmp_path)
    command = ("reproduce", "bengs2021", "--figure", 6, "--scale", "smoke", "--out", "out")
    done = shell.run(*command, "--no-baselines").must()
    assert "ours beside the paper's" in done.out
    assert "these are phantoms: invented brains and lesions, no patients" in " ".join(
        done.out.split()
    )
    record = json.loads((tmp_path / "out/bengs2021-figure-6.json").read_text())
    rows = {row["label"]: row for row in record["rows"] if row["metric"] == "slice_auprc"}
    assert rows["3D-Cube-n"]["published"] == 0.712
    assert 0 < rows["3D-Cube-n"]["ours"] < 1
    assert "made again on phantoms" in (tmp_path / "out/bengs2021-figure-6.html").read_text()
    beside = (tmp_path / "out/bengs2021-figure-6-beside.md").read_text()
    assert ". tumour: the paper has BraTS 2019 (T1); these are phantoms" in beside
    row = next(r for r in rows_of(beside) if r[:3] == ["3D-Cube-n", "all", "slice_auprc"])
    assert row[3].startswith("0.")
    kept = {p: p.stat().st_mtime_ns for p in tmp_path.glob("out/bengs2021/runs/*/*.json")}
    again = shell.run(*command, "--no-baselines").must()
    assert "4 evaluated" in again.out
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    # A table of the same protocol goes on from the same runs.
    more = shell.run(
        *("reproduce", "bengs2021", "--table", 2, "--scale", "smoke", "--out", "out"),
        "--no-baselines",
    )
    assert more.code == 3
    assert "2 evaluated" in more.out
    assert "tumour-t1ce" in more.out


@pytest.mark.slow
def test_lesions_of_a_cohort_stand_beside_the_published(tmp_path: Path) -> None:
    write_lesioned(tmp_path, name="mine")
    shell = Shell(folder=tmp_path)
    done = shell.run(
        *("reproduce", "meissen2021", "--table", 1, "--out", "out"),
        *("--cohorts", "mslub=mine.zarr"),
    )
    assert done.code == 3
    line = next(x for x in done.out.splitlines() if x.startswith("│ mslub") and "107" in x)
    assert "1.0" in line
    assert "106" in line
    refused = shell.run(
        *("reproduce", "meissen2021", "--table", 1, "--out", "out", "--cohorts", "x=mine.zarr")
    )
    assert refused.code == 1
    assert "ROLE of" in refused.err
