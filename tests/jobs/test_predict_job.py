"""Predict and export as commands, on heads in files."""

import json
from pathlib import Path

import pytest
from shell import Shell
from tiny_models import finished_run, freeze_threshold, healthy_cohort, write_head


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("user")
    run = finished_run(home / "run", healthy_cohort(home, 8), "MeanImage")
    freeze_threshold(run, 0.2)
    return home


def test_export_then_predict_as_it_says(home: Path) -> None:
    shell = Shell(folder=home)
    exported = shell.run(
        "export", "run", "--out", "model", "--licence", "CC0-1.0", "--onnx", "no"
    ).must()
    assert "MODEL_CARD.md" in exported.out
    path = write_head(home / "p_T1w.nii.gz", 3, lesion=True)
    done = shell.run_printed(exported.next, {"scan.nii.gz": path}).must()
    assert "p_T1w: highest score" in done.out
    assert "mL proposed in" in done.out
    assert done.next == f"open {home}/predicted/index.html"
    summary = json.loads((home / "predicted/p_T1w/summary.json").read_text())
    assert set(summary["files"]) == {"anomaly", "proposal", "reconstruction", "brain_mask", "scan"}
    for name in summary["files"].values():
        assert (home / "predicted/p_T1w" / name).exists()


@pytest.mark.slow
def test_exit_codes_and_messages(home: Path) -> None:
    """One bad among good ones is 3, nothing usable is 1, and a wrong call is named in a line."""
    shell = Shell(folder=home)
    for k in range(2):
        write_head(home / f"in/{k}.nii.gz", k)
    (home / "in/bad.nii.gz").write_bytes(b"nothing")
    write_head(home / "p_FLAIR.nii.gz", 1)
    done = shell.run_all(
        {
            "some": ("predict", "run", "in", "--out", "some", "--no-viewer", "--workers", 1),
            "none": ("predict", "run", "p_FLAIR.nii.gz", "--out", "none"),
            "no threshold": (
                "predict", "run", "in", "--out", "x", "--threshold-from", "tumour"
            ),
        }
    )  # fmt: skip
    assert done["some"].code == 3
    assert "1 of 3 scans could not be used:\n  bad: " in done["some"].out
    assert "2 scans predicted" in done["some"].out
    assert done["none"].code == 1
    assert "named as FLAIR, but the model was fitted on T1w" in done["none"].out
    assert done["no threshold"].code == 1
    assert done["no threshold"].err.startswith("error: ")
    assert "has those of stroke" in done["no threshold"].err


@pytest.mark.slow
def test_a_folder_on_ray_of_its_own(home: Path) -> None:
    shell = Shell(folder=home)
    for k in range(9):
        write_head(home / f"many/{k}.nii.gz", k)
    maps = home / "nine"
    done = shell.run("predict", "run", "many", "--out", "nine", "--no-viewer").must()
    written = {path: path.stat().st_mtime_ns for path in maps.rglob("*.nii.gz")}
    assert "9 scans predicted" in done.out
    again = shell.run("predict", "run", "many", "--out", "nine", "--no-viewer").must()
    assert "9 scans predicted, 9 of them before" in again.out
    assert written == {path: path.stat().st_mtime_ns for path in maps.rglob("*.nii.gz")}
