r"""Sweep over settings: fit every trial on a healthy cohort, evaluate, report.

    python jobs/tune.py smoke --cohort runs/healthy.zarr --out runs/sweep
    python jobs/tune.py bengs-latent --cohort runs/healthy.zarr --out runs/latent --dry-run
    python jobs/tune.py bengs-erasing --cohort runs/healthy.zarr --out runs/erasing \
        --evaluate runs/tumour.zarr runs/stroke.zarr --space.fit.epochs 60
    python jobs/tune.py bengs-latent --cohort runs/healthy.zarr --out runs/asha \
        --space.latent-size 16 64 256 --sweep.scheduler asha
    python jobs/tune.py smoke --help          all settings, with that preset's values

Presets: {known}.

Each trial ends as a run folder in OUT/runs; trials are compared by their reconstruction of healthy
validation volumes, without any label. The same command again repeats no finished trial and goes on
with the others. Exit code 3: done, but some trials failed; they are listed with their reasons.
"""

import sys
from dataclasses import dataclass, field

import tyro
from rich.console import Console
from rich.table import Table

from uadray import cli
from uadray.errors import ConfigError
from uadray.evaluate.distributed import evaluate
from uadray.progress import Progress, clock
from uadray.report import write_report
from uadray.store import open_cohort
from uadray.train.run import Run
from uadray.tune.estimate import estimate
from uadray.tune.space import PRESETS, Space, flat
from uadray.tune.sweep import Outcome, SweepConfig, fixed_trials, sweep


@dataclass(frozen=True, kw_only=True)
class Tune:
    """What to compare, on what, and where to."""

    space: Space
    """The values of each setting."""
    cohort: str
    """A sealed healthy cohort; a local path or an fsspec URL."""
    out: str
    """Folder of the sweep; on storage that all nodes share when there are several."""
    evaluate: tuple[str, ...] = ()
    """Lesioned cohorts on which the finished trials are evaluated."""
    sweep: SweepConfig = field(default_factory=SweepConfig)
    """How trials are scheduled."""
    dry_run: bool = False
    """Print the trials with an estimate of their time, and fit nothing."""


def main() -> int:
    description = (__doc__ or "").replace("{known}", ", ".join(PRESETS))
    args = sys.argv[1:]
    if not args or args[0].startswith("-"):
        print(description)
        return 0 if args and args[0] in ("-h", "--help") else 2
    if args[0] not in PRESETS:
        raise ConfigError(f"no preset is named {args[0]!r}; known are {', '.join(PRESETS)}")
    job = tyro.cli(
        Tune,
        args=args[1:],
        prog=f"tune.py {args[0]}",
        description=description,
        default=Tune(space=PRESETS[args[0]](), cohort=tyro.MISSING, out=tyro.MISSING),
    )
    cohort = open_cohort(job.cohort)
    # Before hours of fitting: a cohort that cannot be evaluated on is found now.
    lesioned = [open_cohort(url) for url in job.evaluate]
    console = Console()
    if job.dry_run:
        console.print(_plan(job))
        return cli.OK
    outcomes = sweep(job.space, cohort, job.out, config=job.sweep)
    runs = [Run.open(o.url) for o in outcomes if o.status == "finished"]
    for other in lesioned if runs else ():
        what = f"{other.name} volumes scored"
        with Progress(total=len(other.subjects), what=what) as progress:
            evaluate(runs, other, report=progress.advance)
    console.print(_table(job.space, outcomes))
    if runs:
        report = write_report([run.url for run in runs], f"{job.out.rstrip('/')}/report.html")
        print(f"report: {report}")
    print(f"run folders: {job.out.rstrip('/')}/runs")
    return _exit(outcomes)


def _plan(job: Tune) -> Table:
    threads = max(1, int(job.sweep.cpus_per_trial))
    trials = fixed_trials(job.space, job.sweep)
    found = estimate(trials, open_cohort(job.cohort), threads=threads)
    total = sum(e.seconds for e in found)
    table = Table(
        title=f"{len(found)} trials, {clock(total)} one after another at {threads} threads",
        caption="Timed on a few steps on this machine; reading, validation and baselines not in it",
    )
    for head in ("trial", *job.space.varied[1:], "samples", "epochs", "about"):
        table.add_column(head, justify="left" if head == "trial" else "right")
    for line in found:
        settings = flat(line.experiment)
        values = [str(settings.get(path, "")) for path in job.space.varied[1:]]
        epochs = str(line.experiment.fit.epochs) if line.seconds else "1"
        about = clock(line.seconds) if line.seconds else ""
        table.add_row(line.experiment.name, *values, str(line.samples), epochs, about)
    return table


def _table(space: Space, outcomes: list[Outcome]) -> Table:
    ended = [o.status for o in outcomes]
    counts = ", ".join(f"{ended.count(s)} {s}" for s in dict.fromkeys(ended))
    table = Table(title=f"{len(outcomes)} trials: {counts}", caption="lowest healthy L1 first")
    paths = [path for path in space.varied if path != "experiment"]
    for head in ("trial", *paths, "healthy L1", "best epoch", "status"):
        table.add_column(head, justify="left" if head in ("trial", "status") else "right")
    lines = []
    for o in outcomes:
        summary = (Run.open(o.url).summary if o.status != "unfinished" else None) or {}
        value = summary.get("validation/reconstruction")
        settings = flat(o.experiment)
        cells = [str(settings.get(path, "")) for path in paths]
        shown = "" if value is None else f"{value:.4f}"
        status = f"{o.status}: {o.error.splitlines()[0][:80]}" if o.error else o.status
        best = summary.get("best_epoch")
        order = float("inf") if value is None else value
        lines.append((order, [o.experiment.name, *cells, shown, str(best or ""), status]))
    for _, cells in sorted(lines, key=lambda line: line[0]):
        table.add_row(*cells)
    return table


def _exit(outcomes: list[Outcome]) -> int:
    for o in outcomes:
        if o.status == "failed":
            print(f"failed: {o.url}: {o.error}", file=sys.stderr)
    whole = all(o.status in ("finished", "stopped") for o in outcomes)
    return cli.OK if whole else cli.INCOMPLETE


if __name__ == "__main__":
    cli.run(main)
