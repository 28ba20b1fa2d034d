"""Methods from other packages: found, recorded, and refused by name where they cannot be used."""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from own_registry import OwnRegistry
from tiny_cohorts import SHAPE, write_healthy

import uadray
from uadray.config import BASELINES, OTHERS, Experiment, experiment, from_json, known, to_json
from uadray.errors import ConfigError, EvaluationError, PluginError, RunError
from uadray.evaluation.scoring import score_volumes
from uadray.methods import build
from uadray.runs.detector import try_out
from uadray.runs.folder import Run
from uadray.runs.records import find_runs

HEAD = """
from dataclasses import dataclass

import uadray
from uadray.lazy import nn, torch
from uadray.methods import Detection, Detector, GradientDetector, Learned, MethodSettings
"""

SETTINGS = '''
    @dataclass(frozen=True, kw_only=True)
    class Settings(Learned):
        width: int = 8
        """Feature maps."""
'''

BODY = """
    def __init__(self, config, shape):
        super().__init__(config, shape)
        conv = nn.Conv2d if config.ndim == 2 else nn.Conv3d
        self.net = nn.Sequential(conv(1, config.width, 1), nn.ReLU(), conv(config.width, 1, 1))

    def forward(self, x_in, target, noise, player=""):
        error = (self.net(x_in) - target).abs().mean()
        return {"loss": error, "reconstruction": error}

    def healthy(self, x):
        return self.net(x)
"""


def made(
    name: str = "MyAE",
    *,
    kind: str = "",
    base: str = "GradientDetector",
    settings: str = SETTINGS,
    body: str = BODY,
) -> str:
    """A module with a method."""
    decorator = f'@uadray.method("{name}", source="nowhere", equation="s = x")'
    return f"{HEAD}\n{decorator}\nclass {kind or name}({base}):\n{settings}{body}"


