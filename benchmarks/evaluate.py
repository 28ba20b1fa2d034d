"""What evaluation costs: metrics, medians, components, intervals and the whole, beside peers.

python -m benchmarks.evaluate            about 6 minutes on 2 cores
python -m benchmarks.evaluate --quick    small, to see that it runs; keeps nothing

Made scores of 64^3 voxels. Peers that are slow or large run on a subset, which the row states;
where memory counts each side runs in a process of its own, inputs loaded before. Ours and a peer
get the same kept scores and must give the same figure, or the benchmark ends. Peers: scikit-learn
and scipy; torchmetrics, MONAI and cc3d where installed (`pip install -e '.[bench]'`).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import scipy.ndimage as ndi
from numpy.typing import NDArray

from benchmarks import evaluate_on_ray, metric_peers
from benchmarks.harness import Measured, Row, alone, main, medians
from benchmarks.metric_peers import CURVES, THRESHOLD, curves_of
from benchmarks.scored import count_many, load, pooled, save, volume
from uadray.metrics.components import open_components
from uadray.metrics.counts import CohortCounts, TestPart
from uadray.metrics.inference import leaving_out
from uadray.metrics.median import median_filter
from uadray.metrics.postprocess import MAX_LEVEL, erode_brain
from uadray.metrics.table import fits_by_person


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much of everything."""

    edge: int = 64
    few: int = 183
    """Bengs' test subjects with stroke."""
    many: int = 2000
    torch_subset: int = 24
    monai_subset: int = 1
    left_out_subset: int = 16
    component_volumes: int = 3
    rounds: int = 5
    cohort: int = 64


QUICK = Sizes(
    edge=32, few=12, many=40, torch_subset=4, left_out_subset=4, component_volumes=1, rounds=1,
    cohort=8,
)  # fmt: skip


def same(what: str, ours: Any, theirs: Any, tolerance: float = 1e-9) -> float:
    """The largest difference; ends the benchmark where it is above the tolerance."""
    gap = float(np.max(np.abs(np.asarray(ours, float) - np.asarray(theirs, float))))
    if gap > tolerance:
        raise SystemExit(f"{what}: ours {ours}, theirs {theirs}: they differ by {gap:.3g}")
    return gap


MIN_MEASURED = 1e-3
"""Seconds or MiB below which ours is not measured, and no ratio with it."""


def ratio(what: str, ours: float, theirs: float, against: str, goal: str, detail: str) -> Row:
    value = theirs / ours if ours >= MIN_MEASURED else None
    return Row(what, value, "ratio", against=against, goal=goal, detail=detail)


def curves(folder: Path, sizes: Sizes) -> list[Row]:
    """Areas and all thresholds against scikit-learn, torchmetrics and MONAI."""
    num = sizes.few
    ours, theirs = (
        alone(metric_peers.our_curves, folder, num),
        alone(metric_peers.sklearn_curves, folder, num),
    )
    gap = same("curves", ours.value, theirs.value)
    what = "AUPRC, AUROC, Dice at all thresholds"
    rows = [
        ratio(what, ours.seconds, theirs.seconds, "scikit-learn", ">= 80",
              f"{num} volumes: {ours.seconds:.3f} against {theirs.seconds:.1f} s"),
        ratio(f"{what}: memory", ours.mib, theirs.mib, "scikit-learn", ">= 20",
              f"{num} volumes: {ours.mib:.0f} against {theirs.mib:.0f} MiB above the inputs"),
        Row(f"{what}: largest difference", gap, "", against="scikit-learn",
            goal="<= 1e-9", detail="on the kept scores"),
    ]  # fmt: skip
    rows.append(_kept_against_float(sizes))
    if find_spec("torchmetrics"):
        rows += _torchmetrics(folder, sizes)
    if find_spec("monai"):
        rows += _monai(folder, sizes)
    return rows


