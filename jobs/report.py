"""One HTML page from run folders: `python jobs/report.py RUN... --out report.html`.

A RUN may be a folder of runs, such as the `runs` of a sweep; several that differ in a setting or in
the seed are reported as a sweep. The tables go beside the page, or to `--export DIR`, as CSV,
Markdown and LaTeX; the paired comparisons and the effects of settings as CSV files of their own.
"""

from dataclasses import dataclass, field

import tyro

from uadray import cli
from uadray.errors import ConfigError
from uadray.report import write_report


@dataclass(frozen=True, kw_only=True)
class Report:
    """What to report, and where to."""

    runs: tyro.conf.Positional[tuple[str, ...]] = field()
    """Run folders, or folders of runs; local paths or fsspec URLs."""
    out: str = "report.html"
    """The page; ends in .html."""
    title: str = "Unsupervised anomaly detection in brain MRI"
    """Its head."""
    reference: tuple[str, ...] = ()
    """Methods that all others are held against; by default the best plain baseline and 3D-None."""
    export: str = ""
    """Folder for the tables (.csv, .md, .tex); beside the page by default."""
    healthy: str = ""
    """A healthy cohort, to show on its first scan what each experiment erases."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise ConfigError("no run named: give run folders, or folders of runs")


def main() -> None:
    job = tyro.cli(Report, description=__doc__)
    out = write_report(
        job.runs,
        job.out,
        title=job.title,
        references=job.reference,
        erasing_from=job.healthy,
        tables=job.export,
    )
    print(f"report: {out}")
    where = f"in {job.export}" if job.export else "beside it"
    print(f"next: open it in a browser; it needs no network, and the tables lie {where}")


if __name__ == "__main__":
    cli.run(main)
