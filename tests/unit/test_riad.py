"""Reconstruction by inpainting."""

from dataclasses import replace

import numpy as np
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
from scipy import ndimage
from skimage.metrics import structural_similarity as reference_similarity

from uadray.config import experiment
from uadray.errors import ConfigError
from uadray.methods.riad import (
    GRADIENT_FLOOR,
    enlarged,
    gradient_similarities,
    parted_cells,
    structural_similarity,
)

NAMES = ("RIAD", "3D-RIAD")
both = pytest.mark.parametrize("name", NAMES)


def test_each_cell_is_hidden_once_and_sets_are_alike() -> None:
    sets = parted_cells(torch.randn(5, 64), 3)
    assert sets.shape == (5, 64)
    counts = torch.stack([torch.bincount(one, minlength=3) for one in sets])
    assert counts.max() - counts.min() <= 1
    assert not torch.equal(sets[0], sets[1])


def test_cells_are_squares() -> None:
    cells = torch.arange(4).view(1, 1, 2, 2)
    wanted = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]])
    assert torch.equal(enlarged(cells, 2)[0, 0], wanted)


@both
def test_no_voxel_is_restored_from_itself(name: str) -> None:
    detector = made(name).eval()
    x, _, brain = samples(detector, 1)
    cells = detector._buffers["cells_4"]
    at = (0, 0, *(n // 2 for n in detector.spatial))
    other = x.clone()
    other[at] = 0
    with torch.no_grad():
        before, after = (detector.assembled(one, brain, cells) for one in (x, other))
    assert before[at] == after[at]
    assert not torch.equal(before, after)


@both
def test_each_image_draws_the_side_of_its_cells(name: str) -> None:
    detector = made(name)
    noise = torch.randn(40, detector.num_noise, generator=torch.Generator().manual_seed(0))
    cells = detector._drawn_cells(noise)
    kept = detector._buffers
    assert {k for k in kept if k.startswith("cells_")} == {"cells_4", "cells_8"}
    # The first border between cells that are hidden apart.
    steps = cells.diff(dim=-1) != 0
    finest = [int(one.flatten(0, -2).any(0).nonzero()[0, 0]) for one in steps]
    assert {at + 1 for at in finest} == {4, 8}


@pytest.mark.parametrize("shape", [(12, 16), (8, 12, 16)])
def test_similarity_of_gradients_is_that_of_prewitt(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, 1, 1, *shape, generator=generator).unbind(0)

    def magnitude(image: torch.Tensor) -> np.ndarray:
        values = image[0, 0].double().numpy()
        # scipy sums over the neighbours along the other axes; we take means.
        parts = [
            ndimage.prewitt(values, axis) / 3 ** (len(shape) - 1) for axis in range(len(shape))
        ]
        return np.sqrt(np.sum(np.square(parts), 0))

    a, b = magnitude(x), magnitude(y)
    inner = (slice(1, -1),) * len(shape)
    wanted = (2 * a * b + GRADIENT_FLOOR) / (a**2 + b**2 + GRADIENT_FLOOR)
    (ours,) = gradient_similarities(x, y, 1)
    np.testing.assert_allclose(ours[0, 0].numpy()[inner], wanted[inner], atol=1e-4)
    (alike,) = gradient_similarities(x, x, 1)
    torch.testing.assert_close(alike, torch.ones_like(alike))


def test_flat_background_has_a_gradient_that_is_finite() -> None:
    x = torch.zeros(1, 1, 16, 16)
    y = torch.zeros(1, 1, 16, 16, requires_grad=True)
    torch.stack([s.mean() for s in gradient_similarities(x, y, 2)]).sum().backward()
    assert y.grad is not None
    assert y.grad.isfinite().all()


def test_structural_similarity_is_that_of_scikit_image() -> None:
    x, y = torch.rand(2, 1, 1, 32, 32, generator=torch.Generator().manual_seed(0)).unbind(0)
    _, wanted = reference_similarity(
        x[0, 0].numpy(),
        y[0, 0].numpy(),
        data_range=1,
        gaussian_weights=True,
        use_sample_covariance=False,
        sigma=1.5,
        truncate=3.5,
        full=True,
    )
    inner = (slice(6, -6),) * 2
    ours = structural_similarity(x, y)[0, 0].numpy()
    np.testing.assert_allclose(ours[inner], wanted[inner], atol=5e-3)


@both
def test_a_planted_lesion_stands_out(name: str) -> None:
    torch.manual_seed(0)
    detector = made(name, SHAPE)
    fit_few(detector, epochs=15, rate=1e-2)
    x, lesion = plant(brains(4, seed=9))
    assert contrast(detector, x, lesion) > 2
    detector.config = replace(detector.config, score="residual")
    assert contrast(detector, x, lesion) > 2


@both
def test_the_same_scan_has_the_same_map_whoever_made_the_detector(name: str) -> None:
    first, second = made(name).eval(), made(name).eval()
    x = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        assert torch.equal(*(one.anomaly_map(x, x[:, 0] > 0) for one in (first, second)))


def test_cells_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="cell_sides"):
        made("RIAD", cell_sides=(5,))
    with pytest.raises(ConfigError, match="cell_sides"):
        made("RIAD", cell_sides=(16,))
    with pytest.raises(ConfigError, match="does not learn from erased input"):
        experiment("RIAD-Patch-n")


@both
def test_it_is_as_all_others(name: str) -> None:
    check_samples_are_alone(made(name))
    check_bfloat16(made(name))
    check_brain_alone(made(name, score="residual"))


@pytest.mark.slow
@both
def test_it_runs_as_onnx(name: str) -> None:
    check_onnx(made(name))
