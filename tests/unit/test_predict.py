"""One scan in, maps on its own grid out."""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import scipy.ndimage as ndi
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel import orientations
from nibabel.processing import resample_to_output
from scipy.interpolate import RegularGridInterpolator
from tiny_cohorts import tiny_vae
from tiny_models import (
    LESION,
    SMALL,
    finished_run,
    freeze_threshold,
    healthy_cohort,
    scan_of,
    write_cohort,
    write_head,
)

from uadray.config import experiment
from uadray.errors import (
    ConfigError,
    NoThresholdError,
    RunError,
    ScanError,
)
from uadray.evaluation.protocols import EvaluateConfig
from uadray.evaluation.scoring import Scorer, Work
from uadray.metrics.postprocess import dequantise, smallest_findable_mm
from uadray.metrics.settings import ComponentConfig, PostprocessConfig
from uadray.prediction import outputs
from uadray.prediction.inputs import find_items, named_modalities
from uadray.prediction.model import Model
from uadray.prediction.model_folder import open_model
from uadray.prediction.scan import Prediction, clear_of, predict_scan
from uadray.prediction.settings import PredictConfig
from uadray.preparation.settings import PrepareConfig
from uadray.runs.folder import Run
from uadray.runs.scores import ScoreStore
from uadray.store import Cohort, open_cohort

THRESHOLD = 0.8


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def run(home: Path) -> Run:
    """Raw intensity, which finds the bright ball, with a frozen threshold."""
    cohort = healthy_cohort(home)
    run = finished_run(home / "run", cohort, "Intensity")
    freeze_threshold(run, THRESHOLD)
    return run


@pytest.fixture(scope="module")
def model(run: Run) -> Model:
    return open_model(run.url)


@settings(max_examples=8, deadline=None)
@given(
    order=st.permutations([0, 1, 2]),
    signs=st.tuples(*[st.sampled_from([1, -1])] * 3),
    sizes=st.tuples(*[st.sampled_from([0.8, 1.0, 1.5, 2.0])] * 3),
    degrees=st.sampled_from([0.0, 0.0, 8.0, -15.0]),
)
def test_a_lesion_is_found_where_it_is_on_any_grid(
    tmp_path_factory, model, order, signs, sizes, degrees
) -> None:
    path = tmp_path_factory.mktemp("odd") / "p_T1w.nii.gz"
    write_head(path, 3, lesion=True, order=order, signs=signs, sizes=sizes, degrees=degrees)
    prediction = predict_scan(model, scan_of(str(path)))

    image = nib.load(path)
    assert prediction.anomaly.shape == prediction.brain.shape == image.shape
    assert prediction.anomaly.dtype == np.float32
    assert np.allclose(prediction.grid.affine, image.affine)
    centre = image.affine @ [*np.argwhere(prediction.proposal).mean(0), 1]
    half_a_voxel = np.array(SMALL.extent.mm) / 16 / 2
    assert (np.abs(centre[:3] - LESION) <= half_a_voxel).all()

    scores = dequantise(prediction.levels, model.detector.score_range)
    expected, inside = by_another_interpolator(scores, prediction)
    assert inside.sum() > 500
    assert np.abs(prediction.anomaly - expected)[inside & prediction.brain].max() < 1e-4
    assert not prediction.anomaly[~prediction.brain].any()
    assert np.array_equal(prediction.anomaly >= THRESHOLD, prediction.proposal)


def by_another_interpolator(
    stored: np.ndarray, prediction: Prediction
) -> tuple[np.ndarray, np.ndarray]:
    """An array of the model's grid at every voxel of the file, and where it lies within."""
    axes = [np.arange(n) for n in stored.shape]
    sample = RegularGridInterpolator(axes, stored, bounds_error=False, fill_value=0.0)
    index = np.indices(prediction.grid.shape).reshape(3, -1)
    world = prediction.grid.affine[:3, :3] @ index + prediction.grid.affine[:3, 3:]
    inner = np.linalg.inv(prediction.prepared.affine)
    at = (inner[:3, :3] @ world + inner[:3, 3:]).T[:, ::-1]
    inside = ((at >= 0) & (at <= np.array(stored.shape) - 1)).all(1)
    return sample(at).reshape(prediction.grid.shape), inside.reshape(prediction.grid.shape)


