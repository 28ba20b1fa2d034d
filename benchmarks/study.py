"""The study on real anatomy at 64^3 that docs/study.md lays down: fitted, evaluated, kept.

    python -m benchmarks.study DATA                 goes on from what is kept
    python -m benchmarks.study DATA --minutes 120   begins no fit after so long
    python -m benchmarks.study --page               results and pages from what is kept

DATA holds the folders ds002748, oasis30 and stroke_masks. What a fit leaves but for its weights and
scores is kept as one small file in `results/real-64-fits`, so that the study goes on anywhere. Fits
of one seed come before those of the next. The plan is in this file and on the page; what stands
there was committed before the first fit.
"""

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks import kept
from benchmarks.harness import DOCS, RESULTS, write_between
from benchmarks.real_use import RealUse, measure_sweep
from uadray import files
from uadray.config import BASELINES, Experiment, experiment, with_fit
from uadray.data.volumes import has_brain
from uadray.evaluation.job import evaluate_all
from uadray.evaluation.protocols import EvaluateConfig
from uadray.methods import Learned
from uadray.prepared import prepare
from uadray.report.compare import Comparison, Series, compare, correct, series_of
from uadray.report.rows import group_by_cohort
from uadray.runs.folder import Run
from uadray.runs.records import load_runs
from uadray.store import Cohort
from uadray.tables import to_markdown
from uadray.train.job import fit
from uadray.tune.labelled import measure_run

NETWORKS = (
    "2D-None",
    "2D-Patch-n",
    "3D-None",
    "3D-Cube-0",
    "3D-Cube-n",
    "3D-Multi-Cube-n",
    "3D-Half-Volume-n",
    "3D-sVAE",
    "DenoisingAE",
    "RIAD",
    "DISYRE",
)
"""Five fits of each; those of Bengs 2021 first, in their order."""

SEEDS = 5

CONTRASTS = (
    ("3D-None", "2D-None"),
    ("3D-Cube-n", "2D-Patch-n"),
    ("3D-Cube-n", "2D-None"),
    ("3D-Cube-n", "3D-None"),
    ("2D-Patch-n", "2D-None"),
    ("3D-Cube-n", "3D-Cube-0"),
    ("3D-Cube-n", "3D-Half-Volume-n"),
    ("3D-Cube-n", "3D-Multi-Cube-n"),
    ("3D-sVAE", "3D-None"),
    ("DenoisingAE", "2D-None"),
    ("RIAD", "2D-None"),
    ("DISYRE", "2D-None"),
    ("3D-Cube-n", "PCA-16"),
    ("2D-Patch-n", "PCA-16"),
)
"""The primary contrasts, in Dice_D on `PRIMARY`, corrected together."""

PRIMARY = "stroke-other-site"
"""Cohort of the primary contrasts."""

COHORTS = ("stroke-other-site", "tumour-other-site", "stroke")
"""Cohorts with made lesions; all but the last are of another site than the people learned from."""

STEPS = 1600
"""Steps of the optimiser of each fit, to the nearest whole epoch."""

BATCH = {2: 32, 3: 4}
"""Slices or volumes a step."""

KL_WEIGHTS = (0.1, 1.0, 10.0)
"""Tried for the VAEs of Bengs 2021, in 2D and in 3D apart."""

OUTPUTS = ("linear", "sigmoid")
"""Tried with the weight that was chosen."""

