"""Iterative mask refinement: what is restored well without being seen becomes visible."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from uadray.lazy import Tensor, torch
from uadray.methods.base import (
    Losses,
    Masked,
    Phase,
    Shape,
    slices_as_batch,
    sum_within,
    with_brain,
)
from uadray.methods.networks import uniform
from uadray.methods.noise import a_voxel, as_maps, fixed, moved
from uadray.methods.registry import method
from uadray.methods.settings import check_limits
from uadray.methods.unet import MAX_VOXELS, UNet, UNetDetector, UNetSettings

ERROR_BINS = 4096
"""Bins of healthy errors in [0, 1], from which the threshold follows."""

UNITS = (10 / 240, 2.5 / 240)
"""Unit of large and of small masks, as shares of the longest side (Liang 2024)."""

VARIANCES = (0.3, 10.0)
"""Least and largest variance of a mask along its axes, in squared units (the same)."""

DENSITIES = (1.0, 3.0)
"""Least and largest mean number of hits of a cell at the middle of a mask."""

CELLS = (2, 4)
"""Sides of the cells of masks, in voxels; in the code 1.1 to 4.3 of 64 in 2D, 0.7 to 2.7 in 3D."""


@method(
    "IterMask",
    source="Liang 2024, IterMask2; in 3D IterMask3D (2025)",
    equation=(
        "min mean (x - U(m n + (1 - m) x, h))^2, h = high frequencies of x, n = noise; m = brain, "
        "then m = m and abs(x - y) > T until it hardly shrinks; s = abs(x - y) of the last pass"
    ),
    deviations=(
        "The papers' texts were not at hand: facts are those of their code. One network, as in "
        "3D, with a fifth of the samples masked whole, in place of a first one that sees the "
        "high frequencies alone. In 3D too, the threshold is a quantile of errors on healthy "
        "validation, as in 2D, not a bend in each scan's own curve after 105 passes. Masks are "
        "cells hit by points of a Gaussian, each cell apart, cut at the border: in 3D the code "
        "lets them come in again on the other side. A scan stops when its mask shrinks by less "
        "than a tenth, as in the benchmark of Frotscher 2025. Intensities are in [0, 1], the "
        "noise a sixth as large about 0.5. Noise is a fixed field, moved for each sample and "
        "still when it scores. The score is absolute: squared, as in the code, it has the same "
        "order."
    ),
    fit={"epochs": 100, "batch_size": 32, "learning_rate": 1e-4},
)
class IterMask(UNetDetector):
    """Iterative mask refinement (Liang 2024): what is restored well unseen is shown, and so on.

    A U-Net restores masked brain from the rest and from the high frequencies of the whole image.
    All of the brain is masked at first; the mask shrinks to what stays wrong.
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(UNetSettings):
        erases = False

        radius: float = 0.23
        """Frequencies that are taken away, as a share of the largest along an axis; 15 of 64 in
        2D. IterMask3D takes 0.16."""
        whole_share: float = 0.2
        """Share of the samples whose whole brain is masked while it learns: how scans are masked
        at first."""
        start_share: float = 0.6
        """Share of the brain that stays masked after the first pass, by error."""
        threshold_quantile: float = 0.8
        """Of errors on healthy validation, masked as while it learns: T."""
        stop_share: float = 0.1
        """A scan stops when a pass takes less than this share off its mask."""
        max_passes: int = 20
        """Maximum number of passes of a scan, the first included."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_limits(
                self,
                radius="in [0, 1]",
                whole_share="in [0, 1]",
                start_share="in (0, 1]",
                threshold_quantile="in (0, 1)",
                stop_share="in [0, 1)",
                max_passes=">= 1",
            )

    config: Settings
    threshold: Tensor
    field: Tensor
    chance: Tensor
    held_out_noise: Tensor
    calibrates = True

    def __init__(self, config: Settings, shape: Shape) -> None:
        super().__init__(config, shape)
        self.network = UNet(config, channels=2)
        ndim, num = config.ndim, math.prod(self.spatial)
        # Whether whole, size, cells, density, place; a triangle of the covariance; two moves.
        self._num_triangle = ndim * (ndim + 1) // 2
        self.num_noise = 5 + self._num_triangle + 2 * ndim
        drawn = fixed(2, num)
        fill = (drawn[0] / 6 + 0.5).clamp(0, 1)
        self.register_buffer("field", fill.view(1, 1, *self.spatial), persistent=False)
        chance = uniform(drawn[1]).view(1, 1, *self.spatial)
        self.register_buffer("chance", chance, persistent=False)
        self.register_buffer("held_out_noise", fixed(1, self.num_noise), persistent=False)
        # Until it is calibrated.
        self.register_buffer("threshold", torch.tensor(0.05))

    def phases(self) -> tuple[Phase, ...]:
        """One, measured under masks as while it learns."""
        return (Phase(measure="inpainting"),)

    def forward(self, x_in: Tensor, target: Tensor, noise: Tensor, player: str = "") -> Losses:
        """Squared error in the brain, masked or not, a mean over all voxels."""
        brain = target > 0
        mask = self.drawn_mask(brain, noise)
        fill = self._of_each(self.field, noise[:, -self.ndim :])
        shown = torch.where(mask, fill, x_in)
        error = self.inpainted(shown, self.high_frequencies(x_in), brain) - target
        return {"loss": error.square().mean(), "reconstruction": error.abs().mean()}

    def _of_each(self, field: Tensor, noise: Tensor) -> Tensor:
        """A fixed field as each sample's own numbers move it round, (B, 1, *spatial)."""
        return moved(field.expand(len(noise), *field.shape[1:]), uniform(noise))

    def drawn_mask(self, brain: Tensor, noise: Tensor) -> Tensor:
        """What is masked of samples by their numbers, bool, within the brain.

        Args:
            brain: (B, 1, *spatial) bool.
            noise: Standard normal, (B, num_noise).
        """
        ndim, spatial = self.ndim, brain.shape[2:]
        u = uniform(noise)
        whole, size, cells, density, place = u[:, :5].unbind(1)
        triangle = u[:, 5 : 5 + self._num_triangle]
        # Two large kinds of three in 2D, as in the code.
        unit = torch.where(size < 2 / 3, *UNITS) * max(spatial)
        low, high = (math.sqrt(v) for v in VARIANCES)
        squared = self._squared_distance(a_voxel(brain, place), triangle, low, high)
        middle = DENSITIES[0] + (DENSITIES[1] - DENSITIES[0]) * density
        chance = self._of_each(self.chance, noise[:, -2 * ndim : -ndim])
        hits: list[Tensor] = []
        for side in CELLS:
            rate = as_maps(middle, ndim) * torch.exp(
                -0.5 * _by_cells(squared, side) / as_maps(unit.square(), ndim)
            )
            hits.append(1 - torch.exp(-rate) > _by_cells(chance, side))
        mask = torch.where(as_maps(cells < 0.5, ndim), hits[0], hits[1])
        return (mask | as_maps(whole < self.config.whole_share, ndim)) & brain

    def _squared_distance(
        self, centre: Tensor, triangle: Tensor, low: float, high: float
    ) -> Tensor:
        """From the centre, in deviations of a Gaussian whose covariance is L L^T, (B, 1, ...)."""
        ndim, spatial = self.ndim, self.spatial
        device = centre.device
        offsets = [
            (torch.arange(n, device=device) - centre[:, k : k + 1])
            .view(-1, 1, *(n if a == k else 1 for a in range(ndim)))
            .float()
            for k, n in enumerate(spatial)
        ]
        # Forward substitution of L y = offset; the diagonal of L scales, the rest skews.
        solved: list[Tensor] = []
        used = ndim
        for row in range(ndim):
            scale = low + (high - low) * triangle[:, row]
            rest = offsets[row]
            for column in range(row):
                skew = (2 * triangle[:, used] - 1) * (high - low) / 2
                rest = rest - as_maps(skew, ndim) * solved[column]
                used += 1
            solved.append(rest / as_maps(scale, ndim))
        return torch.stack(torch.broadcast_tensors(*(s.square() for s in solved))).sum(0)

    def high_frequencies(self, x: Tensor) -> Tensor:
        """Samples whose low frequencies keep their phase alone, at amplitude 1."""
        axes = tuple(range(2, 2 + self.ndim))
        with torch.autocast(x.device.type, enabled=False):
            spectrum = torch.fft.fftn(x.float(), dim=axes)
            squared = torch.zeros((), device=x.device)
            for k, n in enumerate(self.spatial):
                bins = torch.fft.fftfreq(n, device=x.device) * 2  # a share of the largest
                squared = squared + bins.view(*(n if a == k else 1 for a in range(self.ndim))) ** 2
            is_low = squared < self.config.radius**2
            unit = spectrum / spectrum.abs().clamp_min(1e-12)
            return torch.fft.ifftn(torch.where(is_low, unit, spectrum), dim=axes).real

    def inpainted(self, shown: Tensor, high: Tensor, brain: Tensor) -> Tensor:
        """What the network makes of masked samples and their high frequencies, not clamped."""
        output: Tensor = self.network(torch.cat([shown, high], 1))
        return output * brain

    def restored(self, x: Tensor, brain: Tensor) -> Tensor:
        """The last pass of each sample."""
        return self.passes(x, brain)[0]

    def passes(self, x: Tensor, brain: Tensor) -> tuple[Tensor, Tensor]:
        """The last pass of each sample, in [0, 1], and what it was masked by.

        Args:
            x: (B, 1, *spatial).
            brain: The same shape, bool.
        """
        config, ndim = self.config, self.ndim
        high, mask = self.high_frequencies(x), brain

        def once(mask: Tensor) -> tuple[Tensor, Tensor]:
            shown = torch.where(mask, self.field, x)
            output = self.inpainted(shown, high, brain).clamp(0, 1)
            return output, (x - output).abs() * mask

        output, error = once(mask)
        kept = torch.where(brain, error, -1.0).flatten(1).sort(1, descending=True).values
        last = (config.start_share * brain.flatten(1).sum(1)).ceil().long().clamp(1, kept.shape[1])
        lowest = kept.gather(1, last[:, None] - 1)[:, 0]
        mask = brain & (error >= as_maps(lowest, ndim))
        used = brain
        going = torch.ones(len(x), dtype=torch.bool, device=x.device)
        for _ in range(config.max_passes - 1):
            made, error = once(mask)
            here = as_maps(going, ndim)
            output, used = torch.where(here, made, output), torch.where(here, mask, used)
            smaller = mask & (error > self.threshold)
            before, after = (m.flatten(1).sum(1) for m in (mask, smaller))
            going = going & (after < before) & (before - after >= config.stop_share * before)
            mask = torch.where(as_maps(going, ndim), smaller, mask)
            if not torch.compiler.is_compiling() and not going.any():
                break
        return output, used

    def _masked_errors(self, x: Tensor, brain: Tensor) -> tuple[Tensor, Tensor]:
        """|x - inpainted| of volumes masked as while it learns, and where they were masked."""
        both = with_brain(x, brain)
        samples = slices_as_batch(both) if self.ndim == 2 else both
        samples = samples[samples[:, 1].flatten(1).any(1)]
        if not len(samples):
            return samples[:, :1], samples[:, :1] > 0
        errors, masks = [], []
        for part in samples.split(max(1, MAX_VOXELS // math.prod(self.spatial))):
            image, inside = part[:, :1], part[:, 1:] > 0
            noise = self.held_out_noise.expand(len(part), -1).clone()
            noise[:, 0] = math.inf  # never whole
            mask = self.drawn_mask(inside, noise)
            shown = torch.where(mask, self.field, image)
            output = self.inpainted(shown, self.high_frequencies(image), inside)
            errors.append((image - output.clamp(0, 1)).abs())
            masks.append(mask)
        return torch.cat(errors), torch.cat(masks)

    def held_out_error(self, x_BCZYX: Tensor, brain_BZYX: Tensor) -> Tensor:
        """|x - inpainted| where it is masked, always alike."""
        return sum_within(*self._masked_errors(x_BCZYX, brain_BZYX))

    def calibrate(self, volumes: Iterable[Masked], total: Callable[[Tensor], Tensor]) -> None:
        """Set the threshold: a quantile of the errors of masked healthy brain.

        Args:
            volumes: Healthy ones of this worker.
            total: Sum over the workers.
        """
        counts = torch.zeros(ERROR_BINS, dtype=torch.float64)
        for x, brain in volumes:
            errors, masks = self._masked_errors(x, brain)
            counts += errors[masks].float().cpu().histc(ERROR_BINS, 0, 1)
        below = total(counts).cumsum(0)
        if below[-1] > 0:
            first = int((below >= self.config.threshold_quantile * below[-1]).nonzero()[0, 0])
            self.threshold.fill_((first + 1) / ERROR_BINS)


def _by_cells(x: Tensor, side: int) -> Tensor:
    """The value at the first voxel of each cell, in all of the cell."""
    for axis in range(2, x.ndim):
        at = torch.arange(x.shape[axis], device=x.device) // side * side
        x = x.index_select(axis, at)
    return x
