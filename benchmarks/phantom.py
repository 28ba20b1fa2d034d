"""Whether phantoms rank methods as real anatomy does, and how near they come to it.

python -m benchmarks.phantom --real runs/r32/healthy.zarr runs/r32/stroke.zarr \
    runs/r32/stroke-other-site.zarr      real cohorts of 32^3, the healthy one first
python -m benchmarks.phantom --real ... --seeds 1 --skip 1 96     less of it
python -m benchmarks.phantom --quick     small, to see that it runs; keeps nothing

Ten methods, chosen before any figure was seen, are fitted and evaluated alike on scans and on
phantoms of both versions, with as many healthy people to learn from as there are scans, and on the
newest phantoms once more with 96. Volumes are so few and small that this process scores them. The
same command again makes no fit again.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.stats import kendalltau

from benchmarks.harness import DOCS, Row, arguments, medians, publish, write_between
from benchmarks.methods import LESIONED, REFERENCE, Cell, Cells, Study, phantoms
from uadray import files
from uadray.evaluation.protocols import EvaluateConfig
from uadray.evaluation.scoring import count_volumes, read_example
from uadray.metrics.counts import SubjectCounts, TestPart, ThresholdPart
from uadray.metrics.inference import Fits, difference, interval, leaving_out
from uadray.metrics.table import METRICS, at_thresholds, fits_by_person
from uadray.metrics.thresholds import fit_threshold, refit_thresholds
from uadray.phantom import VERSION, Kind, make_subject
from uadray.runs.detector import load_detector
from uadray.runs.folder import Run
from uadray.store import Cohort, Split, open_cohort
from uadray.tables import to_markdown
from uadray.train.job import fit

NETWORKS = ("2D-None", "3D-None", "3D-Cube-n", "sVAE", "DenoisingAE")
NAMES = ("Intensity-dark", "HistEq-dark", "MeanImage", "ZScore", REFERENCE, *NETWORKS)
"""The ten methods."""

DARK = "Intensity-dark"

SEVERAL = 96
"""Healthy phantoms of the demo."""

KINDS: tuple[Kind, ...] = ("healthy", "tumour", "stroke")

LESIONED_COUNT = 30
"""Phantoms with each lesion; 40 % fit the threshold."""

TAU = 0.6
"""What the correlation of ranks is to be at the least."""

Figures = dict[str, Cells]
"""By method, then by column."""


def phantom_study(study: Study, out: str, healthy: int, version: int) -> Study:
    """The same study on phantoms, in a folder of their own."""
    lesioned = {kind: study.lesioned for kind in LESIONED}
    counts = {"healthy": healthy} | lesioned
    stores = [
        phantoms(out, kind, count, study.size, version=version).url
        for kind, count in counts.items()
    ]
    return replace(study, cohorts=tuple(stores), out=out)


def measure(study: Study) -> Figures:
    """Fit, and evaluate as the job does; for each method its figures on each cohort."""
    healthy, lesioned = study.stores()
    runs: dict[str, list[Run]] = {}
    for seed in range(study.seeds):
        for name in study.names:
            # Plain methods have no seed.
            if seed == 0 or name in NETWORKS:
                place = files.join(study.out, "fits", f"{name}-{seed}")
                run = fit(study.experiment(name, seed), healthy, place)
                runs.setdefault(name, []).append(run)
                print(place, flush=True)
    figures: Figures = {name: {} for name in runs}
    for cohort in lesioned:
        found = {name: evaluate(each, cohort) for name, each in runs.items()}
        for name, fits in found.items():
            of_seeds = fits.values[:, 0]
            figures[name][f"{cohort.name} Dice_D"] = Cell(
                float(fits.mean[0]),
                interval(fits),
                float(of_seeds.std(ddof=1)) if len(of_seeds) > 1 else None,
            )
            gap = difference(fits, found[REFERENCE])
            column = f"{cohort.name} Dice_D above {REFERENCE}"
            figures[name][column] = Cell(gap.value, gap.bounds)
    return figures


def evaluate(runs: Sequence[Run], cohort: Cohort) -> Fits:
    """Dice_D of the runs of one method on a cohort, at the thresholds of its threshold part."""
    config, metrics = EvaluateConfig(), [METRICS["dice_d"]]
    table = cohort.columns("id", "subject")
    each = []
    for run in runs:
        detector = load_detector(run)
        counted: dict[Split, list[tuple[str, SubjectCounts]]] = {"threshold": [], "test": []}
        for split, subjects in counted.items():
            for row in map(int, cohort.rows(split)):
                name = str(table["id"][row])
                example = read_example(cohort, row, name)
                (one,) = count_volumes(detector, {0: example}, config, torch.device("cpu"))
                subjects.append((name, one.counts))
        bounds = detector.score_range
        part = ThresholdPart.from_subjects(
            counted["threshold"], name="threshold", score_range=bounds
        )
        test = TestPart.from_subjects(counted["test"], name="test", score_range=bounds)
        rule = config.threshold_rule
        people = {split: list(table["subject"][cohort.rows(split)]) for split in counted}
        refitted = refit_thresholds(part, rule, people["threshold"], config.num_resamples)
        each.append(
            fits_by_person(
                test,
                fit_threshold(part, rule),
                leaving_out(people["test"]),
                at_thresholds(test, refitted, metrics),
                metrics=metrics,
            )["dice_d"]
        )
    refits = [one.refits for one in each if one.refits is not None]
    return replace(
        each[0],
        values=np.concatenate([one.values for one in each]),
        refits=np.concatenate(refits) if refits else None,
    )


def dice(figures: Figures, cohort: str) -> list[float]:
    """Dice_D of the ten methods on a cohort, in their order."""
    return [figures[name][f"{cohort} Dice_D"].value for name in NAMES]


def tau(one: Sequence[float], other: Sequence[float]) -> float:
    """Kendall's tau-b of two orders."""
    return float(kendalltau(one, other).statistic)


