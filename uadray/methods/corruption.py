"""Synthetic anomalies: a shape of a foreign texture, perhaps brighter or darker.

All is a function of a sample and of its own standard normal numbers, so that it does not depend on
who else is in a batch. Lengths are shares of the images' longest side.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from uadray.lazy import Tensor, torch
from uadray.methods.networks import separable, uniform
from uadray.methods.noise import CoarseNoise, a_voxel, as_maps, moved

SIDES = (10 / 128, 44 / 128)
"""Shortest and longest side or diameter of a shape (Naval Marimont 2024)."""

MAX_BLUR = 5 / 128
"""Largest deviation of the Gaussian that softens a shape's edge (the same)."""

BLURRED = 0.7
"""Share of the shapes whose edge is soft (the same)."""

MAX_ANGLE = math.radians(15)
"""By which half of the boxes are rotated at most, in each plane (the same)."""

WOBBLE = 0.5
"""Deviation of an irregular shape's radius, as a share of it; shapes of a store in the paper."""

_UNIFORM = 9
"""Uniform numbers that do not depend on the dimension: see `corrupt`."""


@dataclass(frozen=True, kw_only=True)
class Corrupted:
    """What became of samples."""

    x: Tensor
    """(B, 1, *spatial) in [0, 1]."""
    degree: Tensor
    """(B,) in [0, 1]: how much was changed."""
    shape: Tensor
    """(B, 1, *spatial) in [0, 1]: where, with soft edges."""


class Corruption:
    """Draws and applies corruption.

    Args:
        spatial: Shape of a sample.
        codes: Number of the intensities that a bias tells apart.
    """

    def __init__(self, spatial: Sequence[int], codes: int) -> None:
        self.spatial, self.codes = tuple(spatial), codes
        self._bumps = CoarseNoise(spatial, (8,))
        ndim = len(spatial)
        # Sides and angles of a box, shift and mirror of the texture; whether a code is taken.
        self._num_uniform = _UNIFORM + 4 * ndim + codes
        self.num_noise = self._num_uniform + self._bumps.num_noise

    def __call__(self, x: Tensor, noise: Tensor) -> Corrupted:
        """Corrupt samples by their numbers.

        Args:
            x: (B, 1, *spatial) in [0, 1], background 0.
            noise: Standard normal, (B, num_noise).
        """
        u = uniform(noise[:, : self._num_uniform])
        ndim = len(self.spatial)
        single, more = u[:, :_UNIFORM], u[:, _UNIFORM:]
        box, angles, shifts, mirrors, codes = more.split([*[ndim] * 4, self.codes], dim=1)
        place, kind, diameter, blur, soft, turn, amount, strength, sign = single.unbind(1)
        brain = x > 0
        bumps = self._bumps(noise[:, self._num_uniform :])
        shape = self._shape(
            a_voxel(brain, place), kind, box, diameter, angles * (turn < 0.5)[:, None], bumps
        )
        deviation = torch.where(soft < BLURRED, blur, 0) * MAX_BLUR * max(self.spatial)
        # As a Gaussian leaves a straight edge.
        shape = torch.special.ndtr(-shape / as_maps(deviation.clamp_min(0.1), ndim)) * brain
        shape = torch.where(shape < 0.01, 0, shape)
        amount = as_maps(amount, ndim)
        texture = _rescaled(moved(x, shifts, mirrors), x, shape > 0)
        mixed = x * (1 - amount * shape) + texture * amount * shape
        changed = ((mixed - x).flatten(1) != 0).any(1)
        biased = shape * self._chosen(mixed, shape, codes)
        direction = torch.where(sign < 0.5, -1.0, 1.0)
        out = mixed + as_maps(direction * strength, ndim) * biased
        out = out.clamp(0, 1) * brain
        step = (out - mixed).abs().flatten(1).amax(1)
        degree = torch.maximum(amount.flatten() * changed, step)
        return Corrupted(x=out, degree=degree, shape=shape)

    def _shape(
        self,
        centre: Tensor,
        kind: Tensor,
        box: Tensor,
        diameter: Tensor,
        angles: Tensor,
        bumps: Tensor,
    ) -> Tensor:
        """Distance from the border of a box, a ball or an irregular shape, less than 0 inside."""
        ndim, longest = len(self.spatial), max(self.spatial)
        low, high = (side * longest / 2 for side in SIDES)
        axes = [
            torch.arange(n, device=box.device).view(*(n if a == k else 1 for a in range(ndim)))
            for k, n in enumerate(self.spatial)
        ]
        offsets = [axis[None, None] - as_maps(centre[:, k], ndim) for k, axis in enumerate(axes)]
        radius = as_maps(low + (high - low) * diameter, ndim)
        distance = (
            torch.stack(torch.broadcast_tensors(*(o.square() for o in offsets))).sum(0).sqrt()
        )
        ball = distance - radius
        irregular = distance - radius * (1 + WOBBLE * bumps)
        turned = list(offsets)
        for k in range(1 if ndim == 2 else 3):
            other = (k + 1) % ndim
            angle = as_maps((2 * angles[:, k] - (angles[:, k] > 0).float()) * MAX_ANGLE, ndim)
            a, b = turned[k], turned[other]
            turned[k] = angle.cos() * a - angle.sin() * b
            turned[other] = angle.sin() * a + angle.cos() * b
        halves = low + (high - low) * box
        beyond = [t.abs() - as_maps(halves[:, k], ndim) for k, t in enumerate(turned)]
        corner = torch.stack(torch.broadcast_tensors(*beyond)).amax(0)
        which = as_maps(kind * 3, ndim)
        return torch.where(which < 1, corner, torch.where(which < 2, ball, irregular))

    def _chosen(self, x: Tensor, shape: Tensor, codes: Tensor) -> Tensor:
        """Where the intensity is one of those that the bias changes, a little smoothed."""
        bins = (x * self.codes).floor().clamp(0, self.codes - 1)
        inside = shape > 0
        out, total = torch.zeros_like(x), inside.flatten(1).sum(1).clamp_min(1)
        taken = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        for code in range(self.codes):
            own = bins == code
            share = (own & inside).flatten(1).sum(1) / total
            take = codes[:, code] < share
            taken = taken | take
            out = torch.where(as_maps(take, x.ndim - 2) & own, 1.0, out)
        out = torch.where(as_maps(taken, x.ndim - 2), out, 1.0)
        return separable(out, torch.tensor([0.1, 0.8, 0.1], device=x.device))


def _rescaled(texture: Tensor, x: Tensor, inside: Tensor) -> Tensor:
    """The texture in the image's range under the shape."""

    def ends(values: Tensor) -> tuple[Tensor, Tensor]:
        low = torch.where(inside, values, math.inf).flatten(1).amin(1)
        high = torch.where(inside, values, -math.inf).flatten(1).amax(1)
        empty = ~inside.flatten(1).any(1)
        return tuple(as_maps(torch.where(empty, 0, v), values.ndim - 2) for v in (low, high))  # type: ignore[return-value]

    (low, high), (least, most) = ends(x), ends(texture)
    share = (texture - least) / (most - least).clamp_min(1e-6)
    return (low + share * (high - low)).clamp(0, 1)
