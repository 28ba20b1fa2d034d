"""How a fit computes: in which precision, and how a GPU rounds and searches."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from uadray.config import FitConfig
from uadray.device import cudnn_fault
from uadray.errors import ConfigError
from uadray.methods.base import GradientDetector

_log = logging.getLogger(__name__)


def check_cudnn(fit: FitConfig, ndim: int, device: torch.device) -> None:
    """Warn of a cuDNN that computes this fit's convolutions wrong.

    Raises:
        ConfigError: it does, and the fit is to be deterministic.
    """
    if device.type != "cuda" or ndim != 3 or fit.precision == "float32":
        return
    if not (fault := cudnn_fault(torch.backends.cudnn.version())):
        return
    message = (
        f"{fault}: install a newer cuDNN, or the torch of constraints.txt, which brings one; or "
        "fit with --fit.precision float32"
    )
    if fit.deterministic:
        raise ConfigError(message)
    _log.warning("%s", message)


def reduced_precision(wanted: str, detector: GradientDetector, device: torch.device) -> bool:
    """Whether to compute in bfloat16: `auto` does so where the hardware multiplies it natively.

    On CPUs oneDNN's backward pass of strided 3D convolutions gives uninitialised memory in bfloat16
    where the coarsest grid has two voxels along a side (torch 2.13); `auto` takes float32 there.
    """
    if wanted != "auto":
        return wanted == "bfloat16"
    if device.type == "cpu" and detector.ndim == 3 and min(detector.grid) < 3:
        return False
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported())


@contextmanager
def numerics(device: torch.device, fit: FitConfig) -> Iterator[None]:
    """How a GPU computes, while the context lasts; a CPU is left as it is.

    By default the fastest convolution is searched for, and products that stay float32 may round to
    TensorFloat-32; `deterministic` forbids the first and `precision="float32"` the second. What
    `deterministic` needs of cuBLAS is in the environment by then (`uadray.device`).
    """
    if device.type != "cuda":
        yield
        return
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32
    strict = torch.are_deterministic_algorithms_enabled()
    reduced = fit.precision != "float32"
    try:
        cudnn.benchmark, cudnn.deterministic = not fit.deterministic, fit.deterministic
        cudnn.allow_tf32, matmul.allow_tf32 = reduced, reduced
        torch.use_deterministic_algorithms(fit.deterministic or strict)
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32 = before
        torch.use_deterministic_algorithms(strict)
