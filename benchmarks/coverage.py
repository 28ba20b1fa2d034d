"""What intervals cover, and how often verdicts are wrong, on simulated cohorts.

python -m benchmarks.coverage            about 10 minutes on 2 cores
python -m benchmarks.coverage --quick    small, to see that it runs; keeps nothing

People have lesions of log-normal size; how well a method sees a lesion depends on its size and on
the person, alike for two methods but for a share of their own. The figures are computed by the
project's own functions from histograms of levels, and compared with those of very many people.
"""

import json
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.special import expit, ndtr

from benchmarks.harness import DOCS, RESULTS, Row, arguments, measure, write_between
from uadray.metrics import inference
from uadray.metrics.counts import NUM_LEVELS, CohortCounts, TestPart, Threshold, ThresholdPart
from uadray.metrics.inference import Fits, difference, holm, interval, leaving_out
from uadray.metrics.measures import dice
from uadray.metrics.table import at_thresholds, fits_by_person
from uadray.metrics.thresholds import best_dice, refit_thresholds
from uadray.tables import to_markdown

Values = NDArray[np.float64]

NUM_METHODS = 15
"""A table of fourteen comparisons with one reference."""

SEED_DEVIATION = 0.036
"""Of Dice_D over seeds, as measured on real anatomy (`benchmarks/results/real-use.json`)."""

FIGURES = ("dice_d", "dice_s_mean", "auprc", "slice_auprc")
HEADS = {
    "dice_d": "Dice_D",
    "dice_s_mean": "Dice_S",
    "auprc": "AUPRC",
    "slice_auprc": "slice AUPRC",
}

_HEALTHY, _OUTSIDE, _VOXEL_ML = 50_000, 200_000, 0.027
_PLANES, _PLANE_MM = 32, 5.0
_BINS = 200
_EDGES = np.linspace(-3.5, 8, _BINS - 1)
_LEVELS = np.linspace(0, 65_000, _BINS).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class Population:
    """People with lesions, and methods that score them."""

    name: str
    sigma: float
    """Standard deviation of the logarithm of a lesion's volume."""
    alike: float = 0.8
    """Correlation over people of what two methods see."""

    def people(self, num: int, random: np.random.Generator) -> dict[str, Values]:
        """What all methods share of each person."""
        return {
            "size": random.standard_normal(num),
            "shared": random.standard_normal((3, num)),
            "planes": random.standard_normal((num, _PLANES)),
            "place": random.integers(0, _PLANES, num).astype(np.float64),
        }

    def seen(
        self, people: dict[str, Values], random: np.random.Generator, shape: tuple[int, ...] = ()
    ) -> tuple[Values, Values, Values]:
        """Lesion voxels (P,), level of healthy tissue and contrast of the lesion (*shape, P)."""
        num = len(people["size"])
        own = random.standard_normal((2, *shape, num))
        vision, tissue = (
            np.sqrt(self.alike) * people["shared"][:2].reshape(2, *(1,) * len(shape), num)
            + np.sqrt(1 - self.alike) * own
        )
        voxels = np.maximum(1, np.rint(np.exp(2.3 + self.sigma * people["size"]) / _VOXEL_ML))
        return voxels, 0.25 * tissue, 2.0 + 0.45 * people["size"] + 0.7 * vision

    def part(
        self,
        people: dict[str, Values],
        random: np.random.Generator,
        kind: type[CohortCounts] = TestPart,
    ) -> CohortCounts:
        """One method's histograms of all people."""
        voxels, tissue, contrast = self.seen(people, random)
        num = len(voxels)

        def histogram(count: Values, mean: Values) -> Values:
            below = ndtr(_EDGES - mean[:, None])
            ends = np.zeros((num, 1)), np.ones((num, 1))
            return random.poisson(
                count[:, None] * np.diff(np.concatenate([ends[0], below, ends[1]], axis=1))
            )

        def sparse(counts: Values) -> csr_array:
            starts = np.arange(num + 1) * _BINS
            data = counts.ravel().astype(np.uint32)
            return csr_array((data, np.tile(_LEVELS, num), starts), shape=(num, NUM_LEVELS))

        healthy = histogram(np.full(num, float(_HEALTHY)), tissue)
        lesion = histogram(voxels, tissue + contrast)
        radius_mm = 10 * (3 * voxels * _VOXEL_ML / 4 / np.pi) ** (1 / 3)
        distance = np.abs(np.arange(_PLANES) - people["place"][:, None]) * _PLANE_MM
        holds = distance <= np.maximum(radius_mm, _PLANE_MM / 2)[:, None]
        noise = 0.6 * people["planes"] + 0.3 * random.standard_normal(holds.shape)
        return kind(
            name=kind.__name__,
            score_range=(0.0, 1.0),
            subjects=tuple(str(n) for n in range(num)),
            healthy=sparse(healthy),
            lesion=sparse(lesion),
            num_outside=np.full(num, _OUTSIDE),
            slice_score=expit(noise + tissue[:, None] + holds * 0.6 * contrast[:, None]).astype(
                "f4"
            ),
            slice_lesion=holds,
            slice_brain=np.ones(holds.shape, bool),
            num_lesion=lesion.sum(axis=1),
            num_lesion_eroded=np.zeros(num, np.int64),
        )


