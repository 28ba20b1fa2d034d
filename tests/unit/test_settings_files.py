"""Settings in files: read as defaults, written to repeat, and named where they are wrong."""

import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
from own_registry import OwnRegistry

from uadray import fields, settings_files
from uadray.config import BASELINES, BENGS_TABLE_1, OTHERS, Experiment, experiment
from uadray.errors import ConfigError
from uadray.fields import replaced
from uadray.settings_files import experiment_table, take_experiment
from uadray.tune.space import PRESETS, Space, read_space, trial_name


def kept(one: Experiment, folder: Path) -> dict[str, Any]:
    """The table that a file of the experiment holds."""
    place = str(folder / "train.toml")
    settings_files.write(place, "train", experiment_table(one))
    return settings_files.read(place, "train")


@pytest.mark.parametrize(
    "name",
    [*BENGS_TABLE_1, *BASELINES, *OTHERS, *(f"3D-{o}-Half-Volume-0" for o in OTHERS), "PCA-3"],
)
def test_an_experiment_is_the_same_after_its_file(name: str, tmp_path: Path) -> None:
    try:
        one = experiment(name)
    except ConfigError:
        pytest.skip("it does not erase")
    table = kept(one, tmp_path)
    assert take_experiment(table, "f") == one
    assert not table


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("dAE", {"method.variational": True, "method.adversarial": True}),  # a name of no paper
        ("sAE3", {"method.widths": (8, 16, 32, 64, 64)}),
        ("VAE-restoration", {"method.restore.steps": 3}),
        ("3D-Cube-n", {"erasing.border": "shift", "fit.learning_rate": 1e-4}),
        ("3D-None", {"erasing.strategy": "cube", "fit.epochs": 3}),
        ("AE-spatial", {"method.latent": "dense", "method.ndim": 3}),
    ],
)
def test_changed_settings_are_the_same_after_their_file(
    name: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    one = replaced(experiment(name), changes)
    again = take_experiment(kept(one, tmp_path), "f")
    assert again is not None
    assert (again, again.fingerprint) == (one, one.fingerprint)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_space_gives_the_same_trials_after_its_file(preset: str, tmp_path: Path) -> None:
    space = PRESETS[preset]()
    place = str(tmp_path / "space.toml")
    settings_files.write(place, "space", vars(space))
    again = read_space(place)
    assert again == space
    assert list(map(trial_name, again.trials())) == list(map(trial_name, space.trials()))


def test_a_space_over_any_setting_gives_the_same_trials_after_its_file(tmp_path: Path) -> None:
    space = Space(
        experiments=("3D-dAE-Cube-n", "VAE-restoration"),
        vary={
            "widths": ((8, 16), (16, 32)),
            "restore.steps": (1, 2),
            "dropout": (0, 0.2),
            "erasing.border": ("clip", "shift"),
            "variational": (True, False),
        },
    )
    place = str(tmp_path / "space.toml")
    settings_files.write(place, "space", vars(space))
    again = read_space(place)
    assert again == space
    assert list(map(trial_name, again.trials())) == list(map(trial_name, space.trials()))


def test_a_space_is_written_by_hand(tmp_path: Path) -> None:
    place = tmp_path / "mine.toml"
    place.write_text(
        """
        experiments = ["3D-Cube-n"]
        seeds = [0, 1]
        [vary]
        learning-rate = [1e-3, 1e-4]
        method.slope = [0, 0.1]
        [vary.erasing]
        probability = [0.25]
        [fit]
        batch-size = 4
        """
    )
    space = read_space(str(place))
    assert space.vary == {
        "fit.learning_rate": (1e-3, 1e-4),
        "method.slope": (0.0, 0.1),
        "erasing.probability": (0.25,),
    }
    assert (space.seeds, space.fit.batch_size) == ((0, 1), 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("experiments = [", "is no TOML"),
        ("\udcff", "is no TOML"),
        ("experiments = ['3D-None']\nexperiments = []", "is no TOML"),
        ("a = " + "[" * 5000, "is no TOML"),
        ("experimets = ['3D-None']", "no setting is named 'experimets'; did you mean experiments?"),
        ("fit = 3", r"fit must be a table, \[fit\], was 3"),
        ("[fit]\nepocs = 3", "no setting is named 'fit.epocs'; did you mean epochs?"),
        ("[fit]\nepochs = 'ten'", "fit.epochs must be a whole number, was 'ten'"),
        ("[fit]\nepochs = true", "fit.epochs must be a whole number, was True"),
        ("[fit]\nepochs = 0", "fit.epochs must be >= 1, was 0"),
        ("[fit]\nlearning_rate = nan", "fit.learning_rate must be a finite number, was nan"),
        ("[fit]\nlearning_rate = 1" + "0" * 400, "fit.learning_rate must be a finite number"),
        ("seeds = 3", "seeds must be a list"),
        ("seeds = ['a']", "seeds must be a list"),
        ("experiments = ['4D-None']\nvary.slope = [0]", "no experiment is named '4D-None'"),
        ("vary = 3", "vary must be a table"),
        ("vary.slope = 0.1", "method.slope must have a list of values"),
        ("vary.slop = [0.1]", "did you mean method.slope"),
        ("vary.slope = ['0.1']", "method.slope must be a finite number, was '0.1'"),
        ("vary.epochs = [0]", r"bad\.toml: fit.epochs must be >= 1, was 0"),
        ("latent_size = [-4]", r"bad\.toml: .*latent_size must be"),
        ("kind = 'tune'", "kind must be 'space', was 'tune': it is for python jobs/tune.py --conf"),
        ("kind = 'train'", "it is for python jobs/train.py --config .*bad.toml"),
        ("kind = 3", "kind must be 'space', was 3"),
        ("latent_size = [4]\nlatent-size = [8]", "latent-size is given twice"),
    ],
)
def test_a_bad_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    place = tmp_path / "bad.toml"
    place.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=message) as raised:
        read_space(str(place))
    assert str(place) in str(raised.value)


