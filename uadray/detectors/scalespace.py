"""Scale-space autoencoder (Baur 2020): a Laplacian pyramid, level by level."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from uadray.detectors.base import GradientDetector, by_samples
from uadray.detectors.cevae import separable
from uadray.detectors.coders import Decoder, Encoder, coarse_grid
from uadray.methods.autoencoders import SSAE
from uadray.methods.network import OUTPUT_RANGE

_BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


class SSAEDetector(GradientDetector):
    """One spatial autoencoder for each band of the image's Laplacian pyramid.

    The coarsest level reconstructs the image itself, each finer one adds its band; every level's
    sum is held against the image at its size. All latents have the same grid.

    Args:
        config: Its settings.
        shape: (Z, Y, X) of a volume.

    Raises:
        ConfigError: a side is not divisible by 2 for each strided convolution.
    """

    kernel: Tensor

    def __init__(self, config: SSAE, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.config, self.ndim, self.num_noise = config, config.ndim, 1
        self.grid = coarse_grid(shape, config.ndim, len(config.widths), config.label)
        self.encoders, self.decoders = nn.ModuleList(), nn.ModuleList()
        for level in range(config.levels):
            widths = config.widths[: len(config.widths) - level]
            self.encoders.append(
                Encoder(
                    config.ndim,
                    self.grid,
                    widths,
                    latent_width=config.latent_width,
                    norm_kind=config.norm,
                    slope=config.slope,
                )
            )
            self.decoders.append(
                Decoder(
                    config.ndim,
                    self.grid,
                    widths,
                    latent_width=config.latent_width,
                    norm_kind=config.norm,
                    slope=config.slope,
                )
            )
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

    def forward(
        self, x_in: Tensor, target: Tensor, noise: Tensor, player: str = ""
    ) -> dict[str, Tensor]:
        """The sum over levels of the L1 term, each a mean over its voxels."""
        outputs = self.through(x_in)
        wanted = self.pyramid(target)
        terms = [(a - b).abs().mean() for a, b in zip(outputs, wanted, strict=True)]
        return {"loss": torch.stack(terms).sum(), "reconstruction": terms[0]}

    def reconstruct(self, x_BCZYX: Tensor) -> Tensor:
        """The finest level, clamped to [0, 1]."""
        return by_samples(lambda x: self.through(x)[0].clamp(*OUTPUT_RANGE), x_BCZYX, self.ndim)
