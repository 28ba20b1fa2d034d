"""Meissen et al. 2021: histogram-equalised FLAIR intensity as a baseline."""

from collections.abc import Sequence

from uadray.config import experiment
from uadray.papers.study import CohortNeed, Entry, Paper, Published, Statistic, Study

BRATS = CohortNeed(role="tumour", data="BraTS 2020", modality="FLAIR", num_test=371)
MSLUB = CohortNeed(role="mslub", data="MSLUB", modality="FLAIR", num_test=30)
WMH = CohortNeed(role="wmh", data="WMH challenge", modality="FLAIR", num_test=60)
MSSEG = CohortNeed(role="msseg2015", data="MSSEG 2015, rater one", modality="FLAIR", num_test=21)

TRAINING = "none: the score is the equalised intensity"

_TABLE_2: tuple[tuple[str, tuple[float | None, ...], tuple[float | None, ...]], ...] = (
    ("AE (dense)", (0.271, 0.163, 0.794), (0.185, 0.080, 0.879)),
    ("AE (spatial)", (0.154, 0.065, 0.732), (0.106, 0.037, 0.781)),
    ("VAE (restoration)", (0.333, 0.275, 0.839), (0.272, 0.202, 0.905)),
    ("GMVAE (restoration)", (0.332, 0.271, 0.836), (0.280, 0.199, 0.909)),
    ("f-AnoGAN", (0.283, 0.221, 0.856), (0.342, 0.255, 0.923)),
    ("SSAE (spatial)", (0.301, 0.222, None), (None, None, None)),
    ("HistEq", (0.374, 0.271, 0.991), (0.431, 0.262, 0.996)),
)
"""Upper-bound Dice, AUPRC, AUROC on MSLUB and on MSSEG 2015. Table 4 gives the AUPRC of HistEq on
MSLUB as .278, table 2 as .271; each is kept as printed."""

_TABLE_3 = (
    ("Transformer", (0.759, 0.465, 0.441)),
    ("HistEq", (0.738, 0.613, 0.557)),
)
"""Upper-bound Dice on BraTS, MSLUB, WMH."""

_TABLE_4_I = (
    ("tumour", 0.666, 0.671, 0.988),
    ("mslub", 0.374, 0.278, 0.991),
    ("wmh", 0.457, 0.339, 0.979),
    ("msseg2015", 0.431, 0.262, 0.996),
)
_TABLE_4_II = (
    ("tumour", 0.738, 0.762, 0.985),
    ("mslub", 0.613, 0.571, 0.993),
    ("wmh", 0.557, 0.504, 0.984),
    ("msseg2015", 0.593, 0.536, 0.996),
)


_OURS = {
    "AE (dense)": "AE-dense",
    "AE (spatial)": "AE-spatial",
    "VAE (restoration)": "VAE-restoration",
    "GMVAE (restoration)": "GMVAE-restoration",
    "f-AnoGAN": "f-AnoGAN",
    "SSAE (spatial)": "SSAE",
    "Transformer": "Transformer",
    "HistEq": "HistEq",
}
"""Our name of each row's method."""


def _entry(label: str, role: str, figures: Sequence[float | None]) -> Entry:
    # The paper takes the trapezoid under the precision-recall curve for its AUPRC.
    names = ("dice_best_of_100", "auprc_trapezoid", "auroc")
    return Entry(
        label=label,
        experiment=experiment(_OURS[label]),
        role=role,
        # The competitors' figures are those of their own studies.
        protocol="" if label in ("HistEq", "Transformer") else "meissen2021-study",
        published={
            name: Published(value=figure)
            for name, figure in zip(names, figures, strict=False)
            if figure is not None
        },
    )


MEISSEN_2021 = Paper(
    key="meissen2021",
    citation=(
        "Meissen, Kaissis, Rueckert: Challenging current semi-supervised anomaly segmentation "
        "methods for brain MRI, 2021"
    ),
    studies=(
        Study(
            key="table-1",
            title="Lesion components of each cohort",
            protocol="meissen2021-I",
            training=TRAINING,
            cohorts=(BRATS, MSLUB, WMH, MSSEG),
            statistics=(
                Statistic(role="tumour", components_per_scan=5, voxels_per_component=18027),
                Statistic(role="mslub", components_per_scan=107, voxels_per_component=106),
                Statistic(role="wmh", components_per_scan=65, voxels_per_component=194),
                Statistic(role="msseg2015", components_per_scan=35, voxels_per_component=224),
            ),
        ),
        Study(
            key="table-2",
            title="HistEq beside models of the comparative study, slices 15 to 125 at 128 x 128",
            protocol="meissen2021-I",
            training=TRAINING,
            cohorts=(MSLUB, MSSEG),
            entries=tuple(
                _entry(label, role, figures)
                for label, *columns in _TABLE_2
                for role, figures in zip(("mslub", "msseg2015"), columns, strict=True)
            ),
        ),
        Study(
            key="table-3",
            title="HistEq beside a transformer, four slices at 224 x 224",
            protocol="meissen2021-II",
            training=TRAINING,
            cohorts=(BRATS, MSLUB, WMH),
            entries=tuple(
                _entry(label, role, (figure,))
                for label, figures in _TABLE_3
                for role, figure in zip(("tumour", "mslub", "wmh"), figures, strict=True)
            ),
        ),
        Study(
            key="table-4-I",
            title="HistEq on all cohorts, slices 15 to 125 at 128 x 128",
            protocol="meissen2021-I",
            training=TRAINING,
            cohorts=(BRATS, MSLUB, WMH, MSSEG),
            entries=tuple(_entry("HistEq", role, figures) for role, *figures in _TABLE_4_I),
        ),
        Study(
            key="table-4-II",
            title="HistEq on all cohorts, four slices at 224 x 224",
            protocol="meissen2021-II",
            training=TRAINING,
            cohorts=(BRATS, MSLUB, WMH, MSSEG),
            entries=tuple(_entry("HistEq", role, figures) for role, *figures in _TABLE_4_II),
        ),
    ),
)
