"""Fits of several players and phases, and that one player's fit is a plain loop."""

import math
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from team import Team
from tiny_cohorts import SHAPE, tiny_vae
from tiny_fits import cut, fit_arrays, fresh, made_images
from tiny_methods import tiny
from torch import Tensor, nn

from uadray import random
from uadray.config import Experiment, FitConfig
from uadray.data.batch import Batch
from uadray.data.sampling import batch_share, step_sizes
from uadray.errors import ConfigError
from uadray.methods import GradientDetector, Learned
from uadray.methods.base import Phase, Player
from uadray.runs.checkpoint import CheckpointStore
from uadray.runs.folder import Run
from uadray.train.fit import Fit, NotFiniteError
from uadray.train.schedule import Schedule
from uadray.train.steps import Metrics
from uadray.train.summary import format_metrics, summarise

CPU = torch.device("cpu")
NUM = 12


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return made_images(NUM)


def weights(detector: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in detector.parameters()])


def test_one_player_takes_the_steps_of_a_plain_loop_bit_for_bit(
    images: Tensor, tmp_path: Path
) -> None:
    what = tiny_vae(3, epochs=3, learning_rate=1e-2)
    fitted, _ = fit_arrays(what, images, tmp_path)
    plain = fresh(what).train()
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-2, fused=True)
    for epoch in range(3):
        for batch in cut(images, list(range(NUM)), what.fit.batch_size):
            x = batch.images.float()[:, None]
            key = random.keys(what.fit.seed, epoch, batch.ids, random.LATENT)
            optimizer.zero_grad()
            plain(x, x, random.normal(key, plain.num_noise))["loss"].backward()
            nn.utils.clip_grad_norm_(plain.parameters(), what.fit.clip_norm)
            optimizer.step()
    assert torch.equal(weights(fitted), weights(plain))


class Game(GradientDetector):
    """Two numbers: `first` is pulled towards 1, three times a batch, `second` towards `first`."""

    num_noise = 1

    def __init__(self, spoil: str = "") -> None:
        super().__init__(Learned(ndim=3), (1, 1, 1))
        self.first = nn.Parameter(torch.zeros(1))
        self.second = nn.Parameter(torch.zeros(1))
        self.turns: list[tuple[str, float, float, Tensor]] = []
        self._spoil = spoil

    def players(self) -> tuple[Player, ...]:
        return (
            Player(name="first", parameters=(self.first,), learning_rate=0.1, updates=3),
            Player(name="second", parameters=(self.second,), optimizer="rmsprop"),
        )

    def forward(
        self, x_in: Tensor, target: Tensor, noise: Tensor, player: str = ""
    ) -> dict[str, Tensor]:
        assert (self.first.requires_grad, self.second.requires_grad) == (
            player == "first",
            player == "second",
        )
        numbers = float(self.first.detach()), float(self.second.detach())
        self.turns.append((player, *numbers, noise.clone()))
        if player == "first":
            loss = (self.first - 1).square().sum()
        else:
            loss = (self.second - self.first).square().sum()
        if player == self._spoil:
            loss = loss * math.nan
        return {"loss": loss, "distance": loss.detach() + 1}

    def reconstruct(self, x_BCZYX: Tensor) -> Tensor:
        return x_BCZYX + 0.1 * (1 - self.second.detach())


def game(**fit: Any) -> Experiment:
    return tiny_vae(3, **({"epochs": 2, "batch_size": NUM, "learning_rate": 0.05} | fit))


def test_players_take_turns_on_each_batch(images: Tensor, tmp_path: Path) -> None:
    detector = Game()
    _, records = fit_arrays(game(epochs=1, batch_size=6), images, tmp_path, detector=detector)
    assert [t[0] for t in detector.turns] == ["first", "first", "first", "second"] * 2
    first = [t[1] for t in detector.turns]
    second = [t[2] for t in detector.turns]
    # Adam's first step is its rate; the other player stands still meanwhile.
    assert first[1] == pytest.approx(0.1)
    assert first[3] == first[4] > first[2] > first[1]
    assert second[:4] == [0, 0, 0, 0]
    assert second[4] > 0
    # RMSprop's first step is its rate over the root of one minus its memory of 0.99.
    assert second[4] == pytest.approx(0.05 / math.sqrt(0.01), rel=1e-3)
    noises = [t[3] for t in detector.turns]
    assert len({float(n[0]) for n in noises}) == len(noises)  # each turn has noise of its own
    assert all(p.requires_grad for p in detector.parameters())
    (record,) = records
    mine = [(f - 1) ** 2 for name, f, *_ in detector.turns if name == "first"]
    assert record["train/first/loss"] == pytest.approx(sum(mine) / len(mine))
    assert record["train/first/distance"] == pytest.approx(1 + sum(mine) / len(mine))
    assert "train/loss" not in record
    assert 0 < record["validation/reconstruction"] < 0.1
    line = format_metrics(record)
    assert line.startswith("validation L1 0.")
    assert "phase" not in record


