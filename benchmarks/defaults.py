"""What the paper leaves open in its autoencoder, compared on phantoms: one setting at a time.

python -m benchmarks.defaults            about an hour of one core; goes on where it was cut short
python -m benchmarks.defaults --quick    small, to see that it runs; keeps nothing

Each variant differs from the defaults in one setting; all are fitted with the same seeds, so that
the same seed may be compared. Only the scores count: the seconds are those of a busy machine.
"""

import math
import tempfile
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch

from benchmarks.harness import Row, arguments, print_table, write
from benchmarks.methods import LESIONED, phantoms
from uadray import files
from uadray.config import Experiment, FitConfig, experiment
from uadray.evaluation.job import EvaluateConfig, evaluate
from uadray.methods.vae import VAE
from uadray.progress import Progress
from uadray.runs.detector import load_detector
from uadray.runs.folder import Run
from uadray.train.job import fit

VARIANTS: dict[str, dict[str, Any]] = {
    "the defaults": {},
    "norm none": {"norm": "none"},
    "norm batch": {"norm": "batch"},
    "ReLU": {"slope": 0.0},
    "slope 0.3": {"slope": 0.3},
    "sigmoid output": {"output": "sigmoid"},
    "KL weight 0.08": {"kl_weight": 0.08},
    "KL weight 8": {"kl_weight": 8.0},
}
"""Settings of the method that differ from the defaults. A slope of 0.3 is what the study that the
paper follows has (the default of its framework)."""

FIRST_SEED = 1_000_000
"""Seed of the first phantom. The labels of these phantoms choose defaults, so that figures of
methods are of others: `benchmarks.methods`, `jobs/demo.py` and `uadray.papers` have lower seeds."""

PAPER_SIZE = 64
"""Voxels along each axis in the paper. KL weights are those of this size, scaled down with the
number of voxels: the L1 term is a sum over voxels, so that the same weight would be eight times as
strong at 32^3. `reduction` needs no rows of its own: means are sums with another weight."""

PLAIN = ("HistEq", "HistEq-dark", "MeanImage", "ZScore", "PCA-16")
"""Methods without a seed that stand beside."""


ACTIVE_VARIANCE = 0.01
"""A latent counts as used where its mean varies more than this over healthy volumes (Burda,
Grosse and Salakhutdinov 2016, section 3.3 of "Importance weighted autoencoders")."""

COLUMNS = {
    "stroke Dice_D": "higher",
    "stroke AUPRC": "higher",
    "tumour Dice_D": "higher",
    "tumour AUPRC": "higher",
    "healthy L1": "lower",
    "active latents": "",
    "KL": "",
}
"""Figures, and which way is better."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How large the comparison is."""

    out: str = "runs/choose-defaults"
    """Folder of the cohorts and runs."""
    size: int = 32
    """Voxels along each axis."""
    healthy: int = 112
    """Healthy phantoms; a tenth of them validates."""
    lesioned: int = 60
    """Phantoms with a stroke, and as many with a tumour; 40 % fit the threshold."""
    epochs: int = 40
    """Of each autoencoder, with batches of 4."""
    seeds: int = 3
    """Fits of each variant."""

    def experiment(self, variant: str, seed: int) -> Experiment:
        """A variant of 3D-None."""
        method = replace(experiment("3D-None").method, **VARIANTS[variant])
        assert isinstance(method, VAE.Settings)
        weight = method.kl_weight * (self.size / PAPER_SIZE) ** 3
        method = replace(method, kl_weight=weight)
        config = FitConfig(epochs=self.epochs, batch_size=4, checkpoint_every=5, seed=seed)
        return Experiment(method=method, fit=config)


def active_latents(detector: VAE, images: torch.Tensor) -> int:
    """Number of latents whose mean varies over the images, (B, Z, Y, X)."""
    with torch.inference_mode():
        mu = torch.cat([detector.encode(x.float()[:, None])[0] for x in images.split(16)])
    return int((mu.var(0) > ACTIVE_VARIANCE).sum())


def figures(run: Run, records: dict[str, dict[str, Any]], images: torch.Tensor) -> dict[str, float]:
    """The figures of one run; absent where the method has none."""
    measured = {}
    for kind, record in records.items():
        measured[f"{kind} Dice_D"] = record["metrics"]["dice_d"]
        measured[f"{kind} AUPRC"] = record["metrics"]["auprc"]
    healthy = (run.summary or {}).get("validation/reconstruction")
    if healthy is not None:
        measured["healthy L1"] = healthy
    if isinstance(run.experiment.method, VAE.Settings):
        detector = load_detector(run)
        assert isinstance(detector, VAE)
        measured["active latents"] = active_latents(detector, images)
        measured["KL"] = run.metrics()[-1]["train/kl"]
    return measured


