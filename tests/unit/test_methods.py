import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.decomposition import PCA as ReferencePCA
from torch.nn import functional

from benchmarks.step import naive_port
from uadray.config import BASELINES, BENGS_TABLE_1, experiment
from uadray.errors import ConfigError
from uadray.methods import build
from uadray.methods.base import batch_as_slices, slices_as_batch
from uadray.methods.blocks import EntryConv, ExitConv, depth_to_space, space_to_depth
from uadray.methods.vae import VAE

SHAPE = (16, 24, 8)


def volumes(num: int, seed: int = 0) -> torch.Tensor:
    """Brains with a correlated structure, (num, Z, Y, X), background 0."""
    rng = np.random.default_rng(seed)
    coarse = np.random.default_rng(99).standard_normal((6, *[n // 4 for n in SHAPE]))
    basis = np.kron(coarse, np.ones((1, 4, 4, 4)))
    x = 0.5 + 0.05 * np.tensordot(rng.standard_normal((num, 6)), basis, 1)
    x += 0.01 * rng.standard_normal(x.shape)
    x[:, :, :3] = 0
    return torch.from_numpy(x.clip(0, 1).astype(np.float32))


@pytest.mark.parametrize("ndim", [2, 3])
def test_fast_ends_equal_the_plain_convolutions(ndim: int) -> None:
    torch.manual_seed(0)
    size = (8, 12, 10)[:ndim]
    entry, leave = EntryConv(ndim, 8).double(), ExitConv(ndim, 8).double()
    image = torch.randn(2, 1, *size, dtype=torch.float64)
    maps = torch.randn(2, 8, *size, dtype=torch.float64)
    torch.testing.assert_close(entry(image), entry.conv(image), atol=1e-12, rtol=0)
    torch.testing.assert_close(leave(maps), leave.conv(maps), atol=1e-12, rtol=0)
    assert torch.equal(depth_to_space(space_to_depth(image, ndim), ndim), image)


@pytest.mark.parametrize("ndim", [2, 3])
def test_fast_ends_have_the_gradients_of_the_plain_convolutions(ndim: int) -> None:
    torch.manual_seed(0)
    layer = EntryConv(ndim, 4).double()
    image = torch.randn(2, 1, *(8, 6, 4)[:ndim], dtype=torch.float64)
    ours = torch.autograd.grad(layer(image).square().sum(), layer.conv.weight)[0]
    plain = torch.autograd.grad(layer.conv(image).square().sum(), layer.conv.weight)[0]
    torch.testing.assert_close(ours, plain, atol=1e-10, rtol=0)


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_plain_net_of_the_benchmark_is_the_same_function(ndim: int) -> None:
    torch.manual_seed(0)
    detector = VAE(VAE.Settings(ndim=ndim, latent_size=6, widths=(8, 16)), SHAPE).double()
    port = naive_port(detector)
    assert not any(isinstance(m, (EntryConv, ExitConv)) for m in port.modules())
    x = torch.rand(2, 1, *SHAPE[3 - ndim :], dtype=torch.float64)
    noise = torch.randn(2, 6, dtype=torch.float64)
    # Losses are computed in float32.
    torch.testing.assert_close(port(x, x, noise)["loss"], detector(x, x, noise)["loss"])


def test_slices_and_volumes_convert_back() -> None:
    x = torch.randn(3, 1, 4, 5, 6)
    flat = slices_as_batch(x)
    assert torch.equal(flat[4 + 2, 0], x[1, 0, 2])
    assert torch.equal(batch_as_slices(flat, 3), x)


@pytest.mark.parametrize("name", [*BENGS_TABLE_1, *BASELINES])
def test_every_method_scores_in_its_stated_range(name: str) -> None:
    torch.manual_seed(0)
    detector = build(experiment(name).method, SHAPE).eval()
    if hasattr(detector, "update"):
        detector.update(volumes(20))
        detector.finish()
    x = volumes(3, seed=1)
    with torch.no_grad():
        scores = detector.anomaly_map(x[:, None], x > 0)
    low, high = detector.score_range
    assert scores.shape == (3, *SHAPE)
    assert torch.isfinite(scores).all()
    assert low <= float(scores.min())
    assert float(scores.max()) <= high


def test_the_vae_is_the_one_of_figure_2() -> None:
    detector = VAE(VAE.Settings(norm="none"), (64, 64, 64))
    with torch.no_grad():
        features = detector.encoder(torch.zeros(1, 1, 64, 64, 64))
    assert features.shape == (1, 16, 8, 8, 8)
    assert detector.to_mu.weight.shape == (512, 16 * 8**3)
    # convolutions 1-32-64-128 with kernel 5, both 1x1 convolutions, three dense layers
    kernels = [(1, 32), (32, 64), (64, 128)]
    convolutions = sum(a * b * 125 + b for a, b in kernels) + sum(
        a * b * 125 + a for a, b in kernels
    )
    dense = 2 * (8192 * 512 + 512) + 512 * 8192 + 8192
    pointwise = 128 * 16 + 16 + 16 * 128 + 128
    assert sum(p.numel() for p in detector.parameters()) == convolutions + dense + pointwise


@pytest.mark.parametrize("ndim", [2, 3])
def test_loss_terms_equal_torchs_own_divergence(ndim: int) -> None:
    torch.manual_seed(0)
    settings = VAE.Settings(ndim=ndim, latent_size=6, widths=(8, 16), kl_weight=0.3)
    detector = VAE(settings, SHAPE)
    x = torch.rand(5, 1, *SHAPE[3 - ndim :])
    noise = torch.randn(5, 6)
    terms = detector(x, x, noise)
    mu, log_sigma = detector.encode(x)
    posterior = torch.distributions.Normal(mu, log_sigma.exp())
    prior = torch.distributions.Normal(torch.zeros_like(mu), torch.ones_like(mu))
    divergence = torch.distributions.kl_divergence(posterior, prior).sum(1).mean()
    output = detector.decode(mu + log_sigma.exp() * noise)
    voxels = math.prod(x.shape[1:])
    torch.testing.assert_close(terms["kl"], divergence)
    torch.testing.assert_close(terms["reconstruction"], functional.l1_loss(output, x))
    summed = (output - x).abs().sum() / 5 + 0.3 * divergence
    torch.testing.assert_close(terms["loss"] * voxels, summed)


def test_means_weigh_the_divergence_by_voxels_over_latents() -> None:
    torch.manual_seed(0)
    x, noise = torch.rand(3, 1, *SHAPE), torch.randn(3, 6)
    means = VAE(VAE.Settings(latent_size=6, widths=(8, 16), reduction="mean"), SHAPE)
    weight = math.prod(SHAPE) / 6
    sums = VAE(VAE.Settings(latent_size=6, widths=(8, 16), kl_weight=weight), SHAPE)
    sums.load_state_dict(means.state_dict())
    torch.testing.assert_close(means(x, x, noise)["loss"], sums(x, x, noise)["loss"])


def test_a_sigmoid_output_is_the_linear_one_behind_a_sigmoid() -> None:
    torch.manual_seed(0)
    linear = VAE(VAE.Settings(latent_size=6, widths=(8, 16)), SHAPE)
    sigmoid = VAE(VAE.Settings(latent_size=6, widths=(8, 16), output="sigmoid"), SHAPE)
    sigmoid.load_state_dict(linear.state_dict())
    z = torch.randn(2, 6)
    torch.testing.assert_close(sigmoid.decode(z), linear.decode(z).sigmoid())


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_vae_overfits_a_few_volumes(ndim: int) -> None:
    torch.manual_seed(0)
    detector = VAE(VAE.Settings(ndim=ndim, latent_size=32, widths=(16, 32), norm="group"), SHAPE)
    x = volumes(2)[:, None]
    samples = slices_as_batch(x) if ndim == 2 else x
    optimizer = torch.optim.Adam(detector.parameters(), 3e-3)
    for _ in range(200):
        noise = torch.zeros(len(samples), 32)
        optimizer.zero_grad()
        detector(samples, samples, noise)["reconstruction"].backward()
        optimizer.step()
    with torch.no_grad():
        error = (detector.reconstruct(x) - x).abs().mean()
    # The mean of the two, which says nothing of either, leaves .05.
    assert float(error) < 0.03, float(error)


def test_a_shape_that_does_not_halve_is_refused() -> None:
    with pytest.raises(ConfigError, match="divisible by 8"):
        VAE(VAE.Settings(), (64, 60, 64))


def test_mean_and_z_score_equal_numpy_in_any_batches() -> None:
    x = volumes(23)
    mean, z = (build(experiment(n).method, SHAPE) for n in ("MeanImage", "ZScore"))
    for part in x.split([5, 1, 17]):
        mean.update(part)
        z.update(part)
    mean.finish()
    z.finish()
    new = volumes(2, seed=7)
    own = x.double().numpy()
    expected = np.abs(new.numpy() - own.mean(0) * (new.numpy() > 0))
    scores = mean.anomaly_map(new[:, None], new > 0).numpy()
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    deviation = own.std(0, ddof=1).clip(0.02)
    expected = (np.abs(new.numpy() - own.mean(0)) / deviation).clip(0, 10)
    np.testing.assert_allclose(z.anomaly_map(new[:, None], new > 0), expected, atol=1e-3)


def test_pca_equals_the_full_decomposition_when_one_batch_holds_all() -> None:
    x = volumes(30)
    detector = build(experiment("PCA-5").method, SHAPE)
    reference = ReferencePCA(5, svd_solver="full").fit(x.flatten(1).numpy())
    detector.update(x)
    detector.finish()
    new = volumes(3, seed=5)
    flat = new.flatten(1).numpy()
    expected = reference.inverse_transform(reference.transform(flat)).clip(0, 1)
    got = detector.reconstruct(new[:, None]).flatten(1).numpy()
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_pca_in_increments_loses_little() -> None:
    x, new = volumes(60), volumes(8, seed=5)
    errors = []
    for size in (60, 7):
        detector = build(experiment("PCA-6").method, SHAPE)
        for part in x.split(size):
            detector.update(part)
        detector.finish()
        errors.append((detector.reconstruct(new[:, None])[:, 0] - new).abs().mean())
    assert errors[1] < 1.05 * errors[0]


def test_pca_refuses_fewer_volumes_than_components() -> None:
    detector = build(experiment("PCA-16").method, SHAPE)
    detector.update(volumes(5))
    with pytest.raises(ConfigError, match="at least as many"):
        detector.finish()


def test_histogram_equalisation_is_the_empirical_distribution_of_the_brain() -> None:
    x = (volumes(1) * 20).round() / 20
    brain = x > 0
    detector = build(experiment("HistEq").method, SHAPE)
    scores = detector.anomaly_map(x[:, None], brain)[brain].numpy()
    values = x[brain].numpy()
    expected = stats.rankdata(values, method="max") / len(values)
    np.testing.assert_allclose(scores, expected, atol=1e-7)
    dark = build(experiment("HistEq-dark").method, SHAPE)
    np.testing.assert_allclose(dark.anomaly_map(x[:, None], brain)[brain], 1 - expected, atol=1e-7)
