"""Scans named in a CSV or TSV: for whatever has no layout of its own."""

import io
import re
from collections.abc import Iterable

import pandas as pd

from uadray import files
from uadray.errors import NoScanFoundError
from uadray.prepare.layouts.scans import Scan, canonical_modality, checked, nothing_found, stem

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

_ORIENTATION = re.compile(r"(?=.*[LR])(?=.*[AP])(?=.*[SI])[LRAPSI]{3}")


def csv(root: str, modality: str = "T1w") -> list[Scan]:
    """Scans named in a table, separated by commas, semicolons or tabs, with one row for each.

    Args:
        root: Path or URL of the table, which has the columns of `COLUMNS`. Relative paths are
            relative to the table. Several lesion masks of one scan stand in one cell with `;`
            between them, or `|` in a table that is separated by semicolons. Without an id it is
            the file's name; without a subject it is the id: give a subject where one has several
            scans, since they must stay together.
        modality: Rows of another modality are left out; rows without one count as this.

    Raises:
        NoScanFoundError: see `Layout`; or a column is missing or unknown, or a row has no image.
    """
    manifest = files.normalise(root)
    table = _read(manifest)
    folder = manifest.rsplit("/", 1)[0]
    wanted = canonical_modality(modality)

    def place(path: str) -> str:
        absolute = not path or path.startswith("/") or "://" in path
        return path if absolute else files.join(folder, path)

    found, others = [], set()
    for number, row in enumerate(table.to_dict("records"), start=2):
        if not row["image"]:
            raise NoScanFoundError(f"{manifest}: row {number} has no image; fill or remove it")
        if canonical_modality(row.get("modality") or wanted) != wanted:
            others.add(row["modality"])
            continue
        orientation = row.get("orientation", "").upper()
        if orientation and not re.fullmatch(
            r"(?=.*[LR])(?=.*[AP])(?=.*[SI])[LRAPSI]{3}", orientation
        ):
            raise NoScanFoundError(
                f"{manifest}: row {number} has orientation {orientation}; give three letters such "
                "as LAS, where each axis runs"
            )
        name = row.get("id") or stem(row["image"])
        lesions = row.get("lesion", "").replace("|", ";").split(";")
        lesion, *more = [place(path.strip()) for path in lesions if path.strip()] or [""]
        found.append(
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
            )
        )
    if not found:
        raise nothing_found(
            manifest,
            looked_for=f"rows of modality {modality}",
            others=others,
            what="modalities there",
            advice="choose one of these with --modality" if others else "the table has no row",
            names=[],
        )
    return checked(found, manifest)


def _read(manifest: str) -> pd.DataFrame:
    if not files.exists(manifest):
        raise NoScanFoundError(f"{manifest}: no such file; give a CSV or TSV with a column image")
    try:
        text = files.read_bytes(manifest).decode("utf-8-sig")
        first = text.splitlines()[0] if text.strip() else "image"
        separator = max("\t;,", key=first.count)
        table = pd.read_csv(io.StringIO(text), sep=separator, dtype=str, keep_default_na=False)
    except (OSError, ValueError, pd.errors.ParserError) as error:
        raise NoScanFoundError(
            f"{manifest}: expected a table in UTF-8 with a column image, but it cannot be read "
            f"({error}); save it again as CSV"
        ) from None
    table = table.rename(columns=lambda name: str(name).strip())
    _check_columns(manifest, table.columns)
    return table.map(str.strip)


def _check_columns(manifest: str, columns: Iterable[str]) -> None:
    columns = list(columns)
    if "image" not in columns:
        raise NoScanFoundError(
            f"{manifest}: has no column image; it has {', '.join(map(str, columns))}"
        )
    if unknown := set(columns) - set(COLUMNS):
        raise NoScanFoundError(
            f"{manifest}: unknown columns {sorted(unknown)}; known are {sorted(COLUMNS)}"
        )
