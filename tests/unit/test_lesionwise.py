"""Lesions as objects, against labels and distances spelled out, and against SimpleITK."""

import math

import numpy as np
import pytest
import scipy.ndimage as ndi
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.distance import cdist

from uadray.errors import EvaluationError
from uadray.metrics.lesionwise import (
    LesionTruth,
    SubjectLesions,
    compare_lesions,
    component_sizes,
    lesion_metrics,
    lesion_statistics,
    surface_distances,
)

SPACING = (2.5, 1.0, 1.5)
SHAPE = (4, 5, 4)
masks = hnp.arrays(np.bool_, SHAPE, elements=st.sampled_from([False, False, False, True]))
spacings = st.tuples(*[st.sampled_from([0.5, 1.0, 2.5])] * 3)


def components(mask: np.ndarray, connectivity: int) -> list[set[tuple[int, ...]]]:
    """Components by growing them voxel by voxel."""
    steps = {6: 1, 18: 2, 26: 3}[connectivity]
    left = {tuple(p) for p in np.argwhere(mask).tolist()}
    parts = []
    while left:
        grown, edge = set(), {left.pop()}
        while edge:
            grown |= edge
            edge = {
                q
                for p in edge
                for q in left
                if max(abs(a - b) for a, b in zip(p, q, strict=True)) <= 1
                and sum(abs(a - b) for a, b in zip(p, q, strict=True)) <= steps
            }
            left -= edge
        parts.append(grown)
    return parts


def surface(mask: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """Voxels with a face neighbour outside the mask, in mm, by asking each neighbour."""
    padded = np.pad(mask, 1)
    points = []
    for z, y, x in np.argwhere(mask):
        near = [(z, y + 1, x + 1), (z + 2, y + 1, x + 1), (z + 1, y, x + 1)]
        near += [(z + 1, y + 2, x + 1), (z + 1, y + 1, x), (z + 1, y + 1, x + 2)]
        if not all(padded[place] for place in near):
            points.append((z * spacing[0], y * spacing[1], x * spacing[2]))
    return np.array(points)


class TestCompare:
    @settings(deadline=None)
    @given(masks, masks, st.sampled_from([6, 18, 26]))
    def test_equals_growing_components(self, prediction, lesion, connectivity):
        result = compare_lesions(prediction, lesion, SPACING, connectivity)
        true, predicted = components(lesion, connectivity), components(prediction, connectivity)
        voxels = {tuple(p) for p in np.argwhere(prediction).tolist()}
        truth = {tuple(p) for p in np.argwhere(lesion).tolist()}
        assert (result.num_lesions, result.num_predicted) == (len(true), len(predicted))
        assert result.num_detected == sum(bool(part & voxels) for part in true)
        assert result.num_false == sum(not part & truth for part in predicted)
        assert result.true_positives == len(voxels & truth)
        assert result.false_positives == len(voxels - truth)
        empty = not (voxels and truth)
        assert math.isnan(result.hd95_mm) == math.isnan(result.surface_distance_mm) == empty

    def test_one_large_prediction_detects_what_it_covers(self):
        lesion = np.zeros((9, 9, 9), bool)
        lesion[1, 1, 1] = lesion[7, 7, 7] = True
        result = compare_lesions(np.ones_like(lesion), lesion, SPACING)
        assert (result.num_detected, result.num_predicted, result.num_false) == (2, 1, 0)

    def test_other_grids_are_refused(self):
        with pytest.raises(EvaluationError, match=r"one \(Z, Y, X\) grid"):
            compare_lesions(np.ones((2, 2, 2), bool), np.ones((2, 2, 3), bool), SPACING)


class TestSurfaceDistances:
    @settings(deadline=None)
    @given(masks, masks, spacings)
    def test_equal_all_pairs(self, prediction, lesion, spacing):
        hd95, mean = surface_distances(prediction, lesion, spacing)
        if not (prediction.any() and lesion.any()):
            assert math.isnan(hd95)
            assert math.isnan(mean)
            return
        distances = cdist(surface(prediction, spacing), surface(lesion, spacing))
        there, back = distances.min(axis=1), distances.min(axis=0)
        expected = max(np.percentile(there, 95), np.percentile(back, 95))
        assert hd95 == pytest.approx(expected)
        assert mean == pytest.approx(np.concatenate([there, back]).mean())
        assert surface_distances(lesion, prediction, spacing) == pytest.approx((hd95, mean))

    def test_equals_the_distance_maps_of_simpleitk(self):
        z, y, x = np.indices((20, 24, 22))
        prediction = (z - 9) ** 2 + (y - 10) ** 2 + (x - 11) ** 2 < 36
        lesion = ((z - 11) / 5) ** 2 + ((y - 13) / 8) ** 2 + ((x - 10) / 4) ** 2 < 1
        images = [sitk.GetImageFromArray(m.astype(np.uint8)) for m in (prediction, lesion)]
        for image in images:
            image.SetSpacing(SPACING[::-1])
        contours = [sitk.LabelContour(image, fullyConnected=False) for image in images]
        maps = [
            sitk.GetArrayFromImage(
                sitk.SignedMaurerDistanceMap(c, squaredDistance=False, useImageSpacing=True)
            ).clip(0)
            for c in contours
        ]
        edges = [sitk.GetArrayFromImage(c) > 0 for c in contours]
        there, back = maps[1][edges[0]], maps[0][edges[1]]
        hd95, mean = surface_distances(prediction, lesion, SPACING)
        assert hd95 == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)))
        assert mean == pytest.approx(np.concatenate([there, back]).mean())

    def test_a_shift_is_its_length_in_mm(self):
        lesion = np.zeros((12, 12, 12), bool)
        lesion[2:4, 2:9, 2:9] = True
        for axis, step in enumerate(SPACING):
            hd95, _ = surface_distances(np.roll(lesion, 1, axis), lesion, SPACING)
            assert hd95 == pytest.approx(step)
        assert surface_distances(lesion, lesion, SPACING) == (0, 0)

    @pytest.mark.parametrize("spacing", [(1, 1, 0), (1, -1, 1), (1, 1)])
    def test_a_wrong_spacing_is_refused(self, spacing):
        with pytest.raises(EvaluationError, match="edge lengths"):
            surface_distances(np.ones((2, 2, 2), bool), np.ones((2, 2, 2), bool), spacing)


