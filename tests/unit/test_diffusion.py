"""Patched and conditioned diffusion in one step."""

import math

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

from uadray import random
from uadray.errors import ConfigError
from uadray.methods.base import slices_as_batch
from uadray.methods.diffusion import STEPS, kept_share
from uadray.methods.noise import fixed

NAMES = ("pDDPM", "3D-pDDPM", "cDDPM", "3D-cDDPM")
every = pytest.mark.parametrize("name", NAMES)
patched = pytest.mark.parametrize("name", NAMES[:2])


def test_the_schedule_is_the_cosine_one_with_betas_of_at_most_999_thousandths() -> None:
    def cosine(at: float) -> float:
        return math.cos((at / STEPS + 0.008) / 1.008 * math.pi / 2) ** 2

    product, wanted = 1.0, []
    for step in range(STEPS):
        product *= 1 - min(0.999, 1 - cosine(step + 1) / cosine(step))
        wanted.append(product)
    ours = kept_share(torch.arange(STEPS))
    torch.testing.assert_close(ours, torch.tensor(wanted), rtol=1e-3, atol=1e-8)
    published = [0.847, 0.494, 0.144]
    assert ours[[249, 499, 749]].tolist() == pytest.approx(published, abs=5e-4)


@every
def test_noise_has_the_codes_deviation(name: str) -> None:
    detector, num = made(name), 200
    x = torch.rand(num, 1, *detector.spatial)
    numbers = fixed(num, detector._noise.num_noise)
    step = torch.full((num,), 499)
    noisy = detector.noisy(x, detector._noise(numbers), step)
    share = float(kept_share(step)[0])
    noise = (noisy - math.sqrt(share) * (2 * x - 1)) / math.sqrt(1 - share)
    assert float(noise.std()) == pytest.approx(0.58, abs=0.03)


@every
def test_a_fit_to_one_image_reproduces_it(name: str) -> None:
    """Neither white nor grey, in the brain and beside it."""
    torch.manual_seed(0)
    detector = made(name, SHAPE)
    volume = brains(1)
    x = slices_as_batch(volume)[3:5] if detector.ndim == 2 else volume
    optimizer = torch.optim.Adam(detector.parameters(), 5e-3)
    for step in range(250 if detector.ndim == 3 else 150):
        key = random.keys(0, step, torch.arange(8 * len(x)), random.LATENT)
        several = x.repeat(8, *[1] * (x.ndim - 1)) if detector.ndim == 2 else x
        noise = random.normal(key[: len(several)], detector.num_noise)
        optimizer.zero_grad()
        detector(several, several, noise)["loss"].backward()
        optimizer.step()
    detector.eval()
    with torch.no_grad():
        output = detector.healthy(x).clamp(0, 1)
    brain = x > 0
    assert not output[~brain].any()
    assert float(output[brain].mean()) == pytest.approx(float(x[brain].mean()), abs=0.03)
    grey = float((x - x[brain].mean())[brain].abs().mean())
    assert float((output - x)[brain].abs().mean()) < 0.8 * grey


@patched
def test_boxes_part_the_image_and_are_restored_from_outside(name: str) -> None:
    detector = made(name).eval()
    boxes = detector.boxes
    counts = torch.bincount(boxes.flatten())
    assert len(counts) == 2**detector.ndim
    assert counts.min() == counts.max()
    x, noise, _ = samples(detector, 1)
    inside = boxes == 1
    field = detector._noise(noise[:, 2:])
    step = torch.tensor([499])
    with torch.no_grad():
        output = detector.in_a_box(x, field, step, inside)
    assert torch.equal(output[~inside], x[~inside])
    assert not torch.equal(output[inside], x[inside])


@every
def test_the_same_scan_has_the_same_map(name: str) -> None:
    first, second = made(name).eval(), made(name).eval()
    x = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        assert torch.equal(*(one.anomaly_map(x, x[:, 0] > 0) for one in (first, second)))


@every
def test_a_planted_lesion_stands_out(name: str) -> None:
    torch.manual_seed(0)
    detector = made(name, SHAPE)
    fit_few(detector, epochs=60, rate=1e-2)
    x, lesion = plant(brains(4, seed=9))
    assert contrast(detector, x, lesion) > 1.5


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="score_steps"):
        made("cDDPM", score_steps=(0,))
    with pytest.raises(ConfigError, match="boxes_each_side"):
        made("pDDPM", boxes_each_side=17)


@every
def test_it_is_as_all_others(name: str) -> None:
    check_samples_are_alone(made(name))
    check_bfloat16(made(name))
    check_brain_alone(made(name))


@pytest.mark.slow
@every
def test_it_runs_as_onnx(name: str) -> None:
    check_onnx(made(name))
