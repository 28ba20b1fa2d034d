"""Work on tensors of fixed shapes that a GPU repeats by one launch, as a CUDA graph."""

import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

WARM_UP = 3
"""Calls that are computed one kernel at a time: libraries choose and allocate in the first ones."""

Tensors = Mapping[str, Tensor]


class Repeated:
    """A function of tensors of fixed shapes, called again and again.

    It changes what it changes in place, such as weights and sums, and waits for nothing. On a GPU
    its first calls are computed as usual, in a stream of their own; then its kernels are recorded,
    and each further call replays them: a step of a small network is bound by their launches alone.
    What cannot be recorded goes on as usual. On a CPU every call is.

    Args:
        work: Computes; it finds its inputs in the same tensors each time.
        device: Where.
    """

    def __init__(self, work: Callable[[Tensors], None], device: torch.device) -> None:
        self._work, self._device = work, device
        self._inputs: dict[str, Tensor] = {}
        self._calls = 0
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._graph: torch.cuda.CUDAGraph | None = None

    @property
    def is_recorded(self) -> bool:
        """Whether calls are replayed."""
        return self._graph is not None

    def takes(self, inputs: Tensors) -> bool:
        """Whether tensors have the shapes and types of those before."""
        return not self._inputs or {n: (t.shape, t.dtype) for n, t in inputs.items()} == {
            n: (t.shape, t.dtype) for n, t in self._inputs.items()
        }

    def __call__(self, inputs: Tensors) -> None:
        """Compute with these inputs, which are copied."""
        assert self.takes(inputs)
        if not self._inputs:
            self._inputs = {name: torch.empty_like(tensor) for name, tensor in inputs.items()}
        for name, tensor in inputs.items():
            self._inputs[name].copy_(tensor, non_blocking=True)
        if self._graph is None and self._stream is not None and self._calls == WARM_UP:
            self._record()
        if self._graph is not None:
            self._graph.replay()
        elif self._stream is not None:
            here = torch.cuda.current_stream(self._device)
            self._stream.wait_stream(here)
            with torch.cuda.stream(self._stream):
                self._work(self._inputs)
            here.wait_stream(self._stream)
        else:
            self._work(self._inputs)
        self._calls += 1

    def _record(self) -> None:
        """Record the work, which does not compute it."""
        graph = torch.cuda.CUDAGraph()
        try:
            # Another thread may copy a checkpoint meanwhile.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._work(self._inputs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            warnings.warn(f"steps are not repeated as a CUDA graph: {reason}", stacklevel=2)
            return
        self._graph = graph
