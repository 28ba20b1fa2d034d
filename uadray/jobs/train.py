"""Fit one experiment on a healthy cohort and leave a run folder.

    python jobs/train.py                     a short 3D-Cube-n, on phantom brains
    python jobs/train.py 3D-Cube-n --cohort runs/healthy.zarr --out runs/3D-Cube-n
    python jobs/train.py 2D-None --cohort runs/healthy.zarr --out runs/2D-None --fit.epochs 50
    python jobs/train.py 3D-None --cohort runs/healthy.zarr --out runs/ddp --scale.num-workers 2
    python jobs/train.py 3D-None --cohort runs/healthy.zarr --out runs/tenth --fit.data-share 0.1
    python jobs/train.py --config runs/ddp/train.toml --out runs/again --fit.seed 1
    python jobs/train.py 3D-None --cohort runs/healthy.zarr --out runs/folds --folds 5
    python jobs/train.py 3D-None --help          all settings of that experiment

Experiments: {known};
any n in PCA-n; 3D-NAME, such as 3D-sVAE, takes volumes; NAME-Patch-n and 3D-NAME-Cube-n erase.
NAME is also package.module:Class for a method of your own.

Values of --erasing.strategy: {strategies}.

With --folds the healthy people are in so many parts, even over scanners or what the cohort's split
is stratified by; each of OUT/fold-1 and so on is validated on one part and learns from the others.

The same command again goes on from the newest checkpoint; a finished run is left as it is.
"""

import shlex
import sys
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated

import tyro

from uadray import cli, fields, files, first_run, settings_files
from uadray.config import Experiment, experiment, known, learns
from uadray.errors import ConfigError
from uadray.results import refuse_place
from uadray.strategies import keys
from uadray.train.settings import ScaleConfig, TrackConfig

if TYPE_CHECKING:
    from uadray.runs.folder import Run
    from uadray.train.steps import Metrics


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to fit, on what, and where to."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    """The experiment's settings, with the defaults of its name."""
    cohort: str = ""
    """A sealed healthy cohort; a local path or an fsspec URL. For what learns nothing, such as
    HistEq, any cohort, such as the one to test. Phantom brains by default."""
    out: str = ""
    """The run folder; on storage that all nodes share when there are several. By default
    runs/COHORT/fits/NAME, first-run for phantoms; under the home folder in a submitted job."""
    scale: ScaleConfig = field(default_factory=ScaleConfig)
    """Workers."""
    track: TrackConfig = field(default_factory=TrackConfig)
    """TensorBoard, MLflow, Weights & Biases."""


@dataclass(frozen=True, kw_only=True)
class Train(Job):
    """What to fit, on what, and where to."""

    config: Annotated[str, tyro.conf.arg(metavar="FILE.toml")] = ""
    """Take the defaults of all flags from a file, such as the train.toml of a run."""
    folds: int = 0
    """Fit this many runs into OUT, each on all but one part of the people; 0 fits one run, by the
    cohort's own split. --fit.folds N --fit.fold K fits one of them, on a machine of its own."""

    def __post_init__(self) -> None:
        if self.folds < 0 or self.folds == 1:
            raise ConfigError(f"--folds must be >= 2, or 0 for none, was {self.folds}")
        if self.folds and self.experiment.fit.folds:
            raise ConfigError("--folds fits all folds, --fit.folds and --fit.fold one: give one")


def defaults(name: str, args: list[str]) -> Train:
    """What holds where no flag says otherwise: of the experiment's name, or of a file."""
    place = settings_files.option(args, "--config")
    table = settings_files.read(place, "train") if place else {}
    wanted = settings_files.take_experiment(table, place, name) if place else None
    if wanted is None:
        # What is fitted without any wish is short; what is named is the paper's.
        wanted = experiment(name) if name else first_run.small("3D-Cube-n")
    return Train(**vars(fields.overlay(Job(experiment=wanted), table, place)))


def say(run: "Run") -> None:
    """Print how a fit ended."""
    summary = run.summary or {}
    print(f"{run.experiment.name}: run folder {run.url}")
    if summary.get("validation/reconstruction") is not None:
        print(
            f"  best epoch {summary['best_epoch'] or '-'}, validation L1 inside the brain "
            f"{summary['validation/reconstruction']:.4f}, fitted in {summary['fit_seconds']:.0f} s"
        )
    elif summary.get("fit_seconds"):
        kept = f"epoch {summary['best_epoch']} is kept, " if summary["best_epoch"] else ""
        print(f"  {kept}fitted in {summary['fit_seconds']:.0f} s")
    for warning in summary.get("warnings", []):
        print(f"  warning: {warning}")


def main() -> None:
    description = (__doc__ or "").replace("{known}", known())
    description = description.replace("{strategies}", ", ".join(keys()))
    args = sys.argv[1:]
    if args and args[0] in ("-h", "--help"):
        print(description)
        return
    name = args.pop(0) if args and not args[0].startswith("-") else ""
    job = tyro.cli(
        Train,
        args=args,
        prog=cli.program(name),
        description=description,
        default=defaults(name, args),
        # The name has chosen the method; its settings need no subcommand.
        config=(tyro.conf.AvoidSubcommands,),
    )
    out = job.out or first_run.out_for(job.cohort, f"fits/{job.experiment.name}")
    refuse_place(out, ConfigError)
    from uadray.progress import Progress
    from uadray.store import open_cohort
    from uadray.train.job import fit, fit_folds
    from uadray.train.summary import format_metrics

    if job.cohort:
        cohort = open_cohort(job.cohort)
    else:
        print(first_run.notice(first_run.folder(), "--cohort C --out FOLDER"))
        cohort = first_run.cohorts()["healthy"]
    epochs = job.experiment.fit.epochs if learns(job.experiment) else 1
    with Progress(total=max(1, job.folds) * epochs, what="epochs") as progress:

        def report(fold: int, metrics: "Metrics") -> None:
            before = f"fold {fold}: " if job.folds else ""
            done = (fold - 1) * epochs + int(metrics["epoch"])
            progress.set_done(done, before + format_metrics(metrics))

        scale, track = job.scale, job.track
        if job.folds:
            runs = fit_folds(
                job.experiment, cohort, out, job.folds, scale=scale, track=track, report=report
            )
        else:
            alone = partial(report, 1)
            runs = [fit(job.experiment, cohort, out, scale=scale, track=track, report=alone)]
    for run in runs:
        say(run)
    out = files.normalise(out) if job.folds else runs[0].url
    lesioned = "LESIONED.zarr" if job.cohort else first_run.place(first_run.LESIONED[0])
    print(f"  next: python jobs/evaluate.py {shlex.quote(out)} --cohort {shlex.quote(lesioned)}")