TUNING_SEED = 100
"""Of the fits that choose; none is reported."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """Where everything is, and how large."""

    data: tyro.conf.Positional[str] = ""
    """Folder of the scans and masks."""
    out: str = "runs/study"
    """Cohorts and runs."""
    minutes: float = float("inf")
    """No fit begins after so many."""
    names: tuple[str, ...] = (*BASELINES, *NETWORKS)
    """Experiments, for a part of the study."""
    page: bool = False
    """Only results and pages, from what is kept."""
    quick: bool = False
    """Small, to see that it runs; keeps nothing."""
    kept: str = str(RESULTS / "real-64-fits")
    """What is kept of each fit."""
    size: int = 64
    """Voxels along each axis."""
    steps: int = STEPS
    """See there."""
    seeds: int = SEEDS
    """Fits of each network."""


def cohorts(study: Study) -> dict[str, Cohort]:
    """The healthy cohort, those with lesions and the controls, prepared where they are missing."""
    data, out = Path(study.data), Path(study.out)
    held = {"hold_out": 12}
    masks = {"lesions": data / "stroke_masks"}
    asked: dict[str, tuple[str, dict[str, Any]]] = {
        "healthy": ("ds002748", held),
        "stroke": ("ds002748", held | masks | {"held_out": True, "split_count": 4}),
        "stroke-other-site": ("oasis30", masks | {"split_count": 10}),
        "tumour-other-site": (
            "oasis30",
            masks
            | {"split_count": 10, "lesion_kind": "tumour", "contrast": "t1-dark", "lesion_seed": 1},
        ),
    }
    made = {
        name: prepare("bids", data / folder, out / f"{name}.zarr", size=study.size, **one).cohort
        for name, (folder, one) in asked.items()
    }
    table = made[PRIMARY].subjects
    people = sorted(set(table.loc[table["split"] == "test", "subject"].astype(str)))
    healthy = only(people, data / "oasis30", out / "controls")
    # A healthy cohort has someone to learn from, too; here nobody does.
    made["controls"] = prepare(
        "bids", healthy, out / "controls.zarr", size=study.size, test_count=len(people) - 2
    ).cohort
    return made


def only(people: Sequence[str], source: Path, folder: Path) -> Path:
    """A BIDS folder of some people of another one."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*people, "participants.tsv"):
        if not (folder / name).exists():
            (folder / name).symlink_to((source / name).resolve())
    return folder


def designed(
    name: str, seed: int, steps: int, healthy: Cohort, tuned: dict[str, dict[str, Any]]
) -> Experiment:
    """An experiment as the plan has it.

    Args:
        name: Such as `3D-Cube-n`.
        seed: Of the fit.
        steps: Of the optimiser.
        healthy: What is learned from; its size says how many epochs that is.
        tuned: Settings of the VAEs of Bengs 2021, by `2D` and `3D`.
    """
    wanted = experiment(name)
    method: Any = wanted.method
    if not isinstance(method, Learned):
        return wanted
    changes = tuned.get(name[:2], {}) if method.type_name() == "VAE" else {}
    if name in WIDTHS:
        changes = {"widths": WIDTHS[name]}
    batch = BATCH[method.ndim]
    each = num_steps(healthy, method.ndim, batch)
    changed = replace(wanted, method=replace(method, **changes))
    if wanted.erasing.strategy in ("cube", "multi-cube"):
        changed = replace(changed, erasing=replace(wanted.erasing, border="shift"))
    return with_fit(
        changed,
        epochs=max(1, round(steps / each)),
        batch_size=batch,
        patience=0,
        checkpoint_every=5,
        seed=seed,
    )


WIDTHS = {
    "3D-sVAE": (16, 32, 64, 64),
    "DenoisingAE": (8, 16, 32, 64),
    "RIAD": (8, 16, 32, 64),
    "DISYRE": (8, 16, 32, 64),
}
"""Half of the defaults, so that five fits of each are to be had on two cores."""


