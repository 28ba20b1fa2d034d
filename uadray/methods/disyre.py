"""Restoration of synthetic anomalies of every degree."""

from dataclasses import dataclass

from uadray.lazy import Tensor, torch
from uadray.methods.base import Detection, Losses, Phase, Shape, by_samples, sum_within, with_brain
from uadray.methods.corruption import Corruption
from uadray.methods.noise import fixed
from uadray.methods.registry import method
from uadray.methods.settings import check, check_limits
from uadray.methods.unet import Embedding, UNet, UNetDetector, UNetSettings


@method(
    "DISYRE",
    source="Naval Marimont 2024, Disyre v2, mean single step",
    equation=(
        "x', a = corrupt(x), a = its degree; min mean (x - U(x', a))^2; "
        "s = f mean over a of abs(x - U(x, a)), f = share of the image that is brain"
    ),
    deviations=(
        "The paper's text was not at hand: facts are those of its code. The network is given the "
        "degree itself, not the step of a schedule with that degree; the four degrees of scoring "
        "are those of the steps. The foreign texture is another place of the same image, moved and "
        "mirrored, not of another image, so that what is learned does not depend on who else is in "
        "a batch. Irregular shapes in place of the 300 stored ones; edges soft as a Gaussian "
        "leaves straight ones; five equal ranges of intensity in place of a codebook. No "
        "augmentation. Whole images, no windows. Adam without weight decay."
    ),
    fit={"epochs": 100, "batch_size": 32, "learning_rate": 1e-4},
)
class DISYRE(UNetDetector):
    """Restoration of synthetic anomalies (Naval Marimont 2024): shape, foreign texture, bias.

    A U-Net that is given the degree of corruption restores what was there. A scan is restored
    under several assumed degrees; the mean of what changes is the score.
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(UNetSettings):
        erases = False

        degrees: tuple[float, ...] = (0.0045, 0.051, 0.272, 0.727)
        """Degrees of corruption that a scan is restored from; those of steps 99, 74, 49 and 24 of
        the paper's schedule."""
        foreground_weight: bool = True
        """Whether scores are multiplied by the share of the image that is brain, as in all of the
        paper's evaluations: in 2D top and bottom slices then score low."""
        codes: int = 5
        """Ranges of intensity that the bias tells apart."""
        embedding: int = 64
        """Length of the vector that the degree becomes."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_limits(self, codes=">= 1", embedding=">= 2")
            degrees = self.degrees
            holds = bool(degrees) and all(0 <= one <= 1 for one in degrees)
            check(holds, "method.degrees", "in [0, 1] each", degrees)

    config: Settings
    held_out_noise: Tensor

    def __init__(self, config: Settings, shape: Shape) -> None:
        super().__init__(config, shape)
        self.embedding = Embedding(config.embedding, 1.0)
        self.network = UNet(config, condition=config.embedding)
        self._corruption = Corruption(self.spatial, config.codes)
        self.num_noise = self._corruption.num_noise
        self.register_buffer("held_out_noise", fixed(1, self.num_noise), persistent=False)

    def phases(self) -> tuple[Phase, ...]:
        """One, measured on corrupted volumes: without corruption, to copy would be best."""
        return (Phase(measure="restoration"),)

    def forward(self, x_in: Tensor, target: Tensor, noise: Tensor, player: str = "") -> Losses:
        """Squared error of what is restored, a mean over all voxels."""
        made = self._corruption(x_in, noise)
        error = self.from_degree(made.x, target > 0, made.degree) - target
        return {"loss": error.square().mean(), "reconstruction": error.abs().mean()}

    def from_degree(self, x: Tensor, brain: Tensor, degree_B: Tensor) -> Tensor:
        """The image restored from a degree of corruption, not clamped."""
        output: Tensor = self.network(x, self.embedding(degree_B))
        return output * brain

    def from_each(self, x: Tensor, brain: Tensor) -> Tensor:
        """Restored from each degree, clamped to [0, 1], (degrees, B, 1, *spatial)."""
        degrees = (torch.full((1,), d, device=x.device).expand(len(x)) for d in self.config.degrees)
        return torch.stack([self.from_degree(x, brain, d) for d in degrees]).clamp(0, 1)

    def restored(self, x: Tensor, brain: Tensor) -> Tensor:
        """The mean over the degrees."""
        return self.from_each(x, brain).mean(0)

    def detect(self, x_BCZYX: Tensor, brain_BZYX: Tensor) -> Detection:
        """The mean over degrees of |x - restored|, times the share of the image that is brain."""

        def run(x: Tensor, brain: Tensor) -> Tensor:
            each = self.from_each(x, brain)
            score = (x - each).abs().mean(0)
            if self.config.foreground_weight:
                score = score * brain.flatten(1).float().mean(1).view(-1, 1, *[1] * self.ndim)
            return torch.cat([score, each.mean(0)], 1)

        both = self.by_pieces(run, x_BCZYX, brain_BZYX, num_out=2)
        return Detection(both[:, 0], both[:, 1:])

    def held_out_error(self, x_BCZYX: Tensor, brain_BZYX: Tensor) -> Tensor:
        """|x - restored| of corrupted volumes over the brain, the numbers always the same."""

        def run(samples: Tensor) -> Tensor:
            x, brain = samples[:, :1], samples[:, 1:] > 0
            made = self._corruption(x, self.held_out_noise.expand(len(samples), -1))
            return self.from_degree(made.x, brain, made.degree)

        output = by_samples(run, with_brain(x_BCZYX, brain_BZYX), self.ndim)
        return sum_within((x_BCZYX - output).abs(), brain_BZYX[:, None])
