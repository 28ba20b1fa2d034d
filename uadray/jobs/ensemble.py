r"""Combine finished fits into one run: the mean or the median of their scores, voxel by voxel.

    python jobs/ensemble.py runs/seed-0 runs/seed-1 runs/seed-2 --out runs/ensemble
    python jobs/ensemble.py runs/folds --out runs/ensemble --combine median
    python jobs/evaluate.py runs/ensemble --cohort runs/stroke.zarr
    python jobs/predict.py runs/ensemble scan.nii.gz --out predicted

A RUN may be a folder of runs. Members are fits on one cohort whose scores have one range, such as
seeds or folds of one method. What is combined are their scores after post-processing: evaluated
members are not scored again, and an ensemble of one is its member. The result has the weights of
all, stands where any run does, and its threshold is fitted anew. Beside its figures stand those of
its members and what it gains over them; predictions have a map of the spread over members.
"""

import shlex
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from uadray.errors import ConfigError, RunError
from uadray.results import refuse_place


@dataclass(frozen=True, kw_only=True)
class Combining:
    """What to combine, and where to."""

    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN ...")]
    """Run folders of the members, or folders of runs; local paths or fsspec URLs."""
    out: str
    """The run folder of the ensemble; a local path or an fsspec URL."""
    combine: Literal["mean", "median"] = "mean"
    """Of the members' scores."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise ConfigError("name at least one finished run: RUN ... --out FOLDER")


def main() -> None:
    job = tyro.cli(Combining, description=__doc__)
    refuse_place(job.out, ConfigError)
    from uadray import files
    from uadray.methods.ensemble import Ensemble
    from uadray.runs.ensembles import make_ensemble
    from uadray.runs.records import find_runs

    runs, broken = find_runs(job.runs)
    if broken:
        raise RunError(broken[0].error)
    # An ensemble in the folder of its members is none of them when the command is given again.
    own = files.normalise(job.out)
    run = make_ensemble([one for one in runs if one.url != own], job.out, combine=job.combine)
    method = run.experiment.method
    assert isinstance(method, Ensemble.Settings)
    print(f"{run.experiment.name}: run folder {run.url}")
    for one in method.members:
        fold = f", fold {one.fold} of {one.folds}" if one.folds else ""
        print(f"  member: seed {one.seed}{fold}, weights {one.weights[:16]}")
    print(f"  next: python jobs/evaluate.py {shlex.quote(run.url)} --cohort LESIONED.zarr")
