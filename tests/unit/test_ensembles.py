"""Runs that combine others: made, refused, moved, exported and predicted with."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from tiny_cohorts import tiny_vae
from tiny_models import finished_run, freeze_threshold, healthy_cohort, scan_of, write_head

import uadray
from uadray import files, npz
from uadray.config import Experiment, experiment, from_json, to_json, with_fit
from uadray.data.sampling import fold_rows
from uadray.errors import (
    CheckpointError,
    ConfigError,
    EvaluationError,
    RunError,
    UadrayError,
)
from uadray.evaluation import scoring
from uadray.evaluation.inputs import check_inputs, check_run
from uadray.evaluation.pair import Pair
from uadray.evaluation.protocols import EvaluateConfig
from uadray.evaluation.scoring import (
    Example,
    Finisher,
    LevelScorer,
    Scorer,
    count_levels,
    count_volumes,
    member_levels,
)
from uadray.methods import is_fitted
from uadray.methods.ensemble import Ensemble, members_of
from uadray.metrics.counts import CohortCounts
from uadray.metrics.members import combine_levels, spread_over_members
from uadray.prediction.healthy import mean_inside
from uadray.prediction.model import model_of_run
from uadray.prediction.model_folder import export_model, read_model
from uadray.prediction.scan import predict_scan
from uadray.prediction.settings import PredictConfig
from uadray.runs.detector import load_detector
from uadray.runs.ensembles import make_ensemble, members_at, with_members
from uadray.runs.folder import Run
from uadray.runs.learned import PEOPLE, Match
from uadray.runs.records import find_runs, load_runs
from uadray.runs.state import weights_digest
from uadray.store import Cohort

CONFIG = EvaluateConfig()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ensembles")


@pytest.fixture(scope="module")
def cohort(home: Path) -> Cohort:
    return healthy_cohort(home)


@pytest.fixture(scope="module")
def seeds(home: Path, cohort: Cohort) -> list[Run]:
    """Three networks as their fits begin, each from a seed of its own."""
    return [
        finished_run(home / f"seed-{seed}", cohort, with_fit(tiny_vae(3), seed=seed))
        for seed in range(3)
    ]


@pytest.fixture(scope="module")
def mean(home: Path, seeds: list[Run]) -> Run:
    return make_ensemble(seeds, str(home / "mean"))


def example(seed: int = 0) -> Example:
    rng = np.random.default_rng(seed)
    brain = rng.random((16, 16, 16)) > 0.2
    image = (rng.random((16, 16, 16)) * brain).astype(np.float16)
    return Example(id="one", image=image, brain=brain, lesion=np.zeros_like(brain))


def levels_of(run: Run, one: Example) -> np.ndarray:
    ((levels, _),) = count_volumes(load_detector(run), {0: one}, CONFIG, torch.device("cpu"))
    return levels


@pytest.mark.parametrize("combine", ["mean", "median"])
@pytest.mark.parametrize("num", [2, 3])
def test_scores_are_those_of_members_after_post_processing(
    tmp_path: Path, seeds: list[Run], combine: Any, num: int
) -> None:
    run = make_ensemble(seeds[:num], str(tmp_path / "run"), combine=combine)
    one = example()
    each = np.stack([levels_of(member, one) for member in seeds[:num]]).astype(float)
    expected = each.mean(0) if combine == "mean" else np.median(each, axis=0)
    assert np.array_equal(levels_of(run, one), np.floor(expected + 0.5).astype(np.uint16))
    assert len(np.unique(levels_of(run, one))) > 100


def test_an_ensemble_of_one_is_its_member(tmp_path: Path, seeds: list[Run]) -> None:
    run = make_ensemble(seeds[:1], str(tmp_path / "run"), combine="median")
    one = example(1)
    assert np.array_equal(levels_of(run, one), levels_of(seeds[0], one))
    (levels,) = member_levels(load_detector(run), {0: one}, CONFIG, torch.device("cpu"))
    assert spread_over_members(levels, (0.0, 1.0)) is None
    assert run.experiment.name == "3D-None (median ensemble of 1 fit)"


def test_the_order_of_members_does_not_matter(tmp_path: Path, seeds: list[Run], mean: Run) -> None:
    turned = make_ensemble(seeds[::-1], str(tmp_path / "turned"))
    assert turned.experiment == mean.experiment
    assert weights_digest(turned) == weights_digest(mean)
    # The same command again opens it as it is.
    before = files.read_bytes(f"{mean.url}/config.json")
    assert make_ensemble(seeds[::-1], mean.url).finished
    assert files.read_bytes(f"{mean.url}/config.json") == before


def test_a_job_that_was_cut_short_goes_on(
    tmp_path: Path, seeds: list[Run], mean: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: Run, summary: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            make_ensemble(seeds, str(tmp_path / "run"))
    assert not Run.open(str(tmp_path / "run")).finished
    half = Run.open(str(tmp_path / "run"))
    for use in (check_run, model_of_run):
        with pytest.raises(UadrayError, match=r"is not finished: run the same jobs/ensemble\.py"):
            use(half)
    again = make_ensemble(seeds, str(tmp_path / "run"))
    assert again.finished
    assert weights_digest(again) == weights_digest(mean)


def test_what_it_records(cohort: Cohort, seeds: list[Run], mean: Run) -> None:
    method = mean.experiment.method
    assert isinstance(method, Ensemble.Settings)
    assert mean.experiment.name == "3D-None (ensemble of 3 seeds)"
    assert [one.seed for one in method.members] == [0, 1, 2]
    assert [one.weights for one in method.members] == [weights_digest(run) for run in seeds]
    assert from_json(Experiment, to_json(mean.experiment)) == mean.experiment
    assert is_fitted(method)
    assert mean.config["cohort"] == seeds[0].config["cohort"]
    assert [one["url"] for one in mean.config["members"]] == [run.url for run in seeds]
    assert (mean.summary or {})["num_parameters"] == 3 * sum(
        t.numel() for t in load_detector(seeds[0]).state_dict().values()
    )
    ours, theirs = (files.read_bytes(f"{run.url}/{PEOPLE}") for run in (mean, seeds[0]))
    assert set(npz.unpack(ours)["content"]) == set(npz.unpack(theirs)["content"])


@pytest.mark.parametrize("what", ["range", "cohort", "unfinished", "twice", "ensemble", "folds"])
def test_what_cannot_be_combined(
    what: str, tmp_path: Path, cohort: Cohort, seeds: list[Run], mean: Run
) -> None:
    make: dict[str, Callable[[], Run]] = {
        "range": lambda: finished_run(tmp_path / "z", cohort, "ZScore"),
        "cohort": lambda: finished_run(
            tmp_path / "other", healthy_cohort(tmp_path, count=8), with_fit(tiny_vae(3), seed=7)
        ),
        "unfinished": lambda: Run.create(
            str(tmp_path / "new"), with_fit(tiny_vae(3), seed=8), cohort
        ),
        "twice": lambda: seeds[0],
        "ensemble": lambda: mean,
        "folds": lambda: finished_run(
            tmp_path / "fold", cohort, with_fit(tiny_vae(3), seed=5, folds=3, fold=1)
        ),
    }
    expected = {
        "range": "their mean means nothing",
        "cohort": "members learn from one cohort",
        "unfinished": "is not finished",
        "twice": "have the same weights",
        "ensemble": "is an ensemble itself",
        "folds": "different folds of the cohort, or one of them on none",
    }
    with pytest.raises(RunError, match=expected[what]):
        make_ensemble([seeds[0], make[what]()], str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_damaged_members_and_other_runs_are_refused(
    tmp_path: Path, cohort: Cohort, seeds: list[Run], mean: Run
) -> None:
    bad = finished_run(tmp_path / "bad", cohort, with_fit(tiny_vae(3), seed=11))
    (weights,) = (tmp_path / "bad/checkpoint").glob("epoch-*/model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=r"bad/.*model\.safetensors is damaged"):
        make_ensemble([seeds[0], bad], str(tmp_path / "out"))
    # No run is left there that other members would have to fit.
    assert not Run.is_begun(str(tmp_path / "out"))
    assert len(make_ensemble(seeds[:2], str(tmp_path / "out")).config["members"]) == 2
    with pytest.raises(CheckpointError, match="with other members: choose another --out"):
        make_ensemble(seeds[:2], mean.url)
    with pytest.raises(
        CheckpointError, match=r"with other settings, and not of 3D-None \(ensemble"
    ):
        make_ensemble(seeds[:2], seeds[2].url)
    with pytest.raises(CheckpointError, match=r"with other settings \(.*median here"):
        make_ensemble(seeds, mean.url, combine="median")
    with pytest.raises(RunError, match="name at least one"):
        make_ensemble([], str(tmp_path / "none"))


def test_members_are_found_by_their_weights(tmp_path: Path, cohort: Cohort, home: Path) -> None:
    old = tmp_path / "old"
    runs = [
        finished_run(old / f"r{seed}", cohort, with_fit(tiny_vae(3), seed=seed))
        for seed in (20, 21)
    ]
    run = make_ensemble(runs, str(old / "both"))
    given, missing = with_members([run, runs[1]])
    assert [one.url for one in given] == [runs[0].url, runs[1].url, run.url]
    assert not missing
    # A folder of runs that was moved as a whole has them beside the ensemble.
    old.rename(tmp_path / "new")
    moved = Run.open(str(tmp_path / "new/both"))
    found = [one.url for _, one in members_at(moved) if one]
    assert found == [str(tmp_path / f"new/r{seed}") for seed in (20, 21)]
    # Another fit in a member's place is not that member.
    other = finished_run(tmp_path / "x", cohort, with_fit(tiny_vae(3), seed=22))
    files.remove(found[0])
    Path(other.url).rename(found[0])
    given, missing = with_members([moved])
    assert [one.url for one in given] == [found[1], moved.url]
    assert len(missing) == 1
    assert "r20 is not there with these weights" in missing[0]


def test_members_that_cannot_be_written_to_are_not_evaluated(
    seeds: list[Run], mean: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda url, mode: url != seeds[1].url)
    given, missing = with_members([mean])
    assert [one.url for one in given] == [seeds[0].url, seeds[2].url, mean.url]
    assert len(missing) == 1
    assert "seed-1 cannot be written to" in missing[0]
    # Who names it is told so where it is written.
    assert len(with_members([mean, seeds[1]])[0]) == 4


class TestInOnePass:
    """What members keep is combined; without one of them the ensemble scores by itself."""

    def pairs(self, runs: list[Run], cohort: Cohort) -> list[Pair]:
        return [Pair.open(run, cohort, CONFIG, Match()) for run in runs]

    def test_stores_of_all_members_are_taken(
        self, cohort: Cohort, seeds: list[Run], mean: Run
    ) -> None:
        pairs = self.pairs([*seeds[::-1], mean], cohort)
        work = pairs[-1].work([0], pairs)
        assert [one.url for one in work.members] == [pair.store.url for pair in pairs[2::-1]]
        assert pairs[0].work([0], pairs).members == ()
        assert pairs[-1].work([0], pairs[1:]).members == ()
        assert pairs[-1].work([0]).members == ()

    @pytest.mark.parametrize("with_them", [False, True])
    def test_on_a_gpu_it_has_the_same_bits(
        self,
        with_them: bool,
        tmp_path: Path,
        cohort: Cohort,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Here the GPU is the CPU."""
        monkeypatch.setattr(scoring, "compute_device", lambda _: torch.device("cpu"))
        runs = [
            finished_run(tmp_path / f"r{k}", cohort, with_fit(tiny_vae(2), seed=k)) for k in (0, 1)
        ]
        runs.append(make_ensemble(runs, str(tmp_path / "both")))
        names, rows = dict(enumerate(cohort.subjects["id"])), [0, 1, 2]
        batch = {"id": np.array(rows)} | {n: cohort.read(n, 0, 3) for n in ("image", "brain")}

        def levels(gpu: bool) -> list[np.ndarray]:
            files.remove(str(tmp_path / "both/scores"))
            files.remove(str(tmp_path / "r0/scores"))
            config = replace(CONFIG, gpus_per_actor=1.0 if gpu else 0.0, batch_size=2)
            pairs = self.pairs(runs, cohort)
            work = [pair.work(rows, pairs if with_them else ()) for pair in pairs]
            assert len(work[-1].members) == 2 * with_them
            if gpu:
                scored = LevelScorer(work, names, config)(batch)
                assert scored["levels"].shape[1] == 4
                Finisher(work=work, names=names, config=config)(scored)
            else:
                Scorer(work, names, config)(batch)
            return [pairs[-1].store.levels(row) for row in rows]

        for here, there in zip(levels(True), levels(False), strict=True):
            assert here.any()
            assert np.array_equal(here, there)

    def test_what_members_keep_is_taken_and_not_scored_again(
        self, tmp_path: Path, cohort: Cohort
    ) -> None:
        runs = [
            finished_run(tmp_path / f"r{k}", cohort, with_fit(tiny_vae(3), seed=k)) for k in (0, 1)
        ]
        runs.append(make_ensemble(runs, str(tmp_path / "both")))
        names, rows = dict(enumerate(cohort.subjects["id"])), [0, 1]
        batch = {"id": np.array(rows)} | {n: cohort.read(n, 0, 2) for n in ("image", "brain")}

        def score() -> list[Pair]:
            pairs = self.pairs(runs, cohort)
            Scorer([pair.work(rows, pairs) for pair in pairs], names, CONFIG)(batch)
            return pairs

        first, second, _ = score()
        # What no network would give: where it comes from is seen.
        brain = batch["brain"][0].astype(bool)
        other = np.where(brain, np.uint16(4321), np.uint16(0))
        one = Example(id=names[0], image=batch["image"][0], brain=brain, lesion=brain & False)
        first.store.write(0, other, count_levels(other, one, CONFIG))
        files.remove(str(tmp_path / "both/scores"))
        *_, both = score()
        expected = combine_levels([other, second.store.levels(0)], "mean")
        assert np.array_equal(both.store.levels(0), expected)
        part = both.store.counts([(0, names[0])], "c", CohortCounts)
        assert part.healthy.sum() == brain.sum()
        # Damaged, they are refused, and made again by the same command.
        files.remove(files.join(first.store.url, "scores/c/1"))
        files.remove(str(tmp_path / "both/scores"))
        with pytest.raises(EvaluationError, match=r"r0/.* are cut short or damaged"):
            score()
        *_, both = score()
        each = [one.levels(1) for one in (first.store, second.store)]
        assert np.array_equal(both.store.levels(1), combine_levels(each, "mean"))
        assert each[0].any()

    def test_folds_take_no_threshold_on_those_they_learned_from(
        self, tmp_path: Path, cohort: Cohort, seeds: list[Run]
    ) -> None:
        rule = EvaluateConfig.of("bengs2021", threshold_rule="healthy_fpr_5")
        folds = [
            finished_run(tmp_path / f"f{k}", cohort, with_fit(tiny_vae(3), seed=k, folds=3, fold=k))
            for k in (1, 2, 3)
        ]
        both = make_ensemble(folds, str(tmp_path / "all"))
        assert both.experiment.name == "3D-None (ensemble of 3 fits)"
        lesioned = _Lesioned(cohort)
        for run in (folds[0], both):
            with pytest.raises(EvaluationError, match=r"3 folds of .* is learned from"):
                check_inputs([run], [lesioned], cohort, rule)  # type: ignore[list-item]


