"""How each public data set names its files: one pattern for the scans of each.

A pattern is searched in a file's path relative to the folder that was given, so that the folder may
be the set's own or one above it.
"""

import re
from collections.abc import Iterable

_END = r"(?i:\.nii(?:\.gz)?)$"
"""In any case, as some converters and file systems write it."""

BIDS_RAW = re.compile(
    r"^sub-[^/]+/(?:ses-[^/]+/)?(?i:anat)/(?P<entities>sub-[^/]*)_(?P<what>[A-Za-z0-9]+)" + _END
)
"""`sub-01/ses-1/anat/sub-01_ses-1_run-1_T1w.nii.gz`."""

IXI = re.compile(
    r"(?:^|/)(?P<id>(?P<subject>IXI\d{3})-(?P<site>[A-Za-z]+)-\d{4})-(?P<what>T1|T2|PD|MRA)" + _END
)
"""`IXI002-Guys-0828-T1.nii.gz`. Diffusion volumes (`-DTI-00`) are no match."""

OASIS1 = re.compile(
    r"(?:^|/)(?P<id>(?P<subject>OAS1_\d{4})_(?P<session>MR\d))_mpr_n\w_anon_111_t88_masked_gfc"
    r"(?i:\.(?:img|nii)(?:\.gz)?)$"
)
"""`OAS1_0001_MR1/PROCESSED/MPRAGE/T88_111/OAS1_0001_MR1_mpr_n4_anon_111_t88_masked_gfc.img`."""

BRATS = re.compile(
    r"(?:^|/)(?P<id>(?:BraTS|FeTS)[^/]*?)[_-](?P<what>t1ce|t1c|t1gd|t1n|t1|t2f|t2w|t2|flair|seg)"
    + _END,
    re.IGNORECASE,
)
"""`BraTS19_2013_10_1_t1ce.nii.gz` to `BraTS-GLI-00000-000-t1c.nii.gz`."""

BRATS_ODD_SEG = re.compile(
    r"(?:^|/)(?P<id>(?:BraTS|FeTS)[^/]*)/[^/]*_Segm" + _END,
    re.IGNORECASE,
)
"""`BraTS20_Training_355/W39_1998.09.19_Segm.nii`: one case of 2020 was published so."""

ATLAS1 = re.compile(
    r"(?:^|/)(?:(?P<site>Site\d+)/)?(?P<subject>\d{6})/(?P<session>t\d{2})/"
    r"(?P=subject)_(?P<what>t1w_deface_stx|LesionSmooth\w*)" + _END
)
"""`Site1/031768/t01/031768_t1w_deface_stx.nii.gz` with `031768_LesionSmooth[_1]_stx.nii.gz`."""

ATLAS2 = re.compile(
    r"(?:^|/)(?P<id>(?P<subject>sub-(?P<site>r\d{3})s\d{3})(?:_ses-(?P<session>[^_/]+))?"
    r"(?:_[^/]*)?)_(?P<what>T1w|label-[A-Z]_desc-T1lesion_mask)" + _END
)
"""`sub-r001s001_ses-1_space-MNI152NLin2009aSym_T1w.nii.gz`."""

MSLUB = re.compile(r"(?:^|/)(?P<subject>patient\d+)/(?P=subject)_(?P<what>\w+)" + _END)
"""`patient01/patient01_FLAIR.nii.gz`."""

WMH = re.compile(
    r"(?:^|/)(?P<site>Amsterdam/[^/]+|Singapore|Utrecht)/(?P<subject>\d+)/"
    r"(?:(?P<stage>pre|orig)/(?P<what>FLAIR|T1)|(?P<mask>wmh))" + _END
)
"""`training/Amsterdam/GE3T/100/pre/FLAIR.nii.gz` and `.../100/wmh.nii.gz`."""

MSSEG2015 = re.compile(
    r"(?:^|/)(?P<id>(?P<subject>(?:training|test)\d+)_(?P<session>\d+))_"
    r"(?:(?P<what>flair|mprage|pd|t2)_pp|(?P<mask>mask\d))" + _END
)
"""`training01/preprocessed/training01_01_flair_pp.nii`, `training01/masks/..._mask1.nii`."""

SIGNS = {
    "atlas": (ATLAS1, ATLAS2),
    "brats": (BRATS,),
    "ixi": (IXI,),
    "mslub": (MSLUB,),
    "msseg2015": (MSSEG2015,),
    "oasis1": (OASIS1,),
    "wmh": (WMH,),
    "bids": (BIDS_RAW,),
}
"""Layout -> naming, the particular ones before the general one."""


def recognise(names: Iterable[str]) -> dict[str, set[str]]:
    """Which layouts the files could belong to.

    Args:
        names: Paths relative to the folder.

    Returns:
        Layout -> the files that are named as in it; only those with one, in the order of `SIGNS`.
    """
    names = list(names)
    by_layout = {
        layout: {name for name in names if any(pattern.search(name) for pattern in patterns)}
        for layout, patterns in SIGNS.items()
    }
    return {layout: matches for layout, matches in by_layout.items() if matches}


_WORDS = re.compile(r"[A-Z]?[a-z]+\d*|[A-Z]+(?![a-z])\d*|\d+[A-Za-z]*")
_MASK_WORD = re.compile(
    r"(?:[dp]|a|wm|gm|csf|prob|brain|head|skull|tissue|lesions?|tumou?r|stroke|wmh|t1w?|t2w?|flair)?"
    r"(?:masks?|segs?|segm|segmentations?|rois?|labels?|labelmap|parc|parcellation)\d*"
    r"|gt\d*|groundtruth|aparc"
)
_LESION_WORD = re.compile(r"(?:lesions?|tumou?rs?)\d*")


def words_of(name: str) -> list[str]:
    """The words of a file's name in lower case: `sub-1_brainMask` has sub, 1, brain and mask."""
    parts = re.split(r"[^A-Za-z0-9]+", name)
    return [word.lower() for part in parts for word in (part, *_WORDS.findall(part)) if word]


def mask_word(name: str, modalities: Iterable[str] = ()) -> str:
    """The word by which a file is named as a mask; empty where it is none.

    Only whole words count: Vosegus and `T1w_masked` are no masks. A word for a lesion counts only
    where no modality comes after it: `T1w_lesion` is a mask, `lesion_T1w` a patient's scan.

    Args:
        name: The file's name without its ending.
        modalities: Words for modalities, in lower case.
    """
    words = words_of(name)
    for place, word in enumerate(words):
        if _MASK_WORD.fullmatch(word):
            return word
        if _LESION_WORD.fullmatch(word) and not {*modalities} & set(words[place + 1 :]):
            return word
    return ""