class TestFound:
    def test_by_entry_point_only_when_it_is_asked_for(self, own_registry: OwnRegistry) -> None:
        own_registry.write("my_ae", made())
        own_registry.write("broken", "raise OSError('no licence')")
        own_registry.install("my-package", "1.2", MyAE="my_ae:MyAE", Other="broken:Other")
        assert known().endswith(", MyAE, Other")
        with pytest.raises(ConfigError, match=r"no experiment is named 'Mine'.*, MyAE, Other"):
            experiment("Mine")
        assert "my_ae" not in sys.modules
        one = experiment("3D-MyAE-Cube-n")
        assert one.name == "3D-MyAE-Cube-n"
        assert to_json(one)["method"] == {
            "type": "my_ae:MyAE",
            "package": {"distribution": "my-package", "version": "1.2"},
            "ndim": 3,
            "width": 8,
        }
        assert from_json(Experiment, json.loads(json.dumps(to_json(one)))) == one

    def test_its_version_is_in_the_fingerprint(self, own_registry: OwnRegistry) -> None:
        own_registry.write("my_ae", made())
        own_registry.install("my-package", "1.2", MyAE="my_ae:MyAE")
        one = experiment("MyAE")
        other = json.dumps(to_json(one), sort_keys=True).replace("1.2", "1.3")
        assert one.fingerprint not in other
        assert json.dumps(to_json(one)) != other

    @pytest.mark.parametrize("name", ["{}", "3D-{}", "{}-Patch-n", "3D-{}-Half-Volume-0"])
    def test_by_its_place(self, own_registry: OwnRegistry, name: str) -> None:
        own_registry.write("my_ae", made("Mine", kind="MyAE"))
        assert experiment(name.format("my_ae:MyAE")).name == name.format("Mine")
        assert experiment(name.format("Mine")).name == name.format("Mine")

    def test_in_the_present_folder(
        self, own_registry: OwnRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (own_registry.folder / "lying_here.py").write_text(made())
        monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(own_registry.folder)])
        monkeypatch.chdir(own_registry.folder)
        assert experiment("lying_here:MyAE").name == "MyAE"

    def test_a_file_of_no_package_has_its_digest(self, own_registry: OwnRegistry) -> None:
        own_registry.write("my_ae", made())
        package = experiment("my_ae:MyAE").method.package
        assert package is not None
        assert (package.distribution, package.version[:7]) == ("", "sha256:")

    def test_packages_that_share_a_namespace_stay_apart(self, own_registry: OwnRegistry) -> None:
        (own_registry.folder / "lab").mkdir()
        own_registry.write("lab/one", made("One"))
        own_registry.write("lab/two", made("Two"))
        own_registry.install("lab-one", "1.0", One="lab.one:One")
        own_registry.install("lab-two", "2.0", Two="lab.two:Two")
        packages = [experiment(name).method.package for name in ("One", "Two", "One")]
        assert list(map(str, packages)) == ["lab-one 1.0", "lab-two 2.0", "lab-one 1.0"]

    def test_what_stands_beside_every_method_stays_ours(self, own_registry: OwnRegistry) -> None:
        """Also where a plug-in is imported before the table is made."""
        body = "\n    def detect(self, x, brain):\n        return Detection(x[:, 0])\n"
        settings = SETTINGS.replace("Learned", "MethodSettings")
        own_registry.write("mine", made("Mine", base="Detector", settings=settings, body=body))
        code = "import mine; from uadray.config import BASELINES, OTHERS; print(BASELINES, OTHERS)"
        done = run_python(code, own_registry.folder)
        assert done.stdout.strip() == f"{BASELINES} {OTHERS}"

    def test_torch_is_imported_by_none_of_it(self, own_registry: OwnRegistry) -> None:
        own_registry.write("my_ae", made())
        own_registry.write("heavy", "import torch\n" + made("Heavy"))
        own_registry.install("my-package", "1.2", MyAE="my_ae:MyAE", Heavy="heavy:Heavy")
        code = (
            "from uadray.config import experiment, known, to_json\nknown()\n"
            "to_json(experiment('3D-MyAE'))\n"
            "try: experiment('3D-None-at-all')\nexcept ValueError: pass\n"
            "import sys; print(*(one in sys.modules for one in ('torch', 'ray', 'my_ae')))"
        )
        assert run_python(code, own_registry.folder).stdout.split() == ["False", "False", "True"]

    def test_annotations_may_be_text(self, own_registry: OwnRegistry) -> None:
        own_registry.write("my_ae", "from __future__ import annotations\n" + made())
        assert experiment("my_ae:MyAE").name == "MyAE"


def run_python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, which finds what the folder holds."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )


def setting(line: str) -> str:
    """Settings with a line in place of the documented one."""
    head = SETTINGS.split("        width")[0]
    return head + textwrap.indent(line, " " * 8) + '\n        """Words."""\n'


UNDOCUMENTED = SETTINGS.replace('        """Feature maps."""\n', "")

