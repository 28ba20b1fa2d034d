"""Run folders of a sweep without a fit: random scores, and all figures computed from them.

For timing reports and looking at them. Scores are drawn, stronger or weaker with the settings of
a trial; counts, thresholds, metrics, intervals, figures by person and slices come from them by the
functions of the evaluation, and the folders have the form that fit and evaluation write.

python -m benchmarks.made_sweep FOLDER [--trials 200]     then: python jobs/report.py FOLDER/runs
"""

import argparse
import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from benchmarks.scored import volume
from tests.tiny_cohorts import write_cohort
from uadray import files, npz
from uadray.config import BASELINES, Experiment, experiment, with_fit
from uadray.evaluation.figures import Measured
from uadray.evaluation.protocols import EvaluateConfig
from uadray.evaluation.record import make_record
from uadray.methods.vae import VAE
from uadray.metrics.counts import TestPart as Tested
from uadray.metrics.counts import ThresholdPart, count_subject
from uadray.metrics.lesionwise import compare_lesions, component_sizes
from uadray.metrics.postprocess import MAX_LEVEL
from uadray.metrics.slicewise import Slices
from uadray.metrics.thresholds import best_dice, refit_thresholds
from uadray.runs.evaluations import pack_slices
from uadray.runs.folder import Run
from uadray.store import Cohort

GRID = 32
"""Edge of the volumes that are counted; montage slices are enlarged to the usual 64."""

NUM_THRESHOLD, NUM_TEST = 8, 16
VOXEL_MM = 6.0
SIGNAL = 0.02
"""What a lesion adds to the scores, for each deviation of skill."""

EPOCHS = 60
FAILED_EVERY, STOPPED_EVERY = 37, 23

EXPERIMENTS = (
    "3D-Cube-n",
    "3D-None",
    "2D-None",
    "2D-Patch-n",
    "3D-Half-Volume-n",
    "2D-Half-Slice-n",
)
LATENT_SIZES = (32, 128, 512)
DATA_SHARES = (0.1, 0.2, 0.6, 1.0)
SEEDS = (0, 1, 2)


@dataclass(frozen=True, kw_only=True)
class Lesioned:
    """A made cohort with what scores are drawn from."""

    cohort: Cohort
    image: NDArray[np.float32]
    """(N, Z, Y, X), the threshold part first."""
    brain: NDArray[np.bool_]
    lesion: NDArray[np.bool_]
    ids: tuple[str, ...]


