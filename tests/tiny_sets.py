"""Public data sets in miniature: their own naming, with tiny brains in the files."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
from tiny_scans import brain_image, ellipsoid, write

IMAGE = brain_image()
BRAIN = IMAGE > 0
LESION = ellipsoid(IMAGE.shape, (4, 4, 4), (9, 12, 12)) & BRAIN
SECOND = ellipsoid(IMAGE.shape, (3, 3, 3), (15, 12, 12)) & BRAIN
LABELS = LESION.astype(np.uint8)


def write_all(root: Path, *names: str, array: np.ndarray = IMAGE) -> None:
    for name in names:
        write(root / name, array)


def write_bids_set(root: Path) -> Path:
    """Sessions, runs, contrast agent, masks under derivatives, sidecars at every level."""
    for subject, session, extra in (
        ("01", "a", ""),
        ("01", "b", "_run-2"),
        ("01", "b", "_run-1"),
        ("01", "b", "_ce-gadolinium_run-1"),
        ("02", "a", "_acq-mprage"),
    ):
        stem = f"sub-{subject}_ses-{session}"
        write_all(root, f"sub-{subject}/ses-{session}/anat/{stem}{extra}_T1w.nii.gz")
    write_all(root, "sub-02/ses-a/anat/sub-02_ses-a_FLAIR.nii.gz")
    strip = "derivatives/strip/sub-01/ses-b/anat/sub-01_ses-b"
    write_all(root, f"{strip}_desc-brain_mask.nii.gz", array=BRAIN)
    # Another grid's: must not be taken.
    write_all(root, f"{strip}_space-MNI152NLin6Asym_desc-brain_mask.nii.gz", array=LESION)
    lesions = "derivatives/lesions/sub-02/ses-a/anat/sub-02_ses-a"
    write_all(root, f"{lesions}_label-lesion_roi.nii.gz", array=LESION)
    for name, fields in (
        ("T1w.json", {"Manufacturer": "Siemens", "MagneticFieldStrength": 3}),
        ("sub-01/sub-01_T1w.json", {"ManufacturersModelName": "Prisma"}),
        ("sub-01/ses-b/anat/sub-01_ses-b_run-1_T1w.json", {"MagneticFieldStrength": 1.5}),
        ("sub-02/ses-a/anat/sub-02_ses-a_acq-mprage_FLAIR.json", {"Manufacturer": "GE"}),
    ):
        (root / name).write_text(json.dumps(fields))
    (root / "participants.tsv").write_text("participant_id\tSite\nsub-01\tA\n02\tB\n")
    return root


def write_ixi(root: Path) -> Path:
    for who in ("IXI002-Guys-0828", "IXI012-HH-1211", "IXI035-IOP-0873"):
        write_all(root, f"IXI-T1/{who}-T1.nii.gz", f"IXI-PD/{who}-PD.nii.gz")
    write_all(root, "IXI-DTI/IXI002-Guys-0828-DTI-00.nii.gz")
    return root


def write_oasis1(root: Path) -> Path:
    voxels = IMAGE[..., None].round().astype(np.int16)
    header = nib.AnalyzeHeader(endianness=">")
    for disc, who, kind in (
        ("disc1", "OAS1_0001_MR1", "n4"),
        ("disc12", "OAS1_0061_MR1", "n3"),
        ("disc12", "OAS1_0061_MR2", "nn"),
    ):
        folder = root / disc / who / "PROCESSED/MPRAGE/T88_111"
        folder.mkdir(parents=True)
        stem = f"{who}_mpr_{kind}_anon_111_t88"
        for name in (f"{stem}_gfc.img", f"{stem}_masked_gfc.img"):
            nib.save(nib.AnalyzeImage(voxels, np.eye(4), header), folder / name)
    rows = "ID,M/F,CDR\nOAS1_0001_MR1,F,0\nOAS1_0061_MR1,F,0.5\nOAS1_0061_MR2,F,\n"
    (root / "oasis_cross-sectional.csv").write_text(rows)
    return root


def write_brats(root: Path, year: int) -> Path:
    cases = {
        2019: ("HGG/BraTS19_CBICA_AAB_1", "LGG/BraTS19_2013_0_1"),
        2020: ("BraTS20_Training_001", "BraTS20_Training_355"),
        2021: ("BraTS2021_00000", "BraTS2021_00002"),
        2023: ("BraTS-GLI-00005-000", "BraTS-GLI-00005-001"),
    }[year]
    kinds = "t1n t1c t2w t2f" if year == 2023 else "t1 t1ce t2 flair"
    ending = ".nii" if year == 2020 else ".nii.gz"
    classes = LABELS * 2
    classes[9:, :, :] *= 2
    for case in cases:
        name = case.rsplit("/", 1)[-1]
        joint = "-" if year == 2023 else "_"
        seg = "W39_1998.09.19_Segm" if name.endswith("355") else f"{name}{joint}seg"
        write_all(root, *(f"{case}/{name}{joint}{kind}{ending}" for kind in kinds.split()))
        write_all(root, f"{case}/{seg}{ending}", array=classes)
    return root


def write_atlas1(root: Path) -> Path:
    scaled = LESION * 254.9999999406282
    for site, who, lesions in (
        ("Site1", "031768/t01", ("",)),
        ("Site6", "031923/t01", ("", "_1")),
        ("Site6", "031923/t02", ("",)),
    ):
        stem = f"standard_mni/{site}/{who}/{who[:6]}"
        write_all(root, f"{stem}_t1w_deface_stx.nii.gz")
        for number, array in zip(lesions, (scaled, SECOND * 0.9999999997671694), strict=False):
            write_all(root, f"{stem}_LesionSmooth{number}_stx.nii.gz", array=array)
    return root


def write_atlas2(root: Path) -> Path:
    space = "space-MNI152NLin2009aSym"
    for part, site, number in (
        ("Training", "r001", "s001"),
        ("Training", "r052", "s003"),
        ("Testing", "r002", "s001"),
    ):
        subject = f"sub-{site}{number}"
        stem = f"{part}/{site.upper()}/{subject}/ses-1/anat/{subject}_ses-1_{space}"
        write_all(root, f"{stem}_T1w.nii.gz")
        if part == "Training":
            write_all(root, f"{stem}_label-L_desc-T1lesion_mask.nii.gz", array=LESION)
    return root


def write_mslub(root: Path) -> Path:
    for who in ("patient01", "patient02"):
        write_all(root, *(f"{who}/{who}_{kind}.nii.gz" for kind in ("FLAIR", "T1W", "T1WKS")))
        write_all(root, f"{who}/{who}_brainmask.nii.gz", array=BRAIN)
        write_all(root, f"{who}/{who}_consensus_gt.nii.gz", array=LESION)
    return root


def write_wmh(root: Path) -> Path:
    both = np.where(SECOND, 2, LABELS).astype(np.uint8)
    for folder in (
        "training/Amsterdam/GE3T/100",
        "training/Singapore/50",
        "training/Utrecht/0",
        "test/Amsterdam/Philips_VU .PETMR_01./160",
    ):
        write_all(root, *(f"{folder}/pre/{kind}.nii.gz" for kind in ("FLAIR", "T1", "3DT1")))
        write_all(root, f"{folder}/orig/FLAIR.nii.gz", array=IMAGE + 1)
        write_all(root, f"{folder}/wmh.nii.gz", array=both)
    return root


def write_msseg2015(root: Path) -> Path:
    for who, visits in (("training01", 2), ("training05", 1), ("test01", 1)):
        for visit in range(1, visits + 1):
            stem = f"{who}_{visit:02d}"
            kinds = ("flair", "mprage", "pd", "t2")
            write_all(root, *(f"{who}/preprocessed/{stem}_{kind}_pp.nii" for kind in kinds))
            if who.startswith("training"):
                write_all(root, f"{who}/masks/{stem}_mask1.nii", array=LESION)
                write_all(root, f"{who}/masks/{stem}_mask2.nii", array=SECOND)
    return root