def test_a_run_on_patients_alone_has_no_healthy_scans_to_compare_with(tmp_path: Path) -> None:
    """HistEq learns nothing and may be laid out on the cohort that is tested."""
    scans = [scan_of(write_head(tmp_path / f"s{k}_T1w.nii.gz", k, lesion=True)) for k in range(3)]
    cohort = write_cohort(tmp_path / "tested.zarr", scans, ["test"] * 3)
    run = finished_run(tmp_path / "run", cohort, "HistEq")
    with pytest.raises(
        RunError, match=r"tested\.zarr.* all for testing.* fit the method on a heal"
    ):
        open_model(run.url)


def test_the_same_scores_as_the_evaluation(home: Path, run: Run, model: Model) -> None:
    names = [f"s{k}_T1w" for k in range(3)]
    scans = [
        scan_of(write_head(home / f"test/{n}.nii.gz", k, lesion=True, sizes=(1.0, 0.9, 1.2)))
        for k, n in enumerate(names)
    ]
    cohort = write_cohort(home / "scored.zarr", scans, ["test"] * 3)
    for chosen in (experiment("Intensity"), experiment("MeanImage"), tiny_vae(3)):
        one = finished_run(home / f"same-{chosen.name}", _fitted_on(run), chosen)
        opened = open_model(one.url)
        config = EvaluateConfig()
        store = ScoreStore.create(
            one, cohort, opened.detector.score_range, config.scoring(cohort.shape)
        )
        work = Work(run=one, store=store, to_score=frozenset(range(3)), to_filter=frozenset())
        rows = cohort.subjects["row"].tolist()
        batch = {"id": np.array(rows)} | {
            name: np.concatenate([cohort.read(name, row, row + 1) for row in rows])
            for name in ("image", "brain")
        }
        Scorer([work], dict(zip(rows, cohort.subjects["id"], strict=True)), config)(batch)
        by_id = {scan.id: scan for scan in scans}
        for row, name in zip(rows, cohort.subjects["id"], strict=True):
            prediction = predict_scan(opened, by_id[name], PredictConfig(map_only=True))
            kept = store.levels(row).astype(int)
            assert kept.any()
            # Batches of another size may round the last bit of a float otherwise.
            assert np.abs(prediction.levels.astype(int) - kept).max() <= 1
            assert np.array_equal(prediction.prepared.brain, cohort.read("brain", row, row + 1)[0])


def _fitted_on(run: Run) -> Cohort:
    return open_cohort(run.cohort_url)


def test_figures_are_those_of_the_files(tmp_path: Path, model: Model) -> None:
    path = write_head(
        tmp_path / "sub_T1w.nii.gz", 5, lesion=True, order=(2, 0, 1), sizes=(2.0, 1.0, 1.0)
    )
    (item,) = find_items([path], "T1w").items
    summary = outputs.write(str(tmp_path / "out"), item, predict_scan(model, item.scan))
    folder = tmp_path / "out" / "sub_T1w"
    read = {
        kind: nib.load(folder / name) for kind, name in summary["files"].items() if kind != "scan"
    }
    assert set(read) == {"anomaly", "proposal", "brain_mask"}  # intensity reconstructs nothing
    scan = nib.load(path)
    for image in read.values():
        assert image.shape == scan.shape
        assert np.array_equal(image.affine, scan.affine)
    assert read["anomaly"].get_data_dtype() == np.float32
    anomaly = np.asarray(read["anomaly"].dataobj)
    proposal = np.asarray(read["proposal"].dataobj)
    assert set(np.unique(proposal)) == {0, 1}
    assert summary["proposal"]["volume_ml"] == pytest.approx(proposal.sum() * 2.0 / 1000)
    assert summary["proposal"]["components"] == 1
    assert summary["proposal"]["largest_ml"] == summary["proposal"]["volume_ml"]
    assert summary["axial_axis"] == 0
    by_slice = anomaly.max((1, 2))
    assert np.allclose(summary["slice_scores"], by_slice, atol=1e-6)
    assert summary["top_slice"] == by_slice.argmax()
    assert summary["threshold"]["value"] == THRESHOLD
    assert summary["threshold"]["fitted_on"] == "stroke/threshold: 5 subjects"
    assert summary["run"]["identity"] == model.identity
    assert {"read", "strip", "standardise", "score", "map_back", "write"} <= set(summary["seconds"])
    brain = np.asarray(read["brain_mask"].dataobj) > 0
    # The mask is that of the scan's own voxels, not of the coarse grid.
    assert (brain == (np.asarray(scan.dataobj) > 0)).mean() > 0.99


