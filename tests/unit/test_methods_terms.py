"""Loss terms and scores of the methods, against values that are computed another way."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy import stats
from tiny_cohorts import SHAPE
from tiny_methods import tiny
from torch import Tensor, nn
from torch.nn import functional

from uadray.errors import ConfigError
from uadray.methods import GradientDetector, build
from uadray.methods.base import by_samples, slices_as_batch
from uadray.methods.cevae import smoothed
from uadray.methods.gan import gradient_penalty
from uadray.methods.networks import Critic, dropout, kl_divergence, separable, uniform


def made(name: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    method: Any = replace(tiny(name).method, **changes)
    detector = build(method, SHAPE)
    assert isinstance(detector, GradientDetector)
    return detector


def samples(detector: Any, num: int = 3) -> tuple[Tensor, Tensor]:
    """Random images and noise."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(num, 1, *SHAPE[3 - detector.ndim :], generator=generator)
    return x, torch.randn(num, detector.num_noise, generator=generator)


def test_numbers_become_uniform() -> None:
    noise = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    assert stats.kstest(uniform(noise).numpy(), "uniform").pvalue > 0.01


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    noise = torch.randn(50_000, generator=torch.Generator().manual_seed(0))
    kept = dropout(torch.ones(50_000), noise, 0.3)
    assert float((kept == 0).float().mean()) == pytest.approx(0.3, abs=0.01)
    assert float(kept.mean()) == pytest.approx(1, abs=0.02)
    assert torch.equal(kept, dropout(torch.ones(50_000), noise, 0.3))


def test_divergence_is_torchs() -> None:
    mu, log_sigma = torch.randn(4, 5), torch.randn(4, 5)
    wanted = torch.distributions.kl_divergence(
        torch.distributions.Normal(mu, log_sigma.exp()), torch.distributions.Normal(0.0, 1.0)
    )
    torch.testing.assert_close(kl_divergence(mu, log_sigma), wanted)


@pytest.mark.parametrize("name", ["dVAE", "3D-dVAE", "sVAE", "3D-sVAE"])
def test_a_variational_autoencoder_sums_its_terms(name: str) -> None:
    detector = made(name, kl_weight=0.3)
    x, noise = samples(detector)
    terms = detector(x, x, noise)
    mu, log_sigma = detector.encoder(x)
    sigma = (4 * torch.tanh(log_sigma / 4)).exp()
    prior = torch.distributions.Normal(0.0, 1.0)
    units = torch.distributions.kl_divergence(torch.distributions.Normal(mu, sigma), prior)
    kl = units.flatten(1).sum(1).mean()
    output = detector.decoder(mu + sigma * noise.view(mu.shape))
    torch.testing.assert_close(terms["kl"], kl)
    torch.testing.assert_close(terms["kl_units"], units.flatten(1).mean(0))
    torch.testing.assert_close(terms["reconstruction"], functional.l1_loss(output, x))
    summed = (output - x).abs().sum() / len(x) + 0.3 * kl
    torch.testing.assert_close(terms["loss"] * math.prod(x.shape[1:]), summed)
    assert mu.shape[1:] == ((16,) if "d" in name.split("-")[-1][0] else (8, *detector.grid))


@pytest.mark.parametrize("name", ["sAE-GAN", "3D-sVAE-GAN"])
def test_both_sides_of_the_discriminator_are_cross_entropies(name: str) -> None:
    detector = made(name, adversarial_weight=0.7)
    x, noise = samples(detector)
    output = detector._through(x, noise)[0]
    real, fake = detector.discriminator(x), detector.discriminator(output)
    one, zero = torch.ones(3), torch.zeros(3)
    cross = functional.binary_cross_entropy_with_logits
    loss = detector(x, x, noise, player="discriminator")["loss"]
    torch.testing.assert_close(loss, cross(real, one) + cross(fake, zero))
    terms = detector(x, x, noise, player="autoencoder")
    torch.testing.assert_close(terms["adversarial"], cross(fake, one))
    kl = detector.config.kl_weight * terms.get("kl", torch.zeros(()))
    rest = terms["reconstruction"] + kl / math.prod(x.shape[1:])
    torch.testing.assert_close(terms["loss"], rest + 0.7 * cross(fake, one))


def test_the_discriminator_acts_first_and_at_its_own_rate() -> None:
    detector = made("sVAE-GAN")
    assert detector.phases()[0].players == ("discriminator", "autoencoder")
    assert [p.learning_rate for p in detector.players()] == [1e-4, 0.0]


