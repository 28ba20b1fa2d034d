"""Intervals and tests over people: against brute force, closed forms, and simulated cohorts."""

import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from voxel_cohorts import Voxels, cohorts, count, random_cohort

from uadray.errors import EvaluationError
from uadray.metrics import inference, measures, thresholds
from uadray.metrics.counts import TestPart, Threshold, ThresholdPart
from uadray.metrics.histograms import Histograms
from uadray.metrics.inference import Fits, difference, interval, leaving_out
from uadray.metrics.table import at_thresholds, compute_metrics, fits_by_person
from uadray.metrics.weighted import CURVES, weighted_curves

NAMES = ["dice_d", "dice_s_mean", "auprc", "auroc", "upper_bound_dice", "slice_auprc"]


@pytest.fixture(scope="module")
def threshold() -> Threshold:
    return thresholds.best_dice(count(ThresholdPart, random_cohort(4, seed=9), name="fit"))


def noisier(subjects: list[Voxels], seed: int) -> list[Voxels]:
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


def of_mean(values: np.ndarray, **settings) -> Fits:
    """The mean of people's values (S, P), as one figure."""
    num = values.shape[-1]
    total = values.sum(axis=-1, keepdims=True)
    each = np.concatenate([total / num, (total - values) / (num - 1)], axis=-1)
    return Fits(values=np.atleast_2d(each), **settings)


class TestLeavingOut:
    def test_all_scans_of_a_person_go_together(self):
        weights = leaving_out(["b", "a", "b", "c"])
        assert weights.tolist() == [[1, 1, 1, 1], [0, 1, 0, 1], [1, 0, 1, 1], [1, 1, 1, 0]]

    @pytest.mark.parametrize("at_once", [128, 3])
    def test_equals_counting_the_others(self, threshold, at_once, monkeypatch):
        monkeypatch.setattr("uadray.metrics.weighted._AT_ONCE", at_once)
        subjects = noisier(random_cohort(7, seed=0), seed=1)
        people = ["a", "b", "a", "c", "d", "b", "e"]
        fits = fits_by_person(count(TestPart, subjects), threshold, leaving_out(people))
        assert set(fits) == set(NAMES)
        for place, left_out in enumerate([None, *"abcde"]):
            kept = [v for v, person in zip(subjects, people, strict=True) if person != left_out]
            expected = compute_metrics(count(TestPart, kept), threshold)
            for name in NAMES:
                assert fits[name].values[0, place] == pytest.approx(expected[name], abs=1e-12)

    def test_effective_number(self):
        assert inference.effective_number(np.full(7, 3.0)) == pytest.approx(7)
        assert inference.effective_number(np.array([1000.0, 1, 1, 1])) == pytest.approx(1, abs=0.01)
        assert inference.effective_number(np.zeros(3)) == 0


