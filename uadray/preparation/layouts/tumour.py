"""BraTS, gliomas and other tumours, in the naming of 2019 to 2023."""

import re

from uadray import files
from uadray.preparation.layouts.naming import BRATS, BRATS_ODD_SEG
from uadray.preparation.layouts.scans import (
    Scan,
    Scans,
    canonical_modality,
    checked,
    find_files,
    nothing_found,
    with_lesion_mask,
)


def brats(root: str, modality: str = "FLAIR") -> Scans:
    """Scans of BraTS 2019 to 2023 with their segmentation as one lesion mask.

    All classes count as lesion (oedema, necrosis, enhancing tumour: every label above 0). The
    scans are without their skull, in the space of SRI24 at 1 mm. Cases without a segmentation are
    left out. The naming that is known: `BraTS19_CBICA_AAB_1_t1ce` (under HGG or LGG, which the
    notes then say; the institution counts as scanner), `BraTS20_Training_001_t1ce`,
    `BraTS2021_00000_t1ce` and `BraTS-GLI-00000-000-t1c` (000 is the session of subject
    BraTS-GLI-00000; MEN, MET, PED and SSA likewise).

    Args:
        root: Folder or URL that holds them, at any depth.
        modality: T1w, T1ce, T2w or FLAIR, or as the year calls them: t1, t1ce, t2, flair, t1n,
            t1c, t2w, t2f.

    Raises:
        NoScanFoundError: see `Layout`.
    """
    root = files.normalise(root)
    names = find_files(root)
    wanted = canonical_modality(modality)
    images: dict[str, str] = {}
    masks: dict[str, str] = {}
    odd: dict[str, str] = {}
    others = set()
    reasons = {}
    scans = []
    for name in names:
        if match := BRATS.search(name):
            if match["what"].lower() == "seg":
                masks[match["id"]] = name
            elif canonical_modality(match["what"]) == wanted:
                images[name] = match["id"]
            else:
                others.add(match["what"])
                reasons[name] = f"{match['what']}, not {modality}"
        elif match := BRATS_ODD_SEG.search(name):
            odd[match["id"]] = name
    for name, case in images.items():
        mask = masks.get(case) or odd.get(case, "")
        grade = re.search(r"(?:^|/)(HGG|LGG)/", name)
        subject, session = _person(case)
        scans.append(
            Scan(
                id=case,
                subject=subject,
                session=session,
                modality=wanted,
                scanner=_institution(case),
                image=files.join(root, name),
                lesion=files.join(root, mask) if mask else "",
                notes=grade[1] if grade else "",
            )
        )
    if not scans:
        raise nothing_found(
            root,
            looked_for=f"BraTS*_{modality}.nii.gz",
            others=others,
            what="modalities there",
            advice="choose one of these with --modality"
            if others
            else "give the folder of the BraTS* cases",
            names=names,
        )
    return with_lesion_mask(checked(scans, root, names, reasons), root)


def _person(case: str) -> tuple[str, str]:
    """Subject and session of a case; only the naming since 2023 has a session."""
    match = re.match(r"(BraTS-[A-Za-z]+-\d+)-(\d+)$", case, re.IGNORECASE)
    return (match[1], match[2]) if match else (case, "")


def _institution(case: str) -> str:
    """`CBICA` of `BraTS19_CBICA_AAB_1`; later years do not say."""
    match = re.match(r"BraTS1\d_([A-Za-z0-9]+)_", case, re.IGNORECASE)
    return match[1] if match else ""
