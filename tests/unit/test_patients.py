"""Patients told from healthy people by one score a person."""

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st
from voxel_cohorts import count, random_cohort

from uadray.metrics.counts import CohortCounts
from uadray.metrics.inference import interval
from uadray.metrics.patients import TOP_VOXELS, by_person, detection, roc, scan_scores


def test_scores_of_a_scan_are_those_of_its_brain_s_voxels() -> None:
    subjects = random_cohort(5, seed=2, size=12)
    found = scan_scores(count(CohortCounts, subjects, iterations=0))
    for place, one in enumerate(subjects):
        levels = np.sort(one.levels[one.brain | one.lesion].astype(np.float64))[::-1]
        assert found["maximum"][place] == levels[0]
        assert found["top_mean"][place] == pytest.approx(levels[:TOP_VOXELS].mean())
        above = (levels > found["percentile"][place]).mean()
        at_or_above = (levels >= found["percentile"][place]).mean()
        assert above <= 0.001 < at_or_above + 1e-9


def test_a_person_s_score_is_the_mean_of_the_scans() -> None:
    values = by_person(np.array([1.0, 5.0, 3.0, 7.0]), ["b", "a", "b", "c"])
    assert values.tolist() == [2.0, 5.0, 7.0]


@given(
    sick=st.lists(st.integers(0, 6), min_size=2, max_size=9),
    well=st.lists(st.integers(0, 6), min_size=2, max_size=9),
)
def test_detection_is_that_of_scikit_learn_with_and_without_each(sick, well) -> None:
    fits = detection(np.array(sick, float), np.array(well, float))
    truth, scores = np.array([1] * len(sick) + [0] * len(well)), np.array(sick + well, float)
    for key, compute in (
        ("auroc", sklearn.metrics.roc_auc_score),
        ("auprc", sklearn.metrics.average_precision_score),
    ):
        assert fits[key].values[0, 0] == compute(truth, scores)
        for n in range(len(truth)):
            others = np.arange(len(truth)) != n
            assert fits[key].values[0, 1 + n] == compute(truth[others], scores[others])
    false, true = roc(np.array(sick, float), np.array(well, float))
    area = np.trapezoid(true, false)
    assert area == pytest.approx(fits["auroc"].values[0, 0])


@pytest.mark.slow
def test_intervals_of_the_area_cover() -> None:
    random = np.random.default_rng(0)
    truth, covered = 0.7602, []  # P(N(1, 1) > N(0, 1)) = Phi(1 / sqrt(2))
    for _ in range(300):
        fits = detection(random.normal(1, 1, 20), random.normal(0, 1, 25))
        bounds = interval(fits["auroc"])
        assert bounds is not None
        covered.append(bounds[0] <= truth <= bounds[1])
    assert 0.92 <= np.mean(covered) <= 0.99


@pytest.mark.parametrize("bad", [np.array([np.nan, 1.0]), np.array([1.0])])
def test_without_people_on_both_sides_there_is_no_figure(bad) -> None:
    fits = detection(bad, np.array([0.0, 1.0, 2.0]))
    assert np.isnan(fits["auroc"].values).all()
