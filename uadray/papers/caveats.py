"""Where our data is not a paper's, in words, from what the stores record."""

from collections.abc import Iterable

from uadray.papers.study import CohortNeed, Study
from uadray.store import Cohort

PHANTOM = "phantom://"
"""Begin of the source of an invented subject."""

SEMI_SYNTHETIC = "semi-synthetic"
"""Begin of the note of a subject whose lesion was put into a healthy scan."""


def kind(cohort: Cohort) -> str:
    """`phantom`, `semi-synthetic` or `scans`."""
    table = cohort.subjects
    if table["source"].str.startswith(PHANTOM).any():
        return "phantom"
    if table["notes"].fillna("").str.contains(SEMI_SYNTHETIC).any():
        return "semi-synthetic"
    return "scans"


def differences(need: CohortNeed, cohort: Cohort) -> list[str]:
    """How a cohort differs from the one that a paper was evaluated on.

    Args:
        need: What the paper used.
        cohort: What stands in its place.
    """
    head = f"{need.role}: the paper has {need.data} ({need.modality})"
    counts = _counts(cohort, ("threshold", "test"))
    what = {
        "phantom": "these are phantoms: invented brains and lesions, no patients",
        "semi-synthetic": "these are healthy scans with semi-synthetic lesions, no patients",
        "scans": "these are other scans, or the same ones: the store does not know which set "
        "they are of",
    }[kind(cohort)]
    told = [f"{head}; {what}."]
    modalities = sorted(set(cohort.subjects["modality"]))
    if kind(cohort) == "phantom":
        if need.modality != "T1":
            told.append(f"{need.role}: the phantoms look like T1, not like {need.modality}.")
        drawn = sorted({note.split(", ")[-1] for note in cohort.subjects["notes"] if note})
        if drawn and need.role not in drawn:
            told.append(f"{need.role}: lesions of kind {', '.join(drawn)} stand in for it.")
    elif {_plain(m) for m in modalities} != {_plain(need.modality)}:
        told.append(f"{need.role}: of modality {', '.join(modalities)}, not {need.modality}.")
    wanted = (need.num_threshold, need.num_test)
    if any(n is not None and n != count for n, count in zip(wanted, counts, strict=True)):
        asked = " and ".join("?" if n is None else str(n) for n in wanted)
        told.append(
            f"{need.role}: {counts[0]} subjects to fit the threshold and {counts[1]} to test; the "
            f"paper has {asked}."
        )
    return told


def healthy_differences(study: Study, cohort: Cohort | None) -> list[str]:
    """How the healthy cohort differs from what a paper trained on."""
    if cohort is None:
        return []
    train, validation = _counts(cohort, ("train", "validation"))
    of = {
        "phantom": "phantoms (invented brains)",
        "semi-synthetic": "scans, some with semi-synthetic lesions",
        "scans": "scans",
    }[kind(cohort)]
    z, y, x = cohort.shape
    return [
        f"healthy: the paper has {study.training}; here {train} {of} to learn from and "
        f"{validation} to choose the epoch, on a grid of {z} x {y} x {x}."
    ]


def _counts(cohort: Cohort, splits: Iterable[str]) -> list[int]:
    return [int((cohort.subjects["split"] == split).sum()) for split in splits]


def _plain(modality: str) -> str:
    return modality.lower().removesuffix("w")
