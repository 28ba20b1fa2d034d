import dataclasses
import json

import pytest

from uadray.config import (
    BASELINES,
    BENGS_TABLE_1,
    PCA,
    VAE,
    ErasingConfig,
    Experiment,
    FitConfig,
    experiment,
    from_json,
    to_json,
    with_fit,
)
from uadray.errors import ConfigError


def test_table_1_has_fourteen_configurations() -> None:
    assert len(set(BENGS_TABLE_1)) == 14
    assert {"2D-None", "3D-Cube-n", "2D-Patch-0", "3D-Half-Volume-n"} <= set(BENGS_TABLE_1)


@pytest.mark.parametrize("name", [*BENGS_TABLE_1, *BASELINES, "PCA-3"])
def test_a_name_gives_the_experiment_that_bears_it(name: str) -> None:
    assert experiment(name).name == name


@pytest.mark.parametrize("name", ["4D-None", "3D-Patch-n", "2D-Cube-0", "3D-Cube", "pca"])
def test_an_unknown_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="known are"):
        experiment(name)


@pytest.mark.parametrize("name", ["3D-Multi-Cube-n", "2D-None", "ZScore", "PCA-5"])
def test_json_round_trip_keeps_experiment_and_fingerprint(name: str) -> None:
    before = with_fit(experiment(name), epochs=7, learning_rate=3e-4)
    after = from_json(Experiment, json.loads(json.dumps(to_json(before))))
    assert after == before
    assert after.fingerprint == before.fingerprint


def test_every_field_moves_the_fingerprint() -> None:
    base = experiment("3D-Cube-n")
    changed = [
        with_fit(base, seed=1),
        dataclasses.replace(base, method=VAE(latent_size=64)),
        dataclasses.replace(base, erasing=ErasingConfig(strategy="cube", max_share=0.2)),
        experiment("3D-Cube-0"),
    ]
    assert len({e.fingerprint for e in [base, *changed]}) == 5


def test_a_lost_setting_is_an_error() -> None:
    value = to_json(experiment("3D-None"))
    value["fit"]["epoch"] = 3
    with pytest.raises(ConfigError, match="epoch"):
        from_json(Experiment, value)
    with pytest.raises(ConfigError, match="type must be one of"):
        from_json(Experiment, to_json(experiment("3D-None")) | {"method": {"type": "GAN"}})


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: ErasingConfig(probability=1.5), "erasing.probability"),
        (lambda: ErasingConfig(min_share=0.3), "min_share"),
        (lambda: FitConfig(epochs=0), "fit.epochs"),
        (lambda: VAE(widths=(5,)), "method.widths"),
        (lambda: PCA(num_components=0), "method.num_components"),
        (
            lambda: Experiment(method=PCA(), erasing=ErasingConfig(strategy="cube")),
            "erasing.strategy",
        ),
    ],
)
def test_a_bad_setting_is_named(make: object, field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        make()  # type: ignore[operator]
