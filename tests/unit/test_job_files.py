"""What `train.py` and `tune.py` make of files of settings: the defaults under their flags."""

import sys
from pathlib import Path

import pytest

from uadray import settings_files
from uadray.config import experiment
from uadray.errors import ConfigError
from uadray.fields import replaced
from uadray.jobs import train, tune
from uadray.train.settings import ScaleConfig
from uadray.tune.space import PRESETS


class TestTune:
    def test_a_file_gives_the_defaults(self, tmp_path: Path) -> None:
        place = tmp_path / "mine.toml"
        place.write_text(
            """
            cohort = "h.zarr"
            evaluate = ["s.zarr"]
            [space]
            experiments = ["3D-None"]
            vary.slope = [0.0, 0.1]
            [sweep]
            scheduler = "asha"
            """
        )
        job = tune.defaults("", ["--config", str(place)])
        assert (job.cohort, job.evaluate, job.name) == ("h.zarr", ("s.zarr",), "mine")
        assert job.space.vary == {"method.slope": (0.0, 0.1)}
        assert job.sweep.scheduler == "asha"
        assert tune.defaults("", [f"--config={place}", "--out", "o"]) == job

    def test_what_is_compared_comes_from_one_place(self, tmp_path: Path) -> None:
        mine, space = tmp_path / "mine.toml", tmp_path / "space.toml"
        mine.write_text('preset = "smoke"\nspace.seeds = [3]\n')
        settings_files.write(str(space), "space", vars(PRESETS["bengs-latent"]()))
        job = tune.defaults("", ["--config", str(mine)])
        assert (job.name, job.space.seeds, job.space.fit) == ("smoke", (3,), PRESETS["smoke"]().fit)
        assert tune.defaults("", ["--space", str(space)]).space == PRESETS["bengs-latent"]()
        assert tune.defaults("", []).name == "first-run"
        for preset, args in (
            ("smoke", ["--space", str(space)]),
            ("smoke", ["--config", str(mine)]),
            ("", ["--space", str(space), "--config", str(mine)]),
        ):
            with pytest.raises(ConfigError, match="both say what is compared: give one"):
                tune.defaults(preset, args)
        mine.write_text('preset = "smok"\n')
        with pytest.raises(ConfigError, match="no preset is named 'smok'; did you mean smoke"):
            tune.defaults("", ["--config", str(mine)])

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("cohrt = 'h'", "no setting is named 'cohrt'; did you mean cohort?"),
            ("dry_run = true", "no setting is named 'dry_run'"),
            ("sweep.scheduler = 'ash'", "sweep.scheduler must be one of all, asha, pbt, was 'ash'"),
            ("sweep.objective = 'dice'", "needs --sweep.labelled"),
            ("[space.fit]\nepochs = 0", "epochs must be >= 1"),
            ("space.vary.epochs = [0]", r"mine\.toml: fit.epochs must be >= 1"),
            ("evaluate = 's.zarr'", "evaluate must be a list"),
            ("kind = 'train'", "kind must be 'tune', was 'train': it is for python jobs/train.py"),
            ("kind = 'space'", "it is for python jobs/tune.py --space"),
            ("preset = 3", "preset must be"),
            ("cohort", "is no TOML"),
        ],
    )
    def test_a_bad_file_is_named(self, text: str, message: str, tmp_path: Path) -> None:
        place = tmp_path / "mine.toml"
        place.write_text(text)
        with pytest.raises(ConfigError, match=message) as raised:
            tune.defaults("", ["--config", str(place)])
        assert str(place) in str(raised.value)


class TestTrain:
    def test_a_run_s_file_gives_the_run_s_settings(self, tmp_path: Path) -> None:
        place = str(tmp_path / "train.toml")
        one = replaced(experiment("3D-sVAE-Cube-n"), {"method.dropout": 0.1, "fit.epochs": 3})
        scale = ScaleConfig(num_workers=2)
        settings = settings_files.experiment_table(one) | {"cohort": "h", "scale": scale}
        settings_files.write(place, "train", settings)
        job = train.defaults("", ["--config", place])
        assert (job.experiment, job.cohort, job.scale) == (one, "h", scale)
        assert train.defaults("3D-sVAE-Cube-n", ["--config", place]).experiment == one
        with pytest.raises(ConfigError, match="is of 3D-sVAE-Cube-n, the command names 3D-None"):
            train.defaults("3D-None", ["--config", place])

    def test_a_file_without_experiment_goes_with_a_name(self, tmp_path: Path) -> None:
        place = tmp_path / "mine.toml"
        place.write_text("cohort = 'h'\nfit.epochs = 3\n")
        job = train.defaults("2D-None", ["--config", str(place)])
        assert (job.cohort, job.experiment.fit.epochs) == ("h", 3)
        place.write_text("cohort = 'h'\n")
        assert train.defaults("", ["--config", str(place)]).experiment.name == "3D-Cube-n"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("experiment = '3D-Nome'", "no experiment is named '3D-Nome'"),
            ("fit.epochs = 3", "needs an experiment"),
            ("experiment = '3D-None'\nscale.num_worker = 2", "did you mean num_workers"),
            ("experiment = '3D-None'\nfit.epochs = '3'", "fit.epochs must be a whole number"),
            ("experiment = '3D-None'\nmethod.latent = 3", "no setting is named 'method.latent'"),
            ("kind = 'tune'", "it is for python jobs/tune.py --config"),
        ],
    )
    def test_a_bad_file_is_named(self, text: str, message: str, tmp_path: Path) -> None:
        place = tmp_path / "mine.toml"
        place.write_text(text)
        with pytest.raises(ConfigError, match=message) as raised:
            train.defaults("", ["--config", str(place)])
        assert str(place) in str(raised.value)


def test_flags_hold_over_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "mine.toml"
    place.write_text("experiment = '3D-None'\ncohort = 'h'\nout = 'o'\nfit.epochs = 3\n")
    args = ["train.py", "--config", str(place), "--fit.epochs", "4", "--help"]
    monkeypatch.setattr(sys, "argv", args)
    with pytest.raises(SystemExit):
        train.main()
    text = " ".join(capsys.readouterr().out.split())
    assert "(default: h)" in text
    assert "(default: 3)" in text
