"""Plain methods that stand beside every other: they cost nothing and often win."""

import numpy as np
import torch
from sklearn.decomposition import IncrementalPCA
from torch import Tensor

from uadray import config
from uadray.detectors.base import Detection, Detector, ReconstructionDetector, StreamDetector
from uadray.errors import ConfigError
from uadray.methods.network import OUTPUT_RANGE


class IntensityDetector(Detector):
    """The intensity itself, x or 1 - x."""

    def __init__(self, settings: config.Intensity, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self._dark = settings.polarity == "dark"

    def detect(self, x_BCZYX: Tensor, brain_BZYX: Tensor) -> Detection:
        """x, or 1 - x."""
        x = x_BCZYX[:, 0]
        return Detection(1 - x if self._dark else x)


class HistEqDetector(Detector):
    """Histogram-equalised intensity (Meissen 2021, section 3.3).

    The paper names 256 bins; its code equalises integer intensities with one bin a value, which is
    the empirical distribution function inside the brain. That is computed here: the share of the
    brain's voxels that are not brighter.
    """

    def __init__(self, settings: config.HistEq, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self._dark = settings.polarity == "dark"

    def detect(self, x_BCZYX: Tensor, brain_BZYX: Tensor) -> Detection:
        """Rank in (0, 1], or one minus it; 0 outside the brain."""
        out = torch.zeros(brain_BZYX.shape, dtype=torch.float64, device=x_BCZYX.device)
        for sample, (x, brain) in enumerate(zip(x_BCZYX[:, 0], brain_BZYX, strict=True)):
            values = x[brain]
            rank = torch.searchsorted(values.sort().values, values, right=True).double()
            share = rank / max(1, len(values))
            out[sample][brain] = 1 - share if self._dark else share
        return Detection(out)


class MeanImageDetector(ReconstructionDetector, StreamDetector):
    """Distance to the mean healthy image."""

    mean: Tensor
    total: Tensor

    def __init__(self, settings: config.MeanImage, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self._sum, self._count = np.zeros(shape), 0

    def update(self, x_BZYX: Tensor) -> None:
        """Add to the sum."""
        self._sum += x_BZYX.double().sum(0).cpu().numpy()
        self._count += len(x_BZYX)

    def finish(self) -> None:
        """Divide by the number."""
        self.mean.copy_(torch.from_numpy(self._sum / self._count))

    def reconstruct(self, x_BCZYX: Tensor) -> Tensor:
        """The mean image, inside this subject's brain."""
        return self.mean * (x_BCZYX > 0)


class ZScoreDetector(StreamDetector):
    """Distance to the mean healthy image in standard deviations of the voxel."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, settings: config.ZScore, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.score_range = (0.0, settings.max_score)
        self._floor = settings.min_deviation
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("deviation", torch.ones(shape))
        self._sums, self._count = np.zeros((2, *shape)), 0

    def update(self, x_BZYX: Tensor) -> None:
        """Add to the sums of x and x^2."""
        x = x_BZYX.double()
        self._sums += torch.stack([x.sum(0), x.square().sum(0)]).cpu().numpy()
        self._count += len(x)

    def finish(self) -> None:
        """Mean and deviation; the deviation of the sample, with a floor."""
        mean = self._sums[0] / self._count
        variance = (self._sums[1] / self._count - mean**2) * self._count / max(1, self._count - 1)
        self.mean.copy_(torch.from_numpy(mean))
        self.deviation.copy_(torch.from_numpy(np.sqrt(variance.clip(self._floor**2))))

    def detect(self, x_BCZYX: Tensor, brain_BZYX: Tensor) -> Detection:
        """|x - mean| / deviation, clipped to the stated range."""
        score = (x_BCZYX[:, 0] - self.mean).abs() / self.deviation
        return Detection(score.clamp_max(self.score_range[1]))


class PCADetector(ReconstructionDetector, StreamDetector):
    """Residual of a linear reconstruction from the leading principal components of volumes."""

    mean: Tensor
    components: Tensor

    def __init__(self, settings: config.PCA, shape: tuple[int, int, int]) -> None:
        super().__init__()
        num = settings.num_components
        self.register_buffer("mean", torch.zeros(int(np.prod(shape))))
        self.register_buffer("components", torch.zeros(num, int(np.prod(shape))))
        self._pca = IncrementalPCA(n_components=num)
        self._pending: list[np.ndarray] = []

    def update(self, x_BZYX: Tensor) -> None:
        """Collect volumes: scikit-learn needs a first batch of at least as many as components."""
        self._pending.append(x_BZYX.flatten(1).cpu().numpy().astype(np.float32))
        # Larger batches lose less of what truncation between batches drops.
        if sum(len(p) for p in self._pending) >= 4 * self._pca.n_components:
            self._flush()

    def _flush(self) -> None:
        self._pca.partial_fit(np.concatenate(self._pending))
        self._pending = []

    def finish(self) -> None:
        """Fit on what is left and keep mean and components.

        Raises:
            ConfigError: there are fewer volumes than components.
        """
        seen = getattr(self._pca, "n_samples_seen_", 0) + sum(len(p) for p in self._pending)
        if seen < self._pca.n_components:
            raise ConfigError(
                f"PCA-{self._pca.n_components} needs at least as many training volumes, got "
                f"{seen}: use a smaller n"
            )
        if self._pending:
            self._flush()
        self.mean.copy_(torch.from_numpy(self._pca.mean_))
        self.components.copy_(torch.from_numpy(self._pca.components_))

    def reconstruct(self, x_BCZYX: Tensor) -> Tensor:
        """Projection on the components, clamped to [0, 1]."""
        centred = x_BCZYX.flatten(1) - self.mean
        output = self.mean + (centred @ self.components.T) @ self.components
        return output.clamp(*OUTPUT_RANGE).reshape(x_BCZYX.shape)
