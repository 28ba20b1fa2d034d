"""What is known of people: read from tables, typed, kept beside a cohort, and grouped by."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny_cohorts import write_healthy

from uadray.errors import ConfigError, NoScanFoundError, StoreError
from uadray.preparation.covariates import age_of, covariates_of, doubt_of_age, with_table
from uadray.preparation.layouts import LAYOUTS, Scan
from uadray.preparation.plan import make_plan, planned_scans
from uadray.preparation.settings import PrepareConfig, SplitConfig
from uadray.preparation.splits import split_scans
from uadray.store import open_cohort, verify
from uadray.strata import By, groups


def scans_of(**columns: list[str]) -> list[Scan]:
    count = len(next(iter(columns.values())))
    return [
        Scan(
            id=f"sub-{k:02d}",
            subject=f"sub-{k:02d}",
            image=f"{k}.nii",
            modality="T1w",
            covariates=tuple((name, cells[k]) for name, cells in columns.items()),
        )
        for k in range(count)
    ]


class TestTypes:
    def test_numbers_words_and_what_is_missing(self) -> None:
        found = covariates_of(
            scans_of(
                age=["43", "n/a", "89+", "34,5"],
                Gender=["m", "F", "", "female"],
                group=["control", "NaN", "patient", "control"],
                empty=["", "n/a", "NA", "null"],
                code=["1", "2", "2", "1"],
            )
        )
        assert found.columns == {
            "age": (43.0, None, 89.0, 34.5),
            "sex": ("M", "F", None, "F"),
            "group": ("control", None, "patient", "control"),
            "code": (1.0, 2.0, 2.0, 1.0),
        }
        assert not found.remarks
        assert "age (3), sex (3), group (3), code (4)" in str(found)

    def test_a_word_among_numbers_is_kept_and_said(self) -> None:
        found = covariates_of(scans_of(age=["43", "fifty", "51", "52"]))
        assert found.columns["age"] == ("43", "fifty", "51", "52")
        assert "'fifty' of sub-01 is no number" in found.remarks[0]

    @pytest.mark.parametrize("text", ["inf", "1e999", "-inf"])
    def test_no_number_is_infinite(self, text: str) -> None:
        assert covariates_of(scans_of(age=["43", text])).columns["age"] == ("43", text)

    def test_ages_that_nobody_has_are_missing_and_said(self) -> None:
        found = covariates_of(scans_of(age=["43", "-9", "999", "0"], group=["-9", "2", "1", "1"]))
        assert found.columns == {"age": (43.0, None, None, 0.0), "group": (-9.0, 2.0, 1.0, 1.0)}
        (remark,) = found.remarks
        assert remark.startswith("age: '-9' of sub-01 is none in years, from 0 to 130, nor is that")
        assert "age" not in covariates_of(scans_of(age=["-9", "300"])).columns

    @pytest.mark.parametrize(
        ("text", "doubt"),
        [
            ("-3", "age: '-3' of sub-00 is none in years, from 0 to 130: taken as not known"),
            ("old", "age: 'old' of sub-00 is no number: taken as not known"),
            ("63", ""),
            ("n/a", ""),
        ],
    )
    def test_one_age_that_is_none_is_said(self, text: str, doubt: str) -> None:
        (scan,) = scans_of(age=[text])
        assert doubt_of_age(scan) == doubt
        assert age_of(scan) == (63 if text == "63" else None)

    def test_columns_of_one_meaning_stay_apart(self) -> None:
        found = covariates_of(scans_of(sex=["m"], gender=["x"], Gender=["y"]))
        assert found.columns == {"sex": ("M",), "gender": ("x",), "gender_2": ("y",)}


class TestTable:
    def test_people_are_found_by_subject_with_or_without_sub(self, tmp_path: Path) -> None:
        table = tmp_path / "people.tsv"
        table.write_text("participant_id\tage\tsex\n00\t43\tm\nsub-01\t51\tf\nsub-77\t12\tm\n")
        made = with_table(scans_of(age=["1", "2", "3"]), str(table))
        assert covariates_of(made).columns == {"age": (43.0, 51.0, 3.0), "sex": ("M", "F", None)}

    def test_a_scan_comes_before_its_person(self, tmp_path: Path) -> None:
        table = tmp_path / "people.csv"
        table.write_text("name,age\nsub-00_ses-1,43\nsub-00_ses-2,44\n")
        both = [
            Scan(id=f"sub-00_ses-{k}", subject="sub-00", image=f"{k}.nii", modality="T1w")
            for k in (1, 2)
        ]
        assert covariates_of(with_table(both, str(table))).columns == {"age": (43.0, 44.0)}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (
                "who,age\nx,43\n",
                "no column .* any of the 1 scans, such as sub-00; .* who, age",
            ),
            ("id,age\nsub-00,43\nsub-00,44\n", "two rows are of sub-00 and differ"),
            ("", "cannot be read: it is empty"),
            ("id,age\n", "no column"),
            ('id,age\n"sub-00', "cannot be read"),
        ],
    )
    def test_a_bad_table_is_named(self, text: str, message: str, tmp_path: Path) -> None:
        table = tmp_path / "people.csv"
        table.write_text(text)
        with pytest.raises(NoScanFoundError, match=message) as raised:
            with_table(scans_of(age=["1"]), str(table))
        assert str(table) in str(raised.value)

    def test_an_absent_table_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(NoScanFoundError, match="no such table"):
            with_table(scans_of(age=["1"]), str(tmp_path / "nobody.csv"))


class TestLayouts:
    def test_bids_participants(self, tmp_path: Path) -> None:
        for k in (1, 2):
            folder = tmp_path / f"sub-{k}/anat"
            folder.mkdir(parents=True)
            (folder / f"sub-{k}_T1w.nii.gz").write_bytes(b"")
        (tmp_path / "T1w.json").write_text('{"MagneticFieldStrength": 1.5}')
        (tmp_path / "participants.tsv").write_text("participant_id\tage\tsite\nsub-2\t43\tA\n")
        scans = LAYOUTS["bids"](str(tmp_path))
        assert covariates_of(scans).columns == {
            "field_strength": (1.5, 1.5),
            "age": (None, 43.0),
            "site": (None, "A"),
        }
        assert [scan.scanner for scan in scans] == ["1.5T", "1.5T"]

    def test_further_columns_of_a_table_of_scans(self, tmp_path: Path) -> None:
        table = tmp_path / "scans.csv"
        table.write_text("image,age,lesion_ml,scanner_id\nx.nii,43,7,A\n")
        (scan,) = LAYOUTS["csv"](str(table))
        assert scan.covariates == (("age", "43"), ("lesion_ml", "7"), ("scanner_id", "A"))


def test_they_decide_nothing_in_a_cohort() -> None:
    plain, known = scans_of(x=[""] * 8), scans_of(x=["1"] * 8)
    plans = []
    for scans in (plain, known):
        rows = split_scans(scans, SplitConfig(), seed=0)
        plan = make_plan(rows, PrepareConfig(), SplitConfig(), seed=0)
        plans.append((plan, list(planned_scans(rows))))
    assert plans[0] == plans[1]
    assert plans[0][0]["split"]["stratified_by"] == "scanner"


class TestCohort:
    def test_kept_completed_and_read(self, tmp_path: Path) -> None:
        cohort = write_healthy(tmp_path)
        count, before = len(cohort.subjects), cohort.fingerprint
        assert cohort.covariates.shape == (count, 0)
        ages = [None, *map(float, range(1, count))]
        cohort.add_covariates({"age": ages, "sex": ["M", None] * (count // 2)})
        cohort.add_covariates({"site": ["A"] * count})
        opened = open_cohort(cohort.url)
        assert opened.fingerprint == before
        assert opened.covariates.columns.tolist() == ["age", "sex", "site"]
        assert opened.covariates["age"].dtype == np.float64
        assert math.isnan(opened.covariates["age"][0])
        assert opened.covariates["sex"].isna().tolist() == [False, True] * (count // 2)
        pd.testing.assert_frame_equal(opened.covariates, cohort.covariates)
        assert not verify(cohort.url)
        place = Path(cohort.url, "covariates.parquet")
        written = place.stat().st_mtime_ns
        opened.add_covariates({"age": ages})
        assert place.stat().st_mtime_ns == written

    @pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.95])
    def test_damage_is_named_and_mended_by_the_same_job(self, tmp_path: Path, share: float) -> None:
        cohort = write_healthy(tmp_path)
        count = len(cohort.subjects)
        cohort.add_covariates({"age": [float(k) for k in range(count)]})
        place = Path(cohort.url, "covariates.parquet")
        whole = place.read_bytes()
        place.write_bytes(whole[: int(share * len(whole))])
        opened = open_cohort(cohort.url)
        with pytest.raises(StoreError, match=r"covariates\.parquet is damaged .* run again"):
            _ = opened.covariates
        assert any("covariates.parquet is damaged" in str(p) for p in verify(cohort.url))
        opened.add_covariates({"age": [float(k) for k in range(count)]})
        assert open_cohort(cohort.url).covariates["age"].tolist() == list(range(count))


class TestGroups:
    @pytest.mark.parametrize(
        ("text", "value", "group"),
        [
            ("age:40:60", 39.9, "age below 40"),
            ("age:40:60", 40.0, "age 40 to 60"),
            ("age:40:60", 60.0, "age from 60"),
            ("age:40", None, "age unknown"),
            ("age", 43.0, "age 43"),
            ("sex", "F", "F"),
            ("sex", "", "sex unknown"),
            ("sex", float("nan"), "sex unknown"),
        ],
    )
    def test_of_a_value(self, text: str, value: float | str | None, group: str) -> None:
        assert By.parse(text).group(value) == group
        assert str(By.parse(text)) == text

    @pytest.mark.parametrize("text", ["", ":40", "age:x", "age:60:40", "a:4:4", "a:nan", "a:"])
    def test_a_bad_one_is_refused(self, text: str) -> None:
        with pytest.raises(ConfigError, match=r"such as age:40:60, was"):
            By.parse(text)

    def test_ranges_of_words_and_unknown_columns_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="has words such as 'F'"):
            By.parse("sex:40").group("F")
        with pytest.raises(ConfigError, match="nothing is known of anybody's agee; known are age"):
            groups([By("agee")], [{"age": 43.0}])
        assert groups([By("sex"), By("age", (40,))], [{"sex": "F", "age": 43.0}, {}]) == [
            "F · age from 40",
            "sex unknown · age unknown",
        ]


def test_parts_are_alike_in_what_they_are_stratified_by() -> None:
    ages, sexes = [str(20 + k) for k in range(60)], ["M", "F", "F"] * 20
    scans = scans_of(age=ages, sex=sexes)
    config = SplitConfig(validation_share=0.2, stratify_by=("sex", "age:40:60"))
    rows = split_scans(scans, config, seed=3)
    plan = make_plan(rows, PrepareConfig(), config, seed=3)
    assert plan["split"]["stratified_by"] == ["sex", "age:40:60"]
    known = {scan.id: dict(scan.covariates) for scan in scans}
    by = [By.parse("sex"), By.parse("age:40:60")]
    for group, total in Counter(
        groups(by, [{"sex": v["sex"], "age": float(v["age"])} for v in known.values()])
    ).items():
        chosen = [
            scan
            for scan, part in rows
            if part == "validation"
            and groups(by, [{"sex": known[scan.id]["sex"], "age": float(known[scan.id]["age"])}])
            == [group]
        ]
        assert abs(len(chosen) - 0.2 * total) < 1
    with pytest.raises(ConfigError, match="nothing is known of anybody's weight"):
        split_scans(scans, SplitConfig(stratify_by=("weight",)), seed=0)
