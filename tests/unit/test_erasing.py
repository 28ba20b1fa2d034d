import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from uadray.config import ErasingConfig
from uadray.erasing import erase, sample_erasing

SHAPES = {2: (24, 20), 3: (16, 24, 20)}
STRATEGIES = ["cube", "multi-cube", "half-volume"]
FILLS = ["zero", "noise"]


def brains(num: int, ndim: int) -> torch.Tensor:
    """Ellipsoids of random tissue, background 0, float16 as in the store."""
    rng = np.random.default_rng(ndim)
    axes = np.meshgrid(*[np.linspace(-1.2, 1.2, n) for n in SHAPES[ndim]], indexing="ij")
    inside = sum(a**2 for a in axes) < 1
    tissue = (
        rng.choice([0.2, 0.5, 0.8], (num, *SHAPES[ndim]))
        + rng.random((num, 1, 1)[:3] if ndim == 2 else (num, 1, 1, 1)) * 0.1
    )
    return torch.from_numpy((tissue * inside).astype(np.float16))


def run(config: ErasingConfig, ids: torch.Tensor, x: torch.Tensor, epoch: int = 0) -> torch.Tensor:
    where = sample_erasing(config, ids, seed=5, epoch=epoch, spatial=tuple(x.shape[1:]))
    return erase(x, where, config, ids, seed=5, epoch=epoch)


def boxes_mask(config: ErasingConfig, ids: torch.Tensor, shape: tuple[int, ...]) -> np.ndarray:
    """Brute force: the union of the sampled boxes, voxel by voxel."""
    where = sample_erasing(config, ids, seed=5, epoch=0, spatial=shape)
    mask = np.zeros((len(ids), *shape), bool)
    for b, regions in enumerate(where.regions_BRD2):
        for region in regions:
            if where.erased[b]:
                mask[(b, *[slice(*span) for span in region])] = True
    return mask


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("strategy", ["cube", "multi-cube"])
def test_exactly_the_sampled_boxes_are_touched(strategy: str, fill: str, ndim: int) -> None:
    config = ErasingConfig(strategy=strategy, fill=fill)
    x, ids = brains(40, ndim), torch.arange(40)
    before = x.clone()
    out = run(config, ids, x)
    mask = boxes_mask(config, ids, SHAPES[ndim])
    assert torch.equal(x, before), "the target must stay clean"
    assert torch.equal(out[~mask], x[~mask])
    if fill == "zero":
        assert not out[mask].any()
    else:
        # every drawn value is one of the same image's brain voxels
        for b in range(40):
            drawn, own = out[b][mask[b]], x[b][x[b] > 0]
            assert torch.isin(drawn, own).all()


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_same_bits_in_any_batch_and_order(strategy: str, fill: str, ndim: int) -> None:
    config = ErasingConfig(strategy=strategy, fill=fill)
    x, ids = brains(12, ndim), torch.arange(100, 112)
    whole = run(config, ids, x)
    order = torch.tensor([7, 0, 11, 3])
    assert torch.equal(run(config, ids[order], x[order]), whole[order])
    assert not torch.equal(run(config, ids, x, epoch=1), whole)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_half_of_the_samples_are_erased(strategy: str, ndim: int) -> None:
    config = ErasingConfig(strategy=strategy)
    where = sample_erasing(config, torch.arange(4000), seed=0, epoch=0, spatial=SHAPES[ndim])
    assert stats.binomtest(int(where.erased.sum()), 4000, 0.5).pvalue > 1e-3


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["cube", "multi-cube"]),
    st.integers(0, 2**31),
    st.floats(0.02, 0.2),
    st.floats(0.2, 0.6),
)
def test_erased_share_stays_in_bounds(strategy: str, seed: int, low: float, high: float) -> None:
    shape = (40, 50, 60)
    config = ErasingConfig(strategy=strategy, min_share=low, max_share=high, probability=1)
    where = sample_erasing(config, torch.arange(64), seed=seed, epoch=0, spatial=shape)
    sides = (where.regions_BRD2[..., 1] - where.regions_BRD2[..., 0]).astype(float)
    assert (sides >= 0).all()
    assert (where.regions_BRD2[..., 0] >= 0).all()
    assert (where.regions_BRD2[..., 1] <= shape).all()
    # Rounding a side to voxels moves a share by at most half a voxel a side.
    most = sum(np.prod(sides + 0.5 * (sides > 0), -1).T) / np.prod(shape)
    assert (np.prod(sides, -1).sum(1) / np.prod(shape) <= high * 1.3).all()
    assert most.max() > low


