"""Figures of groups of people, and how far they are from those of all others."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from tiny_cohorts import write_lesioned
from voxel_cohorts import Voxels, count, pooled, random_cohort

from uadray.errors import ConfigError, EvaluationError
from uadray.evaluation.figures import Measured
from uadray.evaluation.strata import as_asked, groups_of, stratify
from uadray.metrics.counts import TestPart, Threshold
from uadray.metrics.inference import Fits, gap
from uadray.metrics.lesionwise import compare_lesions
from uadray.metrics.table import OWN

LEVEL = 36_000
THRESHOLD = Threshold(level=LEVEL, value=LEVEL / 65535, rule="best_dice", fitted_on="others")


def measured(subjects: list[Voxels], people: list[str]) -> Measured:
    return Measured(
        scores=count(TestPart, subjects),
        filtered=None,
        people=people,
        threshold=THRESHOLD,
        refits=[],
        fingerprint="",
        num_threshold=4,
        lesions=[compare_lesions(v.levels >= LEVEL, v.lesion, (1, 1, 1)) for v in subjects],
    )


def dice(subjects: list[Voxels]) -> float:
    levels, lesion = pooled(subjects)
    found = levels >= LEVEL
    return float(2 * (found & lesion).sum() / (found.sum() + lesion.sum()))


def dimmed(one: Voxels) -> Voxels:
    """The same, whose lesion is hardly seen."""
    levels = np.where(one.lesion, 0.6 * one.levels, one.levels).astype(np.uint16)
    return Voxels(levels, one.brain, one.lesion)


def test_each_group_is_as_if_it_were_alone_and_a_planted_bias_is_found() -> None:
    subjects = random_cohort(90, seed=3)
    names = [("A", "B", "C")[n % 3] for n in range(90)]
    subjects = [dimmed(v) if n == "B" else v for v, n in zip(subjects, names, strict=True)]
    assigned = {"site": pd.Categorical(names)}
    found = stratify(measured(subjects, [f"p{n}" for n in range(90)]), assigned, OWN)["site"]
    assert [one["group"] for one in found] == ["A", "B", "C"]
    by_name = {one["group"]: one for one in found}
    for name, one in by_name.items():
        here = [v for v, n in zip(subjects, names, strict=True) if n == name]
        rest = [v for v, n in zip(subjects, names, strict=True) if n != name]
        assert (one["num_people"], one["num_scans"]) == (30, 30)
        assert one["metrics"]["dice_d"] == pytest.approx(dice(here))
        low, high = one["intervals"]["dice_d"]
        assert low < one["metrics"]["dice_d"] < high
        assert one["gaps"]["dice_d"]["value"] == pytest.approx(dice(here) - dice(rest))
    assert by_name["B"]["gaps"]["dice_d"]["p"] < 0.05
    assert by_name["B"]["gaps"]["dice_d"]["interval"][1] < 0


def test_two_groups_are_one_comparison_from_either_side() -> None:
    subjects = random_cohort(24, seed=5)
    names = ["M", "F"] * 12
    people = [f"p{n // 2 * 2 + n % 2}" for n in range(24)]
    one = stratify(measured(subjects, people), {"sex": pd.Categorical(names)}, OWN)["sex"]
    first, second = (entry["gaps"]["auprc"] for entry in one)
    assert first["value"] == -second["value"]
    assert first["interval"] == [-bound for bound in reversed(second["interval"])]
    assert first["p"] == second["p"]
    both = stratify(
        measured(subjects, people),
        {"sex": pd.Categorical(names), "again": pd.Categorical(names)},
        OWN,
    )
    # Corrected over all that is asked for.
    assert both["sex"][0]["gaps"]["auprc"]["p"] == pytest.approx(min(1, 2 * first["p"]))


def test_scans_of_one_person_are_one() -> None:
    subjects = random_cohort(24, seed=7)
    names = ["M"] * 12 + ["F"] * 12
    people = [f"p{n // 2}" for n in range(24)]
    found = stratify(measured(subjects, people), {"sex": pd.Categorical(names)}, OWN)["sex"]
    assert [(one["num_people"], one["num_scans"]) for one in found] == [(6, 12), (6, 12)]


def test_small_groups_have_figures_and_no_verdict() -> None:
    subjects = random_cohort(14, seed=9)
    names = ["rare"] * 2 + ["one"] + ["many"] * 11  # fewer than the others need, too
    found = stratify(
        measured(subjects, [f"p{n}" for n in range(14)]),
        {"site": pd.Categorical(names, ["rare", "one", "many"])},
        OWN,
    )["site"]
    rare, one, many = found
    assert rare["metrics"]["dice_d"] == pytest.approx(dice(subjects[:2]))
    assert one["metrics"]["dice_d"] == pytest.approx(dice(subjects[2:3]))
    for small in (rare, one):
        assert small["intervals"]["dice_d"] is None
        assert small["gaps"]["dice_d"]["p"] is None
    assert many["intervals"]["dice_d"] is not None


def test_a_group_alone_is_compared_with_nobody() -> None:
    subjects = random_cohort(8, seed=1)
    (only,) = stratify(
        measured(subjects, [f"p{n}" for n in range(8)]), {"s": pd.Categorical(["x"] * 8)}, OWN
    )["s"]
    assert only["gaps"] == {}
    assert only["metrics"]["dice_d"] == pytest.approx(dice(subjects))


def test_the_gap_of_means_is_a_t_test() -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(0.2, 1, 12), random.normal(0, 2, 14)

    def fits(values: np.ndarray) -> Fits:
        without = [np.delete(values, n).mean() for n in range(len(values))]
        return Fits(values=np.array([[values.mean(), *without]]))

    found = gap(fits(a), fits(b))
    assert found.value == pytest.approx(a.mean() - b.mean())
    variance = a.var(ddof=1) / 12 + b.var(ddof=1) / 14
    assert found.over_people == pytest.approx(variance)
    # More cautious than Welch's, whose degrees of freedom lie above those of either group.
    assert scipy.stats.ttest_ind(a, b, equal_var=False).pvalue < found.p < 1
    assert found.bounds is not None
    assert sum(found.bounds) / 2 == pytest.approx(found.value)
    assert gap(fits(a[:9]), fits(b)).bounds is None


class TestGroupsOfACohort:
    def test_by_covariates_scanner_and_lesion(self, tmp_path: Path) -> None:
        cohort = write_lesioned(tmp_path)
        table = cohort.subjects
        cohort.add_covariates({"age": [20.0 + n for n in range(len(table))]})
        test = (table["split"] == "test").to_numpy()
        found = groups_of(cohort, ["age:24:26", "scanner", "lesion_ml:1000"])
        ages = 20.0 + np.flatnonzero(test)
        expected = np.select(
            [ages < 24, ages < 26], ["age below 24", "age 24 to 26"], "age from 26"
        )
        assert list(found["age:24:26"]) == expected.tolist()
        assert set(found["lesion_ml:1000"]) == {"lesion_ml below 1000"}
        before = as_asked(cohort, ["age:24:26"])
        assert as_asked(cohort, []) == {}
        cohort.add_covariates({"age": [60.0] * len(table)})
        assert as_asked(cohort, ["age:24:26"]) != before

    def test_what_nobody_knows_is_named(self, tmp_path: Path) -> None:
        cohort = write_lesioned(tmp_path)
        with pytest.raises(EvaluationError, match=r"nobody.s age; it knows scanner, .*--cova"):
            groups_of(cohort, ["age:40"])
        with pytest.raises(ConfigError, match="has words such as"):
            groups_of(cohort, ["scanner:40"])
