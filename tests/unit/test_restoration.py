"""Restoration by gradient: its objective by hand, its descent, and the choice of its weight."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import SHAPE, brains, contrast, fit_few, plant
from safetensors.torch import load, save
from torch import Tensor
from torch.distributions import Categorical, Normal, kl_divergence

from uadray.config import Experiment, experiment, from_json, to_json
from uadray.errors import ConfigError
from uadray.methods import build
from uadray.methods.base import Masked, slices_as_batch
from uadray.methods.restoration import (
    GMVAERestoration,
    Restore,
    VAERestoration,
    choose,
    restore,
    total_variation,
)

QUICK = Restore(steps=30, first_steps=20, tv_weights=(0.0, 0.3, 1.0))


@pytest.fixture(autouse=True)
def _one_thread_and_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def vae(ndim: int, **changes: object) -> VAERestoration:
    values = {"latent_size": 6, "restore": QUICK} | changes
    return VAERestoration(VAERestoration.Settings(ndim=ndim, widths=(8, 16), **values), SHAPE)  # type: ignore[arg-type]


def gmvae(ndim: int, **changes: object) -> GMVAERestoration:
    values = {"num_clusters": 4, "latent_size": 6, "prior_size": 2, "prior_width": 8}
    values |= {"restore": QUICK} | changes  # type: ignore[dict-item]
    return GMVAERestoration(GMVAERestoration.Settings(ndim=ndim, widths=(8, 16), **values), SHAPE)  # type: ignore[arg-type]


BOTH: list[Callable[..., VAERestoration | GMVAERestoration]] = [vae, gmvae]


@given(seed=st.integers(0, 99), ndim=st.sampled_from([2, 3]))
@settings(deadline=None, max_examples=20)
def test_total_variation_is_the_sum_over_pairs_of_neighbours(seed: int, ndim: int) -> None:
    image = np.random.default_rng(seed).standard_normal((2, 1, *(4, 5, 3)[:ndim]))
    expected = [
        sum(
            abs(sample[index] - sample[tuple(np.add(index, step))])
            for index in np.ndindex(sample.shape)
            for step in np.eye(ndim, dtype=int)
            if all(np.add(index, step) < sample.shape)
        )
        for sample in image[:, 0]
    ]
    np.testing.assert_allclose(total_variation(torch.from_numpy(image)), expected)


@pytest.mark.parametrize("data_term", ["l1", "l2"])
@pytest.mark.parametrize("ndim", [2, 3])
def test_terms_of_the_vae_equal_torchs_own(ndim: int, data_term: str) -> None:
    detector = vae(ndim, kl_weight=0.3, data_term=data_term)
    x, noise = torch.rand(5, 1, *SHAPE[3 - ndim :]), torch.randn(5, 6)
    mu, log_sigma = detector.encode(x)
    divergence = kl_divergence(Normal(mu, log_sigma.exp()), Normal(0.0, 1.0)).sum(1)

    def data(z: Tensor) -> Tensor:
        apart = (detector.decode(z) - x).flatten(1)
        return (apart.abs() if data_term == "l1" else apart**2).sum(1)

    torch.testing.assert_close(detector.energy(x), data(mu) + 0.3 * divergence)
    terms = detector(x, x, noise)
    summed = data(mu + log_sigma.exp() * noise) + 0.3 * divergence
    torch.testing.assert_close(terms["loss"] * x[0].numel(), summed.mean())


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_four_terms_of_the_mixture_equal_torchs_own(ndim: int) -> None:
    detector = gmvae(ndim, cluster_floor=0.0)
    x, noise = torch.rand(5, 1, *SHAPE[3 - ndim :]), torch.randn(5, 8)
    losses = detector.terms(x, x, noise)
    mu, log_sigma = detector.encode(x)
    drawn = mu + log_sigma.exp() * noise
    z, w = drawn[:, :6], drawn[:, 6:]
    centres, log_widths = detector.clusters(w)
    assert centres.shape == log_widths.shape == (5, 4, 6)
    clusters = Normal(centres, log_widths.exp())
    # Bayes' rule with a uniform prior, by the normalised density.
    c = Categorical(logits=clusters.log_prob(z[:, None]).sum(2))
    posterior = Normal(mu[:, None, :6], log_sigma[:, None, :6].exp())
    kl_z = (c.probs[:, :, None] * kl_divergence(posterior, clusters)).sum((1, 2))
    kl_w = kl_divergence(Normal(mu[:, 6:], log_sigma[:, 6:].exp()), Normal(0.0, 1.0)).sum(1)
    kl_c = kl_divergence(c, Categorical(logits=torch.zeros(5, 4)))
    torch.testing.assert_close(losses["data"], (detector.decode(z) - x).abs().flatten(1).sum(1))
    torch.testing.assert_close(losses["kl_z"], kl_z)
    torch.testing.assert_close(losses["kl_w"], kl_w)
    torch.testing.assert_close(losses["kl_c"], kl_c, atol=1e-5, rtol=1e-4)
    terms = detector(x, x, noise)
    total = losses["data"] + losses["kl_z"] + losses["kl_w"] + losses["kl_c"]
    torch.testing.assert_close(terms["loss"] * x[0].numel(), total.mean())
    torch.testing.assert_close(terms["kl_units"].sum(), kl_z.mean())


def test_the_divergence_of_the_cluster_counts_above_its_floor_alone() -> None:
    free, floored = gmvae(3, cluster_floor=0.0), gmvae(3, cluster_floor=0.7)
    floored.load_state_dict(free.state_dict())
    x, noise = torch.rand(40, 1, *SHAPE), torch.randn(40, 8)
    plain, counted = (d.terms(x, x, noise)["kl_c"] for d in (free, floored))
    assert (plain < 0.7).any()
    assert (plain > 0.7).any()
    torch.testing.assert_close(counted, plain.clamp_min(0.7))


def test_one_cluster_is_a_vae_with_a_learned_prior() -> None:
    detector = gmvae(3, num_clusters=1, cluster_floor=0.0)
    for layer in (detector.to_cluster_mu, detector.to_cluster_log_sigma):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    x = torch.rand(3, 1, *SHAPE)
    losses = detector.terms(x, x, None)
    mu, log_sigma = (t[:, :6] for t in detector.encode(x))
    torch.testing.assert_close(
        losses["kl_z"], kl_divergence(Normal(mu, log_sigma.exp()), Normal(0.0, 1.0)).sum(1)
    )
    assert losses["kl_c"].abs().max().item() < 1e-6


def masked(x: Tensor) -> Masked:
    return Masked(x, x[:, 0] > 0)


class TestDescent:
    """Towards a known image, so that the result is known."""

    @staticmethod
    def towards(wanted: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda image: (image - wanted).square().flatten(1).sum(1)

    def test_it_ends_at_the_least_of_the_energy_inside_the_brain(self) -> None:
        image, wanted = torch.rand(3, 1, 6, 6), torch.rand(3, 1, 6, 6)
        image[:, :, :2] = 0
        config = Restore(steps=400, first_steps=200, first_step_size=0.05, step_size=0.02)
        restored = restore(self.towards(wanted), image, image > 0, torch.zeros(3), config)
        torch.testing.assert_close(restored[:, :, 2:], wanted[:, :, 2:], atol=1e-3, rtol=0)
        assert not restored[:, :, :2].any()

    def test_steps_are_of_the_stated_size_and_gradients_bounded(self) -> None:
        image = torch.full((1, 1, 4, 4), 0.5)
        config = Restore(steps=5, first_steps=3, first_step_size=0.01, step_size=0.002, clip=2.0)
        slope = 7.0
        restored = restore(
            lambda y: slope * y.flatten(1).sum(1), image, image > 0, torch.zeros(1), config
        )
        torch.testing.assert_close(restored, image - 2.0 * (3 * 0.01 + 2 * 0.002))

    def test_a_large_weight_lets_only_large_patches_change(self) -> None:
        # A patch of n x n moves where its gradient n^2 exceeds the border's 4 n w.
        image = torch.full((1, 1, 16, 16), 0.5)
        wanted = image.clone()
        wanted[..., 2:10, 2:10] = 0.2
        wanted[..., 13, 13] = 0.2
        energy = lambda y: (y - wanted).abs().flatten(1).sum(1)  # noqa: E731
        config = Restore(steps=300, first_steps=100, first_step_size=5e-3, step_size=1e-3)
        changed = (restore(energy, image, image > 0, torch.tensor([1.0]), config) - image).abs()
        assert float(changed[..., 4:8, 4:8].mean()) > 0.2
        assert float(changed[..., 13, 13]) < 0.02
        both = (restore(energy, image, image > 0, torch.tensor([0.1]), config) - image).abs()
        assert float(both[..., 13, 13]) > 0.2

    def test_samples_keep_to_themselves_each_with_its_weight(self) -> None:
        image, wanted = torch.rand(3, 1, 6, 6, 6), torch.rand(3, 1, 6, 6, 6)
        weights = torch.tensor([0.0, 0.2, 0.7])
        together = restore(self.towards(wanted), image, image > 0, weights, QUICK)
        for n in range(3):
            alone = restore(
                self.towards(wanted[n : n + 1]),
                image[n : n + 1],
                image[n : n + 1] > 0,
                weights[n : n + 1],
                QUICK,
            )
            torch.testing.assert_close(together[n : n + 1], alone)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("make", BOTH)
def test_a_restoration_has_less_energy_and_no_background(make, ndim: int) -> None:
    detector = make(ndim).eval()
    x = brains(2)
    with torch.inference_mode():
        restored = detector.reconstruct(x)
        again = detector.reconstruct(x)
        scores = detector.anomaly_map(x, x[:, 0] > 0)
    assert restored.shape == x.shape
    assert scores.shape == (2, *SHAPE)
    assert torch.equal(restored, again)
    assert not restored[x == 0].any()
    assert 0 <= float(restored.min()) <= float(restored.max()) <= 1
    before, after = (
        detector.energy(slices_as_batch(t) if ndim == 2 else t).sum() for t in (x, restored.clone())
    )
    assert after.item() < 0.95 * before.item()
    assert all(p.grad is None for p in detector.parameters())


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("make", BOTH)
def test_the_best_epoch_is_told_by_the_plain_reconstruction(make, ndim: int) -> None:
    detector = make(ndim).eval()
    x = brains(2)
    error, count = detector.held_out_error(x, x[:, 0] > 0).tolist()
    samples = slices_as_batch(x) if ndim == 2 else x
    with torch.no_grad():
        plain = detector.decode(detector.encode(samples)[0][:, :6]).clamp(0, 1)
    assert count == (x > 0).sum()
    assert error == pytest.approx(float((plain - samples).abs()[samples > 0].sum()), rel=1e-5)


class TestWeight:
    def test_the_smallest_near_the_least_is_taken(self) -> None:
        change = torch.tensor([0.10, 0.06, 0.024, 0.02, 0.021])
        weights = (0.0, 0.1, 0.2, 0.4, 0.8)
        assert choose(change, Restore(tv_weights=weights, tolerance=0.1)) == 2
        assert choose(change, Restore(tv_weights=weights, tolerance=0.0)) == 3
        assert choose(change, Restore(tv_weights=weights, tolerance=0.6)) == 1

    @pytest.mark.parametrize("make", BOTH)
    def test_it_is_searched_on_healthy_volumes_and_kept(self, make) -> None:
        detector = make(3).eval()
        x = brains(3)
        total: Callable[[Tensor], Tensor] = lambda t: t  # noqa: E731
        detector.calibrate([masked(x[:2]), masked(x[2:])], total)
        changes = []
        for weight in QUICK.tv_weights:
            moved = detector.restored(x, x[:, 0] > 0, torch.tensor(weight)) - x
            changes.append(float(moved.abs()[x > 0].mean()))
        expected = QUICK.tv_weights[choose(torch.tensor(changes), QUICK)]
        assert float(detector.tv_weight) == pytest.approx(expected)
        assert changes[0] > changes[1] > changes[2]
        other = make(3)
        tensors = {name: t.contiguous() for name, t in detector.state_dict().items()}
        other.load_state_dict(load(save(tensors)))
        assert float(other.tv_weight) == pytest.approx(expected)

    def test_workers_find_what_one_finds(self) -> None:
        detector, x = vae(3).eval(), brains(4)
        seen: list[Tensor] = []
        detector.calibrate([masked(x[:2])], lambda t: seen.append(t.clone()) or t)  # type: ignore[func-returns-value]
        detector.calibrate([masked(x[2:])], lambda t: seen.append(t + seen[0]) or seen[1])  # type: ignore[func-returns-value]
        split = float(detector.tv_weight)
        detector.calibrate([masked(x)], lambda t: seen.append(t) or t)  # type: ignore[func-returns-value]
        # A descent by signs rounds its way; other batches move it by less than a percent.
        torch.testing.assert_close(seen[1], seen[2], rtol=1e-2, atol=0)
        assert float(detector.tv_weight) == split


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("ndim", [2, 3])
def test_a_planted_lesion_stands_out(make, ndim: int) -> None:
    far = Restore(
        steps=40, first_steps=30, first_step_size=0.015, step_size=3e-3, tv_weights=(0.1,)
    )
    detector = make(ndim, latent_size=16, restore=far)
    fit_few(detector, epochs=100)
    x, lesion = plant(brains(4, seed=7))
    assert contrast(detector, x, lesion) > 2.5


@pytest.mark.parametrize("name", ["VAE-restoration", "3D-GMVAE-restoration"])
def test_named_experiments_build_and_survive_json(name: str) -> None:
    made = experiment(name)
    assert from_json(Experiment, to_json(made)) == made
    detector = build(replace(made.method, widths=(8, 16)), SHAPE)  # type: ignore[call-arg]
    assert detector.has_reconstruction
    assert math.isclose(float(detector.tv_weight), 0.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [{"tv_weights": (0.4, 0.1)}, {"tv_weights": ()}, {"steps": 0}, {"clip": 0.0}, {"tolerance": 1}],
)
def test_settings_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=r"method\.restore\." + next(iter(wrong))):
        Restore(**wrong)


@pytest.mark.parametrize("make", BOTH)
def test_the_brain_is_its_mask_and_not_what_is_above_0(make) -> None:
    detector, x = make(3).eval(), brains(2)
    brain = x[:, 0] > 0
    x[brain[:, None] & (x < x[x > 0].quantile(0.2))] = 0  # dark, and of the brain
    with torch.inference_mode():
        known, guessed = detector.reconstruct_within(x, brain), detector.reconstruct(x)
        detected = detector.detect(x, brain)
    assert torch.equal(detected.reconstruction, known)
    dark = brain[:, None] & (x == 0)
    assert known[dark].any()
    assert not guessed[dark].any()
    assert not known[~brain[:, None]].any()
    assert detector.held_out_error(x, brain)[1] == brain.sum()
