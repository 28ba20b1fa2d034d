"""Where is computed: what Ray has assigned, what was asked for, and what is refused with words."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import uadray
from uadray import device
from uadray.device import compute_device, cudnn_fault, full_float32, gpus_each
from uadray.errors import ConfigError
from uadray.runs.folder import hardware

WORKER, DRIVER = 1, 0


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No Ray in this process, whatever other tests have imported."""
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    for name in ("CUDA_VISIBLE_DEVICES", "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


def in_ray(monkeypatch: pytest.MonkeyPatch, *ids: str, mode: int = WORKER) -> None:
    """Let this process be one of Ray's, with these GPUs."""
    context = SimpleNamespace(
        worker=SimpleNamespace(mode=mode), get_accelerator_ids=lambda: {"GPU": list(ids), "TPU": []}
    )
    ray = SimpleNamespace(
        WORKER_MODE=WORKER, is_initialized=lambda: True, get_runtime_context=lambda: context
    )
    monkeypatch.setitem(sys.modules, "ray", ray)


def with_cuda(monkeypatch: pytest.MonkeyPatch, *, usable: bool = True, there: bool = True) -> None:
    """Let torch be a build with CUDA, on a machine with a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: usable)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(device, "has_gpu", lambda: there)
    monkeypatch.setattr(device, "driver_version", lambda: "535.104.05" if there else "")


class TestComputeDevice:
    @pytest.mark.parametrize(
        ("wanted", "ids", "expected"),
        [
            ("auto", None, "cuda"),
            ("cuda", None, "cuda"),
            ("cpu", None, "cpu"),
            ("auto", (), "cpu"),  # a worker with num_gpus=0 still sees every GPU of its node
            ("cpu", (), "cpu"),
            ("auto", ("3",), "cuda"),
            ("cuda", ("3",), "cuda"),
            ("cpu", ("3",), "cpu"),
        ],
    )
    def test_in_a_worker_it_is_the_assigned_gpu_or_none(
        self, monkeypatch: pytest.MonkeyPatch, wanted: Any, ids: Any, expected: str
    ) -> None:
        with_cuda(monkeypatch)
        if ids is not None:
            in_ray(monkeypatch, *ids)
        assert compute_device(wanted) == torch.device(expected)

    def test_a_driver_has_what_its_machine_has(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with_cuda(monkeypatch)
        in_ray(monkeypatch, mode=DRIVER)
        assert compute_device().type == "cuda"

    @pytest.mark.parametrize(
        ("visible", "ids", "expected"), [("", ("2",), 2), ("5,7", ("7",), 1), ("4,2", ("2",), 1)]
    )
    def test_where_ray_hides_no_gpu_the_assigned_one_is_chosen(
        self, monkeypatch: pytest.MonkeyPatch, visible: str, ids: Any, expected: int
    ) -> None:
        with_cuda(monkeypatch)
        in_ray(monkeypatch, *ids)
        chosen: list[int] = []
        monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
        monkeypatch.setenv("RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES", "1")
        if visible:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert compute_device("cuda") == torch.device("cuda", expected)
        assert chosen == [expected]

    def test_it_is_the_cpu_where_there_is_no_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with_cuda(monkeypatch, usable=False, there=False)
        assert compute_device().type == "cpu"

    @pytest.mark.parametrize("wanted", ["auto", "cuda"])
    def test_a_driver_that_is_too_old_is_no_reason_to_fit_on_the_cpu_in_silence(
        self, monkeypatch: pytest.MonkeyPatch, wanted: Any
    ) -> None:
        with_cuda(monkeypatch, usable=False)
        with pytest.raises(ConfigError, match=r"driver is 535\.104\.05.*built for CUDA 13\.0"):
            compute_device(wanted)
        assert compute_device("cpu").type == "cpu"

    def test_nor_is_an_assigned_gpu_that_cannot_be_used(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with_cuda(monkeypatch, usable=False, there=False)
        in_ray(monkeypatch, "0")
        with pytest.raises(ConfigError, match="no NVIDIA driver"):
            compute_device("auto")

    def test_hidden_gpus_are_no_error_unless_asked_for(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with_cuda(monkeypatch, usable=False)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        assert compute_device().type == "cpu"
        with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES is ''"):
            compute_device("cuda")

    def test_a_build_without_cuda_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with_cuda(monkeypatch, usable=False)
        monkeypatch.setattr(torch.version, "cuda", None)
        assert compute_device().type == "cpu"
        with pytest.raises(ConfigError, match="build without CUDA"):
            compute_device("cuda")

    def test_a_worker_without_a_gpu_that_is_asked_for_one_says_how_to_give_it_one(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with_cuda(monkeypatch)
        in_ray(monkeypatch)
        with pytest.raises(ConfigError, match="Ray has assigned none"):
            compute_device("cuda")


@pytest.mark.parametrize("module", ["methods.vae", "train.precision", "evaluation.scoring", "api"])
@pytest.mark.parametrize("own", ["", ":16:8"])
def test_what_cublas_needs_is_in_the_environment_of_whatever_computes(
    module: str, own: str
) -> None:
    """From the import on, since torch looks once: before warm-ups, and before an actor's trials."""
    known = {k: v for k, v in os.environ.items() if k != "CUBLAS_WORKSPACE_CONFIG"}
    code = f"import os, uadray.{module}; print(os.environ['CUBLAS_WORKSPACE_CONFIG'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=known | ({"CUBLAS_WORKSPACE_CONFIG": own} if own else {}),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == (own or ":4096:8")


def test_a_forbidden_gpu_is_none(tmp_path: Path) -> None:
    assert not device.has_gpu(tmp_path)
    (tmp_path / "nvidiactl").touch()
    (tmp_path / "nvidia-caps").mkdir()
    assert not device.has_gpu(tmp_path)
    (tmp_path / "nvidia0").mkdir()  # as what cannot be opened to write
    assert not device.has_gpu(tmp_path)
    (tmp_path / "nvidia1").touch()
    assert device.has_gpu(tmp_path)


def test_the_driver_is_read_from_what_the_kernel_says(tmp_path: Path) -> None:
    module, proc = tmp_path / "version", tmp_path / "proc"
    places = (str(module), str(proc))
    assert device.driver_version(places) == ""
    proc.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build\n"
        "GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n"
    )
    assert device.driver_version(places) == "570.86.15"
    module.write_text("550.54\n")
    assert device.driver_version(places) == "550.54"