REFUSED = {
    "no decorator": (f"{HEAD}\nclass MyAE(GradientDetector):\n{SETTINGS}{BODY}", "is no method"),
    "no class": ("MyAE = 3", "is no method"),
    "no detector": (
        f'{HEAD}\n@uadray.method("MyAE", source="", equation="")\nclass MyAE:\n{SETTINGS}',
        "derives from uadray.methods.Detector",
    ),
    "no such name": (made("Another"), "has no 'MyAE'"),
    "fails": ("1 / 0", r"ZeroDivisionError: division by zero \(.*my_ae.py, line 1\)"),
    "leaves": ("import sys; sys.exit(3)", "SystemExit"),
    "syntax": ("def", "SyntaxError"),
    "needs another module": ("import not_there", "No module named 'not_there'"),
    "not frozen": (
        made(settings=SETTINGS.replace("frozen=True, ", "")),
        r"non-frozen.*@dataclass\(frozen=True, kw_only=True\)",
    ),
    "no dataclass": (
        made(settings=SETTINGS.split("\n", 2)[2].join(["\n", ""])),
        r"Settings must be @dataclass\(frozen=True, kw_only=True\)",
    ),
    "no settings": (made(settings=""), "must have a class Settings of its own"),
    "settings of no kind": (
        made(settings=SETTINGS.replace("(Learned)", "")),
        "derives from uadray.methods.Learned",
    ),
    "learns nothing": (
        made(settings=SETTINGS.replace("Learned", "MethodSettings")),
        "derives from uadray.methods.Learned",
    ),
    "no docstring": (made(settings=UNDOCUMENTED), r"Settings.width must have a docstring"),
    "no default": (made(settings=setting("width: int")), r"Settings.width must have a default"),
    "no plain value": (
        made(settings=setting("width: object = print")),
        "Object of type builtin_function_or_method is not JSON",
    ),
    "a value that changes": (
        made(settings=setting("width: tuple[int, ...] = (1,)").replace("tuple[int, ...]", "list")),
        "my_ae:MyAE",
    ),
    "a name that records need": (
        made(settings=setting('type: str = "a"')),
        "records use 'type'",
    ),
    "a name of ours": (made("dAE", kind="MyAE"), "there is a method 'dAE'"),
    "a name that is a path": (made("my/ae", kind="MyAE"), "the name must be a letter"),
    "a name with erasing": (made("MyAE-Patch-n", kind="MyAE"), "endings -n and -0 are those of"),
    "a name with a dimension": (made("3D-My", kind="MyAE"), "the name must be a letter"),
    "no forward": (made(body=""), "must define forward"),
    "a fit of other fields": (
        made().replace('equation="s = x"', 'equation="s = x", fit={"epoch": 3}'),
        "unexpected keyword argument 'epoch'",
    ),
}


