"""A layout: `SUBJECT/t1.nii.gz`, with the patients' masks beside it as `lesion.nii.gz`."""

import re

from uadray.preparation.layouts import Scan, Scans, checked, find_files

NAME = re.compile(r"(?:^|/)(?P<subject>[^/]+)/(?P<what>[A-Za-z0-9]+)\.nii\.gz$")


def example(root: str, modality: str = "T1w") -> Scans:
    """Scans as SUBJECT/t1.nii.gz or SUBJECT/flair.nii.gz, lesions as SUBJECT/lesion.nii.gz."""
    names = find_files(root)
    found = [(name, match) for name in names if (match := NAME.search(name))]
    lesions = {match["subject"]: name for name, match in found if match["what"] == "lesion"}
    scans = [
        Scan(
            id=match["subject"],
            subject=match["subject"],
            modality=modality,
            image=f"{root}/{name}",
            lesion=f"{root}/{lesions[match['subject']]}" if match["subject"] in lesions else "",
        )
        for name, match in found
        if match["what"].lower() == modality.lower().removesuffix("w")
    ]
    return checked(scans, root, names)
