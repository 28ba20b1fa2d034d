"""Transposed convolutions by phases are transposed convolutions."""

import pytest
import torch
from torch import nn

from uadray.methods.blocks import up
from uadray.methods.phases import ConvTranspose2d, ConvTranspose3d, transpose_by_phases

GEOMETRY = {"kernel_size": 5, "stride": 2, "padding": 2, "output_padding": 1}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("ndim", "width_in", "width_out", "spatial"),
    [
        (2, 3, 4, (5, 6)),
        (2, 4, 1, (1, 3)),
        (3, 2, 3, (3, 4, 2)),
        (3, 1, 2, (1, 1, 5)),
    ],
)
def test_values_and_gradients_are_those_of_torch(
    ndim: int, width_in: int, width_out: int, spatial: tuple[int, ...], bias: bool
) -> None:
    torch.manual_seed(0)
    kind = nn.ConvTranspose2d if ndim == 2 else nn.ConvTranspose3d
    layer = kind(width_in, width_out, bias=bias, **GEOMETRY).double()  # type: ignore[arg-type]
    x = torch.randn(2, width_in, *spatial, dtype=torch.float64, requires_grad=True)
    wanted, found = layer(x), transpose_by_phases(x, layer.weight, layer.bias)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    grad = torch.randn_like(wanted)
    leaves = (x, *layer.parameters())
    for one, other in zip(
        torch.autograd.grad(found, leaves, grad),
        torch.autograd.grad(wanted, leaves, grad),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_channels_come_out_last() -> None:
    x, layer = torch.rand(2, 3, 4, 4, 4), nn.ConvTranspose3d(3, 5, **GEOMETRY)  # type: ignore[arg-type]
    x = x.contiguous(memory_format=torch.channels_last_3d)
    found = transpose_by_phases(x, layer.weight, layer.bias)
    assert found.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_cpu_takes_torchs_own_way(ndim: int) -> None:
    torch.manual_seed(0)
    layer = up(ndim, 4, 3)
    plain = (nn.ConvTranspose2d if ndim == 2 else nn.ConvTranspose3d)(4, 3, **GEOMETRY)  # type: ignore[arg-type]
    assert isinstance(layer, ConvTranspose2d if ndim == 2 else ConvTranspose3d)
    plain.load_state_dict(layer.state_dict())
    x = torch.rand(2, 4, *[3] * ndim)
    assert torch.equal(layer(x), plain(x))
