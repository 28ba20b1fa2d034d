"""Steps, epochs, families and scoring on a GPU.

Part of `python -m benchmarks.gpu`.
"""

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.autograd import DeviceType

from benchmarks.gpu_bench import (
    MAIN,
    Bench,
    Loop,
    Precision,
    attempt,
    brains,
    detector_of,
    loop,
    seconds_a_step,
    step_flops,
)
from benchmarks.harness import Row, medians
from benchmarks.step import other_costs
from uadray.config import BENGS_TABLE_1, experiment, with_fit
from uadray.data.batch import Batch
from uadray.data.resident import ResidentBatches
from uadray.evaluation.protocols import EvaluateConfig
from uadray.evaluation.scoring import Example, count_volumes, detect
from uadray.methods import NAMED, GradientDetector, fused, phases
from uadray.methods.registry import detector_type
from uadray.runs.checkpoint import CheckpointStore
from uadray.train.fit import Fit

IN_2D = "2D-Patch-n"
"""What is measured on slices."""

STEP_GOAL = {32: 0.25, 128: 0.3}
"""Least share of the measured bfloat16 product, by the samples in a step."""

EPOCHS = 100
"""Of each fit of table 1, as `FitConfig` has them."""


def _batches(bench: Bench) -> tuple[int, ...]:
    return (bench.batch,) if bench.quick else (32, 8, 128)


def step_row(bench: Bench, precision: Precision, batch: int, how: str = "eager") -> Row:
    """One step of the fit loop."""
    with HOW[how].context():
        one = loop(bench, batch=batch, precision=precision, **HOW[how].options)
        seconds = seconds_a_step(bench, one, warm_up=5)
    if "flops" not in bench.found:
        x = bench.images[:2].float()[:, None]
        bench.found["flops"] = step_flops(one.steps.detector, x) / len(x)
    key = f"step {precision} {batch}"
    bench.found[key] = min(seconds, bench.found.get(key, seconds))
    if one.steps.graph and bench.device.type == "cuda" and not one.steps.is_graph:
        raise RuntimeError("the step could not be recorded as a CUDA graph")
    if batch == bench.batch and precision == "bfloat16" and how == "eager":
        bench.found["step"] = seconds
    product = bench.found.get("product bfloat16")
    flops = bench.found["flops"] * batch
    goal = STEP_GOAL.get(batch) if precision == "bfloat16" else None
    return Row(
        f"step of {batch}, {precision}, {how}",
        flops / seconds / product if product else None,
        "ratio",
        against="best matrix product in bfloat16",
        goal=f">= {goal}" if goal else "",
        detail=f"{1e3 * seconds:.2f} ms, {batch / seconds:.0f} volumes/s",
    )


@contextmanager
def replaced(where: object, name: str, value: object) -> Iterator[None]:
    """Something has another value while the context lasts."""
    before = vars(where)[name]
    setattr(where, name, value)
    try:
        yield
    finally:
        setattr(where, name, before)


@dataclass(frozen=True, kw_only=True)
class How:
    """A way to compute the steps."""

    options: dict[str, Any] = field(default_factory=dict)
    """Of `loop`."""
    context: Callable[[], AbstractContextManager[None]] = nullcontext
    """In which they are computed."""


HOW = {
    "eager": How(),
    "norms not fused": How(
        context=lambda: replaced(fused.Stack, "fuses_on", staticmethod(lambda device: False))
    ),
    "transposed by phases": How(context=lambda: replaced(phases, "BY_PHASES", True)),
    "drawn one by one": How(options={"ahead": 0}),
    "CUDA graph": How(options={"graph": True}),
    "compiled": How(options={"compiled": True}),
}
"""By name; the first one is the default."""


def eager_steps(bench: Bench) -> Iterator[Row]:
    """Steps as the loop takes them by default, in each precision."""
    for batch in _batches(bench):
        for precision in reversed(bench.precisions):
            yield attempt(
                f"step of {batch}, {precision}, eager",
                partial(step_row, bench, precision, batch),
            )
            bench.free()


def other_steps(bench: Bench) -> Iterator[Row]:
    """Steps otherwise than by default."""
    for how in HOW:
        if how == "eager":
            continue
        for batch in _batches(bench):
            yield attempt(
                f"step of {batch}, bfloat16, {how}",
                partial(step_row, bench, "bfloat16", batch, how),
            )
            bench.free()


