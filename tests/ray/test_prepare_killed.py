"""A prepare job whose driver is killed at any moment, and run again."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
from tiny_scans import TINY, write_bids

from uadray import each, files
from uadray.preparation.ingest import prepare_cohort
from uadray.preparation.layouts import bids
from uadray.preparation.settings import SplitConfig
from uadray.store import open_cohort, verify

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

NUM_SCANS, NUM_KILLS = 40, 2

DRIVER = """
import sys
sys.path.insert(0, sys.argv[1])
from tiny_scans import TINY
from uadray.preparation.ingest import prepare_cohort
from uadray.preparation.layouts import bids
from uadray.preparation.splits import SplitConfig
prepare_cohort(bids(sys.argv[2], "T1w"), sys.argv[3], config=TINY, split=SplitConfig(), workers=1)
"""


def start(data: Path, url: Path) -> subprocess.Popen[bytes]:
    """A driver of its own on the tests' cluster, in a process group of its own."""
    address = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, "RAY_AUTH_MODE": "token"}
    arguments = [sys.executable, "-c", DRIVER, str(Path(__file__).parents[1]), str(data), str(url)]
    return subprocess.Popen(
        arguments, env=os.environ | address, start_new_session=True, stderr=subprocess.PIPE
    )


def done(url: Path) -> set[int]:
    """Rows that are in a shard or kept."""
    parts = [files.read_json(str(path)) for path in url.glob("parts/*.json")]
    rows = {subject["row"] for part in parts for subject in part["subjects"]}
    return rows | {int(path.name.split("-")[0]) for path in url.glob("rows/*.npz")}


@pytest.mark.slow
def test_a_driver_killed_at_random_moments(tmp_path, monkeypatch):
    data, url = write_bids(tmp_path / "bids", NUM_SCANS), tmp_path / "c.zarr"
    moments, progress = random.Random(0), [0]
    for _ in range(NUM_KILLS):
        driver = start(data, url)
        before, deadline = len(done(url)), time.monotonic() + 120
        # It prepares something new, and dies a little later: in a scan, a shard, or between.
        while len(done(url)) <= before and driver.poll() is None:
            assert time.monotonic() < deadline, "nothing is prepared"
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.25))
        if driver.poll() is None:
            os.killpg(driver.pid, signal.SIGKILL)
        _, errors = driver.communicate()
        assert driver.returncode in (0, -signal.SIGKILL), errors.decode()
        progress.append(len(done(url)))
    assert progress == sorted(progress)
    assert progress[1] < NUM_SCANS, "killed too late to tell anything"
    # What the last of them had under way may still come to its end.
    kept, asked, prepare = done(url), [], each.in_tasks

    def spy(work, items, **how):
        asked.extend(item.row for item in items)
        return prepare(work, items, **how)

    monkeypatch.setattr(each, "in_tasks", spy)
    scans, settings = bids(str(data), "T1w"), {"config": TINY, "split": SplitConfig()}
    again = prepare_cohort(scans, str(url), **settings)
    assert not kept & set(asked)
    assert verify(again.url) == []
    undisturbed = prepare_cohort(scans, str(tmp_path / "u.zarr"), **settings)
    assert again.fingerprint == undisturbed.fingerprint
    assert open_cohort(again.url) == again
    for path in Path(undisturbed.url).rglob("*"):
        if path.is_file():
            assert (url / path.relative_to(undisturbed.url)).read_bytes() == path.read_bytes()
