"""Erasing strategies of other packages: named, recorded, tried before a fit, refused by name."""

import json
import sys

import pytest
import torch
from own_registry import OwnRegistry
from tiny_cohorts import SHAPE, write_healthy

from uadray.config import Experiment, experiment, from_json, known, to_json
from uadray.data.erasing import check_draw, sample_erasing
from uadray.errors import ConfigError, PluginError, RunError
from uadray.runs.folder import Run
from uadray.strategies import STRATEGIES, ErasingConfig, keys, strategy
from uadray.tune.space import settings_of

DRAW = """
    u = uniform(1)
    boxes = np.zeros((len(u), 1, len(spatial), 2), np.int64)
    boxes[..., 1] = spatial
    boxes[:, 0, -1, 0] = np.floor(u[:, 0] * spatial[-1])
    boxes[:, 0, -1, 1] = boxes[:, 0, -1, 0] + 1
    return Regions(boxes_BRD2=boxes)
"""


def made(draw: str = DRAW, key: str = "column", change: str = "") -> str:
    return (
        "import numpy as np\nfrom uadray.strategies import Regions, Strategy\n"
        f"def draw(config, spatial, uniform):{draw}\n"
        f"COLUMN = Strategy(key={key!r}, names={{2: 'Column', 3: 'Slab'}}, erases='a column', "
        "settings=('max_share',), draw=draw, nominal=lambda config, spatial: 1 / spatial[-1], "
        f"source='nowhere'){change}\n"
    )


def install(own_registry: OwnRegistry, text: str = "", version: str = "1.2") -> None:
    own_registry.write("my_column", text or made())
    own_registry.install("my-package", version, group="strategies", column="my_column:COLUMN")
    check_draw.cache_clear()


class TestFound:
    def test_by_its_names_only_when_it_is_asked_for(self, own_registry: OwnRegistry) -> None:
        install(own_registry)
        assert keys()[-1] == "column"
        assert experiment("3D-Cube-n").name == "3D-Cube-n"
        assert "my_column" not in sys.modules
        one = experiment("3D-sVAE-Slab-n")
        assert (one.name, one.erasing.strategy) == ("3D-sVAE-Slab-n", "column")
        assert experiment("2D-Column-0").name == "2D-Column-0"
        assert "erasing.max_share" in settings_of(one)
        where = sample_erasing(one.erasing, torch.arange(9), seed=0, epoch=0, spatial=SHAPE)
        assert where.regions_BRD2.shape == (9, 1, 3, 2)
        assert known() == known()

    def test_its_package_and_version_are_recorded(self, own_registry: OwnRegistry) -> None:
        install(own_registry)
        one = experiment("3D-Slab-n")
        value = json.loads(json.dumps(to_json(one)))
        package = {"distribution": "my-package", "version": "1.2"}
        assert value["erasing"]["package"] == package
        assert from_json(Experiment, value) == one
        del value["erasing"]["package"]
        assert one.fingerprint != from_json(Experiment, value | {"fit": {"seed": 1}}).fingerprint
        assert "package" not in to_json(experiment("3D-Cube-n"))["erasing"]