def test_unclipped_share_is_uniform_between_its_bounds() -> None:
    shape = (200, 200)
    config = ErasingConfig(strategy="cube", probability=1)
    where = sample_erasing(config, torch.arange(6000), seed=1, epoch=0, spatial=shape)
    box = where.regions_BRD2[:, 0]
    inner = ((box[..., 0] > 0) & (box[..., 1] < 200)).all(1)
    assert inner.sum() > 500
    # Clipping is likelier for large boxes; weigh that out by the chance to fit.
    side = (box[inner, :, 1] - box[inner, :, 0]).astype(float)
    share = side.prod(1) / 200**2
    weight = 1 / ((200 - side) / 200).prod(1)
    assert 0.009 < share.min() < 0.02
    assert 0.24 < share.max() < 0.2525
    assert np.average(share, weights=weight) == pytest.approx(0.13, abs=0.008)


def test_multi_cube_draws_one_to_ten_regions_alike() -> None:
    config = ErasingConfig(strategy="multi-cube", probability=1)
    where = sample_erasing(config, torch.arange(5000), seed=0, epoch=0, spatial=(64, 64, 64))
    num = (where.regions_BRD2[..., 1] > where.regions_BRD2[..., 0]).all(-1).sum(1)
    counts = np.bincount(num, minlength=11)
    assert counts[0] == 0
    assert stats.chisquare(counts[1:]).pvalue > 1e-3


def test_half_volume_erases_one_side_over_successive_slices() -> None:
    config = ErasingConfig(strategy="half-volume", fill="zero", probability=1)
    # A brain off the grid's middle: columns 2 to 11 of 20, so its plane lies behind column 6.
    x = torch.zeros(400, 16, 24, 20, dtype=torch.float16)
    x[..., 2:12] = 0.5
    out = run(config, torch.arange(400), x)
    gone = (out == 0) & (x > 0)
    slices = gone.any(3).any(2)
    assert (slices.sum(1) >= 1).all()
    assert (slices.sum(1) <= 8).all()
    assert slices.sum(1).unique().tolist() == list(range(1, 9))
    starts = slices.int().diff(dim=1, prepend=torch.zeros(400, 1, dtype=torch.int32))
    assert ((starts == 1).sum(1) == 1).all(), "successive"
    columns = gone.any(2).any(1)
    left = columns[:, 2:7].all(1) & ~columns[:, 7:12].any(1)
    right = columns[:, 7:12].all(1) & ~columns[:, 2:7].any(1)
    assert (left ^ right).all()
    assert stats.binomtest(int(left.sum()), 400).pvalue > 1e-3


def test_noise_follows_the_images_own_brain_intensities() -> None:
    config = ErasingConfig(strategy="half-volume", fill="noise", probability=1)
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.beta(2, 5, (4, 16, 24, 20)).astype(np.float16)).clamp_min(1e-3)
    x[:, :, :4] = 0
    out = run(config, torch.arange(4), x)
    for before, after in zip(x, out, strict=True):
        drawn = after[(after != before)].float().numpy()
        own = before[before > 0].float().numpy()
        assert stats.ks_2samp(drawn, own).pvalue > 1e-3


def test_an_empty_image_and_no_erasing_pass_through() -> None:
    config = ErasingConfig(strategy="cube", fill="noise", probability=1)
    empty = torch.zeros(3, 8, 8)
    assert torch.equal(run(config, torch.arange(3), empty), empty)
    x = brains(5, 3)
    assert torch.equal(run(ErasingConfig(), torch.arange(5), x), x)
