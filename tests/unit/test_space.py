"""Search spaces: what is fitted, once each, and under which name."""

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any

import pytest

from uadray.config import BASELINES, BENGS_TABLE_1, FitConfig, experiment
from uadray.errors import ConfigError
from uadray.methods.vae import VAE
from uadray.tune.space import PRESETS, Space, trial_name
from uadray.tune.vary import resolved, settings_of, with_settings


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


@pytest.mark.parametrize(
    ("preset", "digest"),
    [
        ("first-run", "a9c236cb79c7d7aa"),
        ("bengs-latent", "5cdf0f79455f8145"),
        ("bengs-erasing", "8d53ef9503e0299d"),
        ("bengs-epochs", "528ddecdab141cd6"),
        ("bengs-data-size", "db201b86ebcfd730"),
        ("smoke", "cb5ec8cb05370c3b"),
    ],
)
def test_trials_of_presets_keep_their_folders(preset: str, digest: str) -> None:
    assert digest_of(PRESETS[preset]()) == digest


def test_trials_by_flags_keep_their_folders() -> None:
    space = Space(
        experiments=("2D-None", "3D-Cube-n", "f-AnoGAN", "2D-Multi-Patch-0"),
        latent_size=(8, 16),
        kl_weight=(0.5, 2.0),
        learning_rate=(1e-3, 1e-4),
        epochs=(3, 5),
        max_share=(0.1, 0.2),
        data_share=(0.5, 1.0),
        seeds=(0, 1),
        fit=FitConfig(batch_size=8),
    )
    assert digest_of(space) == "7e67f0db3f68993e"


def digest_of(space: Space) -> str:
    text = json.dumps([space.varied, [trial_name(t) for t in space.trials()]])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def test_any_setting_is_compared() -> None:
    space = Space(
        experiments=("2D-None", "3D-sVAE", "VAE-restoration", "3D-Cube-n"),
        vary={
            "bottleneck": (8, 16),
            "restore": {"steps": [3, 4]},
            "erasing.probability": (0, 0.5),
            "latent-width": [32],
            "method.widths": [[16, 32], (32, 64)],
            "fit.batch_size": (4, 8.0),
        },
        baselines=False,
    )
    assert space.vary["method.widths"] == ((16, 32), (32, 64))
    trials = space.trials()
    assert len(trials) == len(set(trials)) == 8 * (1 + 1 + 2 + 2)
    assert {t.method.bottleneck for t in trials} == {8, 16}  # type: ignore[attr-defined]
    assert {t.fit.batch_size for t in trials} == {4, 8}
    assert {t.erasing.probability for t in trials if t.name == "3D-Cube-n"} == {0.0, 0.5}
    wide = [t.method.latent_width for t in trials if t.name == "3D-sVAE"]  # type: ignore[attr-defined]
    assert wide == [32] * 8
    assert space.varied == (
        *("experiment", "method.widths", "method.bottleneck", "fit.batch_size"),
        *("method.restore.steps", "erasing.probability"),
    )


def test_a_setting_that_depends_on_another_varied_one() -> None:
    space = Space(
        experiments=("3D-None",),
        vary={"strategy": ("none", "cube"), "min_share": (0.3, 0.4), "max_share": (0.5,)},
        baselines=False,
    )
    assert [t.name for t in space.trials()] == ["3D-None", "3D-Cube-n", "3D-Cube-n"]


def test_the_text_of_a_command_line_has_the_types_of_settings() -> None:
    space = Space(experiments=("dAE", "3D-dAE-Cube-n"), baselines=False).with_text(
        [
            ("dropout", "0", ".2"),
            ("betas", "0.5,0.9", "(0, 0.999)"),
            ("variational", "true", "False"),
            ("erasing.border", "clip", "shift"),
            ("fit.precision", "float32"),
        ]
    )
    assert space.vary == {
        "method.dropout": (0.0, 0.2),
        "method.betas": ((0.5, 0.9), (0.0, 0.999)),
        "method.variational": (True, False),
        "erasing.border": ("clip", "shift"),
        "fit.precision": ("float32",),
    }
    by_hand = replace(space, vary={"dropout": (0, 0.2), **dict(list(space.vary.items())[1:])})
    assert [t.fingerprint for t in by_hand.trials()] == [t.fingerprint for t in space.trials()]
    assert replace(space, vary={}).with_text([("clip-norm", "1")]).vary == {"fit.clip_norm": (1.0,)}