def test_both_placements_of_a_header_are_kept(tmp_path: Path, model: Model) -> None:
    """Readers differ in which one they believe, and must lay the map on the scan either way."""
    path = Path(write_head(tmp_path / "two_T1w.nii.gz", 1, sizes=(1.0, 1.0, 2.0)))
    image = nib.load(path)
    moved = image.affine.copy()
    moved[:3, 3] += 7
    image.set_qform(moved, code=1)
    image.set_sform(image.affine, code=2)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), None, image.header), path)
    (item,) = find_items([str(path)], "T1w").items
    outputs.write(str(tmp_path / "out"), item, predict_scan(model, item.scan))
    written = nib.load(tmp_path / "out/two_T1w/anomaly.nii.gz")
    assert np.allclose(written.get_sform(), image.get_sform())
    assert np.allclose(written.get_qform(), moved, atol=1e-5)
    assert (int(written.header["sform_code"]), int(written.header["qform_code"])) == (2, 1)
    one, other = (sitk.ReadImage(str(p)) for p in (path, tmp_path / "out/two_T1w/anomaly.nii.gz"))
    assert np.allclose(one.GetOrigin(), other.GetOrigin(), atol=1e-4)
    assert np.allclose(one.GetDirection(), other.GetDirection(), atol=1e-4)
    assert np.allclose(one.GetSpacing(), other.GetSpacing(), atol=1e-4)


def test_a_reconstruction_lies_on_the_scan(tmp_path: Path, run: Run) -> None:
    fitted = finished_run(tmp_path / "mean", _fitted_on(run), "MeanImage")
    model = open_model(fitted.url)
    path = write_head(tmp_path / "a_T1w.nii.gz", 40)
    prediction = predict_scan(model, scan_of(path), PredictConfig(map_only=True))
    assert prediction.proposal is None
    assert prediction.summary["proposal"] is None
    assert prediction.summary["threshold"] is None
    assert prediction.reconstruction is not None
    image = prediction.prepared.image.astype(np.float16)
    healthy = model.detector.state_dict()["mean"].numpy() * (image > 0) * prediction.prepared.brain
    assert healthy.max() > 0.5
    expected, inside = by_another_interpolator(healthy, prediction)
    assert np.abs(prediction.reconstruction - expected)[inside].max() < 1e-4


def test_a_reconstruction_is_searched_for_once(tmp_path, run, monkeypatch) -> None:
    model = open_model(finished_run(tmp_path / "mean", _fitted_on(run), "MeanImage").url)
    calls, kind = [], type(model.detector)
    plain = kind.reconstruct_within
    monkeypatch.setattr(
        kind, "reconstruct_within", lambda self, x, m: calls.append(1) or plain(self, x, m)
    )
    path = write_head(tmp_path / "a_T1w.nii.gz", 41)
    for _ in range(2):
        predict_scan(model, scan_of(path), PredictConfig(map_only=True))
    assert len(calls) == 2


def test_postprocessing_and_filter_are_those_of_the_threshold(home: Path, run: Run) -> None:
    other = finished_run(home / "filtered", _fitted_on(run), "Intensity")
    config = EvaluateConfig(
        postprocess=PostprocessConfig(erosion_iterations=0, median_size=1),
        components=ComponentConfig(max_size=10_000),
    )
    freeze_threshold(other, THRESHOLD, config=config)
    path = write_head(home / "filtered_T1w.nii.gz", 3, lesion=True)
    prediction = predict_scan(open_model(other.url), scan_of(path))
    assert prediction.levels.max() == 65535  # no median
    assert prediction.proposal is not None
    assert not prediction.proposal.any()  # no component is so large
    given = predict_scan(open_model(other.url), scan_of(path), PredictConfig(threshold=0.5))
    assert np.array_equal(given.levels, prediction.levels)