SYNCS = ("StreamSynchronize", "DeviceSynchronize", "EventSynchronize", "Pageable")
"""In the names of what makes the host wait; copies of pageable memory of over 64 kB do."""

WAITING_COPY = "Memcpy DtoH"


def trace(bench: Bench) -> Iterator[Row]:
    """Kernels and waits of five steps, how long the device is busy, and where its time goes."""
    steps = 1 if bench.quick else 5
    one = loop(bench, precision="bfloat16")
    one(1 if bench.quick else 3)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if bench.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    start = bench.now()
    with torch.profiler.profile(activities=activities) as profile:
        one(steps)
        took = bench.now() - start
    events = profile.events() or []
    if bench.device.type != "cuda":
        calls = [e for e in events if e.name.startswith("aten::")]
        yield Row("operations of a step", len(calls) / steps, "calls", detail="on a CPU")
        yield from shares(bench, one)
        return
    kernels = [e for e in events if e.device_type == DeviceType.CUDA]
    busy = sum(e.device_time_total for e in kernels) / 1e6
    yield Row("kernels of a step", len(kernels) / steps, "kernels", detail="copies counted")
    waits = Counter(e.name for e in events if any(s in e.name for s in SYNCS))
    yield Row(
        "waits of a step",
        sum(waits.values()) / steps,
        "waits",
        goal="<= 1",
        detail=", ".join(f"{n} x {name}" for name, n in waits.most_common(6)),
    )
    # The profiler slows the host down: the share while it looks is a lower bound.
    alone = bench.found.get("step")
    yield Row(
        "device busy in a step",
        busy / steps / alone if alone else busy / took,
        "share",
        against="a step without the profiler" if alone else "steps under the profiler",
        detail=f"{1e3 * busy / steps:.2f} ms of kernels",
    )
    by_name: Counter[str] = Counter()
    for event in kernels:
        by_name[event.name] += event.device_time_total
    copies = sum(t for name, t in by_name.items() if _copies(name))
    yield Row("layout copies and casts, share of the kernels", copies / 1e6 / busy, "share")
    for name, micros in by_name.most_common(5 if bench.quick else 20):
        words = f"{micros / 1e3 / steps:.3f} ms a step"
        yield Row(f"kernel {name[:110]}", micros / 1e6 / busy, "share", detail=words)
    yield from shares(bench, one)


def _copies(name: str) -> bool:
    words = ("nchwtonhwc", "nhwctonchw", "copy", "memcpy", "permute", "transpose")
    return any(word in name.lower() for word in words)


def shares(bench: Bench, one: Loop) -> Iterator[Row]:
    """What a step does beside its layers, each alone, and the norms with their activations."""
    step = bench.found.get("step") or seconds_a_step(bench, one)
    x = bench.images[: bench.batch].float()
    detector = detector_of(experiment(MAIN), bench)
    yield from other_costs(detector, experiment(MAIN), x, step, bench.rounds)  # type: ignore[arg-type]


def losses(bench: Bench) -> Iterator[Row]:
    """The loss of a batch here and on a CPU, in float32 without TensorFloat-32."""
    for name in (MAIN, IN_2D):
        wanted = with_fit(experiment(name), precision="float32")
        values = []
        for device in (torch.device("cpu"), bench.device):
            at = Bench(device=device, quick=bench.quick)
            detector = detector_of(wanted, at, 32)
            x = brains(4, 32).to(device).float()[:, None]
            x = x[:, :, 16] if detector.ndim == 2 else x
            noise = torch.randn(4, detector.num_noise, generator=torch.Generator().manual_seed(0))
            with torch.no_grad(), _strict():
                values.append(float(detector(x, x, noise.to(device))["loss"]))
        there, here = values
        yield Row(
            f"loss of {name}, relative difference",
            abs(here - there) / abs(there),
            "ratio",
            against="the same on a CPU",
            goal="<= 1e-4",
        )