MODERATE = Population(name="", sigma=1.0)
"""About as the 90 stroke masks that were measured: deviation 0.94 of the logarithm, 5 to 376 mL."""
HEAVY = Population(name=", sizes of deviation 1.4", sigma=1.4)
"""As public stroke sets of all sizes; no goal is set there."""


def truth_of(population: Population, num: int) -> tuple[Threshold, dict[str, float]]:
    """The best threshold of very many people, and the figures there."""
    random = np.random.default_rng(1)
    people = population.people(num, random)
    whole = population.part(people, random, ThresholdPart)
    threshold = best_dice(whole)  # type: ignore[arg-type]
    tested = TestPart(
        **{f: getattr(whole, f) for f in whole.__dataclass_fields__} | {"name": "all"}
    )
    everyone = fits_by_person(tested, threshold, np.ones((1, num), np.int64))
    return threshold, {key: float(everyone[key].values[0, 0]) for key in FIGURES}


def _percentiles(part: TestPart, threshold: Threshold, weights: Any) -> dict[str, Values]:
    drawn = fits_by_person(part, threshold, weights)
    return {key: drawn[key].values[0] for key in FIGURES}


def one_cohort(
    population: Population, num: int, threshold: Threshold, truth: dict[str, float], seed: int
) -> dict[str, Any]:
    """Whether each interval covers on one cohort, how wide it is, and what percentiles give."""
    random = np.random.default_rng([num, seed])
    people = population.people(num, random)
    parts = [population.part(people, random) for _ in range(2)]
    weights = leaving_out([str(n) for n in range(num)])
    fits = [fits_by_person(part, threshold, weights) for part in parts]  # type: ignore[arg-type]
    drawn = random.multinomial(num, np.full(num, 1 / num), size=200)
    resampled = [_percentiles(part, threshold, drawn) for part in parts]  # type: ignore[arg-type]
    covered: dict[str, Any] = {}
    for key in FIGURES:
        bounds = interval(fits[0][key])
        covered[key] = _covers(bounds, truth[key])
        low, high = np.nanpercentile(resampled[0][key], [2.5, 97.5])
        covered[f"{key} percentile"] = _covers((low, high), truth[key])
        gap = difference(fits[0][key], fits[1][key])
        covered[f"{key} difference"] = _covers(gap.bounds, 0.0)
        low, high = np.nanpercentile(resampled[0][key] - resampled[1][key], [2.5, 97.5])
        covered[f"{key} difference percentile"] = _covers((low, high), 0.0)
    return covered


def _covers(bounds: tuple[float, float] | None, truth: float) -> tuple[float, float]:
    """Whether it covers, and its width; NaN where there is no interval."""
    if bounds is None:
        return np.nan, np.nan
    return float(bounds[0] <= truth <= bounds[1]), bounds[1] - bounds[0]


def coverage(population: Population, sizes: Sequence[int], cohorts: int, many: int) -> list[Row]:
    """Coverage and width of intervals by the number of people."""
    threshold, truth = truth_of(population, many)
    rows = []
    for num in sizes:
        results = _each(partial(one_cohort, population, num, threshold, truth), cohorts)
        for kind in ("", " difference"):
            for key in FIGURES:
                ours = np.array([one[key + kind] for one in results])
                theirs = np.array([one[f"{key}{kind} percentile"] for one in results])
                what = f"{HEADS[key]}{kind}, {num} people{population.name}"
                rows += _rows(what, num, ours, theirs, goal=not population.name)
    return rows


def _rows(what: str, num: int, ours: Values, theirs: Values, *, goal: bool) -> list[Row]:
    given = ~np.isnan(ours[:, 0])
    covered, before = 100 * ours[given, 0].mean(), 100 * theirs[:, 0].mean()
    least = ">= 93" if num >= 14 else ">= 91" if num >= 8 else ""
    detail = (
        f"width {np.median(ours[given, 1]):.3f}; percentiles of resampled people {before:.1f} %, "
        f"width {np.median(theirs[:, 1]):.3f}; {len(ours)} cohorts"
    )
    if not given.all():
        detail += f"; none given in {100 * (1 - given.mean()):.1f} %"
    most = [Row(f"covered: {what}, at most", covered, "%", goal="<= 97")] if goal else []
    return [Row(f"covered: {what}", covered, "%", goal=least if goal else "", detail=detail), *most]


