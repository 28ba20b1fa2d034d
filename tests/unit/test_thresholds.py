"""Threshold rules against straightforward searches over voxels."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from voxel_cohorts import (
    LEVELS,
    SCORE_RANGE,
    Voxels,
    cohorts,
    count,
    dice_of_voxels,
    pooled,
    random_cohort,
)

from uadray.errors import ConfigError, EvaluationError
from uadray.metrics import thresholds
from uadray.metrics.counts import NUM_LEVELS, TestPart, Threshold, ThresholdPart
from uadray.metrics.postprocess import dequantise

DICE_RULES = [thresholds.bengs_bisection, thresholds.best_dice, thresholds.meissen_linear]


def with_lesion(subjects: list[Voxels]) -> bool:
    lesion = pooled(subjects, "brain")[1]
    return bool(lesion.any() and not lesion.all())


def bisect_voxels(levels: np.ndarray, lesion: np.ndarray, iterations: int) -> float:
    """Bengs' search on scores in [0, 1], voxel by voxel."""
    scores = levels / 65535
    start, end = 0.0, 1.0
    tried = []
    for _ in range(iterations):
        centre = (start + end) / 2
        lower, upper = (start + centre) / 2, (centre + end) / 2
        dice_lower = dice_of_voxels(scores, lesion, lower)
        dice_upper = dice_of_voxels(scores, lesion, upper)
        tried += [(dice_lower, lower), (dice_upper, upper)]
        start, end = (start, centre) if dice_lower >= dice_upper else (centre, end)
    best = max(dice for dice, _ in tried)
    return next(threshold for dice, threshold in tried if dice == best)


class TestBisection:
    @settings(deadline=None)
    @given(cohorts.filter(with_lesion), st.sampled_from([1, 3, 10]))
    def test_equals_the_search_over_voxels(self, subjects, iterations):
        expected = bisect_voxels(*pooled(subjects, "brain"), iterations)
        fitted = thresholds.bengs_bisection(count(ThresholdPart, subjects), iterations)
        assert fitted.level == math.ceil(expected * 65535)

    @pytest.mark.parametrize("seed", range(5))
    def test_equals_the_search_over_voxels_with_many_levels(self, seed):
        subjects = random_cohort(3, seed)
        expected = bisect_voxels(*pooled(subjects, "brain"), 10)
        fitted = thresholds.bengs_bisection(count(ThresholdPart, subjects))
        assert fitted.level == math.ceil(expected * 65535)

    @pytest.mark.parametrize(("healthy", "ill", "reached"), [(9999, 45000, 1), (19000, 21000, 0.4)])
    def test_finds_a_wide_peak_and_misses_a_narrow_one(self, healthy, ill, reached):
        """Any threshold between the two levels is perfect; greedy steps need not go there."""
        levels = np.full((4, 4, 4), healthy, np.uint16)
        levels[2] = ill
        lesion = levels == ill
        part = count(ThresholdPart, [Voxels(levels, np.ones(levels.shape, bool), lesion)])
        greedy, exact = thresholds.bengs_bisection(part), thresholds.best_dice(part)
        assert dice_of_voxels(levels, lesion, greedy.level) == pytest.approx(reached)
        assert dice_of_voxels(levels, lesion, exact.level) == 1


class TestExactSearch:
    @settings(deadline=None)
    @given(cohorts.filter(with_lesion))
    def test_best_dice_beats_every_other_level(self, subjects):
        levels, lesion = pooled(subjects, "brain")
        fitted = thresholds.best_dice(count(ThresholdPart, subjects))
        best = dice_of_voxels(levels, lesion, fitted.level)
        assert fitted.level >= 1
        assert best >= max(dice_of_voxels(levels, lesion, level) for level in LEVELS[1:])

    @pytest.mark.parametrize("seed", range(5))
    def test_no_rule_beats_it(self, seed):
        subjects = random_cohort(3, seed)
        part = count(ThresholdPart, subjects)
        levels, lesion = pooled(subjects)
        scores = {
            name: dice_of_voxels(levels, lesion, thresholds.fit_threshold(part, name).level)
            for name in thresholds.RULES
        }
        assert scores["best_dice"] == max(scores.values())

    def test_lesions_that_never_score_still_give_a_level(self):
        levels = np.zeros((3, 3, 3), np.uint16)
        brain = np.ones(levels.shape, bool)
        lesion = np.zeros(levels.shape, bool)
        lesion[1, 1, 1] = True
        part = count(ThresholdPart, [Voxels(levels, brain, lesion)])
        for rule in DICE_RULES:
            assert rule(part).level >= 1


