r"""Sweep over settings: fit every trial on a healthy cohort, evaluate, report.

    python jobs/tune.py                      latent size, epochs and erasing, on phantom brains
    python jobs/tune.py --cohort runs/healthy.zarr --evaluate runs/stroke.zarr --out runs/sweep
    python jobs/tune.py bengs-latent --cohort runs/healthy.zarr --out runs/latent --dry-run
    python jobs/tune.py bengs-erasing --cohort runs/healthy.zarr --out runs/erasing \
        --evaluate runs/tumour.zarr runs/stroke.zarr --space.fit.epochs 60
    python jobs/tune.py bengs-latent --cohort runs/healthy.zarr --out runs/asha \
        --space.latent-size 16 64 256 --sweep.scheduler asha
    python jobs/tune.py bengs-erasing --cohort runs/healthy.zarr --out runs/population \
        --space.experiments 3D-Cube-n --space.learning-rate 1e-4 1e-2 --sweep.scheduler pbt
    python jobs/tune.py bengs-latent --cohort runs/healthy.zarr --out runs/drawn \
        --sweep.search optuna --sweep.max-trials 20
    python jobs/tune.py smoke --cohort runs/healthy.zarr --out runs/any \
        --space.experiments 3D-dAE-Cube-n --vary dropout 0 0.2 --vary erasing.probability 0.25 0.5
    python jobs/tune.py smoke --help          all settings, with that preset's values

Presets: {known}.

Each trial ends as a run folder in OUT/runs; trials are compared by their reconstruction of healthy
validation volumes, without any label, unless --sweep.objective asks for one that uses labels. The
same command again repeats no finished trial and goes on with the others. Exit code 3: done, but
some trials failed or the budget ended first; they are listed with their reasons.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated

import tyro

from uadray import cli, files, first_run
from uadray.errors import ConfigError
from uadray.results import refuse_lost
from uadray.train.settings import TrackConfig
from uadray.tune.settings import SweepConfig
from uadray.tune.space import FIRST_RUN, PRESETS, Space

if TYPE_CHECKING:
    from uadray.tune.trials import Outcome


@dataclass(frozen=True, kw_only=True)
class Tune:
    """What to compare, on what, and where to."""

    space: Space
    """The values of each setting."""
    vary: Annotated[
        tuple[tuple[str, ...], ...],
        tyro.conf.arg(metavar="SETTING VALUE ..."),
        tyro.conf.UseAppendAction,
    ] = ()
    """Compare values of any setting of a method, of `erasing` or of `fit`, such as method.dropout
    0 0.2; the group may be left out where one alone has it, and commas part the numbers of a list
    (method.widths 16,32 32,64)."""
    cohort: str = ""
    """A sealed healthy cohort; a local path or an fsspec URL. Phantom brains by default."""
    out: str = ""
    """Folder of the sweep; on storage that all nodes share when there are several. By default
    runs/COHORT/tune-PRESET, first-run for phantoms; under the home folder in a submitted job."""
    evaluate: tuple[str, ...] = ()
    """Lesioned cohorts on which the finished trials are evaluated; phantoms where no cohort is
    given."""
    sweep: SweepConfig = field(default_factory=SweepConfig)
    """How trials are scheduled and compared."""
    track: TrackConfig = field(default_factory=TrackConfig)
    """TensorBoard, MLflow and Weights & Biases, of every trial that has epochs."""
    dry_run: bool = False
    """Print the trials with an estimate of their time, and fit nothing."""

    def __post_init__(self) -> None:
        self.compared  # noqa: B018  looks at what is varied while arguments are read

    @property
    def compared(self) -> Space:
        """The space with what is varied beside it."""
        if not self.vary:
            return self.space
        return self.space.with_text(self.vary)


def main() -> int:
    description = (__doc__ or "").replace("{known}", ", ".join(PRESETS))
    args = sys.argv[1:]
    if args and args[0] in ("-h", "--help"):
        print(description)
        return cli.OK
    preset = args.pop(0) if args and not args[0].startswith("-") else FIRST_RUN
    if preset not in PRESETS:
        raise ConfigError(f"no preset is named {preset!r}; known are {', '.join(PRESETS)}")
    job = tyro.cli(
        Tune,
        args=args,
        prog=f"tune.py {preset}",
        description=description,
        default=Tune(space=PRESETS[preset]()),
    )
    out = job.out.rstrip("/") or first_run.out_for(job.cohort, f"tune-{preset}")
    refuse_lost(out, ConfigError)
    from rich.console import Console

    from uadray.evaluation.inputs import refuse
    from uadray.evaluation.job import evaluate_all, num_volumes
    from uadray.progress import Progress
    from uadray.report import terminal_summary, write_report
    from uadray.runs.folder import Run
    from uadray.runs.learned import compare_cohorts
    from uadray.runs.records import Broken, load_runs
    from uadray.store import open_cohort
    from uadray.tune.plan import outcome_table, plan_table
    from uadray.tune.sweep import sweep

    if not job.cohort:
        print(first_run.notice(first_run.folder(), "--cohort C --evaluate L --out FOLDER"))
        phantoms = first_run.cohorts()
        given = job.evaluate or tuple(phantoms[kind].url for kind in first_run.LESIONED)
        job = replace(job, cohort=phantoms["healthy"].url, evaluate=given)
    cohort = open_cohort(job.cohort)
    # Before hours of fitting: a cohort that cannot be evaluated on is found now.
    lesioned = [open_cohort(url) for url in job.evaluate]
    for one in lesioned:
        match = compare_cohorts(cohort, one)
        refuse(match, cohort.url, one.url, insist=job.sweep.allow_mismatch)
    console, space = Console(), job.compared
    if job.dry_run:
        console.print(plan_table(space, job.sweep, cohort))
        return cli.OK
    outcomes = sweep(space, cohort, out, config=job.sweep, track=job.track)
    runs = [Run.open(o.url) for o in outcomes if o.status == "finished"]
    left_out: list[Broken] = []
    if runs and lesioned:
        with Progress(total=num_volumes(lesioned), what="volumes scored") as progress:
            evaluate_all(
                runs,
                lesioned,
                report=progress.advance,
                failed=lambda run, error: left_out.append(Broken(url=run.url, error=str(error))),
                allow_mismatch=job.sweep.allow_mismatch,
            )
    console.print(outcome_table(space, job.sweep, outcomes))
    if runs:
        title = f"Sweep {preset}: {job.sweep.describe()}"
        # Those that were stopped early or failed are in the report, too.
        urls = [o.url for o in outcomes if Run.is_begun(o.url)]
        records = load_runs(urls, [])
        if any(record.evaluations for record in records):
            console.print(terminal_summary(records, width=console.width))
        page = write_report(urls, files.join(out, "report.html"), title=title, left_out=left_out)
        print(f"report: {page}")
    print(f"run folders: {out}/runs")
    return max(cli.say_left_out(left_out), _exit(outcomes))


def _exit(outcomes: "Sequence[Outcome]") -> int:
    for o in outcomes:
        if o.status == "failed":
            print(f"failed: {o.url}: {o.error}", file=sys.stderr)
    whole = all(o.status in ("finished", "stopped") for o in outcomes)
    return cli.OK if whole else cli.INCOMPLETE


if __name__ == "__main__":
    cli.run(main)