def compare(job: Comparison) -> dict[str, list[dict[str, float]]]:
    """Fit and evaluate all; for each variant or plain method the figures of each seed."""
    healthy = phantoms(job.out, "healthy", job.healthy, job.size, FIRST_SEED)
    lesioned = {
        kind: phantoms(job.out, kind, job.lesioned, job.size, FIRST_SEED) for kind in LESIONED
    }
    rows = np.concatenate([healthy.rows("train"), healthy.rows("validation")])
    images = torch.from_numpy(healthy.read("image", 0, int(rows.max()) + 1)[np.sort(rows)])
    measured: dict[str, list[dict[str, float]]] = {}
    config = EvaluateConfig(num_resamples=100)
    with Progress(total=job.seeds * len(VARIANTS) + len(PLAIN), what="fits") as progress:
        for seed in range(job.seeds):
            wanted = {name: job.experiment(name, seed) for name in VARIANTS}
            if seed == 0:
                wanted |= {name: experiment(name) for name in PLAIN}
            runs = []
            for name, one in wanted.items():
                folder = f"{name}-{seed}".replace(" ", "-").replace(",", "")
                runs.append(fit(one, healthy, files.join(job.out, "fits", folder)))
                progress.advance(1, f"{name}, seed {seed}")
            records = {kind: evaluate(runs, lesioned[kind], config=config) for kind in LESIONED}
            for number, (name, run) in enumerate(zip(wanted, runs, strict=True)):
                mine = {kind: records[kind][number] for kind in LESIONED}
                measured.setdefault(name, []).append(figures(run, mine, images))
    return measured


def rows_of(measured: dict[str, list[dict[str, float]]], job: Comparison) -> list[Row]:
    """The comparison as rows: means, with the spread and the pairs of equal seeds in words."""
    rows = []
    for name, runs in measured.items():
        for column, better in COLUMNS.items():
            values = [run[column] for run in runs if column in run]
            if not values:
                continue
            words = [" ".join(f"{v:.4g}" for v in values)]
            if len(values) > 1:
                words.append(f"standard deviation {stdev(values):.2g}")
            first = [run[column] for run in measured["the defaults"]]
            if better and name in VARIANTS and VARIANTS[name]:
                sign = 1 if better == "higher" else -1
                wins = sum(sign * (a - b) > 0 for a, b in zip(values, first, strict=True))
                words.append(f"better than the defaults in {wins} of {len(values)} seeds")
            rows.append(
                Row(
                    f"{name}: {column}",
                    fmean(values),
                    {"healthy L1": "intensity", "KL": "nats", "active latents": ""}.get(
                        column, "ratio"
                    ),
                    detail="; ".join(words),
                )
            )
    rows.append(
        Row(
            "size of the comparison",
            job.healthy,
            "healthy phantoms",
            detail=f"{job.size}^3, {job.lesioned} phantoms of each lesion, {job.epochs} epochs of "
            f"batches of 4, {job.seeds} seeds; KL weights times {(job.size / PAPER_SIZE) ** 3:g}; "
            "thresholds fitted on 40 %, figures of the rest",
        )
    )
    return rows


def show(measured: dict[str, list[dict[str, float]]]) -> None:
    """Means and standard deviations over the seeds."""
    lines = []
    for name, runs in measured.items():
        cells = []
        for column in COLUMNS:
            values = [run[column] for run in runs if column in run]
            digits = {"active latents": 0, "KL": 1, "healthy L1": 4}.get(column, 3)
            cell = f"{fmean(values):.{digits}f}" if values else ""
            if len(values) > 1 and not math.isclose(stdev(values), 0):
                cell += f" ±{stdev(values):.{digits}f}"
            cells.append(cell)
        lines.append([name, *cells])
    print_table("what the paper leaves open, one setting at a time", ["variant", *COLUMNS], lines)


def main() -> None:
    quick = arguments().parse_args().quick
    job = Comparison()
    with tempfile.TemporaryDirectory() as folder:
        if quick:
            job = Comparison(out=folder, size=24, healthy=24, lesioned=10, epochs=2, seeds=2)
        measured = compare(job)
    # Seed by seed: the plain methods, which have none, come first there and last here.
    ordered = {name: measured[name] for name in (*VARIANTS, *PLAIN)}
    show(ordered)
    if not quick:
        write("defaults", rows_of(ordered, job))


if __name__ == "__main__":
    main()