def test_settings_with_a_field_of_their_own_may_be_varied_by_name() -> None:
    varied = Space(experiments=("3D-None",), vary={"latent_size": (8, 16), "seed": (1, 2)})
    own = Space(experiments=("3D-None",), latent_size=(8, 16), seeds=(1, 2))
    assert list(map(trial_name, varied.trials())) == list(map(trial_name, own.trials()))
    assert varied.axes() == own.axes()


def test_seeds_of_a_baseline_that_differ_are_compared() -> None:
    space = Space(experiments=("PCA-8",), seeds=(0, 1), data_share=(1.0, 0.5), baselines=False)
    assert space.varied == ("fit.data_share", "fit.seed")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("width 4 8", "no experiment has a setting 'width'; did you mean method.widths?"),
        ("method.dropuot 0", "no experiment has a setting 'method.dropuot'; known are method."),
        ("slop 0.1", "did you mean method.slope"),
        ("bottleneck", "method.bottleneck must have a list of values"),
        ("", "vary needs the name of a setting"),
        ("bottleneck a b", "method.bottleneck must be a whole number, was 'a'"),
        ("bottleneck 8 1e1", "method.bottleneck must be a whole number, was '1e1'"),
        ("bottleneck 0", "bottleneck must be >= 1, was 0"),
        ("fit.learning_rate nan", "fit.learning_rate must be a finite number, was nan"),
        ("widths 8,a", r"method.widths must be a list \(a whole number, ...\), was \(8, 'a'\)"),
        ("norm batch layer", "method.norm must be one of none, batch, group, was 'layer'"),
        ("package.version 8", "no experiment has a setting"),
        ("type VAE", "no experiment has a setting"),
        ("ndim 2 3", "method.ndim: 2D and 3D are experiments of their own"),
        ("fit.residency stream", "set it by --space.fit.residency"),
        ("experiments dAE", "by --space.experiments"),
        ("erasing.probability 0.2", "erasing.probability plays no part in 2D-None"),
        ("probability 1.5", "plays no part"),
        ("strategy ball", "erasing.strategy must be one of none, cube"),
    ],
)
def test_a_bad_value_is_named(given: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Space(experiments=("2D-None",)).with_text([tuple(given.split())]).trials()


def test_a_setting_by_its_field_and_by_vary_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"by --space\.latent-size, of the preset .*, and by vary"
    ):
        Space(latent_size=(8,), vary={"latent-size": (16,)})
    with pytest.raises(ConfigError, match=r"by --space\.seeds, .* and by vary"):
        Space(seeds=(1,), vary={"fit.seed": (2,)})
    with pytest.raises(ConfigError, match="slope is given twice"):
        Space().with_text([("slope", "0"), ("slope", "0.1")])
    with pytest.raises(ConfigError, match=r"method\.slope is given twice"):
        Space(vary={"slope": (0,), "method.slope": (0.1,)})


@dataclass(frozen=True, kw_only=True)
class Ambiguous(VAE.Settings):
    probability: float = 0.1


def test_a_name_in_two_groups_wants_its_path(monkeypatch: pytest.MonkeyPatch) -> None:
    one = replace(experiment("3D-Cube-n"), method=Ambiguous())
    message = "'probability' is one of method.probability, erasing.probability: write the whole"
    with pytest.raises(ConfigError, match=message):
        resolved({"probability": (0.1,)}, [one])


@pytest.mark.parametrize(
    "vary", [3, {"norm": "batch"}, {"slope": 0.1}, {"restore": [{"steps": 1}]}]
)
def test_what_is_no_list_of_values_is_refused(vary: Any) -> None:
    with pytest.raises(ConfigError, match="vary"):
        Space(experiments=("VAE-restoration",), vary=vary)