class TestMeissen:
    @settings(deadline=None)
    @given(cohorts.filter(with_lesion), st.sampled_from([2, 7, 100]))
    def test_equals_the_search_over_voxels(self, subjects, num):
        levels, lesion = pooled(subjects, "brain")
        grid = np.maximum(1, np.ceil(np.linspace(0, 65535, num)))
        tried = [dice_of_voxels(levels, lesion, threshold) for threshold in grid]
        fitted = thresholds.meissen_linear(count(ThresholdPart, subjects), num)
        assert fitted.level in grid
        assert dice_of_voxels(levels, lesion, fitted.level) == pytest.approx(max(tried))


class TestHealthyRules:
    @settings(deadline=None)
    @given(cohorts, st.sampled_from([0.01, 0.05, 0.1, 0.5, 0.9]))
    def test_false_positive_rate_is_met_and_no_lower_level_meets_it(self, subjects, rate):
        levels, lesion = pooled(subjects, "brain")
        part = count(ThresholdPart, subjects)
        if lesion.all():
            with pytest.raises(EvaluationError, match="no healthy brain voxel"):
                thresholds.healthy_fpr(part, rate)
            return
        level = thresholds.healthy_fpr(part, rate).level
        assert (levels[~lesion] >= level).mean() <= rate
        assert level == 1 or (levels[~lesion] >= level - 1).mean() > rate

    def test_saturated_healthy_voxels_leave_nothing_to_predict(self):
        levels = np.full((3, 3, 3), 65535, np.uint16)
        subject = Voxels(levels, np.ones(levels.shape, bool), np.zeros(levels.shape, bool))
        part = count(ThresholdPart, [subject])
        assert thresholds.healthy_fpr(part, 0.05).level == NUM_LEVELS

    @settings(deadline=None)
    @given(cohorts, st.sampled_from([0, 33, 50, 98, 99.5, 100]))
    def test_percentile_equals_numpy(self, subjects, q):
        levels, lesion = pooled(subjects, "brain")
        if lesion.all():
            return
        expected = max(1, np.percentile(levels, q, method="higher"))
        assert thresholds.percentile(count(ThresholdPart, subjects), q).level == expected

    @pytest.mark.parametrize("rate", [0, 1, -0.1])
    def test_bad_rate_is_refused(self, rate):
        with pytest.raises(ConfigError, match="rate must lie"):
            thresholds.healthy_fpr(count(ThresholdPart, random_cohort(1, 0)), rate)

    def test_bad_percentile_is_refused(self):
        with pytest.raises(ConfigError, match="q must lie"):
            thresholds.percentile(count(ThresholdPart, random_cohort(1, 0)), 101)


class TestFitting:
    @pytest.mark.parametrize("rule", sorted(thresholds.RULES))
    def test_never_on_a_test_part(self, rule):
        test = count(TestPart, random_cohort(2, seed=0))
        with pytest.raises(TypeError, match=r"expected a ThresholdPart.*came TestPart"):
            thresholds.fit_threshold(test, rule)

    @pytest.mark.parametrize("rule", DICE_RULES)
    def test_dice_without_lesion_is_refused(self, rule):
        healthy = [v._replace(lesion=np.zeros_like(v.lesion)) for v in random_cohort(2, seed=0)]
        with pytest.raises(EvaluationError, match="no lesion voxel in 2 subjects"):
            rule(count(ThresholdPart, healthy))

    @pytest.mark.parametrize("name", sorted(thresholds.RULES))
    def test_rules_bear_their_names(self, name):
        part = count(ThresholdPart, random_cohort(2, seed=0), name="fit")
        fitted = thresholds.fit_threshold(part, name)
        assert (fitted.rule, fitted.fitted_on) == (name, "fit")
        assert fitted.value == dequantise(fitted.level, SCORE_RANGE)

    def test_bengs_is_the_default(self):
        part = count(ThresholdPart, random_cohort(2, seed=0))
        assert thresholds.fit_threshold(part) == thresholds.bengs_bisection(part)

    def test_unknown_rule_lists_the_known(self):
        with pytest.raises(ConfigError, match=r"bengs_bisection.*was 'otsu'"):
            thresholds.fit_threshold(count(ThresholdPart, random_cohort(1, 0)), "otsu")

    @pytest.mark.parametrize("level", [0, 65537])
    def test_level_out_of_range_is_refused(self, level):
        with pytest.raises(ConfigError, match="level must lie"):
            Threshold(level=level, value=0, rule="x", fitted_on="y")
