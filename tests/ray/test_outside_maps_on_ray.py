"""Maps from outside are evaluated as runs are, and those of a run give the run's own figures."""

import re
import shlex
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from map_cohorts import IDS, write_maps
from map_cohorts import write_lesioned as write_heads
from scipy.ndimage import affine_transform
from tiny_cohorts import write_healthy, write_lesioned

import uadray
from uadray.config import experiment
from uadray.errors import EvaluationError
from uadray.evaluation.job import evaluate
from uadray.evaluation.protocols import EvaluateConfig
from uadray.evaluation.scoring import score_volumes
from uadray.metrics.settings import PostprocessConfig
from uadray.preparation.geometry import to_nifti
from uadray.report.compare import compare, series_of
from uadray.report.rows import group_by_cohort
from uadray.runs.detector import load_detector
from uadray.runs.folder import Run
from uadray.runs.records import load_runs
from uadray.store import Cohort, open_cohort
from uadray.store.layout import open_array
from uadray.train.job import fit

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session"), pytest.mark.timeout(600)]

PAGE = Path(__file__).resolve().parents[2] / "docs/howto/evaluate-other-maps.md"
CONFIG = EvaluateConfig(
    postprocess=PostprocessConfig(erosion_iterations=1, median_size=3), num_resamples=20
)
SETTINGS: dict[str, Any] = {"postprocess": CONFIG.postprocess, "num_resamples": 20}