class _Lesioned:
    """A cohort that passes for one with lesions."""

    def __init__(self, cohort: Cohort) -> None:
        self._cohort = cohort
        self.has_lesion, self.name, self.url = True, "stroke", "stroke.zarr"
        self.subjects = cohort.subjects.assign(
            split=["threshold", "test"] * (len(cohort.subjects) // 2)
        )

    def rows(self, split: str) -> np.ndarray:
        return self.subjects.loc[self.subjects["split"] == split, "row"].to_numpy()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cohort, name)


@pytest.fixture(scope="module")
def scan(home: Path) -> str:
    return write_head(home / "new/p1_T1w.nii.gz", 77, lesion=True)


def test_prediction_brings_the_spread_to_the_grid_of_the_scan(
    home: Path, seeds: list[Run], mean: Run, scan: str
) -> None:
    freeze_threshold(mean, 0.2)
    model = model_of_run(mean)
    prediction = predict_scan(model, scan_of(scan))
    each = [
        predict_scan(model_of_run(run), scan_of(scan), PredictConfig(map_only=True))
        for run in seeds
    ]
    stack = np.stack([one.levels for one in each]).astype(float)
    assert np.array_equal(prediction.levels, np.floor(stack.mean(0) + 0.5).astype(np.uint16))
    assert each[0].spread is None
    # Linear to the scan's grid: compared where the grids' voxels meet, in the mean.
    assert prediction.spread is not None
    assert prediction.spread.shape == prediction.anomaly.shape
    assert not prediction.spread[~prediction.brain].any()
    deviation = stack.std(axis=0, ddof=1) / 65535
    inside = prediction.prepared.brain
    assert prediction.spread[prediction.brain].mean() == pytest.approx(
        deviation[inside].mean(), rel=0.1
    )
    assert prediction.spread.max() <= deviation.max() * (1 + 1e-5)
    assert prediction.summary["spread"]["mean"] == pytest.approx(
        float(prediction.spread[prediction.brain].mean())
    )
    assert "spread" not in each[0].summary
    reconstructions = np.stack(
        [one.reconstruction for one in each if one.reconstruction is not None]
    )
    assert np.allclose(prediction.reconstruction, reconstructions.mean(0), atol=1e-4)


