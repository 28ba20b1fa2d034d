"""The denoising autoencoder."""

import pytest
import torch
from planted import SHAPE, brains, contrast, fit_few, plant
from restoring import (
    check_bfloat16,
    check_brain_alone,
    check_onnx,
    check_samples_are_alone,
    made,
    one_thread,  # noqa: F401
    samples,
)

from uadray.config import experiment
from uadray.methods import build

NAMES = ("DenoisingAE", "3D-DenoisingAE")
both = pytest.mark.parametrize("name", NAMES)


@both
def test_noise_is_added_in_the_brain_alone_with_the_papers_deviation(name: str) -> None:
    """0.2 on the grid leaves 0.133 in 2D; 0.245 on that of 3D leaves the same."""
    detector = build(experiment(name).method, (64, 64, 64))
    x, noise, brain = samples(detector, 30 if detector.ndim == 2 else 4)  # type: ignore[attr-defined]
    added = detector.noisy(x, brain, noise) - x  # type: ignore[attr-defined,operator]
    assert not added[~brain].any()
    assert float(added[brain].std()) == pytest.approx(0.2 * 2 / 3, rel=0.04)


@both
def test_the_loss_is_that_of_the_brain_over_all_voxels(name: str) -> None:
    detector = made(name)
    x, noise, brain = samples(detector)
    output = detector.network(detector.noisy(x, brain, noise))
    wanted = ((output - x)[brain]).square().sum() / x.numel()
    torch.testing.assert_close(detector(x, x, noise)["loss"], wanted)


@both
def test_the_epoch_is_chosen_with_noise(name: str) -> None:
    detector = made(name)
    assert [phase.measure for phase in detector.phases()] == ["denoising"]
    x = torch.rand(2, 1, *detector.spatial if detector.ndim == 3 else (16, 16, 16))
    detector.restored = lambda x, brain: x  # one that copies
    error, num = detector.held_out_error(x, x[:, 0] > 0)
    assert float(error / num) > 0.05


@both
def test_a_planted_lesion_stands_out(name: str) -> None:
    torch.manual_seed(0)
    detector = made(name, SHAPE)
    fit_few(detector, epochs=60, rate=1e-2)
    x, lesion = plant(brains(4, seed=9))
    assert contrast(detector, x, lesion) > 2


@both
def test_it_is_as_all_others(name: str) -> None:
    check_samples_are_alone(made(name))
    check_bfloat16(made(name))
    check_brain_alone(made(name))


@pytest.mark.slow
@both
def test_it_runs_as_onnx(name: str) -> None:
    check_onnx(made(name))
