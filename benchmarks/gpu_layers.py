"""The machine, and single operations on it: products, convolutions, erasing.

Part of `python -m benchmarks.gpu`.
"""

import copy
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu_bench import MAIN, Bench, Precision, attempt, detector_of, relative
from benchmarks.harness import Row, medians
from uadray.config import BENGS_TABLE_1, experiment
from uadray.data.erasing import (
    StaticErasing,
    erase,
    erased_boxes,
    erased_counts,
    sample_erasing,
)
from uadray.methods.blocks import EntryConv, ExitConv
from uadray.methods.fused import Variant, norm_activation
from uadray.methods.phases import ConvTranspose3d, transpose_by_phases
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


def variants(bench: Bench) -> Iterator[Row]:
    """Layers that can be computed in two ways, forward and backward in bfloat16, in turns."""
    total: dict[str, dict[str, float]] = {}
    for name, layer, x in layers_of(bench, MAIN, (ConvTranspose3d, nn.GroupNorm)):
        leaf = x.bfloat16().contiguous(memory_format=torch.channels_last_3d).requires_grad_()
        if isinstance(layer, nn.GroupNorm):
            what, ways = "norms with activation", _norms(bench, layer, leaf)
        else:
            what, ways = "transposed convolutions", _transposed(layer, leaf)
        sides = {way: partial(_there_and_back, bench, f, layer, leaf) for way, f in ways.items()}
        with rounding(bench, "bfloat16"):
            seconds = medians(sides, bench.rounds, bench.device)
        for way, each in seconds.items():
            sums = total.setdefault(what, {})
            sums[way] = sums.get(way, 0.0) + each
        plain, other = seconds.values()
        yield Row(
            f"{name}: {list(ways)[1]}",
            plain / other,
            "ratio",
            against=next(iter(ways)),
            detail=f"{1e3 * other:.3f} against {1e3 * plain:.3f} ms; above 1: faster",
        )
    step = bench.found.get("step")
    for what, sums in total.items():
        for way, each in sums.items():
            yield Row(
                f"{what}, {way}, share of a step",
                each / step if step else None,
                "share",
                detail=f"{1e3 * each:.3f} ms",
            )


def _norms(bench: Bench, norm: nn.GroupNorm, x: Tensor) -> dict[str, Callable[[], Tensor]]:
    activation = nn.LeakyReLU(0.01)
    variant = Variant(device=x.device, maps=x.dtype, out=torch.bfloat16, eps=norm.eps, slope=0.01)
    compiled = bench.device.type == "cuda"
    return {
        "torch's layers": lambda: activation(norm(x)),
        "one pass": lambda: norm_activation(x, norm, variant, compiled),
    }


def _transposed(layer: nn.Module, x: Tensor) -> dict[str, Callable[[], Tensor]]:
    weight, bias = layer.weight, layer.bias
    return {
        "strided": lambda: layer(x),
        "by phases": lambda: transpose_by_phases(x, weight, bias),  # type: ignore[arg-type]
    }


def _there_and_back(
    bench: Bench, forward: Callable[[], Tensor], layer: nn.Module, x: Tensor
) -> None:
    with torch.autocast(bench.device.type, torch.bfloat16):
        output = forward()
    torch.autograd.grad(output, (x, *layer.parameters()), torch.ones_like(output))


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
        detail=f"{len(names)} configurations of {bench.batch} samples, in two ways, counts as well",
    )
    for name in (MAIN, "3D-Multi-Cube-n", "3D-Half-Volume-n"):
        yield from _cost(bench, name)


def _samples(bench: Bench, name: str) -> Tensor:
    x = bench.images[: bench.batch].float()
    return x[:, bench.size // 2] if name.startswith("2D") else x


def _differing(bench: Bench, name: str) -> int:
    """Voxels, and counts, that are not those of a CPU."""
    config, x = experiment(name).erasing, _samples(bench, name)
    ids = torch.arange(len(x))
    where = sample_erasing(config, ids, seed=0, epoch=1, spatial=tuple(x.shape[1:]))
    there = erase(x.cpu(), where, config, ids, seed=0, epoch=1)
    counts = erased_counts(x.cpu(), where)
    static = StaticErasing.of(where, config, ids, seed=0, epoch=1, device=x.device)
    found = [
        (erase(x, where, config, ids, seed=0, epoch=1), erased_counts(x, where)),
        static.apply(x),
    ]
    return sum(
        int((there != here.cpu()).sum() + (counts != counts_here.cpu()).sum())
        for here, counts_here in found
    )


def _cost(bench: Bench, name: str) -> Iterator[Row]:
    config, x = experiment(name).erasing, _samples(bench, name)
    ids = torch.arange(len(x))

    spatial = tuple(x.shape[1:])

    def by_runs() -> None:
        where = sample_erasing(config, ids, seed=0, epoch=1, spatial=spatial)
        boxes = erased_boxes(x, where)
        erase(x, where, config, ids, seed=0, epoch=1, boxes=boxes)
        erased_counts(x, where, boxes)

    def apply(x: Tensor, **tensors: Tensor) -> tuple[Tensor, Tensor]:
        return StaticErasing(**({"right": None, "key": None} | tensors)).apply(x)  # type: ignore[arg-type]

    fast = torch.compile(apply, dynamic=False, backend="eager" if bench.quick else "inductor")

    def static(work: Callable[..., object]) -> None:
        where = sample_erasing(config, ids, seed=0, epoch=1, spatial=spatial)
        one = StaticErasing.of(where, config, ids, seed=0, epoch=1, device=x.device)
        work(x, **one.tensors())

    ways: dict[str, Callable[[], None]] = {
        "as it is": by_runs,
        "static": partial(static, apply),
        "static, compiled": partial(static, fast),
    }
    for how, work in ways.items():
        yield attempt(f"erasing of {name}, {how}", partial(_share, bench, name, how, work))


def _share(bench: Bench, name: str, how: str, work: Callable[[], None]) -> Row:
    seconds = medians({"erasing": work}, bench.rounds, bench.device)["erasing"]
    step = bench.found.get("step")
    return Row(
        f"erasing of {name}, {how}, share of a step",
        seconds / step if step else None,
        "share",
        goal="<= 0.01" if how == "as it is" else "",
        detail=f"{1e3 * seconds:.3f} ms for {bench.batch} samples, drawn, erased and counted",
    )
