r"""Turn MRI scans into a cohort: a sealed Zarr store of volumes preprocessed alike.

    python jobs/prepare.py bids DATA/ds002748 --out runs/healthy.zarr --hold-out 12
    python jobs/prepare.py bids DATA/ds002748 --out runs/stroke.zarr --hold-out 12 --held-out \
        --lesions DATA/stroke_masks
    python jobs/prepare.py bids DATA/ds002748 --out runs/tumour.zarr --hold-out 12 --held-out \
        --lesions DATA/masks --lesion-kind tumour --contrast t1-dark --healthy runs/healthy.zarr
    python jobs/prepare.py mslub DATA/mslub --out runs/mslub.zarr
    python jobs/prepare.py mslub DATA/mslub --out runs/slices.zarr --grid baur2018
    python jobs/prepare.py csv s3://bucket/scans.csv --out s3://bucket/cohort.zarr --size 32
    python jobs/prepare.py brats DATA/brats2019 --out runs/tumour.zarr --preset bengs2021
    python jobs/prepare.py package.module:my_layout DATA/own --out runs/own.zarr
    python jobs/prepare.py phantom healthy --count 128 --out runs/phantom.zarr --size 32
    python jobs/prepare.py --verify runs/healthy.zarr
    python jobs/prepare.py quality runs/healthy.zarr

Healthy scans become the parts train and validation, scans with a lesion mask the parts threshold
and test, always by subject. The same command again does only what is missing, wherever a job was
cut short, and ends in the same fingerprint; `--redo` prepares some scans of a sealed cohort again.
`--verify` follows the digests from the seal to every voxel, and says which scans to prepare again
and how. A quality page beside the cohort (`runs/healthy-qc.html`, or --qc) shows every scan and
flags those to look at; `quality` makes it again. Exit code 3: done, but some scans could not be
used; they are listed with their reasons.
"""

import inspect
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Union

import tyro

from uadray import cli, fields, files
from uadray.errors import ConfigError
from uadray.evaluation.protocols import PROTOCOLS
from uadray.preparation.inputs import Inputs, Settings, find_inputs
from uadray.preparation.layouts import LAYOUTS, layout_named, phantom
from uadray.preparation.settings import (
    MAX_FAILURES,
    STRIPPERS,
    TOOLS,
    PrepareConfig,
    Redo,
    Selection,
    SplitConfig,
    check_numbers,
)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all ways to make a cohort share."""

    out: str
    """The cohort: a local folder or an fsspec URL."""
    qc: str = ""
    """The quality page, ending in .html; beside the cohort by default."""
    healthy: str = ""
    """A healthy cohort prepared alike: plain methods learn from it for the calibration, which says
    what raw intensity, mean image, z-score and PCA reach on a cohort with lesions."""
    seed: int = 0
    """Decides who is held out, the parts, the order of the rows and who gets which lesion."""
    max_failures: float = MAX_FAILURES
    """Share of the scans that may be unusable, in [0, 1]; beyond it the job fails."""
    redo: Annotated[tuple[Redo, ...], tyro.conf.arg(metavar="WHICH ...")] = ()
    """Prepare these scans of a sealed cohort again and keep the others: `quarantined`, `changed`
    (files with another content than then), `damaged` (what --verify finds)."""
    workers: int | None = None
    """Scans prepared at a time, each on one CPU; as many as there are CPUs by default."""
    split: SplitConfig = field(default_factory=SplitConfig)

    def __post_init__(self) -> None:
        """Check the numbers before any scan is looked for."""
        check_numbers(seed=self.seed, workers=self.workers)


@dataclass(frozen=True, kw_only=True)
class Files(Job):
    """Scans in files."""

    root: tyro.conf.Positional[str]
    """Folder of the data set (for csv: the table); a local path or an fsspec URL."""
    modality: str
    """Such as T1w or FLAIR."""
    size: int | None = None
    """Short for --shape SIZE SIZE SIZE."""
    grid: Literal["none", "baur2018", "meissen2021-I", "meissen2021-II", "meissen2021-study"] = (
        "none"
    )
    """The preparation of an evaluation protocol: short for its grid and its other flags, of which
    those that are given beside it hold instead. All lesioned subjects are tested."""
    lesions: str = ""
    """Folder of real lesion masks: healthy scans get semi-synthetic lesions of their shapes, see
    --lesion-kind and --contrast."""
    lesion_files: str = ""
    """Pattern of the masks' names, such as '*_seg.nii.gz', where the folder holds others too."""
    covariates: str = ""
    """Table (CSV or TSV) of what is known of people besides, such as age and sex, one column of
    which names them; what the data set's own table says is taken anyway."""
    selection: Selection = field(default_factory=Selection)
    config: PrepareConfig = field(default_factory=PrepareConfig)

    @classmethod
    def layout(cls) -> str:
        """The name of its layout."""
        return cls.__name__

    def inputs(self) -> Inputs:
        """The scans, the steps' settings, and what was found besides; it is listed."""
        if self.size and self.config.shape != (self.size,) * 3:
            raise ConfigError("--size and --shape both say how many voxels: give one")
        return find_inputs(
            self.layout(),
            self.root,
            self.modality,
            settings=Settings(config=self.config, selection=self.selection, split=self.split),
            seed=self.seed,
            lesions=self.lesions,
            lesion_files=self.lesion_files,
            covariates=self.covariates,
            report=print,
        )


