r"""Turn MRI scans into a cohort: a sealed Zarr store of volumes preprocessed alike.

    python jobs/prepare.py bids DATA/ds002748 --out runs/healthy.zarr --hold-out 12
    python jobs/prepare.py bids DATA/ds002748 --out runs/stroke.zarr --hold-out 12 --held-out \
        --lesions DATA/stroke_masks
    python jobs/prepare.py mslub DATA/mslub --out runs/mslub.zarr --modality FLAIR
    python jobs/prepare.py csv scans.csv --out s3://bucket/cohort.zarr --shape 64 64 64
    python jobs/prepare.py phantom healthy --count 128 --out runs/phantom.zarr --size 32
    python jobs/prepare.py verify runs/healthy.zarr

Healthy scans become the parts train and validation, scans with a lesion mask the parts threshold
and test. The same command again does only what is missing. Exit code 3: done, but some scans could
not be used; they are listed with their reasons.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

import tyro

from uadray import cli
from uadray.prepare import layouts
from uadray.prepare.ingest import prepare_cohort, summary
from uadray.prepare.lesions import assign_strokes, find_stroke_masks
from uadray.prepare.splits import Selection, SplitConfig, select_scans
from uadray.prepare.steps import PrepareConfig
from uadray.store import verify

Flat = tyro.conf.OmitArgPrefixes


@dataclass(frozen=True, kw_only=True)
class Files:
    """Scans in files."""

    root: tyro.conf.Positional[str]
    """Folder of the data set (for csv: the table); a local path or an fsspec URL."""
    out: str
    """The cohort: a local folder or an fsspec URL."""
    modality: str = "T1w"
    """As the layout names it, such as T1w or FLAIR."""
    size: int | None = None
    """Short for --shape SIZE SIZE SIZE."""
    lesions: str = ""
    """Folder of real stroke masks: healthy scans get semi-synthetic strokes of their shapes."""
    seed: int = 0
    """Decides who is held out, the parts, the order of the rows and who gets which stroke."""
    selection: Selection = field(default_factory=Selection)
    split: SplitConfig = field(default_factory=SplitConfig)
    config: PrepareConfig = field(default_factory=PrepareConfig)


@dataclass(frozen=True, kw_only=True)
class Bids(Files):
    """BIDS folders: sub-XX[/ses-YY]/anat/*_MODALITY.nii[.gz], masks under derivatives/."""


@dataclass(frozen=True, kw_only=True)
class Csv(Files):
    """A table with a column image, and id, subject, session, modality, scanner, brain, lesion."""


@dataclass(frozen=True, kw_only=True)
class Mslub(Files):
    """The MSLUB set: patientNN/patientNN_MODALITY.nii.gz with both masks."""

    modality: str = "FLAIR"
    """FLAIR, T1W, T1WKS or T2W."""


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """Invented subjects."""

    kind: tyro.conf.Positional[Literal["healthy", "tumour", "stroke"]]
    """What the subjects have."""
    out: str
    """The cohort: a local folder or an fsspec URL."""
    count: int = 24
    """Subjects."""
    first_seed: int = 0
    """Seed of the first subject; the others follow."""
    size: int = 64
    """Voxels along each axis."""
    seed: int = 0
    """Decides the parts and the order of the rows."""
    split: SplitConfig = field(default_factory=SplitConfig)


@dataclass(frozen=True)
class Verify:
    """Check every voxel of a sealed cohort."""

    store: tyro.conf.Positional[str]
    """The cohort."""


def main() -> int:
    job = tyro.cli(Bids | Csv | Mslub | Phantom | Verify, description=__doc__, config=(Flat,))
    if isinstance(job, Verify):
        problems = verify(job.store)
        print("\n".join(problems) or f"{job.store}: every voxel is as it was written")
        return cli.FAILED if problems else cli.OK
    if isinstance(job, Phantom):
        scans = layouts.phantom(job.kind, job.count, job.first_seed)
        config = PrepareConfig(shape=(job.size,) * 3)
    else:
        find = layouts.LAYOUTS[type(job).__name__.lower()]
        scans = select_scans(find(job.root, job.modality), job.selection, seed=job.seed)
        if job.lesions:
            scans = assign_strokes(scans, find_stroke_masks(job.lesions), job.seed)
        config = replace(job.config, shape=(job.size,) * 3) if job.size else job.config
    cohort = prepare_cohort(scans, job.out, config=config, split=job.split, seed=job.seed)
    print(summary(cohort))
    return cli.INCOMPLETE if cohort.quarantine else cli.OK


if __name__ == "__main__":
    cli.run(main)
