"""A list of scans becomes a cohort on a real Ray: run just these with `pytest tests/ray -m ray`."""

import contextlib
import json
import os
import shutil
import signal
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
from tiny_scans import TINY, brain_image, write, write_bids

from uadray import attempts, each, files, first_run
from uadray.errors import ConfigError, StoreError, TooManyFailuresError
from uadray.preparation import ingest
from uadray.preparation.ingest import prepare_cohort, summary
from uadray.preparation.layouts import Scan, bids, phantom, version_at
from uadray.preparation.settings import PrepareConfig, SplitConfig
from uadray.preparation.steps import prepare_scan
from uadray.store import Cohort, CohortWriter, open_cohort, verify

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

NUM_SCANS = 18
"""Three shards, the last of two rows."""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_bids(tmp_path_factory.mktemp("bids"), NUM_SCANS)


def prepare(scans: list[Scan], url: Path, config: PrepareConfig = TINY, **options) -> Cohort:
    return prepare_cohort(scans, str(url), config=config, split=SplitConfig(), **options)


def hashes(root: Path | str) -> dict[str, bytes]:
    root = Path(root)
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """Ids of the scans that are given to Ray to prepare, one after the other."""
    ids: list[str] = []
    before = each.in_tasks

    def spy(work, items, **how):
        ids.extend(item.scan.id for item in items)
        return before(work, items, **how)

    monkeypatch.setattr(each, "in_tasks", spy)
    return ids


@pytest.fixture(scope="module")
def cohort(data, tmp_path_factory) -> Cohort:
    return prepare(bids(str(data), "T1w"), tmp_path_factory.mktemp("out") / "c.zarr")


@pytest.fixture
def copy(cohort, tmp_path) -> Cohort:
    """A copy of the cohort to do harm to."""
    return open_cohort(str(shutil.copytree(cohort.url, tmp_path / "copy.zarr")))


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
    first = json.loads((Path(cohort.url) / "scans.jsonl").read_text().splitlines()[0])
    assert first["image"].startswith("sub-")


def test_the_split_is_recorded(cohort):
    assert cohort.attributes["plan"]["split"] == {
        "preset": "none",
        "by": "subject",
        "stratified_by": "scanner",
        "subjects": {"train": 16, "validation": 2},
    }


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_any_number_of_workers_writes_the_same_bytes(data, cohort, tmp_path, workers):
    other = prepare(bids(str(data), "T1w")[::-1], tmp_path / "w.zarr", workers=workers)
    assert hashes(other.url) == hashes(cohort.url)


def test_a_sealed_cohort_is_left_alone(data, cohort, monkeypatch):
    before = hashes(cohort.url)
    monkeypatch.setattr(ingest, "_fill", lambda *_: pytest.fail("wrote again"))
    again = prepare(bids(str(data), "T1w")[::-1], Path(cohort.url))
    assert again == cohort
    assert hashes(cohort.url) == before


def test_another_setting_is_refused_by_name(data, cohort):
    scans = bids(str(data), "T1w")
    with pytest.raises(StoreError, match=r"config\.denoise: True there, False here"):
        prepare(scans, Path(cohort.url), replace(TINY, denoise=False))
    with pytest.raises(StoreError, match=r"seed: 0 there, 1 here; scans: .* only there"):
        prepare(scans, Path(cohort.url), seed=1)


class TestAgain:
    """The same command again does only what is missing and ends in the same bytes."""

    def test_a_lost_part(self, data, cohort, copy, asked):
        url = Path(copy.url)
        written = [(url / f"parts/0000{k}.json").stat().st_mtime_ns for k in (0, 2)]
        (url / "parts/00001.json").unlink()
        again = prepare(bids(str(data), "T1w"), url)
        assert sorted(asked) == sorted(cohort.subjects["id"][8:16])
        assert hashes(again.url) == hashes(cohort.url)
        assert [(url / f"parts/0000{k}.json").stat().st_mtime_ns for k in (0, 2)] == written

    def test_kept_scans_are_not_prepared_again(self, data, cohort, tmp_path, asked, monkeypatch):
        scans = bids(str(data), "T1w")
        # An error in the driver once eleven scans are reported: tasks under way are lost.
        with monkeypatch.context() as patch:
            add, seen = ingest._Shards.add, []

            def stop(self, row, name):
                seen.append(row)
                add(self, row, name)
                if len(seen) == 11:
                    raise KeyboardInterrupt

            patch.setattr(ingest._Shards, "add", stop)
            with pytest.raises(KeyboardInterrupt):
                prepare(scans, tmp_path / "r.zarr")
        ids = cohort.subjects.set_index("row")["id"]
        reported = {ids[row] for row in seen}
        asked.clear()
        again = prepare(scans, tmp_path / "r.zarr")
        assert len(reported) == 11
        assert not reported & set(asked)
        assert hashes(again.url) == hashes(cohort.url)

    def test_a_killed_worker(self, data, cohort, tmp_path):
        """A process is killed while it prepares a scan, once some are kept."""
        url, killed, over = tmp_path / "k.zarr", [], threading.Event()

        def kill() -> None:
            while not killed and not over.wait(0.001):
                for child in psutil.Process().children(recursive=True):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        if list(url.glob("rows/*.npz")) and child.name().startswith("ray::Map"):
                            child.send_signal(signal.SIGKILL)
                            killed.append(child.pid)
                            return

        thread = threading.Thread(target=kill)
        thread.start()
        again = prepare(bids(str(data), "T1w"), url, workers=1)
        over.set()
        thread.join()
        assert killed
        assert hashes(again.url) == hashes(cohort.url)


