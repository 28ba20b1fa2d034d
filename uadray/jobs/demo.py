"""The whole flow on phantoms, with no data at hand: cohort, fits, evaluation, report.

    python jobs/demo.py                     under 8 minutes on 2 cores
    python jobs/demo.py --out runs/mine     another folder
    python jobs/demo.py --epochs 5          a quick look

The same command again repeats nothing that is finished.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import tyro

from uadray import files, first_run
from uadray.config import BASELINES, learns

if TYPE_CHECKING:
    from uadray.runs.folder import Run
    from uadray.store import Cohort


@dataclass(frozen=True, kw_only=True)
class Demo:
    """How large the demo is."""

    out: str = "runs/demo"
    """Folder of the cohorts, the runs and the report."""
    size: int = 32
    """Voxels along each axis."""
    healthy: int = 96
    """Healthy phantoms."""
    lesioned: int = 24
    """Phantoms with a tumour, and as many with a stroke."""
    epochs: int = 40
    """Of each autoencoder."""
    names: tuple[str, ...] = ("2D-None", "3D-None", "3D-Cube-n", *BASELINES)
    """Experiments."""


def make_cohorts(job: Demo) -> "dict[str, Cohort]":
    """The healthy cohort and the two with lesions."""
    return first_run.cohorts(job.out, size=job.size, healthy=job.healthy, lesioned=job.lesioned)


def fit_one(job: Demo, name: str, cohort: "Cohort") -> "Run":
    """Fit one experiment, with progress."""
    from uadray.progress import Progress
    from uadray.train.job import fit
    from uadray.train.summary import format_metrics

    wanted = first_run.small(name, job.epochs)
    total = job.epochs if learns(wanted) else 1
    with Progress(total=total, what=f"epochs of {wanted.name}") as progress:
        return fit(
            wanted,
            cohort,
            files.join(job.out, "fits", wanted.name),
            report=lambda m: progress.set_done(m["epoch"], format_metrics(m)),
        )


def evaluate_all(job: Demo, runs: "Sequence[Run]", cohorts: "dict[str, Cohort]") -> None:
    """Evaluate all runs on both cohorts with lesions."""
    from uadray.evaluation.job import evaluate
    from uadray.progress import Progress

    for kind in first_run.LESIONED:
        with Progress(total=job.lesioned, what=f"{kind} volumes scored") as progress:
            evaluate(runs, cohorts[kind], report=progress.advance)


def report(job: Demo, runs: "Sequence[Run]") -> str:
    """Print the table and write the page."""
    from rich.console import Console

    from uadray.report import terminal_summary, write_report
    from uadray.runs.records import load_runs

    urls = [run.url for run in runs]
    console = Console()
    console.print(terminal_summary(load_runs(urls), width=console.width))
    return write_report(urls, files.join(job.out, "report.html"))


def main() -> None:
    job = tyro.cli(Demo, description=__doc__)
    cohorts = make_cohorts(job)
    runs = [fit_one(job, name, cohorts["healthy"]) for name in job.names]
    evaluate_all(job, runs, cohorts)
    print(f"report: {report(job, runs)}")
    print("next: open it in a browser; python jobs/train.py --help fits on scans of your own")
