"""Optuna's draws follow from the seed and the figures before them, whatever was restarted."""

import warnings
from typing import Any

import pytest

from uadray.config import FitConfig
from uadray.tune.optuna_search import OptunaDraws
from uadray.tune.space import Space

pytest.importorskip("optuna")

SPACE = Space(
    experiments=("3D-None",),
    latent_size=(8, 16, 32, 64),
    learning_rate=(1e-4, 3e-4, 1e-3, 3e-3),
    kl_weight=(0.1, 1.0, 10.0),
    baselines=False,
    fit=FitConfig(epochs=2),
)
NUM = 16


def value(point: dict[str, Any]) -> float | None:
    """What a point gives; some give nothing."""
    if point["method.latent_size"] == 64 and point["method.kl_weight"] == 10.0:
        return None
    return abs(point["method.latent_size"] - 16) / 16 + point["fit.learning_rate"] * 100


def draw(past: list[dict[str, Any]], num: int, seed: int = 0) -> list[dict[str, Any]]:
    """Draw up to `num` points one at a time, after those of an earlier process."""
    search = OptunaDraws(
        SPACE,
        metric="objective",
        seed=seed,
        past=[(point, value(point)) for point in past],
        num=NUM,
        value_of=lambda result: result["value"],
    )
    points = list(past)
    while len(points) < num:
        point = search.suggest(str(len(points)))
        if not isinstance(point, dict):
            break
        points.append(point)
        search.on_trial_complete(str(len(points) - 1), {"value": value(point)})
    return points


def test_a_search_that_was_killed_draws_what_an_undisturbed_one_draws() -> None:
    whole = draw([], NUM)
    assert len({str(point) for point in whole}) == NUM
    for cut in range(1, NUM):
        assert draw(draw([], cut), NUM) == whole, cut


def test_lists_of_numbers_are_drawn_and_go_on_from_a_record() -> None:
    space = Space(
        experiments=("3D-None",),
        vary={"widths": ((8, 16), (16, 32)), "slope": (0.0, 0.1)},
        baselines=False,
    )
    args: dict[str, Any] = {"metric": "objective", "seed": 0, "num": 4, "value_of": lambda r: 1.0}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        search = OptunaDraws(space, past=[], **args)
        points = [search.suggest(str(n)) for n in range(3)]
    assert {point["method.widths"] for point in points} <= {(8, 16), (16, 32)}
    again = OptunaDraws(space, past=[(point, 1.0) for point in points], **args)
    assert space.build(again.suggest("3")) not in map(space.build, points)


def test_another_seed_draws_others() -> None:
    assert draw([], 6) != draw([], 6, seed=1)
