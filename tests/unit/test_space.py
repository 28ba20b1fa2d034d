"""Search spaces: what is fitted, once each, and under which name."""

import pytest

from uadray.config import BASELINES, BENGS_TABLE_1, FitConfig
from uadray.errors import ConfigError
from uadray.methods.vae import VAE
from uadray.tune.space import PRESETS, Space, settings_of, trial_name, with_settings


def test_combinations_are_all_there_and_distinct() -> None:
    space = Space(
        experiments=("2D-None", "3D-Cube-n"),
        latent_size=(8, 16),
        learning_rate=(1e-3, 1e-4),
        seeds=(0, 1, 2),
        baselines=False,
    )
    trials = space.trials()
    assert len(trials) == len(set(trials)) == 2 * 2 * 2 * 3
    seen = {tuple(settings_of(t).items()) for t in trials}
    assert len(seen) == len(trials)
    assert len({trial_name(t) for t in trials}) == len(trials)
    assert space.varied == ("experiment", "method.latent_size", "fit.learning_rate", "fit.seed")


def test_settings_that_a_method_lacks_do_not_multiply_it() -> None:
    space = Space(experiments=("PCA-8", "3D-None"), latent_size=(8, 16), max_share=(0.1, 0.2))
    names = [t.name for t in space.trials()]
    assert names.count("PCA-8") == 1
    assert names.count("3D-None") == 2
    assert set(BASELINES) <= set(names)


def test_a_baseline_follows_the_data_share_and_its_seed_only() -> None:
    fit = FitConfig(epochs=7)
    whole = Space(experiments=("PCA-8",), seeds=(0, 1), epochs=(3, 5), fit=fit, baselines=False)
    assert len(whole.trials()) == 1
    shares = Space(experiments=("PCA-8",), seeds=(0, 1), data_share=(0.5, 1.0), baselines=False)
    assert [(t.fit.data_share, t.fit.seed) for t in shares.trials()] == [
        (0.5, 0),
        (0.5, 1),
        (1.0, 0),
    ]


def test_presets_are_the_papers() -> None:
    erasing = PRESETS["bengs-erasing"]()
    trials = [t for t in erasing.trials() if isinstance(t.method, VAE.Settings)]
    assert {t.name for t in trials} == set(BENGS_TABLE_1)
    assert len(trials) == 14 * 3
    shares = {t.fit.data_share for t in PRESETS["bengs-data-size"]().trials()}
    assert shares == {0.1, 0.2, 0.6, 1.0}
    assert PRESETS["bengs-latent"]().varied == ("experiment", "method.latent_size", "fit.seed")
    assert PRESETS["bengs-erasing"]().varied == ("experiment", "fit.seed")


def test_what_is_not_possible_is_refused() -> None:
    with pytest.raises(ConfigError, match="no experiment is named '3D-Sphere'"):
        Space(experiments=("3D-Sphere",)).trials()
    with pytest.raises(ConfigError, match="latent_size"):
        Space(latent_size=(0,)).trials()
    with pytest.raises(ConfigError, match="seed"):
        Space(seeds=())
    with pytest.raises(ConfigError, match=r"method\.width"):
        with_settings(Space().trials()[0], {"method.width": 3})


def test_a_method_s_own_settings_are_compared() -> None:
    space = Space(
        experiments=("2D-None", "3D-sVAE"),
        method=("bottleneck=8,16", "norm=none,group", "latent-width=32"),
        baselines=False,
    )
    trials = space.trials()
    assert len(trials) == len(set(trials)) == 8
    assert {t.method.bottleneck for t in trials} == {8, 16}  # type: ignore[attr-defined]
    assert {t.method.norm for t in trials} == {"none", "group"}  # type: ignore[attr-defined]
    wide = [t.method.latent_width for t in trials if t.name == "3D-sVAE"]  # type: ignore[attr-defined]
    assert wide == [32] * 4
    assert space.varied == ("experiment", "method.bottleneck", "method.norm")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("width=4,8", "no experiment has a setting 'method.width'"),
        ("bottleneck", "as in width=4,8"),
        ("bottleneck=", "as in width=4,8"),
        ("=3", "as in width=4,8"),
        ("bottleneck=a,b", "bottleneck must be int, was 'a'"),
        ("bottleneck=0", "bottleneck"),
        ("widths=8", "no experiment has a setting"),
        ("norm=batch,layer", "norm must be"),
        ("latent-size=8", "method.latent_size has a flag of its own"),
        ("package.version=8", "no experiment has a setting"),
    ],
)
def test_a_bad_setting_of_a_method_is_named(given: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Space(experiments=("2D-None",), method=(given,)).trials()
