"""What is known of people besides their scans: age, sex, diagnosis and whatever a table has.

It decides nothing in a cohort's voxels. A column whose values are all numbers is one of numbers;
what says that nothing is known (`n/a`, an empty cell, an age of -9 or 999) is missing.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from uadray import files
from uadray.errors import NoScanFoundError
from uadray.preparation.layouts import Scan
from uadray.preparation.layouts.tables import ABSENT, TableError, read_table
from uadray.preparation.settings import OLDEST
from uadray.strata import Value

PERSON = ("participant_id", "subject", "subject_id", "id", "scan", "session_id")
"""Columns of a table that may name whom a row is of, in lower case, the likeliest first."""

_NAMES = {
    "age": ("age", "age_years", "age_in_years", "age_at_scan", "age_y"),
    "sex": ("sex", "gender", "m_f", "sex_m_f"),
    "diagnosis": ("diagnosis", "dx"),
    "field_strength": ("field_strength", "magneticfieldstrength", "magnetic_field_strength"),
}
"""Name of ours -> what tables call it, reduced to letters, digits and `_`."""

_SEXES = {"m": "M", "male": "M", "man": "M", "f": "F", "female": "F", "woman": "F"}


@dataclass(frozen=True)
class Covariates:
    """Columns that go with a list of scans."""

    columns: Mapping[str, tuple[Value, ...]]
    """Name -> a value for each scan, numbers or words within one column."""
    remarks: tuple[str, ...] = ()
    """Which columns look like numbers and are none, and which ages nobody has."""

    def of(self, place: int) -> dict[str, Value]:
        """What is known of one scan's person."""
        return {name: values[place] for name, values in self.columns.items()}

    def __str__(self) -> str:
        """In a line: which columns, and of how many scans they are known."""
        known = [
            f"{name} ({sum(value is not None for value in values)})"
            for name, values in self.columns.items()
        ]
        return f"covariates, and of how many scans they are known: {', '.join(known)}"


def covariates_of(scans: Sequence[Scan]) -> Covariates:
    """The columns of what layouts and tables say of scans; those without a value are left out."""
    cells: dict[str, list[str]] = {}
    for place, scan in enumerate(scans):
        for name, text in scan.covariates:
            cells.setdefault(name, [""] * len(scans))[place] = text
    columns: dict[str, tuple[Value, ...]] = {}
    remarks = []
    for name, ours in zip(cells, _named(cells), strict=True):
        texts = ["" if text.strip().lower() in ABSENT else text.strip() for text in cells[name]]
        if not any(texts):
            continue
        values, odd = _typed(texts, ours)
        if ours == "age" and (wrong := [k for k, value in enumerate(values) if not _may_be(value)]):
            values = tuple(value if _may_be(value) else None for value in values)
            more = f", nor is that of {len(wrong) - 1} others" if wrong[1:] else ""
            remarks.append(
                f"age: {texts[wrong[0]]!r} of {scans[wrong[0]].id} is none in years, from 0 to "
                f"{OLDEST:g}{more}: taken as not known"
            )
        if any(value is not None for value in values):
            columns[ours] = values
        if odd:
            who = scans[texts.index(odd)].id
            remarks.append(
                f"{ours}: {odd!r} of {who} is no number, as most are: the column is one of words, "
                "of which there are no ranges"
            )
    return Covariates(columns, tuple(remarks))


def age_of(scan: Scan) -> float | None:
    """The age of a scan's person in years; None where it is not known, or is no number."""
    age = covariates_of([scan]).columns.get("age", (None,))[0]
    return age if isinstance(age, float) else None


def doubt_of_age(scan: Scan) -> str:
    """Why what is said of a scan's age is none, in a sentence; empty where it is one, or absent."""
    found = covariates_of([scan])
    if found.remarks or age_of(scan) is not None or "age" not in found.columns:
        return next(iter(found.remarks), "")
    return f"age: {found.columns['age'][0]!r} of {scan.id} is no number: taken as not known"


def with_age(scan: Scan, age: float) -> Scan:
    """The scan of a person of that age, in years, whatever its table says."""
    others = [pair for pair in scan.covariates if _named([pair[0]]) != ["age"]]
    return replace(scan, covariates=(("age", f"{age:g}"), *others))


