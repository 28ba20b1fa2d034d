"""AnoGAN: the image that a GAN makes nearest to a given one (Schlegl 2017; Baur 2018)."""

import torch
from torch import Tensor

from uadray.detectors.base import in_pieces
from uadray.detectors.gan import GANDetector
from uadray.methods.anogan import AnoGAN
from uadray.methods.network import OUTPUT_RANGE

MAX_VOXELS = 2**22
"""Voxels whose latents are searched at a time."""


class AnoGANDetector(GANDetector):
    """A GAN, whose latent is searched by gradient for each image.

    Args:
        config: Its settings.
        shape: (Z, Y, X) of a volume.

    Raises:
        ConfigError: a side is not divisible by 2 for each strided convolution.
    """

    def __init__(self, config: AnoGAN, shape: tuple[int, int, int]) -> None:
        super().__init__(config, shape)
        self.config = config

    def misfit(self, image: Tensor, z: Tensor) -> Tensor:
        """What the search descends, (B,): residual and difference of features, both summed.

        Args:
            image: (B, 1, *spatial).
            z: (B, latent_size).
        """
        made, share = self.generator(z), self.config.feature_share
        residual = (image - made).abs().flatten(1).sum(1)
        features = self.critic.features(image) - self.critic.features(made)
        return (1 - share) * residual + share * features.float().abs().sum(1)

    def search(self, image: Tensor) -> Tensor:
        """The latent of each image, (B, latent_size), from the origin; no number is drawn."""
        # Scoring runs in inference mode, whose tensors know no gradient.
        with torch.inference_mode(False), torch.enable_grad():
            image = image.detach().clone()
            z = torch.zeros(
                len(image), self.config.latent_size, device=image.device, requires_grad=True
            )
            # Adam looks at each number for itself, so that images do not see each other.
            optimizer = torch.optim.Adam([z], lr=self.config.search_rate)
            for _ in range(self.config.search_steps):
                (z.grad,) = torch.autograd.grad(self.misfit(image, z).sum(), z)
                optimizer.step()
        return z.detach()

    def reconstruct(self, x_BCZYX: Tensor) -> Tensor:
        """What the generator makes of the latent found, in [0, 1]; 2D slice by slice."""
        return in_pieces(
            lambda x: self.generator(self.search(x)).clamp(*OUTPUT_RANGE),
            x_BCZYX,
            self.ndim,
            MAX_VOXELS,
        )