def rank_rows(
    named: Mapping[str, Figures], real: Figures, sites: Sequence[str], newest: str
) -> list[Row]:
    """How alike the orders of the ten methods are.

    Args:
        named: Figures on phantoms, by what they are.
        real: Figures on scans.
        sites: Names of the real cohorts with lesions.
        newest: Which of `named` the goal is for.
    """
    rows = []
    for words, figures in named.items():
        for kind in LESIONED:
            of_kind = dice(figures, kind)
            for site in sites:
                first = words == newest and kind == "stroke" and site == sites[0]
                rows.append(
                    Row(
                        f"tau of the ranks, {kind} on {words}",
                        tau(of_kind, dice(real, site)),
                        "tau-b",
                        against=f"real {site}",
                        goal=f">= {TAU}" if first else "",
                    )
                )
    for at, site in enumerate(sites):
        other = sites[(at + 1) % len(sites)]
        value = tau(dice(real, site), dice(real, other))
        rows.append(Row(f"tau of the ranks, real {site}", value, "tau-b", against=f"real {other}"))
    return rows


def reference_rows(
    named: Mapping[str, Figures], real: Figures, sites: Sequence[str], newest: str
) -> list[Row]:
    """How far each network is from PCA-16 on stroke phantoms, beside the interval on scans."""
    rows = []
    for words, figures in named.items():
        within = 0
        for name in NETWORKS:
            value = figures[name][f"stroke Dice_D above {REFERENCE}"].value
            cell = real[name][f"{sites[0]} Dice_D above {REFERENCE}"]
            low, high = cell.bounds or (-np.inf, np.inf)
            within += low <= value <= high
            rows.append(
                Row(
                    f"{name} above {REFERENCE}, stroke on {words}",
                    value,
                    "Dice_D",
                    against=f"real {sites[0]}",
                    detail=f"real: {cell.value:.3f}, 95 % over people: {low:.3f} to {high:.3f}",
                )
            )
        rows.append(
            Row(
                f"networks whose difference from {REFERENCE} is in the real interval, on {words}",
                within,
                f"of {len(NETWORKS)}",
                against=f"real {sites[0]}",
                goal=f">= {len(NETWORKS)}" if words == newest else "",
            )
        )
    return rows


def dice_rows(named: Mapping[str, Figures], real: Figures, sites: Sequence[str]) -> list[Row]:
    """Dice_D of each method on each cohort."""
    cohorts = {f"real {site}": (real, site) for site in sites}
    for words, figures in named.items():
        cohorts |= {f"{kind} on {words}": (figures, kind) for kind in LESIONED}
    return [
        Row(f"Dice_D of {name}, {words}", cell.value, "Dice_D", detail=cell.words)
        for words, (figures, cohort) in cohorts.items()
        for name in NAMES
        for cell in [figures[name][f"{cohort} Dice_D"]]
    ]


