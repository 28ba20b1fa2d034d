"""Denoising diffusion in one step: patched and conditioned."""

import itertools
import math
from dataclasses import dataclass
from typing import Any

from uadray.lazy import Module, Tensor, nn, torch
from uadray.methods.base import Losses, Shape
from uadray.methods.blocks import down, norm, to_channels_last
from uadray.methods.networks import uniform
from uadray.methods.noise import CoarseNoise, as_maps, fixed
from uadray.methods.registry import method
from uadray.methods.settings import check, check_limits, check_widths
from uadray.methods.unet import Embedding, UNet, UNetDetector, UNetSettings

STEPS = 1000
"""Steps of the schedule (Behrendt 2023)."""

NOISE_CELLS = (2, 4, 8, 16, 32)
"""Cells of the noise's grids across the longest side: periods of 32 to 2 voxels of 64."""

NOISE_DECAY = 0.8
"""Amplitude of each grid over that of the one before (AnoDDPM's simplex noise has this one)."""

_NOISE = (
    "The papers' texts were in part not at hand: facts are also those of their code. Octaves of "
    "coarse normal noise on grids of 2 to 32 cells across, scaled to the deviation of the simplex "
    "noise in the code, 0.58: a cousin of it, not the same. Each sample has its own noise while it "
    "learns; when it scores, one fixed field serves all slices and scans. A network an eighth as "
    "wide, without attention. Outputs are clamped to the range of the intensities and 0 outside "
    "the brain. The epoch that is kept restores healthy validation best. "
)


