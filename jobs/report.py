"""One HTML page from run folders: `python jobs/report.py RUN... --out report.html`.

A RUN may be a folder of runs. The tables go beside the page as CSV and Markdown, the paired
comparisons as a CSV of their own.
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

    def __post_init__(self) -> None:
        if not self.runs:
            raise ConfigError("no run named: give run folders, or folders of runs")


def main() -> None:
    job = tyro.cli(Report, description=__doc__)
    out = write_report(job.runs, job.out, title=job.title, references=job.reference)
    print(f"report: {out}")
    print("next: open it in a browser; it needs no network, and the tables lie beside it")


if __name__ == "__main__":
    cli.run(main)
