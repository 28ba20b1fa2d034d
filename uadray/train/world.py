"""The workers of a fit, as the loop sees them."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class World:
    """The workers of a fit; alone by default."""

    rank: int = 0
    """This worker."""
    size: int = 1
    """Number of workers."""
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module
    """Makes a module with one optimiser average its gradients over the workers."""
    sum: Callable[[Tensor], Tensor] = lambda tensor: tensor
    """Sum over the workers; it may overwrite its argument."""