@pytest.fixture(scope="module")
def stroke(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return write_lesioned(tmp_path_factory.mktemp("lesioned"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("fits")
    return fit(experiment("ZScore"), write_healthy(folder), str(folder / "fits/ZScore"))


@pytest.fixture(scope="module")
def maps(run: Run, stroke: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's raw scores on the cohort's grid."""
    folder, detector = tmp_path_factory.mktemp("maps"), load_detector(run)
    for line in stroke.subjects.itertuples():
        image, brain = (stroke.read(n, line.row, line.row + 1) for n in ("image", "brain"))  # type: ignore[arg-type]
        x = torch.from_numpy(image.astype(np.float32))
        scores = score_volumes(detector, x, brain.astype(bool), torch.device("cpu"))[0]
        nib.save(to_nifti(scores, np.array(line.affine)), folder / f"{line.id}.nii.gz")
    return folder


def test_raw_scores_of_a_run_give_its_very_figures(
    run: Run, stroke: Cohort, maps: Path, tmp_path: Path
) -> None:
    (ours,) = evaluate([run], stroke, config=CONFIG)
    theirs = uadray.evaluate_maps(
        maps,
        stroke,
        tmp_path / "theirs",
        name="Theirs",
        score_range=load_detector(run).score_range,
        **SETTINGS,
    )
    for key in ("metrics", "intervals", "subjects", "num_people", "num_test"):
        assert theirs[key] == ours[key], key
    assert theirs["threshold"]["level"] == ours["threshold"]["level"]
    assert "absent" not in theirs["compared"]
    (group,) = group_by_cohort(load_runs([run.url, str(tmp_path / "theirs")]))
    one, other = series_of(group)
    assert compare(one, other) is not None
    again = uadray.evaluate([run.url, tmp_path / "theirs"], stroke, **SETTINGS)
    assert [record["metrics"] for record in again] == [ours["metrics"], theirs["metrics"]]
    with pytest.raises(EvaluationError, match="is another cohort"):
        uadray.evaluate(tmp_path / "theirs", write_lesioned(tmp_path, name="other"), **SETTINGS)


def test_a_skipped_person_counts_as_nothing_found_and_allows_no_comparison(
    run: Run, stroke: Cohort, maps: Path, tmp_path: Path
) -> None:
    evaluate([run], stroke, config=CONFIG)
    test = stroke.subjects[stroke.subjects["split"] == "test"]
    skipped = str(test.sort_values("lesion_ml").iloc[0]["id"])
    some = tmp_path / "some"
    some.mkdir()
    for path in maps.iterdir():
        (some / path.name).write_bytes(path.read_bytes())
    given = {"name": "Theirs", **SETTINGS}
    whole = uadray.evaluate_maps(some, stroke, tmp_path / "run", **given)
    assert (tmp_path / "run/evaluation/stroke-people.npz").exists()
    (some / f"{skipped}.nii.gz").unlink()
    record = uadray.evaluate_maps(some, stroke, tmp_path / "run", **given)
    assert record["num_test"] == whole["num_test"] == len(test)
    assert record["compared"]["absent"] == [skipped]
    dice = {one["id"]: one["dice"] for one in record["subjects"]}
    assert dice[skipped] == 0
    assert record["metrics"]["dice_s_mean"] <= whole["metrics"]["dice_s_mean"]
    assert not (tmp_path / "run/evaluation/stroke-people.npz").exists()
    (group,) = group_by_cohort(load_runs([run.url, str(tmp_path / "run")]))
    assert any(skipped in line and "nothing was found" in line for line in group.warnings)
    one, other = series_of(group)
    assert compare(one, other) is None


def call(job: str, *args: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", [f"jobs/{job}.py", *args])
    return import_module(f"uadray.jobs.{job}").main() or 0


def test_the_job_names_what_it_could_not_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cohort = write_heads(tmp_path / "cohort")
    folder = write_maps(tmp_path / "maps", [*IDS[:-1], "sub-77"])
    cut = folder / f"{IDS[4]}_anomaly.nii.gz"
    cut.write_bytes(cut.read_bytes()[:1000])
    args = ["--maps", str(folder), "--name", "Müllers Methode", "--cohort", cohort.url]
    args += ["--postprocess.median-size", "1", "--num-resamples", "5"]
    monkeypatch.chdir(tmp_path)
    assert call("evaluate", *args, monkeypatch=monkeypatch) == 3
    output = capsys.readouterr()
    assert "found 6 maps, left out 1:" in output.out
    assert "sub-77_anomaly.nii.gz" in output.out
    assert f"no usable map: {IDS[-1]}: no map of it was found" in output.err
    assert re.search(rf"no usable map: {IDS[4]}: .*gzip is damaged", output.err)
    assert "note: No usable map of 2 of 8 scans" in output.out
    assert "runs/stroke/maps/Müllers_Methode" in output.out
    next_command = shlex.split(output.out.rsplit("next: ", 1)[1])
    assert call("report", *next_command[2:], monkeypatch=monkeypatch) == 0
    page = (tmp_path / "report.html").read_text()
    assert "Müllers Methode" in page
    assert "they count as scans in which nothing was found" in page
    write_maps(folder, [IDS[4], IDS[-1]])
    assert call("evaluate", *args, monkeypatch=monkeypatch) == 0


def test_the_page_does_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = PAGE.read_text().split("## There and back, on phantoms")[1]
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    exec(compile(code, str(PAGE), "exec"), {})
    (console,) = re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL)
    for line in console.splitlines():
        python, script, *args = shlex.split(line.removeprefix("$ "))
        assert python == "python"
        assert call(Path(script).stem, *args, monkeypatch=monkeypatch) == 0, line
    records = {one.config["name"]: one for one in load_runs(["runs/fits"])}
    ours, theirs = (
        records[name].evaluations[0] for name in ("Intensity-dark", "Intensity-dark from files")
    )
    rows = re.findall(r"^\| `(\w+)` \| ([\d.]+) \| ([\d.]+) \|$", text, flags=re.MULTILINE)
    printed = {key: [float(value) for value in values] for key, *values in rows}
    assert set(printed) == {"dice_d", "dice_s_mean", "auprc", "auroc", "slice_auprc"}
    measured = {key: [one.metric(key) for one in (ours, theirs)] for key in printed}
    # Sums and interpolations round otherwise on other processors.
    assert measured == {key: pytest.approx(values, abs=0.004) for key, values in printed.items()}
    cohort = open_cohort("runs/stroke.zarr")
    kept, back = (
        np.asarray(open_array(f"runs/fits/{run}/scores/stroke.zarr", "scores")[:]) / 65535
        for run in ("Intensity-dark", "from-files")
    )
    for row, name, affine in cohort.subjects[["row", "id", "affine"]].itertuples(index=False):
        brain: Any = nib.loadsave.load(f"predicted/{name}/brain_mask.nii.gz")
        grid, scan = np.array(affine), brain.affine
        there = interpolated(kept[row].T, grid, scan, brain.shape) * np.asarray(brain.dataobj)
        again = interpolated(there, scan, grid, cohort.shape).T
        again *= cohort.read("brain", row, row + 1)[0]
        assert np.abs(again - back[row]).max() < 0.51 / 65535


def interpolated(
    values: np.ndarray, own: np.ndarray, other: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """Values (X, Y, Z) of a grid, linearly at the voxels of another of `shape` (X, Y, Z)."""
    to_own = np.linalg.inv(own) @ other
    brought: np.ndarray = affine_transform(values, to_own[:3, :3], to_own[:3, 3], shape, order=1)
    return brought