class TestThresholds:
    def test_none_frozen(self, home: Path, run: Run) -> None:
        bare = open_model(finished_run(home / "bare", _fitted_on(run), "Intensity-dark").url)
        scan = scan_of(write_head(home / "bare_T1w.nii.gz"))
        with pytest.raises(NoThresholdError, match=r"jobs/evaluate.py .*bare --cohort"):
            predict_scan(bare, scan)
        assert predict_scan(bare, scan, PredictConfig(map_only=True)).proposal is None
        assert predict_scan(bare, scan, PredictConfig(threshold=0.9)).proposal is not None

    def test_several_frozen(self, home: Path, run: Run) -> None:
        two = finished_run(home / "two", _fitted_on(run), "Intensity")
        freeze_threshold(two, 0.7)
        freeze_threshold(two, 0.9, cohort="tumour")
        model = open_model(two.url)
        scan = scan_of(write_head(home / "two_T1w.nii.gz"))
        with pytest.raises(NoThresholdError, match=r"stroke, tumour.*--threshold-from"):
            predict_scan(model, scan)
        prediction = predict_scan(model, scan, PredictConfig(threshold_from="tumour"))
        assert prediction.summary["threshold"]["value"] == 0.9
        with pytest.raises(NoThresholdError, match="it has those of stroke, tumour"):
            predict_scan(model, scan, PredictConfig(threshold_from="wmh"))

    @pytest.mark.parametrize("value", [0.0, -1.0, 1.5])
    def test_out_of_range(self, model: Model, value: float) -> None:
        with pytest.raises(ConfigError, match="run from 0 to 1"):
            model.choose_threshold(value=value)

    def test_a_given_one_is_the_next_level(self, model: Model) -> None:
        assert model.choose_threshold(value=1.0).level == 65535
        assert model.choose_threshold(value=dequantise(1234, (0, 1)).item()).level == 1234
        assert model.choose_threshold(value=1e-9).level == 1


class TestMapAndProposal:
    """The file's values at or above the threshold are the proposal, voxel for voxel."""

    @pytest.mark.parametrize("value", [0.8, 0.5, 12345 / 65535, 0.1, 0.97])
    @pytest.mark.parametrize("components", [ComponentConfig(), ComponentConfig(max_size=20)])
    def test_of_the_files(self, tmp_path, run, value, components) -> None:
        mine = finished_run(tmp_path / "run", _fitted_on(run), "Intensity")
        freeze_threshold(mine, value, config=EvaluateConfig(components=components))
        for k, degrees in enumerate((0.0, 8.0)):
            path = write_head(
                tmp_path / f"p{k}_T1w.nii.gz", 3, lesion=True, sizes=(0.9, 1, 1.3), degrees=degrees
            )
            (item,) = find_items([path], "T1w").items
            summary = outputs.write(
                str(tmp_path / "out"), item, predict_scan(open_model(mine.url), item.scan)
            )
            folder = tmp_path / "out" / item.folder
            anomaly, proposal, brain = (
                np.asarray(nib.load(folder / summary["files"][kind]).dataobj)
                for kind in ("anomaly", "proposal", "brain_mask")
            )
            threshold = summary["threshold"]["value"]
            assert proposal.any() or value == 0.97
            assert np.array_equal(anomaly >= np.float32(threshold), proposal > 0)
            assert np.array_equal(anomaly.astype(np.float64) >= threshold, proposal > 0)
            assert not anomaly[brain == 0].any()

    def test_dropped_components_are_in_neither(self, tmp_path: Path, run: Run) -> None:
        mine = finished_run(tmp_path / "run", _fitted_on(run), "Intensity")
        config = EvaluateConfig(components=ComponentConfig(max_size=4000))
        freeze_threshold(mine, 0.8, config=config)
        scan = scan_of(write_head(tmp_path / "p_T1w.nii.gz", 3, lesion=True))
        prediction = predict_scan(open_model(mine.url), scan)
        assert prediction.levels.max() > 0.8 * 65535
        assert prediction.anomaly.max() < 0.8
        assert not prediction.proposal.any()

    def test_volumes_on_both_grids_are_given(self, tmp_path: Path, model: Model) -> None:
        scan = scan_of(write_head(tmp_path / "p_T1w.nii.gz", 3, lesion=True))
        summary = predict_scan(model, scan).summary
        grid = summary["model_grid"]
        voxel = abs(np.linalg.det(np.array(grid["affine"])[:3, :3])) / 1000
        assert grid["proposed_ml"] == pytest.approx(grid["proposed_voxels"] * voxel)
        assert summary["proposal"]["volume_ml"] == pytest.approx(grid["proposed_ml"], rel=0.3)
        assert grid["median_window_mm"] == [8.75, 9.375, 8.125]
        edges = [mm / 5 for mm in grid["median_window_mm"]]
        assert grid["smallest_findable_mm"] == pytest.approx(smallest_findable_mm(edges, 5))

    @pytest.mark.parametrize("threshold", [0.1, 0.3, 1 / 3, 0.7, 5.3, 1e-4])
    def test_nothing_is_within_rounding_of_the_threshold(self, threshold: float) -> None:
        near = np.float32(threshold) + np.arange(-50, 51) * np.spacing(np.float32(threshold))
        scores = clear_of(near.astype(np.float32), threshold)
        assert np.array_equal(scores >= np.float32(threshold), scores.astype(float) >= threshold)
        assert np.abs(scores - near).max() <= 6 * np.spacing(np.float32(threshold))
        assert np.array_equal(clear_of(np.zeros(3, np.float32), threshold), np.zeros(3))


