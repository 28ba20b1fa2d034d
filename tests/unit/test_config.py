import dataclasses
import json
from dataclasses import replace
from pathlib import Path

import pytest

from uadray.config import (
    BASELINES,
    BENGS_TABLE_1,
    OTHERS,
    ErasingConfig,
    Experiment,
    FitConfig,
    changes,
    experiment,
    flat,
    from_json,
    to_json,
    with_fit,
)
from uadray.errors import ConfigError
from uadray.methods import Learned
from uadray.methods.baselines import PCA
from uadray.methods.vae import VAE


def test_table_1_has_fourteen_configurations() -> None:
    assert len(set(BENGS_TABLE_1)) == 14
    assert {"2D-None", "3D-Cube-n", "2D-Patch-0", "3D-Half-Volume-n"} <= set(BENGS_TABLE_1)


@pytest.mark.parametrize("name", [*BENGS_TABLE_1, *BASELINES, *OTHERS, "PCA-3"])
def test_a_name_gives_the_experiment_that_bears_it(name: str) -> None:
    assert experiment(name).name == name


@pytest.mark.parametrize(
    "name", ["4D-None", "3D-Patch-n", "2D-Cube-0", "3D-Cube", "pca", "3D-HistEq", "None"]
)
def test_an_unknown_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"did you mean|known are"):
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
        dataclasses.replace(base, method=VAE.Settings(latent_size=64)),
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
        (lambda: VAE.Settings(widths=(5,)), "method.widths"),
        (lambda: PCA.Settings(num_components=0), "method.num_components"),
        (
            lambda: Experiment(method=PCA.Settings(), erasing=ErasingConfig(strategy="cube")),
            "erasing.strategy",
        ),
    ],
)
def test_a_bad_setting_is_named(make: object, field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        make()  # type: ignore[operator]


EXPERIMENTS = {
    kept["name"]: kept
    for line in Path(__file__).with_name("experiments.jsonl").read_text().splitlines()
    for kept in [json.loads(line)]
}
"""As runs that exist have them in `config.json`, and their fingerprints; with others they would be
refused."""


def test_every_name_has_its_json_pinned() -> None:
    in_3d = {f"3D-{name}" for name in OTHERS}
    assert {*BENGS_TABLE_1, *BASELINES, *OTHERS, *in_3d} <= set(EXPERIMENTS)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_json_and_fingerprints_stay(name: str) -> None:
    kept, made = EXPERIMENTS[name], experiment(name)
    # As text, so that the order of the fields stays, too.
    assert json.dumps(to_json(made)) == json.dumps(kept["experiment"])
    assert made.fingerprint == kept["fingerprint"]
    assert from_json(Experiment, kept["experiment"]) == made


@pytest.mark.parametrize("name", OTHERS)
def test_every_method_takes_volumes_and_erasing_by_name(name: str) -> None:
    whole = experiment(f"3D-{name}")
    assert isinstance(whole.method, Learned)
    assert (whole.name, whole.method.ndim) == (f"3D-{name}", 3)
    assert whole.fit == experiment(name).fit
    assert from_json(Experiment, json.loads(json.dumps(to_json(whole)))) == whole
    if whole.method.erases:
        erased = experiment(f"{name}-Patch-n")
        assert erased.name == f"{name}-Patch-n"
        assert erased.erasing == experiment("2D-Patch-n").erasing
        assert replace(erased, erasing=ErasingConfig()) == experiment(name)


def test_settings_are_flat_by_dotted_path() -> None:
    made = experiment("VAE-restoration")
    settings = flat(to_json(made))
    assert settings["method.restore.steps"] == made.method.restore.steps
    assert settings["method.widths"] == list(made.method.widths), "a list is one value"
    assert [path.partition(".")[0] for path in settings] == sorted(
        (path.partition(".")[0] for path in settings), key=["method", "erasing", "fit"].index
    )
    assert flat({}) == {}
    assert flat({"a": {"b": {"c": 1}}, "d": None}) == {"a.b.c": 1, "d": None}


def test_changes_name_each_setting_with_both_values() -> None:
    there, here = {"a": {"b": 1, "c": [1, 2]}, "d": 3}, {"a": {"b": 2, "c": [1, 2]}, "e": 4}
    assert changes(there, here) == [
        "a.b: 1 there, 2 here",
        "d: 3 there, None here",
        "e: None there, 4 here",
    ]
    assert changes(there, there) == []