@pytest.mark.parametrize(
    ("name", "latent"),
    [
        ("dAE", (512,)),
        ("sAE1", (64, 8, 8)),
        ("sAE3", (64, 16, 16)),
        ("sVAE", (64, 16, 16)),
        ("sVAE-GAN", (64, 16, 16)),
    ],
)
def test_latents_are_those_of_table_1_at_its_size(name: str, latent: tuple[int, ...]) -> None:
    from uadray.config import experiment

    with torch.device("meta"):
        detector: Any = build(experiment(name).method, (20, 256, 256))
        z = detector.encoder(torch.zeros(1, 1, 256, 256))[0]
    assert z.shape[1:] == latent == detector.latent_shape


def test_the_study_drops_from_latent_and_dense_layer() -> None:
    detector = made("AE-dense", dropout=0.5, norm="group")
    x, noise = samples(detector)
    opened = 8 * math.prod(detector.grid)
    assert detector.num_noise == 16 + opened
    (z,) = detector.encoder(x)
    hidden = detector.decoder.expand(dropout(z, noise[:, :16], 0.5))
    hidden = dropout(hidden, noise[:, 16:].view(hidden.shape), 0.5)
    output = detector.decoder.finish(detector.decoder.blocks(hidden))
    torch.testing.assert_close(detector(x, x, noise)["loss"], functional.l1_loss(output, x))
    whole = detector.decoder(detector.encoder(x)[0])
    assert not torch.allclose(output, whole)


class TestContextEncoder:
    @pytest.mark.parametrize("name", ["ceVAE", "3D-ceVAE"])
    def test_the_target_of_the_masked_image_is_the_clean_one(self, name: str) -> None:
        detector = made(name, kl_weight=0.5, context_share=0.25)
        x, noise = samples(detector)
        terms = detector(x, x, noise)
        mu, log_sigma = detector._encode(x)
        output = detector.decoder(mu + log_sigma.exp() * noise[:, :16])
        masked = detector.mask(x, noise[:, 16:])
        filled = detector.decoder(detector._encode(masked)[0])
        vae = functional.l1_loss(output, x) + 0.5 * kl_divergence(mu, log_sigma).sum(1).mean() / (
            math.prod(x.shape[1:])
        )
        torch.testing.assert_close(terms["loss"], 0.75 * vae + 0.25 * functional.l1_loss(filled, x))
        assert not torch.equal(masked, x)

    @pytest.mark.parametrize("ndim", [2, 3])
    def test_each_sample_has_squares_of_its_own(self, ndim: int) -> None:
        detector = made("ceVAE" if ndim == 2 else "3D-ceVAE", max_squares=3)
        x, noise = samples(detector, num=400)
        masked = detector.mask(x, noise[:, 16:])
        changed = (masked != x).flatten(1)
        share = changed.float().mean(1)
        # A quarter of the samples has no square.
        assert float((share == 0).float().mean()) == pytest.approx(0.25, abs=0.06)
        assert float(share.max()) <= 3 * 0.5**ndim
        assert len({tuple(row.nonzero()[:, 0].tolist()) for row in changed[:50]}) > 25
        for before, after, where in zip(x, masked, changed, strict=True):
            values = after.flatten()[where].unique()
            assert len(values) <= 3
            assert ((values >= before.min()) & (values <= before.max())).all()

    @pytest.mark.parametrize("name", ["ceVAE", "3D-ceVAE"])
    def test_scores_are_residual_gradient_and_their_product(self, name: str) -> None:
        x = torch.rand(2, 1, *SHAPE, generator=torch.Generator().manual_seed(2))
        brain = x[:, 0] > 0.1
        scores = {}
        for kind in ("residual", "gradient", "combination"):
            detector = made(name, score=kind, smoothing=0.0).eval()
            with torch.inference_mode():
                scores[kind] = detector.anomaly_map(x, brain)
        residual, gradient = scores["residual"], scores["gradient"]
        torch.testing.assert_close(scores["combination"], residual * gradient)
        assert torch.equal(gradient.flatten(1).amax(1), torch.ones(2))
        # Against a finite difference of the divergence at one voxel.
        detector = made(name, smoothing=0.0).eval().double()
        asked = x.double() if name.startswith("3D") else x.double()[:, :, 5]
        step = torch.zeros_like(asked)
        place = (1, 0, *(4,) * detector.ndim)
        step[place] = 1e-5

        def total(y: Tensor) -> Tensor:
            mu, log_sigma = detector.encoder(y)
            return kl_divergence(mu, 4 * torch.tanh(log_sigma / 4)).sum()

        slope = (total(asked + step) - total(asked - step)).abs() / 2e-5
        where = (1, 0, *(4,) * 3) if name.startswith("3D") else (1, 0, 5, 4, 4)
        by_autograd = detector.gradient(x.double())[where]
        torch.testing.assert_close(by_autograd, slope.detach(), rtol=1e-3, atol=1e-6)

    @pytest.mark.parametrize("ndim", [2, 3])
    def test_smoothing_keeps_the_sum_and_is_scipys(self, ndim: int) -> None:
        from scipy import ndimage

        x = torch.zeros(1, 1, *(15,) * ndim, dtype=torch.float64)
        x[(0, 0, *(7,) * ndim)] = 1
        smooth = smoothed(x, 1.5)
        assert float(smooth.sum()) == pytest.approx(1)
        wanted = ndimage.gaussian_filter(x[0, 0].numpy(), 1.5, mode="constant", truncate=4 / 1.5)
        assert abs(smooth[0, 0].numpy() - wanted).max() < 1e-3


