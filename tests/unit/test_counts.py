"""Counts against the voxels they come from; they add up, and parts keep apart."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from voxel_cohorts import SHAPE, Voxels, cohorts, count, pooled, random_cohort

from uadray.errors import ConfigError, EvaluationError
from uadray.metrics.counts import (
    NUM_LEVELS,
    CohortCounts,
    TestPart,
    ThresholdPart,
    count_subject,
)
from uadray.metrics.postprocess import erode_brain


def dense(histograms, what: str) -> np.ndarray:
    """Merged counts over all 65 536 levels."""
    values = np.zeros(NUM_LEVELS)
    values[histograms.levels] = getattr(histograms, what)
    return values


class TestCountSubject:
    @settings(deadline=None)
    @given(cohorts)
    def test_equals_a_count_of_voxels(self, subjects):
        for v in subjects:
            eroded = erode_brain(v.brain, 1)
            counts = count_subject(v.levels, v.brain, v.lesion, eroded)
            for level in np.unique(v.levels):
                at_level = (v.levels == level) & (v.brain | v.lesion)
                assert counts.healthy[level] == (at_level & ~v.lesion).sum()
                assert counts.lesion[level] == (at_level & v.lesion).sum()
            total = counts.healthy.sum() + counts.lesion.sum() + counts.num_outside
            assert total == v.levels.size
            assert counts.num_outside == (~v.brain & ~v.lesion).sum()
            assert counts.num_lesion == v.lesion.sum() == counts.lesion.sum()
            assert counts.num_lesion_eroded == (v.lesion & v.brain & ~eroded).sum()

    @settings(deadline=None)
    @given(cohorts)
    def test_slices_are_axial_and_average_over_the_brain(self, subjects):
        for v in subjects:
            counts = count_subject(v.levels, v.brain, v.lesion, v.brain)
            assert counts.slice_score.shape == (SHAPE[0],)
            for z in range(SHAPE[0]):
                inside = v.levels[z][v.brain[z]]
                mean = inside.mean() / 65535 if inside.size else 0
                assert counts.slice_score[z] == pytest.approx(mean, rel=1e-6)
                assert counts.slice_lesion[z] == v.lesion[z].any()
                assert counts.slice_brain[z] == v.brain[z].any()

    def test_scores_outside_the_brain_are_refused(self):
        brain = np.zeros(SHAPE, bool)
        levels = np.zeros(SHAPE, np.uint16)
        levels[0, 0, :2] = 5
        with pytest.raises(EvaluationError, match=r"'a': 2 voxels outside the brain"):
            count_subject(levels, brain, brain, brain, subject="a")

    def test_other_grid_or_type_is_refused(self):
        mask = np.zeros(SHAPE, bool)
        with pytest.raises(EvaluationError, match="lesion \\(3, 3, 5\\)"):
            count_subject(mask.astype(np.uint16), mask, np.zeros((3, 3, 5), bool), mask)
        with pytest.raises(EvaluationError, match="float64"):
            count_subject(mask.astype(np.float64), mask, mask, mask)


class TestCohortCounts:
    @settings(deadline=None)
    @given(cohorts, st.sampled_from(["brain", "volume"]))
    def test_merged_equals_the_pooled_voxels(self, subjects, region):
        merged = count(CohortCounts, subjects).merged(region)
        levels, lesion = pooled(subjects, region)
        assert (dense(merged, "healthy") == np.bincount(levels[~lesion], minlength=65536)).all()
        assert (dense(merged, "lesion") == np.bincount(levels[lesion], minlength=65536)).all()
        assert merged.num_lesion == lesion.sum()
        assert merged.num_healthy == (~lesion).sum()
        for index, level in enumerate(merged.levels):
            assert merged.true_positives[index] == (lesion & (levels >= level)).sum()
            assert merged.false_positives[index] == (~lesion & (levels >= level)).sum()

    @settings(deadline=None)
    @given(cohorts, st.randoms(use_true_random=False))
    def test_parts_add_up_to_the_whole(self, subjects, random):
        whole = count(CohortCounts, subjects)
        random.shuffle(subjects)
        cut = random.randint(0, len(subjects))
        parts = [
            count(CohortCounts, some).merged() for some in (subjects[:cut], subjects[cut:]) if some
        ]
        for what in ("healthy", "lesion"):
            total = sum(dense(part, what) for part in parts)
            assert (total == dense(whole.merged(), what)).all()

    def test_positives_at_a_threshold(self):
        levels = np.zeros(SHAPE, np.uint16)
        levels[0, 0] = [1, 5, 5, 9]
        lesion = np.zeros(SHAPE, bool)
        lesion[0, 0, 1:3] = True
        counts = count(CohortCounts, [Voxels(levels, np.ones(SHAPE, bool), lesion)])
        for level, expected in {1: (2, 2), 5: (2, 1), 6: (0, 1), 65536: (0, 0)}.items():
            true, false = counts.positives(level)
            assert (true[0], false[0]) == expected
        with pytest.raises(EvaluationError, match="65536"):
            counts.positives(0)

    def test_slices_without_brain_are_left_out(self):
        brain = np.zeros(SHAPE, bool)
        brain[1] = True
        lesion = np.zeros(SHAPE, bool)
        lesion[2, 0, 0] = True
        levels = np.where(brain, 65535, 0).astype(np.uint16)
        slices = count(CohortCounts, [Voxels(levels, brain, lesion)]).slice_histograms().merged()
        assert slices.levels.tolist() == [0, 1]
        assert slices.healthy.tolist() == [0, 1]
        assert slices.lesion.tolist() == [1, 0]

    def test_no_subject_other_grid_or_empty_range_is_refused(self):
        with pytest.raises(EvaluationError, match="no subject"):
            count(CohortCounts, [])
        deeper = [np.zeros((4, 3, 4), np.uint16), *[np.zeros((4, 3, 4), bool)] * 2]
        with pytest.raises(EvaluationError, match="'s2' has 4 axial slices"):
            count(CohortCounts, [*random_cohort(2, seed=0, size=3), Voxels(*deeper)])
        with pytest.raises(ConfigError, match="low < high"):
            CohortCounts.from_subjects(
                [("a", count_subject(*deeper, deeper[1]))], name="x", score_range=(1, 0)
            )


class TestParts:
    def test_neither_part_passes_for_the_other(self):
        assert not issubclass(TestPart, ThresholdPart)
        assert not issubclass(ThresholdPart, TestPart)
