"""The trials of a sweep: their ranks, the best of each column, what repeats them, what matters."""

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tyro
from fake_runs import write_run
from hypothesis import given, settings
from hypothesis import strategies as st

from uadray.config import Experiment, experiment, from_json, with_fit
from uadray.errors import ConfigError
from uadray.jobs.train import Train
from uadray.report import rows, vega, words
from uadray.report.charts.parallel import parallel
from uadray.report.importance import MIN_TRIALS, importance
from uadray.report.sweep import find_sweep
from uadray.report.sweep_page import sweep_context
from uadray.report.trials import (
    Leaderboard,
    Trial,
    best_trial,
    leaderboard,
    objective_of,
    repeat,
    trials_of,
)
from uadray.runs.records import RunRecord, load_runs
from uadray.runs.settings import varied

ROOT = Path(__file__).resolve().parents[2]


def latent(size: int) -> Callable[[Experiment], Experiment]:
    return lambda made: replace(made, method=replace(made.method, latent_size=size))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two experiments at two sizes with two seeds, a baseline, and four that ended otherwise."""
    root = tmp_path_factory.mktemp("sweep")
    for name in ("3D-None", "3D-Cube-n"):
        for size in (32, 512):
            for seed in (0, 1):
                place = root / f"{name}-{size}-{seed}"
                both = ("stroke", "tumour")
                write_run(place, name, seed=seed, cohorts=both, size=8, change=latent(size))
                edit(place / "summary.json", peak_memory_gib=1.0 + seed)
    write_run(root / "pca", "PCA-16", cohorts=("stroke", "tumour"), size=8)
    edit(root / "pca" / "summary.json", **{"validation/reconstruction": 0.001})
    failed = {"status": "failed", "error": "NotFiniteError", "validation/reconstruction": 0.002}
    write_run(root / "failed", "3D-None", seed=5, cohorts=(), summary=failed)
    write_run(root / "nan", "3D-None", seed=8, cohorts=(), change=latent(32))
    edit(root / "nan" / "summary.json", **{"validation/reconstruction": float("nan")})
    stopped = {"status": "stopped", "epochs": 4, "validation/reconstruction": 0.003}
    write_run(root / "stopped", "3D-None", seed=6, cohorts=(), summary=stopped)
    (write_run(root / "cut", "3D-None", seed=7, cohorts=()) / "summary.json").unlink()
    return root


@pytest.fixture(scope="module")
def runs(folder: Path) -> list[RunRecord]:
    return load_runs([str(folder)])


@pytest.fixture(scope="module")
def cohorts(runs: list[RunRecord]) -> list[words.Compared]:
    return [words.compare_cohort(group) for group in rows.group_by_cohort(runs)]


@pytest.fixture(scope="module")
def trials(runs: list[RunRecord], cohorts: list[words.Compared]) -> list[Trial]:
    return trials_of(runs, cohorts, objective_of(runs))


def board_of(
    runs: list[RunRecord], trials: list[Trial], cohorts: list[words.Compared]
) -> Leaderboard:
    return leaderboard(trials, varied([r.config for r in runs]), objective_of(runs), cohorts)


class TestRanks:
    def test_trials_that_have_a_figure_are_ranked_and_nothing_else(
        self, trials: list[Trial], folder: Path
    ) -> None:
        ranked = [trial for trial in trials if trial.rank is not None]
        assert [trial.rank for trial in ranked] == list(range(1, 10))
        errors = [trial.objective for trial in ranked]
        assert errors == sorted(errors)
        assert ranked[0].run.url == str(folder / "stopped")
        others = [Path(trial.run.url).name for trial in trials[len(ranked) :]]
        assert others[0] == "pca"
        assert sorted(others[1:]) == ["cut", "failed", "nan"]
        assert [trial.number for trial in trials] == list(range(len(trials)))
        assert {trial.fifth for trial in ranked} == set(range(5))
        assert ranked[0].fifth == 4

    def test_the_best_trial_has_finished(self, trials: list[Trial]) -> None:
        best = best_trial(trials)
        assert best is not None
        assert best.rank == 2
        assert best.status == "finished"
        assert best_trial(trials[:1]) is trials[0]
        assert best_trial([]) is None

    def test_an_objective_that_used_labels_ranks(self, tmp_path: Path) -> None:
        for n, size in enumerate((8, 16)):
            run = write_run(tmp_path / str(size), "3D-None", cohorts=(), change=latent(size))
            edit(
                run / "summary.json",
                objective={"name": "dice", "value": 0.3 + n / 10, "uses_labels": True},
                **{"validation/reconstruction": 0.1 + n},
            )
        loaded = load_runs([str(tmp_path)])
        objective = objective_of(loaded)
        assert (objective.head, objective.source) == ("Dice_D, threshold part", "uses labels")
        first, second = trials_of(loaded, [], objective)
        assert (first.objective, second.objective) == (0.4, 0.3)
        keys = [column.key for column in board_of(loaded, [first, second], []).columns]
        assert {"objective", "healthy_l1"} <= set(keys)


class TestLeaderboard:
    def test_columns_are_those_in_which_trials_differ(
        self, runs: list[RunRecord], trials: list[Trial], cohorts: list[words.Compared]
    ) -> None:
        board = board_of(runs, trials, cohorts)
        keys = [column.key for column in board.columns]
        assert keys[:4] == ["rank", "name", "method.latent_size", "seed"]
        assert keys[4:9] == ["healthy_l1", "dice_d_0", "auprc_0", "dice_d_1", "auprc_1"]
        assert keys[9:] == ["epochs", "minutes", "memory", "status"]
        same = [trial for trial in trials if "3D-None-32" in trial.run.url]
        board = board_of([trial.run for trial in same], same, cohorts)
        assert board.header == "rank"
        assert "trial 3D-None" in board.constants
        assert "status finished" in board.constants
        assert not {"name", "method.latent_size", "status"} & {c.key for c in board.columns}

    def test_the_best_of_each_column(
        self, runs: list[RunRecord], trials: list[Trial], cohorts: list[words.Compared]
    ) -> None:
        board = board_of(runs, trials, cohorts)
        marked: dict[str, list[str]] = {}
        for column in board.columns:
            names = [Path(t.run.url).name for t in trials if board.is_best(column, t)]
            marked[column.key] = names
        # A plain baseline may be best, and a stopped trial: the page hides neither.
        assert marked["healthy_l1"] == ["pca"]
        for n, cohort in enumerate(cohorts):
            top = cohort.group.rows[0]
            assert marked[f"dice_d_{n}"] == [Path(top.run.url).name]
        assert marked["rank"] == marked["status"] == marked["name"] == []
        # Of time and memory only trials that ran to their end count.
        assert "pca" not in marked["minutes"]
        assert "failed" not in marked["minutes"]
        assert len(marked["memory"]) == 4
        assert all(name.endswith("-0") for name in marked["memory"])

    def test_many_cohorts_stand_one_at_a_time(
        self, runs: list[RunRecord], trials: list[Trial], cohorts: list[words.Compared]
    ) -> None:
        assert board_of(runs, trials, cohorts).cohort_of == {}
        many = [*cohorts, *cohorts, *cohorts]
        wide = trials_of(runs, many, objective_of(runs))
        board = board_of(runs, wide, many)
        assert board.cohort_of["dice_d_0"] == board.cohort_of["auprc_0"] == 0
        assert board.cohort_of["auprc_5"] == 5

    def test_plain_baselines_have_no_settings_of_the_gradient(self, tmp_path: Path) -> None:
        for epochs in (5, 10):
            write_run(tmp_path / str(epochs), "3D-None", cohorts=(), num_epochs=epochs)
        write_run(tmp_path / "pca", "PCA-16", cohorts=(), num_epochs=77)
        loaded = load_runs([str(tmp_path)])
        (experiments, epochs) = varied([run.config for run in loaded])
        assert epochs.values == (5, 10)
        assert len(experiments.values) == 2


class TestCommand:
    @staticmethod
    def parse(command: str) -> Any:
        python, job, name, *args = shlex.split(command)
        assert (python, job) == ("python", "jobs/train.py")
        default = Train(experiment=experiment(name))
        return tyro.cli(Train, args=args, default=default, config=(tyro.conf.AvoidSubcommands,))

    @pytest.mark.parametrize(
        ("name", "change"),
        [
            ("3D-Cube-n", latent(32)),
            ("3D-Cube-n", lambda e: replace(e, erasing=replace(e.erasing, max_share=0.1))),
            ("3D-None", lambda e: replace(e, method=replace(e.method, widths=(8, 16)))),
            ("2D-None", lambda e: with_fit(e, seed=3, data_share=0.2, learning_rate=1e-05)),
            ("2D-None", lambda e: with_fit(e, deterministic=True, precision="float32")),
            ("PCA-8", lambda e: with_fit(e, seed=2)),
            (
                "VAE-restoration",
                lambda e: replace(
                    e, method=replace(e.method, restore=replace(e.method.restore, steps=7))
                ),
            ),
        ],
    )
    def test_it_fits_the_same_experiment(
        self, tmp_path: Path, name: str, change: Callable[[Experiment], Experiment]
    ) -> None:
        write_run(tmp_path / "run", name, cohorts=(), change=change)
        (run,) = load_runs([str(tmp_path)])
        command = repeat(run)
        assert command is not None
        job = self.parse(command)
        assert job.experiment == from_json(Experiment, run.config["experiment"])
        assert job.cohort == "cohorts/ixi"

    def test_workers_are_named_and_secrets_are_not(self, tmp_path: Path) -> None:
        run = write_run(tmp_path / "run", "3D-None", cohorts=())
        edit(run / "summary.json", num_workers=2, micro_batch=4)
        cohort = {"url": "s3://key:secret@bucket/my cohort.zarr"}
        edit(run / "config.json", cohort=cohort)
        command = repeat(load_runs([str(run)])[0])
        assert command is not None
        assert "secret" not in command
        job = self.parse(command)
        assert (job.scale.num_workers, job.scale.micro_batch) == (2, 4)

    def test_what_no_one_command_fits_has_none(self, tmp_path: Path) -> None:
        run = write_run(tmp_path / "run", "3D-None", name="Ours", cohorts=())
        assert repeat(load_runs([str(run)])[0]) is None
        edit(run / "config.json", name="3D-None", lineage=[{"epochs": [1, 2]}])
        assert repeat(load_runs([str(run)])[0]) is None


class TestImportance:
    @staticmethod
    def sweep(root: Path, effect: float, sizes: tuple[int, ...] = (8, 16, 32, 64)) -> list[Trial]:
        random = np.random.default_rng(0)
        for size in sizes:
            for rate in (1e-4, 1e-3):
                for seed in (0, 1, 2):

                    def change(
                        made: Experiment, size: int = size, rate: float = rate
                    ) -> Experiment:
                        return with_fit(latent(size)(made), learning_rate=rate)

                    run = root / f"{size}-{rate}-{seed}"
                    write_run(run, "3D-None", seed=seed, cohorts=(), change=change)
                    error = 0.1 + effect * np.log2(size) + random.normal(0, 0.001)
                    edit(run / "summary.json", **{"validation/reconstruction": float(error)})
        runs = load_runs([str(root)])
        return trials_of(runs, [], objective_of(runs))

    @staticmethod
    def weigh(trials: list[Trial]) -> Any:
        values = [trial.objective for trial in trials]
        return importance("L1", trials, values, varied([t.run.config for t in trials]))

    def test_the_setting_that_decides_is_found_and_the_other_is_not(self, tmp_path: Path) -> None:
        trials = self.sweep(tmp_path, effect=-0.01)
        made = self.weigh(trials)
        assert made.reason == ""
        assert made.num_trials == 24
        assert made.explained > 0.7
        first, second = made.weights
        assert first.setting.path == "method.latent_size"
        assert second.setting.path == "fit.learning_rate"
        assert first.low <= first.value <= first.high
        assert first.low > second.high
        assert second.low < 0.05
        assert self.weigh(trials) == made

    def test_noise_is_no_importance(self, tmp_path: Path) -> None:
        made = self.weigh(self.sweep(tmp_path, effect=0.0))
        assert made.weights == ()
        assert "do not predict" in made.reason

    def test_too_few_trials_are_said(self, tmp_path: Path) -> None:
        made = self.weigh(self.sweep(tmp_path, effect=-0.01, sizes=(8,)))
        assert made.weights == ()
        assert made.reason == "Too few trials: 6 have a figure; 1 setting needs 12."
        assert made.num_trials < MIN_TRIALS


class TestCharts:
    def test_better_is_higher_and_missing_figures_are_gaps(
        self, runs: list[RunRecord], trials: list[Trial], cohorts: list[words.Compared]
    ) -> None:
        made = parallel(trials, varied([run.config for run in runs]), objective_of(runs), cohorts)
        assert made is not None
        names = [axis["name"] for axis in made["axes"]]
        expected = ["experiment", "latent size", "healthy L1", "Dice_D stroke", "Dice_D tumour"]
        assert names == expected
        lines = {one["trial"]: one["y"] for one in made["spec"]["data"][0]["values"]}
        assert len(lines) == len(trials)
        assert all(0 <= y <= 1 for line in lines.values() for y in line if y is not None)
        for trial in trials:
            line = lines[trial.number]
            assert line[0] is not None
            assert (line[1] is None) == trial.is_plain
            assert (line[2] is None) == (trial.run.url.rsplit("/", 1)[-1] in ("cut", "nan"))
            assert (line[3] is None) == (not trial.run.evaluations)
        known = [t for t in trials if lines[t.number][2] is not None]
        errors = sorted(known, key=lambda t: t.run.summary["validation/reconstruction"])
        heights = [lines[t.number][2] for t in errors]
        assert heights == sorted(heights, reverse=True)
        # The best is drawn last.
        assert list(lines)[-1] == 0

    @settings(max_examples=20, deadline=None)
    @given(values=st.lists(st.floats(1e-4, 1, allow_subnormal=False), min_size=2, max_size=20))
    def test_many_numbers_are_to_scale(self, trials: list[Trial], values: list[float]) -> None:
        held = [
            replace(
                trial,
                run=replace(
                    trial.run,
                    config={
                        "name": "x",
                        "experiment": {"method": {"type": "VAE"}, "fit": {"learning_rate": v}},
                    },
                ),
            )
            for trial, v in zip(trials * 2, values, strict=False)
        ]
        held = [replace(trial, number=n) for n, trial in enumerate(held)]
        made = parallel(held, varied([t.run.config for t in held]), objective_of([]), [])
        if made is None:
            assert len(set(values[: len(held)])) == 1
            return
        places = [one["y"][0] for one in made["spec"]["data"][0]["values"]]
        assert all(0 <= place <= 1 for place in places)

    def test_the_data_is_json_that_ends_no_script(
        self, runs: list[RunRecord], cohorts: list[words.Compared]
    ) -> None:
        nasty = "</script><script>alert(1)</script>"
        named = [replace(run, label=f"{nasty}{n}") for n, run in enumerate(runs)]
        sweep = find_sweep(named, cohorts)
        context = sweep_context(sweep, cohorts)
        assert context is not None
        text = vega.block(context["data"])
        assert "<" not in text
        data = json.loads(text)
        assert set(data) == {"parallel", "axes", "charts"}
        assert nasty in json.dumps(data)

    def test_the_vendored_library_is_whole(self, monkeypatch: pytest.MonkeyPatch) -> None:
        text = vega.library()
        assert 800_000 < len(text) < 900_000
        assert "</script" not in text.lower()
        assert "sourceMappingURL" not in text
        name = next(iter(vega.VENDORED))
        monkeypatch.setitem(vega.VENDORED, name, "0" * 64)
        vega.library.cache_clear()
        with pytest.raises(ConfigError, match=rf"{name} is damaged"):
            vega.library()
        vega.library.cache_clear()
