"""Denoising autoencoder with coarse noise."""

from dataclasses import dataclass

from uadray.lazy import Tensor
from uadray.methods.base import Losses, Phase, Shape, by_samples, sum_within, with_brain
from uadray.methods.noise import CoarseNoise, fixed
from uadray.methods.registry import method
from uadray.methods.settings import check_limits
from uadray.methods.unet import UNet, UNetDetector, UNetSettings

_EFFECTIVE = 2 / 3
"""Deviation of a grid in 2D after its linear enlargement, over that of its numbers."""


@method(
    "DenoisingAE",
    source="Kascenas 2022, Denoising autoencoders",
    equation="min mean b (x - U(x + b n))^2, n = coarse noise, b = brain; s = abs(x - U(x))",
    deviations=(
        "DAE in the literature; `dAE` is the dense autoencoder of Baur 2018. Its text was not at "
        "hand: facts are those of its code. The noise's grid is periodic and begins anywhere, for "
        "each sample apart: the code shifts a whole batch alike, with a seam. In 3D the grid's "
        "deviation is 1.22 times as large, which leaves the same after the enlargement. Means in "
        "place of weight standardisation, a quarter of the widths, Adam without amsgrad, weight "
        "decay or cosine. The erosion and the median filter of the score are those of the "
        "evaluation. The epoch that is kept denoises healthy validation best."
    ),
    fit={"epochs": 100, "batch_size": 16, "learning_rate": 1e-4},
)
class DenoisingAE(UNetDetector):
    """Denoising autoencoder (Kascenas 2022): a U-Net takes coarse noise away; scans come without.

    What it takes for noise in a scan is the anomaly. Resolution and size of the noise are the
    method: noise of single voxels detects little.
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(UNetSettings):
        noise_cells: int = 16
        """Cells of the noise across the longest side (`noise_res`), at any size of the images."""
        noise_deviation: float = 0.2
        """Standard deviation of the numbers on the grid in 2D, in intensity units (`noise_std`);
        after linear enlargement two thirds of it are left, in 3D too."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_limits(self, noise_cells=">= 1", noise_deviation="> 0")

    config: Settings
    held_out_noise: Tensor

    def __init__(self, config: Settings, shape: Shape) -> None:
        super().__init__(config, shape)
        self.network = UNet(config)
        self._noise = CoarseNoise(self.spatial, (config.noise_cells,))
        self.num_noise = self._noise.num_noise
        self.register_buffer("held_out_noise", fixed(1, self.num_noise), persistent=False)

    def phases(self) -> tuple[Phase, ...]:
        """One, measured with noise: without any, to copy would be best."""
        return (Phase(measure="denoising"),)

    def noisy(self, x: Tensor, brain: Tensor, noise: Tensor) -> Tensor:
        """Samples with noise in the brain, not clamped.

        Args:
            x: (B, 1, *spatial).
            brain: The same shape, bool.
            noise: Standard normal, (B, num_noise).
        """
        return x + self.config.noise_deviation * _EFFECTIVE * self._noise(noise) * brain

    def forward(self, x_in: Tensor, target: Tensor, noise: Tensor, player: str = "") -> Losses:
        """Squared error in the brain, a mean over all voxels."""
        brain = target > 0
        error = self.restored(self.noisy(x_in, brain, noise), brain) - target
        return {"loss": error.square().mean(), "reconstruction": error.abs().mean()}

    def restored(self, x: Tensor, brain: Tensor) -> Tensor:
        """What the network makes of it in one pass."""
        output: Tensor = self.network(x)
        return output * brain

    def held_out_error(self, x_BCZYX: Tensor, brain_BZYX: Tensor) -> Tensor:
        """|x - U(x + n)| over the brain's voxels, the noise always the same."""

        def run(samples: Tensor) -> Tensor:
            x, brain = samples[:, :1], samples[:, 1:] > 0
            noise = self.held_out_noise.expand(len(samples), -1)
            return self.restored(self.noisy(x, brain, noise), brain)

        output = by_samples(run, with_brain(x_BCZYX, brain_BZYX), self.ndim)
        return sum_within((x_BCZYX - output).abs(), brain_BZYX[:, None])
