"""Codes, the transformer over them, and what healing replaces."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from planted import SHAPE, brains, contrast, fit_few, plant
from torch import Tensor
from torch.nn import functional

from uadray.config import Experiment, experiment, from_json, to_json
from uadray.errors import ConfigError
from uadray.methods.base import Masked, slices_as_batch
from uadray.methods.codes import CausalTransformer, Codebook, ordering
from uadray.methods.vqvae import Transformer

SMALL = Transformer.Settings(
    widths=(8, 16), num_codes=16, code_size=8, num_residual=1, model_size=16, depth=2, heads=2
)


@pytest.fixture(autouse=True)
def _one_thread_and_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def detector(ndim: int, **changes: object) -> Transformer:
    return Transformer(replace(SMALL, ndim=ndim, **changes), SHAPE)  # type: ignore[arg-type]


def codebook(codes: list[list[float]], usage: float = 1.0, **changes: float) -> Codebook:
    settings = {"commitment": 0.25, "decay": 0.9, "dead_share": 0.03} | changes
    book = Codebook(len(codes), len(codes[0]), **settings)
    book.usage.fill_(usage)
    book.sums.copy_(usage * torch.tensor(codes))
    return book


class TestCodebook:
    def test_error_and_gradients_are_those_of_the_paper(self) -> None:
        book = codebook([[0.0, 0.0], [1.0, 1.0], [5.0, 5.0]]).eval()
        features = torch.tensor([[0.2, 0.0], [0.9, 1.3]], requires_grad=True)
        codes, error, chosen = book(features)
        assert chosen.tolist() == [0, 1]
        torch.testing.assert_close(codes, torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
        assert error.item() == pytest.approx(0.25 * (0.2**2 + 0.1**2 + 0.3**2) / 4)
        weights = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        (codes * weights).sum().backward(retain_graph=True)
        # Straight through to the features.
        torch.testing.assert_close(features.grad, weights)
        features.grad = None
        error.backward()
        apart = torch.tensor([[0.2, 0.0], [-0.1, 0.3]])
        torch.testing.assert_close(features.grad, 0.25 * 2 * apart / 4)

    def test_codes_are_moving_averages_of_their_features(self) -> None:
        book = codebook([[0.0], [4.0]], usage=2.0)
        book(torch.tensor([[1.0], [0.5], [3.0]]))
        torch.testing.assert_close(book.usage, torch.tensor([2.0, 0.9 * 2 + 0.1 * 1]))
        expected = [(0.1 * 1.5) / 2.0, (0.9 * 8 + 0.1 * 3) / 1.9]
        torch.testing.assert_close(book.codes[:, 0], torch.tensor(expected))
        kept = book.codes.clone()
        book.eval()(torch.tensor([[9.0], [9.0]]))
        assert torch.equal(book.codes, kept)

    def test_at_first_all_codes_are_features_spread_over_the_batch(self) -> None:
        features = torch.arange(8.0)[:, None]
        books = [Codebook(4, 1, commitment=0.25, decay=0.9, dead_share=0.03) for _ in range(2)]
        books[1].load_state_dict(books[0].state_dict())
        for book in books:
            book(features)
            assert len(set(book.codes[:, 0].tolist())) == 4
            assert set(book.codes[:, 0].tolist()) <= set(features[:, 0].tolist())
        assert torch.equal(books[0].codes, books[1].codes)

    @pytest.mark.parametrize(("dead_share", "revived"), [(0.0, False), (0.03, True)])
    def test_dead_codes_begin_anew(self, dead_share: float, revived: bool) -> None:
        features = torch.rand(200, 4, generator=torch.Generator().manual_seed(1))
        far = [[9.0 + n, 9.0, 9.0, 9.0] for n in range(14)]
        book = codebook([[0.2] * 4, [0.8] * 4, *far], usage=10.0, dead_share=dead_share)
        assert set(book.nearest(features).tolist()) <= {0, 1}
        for _ in range(100):
            book(features)
        assert (len(set(book.nearest(features).tolist())) == 16) is revived

    def test_it_becomes_k_means(self) -> None:
        centres = torch.tensor([[0.0, 0.0], [0.0, 5.0], [5.0, 0.0]])
        features = (centres[:, None] + 0.1 * torch.randn(3, 40, 2)).flatten(0, 1)
        book = Codebook(3, 2, commitment=0.25, decay=0.9, dead_share=0.03)
        for _ in range(200):
            book(features)
        means = features.unflatten(0, (3, 40)).mean(1)
        assert float(torch.cdist(means, book.codes).min(1).values.max()) < 1e-3

    def test_the_error_equals_monais(self) -> None:
        layers = pytest.importorskip("monai.networks.layers.vector_quantizer")
        book = codebook(torch.randn(6, 3).tolist()).eval()
        features = torch.randn(2, 3, 4, 5, requires_grad=True)
        theirs = layers.EMAQuantizer(2, 6, 3, commitment_cost=0.25, ddp_sync=False)
        theirs.embedding.weight.data.copy_(book.codes)
        theirs.eval()
        quantised, loss, indices = theirs(features)
        codes, error, chosen = book(features.permute(0, 2, 3, 1).reshape(-1, 3))
        assert torch.equal(chosen, indices.flatten())
        torch.testing.assert_close(codes.reshape(2, 4, 5, 3).permute(0, 3, 1, 2), quantised)
        torch.testing.assert_close(error, loss)


class TestOrdering:
    @pytest.mark.parametrize(("grid", "count"), [((3, 4), 8), ((2, 3, 4), 48)])
    def test_orders_are_distinct_permutations(self, grid: tuple[int, ...], count: int) -> None:
        orders = [ordering(grid, k) for k in range(count)]
        assert torch.equal(orders[0], torch.arange(math.prod(grid)))
        assert all(torch.equal(o.sort().values, orders[0]) for o in orders)
        assert len({tuple(o.tolist()) for o in orders}) == count

    def test_the_second_order_reads_down_the_columns(self) -> None:
        assert ordering((2, 3), 1).tolist() == [0, 3, 1, 4, 2, 5]


class TestCausalTransformer:
    @staticmethod
    def make() -> CausalTransformer:
        made = CausalTransformer(num_codes=5, num_tokens=12, size=16, depth=2, heads=2)
        torch.nn.init.normal_(made.codes.weight)
        return made

    def test_a_token_depends_on_those_before_it_alone(self) -> None:
        prior, codes = self.make(), torch.randint(0, 5, (2, 12))
        logits = prior(codes)
        for place in range(12):
            other = codes.clone()
            other[:, place] = (other[:, place] + 1) % 5
            changed = (prior(other) != logits).any(2).any(0)
            assert not changed[: place + 1].any()
            assert changed[place + 1 :].all()

    def test_probabilities_of_all_sequences_add_up_to_one(self) -> None:
        prior = CausalTransformer(num_codes=3, num_tokens=4, size=8, depth=1, heads=2)
        every = torch.tensor(list(itertools.product(range(3), repeat=4)))
        total = prior.log_likelihood(every).sum(1).exp().sum()
        torch.testing.assert_close(total, torch.tensor(1.0))

    def test_healing_equals_doing_it_token_by_token(self) -> None:
        prior, codes = self.make(), torch.randint(0, 5, (4, 12))
        unlikely = torch.rand(4, 12) < 0.4
        unlikely[3] = False
        expected = codes.clone()
        for place in range(12):
            best = prior(expected)[:, place].argmax(1)
            expected[:, place] = torch.where(unlikely[:, place], best, expected[:, place])
        assert not torch.equal(expected, codes)
        assert torch.equal(prior.heal(codes, unlikely), expected)
        assert torch.equal(prior.heal(codes, unlikely & False), codes)

    def test_it_learns_a_rule(self) -> None:
        prior = CausalTransformer(num_codes=5, num_tokens=12, size=32, depth=2, heads=2)
        starts = torch.arange(5)[:, None]
        codes = (starts + torch.arange(12)) % 5
        optimizer = torch.optim.Adam(prior.parameters(), 1e-2)
        for _ in range(100):
            optimizer.zero_grad()
            (-prior.log_likelihood(codes).mean()).backward()
            optimizer.step()
        broken = codes.clone()
        broken[:, 6] = (broken[:, 6] + 2) % 5
        with torch.no_grad():
            unlikely = prior.log_likelihood(broken) < math.log(0.05)
            assert unlikely[:, 6].all()
            assert not unlikely[:, 1:6].any()
            # What follows a wrong token is surprising as well; both are healed.
            assert torch.equal(prior.heal(broken, unlikely), codes)


@pytest.mark.parametrize("ndim", [2, 3])
def test_shapes_ranges_and_repeats(ndim: int) -> None:
    made, x = detector(ndim, num_orderings=2).eval(), brains(2)
    made.log_threshold.fill_(-2.0)
    with torch.inference_mode():
        healed = made.reconstruct(x)
        again = made.reconstruct(x[1:])
        likelihood = detector(ndim, score="likelihood").eval().anomaly_map(x, x[:, 0] > 0)
    assert healed.shape == x.shape
    assert not torch.equal(healed, x)
    assert 0 <= float(healed.min()) <= float(healed.max()) <= 1
    assert not healed[x == 0].any()
    torch.testing.assert_close(again, healed[1:])
    assert likelihood.shape == (2, *SHAPE)
    assert 0 < float(likelihood.max()) <= 20


@pytest.mark.parametrize("ndim", [2, 3])
def test_nothing_unlikely_leaves_the_image_as_it_is(ndim: int) -> None:
    made, x = detector(ndim).eval(), brains(2)
    with torch.no_grad():
        torch.testing.assert_close(made.reconstruct(x), x)
        made.log_threshold.fill_(1.0)
        assert float((made.reconstruct(x) - x).abs().mean()) > 0.01


@pytest.mark.parametrize("ndim", [2, 3])
def test_terms_of_both_phases_are_those_of_their_parts(ndim: int) -> None:
    made = detector(ndim, num_orderings=2)
    x = slices_as_batch(brains(2)) if ndim == 2 else brains(2)
    noise = torch.zeros(len(x), 0)
    made(x, x, noise, player="codes")
    made.eval()
    codes, error, chosen = made.codebook(made.features(x))
    terms = made(x, x, noise, player="codes")
    torch.testing.assert_close(terms["reconstruction"], functional.l1_loss(made.decode(codes), x))
    torch.testing.assert_close(terms["loss"], terms["reconstruction"] + error)
    tokens = chosen.unflatten(0, (len(x), -1))
    expected = torch.zeros(())
    for prior, order in zip(made.priors, made._orders, strict=True):
        logits = prior(tokens[:, order])
        expected = expected + functional.cross_entropy(
            logits.flatten(0, 1), tokens[:, order].flatten()
        )
    loss = made(x, x, noise, player="prior")["loss"]
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(p.grad is None for p in made.encoder.parameters())
    assert all(p.grad is not None for p in made.priors.parameters())


def test_orders_go_where_the_detector_goes_and_into_no_checkpoint() -> None:
    made = detector(3, num_orderings=2)
    state = made.state_dict()
    assert not [name for name in state if name in ("_orders", "_places")]
    detector(3, num_orderings=2).load_state_dict(state)
    for order, places in zip(made._orders, made._places, strict=True):
        assert torch.equal(order[places], torch.arange(len(order)))
    made.to("meta")
    assert made._orders.device.type == made._places.device.type == "meta"


def test_players_share_no_parameter_and_leave_none_out() -> None:
    made = detector(3, num_orderings=2)
    of_players = [id(p) for player in made.players() for p in player.parameters]
    assert sorted(of_players) == sorted(id(p) for p in made.parameters())
    assert [phase.players for phase in made.phases()] == [("codes",), ("prior",)]
    assert sum(phase.share for phase in made.phases()) == 1


@pytest.mark.parametrize("ndim", [2, 3])
def test_thresholds_are_quantiles_of_healthy_codes_with_brain(ndim: int) -> None:
    made, x = detector(ndim, num_orderings=2, heal_quantile=0.1).eval(), brains(5)
    samples = slices_as_batch(x) if ndim == 2 else x
    samples = samples[samples.flatten(1).any(1)]
    with torch.no_grad():
        made.calibrate(
            [Masked(part, part[:, 0] > 0) for part in (x[:2], x[2:])], lambda tensor: tensor
        )
        inside = made._holds_brain(samples > 0)
        for k in range(2):
            healthy = made.log_likelihoods(samples)[:, k][inside].numpy()
            expected = np.quantile(healthy, 0.1, method="inverted_cdf")
            assert float(made.log_threshold[k]) == pytest.approx(expected, abs=20 / 4096 + 1e-6)
    other = detector(ndim, num_orderings=2)
    other.load_state_dict(made.state_dict())
    assert torch.equal(other.log_threshold, made.log_threshold)


def test_cells_with_brain_are_those_that_cover_some() -> None:
    made = detector(2)
    x = torch.zeros(1, 1, 16, 16)
    x[..., 3, 4] = 0.5
    assert made._holds_brain(x > 0).reshape(4, 4).nonzero().tolist() == [[0, 1]]


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_planted_lesion_is_healed(ndim: int) -> None:
    made = detector(ndim, phase_share=0.6)
    losses = fit_few(made, epochs=300)
    assert losses[-1] < 0.8 * math.log(16)
    x, lesion = plant(brains(4, seed=7))
    assert contrast(made, x, lesion) > 3
    tokens: Tensor = made.tokens(slices_as_batch(brains(4)) if ndim == 2 else brains(4))
    assert len(tokens.unique()) > 4


def test_a_grid_that_leaves_too_many_codes_is_refused() -> None:
    with pytest.raises(ConfigError, match="divisible by 4"):
        Transformer(SMALL, (8, 18, 16))
    with pytest.raises(ConfigError, match=r"leave 4096 codes.*max_tokens, which is 1024"):
        Transformer(replace(SMALL, ndim=2), (8, 256, 256))


@pytest.mark.parametrize(
    ("ndim", "side", "grid"),
    [(3, 32, (8, 8, 8)), (3, 64, (8, 8, 8)), (2, 32, (8, 8)), (2, 224, (28, 28))],
)
def test_the_grid_follows_the_size(ndim: int, side: int, grid: tuple[int, ...]) -> None:
    small = Transformer.Settings(ndim=ndim, model_size=8, depth=1, heads=1)  # type: ignore[arg-type]
    assert Transformer(small, (side,) * 3).grid == grid


@pytest.mark.parametrize("name", ["Transformer", "3D-Transformer"])
def test_named_experiments_survive_json(name: str) -> None:
    made = experiment(name)
    assert made.name == name
    assert from_json(Experiment, to_json(made)) == made


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_brain_is_its_mask_and_not_what_is_above_0(ndim: int) -> None:
    made, x = detector(ndim).eval(), brains(2)
    brain = x[:, 0] > 0
    x[brain[:, None] & (x < x[x > 0].quantile(0.2))] = 0
    made.log_threshold.fill_(0.0)  # every code is unlikely
    with torch.inference_mode():
        known, guessed = made.reconstruct_within(x, brain), made.reconstruct(x)
    dark = brain[:, None] & (x == 0)
    assert known[dark].any()
    assert not guessed[dark].any()
    assert made.held_out_error(x, brain)[1] == brain.sum()
