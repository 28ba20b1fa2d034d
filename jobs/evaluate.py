"""Evaluate finished runs on a lesioned cohort: all runs in one pass over its volumes.

    python jobs/evaluate.py runs/3D-Cube-n runs/PCA-16 --cohort runs/stroke.zarr

The threshold is fitted on the cohort's threshold part and then frozen; figures are of its test
part. Scores and counts are kept in the run folders, and subjects that have them are not scored
again.
"""

from dataclasses import dataclass, field
from typing import Annotated

import tyro
from rich.console import Console

from uadray import cli
from uadray.evaluate.distributed import EvaluateConfig, evaluate
from uadray.progress import Progress
from uadray.report import load_runs, terminal_table
from uadray.store import open_cohort
from uadray.train.run import Run


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """What to evaluate, and on what."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Run folders, or folders of runs; local paths or fsspec URLs."""
    cohort: str
    """A sealed cohort with lesions."""
    config: Annotated[EvaluateConfig, tyro.conf.arg(name="")] = field(
        default_factory=EvaluateConfig
    )
    """How scores are made and read."""


def main() -> None:
    job = tyro.cli(Evaluate, description=__doc__)
    cohort = open_cohort(job.cohort)
    runs = [Run.open(record.url) for record in load_runs(job.runs)]
    with Progress(total=len(cohort.subjects), what="volumes") as progress:
        evaluate(runs, cohort, config=job.config, report=progress.advance)
    Console().print(terminal_table(load_runs([run.url for run in runs]), cohort.name))
    print(f"scores and figures are in the run folders, under evaluation/{cohort.name}.json")
    print(f"next: python jobs/report.py {' '.join(job.runs)} --out report.html")


if __name__ == "__main__":
    cli.run(main)
