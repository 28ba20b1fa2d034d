"""Bootstrap against drawing subjects one by one; paired tests against scipy."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from voxel_cohorts import Voxels, cohorts, count, random_cohort

from uadray.errors import ConfigError
from uadray.metrics import measures, statistics, thresholds
from uadray.metrics.counts import TestPart, Threshold, ThresholdPart
from uadray.metrics.histograms import Histograms
from uadray.metrics.resampling import CURVES, resampled_curves
from uadray.metrics.table import compute_metrics

NAMES = ["dice_d", "dice_s_mean", "auprc", "auroc", "upper_bound_dice", "slice_auprc"]


@pytest.fixture(scope="module")
def threshold() -> Threshold:
    return thresholds.best_dice(count(ThresholdPart, random_cohort(4, seed=9), name="fit"))


def weaker(subjects: list[Voxels], seed: int) -> list[Voxels]:
    """The same truth, scored by a noisier method."""
    rng = np.random.default_rng(seed)
    return [
        v._replace(
            levels=np.where(v.brain, v.levels // 2 + rng.integers(0, 20000, v.levels.shape), 0)
            .clip(0, 65535)
            .astype(np.uint16)
        )
        for v in subjects
    ]


def drawn_one_by_one(subjects: list[Voxels], threshold, num_resamples: int, seed: int):
    """Metrics of explicit resamples: the drawn subjects are counted again, as often as drawn."""
    weights = statistics.resampling_weights(len(subjects), num_resamples, seed)
    rows = []
    for row in weights:
        indices = np.repeat(np.arange(len(subjects)), row)
        metrics = compute_metrics(
            count(TestPart, [subjects[index] for index in indices], name="drawn"), threshold
        )
        rows.append([np.nan if metrics[name] is None else metrics[name] for name in NAMES])
    return dict(zip(NAMES, np.array(rows).T, strict=True))


class TestBootstrap:
    @pytest.mark.parametrize("at_once", [128, 7])
    def test_equals_drawing_subjects_one_by_one(self, threshold, at_once, monkeypatch):
        monkeypatch.setattr("uadray.metrics.resampling._AT_ONCE", at_once)
        subjects = weaker(random_cohort(7, seed=0), seed=1)
        intervals = statistics.bootstrap(count(TestPart, subjects), threshold, 40, seed=3)
        expected = drawn_one_by_one(subjects, threshold, 40, seed=3)
        assert set(intervals) == set(NAMES)
        for name in NAMES:
            low, high = np.percentile(expected[name], [2.5, 97.5])
            assert (intervals[name].low, intervals[name].high) == pytest.approx(
                (low, high), abs=1e-12
            )
            assert np.isfinite(intervals[name].resamples).sum() == 40

    def test_estimates_are_the_reported_metrics(self, threshold):
        test = count(TestPart, weaker(random_cohort(5, seed=1), seed=2))
        reported = compute_metrics(test, threshold)
        for name, interval in statistics.bootstrap(test, threshold, 200).items():
            assert interval.estimate == pytest.approx(reported[name], abs=1e-12)
            assert interval.low <= interval.estimate <= interval.high
            assert interval.low < interval.high

    def test_the_seed_decides(self, threshold):
        test = count(TestPart, random_cohort(5, seed=1))
        first = statistics.bootstrap(test, threshold, 50, seed=1)
        assert statistics.bootstrap(test, threshold, 50, seed=1) == first
        assert statistics.bootstrap(test, threshold, 50, seed=2) != first

    def test_covers_the_mean_about_as_often_as_it_says(self, threshold):
        """30 subjects out of many: the interval of mean Dice_S holds the true mean near 95 %."""
        everyone = count(TestPart, random_cohort(400, seed=4, size=5))
        each = measures.dice_s(everyone, threshold.level)
        rng = np.random.default_rng(5)
        num_held = 0
        for _ in range(200):
            sample = each[rng.integers(0, len(each), 30)]
            weights = statistics.resampling_weights(30, 400, int(rng.integers(1 << 30)))
            low, high = np.percentile(measures.mean_dice_s(sample, weights), [2.5, 97.5])
            num_held += low <= each.mean() <= high
        assert 0.88 <= num_held / 200 <= 0.99

    def test_resamples_without_lesion_are_left_out_and_counted(self, threshold):
        ill, *healthy = random_cohort(3, seed=2)
        healthy = [v._replace(lesion=np.zeros_like(v.lesion)) for v in healthy]
        intervals = statistics.bootstrap(count(TestPart, [ill, *healthy]), threshold, 300)
        for name in NAMES:
            assert np.isfinite(intervals[name].resamples).sum() == pytest.approx(
                300 * (1 - (2 / 3) ** 3), abs=30
            )
            assert np.isfinite([intervals[name].low, intervals[name].high]).all()

    def test_no_lesion_at_all_is_undefined(self, threshold):
        healthy = [v._replace(lesion=np.zeros_like(v.lesion)) for v in random_cohort(3, seed=2)]
        for interval in statistics.bootstrap(count(TestPart, healthy), threshold, 20).values():
            assert np.isnan(interval.resamples).all()
            assert np.isnan([interval.estimate, interval.low, interval.high]).all()

    def test_refuses_what_it_cannot_answer(self, threshold):
        test = count(TestPart, random_cohort(2, seed=2))
        with pytest.raises(TypeError, match="TestPart"):
            statistics.bootstrap(count(ThresholdPart, random_cohort(2, seed=2)), threshold)
        with pytest.raises(ConfigError, match="num_resamples"):
            statistics.bootstrap(test, threshold, 0)

    def test_weights_draw_as_many_subjects_as_there_are(self):
        weights = statistics.resampling_weights(11, 2000, seed=0)
        assert (weights.sum(axis=1) == 11).all()
        assert weights.mean(axis=0) == pytest.approx(np.ones(11), abs=0.1)
        # with replacement: a subject is missing from (1 - 1/n)^n of the resamples
        assert (weights == 0).mean() == pytest.approx((1 - 1 / 11) ** 11, abs=0.02)


@settings(deadline=None, max_examples=60)
@given(cohorts, st.integers(0, 2**32 - 1), st.sampled_from(["brain", "volume"]))
def test_curves_of_weighted_sums_are_those_of_the_summed_histograms(subjects, seed, region):
    """Ties, empty classes, no brain, only level 0: the sweep gives what `metrics` gives."""
    histograms = count(TestPart, subjects).histograms(region)
    weights = np.random.default_rng(seed).integers(0, 4, (9, len(subjects)))
    summed = Histograms.whole(
        histograms.levels,
        weights @ histograms.healthy.toarray().astype(float),
        weights @ histograms.lesion.toarray().astype(float),
    )
    curves = resampled_curves(histograms, weights)
    assert tuple(curves) == CURVES
    for name, values in curves.items():
        np.testing.assert_allclose(values, getattr(measures, name)(summed), rtol=1e-12)


class TestWilcoxon:
    def test_undefined_pairs_are_left_out(self):
        rng = np.random.default_rng(0)
        a, b = rng.random((2, 12))
        expected = scipy.stats.wilcoxon(a[2:], b[2:]).pvalue
        a[0] = b[1] = np.nan
        assert statistics.wilcoxon_p(a, b) == pytest.approx(expected)

    def test_no_pair_or_no_difference(self):
        assert np.isnan(statistics.wilcoxon_p(np.array([np.nan]), np.array([0.5])))
        assert statistics.wilcoxon_p(np.full(5, 0.5), np.full(5, 0.5)) == 1


class TestHolm:
    def test_worked_example(self):
        assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])

    def test_never_above_one_never_below_p(self):
        p = np.random.default_rng(0).random(20)
        corrected = statistics.holm(p)
        assert (corrected >= p).all()
        assert corrected.max() <= 1
        assert (np.diff(corrected[np.argsort(p)]) >= 0).all()

    def test_comparisons_that_were_not_made_do_not_count(self):
        corrected = statistics.holm([0.02, np.nan, 0.01])
        assert corrected[[0, 2]] == pytest.approx([0.02, 0.02])
        assert np.isnan(corrected[1])
