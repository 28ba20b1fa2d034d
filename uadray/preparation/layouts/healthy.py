"""Public sets of healthy people: IXI and OASIS-1."""

from uadray import files
from uadray.preparation.layouts.naming import IXI, OASIS1
from uadray.preparation.layouts.scans import (
    Scan,
    Scans,
    canonical_modality,
    checked,
    find_files,
    nothing_found,
)
from uadray.preparation.layouts.tables import own_table
from uadray.preparation.settings import DOUBT

IXI_SCANNERS = {
    "Guys": "Guys Philips 1.5T",
    "HH": "HH Philips 3T",
    "IOP": "IOP GE 1.5T",
}
"""Site in the file's name -> scanner, as brain-development.org names them."""


def ixi(root: str, modality: str = "T1w") -> Scans:
    """Scans of IXI, `IXI002-Guys-0828-T1.nii.gz` in one folder or in one for each modality.

    They have their skull and no masks. Where the set's table of people, saved as `IXI*.csv`, lies
    in the folder, its columns are covariates.

    Args:
        root: Folder or URL that holds them, at any depth.
        modality: T1w, T2w, PDw or MRA, or as IXI calls them: T1, T2, PD.

    Raises:
        NoScanFoundError: see `Layout`.
    """
    root = files.normalise(root)
    names = find_files(root)
    wanted = canonical_modality(modality)
    scans, others = [], set()
    reasons = {}
    people, remark = _people(root, r"ixi.*\.[ct]sv$", "IXI_ID")
    for name in names:
        match = IXI.search(name)
        if match is None:
            continue
        if canonical_modality(match["what"]) != wanted:
            others.add(match["what"])
            reasons[name] = f"{match['what']}, not {modality}"
            continue
        scans.append(
            Scan(
                id=match["id"],
                subject=match["subject"],
                modality=wanted,
                scanner=IXI_SCANNERS.get(match["site"], match["site"]),
                image=files.join(root, name),
                covariates=people.get(match["subject"].removeprefix("IXI").lstrip("0"), ()),
            )
        )
    if not scans:
        raise nothing_found(
            root,
            looked_for=f"IXI000-SITE-0000-{modality}.nii.gz",
            others=others,
            what="modalities there",
            advice="choose one of these with --modality"
            if others
            else "give the folder that the archive was unpacked to",
            names=names,
        )
    found = checked(scans, root, names, reasons)
    found.remarks = (f"  note: {remark}",) if remark else ()
    return found


def oasis1(root: str, modality: str = "T1w") -> Scans:
    """Scans of OASIS-1 (cross-sectional), the sessions MR1 and, of 20 people, MR2.

    Of each session the image in `PROCESSED/MPRAGE/T88_111` without its skull is taken
    (`*_t88_masked_gfc.img`): averaged over its acquisitions, corrected for the coil's gain, and
    moved to Talairach space by an affine, so that heads have been brought to one size. Analyze
    files hold no orientation; these run to the left, the front and the top, as they are read.

    100 of the 416 people have dementia. Where `oasis_cross-sectional*.csv` lies in the folder,
    scans with a CDR above 0 carry a doubt in their notes; leave them out with `--exclude` in a
    healthy cohort. Where it cannot be read, all carry one. Its columns are covariates.

    Args:
        root: Folder or URL that holds disc1/ to disc12/ or OAS1_* folders, at any depth.
        modality: T1w; there is no other.

    Raises:
        NoScanFoundError: see `Layout`.
    """
    root = files.normalise(root)
    names = find_files(root)
    matches = [(name, match) for name in names if (match := OASIS1.search(name))]
    if not matches or canonical_modality(modality) != "T1w":
        raise nothing_found(
            root,
            looked_for=f"OAS1_*_mpr_*_111_t88_masked_gfc.img of modality {modality}",
            others={"T1w"} if matches else (),
            what="modalities there",
            advice="choose one of these with --modality"
            if matches
            else "give the folder of the unpacked discs, with PROCESSED/",
            names=names,
        )
    people, remark = _people(root, r"oasis_cross-sectional.*\.csv$", "ID")
    doubt = f"{DOUBT}clinical dementia rating unknown: {remark}" if remark else ""
    scans = []
    for name, match in matches:
        known = people.get(match["id"], ())
        rating, notes = dict(known).get("CDR", ""), doubt
        if known and "CDR" not in dict(known):
            notes = f"{DOUBT}clinical dementia rating unknown: the set's table has no column CDR"
        elif rating:
            notes = _rated(rating)
        scans.append(
            Scan(
                id=match["id"],
                subject=match["subject"],
                session=match["session"],
                modality="T1w",
                image=files.join(root, name),
                orientation="LAS",
                notes=notes,
                covariates=known,
            )
        )
    return checked(scans, root, names)


def _rated(rating: str) -> str:
    """What to say of somebody with a clinical dementia rating."""
    try:
        return f"{DOUBT}clinical dementia rating {float(rating):g}" if float(rating) > 0 else ""
    except ValueError:
        return f"{DOUBT}clinical dementia rating unknown: it is {rating!r} in the set's table"


def _people(root: str, table: str, key: str) -> tuple[dict[str, tuple[tuple[str, str], ...]], str]:
    """Name in a set's own table -> its other columns, if it was saved beside the scans.

    Args:
        root: Folder of the set.
        table: Pattern of the table's name, in whatever case.
        key: Its column of names; zeros before a number are dropped.

    Returns:
        Nothing where there is no table; and in words why one cannot be read.
    """
    key, rows, remark = own_table(root, table, [key])
    people = {}
    for row in rows:
        name = row.pop(key).lstrip("0")
        if row.get(_IXI_SEX) in _IXI_SEXES:
            row["sex"] = _IXI_SEXES[row.pop(_IXI_SEX)]
        people[name] = tuple(row.items())
    return people, remark


_IXI_SEX, _IXI_SEXES = "SEX_ID (1=m, 2=f)", {"1": "M", "2": "F"}
"""How IXI's table heads the column, and what its numbers mean."""
