"""The steps of a fit: micro-batches, idle workers, dead latents, compiled networks."""

import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from team import Team
from tiny_cohorts import SHAPE, tiny_vae
from tiny_fits import cut, fit_arrays, fresh, made_images
from torch import Tensor, nn

from uadray.config import Experiment, FitConfig, experiment, with_fit
from uadray.data.batch import Batch
from uadray.data.sampling import batch_share, step_sizes
from uadray.errors import ConfigError
from uadray.methods import GradientDetector
from uadray.methods.blocks import down, up
from uadray.runs.checkpoint import CheckpointStore
from uadray.runs.folder import Run
from uadray.train.fit import Fit
from uadray.train.precision import check_cudnn, numerics
from uadray.train.summary import format_metrics, summarise

CPU = torch.device("cpu")
NUM = 21
"""Samples: two batches of eight and one of five."""


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return made_images(NUM)


def gradients_agree(a: GradientDetector, b: GradientDetector) -> bool:
    """Whether two nets saw the same gradient in their last step, but for rounding.

    Weights would not do: Adam makes whole steps of what is rounding where the gradient is zero.
    """
    first, second = (torch.cat([p.grad.flatten() for p in net.parameters()]) for net in (a, b))
    return float((first - second).norm()) < 1e-4 * float(first.norm())


def still(**fit: object) -> Experiment:
    """Weights stay, so that the last step of a fit shows its gradient, and no activation has a
    kink, at which rounding alone may turn a gradient by percents."""
    base = tiny_vae(3, epochs=2, learning_rate=1e-9, clip_norm=1e9, **fit)
    return replace(base, method=replace(base.method, slope=0.999))


@pytest.mark.parametrize("micro_batch", [3, 1])
def test_micro_batches_change_nothing_but_the_rounding(
    images: Tensor, tmp_path: Path, micro_batch: int
) -> None:
    experiment = still(strategy="cube")
    whole, records = fit_arrays(experiment, images, tmp_path / "whole")
    seen: list[int] = []
    detector = fresh(experiment)
    detector.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    cut_up, cut_records = fit_arrays(
        experiment, images, tmp_path / "cut", micro_batch=micro_batch, detector=detector
    )
    assert max(seen) == micro_batch
    assert sum(seen) == 2 * NUM
    # The last batch is 5 = 3 + 2 samples: the smaller part weighs less.
    assert gradients_agree(whole, cut_up)
    for a, b in zip(records, cut_records, strict=True):
        for key in ("train/loss", "train/reconstruction", "train/kl", "validation/reconstruction"):
            assert b[key] == pytest.approx(a[key], rel=1e-5)


def test_a_batch_that_is_no_larger_is_left_whole(images: Tensor, tmp_path: Path) -> None:
    experiment = tiny_vae(3, epochs=2)
    whole, _ = fit_arrays(experiment, images, tmp_path / "whole")
    same, _ = fit_arrays(experiment, images, tmp_path / "same", micro_batch=8)
    first, second = whole.state_dict(), same.state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    "shares", [[11, 10], [15, 6], [8, 8, 5], [19, 1, 1]], ids=lambda s: "+".join(map(str, s))
)
def test_workers_of_any_parts_take_the_step_of_all_samples(
    images: Tensor, tmp_path: Path, shares: list[int]
) -> None:
    """Each step's gradient is the mean over all samples in it, wherever they are."""
    experiment = still()
    size, world = experiment.fit.batch_size, len(shares)
    ids = torch.arange(NUM).split(shares)
    parts = [
        cut(images, part.tolist(), batch_share(size, rank, world)) for rank, part in enumerate(ids)
    ]
    sizes = step_sizes(shares, size)
    team = Team(world)
    detectors: dict[int, GradientDetector] = {}
    errors: list[BaseException] = []

    def work(rank: int) -> None:
        try:
            detectors[rank], _ = fit_arrays(
                experiment,
                images,
                tmp_path / "team",
                batches=lambda epoch: parts[rank],
                world=team.world(rank),
                sizes=sizes,
                detector=made[rank],
            )
        except BaseException as error:
            errors.append(error)
            team.abort()

    made = [fresh(experiment) for _ in range(world)]
    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    joined = [
        Batch(
            ids=torch.cat([p[k].ids for p in parts if k < len(p)]),
            images=torch.cat([p[k].images for p in parts if k < len(p)]),
        )
        for k in range(len(sizes))
    ]
    assert [len(b.ids) for b in joined] == sizes
    alone, _ = fit_arrays(experiment, images, tmp_path / "alone", batches=lambda epoch: joined)
    for detector in detectors.values():
        assert gradients_agree(detector, alone)


