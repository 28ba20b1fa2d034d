"""The whole flow on phantoms, with no data at hand: cohort, fits, evaluation, report.

    python jobs/demo.py                     under 8 minutes on 2 cores
    python jobs/demo.py --out runs/mine     another folder
    python jobs/demo.py --epochs 5          a quick look

The same command again repeats nothing that is finished.
"""

from dataclasses import dataclass, replace

import tyro
from rich.console import Console

from uadray import cli, files
from uadray.config import BASELINES, VAE, experiment, with_fit
from uadray.evaluate.distributed import evaluate
from uadray.prepare.ingest import prepare_cohort
from uadray.prepare.layouts import phantom
from uadray.prepare.splits import SplitConfig
from uadray.prepare.steps import PrepareConfig
from uadray.progress import Progress
from uadray.report import load_runs, terminal_table, write_report
from uadray.train.distributed import fit, format_epoch


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


def main() -> None:
    job = tyro.cli(Demo, description=__doc__)
    console = Console(stderr=True, highlight=False)
    cohorts = {}
    for kind, count in (
        ("healthy", job.healthy),
        ("tumour", job.lesioned),
        ("stroke", job.lesioned),
    ):
        console.print(f"cohort {kind}: {count} phantoms of {job.size} x {job.size} x {job.size}")
        cohorts[kind] = prepare_cohort(
            phantom(kind, count, 0),
            files.join(job.out, f"{kind}.zarr"),
            config=PrepareConfig(shape=(job.size,) * 3),
            split=SplitConfig(),
        )
    runs = []
    for name in job.names:
        wanted = with_fit(experiment(name), epochs=job.epochs)
        is_3d = isinstance(wanted.method, VAE) and wanted.method.ndim == 3
        # So few volumes would make three steps an epoch of the paper's batches of 32.
        wanted = with_fit(wanted, batch_size=4) if is_3d else wanted
        total = job.epochs if isinstance(wanted.method, VAE) else 1
        with Progress(total=total, what=f"epochs of {name}") as progress:
            report = lambda m, w=wanted, p=progress: p.advance(1, format_epoch(w, m))
            runs.append(
                fit(wanted, cohorts["healthy"], files.join(job.out, "fits", name), report=report)
            )
    for kind in ("tumour", "stroke"):
        with Progress(total=job.lesioned, what=f"{kind} volumes scored") as progress:
            evaluate(runs, cohorts[kind], report=progress.advance)
    records = load_runs([run.url for run in runs])
    for kind in ("tumour", "stroke"):
        Console().print(terminal_table(records, kind))
    page = write_report([run.url for run in runs], files.join(job.out, "report.html"))
    print(f"report: {page}")


if __name__ == "__main__":
    cli.run(main)
