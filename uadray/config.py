"""Experiments: everything that decides a result, their names, and their fingerprints.

An experiment is named as in the papers, `experiment("3D-Cube-n")`, and changed field by field.
"""

import dataclasses
import hashlib
import json
import re
import types
import typing
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from uadray.errors import ConfigError


def _check(holds: bool, name: str, expected: str, got: object) -> None:
    if not holds:
        raise ConfigError(f"{name} must be {expected}, was {got!r}")


@dataclass(frozen=True, kw_only=True)
class ErasingConfig:
    """Spatial erasing of the input; the target stays clean (Bengs 2021, section 2.2)."""

    strategy: Literal["none", "cube", "multi-cube", "half-volume"] = "none"
    """`cube` is the paper's patch in 2D, `half-volume` its half-slice."""
    fill: Literal["zero", "noise"] = "noise"
    """What erased voxels become: 0, or values drawn from the image's own brain intensities."""
    probability: float = 0.5
    """Share of the samples that are erased (Bengs 2021, section 2.2)."""
    min_share: float = 0.01
    """Smallest erased share of the input's voxels, before clipping at the border (cube, multi)."""
    max_share: float = 0.25
    """Largest erased share of the input's voxels (cube, multi)."""
    max_regions: int = 10
    """Most regions of multi-cube."""
    max_slices_share: float = 0.5
    """Most successive axial slices of half-volume as a share of all: 32 of the paper's 64."""

    def __post_init__(self) -> None:
        _check(0 <= self.probability <= 1, "erasing.probability", "in [0, 1]", self.probability)
        _check(
            0 < self.min_share <= self.max_share <= 1,
            "erasing.min_share and max_share",
            "0 < min_share <= max_share <= 1",
            (self.min_share, self.max_share),
        )
        _check(self.max_regions >= 1, "erasing.max_regions", ">= 1", self.max_regions)
        _check(
            0 < self.max_slices_share <= 1,
            "erasing.max_slices_share",
            "in (0, 1]",
            self.max_slices_share,
        )


@dataclass(frozen=True, kw_only=True)
class VAE:
    """Bengs' variational autoencoder (section 2.2, figure 2), the same in 2D and 3D."""

    ndim: Literal[2, 3] = 3
    """2: axial slices; 3: whole volumes."""
    latent_size: int = 512
    """Length of z: 128 in 2D, 512 in 3D (section 2.2)."""
    widths: tuple[int, ...] = (32, 64, 128)
    """Feature maps of the convolutions, kernel 5 stride 2 (figure 2)."""
    bottleneck: int = 16
    """Feature maps of the 1x1 convolution before the dense layer (figure 2)."""
    kl_weight: float = 1.0
    """Weight of the KL term beside the L1 term, both summed over their elements."""
    norm: Literal["none", "batch", "group"] = "group"
    """Normalisation behind each convolution; the paper names none. On phantoms at 32^3 the net
    without one learned several times slower; groups of channels (8 groups) did as well as batches,
    and do not depend on what else is in a worker's batch."""
    slope: float = 0.01
    """Negative slope of the leaky ReLU; the paper names no activation."""
    reduction: Literal["sum", "mean"] = "sum"
    """How both terms add up: `sum` over voxels and over latents, or `mean` over each, which weighs
    the KL term by voxels / latents more."""
    output: Literal["linear", "sigmoid"] = "linear"
    """What the decoder ends in while it learns; a linear one is clamped to [0, 1] to score."""

    def __post_init__(self) -> None:
        _check(self.latent_size >= 1, "method.latent_size", ">= 1", self.latent_size)
        _check(self.kl_weight >= 0, "method.kl_weight", ">= 0", self.kl_weight)
        _check(0 <= self.slope < 1, "method.slope", "in [0, 1)", self.slope)
        _check(
            len(self.widths) >= 1 and all(w % 8 == 0 and w > 0 for w in self.widths),
            "method.widths",
            "multiples of 8",
            self.widths,
        )


@dataclass(frozen=True, kw_only=True)
class Intensity:
    """The intensity itself as the anomaly score: a baseline that learns nothing."""

    polarity: Literal["bright", "dark"] = "bright"
    """`bright` scores x, `dark` scores 1 - x."""


@dataclass(frozen=True, kw_only=True)
class HistEq:
    """Histogram-equalised intensity (Meissen 2021, section 3)."""

    polarity: Literal["bright", "dark"] = "bright"
    """`bright` scores the rank of x in its brain, `dark` one minus it."""


@dataclass(frozen=True, kw_only=True)
class MeanImage:
    """Distance to the mean healthy image."""


