"""What the three papers claim, sentence by sentence, as data: which method, above which, by what.

A claim is a set of contrasts, each of one method (on a share of the training data) against another,
on cohorts and in metrics that the sentence names. `in_own_table` reads what the paper's own tables
say of it; what our data says is compared elsewhere, from the same contrasts.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from uadray.config import BENGS_TABLE_1, Experiment, experiment
from uadray.errors import ConfigError
from uadray.papers import PAPERS
from uadray.papers.study import figures
from uadray.strategies import BENGS, STRATEGIES

Direction = Literal["higher", "lower", "no clear winner"]
"""What is said of the first method's figure; `no clear winner` says that neither is above."""

Subset = Literal["all", "small lesions", "large lesions"]
"""Which subjects a sentence is about; small and large are below and above the cohort's median."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """A method of a contrast."""

    method: str
    """Its label in the paper's tables."""
    share: float = 1.0
    """Of the training data that it learns from."""
    role: str = ""
    """The cohort, where the two sides are on different ones."""

    def __str__(self) -> str:
        parts = [self.method]
        if self.share != 1:
            parts.append(f"{self.share:.0%} of the data")
        if self.role:
            parts.append(f"on {self.role}")
        return ", ".join(parts)


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """One method against another."""

    of: Side
    """The one that the sentence is about."""
    against: Side
    """What it is compared with."""

    def __str__(self) -> str:
        return f"{self.of} against {self.against}"


@dataclass(frozen=True, kw_only=True)
class Printed:
    """A figure in the sentence."""

    text: str
    """As printed, to be found in the paper's text."""
    value: float
    """Fraction of 1, or seconds, voxels, components where `what` says so."""
    what: str
    """What it is of."""
    note: str = ""
    """Where the paper's own tables have another one."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One sentence that claims something."""

    key: str
    """Short name, unique within the paper."""
    paper: str
    """Key of the paper."""
    where: str
    """Sections."""
    study: str = ""
    """The table or figure that it rests on; empty for none."""
    says: str
    """What it says, in our words."""
    contrasts: tuple[Contrast, ...] = ()
    """The first one is the sentence's main one; empty where it compares no two methods."""
    roles: tuple[str, ...] = ()
    """Cohorts, each for itself; `""` takes all of the paper's together."""
    metrics: tuple[str, ...] = ()
    """Figures of an evaluation in which it is said."""
    direction: Direction = "higher"
    """Of the first method of each contrast."""
    subset: Subset = "all"
    """Which subjects it is about."""
    printed: tuple[Printed, ...] = ()
    """Figures in the text itself; those of tables are in the paper's studies."""
    why_not: str = ""
    """Why no comparison of two methods can tell, for a claim without contrasts."""

    def __post_init__(self) -> None:
        if unknown := set(self.metrics) - figures():
            raise ConfigError(f"claim {self.key}: unknown {sorted(unknown)}")
        if not self.contrasts and not self.why_not:
            raise ConfigError(f"claim {self.key} has neither contrasts nor a reason for none")

    def cells(self) -> Iterator[tuple[Contrast, str, str]]:
        """Each contrast on each cohort in each metric."""
        for contrast in self.contrasts:
            for role in self.roles:
                for metric in self.metrics:
                    yield contrast, role, metric


def in_own_table(claim: Claim) -> tuple[int, int]:
    """In how many of the paper's own printed figures the claim holds, and of how many.

    A mean over cohorts (role `""`) is taken of the figures of each. Where the paper draws a figure
    without numbers, or names no direction, nothing is counted.
    """
    holds = total = 0
    if claim.subset != "all" or claim.direction == "no clear winner":
        return 0, 0
    for contrast, role, metric in claim.cells():
        a = printed_figure(claim, contrast.of, role, metric)
        b = printed_figure(claim, contrast.against, role, metric)
        if a is not None and b is not None:
            total += 1
            holds += a > b if claim.direction == "higher" else a < b
    return holds, total


