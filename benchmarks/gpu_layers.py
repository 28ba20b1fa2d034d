"""The machine, and single operations on it: products, convolutions, erasing.

Part of `python -m benchmarks.gpu`.
"""

import copy
import platform
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu_bench import MAIN, Bench, Precision, detector_of, relative
from benchmarks.harness import Row, medians
from uadray.config import BENGS_TABLE_1, experiment
from uadray.data import erasing as ours
from uadray.data.erasing import erase, erased_counts, sample_erasing
from uadray.methods.blocks import EntryConv, ExitConv
from uadray.strategies import NONE

WORST_ERROR: dict[Precision, float] = {"float32": 1e-5, "tf32": 4e-3, "bfloat16": 2e-2}
"""Relative error of a convolution that is still rounding; wrong kernels are off by far more."""


def machine(bench: Bench) -> Iterator[Row]:
    """Versions, and what the hardware can do at best."""
    cudnn = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    words = [
        f"Python {platform.python_version()}",
        f"torch {torch.__version__}",
        f"CUDA {torch.version.cuda}",
        f"cuDNN {cudnn}",
    ]
    memory = None
    if bench.device.type == "cuda":
        facts = torch.cuda.get_device_properties(bench.device)
        memory = facts.total_memory / 2**30
        capability = f"{facts.major}.{facts.minor}"
        words += [facts.name, f"{facts.multi_processor_count} processors", f"sm {capability}"]
    yield Row("device memory", memory, "GiB", detail=", ".join(words))
    for precision in bench.precisions:
        speed = best_product(bench, precision)
        bench.found[f"product {precision}"] = speed
        yield Row(f"best matrix product, {precision}", speed / 1e12, "TFLOP/s")
    x = torch.empty(2**22 if bench.quick else 2**30, dtype=torch.uint8, device=bench.device)
    y = torch.empty_like(x)
    seconds = medians({"copy": lambda: y.copy_(x)}, bench.rounds, bench.device)["copy"]
    bench.found["bytes a second"] = 2 * x.numel() / seconds
    yield Row("copy in device memory", 2 * x.numel() / seconds / 1e9, "GB/s", detail="read + write")


