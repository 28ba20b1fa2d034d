"""What is brain is said by the mask: dark tissue may be exactly 0 after the standardisation."""

import numpy as np
import pytest
import torch

from uadray.config import experiment
from uadray.data.batch import Batch
from uadray.evaluation.scoring import detect
from uadray.methods import build
from uadray.methods.baselines import MeanImage
from uadray.train.fit import healthy_reconstruction

SHAPE = (8, 8, 8)


def dark_brains(num: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Volumes (B, Z, Y, X) whose brains hold zeros, and the masks."""
    rng = np.random.default_rng(0)
    brain = np.zeros((num, *SHAPE), bool)
    brain[:, 1:7, 1:7, 1:7] = True
    image = np.where(brain, rng.random((num, *SHAPE)), 0)
    image[brain & (rng.random(brain.shape) < 0.3)] = 0
    return torch.from_numpy(image).float(), torch.from_numpy(brain)


def test_the_mean_image_covers_dark_tissue() -> None:
    x, brain = dark_brains()
    detector = MeanImage(MeanImage.Settings(), SHAPE)
    detector.update(torch.full((3, *SHAPE), 0.5))
    detector.finish()
    for residual in ("absolute", "positive"):
        detected = detect(detector, x, brain.numpy(), torch.device("cpu"), residual)  # type: ignore[arg-type]
        assert detected.reconstruction is not None
        assert (detected.reconstruction[:, 0] == 0.5 * brain).all()
    scores = detector.anomaly_map(x[:, None], brain)
    assert (scores[brain & (x == 0)] == 0.5).all()
    assert (scores[~brain] == 0).all()


@pytest.mark.parametrize("name", ["3D-None", "2D-None", "SSAE"])
def test_the_error_on_healthy_volumes_counts_all_of_the_brain(name: str) -> None:
    torch.manual_seed(0)
    shape = (32, 32, 32)
    x = torch.rand(2, *shape).half()
    brain = torch.zeros(2, *shape, dtype=torch.bool)
    brain[:, 2:6, 4:20, 4:20] = True
    x[~brain] = 0
    x[brain & (x < 0.3)] = 0
    detector = build(experiment(name).method, shape).eval()
    with torch.no_grad():
        output = detector.reconstruct(x.float()[:, None])[:, 0]
    batch = Batch(ids=torch.arange(2), images=x, brain=brain)
    error, num = healthy_reconstruction(detector, [batch], torch.device("cpu")).tolist()
    assert num == brain.sum()
    assert error == pytest.approx(float((x.float() - output).abs()[brain].double().sum()), rel=1e-5)
    # Where the mask was not read, what is above 0 stands for it.
    bare = Batch(ids=torch.arange(2), images=x)
    assert healthy_reconstruction(detector, [bare], torch.device("cpu"))[1] == (x > 0).sum()
