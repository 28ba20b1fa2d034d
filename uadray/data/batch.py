"""What a stream hands to a fit: samples and what they are."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Clean samples and what they are."""

    ids: torch.Tensor
    """(B,) int64: the row for volumes, row * Z + z for axial slices."""
    images: torch.Tensor
    """(B, Z, Y, X) or (B, Y, X) float16 in [0, 1]."""
    brain: torch.Tensor | None = None
    """The same shape, bool; None where it is not read, as of samples to learn from."""

    @property
    def inside(self) -> torch.Tensor:
        """The brain; what is above 0 where its mask was not read."""
        return self.images > 0 if self.brain is None else self.brain


def on_device(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`values` on the device, without waiting for it.

    From pageable memory the host would wait until the device has done all that it was given.
    """
    if device.type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
