"""First runs, where no data are at hand: phantom cohorts, and something to evaluate and report.

Every job that is given no cohort takes these, in one folder, so that what one makes the next finds.
What computes is imported where it is called: jobs take names and small experiments from here before
they have read their arguments.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from uadray import files
from uadray.config import Experiment, experiment, with_fit
from uadray.errors import RunError
from uadray.preparation.layouts import phantom, version_at
from uadray.preparation.settings import PrepareConfig, SplitConfig

if TYPE_CHECKING:
    from uadray.runs.folder import Run
    from uadray.store import Cohort

LESIONED = ("stroke", "tumour")
"""Kinds of the cohorts with lesions."""

EPOCHS = 20
"""Of a network that is fitted without any other wish: a minute or two on 2 cores."""

PLAIN = ("PCA-16", "ZScore")
"""What is evaluated where nothing was fitted yet: seconds, and hard to beat."""


def folder() -> str:
    """Where results go that were given no place: `runs/first-run`, or in a submitted job the home.

    A job that `ray job submit` started may have a folder of its own, which Ray removes with it.
    """
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        return str(Path.home() / "uadray" / "first-run")
    return "runs/first-run"


def out_for(cohort: str, name: str) -> str:
    """Where results go: among the phantoms, or in a folder named after the cohort that is given."""
    if not cohort:
        return files.join(folder(), name)
    own = cohort.rstrip("/").rsplit("/", 1)[-1].removesuffix(".zarr")
    return files.join(str(Path(folder()).parent), own, name)


def place(kind: str, out: str = "") -> str:
    """Where the cohort of a kind lies."""
    return files.join(out or folder(), f"{kind}.zarr")


def cohorts(
    out: str = "", *, size: int = 32, healthy: int = 96, lesioned: int = 24
) -> "dict[str, Cohort]":
    """The phantom cohorts `healthy` and `LESIONED`; those that are there are taken.

    Args:
        out: Folder of the stores; `folder()` by default.
        size: Voxels along each axis.
        healthy: Phantoms without lesion.
        lesioned: Phantoms of each kind with one.
    """
    from uadray.preparation.ingest import prepare_cohort

    counts = {"healthy": healthy} | dict.fromkeys(LESIONED, lesioned)
    # A folder that was begun with older phantoms goes on with them.
    version = version_at(place("healthy", out))
    return {
        kind: prepare_cohort(
            phantom(kind, count, 0, version=version),
            place(kind, out),
            config=PrepareConfig(shape=(size,) * 3),
            split=SplitConfig(),
        )
        for kind, count in counts.items()
    }


def small(name: str, epochs: int = EPOCHS) -> Experiment:
    """The experiment of that name, for the phantoms: few epochs, and batches of few volumes."""
    # Epochs are of a second or two: a checkpoint after each would take as long.
    wanted = with_fit(experiment(name), epochs=epochs, checkpoint_every=5)
    # The paper's batches of 32 volumes would make three steps an epoch of so small a cohort.
    return with_fit(wanted, batch_size=4) if getattr(wanted.method, "ndim", 2) == 3 else wanted


def fitted() -> "list[Run]":
    """The finished runs of the folder; where there are none, plain baselines fitted now."""
    from uadray.runs.records import find_runs
    from uadray.train.job import fit

    # Where jobs/train.py and jobs/tune.py leave theirs.
    sweeps = [name for name in files.list_names(folder()) if name.startswith("tune-")]
    try:
        return find_runs([files.join(folder(), name) for name in ("fits", *sweeps)])[0]
    except RunError:
        healthy = cohorts()["healthy"]
        return [fit(small(name), healthy, files.join(folder(), "fits", name)) for name in PLAIN]


def evaluated() -> list[str]:
    """Run folders that have figures on the phantoms with lesions, evaluated now where none has."""
    from uadray.evaluation.job import evaluate
    from uadray.runs.records import load_runs

    runs = fitted()
    if not any(record.evaluations for record in load_runs([run.url for run in runs], [])):
        for cohort in map(cohorts().get, LESIONED):
            assert cohort is not None
            evaluate(runs, cohort)
    return [run.url for run in runs]


def notice(out: str, given: str) -> str:
    """The line that says what was taken, and how to give one's own."""
    return (
        f"no cohort given: phantom brains, made in {out} where they are not there yet; {given} "
        "takes your own"
    )
