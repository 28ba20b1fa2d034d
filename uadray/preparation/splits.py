"""Which scans a cohort holds and which part each belongs to, always by subject.

All functions are pure: they depend on the set of scans and the seed, not on the scans' order.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from uadray import strata
from uadray.errors import ConfigError, NoScanFoundError
from uadray.preparation.covariates import covariates_of
from uadray.preparation.layouts import Scan
from uadray.preparation.settings import PRESETS, Preset, Selection, SplitConfig
from uadray.store import Split
from uadray.strata import SCANNER

HEALTHY: tuple[Split, Split] = ("train", "validation")
"""Parts of a healthy cohort."""

LESIONED: tuple[Split, Split] = ("threshold", "test")
"""Parts of a cohort with lesions: where thresholds are fitted, and where they are tested."""


def draw_subjects(
    scans: Sequence[Scan], count: int, seed: int, by: Sequence[str] = (SCANNER,)
) -> set[str]:
    """Draw subjects at random, each group in proportion to its subjects.

    Args:
        scans: A subject counts for the group of most of its scans.
        count: Subjects to draw.
        seed: The same scans and seed draw the same subjects, in whatever order they come.
        by: What groups are of, see `SplitConfig.stratify_by`.

    Returns:
        `count` subjects; each group's number is its exact share, rounded up or down.

    Raises:
        ConfigError: there are fewer subjects than that, or nothing is known of what groups are of.
    """
    group_of = _group_of(scans, by)
    if not 0 <= count <= len(group_of):
        raise ConfigError(f"cannot draw {count} of {len(group_of)} subjects: ask for fewer")
    rng = np.random.default_rng([seed, len(group_of)])
    names = np.array(sorted(set(group_of.values())))
    groups = {n: sorted(s for s, group in group_of.items() if group == n) for n in names}
    exact = np.array([len(groups[n]) for n in names]) * count / max(1, len(group_of))
    quota = np.floor(exact + 1e-9).astype(int)
    # The largest remainders get one more; a drawn number breaks ties.
    order = np.lexsort([rng.random(len(names)), -(exact - quota)])
    quota[order[: count - quota.sum()]] += 1
    return {
        str(subject)
        for name, n in zip(names, quota, strict=True)
        for subject in rng.permutation(groups[name])[:n]
    }


def _group_of(scans: Sequence[Scan], by: Sequence[str]) -> dict[str, str]:
    """The group of each subject."""
    names = [scan.scanner for scan in scans]
    if tuple(by) != (SCANNER,):
        known = covariates_of(scans)
        people = [{**known.of(place), SCANNER: scan.scanner} for place, scan in enumerate(scans)]
        names = strata.groups([strata.By.parse(text) for text in by], people)
    counts: dict[str, Counter[str]] = {}
    for scan, name in zip(scans, names, strict=True):
        counts.setdefault(scan.subject, Counter())[name] += 1
    # Of two groups with as many scans, the first by name.
    return {s: min(c, key=lambda name: (-c[name], name)) for s, c in counts.items()}


def split_scans(
    scans: Sequence[Scan], config: SplitConfig, *, seed: int
) -> list[tuple[Scan, Split]]:
    """Split a cohort by subject, stratified by scanner or as `config` says, and order it.

    Scans stand part by part and in a seeded random order within each, so that every shard of a
    part is a fair sample of it.

    Args:
        scans: All healthy, or all with a lesion.
        config: How large the parts are.
        seed: Decides parts and order.

    Returns:
        Scans in the order of the cohort's rows: train, validation and, where it is asked for, test;
        or threshold and test. Each part has at least one subject; the threshold part may be left
        out.

    Raises:
        ConfigError: some scans have a lesion and some have none, two share an id, there are too few
            subjects, or not as many as the preset splits.
    """
    _check_ids(scans)
    lesioned = {scan.lesioned for scan in scans}
    if len(lesioned) != 1:
        number = sum(scan.lesioned for scan in scans)
        raise ConfigError(
            f"{number} of {len(scans)} scans have a lesion mask: a cohort holds healthy scans or "
            "lesioned ones; prepare two with --parts healthy and --parts lesioned"
        )
    parts, drawn = (LESIONED, 0) if lesioned == {True} else (HEALTHY, 1)
    scans, aside = _set_aside(scans, config, parts, seed)
    count = _count_to_draw(len({scan.subject for scan in scans}), config, parts, drawn)
    chosen = draw_subjects(scans, count, seed, config.stratify_by)
    ordered: list[tuple[Scan, Split]] = []
    rng = np.random.default_rng([seed, len(scans), 1])
    for k, part in enumerate(parts):
        members = [s for s in scans if (s.subject in chosen) == (k == drawn)]
        members.sort(key=lambda scan: scan.id)
        ordered += [(members[i], part) for i in rng.permutation(len(members))]
    return ordered + [(scan, "test") for scan in aside]


def _set_aside(
    scans: Sequence[Scan], config: SplitConfig, parts: tuple[Split, Split], seed: int
) -> tuple[Sequence[Scan], list[Scan]]:
    """The scans of a healthy cohort without its test part, and that part in a random order."""
    if not config.test_count:
        return scans, []
    if parts == LESIONED:
        raise ConfigError(
            "test_count is for healthy cohorts; of one with lesions all but the threshold part is "
            "tested: give --split-count"
        )
    # Another stream than that of the validation part, which is drawn of those that stay.
    rng = np.random.default_rng([seed, len(scans), 2])
    chosen = draw_subjects(scans, config.test_count, int(rng.integers(2**31)), config.stratify_by)
    aside = sorted((s for s in scans if s.subject in chosen), key=lambda scan: scan.id)
    rest = [scan for scan in scans if scan.subject not in chosen]
    return rest, [aside[i] for i in rng.permutation(len(aside))]


def _check_ids(scans: Sequence[Scan]) -> None:
    counts = Counter(scan.id for scan in scans)
    if twice := sorted(name for name, count in counts.items() if count > 1):
        raise ConfigError(
            f"{len(twice)} ids belong to more than one scan: {', '.join(twice[:12])}: leave all "
            "but one of each out, or give them ids of their own"
        )


def _count_to_draw(
    subjects: int, config: SplitConfig, parts: tuple[Split, Split], drawn: int
) -> int:
    """Subjects in the part that is drawn; the other part takes the rest."""
    share = config.threshold_share if parts == LESIONED else config.validation_share
    if config.preset != "none":
        return _preset_count(subjects, config.preset, parts, drawn)
    count = max(1, round(share * subjects)) if config.split_count is None else config.split_count
    if parts == LESIONED and (
        config.split_count == 0 or (config.split_count is None and not share)
    ):
        return 0
    if not 1 <= count < subjects:
        raise ConfigError(
            f"{count} of {subjects} subjects would be the {parts[drawn]} part, but each part needs "
            "at least one: give more scans or another --split-count"
            + (" (0 tests all of them)" if parts == LESIONED else "")
        )
    return count


def _preset_count(subjects: int, preset: Preset, parts: tuple[Split, Split], drawn: int) -> int:
    counts = {
        kind: sizes
        for kind, sizes in PRESETS[preset].items()
        if (kind == "healthy") == (parts == HEALTHY)
    }
    for sizes in counts.values():
        if sum(sizes) == subjects:
            return sizes[drawn]
    known = " or ".join(f"{sum(n)} ({kind}: {n[0]} + {n[1]})" for kind, n in counts.items())
    shares = [max(1, round(n[drawn] / sum(n) * subjects)) for n in counts.values()]
    alike = " or ".join(f"--split-count {count}" for count in dict.fromkeys(shares))
    raise ConfigError(
        f"preset {preset} splits {known} subjects, but there are {subjects}: leave the preset out "
        f"and keep its proportions with {alike}, or bring the cohort to the paper's size with "
        "--include or --exclude"
    )


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
