"""One decorator makes a method; settings and names cost no torch."""

import json
import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import tyro
from own_registry import OwnRegistry
from tiny_cohorts import SHAPE
from tiny_fits import cut, fit_arrays, made_images
from torch import nn

from uadray.config import Experiment, experiment, from_json, to_json, with_fit
from uadray.errors import ConfigError
from uadray.methods import NAMED, GradientDetector, Learned, build, is_fitted, method
from uadray.methods.vae import VAE


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a job takes."""

    experiment: Experiment


MY_AE = '''
from dataclasses import dataclass

import uadray
from uadray.lazy import nn
from uadray.methods import GradientDetector, Learned


@uadray.method("MyAE", source="nowhere", equation="s = x", fit={"epochs": 2, "batch_size": 4})
@uadray.method("MyWideAE", source="nowhere", equation="s = x", settings={"width": 16})
class MyAE(GradientDetector):
    """An autoencoder of this test."""

    @dataclass(frozen=True, kw_only=True)
    class Settings(Learned):
        width: int = 8
        """Feature maps of the first layer."""

        @property
        def label(self):
            return "MyAE" if self.width == 8 else "MyWideAE"

    def __init__(self, config, shape):
        super().__init__(config, shape)
        conv = nn.Conv2d if config.ndim == 2 else nn.Conv3d
        self.net = nn.Sequential(conv(1, config.width, 1), nn.ReLU(), conv(config.width, 1, 1))

    def forward(self, x_in, target, noise, player=""):
        error = (self.net(x_in) - target).abs().mean()
        return {"loss": error, "reconstruction": error}

    def healthy(self, x):
        return self.net(x)
'''


@pytest.fixture
def my_ae(own_registry: OwnRegistry) -> type[GradientDetector]:
    """A method from outside, in one class, while the test runs."""
    return own_registry.module("my_ae", MY_AE).MyAE  # type: ignore[no-any-return]


class TestDecorator:
    def test_names_stand_in_the_order_of_the_file(self, my_ae: type) -> None:
        assert list(NAMED)[-2:] == ["MyAE", "MyWideAE"]
        assert NAMED["MyWideAE"].method == my_ae.Settings(width=16)

    @pytest.mark.parametrize(
        "name", ["MyAE", "3D-MyAE", "MyAE-Patch-n", "3D-MyWideAE-Half-Volume-0"]
    )
    def test_everything_follows_from_one_entry(
        self, my_ae: type, name: str, tmp_path: Path
    ) -> None:
        made = experiment(name)
        assert made.name == name
        kept = json.loads(json.dumps(to_json(made)))
        assert kept["method"]["type"] == "my_ae:MyAE"
        assert kept["method"]["package"]["version"].startswith("sha256:")
        assert from_json(Experiment, kept) == made
        detector = build(made.method, SHAPE)
        assert isinstance(detector, my_ae)
        assert isinstance(detector, nn.Module)
        assert is_fitted(made.method)
        wanted = with_fit(made, epochs=1, batch_size=4, precision="float32")
        images = made_images(4)
        samples = images if made.method.ndim == 3 else images[:, 8]  # type: ignore[attr-defined]
        batches = cut(samples, [0, 1, 2, 3], 4)
        fitted, records = fit_arrays(wanted, images, tmp_path, batches=lambda epoch: batches)
        assert len(records) == 1
        x = made_images(2).float()
        scores = fitted.anomaly_map(x[:, None], x > 0)
        assert scores.shape == (2, *SHAPE)
        assert float(scores.detach().min()) >= 0

    def test_its_settings_are_flags_with_their_help(
        self, my_ae: type, capsys: pytest.CaptureFixture[str]
    ) -> None:
        given = Given(experiment=experiment("MyAE"))
        flags = ["--experiment.method.width", "4"]
        assert tyro.cli(Given, args=flags, default=given).experiment.method.width == 4  # type: ignore[attr-defined]
        with pytest.raises(SystemExit):
            tyro.cli(Given, args=["--help"], default=given)
        output = " ".join(capsys.readouterr().out.split())
        assert "An autoencoder of this test." in output
        assert "Feature maps of the first layer." in output

    def test_a_name_is_given_once(self, my_ae: type) -> None:
        with pytest.raises(ConfigError, match=r"method 'dAE'.*already"):
            method("dAE", source="", equation="")(VAE)
        other = type("VAE", (VAE,), {"Settings": my_ae.Settings, "__module__": "uadray.methods.x"})
        with pytest.raises(ConfigError, match="must have a class Settings of its own"):
            method("Other", source="", equation="")(other)

    def test_of_several_names_the_settings_tell_which(self, my_ae: type) -> None:
        with pytest.raises(ConfigError, match="the label of 'Three' must be that, was 'MyAE'"):
            method("Three", source="", equation="")(my_ae)


def in_a_fresh_process(code: str) -> list[str]:
    """Names of the modules that it has loaded at its end."""
    code += "; import sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout.split()


class TestClosure:
    def test_methods_know_no_file_no_cohort_and_no_ray(self) -> None:
        loaded = in_a_fresh_process(
            "from uadray.methods import NAMED, build\n"
            "for one in NAMED.values(): build(one.method, (32, 32, 32))\n0"
        )
        rooms = {name.split(".")[1] for name in loaded if name.startswith("uadray.")}
        assert rooms == {"methods", "device", "errors", "lazy", "plugins", "random"}
        assert "ray" not in loaded

    @pytest.mark.parametrize(
        "module", ["uadray.methods", "uadray.config", "uadray.tune.space", "uadray.runs.records"]
    )
    def test_names_settings_and_records_need_no_torch(self, module: str) -> None:
        code = f"import {module}; from uadray.config import *; to_json(experiment('3D-ceVAE'))"
        loaded = in_a_fresh_process(code)
        assert not {"torch", "sklearn", "ray"} & set(loaded)


class TestLazy:
    def test_a_class_that_was_made_without_torch_is_a_module(self) -> None:
        code = (
            "from uadray.methods import GradientDetector; import sys\n"
            "from uadray.methods.vae import VAE\n"
            "assert 'torch' not in sys.modules\n"
            "made = VAE(VAE.Settings(widths=(8,), latent_size=2), (4, 4, 4))\n"
            "import pickle, torch\n"
            "assert isinstance(made, torch.nn.Module) and type(made) is VAE\n"
            "assert issubclass(GradientDetector, torch.nn.Module)\n"
            "x = torch.rand(1, 1, 4, 4, 4)\n"
            "again = pickle.loads(pickle.dumps(made))\n"
            "assert torch.equal(again.reconstruct(x), made.reconstruct(x))\n0"
        )
        in_a_fresh_process(code)

    def test_what_is_abstract_stays_so(self) -> None:
        with pytest.raises(TypeError, match="abstract"):
            GradientDetector(Learned(), SHAPE)  # type: ignore[abstract]

    def test_a_detector_is_pickled_and_traced_as_any_module(self) -> None:
        torch.manual_seed(0)
        made = VAE(VAE.Settings(widths=(8, 16), latent_size=4), SHAPE).eval()
        x = torch.rand(1, 1, *SHAPE)
        again = pickle.loads(pickle.dumps(made))
        assert torch.equal(again.reconstruct(x), made.reconstruct(x))
        traced = torch.compile(made, backend="eager", fullgraph=True)
        noise = torch.zeros(1, 4)
        assert torch.equal(traced(x, x, noise)["loss"], made(x, x, noise)["loss"])