def printed_figure(claim: Claim, side: Side, role: str, metric: str) -> float | None:
    """What the claim's table prints of a method, or the mean over its cohorts; None for neither."""
    if side.share != 1 or not claim.study:
        return None
    study, wanted = PAPERS[claim.paper].study(claim.study), side.role or role
    values = {
        entry.role: entry.published[metric].value
        for entry in study.entries
        if entry.label == side.method and metric in entry.published
    }
    if wanted or set(values) != {need.role for need in study.cohorts}:
        return values.get(wanted)
    return sum(values.values()) / len(values)


def experiment_of(claim: Claim, side: Side) -> Experiment:
    """Ours of a side: that of the paper's row, on its share of the training data.

    Raises:
        ConfigError: there is no experiment of that name.
    """
    entries = (entry for study in PAPERS[claim.paper].studies for entry in study.entries)
    entry = next((e.experiment for e in entries if e.label == side.method), None)
    base = experiment(side.method) if entry is None else entry
    return replace(base, fit=replace(base.fit, data_share=side.share))


def _vs(of: str, against: str, *, share: float = 1.0, other: float = 1.0) -> Contrast:
    return Contrast(of=Side(method=of, share=share), against=Side(method=against, share=other))


def _name(key: str, ndim: Literal[2, 3], fill: str) -> str:
    return f"{ndim}D-{STRATEGIES[key].names[ndim]}-{fill}"


_BOTH = ("tumour", "stroke")
_TABLE = ("dice_d", "dice_s_mean", "auprc")
_ERASED = tuple(name for name in BENGS_TABLE_1 if not name.endswith("None"))
_DIMENSIONS = (
    *(_vs(_name(key, 3, fill), _name(key, 2, fill)) for key in BENGS for fill in "n0"),
    _vs("3D-None", "2D-None"),
)

