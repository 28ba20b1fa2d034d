"""The papers' ways to evaluate, as data: grid, slices, post-processing, threshold rule, metrics.

A protocol gives the settings of an evaluation their defaults. `EvaluateConfig.of` takes them;
whatever the caller then changes is recorded beside the protocol's name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from uadray.config import from_json, to_json
from uadray.device import Device, gpus_each
from uadray.errors import ConfigError, EvaluationError
from uadray.methods.settings import check_finite
from uadray.metrics.settings import ComponentConfig, PostprocessConfig
from uadray.strata import By

Residual = Literal["absolute", "positive"]
"""|x - reconstruction|, or its positive part: what is brighter than its healthy version."""

SliceScore = Literal["sum", "mean"]
"""Of an axial slice: the sum of its brain's scores, the L1 distance where they are residuals (Bengs
2021, section 2.3), or their mean."""

Rule = Literal[
    "none",
    "bengs_bisection",
    "best_dice",
    "meissen_linear",
    "healthy_fpr_1",
    "healthy_fpr_5",
    "healthy_fpr_10",
    "percentile_98",
]
"""A rule of `thresholds.RULES`; `none` fits no threshold, and what needs one is not reported."""

ProtocolName = Literal[
    "bengs2021",
    "baur2018",
    "meissen2021-I",
    "meissen2021-II",
    "meissen2021-study",
    "behrendt2025",
    "frotscher2025",
    "frotscher2025-raw",
]
"""A key of `PROTOCOLS`."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a paper evaluates."""

    name: ProtocolName
    """Its key in `PROTOCOLS`."""

    source: str
    """Paper and sections."""

    grid: tuple[int, int, int] | None
    """(Z, Y, X) that a cohort must have, in voxels; None takes any grid."""

    plane_multiple: int = 0
    """Planes may also be of other sizes, if both sides are multiples of this; 0 refuses them."""

    slices: tuple[int, int] | None
    """Axial slices that are evaluated, [first, last), cut out after scoring; None takes all.
    They are those of the store's grid, where each brain lies in the middle of its box; the papers
    count in the space of the SRI24 atlas, so that they differ by how a brain lies in it."""

    prepare: str
    """Flags of `jobs/prepare.py` that prepare as the paper does, on the grid."""

    split: str = ""
    """Its flags for the parts: the papers without a fitting part test all subjects."""

    residual: Residual
    """Of methods that reconstruct."""

    postprocess: PostprocessConfig
    """What happens to the scores before they are kept."""

    components: ComponentConfig
    """Which small components are dropped."""

    threshold_rule: Rule
    """How the reported threshold is found."""

    metrics: tuple[str, ...]
    """What the paper reports, as keys of an evaluation's metrics."""

    slice_score: SliceScore = "sum"
    """What an axial slice is scored by."""

    def check_grid(self, shape: tuple[int, int, int], url: str) -> None:
        """Refuse a cohort whose grid is not the protocol's.

        Raises:
            EvaluationError: It is not; the message says how to prepare it.
        """
        if self.grid is None or shape == self.grid:
            return
        multiple, others = self.plane_multiple, ""
        if multiple:
            if shape[0] == self.grid[0] and not any(n % multiple for n in shape[1:]):
                return
            others = f", or on planes whose sides are multiples of {multiple}"
        raise EvaluationError(
            f"{url} holds volumes of {shape}; protocol {self.name!r} ({self.source}) is "
            f"defined on {self.grid}{others}: prepare the cohort with {self.prepare}, or choose "
            "another --protocol"
        )


def _extent(z: int, y: int, x: int) -> str:
    return f"--inferior-superior {z} --posterior-anterior {y} --left-right {x}"


_ALL_TESTED = "--threshold-share 0"

_UNFILTERED = PostprocessConfig(erosion_iterations=0, median_size=1)
_MEISSEN = dict[str, Any](
    # SRI24 has 240 x 240 x 155 voxels of 1 mm; the planes are resized, the slices are not. Brains
    # lie in MNI152 instead, about whose middle the box is laid.
    slices=(15, 125),
    # Equalised intensities have none; the study that the paper compares with takes this one.
    residual="positive",
    postprocess=_UNFILTERED,
    components=ComponentConfig(max_size=20, connectivity=26, fit_after=False),
    threshold_rule="none",
    split=_ALL_TESTED,
    metrics=("dice_best_of_100", "auprc", "auprc_trapezoid", "auroc"),
)


