"""Plain methods that stand beside every other: they cost nothing and often win."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from uadray.errors import ConfigError
from uadray.lazy import Tensor, torch
from uadray.methods.base import Detection, Detector, ReconstructionDetector, Shape, StreamDetector
from uadray.methods.blocks import OUTPUT_RANGE
from uadray.methods.registry import method
from uadray.methods.settings import MethodSettings, check_limits

_EXACT = "256 bins in the text; the exact ranks here, as the study's code computes on integers."


@method("Intensity", source="plain", equation="s = x")
@method("Intensity-dark", source="plain", equation="s = 1 - x", settings={"polarity": "dark"})
class Intensity(Detector):
    """The intensity itself as the anomaly score: a baseline that learns nothing."""

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        polarity: Literal["bright", "dark"] = "bright"
        """`bright` scores x, `dark` scores 1 - x."""

        @property
        def label(self) -> str:
            """`Intensity` or `Intensity-dark`."""
            return "Intensity-dark" if self.polarity == "dark" else "Intensity"

    def __init__(self, config: Settings, shape: Shape) -> None:
        super().__init__()
        self._dark = config.polarity == "dark"

    def detect(self, x_BCZYX: Tensor, brain_BZYX: Tensor) -> Detection:
        """x, or 1 - x."""
        x = x_BCZYX[:, 0]
        return Detection(1 - x if self._dark else x)


@method(
    "HistEq",
    source="Meissen 2021, section 3",
    equation="s = share of the brain's voxels that are not brighter than x",
    deviations=_EXACT,
)
@method(
    "HistEq-dark",
    source="Meissen 2021, section 3, for dark lesions",
    equation="s = 1 - share of the brain's voxels that are not brighter than x",
    deviations=_EXACT,
    settings={"polarity": "dark"},
)
class HistEq(Detector):
    """Histogram-equalised intensity (Meissen 2021, section 3).

    The paper names 256 bins; its code equalises integer intensities with one bin a value, which is
    the empirical distribution function inside the brain. That is computed here: the share of the
    brain's voxels that are not brighter.
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        polarity: Literal["bright", "dark"] = "bright"
        """`bright` scores the rank of x in its brain, `dark` one minus it."""

        @property
        def label(self) -> str:
            """`HistEq` or `HistEq-dark`."""
            return "HistEq-dark" if self.polarity == "dark" else "HistEq"

    def __init__(self, config: Settings, shape: Shape) -> None:
        super().__init__()
        self._dark = config.polarity == "dark"

    def detect(self, x_BCZYX: Tensor, brain_BZYX: Tensor) -> Detection:
        """Rank in (0, 1], or one minus it; 0 outside the brain."""
        out = torch.zeros(brain_BZYX.shape, dtype=torch.float64, device=x_BCZYX.device)
        for sample, (x, brain) in enumerate(zip(x_BCZYX[:, 0], brain_BZYX, strict=True)):
            values = x[brain]
            rank = torch.searchsorted(values.sort().values, values, right=True).double()
            share = rank / max(1, len(values))
            out[sample][brain] = 1 - share if self._dark else share
        return Detection(out)


@method("MeanImage", source="plain", equation="s = abs(x - mean)")
class MeanImage(ReconstructionDetector, StreamDetector):
    """Distance to the mean healthy image."""

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        pass

    mean: Tensor

    def __init__(self, config: Settings, shape: Shape) -> None:
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
        """The mean image, where the volume is above 0."""
        return self.reconstruct_within(x_BCZYX, x_BCZYX[:, 0] > 0)

    def reconstruct_within(self, x_BCZYX: Tensor, brain_BZYX: Tensor) -> Tensor:
        """The mean image, inside this subject's brain."""
        return self.mean * brain_BZYX[:, None]


@method("ZScore", source="plain", equation="s = min(10, abs(x - mean) / max(deviation, 0.02))")
class ZScore(StreamDetector):
    """Distance to the mean healthy image in standard deviations of each voxel."""

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        max_score: float = 10.0
        """Scores are clipped here, in standard deviations; the upper end of the kept range."""
        min_deviation: float = 0.02
        """Floor of the deviation, in intensity units, so that constant voxels do not explode."""

        def __post_init__(self) -> None:
            check_limits(self, max_score="> 0", min_deviation="> 0")

    mean: Tensor
    deviation: Tensor

    def __init__(self, config: Settings, shape: Shape) -> None:
        super().__init__()
        self.score_range = (0.0, config.max_score)
        self._floor = config.min_deviation
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


@method(
    "PCA-16",
    source="plain",
    equation="s = abs(x - mean - projection of x - mean on 16 principal components)",
)
class PCA(ReconstructionDetector, StreamDetector):
    """Residual of a linear principal component reconstruction of whole volumes."""

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        num_components: int = 16
        """Components kept."""

        def __post_init__(self) -> None:
            check_limits(self, num_components=">= 1")

        @property
        def label(self) -> str:
            """`PCA-16`."""
            return f"PCA-{self.num_components}"

    mean: Tensor
    components: Tensor

    def __init__(self, config: Settings, shape: Shape) -> None:
        super().__init__()
        num = config.num_components
        self.register_buffer("mean", torch.zeros(int(np.prod(shape))))
        self.register_buffer("components", torch.zeros(num, int(np.prod(shape))))
        self._num, self._pending = num, list[np.ndarray]()

    @cached_property
    def _pca(self) -> Any:
        # Only a fit needs it, and it takes as long to import as torch.
        from sklearn.decomposition import IncrementalPCA

        return IncrementalPCA(n_components=self._num)

    def update(self, x_BZYX: Tensor) -> None:
        """Collect volumes: scikit-learn needs a first batch of at least as many as components."""
        self._pending.append(x_BZYX.flatten(1).cpu().numpy().astype(np.float32))
        # Larger batches lose less of what truncation between batches drops.
        if sum(len(p) for p in self._pending) >= 4 * self._num:
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
        if seen < self._num:
            raise ConfigError(
                f"PCA-{self._num} needs at least as many training volumes, got "
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
