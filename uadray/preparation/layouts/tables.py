"""Scans named in a CSV or TSV: for whatever has no layout of its own."""

import csv as csv_files
import difflib
import io
import re
from collections.abc import Iterable

from uadray import files
from uadray.errors import NoScanFoundError
from uadray.preparation.layouts.listing import LeftOut
from uadray.preparation.layouts.scans import (
    Scan,
    Scans,
    canonical_modality,
    checked,
    nothing_found,
    stem,
)

COLUMNS = (
    "image",
    "id",
    "subject",
    "session",
    "modality",
    "scanner",
    "brain",
    "lesion",
    "orientation",
    "notes",
)
"""What a table may hold; only `image` is required. `orientation` is for files that record none."""

ABSENT = ("", "n/a", "na", "nan", "null", "none", "<na>", "#n/a")
"""What stands in a table where nothing is known, in lower case."""

_ORIENTATION = re.compile(r"(?=.*[LR])(?=.*[AP])(?=.*[SI])[LRAPSI]{3}")


class TableError(ValueError):
    """A file is no table, or its rows do not fit its head."""


def csv(root: str, modality: str = "T1w") -> Scans:
    """Scans named in a table, separated by commas, semicolons or tabs, with one row for each.

    Args:
        root: Path or URL of the table, which has the columns of `COLUMNS`; all others, such as age
            and sex, are covariates. Relative paths are
            relative to the table. Several lesion masks of one scan stand in one cell with `;`
            between them, or `|` in a table that is separated by semicolons. Without an id it is
            the file's name; without a subject it is the id: give a subject where one has several
            scans, since they must stay together.
        modality: Rows of another modality are left out; rows without one count as this.

    Raises:
        NoScanFoundError: see `Layout`; or there is no column image, a column is named almost as
            one of `COLUMNS`, or a row has no image.
    """
    manifest = files.normalise(root)
    rows = _read(manifest)
    folder = manifest.rsplit("/", 1)[0]
    wanted = canonical_modality(modality)

    def place(path: str) -> str:
        absolute = not path or path.startswith("/") or "://" in path
        return path if absolute else files.join(folder, path)

    listed, others = [], set()
    left_out = []
    for number, row in rows:
        if not row["image"]:
            raise NoScanFoundError(f"{manifest}: row {number} has no image; fill in its path")
        if canonical_modality(row.get("modality") or wanted) != wanted:
            others.add(row["modality"])
            reason = f"{row['modality']}, not {modality}"
            left_out.append(LeftOut(path=place(row["image"]), reason=reason))
            continue
        orientation = row.get("orientation", "").upper()
        if orientation and not _ORIENTATION.fullmatch(orientation):
            raise NoScanFoundError(
                f"{manifest}: row {number} has orientation {orientation}; give three letters such "
                "as LAS, where each axis runs"
            )
        name = row.get("id") or stem(row["image"])
        lesions = row.get("lesion", "").replace("|", ";").split(";")
        lesion, *more = [place(path.strip()) for path in lesions if path.strip()] or [""]
        listed.append(
            Scan(
                id=name,
                subject=row.get("subject") or name,
                session=row.get("session", ""),
                modality=wanted,
                scanner=row.get("scanner", ""),
                image=place(row["image"]),
                brain=place(row.get("brain", "")),
                lesion=lesion,
                more_lesions=tuple(more),
                orientation=orientation,
                notes=row.get("notes", ""),
                covariates=tuple((k, v) for k, v in row.items() if k not in COLUMNS),
            )
        )
    if not listed:
        raise nothing_found(
            manifest,
            looked_for=f"rows of modality {modality}",
            others=others,
            what="modalities there",
            advice="choose one of these with --modality" if others else "the table has no row",
            names=[],
        )
    scans = checked(listed, manifest)
    return Scans(scans, [*left_out, *scans.left_out])


