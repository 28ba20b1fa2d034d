"""What the sections of `benchmarks.gpu` share: where they measure, brains, and the loop's steps."""

import gc
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.harness import Row, now
from benchmarks.step import layer_flops
from uadray.config import Experiment, experiment, with_fit
from uadray.data.batch import Batch
from uadray.methods import GradientDetector, build
from uadray.methods.blocks import EntryConv, ExitConv
from uadray.train.precision import numerics
from uadray.train.steps import Steps, World, make_optimizers

Precision = Literal["float32", "tf32", "bfloat16"]

MAIN = "3D-Cube-n"
"""What is measured where one experiment stands for all."""


@dataclass(kw_only=True)
class Bench:
    """Where is measured, how large, and what was found so far."""

    device: torch.device
    quick: bool
    found: dict[str, float] = field(default_factory=dict)
    """By a name: what later sections go by."""

    @property
    def size(self) -> int:
        """Voxels along a side."""
        return 32 if self.quick else 64

    @property
    def batch(self) -> int:
        """Samples in a step where nothing else is said (Bengs 2021, section 2.3)."""
        return 2 if self.quick else 32

    @property
    def rounds(self) -> int:
        """Timed rounds."""
        return 1 if self.quick else 5

    @property
    def num_train(self) -> int:
        """Volumes of an epoch: as many as Bengs trains on."""
        return 4 if self.quick else 2008

    @cached_property
    def images(self) -> Tensor:
        """(128, Z, Y, X) float16 on the device; fewer where it is quick."""
        return brains(4 if self.quick else 128, self.size).to(self.device)

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Those that there are here."""
        return ("float32", "bfloat16") if self.device.type == "cpu" else PRECISIONS

    def now(self) -> float:
        """Seconds on a clock, once the device is done."""
        return now(self.device)

    def free(self) -> None:
        """Give back what a section leaves."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "bfloat16")


