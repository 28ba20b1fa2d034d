"""Scale-space autoencoder: a Laplacian pyramid, level by level."""

from dataclasses import dataclass
from typing import Any

from uadray.lazy import Tensor, functional, nn, torch
from uadray.methods.autoencoder import STUDY
from uadray.methods.base import GradientDetector, Losses, Shape
from uadray.methods.blocks import coarse_grid
from uadray.methods.networks import Decoder, Encoder, separable
from uadray.methods.registry import method
from uadray.methods.settings import Convolutional, check, check_limits

_BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


@method(
    "SSAE",
    source="Baur 2020, Scale-space autoencoders, as in Meissen 2021, table 2",
    equation=(
        "x_k' = up(x_{k+1}') + D_k(E_k(band_k)); min sum over levels of mean abs(x_k - x_k'); "
        "s = abs(x_0 - x_0')"
    ),
    deviations=(
        "Its authors gave no code, and their text was not at hand: three levels, binomial "
        "smoothing and spatial latents follow descriptions of it; L1 as in the study."
    ),
    fit=STUDY,
)
class SSAE(GradientDetector):
    """Scale-space autoencoder (Baur 2020): one spatial autoencoder a level of a pyramid.

    The coarsest level reconstructs the image itself, each finer one adds its band of the Laplacian
    pyramid; every level's sum is compared with the image at its size. All latents have the same
    grid.
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(Convolutional):
        levels: int = 3
        """Of the Laplacian pyramid; each halves the sides, and takes one convolution less."""
        latent_width: int = 64
        """Maps of each latent."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_limits(self, latent_width=">= 1")
            most = len(self.widths)
            check(1 <= self.levels <= most, "method.levels", f"in [1, {most}]", self.levels)

    config: Settings
    kernel: Tensor

    def __init__(self, config: Settings, shape: Shape) -> None:
        super().__init__(config, shape)
        self.grid = coarse_grid(config, shape)
        self.num_noise = 1
        self.encoders, self.decoders = nn.ModuleList(), nn.ModuleList()
        for level in range(config.levels):
            widths = config.widths[: len(config.widths) - level]
            latent: Any = {"widths": widths, "latent_width": config.latent_width}
            self.encoders.append(Encoder(config, self.grid, **latent))
            self.decoders.append(Decoder(config, self.grid, **latent))
        self.register_buffer("kernel", torch.tensor(_BINOMIAL), persistent=False)

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """(B, 1, *spatial) at full size, at half, and so on."""
        levels = [x]
        for _ in range(self.config.levels - 1):
            levels.append(self._resized(separable(levels[-1], self.kernel), 0.5))
        return levels

    def _resized(self, x: Tensor, factor: float) -> Tensor:
        mode = "bilinear" if self.ndim == 2 else "trilinear"
        return functional.interpolate(x, scale_factor=factor, mode=mode, align_corners=False)

    def through(self, x: Tensor) -> list[Tensor]:
        """The reconstruction of each level, finest first."""
        levels = self.pyramid(x)
        outputs: list[Tensor] = []
        for number in reversed(range(len(levels))):
            encoder, decoder = self.encoders[number], self.decoders[number]
            if not outputs:
                outputs.append(decoder(encoder(levels[number])[0]))
                continue
            band = levels[number] - self._resized(levels[number + 1], 2.0)
            outputs.append(self._resized(outputs[-1], 2.0) + decoder(encoder(band)[0]))
        return outputs[::-1]

    def forward(self, x_in: Tensor, target: Tensor, noise: Tensor, player: str = "") -> Losses:
        """The sum over levels of the L1 term, each a mean over its voxels."""
        outputs = self.through(x_in)
        wanted = self.pyramid(target)
        terms = [(a - b).abs().mean() for a, b in zip(outputs, wanted, strict=True)]
        return {"loss": torch.stack(terms).sum(), "reconstruction": terms[0]}

    def healthy(self, x: Tensor) -> Tensor:
        """The finest level."""
        return self.through(x)[0]
