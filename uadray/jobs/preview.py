"""One HTML page of what each experiment erases of one scan, after figure 3 of Bengs 2021.

    python jobs/preview.py runs/healthy.zarr --out erasing.html
    python jobs/preview.py runs/healthy.zarr --experiments 3D-Cube-n 2D-Half-Slice-0 --epochs 5

The page names the (seed, epoch, id) of each picture; it needs no network.
"""

from dataclasses import dataclass

import tyro

from uadray.config import BENGS_TABLE_1, experiment, with_fit
from uadray.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What to show, and where to."""

    cohort: tyro.conf.Positional[str]
    """A sealed cohort; a local path or an fsspec URL."""
    out: str = "erasing.html"
    """The page; ends in .html."""
    experiments: tuple[str, ...] = BENGS_TABLE_1
    """Names of 2D and 3D autoencoders."""
    subject: str | None = None
    """Id of the scan; the cohort's first by default."""
    epochs: int = 3
    """How many epochs to show of each, the first that erase the scan."""
    plane: int | None = None
    """The axial slice that 2D methods are shown with; the one with most brain by default."""
    seed: int = 0
    """The run's seed, `--fit.seed` of jobs/train.py."""

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ConfigError(f"--epochs must be >= 1, was {self.epochs}")
        if not self.experiments:
            raise ConfigError("--experiments must name at least one experiment")


def main() -> None:
    job = tyro.cli(Preview, description=__doc__)
    from uadray.report.erasing_page import write_erasing_page
    from uadray.store import open_cohort

    page = write_erasing_page(
        open_cohort(job.cohort),
        job.out,
        [with_fit(experiment(name), seed=job.seed) for name in job.experiments],
        subject=job.subject,
        num_draws=job.epochs,
        plane=job.plane,
    )
    print(f"preview: {page}")
    print("next: open it in a browser; it needs no network")
