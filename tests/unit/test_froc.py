"""Lesions found against false ones, the surer first, as MONAI computes it and by brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from uadray.metrics.froc import RATES, Finds, curve, found_by_size, sensitivities
from uadray.metrics.inference import leaving_out


def scans(seed: int, count: int = 6) -> list[tuple[np.ndarray, np.ndarray]]:
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        smooth = ndimage.gaussian_filter(random.standard_normal((20, 20, 20)), 1.2)
        levels = np.clip(30000 + 40000 * smooth, 0, 65535).astype(np.uint16)
        lesion = ndimage.gaussian_filter(random.standard_normal((20, 20, 20)), 1.5) > 0.14
        levels[lesion] = np.minimum(levels[lesion].astype(int) + 8000, 65535)
        made.append((levels, lesion))
    return made


def finds_of(seed: int, level: int = 36000) -> list[Finds]:
    return [Finds.of(levels, levels >= level, lesion) for levels, lesion in scans(seed)]


def test_each_lesion_and_each_component_by_brute_force() -> None:
    structure = np.ones((3, 3, 3))
    for levels, lesion in scans(1):
        prediction = levels >= 36000
        found = Finds.of(levels, prediction, lesion)
        truth, num = ndimage.label(lesion, structure)
        components, count = ndimage.label(prediction, structure)
        sure = [levels[components == k].max() for k in range(1, count + 1)]
        scores = [
            max(
                (sure[k - 1] for k in np.unique(components[truth == n]) if k),
                default=0,
            )
            for n in range(1, num + 1)
        ]
        false = [sure[k - 1] for k in range(1, count + 1) if not lesion[components == k].any()]
        assert found.scores.tolist() == scores
        assert sorted(found.false_scores) == sorted(false)
        assert found.sizes.tolist() == [(truth == n).sum() for n in range(1, num + 1)]
        (again,) = Finds.read(found.flat())
        assert again.flat().tolist() == found.flat().tolist()


def test_several_in_a_row_are_read_again() -> None:
    several = finds_of(2)
    again = Finds.read(np.concatenate([one.flat() for one in several]))
    assert [one.flat().tolist() for one in again] == [one.flat().tolist() for one in several]


def test_sensitivity_is_that_of_monai() -> None:
    froc = pytest.importorskip("monai.metrics.froc")
    several = finds_of(3, level=33000)
    false = np.concatenate([one.false_scores for one in several])
    scores = np.concatenate([one.scores for one in several])
    rates, share = froc.compute_froc_curve_data(false, scores[scores > 0], len(scores), 6)
    # It leaves out the point of the whole prediction.
    known = [r for r in RATES if r <= max(rates)]
    assert len(known) > 3
    ours = sensitivities(several, np.ones((1, 6), np.int64))
    for rate, fits in zip(RATES, ours, strict=False):
        if rate in known:
            expected = froc.compute_froc_score(rates, share, (rate,))
            assert fits.values[0, 0] == pytest.approx(expected)


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000))
def test_who_is_left_out_is_as_if_never_there(seed: int) -> None:
    several = finds_of(seed)
    people = ["a", "a", "b", "c", "d", "d"]
    weights = leaving_out(people)
    each = sensitivities(several, weights)
    for n, name in enumerate("abcd", start=1):
        rest = [one for one, person in zip(several, people, strict=True) if person != name]
        alone = sensitivities(rest, np.ones((1, len(rest)), np.int64))
        assert [f.values[0, n] for f in each] == pytest.approx([f.values[0, 0] for f in alone])
    false, found = curve(several, weights[:1])
    assert (np.diff(false[0]) >= 0).all()
    assert (np.diff(found[0]) >= 0).all()
    detected = sum((one.scores > 0).sum() for one in several)
    assert found[0, -1] == pytest.approx(detected / sum(len(one.sizes) for one in several))


def test_nothing_predicted_and_no_lesion() -> None:
    empty = np.zeros((4, 4, 4), bool)
    levels = np.zeros((4, 4, 4), np.uint16)
    lesion = empty.copy()
    lesion[1, 1, 1] = True
    missed = Finds.of(levels, empty, lesion)
    assert sensitivities([missed], np.ones((1, 1), np.int64))[0].values[0, 0] == 0
    none = Finds.of(levels, empty, empty)
    assert np.isnan(sensitivities([none], np.ones((1, 1), np.int64))[0].values[0, 0])


def test_shares_by_size_are_counts() -> None:
    several = finds_of(4)
    weights = leaving_out([f"p{n}" for n in range(6)])
    ranges = found_by_size(several, [0.5] * 6, (1, 5), weights)
    sizes = 0.5 * np.concatenate([one.sizes for one in several])
    scores = np.concatenate([one.scores for one in several])
    for (low, high), (number, hits, fits) in zip(
        ((0, 1), (1, 5), (5, np.inf)), ranges, strict=True
    ):
        inside = (sizes >= low) & (sizes < high)
        assert (number, hits) == (inside.sum(), (scores[inside] > 0).sum())
        if number:
            assert fits.values[0, 0] == hits / number
