"""Which scans a cohort holds and which part each belongs to, always by subject.

All functions are pure: they depend on the set of scans and the seed, not on the scans' order.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from uadray.errors import ConfigError, NoScanFoundError
from uadray.prepare.layouts import Scan
from uadray.store import Split

HEALTHY: tuple[Split, Split] = ("train", "validation")
"""Parts of a healthy cohort."""

LESIONED: tuple[Split, Split] = ("threshold", "test")
"""Parts of a cohort with lesions: where thresholds are fitted, and where they are tested."""


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """How large the parts are, in subjects."""

    validation_share: float = 0.1
    """Of a healthy cohort (section 2.1: 201 of 2008)."""
    threshold_share: float = 0.4
    """Of a cohort with lesions (section 2.1: 133 of 335 and 121 of 304)."""
    split_count: int | None = None
    """Subjects in the validation part, or the threshold part, instead of the share."""

    def __post_init__(self) -> None:
        for name in ("validation_share", "threshold_share"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"{name} must be in (0, 1), was {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which of the scans that a layout finds go into the cohort."""

    include: tuple[str, ...] = ()
    """Ids of scans or subjects to keep; empty keeps all."""
    exclude: tuple[str, ...] = ()
    """Ids of scans or subjects to leave out."""
    hold_out: int = 0
    """Subjects set aside for another cohort, drawn by the seed."""
    held_out: bool = False
    """Take the subjects set aside instead of the others."""
    parts: Literal["all", "healthy", "lesioned"] = "all"
    """`healthy`: only scans without a lesion mask; `lesioned`: only those with one."""


def draw_subjects(scans: Sequence[Scan], count: int, seed: int) -> set[str]:
    """Draw subjects at random, each scanner in proportion to its subjects.

    Args:
        scans: A subject counts for the scanner of most of its scans.
        count: Subjects to draw.
        seed: The same scans and seed draw the same subjects, in whatever order they come.

    Returns:
        `count` subjects; each scanner's number is its exact share, rounded up or down.

    Raises:
        ConfigError: there are fewer subjects than that.
    """
    scanners = _scanner_of(scans)
    if not 0 <= count <= len(scanners):
        raise ConfigError(f"cannot draw {count} of {len(scanners)} subjects: ask for fewer")
    rng = np.random.default_rng([seed, len(scanners)])
    names = np.array(sorted(set(scanners.values())))
    groups = {n: sorted(s for s, scanner in scanners.items() if scanner == n) for n in names}
    exact = np.array([len(groups[n]) for n in names]) * count / max(1, len(scanners))
    quota = np.floor(exact + 1e-9).astype(int)
    # The largest remainders get one more; a drawn number breaks ties.
    order = np.lexsort([rng.random(len(names)), -(exact - quota)])
    quota[order[: count - quota.sum()]] += 1
    return {
        str(subject)
        for name, n in zip(names, quota, strict=True)
        for subject in rng.permutation(groups[name])[:n]
    }


def _scanner_of(scans: Iterable[Scan]) -> dict[str, str]:
    counts: dict[str, Counter[str]] = {}
    for scan in scans:
        counts.setdefault(scan.subject, Counter())[scan.scanner] += 1
    # Of two scanners with as many scans, the first by name.
    return {s: min(c, key=lambda scanner: (-c[scanner], scanner)) for s, c in counts.items()}


def split_scans(
    scans: Sequence[Scan], config: SplitConfig, *, seed: int
) -> list[tuple[Scan, Split]]:
    """Split a cohort by subject, stratified by scanner, and order it.

    Scans stand part by part and in a seeded random order within each, so that every shard of a
    part is a fair sample of it.

    Args:
        scans: All healthy, or all with a lesion.
        config: How large the parts are.
        seed: Decides parts and order.

    Returns:
        Scans in the order of the cohort's rows: train and validation, or threshold and test. Each
        part has at least one subject.

    Raises:
        ConfigError: some scans have a lesion and some have none, or there are too few subjects.
    """
    lesioned = {scan.lesioned for scan in scans}
    if len(lesioned) != 1:
        number = sum(scan.lesioned for scan in scans)
        raise ConfigError(
            f"{number} of {len(scans)} scans have a lesion mask: a cohort holds healthy scans or "
            "lesioned ones; prepare two with --parts healthy and --parts lesioned"
        )
    parts, share, drawn = (
        (LESIONED, config.threshold_share, 0)
        if lesioned == {True}
        else (HEALTHY, config.validation_share, 1)
    )
    subjects = len({scan.subject for scan in scans})
    count = round(share * subjects) if config.split_count is None else config.split_count
    count = max(1, count) if config.split_count is None else count
    if not 1 <= count < subjects:
        raise ConfigError(
            f"{count} of {subjects} subjects would be the {parts[drawn]} part, but each part needs "
            "at least one: give more scans or another --split-count"
        )
    chosen = draw_subjects(scans, count, seed)
    ordered: list[tuple[Scan, Split]] = []
    rng = np.random.default_rng([seed, len(scans), 1])
    for k, part in enumerate(parts):
        members = [s for s in scans if (s.subject in chosen) == (k == drawn)]
        members.sort(key=lambda scan: scan.id)
        ordered += [(members[i], part) for i in rng.permutation(len(members))]
    return ordered


def select_scans(scans: Sequence[Scan], selection: Selection, *, seed: int) -> list[Scan]:
    """Apply a selection: parts, include, exclude, then the subjects held out.

    Raises:
        ConfigError: an id to include or exclude belongs to no scan, or `held_out` is asked for
            without `hold_out`.
        NoScanFoundError: nothing is left.
    """
    known = {scan.id for scan in scans} | {scan.subject for scan in scans}
    if unknown := sorted({*selection.include, *selection.exclude} - known):
        raise ConfigError(f"no scan or subject is named {', '.join(unknown)}: look at the ids")
    if selection.held_out and not selection.hold_out:
        raise ConfigError("--held-out takes the subjects that --hold-out N sets aside: give N")
    kept = [
        scan
        for scan in scans
        if (selection.parts == "all" or scan.lesioned == (selection.parts == "lesioned"))
        and (not selection.include or {scan.id, scan.subject} & set(selection.include))
        and not {scan.id, scan.subject} & set(selection.exclude)
    ]
    if selection.hold_out:
        aside = draw_subjects(kept, selection.hold_out, seed)
        kept = [scan for scan in kept if (scan.subject in aside) == selection.held_out]
    if not kept:
        raise NoScanFoundError(
            f"none of {len(scans)} scans is left after parts, include, exclude and hold-out: "
            "loosen them"
        )
    return kept
