"""ATLAS: chronic strokes on T1, releases 1.1, 1.2 and 2.0."""

from dataclasses import replace

from uadray import files
from uadray.preparation.layouts.naming import ATLAS1, ATLAS2
from uadray.preparation.layouts.scans import (
    Scan,
    Scans,
    canonical_modality,
    checked,
    find_files,
    nothing_found,
    with_lesion_mask,
)
from uadray.preparation.layouts.tables import own_table


def atlas(root: str, modality: str = "T1w") -> Scans:
    """Scans of ATLAS R1.1, R1.2 (in standard space) or R2.0 with their lesion masks.

    R1: `Site1/031768/t01/031768_t1w_deface_stx.nii.gz`; a scan may have several masks
    (`_LesionSmooth_stx`, `_LesionSmooth_1_stx`, ...), which are merged. R2.0:
    `sub-r001s001_ses-1_space-MNI152NLin2009aSym_T1w.nii.gz`. The site counts as scanner. Scans
    have their skull. Those without a mask (the test part of R2.0) are left out.

    Where the set's table lies in the folder as CSV, its columns are covariates:
    `ATLAS_Meta-Data_Release_1.1_standard_mni.csv` of R1.1, or `20220425_ATLAS_2.0_MetaData.xlsx` of
    R2.0, saved as CSV. They are about the lesions: how many, where, of which type.

    Args:
        root: Folder or URL that holds them, at any depth.
        modality: T1w; there is no other.

    Raises:
        NoScanFoundError: see `Layout`.
    """
    root = files.normalise(root)
    names = find_files(root)
    known, remark = _known(root)
    scans = [
        replace(scan, covariates=known.get((_bare(scan.subject), scan.session), ()))
        for scan in _release_1(root, names) + _release_2(root, names)
    ]
    if not scans or canonical_modality(modality) != "T1w":
        raise nothing_found(
            root,
            looked_for=f"*_t1w_deface_stx.nii.gz or sub-r*s*_T1w.nii.gz of modality {modality}",
            others={"T1w"} if scans else (),
            what="modalities there",
            advice="choose one of these with --modality"
            if scans
            else "give the folder of the unpacked (and decrypted) archive",
            names=names,
        )
    found = with_lesion_mask(checked(scans, root, names), root)
    found.remarks = (*found.remarks, *((f"  note: {remark}",) if remark else ()))
    return found


TABLE = r".*atlas.*meta-?data.*\.csv$"
"""Name of the set's table, in whatever case."""

_PERSON, _SESSION = ("INDI Subject ID", "Subject ID"), "Session"
"""Columns of R1 and R2.0 that name whom a row is of; R1 names the session, too."""

_ANY = ("", "t01", "1")
"""Sessions that a row may be of which names none, where it is the only one of a person."""


def _bare(name: str) -> str:
    """A person's name; tables of R1 lose zeros before it."""
    return name.lstrip("0")


def _known(root: str) -> tuple[dict[tuple[str, str], tuple[tuple[str, str], ...]], str]:
    """Person and session -> the other columns of the set's table; and why it cannot be read."""
    key, rows, remark = own_table(root, TABLE, _PERSON)
    found: dict[tuple[str, str], tuple[tuple[str, str], ...]] = {}
    for row in rows:
        person = _bare(row.pop(key))
        session = row.pop(_SESSION, "").removeprefix("ses-")
        for one in [session] if session else _ANY:
            # Nothing is known where two rows of a person say otherwise.
            said = tuple(row.items())
            found[person, one] = said if found.get((person, one), said) == said else ()
    return found, remark


def _release_1(root: str, names: list[str]) -> list[Scan]:
    images: dict[str, tuple[tuple[str, str], str]] = {}
    masks: dict[tuple[str, str], list[str]] = {}
    for name in names:
        if match := ATLAS1.search(name):
            key = (match["subject"], match["session"])
            if match["what"] == "t1w_deface_stx":
                images[name] = (key, match["site"] or "")
            else:
                masks.setdefault(key, []).append(files.join(root, name))
    scans = []
    for name, (key, site) in images.items():
        subject, session = key
        lesion, *more = sorted(masks.get(key, [])) or [""]
        scans.append(
            Scan(
                id=f"{subject}_{session}",
                subject=subject,
                session=session,
                modality="T1w",
                scanner=site,
                image=files.join(root, name),
                lesion=lesion,
                more_lesions=tuple(more),
                notes=f"{1 + len(more)} lesion masks merged" if more else "",
            )
        )
    return scans


def _release_2(root: str, names: list[str]) -> list[Scan]:
    matches = {name: match for name in names if (match := ATLAS2.search(name))}
    masks = {m["id"]: files.join(root, n) for n, m in matches.items() if m["what"] != "T1w"}
    return [
        Scan(
            id="_".join(part for part in match["id"].split("_") if not part.startswith("space-")),
            subject=match["subject"],
            session=match["session"] or "",
            modality="T1w",
            scanner=match["site"],
            image=files.join(root, name),
            lesion=masks.get(match["id"], ""),
        )
        for name, match in matches.items()
        if match["what"] == "T1w"
    ]