def with_table(scans: Sequence[Scan], table: str) -> list[Scan]:
    """Add to each scan what a table says of its person; the table's columns come before others.

    Args:
        scans: Of a data set.
        table: Path or URL of a CSV or TSV with a column that names people or scans as `subject` or
            `id` of the scans do, with or without `sub-`.

    Raises:
        NoScanFoundError: it cannot be read, names none of the scans, or has two rows of one person
            that differ.
    """
    place = files.normalise(table)
    try:
        columns, rows = read_table(place, separators="\t;,")
    except FileNotFoundError:
        raise NoScanFoundError(f"{place}: no such table of covariates") from None
    except (OSError, TableError) as error:
        raise NoScanFoundError(
            f"{place}: the table of covariates cannot be read: {error}"
        ) from None
    keys = {_bare(key) for scan in scans for key in (scan.subject, scan.id)}
    matches = {name: sum(_bare(row[name]) in keys for row in rows) for name in columns}
    likely = sorted(columns, key=lambda name: (name.lower() not in PERSON, _rank(name)))
    person = max(likely, key=lambda name: matches[name], default="")
    if not person or not matches[person]:
        first = rows[0] if rows else {}
        example = next((value for value in first.values() if value), "nothing")
        raise NoScanFoundError(
            f"{place}: no column of the table of covariates names any of the {len(scans)} scans, "
            f"such as {scans[0].subject}; its columns are {', '.join(columns)}, its first row "
            f"begins with {example}"
        )
    of: dict[str, tuple[tuple[str, str], ...]] = {}
    for row in rows:
        key, said = _bare(row[person]), tuple((n, row[n]) for n in columns if n != person)
        if key and of.setdefault(key, said) != said:
            raise NoScanFoundError(
                f"{place}: two rows are of {row[person]} and differ; leave one, or name scans by "
                "id where they are of two sessions"
            )
    found = [of.get(_bare(scan.id)) or of.get(_bare(scan.subject)) or () for scan in scans]
    return [
        replace(
            scan,
            covariates=(*said, *(pair for pair in scan.covariates if pair[0] not in dict(said))),
        )
        for scan, said in zip(scans, found, strict=True)
    ]


def _bare(name: str) -> str:
    return name.strip().removeprefix("sub-")


def _rank(name: str) -> int:
    return PERSON.index(name.lower()) if name.lower() in PERSON else len(PERSON)


def _named(names: Iterable[str]) -> list[str]:
    """Names of ours for the columns of tables, each once."""
    taken = Counter[str]()
    found = []
    for name in names:
        plain = re.sub(r"\W+", "_", name.strip().lower()).strip("_") or "column"
        ours = next((ours for ours, theirs in _NAMES.items() if plain in theirs), plain)
        if taken[ours] and ours != plain:
            ours = plain
        taken[ours] += 1
        found.append(ours if taken[ours] == 1 else f"{ours}_{taken[ours]}")
    return found


def _typed(texts: Sequence[str], name: str) -> tuple[tuple[Value, ...], str]:
    """A column's values, and a text that keeps most others from being numbers; empty for none."""
    numbers = [_number(text) for text in texts]
    known = sum(map(bool, texts))
    odd = [text for text, number in zip(texts, numbers, strict=True) if text and number is None]
    if not odd:
        return tuple(numbers), ""
    if name == "sex" and all(text.lower() in _SEXES for text in texts if text):
        return tuple(_SEXES[text.lower()] if text else None for text in texts), ""
    return tuple(text or None for text in texts), odd[0] if 2 * len(odd) < known else ""


def _may_be(age: Value) -> bool:
    """Whether somebody may be that old, as far as it is a number."""
    return not isinstance(age, float) or 0 <= age <= OLDEST


def _number(text: str) -> float | None:
    # As BIDS has the ages of the oldest, and as spreadsheets of many countries write them.
    text = re.sub(r"(?<=\d),(?=(\d\d?|\d{4,})$)", ".", text.removesuffix("+"))
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