class TestRefused:
    @pytest.mark.parametrize("what", REFUSED)
    def test_by_its_place(self, own_registry: OwnRegistry, what: str) -> None:
        text, message = REFUSED[what]
        own_registry.write("my_ae", text)
        with pytest.raises(PluginError, match=f"(?s){message}") as refused:
            experiment("my_ae:MyAE")
        assert "my_ae" in str(refused.value)
        assert experiment("dAE").name == "dAE"

    @pytest.mark.parametrize("place", ["no_such_module:MyAE", "uadray.no_such:MyAE"])
    def test_no_such_module(self, own_registry: OwnRegistry, place: str) -> None:
        with pytest.raises(PluginError, match=r"Python finds no module.*PYTHONPATH"):
            experiment(place)

    @pytest.mark.parametrize("place", ["uadray.config:Experiment", "json:dumps", "os:sep"])
    def test_what_is_no_method(self, own_registry: OwnRegistry, place: str) -> None:
        with pytest.raises(PluginError, match="is no method"):
            experiment(place)

    def test_ours_by_its_place(self) -> None:
        assert experiment("uadray.methods.autoencoder:Autoencoder").name == "dAE"

    def test_of_the_program_itself_or_in_a_function(self, own_registry: OwnRegistry) -> None:
        code = "def f():\n" + textwrap.indent(made(), "  ") + "\nf()"
        own_registry.write("my_ae", code)
        with pytest.raises(PluginError, match="at the top of a module"):
            experiment("my_ae:MyAE")
        script = own_registry.folder / "script.py"
        script.write_text(made())
        done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
        assert "at the top of a module that can be imported" in done.stderr

    def test_two_of_one_name(self, own_registry: OwnRegistry) -> None:
        own_registry.write("one", made())
        own_registry.write("two", made())
        own_registry.install("package-one", "1.0", MyAE="one:MyAE")
        own_registry.install("package-two", "2.0", MyAE="two:MyAE", Mine="two:MyAE")
        message = (
            r"'MyAE' is there more than once: package-one 1.0 \(one:MyAE\) and package-two 2.0 "
            r"\(two:MyAE\)"
        )
        with pytest.raises(PluginError, match=message):
            experiment("MyAE")
        assert experiment("one:MyAE").name == "MyAE"

    def test_a_file_beside_a_package_of_its_name(self, own_registry: OwnRegistry) -> None:
        own_registry.write("one", made())
        own_registry.write("two", made())
        own_registry.install("package-one", "1.0", MyAE="one:MyAE")
        assert experiment("two:MyAE").name == "MyAE"
        with pytest.raises(PluginError, match=r"'MyAE' is there more than once.*package-one.*two"):
            experiment("MyAE")

    def test_the_name_of_one_of_ours(self, own_registry: OwnRegistry) -> None:
        own_registry.write("my_ae", made("dAE", kind="MyAE"))
        own_registry.install("my-package", "1.0", dAE="my_ae:MyAE")
        with pytest.warns(UserWarning, match=r"uadray's own dAE is meant, not that of my-package"):
            one = experiment("dAE")
        assert to_json(one)["method"]["type"] == "Autoencoder"

    def test_an_entry_point_of_another_name(self, own_registry: OwnRegistry) -> None:
        own_registry.write("my_ae", made())
        own_registry.install("my-package", "1.0", Mine="my_ae:MyAE")
        with pytest.raises(PluginError, match=r"my-package 1.0.*no method named 'Mine'"):
            experiment("Mine")

    def test_one_that_fails_is_named_and_the_rest_works(
        self, own_registry: OwnRegistry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        own_registry.write("my_ae", made())
        own_registry.write("broken", "raise OSError('no licence')")
        own_registry.install("my-package", "1.0", MyAE="my_ae:MyAE")
        own_registry.install("broken-package", "3.1", Broken="broken:Broken")
        with pytest.raises(PluginError, match=r"broken-package 3.1 .*OSError: no licence"):
            experiment("Broken-Patch-n")
        done = subprocess.run(
            [sys.executable, "-m", "uadray", "methods"],
            env={**os.environ, "PYTHONPATH": str(own_registry.folder)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 3
        assert "left out: broken-package 3.1" in done.stderr
        assert "no licence" in done.stderr
        lines = done.stdout.splitlines()
        assert any(line.split()[:3] == ["MyAE", "my-package", "1.0"] for line in lines)
        assert any(line.split()[:2] == ["HistEq", "uadray"] for line in lines)


BAD_MAPS = {
    "another shape": ("Detection(x[:, 0, 1:])", "shape"),
    "a channel too many": ("Detection(x)", "shape"),
    "integers": ("Detection((x[:, 0] > 0.5).int())", "floats"),
    "NaN": ("Detection(x[:, 0] * float('nan'))", "finite"),
    "one NaN": ("Detection(x[:, 0].where(x[:, 0] < x.max(), float('nan')))", "finite"),
    "infinity": ("Detection(x[:, 0] / 0)", "finite"),
    "above the range": ("Detection(x[:, 0] * 3)", "score_range 0 to 1"),
    "below the range": ("Detection(x[:, 0] - 1)", "score_range 0 to 1"),
    "a bare tensor": ("x[:, 0]", "expected a Detection"),
    "nothing": ("None", "expected a Detection"),
    "a reconstruction without channel": ("Detection(x[:, 0], x[:, 0])", "reconstruction"),
}


class TestMaps:
    @pytest.mark.parametrize("what", BAD_MAPS)
    def test_bad_ones_are_named(self, own_registry: OwnRegistry, what: str) -> None:
        """Before a fit, and when volumes are scored."""
        returned, message = BAD_MAPS[what]
        body = f"{BODY}\n    def detect(self, x, brain):\n        return {returned}\n"
        own_registry.write("my_ae", made(body=body))
        detector = build(experiment("my_ae:MyAE").method, SHAPE).eval()
        with pytest.raises(PluginError, match=f"my_ae:MyAE cannot be used: .*{message}"):
            try_out(detector, "my_ae:MyAE", SHAPE)
        images = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0))
        with pytest.raises(EvaluationError, match=message):
            score_volumes(detector, images, np.ones((2, *SHAPE), bool), torch.device("cpu"))

    @pytest.mark.parametrize(
        ("returned", "message"),
        [
            ("error", "'loss' is one number"),
            ("{'los': error}", "'loss' is one number"),
            ("{'loss': error.detach()}", "depends on the parameters"),
            ("{'loss': (self.net(x_in) - target).abs()}", "one number"),
            ("{'loss': error * float('nan')}", "loss of noise in .* is not finite"),
            ("{'loss': error / self.nothing}", "AttributeError.*nothing.*my_ae.py, line"),
        ],
    )
    def test_bad_losses_are_named(
        self, own_registry: OwnRegistry, returned: str, message: str
    ) -> None:
        body = BODY.replace('{"loss": error, "reconstruction": error}', returned)
        own_registry.write("my_ae", made(body=body))
        detector = build(experiment("3D-my_ae:MyAE").method, SHAPE)
        with pytest.raises(PluginError, match=f"(?s)my_ae:MyAE cannot be used: .*{message}"):
            try_out(detector, "my_ae:MyAE", SHAPE)

    @pytest.mark.parametrize("name", ["my_ae:MyAE", "3D-my_ae:MyAE"])
    def test_a_good_one_stays_as_it_begins(self, own_registry: OwnRegistry, name: str) -> None:
        own_registry.write("my_ae", made())
        detector = build(experiment(name).method, SHAPE)
        before, state = (
            {k: v.clone() for k, v in detector.state_dict().items()},
            torch.get_rng_state(),
        )
        try_out(detector, name, SHAPE)
        assert detector.training
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(before[k], v) for k, v in detector.state_dict().items())


