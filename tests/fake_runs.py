"""Run folders of made but valid content, as fit and evaluate write them."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from uadray import config, files
from uadray.methods.vae import VAE
from uadray.metrics.inference import Fits
from uadray.metrics.slicewise import Slices
from uadray.runs.evaluations import INTERVAL_METHOD, pack_people, pack_slices

LEVELS = {
    "3D-None": 0.476,
    "3D-Cube-n": 0.450,
    "3D-Half-Volume-n": 0.445,
    "2D-None": 0.340,
    "2D-Patch-n": 0.352,
    "PCA-16": 0.424,
    "Intensity-dark": 0.398,
    "ZScore": 0.373,
    "MeanImage": 0.312,
    "HistEq-dark": 0.251,
}
"""Plausible Dice_D of ten methods."""


def write_run(
    folder: Path,
    experiment: str = "3D-Cube-n",
    *,
    name: str | None = None,
    cohorts: Sequence[str] = ("stroke",),
    notes: Sequence[str] = ("semi-synthetic",),
    seed: int = 0,
    num_test: int = 16,
    num_epochs: int = 6,
    size: int = 24,
    num_cases: int = 2,
    summary: dict[str, Any] | None = None,
    by_person: bool = True,
    max_component: int = 0,
    slices: bool = True,
    change: Callable[[config.Experiment], config.Experiment] | None = None,
    outside: Mapping[str, Mapping[str, Any]] | None = None,
) -> Path:
    """Write one run folder.

    Args:
        folder: The run folder.
        experiment: Any name that `config.experiment` knows.
        name: What the run calls itself; the experiment's name where None.
        cohorts: Lesioned cohorts that it was evaluated on.
        notes: Of every cohort.
        seed: Decides the content.
        num_test: Test subjects, the same ones for every run.
        num_epochs: Lines of `metrics.jsonl` of a method that learns by gradient.
        size: Rows and columns of the montage cases.
        num_cases: Montage cases, the same ones for every run.
        summary: What `summary.json` says instead of a finished fit.
        by_person: Whether the figures without each person are kept.
        max_component: Largest component that was dropped; 0 is without a filter.
        slices: Whether the scores of the axial slices are kept.
        change: Settings that differ from the experiment's defaults.
        outside: Metrics of other packages as records have them, each with its `value` beside.

    Returns:
        `folder`.
    """
    made = config.with_fit(config.experiment(experiment), seed=seed, epochs=num_epochs)
    if change is not None:
        made = change(made)
    learns = isinstance(made.method, VAE.Settings)
    random = np.random.default_rng([seed, *made.fingerprint.encode()])
    cohort = {"name": "ixi", "url": "cohorts/ixi", "fingerprint": "a1b2c3d4e5f60718"}
    files.write_json(
        str(folder / "config.json"),
        {
            "name": name or made.name,
            "experiment": config.to_json(made),
            "fingerprint": made.fingerprint,
            "cohort": {**cohort, "shape": [64, 64, 64]},
            "versions": {"uadray": "0.1.0", "torch": "2.13.0", "ray": "2.60.0"},
            "hardware": {"cpus": 2, "device": "cpu", "machine": "x86_64"},
        },
    )
    finished = {
        "status": "finished",
        "epochs": num_epochs if learns else None,
        "best_epoch": None,
        "validation/reconstruction": None,
        "fit_seconds": float(random.uniform(400, 3000) if learns else random.uniform(2, 20)),
        "num_parameters": int(random.integers(1_000_000, 5_000_000)) if learns else 0,
        "num_workers": 1,
    }
    if learns:
        lines = _epochs(num_epochs, random)
        best = min(lines, key=lambda line: line["validation/reconstruction"])
        finished["best_epoch"] = best["epoch"]
        finished["validation/reconstruction"] = best["validation/reconstruction"]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        files.write_bytes(str(folder / "metrics.jsonl"), text.encode())
    files.write_json(str(folder / "summary.json"), finished if summary is None else summary)
    for place, cohort_name in enumerate(cohorts):
        values = _evaluation(made, cohort_name, notes, num_test, random, place)
        for key, kept in (outside or {}).items():
            value = kept.get("value")
            values.setdefault("outside_metrics", {})[key] = {**kept, "value": None}
            values["metrics"][key] = value
            if value is not None:
                values["intervals"][key] = [value - 0.1, value + 0.1]
        if max_component:
            _filter(values, max_component)
        if by_person:
            target = str(folder / "evaluation" / f"{cohort_name}-people.npz")
            files.write_bytes(target, _by_person(values, random, place))
        if slices:
            target = str(folder / "evaluation" / f"{cohort_name}-slices.npz")
            files.write_bytes(target, pack_slices(_slices(values, random)))
        files.write_json(str(folder / "evaluation" / f"{cohort_name}.json"), values)
        arrays = _cases(num_cases, size, values, learns, random, place)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        target = str(folder / "evaluation" / f"{cohort_name}-cases.npz")
        files.write_bytes(target, buffer.getvalue())
    return folder


def _epochs(count: int, random: np.random.Generator) -> list[dict[str, float]]:
    floor = random.uniform(0.028, 0.036)
    lines = []
    for epoch in range(1, count + 1):
        train = floor * 0.8 + 0.12 * np.exp(-epoch / (count / 8)) + random.normal(0, 2e-4)
        gap = 0.004 + 0.006 * max(0.0, epoch / count - 0.6)
        validation = train + gap + abs(random.normal(0, 6e-4))
        lines.append(
            {
                "epoch": epoch,
                "train/loss": float(train * 1.2),
                "train/reconstruction": float(train),
                "train/kl": float(random.uniform(20, 40)),
                "validation/reconstruction": float(validation),
                "seconds": 1.5,
                "samples_per_second": 40.0,
            }
        )
    return lines


def _evaluation(
    made: config.Experiment,
    cohort: str,
    notes: Sequence[str],
    num_test: int,
    random: np.random.Generator,
    place: int,
) -> dict[str, Any]:
    level = LEVELS.get(made.name, 0.3) * (1 - 0.25 * place) + random.normal(0, 0.01)
    volumes = 10 ** np.random.default_rng(place).uniform(0.3, 2.4, num_test)
    trend = level * (0.35 + 0.55 * np.log10(volumes) - 0.1 * np.log10(volumes) ** 2)
    dice = np.clip(trend + random.normal(0, 0.07, num_test), 0, 1)
    metrics = {
        "dice_d": level,
        "dice_s_mean": dice.mean(),
        "dice_s_std": dice.std(),
        "auprc": level * 0.85,
        "auroc": 0.9 + 0.1 * level,
        "upper_bound_dice": level * 1.04,
        "slice_auprc": 0.5 + level / 2,
    }
    widths = {"dice_d": 0.065, "dice_s_mean": 0.06, "auprc": 0.07, "auroc": 0.01}
    widths |= {"upper_bound_dice": 0.06, "slice_auprc": 0.05}
    lesions = 2 * num_test
    metrics |= {
        "lesion_detection_rate": round(level * lesions) / lesions,
        "lesion_precision": level / 3,
        "false_components_per_volume": 40 * (1 - level),
        "hd95_mm_mean": 30 * (1 - level),
        "surface_distance_mm_mean": 9 * (1 - level),
    }
    widths |= {"lesion_detection_rate": 0.1, "lesion_precision": 0.05}
    widths |= {"false_components_per_volume": 4, "hd95_mm_mean": 3, "surface_distance_mm_mean": 1}
    counts = {"num_lesions": lesions, "num_lesions_detected": round(level * lesions)}
    return {
        "cohort": {
            "name": cohort,
            "url": f"cohorts/{cohort}",
            "fingerprint": f"{place:016x}",
            "notes": list(notes),
        },
        "compared": {"differences": [], "people": [], "notes": []},
        "run_fingerprint": made.fingerprint,
        "protocol": {"name": "bengs2021", "source": "Bengs 2021", "metrics": ["dice_d"]},
        "residual": "absolute",
        "slices": None,
        "postprocess": {"erosion_iterations": 1, "median_size": 5},
        "components": {"max_size": 0, "connectivity": 26, "fit_after": True},
        "healthy_cohort": None,
        "score_range": [0.0, 1.0],
        "threshold": {
            "level": 8519,
            "value": float(random.uniform(0.08, 0.2)),
            "rule": "bengs-bisection",
            "fitted_on": f"threshold part of {cohort}: 8 subjects",
        },
        "metrics": {key: float(value) for key, value in metrics.items()} | counts,
        "intervals": {
            key: [float(metrics[key] - width), float(metrics[key] + width * 0.9)]
            for key, width in widths.items()
        },
        "unfiltered": None,
        "filtered": None,
        "lesions": {
            "connectivity": 26,
            "num_subjects": num_test + 8,
            "num_components": 3 * num_test,
            "components_per_subject": 3 * num_test / (num_test + 8),
            "mean_size_voxels": 120.5,
            "median_size_voxels": 44.0,
            "mean_size_ml": 3.25,
            "median_size_ml": 1.19,
        },
        "interval_method": INTERVAL_METHOD,
        "num_refits": 0,
        "num_people": num_test,
        "num_threshold": 8,
        "num_test": num_test,
        "lesion_voxels": 12345,
        "lesion_voxels_eroded": 678,
        "healthy_reconstruction": float(random.uniform(0.03, 0.04)),
        "seconds_per_volume": float(random.uniform(0.01, 0.4)),
        "subjects": [
            {"id": f"{cohort}-{i:04d}", "dice": float(dice[i]), "lesion_ml": float(volumes[i])}
            for i in range(num_test)
        ],
    }


def _by_person(values: dict[str, Any], random: np.random.Generator, place: int) -> bytes:
    """Figures that move as far as the intervals are wide; most of it is shared by all runs."""
    num = len(values["subjects"])
    shared = np.random.default_rng(1000 + place).normal(size=num)
    fits = {}
    for name, (low, high) in values["intervals"].items():
        moves = 0.9 * shared + 0.44 * random.normal(size=num)
        moves -= moves.mean()
        moves *= (high - low) / 4 / np.sqrt((num - 1) / num * np.square(moves).sum() or 1)
        value = values["metrics"][name]
        fits[name] = Fits(values=np.append(value, value + moves)[None])
    lesion = np.rint([subject["lesion_ml"] * 37 for subject in values["subjects"]])
    counts = np.stack([lesion * values["metrics"]["dice_d"], lesion, lesion]).astype(np.int64)
    ids = [subject["id"] for subject in values["subjects"]]
    return pack_people(ids, ids, counts, fits)


def _slices(values: dict[str, Any], random: np.random.Generator) -> Slices:
    """Sixteen slices a subject, a third of them with lesion and a little brighter for it."""
    shape = (len(values["subjects"]), 16)
    lesion = np.random.default_rng(len(values["cohort"]["name"])).random(shape) < 1 / 3
    score = 0.1 + 0.03 * random.standard_normal(shape) + 0.06 * values["metrics"]["dice_d"] * lesion
    return Slices(
        subjects=tuple(subject["id"] for subject in values["subjects"]),
        score=np.clip(score, 0, 1).astype(np.float32),
        lesion=lesion,
        counted=np.ones(shape, bool),
    )


def _filter(values: dict[str, Any], max_component: int) -> None:
    """Set the figures before and after a component filter."""
    values["components"]["max_size"] = max_component
    kept = ("metrics", "intervals")
    values["unfiltered"] = {key: dict(values[key]) for key in kept}
    values["filtered"] = {key: dict(values[key]) for key in kept}
    values["filtered"]["metrics"]["dice_d"] += 0.02
    values["metrics"]["dice_d"] += 0.02


def _cases(
    count: int,
    size: int,
    values: dict[str, Any],
    reconstructs: bool,
    random: np.random.Generator,
    place: int,
) -> dict[str, NDArray[Any]]:
    """Ellipses with ventricles, a texture and a dark lesion on the subject's left."""
    shared = np.random.default_rng(100 + place)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    stacks: dict[str, list[NDArray[Any]]] = {}
    for _ in range(count):
        brain = (y / shared.uniform(0.8, 0.9)) ** 2 + (x / shared.uniform(0.62, 0.72)) ** 2 < 1
        cortex = ~ndimage.binary_erosion(brain, iterations=max(1, size // 16))
        ventricles = ((y - 0.05) / 0.3) ** 2 + ((abs(x) - 0.1) / 0.06) ** 2 < 1
        texture = ndimage.gaussian_filter(shared.normal(0, 1, y.shape), size / 30)
        clean = 0.72 - 0.2 * cortex - 0.45 * ventricles + 0.06 * texture / texture.std()
        centre = shared.uniform(-0.3, 0.3), shared.uniform(-0.45, -0.25)
        blob = ((y - centre[0]) / 0.22) ** 2 + ((x - centre[1]) / 0.15) ** 2
        lesion = (blob + 0.25 * texture / texture.std() < 1) & brain
        image = np.where(brain, np.clip(clean * (1 - 0.35 * lesion), 0, 1), 0)
        smooth = ndimage.gaussian_filter(np.clip(clean, 0, 1), size / 40) * brain
        scores = ndimage.median_filter(abs(image - smooth), 3) * brain
        scores = scores * random.uniform(0.8, 1.2)
        parts = (image, smooth, scores, brain, lesion, scores >= values["threshold"]["value"])
        names = ("input", "reconstruction", "scores", "brain", "lesion", "prediction")
        for part_name, part in zip(names, parts, strict=True):
            kind = bool if part.dtype == bool else np.float32
            stacks.setdefault(part_name, []).append(part.astype(kind))
    if not reconstructs:
        del stacks["reconstruction"]
    return {
        "ids": np.array([subject["id"] for subject in values["subjects"][:count]]),
        "slice": np.arange(30, 30 + count),
        **{part_name: np.stack(parts) for part_name, parts in stacks.items()},
    }
