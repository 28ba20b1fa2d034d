"""Behrendt et al. 2025: conditioned diffusion beside patched diffusion and earlier methods."""

from dataclasses import replace
from typing import Any

from uadray.config import Experiment, experiment
from uadray.papers.study import CohortNeed, Entry, Paper, Published, Study

_COHORTS = (
    CohortNeed(role="brats", data="BraTS 2021", modality="T2", num_threshold=100, num_test=1151),
    CohortNeed(role="mslub", data="MSLUB", modality="T2", num_threshold=10, num_test=20),
    CohortNeed(role="atlas", data="ATLAS v2", modality="T1", num_threshold=175, num_test=480),
    CohortNeed(role="wmh", data="WMH challenge", modality="T1", num_threshold=15, num_test=45),
)

_TABLE_3 = {
    "Threshold": "19.69 20.27  6.21 4.23  4.41 1.71  9.38 4.72",
    "VAE": "28.81±1.26 25.72±1.54  6.16±.58 4.46±.20  15.08±.28 15.27±.30  5.23±.82 4.16±.13",
    "DAE": "45.37±4.40 49.38±4.68  3.88±1.35 4.47±.78  8.53±.28 12.45±.94  7.31±1.02 6.32±.88",
    "DDPM, t = 500": (
        "44.25±1.49 49.98±2.41  4.80±1.98 6.36±1.84  12.90±.89 15.67±.76  10.03±1.06 8.86±.95"
    ),
    "DDPM, mean of three": (
        "44.50±2.20 50.73±3.09  6.46±2.05 6.31±1.40  14.67±.86 17.56±1.12  9.63±1.06 8.12±1.17"
    ),
    "pDDPM, t = 500": (
        "49.36±.66 54.70±.53  9.40±1.23 9.88±.59  12.95±.45 17.37±.39  8.03±.62 7.78±.51"
    ),
    "pDDPM, mean of three": (
        "49.78±.85 55.10±.57  9.21±1.35 10.11±.45  13.24±.93 17.76±1.17  7.97±.95 7.65±.91"
    ),
    "cDDPM, t = 500": (
        "51.34±1.68 56.84±2.21  10.71±1.52 10.13±1.19  19.06±1.27 20.98±1.14  9.94±.55 9.28±.42"
    ),
    "cDDPM, mean of three, pre-trained": (
        "53.37±1.80 58.84±1.76  11.51±1.24 11.13±1.26  19.99±1.55 22.21±1.47  9.88±1.22 9.33±1.07"
    ),
}
"""Dice and AUPRC in percent, each a mean over persons, in the order of the cohorts; deviations are
over five folds. Read from the text of table 3, in which the table is cut into blocks; a row of the
cDDPM with one of its two changes is left out, since which of them is lost there."""


def _diffusion(name: str, *steps: int) -> Experiment:
    one = experiment(name)
    method: Any = replace(one.method, score_steps=steps)  # type: ignore[call-arg]
    return replace(one, method=method)


_OURS = {
    "Threshold": experiment("Intensity"),
    "DAE": experiment("DenoisingAE"),
    "pDDPM, t = 500": _diffusion("pDDPM", 500),
    "pDDPM, mean of three": _diffusion("pDDPM", 250, 500, 750),
    "cDDPM, t = 500": _diffusion("cDDPM", 500),
    "cDDPM, mean of three, pre-trained": _diffusion("cDDPM", 250, 500, 750),
}


def _published(text: str) -> Published:
    value, _, deviation = text.partition("±")
    return Published(
        value=round(float(value) / 100, 6),
        deviation=round(float(deviation) / 100, 6) if deviation else None,
        deviation_over="folds",
    )


BEHRENDT_2025 = Paper(
    key="behrendt2025",
    citation=(
        "Behrendt et al.: guided reconstruction with conditioned diffusion models for unsupervised "
        "anomaly detection in brain MRIs, 2025 (arXiv 2312.04215)"
    ),
    studies=(
        Study(
            key="table-3",
            title="Conditioned diffusion beside other methods, by person, over five folds",
            protocol="behrendt2025",
            training="IXI, 358 healthy scans a fold",
            cohorts=_COHORTS,
            entries=tuple(
                Entry(
                    label=label,
                    experiment=_OURS.get(label),
                    role=need.role,
                    published={
                        "dice_s_mean": _published(row.split()[2 * k]),
                        "auprc_s_mean": _published(row.split()[2 * k + 1]),
                    },
                )
                for label, row in _TABLE_3.items()
                for k, need in enumerate(_COHORTS)
            ),
        ),
    ),
)
