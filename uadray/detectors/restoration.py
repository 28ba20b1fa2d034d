"""Restoration: the healthy image that is most probable given the image, found by gradient.

Chen, You, Tezcan and Konukoglu 2020, the `VAE (rest.)` and `GMVAE (rest.)` of Meissen 2021,
table 2. The posterior of the healthy image y given the image x is taken as

    log p(y | x) = ELBO(y) - w TV(x - y) + constant

so that y keeps to what the network knows, and differs from x by patches rather than by speckle.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from uadray.detectors.base import GradientDetector, in_pieces
from uadray.methods.network import OUTPUT_RANGE
from uadray.methods.restoration import Restore

if TYPE_CHECKING:
    _Base = GradientDetector
else:
    _Base = object

Energy = Callable[[Tensor], Tensor]
"""The negative ELBO of each image, (B,), of (B, 1, *spatial)."""

MAX_VOXELS = 2**22
"""Voxels that are restored at a time: 16 volumes of 64^3, or 64 slices of 256 x 256. Samples do not
see each other, so that it bounds the memory alone."""


def total_variation(image: Tensor) -> Tensor:
    """Sum of the absolute differences between neighbours along each axis, (B,).

    Args:
        image: (B, 1, *spatial).
    """
    axes = range(2, image.ndim)
    return sum(
        (image.diff(dim=axis).abs().flatten(1).sum(1) for axis in axes),
        start=image.new_zeros(len(image)),
    )


def restore(energy: Energy, image: Tensor, weight: Tensor, config: Restore) -> Tensor:
    """Descend from the image to its restoration.

    Inside the brain alone: what is background stays 0. No number is drawn, so that the same image
    gives the same restoration, whatever else is in the batch.

    Args:
        energy: The negative ELBO.
        image: (B, 1, *spatial) in [0, 1], background 0.
        weight: Of the total variation, (B,): one a sample.
        config: Steps, their size, and the bound of the gradient.

    Returns:
        (B, 1, *spatial) in [0, 1].
    """
    # Scoring runs in inference mode, whose tensors know no gradient.
    with torch.inference_mode(False), torch.enable_grad():
        image, weight = image.detach().clone(), weight.detach().clone()
        brain, restored = image > 0, image
        for step in range(config.steps):
            restored = restored.detach().requires_grad_()
            total = energy(restored) + weight * total_variation(image - restored)
            (gradient,) = torch.autograd.grad(total.sum(), restored)
            size = config.first_step_size if step < config.first_steps else config.step_size
            bounded = gradient.clamp(-config.clip, config.clip)
            restored = restored.detach() - size * bounded * brain
    return restored.detach().clamp(*OUTPUT_RANGE)


class RestorationMixin(_Base):
    """Gives a network with an ELBO a restoration in place of its reconstruction.

    The weight of the total variation is a buffer, which `calibrate` sets behind the last epoch.
    """

    tv_weight: Tensor
    restore_config: Restore
    calibrates = True

    def init_restoration(self, config: Restore) -> None:
        """Register the buffer; called behind `nn.Module.__init__`."""
        self.restore_config, self.calibration_volumes = config, config.search_volumes
        self.register_buffer("tv_weight", torch.tensor(float(config.tv_weights[0])))

    @abstractmethod
    def energy(self, image: Tensor) -> Tensor:
        """The negative ELBO of each sample with its noise at the mean, (B,)."""

    def reconstruct(self, x_BCZYX: Tensor) -> Tensor:
        """The restoration, 2D slice by slice."""
        return self.restored(x_BCZYX, self.tv_weight)

    def restored(self, x_BCZYX: Tensor, weight: Tensor) -> Tensor:
        """The restoration with another weight of the total variation, a scalar."""

        def run(samples: Tensor) -> Tensor:
            weights = weight.expand(len(samples))
            return restore(self.energy, samples, weights, self.restore_config)

        return in_pieces(run, x_BCZYX, self.ndim, MAX_VOXELS)

    def held_out_error(self, x_BCZYX: Tensor) -> Tensor:
        """Of the network's plain reconstruction: epochs are many, and a restoration takes long."""
        error, brain = (x_BCZYX - super().reconstruct(x_BCZYX).float()).abs(), x_BCZYX > 0
        return torch.stack([error[brain].double().sum(), brain.double().sum()])

    def calibrate(self, volumes: Iterable[Tensor], total: Callable[[Tensor], Tensor]) -> None:
        """Choose the weight of the total variation by healthy volumes.

        The original takes the weight whose restorations of healthy images change least, of 20
        between 0 and 3.8. The larger the weight, the less anything changes, lesions included,
        until the descent's own zigzag outweighs that: where the change is least, lesions hardly
        change either. So the smallest weight is taken here whose change exceeds the least by at
        most `tolerance` of the span between the most and the least. One weight alone is taken as
        it is.

        Args:
            volumes: Healthy (B, 1, Z, Y, X) of this worker.
            total: Sum over the workers.
        """
        candidates = torch.tensor(self.restore_config.tv_weights, device=self.tv_weight.device)
        if len(candidates) == 1:
            return
        sums = torch.zeros(len(candidates) + 1, dtype=torch.float64)
        for x in volumes:
            brain = x > 0
            for number, weight in enumerate(candidates):
                change = (self.restored(x, weight) - x).abs()
                sums[number] += change[brain].double().sum().cpu()
            sums[-1] += brain.sum().cpu()
        sums = total(sums)
        self.tv_weight.copy_(candidates[choose(sums[:-1] / sums[-1], self.restore_config)])


def choose(change: Tensor, config: Restore) -> int:
    """Number of the smallest weight whose healthy change is near the least.

    Args:
        change: Mean absolute change of healthy brain voxels by candidate, ascending weights, (N,).
        config: The tolerance.
    """
    least, most = change.min(), change.max()
    near = change <= least + config.tolerance * (most - least)
    return int(near.nonzero()[0, 0])
