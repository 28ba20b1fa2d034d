"""AnoGAN: what its search descends, and that it finds what the generator can make."""

from dataclasses import replace

import pytest
import torch
from planted import SHAPE, brains, contrast, plant

from uadray.config import Experiment, experiment, from_json, to_json
from uadray.errors import ConfigError
from uadray.methods.base import slices_as_batch
from uadray.methods.gan import AnoGAN

SMALL = AnoGAN.Settings(widths=(8, 16), latent_size=6, bottleneck=4)


@pytest.fixture(autouse=True)
def _one_thread_and_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def detector(ndim: int, **changes: object) -> AnoGAN:
    return AnoGAN(replace(SMALL, ndim=ndim, **changes), SHAPE)  # type: ignore[arg-type]


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("ndim", [2, 3])
def test_the_misfit_is_residual_and_features_of_each_image(ndim: int, share: float) -> None:
    made = detector(ndim, feature_share=share).eval()
    x, z = torch.rand(3, 1, *SHAPE[3 - ndim :]), torch.randn(3, 6)
    image = made.generator(z)
    expected = [
        (1 - share) * (x[n] - image[n]).abs().sum()
        + share
        * (made.critic.features(x[n : n + 1]) - made.critic.features(image[n : n + 1])).abs().sum()
        for n in range(3)
    ]
    torch.testing.assert_close(made.misfit(x, z), torch.stack(expected))


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_search_finds_a_latent_that_made_an_image(ndim: int) -> None:
    made = detector(ndim, search_steps=200).eval()
    # Freshly built it hardly looks at its latent.
    for name, parameter in made.generator.named_parameters():
        if name.startswith("expand"):
            parameter.data.mul_(4)
    z = torch.randn(4, 6)
    with torch.inference_mode():
        x = made.generator(z)
        latent = made.search(x)
        before = made.misfit(x, torch.zeros(4, 6))
        after = made.misfit(x, latent)
    assert (after < 0.2 * before).all(), (before, after)
    assert all(p.grad is None for p in made.parameters())


def test_images_do_not_see_each_other_and_scores_repeat() -> None:
    made, x = detector(2, search_steps=20).eval(), brains(2)
    with torch.inference_mode():
        both = made.reconstruct(x)
        torch.testing.assert_close(made.reconstruct(x[1:]), both[1:], atol=1e-4, rtol=0)
        assert torch.equal(made.reconstruct(x), both)
        scores = made.anomaly_map(x, x[:, 0] > 0)
    assert both.shape == x.shape
    assert scores.shape == (2, *SHAPE)
    assert 0 <= float(scores.min()) <= float(scores.max()) <= 1


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_planted_lesion_stands_out_where_the_generator_makes_healthy_brains(ndim: int) -> None:
    made = detector(ndim)
    samples = slices_as_batch(brains(16)) if ndim == 2 else brains(16)
    samples = samples[samples.flatten(1).any(1)]
    # Taught directly, which takes seconds: each brain has its place in the latent.
    z = torch.randn(len(samples), 6, requires_grad=True)
    optimizer = torch.optim.Adam([*made.generator.parameters(), z], 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        (made.generator(z) - samples).abs().mean().backward()
        optimizer.step()
    x, lesion = plant(brains(4, seed=7))
    assert contrast(made, x, lesion) > 2


def test_the_named_experiment_is_that_of_the_paper() -> None:
    made = experiment("AnoGAN")
    assert from_json(Experiment, to_json(made)) == made
    assert isinstance(made.method, AnoGAN.Settings)
    assert (made.method.latent_size, made.method.search_steps, made.fit.epochs) == (64, 100, 82)
    with pytest.raises(ConfigError, match=r"method\.feature_share"):
        AnoGAN.Settings(feature_share=2)
