"""What a worker does with a batch, without Ray: scores, counts, slices, filters, refusals."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from tiny_cohorts import AFFINE, SHAPE, write_lesioned
from torch import Tensor

from uadray import npz
from uadray.config import experiment
from uadray.errors import EvaluationError
from uadray.evaluation import scoring
from uadray.evaluation.cases import write_cases
from uadray.evaluation.examination import examine
from uadray.evaluation.protocols import PROTOCOLS, EvaluateConfig
from uadray.evaluation.record import check_classes
from uadray.evaluation.scoring import (
    BATCH_SIZE,
    Batch,
    Finisher,
    LevelScorer,
    Scorer,
    Work,
    batches_of,
    level_volumes,
    num_places,
    read_example,
    score_volumes,
)
from uadray.methods import build
from uadray.methods.base import Detection, Detector, ReconstructionDetector
from uadray.metrics.counts import CohortCounts, TestPart, ThresholdPart
from uadray.metrics.lesionwise import compare_lesions
from uadray.metrics.settings import ComponentConfig, PostprocessConfig
from uadray.runs import detector as run_detector
from uadray.runs.detector import load_detector
from uadray.runs.folder import Run
from uadray.runs.scores import ScoreStore
from uadray.store import Cohort
from uadray.tune.labelled import count_threshold_part

FILTER = ComponentConfig(max_size=3, connectivity=6)
CONFIG = EvaluateConfig(
    postprocess=PostprocessConfig(erosion_iterations=1, median_size=1), components=FILTER
)
SLICES = (4, 12)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return write_lesioned(tmp_path_factory.mktemp("lesioned"))


@pytest.fixture
def run(cohort: Cohort, tmp_path: Path) -> Run:
    """Of a method that needs no fit."""
    made = Run.create(str(tmp_path / "run"), experiment("Intensity"), cohort)
    made.finish({"status": "finished"})
    return made


@pytest.fixture
def some_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A protocol on the tiny grid that takes a few slices only."""
    tiny = replace(PROTOCOLS["bengs2021"], grid=SHAPE, slices=SLICES)
    monkeypatch.setitem(PROTOCOLS, "bengs2021", tiny)


def batch(cohort: Cohort, rows: list[int]) -> Batch:
    arrays = {
        name: np.concatenate([cohort.read(name, row, row + 1) for row in rows])  # type: ignore[arg-type]
        for name in ("image", "brain", "lesion")
    }
    return arrays | {"id": np.array(rows)}


def names(cohort: Cohort) -> dict[int, str]:
    return dict(zip(cohort.subjects["row"], cohort.subjects["id"], strict=True))


def score(run: Run, cohort: Cohort, rows: list[int], config: EvaluateConfig = CONFIG) -> ScoreStore:
    """Score some rows, and count them after the filter where there is one."""
    store = ScoreStore.create(run, cohort, (0.0, 1.0), config.scoring(cohort.shape))
    filtered = rows if config.components.max_size else []
    work = Work(run=run, store=store, to_score=frozenset(rows), to_filter=frozenset(filtered))
    done = Scorer([work], names(cohort), config)(batch(cohort, rows))
    assert done["id"].tolist() == rows
    assert (done["seconds"] > 0).all()
    return store


def expected_levels(cohort: Cohort, row: int) -> np.ndarray:
    """The intensity itself, eroded: what the run scores."""
    image, brain = (cohort.read(n, row, row + 1)[0] for n in ("image", "brain"))  # type: ignore[arg-type]
    cross = ndimage.generate_binary_structure(2, 1)
    inside = np.stack([ndimage.binary_erosion(plane, cross) for plane in brain])
    return np.rint(image.astype(np.float64) * 65535).astype(np.uint16) * inside


def without_small(mask: np.ndarray, max_size: int) -> np.ndarray:
    labels, count = ndimage.label(mask)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    return (labels > 0) & (sizes > max_size)[labels]


def positives(counts: CohortCounts, level: int) -> tuple[list[float], list[float]]:
    true, false = counts.positives(level)
    return true.tolist(), false.tolist()