class TestWhatTheModelKnows:
    def test_a_scan_that_it_was_fitted_on(self, home: Path, model: Model) -> None:
        path = home / "scans/h00_T1w.nii.gz"
        image = nib.load(path)
        again = nib.Nifti1Image(np.asarray(image.dataobj), image.affine)
        again.header["descrip"] = b"exported again"
        nib.save(again, home / "copied.nii")
        for known in (path, home / "copied.nii"):
            warnings = predict_scan(model, scan_of(str(known))).summary["warnings"]
            assert any("was fitted on this very scan" in w for w in warnings)
        new = write_head(home / "unknown_T1w.nii.gz", 88)
        warnings = predict_scan(model, scan_of(new)).summary["warnings"]
        assert not any("very scan" in w for w in warnings)

    def test_a_name_that_somebody_insists_on(self, tmp_path: Path, model: Model) -> None:
        scan = scan_of(write_head(tmp_path / "a_FLAIR.nii.gz", 77))
        prediction = predict_scan(model, scan, PredictConfig(ignore_names=True))
        assert any("named as FLAIR, but the model" in w for w in prediction.summary["warnings"])

    def test_another_preparation(self, tmp_path: Path, model: Model) -> None:
        scan = scan_of(write_head(tmp_path / "a_T1w.nii.gz", 77))
        prediction = predict_scan(model, scan, PredictConfig(grow_extent=True))
        assert any("grow_extent is True, there False" in w for w in prediction.summary["warnings"])

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_a_threshold_that_is_no_number(self, value: float) -> None:
        with pytest.raises(ConfigError, match="threshold must be a finite score"):
            PredictConfig(threshold=value)


