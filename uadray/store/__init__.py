"""The cohort store: scans preprocessed alike, in one Zarr v3 group with a table of subjects.

A cohort is a folder on a local path or any fsspec URL:

- `zarr.json`, whose attributes hold the plan (what is done to each scan) and, last of all, the
  seal; each task reads it, so that it does not grow with the scans;
- `scans.jsonl`, a line for each scan that the cohort is to hold, in row order;
- `image` (N, Z, Y, X) float16 in [0, 1], background exactly 0; `brain` and, in cohorts with
  lesions, `lesion`, both bool of the same shape;
- `rows/`, while it is being made: one file for each scan that is prepared and not yet in a shard;
- `parts/00000.json`, one for each shard of rows, written after the shard's voxels: its subjects,
  the scans that were quarantined, and a digest of each row's voxels;
- `subjects.parquet` and `quarantine.jsonl`, gathered when the cohort is sealed;
- `covariates.parquet`: what is known of people besides, such as age and sex, under no seal;
- `left_out.jsonl`: files that were found beside the scans and why they are none, under no seal.

Rows of quarantined scans stay zero and are in no table of subjects. One task writes one whole
shard, so that no two tasks touch a file; a cohort is read only once it is sealed. The seal holds
digests of all small files, these hold digests of all voxels: `verify` follows the chain.
"""

from uadray.store.check import Problem, advice, verify
from uadray.store.cohort import Cohort, open_cohort, repeated_images
from uadray.store.layout import (
    CHUNK_VOLUMES,
    FORMAT,
    MAX_SHARD_VOLUMES,
    Failure,
    Split,
    Subject,
    open_array,
    shard_volumes,
    software_versions,
    storage_errors,
    write_left_out,
    zarr_store,
)
from uadray.store.staging import kept_name, parse_name
from uadray.store.writer import CohortWriter

__all__ = [
    "CHUNK_VOLUMES",
    "FORMAT",
    "MAX_SHARD_VOLUMES",
    "Cohort",
    "CohortWriter",
    "Failure",
    "Problem",
    "Split",
    "Subject",
    "advice",
    "kept_name",
    "open_array",
    "open_cohort",
    "parse_name",
    "repeated_images",
    "shard_volumes",
    "software_versions",
    "storage_errors",
    "verify",
    "write_left_out",
    "zarr_store",
]
