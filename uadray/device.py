"""Where to compute: on a GPU that is there and, in a Ray worker, that Ray has assigned to it.

The one place that asks torch for a GPU. Ray no longer hides GPUs from work that asked for none, so
that whoever asks torch alone would put every scoring actor of a node on its first GPU.
"""

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from uadray.errors import ConfigError
from uadray.lazy import torch

Device = Literal["auto", "cpu", "cuda"]
"""`cuda` ends with an error where no GPU can be used; `auto` takes the CPU where there is none, and
ends with an error where there is one that torch cannot use."""

ENVIRONMENT = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
"""Environment of processes that compute.

With it cuBLAS adds up in the same order every time. Torch looks once, before its first product, so
that it must be there before anything is computed, whichever fit of the process is deterministic.
"""

_NOSET = "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"
"""Ray then leaves all GPUs of the node visible to every worker."""


def compute_device(wanted: Device = "auto") -> "torch.device":
    """Where this process computes.

    Args:
        wanted: See `Device`. In a Ray worker both others than `cpu` mean the GPU that was assigned
            to it.

    Raises:
        ConfigError: a GPU was asked for, assigned by Ray, or is there, and none can be used.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    assigned = assigned_gpus()
    if wanted == "cpu" or (wanted == "auto" and assigned == []):
        return torch.device("cpu")
    if assigned == []:
        raise ConfigError(
            "a GPU was asked for, but Ray has assigned none to this worker: give it one (such as "
            "--gpus-per-actor 1, --gpus 1 or --sweep.gpus-per-trial 1), or compute on the CPU"
        )
    if torch.cuda.is_available():
        return _assigned_device(assigned)
    if wanted == "cuda" or assigned or _is_unusable():
        raise ConfigError(_why_unusable())
    return torch.device("cpu")


def gpus_each(wanted: Device, gpus: float, flag: str) -> float:
    """GPUs that each worker takes, of which a flag says how many.

    Args:
        wanted: See `Device`.
        gpus: What the flag says; 0 by default.
        flag: Such as `--gpus-per-actor`, for the message.

    Raises:
        ConfigError: The two contradict each other, or no worker can have so many.
    """
    if wanted == "cpu" and gpus:
        raise ConfigError(f"{flag} {gpus:g} contradicts a device of cpu: leave one of them out")
    if gpus > 1:
        raise ConfigError(
            f"{flag} must be at most 1, was {gpus:g}: a worker computes on one GPU, more workers "
            "on more"
        )
    return gpus or float(wanted == "cuda")


def assigned_gpus() -> list[str] | None:
    """Ids of the GPUs that Ray has assigned to this worker; None outside Ray's workers."""
    # Whoever runs in a worker has Ray; importing it here would take a second in all other cases.
    ray = sys.modules.get("ray")
    if ray is None or not hasattr(ray, "is_initialized") or not ray.is_initialized():
        return None
    context = ray.get_runtime_context()
    if context.worker.mode != ray.WORKER_MODE:
        return None
    return sorted(map(str, context.get_accelerator_ids().get("GPU", [])))


