r"""Find what is anomalous in scans: maps in each scan's own grid, with a fitted run or model.

    python jobs/predict.py runs/3D-Cube-n scan.nii.gz --out predicted
    python jobs/predict.py runs/3D-Cube-n scan.nii.gz --out predicted --age 63
    python jobs/predict.py models/3D-Cube-n head.nii.gz --out predicted --skull-strip deepbet
    python jobs/predict.py runs/3D-Cube-n DATA/ds002748 --out predicted --workers 4
    python jobs/predict.py s3://bucket/models/3D-Cube-n scans.csv --out s3://bucket/predicted
    python jobs/predict.py runs/HistEq scan.nii.gz --out predicted --map-only

Each scan goes through the preparation that the run's cohort is recorded with, and gets a folder
with anomaly.nii.gz (scores), proposal.nii.gz (what is at or above the run's frozen threshold),
reconstruction.nii.gz (the healthy version, in [0, 1]), brain_mask.nii.gz and summary.json; scans of
a BIDS tree get the names of BIDS derivatives. predictions.tsv lists all of them, the highest score
first, with those of earlier calls into the same folder.

Where the run was evaluated with healthy controls, or its validation people are known, the scan's
scores are placed among theirs: among people within ten years of age where ages are known (--age, a
table with --covariates, participants.tsv), with an interval of the percentile, which is wide where
there are few people. The page shows the scores over age.

The same command again does only what is missing. A scan that cannot be used is quarantined with its
reason (quarantine.jsonl) and the others go on; exit code 3 says so, 1 that none could be used.
Research software, not a medical device.
"""

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from uadray import cli
from uadray.device import Device
from uadray.prediction.settings import PredictConfig
from uadray.preparation.layouts.listing import left_out_lines

if TYPE_CHECKING:
    from uadray.prediction.folder import Predicted

SHOWN = 12
"""Scans that are listed one by one; of more only the highest scores are."""


@dataclass(frozen=True, kw_only=True)
class Predict:
    """What to predict with what, and where to."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A finished run, or a model folder of jobs/export.py; a local path or an fsspec URL."""
    scans: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="SCAN ...")]
    """NIfTI files, tables as for jobs/prepare.py csv, or folders of either."""
    out: str
    """Where the results go; a local folder or an fsspec URL."""
    brain: str = ""
    """The scan's brain mask, where there is one scan."""
    age: float | None = None
    """In years, of the one scan's person, who is compared with healthy people of similar age."""
    covariates: str = ""
    """Table (CSV, TSV) of what is known of people besides, such as their ages; one column names
    people or scans."""
    cohort: str = ""
    """Where the run's cohort lies now, if it has moved since the fit."""
    workers: int | None = None
    """Scans at a time: 1 stays in this process, more use Ray. By default more than eight scans
    do, on all CPUs."""
    device: Device = "auto"
    """`cuda` computes on a GPU in each worker and refuses where there is none that torch can use,
    `cpu` on none; `auto` as `gpus` says."""
    gpus: float = 0.0
    """GPUs of each worker, at most 1; a fraction shares one; 0 computes on CPUs."""
    viewer: bool = True
    """Make a page to look at each scan, and one for all."""
    config: Annotated[PredictConfig, tyro.conf.arg(name="")] = field(default_factory=PredictConfig)
    """Threshold, and where the preparation differs from the cohort's."""


def describe(one: dict[str, Any]) -> str:
    """A scan in a line."""
    line = f"{one['name']}: highest score {one['top_score']:.3g} in slice {one['top_slice']}"
    if one["proposal"] is not None:
        volume, count = one["proposal"]["volume_ml"], one["proposal"]["components"]
        line += f", {volume:.1f} mL proposed in {count} component{'s' * (count != 1)}"
    return line + f", {sum(one['seconds'].values()):.1f} s"


def show(done: "Predicted") -> None:
    """Say what was found, what could not be used, and where it all is."""
    from uadray.metrics.postprocess import describe_findable
    from uadray.prediction.reference import sentence

    ordered = sorted(done.summaries, key=lambda one: -one["top_score"])
    for one in ordered[:SHOWN]:
        print(describe(one))
        if standing := sentence(one.get("standing") or {}):
            print(f"  {standing}")
        for warning in one["warnings"]:
            print(f"  warning: {warning}")
    if len(ordered) > SHOWN:
        print(f"... and {len(ordered) - SHOWN} more with lower scores, all in predictions.tsv")
    if done.failures:
        total = len(done.failures) + len(done.summaries)
        print(f"{len(done.failures)} of {total} scans could not be used:")
        for failure in done.failures:
            print(f"  {failure['name']}: {failure['reason']}")
    total = len(done.summaries) + len(done.failures)
    print("\n".join(left_out_lines(total, done.left_out)))
    grid = ordered[0]["model_grid"] if ordered else {}
    if "smallest_findable_mm" in grid:
        print(describe_findable(grid))
    kept = f", {done.num_kept} of them before" if done.num_kept else ""
    for line in remarks(ordered):
        print(line)
    num = len(done.summaries)
    print(f"{num} scan{'s' * (num != 1)} predicted{kept}: {done.out}")
    if done.index:
        print(f"next: open {shlex.quote(done.index)}")


def remarks(summaries: Sequence[dict[str, Any]]) -> list[str]:
    """Whom scans are compared with and what limits that, each once, with how many it is said of."""
    found = Counter[str]()
    for one in summaries:
        standing = one.get("standing") or {"remarks": ()}
        if reference := standing.get("reference"):
            found[f"compared with {reference['who']}"] += 1
        found.update(standing["remarks"])
    total = len(summaries)
    return [f"{text}{f' ({n} of {total} scans)' * (n < total)}" for text, n in found.items()]


def main() -> int:
    job = tyro.cli(Predict, description=__doc__)
    from uadray.prediction.job import PredictJob

    done = PredictJob(**vars(job)).run()
    show(done)
    if not done.failures:
        return cli.OK
    return cli.INCOMPLETE if done.summaries else cli.FAILED
