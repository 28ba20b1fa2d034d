"""Fitting any method: in this process for one worker, on Ray Train for several."""

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from uadray import cluster, files, settings_files
from uadray.config import Experiment, with_fit
from uadray.data.batch import Batch
from uadray.data.erasing import check_draw
from uadray.data.sampling import fit_rows, fold_rows
from uadray.data.stream import ValidationStream
from uadray.device import compute_device
from uadray.errors import ConfigError, RunError, StoppedError
from uadray.lock import hold
from uadray.methods import (
    Detector,
    GradientDetector,
    StreamDetector,
    is_fitted,
    num_parameters,
)
from uadray.runs.checkpoint import CheckpointStore
from uadray.runs.detector import build_detector, try_out
from uadray.runs.folder import Run
from uadray.runs.reading import SETTINGS, writing
from uadray.settings_files import experiment_table
from uadray.store import Cohort
from uadray.train.fit import healthy_reconstruction
from uadray.train.group import fit_group
from uadray.train.settings import ScaleConfig, TrackConfig
from uadray.train.steps import Metrics, World
from uadray.train.summary import summarise
from uadray.train.track import prepared
from uadray.train.worker import fit_worker


def fit(
    experiment: Experiment,
    cohort: Cohort,
    url: str,
    *,
    scale: ScaleConfig | None = None,
    track: TrackConfig | None = None,
    report: Callable[[Metrics], None] = lambda record: None,
) -> Run:
    """Fit an experiment on the train split of a healthy cohort and leave a run folder.

    A finished run is opened as it is; one that was cut short or failed goes on from its newest
    checkpoint. An error leaves `summary.json` with the status `failed` and the reason; several
    workers that were asked to stop leave `stopped`.

    Args:
        experiment: What to fit.
        cohort: Its train split is learned from, its validation split chooses the epoch.
        url: The run folder, local or any fsspec URL; shared by all nodes when there are several.
        scale: Workers.
        track: Where else epochs are shown.
        report: Called with the record of each epoch.

    Raises:
        ConfigError: settings do not suit the cohort or the cluster.
        CheckpointError: the folder holds a run of something else.
        LockedError: another job writes it.
        NotFiniteError: the loss is not finite.
    """
    scale, track = scale or ScaleConfig(), prepared(track or TrackConfig())
    url = files.normalise(url)
    Run.check_place(url)  # before the lock makes the folder
    with hold(url):
        return _fit_held(experiment, cohort, url, scale, track, report)


def fit_folds(
    experiment: Experiment,
    cohort: Cohort,
    url: str,
    folds: int,
    *,
    scale: ScaleConfig | None = None,
    track: TrackConfig | None = None,
    report: Callable[[int, Metrics], None] = lambda fold, record: None,
) -> list[Run]:
    """Fit an experiment once for each fold of a healthy cohort's people, as `fit` does.

    Each person of the training and validation part is held back once; people and groups are even
    over folds, see `uadray.data.sampling.fold_rows`.

    Args:
        experiment: What to fit; its own `fit.folds` and `fit.fold` are replaced.
        cohort: Healthy.
        url: Folder of the runs, `fold-1` and so on. Finished ones are opened as they are.
        folds: Their number, at least 2.
        scale: Workers of each fit; one fit comes after the other.
        track: Where else epochs are shown.
        report: Called with the fold and the record of each epoch.

    Raises:
        ConfigError: there are fewer people than folds, or a method that learns nothing.
        UadrayError: see `fit`.
    """
    if not is_fitted(experiment.method):
        raise ConfigError(f"{experiment.name} learns from nobody, so that its folds are all alike")
    url = files.normalise(url)
    if Run.is_begun(url):
        raise RunError(f"{url} holds a run, folds go into a folder of runs: choose another --out")
    fold_rows(cohort, folds)  # what is wrong with them is said before anything is fitted
    runs = []
    for fold in range(1, folds + 1):
        runs.append(
            fit(
                with_fit(experiment, folds=folds, fold=fold),
                cohort,
                files.join(url, f"fold-{fold}"),
                scale=scale,
                track=track,
                report=partial(report, fold),
            )
        )
    return runs