@dataclass(frozen=True, kw_only=True)
class Phantom(Job):
    """Invented subjects."""

    kind: tyro.conf.Positional[Literal["healthy", "tumour", "stroke"]]
    """What the subjects have."""
    count: int = 24
    """Subjects."""
    first_seed: int = 0
    """Seed of the first subject; the others follow."""
    size: int = 64
    """Voxels along each axis."""
    version: int | None = None
    """How they are made: the newest by default, 1 as in cohorts of before, to make those again."""

    def inputs(self) -> Inputs:
        """The subjects and the grid that they are made on."""
        scans = phantom(self.kind, self.count, self.first_seed, version=self.version)
        return Inputs(scans=scans, config=PrepareConfig(shape=(self.size,) * 3))


@dataclass(frozen=True)
class Verify:
    """Check a cohort: seal, tables, shapes, ranges, masks, every voxel; also --verify STORE."""

    store: tyro.conf.Positional[str]
    """The cohort; a local folder or an fsspec URL."""


@dataclass(frozen=True)
class Quality:
    """Make the quality page of a sealed cohort again."""

    store: tyro.conf.Positional[str]
    """The cohort; a local folder or an fsspec URL."""
    qc: str = ""
    """The page, ending in .html; beside the cohort by default."""


def parse(args: Sequence[str]) -> Any:
    """The job that the arguments ask for: one of a layout of the registry, or another one."""
    kinds: dict[str, tuple[Any, Any, str]] = {}
    for other in (Phantom, Verify, Quality):
        kinds[other.__name__.lower()] = other, None, inspect.getdoc(other) or ""
    named = args[0] if args else ""
    if re.fullmatch(r"[^:\s]+:\w+", named):
        layout_named(named)
    if named not in kinds:
        broken: list[object] = []
        names = [named] if named in LAYOUTS else LAYOUTS.usable(lambda name, e: broken.append(e))
        kinds = {name: _with_files(name) for name in names} | kinds
        cli.say_left_out(broken)
    if named and named not in kinds and not named.startswith("-"):
        raise ConfigError(
            f"no layout is named {named!r}{fields.closest(named, kinds)}; one of another package "
            "is there where the package is installed"
        )
    config = (tyro.conf.OmitArgPrefixes,)
    if named in kinds:
        # By itself: in a union tyro names settings that are wrong by a name of its own.
        kind, default, doc = kinds[named]
        prog = cli.program(named)
        return tyro.cli(
            kind, prog=prog, args=args[1:], default=default, description=doc, config=config
        )
    commands = [
        Annotated[kind, tyro.conf.subcommand(name, default=default, description=doc)]
        if default
        else kind
        for name, (kind, default, doc) in kinds.items()
    ]
    return tyro.cli(Union[(*commands,)], args=args, description=__doc__, config=config)  # type: ignore[call-overload]