def page(rows: Sequence[Row]) -> str:
    """The figures as tables, for the page that describes phantoms."""
    heads, cells = ["method"], {name: [name] for name in NAMES}
    rest = []
    for row in rows:
        if row.measure.startswith("Dice_D of "):
            name, cohort = row.measure.removeprefix("Dice_D of ").split(", ", 1)
            heads += [cohort] if cohort not in heads else []
            cells[name].append(f"{row.value:.3f}")
        elif row.value is not None:
            holds = {True: "yes", False: "**no**", None: ""}[row.holds]
            value = f"{row.value:.3g}" if row.value < 1000 else f"{row.value:.0f}"
            rest.append([row.measure, value, row.unit, row.against, row.goal, holds, row.detail])
    first = to_markdown(heads, cells.values())
    second = to_markdown(
        ["measure", "value", "unit", "against", "goal", "holds", "detail"], rest, align="lrl"
    )
    return f"Dice_D, means over seeds:\n\n{first}\n\n{second}"


def dark_rows(named: Mapping[str, Figures], real: Figures, sites: Sequence[str]) -> list[Row]:
    """What darkness alone finds."""
    there = ", ".join(f"{site} {real[DARK][f'{site} Dice_D'].value:.3f}" for site in sites)
    return [
        Row(
            f"{DARK}, {kind} on {words}",
            figures[DARK][f"{kind} Dice_D"].value,
            "Dice_D",
            against="real",
            detail=f"real: {there}",
        )
        for words, figures in named.items()
        for kind in LESIONED
    ]


def num_scans(cohort: Cohort) -> int:
    """How many volumes a cohort has."""
    return len(cohort.columns("row"))


def likeness(cohort: Cohort, held_out: int) -> dict[str, float]:
    """How people of a healthy cohort differ, whatever method is used on them.

    Args:
        cohort: Healthy people.
        held_out: How many of them the mean image and the components are not made from.
    """
    num = num_scans(cohort)
    images = cohort.read("image", 0, num).astype(np.float32)
    brain = cohort.read("brain", 0, num)
    fitted, others = images[:-held_out].reshape(len(images) - held_out, -1), images[-held_out:]
    inside = (brain.mean(axis=0) > 0.5).ravel()
    mean = fitted.mean(axis=0)
    left = others.reshape(held_out, -1) - mean
    components = np.linalg.svd(fitted - mean, full_matrices=False)[2][:16]
    rest = left - (left @ components.T) @ components
    always = brain.mean(axis=0) > 0.9
    residual = left.reshape(others.shape)
    pairs = []
    for axis in range(3):
        one, other = _shifted(axis, slice(2, None)), _shifted(axis, slice(None, -2))
        both = always[one[1:]] & always[other[1:]]
        pairs.append(np.corrcoef(residual[one][:, both].ravel(), residual[other][:, both].ravel()))
    return {
        "mean intensity": float(images[brain].mean()),
        "deviation of the mean image": float(images.mean(axis=0)[always].std()),
        "L1 to the mean image": float(np.abs(left)[:, inside].mean()),
        "share that 16 components explain": float(
            1 - (rest[:, inside] ** 2).mean() / (left[:, inside] ** 2).mean()
        ),
        "correlation two voxels on": float(np.mean([pair[0, 1] for pair in pairs])),
    }


def _shifted(axis: int, part: slice) -> tuple[slice, ...]:
    """An index into (N, Z, Y, X) that is `part` along one axis of space."""
    return (slice(None), *(part if a == axis else slice(None) for a in range(3)))


