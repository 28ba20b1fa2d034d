"""One HTML page from run folders: tables, intervals, pictures.

    python jobs/report.py                    what the other jobs fitted on phantom brains
    python jobs/report.py RUN ... --out report.html
    python jobs/report.py RUN ... --by sex age:40:60

A RUN may be a folder of runs or of a sweep; several runs that differ in a setting or in the seed
are reported as a sweep. The tables go beside the page, or to `--export DIR`, as CSV,
Markdown and LaTeX; the paired comparisons and the effects of settings as CSV files of their own.

Evaluations are shown by the groups that they were made with; --by makes others from the counts that
they have kept, without scoring again. It needs the cohorts, which know the people.

A run that is damaged is named on the page, and the others are reported. Exit code 3: done, but some
runs were left out.
"""

from dataclasses import dataclass, replace
from typing import Annotated

import tyro

from uadray import cli, files, first_run
from uadray.errors import ConfigError
from uadray.results import refuse_place
from uadray.strata import By


@dataclass(frozen=True, kw_only=True)
class Report:
    """What to report, and where to."""

    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN ...")] = ()
    """Run folders, or folders of runs; local paths or fsspec URLs. Those on phantom brains by
    default."""
    out: str = ""
    """The page; ends in .html. report.html here by default, and beside the phantoms for those."""
    title: str = "Unsupervised anomaly detection in brain MRI"
    """Its head."""
    reference: Annotated[tuple[str, ...], tyro.conf.arg(metavar="METHOD ...")] = ()
    """Methods that all others are compared with; by default the best plain baseline and 3D-None."""
    by: Annotated[tuple[str, ...], tyro.conf.arg(metavar="COLUMN ...")] = ()
    """Groups of people, as for jobs/evaluate.py: `scanner`, `lesion_ml:1:10:100` or any covariate,
    such as `sex` or `age:40:60`. By default what evaluations were asked for."""
    export: str = ""
    """Folder for the tables (.csv, .md, .tex); beside the page by default."""
    healthy: str = ""
    """A healthy cohort, to show on its first scan what each experiment erases."""
    viewer: int = 0
    """How many runs of each cohort, the highest by Dice_D, get a page for each case that the report
    shows: three planes and a rendering, 1.4 MB a case of 64 voxels a side. They need the cohort."""

    def __post_init__(self) -> None:
        if self.viewer < 0:
            raise ConfigError(f"--viewer must be >= 0, was {self.viewer}")
        for text in self.by:
            By.parse(text)


def main() -> int:
    job = tyro.cli(Report, description=__doc__)
    if not job.runs:
        print(first_run.notice(first_run.folder(), "RUN ... --out PAGE.html"))
        page = job.out or files.join(first_run.folder(), "report.html")
        job = replace(job, runs=tuple(first_run.evaluated()), out=page)
    job = replace(job, out=job.out or "report.html")
    refuse_place(job.out, ConfigError, is_folder=False)
    from uadray.report import write_report
    from uadray.runs.records import Broken
    from uadray.viewer.runs import write_viewers

    left_out: list[Broken] = []
    viewers = None
    if job.viewer:
        viewers = write_viewers(job.runs, job.out, num_runs=job.viewer, left_out=left_out)
    out = write_report(
        job.runs,
        job.out,
        title=job.title,
        references=job.reference,
        viewers=viewers,
        erasing_from=job.healthy,
        by=job.by,
        tables=job.export,
        left_out=left_out,
    )
    print(f"report: {out}")
    if viewers:
        print(f"{len(viewers)} cases to look at in {out.removesuffix('.html')}-cases/index.html")
    where = f"in {job.export}" if job.export else "beside it"
    print(f"next: open it in a browser; it needs no network, and the tables lie {where}")
    return cli.say_left_out(left_out)
