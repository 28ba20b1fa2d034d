"""What is computed otherwise on a GPU gives the same: erasing, draws ahead, layouts."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from uadray.config import experiment, with_fit
from uadray.data.batch import Batch, on_device
from uadray.data.erasing import (
    StaticErasing,
    erase,
    erased_boxes,
    erased_counts,
    sample_erasing,
)
from uadray.methods import GradientDetector, build
from uadray.methods.blocks import space_to_depth, space_to_depth_last
from uadray.strategies import BENGS, ErasingConfig
from uadray.train.steps import Steps, World, make_optimizers

CPU = torch.device("cpu")


def brains(num: int, ndim: int, side: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(num, *[side] * ndim, generator=generator)
    x[:, :2] = 0
    x[..., -1] = 0
    if num > 2:
        x[2] = 0  # no brain at all
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("fill", ["zero", "noise"])
@pytest.mark.parametrize("strategy", BENGS)
def test_static_erasing_has_the_bits_of_erase(
    strategy: str, fill: str, ndim: int, dtype: torch.dtype
) -> None:
    config = ErasingConfig(strategy=strategy, fill=fill, probability=0.7)  # type: ignore[arg-type]
    x, ids = brains(9, ndim).to(dtype), torch.arange(40, 49)
    any_erased = False
    for epoch in range(4):
        where = sample_erasing(config, ids, seed=5, epoch=epoch, spatial=tuple(x.shape[1:]))
        wanted = erase(x, where, config, ids, seed=5, epoch=epoch)
        static = StaticErasing.of(where, config, ids, seed=5, epoch=epoch, device=CPU)
        found, counts = static.apply(x)
        assert torch.equal(found, wanted)
        assert torch.equal(counts, erased_counts(x, where))
        any_erased |= not torch.equal(found, x)
        assert found.dtype == x.dtype
    assert any_erased


def test_static_erasing_has_the_same_shapes_whatever_is_erased() -> None:
    x, ids = brains(6, 3), torch.arange(6)
    shapes = set()
    for probability in (0.0, 0.5, 1.0):
        config = ErasingConfig(strategy="multi-cube", fill="noise", probability=probability)
        where = sample_erasing(config, ids, seed=0, epoch=0, spatial=(12, 12, 12))
        static = StaticErasing.of(where, config, ids, seed=0, epoch=0, device=CPU)
        shapes.add(tuple((name, tuple(t.shape)) for name, t in static.tensors().items()))
    assert len(shapes) == 1
    meta = StaticErasing(
        **{name: t.to("meta") for name, t in static.tensors().items()} | {"right": None}
    )
    found, counts = meta.apply(x.to("meta"))  # nothing that would have to be waited for
    assert (found.shape, counts.shape) == (x.shape, (4,))


def test_boxes_that_are_known_are_not_sought_again() -> None:
    config = ErasingConfig(strategy="half-volume", fill="noise", probability=1.0)
    x, ids = brains(5, 3), torch.arange(5)
    where = sample_erasing(config, ids, seed=0, epoch=0, spatial=(12, 12, 12))
    boxes = erased_boxes(x, where)
    given = erase(x, where, config, ids, seed=0, epoch=0, boxes=boxes)
    assert torch.equal(given, erase(x, where, config, ids, seed=0, epoch=0))
    assert torch.equal(erased_counts(x, where, boxes), erased_counts(x, where))


@pytest.mark.parametrize("ndim", [2, 3])
def test_phases_with_channels_last_are_the_phases(ndim: int) -> None:
    x = torch.rand(3, 1, *[8] * ndim)
    last = space_to_depth_last(x, ndim)
    assert torch.equal(last, space_to_depth(x, ndim))
    layout = torch.channels_last if ndim == 2 else torch.channels_last_3d
    assert last.is_contiguous(memory_format=layout)


NAMES = ("3D-Cube-n", "2D-Half-Slice-n", "sVAE-GAN", "3D-None")


@pytest.mark.parametrize("micro_batch", [0, 2])
@pytest.mark.parametrize("name", NAMES)
def test_draws_ahead_learn_what_draws_at_need_learn(name: str, micro_batch: int) -> None:
    wanted = with_fit(experiment(name), batch_size=4, precision="float32", seed=3)
    images = brains(11, wanted.method.ndim, 32).half()  # type: ignore[attr-defined]

    def batches() -> Iterator[Batch]:
        for ids in torch.arange(11).split(4):  # the last is smaller
            yield Batch(ids=ids, images=images[ids])

    found = []
    for ahead in (0, 2, 8):
        torch.manual_seed(0)
        detector = build(wanted.method, (32, 32, 32))
        assert isinstance(detector, GradientDetector)
        steps = Steps(
            detector=detector,
            module=detector,
            optimizers=make_optimizers(detector, wanted.fit),
            experiment=wanted,
            device=CPU,
            bfloat16=False,
            micro_batch=micro_batch,
            world=World(),
            ahead=ahead,
        )
        sums = steps.epoch(batches(), None, 1, detector.phases()[0].players)
        found.append((sums, detector.state_dict()))
    for sums, weights in found[1:]:
        for key, value in found[0][0].items():
            torch.testing.assert_close(sums[key], value, rtol=1e-5, atol=1e-6)
        for key, value in found[0][1].items():
            torch.testing.assert_close(weights[key], value, rtol=1e-4, atol=1e-5)


def test_a_cpu_draws_at_need() -> None:
    wanted = experiment("3D-None")
    detector = build(wanted.method, (16, 16, 16))
    assert isinstance(detector, GradientDetector)
    steps = Steps(
        detector=detector,
        module=detector,
        optimizers=make_optimizers(detector, wanted.fit),
        experiment=wanted,
        device=CPU,
        bfloat16=False,
        micro_batch=0,
        world=World(),
    )
    assert steps.ahead == 0


class Recorded:
    """Stands for a tensor: where it is, and what is asked of it."""

    def __init__(self, where: str) -> None:
        self.device, self.asked = torch.device(where), list[object]()

    def pin_memory(self) -> "Recorded":
        assert self.device.type == "cpu", "only tensors of the CPU can be pinned"
        self.asked.append("pinned")
        return self

    def to(self, device: torch.device, non_blocking: bool = False) -> "Recorded":
        self.asked.append((device.type, non_blocking))
        return self


@pytest.mark.parametrize(
    ("where", "device", "asked"),
    [
        ("cpu", "cuda", ["pinned", ("cuda", True)]),
        ("cuda", "cuda", [("cuda", False)]),  # resident volumes: there already
        ("cpu", "cpu", [("cpu", False)]),
    ],
)
def test_only_what_leaves_the_cpu_is_pinned(where: str, device: str, asked: list[object]) -> None:
    values = Recorded(where)
    on_device(values, torch.device(device))  # type: ignore[arg-type]
    assert values.asked == asked