@dataclass(frozen=True, kw_only=True)
class DiffusionSettings(UNetSettings):
    """Settings of both."""

    erases = False

    noise_deviation: float = 0.58
    """Standard deviation of the noise, images being in [-1, 1]."""
    embedding: int = 64
    """Length of the vector that the step becomes."""
    score_steps: tuple[int, ...] = (500,)
    """Steps of the schedule, of 1000, from which a scan is restored, each in one pass; the
    restorations are averaged."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_limits(self, noise_deviation="> 0", embedding=">= 2")
        steps = self.score_steps
        holds = bool(steps) and all(1 <= one <= STEPS for one in steps)
        check(holds, "method.score_steps", f"in [1, {STEPS}] each", steps)


def kept_share(step_B: Tensor) -> Tensor:
    """Share of the image's variance that is left at a step from 0: the cosine schedule.

    Its ratio to the one of the step before is at least 0.001, as betas are at most 0.999.
    """

    def cosine(at: Tensor) -> Tensor:
        return ((at / STEPS + 0.008) / 1.008 * math.pi / 2).cos().square()

    start = math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    first = torch.full((), STEPS - 1.0, device=step_B.device)
    share = cosine(torch.minimum(step_B.float() + 1, first)) / start
    return torch.where(step_B >= STEPS - 1, share * 0.001, share)


class DiffusionDetector(UNetDetector):
    """A U-Net that predicts the clean image itself from a noisy one, in one step.

    Inside, images are in [-1, 1]: background is -1.
    """

    config: DiffusionSettings

    def __init__(self, config: Any, shape: Shape, condition: int = 0) -> None:
        super().__init__(config, shape)
        self.embedding = Embedding(config.embedding, STEPS)
        self.network = UNet(config, condition=config.embedding + condition)
        self._noise = CoarseNoise(self.spatial, NOISE_CELLS, NOISE_DECAY)

    def noisy(self, x: Tensor, field: Tensor, step_B: Tensor) -> Tensor:
        """Images in [-1, 1] at a step of the schedule.

        Args:
            x: (B, 1, *spatial) in [0, 1].
            field: Noise of deviation 1, (B, 1, *spatial) or (1, 1, *spatial).
            step_B: From 0, (B,).
        """
        share = as_maps(kept_share(step_B), self.ndim)
        noise = self.config.noise_deviation * field
        return share.sqrt() * (2 * x - 1) + (1 - share).sqrt() * noise

    def predicted(self, noisy: Tensor, step_B: Tensor, *more: Tensor) -> Tensor:
        """The clean image of a noisy one, (B, 1, *spatial) in [0, 1] but not clamped."""
        condition = torch.cat([self.embedding(step_B), *more], 1)
        output: Tensor = self.network(noisy, condition)
        return (output + 1) / 2

    def score_steps(self, x: Tensor) -> list[Tensor]:
        """Of each restoration, (B,), from 0."""
        return [
            torch.full((1,), step - 1, device=x.device).expand(len(x))
            for step in self.config.score_steps
        ]


@method(
    "pDDPM",
    source="Behrendt 2023, Patched diffusion models",
    equation=(
        "min mean over a box of abs(x - U(x_t in the box, x elsewhere; t)); y = all boxes, each "
        "from t = 500 in one pass; s = abs(x - y)"
    ),
    deviations=_NOISE + "Boxes of half the side without overlap, as the code is configured.",
    fit={"epochs": 100, "batch_size": 32, "learning_rate": 1e-4},
)
class PDDPM(DiffusionDetector):
    """Patched diffusion (Behrendt 2023): noise in a box alone, which is restored from around it."""

    @dataclass(frozen=True, kw_only=True)
    class Settings(DiffusionSettings):
        boxes_each_side: int = 2
        """Boxes along each side of the image; all of them are restored in turn."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_limits(self, boxes_each_side=">= 1")

    config: Settings
    score_noise: Tensor
    boxes: Tensor

    def __init__(self, config: Settings, shape: Shape) -> None:
        super().__init__(config, shape)
        num = config.boxes_each_side
        check(
            all(n >= num for n in self.spatial),
            "method.boxes_each_side",
            f"at most the sides {self.spatial}",
            num,
        )
        self._num_boxes = num**self.ndim
        # The step and the box; then the field.
        self.num_noise = 2 + self._noise.num_noise
        self.register_buffer("boxes", self._numbered(), persistent=False)
        rows = len(config.score_steps) * self._num_boxes
        numbers = fixed(rows, self._noise.num_noise)
        self.register_buffer("score_noise", numbers, persistent=False)

    def _numbered(self) -> Tensor:
        """The box of each voxel, (1, 1, *spatial)."""
        num = self.config.boxes_each_side
        boxes = torch.zeros(1, 1, *self.spatial, dtype=torch.int32)
        for axis, size in enumerate(self.spatial):
            along = torch.arange(size) * num // size
            boxes = boxes * num + along.view(*(size if a == axis else 1 for a in range(self.ndim)))
        return boxes

    def in_a_box(self, x: Tensor, field: Tensor, step_B: Tensor, inside: Tensor) -> Tensor:
        """Images with a box restored from a step, not clamped; elsewhere as they were."""
        noisy = torch.where(inside, self.noisy(x, field, step_B), 2 * x - 1)
        return torch.where(inside, self.predicted(noisy, step_B), x)

    def forward(self, x_in: Tensor, target: Tensor, noise: Tensor, player: str = "") -> Losses:
        """Absolute error in a box, a mean over its voxels, in units of [-1, 1]."""
        u = uniform(noise[:, :2])
        step = (u[:, 0] * STEPS).floor()
        inside = self.boxes == as_maps((u[:, 1] * self._num_boxes).floor(), self.ndim)
        output = self.in_a_box(x_in, self._noise(noise[:, 2:]), step, inside) * (target > 0)
        error = (output - target).abs()
        # Boxes are alike in size but for those of sides that they do not divide.
        return {"loss": 2 * self._num_boxes * error.mean(), "reconstruction": error.mean()}

    def restored(self, x: Tensor, brain: Tensor) -> Tensor:
        """Every box restored with the rest as it was, a mean over the steps."""
        fields = self._noise(self.score_noise)
        out = torch.zeros_like(x)
        pairs = itertools.product(self.score_steps(x), range(self._num_boxes))
        for number, (step, box) in enumerate(pairs):
            inside = self.boxes == box
            made = self.in_a_box(x, fields[number : number + 1], step, inside)
            out = out + torch.where(inside, made.clamp(0, 1), 0)
        return out / len(self.config.score_steps) * brain