def test_files_and_model_folder(home: Path, mean: Run, scan: str) -> None:
    freeze_threshold(mean, 0.2)
    _, notes = export_model(mean.url, str(home / "exported"), onnx=False)
    assert notes == []
    model = read_model(str(home / "exported"))
    with pytest.raises(RunError, match="is a model of uadray, and no run"):
        find_runs([model.url])
    card = (home / "exported/MODEL_CARD.md").read_text()
    assert "the mean of 3 fits of `VAE`" in card
    assert "method.member.latent_size 8;" in card
    (line,) = [line for line in card.splitlines() if line.startswith("- Members:")]
    assert line.startswith("- Members: seed 0 (weights `")
    assert "{" not in line
    assert model.identity == model_of_run(mean).identity
    predictions = [
        uadray.predict(one, scan, out=str(home / f"out-{k}"), viewer=True)
        for k, one in enumerate((model, mean))
    ]
    assert np.array_equal(predictions[0].levels, predictions[1].levels)
    (written,) = (home / "out-0").rglob("*spread*.nii.gz")
    image = nib.load(written)
    assert np.allclose(image.affine, nib.load(scan).affine)
    assert np.array_equal(np.asarray(image.dataobj), predictions[0].spread)
    (page,) = (home / "out-0").rglob("*viewer.html")
    assert 'id="volume-spread"' in page.read_text()