def _read(manifest: str) -> list[tuple[int, dict[str, str]]]:
    """The rows with their numbers in the file."""
    try:
        columns, rows, numbers = _parse(files.read_bytes(manifest), "\t;,")
    except FileNotFoundError:
        raise NoScanFoundError(
            f"{manifest}: no such file; give a CSV or TSV with a column image"
        ) from None
    except (OSError, TableError) as error:
        raise NoScanFoundError(
            f"{manifest}: expected a table in UTF-8 with a column image, but it cannot be read "
            f"({error}); save it again as CSV"
        ) from None
    _check_columns(manifest, columns)
    return list(zip(numbers, rows, strict=True))


def own_table(
    root: str, pattern: str, keys: Iterable[str]
) -> tuple[str, list[dict[str, str]], str]:
    """A data set's own table of its people, if it was saved beside the scans.

    Args:
        root: Folder of the set.
        pattern: Of the table's name, in whatever case.
        keys: Columns that may name people.

    Returns:
        Which of them does, the rows, and in words why it cannot be read; nothing where there is no
        table.
    """
    names = [n for n in files.list_names(root) if re.match(pattern, n, re.IGNORECASE)]
    if not names:
        return "", [], ""
    try:
        columns, rows = read_table(files.join(root, names[0]), separators=",;\t")
    except (OSError, TableError) as error:
        return "", [], f"{names[0]} cannot be read ({error})"
    key = next((one for one in keys if one in columns), "")
    return (key, rows, "") if key else ("", [], f"{names[0]} has no column {' or '.join(keys)}")


def read_table(url: str, separators: str) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of a table, whose cells are text without blanks around it.

    Args:
        url: In UTF-8 or UTF-16, with or without a byte order mark.
        separators: That which is most frequent in the head separates the columns.

    Raises:
        TableError: it is no table, or a row has more cells than the head.
        OSError: it cannot be read.
    """
    columns, rows, _ = _parse(files.read_bytes(url), separators)
    return columns, rows


def _parse(content: bytes, separators: str) -> tuple[list[str], list[dict[str, str]], list[int]]:
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = content.decode(encoding)
        if "\0" in text:
            raise ValueError("it holds characters of 0, as no text does")
        first = next((line for line in text.splitlines() if line.strip()), "image")
        separator = max(separators, key=first.count)
        # Strict: an open quotation mark would swallow all rows after it.
        reader = csv_files.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        cells = [([cell.strip() for cell in row], reader.line_num) for row in reader]
    except (ValueError, csv_files.Error) as error:
        raise TableError(str(error)) from None
    filled = [(row, number) for row, number in cells if any(row)]
    if not filled:
        raise TableError("it is empty")
    columns = filled[0][0]
    while columns and not columns[-1]:
        columns.pop()
    if twice := sorted({name for name in columns if columns.count(name) > 1}):
        raise TableError(f"its head names {', '.join(twice)} more than once")
    rows, numbers = [], []
    for row, number in filled[1:]:
        # Many programs end each row in a separator.
        if any(row[len(columns) :]):
            raise TableError(
                f"line {number} has {len(row)} cells, but the head names {len(columns)} columns"
            )
        padded = [*row, *[""] * len(columns)]
        rows.append(dict(zip(columns, padded, strict=False)))
        numbers.append(number)
    return columns, rows, numbers


def _check_columns(manifest: str, columns: Iterable[str]) -> None:
    columns = list(columns)
    if "image" not in columns:
        raise NoScanFoundError(
            f"{manifest}: has no column image; it has {', '.join(map(str, columns))}"
        )
    for name in columns:
        near = difflib.get_close_matches(name.lower(), COLUMNS, 1, cutoff=0.8)
        # A longer name, such as lesion_ml, is one of its own.
        if name not in COLUMNS and near and abs(len(name) - len(near[0])) <= 1:
            raise NoScanFoundError(
                f"{manifest}: column {name!r} is named almost as {near[0]!r}; name it so, or, if "
                "it is something else that is known of people, quite otherwise"
            )
