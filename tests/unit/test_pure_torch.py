"""What computes runs on a machine that has torch and none of what reads scans or clusters."""

import subprocess
import sys

ABSENT = (
    *("ray", "zarr", "numcodecs", "nibabel", "tyro", "pandas", "pyarrow", "sklearn"),
    *("SimpleITK", "optuna", "nilearn", "skimage", "matplotlib", "tests"),
)

SCRIPT = f"""
import sys
sys.modules |= dict.fromkeys({ABSENT!r})

import tempfile
import numpy as np, torch
from uadray.config import experiment, with_fit
from uadray.data.batch import Batch
from uadray.data.resident import ResidentBatches
from uadray.evaluation.protocols import EvaluateConfig
from uadray.evaluation.scoring import Example, count_volumes
from uadray.methods import build
from uadray.runs.checkpoint import CheckpointStore
from uadray.train.fit import Fit

images = torch.zeros(6, 16, 16, 16, dtype=torch.float16)
images[:, 3:13, 2:14, 4:12] = torch.rand(6, 10, 12, 8) * 0.8 + 0.1
for name in ("3D-Cube-n", "2D-Patch-n"):
    wanted = with_fit(experiment(name), epochs=1, batch_size=4, precision="float32")
    detector = build(wanted.method, (16, 16, 16))
    batches = ResidentBatches(
        images, np.arange(6), ndim=detector.ndim, batch_size=4, seed=0, shard=4
    )
    with tempfile.TemporaryDirectory() as folder:
        records = Fit(
            detector=detector,
            experiment=wanted,
            train=batches.epoch,
            validation=[Batch(ids=torch.arange(2), images=images[:2])],
            checkpoints=CheckpointStore(folder, "pure"),
            device=torch.device("cpu"),
        ).run()
    assert records[0]["validation/reconstruction"] > 0
    assert records[0]["erasing/samples"] > 0
    image = images[0].numpy()
    example = Example(id="one", image=image, brain=image > 0, lesion=np.zeros(image.shape, bool))
    (counted,) = count_volumes(
        detector.eval(), {{0: example}}, EvaluateConfig(), torch.device("cpu")
    )
    assert counted.levels.shape == image.shape
print("fitted and scored")
"""


def test_fits_and_scores_in_memory_without_what_reads_or_schedules() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.stdout == "fitted and scored\n", done.stderr