def test_a_file_of_an_editor_of_windows(tmp_path: Path) -> None:
    place = tmp_path / "a.toml"
    place.write_bytes(b"\xef\xbb\xbfseeds = [1, 2]\r\n[fit]\r\nepochs = 3\r\n")
    space = read_space(str(place))
    assert (space.seeds, space.fit.epochs) == ((1, 2), 3)


def test_a_file_that_is_not_there_or_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file of settings"):
        read_space(str(tmp_path / "none.toml"))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_space(str(tmp_path))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"experiment": 3}, "experiment must be text, was 3"),
        ({"experiment": "3D-Nome"}, "f.toml: no experiment is named '3D-Nome'; did you mean"),
        ({"experiment": "nothing"}, "'nothing'; known are 2D-None, .*any n in PCA-n"),
        ({"fit": {"epochs": 3}}, "needs an experiment"),
        ({"experiment": "PCA-3"}, "is of PCA-3, the command names 3D-None"),
        ({"experiment": "3D-None", "method": {"type": "AAE"}}, "no setting is named 'method.type'"),
        ({"experiment": "3D-None", "method": {"norm": "b"}}, "one of none, batch, group, was 'b'"),
        ({"experiment": "PCA-3", "erasing": {"strategy": "cube"}}, "does not learn from erased"),
    ],
)
def test_a_bad_experiment_in_a_file_is_named(table: dict[str, Any], message: str) -> None:
    name = "3D-None" if "command" in message else ""
    with pytest.raises(ConfigError, match=message) as raised:
        take_experiment(dict(table), "f.toml", name)
    assert str(raised.value).startswith("f.toml")


@dataclass(frozen=True, kw_only=True)
class Odd:
    size: int | None = 3
    level: Literal[1, 2] | float = 2
    pair: tuple[int, str] = (1, "a")
    nothing: tuple[()] = ()


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("size", "none", None),
        ("size", "4", 4),
        ("level", "1", 1),
        ("level", "1.5", 1.5),
        ("pair", "[2, b]", (2, "b")),
    ],
)
def test_text_of_unusual_types(name: str, text: str, value: Any) -> None:
    hint = fields.types_of(Odd())[name]
    assert fields.from_text(name, hint, text) == value