def _with_files(name: str) -> tuple[Any, Any, str]:
    """The arguments of a layout, their defaults, and its first sentence."""
    layout = LAYOUTS[name]
    doc = (inspect.getdoc(layout) or "").split("\n\n")[0].replace("\n", " ")
    kind = type(name, (Files,), {"__doc__": doc})
    modality = inspect.signature(layout).parameters["modality"].default
    if others := [one for one in STRIPPERS if one not in TOOLS]:
        doc += f" Values of --skull-strip from other packages: {', '.join(others)}."
    return kind, kind(root=tyro.MISSING, out=tyro.MISSING, modality=modality), doc


def spelled_out(args: Sequence[str]) -> list[str]:
    """Arguments with the short forms replaced that tyro does not know."""
    args = [part for arg in args for part in _equals(arg)]
    if args[:1] == ["--verify"]:
        args[0] = "verify"
    if args[:1] != ["phantom"] and "--size" in args[:-1] and "--shape" not in args:
        # Settings are checked as a whole while they are parsed.
        args += ["--shape", *[args[args.index("--size") + 1]] * 3]
    if "--grid" in args[:-1] and (protocol := PROTOCOLS.get(args[args.index("--grid") + 1])):
        args += _beside(args, shlex.split(f"{protocol.prepare} {protocol.split}"))
    return args


def _beside(args: Sequence[str], flags: Sequence[str]) -> list[str]:
    """Those of the flags, with their values, that are not among the arguments."""
    kept: list[str] = []
    skip = False
    for flag in flags:
        if flag.startswith("--"):
            skip = flag in args
        if not skip:
            kept.append(flag)
    return kept


def _equals(arg: str) -> list[str]:
    return arg.split("=") if arg.startswith(("--size=", "--grid=")) else [arg]


CONDUCT = ("--out", "--qc", "--healthy", "--redo", "--workers", "--max-failures")
"""Options that do not decide what a cohort holds."""


def recorded(args: Sequence[str], paths: Sequence[str]) -> str:
    """The command as a cohort keeps it: from any folder, without place and conduct of the job."""
    kept: list[str] = []
    skip = False
    for arg in args:
        if arg.startswith("--"):
            skip = arg.split("=")[0] in CONDUCT
        if not skip:
            kept.append(files.normalise(arg) if arg in paths and kept else arg)
    return shlex.join(["python", "jobs/prepare.py", *kept])


def check(url: str) -> int:
    """Verify a cohort and say what to do."""
    from uadray.store import advice, storage_errors, verify

    with storage_errors(url):
        problems = verify(url)
    if not problems:
        print(f"{url}: whole; every file and voxel is as it was written")
        return cli.OK
    print("\n".join(f"{url}: {problem}" for problem in problems))
    print(f"next: {advice(url, problems)}")
    return cli.FAILED


def main() -> int:
    args = spelled_out(sys.argv[1:])
    job = parse(args)
    if isinstance(job, Verify):
        return check(job.store)
    from uadray.preparation.ingest import summary
    from uadray.prepared import prepare_inputs, show_quality
    from uadray.quality.page import quality_url
    from uadray.store import open_cohort

    if isinstance(job, Quality):
        page = quality_url(job.store, job.qc)
        show_quality(open_cohort(job.store), page, print)
        return cli.OK
    paths = [job.root, job.lesions] if isinstance(job, Files) else []
    cohort = prepare_inputs(
        job.inputs,
        job.out,
        split=job.split,
        seed=job.seed,
        max_failures=job.max_failures,
        redo=job.redo,
        workers=job.workers,
        command=recorded(args, [path for path in paths if path]),
        qc=job.qc,
        healthy=job.healthy,
        calibrate=isinstance(job, Files) and bool(job.lesions),
        report=print,
    ).cohort
    print(summary(cohort))
    return cli.INCOMPLETE if cohort.quarantine else cli.OK
