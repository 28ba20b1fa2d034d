"""The papers' protocols: the numbers of their sections, and grids that fit or are refused."""

import re
import shlex
from dataclasses import replace

import pytest
import tyro

from uadray.config import to_json
from uadray.errors import ConfigError, EvaluationError
from uadray.evaluation.protocols import PROTOCOLS, EvaluateConfig
from uadray.jobs import prepare
from uadray.metrics import thresholds
from uadray.metrics.settings import ComponentConfig, PostprocessConfig
from uadray.metrics.table import METRICS
from uadray.preparation.settings import PrepareConfig

WITH_GRID = [name for name, protocol in PROTOCOLS.items() if protocol.grid]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_each_names_a_rule_and_metrics_that_exist(name):
    protocol = PROTOCOLS[name]
    assert protocol.name == name
    assert protocol.threshold_rule in {thresholds.NONE, *thresholds.RULES}
    known = set(METRICS)
    assert set(protocol.metrics) <= known
    assert re.search(r"(Bengs|Baur|Meissen|Behrendt|Frotscher) 20\d\d, section", protocol.source)


def test_the_default_is_bengs():
    assert EvaluateConfig() == EvaluateConfig.of("bengs2021")
    config = EvaluateConfig()
    assert config.postprocess.iterations((64, 64, 64)) == 2
    assert config.postprocess.median_size == 5
    assert config.threshold_rule == "bengs_bisection"
    assert (config.residual, config.components.max_size) == ("absolute", 0)
    assert config.fixed.grid is None


def test_baur_takes_20_slices_around_the_middle():
    config = EvaluateConfig.of("baur2018")
    assert config.fixed.grid == (20, 256, 256)
    assert config.fixed.slices is None
    assert (config.residual, config.threshold_rule) == ("absolute", "percentile_98")
    assert config.fixed.metrics == ("dice_s_mean", "dice_s_std", "auprc")
    # The box is as low as the slices are; each brain lies in its middle and is cut to it.
    made = prepared(config.fixed.prepare)
    assert made.extent.voxels(made.spacing_mm) == (256, 256, 20)
    assert made.max_cut > 0.8


@pytest.mark.parametrize(
    ("shape", "fits"),
    [
        ((20, 256, 256), True),
        ((20, 128, 96), True),
        ((20, 16, 16), True),
        ((20, 100, 96), False),
        ((32, 128, 128), False),
    ],
)
def test_baurs_planes_are_multiples_of_16(shape, fits):
    protocol = PROTOCOLS["baur2018"]
    if fits:
        protocol.check_grid(shape, "c")
        return
    with pytest.raises(EvaluationError, match="planes whose sides are multiples of 16"):
        protocol.check_grid(shape, "c")


def prepared(flags):
    return tyro.cli(PrepareConfig, args=shlex.split(flags), config=(tyro.conf.OmitArgPrefixes,))


@pytest.mark.parametrize(
    ("name", "slices", "plane"),
    [
        ("meissen2021-I", range(15, 125), (128, 128)),
        ("meissen2021-II", [84, 85, 86, 87], (224,) * 2),
    ],
)
def test_meissen_takes_the_slices_of_the_paper(name, slices, plane):
    config = EvaluateConfig.of(name)
    assert list(range(*config.fixed.slices)) == list(slices)
    assert config.fixed.grid[1:] == plane
    assert config.components == ComponentConfig(max_size=20, connectivity=26, fit_after=False)
    assert config.postprocess == PostprocessConfig(erosion_iterations=0, median_size=1)
    assert "dice_best_of_100" in config.fixed.metrics
    assert config.threshold_rule == "none"
    made = prepared(config.fixed.prepare)
    # Nothing ties the brightest voxels; the mask is cut at 1 mm, and then voxels are taken.
    assert (made.percentiles, made.mask_threshold, made.resize) == ((0, 100), 0.9, "nearest")
    assert (made.skull_strip, made.register) == ("robex-if-needed", "mni152")
    assert made.extent.voxels(1.0) == (240, 240, 155)


def test_the_competitors_of_meissen_are_cleaned_as_in_their_study():
    config = EvaluateConfig.of("meissen2021-study")
    assert config.postprocess.iterations((110, 128, 128)) == 12
    assert (config.postprocess.median_size, config.postprocess.prior_quantile) == (5, 0.9)
    assert (config.residual, config.components.max_size) == ("positive", 7)
    assert config.scoring((155, 128, 128))["prior_quantile"] == 0.9


