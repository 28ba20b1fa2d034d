"""Metrics against scikit-learn and against plain counting over voxels, ties and odd cases too."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score
from voxel_cohorts import (
    LEVELS,
    SHAPE,
    Voxels,
    cohorts,
    count,
    dice_of_voxels,
    pooled,
    random_cohort,
)

from uadray.errors import EvaluationError
from uadray.metrics import measures, thresholds
from uadray.metrics.counts import TestPart, Threshold, ThresholdPart
from uadray.metrics.histograms import Histograms
from uadray.metrics.table import compute_metrics

REGIONS = st.sampled_from(["brain", "volume"])


class TestCurves:
    @settings(deadline=None)
    @given(cohorts, REGIONS)
    def test_average_precision_equals_scikit_learn(self, subjects, region):
        levels, lesion = pooled(subjects, region)
        ours = measures.auprc(count(TestPart, subjects).merged(region))
        if not lesion.any():
            assert np.isnan(ours)
        else:
            assert ours == pytest.approx(average_precision_score(lesion, levels), abs=1e-12)

    @settings(deadline=None)
    @given(cohorts, REGIONS)
    def test_trapezoid_equals_scikit_learn(self, subjects, region):
        levels, lesion = pooled(subjects, region)
        ours = measures.auprc_trapezoid(count(TestPart, subjects).merged(region))
        if not lesion.any():
            assert np.isnan(ours)
        else:
            precision, recall, _ = precision_recall_curve(lesion, levels)
            assert ours == pytest.approx(auc(recall, precision), abs=1e-12)

    @settings(deadline=None)
    @given(cohorts, REGIONS)
    def test_auroc_equals_scikit_learn(self, subjects, region):
        levels, lesion = pooled(subjects, region)
        ours = measures.auroc(count(TestPart, subjects).merged(region))
        if lesion.all() or not lesion.any():
            assert np.isnan(ours)
        else:
            assert ours == pytest.approx(roc_auc_score(lesion, levels), abs=1e-12)

    def test_many_levels_equal_scikit_learn(self):
        subjects = random_cohort(5, seed=0, size=12)
        levels, lesion = pooled(subjects)
        merged = count(TestPart, subjects).merged()
        assert len(merged.levels) > 400
        assert measures.auprc(merged) == pytest.approx(average_precision_score(lesion, levels))
        assert measures.auroc(merged) == pytest.approx(roc_auc_score(lesion, levels))

    def test_background_lifts_auroc_only(self):
        subjects = random_cohort(3, seed=1)
        counts = count(TestPart, subjects)
        brain, volume = counts.merged("brain"), counts.merged("volume")
        assert measures.auroc(volume) > measures.auroc(brain) + 0.01
        assert measures.upper_bound_dice(volume) == measures.upper_bound_dice(brain)

    @settings(deadline=None)
    @given(cohorts)
    def test_dice_at_every_threshold_equals_counting(self, subjects):
        levels, lesion = pooled(subjects)
        merged = count(TestPart, subjects).merged()
        expected = [dice_of_voxels(levels, lesion, level) for level in merged.levels]
        np.testing.assert_allclose(measures.dice_at_every_threshold(merged), expected, atol=1e-12)

    @settings(deadline=None)
    @given(cohorts)
    def test_upper_bound_equals_trying_every_threshold_above_zero(self, subjects):
        levels, lesion = pooled(subjects)
        tried = [dice_of_voxels(levels, lesion, level) for level in [*LEVELS[1:], 65536]]
        ours = measures.upper_bound_dice(count(TestPart, subjects).merged())
        np.testing.assert_allclose(ours, max(tried), atol=1e-12)

    @settings(deadline=None)
    @given(st.lists(cohorts, min_size=2, max_size=3))
    def test_leading_axes_pass_through(self, many):
        merged = [count(TestPart, subjects).merged() for subjects in many]
        levels = np.unique(np.concatenate([m.levels for m in merged]))

        def spread(what: str) -> np.ndarray:
            values = np.zeros((len(merged), 1, len(levels)))
            for row, m in enumerate(merged):
                values[row, 0, np.searchsorted(levels, m.levels)] = getattr(m, what)
            return values

        stacked = Histograms.whole(levels, spread("healthy"), spread("lesion"))
        for quantity in (
            measures.auprc,
            measures.auprc_trapezoid,
            measures.auroc,
            measures.upper_bound_dice,
        ):
            value = quantity(stacked)
            assert value.shape == (len(merged), 1)
            np.testing.assert_allclose(value[:, 0], [quantity(m) for m in merged], atol=1e-12)


class TestDice:
    @settings(deadline=None)
    @given(cohorts, st.sampled_from([1, 7, 8, 20000, 65535, 65536]))
    def test_equals_counting(self, subjects, level):
        counts = count(TestPart, subjects)
        expected = dice_of_voxels(*pooled(subjects), level)
        np.testing.assert_allclose(measures.dice_d(counts, level), expected, atol=1e-12)
        each = [dice_of_voxels(v.levels, v.lesion, level) for v in subjects]
        np.testing.assert_allclose(measures.dice_s(counts, level), each, atol=1e-12)

    def test_a_subject_without_lesion_is_left_out_of_the_mean(self):
        subjects = random_cohort(3, seed=2)
        healthy = subjects[0]._replace(lesion=np.zeros_like(subjects[0].lesion))
        counts = count(TestPart, [healthy, *subjects[1:]])
        each = measures.dice_s(counts, 20000)
        assert np.isnan(each[0])
        assert measures.mean_dice_s(each) == pytest.approx(each[1:].mean())
        assert np.isnan(measures.mean_dice_s(each[:1]))
        # but its false positives count in the data set's Dice
        assert measures.dice_d(counts, 20000) < measures.dice_d(
            count(TestPart, subjects[1:]), 20000
        )

    def test_weights_repeat_subjects(self):
        subjects = random_cohort(3, seed=3)
        counts = count(TestPart, subjects)
        weights = np.array([[2, 0, 1], [1, 1, 1]])
        drawn = count(TestPart, [subjects[0], subjects[0], subjects[2]])
        assert measures.dice_d(counts, 9000, weights) == pytest.approx(
            [float(measures.dice_d(drawn, 9000)), float(measures.dice_d(counts, 9000))]
        )
        each = measures.dice_s(counts, 9000)
        assert measures.mean_dice_s(each, weights) == pytest.approx(
            [measures.dice_s(drawn, 9000).mean(), each.mean()]
        )


class TestSlices:
    @settings(deadline=None)
    @given(cohorts)
    def test_equals_scikit_learn_over_axial_slices(self, subjects):
        scores, labels = [], []
        for v in subjects:
            for z in range(SHAPE[0]):
                if v.brain[z].any() or v.lesion[z].any():
                    inside = v.levels[z][v.brain[z]]
                    scores.append(np.float32(inside.mean() / 65535 if inside.size else 0))
                    labels.append(v.lesion[z].any())
        ours = measures.slice_auprc(count(TestPart, subjects))
        if not any(labels):
            assert np.isnan(ours)
        else:
            assert ours == pytest.approx(average_precision_score(labels, scores), abs=1e-12)


class TestComputeMetrics:
    def test_gathers_each_quantity(self):
        fit, subjects = random_cohort(4, seed=4), random_cohort(6, seed=5)
        test = count(TestPart, subjects, name="test")
        threshold = thresholds.best_dice(count(ThresholdPart, fit, name="fit"))
        metrics = compute_metrics(test, threshold)
        levels, lesion = pooled(subjects)
        each = [dice_of_voxels(v.levels, v.lesion, threshold.level) for v in subjects]
        assert metrics["dice_d"] == pytest.approx(dice_of_voxels(levels, lesion, threshold.level))
        assert metrics["dice_s_mean"] == pytest.approx(np.mean(each))
        assert metrics["dice_s_std"] == pytest.approx(np.std(each))
        assert metrics["auprc"] == pytest.approx(average_precision_score(lesion, levels))
        assert metrics["auroc"] == pytest.approx(roc_auc_score(lesion, levels))
        inside_levels, inside_lesion = pooled(subjects, "brain")
        assert metrics["auroc_brain"] == pytest.approx(roc_auc_score(inside_lesion, inside_levels))
        tried = [dice_of_voxels(levels, lesion, level) for level in np.unique(levels)]
        assert metrics["upper_bound_dice"] == pytest.approx(max(tried))
        assert metrics["num_lesion"] == lesion.sum()
        assert (metrics["threshold_rule"], metrics["threshold_fitted_on"]) == ("best_dice", "fit")
        assert metrics["num_subjects"] == metrics["num_subjects_with_lesion"] == 6

    def test_what_is_undefined_is_null_in_json(self):
        healthy = [v._replace(lesion=np.zeros_like(v.lesion)) for v in random_cohort(2, seed=6)]
        threshold = thresholds.healthy_fpr(count(ThresholdPart, healthy, name="fit"), 0.05)
        metrics = compute_metrics(count(TestPart, healthy, name="test"), threshold)
        assert metrics["dice_d"] is None
        written = json.loads(json.dumps(metrics, allow_nan=False))
        undefined = {key for key, value in written.items() if value is None}
        assert {"dice_d", "dice_s_mean", "dice_s_std", "auprc", "auroc"} <= undefined
        assert written["num_subjects"] == 2
        assert written["num_subjects_with_lesion"] == 0

    def test_erosion_does_not_change_the_truth(self):
        brain = np.zeros((3, 7, 7), bool)
        brain[1, 1:6, 1:6] = True
        levels = np.where(brain, 40000, 0).astype(np.uint16)
        levels[1, 2:5, 2:5] = 100
        lesion = brain & (levels == 40000)
        test = count(TestPart, [Voxels(levels, brain, lesion)], name="test")
        threshold = thresholds.best_dice(count(ThresholdPart, random_cohort(1, 0), name="fit"))
        metrics = compute_metrics(test, threshold)
        assert metrics["num_lesion"] == metrics["num_lesion_eroded"] == 16

    def test_a_threshold_part_is_no_test_part(self):
        part = count(ThresholdPart, random_cohort(2, seed=7))
        with pytest.raises(TypeError, match="TestPart"):
            compute_metrics(part, thresholds.best_dice(part))

    def test_a_threshold_from_the_test_part_is_refused(self):
        subjects = random_cohort(2, seed=7)
        own = thresholds.best_dice(count(ThresholdPart, subjects))
        with pytest.raises(EvaluationError, match="fitted on 'voxels' itself"):
            compute_metrics(count(TestPart, subjects), own)

    def test_a_threshold_of_another_score_range_is_refused(self):
        test = count(TestPart, random_cohort(2, seed=7), name="test")
        foreign = Threshold(level=30000, value=2.5, rule="best_dice", fitted_on="fit")
        with pytest.raises(EvaluationError, match="same method and score range"):
            compute_metrics(test, foreign)
