"""One training step at the paper's size: against a naive port, against the hardware, by layer.

Part of `python -m benchmarks.fit`. It needs no Ray, so that it also runs on a bare GPU machine.
"""

import copy
import math
import multiprocessing
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.harness import Row, medians, now
from uadray.config import Experiment, experiment, with_fit
from uadray.data.batch import Batch
from uadray.data.erasing import erase, sample_erasing
from uadray.methods.blocks import EntryConv, ExitConv
from uadray.methods.vae import VAE
from uadray.runs.checkpoint import CheckpointStore
from uadray.train.fit import Fit
from uadray.train.precision import reduced_precision
from uadray.train.steps import Metrics

BATCH = 32
"""Volumes in a step (Bengs 2021, section 2.3)."""

SMALL_SHARE = 0.005
"""Layers that take less of a step are shown together."""

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def phantoms(count: int, size: int, originals: int = 4) -> Tensor:
    """Volumes to compute on, (count, Z, Y, X) float16: a few phantoms, turned and dimmed.

    They compress and erase as brains do; what they look like does not matter here.
    """
    from uadray.phantom import make_subject

    base = [
        torch.from_numpy(make_subject("healthy", s, size).image)
        for s in range(min(originals, count))
    ]
    rng = np.random.default_rng(0)
    out = torch.empty(count, size, size, size, dtype=torch.float16)
    for place in range(count):
        image = base[place % len(base)].permute(*rng.permutation(3).tolist())
        axes = [axis for axis in range(3) if rng.random() < 0.5]
        out[place] = image.flip(axes) * rng.uniform(0.7, 1.0)
    return out


def make(wanted: Experiment, size: int) -> VAE:
    """The detector of an experiment, the same for each call."""
    torch.manual_seed(0)
    assert isinstance(wanted.method, VAE.Settings)
    return VAE(wanted.method, (size,) * 3)


def naive_port(detector: VAE) -> VAE:
    """The same net and weights as one would write it down: plain layers, contiguous."""
    port = copy.deepcopy(detector)
    for stack in (port.encoder, port.decoder):
        for place, layer in enumerate(stack):
            if isinstance(layer, (EntryConv, ExitConv)):
                stack[place] = layer.conv
    return port.to(memory_format=torch.contiguous_format)


class Dropped(Dataset):
    """Volumes with MONAI's nearest to cube erasing: (input, target), each (1, Z, Y, X)."""

    def __init__(self, images: Tensor) -> None:
        from monai.transforms import RandCoarseDropout

        size = images.shape[-1]
        self._images = images.float().numpy()
        self._drop = RandCoarseDropout(
            holes=1,
            spatial_size=round(0.01 ** (1 / 3) * size),
            max_spatial_size=round(0.25 ** (1 / 3) * size),
            prob=0.5,
        )

    def __len__(self) -> int:
        return 10**6

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x = self._images[index % len(self._images), None]
        return torch.as_tensor(np.asarray(self._drop(x))), torch.from_numpy(x)


class NaiveSteps:
    """float32, default Adam, batches of a two-worker `DataLoader`; one step a call."""

    def __init__(self, wanted: Experiment, images: Tensor) -> None:
        self._port = naive_port(make(wanted, images.shape[-1])).to(DEVICE)
        self._optimizer = torch.optim.Adam(self._port.parameters(), lr=1e-3)
        self._loader = iter(DataLoader(Dropped(images), batch_size=BATCH, num_workers=2))

    def __call__(self) -> None:
        """Fetch a batch and take a step."""
        x_in, x = (t.to(DEVICE) for t in next(self._loader))
        noise = torch.randn(len(x), self._port.num_noise, device=DEVICE)
        self._optimizer.zero_grad()
        self._port(x_in, x, noise)["loss"].backward()
        self._optimizer.step()
        now(DEVICE)


_naive: NaiveSteps


def _start_naive(wanted: Experiment, images: Tensor, threads: int) -> None:
    global _naive
    torch.set_num_threads(threads)
    _naive = NaiveSteps(wanted, images)


def _step_naively() -> None:
    _naive()


def fit_on(
    wanted: Experiment, detector: VAE, batches: Iterator[Batch], validation: Tensor
) -> list[Metrics]:
    """The fit loop itself over some batches, bare; its records."""
    ids = torch.arange(len(validation))
    with tempfile.TemporaryDirectory() as folder:
        return Fit(
            detector=detector,
            experiment=wanted,
            train=lambda epoch: batches,
            validation=[Batch(ids=ids, images=validation)],
            checkpoints=CheckpointStore(folder, "bare"),
            device=DEVICE,
        ).run()