@pytest.mark.parametrize("spoil", ["first", "second"])
def test_a_loss_of_any_player_that_is_not_finite_is_named(
    images: Tensor, tmp_path: Path, spoil: str
) -> None:
    with pytest.raises(NotFiniteError, match="not finite in epoch 1"):
        fit_arrays(game(), images, tmp_path, detector=Game(spoil))


def test_several_players_are_not_compiled(images: Tensor, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"fit.compile is for methods with one optimiser"):
        fit_arrays(game(compile=True), images, tmp_path, detector=Game())


class Phased(Game):
    """First one player, of whom nothing can be validated, then the other, by a script of errors."""

    def __init__(self, errors: list[float], share: float = 0.5) -> None:
        super().__init__()
        self._errors, self._share, self._calls = errors, share, 0
        self.seen: list[str] = []

    def phases(self) -> tuple[Phase, ...]:
        return (
            Phase(name="one", players=("first",), share=self._share, measure=""),
            Phase(name="two", players=("second",), share=1 - self._share, measure="surprise"),
        )

    def train(self, mode: bool = True) -> "Phased":
        if mode:
            self.seen.append(self.phase)
        return super().train(mode)

    def held_out_error(self, x_BCZYX: Tensor, brain_BZYX: Tensor) -> Tensor:
        assert self.phase == "two"
        self._calls += 1
        return torch.tensor([self._errors[self._calls - 1], 1], dtype=torch.float64)


def test_phases_share_the_epochs_and_the_best_is_of_the_last(
    images: Tensor, tmp_path: Path
) -> None:
    what = game(epochs=6)
    detector = Phased([0.5, 0.3, 0.4])
    kept = []

    class Watched(CheckpointStore):
        def save(self, *args: Any) -> Any:
            state = super().save(*args)
            kept.append((state.last, state.best))
            return state

    records = Fit(
        detector=detector,
        experiment=what,
        train=lambda epoch: cut(images, list(range(NUM)), NUM),
        validation=[Batch(ids=torch.arange(2), images=images[:2])],
        checkpoints=Watched(str(tmp_path), f"{what.fingerprint}-0"),
        device=CPU,
    ).run()
    assert detector.seen == ["one"] * 3 + ["two"] * 3
    assert {t[0] for t in detector.turns[:9]} == {"first"}
    assert {t[0] for t in detector.turns[9:]} == {"second"}
    # While nothing can be compared the newest counts; a later phase starts again.
    assert kept == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 5)]
    assert [r.get("validation/surprise") for r in records] == [None, None, None, 0.5, 0.3, 0.4]
    assert all("validation/reconstruction" not in r for r in records)
    assert [r["phase"] for r in records] == [1, 1, 1, 2, 2, 2]
    assert format_metrics(records[0]).startswith("phase 1, first ")
    run = Run(
        url=str(tmp_path), experiment=what, cohort_url="", cohort_fingerprint="0", shape=SHAPE
    )
    run.write_metrics(records)
    facts = summarise(run)
    assert (facts["best_epoch"], facts["validation/surprise"]) == (5, 0.3)
    assert facts["validation/reconstruction"] is None


def test_patience_waits_for_the_last_phase(images: Tensor, tmp_path: Path) -> None:
    what = game(epochs=12, patience=2)
    detector = Phased([0.5, 0.3, 0.4, 0.4, 0.1, 0.1])
    _, records = fit_arrays(what, images, tmp_path, detector=detector)
    assert len(records) == 6 + 4
    again = Phased([])
    _, same = fit_arrays(what, images, tmp_path, detector=again, past=records)
    assert same == records
    assert again.seen == []


@pytest.mark.parametrize(
    ("share", "epochs", "begin"), [(0.5, 7, 4), (0.01, 5, 1), (0.99, 5, 4), (0.6, 2, 1)]
)
def test_each_phase_has_an_epoch_at_least(share: float, epochs: int, begin: int) -> None:
    detector = Phased([], share)
    schedule = Schedule(detector, FitConfig(epochs=epochs))
    names = [schedule.enter(epoch)[0].name for epoch in range(epochs)]
    assert names == ["one"] * begin + ["two"] * (epochs - begin)
    assert schedule.enter(epochs - 1)[1] == begin


def test_fewer_epochs_than_phases_are_refused(images: Tensor, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"fit.epochs is 1, but Phased learns in 2 phases"):
        fit_arrays(game(epochs=1), images, tmp_path, detector=Phased([]))


