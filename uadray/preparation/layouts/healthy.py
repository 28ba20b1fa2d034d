"""Public sets of healthy people: IXI and OASIS-1."""

import re

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
from uadray.preparation.layouts.tables import TableError, read_table
from uadray.preparation.settings import DOUBT

IXI_SCANNERS = {
    "Guys": "Guys Philips 1.5T",
    "HH": "HH Philips 3T",
    "IOP": "IOP GE 1.5T",
}
"""Site in the file's name -> scanner, as brain-development.org names them."""


def ixi(root: str, modality: str = "T1w") -> Scans:
    """Scans of IXI, `IXI002-Guys-0828-T1.nii.gz` in one folder or in one for each modality.

    They have their skull and no masks.

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
    return checked(scans, root, names, reasons)


def oasis1(root: str, modality: str = "T1w") -> Scans:
    """Scans of OASIS-1 (cross-sectional), the sessions MR1 and, of 20 people, MR2.

    Of each session the image in `PROCESSED/MPRAGE/T88_111` without its skull is taken
    (`*_t88_masked_gfc.img`): averaged over its acquisitions, corrected for the coil's gain, and
    moved to Talairach space by an affine, so that heads have been brought to one size. Analyze
    files hold no orientation; these run to the left, the front and the top, as they are read.

    100 of the 416 people have dementia. Where `oasis_cross-sectional*.csv` lies in the folder,
    scans with a CDR above 0 carry a doubt in their notes; leave them out with `--exclude` in a
    healthy cohort. Where it cannot be read, all carry one.

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
    ratings, doubt = _dementia_ratings(root)
    scans = [
        Scan(
            id=match["id"],
            subject=match["subject"],
            session=match["session"],
            modality="T1w",
            image=files.join(root, name),
            orientation="LAS",
            notes=f"{DOUBT}clinical dementia rating {rating:g}"
            if (rating := ratings.get(match["id"], 0.0)) > 0
            else doubt,
        )
        for name, match in matches
    ]
    return checked(scans, root, names)


def _dementia_ratings(root: str) -> tuple[dict[str, float], str]:
    """Session -> CDR, from the set's table if it was saved as CSV beside the discs; or a doubt."""
    names = [n for n in files.list_names(root) if re.match(r"oasis_cross-sectional.*\.csv$", n)]
    if not names:
        return {}, ""
    try:
        _, rows = read_table(files.join(root, names[0]), separators=",;\t")
        known = {row["ID"]: row["CDR"] for row in rows}
        return {name: float(rating) for name, rating in known.items() if rating}, ""
    except (OSError, KeyError, ValueError, TableError) as error:
        return {}, (
            f"{DOUBT}clinical dementia rating unknown: the columns ID and CDR of {names[0]} cannot "
            f"be read ({error})"
        )
