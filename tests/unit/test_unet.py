"""The U-Net that restoring methods share, and the coarse noise."""

import math

import pytest
import torch
from restoring import made

from uadray.errors import ConfigError
from uadray.methods.noise import CoarseNoise, fixed
from uadray.methods.unet import Embedding, UNet, UNetSettings, halved


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("norm", ["none", "batch", "group"])
def test_an_image_becomes_one_of_the_same_size(ndim: int, norm: str) -> None:
    config = UNetSettings(ndim=ndim, widths=(8, 16, 16), norm=norm, activation="relu")  # type: ignore[arg-type]
    network = UNet(config, channels=2, condition=4)
    spatial = (8, 12, 16)[:ndim]
    output = network(torch.rand(3, 2, *spatial), torch.randn(3, 4))
    assert output.shape == (3, 1, *spatial)
    assert output.dtype == torch.float32


def test_what_is_fine_passes_by_the_skips() -> None:
    """One level of means and repetition alone could not tell neighbours apart."""
    torch.manual_seed(0)
    network = UNet(UNetSettings(widths=(8, 8), norm="none"))
    x = torch.zeros(1, 1, 8, 8)
    x[..., 4, 4] = 1
    changed = (network(x) - network(torch.zeros_like(x)))[0, 0].abs()
    assert changed[4, 4] != changed[5, 5]


def test_a_condition_does_nothing_at_first_and_something_once_learned() -> None:
    torch.manual_seed(0)
    network = UNet(UNetSettings(widths=(8, 16)), condition=4)
    x = torch.rand(2, 1, 8, 8)
    a, b = torch.zeros(2, 4), torch.ones(2, 4)
    assert torch.equal(network(x, a), network(x, b))
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        loss = (network(x, a) - x).square().mean() + (network(x, b) + x).square().mean()
        loss.backward()
        optimizer.step()
    assert (network(x, a) - network(x, b)).abs().mean() > 0.1


@pytest.mark.parametrize("ndim", [2, 3])
def test_halving_takes_means(ndim: int) -> None:
    x = torch.rand(2, 3, *(4, 6, 8)[:ndim])
    pool = torch.nn.functional.avg_pool2d if ndim == 2 else torch.nn.functional.avg_pool3d
    torch.testing.assert_close(halved(x, ndim), pool(x, 2))


def test_numbers_are_embedded_apart() -> None:
    vectors = Embedding(16, 1.0)(torch.tensor([0.0, 0.02, 0.5, 1.0]))
    assert vectors.shape == (4, 16)
    assert (torch.cdist(vectors, vectors) + torch.eye(4) > 1e-3).all()


@pytest.mark.parametrize("name", ["DenoisingAE", "3D-DenoisingAE"])
def test_sides_that_do_not_halve_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"DenoisingAE: sides must be divisible by 2"):
        made(name, (8, 16, 15))


@pytest.mark.parametrize("spatial", [(64, 64), (40, 64), (16, 24, 32)])
@pytest.mark.parametrize(("cells", "decay"), [((8,), 1.0), ((2, 4, 8, 16), 0.8)])
def test_noise_has_unit_deviation_at_every_voxel(
    spatial: tuple[int, ...], cells: tuple[int, ...], decay: float
) -> None:
    noise = CoarseNoise(spatial, cells, decay)
    fields = noise(fixed(600, noise.num_noise))
    assert fields.shape == (600, 1, *spatial)
    deviation = fields.square().mean(0).sqrt()
    assert float(deviation.mean()) == pytest.approx(1, abs=0.03)
    assert float(deviation.min()) > 0.8
    assert float(deviation.max()) < 1.2
    # Neighbours across the border are as alike as others.
    step = (fields[..., 1:] - fields[..., :-1]).square().mean()
    seam = (fields[..., 0] - fields[..., -1]).square().mean()
    assert float(seam) == pytest.approx(float(step), rel=0.25)


def test_cells_are_a_share_of_the_field_of_view() -> None:
    assert CoarseNoise((64, 64), (16,)).grids == [(16, 16)]
    assert CoarseNoise((128, 96), (16,)).grids == [(16, 12)]
    assert CoarseNoise((8, 64, 64), (16,)).grids == [(2, 16, 16)]
    # Between the numbers it is linear: no voxel lies above them.
    noise = CoarseNoise((32, 32), (4,))
    numbers = fixed(5, noise.num_noise)
    most = numbers[:, : math.prod(noise.grids[0])].abs().amax(1) * 1.5  # its amplitude
    assert (noise(numbers).flatten(1).abs().amax(1) <= most + 1e-5).all()


def test_noise_follows_from_a_samples_own_numbers() -> None:
    noise = CoarseNoise((16, 16), (2, 8))
    numbers = fixed(4, noise.num_noise)
    together = noise(numbers)
    assert torch.equal(together[1:2], noise(numbers[1:2]))
    assert not torch.equal(together[0], together[1])
    assert torch.equal(fixed(4, 3), fixed(4, 3))