class TestScorer:
    def test_it_keeps_levels_and_counts_with_and_without_the_filter(
        self, cohort: Cohort, run: Run
    ) -> None:
        store = score(run, cohort, [2, 5])
        assert store.done() == store.done(FILTER) == {2, 5}
        pairs = [(row, names(cohort)[row]) for row in (2, 5)]
        plain = store.counts(pairs, "c", CohortCounts)
        filtered = store.counts(pairs, "c", CohortCounts, FILTER)
        for place, row in enumerate((2, 5)):
            levels = expected_levels(cohort, row)
            np.testing.assert_array_equal(store.levels(row), levels)
            truth = cohort.read("lesion", row, row + 1)[0]
            for level in (1, 20000, 33000, 40000, 60000):
                for counts, predicted in (
                    (plain, levels >= level),
                    (filtered, without_small(levels >= level, 3)),
                ):
                    true, false = positives(counts, level)
                    assert true[place] == (predicted & truth).sum()
                    assert false[place] == (predicted & ~truth).sum()
        assert positives(plain, 33000) != positives(filtered, 33000)

    def test_another_filter_reads_what_is_kept(self, cohort: Cohort, run: Run) -> None:
        store = score(run, cohort, [1])
        chunk = Path(store.url) / "scores" / "c" / "1" / "0" / "0" / "0"
        written = chunk.stat().st_mtime_ns
        larger = replace(CONFIG, components=ComponentConfig(max_size=9, connectivity=26))
        work = Work(run=run, store=store, to_score=frozenset(), to_filter=frozenset([1]))
        Path(run.url, "config.json").unlink()  # no detector is asked for
        done = Scorer([work], names(cohort), larger)(batch(cohort, [1]))
        assert (done["seconds"] == 0).all()
        assert store.done(larger.components) == {1}
        assert chunk.stat().st_mtime_ns == written

    def test_slices_are_cut_behind_the_scoring(
        self, cohort: Cohort, run: Run, some_slices: None
    ) -> None:
        store, cut = score(run, cohort, [3]), slice(*SLICES)
        np.testing.assert_array_equal(store.levels(3), expected_levels(cohort, 3)[cut])
        counts = store.counts([(3, "a")], "c", CohortCounts)
        lesion = cohort.read("lesion", 3, 4)[0]
        assert counts.num_lesion.tolist() == [lesion[cut].sum()]
        assert counts.slice_lesion.tolist() == [lesion[cut].any((1, 2)).tolist()]

    def test_scores_do_not_depend_on_what_else_is_scored(
        self, cohort: Cohort, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As of one who rounds by where a volume is, among how many, as products of matrices do."""
        monkeypatch.setattr(run_detector, "load_detector", lambda _: ByPlace())
        rows = list(range(8))
        store = score(run, cohort, rows)
        whole = {row: store.levels(row) for row in rows}
        assert len({int(levels.max()) for levels in whole.values()}) == BATCH_SIZE
        for alone in ([2], [7, 1, 5], [4, 5, 6], [3, 4]):
            store = score(run, cohort, alone)
            assert all(np.array_equal(store.levels(row), whole[row]) for row in alone)

    def test_the_objectives_of_a_sweep_count_alike(
        self, cohort: Cohort, run: Run, some_slices: None
    ) -> None:
        rows = cohort.rows("threshold").tolist()
        kept = score(run, cohort, rows).counts(
            [(row, names(cohort)[row]) for row in rows], "c", ThresholdPart
        )
        part = count_threshold_part(load_detector(run), cohort, CONFIG)
        assert part.subjects == kept.subjects
        for name in ("healthy", "lesion"):
            assert (getattr(part, name) != getattr(kept, name)).nnz == 0
        np.testing.assert_array_equal(part.slice_score, kept.slice_score)
        np.testing.assert_array_equal(part.num_lesion_eroded, kept.num_lesion_eroded)

    def test_volumes_that_lie_scattered_are_scored_at_once(
        self, cohort: Cohort, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Such as the validation volumes of a healthy cohort: a group is not filled up for each."""
        detector, rows = ByPlace(), [0, 3, 7, 10]
        calls: list[int] = []
        monkeypatch.setattr(
            detector, "detect", lambda x, brain: Detection(calls.append(len(x)) or brain * 0.5)
        )
        monkeypatch.setattr(run_detector, "load_detector", lambda _: detector)
        store = ScoreStore.create(run, cohort, (0.0, 1.0), CONFIG.scoring(cohort.shape))
        work = Work(run=run, store=store, to_score=frozenset(rows), to_filter=frozenset())
        some = {row: name for row, name in names(cohort).items() if row in rows}
        Scorer([work], some, CONFIG)(batch(cohort, rows))
        assert store.done() == set(rows)
        assert calls == [BATCH_SIZE]

    @pytest.mark.parametrize("method", ["Intensity", "ByPlace", "Half"])
    @pytest.mark.parametrize("prior", [0.0, 0.6])
    def test_on_a_gpu_the_rest_is_done_in_tasks_with_the_same_result(
        self,
        cohort: Cohort,
        run: Run,
        monkeypatch: pytest.MonkeyPatch,
        some_slices: None,
        method: str,
        prior: float,
    ) -> None:
        """Here the GPU is the CPU, so that all bits are the same."""
        monkeypatch.setattr(scoring, "compute_device", lambda _: torch.device("cpu"))
        if method != "Intensity":
            made = {"ByPlace": ByPlace, "Half": Half}[method]
            monkeypatch.setattr(run_detector, "load_detector", lambda _: made())
        rules = PostprocessConfig(erosion_iterations=1, median_size=3, prior_quantile=prior)
        config, rows = replace(CONFIG, postprocess=rules), [0, 1, 3, 4, 6, 7]
        store = score(run, cohort, rows, config)
        pairs = [(row, names(cohort)[row]) for row in rows]
        whole = {row: store.levels(row) for row in rows}
        counts = [store.counts(pairs, "c", CohortCounts, one) for one in (None, FILTER)]
        shutil.rmtree(store.url)
        on_gpu = replace(config, gpus_per_actor=1.0, batch_size=BATCH_SIZE)
        store = ScoreStore.create(run, cohort, (0.0, 1.0), config.scoring(cohort.shape))
        work = Work(run=run, store=store, to_score=frozenset(rows), to_filter=frozenset(rows))
        scorer = LevelScorer([work], names(cohort), on_gpu)
        finish = Finisher(work=[work], names=names(cohort), config=on_gpu)
        for group in batches_of(np.array(rows), names(cohort), BATCH_SIZE):
            scored = scorer(batch(cohort, group.tolist()))
            assert scored["levels"].dtype == np.uint16
            assert store.done().isdisjoint(group)
            done = finish(scored)
            assert set(done) == {"id", "seconds"}
            assert (done["seconds"] > 0).all()
        assert store.done() == store.done(FILTER) == set(rows)
        for row in rows:
            np.testing.assert_array_equal(store.levels(row), whole[row])
        for before, one in zip(counts, (None, FILTER), strict=True):
            now = store.counts(pairs, "c", CohortCounts, one)
            for name in ("healthy", "lesion"):
                assert (getattr(before, name) != getattr(now, name)).nnz == 0

    def test_on_a_gpu_a_score_that_is_not_finite_is_named(self, cohort: Cohort) -> None:
        class Broken(Detector):
            def detect(self, x_BCZYX: Tensor, brain_BZYX: Tensor) -> Detection:
                scores = x_BCZYX[:, 0].clone()
                scores[1, 3, 4, 5] = torch.nan
                return Detection(scores)

        examples = [read_example(cohort, row, names(cohort)[row]) for row in (2, 5)]
        with pytest.raises(EvaluationError, match=f"'{names(cohort)[5]}'.* 1 of .* NaN"):
            level_volumes(Broken(), examples, CONFIG, torch.device("cpu"))

    def test_a_lesion_outside_the_brain_is_named(self, cohort: Cohort, run: Run) -> None:
        store = ScoreStore.create(run, cohort, (0.0, 1.0), CONFIG.scoring(cohort.shape))
        work = Work(run=run, store=store, to_score=frozenset([0, 4]), to_filter=frozenset())
        held = batch(cohort, [0, 4])
        inside = int(held["lesion"][1].sum())
        held["lesion"][1, 0, 0, :2] = True
        message = rf"'{names(cohort)[4]}': 2 of {inside + 2} lesion voxels lie outside the brain"
        with pytest.raises(EvaluationError, match=message):
            Scorer([work], names(cohort), CONFIG)(held)
        assert store.done() == set()

    def test_a_healthy_cohort_has_no_truth(self, cohort: Cohort, run: Run) -> None:
        store = ScoreStore.create(run, cohort, (0.0, 1.0), CONFIG.scoring(cohort.shape))
        work = Work(run=run, store=store, to_score=frozenset([0]), to_filter=frozenset())
        held = {k: v for k, v in batch(cohort, [0]).items() if k != "lesion"}
        Scorer([work], names(cohort), CONFIG)(held)
        counts = store.counts([(0, "a")], "c", CohortCounts)
        assert counts.num_lesion.tolist() == [0]
        assert counts.merged("brain").num_healthy == held["brain"].sum()


@pytest.mark.parametrize(
    ("gpus", "batch_size", "shape", "expected"),
    [
        (0, 0, (64, 64, 64), 4),
        (0, 32, (64, 64, 64), 8),
        (0, 6, (64, 64, 64), 2),
        (1, 0, (32, 32, 32), 32),
        (1, 0, (64, 64, 64), 32),
        (0.5, 0, (163, 191, 158), 1),
        (1, 0, (155, 128, 128), 2),
        (1, 12, (64, 64, 64), 12),
    ],
)
def test_how_many_volumes_are_scored_at_once(gpus, batch_size, shape, expected) -> None:
    config = replace(CONFIG, gpus_per_actor=gpus, batch_size=batch_size)
    assert num_places(config, shape) == expected


def test_groups_are_the_same_whatever_is_left_of_them() -> None:
    evaluated = [*range(0, 40, 2), 41, 43, 44]
    whole = batches_of(np.array(evaluated), evaluated, 8)
    assert [len(group) for group in whole] == [8, 8, 7]
    some = np.array([4, 12, 16, 38, 44])
    left = batches_of(some, evaluated, 8)
    assert [group.tolist() for group in left] == [[4, 12], [16], [38, 44]]
    assert all(set(group) <= set(whole[n]) for n, group in enumerate(left))
    assert batches_of(np.array([], np.int64), evaluated, 8) == []


class ByPlace(Detector):
    """Scores a volume by its place in the batch and by their number."""

    def detect(self, x_BCZYX: Tensor, brain_BZYX: Tensor) -> Detection:
        places = torch.arange(len(x_BCZYX)) + 1
        return Detection(brain_BZYX * (places / 10 / len(places)).reshape(-1, 1, 1, 1))


class Half(ReconstructionDetector):
    """Reconstructs one half everywhere."""

    def reconstruct(self, x_BCZYX: Tensor) -> Tensor:
        return torch.full_like(x_BCZYX, 0.5)


class TestResidual:
    IMAGES = torch.tensor([0.1, 0.5, 0.9]).reshape(1, 1, 1, 3)
    BRAIN = np.ones((1, 1, 1, 3), bool)

    @pytest.mark.parametrize(
        ("residual", "expected"), [("absolute", [0.4, 0.0, 0.4]), ("positive", [0.0, 0.0, 0.4])]
    )
    def test_of_a_method_that_reconstructs(self, residual, expected) -> None:
        scores = score_volumes(Half(), self.IMAGES, self.BRAIN, torch.device("cpu"), residual)
        assert scores.shape == (1, 1, 1, 3)
        np.testing.assert_allclose(scores.ravel(), expected, atol=1e-6)

    @pytest.mark.parametrize("name", ["Intensity-dark", "HistEq"])
    def test_of_others_it_changes_nothing(self, name) -> None:
        detector: Detector = build(experiment(name).method, (1, 1, 3))
        both = [
            score_volumes(detector, self.IMAGES, self.BRAIN, torch.device("cpu"), residual)
            for residual in ("absolute", "positive")
        ]
        np.testing.assert_array_equal(*both)


class TestExamine:
    @pytest.mark.parametrize("max_size", [0, 3])
    def test_it_compares_the_final_prediction(
        self, cohort: Cohort, run: Run, some_slices: None, max_size: int
    ) -> None:
        config = replace(CONFIG, components=ComponentConfig(max_size=max_size, connectivity=6))
        rows, level, cut = [2, 7], 40000, slice(*SLICES)
        store = score(run, cohort, rows, config)
        spacings = dict.fromkeys(rows, (4.0, 4.0, 4.0))
        held = batch(cohort, rows)
        examined = examine(held, [store, store], [level, 65536], names(cohort), spacings, config)
        assert examined["lesions"].shape == (2, 2, 8)
        for place, row in enumerate(rows):
            predicted = without_small(expected_levels(cohort, row)[cut] >= level, max_size)
            truth = held["lesion"][place][cut]
            expected = compare_lesions(predicted, truth, np.diag(AFFINE)[:3])
            np.testing.assert_allclose(examined["lesions"][place, 0], list(vars(expected).values()))
            nothing = compare_lesions(truth & False, truth, (4, 4, 4))
            np.testing.assert_allclose(examined["lesions"][place, 1], list(vars(nothing).values()))


@pytest.mark.parametrize("cut", [False, True])
def test_cases_show_the_final_prediction_where_it_was_made(
    cohort: Cohort, run: Run, cut: bool, request: pytest.FixtureRequest
) -> None:
    start, stop = SLICES if cut else (0, SHAPE[0])
    if cut:
        request.getfixturevalue("some_slices")
    store = score(run, cohort, list(range(len(cohort.subjects))))
    write_cases(run, store, cohort, CONFIG, 33000)
    with np.load(Path(run.url, "evaluation", f"{cohort.name}-cases.npz")) as held:
        cases = dict(held)
    rows = cohort.subjects.set_index("id")["row"]
    for place, (name, z) in enumerate(zip(cases["ids"], cases["slice"], strict=True)):
        row = int(rows[name])
        lesion = cohort.read("lesion", row, row + 1)[0]
        assert lesion[z].sum() == lesion[start:stop].sum((1, 2)).max()
        assert start <= z < stop
        assert np.array_equal(cases["lesion"][place], lesion[z])
        levels = expected_levels(cohort, row)
        np.testing.assert_allclose(cases["scores"][place], levels[z] / 65535, atol=1e-6)
        kept = without_small(levels[start:stop] >= 33000, 3)[z - start]
        assert np.array_equal(cases["prediction"][place], kept)


class TestCutShort:
    def remove(self, chunk: Path) -> None:
        chunk.unlink()

    def shorten(self, chunk: Path) -> None:
        chunk.write_bytes(chunk.read_bytes()[:40])

    def exchange(self, chunk: Path) -> None:
        chunk.write_bytes((chunk.parents[3] / "6" / "0" / "0" / "0").read_bytes())

    def lose_the_array(self, chunk: Path) -> None:
        (chunk.parents[4] / "zarr.json").unlink()

    @pytest.mark.parametrize("damage", [remove, shorten, exchange, lose_the_array])
    @pytest.mark.parametrize("has_checksum", [True, False])
    def test_kept_scores_that_are_not_those_counted_are_named(
        self, cohort: Cohort, run: Run, damage, has_checksum: bool
    ) -> None:
        store = score(run, cohort, [3, 6])
        counts = Path(store.url) / "counts/0000003.npz"
        values = npz.unpack(counts.read_bytes())
        assert values.pop("levels_crc32") > 0
        if not has_checksum:  # as earlier versions wrote them
            counts.write_bytes(npz.pack(**values))
        store.checked_levels(3, "a")
        damage(self, Path(store.url) / "scores" / "c" / "3" / "0" / "0" / "0")
        message = (
            r"kept scores of subject 'a' .*cut short or damaged.*run the same jobs/evaluate\.py"
        )
        with pytest.raises(EvaluationError, match=message):
            # Not one that has read the array's metadata before.
            replace(store).checked_levels(3, "a")
        # The subject counts as not scored, and another score of it is whole.
        assert store.done() == {6}
        score(run, cohort, [3]).checked_levels(3, "a")

    def test_a_subject_that_was_not_scored_is_named(self, cohort: Cohort, run: Run) -> None:
        store = score(run, cohort, [3])
        with pytest.raises(EvaluationError, match=r"'b' is not scored in .*: run jobs/evaluate"):
            store.counts([(3, "a"), (6, "b")], "c", CohortCounts)


class TestClasses:
    def part(self, cohort: Cohort, run: Run, lesion: bool) -> TestPart:
        store = ScoreStore.create(run, cohort, (0.0, 1.0), CONFIG.scoring(cohort.shape))
        work = Work(run=run, store=store, to_score=frozenset([0]), to_filter=frozenset())
        held = batch(cohort, [0])
        held["lesion"] = held["brain"].copy() if lesion else np.zeros_like(held["brain"])
        Scorer([work], names(cohort), CONFIG)(held)
        return store.counts([(0, "a")], "c/test", TestPart)

    @pytest.mark.parametrize(
        ("lesion", "message"),
        [(False, "hold no lesion voxel"), (True, "every brain voxel .* lesion")],
    )
    def test_one_class_alone_is_refused(self, cohort: Cohort, run: Run, lesion, message) -> None:
        with pytest.raises(EvaluationError, match=rf"c\.zarr: .*{message}"):
            check_classes(self.part(cohort, run, lesion), "c.zarr")
