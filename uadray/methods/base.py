"""What every method is: a module that turns volumes and brain masks into anomaly maps.

Fitted state lives in parameters and buffers alone, so that one safetensors file holds any method.
Shape suffixes: B batch, C channel, Z axial plane, Y row, X column.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, final

from uadray.errors import EvaluationError
from uadray.lazy import Module, Tensor, nn, torch
from uadray.methods.blocks import OUTPUT_RANGE
from uadray.methods.settings import Learned, MethodSettings

Shape = tuple[int, int, int]
"""(Z, Y, X) of a volume."""

Losses = dict[str, Tensor]
"""What `forward` gives."""


class Masked(NamedTuple):
    """Volumes and where their brains are."""

    x: Tensor
    """(B, 1, Z, Y, X) in [0, 1]."""

    brain: Tensor
    """(B, Z, Y, X) bool."""


class Detection(NamedTuple):
    """What a method makes of volumes."""

    scores: Tensor
    """(B, Z, Y, X) in the method's `score_range`. What lies outside the brain has no meaning."""

    reconstruction: Tensor | None = None
    """(B, C, Z, Y, X) in [0, 1]; None where the scores are made without one."""


def check_detection(
    detector: "Detector", found: object, x_BCZYX: Tensor, brain_BZYX: Tensor
) -> None:
    """Refuse what a detector makes of volumes if it is not what it says.

    Raises:
        EvaluationError: the map or the reconstruction has another shape than the volumes, or a
            map of another package's method is not finite inside the brain or leaves the
            `score_range`.
    """
    name = f"the map of {type(detector).__name__}"
    if not isinstance(found, Detection):
        raise EvaluationError(f"{name}: expected a Detection, was {type(found).__name__}")
    scores, output = found.scores, found.reconstruction
    if scores.shape != brain_BZYX.shape or not scores.is_floating_point():
        raise EvaluationError(
            f"{name} must have floats of the volumes' shape {tuple(brain_BZYX.shape)}, was "
            f"{scores.dtype} {tuple(scores.shape)}"
        )
    if output is not None and output.shape != x_BCZYX.shape:
        raise EvaluationError(
            f"the reconstruction of {type(detector).__name__} must have the volumes' shape "
            f"{tuple(x_BCZYX.shape)}, was {tuple(output.shape)}"
        )
    inside = scores[brain_BZYX]
    if not len(inside):
        return
    if getattr(getattr(type(detector), "Settings", None), "package", None) is None:
        return  # ours are cut to their range where that is meant; quantising refuses NaN by subject
    if not bool(inside.isfinite().all()):
        raise EvaluationError(f"{name} must be finite inside the brain; it has NaN or infinity")
    (low, high), (least, most) = detector.score_range, (float(one) for one in inside.aminmax())
    slack = 1e-4 * (high - low)
    if least < low - slack or most > high + slack:
        raise EvaluationError(
            f"{name} must be in its score_range {low:g} to {high:g} inside the brain, was "
            f"{least:g} to {most:g}: state the range that it has, since scores are cut to it"
        )


class Detector(Module, ABC):
    """A method, made of its settings and of the shape of the volumes.

    Scores are 0 or more; higher means more anomalous.
    """

    Settings: ClassVar[type[MethodSettings]]
    """Its settings: a frozen dataclass."""

    score_range: tuple[float, float] = (0.0, 1.0)
    """Stated range of the scores; kept scores are fixed point over it and clipped to it."""

    has_reconstruction: bool = False
    """Whether `reconstruct` gives the healthy version of its input."""

    @classmethod
    def is_fitted(cls, settings: MethodSettings) -> bool:
        """Whether it learns from healthy volumes; others score the same on any cohort."""
        return False

    @abstractmethod
    def detect(self, x_BCZYX: Tensor, brain_BZYX: Tensor) -> Detection:
        """Anomaly maps, with the reconstructions that they are made from.

        Args:
            x_BCZYX: Volumes in [0, 1] with background 0, float32, one channel.
            brain_BZYX: Brain masks, bool.
        """

    @final
    def anomaly_map(self, x_BCZYX: Tensor, brain_BZYX: Tensor) -> Tensor:
        """The scores of `detect`."""
        return self.detect(x_BCZYX, brain_BZYX).scores

    def reconstruct(self, x_BCZYX: Tensor) -> Tensor:
        """The healthy version of a volume, (B, C, Z, Y, X) in [0, 1].

        Raises:
            TypeError: the method has none.
        """
        raise TypeError(f"{type(self).__name__} does not reconstruct")

    def reconstruct_within(self, x_BCZYX: Tensor, brain_BZYX: Tensor) -> Tensor:
        """The same by a method that asks where the brain is; by default `reconstruct`.

        A voxel of the brain may be 0, so that the mask decides and not the intensity. A method that
        overrides this takes in `reconstruct` what is above 0 for the brain.
        """
        return self.reconstruct(x_BCZYX)

    def held_out_error(self, x_BCZYX: Tensor, brain_BZYX: Tensor) -> Tensor:
        """Error on healthy volumes that were not learned from; smaller is better.

        Returns:
            Its sum and the number of what it is summed over, (2,) float64. By default
            |x - reconstruction| over the voxels of the brain.
        """
        error = (x_BCZYX - self.reconstruct_within(x_BCZYX, brain_BZYX).float()).abs()
        return sum_within(error, brain_BZYX[:, None])


