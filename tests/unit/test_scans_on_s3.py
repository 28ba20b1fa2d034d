"""Scans behind a real S3 server are found and read as local ones are."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import boto3
import numpy as np
import pytest
from tiny_scans import TINY
from tiny_sets import write_atlas1, write_bids_set, write_oasis1

from tests.s3_server import serve_bucket
from uadray.errors import NoScanFoundError, ScanError
from uadray.preparation.layouts import LAYOUTS, Scan
from uadray.preparation.steps import prepare_scan

SETS = {"bids": write_bids_set, "oasis1": write_oasis1, "atlas": write_atlas1}


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("sets")
    for name, write_set in SETS.items():
        write_set(root / name)
    (root / "table.csv").write_text(
        "image,brain,lesion\n"
        "bids/sub-02/ses-a/anat/sub-02_ses-a_FLAIR.nii.gz,,"
        "bids/derivatives/lesions/sub-02/ses-a/anat/sub-02_ses-a_label-lesion_roi.nii.gz\n"
    )
    return root


@pytest.fixture(scope="module")
def bucket(local: Path) -> Iterator[str]:
    with serve_bucket("sets"):
        client = boto3.client("s3")
        for path in local.rglob("*"):
            if path.is_file():
                client.upload_file(str(path), "sets", str(path.relative_to(local)))
        yield "s3://sets"


def moved(scan: Scan, old: str, new: str) -> Scan:
    """The scan with its files under another root."""
    return replace(
        scan,
        **{k: getattr(scan, k).replace(old, new) for k in ("image", "brain", "lesion")},
        more_lesions=tuple(path.replace(old, new) for path in scan.more_lesions),
    )


@pytest.mark.parametrize("name", SETS)
def test_the_same_scans_as_in_a_folder(name, local, bucket):
    here, there = (LAYOUTS[name](f"{root}/{name}") for root in (local, bucket))
    assert there == [moved(scan, str(local), bucket) for scan in here]
    assert LAYOUTS["auto"](f"{bucket}/{name}") == there
    for one, other in zip(here, there, strict=True):
        near, far = prepare_scan(one, TINY), prepare_scan(other, TINY)
        assert np.array_equal(near.image, far.image)
        assert (near.lesion is None and far.lesion is None) or np.array_equal(
            near.lesion, far.lesion
        )
        assert near.notes == far.notes


def test_a_table(local, bucket):
    (scan,) = LAYOUTS["csv"](f"{bucket}/table.csv", "FLAIR")
    assert scan.image.startswith("s3://sets/bids/")
    assert prepare_scan(scan, TINY).lesion is not None


def test_what_is_not_there(bucket):
    with pytest.raises(NoScanFoundError, match=r"s3://sets/absent: no such folder"):
        LAYOUTS["bids"](f"{bucket}/absent")
    gone = Scan(id="a", subject="a", modality="T1w", image=f"{bucket}/gone.nii.gz")
    with pytest.raises(ScanError, match=r"s3://sets/gone\.nii\.gz: no such file"):
        prepare_scan(gone, TINY)