def likeness_rows(healthy: Mapping[str, Cohort], real: Cohort) -> list[Row]:
    """The figures of `likeness`, beside those of scans."""
    held_out = max(2, num_scans(real) // 4)
    there = likeness(real, held_out)
    return [
        Row(
            f"{measure} of healthy brains, {words}",
            value,
            "intensity" if "share" not in measure and "corr" not in measure else "ratio",
            against="real",
            detail=f"real: {there[measure]:.3f}; {held_out} people held out",
        )
        for words, cohort in healthy.items()
        for measure, value in likeness(cohort, held_out).items()
    ]


def make_several(count: int, size: int, version: int) -> None:
    """Make phantoms of all kinds in turn."""
    for seed in range(count):
        make_subject(KINDS[seed % 3], seed, size, version=version)


def speed_rows(sizes: Sequence[int], count: int) -> list[Row]:
    """Milliseconds a phantom, by both versions in turns."""
    rows = []
    for size in sizes:
        sides: dict[str, Callable[[], object]] = {
            str(version): partial(make_several, count, size, version) for version in (1, VERSION)
        }
        seconds = medians(sides, 3)
        new, old = (1000 * seconds[str(v)] / count for v in (VERSION, 1))
        rows.append(Row(f"a phantom of {size}^3", new, "ms", detail=f"version 1: {old:.0f} ms"))
        rows.append(
            Row(f"a phantom of {size}^3", new / old, "ratio", against="version 1", goal="<= 1.5")
        )
    return rows


def rows_of(
    study: Study, real: Sequence[str], real_out: str, skip: Sequence[int], old_seeds: int
) -> list[Row]:
    """All rows.

    Args:
        study: How many lesioned phantoms, seeds and epochs; its `out` takes the phantoms.
        real: Real cohorts, the healthy one first.
        real_out: Folder of their fits.
        skip: 1 for phantoms of version 1, `SEVERAL` for so many healthy ones.
        old_seeds: Fits of each network on phantoms of version 1.
    """
    healthy, *lesioned = (open_cohort(url) for url in real)
    sites = [cohort.name for cohort in lesioned]
    of_scans = measure(replace(study, cohorts=tuple(real), out=real_out))
    num = num_scans(healthy)
    newest = f"phantoms, {num} healthy"
    wanted = {newest: (num, VERSION)}
    if 1 not in skip:
        wanted[f"phantoms of version 1, {num} healthy"] = (num, 1)
    if SEVERAL not in skip:
        wanted[f"phantoms, {SEVERAL} healthy"] = (SEVERAL, VERSION)
    figures, stores = {}, {}
    for words, (count, version) in wanted.items():
        out = files.join(study.out, f"v{version}-{count}")
        one = phantom_study(study, out, count, version)
        if version < VERSION:
            one = replace(one, seeds=old_seeds)
        figures[words], stores[words] = measure(one), open_cohort(one.cohorts[0])
    of_num = {words: store for words, store in stores.items() if num_scans(store) == num}
    return [
        *dice_rows(figures, of_scans, sites),
        *rank_rows(figures, of_scans, sites, newest),
        *reference_rows(figures, of_scans, sites, newest),
        *dark_rows(figures, of_scans, sites),
        *likeness_rows(of_num, healthy),
        *speed_rows((32, 64), 6),
        Row(
            "size of the study",
            study.seeds,
            "seeds",
            detail=f"{old_seeds} on version 1; "
            f"{study.lesioned} phantoms of each lesion, 40 % of which fit the threshold; "
            f"real: {', '.join(f'{c.name} {num_scans(c)}' for c in (healthy, *lesioned))}; "
            f"{study.epochs} epochs of slices, {study.epochs_3d} of volumes",
        ),
    ]


def main() -> None:
    parser = arguments()
    parser.add_argument("--real", nargs="+", default=(), help="healthy, then with strokes")
    parser.add_argument("--real-out", default="runs/methods-real", help="folder of their fits")
    parser.add_argument("--out", default="runs/phantom-ranks", help="folder of the phantoms")
    parser.add_argument("--seeds", type=int, default=3, help="fits of each network")
    parser.add_argument("--old-seeds", type=int, default=1, help="the same on version 1")
    parser.add_argument(
        "--skip",
        nargs="+",
        type=int,
        default=(),
        choices=(1, SEVERAL),
        help="phantoms to leave out",
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    study = Study(names=NAMES, seeds=args.seeds, epochs=20, epochs_3d=60, lesioned=LESIONED_COUNT)
    if args.quick:
        with tempfile.TemporaryDirectory() as folder:
            small = replace(study, seeds=1, epochs=1, epochs_3d=1, lesioned=6)
            # Phantoms stand for the scans.
            stand_in = phantom_study(small, str(Path(folder) / "real"), 12, 1).cohorts
            small = replace(small, out=str(Path(folder) / "phantoms"))
            publish(
                "phantom",
                rows_of(small, stand_in, str(Path(folder) / "fits"), (SEVERAL,), 1),
                keep=False,
            )
        return
    if len(args.real) < 2:
        parser.error("--real takes a healthy cohort and at least one with strokes")
    rows = rows_of(
        replace(study, out=args.out), args.real, args.real_out, args.skip, args.old_seeds
    )
    publish("phantom", rows)
    write_between(DOCS / "explain" / "phantoms.md", "phantom", page(rows))


if __name__ == "__main__":
    main()
