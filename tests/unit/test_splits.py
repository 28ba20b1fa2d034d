import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from uadray.errors import ConfigError, NoScanFoundError
from uadray.preparation.layouts import Scan
from uadray.preparation.settings import PRESETS, Selection, SplitConfig
from uadray.preparation.splits import draw_subjects, select_scans, split_scans


def scan(subject: int, session: int = 0, scanner: str = "", lesion: str = "") -> Scan:
    name = f"s{subject:03d}"
    return Scan(
        id=f"{name}_{session}",
        subject=name,
        image=f"/{name}_{session}.nii",
        modality="T1w",
        scanner=scanner,
        lesion=lesion,
    )


@st.composite
def cohorts(draw) -> list[Scan]:
    sessions = draw(st.lists(st.integers(1, 3), min_size=2, max_size=40))
    scanners = draw(st.lists(st.sampled_from("ABC"), min_size=40, max_size=40))
    lesion = draw(st.sampled_from(["", "/mask.nii"]))
    return [
        scan(k, session, scanners[k], lesion)
        for k, count in enumerate(sessions)
        for session in range(count)
    ]


@given(scans=cohorts(), seed=st.integers(0, 99))
def test_no_subject_on_two_sides(scans, seed):
    rows = split_scans(scans, SplitConfig(), seed=seed)
    assert sorted(s.id for s, _ in rows) == sorted(s.id for s in scans)
    sides: dict[str, set[str]] = {}
    for one, part in rows:
        sides.setdefault(one.subject, set()).add(part)
    assert all(len(side) == 1 for side in sides.values())
    parts = ["threshold", "test"] if scans[0].lesion else ["train", "validation"]
    # Both parts are there, one block after the other.
    assert list(dict.fromkeys(part for _, part in rows)) == parts
    drawn = parts[0] if scans[0].lesion else parts[1]
    share = 0.4 if scans[0].lesion else 0.1
    expected = max(1, round(share * len(sides)))
    assert sum(side == {drawn} for side in sides.values()) == expected


