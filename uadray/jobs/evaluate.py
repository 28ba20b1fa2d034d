r"""Evaluate finished runs on lesioned cohorts: all runs in one pass over a cohort's volumes.

    python jobs/evaluate.py                  what jobs/train.py and tune.py fitted on phantoms
    python jobs/evaluate.py runs/3D-Cube-n runs/PCA-16 --cohort runs/stroke.zarr
    python jobs/evaluate.py runs --cohort runs/stroke.zarr runs/tumour.zarr
    python jobs/evaluate.py runs --cohort runs/stroke.zarr --threshold-rule healthy_fpr_5 \
        --healthy runs/healthy.zarr
    python jobs/evaluate.py runs/HistEq --cohort runs/mslub.zarr --protocol meissen2021-I
    python jobs/evaluate.py --protocol meissen2021-I --help      its settings
    python jobs/evaluate.py --maps MAPS --name "Their method" --cohort runs/stroke.zarr

Members of an ensemble are evaluated with it, and what it gains over them is printed.

The threshold is fitted on the cohort's threshold part, or on healthy validation volumes, and then
frozen; figures are of the test part. Scores and counts are kept in the run folders: subjects that
have them are not scored again, and the same settings take the same threshold again.

With --maps, anomaly maps that any other software made (NIfTI, higher scores more anomalous) are
brought to the cohort's grid and kept in a run folder, which is evaluated as any other.

A run that is damaged or cannot be evaluated is named, and the others go on; so is a scan without a
usable map. Exit code 3: done, but some runs were left out, or some scans have no usable map.
"""

import argparse
import shlex
import sys
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated

import tyro

from uadray import cli, first_run
from uadray.errors import ConfigError
from uadray.evaluation.maps_settings import MapsConfig
from uadray.evaluation.protocols import PROTOCOLS, EvaluateConfig
from uadray.naming import file_name
from uadray.results import refuse_place

if TYPE_CHECKING:
    from uadray.runs.folder import Run
    from uadray.store import Cohort


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """What to evaluate, and on what."""

    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN ...")] = ()
    """Run folders, or folders of runs; local paths or fsspec URLs. Those on phantom brains by
    default."""
    cohort: Annotated[tuple[str, ...], tyro.conf.arg(metavar="COHORT ...")] = ()
    """Sealed cohorts with lesions; phantoms by default."""
    healthy: str | None = None
    """A sealed healthy cohort: the threshold is fitted on its validation split instead of on the
    threshold part. Only for rules that need no lesions."""
    controls: str | None = None
    """A sealed healthy cohort with a test part (jobs/prepare.py --test-count): false alarms in
    healthy people, and how well scores separate patients from them."""
    config: Annotated[EvaluateConfig, tyro.conf.arg(name="")] = field(
        default_factory=EvaluateConfig
    )
    """How scores are made and read."""
    maps: str = ""
    """Anomaly maps of the cohort's scans: a folder of NIfTI files that are named by the scans' ids,
    or a table (CSV, TSV) with the columns id and path."""
    name: str = ""
    """With --maps: the method that made them."""
    out: str = ""
    """With --maps: the run folder that they are kept in; beside the cohort's fits by default."""
    given: Annotated[MapsConfig, tyro.conf.arg(name="")] = field(default_factory=MapsConfig)
    """How maps are read."""
    allow_mismatch: bool = False
    """Evaluate also where a cohort is of another modality or preparation than a run was fitted on,
    or where ids say that people were learned from. Every table says so."""

    def __post_init__(self) -> None:
        if (self.runs or self.maps) and not self.cohort:
            raise ConfigError("name at least one cohort with lesions: --cohort COHORT ...")
        if self.cohort and not (self.runs or self.maps):
            raise ConfigError(
                "name at least one run: run folders, or folders of runs; or maps: --maps FOLDER"
            )
        if not self.maps:
            if self.name or self.out or self.given != MapsConfig():
                raise ConfigError("--name, --out and how maps are read go with --maps alone")
            return
        if not self.name.strip():
            raise ConfigError('name the method that made the maps: --name "Their method"')
        if len(self.cohort) > 1:
            raise ConfigError(
                "maps are of the scans of one cohort: name one, and bring the maps of each other "
                "one in a call of its own"
            )
        if self.healthy is not None or self.controls is not None:
            raise ConfigError(
                "--healthy and --controls would need maps of the healthy scans, too: leave them "
                "out; the threshold is fitted on the threshold part of the cohort"
            )

    @property
    def folder(self) -> str:
        """The run folder of the maps."""
        if self.out:
            return self.out
        seed = f"-seed-{self.given.seed}" if self.given.seed else ""
        return first_run.out_for(self.cohort[0], f"maps/{file_name(self.name)}{seed}")


