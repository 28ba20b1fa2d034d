"""What a table or a figure of a paper is made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from uadray.config import Experiment
from uadray.errors import ConfigError


def figures() -> set[str]:
    """Names of figures, as an evaluation writes them."""
    # Here, since the table computes, and the papers' names are imported for help texts.
    from uadray.metrics.table import METRICS

    return {*METRICS, "seconds_per_slice", *PRINTED_ALONE}


PRINTED_ALONE = ("dice_s_best_on_test", "auprc_s_mean")
"""Figures of papers that no evaluation of ours has: the mean Dice of a person at the threshold that
is best for the test set, and the mean over persons of the area under the precision-recall curve."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """A figure as printed, percent turned to fractions."""

    value: float
    """The figure: a fraction of 1, or seconds."""
    deviation: float | None = None
    """Standard deviation, where the paper gives one."""
    deviation_over: Literal["subjects", "folds"] = "subjects"
    """What it is over."""
    digitised: bool = False
    """Whether it was read off a figure; otherwise it is printed as a number."""


@dataclass(frozen=True, kw_only=True)
class CohortNeed:
    """A cohort that a study is evaluated on."""

    role: str
    """Short name by which a user says which of his stores it is, such as `tumour`."""
    data: str
    """What the paper used."""
    modality: str
    """T1, T1ce or FLAIR."""
    num_threshold: int | None = None
    """Subjects that its threshold was fitted on; None where it was fitted elsewhere."""
    num_test: int | None = None
    """Subjects that its figures are of; None where the paper does not say."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One method's row, or one point of a figure."""

    label: str
    """As printed."""
    experiment: Experiment | None
    """Ours with the paper's settings; None where this method is not built."""
    role: str
    """Of the cohort; empty for a figure over all cohorts of the study."""
    protocol: str = ""
    """Its own evaluation protocol, where it is not the study's."""
    published: Mapping[str, Published] = field(default_factory=dict)
    """By name of the metric; empty where the paper shows a picture without numbers."""


@dataclass(frozen=True, kw_only=True)
class Statistic:
    """Statistics of a cohort's lesions (Meissen 2021, table 1)."""

    role: str
    """Of the cohort."""
    components_per_scan: float
    """Mean number of 26-connected lesion components."""
    voxels_per_component: float
    """Their mean size in voxels of 1 mm."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """One table or figure."""

    key: str
    """`table-1`, `figure-5`."""
    title: str
    """What it shows, in our words."""
    protocol: str
    """Name of the evaluation protocol."""
    training: str
    """What the paper trained on."""
    cohorts: tuple[CohortNeed, ...]
    """What it is evaluated on."""
    entries: tuple[Entry, ...] = ()
    """Rows or points, in the paper's order."""
    statistics: tuple[Statistic, ...] = ()
    """For a table of lesion statistics."""

    def __post_init__(self) -> None:
        roles = {need.role for need in self.cohorts}
        for entry in self.entries:
            if entry.role and entry.role not in roles:
                raise ConfigError(f"{self.key}: entry {entry.label} names no cohort: {entry.role}")

    def check_figures(self) -> None:
        """Refuse figures that no evaluation writes.

        Raises:
            ConfigError: an entry has one.
        """
        for entry in self.entries:
            if unknown := set(entry.published) - figures():
                raise ConfigError(f"{self.key}: entry {entry.label} has unknown {sorted(unknown)}")

    def experiments(self) -> list[Experiment]:
        """The distinct experiments that it needs, in order."""
        experiments = [entry.experiment for entry in self.entries if entry.experiment is not None]
        return list(dict.fromkeys(experiments))

    def missing_methods(self) -> list[str]:
        """Labels of rows whose method is not built."""
        return list(dict.fromkeys(e.label for e in self.entries if e.experiment is None))


@dataclass(frozen=True, kw_only=True)
class Paper:
    """One paper."""

    key: str
    """`bengs2021`."""
    citation: str
    """Authors, title, year."""
    studies: tuple[Study, ...]
    """Its tables and figures."""

    def select(self, tables: Sequence[str] = (), figures: Sequence[str] = ()) -> list[Study]:
        """Tables and figures by their numbers, in the paper's order; all where none is named.

        `4` names table 4 with all its parts, `4-I` one of them.

        Raises:
            ConfigError: there is none of a number.
        """
        wanted = [f"table-{n}" for n in tables] + [f"figure-{n}" for n in figures]
        keys = [study.key for study in self.studies]
        if unknown := [w for w in wanted if not any(_names(w, key) for key in keys)]:
            raise ConfigError(f"{self.key} has no {unknown[0]}; known are {', '.join(keys)}")
        studies = [s for s in self.studies if not wanted or any(_names(w, s.key) for w in wanted)]
        for study in studies:
            study.check_figures()
        return studies

    def study(self, key: str) -> Study:
        """One of them.

        Raises:
            ConfigError: there is none of that key.
        """
        for study in self.studies:
            if study.key == key:
                return study
        known = ", ".join(study.key for study in self.studies)
        raise ConfigError(f"{self.key} has no {key!r}; known are {known}")


def _names(wanted: str, key: str) -> bool:
    return key == wanted or key.startswith(f"{wanted}-")
