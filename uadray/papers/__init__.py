"""The papers' tables and figures as data: experiments, cohorts, protocol, published figures."""

from uadray.papers.baur2018 import BAUR_2018
from uadray.papers.behrendt2025 import BEHRENDT_2025
from uadray.papers.bengs2021 import BENGS_2021
from uadray.papers.frotscher2025 import FROTSCHER_2025
from uadray.papers.meissen2021 import MEISSEN_2021
from uadray.papers.study import (
    CohortNeed,
    Entry,
    Paper,
    Published,
    Statistic,
    Study,
)

PAPERS: dict[str, Paper] = {
    p.key: p for p in (BENGS_2021, BAUR_2018, MEISSEN_2021, BEHRENDT_2025, FROTSCHER_2025)
}
"""By the name that the jobs take."""

__all__ = [
    "BAUR_2018",
    "BEHRENDT_2025",
    "BENGS_2021",
    "FROTSCHER_2025",
    "MEISSEN_2021",
    "PAPERS",
    "CohortNeed",
    "Entry",
    "Paper",
    "Published",
    "Statistic",
    "Study",
]