class TestMissing:
    def test_without_it_or_with_another_version_it_says_which(
        self, own_registry: OwnRegistry, tmp_path
    ) -> None:
        install(own_registry)
        run = Run.create(str(tmp_path / "run"), experiment("3D-Slab-n"), write_healthy(tmp_path))
        erasing = run.experiment.erasing
        own_registry.remove()
        del STRATEGIES["column"]
        message = r"erasing strategy 'column' is of my-package 1.2, .* pip install my-package==1.2"
        with pytest.raises(RunError, match=message):
            Run.open(run.url)
        # As on a node that lacks it.
        with pytest.raises(PluginError, match="no erasing strategy is named 'column' here"):
            strategy(erasing)
        install(own_registry, "raise AssertionError('is not imported')", version="2.0")
        with pytest.raises(RunError, match=r"here is my-package 2.0: pip install my-package=="):
            Run.open(run.url)

    def test_one_that_fails_is_named_and_the_rest_works(self, own_registry: OwnRegistry) -> None:
        install(own_registry)
        own_registry.write("broken", "raise OSError('no licence')")
        own_registry.install("broken-package", "3.1", group="strategies", broken="broken:B")
        assert experiment("3D-Slab-n").erasing.strategy == "column"
        with pytest.raises(ConfigError, match=r"'3D-Ball-n'; .*left out: broken-package 3.1 .*OSE"):
            experiment("3D-Ball-n")
        with pytest.raises(PluginError, match=r"broken-package 3.1"):
            strategy(ErasingConfig(strategy="broken"))

    def test_two_of_one_name(self, own_registry: OwnRegistry) -> None:
        own_registry.write("my_column", made())
        own_registry.write("other", made(key="other"))
        own_registry.install("package-one", "1", group="strategies", column="my_column:COLUMN")
        own_registry.install("package-two", "2", group="strategies", other="other:COLUMN")
        assert STRATEGIES["column"].names[3] == "Slab"
        with pytest.raises(PluginError, match=r"package-two 2 .*'Column' is taken"):
            STRATEGIES["other"]
        own_registry.install("package-three", "3", group="strategies", column="other:COLUMN")
        with pytest.raises(PluginError, match=r"'column' is there more than once: package-.*"):
            STRATEGIES["column"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("COLUMN = 3", "expected a uadray.strategies.Strategy, was 3"),
        (made(key="other"), "its key is 'other'"),
        (made().replace("('max_share',)", "('side',)"), "names no setting: 'side'"),
        (made().replace("'Slab'", "'Cube'"), "'Cube' is taken"),
    ],
)
def test_what_is_none_is_refused(own_registry: OwnRegistry, text: str, message: str) -> None:
    install(own_registry, text)
    with pytest.raises(PluginError, match=rf"my-package 1.2 .* is no erasing strategy.*{message}"):
        STRATEGIES["column"]


BAD = {
    "nothing": ("\n    return None\n", "Regions with boxes of int64, was None"),
    "floats": (DRAW.replace("np.int64", "float"), "boxes of int64"),
    "another number of samples": (DRAW.replace("=boxes)", "=boxes[1:])"), r"shape \(16, R, 3, 2\)"),
    "an axis less": (DRAW.replace("=boxes)", "=boxes[:, :, 1:])"), r"shape \(16, R, 3, 2\)"),
    "beyond the sample": (DRAW.replace("0] + 1", "0] + 9"), "a box leaves the sample"),
    "before it": (DRAW.replace("0] + 1", "0] - 99"), "a box leaves the sample"),
    "sides as numbers": (DRAW.replace("=boxes)", "=boxes, right=u[:, 0])"), "right must be None"),
    "its own random numbers": (
        DRAW.replace("u = uniform(1)", "u = np.random.random((len(uniform(1)), 1))"),
        "own random numbers alone",
    ),
    "those of the other samples": (
        DRAW.replace("u = uniform(1)", "u = uniform(1); u = u / u.max() * 0.9"),
        "own random numbers alone",
    ),
    "an error": ("\n    return 1 / 0\n", r"fails: ZeroDivisionError: .*my_column.py"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_it_draws_is_tried_before_a_fit(own_registry: OwnRegistry, what: str) -> None:
    draw, message = BAD[what]
    install(own_registry, made(draw))
    config = experiment("3D-Slab-n").erasing
    with pytest.raises(PluginError, match=message) as refused:
        check_draw(config, SHAPE)
    assert "erasing strategy column of my-package 1.2" in str(refused.value)
    with pytest.raises(PluginError, match=message):
        sample_erasing(config, torch.arange(3), seed=0, epoch=0, spatial=SHAPE)


@pytest.mark.parametrize("key", STRATEGIES.imported)
@pytest.mark.parametrize("spatial", [(8, 8), (7, 5), (6, 8, 10)])
def test_ours_keep_the_same_rules(key: str, spatial: tuple[int, ...]) -> None:
    check_draw(ErasingConfig(strategy=key), spatial)