_FROTSCHER = dict[str, Any](
    source="Frotscher 2025, section on the evaluation, by its code",
    # Slices of 224 x 224 at 1 mm there.
    grid=None,
    slices=None,
    # Min-max over the whole volume: no clipping.
    prepare=f"--shape 155 224 224 {_extent(155, 224, 224)} --register mni152 --percentiles 0 100 "
    "--no-denoise",
    residual="absolute",
    components=ComponentConfig(),
    # And `healthy_fpr_1`: 1 % of the voxels of healthy brains.
    threshold_rule="best_dice",
    metrics=("dice_s_mean", "dice_s_std", "auprc"),
)
"""Both of its ways: with the median, and without."""


def _meissen_prepare(plane: int) -> str:
    # No clipping: it would tie the brightest voxels, among which equalisation decides.
    return (
        f"--shape 155 {plane} {plane} --resize nearest --mask-threshold 0.9 --percentiles 0 100 "
        "--no-denoise --skull-strip robex-if-needed --register mni152 --max-cut 0.05 "
        f"{_extent(155, 240, 240)}"
    )


PROTOCOLS: dict[str, Protocol] = {
    "bengs2021": Protocol(
        name="bengs2021",
        source="Bengs 2021, sections 2.1 and 2.3",
        # The paper's grid is 64^3; erosion follows the rows, so that smaller ones mean the same.
        grid=None,
        slices=None,
        prepare="--shape 64 64 64",
        residual="absolute",
        postprocess=PostprocessConfig(),
        components=ComponentConfig(),
        threshold_rule="bengs_bisection",
        metrics=("dice_d", "dice_s_mean", "dice_s_std", "auprc", "slice_auprc"),
    ),
    "baur2018": Protocol(
        name="baur2018",
        source="Baur 2018, section 2 (anomaly detection) and section 3",
        # 20 slices of 1 mm around the middle of each brain's box: the box is that low, and what of
        # the brain lies above and below is cut off after the standardisation.
        grid=(20, 256, 256),
        plane_multiple=16,
        slices=None,
        prepare=f"--shape 20 256 256 {_extent(20, 256, 256)} --max-cut 0.95",
        residual="absolute",
        # The paper has "a median filter" of no stated size and no erosion; 5 as its later study.
        postprocess=PostprocessConfig(erosion_iterations=0, median_size=5),
        components=ComponentConfig(),
        threshold_rule="percentile_98",
        split=_ALL_TESTED,
        metrics=("dice_s_mean", "dice_s_std", "auprc"),
    ),
    "meissen2021-I": Protocol(
        name="meissen2021-I",
        source="Meissen 2021, sections 3.2 to 3.5 and table 2",
        grid=(155, 128, 128),
        prepare=_meissen_prepare(128),
        **_MEISSEN,
    ),
    "meissen2021-II": Protocol(
        name="meissen2021-II",
        source="Meissen 2021, sections 3.2 to 3.5 and 4, table 3",
        grid=(155, 224, 224),
        prepare=_meissen_prepare(224),
        **_MEISSEN | {"slices": (84, 88)},
    ),
    "meissen2021-study": Protocol(
        name="meissen2021-study",
        source="Meissen 2021, section 3 and table 2: the study of Baur et al., by its code",
        grid=(155, 128, 128),
        prepare=_meissen_prepare(128),
        **_MEISSEN
        | {
            "postprocess": PostprocessConfig(
                erosion_iterations=12, median_size=5, prior_quantile=0.9
            ),
            "components": ComponentConfig(max_size=7, connectivity=26, fit_after=False),
        },
    ),
    "behrendt2025": Protocol(
        name="behrendt2025",
        source="Behrendt 2025, section 4, and its code",
        # The paper's grid is 50 x 96 x 96 of 2 mm: erosion follows the rows, as its side // 25.
        grid=None,
        slices=None,
        prepare=f"--shape 50 96 96 {_extent(100, 192, 192)} --register mni152 --correct-bias",
        residual="absolute",
        postprocess=PostprocessConfig(),
        # Dropped at the frozen threshold.
        components=ComponentConfig(max_size=7, connectivity=26, fit_after=False),
        threshold_rule="bengs_bisection",
        metrics=("dice_s_mean", "dice_s_std", "auprc"),
    ),
    "frotscher2025": Protocol(
        name="frotscher2025",
        # Its median has an even size of 4, which lies half a voxel beside: the odd one below.
        postprocess=PostprocessConfig(erosion_iterations=0, median_size=3),
        **_FROTSCHER,
    ),
    "frotscher2025-raw": Protocol(
        name="frotscher2025-raw",
        postprocess=_UNFILTERED,
        **_FROTSCHER,
    ),
}
"""The protocols by name."""