class ReconstructionDetector(Detector):
    """Scores by the residual |x - reconstruction| (Bengs 2021, section 2.3)."""

    has_reconstruction = True

    def detect(self, x_BCZYX: Tensor, brain_BZYX: Tensor) -> Detection:
        """The absolute residual, in intensity units."""
        output = self.reconstruct_within(x_BCZYX, brain_BZYX)
        return Detection((x_BCZYX - output).abs()[:, 0], output)


@dataclass(frozen=True, kw_only=True)
class Player:
    """Parameters with an optimiser of their own."""

    name: str = ""
    """Empty where it is the only one."""
    parameters: "tuple[nn.Parameter, ...]"
    """What it changes; all others stand still on its turn, and need no gradient."""
    learning_rate: float = 0.0
    """0 takes `fit.learning_rate`."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of Adam."""
    optimizer: Literal["adam", "rmsprop"] = "adam"
    """Kind of its optimiser."""
    updates: int = 1
    """Steps on each batch, each with fresh noise."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of a fit's epochs, in which some of the players act.

    The epoch that is kept is the best of the last phase so far; a later phase goes on from the
    weights of the last epoch of the one before.
    """

    name: str = ""
    """Empty where it is the only one."""
    players: tuple[str, ...] = ("",)
    """Who acts on each batch, in this order."""
    share: float = 1.0
    """Of `fit.epochs`; the shares of all phases add up to 1."""
    measure: str = "reconstruction"
    """What `held_out_error` gives in this phase, for the record `validation/MEASURE`. Empty where
    nothing on held-out volumes distinguishes epochs: the newest is kept, without validation."""


class GradientDetector(ReconstructionDetector):
    """Learns by gradient: `forward` gives the loss, so that DDP sees it."""

    config: Learned

    ndim: int
    """2: samples are axial slices (B, 1, Y, X); 3: volumes (B, 1, Z, Y, X)."""

    grid: tuple[int, ...]
    """Shape of the coarsest feature maps; by default that of a sample."""

    num_noise: int = 0
    """Standard normal numbers that `forward` takes for a sample. All that is random comes from
    them, so that a resumed fit repeats the undisturbed one."""

    phase: str = ""
    """Name of the phase that a fit is in."""

    calibrates: bool = False
    """Whether `calibrate` has buffers to set after the last epoch."""

    calibration_volumes: int = 0
    """Healthy volumes that it takes, over all workers; 0 takes the whole validation part."""

    @classmethod
    def is_fitted(cls, settings: MethodSettings) -> bool:
        """It does."""
        return True

    def __init__(self, config: Any, shape: Shape) -> None:
        super().__init__()
        self.config, self.ndim = config, config.ndim
        self.grid = shape[3 - config.ndim :]

    def players(self) -> tuple[Player, ...]:
        """Who learns; by default one that changes all parameters."""
        return (Player(parameters=tuple(self.parameters())),)

    def phases(self) -> tuple[Phase, ...]:
        """The stretches of a fit; by default one in which all players act."""
        return (Phase(players=tuple(player.name for player in self.players())),)

    def calibrate(self, volumes: Iterable[Masked], total: Callable[[Tensor], Tensor]) -> None:
        """Set buffers by healthy volumes that were not learned from, at the epoch that is kept.

        Args:
            volumes: Of this worker, on the detector's device.
            total: Sum over the workers, who all call it as often.
        """

    def healthy(self, x: Tensor) -> Tensor:
        """The healthy version of samples, (B, 1, *spatial), not clamped."""
        raise NotImplementedError(f"{type(self).__name__} must define healthy or reconstruct")

    def reconstruct(self, x_BCZYX: Tensor) -> Tensor:
        """`healthy` of volumes, 2D slice by slice, clamped to [0, 1]."""
        return by_samples(lambda x: self.healthy(x).clamp(*OUTPUT_RANGE), x_BCZYX, self.ndim)

    @abstractmethod
    def forward(self, x_in: Tensor, target: Tensor, noise: Tensor, player: str = "") -> Losses:
        """Loss terms of a batch, each a mean over the samples.

        Args:
            x_in: Input, erased or not, (B, 1, *spatial).
            target: The clean image, the same shape.
            noise: Standard normal, (B, num_noise).
            player: Whose turn it is; only given where there are several.

        Returns:
            `loss`, which is minimised, and its parts for the record, by names of its own but for
            three: `reconstruction`, the mean of |output - target| over all voxels; `kl`, the
            divergence of a sample's latent; and `kl_units`, that of each unit of it.
        """