def test_the_benchmark_is_scored_with_a_median_and_without():
    filtered, raw = (EvaluateConfig.of(n) for n in ("frotscher2025", "frotscher2025-raw"))
    sizes = [
        (c.postprocess.iterations((64, 64, 64)), c.postprocess.median_size) for c in (filtered, raw)
    ]
    assert sizes == [(0, 3), (0, 1)]
    assert filtered.threshold_rule == raw.threshold_rule == "best_dice"
    assert filtered.components.max_size == 0


def test_conditioned_diffusion_is_evaluated_as_in_its_laboratory():
    config = EvaluateConfig.of("behrendt2025")
    assert config.postprocess.iterations((50, 96, 96)) == 3
    assert (config.postprocess.median_size, config.components.max_size) == (5, 7)
    assert config.threshold_rule == "bengs_bisection"


@pytest.mark.parametrize("name", ["behrendt2025", "frotscher2025"])
def test_the_preparation_of_protocols_of_any_grid_is_one(name):
    made = prepared(PROTOCOLS[name].prepare)
    assert made.shape in ((50, 96, 96), (155, 224, 224))
    assert made.correct_bias == (name == "behrendt2025")


def test_slices_are_summed_unless_the_mean_is_asked_for():
    assert EvaluateConfig().slice_score == "sum"
    assert EvaluateConfig.of("bengs2021", slice_score="mean").changes() == {"slice_score": "mean"}
    # Either is read from what is kept.
    same = EvaluateConfig(slice_score="mean").scoring((64, 64, 64))
    assert same == EvaluateConfig().scoring((64, 64, 64))


@pytest.mark.parametrize("name", WITH_GRID)
def test_the_flags_that_an_error_names_make_the_grid(name):
    protocol = PROTOCOLS[name]
    with pytest.raises(EvaluationError) as error:
        protocol.check_grid((64, 64, 64), "runs/c.zarr")
    message = str(error.value)
    for part in ("runs/c.zarr", "(64, 64, 64)", name, str(protocol.grid), protocol.prepare):
        assert part in message
    made = prepared(protocol.prepare)
    assert made.shape == protocol.grid
    protocol.check_grid(made.shape, "c")


def test_any_grid_fits_bengs():
    PROTOCOLS["bengs2021"].check_grid((32, 16, 8), "c")


def test_changes_are_listed():
    assert EvaluateConfig.of("meissen2021-I").changes() == {}
    assert EvaluateConfig.of("baur2018", num_resamples=5).changes() == {}
    changed = EvaluateConfig.of("meissen2021-I", threshold_rule="best_dice", residual="absolute")
    assert changed.changes() == {"residual": "absolute", "threshold_rule": "best_dice"}
    # Taking the name alone is no way to take the settings: all of them differ.
    assert set(EvaluateConfig(protocol="meissen2021-I").changes()) == {
        "residual", "postprocess", "components", "threshold_rule",
    }  # fmt: skip


def test_what_decides_the_scores_is_resolved():
    config = EvaluateConfig.of("meissen2021-II")
    assert config.scoring((155, 224, 224)) == {
        "residual": "positive",
        "slices": [84, 88],
        "erosion_iterations": 0,
        "median_size": 1,
    }
    same = EvaluateConfig(postprocess=PostprocessConfig(erosion_iterations=2))
    assert same.scoring((64, 64, 64)) == EvaluateConfig().scoring((64, 64, 64))
    other = replace(EvaluateConfig(), threshold_rule="best_dice")
    assert other.scoring((64, 64, 64)) == EvaluateConfig().scoring((64, 64, 64))


def test_settings_are_json():
    assert to_json(EvaluateConfig.of("meissen2021-I"))["components"]["max_size"] == 20


@pytest.mark.parametrize("make", [EvaluateConfig.of, lambda name: EvaluateConfig(protocol=name)])
def test_an_unknown_protocol_lists_the_known(make):
    with pytest.raises(ConfigError, match=r"baur2018.*was 'ours'"):
        make("ours")


@pytest.mark.parametrize("name", WITH_GRID)
def test_one_flag_of_the_preparation_takes_a_grid(name):
    given = ["mslub", "DATA", "--out", "c.zarr", f"--grid={name}"]

    def config(*flags):
        args = prepare.spelled_out([*given, *flags])
        made = prepare.parse(args)
        assert made.split.threshold_share == 0
        return made.config

    assert config() == prepared(PROTOCOLS[name].prepare)
    z = PROTOCOLS[name].grid[0]
    smaller = config("--shape", str(z), "64", "64")
    assert smaller == replace(config(), shape=(z, 64, 64))
