"""Group normalisation and the activation after it as one pass over the maps, for GPUs.

There torch normalises in float32 and in the layout with channels first, so that each layer's maps
are cast, copied into the other layout, normalised, activated and copied back. The pass here reads
the maps as the convolutions leave them, channels last and in bfloat16, and writes them likewise. On
a CPU, while scoring, and where a whole network is compiled, torch's own layers stand.

Shape suffixes: N samples, S voxels, G groups, C channels of a group.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

_SLOPES: dict[type[nn.Module], Callable[[Any], float | None]] = {
    nn.LeakyReLU: lambda layer: float(layer.negative_slope),
    nn.ReLU: lambda layer: 0.0,
    nn.SiLU: lambda layer: None,
}
"""Activations that can be fused: the slope below 0; None for SiLU."""


def normalise(x_NSGC: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised float32 maps, the mean of each group, and what it was multiplied by."""
    x_NSGC = x_NSGC.float()
    variance, mean = torch.var_mean(x_NSGC, (1, 3), correction=0, keepdim=True)
    scale = torch.rsqrt(variance + eps)
    return (x_NSGC - mean) * scale, mean, scale


def forward_of(
    x_NSGC: Tensor, weight_GC: Tensor, bias_GC: Tensor, eps: float, slope: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Activated float32 maps; mean and scale of each group, which `backward_of` takes."""
    normal, mean, scale = normalise(x_NSGC, eps)
    before = normal * weight_GC + bias_GC
    if slope is None:
        return before * torch.sigmoid(before), mean, scale
    return torch.where(before > 0, before, before * slope), mean, scale


def backward_of(
    grad_NSGC: Tensor,
    x_NSGC: Tensor,
    weight_GC: Tensor,
    bias_GC: Tensor,
    mean: Tensor,
    scale: Tensor,
    slope: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of maps, weight and bias, float32; all but the statistics is computed again."""
    normal = (x_NSGC.float() - mean) * scale
    before = normal * weight_GC + bias_GC
    if slope is None:
        gate = torch.sigmoid(before)
        grad = grad_NSGC.float() * (gate * (1 + before * (1 - gate)))
    else:
        grad = torch.where(before > 0, grad_NSGC.float(), grad_NSGC.float() * slope)
    grad_weight, grad_bias = (grad * normal).sum((0, 1)), grad.sum((0, 1))
    inner = grad * weight_GC
    shift = inner.mean((1, 3), keepdim=True)
    turn = (inner * normal).mean((1, 3), keepdim=True)
    return (inner - shift - normal * turn) * scale, grad_weight, grad_bias


Pass = Callable[..., tuple[Tensor, Tensor, Tensor]]


@cache
def passes(eps: float, slope: float | None, out: torch.dtype, compiled: bool) -> tuple[Pass, Pass]:
    """Forward and backward pass; forward gives maps of type `out`, backward those of its input.

    One compilation serves all shapes: a pass that is compiled for each meets torch's limit, from
    which on it runs uncompiled without a word.
    """

    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, mean, scale = forward_of(x, weight, bias, eps, slope)
        return y.to(out), mean, scale

    def backward(
        grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        grad_x, grad_weight, grad_bias = backward_of(grad, x, weight, bias, mean, scale, slope)
        return grad_x.to(x.dtype), grad_weight, grad_bias

    if not compiled:
        return forward, backward
    return torch.compile(forward, dynamic=True), torch.compile(backward, dynamic=True)


class _NormActivation(torch.autograd.Function):
    """The two passes, on maps as they are; twice differentiable it is not."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, both: tuple[Pass, Pass]
    ) -> Tensor:
        num, channels = x.shape[:2]
        # A view where channels are last in memory, else a copy that makes them so.
        last = x.movedim(1, -1).contiguous()
        x_NSGC = last.view(num, -1, groups, channels // groups)
        weight_GC, bias_GC = (p.view(groups, -1) for p in (weight, bias))
        with torch.autocast(x.device.type, enabled=False):
            y, mean, scale = both[0](x_NSGC, weight_GC, bias_GC)
        ctx.save_for_backward(x_NSGC, weight_GC, bias_GC, mean, scale)
        ctx.backward_pass = both[1]
        return y.view(last.shape).movedim(-1, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        if torch.is_grad_enabled():  # `once_differentiable` would leave the statistics' part out
            raise RuntimeError(
                "a fused norm has no gradients of gradients: build that network of nn.Sequential"
            )
        x_NSGC = ctx.saved_tensors[0]
        last = grad.movedim(1, -1).contiguous()
        with torch.autocast(grad.device.type, enabled=False):
            grad_x, grad_weight, grad_bias = ctx.backward_pass(
                last.view(x_NSGC.shape), *ctx.saved_tensors
            )
        maps = grad_x.view(last.shape).movedim(-1, 1)
        return maps, grad_weight.flatten(), grad_bias.flatten(), None, None


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What a pass is compiled for; shapes are not."""

    device: torch.device
    maps: torch.dtype
    """Of the maps that come in."""
    out: torch.dtype
    """Of those that go out: autocast's, where it is on."""
    eps: float
    slope: float | None
    """As in `_SLOPES`."""

    @classmethod
    def of(cls, x: Tensor, norm: nn.GroupNorm, activation: nn.Module) -> "Variant":
        """That of maps, a norm and the activation after it."""
        kind = x.device.type
        return cls(
            device=x.device,
            maps=x.dtype,
            out=torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype,
            eps=norm.eps,
            slope=_SLOPES[type(activation)](activation),
        )


def norm_activation(x: Tensor, norm: nn.GroupNorm, variant: Variant, compiled: bool) -> Tensor:
    """What the activation of `norm(x)` gives, channels last.

    Args:
        x: (B, channels, *spatial).
        norm: With weight and bias.
        variant: That of `x`, the norm and the activation.
        compiled: Whether the passes are compiled; without that they are no faster.
    """
    both = passes(variant.eps, variant.slope, variant.out, compiled)
    y: Tensor = _NormActivation.apply(x, norm.weight, norm.bias, norm.num_groups, both)
    return y


class Stack(nn.Sequential):
    """Layers one after another; a group norm and the activation after it in one pass on a GPU.

    Names and weights are those of `nn.Sequential`. What takes gradients of gradients must not use
    it.
    """

    def forward(self, x: Tensor) -> Tensor:
        """All layers; on a CPU, in evaluation and inside a compiled network as they stand."""
        if not (self.training and torch.is_grad_enabled() and self.fuses_on(x.device)):
            whole: Tensor = super().forward(x)
            return whole
        layers = list(self)
        while layers:
            layer = layers.pop(0)
            if isinstance(layer, nn.GroupNorm) and layers and type(layers[0]) in _SLOPES:
                variant = Variant.of(x, layer, layers[0])
                if is_sound(variant, compiled=x.is_cuda):
                    x = norm_activation(x, layer, variant, compiled=x.is_cuda)
                    del layers[0]
                    continue
            x = layer(x)
        return x

    @staticmethod
    def fuses_on(device: torch.device) -> bool:
        """Whether maps on that device go through the one pass."""
        return device.type == "cuda" and not torch.compiler.is_compiling()


TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 4e-2, torch.float16: 1e-2}
"""Largest difference from torch's own layers, of numbers around 1, that is rounding."""


@cache
def is_sound(variant: Variant, compiled: bool = True) -> bool:
    """Whether the one pass runs and gives what torch's own layers give.

    Tried once in a process on a few numbers: a compiler may be absent, or wrong.
    """
    try:
        worst = _difference(variant, compiled)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        worst, reason = math.inf, f"{type(error).__name__}: {error}".splitlines()[0][:200]
    else:
        reason = f"compiled, they differ from torch's by {worst:.1e}"
    if worst <= TOLERANCE[variant.out]:
        return True
    warnings.warn(
        f"norms and activations are not fused on {variant.device}, which is slower: {reason}",
        stacklevel=2,
    )
    return False


def _difference(variant: Variant, compiled: bool) -> float:
    """The largest, over output and gradients, from torch's own layers on the same numbers."""
    generator = torch.Generator().manual_seed(0)
    shape = (3, 16, 6, 4, 4)
    x, grad = (
        torch.randn(shape, generator=generator).to(variant.device, dtype)
        for dtype in (variant.maps, variant.out)
    )
    norm = nn.GroupNorm(8, shape[1], variant.eps).to(variant.device)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(shape[1], generator=generator))
        norm.bias.copy_(torch.randn(shape[1], generator=generator))
    slope = variant.slope
    activation = nn.SiLU() if slope is None else nn.LeakyReLU(slope)
    found = []
    with torch.enable_grad(), torch.autocast(variant.device.type, enabled=False):
        for fused in (True, False):
            leaf = x.clone().requires_grad_()
            if fused:
                y = norm_activation(leaf, norm, variant, compiled)
            else:
                y = activation(norm(leaf.float()))
            leaves = (leaf, norm.weight, norm.bias)
            found.append([y.detach(), *torch.autograd.grad(y, leaves, grad.to(y.dtype))])
    worst = 0.0
    for one, other in zip(*found, strict=True):
        scale = other.float().abs().max().clamp(min=1)
        difference = float((one.float() - other.float()).abs().max() / scale)
        # NaN compares with nothing.
        worst = max(worst, difference) if difference == difference else math.inf
    return worst