class StreamDetector(Detector):
    """Learns in one pass over the healthy volumes, in any number of calls."""

    @classmethod
    def is_fitted(cls, settings: MethodSettings) -> bool:
        """It does."""
        return True

    @abstractmethod
    def update(self, x_BZYX: Tensor) -> None:
        """Take in healthy volumes, float32."""

    @abstractmethod
    def finish(self) -> None:
        """Derive what `detect` needs from all that was taken in."""


def slices_as_batch(x_BCZYX: Tensor) -> Tensor:
    """Axial slices as samples, (B * Z, C, Y, X)."""
    return x_BCZYX.transpose(1, 2).flatten(0, 1)


def batch_as_slices(x_NCYX: Tensor, num_volumes: int) -> Tensor:
    """The inverse of `slices_as_batch`."""
    return x_NCYX.unflatten(0, (num_volumes, -1)).transpose(1, 2)


def by_samples(function: Callable[[Tensor], Tensor], x_BCZYX: Tensor, ndim: int) -> Tensor:
    """A function of samples applied to volumes: to their axial slices where `ndim` is 2."""
    if ndim == 3:
        return function(x_BCZYX)
    return batch_as_slices(function(slices_as_batch(x_BCZYX)), x_BCZYX.shape[0])


def with_brain(x_BCZYX: Tensor, brain_BZYX: Tensor) -> Tensor:
    """Volumes with their brain as a second channel, for functions of samples."""
    return torch.cat([x_BCZYX, brain_BZYX[:, None].to(x_BCZYX.dtype)], 1)


def sum_within(values: Tensor, inside: Tensor) -> Tensor:
    """The sum of what is inside, and its number, (2,) float64."""
    if values.is_cuda:  # to pick out what is inside would wait for the device
        kept = values.double().masked_fill(~inside, 0)
        return torch.stack([kept.sum(), inside.expand_as(values).sum().double()])
    return torch.stack([values[inside].double().sum(), inside.double().sum()])


def in_pieces(
    function: Callable[[Tensor], Tensor],
    x_BCZYX: Tensor,
    ndim: int,
    most_voxels: int,
    num_out: int = 1,
) -> Tensor:
    """`by_samples` for what takes long or much memory: samples with brain alone, a few at a time.

    Args:
        function: Of (N, C, *spatial), to (N, num_out, *spatial); samples do not see each other.
        x_BCZYX: Volumes, perhaps `with_brain`.
        ndim: 2 or 3.
        most_voxels: Of the samples that are given at a time; one sample at least is.
        num_out: Channels of what the function gives.

    Returns:
        (B, num_out, Z, Y, X); 0 where a sample holds no brain.
    """

    def run(samples: Tensor) -> Tensor:
        output = samples.new_zeros(len(samples), num_out, *samples.shape[2:])
        holds_brain = samples.flatten(1).any(1).nonzero()[:, 0]
        for part in holds_brain.split(max(1, most_voxels // samples[0, 0].numel())):
            if len(part):  # not every function takes no samples
                output[part] = function(samples[part])
        return output

    return by_samples(run, x_BCZYX, ndim)


def num_parameters(detector: Module) -> int:
    """Learned numbers, fitted buffers included."""
    return sum(t.numel() for t in detector.state_dict().values() if isinstance(t, torch.Tensor))