class TestInterval:
    def test_of_a_mean_of_alike_people_is_students(self):
        values = np.random.default_rng(0).uniform(-1, 1, 40)  # flat: degrees of freedom n - 1
        low, high = interval(of_mean(values))
        expected = scipy.stats.t.interval(0.95, 39, values.mean(), scipy.stats.sem(values))
        assert (low, high) == pytest.approx(expected)

    def test_one_large_lesion_widens_it(self):
        values = np.append(np.random.default_rng(0).uniform(-1, 1, 39), 30.0)
        low, high = interval(of_mean(values))
        expected = scipy.stats.t.interval(0.95, 39, values.mean(), scipy.stats.sem(values))
        assert high - low > 1.5 * (expected[1] - expected[0])

    def test_a_few_effective_people_widen_it(self):
        values = np.random.default_rng(0).uniform(0.2, 0.4, 40)
        wide, narrow = (interval(of_mean(values, effective=n)) for n in (6.0, None))
        assert wide[1] - wide[0] > 1.3 * (narrow[1] - narrow[0])

    @given(st.lists(st.floats(0, 1), min_size=6, max_size=30), st.integers(0, 1000))
    def test_stays_inside_of_the_range(self, values, seed):
        low_high = interval(of_mean(np.array(values), limits=(0.0, 1.0)))
        if low_high is not None:
            assert 0 <= low_high[0] <= low_high[1] <= 1
        distances = interval(of_mean(np.array(values) * 80, limits=(0.0, np.inf)))
        if distances is not None:
            assert 0 <= distances[0] <= distances[1] < np.inf

    def test_scans_of_one_person_are_no_new_people(self, threshold):
        """Each of six people scanned four times gives the interval of six people, not of 24."""
        once = noisier(random_cohort(6, seed=3), seed=4)
        many = [v for v in once for _ in range(4)]
        intervals = {}
        for name, subjects, people in (
            ("once", once, list("abcdef")),
            ("by person", many, [p for p in "abcdef" for _ in range(4)]),
            ("by scan", many, [str(n) for n in range(24)]),
        ):
            part = count(TestPart, subjects)
            fits = fits_by_person(part, threshold, leaving_out(people))["dice_s_mean"]
            intervals[name] = interval(fits)
        assert intervals["by person"] == pytest.approx(intervals["once"])
        widths = {name: high - low for name, (low, high) in intervals.items()}
        assert widths["by scan"] < 0.6 * widths["by person"]

    def test_covers_a_skewed_mean(self):
        """Log-normal people, on average over 300 cohorts of 30: percentiles cover 90 %."""
        rng = np.random.default_rng(5)
        draws = np.exp(0.8 * rng.standard_normal((300, 30)))
        truth = np.exp(0.32)
        ends = [interval(of_mean(one, limits=(0.0, np.inf))) for one in draws]
        assert 0.92 <= np.mean([low <= truth <= high for low, high in ends]) <= 0.98

    def test_fits_and_refitted_thresholds_add_to_it(self):
        people = np.random.default_rng(1).uniform(0.2, 0.4, 30)
        fits = people + np.array([[-0.05], [0.0], [0.05]])
        one, several = interval(of_mean(people)), interval(of_mean(fits))
        assert several[1] - several[0] > 2 * (one[1] - one[0])
        moved = 0.3 + 0.03 * np.random.default_rng(2).standard_normal((1, 50))
        refitted = interval(of_mean(people, refits=moved))
        assert refitted[1] - refitted[0] > 2 * (one[1] - one[0])
        still = interval(of_mean(people, refits=np.full((1, 50), 0.3)))
        assert still == pytest.approx(one)

    def test_mean_over_cohorts_adds_variances(self):
        rng = np.random.default_rng(3)
        a, b = rng.uniform(-1, 1, 40), rng.uniform(-1, 1, 60)
        low, high = interval(of_mean(a), of_mean(b))
        assert (low + high) / 2 == pytest.approx((a.mean() + b.mean()) / 2)
        variance = (scipy.stats.sem(a) ** 2 + scipy.stats.sem(b) ** 2) / 4
        assert (high - low) / 2 == pytest.approx(1.98 * np.sqrt(variance), rel=0.02)

    @pytest.mark.parametrize(
        "values",
        [
            pytest.param([0.1, 0.2, 0.3, 0.4], id="four people"),
            pytest.param([0.0, 0.0, 0.0, 0.0, 0.0, 0.9], id="one bears on it"),
            pytest.param([0.0] * 8, id="at the end of its range"),
            pytest.param([1.0] * 8, id="at the other end"),
            pytest.param([np.nan] * 8, id="undefined"),
        ],
    )
    def test_none_where_too_few_people_bear_on_it(self, values):
        fits = of_mean(np.array(values), limits=(0.0, 1.0))
        if values[0] == 0.0 and values[-1] == 0.9:
            kept = np.full((1, 9), 0.5)
            kept[0, 3] = 0.2  # the others move nothing
            fits = Fits(values=kept, limits=(0.0, 1.0))
        assert interval(fits) is None

    def test_none_where_one_person_alone_defines_it(self, threshold):
        ill, *others = random_cohort(8, seed=2)
        healthy = [v._replace(lesion=np.zeros_like(v.lesion)) for v in others]
        part = count(TestPart, [ill, *healthy])
        for fits in fits_by_person(part, threshold, leaving_out(part.subjects)).values():
            assert interval(fits) is None