def against_naive(images: Tensor, rounds: int) -> tuple[list[Row], float]:
    """Our loop's steps and a naive port's in turn; also the seconds of one of ours."""
    wanted = with_fit(experiment("3D-Cube-n"), epochs=1, batch_size=BATCH)
    detector = make(wanted, images.shape[-1])
    # A process of its own, which has nothing of how our loop sets a process up.
    naive = ProcessPoolExecutor(
        1,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_naive,
        initargs=(wanted, images, torch.get_num_threads()),
    )
    seconds: dict[str, list[float]] = {"ours": [], "naive": []}

    def batches() -> Iterator[Batch]:
        # The loop asks for a batch when it is done with the one before: between the two lies
        # one whole step. The other side takes its step while the loop waits for its batch.
        for number in range(rounds + 1):
            start = now(DEVICE)
            naive.submit(_step_naively).result()
            middle = now(DEVICE)
            ids = torch.arange(number * BATCH, (number + 1) * BATCH)
            yield Batch(ids=ids, images=images[ids % len(images)])
            if number:
                seconds["naive"].append(middle - start)
                seconds["ours"].append(now(DEVICE) - middle)

    with naive:
        fit_on(wanted, detector, batches(), images[:1])
    ours, theirs = median(seconds["ours"]), median(seconds["naive"])
    row = Row(
        f"training step at {images.shape[-1]}^3, batch {BATCH}",
        theirs / ours,
        "ratio",
        against="naive port: float32, contiguous, default Adam, DataLoader + RandCoarseDropout",
        goal=">= 5",
        detail=f"{1e3 * ours / BATCH:.1f} against {1e3 * theirs / BATCH:.1f} ms a volume, "
        f"{torch.get_num_threads()} threads",
    )
    return [row], ours


def layer_flops(layer: nn.Module, x: Tensor, out: Tensor) -> int:
    """Operations of one forward pass of a layer as the paper has it; 0 for what is cheap.

    Kernel 5 is counted for the two ends too, whatever they are computed by.
    """
    plain: Any = layer.conv if isinstance(layer, (EntryConv, ExitConv)) else layer
    if isinstance(plain, nn.Linear):
        return 2 * len(x) * plain.in_features * plain.out_features
    if isinstance(plain, nn.modules.conv._ConvNd):
        # Each voxel of the smaller of both images meets the whole kernel.
        voxels = min(math.prod(x.shape[2:]), math.prod(out.shape[2:]))
        taps = math.prod(plain.kernel_size)
        return 2 * len(x) * taps * plain.in_channels * plain.out_channels * voxels
    return 0


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """Seconds of one layer alone, at the input that it has in the net."""

    name: str
    forward: float
    backward: float
    flops_forward: int
    flops_backward: int


def layer_costs(detector: VAE, x: Tensor, bfloat16: bool, rounds: int) -> list[LayerCost]:
    """Time each layer alone, forward and backward.

    Args:
        detector: On the device.
        x: (B, Z, Y, X) float32 on the device.
        bfloat16: Under autocast, as in the loop.
        rounds: Timed rounds.
    """
    layers = {f"encoder {n}": layer for n, layer in enumerate(detector.encoder)}
    layers |= {"to mu": detector.to_mu, "to log sigma": detector.to_log_sigma}
    layers |= {"from z": detector.from_z}
    layers |= {f"decoder {n}": layer for n, layer in enumerate(detector.decoder)}
    inputs: dict[nn.Module, Tensor] = {}

    def keep(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        # A copy in the same layout: activations work in place.
        inputs[layer] = args[0].detach().clone()

    hooks = [layer.register_forward_pre_hook(keep) for layer in layers.values()]
    autocast = torch.autocast(x.device.type, torch.bfloat16, enabled=bfloat16)
    with torch.no_grad(), autocast:
        detector.reconstruct(x[:, None])
        detector.encode(x[:, None])
    for hook in hooks:
        hook.remove()
    return [
        _layer_cost(f"{name} {type(layer).__name__}", layer, inputs[layer], bfloat16, rounds)
        for name, layer in layers.items()
    ]


def _layer_cost(name: str, layer: nn.Module, x: Tensor, bfloat16: bool, rounds: int) -> LayerCost:
    first = x.shape[1] == 1
    times: list[tuple[float, float]] = []
    for _ in range(rounds + 1):
        leaf = x.clone().requires_grad_(not first)
        # In place on a leaf is refused; a view-like step between costs nothing.
        start = now(x.device)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bfloat16):
            out = layer(leaf if first else _Pass.apply(leaf))
        middle = now(x.device)
        grad = torch.ones_like(out)
        wanted = [p for p in layer.parameters()] + ([] if first else [leaf])
        begin = now(x.device)
        torch.autograd.grad(out, wanted, grad)
        times.append((middle - start, now(x.device) - begin))
    flops = layer_flops(layer, x, out)
    return LayerCost(
        name=name,
        forward=median(t[0] for t in times[1:]),
        backward=median(t[1] for t in times[1:]),
        flops_forward=flops,
        flops_backward=flops * (1 if first else 2),
    )