@dataclass(frozen=True, kw_only=True)
class ZScore:
    """Distance to the mean healthy image in standard deviations of each voxel."""

    max_score: float = 10.0
    """Scores are clipped here, in standard deviations; the upper end of the kept range."""
    min_deviation: float = 0.02
    """Floor of the deviation, in intensity units, so that constant voxels do not explode."""

    def __post_init__(self) -> None:
        _check(self.max_score > 0, "method.max_score", "> 0", self.max_score)
        _check(self.min_deviation > 0, "method.min_deviation", "> 0", self.min_deviation)


@dataclass(frozen=True, kw_only=True)
class PCA:
    """Residual of a linear principal component reconstruction of whole volumes."""

    num_components: int = 16
    """Components kept."""

    def __post_init__(self) -> None:
        _check(self.num_components >= 1, "method.num_components", ">= 1", self.num_components)


Method = VAE | Intensity | HistEq | MeanImage | ZScore | PCA
METHODS: tuple[type, ...] = typing.get_args(Method)


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How a detector is fitted (Bengs 2021, section 2.3)."""

    epochs: int = 100
    """Passes over the training part. The best by healthy validation reconstruction is kept; the
    paper tunes this number without giving it."""
    batch_size: int = 32
    """Samples in a step over all workers: volumes in 3D, slices in 2D."""
    data_share: float = 1.0
    """Share of the training subjects that is learned from, in (0, 1], for studies of the size of
    the data: the seed chooses, each scanner gives its part, and a smaller share is a subset of a
    larger one. Validation stays whole."""
    learning_rate: float = 1e-3
    """Of Adam."""
    clip_norm: float = 1.0
    """Longest gradient of a step, over all parameters; longer ones are scaled down. The paper names
    none; without one a fit of 300 epochs on 29 scans diverged at epoch 153."""
    seed: int = 0
    """Decides weights, order, erasing and the latent's noise."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the convolutions and matrix products; weights and losses stay float32. `auto` takes
    bfloat16 where the hardware multiplies it natively."""
    deterministic: bool = False
    """Only algorithms on a GPU that give the same bits every time, at a cost in speed. A CPU with
    the same number of threads and workers always does."""
    compile: bool = False
    """Compile the network with `torch.compile`; the first epoch then takes a minute longer."""
    residency: Literal["auto", "stream", "device"] = "auto"
    """`stream`: every epoch from the store; `device`: streamed once, then held in the device's
    memory; `auto`: `device` where it takes at most a quarter of that memory. The batches are the
    same."""
    checkpoint_every: int = 1
    """Epochs between checkpoints; the best epoch is chosen among those that have one."""
    patience: int = 0
    """Stop after so many epochs without a better validation reconstruction; 0 never stops."""

    def __post_init__(self) -> None:
        _check(self.epochs >= 1, "fit.epochs", ">= 1", self.epochs)
        _check(self.batch_size >= 1, "fit.batch_size", ">= 1", self.batch_size)
        _check(0 < self.data_share <= 1, "fit.data_share", "in (0, 1]", self.data_share)
        _check(self.learning_rate > 0, "fit.learning_rate", "> 0", self.learning_rate)
        _check(self.clip_norm > 0, "fit.clip_norm", "> 0", self.clip_norm)
        _check(self.seed >= 0, "fit.seed", ">= 0", self.seed)
        _check(self.checkpoint_every >= 1, "fit.checkpoint_every", ">= 1", self.checkpoint_every)
        _check(self.patience >= 0, "fit.patience", ">= 0", self.patience)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that decides a fitted detector, given a cohort."""

    method: Method
    """The detector and its own settings."""
    erasing: ErasingConfig = field(default_factory=ErasingConfig)
    """Only methods that learn by gradient erase."""
    fit: FitConfig = field(default_factory=FitConfig)
    """How it is fitted."""

    def __post_init__(self) -> None:
        if self.erasing.strategy != "none" and not isinstance(self.method, VAE):
            raise ConfigError(
                f"erasing.strategy is {self.erasing.strategy!r}, but {type(self.method).__name__} "
                "does not learn from erased input: set it to 'none'"
            )

    @property
    def name(self) -> str:
        """The paper's name, such as `3D-Cube-n`, `HistEq` or `PCA-16`."""
        method = self.method
        if isinstance(method, VAE):
            if self.erasing.strategy == "none":
                return f"{method.ndim}D-None"
            label = _LABELS[method.ndim][self.erasing.strategy]
            return f"{method.ndim}D-{label}-{'n' if self.erasing.fill == 'noise' else '0'}"
        if isinstance(method, PCA):
            return f"PCA-{method.num_components}"
        dark = isinstance(method, (Intensity, HistEq)) and method.polarity == "dark"
        return type(method).__name__ + ("-dark" if dark else "")

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits over all fields."""
        text = json.dumps(to_json(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


_LABELS: dict[int, dict[str, str]] = {
    2: {"cube": "Patch", "multi-cube": "Multi-Patch", "half-volume": "Half-Slice"},
    3: {"cube": "Cube", "multi-cube": "Multi-Cube", "half-volume": "Half-Volume"},
}

BENGS_TABLE_1 = tuple(
    name
    for label in ("None", *_LABELS[3])
    for fill in ("", "0", "n")
    if (label == "None") == (fill == "")
    for name in (
        [f"{d}D-None" for d in (2, 3)]
        if label == "None"
        else [f"{d}D-{_LABELS[d][label]}-{fill}" for d in (2, 3)]
    )
)
"""The fourteen configurations of Bengs 2021, table 1."""

BASELINES = (
    "Intensity",
    "Intensity-dark",
    "HistEq",
    "HistEq-dark",
    "MeanImage",
    "ZScore",
    "PCA-16",
)
"""The plain methods that stand beside every other."""


def experiment(name: str) -> Experiment:
    """The experiment of that name with its defaults.

    Raises:
        ConfigError: there is none of that name.
    """
    if found := re.fullmatch(r"([23])D-None", name):
        return Experiment(method=_vae(int(found[1])))
    if found := re.fullmatch(r"([23])D-([A-Za-z-]+)-([0n])", name):
        ndim = int(found[1])
        strategies = {label: strategy for strategy, label in _LABELS[ndim].items()}
        if found[2] in strategies:
            erasing = ErasingConfig(
                strategy=strategies[found[2]],  # type: ignore[arg-type]
                fill="noise" if found[3] == "n" else "zero",
            )
            return Experiment(method=_vae(ndim), erasing=erasing)
    if found := re.fullmatch(r"PCA-(\d+)", name):
        return Experiment(method=PCA(num_components=int(found[1])))
    plain: dict[str, Method] = {
        "Intensity": Intensity(),
        "Intensity-dark": Intensity(polarity="dark"),
        "HistEq": HistEq(),
        "HistEq-dark": HistEq(polarity="dark"),
        "MeanImage": MeanImage(),
        "ZScore": ZScore(),
    }
    if name in plain:
        return Experiment(method=plain[name])
    known = ", ".join((*BENGS_TABLE_1, *BASELINES))
    raise ConfigError(f"no experiment is named {name!r}; known are {known} (any n in PCA-n)")


def _vae(ndim: int) -> VAE:
    if ndim == 2:
        return VAE(ndim=2, latent_size=128)
    return VAE(ndim=3, latent_size=512)


def to_json(value: Any) -> Any:
    """A dataclass as a JSON value; a member of a union carries its class as `type`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return ({"type": type(value).__name__} if isinstance(value, METHODS) else {}) | fields
    if isinstance(value, (list, tuple)):
        return [to_json(v) for v in value]
    if isinstance(value, dict):
        return {k: to_json(v) for k, v in value.items()}
    return value