def _strict() -> torch.backends.cudnn.flags:  # type: ignore[name-defined]
    """Convolutions without TensorFloat-32; products have none by default."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


class Epochs:
    """Whole epochs of the fit loop on resident volumes, with validation and checkpoints."""

    def __init__(
        self,
        bench: Bench,
        name: str,
        epochs: int,
        in_background: bool | None = None,
        **fit: object,
    ) -> None:
        self.bench, self.ends = bench, [bench.now()]
        self.batch_size = bench.batch if name.startswith("3D") else 32
        wanted = with_fit(experiment(name), epochs=epochs, batch_size=self.batch_size, **fit)
        detector = detector_of(wanted, bench)
        # A few brains over and over: which they are does not matter, and making them takes long.
        place = torch.arange(bench.num_train, device=bench.device) % len(bench.images)
        self.batches = ResidentBatches(
            bench.images[place],
            np.arange(bench.num_train),
            ndim=detector.ndim,
            batch_size=self.batch_size,
            seed=0,
            shard=64,
        )
        held_out = bench.images[: 2 if bench.quick else 112]
        ids = torch.arange(len(held_out))
        self.detector = detector
        with tempfile.TemporaryDirectory() as folder:
            self.records = Fit(
                detector=detector,
                experiment=wanted,
                train=self.batches.epoch,
                validation=[
                    Batch(ids=i, images=images, brain=images > 0)
                    for i, images in zip(ids.split(8), held_out.split(8), strict=True)
                ],
                checkpoints=CheckpointStore(folder, "bench"),
                device=bench.device,
                in_background=in_background,
                report=lambda record: self.ends.append(bench.now()),
            ).run()
            self.ends.append(bench.now())

    @property
    def seconds(self) -> float:
        """Of the last epochs, checkpoints with them, without the first one, which warms up."""
        return (self.ends[-1] - self.ends[1]) / (len(self.records) - 1)

    @property
    def steps(self) -> int:
        """In an epoch."""
        return -(-self.batches.num_samples() // self.batch_size)


def epochs_3d(bench: Bench) -> Iterator[Row]:
    """An epoch of volumes with validation and checkpoint, against its steps alone."""
    epochs = 2 if bench.quick else 5
    yield from _epochs(bench, MAIN, epochs)
    here = bench.device.type == "cuda"  # where a thread writes checkpoints by default
    other = Epochs(bench, MAIN, epochs, in_background=not here).seconds
    at_once, behind = (other, bench.found["epoch 3D"]) if here else (bench.found["epoch 3D"], other)
    yield Row(
        "epoch whose checkpoint a thread writes",
        at_once / behind,
        "ratio",
        against="one that waits for it",
        detail=f"{behind:.3f} against {at_once:.3f} s; above 1: faster",
    )


def epochs_2d(bench: Bench) -> Iterator[Row]:
    """A step and an epoch of slices."""
    one = loop(bench, IN_2D)
    seconds = seconds_a_step(bench, one)
    bench.found["slices"] = seconds
    yield Row(f"step of {bench.batch} slices", 1e3 * seconds, "ms")
    for how in HOW:
        if how != "eager":
            yield attempt(f"step of {bench.batch} slices, {how}", partial(_slices, bench, how))
    yield from _epochs(bench, IN_2D, 2, checkpoint_every=1)


def _slices(bench: Bench, how: str) -> Row:
    with HOW[how].context():
        one = loop(bench, IN_2D, **HOW[how].options)
        seconds = seconds_a_step(bench, one, warm_up=5)
    if one.steps.graph and bench.device.type == "cuda" and not one.steps.is_graph:
        raise RuntimeError("the step could not be recorded as a CUDA graph")
    return Row(
        f"step of {bench.batch} slices, {how}",
        bench.found["slices"] / seconds,
        "ratio",
        against="eager",
        detail=f"{1e3 * seconds:.3f} ms; above 1: faster",
    )


def _epochs(bench: Bench, name: str, epochs: int, **fit: object) -> Iterator[Row]:
    done = Epochs(bench, name, epochs, **fit)
    in_2d = done.detector.ndim == 2
    bench.found[f"epoch {done.detector.ndim}D"] = done.seconds
    step = bench.found.get("slices" if in_2d else "step")
    what = f"{done.batches.num_samples()} {'slices' if in_2d else 'volumes'}"
    yield Row(
        f"epoch of {what}, with validation and checkpoint",
        done.seconds / (done.steps * step) if step else None,
        "ratio",
        against=f"its {done.steps} steps alone",
        goal="<= 1.2",
        detail=f"{done.seconds:.3f} s; the loop's own record {done.records[-1]['seconds']:.3f} s",
    )


def table_1(bench: Bench) -> Iterator[Row]:
    """The fourteen fits of Bengs' table, reckoned from the epochs that were measured."""
    epochs = {ndim: bench.found.get(f"epoch {ndim}D") for ndim in (2, 3)}
    number = Counter(3 if name.startswith("3D") else 2 for name in BENGS_TABLE_1)
    total = None
    if epochs[2] and epochs[3]:
        total = sum(number[ndim] * EPOCHS * (epochs[ndim] or 0.0) for ndim in number) / 60
    words = ", ".join(f"{n} fits in {ndim}D" for ndim, n in sorted(number.items()))
    yield Row(
        "table 1 of Bengs 2021, all fits one after another",
        total,
        "minutes",
        goal="<= 10",
        detail=f"{words}, {EPOCHS} epochs each, from an epoch of each kind",
    )


