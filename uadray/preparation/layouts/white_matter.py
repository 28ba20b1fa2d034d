"""Sets of white matter lesions: MSLUB, the WMH challenge and MSSEG2015."""

from uadray import files
from uadray.preparation.layouts.naming import MSLUB, MSSEG2015, WMH
from uadray.preparation.layouts.scans import (
    Scan,
    Scans,
    canonical_modality,
    checked,
    find_files,
    nothing_found,
    with_lesion_mask,
)

WMH_SCANNERS = {
    "Utrecht": "Utrecht Philips Achieva 3T",
    "Singapore": "Singapore Siemens TrioTim 3T",
    "Amsterdam/GE3T": "Amsterdam GE Signa HDxt 3T",
    "Amsterdam/GE1T5": "Amsterdam GE Signa HDxt 1.5T",
    "Amsterdam/Philips_VU": "Amsterdam Philips Ingenuity 3T",
}
"""Folder -> scanner (Kuijf et al. 2019, table 1)."""

_MSLUB_MASKS = ("brainmask", "consensus_gt")


def mslub(root: str, modality: str = "FLAIR") -> Scans:
    """Scans of the MSLUB set, `patientNN/patientNN_MODALITY.nii.gz` with both masks.

    Source: Lesjak et al. 2017, Neuroinformatics 16.

    Args:
        root: Folder or URL that holds patient01/, patient02/, ..., at any depth.
        modality: FLAIR, T1w, T1ce or T2w, or as the set calls them, in any case: FLAIR, T1W,
            T1WKS (after contrast agent), T2W.

    Raises:
        NoScanFoundError: see `Layout`.
    """
    root = files.normalise(root)
    names = find_files(root)
    wanted = canonical_modality(modality)
    matches = {name: match for name in names if (match := MSLUB.search(name))}
    paths = {(m["subject"], m["what"].lower()): files.join(root, n) for n, m in matches.items()}
    reasons = {
        name: f"{match['what']}, not {modality}"
        for name, match in matches.items()
        if canonical_modality(match["what"]) != wanted
    }
    scans = [
        Scan(
            id=subject,
            subject=subject,
            modality=wanted,
            image=path,
            brain=paths.get((subject, "brainmask"), ""),
            lesion=paths.get((subject, "consensus_gt"), ""),
        )
        for (subject, what), path in paths.items()
        if canonical_modality(what) == wanted
    ]
    if not scans:
        others = {what for _, what in paths if what not in _MSLUB_MASKS}
        raise nothing_found(
            root,
            looked_for=f"patientNN/patientNN_{modality}.nii.gz",
            others=others,
            what="modalities there",
            advice="choose one of these with --modality"
            if others
            else "give the folder of patientNN/",
            names=names,
        )
    return with_lesion_mask(checked(scans, root, names, reasons), root)


def wmh(root: str, modality: str = "FLAIR") -> Scans:
    """Scans of the WMH segmentation challenge, `SITE/NN/pre/FLAIR.nii.gz` with `SITE/NN/wmh`.

    Label 1 (white matter hyperintensity) is lesion. Label 2 (other pathology, outlined roughly
    and ignored by the challenge) is not, and the notes say so: what a method finds there counts as
    a false alarm. The bias-corrected `pre/` is taken before `orig/`; T1 lies on the grid of the
    FLAIR that the masks were drawn on. Scans have their skull.

    Source: Kuijf et al. 2019, IEEE Transactions on Medical Imaging 38.

    Args:
        root: Folder or URL that holds Amsterdam/, Singapore/ and Utrecht/, at any depth.
        modality: FLAIR or T1w.

    Raises:
        NoScanFoundError: see `Layout`.
    """
    root = files.normalise(root)
    names = find_files(root)
    wanted = canonical_modality(modality)
    images: dict[tuple[str, str], str] = {}
    masks = {}
    others = set()
    reasons = {}
    for name in names:
        match = WMH.search(name)
        if match is None:
            continue
        key = (match["site"], match["subject"])
        if match["mask"]:
            masks[key] = files.join(root, name)
        elif canonical_modality(match["what"]) != wanted:
            others.add(match["what"])
            reasons[name] = f"{match['what']}, not {modality}"
        else:
            reasons[name] = "orig/, of which pre/ is taken"
            if match["stage"] == "pre" or key not in images:
                images[key] = files.join(root, name)
    if not images:
        raise nothing_found(
            root,
            looked_for=f"SITE/NN/pre/{modality}.nii.gz",
            others=others,
            what="modalities there",
            advice="choose one of these with --modality"
            if others
            else "give the folder of Amsterdam/, Singapore/ and Utrecht/",
            names=names,
        )
    scans = [
        Scan(
            id=f"{site.replace('/', '-').split(' ')[0]}-{subject}",
            subject=f"{site.split('/')[0]}-{subject}",
            modality=wanted,
            scanner=WMH_SCANNERS.get(site.split(" ")[0], site),
            image=image,
            lesion=masks.get((site, subject), ""),
            lesion_labels=(1,),
            notes="label 2 of its mask (other pathology) is not counted as lesion",
        )
        for (site, subject), image in images.items()
    ]
    return with_lesion_mask(checked(scans, root, names, reasons), root)


def msseg2015(root: str, modality: str = "FLAIR") -> Scans:
    """Scans of the longitudinal MS lesion challenge of ISBI 2015, with the first rater's mask.

    `training01/preprocessed/training01_01_flair_pp.nii` with
    `training01/masks/training01_01_mask1.nii`; the second number is the visit. The preprocessed
    scans are without their skull, bias-corrected, in MNI space at 1 mm. The test part has no masks
    and is left out.

    Source: Carass et al. 2017, NeuroImage 148.

    Args:
        root: Folder or URL that holds training01/ to training05/, at any depth.
        modality: FLAIR, T1w, T2w or PDw, or as the set calls them: flair, mprage, t2, pd.

    Raises:
        NoScanFoundError: see `Layout`.
    """
    root = files.normalise(root)
    names = find_files(root)
    wanted = canonical_modality(modality)
    matches = {name: match for name in names if (match := MSSEG2015.search(name))}
    masks = {m["id"]: files.join(root, n) for n, m in matches.items() if m["mask"] == "mask1"}
    images = {n: m for n, m in matches.items() if m["what"]}
    reasons = {
        name: f"{match['what']}, not {modality}" if match["what"] else "the mask of another rater"
        for name, match in matches.items()
    }
    scans = [
        Scan(
            id=match["id"],
            subject=match["subject"],
            session=match["session"],
            modality=wanted,
            image=files.join(root, name),
            lesion=masks.get(match["id"], ""),
            notes="lesion mask of rater 1 of 2",
        )
        for name, match in images.items()
        if canonical_modality(match["what"]) == wanted
    ]
    if not scans:
        others = {match["what"] for match in images.values()}
        raise nothing_found(
            root,
            looked_for=f"trainingNN_NN_{modality}_pp.nii",
            others=others,
            what="modalities there",
            advice="choose one of these with --modality"
            if others
            else "give the folder of training01/ to training05/",
            names=names,
        )
    return with_lesion_mask(checked(scans, root, names, reasons), root)