def test_healthy_ranges_of_folds_are_of_who_was_held_back(tmp_path: Path, cohort: Cohort) -> None:
    runs = [
        finished_run(tmp_path / f"f{k}", cohort, with_fit(tiny_vae(3), seed=k, folds=3, fold=k))
        for k in (1, 2, 3)
    ]
    both = make_ensemble(runs, str(tmp_path / "all"))
    scores = []
    for rows, run in zip(fold_rows(cohort, 3), runs, strict=True):
        detector = load_detector(run)
        for row in rows.tolist():
            x = torch.from_numpy(cohort.read("image", row, row + 1).astype(np.float32))
            brain = cohort.read("brain", row, row + 1).astype(bool)
            with torch.inference_mode():
                found = detector.detect(x[:, None], torch.from_numpy(brain)).scores
            scores.append(mean_inside(found[0].numpy(), brain[0]))
    healthy = model_of_run(both).healthy
    assert healthy.num_scored == len(scores) == 12
    assert healthy.mean_score == pytest.approx(np.median(scores), rel=1e-5)
    alone = model_of_run(runs[0]).healthy
    assert alone.num_scored == 4
    assert alone.mean_score == pytest.approx(np.median(scores[:4]), rel=1e-5)


def test_folds_that_covariates_have_moved_are_nobody_s_reference(tmp_path: Path) -> None:
    cohort = healthy_cohort(tmp_path, stratify_by=("sex",))
    cohort.add_covariates({"sex": ["F", "M"] * 6})
    runs = [
        finished_run(tmp_path / f"f{k}", cohort, with_fit(tiny_vae(3), seed=k, folds=3, fold=k))
        for k in (1, 2, 3)
    ]
    both, later = (make_ensemble(runs, str(tmp_path / name)) for name in ("all", "later"))
    assert len(model_of_run(both).references[0].people) == 12
    cohort.add_covariates({"sex": ["M"] * 6 + ["F"] * 6})
    for run in (runs[0], later):
        with pytest.raises(CheckpointError, match=r"other folds of .* covariates have changed"):
            model_of_run(run)
    # What was measured before is of those that were held back.
    assert len(model_of_run(both).references[0].people) == 12


