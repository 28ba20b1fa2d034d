"""How a fit computes: in which precision, and how a GPU rounds and searches."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

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

    On CPUs `auto` takes float32 where the coarsest grid has two voxels along a side: little can be
    won there, and `numerics` keeps some layers float32 in any case.
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
    """How a device computes, while the context lasts.

    A CPU keeps convolutions float32 whose gradients oneDNN gets wrong, unless they are compiled.
    A GPU by default searches for the fastest convolution, and products that stay float32 may round
    to TensorFloat-32; `deterministic` forbids the first and `precision="float32"` the second. What
    `deterministic` needs of cuBLAS is in the environment by then (`uadray.device`).
    """
    if device.type != "cuda":
        # The mode would cut what is compiled into pieces.
        with nullcontext() if fit.compile else _RightGradients():
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


class _RightGradients(TorchFunctionMode):
    """Keeps convolutions float32 whose gradients oneDNN gets wrong in bfloat16.

    Those of the weights are memory that nobody wrote where a 3D convolution gives two planes, or a
    transposed one is given two, unless its kernel has one plane (torch 2.13, oneDNN 3.12; any
    layout, batch and stride). Finite or not, they spoil the step. Layers and functions, ours or
    those of a plugin, all pass through here.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in (torch.conv3d, torch.conv_transpose3d):
            return func(*args, **kwargs)
        y = func(*args, **kwargs)
        planes = (args[0] if func is torch.conv_transpose3d else y).shape[-3]
        if planes != 2 or y.dtype != torch.bfloat16:
            return y
        with torch.autocast("cpu", enabled=False):
            kept = [_as_float(value) for value in args]
            return func(*kept, **{k: _as_float(v) for k, v in kwargs.items()}).to(y.dtype)


def _as_float(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) else value