def _fit_held(
    experiment: Experiment,
    cohort: Cohort,
    url: str,
    scale: ScaleConfig,
    track: TrackConfig,
    report: Callable[[Metrics], None],
) -> Run:
    run = Run.create(url, experiment, cohort)
    run.remove_drafts()
    if run.finished:
        return run
    if run.summary is not None:
        run.reopen()
    if "lineage" not in run.config:  # what a population fits is not repeated by itself
        kept = {"cohort": cohort.url, "out": url, "scale": scale, "track": track}
        place = files.join(url, SETTINGS)
        with writing(url):
            settings_files.write(place, "train", experiment_table(experiment) | kept)
    start = time.perf_counter()
    try:
        detector = build_detector(experiment, cohort.shape)
        if experiment.method.package is not None:
            try_out(detector, experiment.method.type_name(), cohort.shape)
        if experiment.erasing.package is not None and isinstance(detector, GradientDetector):
            check_draw(experiment.erasing, cohort.shape[-detector.ndim :])
        facts = _fit(detector, run, cohort, scale, track, report)
    except StoppedError:
        run.finish({"status": "stopped", **summarise(run)})
        return run
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        # A folder that cannot be written to cannot say so; the error still reaches the user.
        with suppress(OSError, RunError):
            run.finish({"status": "failed", "error": message[:2000], **summarise(run)})
        raise
    outcome = summarise(run)
    if outcome["epochs"] == 0:
        fitted = isinstance(detector, StreamDetector)
        outcome["fit_seconds"] = time.perf_counter() - start if fitted else None
        if not detector.has_reconstruction:
            outcome["validation/reconstruction"] = None
    how = {
        "num_parameters": num_parameters(detector),
        "num_workers": scale.num_workers,
        "micro_batch": scale.micro_batch,
        "threads": torch.get_num_threads(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
    }
    run.finish({"status": "finished", **outcome, **how, **facts})
    return run


def _fit(
    detector: Detector,
    run: Run,
    cohort: Cohort,
    scale: ScaleConfig,
    track: TrackConfig,
    report: Callable[[Metrics], None],
) -> dict[str, Any]:
    """Fit in the way that suits the method; returns facts for the summary."""
    if isinstance(detector, (GradientDetector, StreamDetector)):
        # The dashboard frees what a group leaves behind whose driver was killed.
        cluster.connect(dashboard=scale.num_workers > 1)
        cluster.check_readable(cohort.seal_url)
    if not isinstance(detector, GradientDetector):
        if track != TrackConfig():
            raise ConfigError(f"{run.experiment.name} has no epochs to track: drop --track")
        return _fit_plain(detector, run, cohort)
    if scale.num_workers > 1:
        return fit_group(run, cohort, scale, track=track, report=report)
    if _is_placed(scale):
        return fit_group(run, cohort, replace(scale, device="cuda"), track=track, report=report)
    return fit_worker(
        run,
        cohort,
        world=World(),
        device=compute_device(scale.device),
        micro_batch=scale.micro_batch,
        cuda_graph=scale.cuda_graph,
        track=track,
        report=report,
    )


def _is_placed(scale: ScaleConfig) -> bool:
    """Whether a single worker is started by Ray, on a node with a free GPU, and not here."""
    if scale.device == "cpu" or not cluster.places_gpus():
        return False
    nodes = zip(*cluster.room(), strict=True)
    return scale.takes_gpus or cluster.num_fitting(nodes, scale.cpus_per_worker, 1) > 0


def fit_stream(detector: StreamDetector, volumes: Iterable[Batch], device: torch.device) -> None:
    """Fit a method that learns in one pass over the healthy volumes."""
    for batch in volumes:
        detector.update(batch.images.to(device).float())
    detector.finish()


def _fit_plain(detector: Detector, run: Run, cohort: Cohort) -> dict[str, Any]:
    """Fit what learns in one pass, or nothing, and keep it as a checkpoint of one epoch."""
    if not isinstance(detector, StreamDetector):
        return {}
    device = torch.device("cpu")
    rows, held_back = fit_rows(cohort, run.experiment.fit)
    # The same batches on every machine: PCA's increments depend on them.
    train = ValidationStream(cohort, rows, batch_size=32, resident=False, brain=False)
    fit_stream(detector, train, device)
    value = 0.0
    if detector.has_reconstruction:
        volumes = ValidationStream(cohort, held_back, resident=False)
        error = healthy_reconstruction(detector, volumes, device)
        value = float(error[0] / error[1])
    CheckpointStore.of(run).save(1, detector, None, value)
    return {"num_train_volumes": len(rows), "num_validation_volumes": len(held_back)}