class TestRecorded:
    @pytest.fixture
    def run(self, own_registry: OwnRegistry, tmp_path: Path) -> Run:
        own_registry.write("my_ae", made())
        own_registry.install("my-package", "1.2", MyAE="my_ae:MyAE")
        return Run.create(str(tmp_path / "run"), experiment("MyAE"), write_healthy(tmp_path))

    def forget(self, own_registry: OwnRegistry) -> None:
        """As in a process that has not met the method."""
        from uadray.methods import DETECTORS, NAMED

        del NAMED["MyAE"], DETECTORS["my_ae:MyAE"], sys.modules["my_ae"]

    def test_a_run_opens_in_another_process(self, run: Run, own_registry: OwnRegistry) -> None:
        self.forget(own_registry)
        assert Run.open(run.url).experiment.fingerprint == run.experiment.fingerprint

    def test_without_the_package_it_says_what_to_install(
        self, run: Run, own_registry: OwnRegistry
    ) -> None:
        self.forget(own_registry)
        own_registry.remove()
        with pytest.raises(RunError, match=r"config.json: MyAE .* pip install my-package==1.2"):
            Run.open(run.url)
        other = Run.create(run.url + "-2", experiment("HistEq"), uadray.open_cohort(run.cohort_url))
        runs, broken = find_runs([run.url, other.url])
        assert [one.url for one in runs] == [other.url]
        assert "pip install my-package==1.2" in broken[0].error

    def test_of_another_version_it_says_which(self, run: Run, own_registry: OwnRegistry) -> None:
        self.forget(own_registry)
        own_registry.remove()
        own_registry.write("my_ae", "raise AssertionError('is not imported')")
        own_registry.install("my-package", "2.0", MyAE="my_ae:MyAE")
        with pytest.raises(
            RunError, match=r"of my-package 1.2, here is my-package 2.0: pip install"
        ):
            Run.open(run.url)

    def test_a_changed_file_is_another_method(
        self, own_registry: OwnRegistry, tmp_path: Path
    ) -> None:
        own_registry.write("my_ae", made())
        run = Run.create(str(tmp_path / "run"), experiment("my_ae:MyAE"), write_healthy(tmp_path))
        self.forget(own_registry)
        assert Run.open(run.url).experiment == experiment("MyAE")
        self.forget(own_registry)
        own_registry.write("my_ae", made(body=BODY.replace("abs()", "square()")))
        with pytest.raises(RunError, match="bring back the file of module my_ae"):
            Run.open(run.url)

    @pytest.mark.parametrize(
        "method",
        [
            {"type": "os:system"},
            {"type": "antigravity:fly", "package": {"distribution": "", "version": "sha256:0"}},
            {"type": "json:dumps", "package": None},
            {"type": "json:dumps", "package": {"distribution": 3, "version": "1"}},
            {"type": "VAE", "package": {"distribution": "a", "version": "1"}},
            {"type": ["my_ae:MyAE"]},
        ],
    )
    def test_a_record_imports_nothing_else(self, method: dict[str, object]) -> None:
        with pytest.raises(ConfigError):
            from_json(Experiment, {**to_json(experiment("2D-None")), "method": method})
        assert "antigravity" not in sys.modules

    @pytest.mark.parametrize("place", ["theirs.evil:M", "theirs.inner.evil:M", "wsgiref:M"])
    def test_a_record_that_came_with_a_file_does_not_run_it(
        self, own_registry: OwnRegistry, place: str
    ) -> None:
        """However well its digest fits: whoever wrote the record wrote the file."""
        ran, text = own_registry.folder / "ran", "open({!r}, 'w').close()\n"
        inner = own_registry.folder / "theirs" / "inner"
        inner.mkdir(parents=True)
        for folder in (inner, inner.parent):
            (folder / "evil.py").write_text(text.format(str(ran)) + made())
            (folder / "__init__.py").write_text(text.format(str(ran)))
        source = (inner / "evil.py").read_bytes()
        if place.startswith("wsgiref"):
            source = Path(str(importlib.util.find_spec("wsgiref").origin)).read_bytes()  # type: ignore[union-attr]
        package = {
            "distribution": "",
            "version": f"sha256:{hashlib.sha256(source).hexdigest()[:16]}",
        }
        method = {"type": place, "package": package}
        before = place.partition(":")[0] in sys.modules
        with pytest.raises(PluginError, match="not so that a record alone may import it"):
            from_json(Experiment, {**to_json(experiment("2D-None")), "method": method})
        assert not ran.exists()
        assert (place.partition(":")[0] in sys.modules) == before

    def test_a_record_imports_what_a_package_offers_alone(self, own_registry: OwnRegistry) -> None:
        own_registry.write("my_ae", made())
        own_registry.write("my_other", made("MyOther"))
        own_registry.install("my-package", "1.0", MyAE="my_ae:MyAE")
        package = {"distribution": "my-package", "version": "1.0"}
        method = {"type": "my_other:MyAE", "package": package}
        with pytest.raises(PluginError, match="an entry point"):
            from_json(Experiment, {**to_json(experiment("2D-None")), "method": method})
        assert "my_other" not in sys.modules