def is_given_a_gpu(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether `ray job submit --entrypoint-num-gpus` has given this driver a GPU."""
    is_sent = "RAY_JOB_CONFIG_JSON_ENV_VAR" in environment
    visible = environment.get("CUDA_VISIBLE_DEVICES", "") not in _NONE
    return is_sent and visible and environment.get(_NOSET) != "1"


def _assigned_device(assigned: list[str] | None) -> "torch.device":
    """The assigned GPU; Ray mostly hides the others, so that it is the only one."""
    if not assigned or os.environ.get(_NOSET, "0") in ("", "0"):
        return torch.device("cuda")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    index = visible.index(assigned[0]) if assigned[0] in visible else int(assigned[0])
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


_NONE = ("", "-1", "NoDevFiles")
"""Values of CUDA_VISIBLE_DEVICES that hide all GPUs; the last is Slurm's."""


def _is_unusable() -> bool:
    """Whether a GPU is there, and nobody has hidden it, that this build of torch was to use."""
    is_hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0") in _NONE
    return torch.version.cuda is not None and not is_hidden and has_gpu()


def has_gpu(folder: Path = Path("/dev")) -> bool:
    """Whether this process may open a GPU of NVIDIA, whatever torch says."""
    for place in folder.glob("nvidia[0-9]*"):
        # Batch systems leave the file there, and forbid to open it where no GPU was asked for.
        with suppress(OSError):
            os.close(os.open(place, os.O_RDWR))
            return True
    return False


def _why_unusable() -> str:
    """Why there is no GPU to compute on, and what to do."""
    build = torch.__version__
    otherwise = "or compute on the CPU (a device of cpu)"
    if torch.version.cuda is None:
        return (
            f"no GPU can be used: torch {build} is a build without CUDA. Install one with it (pip "
            f"install torch, from PyPI on Linux), {otherwise}"
        )
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    if hidden in _NONE:
        return (
            f"no GPU can be used: CUDA_VISIBLE_DEVICES is {hidden!r}, which hides all of them. "
            f"Unset it, {otherwise}"
        )
    driver = driver_version()
    if driver:
        return (
            f"the GPU cannot be used: its driver is {driver}, torch {build} is built for CUDA "
            f"{torch.version.cuda}, for which the driver is likely too old. Update the driver, "
            f"install a build of torch for it (docs/cluster.md), {otherwise}"
        )
    return (
        f"no GPU can be used: torch {build} is built for CUDA {torch.version.cuda}, and there is "
        "no NVIDIA driver. Install it (in a container: docker run --gpus all, apptainer exec "
        f"--nv), {otherwise}"
    )


def driver_version(
    places: tuple[str, ...] = ("/sys/module/nvidia/version", "/proc/driver/nvidia/version"),
) -> str:
    """Of NVIDIA's driver, such as `570.86.15`; empty where there is none."""
    for place in places:
        with suppress(OSError):
            if found := re.search(r"\b\d{3}\.\d+(\.\d+)?\b", Path(place).read_text()):
                return found[0]
    return ""


def gpu_facts() -> dict[str, Any]:
    """What a record must say of the GPU that this process computes on; empty where it is the CPU.

    Returns:
        `device`, its name; the versions of `driver`, `cuda` and `cudnn`.
    """
    if assigned_gpus() == [] or not torch.cuda.is_available():
        return {}
    return {
        "device": torch.cuda.get_device_name(),
        "driver": driver_version(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def cudnn_fault(version: int | None) -> str:
    """What is wrong with a version of cuDNN; empty where nothing is known.

    Versions 9.8 to 9.14 compute some 3D convolutions wrong in bfloat16, and 9.10 to 9.15 in
    TensorFloat-32 (PyTorch's issue 163539, and its pull requests 166480 and 167024).

    Args:
        version: As `torch.backends.cudnn.version()` gives it, such as 91002; None without cuDNN.
    """
    if version is None or not 90800 <= version < 91600:
        return ""
    number = f"{version // 10000}.{version // 100 % 100}.{version % 100}"
    return (
        f"cuDNN {number} computes some 3D convolutions wrong in bfloat16 or TensorFloat-32 "
        "(versions 9.8 to 9.15)"
    )


@contextmanager
def full_float32() -> Iterator[None]:
    """Products of float32 numbers are rounded as such while it lasts, never to TensorFloat-32.

    What follows later, as the gradients of what was computed here, is rounded as is set there.
    """
    # Without CUDA in this process nothing rounds so, and what is compiled sets no flags.
    if torch.compiler.is_compiling() or not torch.cuda.is_initialized():
        yield
        return
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    try:
        cudnn.allow_tf32, matmul.allow_tf32 = False, False
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


def release_memory() -> None:
    """Give back what this process keeps of a GPU for its next tensors: others may share it."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
