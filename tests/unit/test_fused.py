"""Group norm and activation in one pass give what torch's own layers give."""

import copy
import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from uadray.config import experiment
from uadray.methods import build, fused
from uadray.methods.fused import Stack, Variant, is_sound, norm_activation, passes

ACTIVATIONS = (nn.LeakyReLU(0.01), nn.LeakyReLU(0.3), nn.ReLU(), nn.SiLU())
SHAPES = ((2, 16, 6, 4), (3, 8, 2, 4, 6), (1, 32, 1, 1, 2))


def norm_of(channels: int, groups: int = 8) -> nn.GroupNorm:
    norm = nn.GroupNorm(groups, channels)
    torch.manual_seed(1)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def together(x: Tensor, norm: nn.GroupNorm, activation: nn.Module) -> Tensor:
    return norm_activation(x, norm, Variant.of(x, norm, activation), compiled=False)


def random(shape: tuple[int, ...], last: bool = True) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 2 + 3
    layout = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    return x.contiguous(memory_format=layout) if last else x


def gradients(y: Tensor, *leaves: Tensor) -> list[Tensor]:
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(y.dtype)
    return list(torch.autograd.grad(y, leaves, grad))


@pytest.mark.parametrize(
    ("shape", "activation", "last"), [*itertools.product(SHAPES, ACTIVATIONS, (True, False))]
)
def test_values_and_gradients_are_those_of_the_layers(
    shape: tuple[int, ...], activation: nn.Module, last: bool
) -> None:
    norm, x = norm_of(shape[1]), random(shape, last).requires_grad_()
    ours = together(x, norm, activation)
    theirs = activation(norm(x))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    leaves = (x, norm.weight, norm.bias)
    for one, other in zip(gradients(ours, *leaves), gradients(theirs, *leaves), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_are_those_of_finite_differences(
    activation: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In float64, in which alone a finite difference has enough digits.
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    norm = norm_of(8, 4).double()
    x = random((2, 8, 3, 2)).double().requires_grad_()

    def of(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        both = passes(norm.eps, fused._SLOPES[type(activation)](activation), x.dtype, False)
        return fused._NormActivation.apply(x, weight, bias, 4, both)

    assert torch.autograd.gradcheck(of, (x, norm.weight, norm.bias))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bfloat16_is_rounded_once(activation: nn.Module) -> None:
    """The exact value to the nearest bfloat16, which the layers of autocast lead to as well."""
    norm, x = norm_of(16), random((2, 16, 4, 6, 4)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        ours = together(x, norm, activation)
    exact = activation(copy.deepcopy(norm).double()(x.double()))
    assert ours.dtype == torch.bfloat16
    rounded = exact.bfloat16()
    assert (ours != rounded).float().mean() < 0.01  # at most by ties of float32's own rounding
    torch.testing.assert_close(ours.double(), exact, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_of_bfloat16_are_those_of_float32_rounded(activation: nn.Module) -> None:
    norm, x = norm_of(16), random((2, 16, 4, 6, 4)).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        ours = together(x, norm, activation)
    exact = x.detach().double().requires_grad_()
    copied = copy.deepcopy(norm).double()
    theirs = activation(copied(exact))
    grad = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(2)).bfloat16()
    found = torch.autograd.grad(ours, (x, norm.weight, norm.bias), grad)
    wanted = torch.autograd.grad(theirs, (exact, copied.weight, copied.bias), grad.double())
    assert found[0].dtype == torch.bfloat16
    for one, other, rtol in zip(found, wanted, (2**-7, 1e-4, 1e-4), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=rtol, atol=2e-3)


def test_channels_stay_last() -> None:
    x = random((2, 16, 4, 6, 4)).requires_grad_()
    y = together(x, norm_of(16), nn.ReLU())
    assert y.is_contiguous(memory_format=torch.channels_last_3d)
    (grad,) = gradients(y, x)
    assert grad.is_contiguous(memory_format=torch.channels_last_3d)


def test_gradients_of_gradients_are_refused() -> None:
    x = random((2, 16, 4, 4)).requires_grad_()
    y = together(x, norm_of(16), nn.SiLU())
    with pytest.raises(RuntimeError, match="no gradients of gradients"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


class TestStack:
    def stack(self) -> Stack:
        torch.manual_seed(0)
        return Stack(nn.Conv2d(1, 16, 3), norm_of(16), nn.LeakyReLU(), nn.Conv2d(16, 1, 1))

    def test_on_a_cpu_it_is_a_sequence_of_layers(self) -> None:
        stack, x = self.stack(), random((2, 1, 8, 8))
        plain = nn.Sequential(*stack)
        assert torch.equal(stack(x), plain(x))
        assert list(stack.state_dict()) == list(plain.state_dict())

    def test_it_fuses_while_it_learns_and_never_while_it_scores(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls = []
        ours = norm_activation

        def counted(*args: object, **more: object) -> Tensor:
            calls.append(args)
            return ours(*args, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(fused, "norm_activation", counted)
        monkeypatch.setattr(fused, "is_sound", lambda *args, **more: True)
        monkeypatch.setattr(Stack, "fuses_on", staticmethod(lambda device: True))
        stack, x = self.stack(), random((2, 1, 8, 8))
        torch.testing.assert_close(stack(x), nn.Sequential(*stack)(x), rtol=1e-5, atol=1e-5)
        assert len(calls) == 1
        with torch.no_grad():
            stack(x)
        stack.eval()(x)
        assert len(calls) == 1

    @pytest.mark.parametrize("name", ["3D-Cube-n", "2D-None", "sVAE", "Transformer", "f-AnoGAN"])
    def test_methods_learn_alike_with_it(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """In each phase, gradient penalties and all, up to rounding."""
        detector = build(experiment(name).method, (32, 32, 32))
        assert any(isinstance(m, Stack) for m in detector.modules())
        for phase in detector.phases():  # type: ignore[attr-defined]
            detector.phase = phase.name
            found = []
            for fuses in (True, False):
                monkeypatch.setattr(Stack, "fuses_on", staticmethod(lambda device, on=fuses: on))
                twin = copy.deepcopy(detector)
                x = torch.rand(2, 1, *[32] * twin.ndim, generator=torch.Generator().manual_seed(0))
                noise = torch.randn(2, twin.num_noise, generator=torch.Generator().manual_seed(1))
                several = {"player": phase.players[0]} if len(twin.players()) > 1 else {}
                loss = twin(x, x, noise, **several)["loss"]
                loss.backward()
                norms = [p.grad.norm() for p in twin.parameters() if p.grad is not None]
                found.append(torch.stack([loss.detach(), torch.stack(norms).norm()]))
            torch.testing.assert_close(*found, rtol=1e-3, atol=1e-5)


VARIANT = Variant(
    device=torch.device("cpu"), maps=torch.float32, out=torch.float32, eps=1e-5, slope=0.01
)


class TestSoundness:
    @pytest.fixture(autouse=True)
    def anew(self) -> Iterator[None]:
        is_sound.cache_clear()
        yield
        is_sound.cache_clear()

    @pytest.mark.parametrize("slope", [0.01, None])
    @pytest.mark.parametrize("maps", [torch.float32, torch.bfloat16])
    def test_what_is_right_is_sound(self, maps: torch.dtype, slope: float | None) -> None:
        assert is_sound(replace(VARIANT, maps=maps, out=maps, slope=slope), compiled=False)

    def test_a_compiler_that_fails_is_named_and_left(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fails(*args: object) -> float:
            raise RuntimeError("no C compiler\nat all")

        monkeypatch.setattr(fused, "_difference", fails)
        with pytest.warns(UserWarning, match=r"not fused on cpu.*no C compiler$"):
            assert not is_sound(VARIANT)

    def test_a_full_device_is_no_reason_against_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*args: object) -> float:
            raise torch.OutOfMemoryError("full")

        monkeypatch.setattr(fused, "_difference", full)
        with pytest.raises(torch.OutOfMemoryError):
            is_sound(VARIANT)

    @pytest.mark.parametrize("factor", [1.01, float("nan")])
    def test_a_compiler_that_is_wrong_is_left(
        self, factor: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        right = fused.backward_of

        def wrong(*args: Any) -> tuple[Tensor, ...]:
            grad, weight, bias = right(*args)
            return grad, weight * factor, bias

        monkeypatch.setattr(fused, "backward_of", wrong)
        with pytest.warns(UserWarning, match="differ from torch's by"):
            assert not is_sound(VARIANT, compiled=False)

    def test_layers_that_are_not_sound_stand(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Stack, "fuses_on", staticmethod(lambda device: True))
        monkeypatch.setattr(fused, "_difference", lambda *args: 1.0)
        stack, x = TestStack().stack(), random((2, 1, 8, 8))
        with pytest.warns(UserWarning, match="not fused"):
            assert torch.equal(stack(x), nn.Sequential(*stack)(x))
