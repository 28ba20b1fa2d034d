"""Folds of a healthy cohort's people: each person held back once, groups even."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tiny_cohorts import tiny_vae, write_healthy
from tiny_models import finished_run

from uadray import files, npz
from uadray.config import FitConfig, experiment, to_json, with_fit
from uadray.data.sampling import fit_rows, fold_rows, folds_digest
from uadray.errors import CheckpointError, ConfigError
from uadray.runs.folder import Run
from uadray.runs.learned import PEOPLE
from uadray.store import Cohort


class Table:
    """A cohort as far as folds look at it."""

    url = "somewhere.zarr"

    def __init__(self, table: pd.DataFrame, by: Any = None, known: Any = None) -> None:
        self._table = table.assign(row=range(len(table)))
        split = {} if by is None else {"split": {"stratified_by": by}}
        self.attributes = {"plan": split}
        self.covariates = known

    def columns(self, *names: str) -> pd.DataFrame:
        return self._table[list(names)]


def people(num: int, *, scans: int = 1) -> pd.DataFrame:
    """Some people, each with as many scans, on scanners of unlike sizes; a fifth are controls."""
    subjects = [f"sub-{k:03d}" for k in range(num) for _ in range(scans)]
    scanners = [("one", "one", "one", "two", "three")[k % 5] for k in range(num)]
    return pd.DataFrame(
        {
            "subject": subjects,
            "scanner": np.repeat(scanners, scans),
            "split": np.repeat(["train", "validation", "train", "train", "test"] * num, scans)[
                : num * scans
            ],
        }
    )


@pytest.mark.parametrize(("num", "folds", "scans"), [(40, 5, 1), (43, 4, 2), (11, 2, 3)])
def test_each_person_is_held_back_once(num: int, folds: int, scans: int) -> None:
    table = people(num, scans=scans)
    parts = fold_rows(Table(table), folds)  # type: ignore[arg-type]
    used = np.flatnonzero(table["split"] != "test")
    assert sorted(np.concatenate(parts).tolist()) == used.tolist()
    assert all((np.diff(part) > 0).all() for part in parts)
    members = [set(table["subject"][part]) for part in parts]
    assert sum(map(len, members)) == len(set.union(*members))
    sizes = [len(one) for one in members]
    assert max(sizes) - min(sizes) <= 1
    scanner_of = dict(zip(table["subject"], table["scanner"], strict=True))
    for scanner in ("one", "two"):
        each = [sum(scanner_of[one] == scanner for one in some) for some in members]
        assert max(each) - min(each) <= 1


def test_folds_are_stratified_as_the_split_is() -> None:
    table = people(60)
    known = pd.DataFrame({"sex": ["f" if k % 3 else "m" for k in range(60)]})
    parts = fold_rows(Table(table, ["scanner", "sex"], known), 4)  # type: ignore[arg-type]
    groups = list(zip(table["scanner"], known["sex"], strict=True))
    used = {groups[row] for part in parts for row in part}
    for group in used:
        each = [Counter(groups[row] for row in part)[group] for part in parts]
        assert max(each) - min(each) <= 1
    by_scanner = fold_rows(Table(table), 4)  # type: ignore[arg-type]
    assert any(a.tolist() != b.tolist() for a, b in zip(parts, by_scanner, strict=True))


def test_the_order_of_rows_moves_nobody() -> None:
    table = people(40)
    turned = table.iloc[::-1].reset_index(drop=True)
    ours, theirs = (
        [set(t["subject"][part]) for part in fold_rows(Table(t), 5)]  # type: ignore[arg-type]
        for t in (table, turned)
    )
    assert ours == theirs


def test_too_few_people() -> None:
    with pytest.raises(ConfigError, match="4 people to learn from and validate on, too few for 5"):
        fold_rows(Table(people(5)), 5)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return write_healthy(tmp_path_factory.mktemp("folds"))


def test_a_fit_learns_from_all_folds_but_its_own(cohort: Cohort) -> None:
    parts = fold_rows(cohort, 4)
    for fold in (1, 2, 3, 4):
        rows = fit_rows(cohort, FitConfig(folds=4, fold=fold))
        assert rows.validation.tolist() == parts[fold - 1].tolist()
        rest = np.concatenate(parts[: fold - 1] + parts[fold:])
        assert rows.train.tolist() == sorted(rest.tolist())
        half = fit_rows(cohort, FitConfig(folds=4, fold=fold, data_share=0.5, seed=3))
        assert set(half.train.tolist()) < set(rows.train.tolist())
        assert half.validation.tolist() == rows.validation.tolist()
        other = fit_rows(cohort, FitConfig(folds=4, fold=fold, seed=9))
        assert other.train.tolist() == rows.train.tolist()
    own = fit_rows(cohort, FitConfig())
    assert own.train.tolist() == cohort.rows("train").tolist()
    assert own.validation.tolist() == cohort.rows("validation").tolist()


def test_settings() -> None:
    assert "fold" not in to_json(FitConfig())
    assert to_json(FitConfig(folds=5, fold=2))["fold"] == 2
    plain = experiment("3D-None")
    prints = {with_fit(plain, folds=5, fold=k).fingerprint for k in (1, 2)} | {plain.fingerprint}
    assert len(prints) == 3
    for wrong in ({"folds": 1, "fold": 1}, {"folds": 5}, {"fold": 2}, {"folds": 5, "fold": 6}):
        with pytest.raises(ConfigError, match=r"fit\.fold"):
            FitConfig(**wrong)


def test_a_fold_knows_its_people_and_its_folds(cohort: Cohort, tmp_path: Path) -> None:
    what = with_fit(tiny_vae(3), folds=4, fold=2)
    run = finished_run(tmp_path / "run", cohort, what)
    assert run.config["folds"] == folds_digest(cohort, 4)
    # Who is validated on is seen as well.
    kept = npz.unpack(files.read_bytes(f"{run.url}/{PEOPLE}"))
    assert len(set(kept["subject"].tolist())) == len(cohort.subjects)
    assert Run.create(run.url, what, cohort).url == run.url
    run.note({"folds": "0" * 16})
    with pytest.raises(CheckpointError, match="fitted on other folds"):
        Run.create(run.url, what, cohort)


def test_digest_tells_folds_apart(cohort: Cohort) -> None:
    assert folds_digest(cohort, 4) == folds_digest(cohort, 4) != folds_digest(cohort, 5)
