"""Frotscher et al. 2025: a benchmark of eight methods, each with a model for T1 and one for T2."""

from uadray.config import experiment
from uadray.papers.study import CohortNeed, Entry, Paper, Published, Study

_COHORTS = (
    CohortNeed(role="brats-t2", data="BraTS", modality="T2"),
    CohortNeed(role="shifts-t2", data="Shifts (multiple sclerosis)", modality="T2"),
    CohortNeed(role="brats-t1", data="BraTS", modality="T1"),
    CohortNeed(role="atlas-i", data="ATLAS, part I", modality="T1"),
    CohortNeed(role="atlas-o", data="ATLAS, part O", modality="T1"),
    CohortNeed(role="atlas-n", data="ATLAS, part N", modality="T1"),
    CohortNeed(role="shifts-t1", data="Shifts (multiple sclerosis)", modality="T1"),
    CohortNeed(role="wmh-t1", data="WMH challenge", modality="T1"),
)

_OURS = {"RIAD": "RIAD", "IterMask": "IterMask", "Disyre": "DISYRE"}
"""Our name of a row's method; the others are not built."""

_FIGURE = {
    "RIAD": ".236/.236 .064/.050 .161/.161 .129/.081 .126/.097 .045/.017 .062/.045 .044/.042",
    "IterMask": ".258/.257 .021/.015 .301/.297 .118/.113 .091/.090 .041/.021 .045/.031 .037/.036",
    "ANDi": ".453/.425 .128/.104 .265/.232 .285/.281 .209/.209 .145/.118 .143/.125 .062/.052",
    "Disyre": ".646/.645 .205/.172 .274/.264 .434/.432 .386/.384 .196/.191 .156/.139 .130/.109",
    "FAE": ".467/.467 .048/.031 .437/.437 .183/.183 .167/.166 .049/.047 .032/.015 .032/.016",
    "UniAD": ".381/.381 .063/.055 .239/.239 .188/.178 .178/.178 .045/.035 .048/.048 .044/.044",
    "RD": ".283/.283 .045/.035 .232/.232 .122/.117 .130/.130 .032/.026 .040/.027 .039/.027",
    "PatchCore": ".372/.372 .058/.015 .334/.321 .186/.148 .165/.149 .047/.021 .058/.025 .074/.049",
}
"""Mean Dice of a person, by cohort: at the best threshold of the test set, and at that of the
validation part. Digitised from the vector figure of the benchmark's repository, to about 0.001;
with the median or without, and of which of its two thresholds, is not said there."""


def _entries() -> tuple[Entry, ...]:
    return tuple(
        Entry(
            label=label,
            experiment=experiment(_OURS[label]) if label in _OURS else None,
            role=need.role,
            published={
                "dice_s_mean": Published(value=float(estimated), digitised=True),
                "dice_s_best_on_test": Published(value=float(best), digitised=True),
            },
        )
        for label, row in _FIGURE.items()
        for need, cell in zip(_COHORTS, row.split(), strict=True)
        for best, estimated in [cell.split("/")]
    )


FROTSCHER_2025 = Paper(
    key="frotscher2025",
    citation=(
        "Frotscher, Baumgartner, Wolfers: benchmark of unsupervised anomaly detection in brain "
        "MRI (UAD-IMAG), arXiv 2512.01534, 2025"
    ),
    studies=(
        Study(
            key="figure-results",
            title="Mean Dice of a person of eight methods on eight cohorts, digitised",
            protocol="frotscher2025",
            training="2,976 healthy T1 scans, or 2,972 healthy T2 scans, of six scanners",
            cohorts=_COHORTS,
            entries=_entries(),
        ),
    ),
)