@pytest.mark.parametrize(
    ("wanted", "gpus", "expected"),
    [("auto", 0, 0), ("auto", 0.5, 0.5), ("cuda", 0, 1), ("cuda", 0.25, 0.25), ("cpu", 0, 0)],
)
def test_gpus_of_a_worker(wanted: Any, gpus: float, expected: float) -> None:
    assert gpus_each(wanted, gpus, "--gpus") == expected


@pytest.mark.parametrize(
    ("wanted", "gpus", "message"), [("cpu", 1, "contradicts"), ("auto", 2, "at most 1")]
)
def test_gpus_that_make_no_sense(wanted: Any, gpus: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        gpus_each(wanted, gpus, "--gpus")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"CUDA_VISIBLE_DEVICES": "0"}, False),  # Slurm's, say: no driver that was sent
        ({"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}", "CUDA_VISIBLE_DEVICES": "2"}, True),
        ({"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}, False),
        (
            {
                "RAY_JOB_CONFIG_JSON_ENV_VAR": "{}",
                "CUDA_VISIBLE_DEVICES": "0,1",
                "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",
            },
            False,  # sent without --entrypoint-num-gpus to a head that has two
        ),
    ],
)
def test_a_driver_that_was_sent_with_a_gpu(environment: dict[str, str], expected: bool) -> None:
    assert device.is_given_a_gpu(environment) is expected


class TestGpuFacts:
    """What records say of a GPU, with what decides its figures."""

    @pytest.fixture(autouse=True)
    def gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with_cuda(monkeypatch)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
        monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91700)

    def test_of_a_gpu(self) -> None:
        versions = {"driver": "535.104.05", "cuda": "13.0", "cudnn": 91700}
        assert device.gpu_facts() == {"device": "NVIDIA H200"} | versions
        assert hardware()["device"] == "NVIDIA H200"
        assert set(hardware()) == {"cpus", "machine", "device", *versions}

    def test_a_worker_without_one_names_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        in_ray(monkeypatch)
        assert device.gpu_facts() == {}
        assert hardware()["device"] == "cpu"