@pytest.mark.parametrize(
    ("name", "text"), [("size", "a"), ("level", "b"), ("pair", "2"), ("nothing", "1")]
)
def test_bad_text_of_unusual_types(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be"):
        fields.from_text(name, fields.types_of(Odd())[name], text)


def test_what_is_none_and_not_by_default_comes_back(tmp_path: Path) -> None:
    place = str(tmp_path / "a.toml")
    for odd in (Odd(size=None), Odd(size=7)):
        settings_files.write(place, "train", vars(odd))
        assert fields.overlay(Odd(), settings_files.read(place, "train"), place) == odd


def test_no_password_is_written(tmp_path: Path) -> None:
    place = tmp_path / "a.toml"
    settings_files.write(str(place), "train", {"mlflow": "postgresql://me:secret@host/db"})
    assert "secret" not in place.read_text()
    assert tomllib.loads(place.read_text())["mlflow"].endswith("host/db")


def test_names_of_settings_may_have_any_letters(tmp_path: Path) -> None:
    place = str(tmp_path / "ü 'a'\".toml")
    settings_files.write(place, "train", {"out": place, "cohort": "日本\n\\x"})
    assert settings_files.read(place, "train") == {"out": place, "cohort": "日本\n\\x"}
    assert replace(Odd(), size=None).size is None


MINE = '''
from dataclasses import dataclass
from typing import Literal

import uadray
from uadray.methods import GradientDetector, Learned


@uadray.method("MyAE", source="here", equation="none")
class MyAE(GradientDetector):
    """Mine."""

    @dataclass(frozen=True, kw_only=True)
    class Settings(Learned):
        width: int = 8
        """Feature maps."""
        depth: int | None = 2
        """Layers."""
        kind: Literal["a", "b"] = "a"
        """Kind."""
        shares: tuple[float, ...] = (0.5, 0.25)
        """Shares."""

        def __post_init__(self):
            if self.width < 1:
                raise uadray.errors.ConfigError(f"method.width must be >= 1, was {self.width}")

    def forward(self, x_in, target, noise, player=""):
        return {}

    def healthy(self, x):
        return x
'''


class TestFromOutside:
    NAME = "3D-my_own:MyAE-Cube-n"

    def test_its_settings_are_varied_as_ours(self, own_registry: OwnRegistry) -> None:
        own_registry.module("my_own", MINE)
        space = Space(experiments=(self.NAME,), baselines=False).with_text(
            [
                ("width", "4", "8"),
                ("depth", "none", "3"),
                ("kind", "b"),
                ("shares", "1,0.5", ".25"),
                ("erasing.probability", "0.25"),
            ]
        )
        trials = space.trials()
        assert len({t.fingerprint for t in trials}) == 8
        assert {t.name for t in trials} == {"3D-MyAE-Cube-n"}
        assert space.varied == ("method.width", "method.depth", "method.shares")
        with pytest.raises(ConfigError, match=r"method\.kind must be one of a, b, was 'c'"):
            space.with_text([("kind", "c")])
        with pytest.raises(ConfigError, match=r"method\.width must be >= 1, was 0"):
            space.with_text([("width", "0")]).trials()

    def test_it_is_the_same_after_its_file(self, own_registry: OwnRegistry, tmp_path: Path) -> None:
        own_registry.module("my_own", MINE)
        changes = {"method.depth": None, "method.shares": (), "erasing.fill": "zero"}
        one = replaced(experiment(self.NAME), changes)
        table = kept(one, tmp_path)
        assert table["experiment"] == "3D-my_own:MyAE"
        assert take_experiment(table, "f") == one
        space = Space(experiments=(self.NAME,), vary={"depth": (None, 3), "shares": ((), (1,))})
        place = str(tmp_path / "space.toml")
        settings_files.write(place, "space", vars(space))
        again = read_space(place)
        assert list(map(trial_name, again.trials())) == list(map(trial_name, space.trials()))
