"""Every method on phantoms, fitted and evaluated alike, and the page that describes each one.

python -m benchmarks.methods             all methods, one seed: about 40 minutes of one core
python -m benchmarks.methods --seeds 3   three seeds; goes on from what is there
python -m benchmarks.methods --names sVAE 3D-sVAE f-AnoGAN      only printed
python -m benchmarks.methods --cohorts HEALTHY.zarr STROKE.zarr --about "44 scans of ..." \
    --out runs/methods-real              on prepared cohorts, kept as methods-real.json
python -m benchmarks.methods --page      docs/methods.md alone, from the registry and kept figures
python -m benchmarks.methods --quick     small, to see that it runs; keeps nothing

The same command again goes on where it was cut short, on this machine or another one: what a fit
leaves but for its weights is kept in `results/methods-fits` or `results/methods-real-fits`. Seconds
are those of the machine as it was. Networks are half as wide as by default, since volumes of 32^3
hold an eighth of the voxels of 64^3, and rates of 1e-4 are raised to what so few epochs need: the
ranks on phantoms say nothing of ranks on patients.
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from benchmarks import kept, methods_page
from benchmarks.harness import RESULTS, Row, arguments, print_table, write
from uadray import files
from uadray.config import BASELINES, OTHERS, Experiment, experiment, with_fit
from uadray.evaluation.job import EvaluateConfig, evaluate_all
from uadray.methods import Learned
from uadray.preparation.ingest import prepare_cohort
from uadray.preparation.layouts import phantom
from uadray.preparation.settings import PrepareConfig, SplitConfig
from uadray.progress import Progress
from uadray.report.compare import Series, compare, series_of
from uadray.report.rows import group_by_cohort
from uadray.runs.folder import Run
from uadray.runs.records import RunRecord, load_runs
from uadray.store import Cohort, open_cohort
from uadray.train.job import fit
from uadray.train.summary import format_metrics

LESIONED = ("tumour", "stroke")

IN_2D = ("2D-None", "2D-Patch-n", *OTHERS)
"""All methods that learn by gradient, on slices."""

IN_3D = (
    "3D-None",
    "3D-Cube-n",
    *(f"3D-{n}" for n in ("dVAE", "sVAE", "sVAE-GAN", "SSAE", "f-AnoGAN", "VAE-restoration")),
    "3D-Transformer",
    *(f"3D-{n}" for n in ("DenoisingAE", "RIAD", "DISYRE", "IterMask", "pDDPM", "cDDPM")),
)
"""One or two of each family on volumes; `--names` takes the others."""

FIGURES = {"dice_d": "Dice_D", "dice_s_mean": "Dice_S", "auprc": "AUPRC"}

REFERENCE = "PCA-16"
"""The plain baseline that every method is compared with."""

RATE = 1e-3
"""Learning rate of every reconstruction here."""

HURRIED: dict[str, Any] = {"adversarial_rate": 5e-4, "encoder_rate": 5e-4, "search_steps": 50}
"""Settings of methods, where they have them, that little time asks for."""

RESTORE_STEPS = 60
"""Steps of restorations."""


PAPER_SIZE = {"dVAE": 256, "VAE-restoration": 128, "GMVAE-restoration": 128}
"""Side of the slices in a method's paper; 64 of all others, and of volumes."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """How large the study is."""

    names: tuple[str, ...] = field(default_factory=lambda: (*BASELINES, *IN_2D, *IN_3D))
    """Experiments."""
    out: str = "runs/methods"
    """Folder of the cohorts and runs."""
    size: int = 32
    """Voxels along each axis."""
    healthy: int = 96
    """Healthy phantoms; a tenth of them validates."""
    lesioned: int = 30
    """Phantoms with a tumour, and as many with a stroke; 40 % fit the threshold."""
    epochs: int = 10
    """Of each method that learns by gradient on slices, over all its phases."""
    epochs_3d: int = 25
    """The same on volumes, which give fewer steps an epoch."""
    seeds: int = 1
    """Fits of each method that has a seed."""
    resamples: int = 1000
    """Of the subjects, for the intervals."""
    cohorts: tuple[str, ...] = ()
    """A healthy cohort and those with lesions, where it is not phantoms; of `size`."""
    about: str = ""
    """What they are, in words."""

    def stores(self) -> tuple[Cohort, list[Cohort]]:
        """The healthy cohort and those with lesions."""
        if self.cohorts:
            healthy, *lesioned = (open_cohort(url) for url in self.cohorts)
            return healthy, lesioned
        healthy = phantoms(self.out, "healthy", self.healthy, self.size)
        return healthy, [phantoms(self.out, kind, self.lesioned, self.size) for kind in LESIONED]

    def experiment(self, name: str, seed: int) -> Experiment:
        """The experiment of that name at the study's size."""
        wanted = experiment(name)
        method: Any = wanted.method
        if not isinstance(wanted.method, Learned):
            return wanted
        have = {f.name for f in fields(method)}
        changes = {key: value for key, value in HURRIED.items() if key in have}
        if "widths" in have:
            changes["widths"] = tuple(max(8, w // 2) for w in method.widths)
        if "restore" in have:
            changes["restore"] = replace(method.restore, steps=RESTORE_STEPS)
        if "kl_weight" in have and getattr(method, "latent", "dense") == "dense":
            # The L1 term is a sum over voxels and a dense latent has the same units at any size:
            # the same weight would be stronger on smaller samples.
            paper = PAPER_SIZE.get(method.label, 64)
            share = (self.size / paper) ** 2 if method.ndim == 2 else (self.size / 64) ** 3
            changes["kl_weight"] = method.kl_weight * share
        return with_fit(
            replace(wanted, method=replace(method, **changes)),
            epochs=self.epochs if method.ndim == 2 else self.epochs_3d,
            batch_size=4 if method.ndim == 3 else 16,
            learning_rate=max(RATE, wanted.fit.learning_rate),
            patience=0,
            checkpoint_every=2,
            seed=seed,
        )


def phantoms(
    out: str, kind: str, count: int, size: int, first_seed: int = 0, version: int | None = None
) -> Cohort:
    """A cohort of phantoms of one kind, made once."""
    return prepare_cohort(
        phantom(kind, count, first_seed, version=version),
        files.join(out, f"{kind}.zarr"),
        config=PrepareConfig(shape=(size,) * 3),
        split=SplitConfig(),
    )


@dataclass(frozen=True)
class Cell:
    """One figure of a method: the mean over its seeds."""

    value: float
    bounds: tuple[float, float] | None = None
    """The 95 % interval over subjects of that mean."""
    deviation: float | None = None
    """Standard deviation over the seeds."""

    @property
    def words(self) -> str:
        """Interval and deviation, where there are any."""
        words = []
        if self.bounds is not None:
            words.append("95 % over subjects: {:.3f} to {:.3f}".format(*self.bounds))
        if self.deviation is not None:
            words.append(f"deviation over seeds: {self.deviation:.3f}")
        return "; ".join(words)


Cells = dict[str, Cell]
"""By column."""


def measure(study: Study, folder: Path, minutes: float = float("inf")) -> dict[str, Cells]:
    """Fit and evaluate what is not kept; for each method its figures.

    Args:
        study: What is asked.
        folder: Where each fit is kept.
        minutes: No fit begins after so many.
    """
    stop = time.monotonic() + 60 * minutes
    healthy, lesioned = study.stores()
    for seed in range(study.seeds):
        runs = {}
        for name in study.names:
            wanted = study.experiment(name, seed)
            if seed and not isinstance(wanted.method, Learned):
                continue
            is_kept = kept.is_kept(folder, f"{name}-{seed}", wanted, healthy)
            if is_kept or time.monotonic() > stop:
                continue
            epochs = wanted.fit.epochs if isinstance(wanted.method, Learned) else 1
            with Progress(total=epochs, what=f"epochs of {name}, seed {seed}") as progress:
                runs[name] = fit(
                    wanted,
                    healthy,
                    files.join(study.out, "fits", f"{name}-{seed}"),
                    report=lambda m, p=progress: p.set_done(m["epoch"], format_metrics(m)),  # type: ignore[misc]
                )
        if runs:
            _evaluate(list(runs.values()), lesioned, study.resamples)
        for name, run in runs.items():
            kept.keep(run, folder, f"{name}-{seed}")
    with tempfile.TemporaryDirectory() as unpacked:
        return _measured(kept.unpacked(folder, Path(unpacked)), study.names)


def _evaluate(runs: Sequence[Run], lesioned: Sequence[Cohort], resamples: int) -> None:
    """All in one pass; each one's seconds are counted apart."""
    total = sum(len(one.rows("threshold")) + len(one.rows("test")) for one in lesioned)
    config = EvaluateConfig(num_resamples=resamples)
    with Progress(total=total, what="volumes scored by all") as progress:
        evaluate_all(runs, lesioned, config=config, report=progress.advance)


def _measured(urls: Mapping[str, Path], names: Sequence[str]) -> dict[str, Cells]:
    """The figures of each method from its run folders, which are named by method and seed."""
    loaded = {name: load_runs([str(url)])[0] for name, url in urls.items()}
    runs: dict[str, list[RunRecord]] = {}
    for name, run in loaded.items():
        if name.rpartition("-")[0] in names:
            runs.setdefault(name.rpartition("-")[0], []).append(run)
    by_url = [
        {one.rows[0].run.url: one for one in series_of(group)}
        for group in group_by_cohort([run for each in runs.values() for run in each])
    ]
    reference = runs[REFERENCE][0].url if REFERENCE in runs else ""
    return {
        name: {
            **figures([series[runs[name][0].url] for series in by_url]),
            **above([(series[runs[name][0].url], series.get(reference)) for series in by_url]),
            **of_the_fits([run.summary for run in runs[name]]),
        }
        for name in names
        if name in runs
    }


def figures(cohorts: Sequence[Series]) -> Cells:
    """What the evaluation says of a method on each cohort."""
    cells: Cells = {}
    seconds = []
    for one in cohorts:
        values = one.rows[0].evaluation.values
        for key, title in FIGURES.items():
            figure = one.figure(key)
            if figure is not None:
                name = f"{values['cohort']['name']} {title}"
                cells[name] = Cell(figure.value, figure.bounds, one.deviation(key))
        seconds += [row.evaluation.values["seconds_per_volume"] for row in one.rows]
    if known := [value for value in seconds if value is not None]:
        cells["seconds per volume"] = Cell(fmean(known))
    return cells


def above(pairs: Sequence[tuple[Series, Series | None]]) -> Cells:
    """How far Dice_D lies above that of the reference, on the same subjects."""
    cells: Cells = {}
    for one, reference in pairs:
        if reference is None or one is reference:
            continue
        made = compare(one, reference)
        if made is not None and "dice_d" in made.differences:
            difference = made.differences["dice_d"]
            name = one.rows[0].evaluation.cohort
            cells[f"{name} Dice_D above {REFERENCE}"] = Cell(difference.value, difference.bounds)
    return cells


def of_the_fits(summaries: Sequence[dict[str, Any]]) -> Cells:
    """What the fits recorded: minutes, reconstruction of healthy volumes, parameters."""
    columns = {
        "fit minutes": ("fit_seconds", 1 / 60),
        "healthy L1": ("validation/reconstruction", 1.0),
        "parameters": ("num_parameters", 1.0),
    }
    cells: Cells = {}
    for column, (key, factor) in columns.items():
        values = [summary[key] * factor for summary in summaries if summary.get(key) is not None]
        # Methods that know their answer take no minutes.
        if values and (any(values) or column == "parameters"):
            cells[column] = Cell(fmean(values))
    return cells


UNITS = {
    "seconds per volume": "s",
    "fit minutes": "min",
    "healthy L1": "intensity",
    "parameters": "numbers",
}


def rows_of(measured: dict[str, Cells], study: Study) -> list[Row]:
    """Means over seeds; in words their interval over subjects, and how far the seeds differ."""
    rows = [
        Row(f"{name}: {column}", cell.value, UNITS.get(column, "ratio"), detail=cell.words)
        for name, cells in measured.items()
        for column, cell in cells.items()
    ]
    cohorts = study.about or (
        f"{study.healthy} healthy phantoms of {study.size}^3, a tenth of which validates, and "
        f"{study.lesioned} of each lesion, thresholds fitted on 40 %, figures of the rest"
    )
    rows.append(
        Row(
            "size of the study",
            study.seeds,
            "seeds",
            detail=f"{cohorts}; {study.epochs} epochs of batches of 16 slices, or "
            f"{study.epochs_3d} of 4 volumes; widths halved, learning rate {RATE:g}, adversarial "
            f"rates {HURRIED['adversarial_rate']:g}, {RESTORE_STEPS} steps of restorations and "
            f"{HURRIED['search_steps']} of searches; KL weights of dense latents times the voxels' "
            "share of the paper's",
        )
    )
    return rows


def show(measured: dict[str, Cells]) -> None:
    """Means over the seeds."""
    columns = list(dict.fromkeys(column for cells in measured.values() for column in cells))
    lines = []
    for name, cells in measured.items():
        values = (
            f"{cells[c].value:.{0 if c == 'parameters' else 3}f}" if c in cells else ""
            for c in columns
        )
        lines.append([name, *values])
    print_table("every method", ["method", *columns], lines, width=200)


def main() -> None:
    parser = arguments()
    parser.add_argument("--page", action="store_true", help="write docs/methods.md and no more")
    parser.add_argument("--names", nargs="+", help="experiments; all methods by default")
    parser.add_argument("--seeds", type=int, default=1, help="fits of each method")
    parser.add_argument("--out", default=Study.out, help="folder of the cohorts and runs")
    parser.add_argument("--cohorts", nargs="+", default=(), help="healthy, then with lesions")
    parser.add_argument("--about", default="", help="what the cohorts are, in words")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="no fit begins after so many"
    )
    parser.add_argument("--epochs", type=int, default=Study.epochs, help="of slices")
    parser.add_argument("--epochs-3d", type=int, default=Study.epochs_3d, help="of volumes")
    args = parser.parse_args()
    if args.page:
        methods_page.write()
        return
    torch.set_num_threads(1)
    study = Study(
        out=args.out,
        seeds=args.seeds,
        epochs=args.epochs,
        epochs_3d=args.epochs_3d,
        cohorts=tuple(args.cohorts),
        about=args.about,
    )
    if args.names:
        study = replace(study, names=tuple(args.names))
    if not args.quick:
        name = "methods-real" if study.cohorts else "methods"
        measured = measure(study, RESULTS / f"{name}-fits", args.minutes)
        show(measured)
        if not args.names:
            write(name, rows_of(measured, study))
            methods_page.write()
        return
    with tempfile.TemporaryDirectory() as folder:
        small = replace(study, out=folder, healthy=20, lesioned=10, epochs=2, seeds=1, resamples=20)
        show(measure(small, Path(folder, "kept")))


if __name__ == "__main__":
    main()