@given(scans=cohorts(), seed=st.integers(0, 99), shuffle=st.randoms())
def test_the_input_order_does_not_matter(scans, seed, shuffle: random.Random):
    other = list(scans)
    shuffle.shuffle(other)
    config = SplitConfig()
    assert split_scans(scans, config, seed=seed) == split_scans(other, config, seed=seed)


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_scanners_are_drawn_in_proportion(sizes, share, seed):
    scans = [
        scan(100 * k + i, scanner=f"scanner-{k}") for k, n in enumerate(sizes) for i in range(n)
    ]
    count = round(share * len(scans))
    drawn = draw_subjects(scans, count, seed)
    assert len(drawn) == count
    got = Counter(int(name[1:]) // 100 for name in drawn)
    for k, n in enumerate(sizes):
        assert abs(got[k] - n * count / len(scans)) < 1


@given(scans=cohorts(), seed=st.integers(0, 99), share=st.floats(0.05, 0.9))
def test_scanners_stand_on_both_sides_in_proportion(scans, seed, share):
    config = SplitConfig(validation_share=share, threshold_share=share)
    subjects: dict[str, list[str]] = {}
    for one in scans:
        subjects.setdefault(one.subject, []).append(one.scanner)
    assume(len(subjects) >= 3)
    assume(0 < round(share * len(subjects)) < len(subjects))
    drawn = "threshold" if scans[0].lesion else "validation"
    side = {s.subject: part == drawn for s, part in split_scans(scans, config, seed=seed)}
    fraction = sum(side.values()) / len(side)
    for scanner in "ABC":
        members = [s for s, names in subjects.items() if names[0] == scanner]
        assert abs(sum(side[s] for s in members) - fraction * len(members)) < 1


def test_a_split_is_the_same_in_another_process():
    """It depends on no hash seed."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]);"
        "from test_splits import *;"
        "cohort = [scan(k, s, 'ABC'[k % 3]) for k in range(50) for s in range(2)];"
        "print([(s.id, p) for s, p in split_scans(cohort, SplitConfig(), seed=5)])"
    )
    command = [sys.executable, "-c", script, str(Path(__file__).parent)]
    outputs = {
        subprocess.run(
            command, env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


class TestPresets:
    """Bengs 2021, section 2.1: 1807 + 201 healthy, 133 + 202 tumours, 121 + 183 strokes."""

    @pytest.mark.parametrize(
        ("number", "lesion", "expected"),
        [
            (2008, "", {"train": 1807, "validation": 201}),
            (335, "m", {"threshold": 133, "test": 202}),
            (304, "m", {"threshold": 121, "test": 183}),
        ],
    )
    def test_exact_counts(self, number, lesion, expected):
        scans = [scan(k, scanner="ABC"[k % 3], lesion=lesion) for k in range(number)]
        rows = split_scans(scans, SplitConfig(preset="bengs2021"), seed=0)
        assert Counter(part for _, part in rows) == expected

    def test_subjects_are_counted_not_scans(self):
        scans = [scan(k, session, lesion="m") for k in range(335) for session in range(2)]
        rows = split_scans(scans, SplitConfig(preset="bengs2021"), seed=0)
        assert Counter(part for _, part in rows) == {"threshold": 266, "test": 404}

    @pytest.mark.parametrize(
        ("number", "lesion", "message"),
        [
            (300, "m", r"335 \(tumour: .* or 304 .*there are 300: .*--split-count 119"),
            (1004, "", r"2008 \(healthy: 1807 \+ 201\) .*there are 1004: .*--split-count 100"),
        ],
    )
    def test_another_size_is_refused_with_the_proportions(self, number, lesion, message):
        scans = [scan(k, lesion=lesion) for k in range(number)]
        with pytest.raises(ConfigError, match=message):
            split_scans(scans, SplitConfig(preset="bengs2021"), seed=0)

    def test_a_preset_and_a_count(self):
        with pytest.raises(ConfigError, match="give one"):
            SplitConfig(preset="bengs2021", split_count=133)

    def test_the_counts_fit_together(self):
        sizes = {kind: sum(parts) for kind, parts in PRESETS["bengs2021"].items()}
        assert sizes == {"healthy": 2008, "tumour": 335, "stroke": 304}


def test_ids_that_are_not_unique_are_named():
    with pytest.raises(ConfigError, match="2 ids belong to more than one scan: s001_0, s002_0"):
        split_scans([scan(k) for k in (1, 1, 2, 2, 3)], SplitConfig(), seed=0)


def test_another_seed_is_another_split():
    scans = [scan(k) for k in range(60)]
    first, second = (split_scans(scans, SplitConfig(), seed=s) for s in (0, 1))
    assert first != second


@pytest.mark.parametrize(
    ("scans", "config", "message"),
    [
        ([scan(0), scan(1, lesion="m")], SplitConfig(), "1 of 2 scans have a lesion mask"),
        ([scan(0), scan(0, 1)], SplitConfig(), "1 of 1 subjects would be the validation part"),
        ([scan(0), scan(1)], SplitConfig(split_count=2), "2 of 2 subjects"),
        ([scan(0), scan(1)], SplitConfig(split_count=0), "0 of 2 subjects"),
    ],
)
def test_cohorts_that_cannot_be_split(scans, config, message):
    with pytest.raises(ConfigError, match=message):
        split_scans(scans, config, seed=0)


def test_shares_are_checked():
    with pytest.raises(ConfigError, match="validation_share"):
        SplitConfig(validation_share=1.0)


class TestSelection:
    scans = tuple(scan(k, session) for k in range(20) for session in range(2))

    def test_held_out_and_kept_are_complements(self):
        kept = select_scans(self.scans, Selection(hold_out=5), seed=3)
        held = select_scans(self.scans[::-1], Selection(hold_out=5, held_out=True), seed=3)
        assert len({s.subject for s in held}) == 5
        assert {s.subject for s in kept}.isdisjoint(s.subject for s in held)
        assert len(kept) + len(held) == len(self.scans)

    def test_include_and_exclude_by_scan_or_subject(self):
        chosen = Selection(include=("s001", "s002_0"), exclude=("s001_1",))
        assert [s.id for s in select_scans(self.scans, chosen, seed=0)] == ["s001_0", "s002_0"]

    def test_parts(self):
        mixed = [scan(0), scan(1, lesion="m")]
        healthy = select_scans(mixed, Selection(parts="healthy"), seed=0)
        lesioned = select_scans(mixed, Selection(parts="lesioned"), seed=0)
        assert [s.subject for s in healthy] == ["s000"]
        assert [s.subject for s in lesioned] == ["s001"]

    def test_mistakes(self):
        with pytest.raises(ConfigError, match="no scan or subject is named s999"):
            select_scans(self.scans, Selection(exclude=("s999",)), seed=0)
        with pytest.raises(ConfigError, match="give N"):
            select_scans(self.scans, Selection(held_out=True), seed=0)
        with pytest.raises(ConfigError, match="cannot draw 21 of 20"):
            select_scans(self.scans, Selection(hold_out=21), seed=0)
        with pytest.raises(NoScanFoundError, match="none of 40"):
            select_scans(self.scans, Selection(parts="lesioned"), seed=0)


@given(scans=cohorts(), seed=st.integers(0, 99), count=st.integers(1, 10))
def test_a_healthy_test_part_is_set_aside_and_changes_nothing_else(scans, seed, count):
    if scans[0].lesion:
        with pytest.raises(ConfigError, match="test_count is for healthy cohorts"):
            split_scans(scans, SplitConfig(test_count=count), seed=seed)
        return
    assume(len({one.subject for one in scans}) >= count + 2)
    rows = split_scans(scans, SplitConfig(test_count=count), seed=seed)
    assert list(dict.fromkeys(part for _, part in rows)) == ["train", "validation", "test"]
    tested = {one.subject for one, part in rows if part == "test"}
    assert len(tested) == count
    rest = [(one, part) for one, part in rows if part != "test"]
    assert not tested & {one.subject for one, _ in rest}
    # The others stand as in a cohort of them alone.
    assert rest == split_scans([one for one, _ in rest], SplitConfig(), seed=seed)
    shuffled = split_scans(scans[::-1], SplitConfig(test_count=count), seed=seed)
    assert shuffled == rows