@pytest.mark.parametrize(
    ("version", "is_faulty"),
    [
        (None, False),
        (8902, False),
        (90701, False),
        (90800, True),
        (91002, True),
        (91501, True),
        (91600, False),
        (92000, False),
    ],
)
def test_versions_of_cudnn(version: int | None, is_faulty: bool) -> None:
    assert bool(cudnn_fault(version)) is is_faulty
    if version == 91002:
        assert "cuDNN 9.10.2 " in cudnn_fault(version)


@pytest.fixture
def tf32(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """TensorFloat-32 allowed, in a process that uses CUDA."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = True
    yield
    cudnn.allow_tf32, matmul.allow_tf32 = before


def allowed() -> tuple[bool, bool]:
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


@pytest.mark.usefixtures("tf32")
class TestFullFloat32:
    def test_it_lasts_as_long_as_the_context(self) -> None:
        with full_float32():
            assert allowed() == (False, False)
            with full_float32():
                pass
            assert allowed() == (False, False)
        assert allowed() == (True, True)

    def test_an_error_ends_it_too(self) -> None:
        with pytest.raises(KeyError), full_float32():
            raise KeyError
        assert allowed() == (True, True)

    def test_scoring_is_in_it(self) -> None:
        from uadray.evaluation.scoring import detect
        from uadray.methods.base import Detection

        seen = []

        class Looks(torch.nn.Module):
            def detect(self, x: torch.Tensor, inside: torch.Tensor) -> Detection:
                seen.append(allowed())
                return Detection(x[:, 0] * inside)

        images = torch.rand(1, 4, 4, 4)
        detect(Looks(), images, images.numpy() > 0, torch.device("cpu"))  # type: ignore[arg-type]
        assert seen == [(False, False)]

    def test_so_are_distances_to_codes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from uadray.methods.codes import Codebook

        book = Codebook(4, 3, commitment=0.25, decay=0.9, dead_share=0.03)
        seen = []
        codes = Codebook.codes.fget
        assert codes is not None

        def look(self: Codebook) -> torch.Tensor:
            seen.append(allowed())
            return codes(self)  # type: ignore[no-any-return]

        monkeypatch.setattr(Codebook, "codes", property(look))
        book.squared_distances(torch.rand(5, 3))
        assert seen == [(False, False)]

    def test_so_is_the_penalty_on_a_critic(self) -> None:
        from uadray.methods.gan import gradient_penalty

        seen = []

        def critic(x: torch.Tensor) -> torch.Tensor:
            seen.append(allowed())
            return x.flatten(1).sum(1)

        real = torch.rand(2, 1, 4, 4)
        gradient_penalty(critic, real, real, torch.rand(2))  # type: ignore[arg-type]
        assert seen == [(False, False)]


def test_nothing_is_switched_in_a_process_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    before = allowed()
    with full_float32():
        assert allowed() == before


def test_what_is_compiled_may_hold_it() -> None:
    def scaled(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False), full_float32():
            return x @ x.T

    x = torch.rand(3, 3)
    compiled = torch.compile(scaled, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), scaled(x))


def asks_for_a_gpu(path: Path) -> bool:
    """Whether code asks torch itself if there is a GPU, or takes one by name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and ast.unparse(node).endswith("cuda.is_available"):
            return True
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.device":
            arguments = ast.unparse(node)
            if "cuda" in arguments:
                return True
    return False


def test_nothing_else_asks_for_a_gpu() -> None:
    root = Path(uadray.__file__).parent
    asking = {p.relative_to(root).as_posix() for p in root.rglob("*.py") if asks_for_a_gpu(p)}
    assert asking == {"device.py"}


def test_a_machine_is_refused_whose_gpus_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with_cuda(monkeypatch)
    in_ray(monkeypatch)  # by a task that has none itself
    device.check_usable()
    with_cuda(monkeypatch, usable=False)
    with pytest.raises(ConfigError, match="driver is 535"):
        device.check_usable()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    device.check_usable()


def test_what_is_kept_in_float32_is_not_rounded_to_tensorfloat_either() -> None:
    """Whoever takes bfloat16 from a scope wants the digits that TensorFloat-32 lacks, too."""
    root = Path(uadray.__file__).parent
    for path in (root / "methods").rglob("*.py"):
        if path.name == "fused.py":  # means and single numbers: it has no products to round
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.With):
                entered = [ast.unparse(item.context_expr) for item in node.items]
                if any("autocast" in one and "enabled=False" in one for one in entered):
                    assert "full_float32()" in entered, f"{path}:{node.lineno}"
