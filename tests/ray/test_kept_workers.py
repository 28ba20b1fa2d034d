"""Processes of a Ray that is started as `KEEP_WORKERS` says."""

import os
import time
from pathlib import Path

import psutil
import pytest
import ray

pytestmark = pytest.mark.usefixtures("ray_session")


def test_more_processes_than_cpus_outlive_a_wait(tmp_path: Path) -> None:
    num = int(ray.cluster_resources()["CPU"]) + 2

    @ray.remote(num_cpus=0.25)
    def meet() -> int:
        (tmp_path / str(os.getpid())).touch()
        while len(list(tmp_path.iterdir())) < num:
            time.sleep(0.05)
        return os.getpid()

    met = ray.get([meet.remote() for _ in range(num)], timeout=120)
    assert len(set(met)) == num
    # Ray ends them when they have been idle for a second, which takes it some more.
    time.sleep(5)
    assert all(map(psutil.pid_exists, met))
