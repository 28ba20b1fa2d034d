"""Which worker of a real Ray computes on a GPU; the GPU is one that Ray alone believes in."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_cohorts import write_lesioned

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

SCRIPT = """
import json, os, sys
import ray

start = ray.init
ray.init = lambda **options: start(**options, num_cpus=2, num_gpus=1)

from uadray import cluster
from uadray.device import assigned_gpus

cluster.connect()

def look():
    before = os.environ.get("CUBLAS_WORKSPACE_CONFIG"), "torch" in sys.modules
    import torch
    from uadray.device import assigned_gpus, compute_device

    torch.cuda.is_available = lambda: True
    return [*before, assigned_gpus(), compute_device().type]

class Actor:
    def look(self):
        return look()

    def in_a_thread(self):
        # As Tune and Ray Train call what they are given.
        from concurrent.futures import ThreadPoolExecutor
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(look).result()

seen = {"driver": assigned_gpus()}
for gpus in (0, 0.5):
    seen[f"task {gpus}"] = ray.get(ray.remote(num_gpus=gpus)(look).remote())
    actor = ray.remote(num_gpus=gpus)(Actor).remote()
    seen[f"actor {gpus}"] = ray.get(actor.look.remote())
    seen[f"thread {gpus}"] = ray.get(actor.in_a_thread.remote())
    ray.kill(actor)
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def seen() -> dict[str, list]:
    without = ("RAY_ADDRESS", "CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG")
    known = {name: value for name, value in os.environ.items() if name not in without}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=known, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_driver_is_no_worker(seen: dict[str, list]) -> None:
    assert seen["driver"] is None


@pytest.mark.parametrize("kind", ["task", "actor", "thread"])
def test_only_what_asked_for_a_gpu_computes_on_one(seen: dict[str, list], kind: str) -> None:
    assert seen[f"{kind} 0"][2:] == [[], "cpu"]
    assert seen[f"{kind} 0.5"][2:] == [["0"], "cuda"]


def test_what_cublas_needs_is_there_before_torch(seen: dict[str, list]) -> None:
    assert seen["task 0"][:2] == [":4096:8", False]


EVALUATION = """
import json, sys
from pathlib import Path
import ray

start = ray.init
ray.init = lambda **options: start(**options, num_cpus=4, num_gpus=1)

import torch
from uadray.config import experiment
from uadray.evaluation import job, scoring
from uadray.evaluation.protocols import EvaluateConfig
from uadray.runs.folder import Run
from uadray.store import open_cohort

class OnNoGpu(scoring.LevelScorer):
    def __init__(self, *args):
        from uadray import device
        assert device.assigned_gpus() == ["0"]
        scoring.compute_device = lambda wanted: torch.device("cpu")
        super().__init__(*args)

job.LevelScorer = OnNoGpu
cohort, records = open_cohort(sys.argv[1]), []
for settings in ({}, {"gpus_per_actor": 1.0}):
    runs = []
    for name in ("Intensity", "HistEq"):
        run = Run.create(f"{sys.argv[2]}/{len(records)}/{name}", experiment(name), cohort)
        run.finish({"status": "finished"})
        runs.append(run)
    reported = []
    config = EvaluateConfig(num_resamples=20, **settings)
    records.append(job.evaluate(runs, cohort, config=config, report=reported.append))
    assert sum(reported) == len(cohort.subjects)
kept = [[{k: v for k, v in one.items() if "seconds" not in k and k != "hardware"}
         for one in some] for some in records]
print(json.dumps([kept[0] == kept[1], [one["seconds_per_volume"] for one in records[1]]]))
"""


def test_scoring_on_gpus_gives_the_record_of_scoring_on_cpus(tmp_path: Path) -> None:
    """Here the GPU computes as the CPU does, so that all of it is the same."""
    cohort = write_lesioned(tmp_path, num_test=40)
    known = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", EVALUATION, cohort.url, str(tmp_path / "runs")],
        env=known,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    is_same, seconds = json.loads(done.stdout.splitlines()[-1])
    assert is_same
    assert all(one > 0 for one in seconds)
