"""Adversarial methods through Ray: two workers learn what one does."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_cohorts import NUM_TRAIN, SHAPE, write_healthy
from tiny_methods import tiny

from uadray.methods import GradientDetector, build
from uadray.runs.detector import load_detector
from uadray.runs.folder import Run
from uadray.train.job import fit
from uadray.train.settings import ScaleConfig

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.usefixtures("ray_session"),
    pytest.mark.timeout(300),
]


def last_weights(run: Run) -> dict[str, torch.Tensor]:
    state = json.loads((Path(run.url) / "checkpoint" / "state.json").read_text())
    folder = Path(run.url) / "checkpoint" / f"epoch-{state['last']:05d}"
    return load_file(folder / "model.safetensors")


def test_two_workers_play_the_game_of_one(tmp_path: Path) -> None:
    """A Wasserstein GAN with its penalty, and then the encoder; one step an epoch over all."""
    cohort = write_healthy(tmp_path)
    what = tiny("3D-f-AnoGAN", epochs=4, batch_size=NUM_TRAIN)
    one = fit(what, cohort, str(tmp_path / "one"))
    two = fit(
        what,
        cohort,
        str(tmp_path / "two"),
        scale=ScaleConfig(num_workers=2, cpus_per_worker=0.5),
    )
    for a, b in zip(one.metrics(), two.metrics(), strict=True):
        assert a.keys() == b.keys()
        for key in a:
            if "second" not in key:
                assert b[key] == pytest.approx(a[key], rel=1e-3, abs=1e-5), key
    assert [r["phase"] for r in two.metrics()] == [1, 1, 2, 2]
    detector = build(what.method, SHAPE).eval()
    assert isinstance(detector, GradientDetector)
    rows = cohort.rows("validation")
    images = np.concatenate([cohort.read("image", row, row + 1) for row in rows])
    x = torch.from_numpy(images.astype(np.float32))[:, None]
    torch.manual_seed(what.fit.seed)
    start = build(what.method, SHAPE).eval()
    outputs = [start.reconstruct(x).detach()]
    for run in (one, two):
        detector.load_state_dict(last_weights(run))
        outputs.append(detector.reconstruct(x).detach())
    moved = float((outputs[1] - outputs[0]).abs().max())
    assert float((outputs[2] - outputs[1]).abs().max()) < 0.05 * moved
    assert load_detector(two).config == what.method