def test_methods_of_one_range_may_be_mixed(tmp_path: Path, cohort: Cohort) -> None:
    runs = [finished_run(tmp_path / name, cohort, name) for name in ("MeanImage", "HistEq")]
    run = make_ensemble(runs, str(tmp_path / "both"))
    assert run.experiment.name == "HistEq + MeanImage (ensemble)"
    one = example(3)
    expected = np.stack([levels_of(member, one) for member in runs]).astype(float).mean(0)
    assert np.array_equal(levels_of(run, one), np.floor(expected + 0.5).astype(np.uint16))
    assert len(members_of(load_detector(run))) == 2


def test_an_ensemble_of_plain_baselines_is_one(
    tmp_path: Path, cohort: Cohort, seeds: list[Run], mean: Run
) -> None:
    plain = [finished_run(tmp_path / name, cohort, name) for name in ("MeanImage", "HistEq")]
    urls = [make_ensemble(plain, str(tmp_path / "plain")).url, mean.url]
    urls.append(make_ensemble([plain[0], seeds[0]], str(tmp_path / "mixed")).url)
    assert [one.is_plain for one in load_runs(urls)] == [True, False, False]


def test_settings_of_no_members_are_refused() -> None:
    with pytest.raises(ConfigError, match="one fit at least"):
        Ensemble.Settings(title="nothing", members=())
    with pytest.raises(ConfigError, match="combine must be"):
        from_json(
            Experiment,
            {
                "method": {
                    "type": "Ensemble",
                    "title": "x",
                    "combine": "sum",
                    "members": [
                        {"method": to_json(experiment("HistEq").method), "weights": "none"}
                    ],
                }
            },
        )
