"""What every method that learns by gradient must do, in 2D and 3D, whatever it is."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from planted import SHAPE as PLANTED
from planted import brains, contrast, plant
from safetensors.torch import load, save
from tiny_cohorts import SHAPE
from tiny_methods import EVERY, tiny
from torch import Tensor

from uadray import random
from uadray.config import Experiment
from uadray.data.batch import Batch
from uadray.methods import GradientDetector, build
from uadray.methods.base import Masked, slices_as_batch
from uadray.runs.checkpoint import CheckpointStore
from uadray.train.fit import Fit
from uadray.train.steps import Metrics

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
    generator = torch.Generator().manual_seed(4)
    images = torch.rand(NUM, *SHAPE, generator=generator) * 0.6 + 0.2
    images[:, :3] = 0
    return images.half()


def fresh(what: Experiment, shape: tuple[int, int, int] = SHAPE) -> GradientDetector:
    torch.manual_seed(what.fit.seed)
    detector = build(what.method, shape)
    assert isinstance(detector, GradientDetector)
    return detector


def calibrated(what: Experiment, images: Tensor) -> GradientDetector:
    """As its seed makes it, with what it takes from healthy volumes after a fit."""
    detector = fresh(what).eval()
    if detector.calibrates:
        with torch.no_grad():
            healthy = images[:4].float()
            detector.calibrate([Masked(healthy[:, None], healthy > 0)], lambda tensor: tensor)
    return detector


def fit(
    what: Experiment,
    images: Tensor,
    folder: Path,
    *,
    past: list[Metrics] | None = None,
    stop_after: int | None = None,
    reported: list[Metrics] | None = None,
    **options: Any,
) -> tuple[GradientDetector, list[Metrics]]:
    """Fit on the middle slices, or on the volumes."""
    detector = fresh(what, tuple(images.shape[1:]))
    samples = images if detector.ndim == 3 else images[:, images.shape[1] // 2]
    size = what.fit.batch_size

    def report(record: Metrics) -> None:
        if reported is not None:
            reported.append(record)
        if record["epoch"] == stop_after:
            raise KeyboardInterrupt

    ids = torch.arange(len(images))
    batches = [
        Batch(ids=a, images=b) for a, b in zip(ids.split(size), samples.split(size), strict=True)
    ]
    records = Fit(
        detector=detector,
        experiment=what,
        train=lambda epoch: batches,
        validation=[Batch(ids=ids[:2], images=images[:2])],
        checkpoints=CheckpointStore(str(folder), what.fingerprint),
        report=report,
        records=past or [],
        device=CPU,
        **options,
    ).run()
    return detector, records


def without_times(records: list[Metrics]) -> list[Metrics]:
    return [{k: v for k, v in r.items() if "second" not in k} for r in records]


IN_3D = ("3D-sVAE-GAN", "3D-SSAE", "3D-f-AnoGAN", "3D-Transformer")
"""Those that are tested in 3D by default."""

ONE_EACH = (
    *("dAE", "AE-dense", "ceVAE", "AAE", "BayesianAE", "f-AnoGAN", "Transformer"),
    *("RIAD", "DISYRE", "IterMask", "cDDPM"),
)
"""One of each way to learn: by itself, with batches' norm, squares, players, dropout, phases; and
by inpainting, restoring, masking and denoising."""


def quickly(names: Iterable[str], chosen: Iterable[str]) -> list[Any]:
    """Names, of which all but the chosen are left to `-m slow`: they share their code."""
    kept = set(chosen)
    return [n if n in kept else pytest.param(n, marks=pytest.mark.slow) for n in names]


MOST = [n for n in EVERY if n[:2] != "3D" or n in IN_3D]


@pytest.mark.parametrize("name", quickly(EVERY, (*ONE_EACH, *IN_3D[:1])))
def test_a_killed_fit_ends_as_the_undisturbed_one(
    images: Tensor, tmp_path: Path, name: str
) -> None:
    """Through its players and phases, with all that is random; killed after each epoch."""
    what = tiny(name, epochs=3)
    whole, records = fit(what, images, tmp_path / "whole")
    assert [r["epoch"] for r in records] == [1, 2, 3]
    past: list[Metrics] = []
    for stop_after in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            fit(
                what,
                images,
                tmp_path / "cut",
                past=list(past),
                reported=past,
                stop_after=stop_after,
            )
    resumed, resumed_records = fit(what, images, tmp_path / "cut", past=past)
    first, second = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert without_times(resumed_records) == without_times(records)
    states = [
        CheckpointStore(str(tmp_path / n), what.fingerprint).state() for n in ("whole", "cut")
    ]
    assert states[0] == states[1]
    start = fresh(what).state_dict()
    unmoved = {k for k, _ in whole.named_parameters() if torch.equal(start[k], first[k])}
    # A constant added to all scores of a Wasserstein critic changes nothing.
    assert unmoved <= ({"critic.score.bias"} if name.endswith("f-AnoGAN") else set())


@pytest.mark.parametrize("name", quickly(EVERY, MOST))
def test_scores_have_their_shape_and_range_and_repeat(images: Tensor, name: str) -> None:
    detector = calibrated(tiny(name), images)
    x = images[:2].float()[:, None]
    brain = x[:, 0] > 0
    with torch.inference_mode():
        scores = detector.anomaly_map(x, brain)
        again = detector.anomaly_map(x, brain)
    low, high = detector.score_range
    assert scores.shape == (2, *SHAPE)
    assert scores.dtype == torch.float32
    assert torch.isfinite(scores).all()
    assert low <= float(scores.min()) < float(scores.max()) <= high
    assert torch.equal(scores, again)


@pytest.mark.parametrize("name", quickly(EVERY, MOST))
def test_one_file_holds_all_that_scores(images: Tensor, name: str) -> None:
    what = tiny(name)
    detector = calibrated(what, images)
    content = save({k: v.contiguous() for k, v in detector.state_dict().items()})
    other = fresh(replace(what, fit=replace(what.fit, seed=7))).eval()
    x = images[:2].float()[:, None]
    first, second = detector.state_dict(), other.state_dict()
    assert any(not torch.equal(first[key], second[key]) for key in first)
    with torch.inference_mode():
        other.load_state_dict(load(content))
        wanted = detector.anomaly_map(x, x[:, 0] > 0)
        assert torch.equal(other.anomaly_map(x, x[:, 0] > 0), wanted)


@pytest.mark.parametrize("name", EVERY)
def test_players_have_all_parameters_and_phases_all_players(name: str) -> None:
    detector = fresh(tiny(name))
    players = {player.name: player for player in detector.players()}
    of_all = {id(p) for player in players.values() for p in player.parameters}
    assert of_all == {id(p) for p in detector.parameters()}
    phases = detector.phases()
    assert sum(phase.share for phase in phases) == pytest.approx(1)
    assert {name for phase in phases for name in phase.players} == set(players)


RECONSTRUCTING = [n for n in EVERY if not n.endswith(("AnoGAN", "Transformer", "restoration"))]
"""Whose players, taken by themselves for a short while, reconstruct what they saw."""


@pytest.mark.parametrize("name", quickly(RECONSTRUCTING, ("dAE", "sVAE-GAN", "ceVAE", "SSAE")))
def test_four_volumes_are_learned_and_a_lesion_stands_out(name: str) -> None:
    what = tiny(name)
    if hasattr(what.method, "kl_weight"):
        # At its own weight the divergence keeps so small a net from learning by heart.
        what = replace(what, method=replace(what.method, kl_weight=0.01))
    if getattr(what.method, "dropout", 0) > 0:
        # What drops much of so small a net learns many times more slowly.
        what = replace(what, method=replace(what.method, dropout=0.05))
    detector = fresh(what, PLANTED)
    # On slices, two of each, through the place of the lesion.
    x = brains(4)[:, :, 3:5] if detector.ndim == 2 else brains(4)
    teach(
        detector, slices_as_batch(x) if detector.ndim == 2 else x, steps=STEPS * (detector.ndim - 1)
    )
    with torch.no_grad():
        error = (detector.reconstruct(x) - x).abs()
    brain = x > 0
    # One grey for the whole brain, which is no reconstruction, leaves this.
    grey = float((x - x[brain].mean())[brain].abs().mean())
    # Half of each side at a time is guessed from the rest alone.
    assert float(error[brain].mean()) < (0.9 if name == "3D-pDDPM" else 0.8) * grey
    assert float(error[~brain].mean()) < 0.8 * grey
    lesioned = plant(brains(4))
    y, lesion = (lesioned[0][:, :, 3:5], lesioned[1][:, 3:5]) if detector.ndim == 2 else lesioned
    # A spatial latent of so few pixels has learned the lesion's too, in part.
    assert contrast(detector, y, lesion) > (1.5 if _spatial(name) else 3)


def _spatial(name: str) -> bool:
    return name.endswith(("sAE1", "sAE3", "sAE-GAN", "AE-spatial"))


STEPS = 200
"""Of each player on slices; twice as many on volumes."""


def teach(detector: GradientDetector, samples: Tensor, steps: int) -> None:
    """Take steps of all players on one batch, without their own rates."""
    players = {player.name: player for player in detector.players()}
    optimizers = {
        n: torch.optim.Adam(p.parameters, 5e-3 if p.learning_rate == 0 else p.learning_rate)
        for n, p in players.items()
    }
    detector.train()
    for step in range(steps):
        for name, player in players.items():
            acting = set(map(id, player.parameters))
            for parameter in detector.parameters():
                parameter.requires_grad_(id(parameter) in acting)
            noise = random.normal(
                random.keys(0, step, torch.arange(len(samples)), random.LATENT),
                detector.num_noise,
            )
            optimizers[name].zero_grad()
            who = {"player": name} if len(players) > 1 else {}
            detector(samples, samples, noise, **who)["loss"].backward()
            optimizers[name].step()
    detector.eval()
