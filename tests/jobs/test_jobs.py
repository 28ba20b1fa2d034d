"""Every job as a user runs it: what it leaves, what it says, what it refuses."""

import dataclasses
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from shell import Done, Flow, Shell
from tiny_scans import brain_image, write

from uadray import config
from uadray.evaluation.protocols import EvaluateConfig
from uadray.methods.vae import VAE
from uadray.metrics.postprocess import describe_findable
from uadray.metrics.settings import PostprocessConfig
from uadray.preparation.settings import PrepareConfig, Selection
from uadray.progress import PLAIN_EVERY_S
from uadray.store import open_cohort, verify
from uadray.train.settings import ScaleConfig, TrackConfig

pytestmark = pytest.mark.ray

NATIVE = re.compile(r"(\x1b\[\d+m)?(\[\d{4}-\d\d-\d\d \S+ [EC] |\(.*pid=)")
"""What Ray's own processes and native code say of errors; a job does not hide it."""


def plain(done: Done) -> list[str]:
    """The lines of a log that says nothing but how far the job is: no bar, no warning."""
    lines = [line for line in done.err.splitlines() if not NATIVE.match(line)]
    assert all(re.match(r"\d+ of \d+ \w+", line) for line in lines), done.err
    assert not any("\r" in line or "\x1b" in line for line in lines)
    return lines


class TestFlow:
    def test_prepare(self, flow: Flow) -> None:
        for done, name, count in ((flow.healthy, "h", 8), (flow.stroke, "s", 5)):
            url = flow.shell.folder / f"{name}.zarr"
            cohort = open_cohort(str(url))
            assert len(cohort.subjects) == count
            assert verify(str(url)) == []
            assert f"at {url}" in done.out
            assert cohort.fingerprint in done.out
            assert plain(done)[-1].startswith(f"{count} of {count} scans in ")

    @pytest.mark.parametrize("name", ["3D-Cube-n", "PCA-4"])
    def test_train(self, flow: Flow, name: str) -> None:
        url = flow.shell.folder / "runs" / name
        done = flow.train if name == "3D-Cube-n" else flow.baseline
        summary = json.loads((url / "summary.json").read_text())
        assert summary["status"] == "finished"
        assert f"{name}: run folder {url}" in done.out
        assert f"validation L1 inside the brain {summary['validation/reconstruction']:.4f}" in (
            done.out
        )
        assert done.next == f"python jobs/evaluate.py {url} --cohort LESIONED.zarr"
        # It is evaluated already, with these settings, so that nothing is done again.
        words = {"LESIONED.zarr": flow.shell.folder / "s.zarr"}
        again = flow.shell.run_printed(f"{done.next} --num-resamples 20", words).must()
        assert len(plain(again)) == 1
        assert "under evaluation/s.json" in again.out
        epochs = [line for line in plain(done) if "2 of 2 epochs" in line]
        assert len(epochs) == (1 if name == "3D-Cube-n" else 0)

    def test_evaluate(self, flow: Flow) -> None:
        for name in ("3D-Cube-n", "PCA-4"):
            file = flow.shell.folder / "runs" / name / "evaluation" / "s.json"
            values = json.loads(file.read_text())
            assert (values["num_threshold"], values["num_test"]) == (2, 3)
            assert 0 < values["metrics"]["auprc"] <= 1
            assert f"{values['metrics']['dice_d']:.3f}" in flow.evaluate.out
            assert values["num_refits"] == 20
            assert describe_findable(values["findable"]) in flow.evaluate.out
        assert "under evaluation/s.json" in flow.evaluate.out
        assert plain(flow.evaluate)[-1] == "5 of 5 volumes in " + flow.evaluate.err.split()[-1]

    def test_report(self, flow: Flow) -> None:
        page = flow.shell.folder / "report.html"
        assert f"report: {page}" in flow.report.out
        assert flow.report.next.startswith("open it in a browser")
        text = page.read_text()
        assert "3D-Cube-n" in text
        assert "PCA-4" in text
        assert plain(flow.report) == []

    def test_a_finished_run_is_left_as_it_is(self, flow: Flow) -> None:
        url = flow.shell.folder / "runs" / "PCA-4"
        before = list(stamps(url))
        done = flow.shell.run("train", "PCA-4", "--cohort", "h.zarr", "--out", url).must()
        assert done.out == flow.baseline.out
        assert plain(done) == []
        assert list(stamps(url)) == before


