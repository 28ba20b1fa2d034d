"""Workers of a fit as threads."""

import threading

import torch
from torch import Tensor, nn

from uadray.train.steps import World


class Team:
    """Workers as threads that sum tensors and average gradients, step by step."""

    def __init__(self, size: int) -> None:
        self.size, self._lock = size, threading.Barrier(size, timeout=60)
        self._held: dict[int, Tensor] = {}

    def sum(self, rank: int, tensor: Tensor) -> Tensor:
        self._held[rank] = tensor.clone()
        self._lock.wait()
        total = torch.stack([self._held[r] for r in range(self.size)]).sum(0)
        self._lock.wait()
        return total

    def abort(self) -> None:
        """Let nobody wait for a worker that has failed."""
        self._lock.abort()

    def world(self, rank: int) -> World:
        def wrap(module: nn.Module) -> nn.Module:
            # Every backward pass of these tests reaches every parameter once, in the same order.
            for parameter in module.parameters():
                parameter.register_hook(lambda g: self.sum(rank, g) / self.size)
            return module

        return World(rank=rank, size=self.size, wrap=wrap, sum=lambda t: self.sum(rank, t))