def test_the_adversarial_autoencoder_plays_on_the_latent() -> None:
    detector = made("AAE")
    x, noise = samples(detector)
    (z,) = detector.encoder(x)
    real, fake = detector.critic(noise)[:, 0], detector.critic(z)[:, 0]
    cross, one, zero = functional.binary_cross_entropy_with_logits, torch.ones(3), torch.zeros(3)
    loss = {
        p: detector(x, x, noise, player=p)["loss"] for p in ("autoencoder", "critic", "encoder")
    }
    torch.testing.assert_close(loss["autoencoder"], functional.l1_loss(detector.decoder(z), x))
    torch.testing.assert_close(loss["critic"], cross(real, one) + cross(fake, zero))
    torch.testing.assert_close(loss["encoder"], cross(fake, one))


@pytest.mark.parametrize("name", ["BayesianAE", "3D-BayesianAE"])
def test_the_bayesian_autoencoder_scores_by_mean_or_deviation(name: str) -> None:
    x = torch.rand(2, 1, *SHAPE, generator=torch.Generator().manual_seed(2))
    residual, deviation = made(name).eval(), made(name, score="deviation").eval()
    num = residual.config.samples
    drawn = torch.stack(
        [by_samples(lambda s, k=k: residual.sampled(s)[k], x, residual.ndim) for k in range(num)]
    )
    assert drawn.shape == (3, 2, 1, *SHAPE)
    assert not torch.equal(drawn[0], drawn[1])
    brain = x[:, 0] > 0
    mean = drawn.mean(0).clamp(0, 1)
    torch.testing.assert_close(residual.anomaly_map(x, brain), (x - mean).abs()[:, 0])
    wanted = ((drawn - drawn.mean(0)).square().sum(0) / 2).sqrt()[:, 0].clamp(0, 1)
    torch.testing.assert_close(deviation.anomaly_map(x, brain), wanted)
    # Without dropout all draws are the one reconstruction.
    sure = made(name, dropout=1e-12).eval()
    samples = x if sure.ndim == 3 else slices_as_batch(x)
    torch.testing.assert_close(sure.sampled(samples)[0], sure.sampled(samples)[2])


class TestScaleSpace:
    @pytest.mark.parametrize("name", ["SSAE", "3D-SSAE"])
    def test_levels_add_up_to_the_image_where_coders_are_perfect(self, name: str) -> None:
        detector = made(name)
        x, _ = samples(detector)
        # An encoder gives a tuple of heads.
        detector.encoders = nn.ModuleList([_Tuple(), _Tuple()])
        detector.decoders = nn.ModuleList([nn.Identity(), nn.Identity()])
        for output, wanted in zip(detector.through(x), detector.pyramid(x), strict=True):
            torch.testing.assert_close(output, wanted)
        assert float(detector(x, x, x)["loss"]) < 1e-6

    @pytest.mark.parametrize("name", ["SSAE", "3D-SSAE"])
    def test_the_loss_is_of_all_levels(self, name: str) -> None:
        detector = made(name)
        x, noise = samples(detector)
        outputs, wanted = detector.through(x), detector.pyramid(x)
        assert [o.shape for o in outputs] == [w.shape for w in wanted]
        assert outputs[1].shape[-1] == x.shape[-1] // 2
        terms = [functional.l1_loss(a, b) for a, b in zip(outputs, wanted, strict=True)]
        losses = detector(x, x, noise)
        torch.testing.assert_close(losses["loss"], sum(terms))
        torch.testing.assert_close(losses["reconstruction"], terms[0])

    def test_smoothing_leaves_a_ramp_inside_as_it_is(self) -> None:
        kernel = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
        ramp = torch.arange(16.0).view(1, 1, 1, 16) + 2 * torch.arange(16.0).view(1, 1, 16, 1)
        smooth = separable(ramp, kernel)
        torch.testing.assert_close(smooth[..., 3:-3, 3:-3], ramp[..., 3:-3, 3:-3])


class _Tuple(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x,)


