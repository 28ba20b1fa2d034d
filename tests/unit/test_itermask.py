"""Iterative mask refinement."""

import numpy as np
import pytest
import torch
from planted import SHAPE, brains, contrast, fit_few, plant
from restoring import (
    check_bfloat16,
    check_brain_alone,
    check_samples_are_alone,
    made,
    one_thread,  # noqa: F401
    samples,
)

from uadray.methods.base import Masked

NAMES = ("IterMask", "3D-IterMask")
both = pytest.mark.parametrize("name", NAMES)


@both
def test_low_frequencies_keep_their_phase_alone(name: str) -> None:
    detector = made(name, radius=0.5)
    x, _, _ = samples(detector, 2)
    high = detector.high_frequencies(x)
    axes = tuple(range(2, x.ndim))
    ours, whole = (np.fft.fftn(t.double().numpy(), axes=axes) for t in (high, x))
    grid = np.meshgrid(*(np.fft.fftfreq(n) * 2 for n in detector.spatial), indexing="ij")
    low = np.sqrt(np.sum(np.square(grid), 0)) < 0.5
    np.testing.assert_allclose(np.abs(ours[..., low]), 1, atol=1e-3)
    np.testing.assert_allclose(ours[..., ~low], whole[..., ~low], atol=1e-3)
    np.testing.assert_allclose(ours[..., low], (whole / np.abs(whole))[..., low], atol=1e-3)


@both
def test_masks_lie_in_the_brain_and_some_take_all_of_it(name: str) -> None:
    detector = made(name, whole_share=0.3)
    _, _, brain = samples(detector, 40)
    noise = torch.randn(40, detector.num_noise, generator=torch.Generator().manual_seed(0))
    mask = detector.drawn_mask(brain, noise)
    assert not (mask & ~brain).any()
    shares = mask.flatten(1).sum(1) / brain.flatten(1).sum(1)
    whole = shares == 1
    assert 0.1 < float(whole.float().mean()) < 0.6
    assert float(shares[~whole].median()) < 0.9
    assert torch.equal(mask[3:4], detector.drawn_mask(brain[3:4], noise[3:4]))


def test_a_mask_at_the_border_does_not_come_in_on_the_other_side() -> None:
    """The 3D code's index wraps round."""
    detector = made("3D-IterMask", (32, 32, 32), whole_share=0.0)
    brain = torch.zeros(200, 1, 32, 32, 32, dtype=torch.bool)
    brain[..., :2], brain[..., -2:] = True, True
    noise = torch.randn(200, detector.num_noise, generator=torch.Generator().manual_seed(0))
    small = noise[:, 1].clone()
    noise[:, 1] = small.abs() + 0.5  # of the small kind
    mask = detector.drawn_mask(brain, noise)
    first, last = mask[..., :2].flatten(1).any(1), mask[..., -2:].flatten(1).any(1)
    assert (first | last).any()
    assert not (first & last).any()


@both
def test_the_mask_shrinks_to_what_stays_wrong(name: str) -> None:
    detector = made(name, stop_share=0.0, max_passes=8).eval()
    x, _, brain = samples(detector, 2)
    wrong = torch.zeros_like(brain)
    wrong[(slice(None), 0, *(slice(6, 9),) * detector.ndim)] = True
    wrong &= brain
    # One that restores all but that.
    detector.inpainted = lambda shown, high, brain: torch.where(wrong, x * 0, x)
    output, mask = detector.passes(x, brain)
    assert torch.equal(mask & (x > 0.05), wrong & (x > 0.05))
    assert torch.equal(output[~wrong], x[~wrong])


@both
def test_a_scan_stops_by_itself(name: str) -> None:
    """However long others of its batch go on."""
    detector = made(name).eval()
    detector.threshold.fill_(0.2)
    x, _, brain = samples(detector, 3)
    with torch.no_grad():
        together = detector.restored(x, brain)
        alone = torch.cat([detector.restored(x[k : k + 1], brain[k : k + 1]) for k in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


@both
def test_the_threshold_is_a_quantile_of_healthy_errors_however_they_are_split(name: str) -> None:
    healthy = brains(4, seed=5)
    detector = made(name, SHAPE, threshold_quantile=0.7).eval()
    with torch.no_grad():
        errors, masks = detector._masked_errors(healthy, healthy[:, 0] > 0)
        parts = []
        for half in healthy.split(2):
            sums: list[torch.Tensor] = []
            detector.calibrate(
                [Masked(half, half[:, 0] > 0)], lambda t, sums=sums: sums.append(t.clone()) or t
            )
            parts += sums
        detector.calibrate([Masked(healthy, healthy[:, 0] > 0)], lambda t: sum(parts))
    wanted = float(errors[masks].quantile(0.7))
    assert float(detector.threshold) == pytest.approx(wanted, abs=2e-3)
    assert "threshold" in detector.state_dict()


@both
def test_a_planted_lesion_stands_out(name: str) -> None:
    torch.manual_seed(0)
    detector = made(name, SHAPE)
    fit_few(detector, epochs=60, rate=1e-2)
    assert 0 < float(detector.threshold) < 0.2
    x, lesion = plant(brains(4, seed=9))
    assert contrast(detector, x, lesion) > 1.5


def test_an_empty_image_has_an_empty_map() -> None:
    detector = made("IterMask").eval()
    x = torch.zeros(1, 1, 16, 16, 16)
    with torch.no_grad():
        assert not detector.anomaly_map(x, x[:, 0] > 0).any()


@both
def test_it_is_as_all_others(name: str) -> None:
    check_samples_are_alone(made(name))
    check_bfloat16(made(name))
    check_brain_alone(made(name))
