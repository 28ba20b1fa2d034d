"""A plain convolutional autoencoder in 2D and 3D: the smallest method that learns by gradient."""

from dataclasses import dataclass

import uadray
from uadray.errors import ConfigError

# Torch, imported when it is first used, so that a help text costs none.
from uadray.lazy import Tensor, nn
from uadray.methods import GradientDetector, Learned


@uadray.method(
    "ExampleAE",
    source="examples/plugin of uadray",
    equation="min mean abs(x - D(E(x))); s = abs(x - D(E(x)))",
)
class ExampleAE(GradientDetector):
    """Two convolutions with stride 2, and two transposed ones back."""

    @dataclass(frozen=True, kw_only=True)
    class Settings(Learned):
        width: int = 8
        """Feature maps of the first convolution; the second has twice as many."""
        latent_width: int = 4
        """Feature maps of the latent, at a quarter of each side."""

        def __post_init__(self) -> None:
            if min(self.width, self.latent_width) < 1:
                raise ConfigError("method.width and method.latent_width must be >= 1")

    config: Settings

    def __init__(self, config: Settings, shape: tuple[int, int, int]) -> None:
        super().__init__(config, shape)
        if any(side % 4 for side in self.grid):
            raise ConfigError(f"ExampleAE takes sides that are multiples of 4, was {self.grid}")
        down, up = (
            (nn.Conv2d, nn.ConvTranspose2d) if self.ndim == 2 else (nn.Conv3d, nn.ConvTranspose3d)
        )
        width, latent = config.width, config.latent_width
        self.encoder = nn.Sequential(
            *(down(1, width, 4, 2, 1), nn.ReLU(), down(width, 2 * width, 4, 2, 1), nn.ReLU()),
            down(2 * width, latent, 1),
        )
        self.decoder = nn.Sequential(up(latent, width, 4, 2, 1), nn.ReLU(), up(width, 1, 4, 2, 1))

    def forward(
        self, x_in: Tensor, target: Tensor, noise: Tensor, player: str = ""
    ) -> dict[str, Tensor]:
        """The mean of abs(output - target), of an input that may be erased."""
        error = (self.healthy(x_in) - target).abs().mean()
        return {"loss": error, "reconstruction": error}

    def healthy(self, x: Tensor) -> Tensor:
        """The output of the decoder."""
        output: Tensor = self.decoder(self.encoder(x))
        return output.float()