class _Encoder(Module):
    """Strided convolutions, and the mean over the image of the last maps as a vector."""

    def __init__(self, config: Any, widths: tuple[int, ...], size: int) -> None:
        super().__init__()
        n = config.ndim
        blocks: list[nn.Module] = []
        for width_in, width_out in zip((1, *widths), widths, strict=False):
            blocks += [down(n, width_in, width_out), *norm(config.norm, n, width_out), nn.SiLU()]
        self.blocks = nn.Sequential(*blocks)
        self.to_vector = nn.Linear(widths[-1], size)
        self.layers = nn.Sequential(nn.Linear(size, size), nn.SiLU(), nn.Linear(size, size))
        to_channels_last(self, n)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, *spatial) to (B, size)."""
        out: Tensor = self.layers(self.to_vector(self.blocks(x).flatten(2).mean(2)))
        return out


@method(
    "cDDPM",
    source="Behrendt 2025, Guided reconstruction with conditioned diffusion models",
    equation=(
        "min mean abs(x - U(x_t; t, c)), c = C(x); y = mean of U(x_t; t, c) over t = 250, 500, "
        "750; s = abs(x - y)"
    ),
    deviations=_NOISE
    + "The encoder C is four strided convolutions and a mean, not a ResNet-50, without "
    "pre-training; c has 64 numbers, 128 in the paper: that it is narrow keeps it from copying.",
    fit={"epochs": 100, "batch_size": 32, "learning_rate": 1e-4},
)
class CDDPM(DiffusionDetector):
    """Conditioned diffusion (Behrendt 2025): noise everywhere, and a vector of the clean image."""

    @dataclass(frozen=True, kw_only=True)
    class Settings(DiffusionSettings):
        score_steps: tuple[int, ...] = (250, 500, 750)
        """Steps of the schedule, of 1000, from which a scan is restored, each in one pass; the
        restorations are averaged."""
        context_widths: tuple[int, ...] = (16, 32, 64, 64)
        """Maps of the encoder's convolutions, kernel 5 stride 2."""
        context_size: int = 64
        """Numbers that the encoder makes of an image."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_limits(self, context_size=">= 1")
            check_widths(self.context_widths, name="method.context_widths")

    config: Settings
    score_noise: Tensor

    def __init__(self, config: Settings, shape: Shape) -> None:
        super().__init__(config, shape, config.context_size)
        # As many halvings as the sides allow.
        num = len(config.context_widths)
        while num > 1 and any(n % 2**num for n in self.spatial):
            num -= 1
        self.encoder = _Encoder(config, config.context_widths[:num], config.context_size)
        self.num_noise = 1 + self._noise.num_noise
        numbers = fixed(len(config.score_steps), self._noise.num_noise)
        self.register_buffer("score_noise", numbers, persistent=False)

    def forward(self, x_in: Tensor, target: Tensor, noise: Tensor, player: str = "") -> Losses:
        """Absolute error, a mean over all voxels, in units of [-1, 1]."""
        step = (uniform(noise[:, 0]) * STEPS).floor()
        noisy = self.noisy(x_in, self._noise(noise[:, 1:]), step)
        output = self.predicted(noisy, step, self.encoder(x_in)) * (target > 0)
        error = (output - target).abs().mean()
        return {"loss": 2 * error, "reconstruction": error}

    def restored(self, x: Tensor, brain: Tensor) -> Tensor:
        """The mean over the steps of what is predicted from each, each clamped."""
        fields, context = self._noise(self.score_noise), self.encoder(x)
        outputs = [
            self.predicted(self.noisy(x, fields[k : k + 1], step), step, context).clamp(0, 1)
            for k, step in enumerate(self.score_steps(x))
        ]
        return torch.stack(outputs).mean(0) * brain