def trials(number: int) -> list[Experiment]:
    """Trials and a plain baseline for about every tenth, `number` in all."""
    plain = [experiment(name) for name in BASELINES[-max(2, min(number // 10, 7)) :]]
    varied = []
    for name, latent, share, seed in itertools.product(
        EXPERIMENTS, LATENT_SIZES, DATA_SHARES[:: -1 if number > 60 else -2], SEEDS
    ):
        base = experiment(name)
        assert isinstance(base.method, VAE.Settings)
        made = replace(base, method=replace(base.method, latent_size=latent))
        varied.append(with_fit(made, epochs=EPOCHS, data_share=share, seed=seed))
    return [*varied[: number - len(plain)], *plain]


def write_sweep(folder: str, number: int = 200, *, num_resamples: int = 50) -> str:
    """Write `number` run folders and the cohorts that they refer to.

    Args:
        folder: Local path; `runs`, `healthy.zarr` and two lesioned cohorts come into it.
        number: Trials, plain baselines among them.
        num_resamples: Refits of the threshold.

    Returns:
        The folder of runs.
    """
    healthy = _store(f"{folder}/healthy.zarr", seed=0, lesioned=False)
    lesioned = [_store(f"{folder}/{n}.zarr", seed=s) for n, s in (("stroke", 1), ("tumour", 2))]
    for place, trial in enumerate(trials(number), start=1):
        url = f"{folder}/runs/{trial.name}-{trial.fingerprint[:8]}"
        run = Run.create(url, trial, healthy.cohort)
        random = np.random.default_rng([place, trial.fit.seed])
        skill = _skill(trial, random)
        learns = isinstance(trial.method, VAE.Settings)
        if learns and place % FAILED_EVERY == 0:
            run.finish({"status": "failed", "error": "NotFiniteError: loss is nan at epoch 3"})
            continue
        stopped = learns and place % STOPPED_EVERY == 0
        _fit(run, skill, random, epochs=12 if stopped else EPOCHS, stopped=stopped)
        if not stopped:
            for cohort in lesioned:
                _evaluate(run, cohort, skill, random, num_resamples)
    return f"{folder}/runs"


def made_cohort(url: str, number: int) -> Cohort:
    """A healthy cohort of 8 volumes to validate and the others to fit on, on a grid of 32."""
    return _store(url, seed=0, lesioned=False, number=number).cohort


def _skill(trial: Experiment, random: np.random.Generator) -> float:
    """How far lesions stand out, in deviations of the healthy scores."""
    if not isinstance(trial.method, VAE.Settings):
        return float(random.uniform(0.8, 1.9))
    gain = 0.25 * (trial.method.ndim == 3) + 0.2 * (trial.erasing.strategy != "none")
    size = 0.12 * np.log2(trial.method.latent_size / 32)
    return float(1.4 + gain + size + 0.5 * np.log10(trial.fit.data_share) + random.normal(0, 0.08))


def _fit(
    run: Run, skill: float, random: np.random.Generator, *, epochs: int, stopped: bool
) -> None:
    summary: dict[str, Any] = {"status": "stopped" if stopped else "finished", "num_workers": 1}
    if not isinstance(run.experiment.method, VAE.Settings):
        run.finish(
            summary
            | {"fit_seconds": float(random.uniform(1, 5)), "epochs": None, "best_epoch": None}
        )
        return
    floor, records = 0.05 - 0.008 * skill, []
    for epoch in range(1, epochs + 1):
        train = floor + 0.1 * np.exp(-epoch / 8) + random.normal(0, 2e-4)
        records.append(
            {
                "epoch": epoch,
                "train/loss": float(train * 1.3),
                "train/reconstruction": float(train),
                "train/kl": float(random.uniform(20, 30)),
                "validation/reconstruction": float(train + 0.004 + abs(random.normal(0, 4e-4))),
                "seconds": float(random.uniform(0.9, 1.1)),
                "samples_per_second": float(random.uniform(35, 45)),
            }
        )
    run.write_metrics(records)
    best = min(records, key=lambda record: record["validation/reconstruction"])
    run.finish(
        summary
        | {
            "epochs": epochs,
            "best_epoch": best["epoch"],
            "validation/reconstruction": best["validation/reconstruction"],
            "fit_seconds": sum(record["seconds"] for record in records),
            "num_parameters": 4_150_000,
        }
    )


def _evaluate(
    run: Run, made: Lesioned, skill: float, random: np.random.Generator, num_resamples: int
) -> None:
    levels = [_levels(made, n, skill, random) for n in range(len(made.ids))]
    nothing_eroded = made.brain
    counted = [
        (made.ids[n], count_subject(own, made.brain[n], made.lesion[n], nothing_eroded[n]))
        for n, own in enumerate(levels)
    ]
    whole = {"score_range": (0.0, 1.0)}
    fitted = ThresholdPart.from_subjects(
        counted[:NUM_THRESHOLD], name=f"{made.cohort.name}/threshold", **whole
    )
    test = Tested.from_subjects(counted[NUM_THRESHOLD:], name=f"{made.cohort.name}/test", **whole)
    threshold = best_dice(fitted)
    refits = refit_thresholds(fitted, "best_dice", made.ids[:NUM_THRESHOLD], num_resamples)
    examined = [
        compare_lesions(levels[n] >= threshold.level, made.lesion[n], (VOXEL_MM,) * 3)
        for n in range(NUM_THRESHOLD, len(made.ids))
    ]
    measured = Measured(
        scores=test,
        filtered=None,
        people=made.ids[NUM_THRESHOLD:],
        threshold=threshold,
        refits=refits,
        fingerprint="0" * 16,
        num_threshold=NUM_THRESHOLD,
        lesions=examined,
    )
    config = EvaluateConfig(threshold_rule="best_dice", num_resamples=num_resamples)
    record, people = make_record(run, made.cohort, config, measured)
    sizes = [len(component_sizes(lesion)) for lesion in made.lesion]
    record |= {
        "healthy_cohort": None,
        "seconds_per_volume": float(random.uniform(0.05, 0.2)),
        "lesions": {"num_subjects": len(made.ids), "num_components": sum(sizes)},
    }
    stem = f"{run.url}/evaluation/{made.cohort.name}"
    files.write_bytes(f"{stem}-people.npz", people)
    files.write_bytes(f"{stem}-slices.npz", pack_slices(Slices.of(test)))
    files.write_bytes(f"{stem}-cases.npz", _cases(run, made, levels, threshold.level, random))
    files.write_json(f"{stem}.json", record)


def _levels(
    made: Lesioned, n: int, skill: float, random: np.random.Generator
) -> NDArray[np.uint16]:
    noise = np.abs(random.standard_normal(made.brain[n].shape)) * 0.09
    scores = ndimage.uniform_filter(noise + SIGNAL * skill * made.lesion[n], 3) * made.brain[n]
    return np.rint(np.clip(scores, 0, 1) * MAX_LEVEL).astype(np.uint16)


def _cases(
    run: Run, made: Lesioned, levels: list[NDArray], level: int, random: np.random.Generator
) -> bytes:
    """Three test subjects; their slices are enlarged to the 64 x 64 of a cohort of usual size."""
    order = sorted(range(NUM_THRESHOLD, len(made.ids)), key=lambda n: -int(made.lesion[n].sum()))
    arrays: dict[str, list[Any]] = {}
    for n in (order[1], order[len(order) // 2], order[-2]):
        z = int(made.lesion[n].sum((1, 2)).argmax())
        image, score = _large(made.image[n, z]), _large(levels[n][z] / MAX_LEVEL)
        brain, lesion = (
            ndimage.zoom(m[n, z].astype(np.uint8), 2, order=0) > 0
            for m in (made.brain, made.lesion)
        )
        case: dict[str, Any] = {
            "ids": made.ids[n],
            "slice": z,
            "input": image,
            "scores": np.where(brain, score, 0).astype(np.float32),
            "brain": brain,
            "lesion": lesion,
            "prediction": score * MAX_LEVEL >= level,
        }
        if isinstance(run.experiment.method, VAE.Settings):
            change = random.normal(0, 0.02, image.shape)
            blurred = ndimage.gaussian_filter(image, 1.5)
            case["reconstruction"] = (np.clip(blurred + change, 0, 1) * brain).astype(np.float32)
        for key, value in case.items():
            arrays.setdefault(key, []).append(value)
    return npz.pack(**{key: np.array(values) for key, values in arrays.items()})


def _large(plane: NDArray) -> NDArray[np.float32]:
    return np.clip(ndimage.zoom(plane.astype(np.float32), 2, order=1), 0, 1)


def _store(
    url: str, *, seed: int, lesioned: bool = True, number: int = NUM_THRESHOLD + NUM_TEST
) -> Lesioned:
    volumes = [volume(1000 * seed + row, GRID) for row in range(number)]
    image, brain, lesion = (
        np.stack([getattr(one, part) for one in volumes]) for part in ("image", "brain", "lesion")
    )
    cohort = write_cohort(
        url,
        [_split(row, lesioned) for row in range(number)],
        lambda row: (image[row].astype(np.float16), brain[row], lesion[row] if lesioned else None),
        seed=seed,
        affine=tuple(tuple(row) for row in np.diag([VOXEL_MM] * 3 + [1.0]).tolist()),
    )
    ids = tuple(cohort.subjects["id"])
    return Lesioned(cohort=cohort, image=image, brain=brain, lesion=lesion, ids=ids)


def _split(row: int, lesioned: bool) -> Any:
    if lesioned:
        return "threshold" if row < NUM_THRESHOLD else "test"
    return "validation" if row < NUM_THRESHOLD else "train"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--trials", type=int, default=200)
    given = parser.parse_args()
    print(write_sweep(given.folder, given.trials))


if __name__ == "__main__":
    main()
