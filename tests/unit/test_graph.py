"""Steps that are repeated as a whole learn what steps one by one learn, bit for bit on a CPU."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from uadray.config import Experiment, experiment, with_fit
from uadray.data.batch import Batch
from uadray.errors import ConfigError
from uadray.methods import GradientDetector, build
from uadray.train.graph import Repeated
from uadray.train.settings import ScaleConfig
from uadray.train.steps import Steps, Sums, World, make_optimizers

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def images_of(ndim: int) -> Tensor:
    images = torch.zeros(11, *[32] * ndim, dtype=torch.float16)
    inside = torch.rand(11, *[24] * ndim, generator=torch.Generator().manual_seed(1)) * 0.9 + 0.05
    images[(slice(None), *[slice(4, 28)] * ndim)] = inside.half()
    return images


def steps_of(wanted: Experiment, **more: object) -> Steps:
    torch.manual_seed(0)
    detector = build(wanted.method, (32, 32, 32))
    assert isinstance(detector, GradientDetector)
    return Steps(
        detector=detector,
        module=detector,
        optimizers=make_optimizers(detector, wanted.fit),
        experiment=wanted,
        device=CPU,
        bfloat16=False,
        **({"micro_batch": 0, "world": World()} | more),  # type: ignore[arg-type]
    )


def learned(steps: Steps, epochs: int = 2) -> tuple[list[Sums], dict[str, Tensor]]:
    images = images_of(steps.detector.ndim)

    def batches() -> Iterator[Batch]:
        for ids in torch.arange(11).split(4):  # the last one is smaller
            yield Batch(ids=ids, images=images[ids])

    names = steps.detector.phases()[0].players
    sums = [steps.epoch(batches(), None, epoch, names) for epoch in range(epochs)]
    return sums, steps.detector.state_dict()


NAMES = ("3D-Cube-n", "2D-Patch-n", "2D-None", "2D-Half-Slice-0", "3D-Half-Volume-n", "sVAE")


@pytest.mark.parametrize("name", NAMES)
def test_weights_and_sums_are_the_same(name: str) -> None:
    wanted = with_fit(experiment(name), batch_size=4, precision="float32")
    steps = steps_of(wanted, graph=True)
    assert steps.can_be_graph
    sums, weights = learned(steps)
    assert steps._repeated is not None
    assert steps._repeated._calls == 4  # the full batches of two epochs
    plain_sums, plain_weights = learned(steps_of(wanted))
    assert all(torch.equal(weights[key], plain_weights[key]) for key in plain_weights)
    for one, other in zip(sums, plain_sums, strict=True):
        assert list(one) == list(other)
        assert all(torch.equal(one[key], other[key]) for key in other)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("sVAE-GAN", {}),  # two players
        ("2D-None", {"micro_batch": 2}),
        ("2D-None", {"world": World(size=2, sum=lambda tensor: tensor)}),
    ],
)
def test_steps_of_another_kind_go_on_as_usual(name: str, more: dict[str, object]) -> None:
    wanted = with_fit(experiment(name), batch_size=4, precision="float32")
    steps = steps_of(wanted, graph=True, **more)
    assert not steps.can_be_graph
    _, weights = learned(steps, 1)
    _, plain = learned(steps_of(wanted, **more), 1)
    assert all(torch.equal(weights[key], plain[key]) for key in plain)


def test_inputs_are_copied_to_the_same_places() -> None:
    places, values = set(), []

    def work(inputs: dict[str, Tensor]) -> None:
        places.add(inputs["x"].data_ptr())
        values.append(inputs["x"].clone())

    repeated = Repeated(work, CPU)  # type: ignore[arg-type]
    for value in range(5):
        repeated({"x": torch.full((3,), float(value))})
    assert len(places) == 1
    assert [float(v[0]) for v in values] == [0, 1, 2, 3, 4]
    assert not repeated.takes({"x": torch.zeros(2)})
    assert not repeated.takes({"x": torch.zeros(3, dtype=torch.float64)})
    assert not repeated.takes({"x": torch.zeros(3), "y": torch.zeros(3)})


@pytest.mark.parametrize("more", [{"num_workers": 2}, {"micro_batch": 4}])
def test_a_graph_is_for_one_worker_with_whole_batches(more: dict[str, int]) -> None:
    assert ScaleConfig(cuda_graph=True).cuda_graph
    with pytest.raises(ConfigError, match="cuda_graph is for one worker"):
        ScaleConfig(cuda_graph=True, **more)  # type: ignore[arg-type]
