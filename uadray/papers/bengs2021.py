"""Bengs et al. 2021: 2D against 3D VAEs with spatial erasing."""

from dataclasses import replace

from uadray.config import Experiment, experiment
from uadray.papers.study import CohortNeed, Entry, Paper, Published, Study

TRAINING = "2008 healthy T1 scans of 22 scanners, 1807 to learn from, 201 to choose the epoch"
TUMOUR = CohortNeed(
    role="tumour", data="BraTS 2019", modality="T1", num_threshold=133, num_test=202
)
STROKE = CohortNeed(
    role="stroke", data="ATLAS v1.2", modality="T1", num_threshold=121, num_test=183
)
TUMOUR_T1CE = replace(TUMOUR, role="tumour-t1ce", modality="T1ce")

Figures = tuple[str, float, float, float, float]
"""Method, Dice_D, Dice_S mean and deviation, AUPRC; in percent as printed."""

_TUMOUR: tuple[Figures, ...] = (
    ("2D-None", 26.80, 25.30, 12.37, 21.19),
    ("3D-None", 28.14, 26.93, 12.40, 24.69),
    ("2D-Patch-0", 27.96, 26.52, 13.42, 22.53),
    ("2D-Patch-n", 27.99, 26.58, 13.27, 22.54),
    ("3D-Cube-0", 29.24, 27.90, 13.57, 26.18),
    ("3D-Cube-n", 30.10, 28.80, 13.74, 27.85),
    ("2D-Multi-Patch-0", 28.10, 26.44, 12.89, 22.54),
    ("2D-Multi-Patch-n", 28.51, 27.24, 13.14, 22.81),
    ("3D-Multi-Cube-0", 28.88, 27.67, 13.22, 25.82),
    ("3D-Multi-Cube-n", 29.52, 28.33, 13.42, 26.18),
    ("2D-Half-Slice-0", 26.86, 25.44, 12.42, 21.77),
    ("2D-Half-Slice-n", 27.97, 26.45, 13.22, 22.84),
    ("3D-Half-Volume-0", 28.49, 27.51, 13.17, 25.47),
    ("3D-Half-Volume-n", 28.99, 27.92, 13.24, 26.07),
)
_STROKE: tuple[Figures, ...] = (
    ("2D-None", 24.72, 11.23, 13.66, 16.86),
    ("3D-None", 30.68, 14.42, 16.06, 23.74),
    ("2D-Patch-0", 27.68, 12.23, 13.67, 18.65),
    ("2D-Patch-n", 27.42, 12.36, 14.61, 18.20),
    ("3D-Cube-0", 31.50, 15.59, 17.02, 23.47),
    ("3D-Cube-n", 32.68, 15.53, 17.30, 25.11),
    ("2D-Multi-Patch-0", 26.99, 11.82, 14.29, 18.72),
    ("2D-Multi-Patch-n", 28.06, 12.88, 15.21, 19.49),
    ("3D-Multi-Cube-0", 31.83, 15.23, 16.64, 24.51),
    ("3D-Multi-Cube-n", 32.37, 14.99, 17.31, 25.13),
    ("2D-Half-Slice-0", 27.54, 11.05, 13.70, 18.60),
    ("2D-Half-Slice-n", 28.99, 12.13, 14.79, 20.37),
    ("3D-Half-Volume-0", 31.00, 15.21, 17.00, 23.14),
    ("3D-Half-Volume-n", 33.05, 15.27, 17.21, 25.58),
)
_T1CE: tuple[Figures, ...] = (
    ("2D-Patch-n", 31.80, 29.08, 12.77, 24.28),
    ("3D-Cube-n", 36.67, 33.40, 14.55, 31.12),
)
_BEST = ("2D-None", "2D-Patch-n", "3D-None", "3D-Cube-n")
"""Baselines and best methods, as figures 4, 5 and 6 compare them."""

_PRINTED_IN_FIGURE_6 = {"3D-Cube-n": {"slice_auprc": Published(value=0.712)}}
"""Of the others the text says only "approximately 4 %" for the gain over the 2D VAE."""


def _entries(role: str, table: tuple[Figures, ...], only: tuple[str, ...] = ()) -> list[Entry]:
    return [
        Entry(
            label=name,
            experiment=experiment(name),
            role=role,
            published={
                "dice_d": Published(value=round(dice_d / 100, 6)),
                "dice_s_mean": Published(
                    value=round(mean / 100, 6), deviation=round(deviation / 100, 6)
                ),
                "auprc": Published(value=round(auprc / 100, 6)),
            },
        )
        for name, dice_d, mean, deviation, auprc in table
        if not only or name in only
    ]


def _shared(name: str, share: float) -> Experiment:
    base = experiment(name)
    return replace(base, fit=replace(base.fit, data_share=share))


BENGS_2021 = Paper(
    key="bengs2021",
    citation=(
        "Bengs, Behrendt, Krüger, Opfer, Schlaefer: Three-dimensional deep learning with spatial "
        "erasing for unsupervised anomaly segmentation in brain MRI, 2021"
    ),
    studies=(
        Study(
            key="table-1",
            title="2D and 3D VAE with every kind of erasing",
            protocol="bengs2021",
            training=TRAINING,
            cohorts=(TUMOUR, STROKE),
            entries=(*_entries("tumour", _TUMOUR), *_entries("stroke", _STROKE)),
        ),
        Study(
            key="table-2",
            title="Fitted on T1, evaluated on T1 and on contrast-enhanced T1",
            protocol="bengs2021",
            training=TRAINING,
            cohorts=(TUMOUR, TUMOUR_T1CE),
            entries=(
                *_entries("tumour", _TUMOUR, ("2D-Patch-n", "3D-Cube-n")),
                *_entries("tumour-t1ce", _T1CE),
            ),
        ),
        Study(
            key="figure-4",
            title="Dice_S over lesion size, with a cubic fit",
            protocol="bengs2021",
            training=TRAINING,
            cohorts=(TUMOUR, STROKE),
            entries=tuple(
                Entry(label=name, experiment=experiment(name), role=role)
                for role in ("tumour", "stroke")
                for name in _BEST
            ),
        ),
        Study(
            key="figure-5",
            title="AUPRC, mean of both cohorts, over the share of the training data",
            protocol="bengs2021",
            training=TRAINING,
            cohorts=(TUMOUR, STROKE),
            # The paper draws these points without printing their values.
            entries=tuple(
                Entry(label=f"{name}, {share:.0%}", experiment=_shared(name, share), role="")
                for name in _BEST
                for share in (0.1, 0.2, 0.6, 1.0)
            ),
        ),
        Study(
            key="figure-6",
            title="Which axial slices hold a lesion: AUPRC over slices of both cohorts together",
            protocol="bengs2021",
            training=TRAINING,
            cohorts=(TUMOUR, STROKE),
            entries=tuple(
                Entry(
                    label=name,
                    experiment=experiment(name),
                    role="",
                    published={"slice_auprc": Published(value=0.712)}
                    if name == "3D-Cube-n"
                    else {},
                )
                for name in _BEST
            ),
        ),
        Study(
            key="figure-7",
            title="Example cases of the best method",
            protocol="bengs2021",
            training=TRAINING,
            cohorts=(TUMOUR, STROKE),
            entries=tuple(
                Entry(label="3D-Cube-n", experiment=experiment("3D-Cube-n"), role=role)
                for role in ("tumour", "stroke")
            ),
        ),
    ),
)