class _Linear(nn.Module):
    """A critic whose gradient is the same everywhere."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.weight).flatten(1).sum(1)


class TestWasserstein:
    @pytest.mark.parametrize("spatial", [(4, 6), (2, 4, 6)])
    def test_the_penalty_takes_the_norm_over_the_whole_image(
        self, spatial: tuple[int, ...]
    ) -> None:
        weight = torch.randn(1, *spatial, generator=torch.Generator().manual_seed(0))
        critic: Any = _Linear(weight)
        real, fake = torch.rand(5, 1, *spatial), torch.rand(5, 1, *spatial)
        penalty = gradient_penalty(critic, real, fake, torch.rand(5))
        torch.testing.assert_close(penalty, (weight.norm() - 1) ** 2)
        penalty.backward()
        wanted = 2 * (weight.norm() - 1) * weight / weight.norm()
        torch.testing.assert_close(critic.weight.grad, wanted)

    def test_the_penalty_is_taken_between_the_images(self) -> None:
        seen: list[Tensor] = []

        class Spy(Critic):
            def forward(self, x: Tensor) -> Tensor:
                seen.append(x.detach().clone())
                return super().forward(x)

        critic = Spy(2, (2, 2), (8, 8))
        real, fake = torch.ones(2, 1, 8, 8), torch.zeros(2, 1, 8, 8)
        gradient_penalty(critic, real, fake, torch.tensor([0.25, 1.0]))
        torch.testing.assert_close(seen[0][:, 0, 0, 0], torch.tensor([0.25, 1.0]))

    @pytest.mark.parametrize("name", ["f-AnoGAN", "3D-f-AnoGAN"])
    def test_both_sides_of_the_game(self, name: str) -> None:
        detector = made(name)
        x, noise = samples(detector)
        output = detector.generator(noise[:, :16])
        real, fake = detector.critic(x).mean(), detector.critic(output).mean()
        terms = detector(x, x, noise, player="critic")
        penalty = gradient_penalty(detector.critic, x, output, uniform(noise[:, 16]))
        torch.testing.assert_close(terms["penalty"], penalty)
        torch.testing.assert_close(terms["loss"], fake - real + 10 * penalty)
        torch.testing.assert_close(detector(x, x, noise, player="generator")["loss"], -fake)
        assert [p.updates for p in detector.players()] == [2, 1, 1]
        assert float(output.detach().min()) >= 0
        assert float(output.detach().max()) <= 1

    def test_the_encoder_matches_image_and_features(self) -> None:
        detector = made("f-AnoGAN", feature_weight=0.5)
        x, noise = samples(detector)
        output = detector.generator(detector.encoder(x)[0])
        features = [detector.critic.blocks(y) for y in (output, x)]
        mse = functional.mse_loss
        terms = detector(x, x, noise, player="encoder")
        torch.testing.assert_close(terms["loss"], mse(output, x) + 0.5 * mse(*features))
        torch.testing.assert_close(terms["reconstruction"], functional.l1_loss(output, x))
        # The critic's score is a linear function of these features.
        torch.testing.assert_close(
            detector.critic(x), detector.critic.score(detector.critic.features(x))[:, 0]
        )

    def test_the_encoder_comes_behind_the_gan(self) -> None:
        gan, encoder = made("f-AnoGAN", gan_share=0.75).phases()
        assert (gan.players, gan.share, gan.measure) == (("critic", "generator"), 0.75, "")
        assert (encoder.players, encoder.measure) == (("encoder",), "reconstruction")


@pytest.mark.parametrize("name", ["sAE1", "3D-ceVAE", "AAE", "BayesianAE", "SSAE", "f-AnoGAN"])
def test_a_shape_that_does_not_halve_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="divisible by 4"):
        build(tiny(name).method, (16, 18, 16))


@pytest.mark.parametrize(
    ("name", "changes", "field"),
    [
        ("sVAE", {"widths": (5,)}, "method.widths"),
        ("dAE", {"latent_size": 0}, "method.latent_size"),
        ("AE-dense", {"dropout": 1.0}, "method.dropout"),
        ("sAE-GAN", {"adversarial_rate": 0.0}, "method.adversarial_rate"),
        ("ceVAE", {"context_share": 2.0}, "method.context_share"),
        ("BayesianAE", {"samples": 1}, "method.samples"),
        ("SSAE", {"levels": 3}, "method.levels"),
        ("f-AnoGAN", {"gan_share": 1.0}, "method.gan_share"),
        ("f-AnoGAN", {"penalty": -1.0}, "method.penalty"),
    ],
)
def test_a_bad_setting_is_named(name: str, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        replace(tiny(name).method, **changes)  # type: ignore[arg-type]