_BENGS = (
    Claim(
        key="3d",
        paper="bengs2021",
        where="abstract, sections 3 and 5",
        study="table-1",
        says="3D VAEs find more than their 2D counterparts, in every pair of the table",
        contrasts=_DIMENSIONS,
        roles=_BOTH,
        metrics=_TABLE,
    ),
    Claim(
        key="3d-without-erasing",
        paper="bengs2021",
        where="section 4",
        study="table-1",
        says="without erasing, too, 3D is above 2D, most of all on strokes",
        contrasts=(_vs("3D-None", "2D-None"),),
        roles=_BOTH,
        metrics=("dice_d",),
        printed=(
            Printed(
                text="30.86%",
                value=0.3086,
                what="3D-None, stroke, dice_d",
                note="table 1 prints 30.68",
            ),
            Printed(text="24.72%", value=0.2472, what="2D-None, stroke, dice_d"),
        ),
    ),
    Claim(
        key="erasing",
        paper="bengs2021",
        where="abstract, sections 3 and 4",
        study="table-1",
        says="each way of erasing improves on none, in 2D and in 3D",
        contrasts=(
            _vs("3D-Cube-n", "3D-None"),
            _vs("2D-Patch-n", "2D-None"),
            *(
                _vs(name, f"{name[:2]}-None")
                for name in _ERASED
                if name not in ("3D-Cube-n", "2D-Patch-n")
            ),
        ),
        roles=_BOTH,
        metrics=_TABLE,
    ),
    Claim(
        key="noise",
        paper="bengs2021",
        where="sections 3 and 4",
        study="table-1",
        says="noise in the erased regions works slightly better than zeros",
        contrasts=tuple(
            _vs(_name(key, ndim, "n"), _name(key, ndim, "0")) for ndim in (3, 2) for key in BENGS
        ),
        roles=_BOTH,
        metrics=("dice_d", "auprc"),
    ),
    Claim(
        key="best-3d",
        paper="bengs2021",
        where="section 3",
        study="table-1",
        says="in 3D a single cube works best, then half a volume",
        contrasts=(
            _vs("3D-Cube-n", "3D-Half-Volume-n"),
            _vs("3D-Half-Volume-n", "3D-Multi-Cube-n"),
            _vs("3D-Cube-n", "3D-Multi-Cube-n"),
        ),
        roles=("",),
        metrics=("dice_d",),
    ),
    Claim(
        key="best-2d",
        paper="bengs2021",
        where="section 3",
        study="table-1",
        says="in 2D half a slice works best, closely followed by several patches",
        contrasts=(
            _vs("2D-Half-Slice-n", "2D-Multi-Patch-n"),
            _vs("2D-Multi-Patch-n", "2D-Patch-n"),
            _vs("2D-Half-Slice-n", "2D-Patch-n"),
        ),
        roles=("",),
        metrics=("dice_d",),
    ),
    Claim(
        key="no-winner",
        paper="bengs2021",
        where="section 4",
        study="table-1",
        says="no way of erasing is the clear winner on both cohorts",
        contrasts=(
            _vs("3D-Cube-n", "3D-Half-Volume-n"),
            _vs("3D-Cube-n", "3D-Multi-Cube-n"),
            _vs("2D-Patch-n", "2D-Half-Slice-n"),
            _vs("2D-Patch-n", "2D-Multi-Patch-n"),
        ),
        roles=_BOTH,
        metrics=("dice_d",),
        direction="no clear winner",
    ),
    Claim(
        key="best-against-2d",
        paper="bengs2021",
        where="abstract, sections 3 and 4",
        study="table-1",
        says="the best 3D method is far above the 2D baseline",
        contrasts=(_vs("3D-Cube-n", "2D-None"),),
        roles=(*_BOTH, ""),
        metrics=("dice_d",),
        printed=(
            Printed(text="12.31%", value=0.1231, what="gain relative to 2D-None, tumour, dice_d"),
            Printed(text="32.20%", value=0.3220, what="gain relative to 2D-None, stroke, dice_d"),
            Printed(
                text="31.40%",
                value=0.3140,
                what="3D-Cube-n, mean of both cohorts, dice_d",
                note="table 1 gives 31.39",
            ),
            Printed(text="25.76%", value=0.2576, what="2D-None, mean of both cohorts, dice_d"),
        ),
    ),
    Claim(
        key="erasing-by-size",
        paper="bengs2021",
        where="sections 3 and 4",
        study="figure-4",
        says="erasing improves Dice of lesions of every size, of large ones most",
        contrasts=(_vs("3D-Cube-n", "3D-None"), _vs("2D-Patch-n", "2D-None")),
        roles=_BOTH,
        metrics=("dice_s_mean",),
        subset="large lesions",
    ),
    Claim(
        key="3d-by-size",
        paper="bengs2021",
        where="sections 3 and 4",
        study="figure-4",
        says="3D is above 2D for lesions of every size, most of all for small ones",
        contrasts=(_vs("3D-Cube-n", "2D-Patch-n"),),
        roles=_BOTH,
        metrics=("dice_s_mean",),
        subset="small lesions",
    ),
    Claim(
        key="extreme-sizes",
        paper="bengs2021",
        where="section 3",
        study="figure-4",
        says="the smallest and the largest lesions are the hardest",
        why_not="it compares lesions, not methods",
    ),
    Claim(
        key="less-data-is-worse",
        paper="bengs2021",
        where="section 3",
        study="figure-5",
        says="less training data gives clearly less, most of all below 60 %",
        contrasts=tuple(
            _vs(name, name, other=share)
            for share in (0.2, 0.1)
            for name in ("3D-Cube-n", "3D-None", "2D-Patch-n", "2D-None")
        ),
        roles=("",),
        metrics=("auprc",),
    ),
    Claim(
        key="more-data-still-helps",
        paper="bengs2021",
        where="section 4",
        study="figure-5",
        says="with erasing the last 40 % of the data still improve the result",
        contrasts=tuple(_vs(name, name, other=0.6) for name in ("3D-Cube-n", "2D-Patch-n")),
        roles=("",),
        metrics=("auprc",),
    ),
    Claim(
        key="erasing-needs-data",
        paper="bengs2021",
        where="sections 3 and 4",
        study="figure-5",
        says="erasing gains more where there is more data to learn from",
        why_not="it compares two differences, not two methods",
    ),
    Claim(
        key="3d-on-20",
        paper="bengs2021",
        where="sections 3 and 4",
        study="figure-5",
        says="3D on 20 % of the data is above 2D on all of it, even with erasing in 2D",
        contrasts=(
            _vs("3D-None", "2D-Patch-n", share=0.2),
            _vs("3D-None", "2D-None", share=0.2),
            _vs("3D-Cube-n", "2D-Patch-n", share=0.2),
            _vs("3D-Cube-n", "2D-None", share=0.2),
        ),
        roles=("",),
        metrics=("auprc",),
        printed=(Printed(text="20% of the", value=0.2, what="share of the training data"),),
    ),
    Claim(
        key="2d-erasing-on-20",
        paper="bengs2021",
        where="section 3",
        study="figure-5",
        says="2D with erasing on 20 % of the data is above 2D without on all of it",
        contrasts=(_vs("2D-Patch-n", "2D-None", share=0.2),),
        roles=("",),
        metrics=("auprc",),
        printed=(Printed(text="only 20% of", value=0.2, what="share of the training data"),),
    ),
    Claim(
        key="erasing-on-60",
        paper="bengs2021",
        where="section 4",
        study="figure-5",
        says="with erasing 60 % of the data give more than all of it without",
        contrasts=(
            _vs("3D-Cube-n", "3D-None", share=0.6),
            _vs("2D-Patch-n", "2D-None", share=0.6),
        ),
        roles=("",),
        metrics=("auprc",),
        printed=(Printed(text="only 60% of", value=0.6, what="share of the training data"),),
    ),
    Claim(
        key="t1ce",
        paper="bengs2021",
        where="sections 3 and 4",
        study="table-2",
        says="contrast-enhanced scans improve both at once, although they learn from plain ones",
        contrasts=tuple(
            Contrast(
                of=Side(method=name, role="tumour-t1ce"),
                against=Side(method=name, role="tumour"),
            )
            for name in ("3D-Cube-n", "2D-Patch-n")
        ),
        roles=("tumour",),
        metrics=_TABLE,
        printed=(
            Printed(text="13.61%", value=0.1361, what="gain relative to T1, 2D-Patch-n, dice_d"),
            Printed(
                text="21.82%",
                value=0.2182,
                what="gain relative to T1, 3D-Cube-n, dice_d",
                note="table 2 gives 21.83",
            ),
        ),
    ),
    Claim(
        key="slices",
        paper="bengs2021",
        where="section 3",
        study="figure-6",
        says="3D and erasing help to find slices with a lesion, by about 4 % against the 2D VAE",
        contrasts=(_vs("3D-Cube-n", "2D-None"),),
        roles=("",),
        metrics=("slice_auprc",),
        printed=(
            Printed(text="71.2%", value=0.712, what="3D-Cube-n, both cohorts, slice_auprc"),
            Printed(text="approximately 4%", value=0.04, what="gain over 2D-None, slice_auprc"),
        ),
    ),
    Claim(
        key="slices-against-voxels",
        paper="bengs2021",
        where="section 4",
        study="figure-6",
        says="slices with a lesion are found with a far higher AUPRC than voxels",
        why_not="it compares two metrics, not two methods",
        printed=(Printed(text="71.2%", value=0.712, what="3D-Cube-n, both cohorts, slice_auprc"),),
    ),
    Claim(
        key="state-of-the-art",
        paper="bengs2021",
        where="section 4",
        study="table-1",
        says="on ATLAS the best 3D method is above a restoration in 2D of another paper",
        contrasts=(_vs("3D-Cube-n", "VAE-restoration"),),
        roles=("stroke",),
        metrics=("dice_s_mean",),
        printed=(
            Printed(text="15.53±17.30%", value=0.1553, what="3D-Cube-n, stroke, dice_s_mean"),
            Printed(text="12 ± 12%", value=0.12, what="the other paper's best, dice_s_mean"),
        ),
    ),
    Claim(
        key="supervised",
        paper="bengs2021",
        where="section 4",
        says="supervised methods of other papers reach more",
        why_not="no method here learns from lesions",
        printed=(
            Printed(text="around 90%", value=0.90, what="supervised, BraTS 2019, dice_s_mean"),
            Printed(text="32.92%", value=0.3292, what="supervised, ATLAS, lowest dice_s_mean"),
            Printed(text="53.49%", value=0.5349, what="supervised, ATLAS, highest dice_s_mean"),
        ),
    ),
)

