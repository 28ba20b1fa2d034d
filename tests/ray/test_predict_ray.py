"""Folders of scans on Ray Data."""

import json
from pathlib import Path

import pytest
from tiny_models import finished_run, freeze_threshold, healthy_cohort, write_head

from uadray.errors import PredictError
from uadray.prediction.job import PredictJob

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_a_folder_with_a_bad_scan(ray_session: None, tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", healthy_cohort(tmp_path / "h", 8), "MeanImage")
    freeze_threshold(run, 0.2)
    folder = tmp_path / "in"
    paths = [write_head(folder / f"p{k}.nii.gz", k, lesion=k % 2 == 1) for k in range(5)]
    Path(paths[2]).write_bytes(b"no NIfTI")
    out = tmp_path / "out"
    job = PredictJob(model=run.url, scans=(str(folder),), out=str(out), workers=2, viewer=False)
    done = job.run()
    assert [s["name"] for s in done.summaries] == ["p0", "p1", "p3", "p4"]
    (failure,) = done.failures
    assert failure["name"] == "p2"
    assert "expected a NIfTI file" in failure["reason"]
    assert json.loads((out / "quarantine.jsonl").read_text()) == failure

    # In this process, the same bytes.
    alone = PredictJob(
        model=run.url, scans=(paths[1],), out=str(tmp_path / "alone"), viewer=False
    ).run()
    mine, theirs = (base / "p1/anomaly.nii.gz" for base in (tmp_path / "alone", out))
    assert alone.num_kept == 0
    assert mine.read_bytes() == theirs.read_bytes()

    # A second call does the one that was mended, and nothing else.
    written = {p: p.stat().st_mtime_ns for p in out.rglob("*.nii.gz")}
    write_head(Path(paths[2]), 2)
    again = job.run()
    assert (again.num_kept, len(again.summaries), again.failures) == (4, 5, ())
    assert all(path.stat().st_mtime_ns == when for path, when in written.items())

    (out / "p0/summary.json").unlink()
    (out / "p0/anomaly.nii.gz").unlink()
    (out / "p0/anomaly.nii.gz").mkdir()
    with pytest.raises(PredictError, match="cannot be written there"):
        job.run()