def families(bench: Bench) -> Iterator[Row]:
    """A few steps of every method that learns by gradient, in each phase of its fit."""
    seen = set()
    for name, one in NAMED.imported.items():
        kind = detector_type(one.method.type_name())
        if kind in seen or not issubclass(kind, GradientDetector):
            continue
        seen.add(kind)
        in_3d = name if name.startswith("3D-") else f"3D-{name}"
        for each in (name, *([] if bench.quick else [in_3d])):
            yield attempt(f"steps of {each}", partial(_family, bench, each))
            bench.free()


def _family(bench: Bench, name: str) -> Row:
    detector = detector_of(experiment(name), bench, 32)
    took = []
    for number in range(len(detector.phases())):
        one = loop(bench, name, batch=2 if bench.quick else 4, size=32, phase=number)
        took.append(seconds_a_step(bench, one, warm_up=1, count=2))
        if not all(bool(p.isfinite().all()) for p in one.steps.detector.parameters()):
            raise ArithmeticError(f"weights are not finite after phase {number + 1}")
    words = ", ".join(f"{1e3 * t:.1f} ms" for t in took)
    return Row(f"steps of {name}", 1e3 * sum(took), "ms", detail=f"32 voxels a side; {words}")


def scoring(bench: Bench) -> Iterator[Row]:
    """Volumes a second: on the device alone, and with what a core does after it."""
    detector = detector_of(experiment(MAIN), bench).eval()
    images = bench.images[: bench.batch].cpu()
    brain = (images > 0).numpy()
    for name, size in (("a batch", bench.batch), ("one", 1)):
        part = images[:size], brain[:size]
        took = medians(
            {"scores": lambda part=part: detect(detector, *part, bench.device)},
            bench.rounds,
            bench.device,
        )["scores"]
        yield Row(f"scored on the device, {name} at a time", size / took, "volumes/s")
    some = [
        Example(id=str(k), image=x.numpy(), brain=b, lesion=np.zeros_like(b))
        for k, (x, b) in enumerate(zip(images[:2], brain, strict=False))
    ]
    config = EvaluateConfig()
    examples = dict(enumerate(some))

    def whole() -> None:
        list(count_volumes(detector, examples, config, bench.device, len(some)))

    whole()
    start = time.perf_counter()
    whole()
    took = (time.perf_counter() - start) / len(some)
    yield Row("scored, filtered and counted", 1e3 * took, "ms a volume", detail="by one process")


def deterministic(bench: Bench) -> Iterator[Row]:
    """Two fits with `fit.deterministic` from the same seed."""
    wanted: dict[str, object] = {"deterministic": True}
    small = Bench(device=bench.device, quick=True)
    twice = [Epochs(small, MAIN, 2, **wanted).detector.state_dict() for _ in range(2)]
    differing = sum(int((a != b).sum()) for a, b in zip(*(t.values() for t in twice), strict=True))
    yield Row(
        "two deterministic fits, weights that differ",
        differing,
        "weights",
        goal="<= 0",
        detail=f"of {sum(v.numel() for v in twice[0].values())}; 32^3, two epochs",
    )
