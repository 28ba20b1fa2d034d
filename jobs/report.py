"""One HTML page from run folders: `python jobs/report.py RUN... --out report.html`.

A RUN may be a folder of runs. The tables go beside the page as CSV and Markdown.
"""

import sys
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from uadray.errors import UadrayError
from uadray.report import write_report


@dataclass(frozen=True, kw_only=True)
class ReportJob:
    """What to report, and where to."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional] = field()
    """Run folders, or folders of runs; local paths or fsspec URLs."""
    out: str = "report.html"
    """The page; ends in .html."""
    title: str = "Unsupervised anomaly detection in brain MRI"
    """Its head."""


def main(args: list[str] | None = None) -> None:
    job = tyro.cli(ReportJob, args=args, description=__doc__)
    try:
        print(write_report(job.runs, job.out, title=job.title))
    except UadrayError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