class TestDemo:
    def test_it_ends_in_a_report(self, flow: Flow) -> None:
        page = flow.shell.folder / "demo" / "report.html"
        assert f"report: {page}" in flow.demo.out
        assert "train.py --help" in flow.demo.next
        for name in ("3D-None", "HistEq", "stroke", "tumour"):
            assert name in flow.demo.out
            assert name in page.read_text()
        lines = plain(flow.demo)
        # Three cohorts, one fit with epochs, two evaluations: a first and a last line each, and
        # one now and then between them.
        assert len(lines) <= 12 + flow.demo.seconds / PLAIN_EVERY_S

    def test_again_it_repeats_nothing(self, flow: Flow) -> None:
        folder = flow.shell.folder / "demo"
        before = [s for s in stamps(folder) if not s[0].startswith("report")]
        again = flow.demo_again()
        assert again.out == flow.demo.out
        assert [s for s in stamps(folder) if not s[0].startswith("report")] == before
        assert any("checkpoint" in name for name, _ in before)
        assert any("counts" in name for name, _ in before)
        assert len(plain(again)) == 2


def stamps(folder: Path) -> Iterator[tuple[str, int]]:
    """Every file below a folder, with the time when it was last written."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield str(path.relative_to(folder)), path.stat().st_mtime_ns


@pytest.fixture(scope="module")
def helps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Done]:
    commands = {
        "train": ("train", "3D-Cube-n", "--help"),
        "train alone": ("train", "--help"),
        "evaluate": ("evaluate", "--help"),
        "report": ("report", "--help"),
        "demo": ("demo", "--help"),
        "prepare": ("prepare", "--help"),
        "bids": ("prepare", "bids", "--help"),
    }
    return Shell(folder=tmp_path_factory.mktemp("help")).run_all(commands)


FLAGS = (
    ("train", "fit.", config.FitConfig),
    ("train", "erasing.", config.ErasingConfig),
    ("train", "method.", VAE.Settings),
    ("train", "scale.", ScaleConfig),
    ("train", "track.", TrackConfig),
    ("evaluate", "", EvaluateConfig),
    ("evaluate", "postprocess.", PostprocessConfig),
    ("bids", "", PrepareConfig),
    ("bids", "", Selection),
)


class TestHelp:
    @pytest.mark.parametrize(("job", "prefix", "kind"), FLAGS)
    def test_every_setting_has_its_flag(
        self, helps: dict[str, Done], job: str, prefix: str, kind: type
    ) -> None:
        text = helps[job].must().out
        for field in dataclasses.fields(kind):
            if not dataclasses.is_dataclass(field.type) and field.name not in ("type", "stroke"):
                flag = f"--{prefix}{field.name.replace('_', '-')}"
                assert re.search(rf"{re.escape(flag)}\b", text), f"{flag} is not in the help"

    @pytest.mark.parametrize("job", ["train alone", "evaluate", "report", "demo", "prepare"])
    def test_it_shows_how_to_call(self, helps: dict[str, Done], job: str) -> None:
        done = helps[job].must()
        assert f"python jobs/{job.split()[0]}.py" in done.out
        assert done.err == ""

    def test_the_experiments_are_named(self, helps: dict[str, Done]) -> None:
        for name in (*config.BENGS_TABLE_1, *config.BASELINES):
            assert name in helps["train alone"].out


REFUSALS = {
    "no scan": (
        ("prepare", "bids", "empty", "--out", "e.zarr"),
        ["no scan found", "empty"],
    ),
    "wrong modality": (
        ("prepare", "bids", "bids", "--modality", "FLAIR", "--out", "e.zarr"),
        ["_FLAIR.nii", "T1w", "--modality"],
    ),
    "not sealed": (
        ("train", "PCA-4", "--cohort", "unsealed.zarr", "--out", "runs-unsealed"),
        ["unsealed.zarr is not sealed", "run the same job again"],
    ),
    "unknown experiment": (
        ("train", "nothing", "--cohort", "h.zarr", "--out", "runs-nothing"),
        ["'nothing'; known are ", "3D-Cube-n", "PCA-16"],
    ),
    "misspelt experiment": (
        ("train", "4D-None", "--cohort", "h.zarr", "--out", "runs-4d"),
        ["'4D-None'; did you mean 3D-None?"],
    ),
    "another experiment": (
        ("train", "3D-Cube-n", "--cohort", "h.zarr", "--out", "runs/3D-Cube-n"),
        ["fit.epochs: 2 there, 100 here", "choose another --out"],
    ),
    "unfinished": (
        ("evaluate", "unfinished", "--cohort", "s.zarr"),
        ["unfinished is not finished", "jobs/train.py"],
    ),
    "no lesion": (
        ("evaluate", "runs/PCA-4", "--cohort", "h.zarr"),
        ["h.zarr has no lesion masks"],
    ),
    "no run": (
        ("report", "empty", "--out", "r.html"),
        ["empty: no such folder, or an empty one"],
    ),
    "neither a run nor a folder of runs": (
        ("report", "bids", "--out", "r.html"),
        ["bids: config.json is missing"],
    ),
}


@pytest.fixture(scope="module")
def refused(flow: Flow) -> dict[str, Done]:
    folder = flow.shell.folder
    (folder / "empty").mkdir()
    write(folder / "bids/sub-01/anat/sub-01_T1w.nii.gz", brain_image())
    unsealed = shutil.copytree(folder / "h.zarr", folder / "unsealed.zarr") / "zarr.json"
    group = json.loads(unsealed.read_text())
    del group["attributes"]["uadray"]["seal"]
    unsealed.write_text(json.dumps(group))
    unfinished = shutil.copytree(folder / "runs/PCA-4", folder / "unfinished")
    (unfinished / "summary.json").unlink()
    return flow.shell.run_all({name: command for name, (command, _) in REFUSALS.items()})


class TestRefusals:
    @pytest.mark.parametrize("name", REFUSALS)
    def test_an_error_is_a_message(self, refused: dict[str, Done], name: str) -> None:
        done = refused[name]
        assert done.code == 1, done.out + done.err
        # A rich terminal may break lines; a log must not.
        message = done.err.splitlines()[-1]
        assert message.startswith("error: ")
        for part in REFUSALS[name][1]:
            assert part in message
        assert "Traceback" not in done.err
        assert done.out == ""

    def test_nothing_is_left_behind(self, refused: dict[str, Done], flow: Flow) -> None:
        left = {path.name for path in flow.shell.folder.iterdir()}
        assert not left & {"e.zarr", "runs-unsealed", "runs-4d", "r.html"}

    def test_a_wrong_flag_or_value_is_named(self, flow: Flow) -> None:
        done = flow.shell.run("report", "runs", "--outt", "x.html")
        assert done.code == 2
        assert "--outt" in done.err
        done = flow.shell.run(
            "train", "PCA-4", "--cohort", "h.zarr", "--out", "runs-x", "--fit.epochs", 0
        )
        assert done.code == 2
        assert "fit.epochs must be >= 1, was 0" in done.out + done.err


def test_a_truncated_scan_is_quarantined(tmp_path: Path) -> None:
    """A brain of 4 mm voxels through the paper's own extent."""
    for k in range(1, 6):
        image = brain_image((34, 40, 36), seed=k)
        affine = [[4, 0, 0, 0], [0, 4, 0, 0], [0, 0, 4, 0], [0, 0, 0, 1]]
        write(tmp_path / f"bids/sub-{k:02d}/anat/sub-{k:02d}_T1w.nii.gz", image, affine)
    cut = tmp_path / "bids/sub-03/anat/sub-03_T1w.nii.gz"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    command = ("prepare", "bids", "bids", "--out", "c.zarr", "--spacing-mm", 4)
    command += ("--shape", 32, 32, 32)
    shell = Shell(folder=tmp_path)
    done = shell.run(*command)
    assert done.code == 3, done.out + done.err
    assert "1 of 5 scans could not be used" in done.out
    reason = next(line for line in done.out.splitlines() if "sub-03: " in line)
    assert str(cut) in reason
    assert "its gzip is damaged" in reason
    assert plain(done)[-1].endswith("1 quarantined")
    cohort = open_cohort(str(tmp_path / "c.zarr"))
    assert set(cohort.subjects["id"]) == {f"sub-0{k}" for k in (1, 2, 4, 5)}
    assert verify(cohort.url) == []
    again = shell.run(*command)
    assert (again.code, again.out) == (3, done.out)
    assert plain(again) == []