def first_line(error: BaseException) -> str:
    """Of an error, short enough for a row."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:300]


def attempt(measure: str, work: Callable[[], Row]) -> Row:
    """The row that `work` gives, or one that says why there is none."""
    try:
        return work()
    except Exception as error:
        return Row(measure, None, "", detail=f"failed: {first_line(error)}")


def brains(count: int, size: int, seed: int = 0) -> Tensor:
    """Volumes to compute on, (count, Z, Y, X) float16: ellipsoids of smooth noise, background 0.

    They fill as much of the volume as brains do, a third, each off centre and of its own size.
    """
    generator = torch.Generator().manual_seed(seed)
    axis = torch.linspace(-1, 1, size)
    out = torch.zeros(count, size, size, size, dtype=torch.float16)
    for place in range(count):
        radius = 0.7 + 0.2 * torch.rand(3, generator=generator)
        centre = 0.1 * torch.rand(3, generator=generator)
        z, y, x = (((axis - c) / r).square() for c, r in zip(centre, radius, strict=True))
        inside = z[:, None, None] + y[:, None] + x < 1
        coarse = torch.rand(1, 1, 8, 8, 8, generator=generator)
        smooth = nn.functional.interpolate(coarse, (size,) * 3, mode="trilinear")[0, 0]
        texture = 0.2 * torch.rand(size, size, size, generator=generator)
        out[place] = (inside * (0.1 + 0.6 * smooth + texture)).half()
    return out


def detector_of(wanted: Experiment, bench: Bench, size: int = 0) -> GradientDetector:
    """A new detector on the device, the same for each call."""
    torch.manual_seed(0)
    detector = build(wanted.method, (size or bench.size,) * 3)
    assert isinstance(detector, GradientDetector)
    return detector.to(bench.device).train()


@dataclass(kw_only=True)
class Loop:
    """Steps of the fit loop itself, on samples that lie on the device."""

    steps: Steps
    samples: Tensor
    """(N, *spatial) float16."""
    names: tuple[str, ...]
    """Who acts."""
    context: Callable[[], Any] = nullcontext
    """How the device rounds."""

    def __call__(self, count: int) -> None:
        """Take this many steps."""
        with self.context():
            self.steps.epoch(self._batches(count), None, 0, self.names)

    def _batches(self, count: int) -> Iterator[Batch]:
        size = self.steps.experiment.fit.batch_size
        for number in range(count):
            ids = torch.arange(number * size, (number + 1) * size) % len(self.samples)
            start = int(ids[0])
            # Views: what an epoch gathers is measured with an epoch.
            yield Batch(ids=ids, images=self.samples[start : start + size])


def loop(
    bench: Bench,
    name: str = MAIN,
    *,
    batch: int = 0,
    precision: Precision = "bfloat16",
    compiled: bool = False,
    size: int = 0,
    phase: int = 0,
    **more: Any,
) -> Loop:
    """The loop of an experiment, freshly begun.

    Args:
        bench: Where.
        name: Of the experiment.
        batch: Samples of a step; 0 takes those of the bench.
        precision: Of convolutions and products.
        compiled: Whether by `torch.compile`.
        size: Voxels along a side; 0 takes those of the bench.
        phase: Which of the fit.
        more: Further fields of `Steps`.
    """
    batch = batch or bench.batch
    wanted = experiment(name)
    wanted = with_fit(
        wanted, batch_size=batch, precision="float32" if precision == "float32" else "auto"
    )
    detector = detector_of(wanted, bench, size)
    stretch = detector.phases()[phase]
    detector.phase = stretch.name
    samples = bench.images if not size else brains(batch, size).to(bench.device)
    if detector.ndim == 2:
        middle = samples.shape[1] // 4
        samples = samples[:, middle:-middle].flatten(0, 1)
    samples = samples[: max(batch, len(samples) // batch * batch)]
    if len(samples) < batch:
        samples = samples.repeat(-(-batch // len(samples)), *[1] * detector.ndim)[:batch]
    # Without code being made where it is quick: a compiler takes a minute.
    backend = "eager" if bench.quick else "inductor"
    module = torch.compile(detector, dynamic=False, backend=backend) if compiled else detector
    steps = Steps(
        detector=detector,
        module=module,  # type: ignore[arg-type]
        optimizers=make_optimizers(
            detector,
            wanted.fit,
            capturable=bool(more.get("graph")) and bench.device.type == "cuda",
        ),
        experiment=wanted,
        device=bench.device,
        bfloat16=precision == "bfloat16",
        micro_batch=0,
        world=World(),
        **more,
    )
    return Loop(
        steps=steps,
        samples=samples,
        names=stretch.players,
        context=lambda: numerics(bench.device, wanted.fit),
    )


def seconds_a_step(bench: Bench, one: Loop, *, warm_up: int = 3, count: int = 20) -> float:
    """Seconds of a step, the mean over some in a row."""
    if bench.quick:
        warm_up, count = 1, 1
    one(warm_up)
    start = bench.now()
    one(count)
    return (bench.now() - start) / count


def step_flops(detector: nn.Module, x: Tensor) -> int:
    """Operations of a training step: a forward pass, and two as large back but for the first layer.

    Args:
        detector: With `healthy`.
        x: (B, 1, *spatial).
    """
    flops = 0

    def count(layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal flops
        once = layer_flops(layer, args[0], out)
        flops += once * (2 if isinstance(layer, EntryConv) else 3)

    ends = [m for m in detector.modules() if isinstance(m, (EntryConv, ExitConv))]
    inside = {id(m.conv) for m in ends}
    hooks = [m.register_forward_hook(count) for m in detector.modules() if id(m) not in inside]
    with torch.no_grad():
        detector(x, x, x.new_zeros(len(x), detector.num_noise))  # type: ignore[arg-type]
    for hook in hooks:
        hook.remove()
    return flops


def relative(found: Tensor, reference: Tensor) -> float:
    """The root mean square of a difference over that of the reference."""
    difference = (found.double() - reference.double()).square().mean().sqrt()
    return float(difference / reference.double().square().mean().sqrt().clamp(min=math.ulp(0)))