def parse(args: list[str]) -> Evaluate:
    """Read the arguments; the protocol among them gives the other settings their defaults."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--protocol", default="bengs2021")
    name = first.parse_known_args(args)[0].protocol
    config = EvaluateConfig.of(name) if name in PROTOCOLS else EvaluateConfig()
    return tyro.cli(
        Evaluate,
        args=args,
        description=__doc__,
        default=Evaluate(config=config),
    )


def bring(job: Evaluate, cohort: "Cohort") -> "tuple[Run, list[str]]":
    """Keep the maps as a run; returns it, and each scan without a usable one with the reason."""
    from uadray.evaluation.maps import bring_maps
    from uadray.preparation.layouts.listing import left_out_lines
    from uadray.progress import Progress

    refuse_place(job.folder, ConfigError)
    with Progress(total=len(cohort.subjects), what="maps") as progress:
        brought = bring_maps(
            job.maps,
            cohort,
            job.folder,
            name=job.name,
            config=job.given,
            report=progress.advance,
        )
    for line in left_out_lines(brought.num_maps, brought.left_out, what="maps"):
        print(line)
    print(f"{job.name}: run folder {brought.run.url}")
    return brought.run, [f"no usable map: {one}" for one in brought.absent]


def main() -> int:
    job = parse(sys.argv[1:])
    from rich.console import Console

    from uadray.evaluation.job import evaluate_all, num_volumes
    from uadray.progress import Progress
    from uadray.report import terminal_table
    from uadray.report.ensembles import gains_on
    from uadray.report.rows import findable_on, notes_on
    from uadray.report.terminal import protocol_figures
    from uadray.runs.ensembles import with_members
    from uadray.runs.records import Broken, find_runs, load_runs
    from uadray.store import open_cohort

    if not job.runs and not job.maps:
        print(first_run.notice(first_run.folder(), "RUN ... --cohort COHORT ..."))
        phantoms = first_run.cohorts()
        given = tuple(run.url for run in first_run.fitted())
        lesioned = tuple(phantoms[kind].url for kind in first_run.LESIONED)
        job = replace(job, runs=given, cohort=lesioned)
    cohorts = [open_cohort(url) for url in job.cohort]
    healthy = open_cohort(job.healthy) if job.healthy else None
    runs, left_out = find_runs(job.runs) if job.runs else ([], list[Broken]())
    absent: list[str] = []
    if job.maps:
        run, absent = bring(job, cohorts[0])
        runs = [*(one for one in runs if one.url != run.url), run]
    asked = {run.url for run in runs}
    runs, missing = with_members(runs)
    controls = open_cohort(job.controls) if job.controls else None
    with Progress(total=num_volumes(cohorts, healthy, controls), what="volumes") as progress:
        evaluate_all(
            runs,
            cohorts,
            healthy=healthy,
            controls=controls,
            config=job.config,
            report=progress.advance,
            failed=lambda run, error: left_out.append(Broken(url=run.url, error=str(error))),
            allow_mismatch=job.allow_mismatch,
        )
    failed = {one.url for one in left_out}
    # Evaluations on other cohorts, which may be damaged, are not asked for here.
    records = load_runs([run.url for run in runs if run.url not in failed], [])
    console = Console()
    for cohort in cohorts:
        console.print(terminal_table(records, cohort.name, width=console.width))
        for line in protocol_figures(records, cohort.name):
            print(line)
        print(f"scores and figures are in the run folders, under evaluation/{cohort.name}.json")
        for sentence in findable_on(records, cohort.name):
            print(sentence)
        for line in gains_on(records, cohort.name):
            print(line)
        for note in (*missing, *notes_on(records, cohort.name)):
            print(f"note: {note}")
    # A report has what an ensemble gains where its members are in it.
    members = [run.url for run in runs if run.url not in asked]
    reported = [*job.runs, *members, *([job.folder] if job.maps else [])]
    print(f"next: python jobs/report.py {shlex.join(reported)} --out report.html")
    return cli.say_left_out([*absent, *left_out])