def still(name: str, **fit: object) -> Experiment:
    """Weights hardly move, so that the last gradients of a fit can be compared."""
    base = tiny(name, epochs=1, learning_rate=1e-9, clip_norm=1e9, **fit)
    method: Any = base.method
    have = {f for f in ("adversarial_rate", "encoder_rate") if hasattr(method, f)}
    # An activation with a kink, at which rounding alone turns a gradient by percents, has none.
    return replace(base, method=replace(method, slope=0.999, **dict.fromkeys(have, 1e-9)))


def gradients(detector: GradientDetector) -> dict[str, Tensor]:
    """Of each parameter's last step."""
    return {n: p.grad for n, p in detector.named_parameters() if p.grad is not None}


def assert_agree(a: GradientDetector, b: GradientDetector) -> None:
    first, second = gradients(a), gradients(b)
    assert first.keys() == second.keys()
    assert first
    one, two = (torch.cat([g.flatten() for g in each.values()]) for each in (first, second))
    assert float((one - two).norm()) < 1e-4 * float(one.norm())


GAMES = ["3D-f-AnoGAN", "3D-sVAE-GAN", "3D-AAE"]


@pytest.mark.parametrize("name", GAMES[:1])
def test_micro_batches_change_nothing_but_the_rounding(
    images: Tensor, tmp_path: Path, name: str
) -> None:
    what = still(name) if name != "3D-f-AnoGAN" else replace_epochs(still(name), 2)
    whole, records = fit_arrays(what, images, tmp_path / "whole")
    parts, part_records = fit_arrays(what, images, tmp_path / "parts", micro_batch=3)
    assert_agree(whole, parts)
    for a, b in zip(records, part_records, strict=True):
        for key in a:
            if key.startswith("train/"):
                assert b[key] == pytest.approx(a[key], rel=1e-4), key


def replace_epochs(what: Experiment, epochs: int) -> Experiment:
    return replace(what, fit=replace(what.fit, epochs=epochs))


@pytest.mark.parametrize("name", GAMES)
@pytest.mark.parametrize("shares", [[9, 3], pytest.param([6, 6], marks=pytest.mark.slow)], ids=str)
def test_workers_take_the_step_of_all_samples(
    images: Tensor, tmp_path: Path, name: str, shares: list[int]
) -> None:
    what = still(name) if name != "3D-f-AnoGAN" else replace_epochs(still(name), 2)
    size, world = what.fit.batch_size, len(shares)
    ids = torch.arange(NUM).split(shares)
    parts = [
        cut(images, part.tolist(), batch_share(size, rank, world)) for rank, part in enumerate(ids)
    ]
    sizes = step_sizes(shares, size)
    team, made = Team(world), [fresh(what) for _ in range(world)]
    errors: list[BaseException] = []
    records: dict[int, list[Metrics]] = {}

    def work(rank: int) -> None:
        try:
            _, records[rank] = fit_arrays(
                what,
                images,
                tmp_path / "team",
                batches=lambda epoch: parts[rank],
                world=team.world(rank),
                sizes=sizes,
                detector=made[rank],
            )
        except BaseException as error:
            errors.append(error)
            team.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    joined = [
        Batch(
            ids=torch.cat([p[k].ids for p in parts if k < len(p)]),
            images=torch.cat([p[k].images for p in parts if k < len(p)]),
        )
        for k in range(len(sizes))
    ]
    alone, lone = fit_arrays(what, images, tmp_path / "alone", batches=lambda epoch: joined)
    for detector in made:
        assert_agree(detector, alone)
    for a, b in zip(records[1], lone, strict=True):
        for key in a:
            if key.startswith("train/"):
                assert b[key] == pytest.approx(a[key], rel=1e-4), key


def test_running_means_are_those_of_all_workers(images: Tensor, tmp_path: Path) -> None:
    base = tiny("3D-sAE-GAN", epochs=1, batch_size=6)
    what = replace(base, method=replace(base.method, norm="batch"))  # type: ignore[arg-type]
    team, made = Team(2), [fresh(what) for _ in range(2)]
    errors: list[BaseException] = []

    def work(rank: int) -> None:
        try:
            fit_arrays(
                what,
                images,
                tmp_path,
                batches=lambda epoch: cut(images, list(range(6 * rank, 6 * rank + 6)), 3),
                world=team.world(rank),
                sizes=[6, 6],
                detector=made[rank],
            )
        except BaseException as error:
            errors.append(error)
            team.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    first, second = (dict(detector.named_buffers()) for detector in made)
    means = [name for name in first if name.endswith("running_mean")]
    assert means
    for name in means:
        assert torch.equal(first[name], second[name])
        assert float(first[name].abs().max()) > 0
