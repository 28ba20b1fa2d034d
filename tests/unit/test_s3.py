"""Cohort, run folder, checkpoints and scores on a real S3 server."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import boto3
import fsspec
import nibabel as nib
import numpy as np
import pytest
import torch
from tiny_cohorts import write_healthy, write_lesioned
from tiny_models import finished_run, freeze_threshold, healthy_cohort, scan_of, write_head

from tests.s3_server import serve_bucket
from uadray import files
from uadray.config import experiment
from uadray.errors import CheckpointError, StoreError
from uadray.evaluation.protocols import EvaluateConfig
from uadray.lock import hold
from uadray.metrics.counts import count_subject
from uadray.prediction.job import PredictJob
from uadray.prediction.model_folder import export_model, open_model
from uadray.prediction.scan import predict_scan
from uadray.quality.page import write_quality_page
from uadray.runs.checkpoint import CheckpointStore
from uadray.runs.folder import Run
from uadray.runs.scores import ScoreStore
from uadray.status.state import RunState, read_state
from uadray.store import open_cohort, verify


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with serve_bucket("scans"):
        yield "s3://scans"


@pytest.fixture(scope="module")
def cohort_url(bucket: str) -> str:
    return write_lesioned(bucket).url


def test_a_cohort_on_s3_equals_a_local_one(cohort_url: str, tmp_path: Path) -> None:
    local = write_lesioned(tmp_path)
    remote = open_cohort(cohort_url)
    assert remote.fingerprint == local.fingerprint
    assert verify(cohort_url) == []
    num = len(local.subjects)
    for array in ("image", "brain", "lesion"):
        assert np.array_equal(remote.read(array, 0, num), local.read(array, 0, num))


def test_a_quality_page_lies_beside_the_store(cohort_url: str, tmp_path: Path) -> None:
    made = write_quality_page(open_cohort(cohort_url))
    assert made.url == cohort_url.removesuffix(".zarr") + "-qc.html"
    local = write_quality_page(write_lesioned(tmp_path))
    assert files.read_bytes(made.url) == Path(local.url).read_bytes()
    assert verify(cohort_url) == []


def test_a_damaged_object_is_found(bucket: str) -> None:
    cohort = write_lesioned(bucket, name="damaged")
    url = files.join(cohort.url, "image", "c", "0", "0", "0", "0")
    content = bytearray(files.read_bytes(url))
    content[len(content) // 3] ^= 1
    files.write_bytes(url, bytes(content))
    assert verify(cohort.url)


@pytest.mark.parametrize("array", ["image", "brain", "lesion"])
def test_an_object_that_is_gone_is_named_at_once_and_where_it_is_read(
    bucket: str, array: str
) -> None:
    cohort = write_lesioned(bucket, name=f"gone-{array}")
    files.remove(files.join(cohort.url, array, "c", "1", "0", "0", "0"))
    with pytest.raises(StoreError, match=rf"shard 1 of '{array}' is gone or empty"):
        open_cohort(cohort.url)
    with pytest.raises(StoreError, match=rf"shard 1 of '{array}' is gone"):
        cohort.read(array, 8, 9)  # type: ignore[arg-type]
    cohort.read(array, 0, 8)  # type: ignore[arg-type]


def test_no_cohort_there_is_said(bucket: str) -> None:
    with pytest.raises(StoreError, match="no cohort"):
        open_cohort(f"{bucket}/nothing.zarr")


def test_run_checkpoint_and_scores_live_on_s3(bucket: str, cohort_url: str) -> None:
    cohort = open_cohort(cohort_url)
    healthy = write_healthy(bucket, name="learned")
    run = Run.create(f"{bucket}/runs/a", experiment("3D-None"), healthy)
    run.write_metrics([{"epoch": 1}])
    run.finish({"status": "finished"})
    again = Run.open(run.url)
    assert again == run
    assert again.metrics() == [{"epoch": 1}]
    with hold(run.url):
        state = read_state(f"{run.url}/")
    assert isinstance(state, RunState)
    assert (state.status, state.epoch, state.has_ended) == ("finished", 1, True)
    assert state.age is not None
    assert state.job is not None
    assert state.job.age is not None
    with pytest.raises(CheckpointError):
        Run.create(run.url, experiment("3D-Cube-n"), healthy)

    model, name = torch.nn.Linear(3, 2), run.checkpoint_key
    for epoch, value in ((1, 0.5), (2, 0.7), (3, 0.6)):
        CheckpointStore(run.url, name).save(epoch, model, None, value)
    kept = [n for n in files.list_names(f"{run.url}/checkpoint") if n != "state.json"]
    assert kept == ["epoch-00001", "epoch-00003"]
    loaded = torch.nn.Linear(3, 2)
    CheckpointStore(run.url, name).load_model(loaded, 1)
    assert torch.equal(loaded.weight, model.weight)

    scoring = EvaluateConfig().scoring(cohort.shape)
    store = ScoreStore.create(run, cohort, (0.0, 1.0), scoring)
    brain, lesion = cohort.read("brain", 0, 1)[0], cohort.read("lesion", 0, 1)[0]
    levels = (np.random.default_rng(0).integers(0, 2**16, brain.shape) * brain).astype(np.uint16)
    store.write(0, levels, count_subject(levels, brain, lesion, brain))
    same = ScoreStore.create(run, cohort, (0.0, 1.0), scoring)
    assert same.done() == {0}
    assert np.array_equal(same.levels(0), levels)
    assert np.array_equal(same.checked_levels(0, "first"), levels)
    other = scoring | {"median_size": 3}
    assert ScoreStore.create(run, cohort, (0.0, 1.0), other).done() == set()
    json.dumps(files.read_json(f"{run.url}/config.json"), allow_nan=False)


def test_what_others_write_behind_a_listing_is_there(bucket: str) -> None:
    folder = f"{bucket}/shared"
    files.write_bytes(f"{folder}/first", b"1")
    assert files.list_names(folder) == ["first"]
    boto3.client("s3").put_object(Bucket="scans", Key="shared/second", Body=b"2")
    assert files.exists(f"{folder}/second")
    assert files.read_bytes(f"{folder}/second") == b"2"
    assert files.list_names(folder) == ["first", "second"]


def test_a_model_is_shared_and_predicts_on_s3(bucket: str, tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", healthy_cohort(tmp_path, 8), "MeanImage")
    freeze_threshold(run, 0.2)
    exported, _ = export_model(run.url, f"{bucket}/models/mean", onnx=False)
    model = open_model(f"{bucket}/models/mean")
    assert model.identity == exported.identity == open_model(run.url).identity
    path = write_head(tmp_path / "p_T1w.nii.gz", 3, lesion=True)
    fsspec.filesystem("s3").put_file(path, f"{bucket}/in/p_T1w.nii.gz")
    job = PredictJob(model=model.url, scans=(f"{bucket}/in",), out=f"{bucket}/out", viewer=False)
    (summary,) = job.run().summaries
    expected = predict_scan(model, scan_of(path))
    content = gzip.decompress(files.read_bytes(f"{bucket}/out/p_T1w/anomaly.nii.gz"))
    assert np.array_equal(nib.Nifti1Image.from_bytes(content).get_fdata(), expected.anomaly)
    assert summary["proposal"]["volume_ml"] > 0
    assert job.run().num_kept == 1