def num_steps(healthy: Cohort, ndim: int, batch: int) -> int:
    """Of an epoch."""
    rows = healthy.rows("train")
    if ndim == 3:
        return -(-len(rows) // batch)
    images = healthy.read("image", int(rows.min()), int(rows.max()) + 1)[rows - rows.min()]
    return -(-int(has_brain(images).sum()) // batch)


def tune(study: Study, healthy: Cohort, labelled: Cohort, stop: float) -> dict[str, Any] | None:
    """KL weight and output of the VAEs in each dimension, by AUPRC on the threshold part alone.

    Returns:
        By `2D` and `3D` the settings; None where time ran out before all were tried.
    """
    record = Path(f"{study.kept}-tuning.json")
    known = json.loads(record.read_text()) if record.exists() else {}
    chosen: dict[str, dict[str, Any]] = {}
    for dimension in ("2D", "3D"):
        best: dict[str, Any] = {"kl_weight": 1.0, "output": "linear"}
        for key, values in (("kl_weight", KL_WEIGHTS), ("output", OUTPUTS)):
            tried = {}
            for value in values:
                settings = best | {key: value}
                tried_with = {dimension: settings}
                what = designed(f"{dimension}-None", TUNING_SEED, study.steps, healthy, tried_with)
                # Other steps, scans or lesions are another fit.
                on = f"{what.fingerprint}-{healthy.fingerprint}-{labelled.fingerprint}"
                name = f"{dimension}-None {json.dumps(settings)} {on}"
                if name not in known:
                    if time.monotonic() > stop:
                        return None
                    run = fit(what, healthy, f"{study.out}/tuning/{dimension}-{len(known)}")
                    epoch = (run.summary or {}).get("best_epoch")
                    known[name] = measure_run(run, labelled, epoch)["auprc"]
                    files.write_json(str(record), known)
                    print(f"{name}: AUPRC {known[name]:.3f}", flush=True)
                tried[value] = known[name]
            best[key] = max(tried, key=lambda value: tried[value])
        chosen[dimension] = best
    return chosen


def run_study(study: Study) -> None:
    """Fit and evaluate what is not kept."""
    stop = time.monotonic() + 60 * study.minutes
    made = cohorts(study)
    healthy = made["healthy"]
    tuned = tune(study, healthy, made[PRIMARY], stop)
    if tuned is None:
        return
    folder = Path(study.kept)
    for seed in range(study.seeds):
        for name in study.names:
            what = designed(name, seed, study.steps, healthy, tuned)
            if kept.is_kept(folder, f"{name}-{seed}", what, healthy) or (
                seed and not isinstance(what.method, Learned)
            ):
                continue
            if time.monotonic() > stop:
                return
            run = fit(what, healthy, f"{study.out}/fits/{name}-{seed}")
            evaluated(run, made)
            kept.keep(run, folder, f"{name}-{seed}")
            print(f"{name}, seed {seed}: kept", flush=True)


def evaluated(run: Run, made: dict[str, Cohort]) -> None:
    """On all cohorts, with the healthy people of the other site as controls of those from there."""
    config = EvaluateConfig(by=("age:40", "sex"))
    *other, same = (made[name] for name in COHORTS)
    evaluate_all([run], other, controls=made["controls"], config=config, allow_mismatch=True)
    evaluate_all([run], [same], config=replace(config, by=()))


def contrasts(series: Sequence[Series]) -> list[Comparison]:
    """The primary ones of those that were fitted, corrected together."""
    by_name = {one.name: one for one in series}
    pairs = [
        compare(by_name[of], by_name[against])
        for of, against in CONTRASTS
        if of in by_name and against in by_name
    ]
    return correct([one for one in pairs if one is not None])


def table(made: Sequence[Comparison]) -> str:
    """The primary contrasts and what is said of them."""
    rows = []
    for one in made:
        gap = one.differences["dice_d"]
        bounds = "" if gap.bounds is None else " [{:+.3f}, {:+.3f}]".format(*gap.bounds)
        fits = min((len(s.rows) for s in (one.series, one.reference) if not s.is_plain), default=0)
        p = "" if np.isnan(one.p_holm) else f"{one.p_holm:.3f}"
        gap_text = f"{gap.value:+.3f}{bounds}"
        names = one.series.name, one.reference.name
        rows.append([*names, gap_text, p, str(fits), one.verdict])
    head = ["of", "against", "difference in Dice_D", "p (Holm)", "fits", "verdict"]
    return to_markdown(head, rows, align="l" * len(head))


def write_results(study: Study) -> None:
    """`results/real-64.json`, docs/results.md, README's claims and the table of docs/study.md."""
    with tempfile.TemporaryDirectory() as folder:
        runs = kept.unpacked(Path(study.kept), Path(folder, "runs"))
        if not runs:
            raise SystemExit(f"nothing is kept in {study.kept}: run the study first")
        groups = {g.name: g for g in group_by_cohort(load_runs([f"{folder}/runs"]))}
        text = table(contrasts(series_of(groups[PRIMARY])))
        print(text)
        if study.quick:
            return
        measure_sweep(RealUse(sweep=folder, name="64", about=about(len(runs))))
    write_between(DOCS / "study.md", "study", text)


def about(num: int) -> str:
    """What the study is, and how much of it is there, in words."""
    whole = len(BASELINES) + SEEDS * len(NETWORKS)
    part = "" if num == whole else f"; {num} of {whole} fits are there"
    return (
        "real brains of two sites at 64^3 with made lesions: 29 people of ds002748 to learn from, "
        f"3 choose the epoch; {STEPS} steps a fit{part}"
    )


def main() -> None:
    study = tyro.cli(Study, description=__doc__)
    if study.page:
        write_results(study)
        return
    if not study.data:
        raise SystemExit("give the folder of the scans and masks, or --page")
    if study.quick:
        with tempfile.TemporaryDirectory() as folder:
            small = replace(
                study, out=f"{folder}/study", kept=f"{folder}/kept", size=16, steps=8, seeds=2
            )
            run_study(small)
            write_results(small)
        return
    run_study(study)
    write_results(study)


if __name__ == "__main__":
    main()