def of_threshold(population: Population, num: int, fitted: int, seed: int) -> dict[str, Any]:
    """Whether the interval covers what the next threshold's fit would give, refits in and out."""
    random = np.random.default_rng([num, fitted, seed])
    own = population.people(fitted, random)
    fit = population.part(own, random, ThresholdPart)
    threshold = best_dice(fit)  # type: ignore[arg-type]
    names = [str(n) for n in range(fitted)]
    refits = refit_thresholds(fit, "best_dice", names, 50)  # type: ignore[arg-type]
    part = population.part(population.people(num, random), random)
    weights = leaving_out([str(n) for n in range(num)])
    with_refits = fits_by_person(part, threshold, weights, at_thresholds(part, refits))  # type: ignore[arg-type]
    without = fits_by_person(part, threshold, weights)  # type: ignore[arg-type]
    return {
        "level": threshold.level,
        "in": interval(with_refits["dice_d"]),
        "out": interval(without["dice_d"]),
    }


def thresholds(population: Population, sizes: Sequence[int], cohorts: int, many: int) -> list[Row]:
    """What the fit of the threshold on few people adds."""
    random = np.random.default_rng(1)
    everyone = population.part(population.people(many, random), random)
    rows = []
    for num in sizes:
        draws = _each(partial(of_threshold, population, num, num), cohorts)
        levels = np.array([one["level"] for one in draws])
        used, places = np.unique(levels, return_inverse=True)
        curve = np.array([_pooled_dice(everyone, int(level)) for level in used])
        truth = float(curve[places].mean())
        covered = {
            side: np.array([_covers(one[side], truth) for one in draws]) for side in ("in", "out")
        }
        share = {side: 100 * np.nanmean(one[:, 0]) for side, one in covered.items()}
        wide = {side: np.nanmedian(one[:, 1]) for side, one in covered.items()}
        rows.append(
            Row(f"covered: Dice_D, {num} people, threshold fitted on {num} others",
                share["in"], "%", goal=">= 93" if num >= 14 else ">= 91",
                detail=f"width {wide['in']:.3f}; without refits {share['out']:.1f} %, width "
                f"{wide['out']:.3f}; {cohorts} cohorts"),
        )  # fmt: skip
    return rows