@pytest.mark.parametrize(
    "place", ["my_ae.py:MyAE", "./my_ae:MyAE", "/data/my_ae.py:MyAE", "my-ae:MyAE"]
)
@pytest.mark.parametrize("name", ["{}", "3D-{}", "{}-Patch-n"])
def test_a_place_is_as_python_imports_it(place: str, name: str) -> None:
    with pytest.raises(PluginError, match=r"as Python imports it, such as my_ae:MyAE$"):
        experiment(name.format(place))


def test_what_no_record_could_lead_to_is_refused_before_a_fit(own_registry: OwnRegistry) -> None:
    """Else the run would be fitted, and nothing could read it."""
    (own_registry.folder / "mine").mkdir()
    own_registry.write("mine/__init__", "")
    own_registry.write("mine/ae", made())
    with pytest.raises(PluginError, match=r"a file of its own, such as ae\.py, or to an entry poi"):
        experiment("3D-mine.ae:MyAE-Cube-n")


def test_a_place_within_a_package_is_taken_where_an_entry_point_leads_there(
    own_registry: OwnRegistry,
) -> None:
    (own_registry.folder / "mine").mkdir()
    own_registry.write("mine/__init__", "")
    own_registry.write("mine/ae", made())
    own_registry.install("my-package", "1.2", MyAE="mine.ae:MyAE")
    assert experiment("3D-mine.ae:MyAE").name == "3D-MyAE"