def _kept_against_float(sizes: Sizes) -> Row:
    """How far 16-bit scores lie from float32 ones: the median taken on floats by scipy."""
    scores, levels, truth = [], [], []
    for number in range(min(sizes.few, sizes.torch_subset)):
        made = volume(number, sizes.edge)
        eroded = erode_brain(made.brain, sizes.edge // 25)
        scores.append(ndi.median_filter(np.where(eroded, made.scores, 0), 5) * made.brain)
        levels.append(made.levels())
        truth.append(made.lesion)
    flat = np.stack(truth).ravel()
    exact = curves_of(flat, np.stack(scores).ravel())
    kept = curves_of(flat, pooled(np.stack(levels)))
    gaps = ", ".join(f"{n} {abs(a - b):.1e}" for n, a, b in zip(CURVES, exact, kept, strict=True))
    return Row(
        "kept 16-bit scores against float32: largest difference",
        max(abs(a - b) for a, b in zip(exact, kept, strict=True)),
        "",
        detail=f"{len(scores)} volumes: {gaps}",
    )


def _torchmetrics(folder: Path, sizes: Sizes) -> list[Row]:
    num, rows = min(sizes.few, sizes.torch_subset), []
    ours = alone(metric_peers.our_curves, folder, num)
    for bins, name in ((None, "torchmetrics, exact"), (200, "torchmetrics, 200 thresholds")):
        theirs = alone(metric_peers.torchmetrics_curves, folder, num, bins)
        # its sums are float32
        gap = same(name, ours.value[:2], theirs.value, 1e-3 if bins is None else 0.2)
        rows.append(
            ratio("AUPRC, AUROC", ours.seconds, theirs.seconds, name, "",
                  f"{num} volumes: {ours.seconds:.3f} against {theirs.seconds:.2f} s, "
                  f"{ours.mib:.0f} against {theirs.mib:.0f} MiB; differ by {gap:.1e}"),
        )  # fmt: skip
    return rows


def _monai(folder: Path, sizes: Sizes) -> list[Row]:
    num = sizes.monai_subset
    ours, theirs = (
        alone(metric_peers.our_curves, folder, num, CURVES[:2], "brain"),
        alone(metric_peers.monai_curves, folder, num),
    )
    gap = same("MONAI", ours.value, theirs.value, 1e-3)
    return [
        ratio("AUPRC, AUROC", ours.seconds, theirs.seconds, "MONAI", "",
              f"brain voxels of {num} volume: {ours.seconds * 1e3:.1f} ms against "
              f"{theirs.seconds:.2f} s; differ by {gap:.1e}"),
    ]  # fmt: skip


def streams(sizes: Sizes) -> list[Row]:
    """Memory and time of counting made volumes, at a tenth and at all of them."""
    tenth: Measured = alone(metric_peers.our_stream, sizes.many // 10, sizes.edge)
    whole: Measured = alone(metric_peers.our_stream, sizes.many, sizes.edge)
    return [
        Row("make, post-process, count, all metrics", sizes.many / whole.seconds,
            "volumes/s", detail=f"{sizes.many} volumes in {whole.seconds:.0f} s, one process"),
        Row("memory above the start", whole.mib, "MiB",
            detail=f"{sizes.many} volumes; {tenth.mib:.0f} MiB with {sizes.many // 10}"),
    ]  # fmt: skip


def median_filters(sizes: Sizes) -> list[Row]:
    """The median filter against scipy's, everywhere and inside the brain."""
    made = volume(0, sizes.edge)
    rng = np.random.default_rng(0)
    levels = rng.integers(0, MAX_LEVEL, made.brain.shape, np.uint16)
    everywhere = np.ones_like(made.brain)
    expected = ndi.median_filter(levels, 5)
    same("median", median_filter(levels, everywhere, 5), expected, 0)
    same("median in the brain", median_filter(levels, made.brain, 5), expected * made.brain, 0)
    middle = medians(
        {
            "scipy": lambda: ndi.median_filter(levels, 5),
            "whole": lambda: median_filter(levels, everywhere, 5),
            "brain": lambda: median_filter(levels, made.brain, 5),
        },
        sizes.rounds,
    )
    return [
        ratio(f"median 5^3, {where}", middle[side], middle["scipy"], "scipy, whole volume", goal,
              f"{middle[side] * 1e3:.1f} against {middle['scipy'] * 1e3:.0f} ms; equal")
        for side, where, goal in (("whole", "whole volume", ">= 10"), ("brain", "in the brain", ""))
    ]  # fmt: skip


def filtered(
    levels: NDArray, lesion: NDArray, brain: NDArray, thresholds: NDArray
) -> tuple[NDArray, NDArray]:
    """True and false positives at each threshold, from one opening."""
    opened = open_components(np.where(brain, levels, np.uint16(0)), 20)
    true, false = (np.sort(opened[part]) for part in (lesion, brain & ~lesion))
    return tuple(len(kept) - np.searchsorted(kept, thresholds) for kept in (true, false))


def components(sizes: Sizes) -> list[Row]:
    """Components of at most 20 voxels dropped, 26-connected, at 100 thresholds."""
    made = [volume(number, sizes.edge) for number in range(sizes.component_volumes)]
    inputs = [(v.levels(), v.lesion, v.brain) for v in made]
    thresholds = np.linspace(300, 16000, 100).astype(int)
    sides: dict[str, Callable[..., Any]] = {"ours": filtered}
    sides["scipy"] = partial(metric_peers.filtered_by, metric_peers.scipy_sizes)
    if find_spec("cc3d"):
        sides["cc3d"] = partial(metric_peers.filtered_by, metric_peers.cc3d_sizes)
    for levels, lesion, brain in inputs:
        results = {n: side(levels, lesion, brain, thresholds) for n, side in sides.items()}
        for name in list(sides)[1:]:
            same(f"components, {name}", results["ours"], results[name], 0)

    def run(side: Callable[..., Any]) -> None:
        for levels, lesion, brain in inputs:
            side(levels, lesion, brain, thresholds)

    turns = medians({n: partial(run, s) for n, s in sides.items()}, max(1, sizes.rounds // 2))
    seconds = {name: value / len(inputs) for name, value in turns.items()}
    goals = {"scipy": ">= 16", "cc3d": ">= 5"}
    return [
        ratio("components at 100 thresholds", seconds["ours"], seconds[name], name, goals[name],
              f"{seconds['ours'] * 1e3:.0f} against {seconds[name] * 1e3:.0f} ms a volume; equal")
        for name in list(sides)[1:]
    ]  # fmt: skip


def intervals(folder: Path, sizes: Sizes) -> list[Row]:
    """All figures without each subject, and the same by pooling voxels for scikit-learn."""
    rows = []
    few = count_many(range(sizes.few), TestPart, sizes.edge)
    fits_by_person(few, THRESHOLD, leaving_out(few.subjects)[:2])
    for num, part in ((sizes.few, few), (sizes.many, _repeated(few, sizes.many))):
        start = time.perf_counter()
        fits_by_person(part, THRESHOLD, leaving_out(part.subjects))
        rows.append(
            Row("six figures without each subject",
                time.perf_counter() - start, "s",
                detail=f"{num} subjects" + (", drawn from the first" if num > sizes.few else "")),
        )  # fmt: skip
    num, tried = min(sizes.few, sizes.left_out_subset), 2
    part = count_many(range(num), TestPart, sizes.edge)
    start = time.perf_counter()
    weights = leaving_out(part.subjects)
    without = fits_by_person(part, THRESHOLD, weights)
    ours = time.perf_counter() - start
    levels, lesion = load(folder, num, "levels"), load(folder, num, "lesion")
    start = time.perf_counter()
    theirs = []
    for row in weights[:tried]:
        drawn = np.repeat(np.arange(num), row)
        theirs.append(curves_of(lesion[drawn].ravel(), pooled(levels[drawn])))
    each = (time.perf_counter() - start) / tried
    same("without each", [without[name].values[0, :tried] for name in CURVES], np.transpose(theirs))
    rows.append(
        ratio("curves without each subject", ours, each * len(weights),
              "scikit-learn on their voxels", "",
              f"{num} subjects: {ours:.2f} s against {each:.1f} s without one, of {tried}; equal"),
    )  # fmt: skip
    return rows


def _repeated(part: CohortCounts, num: int) -> CohortCounts:
    """A part of `num` subjects that repeats those of `part`, shifted by a few levels each time."""
    from scipy.sparse import csr_array, vstack

    blocks: dict[str, list[Any]] = {"healthy": [], "lesion": []}
    for turn in range(-(-num // len(part.subjects))):
        for name, held in blocks.items():
            counts = getattr(part, name)
            columns = np.where(counts.indices > 0, np.minimum(counts.indices + turn, MAX_LEVEL), 0)
            moved = csr_array((counts.data, columns, counts.indptr), shape=counts.shape)
            moved.sum_duplicates()
            held.append(moved)
    rows = np.arange(num) % len(part.subjects)
    arrays = {
        name: getattr(part, name)[rows]
        for name in ("num_outside", "slice_score", "slice_lesion", "slice_brain", "num_lesion",
                     "num_lesion_eroded")
    }  # fmt: skip
    return TestPart(
        name="repeated",
        score_range=part.score_range,
        subjects=tuple(map(str, range(num))),
        **{name: vstack(held, format="csr")[:num] for name, held in blocks.items()},
        **arrays,
    )


def rows(quick: bool, folder: Path) -> list[Row]:
    """All rows."""
    sizes = QUICK if quick else Sizes()
    save(folder, sizes.few, sizes.edge)
    parts = curves(folder, sizes) + streams(sizes) + median_filters(sizes) + components(sizes)
    return [
        *parts,
        *intervals(folder, sizes),
        *evaluate_on_ray.rows(folder, sizes.cohort, sizes.edge),
    ]


if __name__ == "__main__":
    main("evaluate", rows)