class _Pass(torch.autograd.Function):
    """The identity; its output is no leaf, so that a layer may write into it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad


def best_product(quick: bool) -> dict[str, float]:
    """FLOP/s of the best square matrix product, in bfloat16 and float32."""
    best = {}
    sizes = (512, 1024) if quick else (1024, 2048, 4096)
    if DEVICE.type == "cuda":
        sizes = (4096, 8192)
    for dtype in (torch.bfloat16, torch.float32):
        for n in sizes:
            a, b = (torch.randn(n, n, device=DEVICE).to(dtype) for _ in range(2))
            seconds = medians({"product": lambda a=a, b=b: a @ b}, 5, DEVICE)["product"]
            name = str(dtype).removeprefix("torch.")
            best[name] = max(best.get(name, 0.0), 2 * n**3 / seconds)
    return best


def against_hardware(images: Tensor, step: float, quick: bool) -> list[Row]:
    """Share of the best matrix product, and where the rest of a step goes."""
    wanted = experiment("3D-Cube-n")
    detector = make(wanted, images.shape[-1]).to(DEVICE)
    bfloat16 = reduced_precision("auto", detector, DEVICE)
    x = images[:BATCH].to(DEVICE).float()
    costs = layer_costs(detector, x, bfloat16, 1 if quick else 3)
    flops = sum(c.flops_forward + c.flops_backward for c in costs)
    best = best_product(quick)
    peak = max(best.values())
    rows = [Row(f"matrix product, {name}", value / 1e9, "GFLOP/s") for name, value in best.items()]
    rows.append(
        Row(
            "training step, share of the best matrix product",
            flops / step / peak,
            "ratio",
            against=f"{peak / 1e9:.0f} GFLOP/s",
            goal=">= 0.5" if DEVICE.type == "cpu" else ">= 0.4",
            detail=f"{flops / step / 1e9:.0f} GFLOP/s, {flops / len(x) / 1e9:.1f} GFLOP a volume",
        )
    )
    rest = 0.0
    for cost in sorted(costs, key=lambda c: -c.forward - c.backward):
        share = (cost.forward + cost.backward) / step
        if share < SMALL_SHARE:
            rest += share
            continue
        words = f"forward {1e3 * cost.forward:.1f} ms, backward {1e3 * cost.backward:.1f} ms"
        if cost.flops_forward:
            rate = (cost.flops_forward + cost.flops_backward) / (cost.forward + cost.backward)
            words += f", {rate / 1e9:.0f} GFLOP/s"
        name = f"share of a step: {cost.name}"
        rows.append(Row(name, share, "share", detail=words))
    name = "share of a step: the other layers together"
    rows.append(Row(name, rest, "share"))
    return rows + other_costs(detector, wanted, x, step, 1 if quick else 5)


def other_costs(
    detector: VAE, wanted: Experiment, x: Tensor, step: float, rounds: int
) -> list[Row]:
    """What a step does beside its layers."""
    optimizer = torch.optim.Adam(detector.parameters(), lr=1e-3, fused=True)
    for parameter in detector.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    output, ids = torch.rand_like(x).requires_grad_(), torch.arange(len(x))

    def loss() -> None:
        output.grad = None
        (output - x).abs().mean().backward()

    def erasing() -> None:
        where = sample_erasing(wanted.erasing, ids, seed=0, epoch=0, spatial=tuple(x.shape[1:]))
        erase(x, where, wanted.erasing, ids, seed=0, epoch=0)

    sides = {
        "Adam": lambda: optimizer.step(),
        "clipping": lambda: nn.utils.clip_grad_norm_(detector.parameters(), 1e9),
        "L1 term": loss,
        "erasing": erasing,
    }
    seconds = medians(sides, rounds, x.device)
    return [
        Row(
            f"share of a step: {name}",
            seconds[name] / step,
            "share",
            goal="<= 0.01" if name == "erasing" and x.device.type == "cuda" else "",
            detail=f"{1e3 * seconds[name]:.1f} ms",
        )
        for name in sides
    ]


def on_gpu(images: Tensor, quick: bool) -> list[Row]:
    """Volumes a second with the cohort in device memory, and the peak of that memory."""
    steps = 5 if quick else 60
    wanted = with_fit(experiment("3D-Cube-n"), epochs=3, batch_size=BATCH)
    resident = images.to(DEVICE)
    torch.cuda.reset_peak_memory_stats()

    class Epoch:
        def __iter__(self) -> Iterator[Batch]:
            for number in range(steps):
                ids = torch.arange(number * BATCH, (number + 1) * BATCH)
                yield Batch(ids=ids, images=resident[(ids % len(resident)).to(DEVICE)])

    records = fit_on(wanted, make(wanted, images.shape[-1]), Epoch(), images[:8])  # type: ignore[arg-type]
    speed = median(r["samples_per_second"] for r in records[1:])
    return [
        Row("volumes in device memory", speed, "volumes/s"),
        Row(
            "peak device memory",
            torch.cuda.max_memory_allocated() / 2**30,
            "GiB",
            detail=f"{resident.numel() * 2 / 2**30:.2f} of them volumes",
        ),
    ]


def rows(quick: bool) -> list[Row]:
    """All rows of this module."""
    images = phantoms(2 * BATCH, 32 if quick else 64)
    measured, step = against_naive(images, 1 if quick else 3)
    if DEVICE.type == "cuda":
        resident = on_gpu(images, quick)
        step, measured = BATCH / resident[0].value, measured + resident
    return measured + against_hardware(images, step, quick)
