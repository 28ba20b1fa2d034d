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
    python jobs/tune.py --space my_space.toml --cohort runs/healthy.zarr --out runs/mine
    python jobs/tune.py --config runs/mine/tune.toml          the same sweep again
    python jobs/tune.py smoke --help          all settings, with that preset's values

Presets: {known}.

Each trial ends as a run folder in OUT/runs; trials are compared by their reconstruction of healthy
validation volumes, without any label, unless --sweep.objective asks for one that uses labels. The
same command again repeats no finished trial and goes on with the others. Exit code 3: done, but
some trials failed or the budget ended first; they are listed with their reasons.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Annotated

import tyro

from uadray import cli, fields, first_run, settings_files
from uadray.errors import ConfigError
from uadray.results import refuse_place
from uadray.tune.job import Sweep, SweepJob
from uadray.tune.space import FIRST_RUN, PRESETS, Space, checked, named_space, read_space


@dataclass(frozen=True, kw_only=True)
class Tune(SweepJob):
    """What to compare, on what, and where to."""

    space_file: Annotated[str, tyro.conf.arg(name="space", metavar="FILE.toml")] = ""
    """Take the whole space from a file, such as the space.toml of a sweep, in place of a preset."""
    config: Annotated[str, tyro.conf.arg(metavar="FILE.toml")] = ""
    """Take the defaults of all flags from a file, such as the tune.toml of a sweep."""
    vary: Annotated[
        tuple[tuple[str, ...], ...],
        tyro.conf.arg(metavar="SETTING VALUE ..."),
        tyro.conf.UseAppendAction,
    ] = ()
    """Compare values of any setting of a method, of erasing or of fit, such as `--vary
    method.dropout 0 0.2`; the group may be left out where one alone has the name, and commas part
    the numbers of a list, as in `--vary widths 16,32 32,64`."""
    dry_run: bool = False
    """Print the trials with an estimate of their time, and fit nothing."""

    def __post_init__(self) -> None:
        """Look at what is varied while arguments are read."""
        if self.vary:
            self.compared.trials()

    @property
    def compared(self) -> Space:
        """The space with what is varied beside it."""
        return self.space.with_text(self.vary) if self.vary else self.space


def defaults(preset: str, args: list[str]) -> Tune:
    """What holds where no flag says otherwise: of a preset, or of files."""
    config, place = (settings_files.option(args, flag) for flag in ("--config", "--space"))
    table = settings_files.read(config, "tune") if config else {}
    own = fields.checked(f"{config}: preset", str, table.pop("preset", ""))
    given = {"the command's preset": preset, "--space": place, f"preset in {config}": own}
    if len(several := [name for name, value in given.items() if value]) > 1:
        raise ConfigError(f"{' and '.join(several)} both say what is compared: give one")
    name = preset or own or (FIRST_RUN if "space" not in table else "")
    space = read_space(place) if place else named_space(name) if name else Space()
    if place:
        table.pop("space", None)
    name = name if name and not place else PurePath(place or config).stem
    job = fields.overlay(SweepJob(space=space, name=name), table, config)
    if "space" in table:
        checked(job.space, config)
    return Tune(**vars(job))


def main() -> int:
    description = (__doc__ or "").replace("{known}", ", ".join(PRESETS))
    args = sys.argv[1:]
    if args and args[0] in ("-h", "--help"):
        print(description)
        return cli.OK
    preset = args.pop(0) if args and not args[0].startswith("-") else ""
    job = tyro.cli(
        Tune,
        args=args,
        prog=cli.program(preset),
        description=description,
        default=defaults(preset, args),
    )
    out = job.out.rstrip("/") or first_run.out_for(job.cohort, f"tune-{job.name}")
    refuse_place(out, ConfigError)
    if not job.cohort:
        print(first_run.notice(first_run.folder(), "--cohort C --evaluate L --out FOLDER"))
        phantoms = first_run.cohorts()
        given = job.evaluate or tuple(phantoms[kind].url for kind in first_run.LESIONED)
        job = replace(job, cohort=phantoms["healthy"].url, evaluate=given)
    job = replace(job, space=job.compared, vary=(), out=out)
    if job.dry_run:
        from rich.console import Console

        from uadray.tune.plan import plan_table

        cohort, _ = job.cohorts()
        Console().print(plan_table(job.space, job.sweep, cohort))
        return cli.OK
    return show(job.run())


def show(done: Sweep) -> int:
    """Print how the trials ended and where the report is; returns the exit code."""
    from rich.console import Console

    from uadray.report import terminal_summary
    from uadray.tune.plan import outcome_table

    console = Console()
    console.print(outcome_table(done.space, done.config, done.outcomes))
    if done.report:
        records = done.records()
        if any(record.evaluations for record in records):
            console.print(terminal_summary(records, width=console.width))
        print(f"report: {done.report}")
    print(f"run folders: {done.url}/runs")
    for o in done.outcomes:
        if o.status == "failed":
            print(f"failed: {o.url}: {o.error}", file=sys.stderr)
    whole = all(o.status in ("finished", "stopped") for o in done.outcomes)
    return max(cli.say_left_out(done.left_out), cli.OK if whole else cli.INCOMPLETE)