def test_a_scan_that_kills_its_process_is_quarantined(data, tmp_path):
    driver = os.getpid()

    class Deadly(str):
        def startswith(self, *args: object) -> bool:
            if os.getpid() != driver:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().startswith(*args)

    scans = bids(str(data), "T1w")[:9]
    scans[4] = replace(scans[4], image=Deadly(scans[4].image))
    cohort = prepare(scans, tmp_path / "c.zarr")
    (failure,) = cohort.quarantine
    assert failure["id"] == scans[4].id
    assert f"died {attempts.MAX_DEATHS} times" in failure["reason"]
    assert len(cohort.subjects) == 8
    assert verify(cohort.url) == []


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
    assert "which is not there" in reasons["sub-07"]
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


class TestRedo:
    """Scans of a sealed cohort that are prepared again, and no others."""

    def test_mended_scans_that_were_quarantined(self, data, cohort, tmp_path, asked):
        root = shutil.copytree(data, tmp_path / "bids")
        cut, gone = (root / f"sub-0{k}/anat/sub-0{k}_T1w.nii.gz" for k in (4, 7))
        whole = cut.read_bytes(), gone.read_bytes()
        cut.write_bytes(whole[0][:1500])
        gone.unlink()
        gone.symlink_to(root / "nowhere.nii.gz")
        url = tmp_path / "c.zarr"
        first = prepare(bids(str(root), "T1w"), url)
        assert "--redo quarantined" in summary(first)
        gone.unlink()
        cut.write_bytes(whole[0])
        gone.write_bytes(whole[1])
        # A sealed cohort stays as it is until it is asked.
        assert prepare(bids(str(root), "T1w"), url) == first
        asked.clear()
        again = prepare(bids(str(root), "T1w"), url, redo=["quarantined"])
        assert sorted(asked) == ["sub-04", "sub-07"]
        assert again.quarantine == []
        assert again.fingerprint == cohort.fingerprint
        assert verify(again.url) == []

    def test_changed_files(self, data, copy, tmp_path, asked):
        root = shutil.copytree(data, tmp_path / "bids")
        scans = bids(str(root), "T1w")
        write(Path(scans[3].image), brain_image(seed=77))
        with pytest.raises(StoreError, match=r"1 scans have changed .*: sub-04.*redo changed"):
            prepare(scans, Path(copy.url))
        again = prepare(scans, Path(copy.url), redo=["changed"])
        assert asked == ["sub-04"]
        assert again.fingerprint != copy.fingerprint
        assert again.fingerprint == prepare(scans, tmp_path / "new.zarr").fingerprint

    def test_damage(self, data, cohort, copy, asked):
        shard = Path(copy.url) / "brain/c/1/0/0/0"
        content = bytearray(shard.read_bytes())
        content[len(content) // 3] ^= 16
        shard.write_bytes(bytes(content))
        (Path(copy.url) / "subjects.parquet").write_bytes(b"")
        assert {row for p in verify(copy.url) for row in p.rows} == set(range(8, 16))
        again = prepare(bids(str(data), "T1w"), Path(copy.url), redo=["damaged"])
        assert sorted(asked) == sorted(cohort.subjects["id"][8:16])
        assert hashes(again.url) == hashes(cohort.url)

    def test_a_damaged_record_says_how_to_go_on(self, data, copy):
        (Path(copy.url) / "parts/00001.json").write_text("{")
        with pytest.raises(StoreError, match=r"00001\.json is damaged.*--redo damaged"):
            prepare(bids(str(data), "T1w"), Path(copy.url))

    def test_nothing_to_do(self, data, copy):
        again = prepare(bids(str(data), "T1w"), Path(copy.url), redo=["quarantined", "damaged"])
        assert again == copy


class TestTooManyFailures:
    @pytest.fixture
    def root(self, data, tmp_path) -> Path:
        root = shutil.copytree(data, tmp_path / "bids")
        for k in (2, 3, 5, 11, 17):
            (root / f"sub-{k:02d}/anat/sub-{k:02d}_T1w.nii.gz").write_bytes(b"no scan")
        return root

    def test_the_job_fails_and_keeps_what_is_done(self, root, cohort, data, tmp_path, asked):
        url, scans = tmp_path / "c.zarr", bids(str(root), "T1w")
        with pytest.raises(TooManyFailuresError, match="5 of 18 scans could not be used") as caught:
            prepare(scans, url)
        assert "sub-0" in str(caught.value)
        listed = (url / "quarantine.jsonl").read_text().splitlines()
        assert len(listed) == 5
        assert not CohortWriter.create(
            str(url),
            num_rows=18,
            shape=TINY.shape,
            has_lesion=False,
            plan=files.read_json(str(url / "zarr.json"))["attributes"]["uadray"]["plan"],
            scans=map(json.loads, (url / "scans.jsonl").read_text().splitlines()),
        ).is_sealed()
        # Mended files are seen; what was prepared is not prepared again.
        for k in (2, 3, 5, 11, 17):
            name = f"sub-{k:02d}/anat/sub-{k:02d}_T1w.nii.gz"
            shutil.copy(data / name, root / name)
        done = len(list(url.glob("rows/*.npz"))) + 8 * len(list(url.glob("parts/*.json")))
        asked.clear()
        again = prepare(bids(str(root), "T1w"), url)
        assert {f"sub-{k:02d}" for k in (2, 3, 5, 11, 17)} <= set(asked)
        assert len(asked) <= 18 - done + 5
        assert again.fingerprint == cohort.fingerprint

    def test_a_larger_share_lets_it_through(self, root, tmp_path):
        cohort = prepare(bids(str(root), "T1w"), tmp_path / "c.zarr", max_failures=0.3)
        assert len(cohort.quarantine) == 5
        with pytest.raises(ConfigError, match="max_failures"):
            prepare(bids(str(root), "T1w"), tmp_path / "c.zarr", max_failures=1.5)


def test_phantoms_are_the_same_in_every_process(tmp_path):
    config = PrepareConfig(shape=(16, 16, 16))
    scans = phantom("stroke", 3)
    cohort = prepare(scans, tmp_path / "c.zarr", config)
    (scan,) = (s for s in scans if s.id == cohort.subjects["id"][1])
    here = prepare_scan(scan, config)
    assert np.array_equal(cohort.read("image", 1, 2)[0], here.image.astype(np.float16))
    assert np.array_equal(cohort.read("lesion", 1, 2)[0], here.lesion)
    assert cohort.subjects["scanner"].str.startswith("phantom-").all()
    assert cohort.subjects["notes"].eq("phantom, stroke").all()
    assert cohort.covariates["age"][1] == float(dict(scan.covariates)["age"])


def test_a_folder_begun_with_older_phantoms_goes_on_with_them(tmp_path):
    old = prepare(
        phantom("healthy", 12, version=1),
        tmp_path / "healthy.zarr",
        PrepareConfig(shape=(16, 16, 16)),
    )
    assert version_at(old.url) == 1
    cohorts = first_run.cohorts(str(tmp_path), size=16, healthy=12, lesioned=3)
    assert cohorts["healthy"].fingerprint == old.fingerprint
    assert [version_at(cohorts[kind].url) for kind in first_run.LESIONED] == [1, 1]
    new = first_run.cohorts(str(tmp_path / "new"), size=16, healthy=12, lesioned=3)
    assert {version_at(cohort.url) for cohort in new.values()} == {2}
    assert version_at(str(tmp_path / "none.zarr")) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk(data, cohort, tmp_path):
    """The job says so; nothing half-written counts; with more space the same command goes on."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.system(f"mount -t tmpfs -o size=72k tmpfs {disk}") != 0:
        pytest.skip("a small disk cannot be mounted here")
    try:
        scans = bids(str(data), "T1w")
        with pytest.raises(StoreError, match="no space is left there; free some and run the same"):
            prepare(scans, disk / "c.zarr")
        assert list((disk / "c.zarr/rows").glob("*.npz"))
        assert any("not sealed" in str(problem) for problem in verify(str(disk / "c.zarr")))
        assert os.system(f"mount -o remount,size=8m {disk}") == 0
        again = prepare(scans, disk / "c.zarr")
        assert hashes(again.url) == hashes(cohort.url)
    finally:
        os.system(f"umount -l {disk}")


def test_the_session_is_the_fixture_s():
    assert ray.cluster_resources()["CPU"] == 4