_SPATIAL = ("sVAE-GAN", "sVAE", "sAE3", "sAE-GAN")
_BAUR_METRICS = ("dice_s_mean", "auprc")

_BAUR = (
    Claim(
        key="spatial",
        paper="baur2018",
        where="section 3.2",
        study="table-1",
        says="every spatial autoencoder is significantly above those with a dense bottleneck",
        contrasts=tuple(
            _vs(name, dense) for name in (*_SPATIAL, "sAE1") for dense in ("dAE", "dVAE")
        ),
        roles=("ms",),
        metrics=_BAUR_METRICS,
    ),
    Claim(
        key="anogan",
        paper="baur2018",
        where="sections 3.2 and 4",
        study="table-1",
        says="all spatial autoencoders but sAE1 are significantly above AnoGAN",
        contrasts=tuple(_vs(name, "AnoGAN") for name in _SPATIAL),
        roles=("ms",),
        metrics=_BAUR_METRICS,
    ),
    Claim(
        key="vae-gan-first",
        paper="baur2018",
        where="section 3.2",
        study="table-1",
        says="the VAE-GAN has the highest AUPRC, closely followed by the AE-GAN",
        contrasts=(_vs("sVAE-GAN", "sAE-GAN"), *(_vs("sAE-GAN", n) for n in ("sVAE", "sAE3"))),
        roles=("ms",),
        metrics=("auprc",),
        printed=(
            Printed(
                text="0.6906",
                value=0.6906,
                what="sVAE-GAN, auprc",
                note="table 1 prints .6988 for the AE-GAN, which is higher",
            ),
            Printed(text="0.6988", value=0.6988, what="sAE-GAN, auprc"),
        ),
    ),
    Claim(
        key="adversarial",
        paper="baur2018",
        where="abstract, sections 1, 3.2 and 4",
        study="table-1",
        says="adversarial training adds a little, of no significance",
        contrasts=(_vs("sVAE-GAN", "sVAE"), _vs("sAE-GAN", "sAE3")),
        roles=("ms",),
        metrics=_BAUR_METRICS,
    ),
    Claim(
        key="constrained-latent",
        paper="baur2018",
        where="abstract and section 4",
        study="table-1",
        says="a latent that is kept near a normal distribution improves a little",
        contrasts=(_vs("sVAE", "sAE3"), _vs("sVAE-GAN", "sAE-GAN"), _vs("dVAE", "dAE")),
        roles=("ms",),
        metrics=_BAUR_METRICS,
    ),
    Claim(
        key="resolution",
        paper="baur2018",
        where="section 4",
        study="table-1",
        says="a bottleneck of 8 x 8 loses far more than one of 16 x 16",
        contrasts=(_vs("sAE3", "sAE1"),),
        roles=("ms",),
        metrics=_BAUR_METRICS,
    ),
    Claim(
        key="speed",
        paper="baur2018",
        where="sections 3.2 and 4",
        study="table-1",
        says="autoencoders need a fraction of a second for a slice, AnoGAN about 19 s",
        contrasts=tuple(_vs(name, "AnoGAN") for name in (*_SPATIAL, "sAE1", "dAE", "dVAE")),
        roles=("ms",),
        metrics=("seconds_per_slice",),
        direction="lower",
        printed=(
            Printed(
                text="19$ s for a single reconstruction",
                value=19.0,
                what="AnoGAN, seconds_per_slice",
                note="table 1 prints 19.8547",
            ),
        ),
    ),
    Claim(
        key="fine-details",
        paper="baur2018",
        where="sections 3.1 and 4",
        study="figure-4",
        says="dense bottlenecks lose the fine details of a brain",
        why_not="it is said of pictures",
    ),
    Claim(
        key="threshold",
        paper="baur2018",
        where="section 3.2",
        says="Dice does not follow AUPRC, since the 98th percentile does not suit every model",
        why_not="it compares two metrics, not two methods",
    ),
    Claim(
        key="separation",
        paper="baur2018",
        where="section 3.1",
        study="figure-6",
        says="the VAE-GAN's residuals are larger at anomalous pixels than at normal ones",
        why_not="it compares voxels, not methods",
    ),
)