def subject(**values: float) -> SubjectLesions:
    nothing = dict.fromkeys(SubjectLesions.__dataclass_fields__, 0)
    return SubjectLesions(
        **nothing | {"hd95_mm": math.nan, "surface_distance_mm": math.nan} | values
    )


class TestMetrics:
    SUBJECTS = (
        subject(num_lesions=4, num_detected=3, num_predicted=5, num_false=2, hd95_mm=6.0),
        subject(num_lesions=1, num_detected=0),
        subject(num_predicted=3, num_false=3),
    )

    def test_lesions_are_pooled_and_false_ones_averaged(self):
        metrics = {k: float(v) for k, v in lesion_metrics(self.SUBJECTS).items()}
        assert metrics.pop("lesion_detection_rate") == pytest.approx(3 / 5)
        assert metrics.pop("lesion_precision") == pytest.approx(3 / 8)
        assert metrics.pop("false_components_per_volume") == pytest.approx(5 / 3)
        assert metrics.pop("hd95_mm_mean") == pytest.approx(6.0)  # of the one that has a distance
        assert math.isnan(metrics.pop("surface_distance_mm_mean"))
        assert not metrics

    def test_weights_repeat_subjects(self):
        weights = np.array([[2, 0, 1], [0, 3, 0]])
        drawn = [self.SUBJECTS[n] for n in (0, 0, 2)]
        metrics, expected = lesion_metrics(self.SUBJECTS, weights), lesion_metrics(drawn)
        for name, values in metrics.items():
            np.testing.assert_allclose(values[0], expected[name])
        assert metrics["lesion_detection_rate"][1] == 0
        assert np.isnan(metrics["lesion_precision"][1])
        assert np.isnan(metrics["hd95_mm_mean"][1])


class TestStatistics:
    @settings(deadline=None)
    @given(masks, st.sampled_from([6, 18, 26]))
    def test_sizes_are_those_of_grown_components(self, mask, connectivity):
        expected = sorted(len(part) for part in components(mask, connectivity))
        assert component_sizes(mask, connectivity).tolist() == expected

    def test_a_cohort_as_table_1(self):
        lesion = np.zeros((6, 6, 6), bool)
        lesion[0, 0, :3] = lesion[3:5, 3:5, 3:5] = True
        held = [
            LesionTruth(id="a", split="test", sizes=component_sizes(lesion), voxel_ml=0.5),
            LesionTruth(
                id="b", split="threshold", sizes=component_sizes(lesion & False), voxel_ml=2
            ),
            LesionTruth(id="c", split="test", sizes=component_sizes(lesion[:1]), voxel_ml=1),
        ]
        table = lesion_statistics(held)
        assert ndi.label(lesion)[1] == 2
        assert (table["num_subjects"], table["num_components"]) == (3, 3)
        assert table["components_per_subject"] == 1
        assert table["mean_size_voxels"] == pytest.approx((3 + 8 + 3) / 3)
        assert table["median_size_voxels"] == 3
        assert table["mean_size_ml"] == pytest.approx((1.5 + 4 + 3) / 3)
        assert table["subjects"][0] == {
            "id": "a", "split": "test", "components": 2, "voxels": 11, "largest_voxels": 8,
        }  # fmt: skip
        assert table["subjects"][1]["largest_voxels"] == 0

    def test_no_lesion_has_no_size(self):
        table = lesion_statistics(
            [LesionTruth(id="a", split="test", sizes=np.array([]), voxel_ml=1)]
        )
        assert table["components_per_subject"] == 0
        assert table["mean_size_voxels"] is None
