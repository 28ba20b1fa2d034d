"""Restoration of synthetic anomalies."""

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

from uadray.errors import ConfigError
from uadray.methods.corruption import MAX_BLUR, SIDES, Corruption
from uadray.methods.noise import fixed

NAMES = ("DISYRE", "3D-DISYRE")
both = pytest.mark.parametrize("name", NAMES)
grids = pytest.mark.parametrize("spatial", [(64, 64), (16, 24, 32)])


@pytest.fixture
def num() -> int:
    return 60


def brain_like(num: int, spatial: tuple[int, ...]) -> torch.Tensor:
    x = torch.rand(num, 1, *spatial, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.25
    x[:, :, :4] = 0
    return x


@grids
def test_corruption_is_where_its_shape_is_and_no_larger_than_its_degree(
    spatial: tuple[int, ...], num: int
) -> None:
    x, corruption = brain_like(num, spatial), Corruption(spatial, 5)
    made_of = corruption(x, fixed(num, corruption.num_noise))
    change = (made_of.x - x).abs()
    assert not change[made_of.shape == 0].any()
    assert not made_of.shape[x == 0].any()
    assert not made_of.x[x == 0].any()
    assert float(made_of.x.min()) >= 0
    assert float(made_of.x.max()) <= 1
    assert (change.flatten(1).amax(1) > 0).float().mean() > 0.95
    assert (made_of.degree[change.flatten(1).amax(1) > 0] > 0).all()
    assert float(made_of.degree.max()) <= 1
    # Every degree is seen.
    assert float(made_of.degree.min()) < 0.4
    assert float(made_of.degree.median()) > 0.4


@grids
def test_shapes_are_as_large_as_in_the_paper(spatial: tuple[int, ...], num: int) -> None:
    x = torch.ones(num, 1, *spatial) / 2
    corruption = Corruption(spatial, 5)
    shape = corruption(x, fixed(num, corruption.num_noise)).shape
    longest = max(spatial)
    volumes = (shape > 0.5).flatten(1).sum(1)
    # Irregular ones may be larger; an edge of one voxel and more is soft.
    most = ((SIDES[1] + 4 * MAX_BLUR) * longest + 2) ** len(spatial)
    assert float(volumes.float().median()) < most
    assert (volumes > 0).float().mean() > 0.9
    assert ((shape > 0.05) & (shape < 0.95)).any()
    assert len(volumes.unique()) > num / 3


@grids
def test_corruption_follows_from_a_samples_own_numbers(spatial: tuple[int, ...]) -> None:
    x, corruption = brain_like(5, spatial), Corruption(spatial, 5)
    numbers = fixed(5, corruption.num_noise)
    together = corruption(x, numbers)
    alone = corruption(x[2:3], numbers[2:3])
    assert torch.equal(together.x[2:3], alone.x)
    assert torch.equal(together.degree[2:3], alone.degree)


def test_an_image_without_brain_is_left_as_it_is() -> None:
    corruption = Corruption((16, 16), 5)
    made_of = corruption(torch.zeros(3, 1, 16, 16), fixed(3, corruption.num_noise))
    assert not made_of.x.any()
    assert not made_of.degree.any()


@both
def test_a_score_is_the_mean_over_degrees_times_the_share_of_brain(name: str) -> None:
    detector = made(name).eval()
    x, _, brain = samples(detector, 3)
    volumes, inside = (x.transpose(0, 1)[None], brain.transpose(0, 1)[None])
    if detector.ndim == 3:
        volumes, inside = x, brain
    else:
        volumes, inside = volumes[:, 0][None] if volumes.ndim == 6 else volumes, inside
    with torch.no_grad():
        scores = detector.detect(volumes, inside[:, 0]).scores
        each = detector.from_each(x, brain)
    wanted = (x - each).abs().mean(0)
    wanted = wanted * brain.float().flatten(1).mean(1).view(-1, *[1] * (x.ndim - 1))
    got = scores[0] if detector.ndim == 2 else scores
    torch.testing.assert_close(
        got * inside[:, 0].squeeze(0), (wanted * brain)[:, 0], atol=1e-5, rtol=1e-4
    )


@both
def test_the_epoch_is_chosen_on_corrupted_volumes(name: str) -> None:
    detector = made(name)
    assert [phase.measure for phase in detector.phases()] == ["restoration"]
    x = torch.rand(2, 1, 16, 16, 16)
    detector.from_degree = lambda x, brain, degree: x  # one that copies
    error, num = detector.held_out_error(x, x[:, 0] > 0)
    assert float(error / num) > 1e-3


@both
def test_a_planted_lesion_stands_out(name: str) -> None:
    torch.manual_seed(0)
    detector = made(name, SHAPE)
    fit_few(detector, epochs=100, rate=1e-2)
    x, lesion = plant(brains(4, seed=9))
    assert contrast(detector, x, lesion) > 2


def test_degrees_are_shares() -> None:
    with pytest.raises(ConfigError, match="degrees"):
        made("DISYRE", degrees=(0.5, 1.5))


@both
def test_it_is_as_all_others(name: str) -> None:
    check_samples_are_alone(made(name))
    check_bfloat16(made(name))
    check_brain_alone(made(name))


@pytest.mark.slow
@both
def test_it_runs_as_onnx(name: str) -> None:
    check_onnx(made(name))