_SHARED = ("residual", "postprocess", "components", "threshold_rule", "slice_score")
"""Settings that a protocol gives and a caller may change."""


ON_WHAT = ("cohort", "healthy", "controls", "controls_known", "strata")
"""What stands among the settings of a record and is none: what was evaluated, in which groups."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """How scores are made and read; the defaults are those of Bengs 2021."""

    protocol: ProtocolName = "bengs2021"
    """Gives the grid, the axial slices, and the defaults of all other settings."""
    residual: Residual = "absolute"
    """Of methods that reconstruct: |x - reconstruction|, or its positive part alone."""
    postprocess: PostprocessConfig = field(default_factory=PostprocessConfig)
    """What happens to the scores before they are kept."""
    components: ComponentConfig = field(default_factory=ComponentConfig)
    """Which small components of a prediction are dropped."""
    threshold_rule: Rule = "bengs_bisection"
    """How the threshold is fitted, on the threshold part or on healthy volumes alone; `none` fits
    none, and figures that need one are not reported."""
    slice_score: SliceScore = "sum"
    """What an axial slice is scored by: the sum of its brain's scores, or their mean."""
    num_resamples: int = 50
    """Resamples of the people that the threshold is fitted on: it is fitted again on each, and what
    that changes is part of the 95 % intervals."""
    by: tuple[str, ...] = ()
    """Groups of test people whose figures are reported, too, and set against all others': by
    `scanner`, `lesion_ml:1:10:100` or any covariate of the cohort, such as `sex` or `age:40:60`."""
    batch_size: int = 0
    """Volumes scored at once by an actor; 0 takes 4 on a CPU, and 32 of 64^3 voxels on a GPU, of
    larger ones as many as have their voxels."""
    device: Device = "auto"
    """`cuda` scores on a GPU in each actor and refuses where there is none that torch can use,
    `cpu` on none; `auto` as `gpus_per_actor` says."""
    gpus_per_actor: float = 0.0
    """GPUs of each scoring actor, at most 1; a fraction shares one; 0 scores on CPUs."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.protocol not in PROTOCOLS:
            raise ConfigError(f"protocol must be one of {sorted(PROTOCOLS)}, was {self.protocol!r}")
        check_finite(self, "")
        for text in self.by:
            By.parse(text)
        if self.num_resamples < 1 or self.batch_size < 0 or self.gpus_per_actor < 0:
            raise ConfigError(
                "evaluate: num_resamples must be >= 1, batch_size and gpus_per_actor >= 0"
            )
        gpus_each(self.device, self.gpus_per_actor, "gpus_per_actor")

    @classmethod
    def of(cls, protocol: ProtocolName, **changes: Any) -> Self:
        """The settings of a protocol, with some of them changed.

        Raises:
            ConfigError: There is no protocol of that name.
        """
        if protocol not in PROTOCOLS:
            raise ConfigError(f"protocol must be one of {sorted(PROTOCOLS)}, was {protocol!r}")
        fixed = PROTOCOLS[protocol]
        defaults = {name: getattr(fixed, name) for name in _SHARED}
        return cls(**{"protocol": protocol} | defaults | changes)

    @classmethod
    def from_record(cls, settings: Mapping[str, Any]) -> Self:
        """The settings in a record, without what was evaluated beside them.

        Raises:
            ConfigError: they are none.
        """
        made: Self = from_json(cls, {k: v for k, v in settings.items() if k not in ON_WHAT})
        return made

    @property
    def fixed(self) -> Protocol:
        """The protocol itself."""
        return PROTOCOLS[self.protocol]

    @property
    def gpus(self) -> float:
        """GPUs of each scoring actor."""
        return gpus_each(self.device, self.gpus_per_actor, "gpus_per_actor")

    @property
    def cut(self) -> slice:
        """The axial slices that are evaluated."""
        return slice(*(self.fixed.slices or (None,)))

    def changes(self) -> dict[str, Any]:
        """What differs from the protocol, as JSON values; empty where nothing does."""
        return {
            name: to_json(getattr(self, name))
            for name in _SHARED
            if getattr(self, name) != getattr(self.fixed, name)
        }

    def scoring(self, shape: tuple[int, int, int]) -> dict[str, Any]:
        """What decides the kept scores of a cohort of `shape` (Z, Y, X), as JSON values."""
        prior = self.postprocess.prior_quantile
        return {
            "residual": self.residual,
            "slices": to_json(self.fixed.slices),
            "erosion_iterations": self.postprocess.iterations(shape),
            "median_size": self.postprocess.median_size,
        } | ({"prior_quantile": prior} if prior else {})
