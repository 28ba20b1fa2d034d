"""Skull strippers of other packages: found, recorded, and a bad one costs scans, never the job."""

import json
from dataclasses import replace

import numpy as np
import pytest
from own_registry import OwnRegistry
from tiny_scans import TINY, brain_image, write

from uadray.config import from_json, to_json
from uadray.errors import ConfigError, PluginError, ScanError
from uadray.prediction.settings import PredictConfig
from uadray.preparation.layouts import Scan
from uadray.preparation.plan import make_plan
from uadray.preparation.settings import STRIPPERS, TOOLS, PrepareConfig, SplitConfig
from uadray.preparation.steps import prepare_scan, recorded_config


def made(returned: str = "volume.image > 0") -> str:
    return f"import numpy as np\ndef find(volume):\n    return {returned}\n"


def install(own_registry: OwnRegistry, text: str = "", version: str = "1.2") -> None:
    own_registry.write("my_stripper", text or made())
    own_registry.install("my-package", version, group="skull_strippers", mine="my_stripper:find")


@pytest.fixture
def scan(tmp_path) -> Scan:
    image = brain_image()
    mask = write(tmp_path / "m.nii", image > 0)
    lesion = np.zeros(image.shape)
    lesion[image.shape[0] // 2, image.shape[1] // 2, image.shape[2] // 2] = 1
    lesions = write(tmp_path / "l.nii", lesion)
    path = write(tmp_path / "i.nii", image)
    return Scan(id="one", subject="one", modality="T1w", image=path, brain=mask, lesion=lesions)


def test_its_mask_is_taken_and_noted(own_registry: OwnRegistry, scan: Scan) -> None:
    half = "(np.arange(volume.image.shape[0]) < 10)[:, None, None] & (volume.image > 0)"
    install(own_registry, made(half))
    healthy = replace(scan, lesion="")
    plain = prepare_scan(healthy, TINY)
    out = prepare_scan(healthy, replace(TINY, skull_strip="mine", min_brain_ml=0.0))
    assert 0.1 < out.brain_ml / plain.brain_ml < 0.95
    assert "brain mask by mine of my-package 1.2" in out.notes


def test_it_sees_copies_and_no_lesion(own_registry: OwnRegistry, scan: Scan) -> None:
    text = (
        "def find(volume):\n    assert volume.lesion is None\n    mask = volume.image > 0\n"
        "    volume.image[:] = 7\n    volume.brain[:] = False\n    return mask\n"
    )
    install(own_registry, text)
    out = prepare_scan(scan, replace(TINY, skull_strip="mine"))
    assert np.array_equal(out.image, prepare_scan(scan, replace(TINY, skull_strip="none")).image)


REFUSED = {
    "another shape": ("volume.image[1:] > 0", r"must return a mask of bool \(.*\), was of bool"),
    "numbers": ("(volume.image > 0).astype('uint8')", "mask of bool .*, was of uint8"),
    "a list": ("[True]", r"mask of bool .*, was of list \(\)"),
    "nothing": ("None", "mask of bool .*, was of NoneType"),
    "an empty one": ("volume.image < -1", "found no brain"),
    "an error": ("1 / 0", r"fails: ZeroDivisionError: .*my_stripper.py, line 3"),
    "its leave": ("exit(3)", "fails: SystemExit"),
    "all of the head": ("np.ones(volume.image.shape, bool)", "mL are brain, expected at most"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_it_returns_costs_the_scan(own_registry: OwnRegistry, scan: Scan, what: str) -> None:
    returned, message = REFUSED[what]
    install(own_registry, made(returned))
    with pytest.raises(ScanError, match=message) as refused:
        prepare_scan(scan, replace(TINY, skull_strip="mine", max_brain_ml=10.0))
    assert str(refused.value).startswith(scan.image)
    assert what == "all of the head" or "skull stripper mine of my-package 1.2" in str(
        refused.value
    )


@pytest.mark.parametrize("text", ["find = 3", "def find(): pass", "def find(a, b): pass"])
def test_what_is_none_is_refused(own_registry: OwnRegistry, text: str) -> None:
    install(own_registry, text)
    with pytest.raises(PluginError, match=r"my-package 1.2 .* is no skull stripper named 'mine'"):
        STRIPPERS["mine"]


def test_an_unknown_one_is_named_with_those_there_are(own_registry: OwnRegistry) -> None:
    install(own_registry)
    message = "one of auto, none, mask, robex-if-needed, deepbet, robex, mine, was 'bet'"
    for make in (PrepareConfig, PredictConfig):
        with pytest.raises(ConfigError, match=message):
            make(skull_strip="bet")  # type: ignore[operator]
    assert PredictConfig(skull_strip="mine").prepare(PrepareConfig()).package is not None


def test_ours_are_those_that_settings_name() -> None:
    import uadray.preparation.skull  # noqa: F401

    assert tuple(STRIPPERS.imported) == TOOLS


class TestRecorded:
    def plan(self, scan: Scan, skull_strip: str) -> dict[str, object]:
        config = PrepareConfig(skull_strip=skull_strip)
        plan = make_plan([(scan, "test")], config, SplitConfig(), seed=0)
        return json.loads(json.dumps(plan))  # type: ignore[no-any-return]

    def test_its_package_decides_the_cohort(self, own_registry: OwnRegistry, scan: Scan) -> None:
        install(own_registry)
        plan = self.plan(scan, "mine")
        package = {"distribution": "my-package", "version": "1.2"}
        assert plan["config"]["package"] == package  # type: ignore[index]
        assert recorded_config(plan) == PrepareConfig(skull_strip="mine")
        assert replace(recorded_config(plan), skull_strip="auto") == PrepareConfig()

    def test_ours_are_recorded_as_ever(self, scan: Scan) -> None:
        assert "package" not in self.plan(scan, "deepbet")["config"]  # type: ignore[operator]
        assert "package" not in to_json(PrepareConfig())

    def test_without_it_or_with_another_version_it_says_which(
        self, own_registry: OwnRegistry, scan: Scan
    ) -> None:
        install(own_registry)
        plan = self.plan(scan, "mine")
        own_registry.remove()
        with pytest.raises(
            PluginError,
            match=r"skull stripper 'mine' is of my-package 1.2, .* "
            r"pip install my-package==1.2",
        ):
            recorded_config(plan)
        install(own_registry, "raise AssertionError('is not imported')", version="2.0")
        with pytest.raises(PluginError, match=r"here is my-package 2.0: pip install my-package=="):
            recorded_config(plan)

    @pytest.mark.parametrize(
        "package", [None, 3, {"distribution": "a"}, {"distribution": "", "version": "1"}]
    )
    def test_a_record_that_nobody_wrote(self, package: object) -> None:
        value = to_json(PrepareConfig()) | {"skull_strip": "robex", "package": package}
        with pytest.raises(ConfigError):
            from_json(PrepareConfig, value)