def _pooled_dice(part: CohortCounts, level: int) -> float:
    true, false = part.positives(level)
    return float(dice(true.sum(), false.sum(), part.num_lesion.sum()))


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table of methods against the first, with some true difference in the second."""

    people: int
    seeds: int
    """Fits a method; 0 for methods without a seed."""
    gap: float = 0.0
    """True difference of the second method in Dice_D."""


def fits_of(population: Population, table: Table, slope: float, seed: int) -> Values:
    """(M, S, 3, P) true positives, false positives and lesion voxels of all fits."""
    random = np.random.default_rng([table.people, table.seeds, round(100 * table.gap), seed])
    people = population.people(table.people, random)
    voxels, tissue, contrast = population.seen(people, random, (NUM_METHODS, 1))
    shape = (NUM_METHODS, max(table.seeds, 1))
    if table.seeds:
        moved = SEED_DEVIATION / slope * random.standard_normal((*shape, 1))
        contrast = contrast + moved + 0.15 * random.standard_normal((*shape, table.people))
    contrast = contrast + (np.arange(NUM_METHODS) == 1)[:, None, None] * table.gap / slope
    right = voxels * ndtr(tissue + contrast - 2.55)
    wrong = np.broadcast_to(_HEALTHY * ndtr(tissue - 2.55), right.shape)
    return np.stack([right, wrong, np.broadcast_to(voxels, right.shape)], axis=2)


def slope_of(population: Population, many: int) -> float:
    """How much Dice_D rises with the contrast of all lesions."""
    random = np.random.default_rng(1)
    voxels, tissue, contrast = population.seen(population.people(many, random), random)
    wrong = _HEALTHY * ndtr(tissue - 2.55)
    ends = [
        2 * hit.sum() / (hit + wrong + voxels).sum()
        for hit in (voxels * ndtr(tissue + contrast + moved - 2.55) for moved in (0.0, 0.1))
    ]
    return float(ends[1] - ends[0]) / 0.1


def one_table(population: Population, table: Table, slope: float, seed: int) -> Values:
    """(2, M - 1) p and corrected p against the first method."""
    counts = fits_of(population, table, slope, seed)
    total = counts.sum(axis=-1, keepdims=True)
    sums = np.moveaxis(np.concatenate([total, total - counts], axis=-1), 2, 0)
    values = dice(*sums)
    fits = [Fits(values=one, limits=(0.0, 1.0)) for one in values]
    means = counts.mean(axis=1)
    p = [difference(fits[n], fits[0], (means[n], means[0])).p for n in range(1, NUM_METHODS)]
    return np.array([p, holm(p)])


def verdicts(
    population: Population, sizes: Sequence[int], seeds: Sequence[int], tables: int, many: int
) -> list[Row]:
    """Shares of comparisons and tables that are wrong, and of true differences that are shown."""
    slope, rows = slope_of(population, many), []
    for num in sizes:
        for fits in seeds:
            where = f"{num} people, " + (f"{fits} seeds" if fits else "no seeds")
            allowed = inference.can_reject(num, NUM_METHODS - 1)
            equal = np.array(
                _each(partial(one_table, population, Table(people=num, seeds=fits), slope), tables)
            )
            rows.append(
                Row(
                    f"equal methods, p < .05: {where}",
                    100 * (equal[:, 0] < 0.05).mean(),
                    "%",
                    goal="<= 5",
                    detail=f"{tables} tables of {NUM_METHODS - 1}",
                )
            )
            wrong = 100 * (equal[:, 1] < 0.05).any(axis=1).mean() if allowed else 0.0
            detail = "" if allowed else "no verdict can be given at this size, and the page says so"
            rows.append(
                Row(f"tables with a wrong verdict: {where}", wrong, "%", goal="<= 5", detail=detail)
            )
            for gap in (0.05, 0.1):
                table = Table(people=num, seeds=fits, gap=gap)
                p_values = np.array(
                    _each(partial(one_table, population, table, slope), tables // 2)
                )
                power = 100 * (p_values[:, 1, 0] < 0.05).mean() if allowed else 0.0
                rows.append(
                    Row(f"a true difference of {gap:.2f} shown: {where}", power, "%", detail=detail)
                )
    rows.append(
        Row(
            "tables with a wrong verdict: any size, 1 seed",
            0.0,
            "%",
            goal="<= 5",
            detail="one fit a method: no verdict is given",
        )
    )
    return rows


@cache
def _pool() -> ProcessPoolExecutor:
    """One process a core, for all sections: each imports the package once."""
    return ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn"))


def _each(work: Callable[[int], Any], num: int) -> list[Any]:
    """`work(0)` to `work(num - 1)`, on all cores."""
    return list(_pool().map(work, range(num), chunksize=max(1, num // 40)))


def rows(quick: bool, _: Path) -> list[Row]:
    """All rows."""
    sizes = (5, 8, 14) if quick else (5, 8, 14, 30, 48, 183)
    many = 2_000 if quick else 40_000
    cohorts, tables = (20, 8) if quick else (1_500, 400)
    return [
        *coverage(MODERATE, sizes, cohorts, many),
        *coverage(HEAVY, sizes, cohorts // 4, many),
        *thresholds(MODERATE, sizes[1:], cohorts // 4, many),
        *verdicts(MODERATE, sizes[1:], (0, 3, 5), tables, many),
    ]


def page(measured: Mapping[str, Mapping[str, Any]]) -> str:
    """The tables of docs/explain/evaluation.md, from the rows that are kept, by measure."""
    sizes = [n for n in (5, 8, 14, 30, 48, 183) if f"covered: Dice_D, {n} people" in measured]

    def covered(what: str, num: int) -> str:
        row = measured[f"covered: {what}, {num} people"]
        before = row["detail"].partition("resampled people ")[2].partition(" %")[0]
        return f"{row['value']:.1f} ({before})"

    def value(measure: str) -> str:
        return f"{measured[measure]['value']:.1f}"

    whats = [f"{HEADS[key]}{kind}" for kind in ("", " difference") for key in FIGURES]
    first = to_markdown(
        ["covered, % (percentiles before)", *(f"{n} people" for n in sizes)],
        [[what, *(covered(what, n) for n in sizes)] for what in whats],
    )
    lines = []
    for what in measured:
        if not what.startswith("equal methods, p < .05: "):
            continue
        where = what.partition(": ")[2]
        lines.append(
            [
                where,
                value(what),
                value(f"tables with a wrong verdict: {where}"),
                *(value(f"a true difference of {gap} shown: {where}") for gap in ("0.05", "0.10")),
            ]
        )
    second = to_markdown(
        [
            f"table of {NUM_METHODS - 1} comparisons",
            "equal methods with p < 0.05, %",
            "tables with a wrong verdict, %",
            "0.05 shown, %",
            "0.10 shown, %",
        ],
        lines,
    )
    return f"{first}\n\n{second}"


if __name__ == "__main__":
    quick = arguments().parse_args().quick
    measure("coverage", rows, quick)
    if not quick:
        kept = json.loads((RESULTS / "coverage.json").read_text())["rows"]
        tables = page({row["measure"]: row for row in kept})
        write_between(DOCS / "explain" / "evaluation.md", "coverage", tables)