_STUDY = (
    "AE (dense)",
    "AE (spatial)",
    "VAE (restoration)",
    "GMVAE (restoration)",
    "f-AnoGAN",
    "SSAE (spatial)",
)

_MEISSEN = (
    Claim(
        key="above-the-study",
        paper="meissen2021",
        where="abstract, section 4",
        study="table-2",
        says="thresholds of equalised FLAIR have a higher Dice and AUROC than all other methods",
        contrasts=tuple(_vs("HistEq", name) for name in _STUDY),
        roles=("mslub", "msseg2015"),
        metrics=("dice_best_of_100", "auroc"),
    ),
    Claim(
        key="auprc",
        paper="meissen2021",
        where="section 4",
        study="table-2",
        says="their AUPRC is about as high as the best methods'",
        contrasts=(
            _vs("HistEq", "VAE (restoration)"),
            _vs("HistEq", "GMVAE (restoration)"),
            _vs("HistEq", "f-AnoGAN"),
        ),
        roles=("mslub", "msseg2015"),
        metrics=("auprc_trapezoid",),
        direction="no clear winner",
        printed=(
            Printed(
                text="0.278",
                value=0.278,
                what="HistEq, mslub, auprc_trapezoid",
                note="table 4; table 2 prints .271",
            ),
        ),
    ),
    Claim(
        key="transformer",
        paper="meissen2021",
        where="section 4",
        study="table-3",
        says="they are far above the transformer on MSLUB and WMH",
        contrasts=(_vs("HistEq", "Transformer"),),
        roles=("mslub", "wmh"),
        metrics=("dice_best_of_100",),
    ),
    Claim(
        key="transformer-on-tumours",
        paper="meissen2021",
        where="section 4",
        study="table-3",
        says="and slightly below it on BraTS",
        contrasts=(_vs("HistEq", "Transformer"),),
        roles=("tumour",),
        metrics=("dice_best_of_100",),
        direction="lower",
    ),
    Claim(
        key="residual",
        paper="meissen2021",
        where="section 5",
        study="table-2",
        says="a residual between image and reconstruction segments worse than the image itself",
        contrasts=tuple(_vs("HistEq", name) for name in _STUDY),
        roles=("mslub", "msseg2015"),
        metrics=("dice_best_of_100",),
    ),
    Claim(
        key="large-anomalies",
        paper="meissen2021",
        where="sections 3.1 and 4",
        study="table-1",
        says="the cohort with the largest anomalies is the easiest, with the smallest the hardest",
        why_not="it compares cohorts, not methods",
        printed=(
            Printed(text="18027", value=18027, what="BraTS, mean voxels of an anomaly"),
            Printed(text="106", value=106, what="MSLUB, mean voxels of an anomaly"),
        ),
    ),
    Claim(
        key="slices",
        paper="meissen2021",
        where="section 4",
        says="slices 15 to 125 give the same as whole volumes",
        why_not="it compares two protocols, not two methods",
    ),
    Claim(
        key="mask-threshold",
        paper="meissen2021",
        where="section 3.2",
        says="where registered masks are cut changes the figures much",
        why_not="it compares two preparations, not two methods",
    ),
    Claim(
        key="experts",
        paper="meissen2021",
        where="section 6",
        says="experts and supervised methods are better",
        why_not="no method here learns from lesions",
    ),
)

CLAIMS: tuple[Claim, ...] = (*_BENGS, *_BAUR, *_MEISSEN)
"""All of them, in the order of the papers and their sections."""