def test_units_of_the_latent_are_counted(images: Tensor, tmp_path: Path) -> None:
    experiment = tiny_vae(3, epochs=2)
    detector = fresh(experiment)
    with torch.no_grad():
        # Three units that say nothing and, with no gradient, never will.
        for head in (detector.to_mu, detector.to_log_sigma):
            assert isinstance(head, nn.Linear)
            head.weight[:3], head.bias[:3] = 0, 0
            for parameter in (head.weight, head.bias):
                parameter.register_hook(
                    lambda g: g * (torch.arange(len(g)) > 2).view(-1, *[1] * (g.ndim - 1))
                )
    _, records = fit_arrays(experiment, images, tmp_path, detector=detector)
    assert [r["train/active_units"] for r in records] == [5, 5]


@pytest.mark.parametrize(("kl_weight", "collapsed"), [(1e4, True), (1e-3, False)])
def test_a_collapsed_latent_is_warned_of(
    images: Tensor, tmp_path: Path, kl_weight: float, collapsed: bool
) -> None:
    base = tiny_vae(3, epochs=30, learning_rate=1e-2)
    experiment = replace(base, method=replace(base.method, kl_weight=kl_weight))
    run = Run(
        url=str(tmp_path),
        experiment=experiment,
        cohort_url="",
        cohort_fingerprint="0",
        shape=SHAPE,
    )
    detector = fresh(experiment)
    records = Fit(
        detector=detector,
        experiment=experiment,
        train=lambda epoch: cut(images, list(range(NUM)), 8),
        validation=[Batch(ids=torch.arange(4), images=images[:4])],
        checkpoints=CheckpointStore(run.url, f"{experiment.fingerprint}-0"),
        device=CPU,
        log=run.write_metrics,
    ).run()
    warnings = summarise(run)["warnings"]
    if collapsed:
        best = summarise(run)["best_epoch"]
        assert records[best - 1]["train/active_units"] == 0
        assert len(warnings) == 1
        assert (
            f"posterior collapse: 0 of 8 latent units carry information in epoch {best}"
            in (warnings[0])
        )
        assert "lower --method.kl-weight" in warnings[0]
    else:
        assert records[-1]["train/active_units"] == 8
        assert warnings == []
    line = format_metrics(records[-1])
    assert f"{records[-1]['train/active_units']} latent units active, " in line


def test_the_summary_has_nominal_and_realised_shares(images: Tensor, tmp_path: Path) -> None:
    experiment = tiny_vae(3, strategy="cube", epochs=3)
    run = Run(
        url=str(tmp_path),
        experiment=experiment,
        cohort_url="",
        cohort_fingerprint="0",
        shape=SHAPE,
    )
    _, records = fit_arrays(experiment, images, tmp_path / "fit", log=run.write_metrics)
    erasing = summarise(run)["erasing"]
    samples = [record["erasing/samples"] for record in records]
    assert erasing["samples"] == sum(samples)
    assert erasing["nominal_share"] == pytest.approx(0.13)
    for key in ("share", "brain_share", "no_brain"):
        mean = np.average([record[f"erasing/{key}"] for record in records], weights=samples)
        assert erasing[key] == pytest.approx(mean)
    run.write_metrics([{k: v for k, v in r.items() if "erasing" not in k} for r in records])
    assert summarise(run)["erasing"] is None, "of an earlier version"


def test_waiting_for_data_is_told_apart(images: Tensor, tmp_path: Path) -> None:
    experiment = tiny_vae(3, epochs=1)

    def slow(epoch: int) -> Iterator[Batch]:
        for batch in cut(images, list(range(NUM)), 8):
            threading.Event().wait(0.1)
            yield batch

    _, (record,) = fit_arrays(experiment, images, tmp_path, batches=slow)
    assert 0.3 <= record["seconds/data"] < record["seconds"]
    assert math.isfinite(record["samples_per_second"])


def test_a_gpu_is_told_how_to_compute_and_left_as_it_was() -> None:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul

    def state() -> tuple[bool, ...]:
        return (
            cudnn.benchmark,
            cudnn.deterministic,
            cudnn.allow_tf32,
            matmul.allow_tf32,
            torch.are_deterministic_algorithms_enabled(),
        )

    before = state()
    fits = tiny_vae(3).fit, tiny_vae(3, precision="auto").fit, tiny_vae(3, deterministic=True).fit
    expected = [
        (True, False, False, False, False),  # float32, which was asked for, stays float32
        (True, False, True, True, False),
        (False, True, False, False, True),
    ]
    for config, settings in zip(fits, expected, strict=True):
        with numerics(torch.device("cuda"), config):
            assert state() == settings
        assert state() == before
        with numerics(CPU, config):
            assert state() == before