class TestBadScans:
    @pytest.mark.parametrize(
        ("name", "named"), [("p_FLAIR", "FLAIR"), ("p-t2", "T2w"), ("a_T1ce", "T1ce")]
    )
    def test_another_modality_by_its_name(self, tmp_path, model, name, named) -> None:
        scan = scan_of(write_head(tmp_path / f"{name}.nii.gz"))
        with pytest.raises(ScanError, match=rf"named as {named}.*fitted on T1w.*--ignore-names"):
            predict_scan(model, scan)
        assert predict_scan(model, scan, PredictConfig(ignore_names=True)).summary

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("whole_head_T1", {"T1w"}),
            ("sub-01_acq-mprage_T1w", {"T1w"}),
            ("patient_PD_003", set()),
            ("T2-FLAIR", {"T2w", "FLAIR"}),
            ("rest_bold", {"bold"}),
            ("scan17", set()),
            ("T10_M1", set()),
        ],
    )
    def test_names(self, name, expected) -> None:
        assert named_modalities(name) == expected

    def test_no_brain(self, tmp_path: Path, model: Model) -> None:
        affine = np.diag([1.0, 1.0, 1.0, 1.0])
        speck = np.zeros((20, 20, 20), np.float32)
        speck[10, 10, 8:12] = [3, 4, 5, 6]
        nib.save(nib.Nifti1Image(speck, affine), tmp_path / "speck.nii.gz")
        with pytest.raises(ScanError, match=r"0 mL are brain, expected at least 0\.1"):
            predict_scan(model, scan_of(str(tmp_path / "speck.nii.gz")))
        nib.save(nib.Nifti1Image(speck * 0, affine), tmp_path / "empty.nii.gz")
        with pytest.raises(ScanError, match="all zeros"):
            predict_scan(model, scan_of(str(tmp_path / "empty.nii.gz")))

    def test_a_brain_larger_than_the_box(self, tmp_path: Path, model: Model) -> None:
        scan = scan_of(write_head(tmp_path / "large.nii.gz", sizes=(1.0,) * 3))
        image = nib.load(scan.image)
        larger = image.affine @ np.diag([1.5, 1.5, 1.5, 1])
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), larger), scan.image)
        with pytest.raises(ScanError, match=r"larger than the extent.*--grow-extent"):
            predict_scan(model, scan)
        prediction = predict_scan(model, scan, PredictConfig(grow_extent=True))
        assert any("extent grown" in note for note in prediction.summary["notes"])


class TestUnlike:
    def test_nothing_is_said_of_a_healthy_scan(self, home: Path, model: Model) -> None:
        prediction = predict_scan(model, scan_of(write_head(home / "like_T1w.nii.gz", 77)))
        assert prediction.summary["warnings"] == []

    def test_a_coarse_scan(self, tmp_path: Path, model: Model) -> None:
        scan = scan_of(write_head(tmp_path / "c.nii.gz", 2, sizes=(1.0, 1.0, 3.0)))
        warnings = predict_scan(model, scan).summary["warnings"]
        assert any("coarser than those of the healthy scans" in w for w in warnings)

    def test_a_tilted_grid(self, tmp_path: Path, model: Model) -> None:
        """The grid is not turned back, so that the model sees the head at a slant."""
        for degrees, tilted in ((20, True), (4, False)):
            scan = scan_of(write_head(tmp_path / f"t{degrees}.nii.gz", 77, degrees=degrees))
            warnings = predict_scan(model, scan).summary["warnings"]
            assert any("brain is tilted by" in w for w in warnings) == tilted

    def test_a_lesion_mask_that_cannot_be_used(self, tmp_path: Path, model: Model) -> None:
        path = write_head(tmp_path / "a_T1w.nii.gz", 3)
        image = nib.load(path)
        faint = np.full(image.shape, 0.3, np.float32)
        faint[0] = 0
        nib.save(nib.Nifti1Image(faint, image.affine), tmp_path / "m.nii")
        scan = replace(scan_of(path), lesion=str(tmp_path / "m.nii"))
        summary = predict_scan(model, scan).summary
        assert summary["truth"] is None
        assert any("lesion mask that came with it cannot be used" in w for w in summary["warnings"])

    def test_another_contrast(self, tmp_path: Path, run: Run) -> None:
        model = open_model(finished_run(tmp_path / "mean", _fitted_on(run), "MeanImage").url)
        path = write_head(tmp_path / "p.nii.gz", 2)
        image = nib.load(path)
        voxels = np.asarray(image.dataobj)
        inverted = np.where(voxels > 0, 300 - voxels, 0)
        nib.save(nib.Nifti1Image(inverted, image.affine), tmp_path / "inverted.nii.gz")
        scan = scan_of(str(tmp_path / "inverted.nii.gz"))
        warnings = predict_scan(model, scan, PredictConfig(map_only=True)).summary["warnings"]
        assert any("mean anomaly score of its brain" in w for w in warnings)

    def test_measures_of_the_quality_page(self, home: Path, model: Model) -> None:
        prediction = predict_scan(model, scan_of(write_head(home / "m_T1w.nii.gz", 78)))
        image, brain = prediction.prepared.image, prediction.prepared.brain
        doubts = model.healthy.doubts(
            image**3,
            brain,
            spacing_mm=(9.0, 9.0, 9.0),
            scan_mm=(1.0, 1.0, 1.0),
            mean_score=model.healthy.mean_score,
        )
        assert any("Brain (mL)" in w and "above" in w for w in doubts)
        assert any("Mean (intensity)" in w and "below" in w for w in doubts)
        assert any("Histogram (distance)" in w for w in doubts)
        assert all(w.startswith("unlike the 12 healthy scans of the model: ") for w in doubts)