def dice_fits(counts: np.ndarray) -> Fits:
    """Dice_D of (S, 3, P) counts, with everyone and without each person."""
    total = counts.sum(axis=-1, keepdims=True)
    tp, fp, lesion = np.moveaxis(np.concatenate([total, total - counts], axis=-1), 1, 0)
    return Fits(values=2 * tp / (tp + fp + lesion), limits=(0.0, 1.0))


def some_counts(num: int, seed: int, *, shift: float = 0.0, fits: int = 1, truth: int = 0):
    """(S, 3, P): true positives, false positives and lesion voxels of people."""
    lesion = np.exp(np.random.default_rng(truth).normal(6, 1, num))
    rng = np.random.default_rng(seed)
    hit = scipy.special.expit(rng.normal(shift, 0.7, (fits, num)))
    wrong = np.exp(rng.normal(5, 0.8, (fits, num)))
    return np.stack([hit * lesion, wrong, np.broadcast_to(lesion, hit.shape)], axis=1)


class TestDifference:
    def test_exchange_tries_all_ways(self):
        ours, theirs = some_counts(7, 1)[0], some_counts(7, 2, shift=0.8)[0]

        def gap(exchanged):
            a = np.where(exchanged, theirs, ours).sum(axis=1)
            b = np.where(exchanged, ours, theirs).sum(axis=1)
            return abs(2 * a[0] / a.sum() - 2 * b[0] / b.sum())

        ways = [gap(np.array(way)) for way in itertools.product([False, True], repeat=7)]
        expected = np.mean([way >= ways[0] * (1 - 1e-9) for way in ways])
        assert inference._exchange(ours, theirs) == pytest.approx(expected)
        assert difference(
            dice_fits(ours[None]), dice_fits(theirs[None]), (ours, theirs)
        ).p == pytest.approx(max(expected, 0), abs=0.3)

    def test_p_is_the_larger_of_two(self):
        ours, theirs = some_counts(12, 1), some_counts(12, 2, shift=2.0)
        gap = difference(dice_fits(ours), dice_fits(theirs), (ours[0], theirs[0]))
        assert gap.p >= inference._exchange(ours[0], theirs[0])
        assert gap.bounds[0] < gap.value < gap.bounds[1] < 0

    def test_spread_over_seeds_takes_the_verdict_away(self):
        """People alone would tell the two apart; seeds that vary as much do not let them."""
        people = some_counts(40, 1), some_counts(40, 2, shift=0.9)
        alone = difference(*map(dice_fits, people), tuple(one[0] for one in people))
        assert alone.p < 0.05
        assert alone.over_fits == 0
        vary = np.array([0.7, 1.0, 1.3])[:, None, None]
        hits = np.array([1.0, 0.0, 0.0])[:, None]
        fits = [one * (1 + (vary - 1) * hits) for one in people]
        both = difference(*map(dice_fits, fits), tuple(one.mean(axis=0) for one in fits))
        assert both.p > 0.2
        assert both.over_fits > both.over_people

    @pytest.mark.parametrize("num", [8, 30])
    def test_equal_methods_differ_in_one_of_twenty(self, num):
        """Exchangeable methods: p below .05 in at most about 5 % of 300 cohorts."""
        small = 0
        for seed in range(300):
            ours, theirs = (
                some_counts(num, 2 * seed + side, truth=seed + 10_000) for side in (0, 1)
            )
            small += difference(dice_fits(ours), dice_fits(theirs), (ours[0], theirs[0])).p < 0.05
        assert small / 300 <= 0.08

    def test_without_an_interval_there_is_no_p(self):
        gap = difference(dice_fits(some_counts(3, 1)), dice_fits(some_counts(3, 2)))
        assert gap.bounds is None
        assert np.isnan(gap.p)

    def test_few_people_cannot_reject(self):
        assert inference.least_p(8) == 1 / 128
        assert not inference.can_reject(8, 14)
        assert inference.can_reject(10, 14)
        assert not inference.can_reject(4, 1)
        assert inference.can_reject(500, 100)
        best = some_counts(8, 1, shift=5), some_counts(8, 1, shift=-5)
        gap = difference(*map(dice_fits, best), tuple(one[0] for one in best))
        assert gap.p >= inference.least_p(8)

    def test_needed_numbers(self):
        """Half of the variance each: what is reckoned has the power, by normal quantiles."""
        at = {"over_people": 0.03**2, "num_people": 48, "tests": 14}
        need = inference.needed(0.05, **at, over_fits=0.02**2, num_fits=3)
        variance = 0.03**2 * 48 / need.people + 0.02**2 * 3 / need.fits
        quantile = scipy.stats.norm.isf(0.05 / 28)
        power = scipy.stats.norm.sf(quantile - 0.05 / np.sqrt(variance))
        assert 0.79 < power < 0.85
        assert inference.needed(0.05, **at, over_fits=0, num_fits=1).fits == 0


