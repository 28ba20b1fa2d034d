import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uadray.errors import ConfigError, NoScanFoundError
from uadray.prepare.layouts import Scan
from uadray.prepare.splits import (
    Selection,
    SplitConfig,
    draw_subjects,
    select_scans,
    split_scans,
)


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
    # Both parts are there, one block behind the other.
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


def test_the_papers_counts():
    brats = [scan(k, lesion="m") for k in range(335)]
    healthy = [scan(k) for k in range(999)]
    parts = Counter(part for _, part in split_scans(brats, SplitConfig(split_count=133), seed=0))
    assert parts == {"threshold": 133, "test": 202}
    parts = Counter(part for _, part in split_scans(healthy, SplitConfig(split_count=201), seed=0))
    assert parts == {"train": 798, "validation": 201}


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
