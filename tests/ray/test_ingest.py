"""A list of scans becomes a cohort on a real Ray: run just these with `pytest tests/ray -m ray`."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
from tiny_scans import TINY, write_bids

from uadray import files
from uadray.errors import ConfigError, StoreError
from uadray.prepare import ingest
from uadray.prepare.ingest import prepare_cohort, summary
from uadray.prepare.layouts import Scan, bids, phantom
from uadray.prepare.splits import SplitConfig
from uadray.prepare.steps import PrepareConfig, prepare_scan
from uadray.store import Cohort, verify

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

NUM_SCANS = 18
"""Three shards, the last of two rows."""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_bids(tmp_path_factory.mktemp("bids"), NUM_SCANS)


def prepare(scans: list[Scan], url: Path, config: PrepareConfig = TINY, seed: int = 0) -> Cohort:
    return prepare_cohort(scans, str(url), config=config, split=SplitConfig(), seed=seed)


def digests(cohort: Cohort) -> list[list[str]]:
    parts = files.join(cohort.url, "parts")
    return [files.read_json(files.join(parts, n))["digests"] for n in files.list_names(parts)]


@pytest.fixture(scope="module")
def cohort(data, tmp_path_factory) -> Cohort:
    return prepare(bids(str(data), "T1w"), tmp_path_factory.mktemp("out") / "c.zarr")


def test_rows_hold_what_the_steps_give(data, cohort):
    scans = {scan.id: scan for scan in bids(str(data), "T1w")}
    assert set(cohort.subjects["id"]) == set(scans)
    assert cohort.subjects["split"].value_counts().to_dict() == {"train": 16, "validation": 2}
    assert verify(cohort.url) == []
    for row in (0, 9, 17):
        subject = cohort.subjects.iloc[row]
        expected = prepare_scan(scans[subject["id"]], TINY)
        got = cohort.read("image", row, row + 1)[0]
        assert np.array_equal(got, expected.image.astype(np.float16))
        assert np.array_equal(cohort.read("brain", row, row + 1)[0], expected.brain)
        assert subject["brain_ml"] == pytest.approx(expected.brain_ml)
        assert np.allclose(subject["affine"], expected.affine)
    plan = cohort.attributes["plan"]
    assert plan["steps"][1] == {"step": "resample", "spacing_mm": 1.0}
    assert plan["scans"][0]["image"].startswith("sub-")


def test_a_sealed_cohort_is_left_alone(data, cohort, monkeypatch):
    monkeypatch.setattr(ingest, "_write_shards", lambda *_: pytest.fail("wrote again"))
    again = prepare(bids(str(data), "T1w")[::-1], Path(cohort.url))
    assert again == cohort


def test_another_setting_is_refused(data, cohort):
    with pytest.raises(StoreError, match="another plan"):
        prepare(bids(str(data), "T1w"), Path(cohort.url), replace(TINY, denoise=False))


def test_a_lost_part_is_written_again_to_the_same_fingerprint(data, cohort, tmp_path):
    scans = bids(str(data), "T1w")
    first = prepare(scans, tmp_path / "r.zarr")
    # Another place and another run, the same cohort.
    assert first.fingerprint == cohort.fingerprint
    part = tmp_path / "r.zarr/parts/00001.json"
    others = [tmp_path / f"r.zarr/parts/0000{k}.json" for k in (0, 2)]
    written = [path.stat().st_mtime_ns for path in others]
    part.unlink()
    again = prepare(scans, tmp_path / "r.zarr")
    assert again.fingerprint == first.fingerprint
    assert part.exists()
    assert [path.stat().st_mtime_ns for path in others] == written


def test_bad_scans_are_quarantined_and_the_rest_goes_on(tmp_path):
    root = write_bids(tmp_path / "bids", 10, lesion=True)
    cut = root / "sub-04/anat/sub-04_T1w.nii.gz"
    cut.write_bytes(cut.read_bytes()[:1500])
    # A dead link: the layout sees the name, the task finds no file.
    gone = root / "sub-07/anat/sub-07_T1w.nii.gz"
    gone.unlink()
    gone.symlink_to(root / "nowhere.nii.gz")
    cohort = prepare(bids(str(root), "T1w"), tmp_path / "c.zarr")
    assert len(cohort.subjects) == 8
    reasons = {q["id"]: q["reason"] for q in cohort.quarantine}
    assert set(reasons) == {"sub-04", "sub-07"}
    assert "expected a whole NIfTI" in reasons["sub-04"]
    assert "no such file" in reasons["sub-07"]
    (empty,) = (q["row"] for q in cohort.quarantine if q["id"] == "sub-04")
    assert not cohort.read("image", empty, empty + 1).any()
    assert not cohort.read("brain", empty, empty + 1).any()
    assert set(cohort.subjects["split"]) == {"threshold", "test"}
    assert (cohort.subjects["lesion_ml"] > 0).all()
    text = summary(cohort)
    assert "2 of 10 scans could not be used" in text
    assert "fetch it again" in text


def test_an_error_that_is_no_scan_s_fault_ends_the_job(tmp_path):
    # Phantoms cannot be made on this grid: a setting, named as itself and not as a failed task.
    with pytest.raises(ConfigError, match="use --size N"):
        prepare(phantom("healthy", 3), tmp_path / "c.zarr")
    assert files.list_names(str(tmp_path / "c.zarr/parts")) == []


def test_phantoms_are_the_same_whoever_makes_them(tmp_path, monkeypatch):
    config = PrepareConfig(shape=(16, 16, 16))
    scans = phantom("stroke", 9)
    parallel = prepare(scans, tmp_path / "two.zarr", config)
    # The same in this process, one shard after the other.
    monkeypatch.setattr(
        ingest, "_write_shards", lambda task, shards: [task({"shard": k}) for k in shards]
    )
    serial = prepare(scans, tmp_path / "one.zarr", config)
    assert digests(parallel) == digests(serial)
    assert parallel.fingerprint == serial.fingerprint
    assert parallel.subjects["scanner"].str.startswith("phantom-").all()
    assert parallel.subjects["notes"].eq("phantom, stroke").all()


def test_the_session_is_the_fixture_s():
    assert ray.cluster_resources()["CPU"] == 4