class TestRefits:
    def test_draw_people_not_scans(self):
        subjects = random_cohort(6, seed=1)
        part = count(ThresholdPart, subjects, name="fit")
        people = ["a", "a", "b", "b", "c", "c"]
        refits = thresholds.refit_thresholds(part, "best_dice", people, 8, seed=3)
        drawn = np.random.default_rng(3).multinomial(3, np.full(3, 1 / 3), size=8)
        for one, times in zip(refits, drawn, strict=True):
            copies = [
                v for v, n in zip(subjects, np.repeat(times, 2), strict=True) for _ in range(n)
            ]
            again = thresholds.best_dice(count(ThresholdPart, copies, name="fit"))
            assert one == again

    def test_draws_without_lesion_are_left_out(self):
        ill, *others = random_cohort(3, seed=2)
        healthy = [v._replace(lesion=np.zeros_like(v.lesion)) for v in others]
        part = count(ThresholdPart, [ill, *healthy], name="fit")
        refits = thresholds.refit_thresholds(part, "best_dice", list("abc"), 60)
        assert len(refits) == pytest.approx(60 * (1 - (2 / 3) ** 3), abs=12)
        assert len(thresholds.refit_thresholds(part, "healthy_fpr_5", list("abc"), 60)) == 60

    def test_figures_at_other_thresholds(self, threshold):
        part = count(TestPart, noisier(random_cohort(5, seed=1), seed=2))
        fit = count(ThresholdPart, random_cohort(4, seed=9), name="fit")
        others = thresholds.refit_thresholds(fit, "best_dice", list("abcd"), 9)
        figures = at_thresholds(part, others)
        assert set(figures) == {"dice_d", "dice_s_mean"}
        for place, one in enumerate(others):
            expected = compute_metrics(part, one)
            assert {k: v[place] for k, v in figures.items()} == {k: expected[k] for k in figures}

    def test_a_rule_that_fails_on_all_is_an_error_of_the_fit(self):
        healthy = [v._replace(lesion=np.zeros_like(v.lesion)) for v in random_cohort(3, seed=2)]
        part = count(ThresholdPart, healthy, name="fit")
        assert thresholds.refit_thresholds(part, "best_dice", list("abc"), 5) == []
        with pytest.raises(EvaluationError, match="no lesion voxel"):
            thresholds.fit_threshold(part, "best_dice")


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
    curves = weighted_curves(histograms, weights)
    assert tuple(curves) == CURVES
    for name, values in curves.items():
        np.testing.assert_allclose(values, getattr(measures, name)(summed), rtol=1e-12)


class TestHolm:
    def test_worked_example(self):
        assert inference.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])

    def test_never_above_one_never_below_p(self):
        p = np.random.default_rng(0).random(20)
        corrected = inference.holm(p)
        assert (corrected >= p).all()
        assert corrected.max() <= 1
        assert (np.diff(corrected[np.argsort(p)]) >= 0).all()

    def test_comparisons_that_were_not_made_do_not_count(self):
        corrected = inference.holm([0.02, np.nan, 0.01])
        assert corrected[[0, 2]] == pytest.approx([0.02, 0.02])
        assert np.isnan(corrected[1])