def best_product(bench: Bench, precision: Precision) -> float:
    """FLOP/s of the best square matrix product of random numbers."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    best = 0.0
    sizes = (256, 512) if bench.quick else (1024, 2048)
    if bench.device.type == "cuda" and not bench.quick:
        sizes = (4096, 8192)
    with rounding(bench, precision):
        for n in sizes:
            a, b = (torch.randn(n, n, device=bench.device).to(dtype) for _ in range(2))
            took = medians({"product": lambda a=a, b=b: a @ b}, bench.rounds, bench.device)
            best = max(best, 2 * n**3 / took["product"])
    return best


@contextmanager
def rounding(bench: Bench, precision: Precision) -> Iterator[None]:
    """TensorFloat-32 in all but float32, as in the fit loop; the fastest convolution is sought."""
    if bench.device.type != "cuda":
        yield
        return
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark
    try:
        cudnn.allow_tf32 = matmul.allow_tf32 = precision != "float32"
        cudnn.benchmark = True
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = before


def convolutions(bench: Bench) -> Iterator[Row]:
    """Each convolution of the network at the size that it has there, against float64."""
    for name, layer, x in layers_of(bench, MAIN, (EntryConv, ExitConv, nn.modules.conv._ConvNd)):
        reference = passes(copy.deepcopy(layer).double(), x.double())
        for precision in bench.precisions:
            reduced = precision == "bfloat16"
            cast = torch.autocast(bench.device.type, torch.bfloat16) if reduced else nullcontext()
            with rounding(bench, precision):
                with cast:
                    found = passes(layer, x)
                errors = [relative(f, r) for f, r in zip(found, reference, strict=True)]
                took = medians(
                    {"both": lambda layer=layer, x=x, on=reduced: _in(bench, layer, x, on)},
                    bench.rounds,
                    bench.device,
                )["both"]
            parts = ("output", "gradient of the weights", "gradient of the input")
            words = ", ".join(f"{p} {e:.1e}" for p, e in zip(parts, errors, strict=False))
            yield Row(
                f"{name}, {precision}, largest relative error",
                max(errors),
                "ratio",
                against="float64",
                goal=f"<= {WORST_ERROR[precision]}",
                detail=f"{words}; forward and backward {1e3 * took:.2f} ms",
            )


def _in(bench: Bench, layer: nn.Module, x: Tensor, reduced: bool) -> None:
    with torch.autocast(bench.device.type, torch.bfloat16, enabled=reduced):
        passes(layer, x)


def layers_of(
    bench: Bench, name: str, kinds: Any, batch: int = 0
) -> list[tuple[str, nn.Module, Tensor]]:
    """Layers of an experiment's network of some kinds, each with an input as it gets there."""
    detector = detector_of(experiment(name), bench).eval()
    x = bench.images[: batch or bench.batch].float()[:, None]
    if detector.ndim == 2:
        x = x[:, :, bench.size // 2]
    found: list[tuple[str, nn.Module, Tensor]] = []
    inside = {id(m.conv) for m in detector.modules() if isinstance(m, (EntryConv, ExitConv))}

    def keep(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        found.append((type(layer).__name__, layer, args[0].detach().clone()))

    hooks = [
        layer.register_forward_pre_hook(keep)
        for layer in detector.modules()
        if isinstance(layer, kinds) and id(layer) not in inside
    ]
    with torch.no_grad():
        detector.healthy(x)
    for hook in hooks:
        hook.remove()
    return [
        (f"{kind} {number}, {x.shape[1]} maps of {x.shape[-1]}^{detector.ndim}", layer, x)
        for number, (kind, layer, x) in enumerate(found)
    ]


def passes(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, the gradient of each parameter and, but for images, that of the input."""
    leaf = x.clone().requires_grad_(x.shape[1] != 1)
    output = layer(leaf if not leaf.requires_grad else leaf * 1)
    generator = torch.Generator(x.device).manual_seed(1)
    grad = torch.randn(output.shape, generator=generator, device=x.device)
    leaves = [p for p in layer.parameters() if p.ndim > 1] + [leaf] * leaf.requires_grad
    return [output.detach(), *torch.autograd.grad(output, leaves, grad.to(output.dtype))]


def erasing(bench: Bench) -> Iterator[Row]:
    """The same bits as on a CPU, and what they cost."""
    differing = 0
    names = [n for n in BENGS_TABLE_1 if experiment(n).erasing.strategy != NONE]
    for name in names:
        differing += _differing(bench, name)
    yield Row(
        "erasing, voxels that differ from those of a CPU",
        differing,
        "voxels",
        goal="<= 0",
        detail=f"{len(names)} configurations, {bench.batch} samples each; counts of erased, too",
    )
    for name in (MAIN, "3D-Multi-Cube-n", "3D-Half-Volume-n"):
        yield _cost(bench, name)


def _samples(bench: Bench, name: str) -> Tensor:
    x = bench.images[: bench.batch].float()
    return x[:, bench.size // 2] if name.startswith("2D") else x


def _differing(bench: Bench, name: str) -> int:
    """Voxels, and counts, that are not those of a CPU."""
    config, x = experiment(name).erasing, _samples(bench, name)
    ids = torch.arange(len(x))
    where = sample_erasing(config, ids, seed=0, epoch=1, spatial=tuple(x.shape[1:]))
    there = erase(x.cpu(), where, config, ids, seed=0, epoch=1)
    here = erase(x, where, config, ids, seed=0, epoch=1).cpu()
    counts, counts_here = erased_counts(x.cpu(), where), erased_counts(x, where).cpu()
    return int((there != here).sum() + (counts != counts_here).sum())


def _cost(bench: Bench, name: str) -> Row:
    config, x = experiment(name).erasing, _samples(bench, name)
    ids = torch.arange(len(x))

    def one() -> None:
        where = sample_erasing(config, ids, seed=0, epoch=1, spatial=tuple(x.shape[1:]))
        ours.erase(x, where, config, ids, seed=0, epoch=1)
        ours.erased_counts(x, where)

    seconds = medians({"erasing": one}, bench.rounds, bench.device)["erasing"]
    step = bench.found.get("step")
    return Row(
        f"erasing of {name}, share of a step",
        seconds / step if step else None,
        "share",
        goal="<= 0.01",
        detail=f"{1e3 * seconds:.3f} ms for {len(x)} samples, drawn, erased and counted",
    )
