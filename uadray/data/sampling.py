"""Who sees what and when: pure functions of (seed, epoch, rank), so that any run can be repeated.

A worker keeps its own part of the rows for a whole fit; an epoch permutes the shards of that part,
mixes them by twos, and permutes what is in hand. Step k of an epoch is batch k of every worker.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from uadray.config import FitConfig
from uadray.errors import ConfigError
from uadray.strata import SCANNER, By, groups

if TYPE_CHECKING:
    from uadray.store import Cohort

MIX_SHARDS = 2
"""Shards whose volumes are mixed before they are cut into batches."""


def subset_rows(
    rows: np.ndarray,
    subjects: Sequence[Hashable],
    scanners: Sequence[str],
    *,
    share: float,
    seed: int,
) -> np.ndarray:
    """The rows that a fit on a share of the data learns from.

    A smaller share is a subset of a larger one. Subjects are taken whole, each scanner in
    proportion to its subjects.

    Args:
        rows: All rows of the training part, ascending.
        subjects: Whose scan each row is.
        scanners: Where each was taken.
        share: Of the subjects, in (0, 1]; at least one is kept.
        seed: The run's seed; neither workers nor epochs move the choice.

    Returns:
        The chosen rows, ascending.
    """
    if share == 1:
        return rows
    import pandas as pd

    codes, names = pd.factorize(np.asarray(subjects, object))
    _, first = np.unique(codes, return_index=True)
    scanner_of = np.asarray(scanners, object)[first]
    rng = np.random.default_rng([seed, len(names), _SUBSET])
    place, tie = np.empty(len(names)), np.empty(len(names))
    for scanner in sorted(set(scanner_of)):
        members = np.flatnonzero(scanner_of == scanner)
        # Evenly spread over [0, 1): any beginning of the order holds each scanner's share.
        spread = (rng.random() + np.arange(len(members))) / len(members)
        drawn = members[rng.permutation(len(members))]
        place[drawn], tie[drawn] = spread, rng.random(len(members))
    kept = np.zeros(len(names), bool)
    kept[np.lexsort((tie, place))[: max(1, round(share * len(names)))]] = True
    return rows[kept[codes]]


_SUBSET = 0x5B5E7
"""Parts the draw of a subset from all other draws of the same seed."""


class FitRows(NamedTuple):
    """Rows of a cohort that a fit uses, ascending; nobody is in both."""

    train: np.ndarray
    """What it learns from."""
    validation: np.ndarray
    """What is held back, to choose the epoch by."""


def fit_rows(cohort: "Cohort", fit: FitConfig) -> FitRows:
    """Who a fit learns from and who is held back: by the cohort's split, or by a fold.

    Args:
        cohort: Healthy.
        fit: Says the fold, and which share of those that are left is learned from (`subset_rows`).

    Raises:
        ConfigError: there are fewer people than folds.
    """
    if fit.folds:
        parts = fold_rows(cohort, fit.folds)
        validation = parts.pop(fit.fold - 1)
        rows = np.sort(np.concatenate(parts))
    else:
        rows, validation = cohort.rows("train"), cohort.rows("validation")
    if fit.data_share == 1:
        return FitRows(rows, validation)
    table = cohort.columns("row", "subject", "scanner")
    table = table[table["row"].isin(rows)]
    subjects, scanners = (table[name].to_numpy(object) for name in ("subject", "scanner"))
    kept = subset_rows(rows, subjects, scanners, share=fit.data_share, seed=fit.seed)
    return FitRows(kept, validation)


def fold_rows(cohort: "Cohort", folds: int) -> list[np.ndarray]:
    """The rows of a healthy cohort in folds, by person; its test part is in none.

    People are dealt out group by group, each group in an order that is drawn once for all fits:
    folds differ by one person at most, and so does each group's number in them. Groups are those
    that the cohort's own split is stratified by. Neither the seed of a fit nor its workers move it.

    Args:
        cohort: Healthy.
        folds: Their number, at least 2.

    Returns:
        One array of rows a fold, ascending; each row of the training and validation part is in one.

    Raises:
        ConfigError: there are fewer people than folds, or nothing is known of what the cohort's
            split is stratified by.
    """
    table = cohort.columns("row", "subject", "scanner", "split")
    split = cohort.attributes["plan"].get("split") or {}
    by = split.get("stratified_by", SCANNER)
    names = table["scanner"].astype(str).tolist()
    if by != SCANNER:
        known = cohort.covariates.to_dict("records")
        people = [{**one, SCANNER: name} for one, name in zip(known, names, strict=True)]
        names = groups([By.parse(text) for text in by], people)
    counts: dict[str, Counter[str]] = {}
    used = (table["split"] != "test").tolist()
    for subject, name, is_used in zip(table["subject"].astype(str), names, used, strict=True):
        if is_used:
            counts.setdefault(subject, Counter())[name] += 1
    if len(counts) < folds:
        raise ConfigError(
            f"{cohort.url} has {len(counts)} people to learn from and validate on, too few for "
            f"{folds} folds: choose fewer"
        )
    # Who has scans of several groups counts for the most frequent, the first by name of two.
    group_of = {s: min(c, key=lambda name: (-c[name], name)) for s, c in counts.items()}
    drawn = np.random.default_rng([_FOLDS, len(group_of)]).permutation(sorted(group_of))
    dealt = sorted(drawn.tolist(), key=lambda subject: group_of[subject])
    fold_of = {subject: place % folds for place, subject in enumerate(dealt)}
    subjects = table["subject"].astype(str)
    each = [fold_of[s] if is_used else -1 for s, is_used in zip(subjects, used, strict=True)]
    rows = table["row"].to_numpy(np.int64)
    return [rows[np.array(each) == fold] for fold in range(folds)]


def folds_digest(cohort: "Cohort", folds: int) -> str:
    """16 hexadecimal digits over who is in which fold; covariates, which decide it, may change."""
    parts = [part.tolist() for part in fold_rows(cohort, folds)]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


_FOLDS = 0xF01D5
"""Parts the draw of folds from all other draws."""


def batch_share(batch_size: int, rank: int, world: int) -> int:
    """Samples of a batch that fall to one of `world` workers; the shares differ by one at most."""
    return batch_size // world + (rank < batch_size % world)


def rank_rows(rows: np.ndarray, rank: int, world: int, batch_size: int) -> np.ndarray:
    """The part of `rows` that one of `world` workers trains on.

    The parts are disjoint, leave no row out, and are as large as the workers' shares of a batch, so
    that all workers have batches for the same number of steps.

    Raises:
        ConfigError: there are more workers than samples in a batch, or than rows.
    """
    if world > min(batch_size, len(rows)):
        raise ConfigError(
            f"{world} workers cannot share batches of {batch_size} out of {len(rows)} training "
            "volumes: each needs at least one of both; lower --scale.num-workers"
        )
    # Rows that fill no whole batch are shared out as a batch of that many.
    size = min(batch_size, len(rows))
    start = sum(batch_share(size, r, world) for r in range(rank))
    stop = start + batch_share(size, rank, world)
    return rows[len(rows) * start // size : len(rows) * stop // size]


def step_sizes(samples: Sequence[int], batch_size: int) -> list[int]:
    """Samples in each step of an epoch, over all workers.

    Args:
        samples: Samples of each worker in an epoch; slices that hold brain differ from part to
            part.
        batch_size: Samples in a batch over all workers.
    """
    shares = [batch_share(batch_size, rank, len(samples)) for rank in range(len(samples))]
    steps = max(math.ceil(n / share) for n, share in zip(samples, shares, strict=True))
    return [
        sum(min(max(n - k * share, 0), share) for n, share in zip(samples, shares, strict=True))
        for k in range(steps)
    ]


def epoch_groups(rows: np.ndarray, shard: int, *, seed: int, epoch: int) -> list[np.ndarray]:
    """The order of one epoch: groups of rows that are read together, permuted inside.

    Args:
        rows: A worker's rows.
        shard: Volumes in a shard of the store.
        seed: The run's seed.
        epoch: The epoch, from 0.
    """
    rng = np.random.default_rng([seed, epoch])
    places = same_block(rows, shard)
    order = rng.permutation(len(places))
    groups = []
    for i in range(0, len(order), MIX_SHARDS):
        mixed = np.sort(np.concatenate([places[k] for k in order[i : i + MIX_SHARDS]]))
        groups.append(rng.permutation(rows[mixed]))
    return groups


def same_block(rows: np.ndarray, size: int) -> list[np.ndarray]:
    """Where in `rows` those of each block of `size` rows stand, by ascending block.

    One sort, however many blocks there are: a million rows take a tenth of a second.
    """
    blocks = rows // size
    order = np.argsort(blocks, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(blocks[order])) + 1) if len(rows) else []


def slice_order(has_brain: np.ndarray, *, seed: int, epoch: int, group: int) -> np.ndarray:
    """Which axial slices of a group's volumes come in which order.

    Args:
        has_brain: (volumes, Z) bool.
        seed: The run's seed.
        epoch: The epoch, from 0.
        group: Number of the group in the epoch.

    Returns:
        (slices, 2) int64: volume and z; each slice that holds brain, once.
    """
    rng = np.random.default_rng([seed, epoch, 1 + group])
    return rng.permutation(np.argwhere(has_brain))