def from_json(kind: Any, value: Any) -> Any:
    """The inverse of `to_json`.

    Args:
        kind: The dataclass, or a type of one of its fields.
        value: What `to_json` gave.

    Raises:
        ConfigError: a field is unknown, so that no setting is lost in silence.
    """
    if isinstance(kind, types.UnionType):
        if not isinstance(value, dict):
            return value
        members = {t.__name__: t for t in typing.get_args(kind)}
        if value.get("type") not in members:
            raise ConfigError(f"type must be one of {sorted(members)}, was {value.get('type')!r}")
        return from_json(members[value["type"]], {k: v for k, v in value.items() if k != "type"})
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind)
        unknown = set(value) - {f.name for f in dataclasses.fields(kind)}
        if unknown:
            raise ConfigError(f"{kind.__name__} has no field {sorted(unknown)}")
        return kind(**{k: from_json(hints[k], v) for k, v in value.items()})
    if typing.get_origin(kind) is tuple:
        args = typing.get_args(kind)
        inner = args[0] if len(args) == 2 and args[1] is Ellipsis else None
        return tuple(from_json(inner or args[i], v) for i, v in enumerate(value))
    return value


def with_fit(base: Experiment, **changes: Any) -> Experiment:
    """`base` with fields of its fit changed."""
    return replace(base, fit=replace(base.fit, **changes))