def test_a_compiled_network_learns_the_same(
    images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, _ = fit_arrays(still(), images, tmp_path / "plain")
    # Generating code for a CPU takes minutes; the graph that it would be made of takes seconds.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    experiment = still(compile=True)
    compiled, _ = fit_arrays(experiment, images, tmp_path / "compiled")
    assert gradients_agree(plain, compiled)
    assert set(compiled.state_dict()) == set(plain.state_dict())
    reloaded = fresh(experiment)
    CheckpointStore(str(tmp_path / "compiled"), experiment.fingerprint).load_model(reloaded, 2)


def test_what_is_compiled_is_so_for_fixed_shapes(
    images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last batch is smaller, which would else turn the whole graph into one of any size."""
    seen: list[list[int]] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        sizes = [size for one in inputs if isinstance(one, Tensor) for size in one.shape]
        assert all(isinstance(one, Tensor) for one in inputs)  # symbolic sizes come beside them
        assert not any(isinstance(size, torch.SymInt) for size in sizes)
        seen.append(sizes)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    experiment = tiny_vae(3, compile=True, batch_size=NUM - 3, epochs=2)
    batches = [cut(images, list(range(NUM)), NUM - 3)] * 2
    fit_arrays(experiment, images, tmp_path, batches=lambda epoch: iter(batches[epoch]))
    assert len(seen) == 2  # of the batch, and of the last one


def test_the_warm_up_of_a_group_compiles_for_the_batch_and_else_takes_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from uadray.train import group

    monkeypatch.setattr(group, "prepare_model", lambda module, **options: module)
    shapes: list[int] = []
    detector = fresh(tiny_vae(3))
    monkeypatch.setattr(
        type(detector),
        "forward",
        lambda self, x_in, target, noise: (
            shapes.append(len(x_in))
            or {"loss": sum(p.sum() for p in self.parameters()) + x_in.sum() + noise.sum()}
        ),
    )
    group._averaged(detector, SHAPE, 5)
    assert shapes == [1, 1]
    shapes.clear()
    group._averaged(Compiled(detector), SHAPE, 5)
    assert shapes == [5, 5]


class Compiled(torch.nn.Module):
    """As `torch.compile` wraps a module."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self._orig_mod = module

    def forward(self, *args: Tensor) -> Any:
        return self._orig_mod(*args)


@pytest.mark.parametrize(
    ("device", "ndim", "options", "is_named"),
    [
        ("cuda", 3, {"precision": "auto"}, True),
        ("cuda", 3, {"precision": "bfloat16"}, True),
        ("cuda", 3, {"precision": "float32"}, False),
        ("cuda", 2, {"precision": "auto"}, False),
        ("cpu", 3, {"precision": "auto"}, False),
    ],
)
def test_a_cudnn_that_computes_wrong_is_named(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    device: str,
    ndim: int,
    options: dict[str, Any],
    is_named: bool,
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    check_cudnn(FitConfig(**options), ndim, torch.device(device))
    assert ("cuDNN 9.10.2 computes some 3D convolutions wrong" in caplog.text) == is_named
    strict = FitConfig(**options, deterministic=True)
    if is_named:
        with pytest.raises(ConfigError, match=r"--fit\.precision float32"):
            check_cudnn(strict, ndim, torch.device(device))
    else:
        check_cudnn(strict, ndim, torch.device(device))
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 92000)
    check_cudnn(strict, ndim, torch.device(device))


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "strided": (lambda: nn.Conv3d(16, 24, 5, stride=2, padding=2), (16, 4, 4, 4)),
    "same": (lambda: nn.Conv3d(16, 24, 3, padding=1), (16, 2, 6, 4)),
    "transposed": (lambda: nn.ConvTranspose3d(16, 24, 5, stride=2, padding=2), (16, 2, 4, 4)),
    "entry": (lambda: down(3, 1, 16), (1, 4, 8, 8)),
    "exit": (lambda: up(3, 16, 1), (16, 2, 4, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_at_two_planes_are_right_in_bfloat16_on_a_cpu(name: str) -> None:
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer, x = make(), torch.randn(4, *shape)

    def gradients(bfloat16: bool) -> list[Tensor]:
        layer.zero_grad()
        # Memory that is read although nobody wrote it, holds these.
        for size in (16 * 24 * 125, 16 * 24 * 27, 16 * 8 * 27):
            torch.full((8, size), math.nan, dtype=torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            y = layer(x)
        assert y.dtype == (torch.bfloat16 if bfloat16 else torch.float32)
        (y.float() * torch.linspace(-1, 2, y.numel()).view(y.shape)).sum().backward()
        return [p.grad.clone() for p in layer.parameters()]

    exact = gradients(False)
    with numerics(CPU, FitConfig()):
        for _ in range(3):
            for one, other in zip(gradients(True), exact, strict=True):
                assert (one - other).abs().max() < 0.02 * other.abs().max()


@pytest.mark.parametrize("name", ["3D-cDDPM", "3D-DenoisingAE", "3D-None"])
def test_networks_with_two_planes_learn_in_bfloat16_on_a_cpu(name: str, tmp_path: Path) -> None:
    wanted = with_fit(experiment(name), epochs=3, batch_size=4, precision="bfloat16")
    torch.full((2**22,), math.nan, dtype=torch.bfloat16)
    detector, records = fit_arrays(wanted, made_images(8), tmp_path)
    assert all(p.isfinite().all() for p in detector.parameters())
    assert records[-1]["train/loss"] < records[0]["train/loss"]