class TestOpening:
    def test_the_cohort_is_needed_once(self, tmp_path: Path) -> None:
        cohort = healthy_cohort(tmp_path)
        run = finished_run(tmp_path / "run", cohort, "ZScore")
        moved = tmp_path / "elsewhere.zarr"
        (tmp_path / "healthy.zarr").rename(moved)
        with pytest.raises(RunError, match=r"recorded in its cohort.*--cohort"):
            open_model(run.url)
        first = open_model(run.url, cohort=str(moved))
        moved.rename(tmp_path / "gone.zarr")
        again = open_model(run.url)
        assert (again.prepare, again.healthy, again.identity) == (
            first.prepare,
            first.healthy,
            first.identity,
        )

    def test_another_cohort(self, tmp_path: Path, run: Run) -> None:
        other = healthy_cohort(tmp_path, 8)
        fitted = finished_run(tmp_path / "run", _fitted_on(run), "HistEq")
        with pytest.raises(RunError, match=f"was fitted on {run.cohort_fingerprint}"):
            open_model(fitted.url, cohort=other.url)

    def test_an_unfinished_run(self, tmp_path: Path, run: Run) -> None:
        Run.create(str(tmp_path / "run"), experiment("HistEq"), _fitted_on(run))
        with pytest.raises(RunError, match=r"not finished: run the same jobs/train\.py"):
            open_model(str(tmp_path / "run"))


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize(("codes", "size"), [("LAS", 0.0), ("PIL", 1.4), ("SLA", 0.9)])
def test_a_real_scan_on_odd_grids(tmp_path: Path, real_data: Path, codes: str, size: float) -> None:
    """A ball in a real brain comes back in its place, however the file is turned."""
    folder = real_data / "ds002748"
    healthy = scan_of(str(folder / "sub-04/anat/sub-04_T1w.nii.gz"))
    cohort = write_cohort(tmp_path / "h.zarr", [healthy], ["validation"], PrepareConfig())
    run = finished_run(tmp_path / "run", cohort, "Intensity")
    freeze_threshold(run, 0.98)

    source = nib.load(folder / "sub-02/anat/sub-02_T1w.nii.gz")
    voxels = np.asarray(source.dataobj, np.float32)
    # Off the centre on each axis: a flipped map would show.
    centre = np.round(ndi.center_of_mass(voxels > 0)).astype(int) + np.array([20, -20, 6])
    offset = (np.indices(voxels.shape).T - centre) * source.header.get_zooms()
    ball = np.linalg.norm(offset, axis=-1).T < 8
    maps = []
    for value in np.percentile(voxels[voxels > 0], [98, 2]):
        image = nib.Nifti1Image(np.where(ball, np.float32(value), voxels), source.affine)
        if size:
            image = resample_to_output(image, [size] * 3, order=1)
        turn = orientations.ornt_transform(
            orientations.io_orientation(image.affine), orientations.axcodes2ornt(tuple(codes))
        )
        image = image.as_reoriented(turn)
        nib.save(image, tmp_path / "odd_T1w.nii.gz")
        odd = scan_of(str(tmp_path / "odd_T1w.nii.gz"))
        maps.append(predict_scan(open_model(run.url), odd).anomaly)
    # What the brain has there falls out of the difference; the ball's own intensity is left.
    more = np.clip(maps[0] - maps[1], 0, None)
    assert more.max() > 0.7
    at = (image.affine @ [*ndi.center_of_mass(more), 1])[:3]
    half_a_voxel = PrepareConfig().extent.mm / 64 / 2
    assert np.all(np.abs(at - (source.affine @ [*centre, 1])[:3]) < half_a_voxel)
